"""
Pictures for notebooks: tiles, survey effort, maps, training, embeddings.

Every function returns a :class:`Picture` that shows itself in Jupyter and saves itself as a file;
none changes matplotlib's global state. Colours are told apart by colour-blind readers, and
everything that has a unit or a scale shows it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from butterfly_sdm.figures.embedding import show_embedding
    from butterfly_sdm.figures.maps import MapView, show_maps
    from butterfly_sdm.figures.picture import Picture
    from butterfly_sdm.figures.reliability import show_reliability
    from butterfly_sdm.figures.survey import show_effort, show_rates
    from butterfly_sdm.figures.tiles import show_tiles
    from butterfly_sdm.figures.training import show_history

_HOMES = {
    "show_tiles": "tiles",
    "show_effort": "survey",
    "show_rates": "survey",
    "show_history": "training",
    "show_embedding": "embedding",
    "show_reliability": "reliability",
    "show_maps": "maps",
    "MapView": "maps",
    "Picture": "picture",
}

__all__ = [
    "MapView",
    "Picture",
    "show_effort",
    "show_embedding",
    "show_history",
    "show_maps",
    "show_rates",
    "show_reliability",
    "show_tiles",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
