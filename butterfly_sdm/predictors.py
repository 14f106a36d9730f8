"""From a config to a predictor, and from a folder to a predictor in any process."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from butterfly_sdm.data.predictor import Predictor
from butterfly_sdm.data.saved_models import PREDICTORS, load_predictor, why_not_taken, with_seed
from butterfly_sdm.errors import ConfigError, ModelError
from butterfly_sdm.losses.options import DetectionName
from butterfly_sdm.models.options import FitOptions, ModelOptions
from butterfly_sdm.season.options import SeasonOptions

#: Kinds that take a season themselves; any other is put into ``seasonal``.
KNOWS_DATES = ("network", "occupancy", "seasonal")

__all__ = ["PREDICTORS", "Handle", "load_predictor", "make_predictor"]


def make_predictor(
    model: ModelOptions,
    fit: FitOptions,
    seed: int,
    season: SeasonOptions | None = None,
    *,
    place: str = "train.model",
) -> Predictor:
    """
    Return the unfitted predictor that a config describes.

    Parameters
    ----------
    model, fit
        Its sections ``train.model`` and ``train.fit``; a baseline takes nothing of the latter.
    seed
        Of a predictor that draws at random, unless its options say another.
    season
        How dates of visits are used; None: they are not, unless the kind itself does. A network is
        then fitted to dated visits, and what learns from k of n to effective visits.
    place
        Which setting asks for it, for messages.

    Raises
    ------
    ConfigError
        The kind is unknown, or an option does not belong to it, or the loss does not go with
        seasons.
    """
    try:
        cls = PREDICTORS.load(model.kind)
    except ModelError as error:
        raise ConfigError(f"{place}: {error}") from None
    options = dict(model.options)
    if season is not None:
        fit, options = _with_season(model.kind, fit, options, season)
        if model.kind not in KNOWS_DATES:
            options = {"predictor": model.kind, "options": options.pop("own"), **options}
            cls = PREDICTORS.load("seasonal")
    try:
        if model.kind == "network":
            options = {"seed": seed} | options
            if model.members > 1:
                cls = PREDICTORS.load("ensemble").of_networks
                return cls(model.members, model, fit, **options)  # type: ignore[no-any-return]
            return cls(model, fit, **options)  # type: ignore[no-any-return]
        return cls(**with_seed(cls, options, seed))  # type: ignore[no-any-return]
    except TypeError as error:
        why = why_not_taken(PREDICTORS.load(model.kind), model.kind, model.options, error)
        raise ConfigError(f"{place}: {why}") from error


def _with_season(
    kind: str, fit: FitOptions, options: dict[str, Any], season: SeasonOptions
) -> tuple[FitOptions, dict[str, Any]]:
    """Return loss and options with which a kind, or ``seasonal`` around it, uses dates."""
    told = season.model_dump(mode="json", exclude={"use"}, exclude_unset=True)
    if kind == "network" and fit.loss == "binomial":
        fit = fit.model_copy(update={"loss": "season"})
    elif kind == "network" and fit.loss not in get_args(DetectionName):
        raise ConfigError(
            f"train.season: a network with train.fit.loss {fit.loss} cannot use dates. Use the "
            "loss season, occupancy or binomial, or switch season off."
        )
    if kind in KNOWS_DATES:
        return fit, {"season": told} | options
    return fit, {"season": told, "own": options}


class Handle:
    """
    A predictor that travels to workers as the folder it is saved in, never as a pickle of its
    weights.

    Parameters
    ----------
    predictor
        The fitted predictor.
    folder
        Where it is saved; None if it never leaves this process.
    """

    def __init__(self, predictor: Any, folder: Path | None = None) -> None:
        self.folder = folder
        self._predictor = predictor

    def __getstate__(self) -> dict[str, Any]:
        if self.folder is None:
            raise ModelError(
                "This predictor was not saved, so it cannot be sent to other processes. Use "
                "workers=1."
            )
        return {"folder": self.folder, "_predictor": None}

    @property
    def predictor(self) -> Any:
        """The predictor; read from its folder, once per process, where it is not at hand."""
        if self._predictor is None:
            assert self.folder is not None
            self._predictor = _load_once(self.folder)
        return self._predictor


@lru_cache(maxsize=2)
def _load_once(folder: Path) -> Any:
    return load_predictor(folder)
