"""Where to survey next: candidates and places in, ranked sites and what they promise out."""

import lazy_loader

# Names are loaded when first used: importing the package costs milliseconds, not seconds.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
