"""Honest baselines: predictors that any image model has to beat."""

from typing import Any, cast

from butterfly_sdm.data.predictor import Predictor


def make_baseline(kind: str, **options: Any) -> Predictor:
    """
    Return an unfitted predictor of a kind.

    Parameters
    ----------
    kind
        A name in :data:`butterfly_sdm.data.saved_models.PREDICTORS`.
    options
        Hyper-parameters of its class.

    Raises
    ------
    ModelError
        There is no such kind, or it has no such hyper-parameter.

    Examples
    --------
    >>> make_baseline("nearest_sites", neighbours=10).neighbours
    10
    """
    from butterfly_sdm.data.saved_models import PREDICTORS, why_not_taken
    from butterfly_sdm.errors import ModelError

    cls = PREDICTORS.load(kind)
    try:
        return cast(Predictor, cls(**options))
    except TypeError as error:
        raise ModelError(why_not_taken(cls, kind, options, error)) from error
