"""
butterfly_sdm: predict which species live where from satellite images, and map it.

The public names, in the order of the flow: :func:`simulate_region` makes a landscape to try things
on, :func:`look` tells what files hold, :func:`build` turns scenes and records into a
:class:`Dataset`, :func:`train` turns that into a :class:`Run`, :func:`evaluate` scores it beside
honest baselines, :func:`predict_map` writes the map.
"""

import lazy_loader

# Names are loaded when first used: importing the package costs milliseconds, not seconds.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
