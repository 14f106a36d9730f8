"""
Every picture: tiles, survey effort, maps, training, embeddings, scores.

Every function returns a :class:`Picture` that shows itself in Jupyter and saves itself as a file;
none changes matplotlib's global state. Colours are told apart by colour-blind readers, and
everything that has a unit or a scale shows it.
"""

import lazy_loader

# Names are loaded when first used: importing the package costs milliseconds, not seconds.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
