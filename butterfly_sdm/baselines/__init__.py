"""
Honest baselines: predictors that any image model has to beat.

``BASELINES`` names the class of each kind as ``"module:Class"``; nothing is imported until
:func:`load_class` asks for it.
"""

from importlib import import_module
from typing import Any

BASELINES: dict[str, str] = {
    "mean_rate": "butterfly_sdm.baselines.mean_rate:MeanRate",
    "regional_rate": "butterfly_sdm.baselines.mean_rate:RegionalRate",
    "nearest_sites": "butterfly_sdm.baselines.nearest_sites:NearestSites",
    "linear": "butterfly_sdm.baselines.linear:Linear",
    "trees": "butterfly_sdm.baselines.trees:Trees",
    "boosting": "butterfly_sdm.baselines.boosting:Boosting",
    "maxent": "butterfly_sdm.baselines.maxent:MaxEnt",
    "random_features": "butterfly_sdm.baselines.random_features:RandomFeatures",
    "probe": "butterfly_sdm.baselines.probe:Probe",
    "gaussian_process": "butterfly_sdm.baselines.gaussian_process:GaussianProcess",
    "perceptron": "butterfly_sdm.baselines.perceptron:Perceptron",
    "stacking": "butterfly_sdm.baselines.stacking:Stacking",
}


def make_baseline(kind: str, **options: Any) -> Any:
    """
    Return an unfitted baseline.

    Parameters
    ----------
    kind
        A key of ``BASELINES``.
    options
        Hyper-parameters of its class.

    Raises
    ------
    ModelError
        There is no such baseline, or it has no such hyper-parameter.

    Examples
    --------
    >>> make_baseline("nearest_sites", neighbours=10).neighbours
    10
    """
    from butterfly_sdm.errors import ModelError, did_you_mean

    if kind not in BASELINES:
        raise ModelError(
            f"There is no baseline {kind!r}; known are "
            f"{', '.join(BASELINES)}.{did_you_mean(kind, BASELINES)}"
        )
    cls = load_class(BASELINES[kind])
    try:
        return cls(**options)
    except TypeError as error:
        raise ModelError(
            f"The baseline {kind!r} cannot be made with {options}: {error}."
        ) from error


def load_class(path: str) -> Any:
    """Return the class that ``"module:Class"`` names."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
