"""Look at a map in a browser or a notebook: one page, as a file or from this machine alone."""

import lazy_loader

# Names are loaded when first used: importing the package costs milliseconds, not seconds.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
