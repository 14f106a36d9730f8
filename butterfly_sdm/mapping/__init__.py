"""From a predictor and scenes to a map."""

from importlib import import_module
from typing import Any

_WHERE = {"predict_map": "map", "MapResult": "map"}
__all__ = ["MapResult", "predict_map"]


def __getattr__(name: str) -> Any:
    # On first use: torch takes seconds to import.
    if name in _WHERE:
        return getattr(import_module(f"butterfly_sdm.mapping.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'butterfly_sdm.mapping' has no attribute {name!r}")
