"""Conformal intervals for detection rates: a promise on how often they hold, whatever the model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from butterfly_sdm.core.files import read_json, write_json
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import ArtefactError, DataError
from butterfly_sdm.evaluation.scores import checked_predictions

FLOOR = 1e-3  # a species predicted with 0 may still be detected once


@dataclass(frozen=True)
class Conformal:
    """
    How wide the interval around a prediction has to be, per species.

    The interval of a rate seen on n visits is ``p ± quantile * sqrt(p (1 - p) (1 / n + spread))``,
    cut at 0 and 1: binomial noise, and the model's own error expressed in the same unit.

    Attributes
    ----------
    level
        Share of sites whose rate lies in the interval.
    quantile, spread
        Per species.
    """

    level: float
    quantile: pd.Series
    spread: pd.Series

    def intervals(
        self, predictions: pd.DataFrame, visits: pd.Series | float
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """
        Return the lower and upper ends for the rate that would be seen on so many visits.

        Raises
        ------
        DataError
            A species was not calibrated, or visits are below 1.
        """
        unknown = [species for species in predictions.columns if species not in self.quantile.index]
        if unknown:
            raise DataError(
                f"There is no interval for {unknown[0]!r}. Fit intervals on predictions of all "
                "species."
            )
        p = predictions.to_numpy(dtype=float)
        n = (
            np.full(len(p), visits, dtype=float)
            if isinstance(visits, int | float)
            else visits[predictions.index].to_numpy(float)
        )
        low, high = (
            pd.DataFrame(frame, index=predictions.index, columns=predictions.columns)
            for frame in self.ends(p, tuple(predictions.columns), n)
        )
        return low, high

    def ends(
        self, p: np.ndarray, species: tuple[str, ...], visits: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Return the lower and upper ends, each (places, species).

        Parameters
        ----------
        p
            (places, species) predictions.
        species
            Names of the columns.
        visits
            (places,) on which the rates would be seen.

        Raises
        ------
        DataError
            Visits are below 1.
        """
        if (visits < 1).any():
            raise DataError("An interval for a rate needs at least one visit per site.")
        columns = list(species)
        scale = _scale(p, visits, self.spread[columns].to_numpy())
        half = self.quantile[columns].to_numpy() * scale
        return np.clip(p - half, 0, 1), np.clip(p + half, 0, 1)

    def to_json(self, path: Path) -> None:
        """Write level, quantiles and spreads."""
        series = {name: getattr(self, name).to_dict() for name in ("quantile", "spread")}
        write_json(path, {"format": "butterfly_sdm conformal", "level": self.level} | series)

    @classmethod
    def from_json(cls, path: Path) -> Self:
        """
        Read what :meth:`to_json` wrote.

        Raises
        ------
        MissingFileError, ArtefactError
            The file is absent or holds something else.
        """
        value: Any = read_json(path)
        try:
            return cls(
                float(value["level"]),
                pd.Series(value["quantile"], dtype=float),
                pd.Series(value["spread"], dtype=float),
            )
        except (TypeError, KeyError, ValueError) as error:
            raise ArtefactError(
                f"{path} does not hold conformal intervals ({error}). Fit them again."
            ) from error


def fit_conformal(dataset: Dataset, out_of_fold: pd.DataFrame, *, level: float = 0.9) -> Conformal:
    """
    Learn the width of intervals from predictions of sites the model has not seen.

    Split-conformal prediction with normalised residuals [1]_, one quantile per species. On sites
    exchangeable with these the intervals hold for at least the share ``level``; over new regions,
    or where visits are far fewer, nothing is promised.

    Parameters
    ----------
    out_of_fold
        (site, species) out-of-fold predictions; those of training sites would make intervals too
        narrow.
    level
        Between 0 and 1.

    Returns
    -------
    Conformal
        Width of the intervals per species.

    Raises
    ------
    DataError
        ``level`` is out of range, or there are too few sites for it.

    References
    ----------
    .. [1] J. Lei et al. (2018), Distribution-free predictive inference for regression. JASA 113,
           1094-1111, section 5.2.
    """
    if not 0 < level < 1:
        raise DataError(f"level = {level} must lie between 0 and 1, such as 0.9.")
    used = [site for site in out_of_fold.index if dataset.visits[site] > 0]
    needed = int(np.ceil(level / (1 - level) - 1e-9))
    if len(used) < needed:
        raise DataError(
            f"Intervals of level {level} need at least {needed} sites with visits that the model "
            f"has not seen; there are {len(used)}. Ask for none, for a lower level, or hold out "
            "more sites."
        )
    p = checked_predictions(dataset, used, out_of_fold)
    n = dataset.visits[used].to_numpy(dtype=float)
    rate = dataset.rates.loc[used].to_numpy()
    variance = np.clip(p, FLOOR, 1 - FLOOR) * (1 - np.clip(p, FLOOR, 1 - FLOOR))
    # Method of moments: mean squared Pearson residual beyond 1 / n.
    spread = np.maximum(((rate - p) ** 2 / variance).mean(axis=0) - (1 / n).mean(), 0.0)
    score = np.abs(rate - p) / _scale(p, n, spread)
    rank = int(np.ceil((len(used) + 1) * level)) - 1
    quantile = np.sort(score, axis=0)[min(rank, len(used) - 1)]
    names = list(dataset.species)
    return Conformal(level, pd.Series(quantile, index=names), pd.Series(spread, index=names))


def coverage(dataset: Dataset, low: pd.DataFrame, high: pd.DataFrame) -> pd.DataFrame:
    """
    Return, per species, the share of sites whose rate lies in the interval, and the mean width.

    A last row ``all`` has the means over species.
    """
    rates = dataset.rates.loc[low.index, list(low.columns)]
    inside = (rates >= low - 1e-9) & (rates <= high + 1e-9)
    table = pd.DataFrame({"coverage": inside.mean(), "width": (high - low).mean()})
    table.loc["all"] = table.mean()
    return table.rename_axis("species")


def cross_coverage(
    dataset: Dataset, out_of_fold: pd.DataFrame, fold_of: pd.Series, *, level: float = 0.9
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """
    Measure coverage honestly: the sites of each fold get intervals learned from the other folds.

    Parameters
    ----------
    out_of_fold
        (site, species) predictions by models that had not seen the site.
    fold_of
        Fold of each site.
    level
        Share of rates that the intervals shall hold.

    Returns
    -------
    coverage
        As :func:`coverage`.
    low, high
        Ends of the intervals for the visits each site has.
    """
    parts = []
    for fold in np.unique(fold_of):
        held = fold_of.index[fold_of == fold]
        held = held[dataset.visits[held].to_numpy() > 0]
        others = fold_of.index[fold_of != fold]
        conformal = fit_conformal(dataset, out_of_fold.loc[others], level=level)
        parts.append(conformal.intervals(out_of_fold.loc[held], dataset.visits[held]))
    low, high = (pd.concat(ends) for ends in zip(*parts, strict=True))
    return coverage(dataset, low, high), low, high


def _scale(p: np.ndarray, n: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Return (sites, species) the standard deviation expected of rate - p."""
    inner = np.clip(p, FLOOR, 1 - FLOOR)
    return np.asarray(np.sqrt(inner * (1 - inner) * (1 / n[:, None] + spread)))
