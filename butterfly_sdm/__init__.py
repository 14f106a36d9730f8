"""
butterfly_sdm: predict which species live where from satellite images, and map it.

The public names, in the order of the flow: :func:`simulate_region` makes a landscape to try things
on, :func:`build` turns scenes and records into a :class:`Dataset`, :func:`train` turns that into a
:class:`Run`, :func:`evaluate` scores it beside honest baselines, :func:`predict_map` writes the
map.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from butterfly_sdm.config import Config, load_config
    from butterfly_sdm.data.dataset import Dataset
    from butterfly_sdm.data.predictor import Predictor
    from butterfly_sdm.data.splits import Split
    from butterfly_sdm.errors import ButterflySDMError
    from butterfly_sdm.pipeline import Run, build, check, evaluate, predict_map, train
    from butterfly_sdm.simulate import simulate_region
    from butterfly_sdm.studies import compare_change, compare_runs, ladder, report, search

# Names are loaded when first used: importing the package costs milliseconds, not the seconds of
# torch.
_HOMES = {
    "simulate_region": "butterfly_sdm.simulate",
    "load_config": "butterfly_sdm.config",
    "Config": "butterfly_sdm.config",
    "build": "butterfly_sdm.pipeline",
    "train": "butterfly_sdm.pipeline",
    "evaluate": "butterfly_sdm.pipeline",
    "predict_map": "butterfly_sdm.pipeline",
    "check": "butterfly_sdm.pipeline",
    "ladder": "butterfly_sdm.studies",
    "compare_change": "butterfly_sdm.studies",
    "compare_runs": "butterfly_sdm.studies",
    "report": "butterfly_sdm.studies",
    "search": "butterfly_sdm.studies",
    "Run": "butterfly_sdm.pipeline",
    "Dataset": "butterfly_sdm.data.dataset",
    "Split": "butterfly_sdm.data.splits",
    "Predictor": "butterfly_sdm.data.predictor",
    "ButterflySDMError": "butterfly_sdm.errors",
}

__all__ = [
    "ButterflySDMError",
    "Config",
    "Dataset",
    "Predictor",
    "Run",
    "Split",
    "build",
    "check",
    "compare_change",
    "compare_runs",
    "evaluate",
    "ladder",
    "load_config",
    "predict_map",
    "report",
    "search",
    "simulate_region",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
