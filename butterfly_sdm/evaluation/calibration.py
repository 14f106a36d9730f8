"""
Is a predicted 0.3 detected on 30 % of visits? Reliability, its decomposition, and recalibration per
species.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from butterfly_sdm.core.files import read_json, write_json
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import ArtefactError, DataError
from butterfly_sdm.evaluation.scores import EPSILON, checked_predictions

# a, b and c of the beta map that leaves predictions as they are
UNCHANGED = np.array([1.0, 1.0, 0.0])


@dataclass(frozen=True)
class Reliability:
    """
    Predictions beside what was detected, in bins of the prediction.

    Attributes
    ----------
    curve
        One row per bin: ``predicted`` and ``observed`` mean per visit, ``visits`` and ``cells``
        (sites x species) in it.
    calibration_error
        Expected calibration error: mean over visits of \\|observed - predicted\\| of the bin.
    brier, reliability, resolution, uncertainty, within_bins
        Mean squared error per visit and its parts (Murphy 1973): ``brier = reliability - resolution
        + uncertainty + within_bins``; the last is what binning leaves over (Stephenson et al.
        2008).
    """

    curve: pd.DataFrame
    calibration_error: float
    brier: float
    reliability: float
    resolution: float
    uncertainty: float
    within_bins: float


def reliability(
    dataset: Dataset, sites: Sequence[str], predictions: pd.DataFrame, *, bins: int = 15
) -> Reliability:
    """
    Measure calibration over all sites and species, every visit counting alike.

    Parameters
    ----------
    sites
        Sites to judge by; those without a visit are left out.
    predictions
        (site, species) presence probabilities.
    bins
        How many, with about equal numbers of visits each.

    Returns
    -------
    Reliability
        Curve, calibration error and the parts of the Brier score.

    Raises
    ------
    DataError
        Predictions are missing or not probabilities, or no site has a visit.
    """
    detections, site_visits, probability = _cells(dataset, sites, predictions)
    k, p, n = detections.ravel(), probability.ravel(), np.repeat(site_visits, len(dataset.species))
    order = np.argsort(p, kind="stable")
    share = (np.cumsum(n[order]) - n[order] / 2) / n.sum()  # of visits with a smaller prediction
    bin_of = np.empty(len(p), dtype=int)
    bin_of[order] = np.minimum((share * bins).astype(int), bins - 1)
    # Equal predictions must not be torn apart, else their bins differ by chance alone.
    _, group = np.unique(p, return_inverse=True)
    first = np.full(group.max() + 1, bins)
    np.minimum.at(first, group, bin_of)
    _, bin_of = np.unique(first[group], return_inverse=True)
    visits = np.bincount(bin_of, n)
    predicted, observed = np.bincount(bin_of, n * p) / visits, np.bincount(bin_of, k) / visits
    weight = visits / visits.sum()
    base = k.sum() / n.sum()
    brier = float((k * (1 - p) ** 2 + (n - k) * p**2).sum() / n.sum())
    off = float((weight * (predicted - observed) ** 2).sum())
    resolution = float((weight * (observed - base) ** 2).sum())
    uncertainty = float(base * (1 - base))
    curve = pd.DataFrame(
        {
            "predicted": predicted,
            "observed": observed,
            "visits": visits,
            "cells": np.bincount(bin_of),
        }
    )
    error = float(weight @ np.abs(predicted - observed))
    within = brier - (off - resolution + uncertainty)
    return Reliability(curve, error, brier, off, resolution, uncertainty, within)


@dataclass(frozen=True)
class Recalibration:
    """
    A rising function per species that corrects predictions.

    Attributes
    ----------
    method
        ``"beta"`` or ``"isotonic"``.
    curves
        Per species the knots: predicted and corrected probabilities, both rising; in between
        linear.
    """

    method: str
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]

    def apply(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """
        Return corrected predictions.

        Raises
        ------
        DataError
            A species was not recalibrated.
        """
        unknown = [species for species in predictions.columns if species not in self.curves]
        if unknown:
            raise DataError(
                f"There is no recalibration of {unknown[0]!r}. Fit it on predictions of all "
                "species."
            )
        return predictions.apply(lambda column: np.interp(column, *self.curves[column.name]))

    def to_json(self, path: Path) -> None:
        """Write method and knots."""
        curves = {species: [x.tolist(), y.tolist()] for species, (x, y) in self.curves.items()}
        write_json(
            path, {"format": "butterfly_sdm recalibration", "method": self.method, "curves": curves}
        )

    @classmethod
    def from_json(cls, path: Path) -> Self:
        """
        Read what :meth:`to_json` wrote.

        Raises
        ------
        MissingFileError, ArtefactError
            The file is absent or not a recalibration.
        """
        value: Any = read_json(path)
        try:
            pairs = {
                str(species): [np.asarray(knots, dtype=float) for knots in pair]
                for species, pair in value["curves"].items()
            }
            return cls(str(value["method"]), {species: (x, y) for species, (x, y) in pairs.items()})
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ArtefactError(
                f"{path} is not a recalibration ({error}). Fit it again."
            ) from error


def fit_recalibration(
    dataset: Dataset,
    out_of_fold: pd.DataFrame,
    *,
    method: Literal["beta", "isotonic"] = "beta",
    prior_visits: float = 200.0,
) -> Recalibration:
    """
    Learn, per species, how far predictions are off.

    Parameters
    ----------
    out_of_fold
        Predictions of sites by models that have not seen them, as
        :func:`~butterfly_sdm.evaluation.compare.cross_validate` keeps them. Predictions of training
        sites would teach that nothing is wrong.
    method
        ``"beta"``: logit of the result = a log p - b log(1 - p) + c with a, b >= 0 [1]_;
        ``"isotonic"``: a rising step function [2]_, for thousands of visits.
    prior_visits
        Beta: how many visits speak for leaving the predictions as they are, so that rare species
        are not overfitted.

    Returns
    -------
    Recalibration
        A rising function per species.

    Raises
    ------
    DataError
        No site with predictions has a visit.

    References
    ----------
    .. [1] M. Kull, T. Silva Filho, P. Flach (2017), Beta calibration. AISTATS.
    .. [2] B. Zadrozny, C. Elkan (2002), Transforming classifier scores into accurate multiclass
           probability estimates. KDD.
    """
    if method not in ("beta", "isotonic"):
        raise DataError(f"method = {method!r}: recalibration is 'beta' or 'isotonic'.")
    k, n, p = _cells(dataset, list(out_of_fold.index), out_of_fold)
    fit_one = _beta_curve if method == "beta" else _isotonic_curve
    return Recalibration(
        method,
        {
            species: fit_one(k[:, i], n, p[:, i], prior_visits)
            for i, species in enumerate(dataset.species)
        },
    )


def _beta_curve(
    k: np.ndarray, n: np.ndarray, p: np.ndarray, prior_visits: float
) -> tuple[np.ndarray, np.ndarray]:
    from scipy.optimize import minimize

    p = np.clip(p, EPSILON, 1 - EPSILON)
    design = np.column_stack([np.log(p), -np.log1p(-p), np.ones_like(p)])  # (sites, 3)
    # in units of information, less for rare species
    prior = prior_visits * k.sum() / n.sum() * (1 - k.sum() / n.sum())

    def objective(change: np.ndarray) -> tuple[float, np.ndarray]:
        logits = design @ (UNCHANGED + change)
        value = (n * np.logaddexp(0, logits) - k * logits).sum() + prior / 2 * change @ change
        return value, design.T @ (n * expit(logits) - k) + prior * change

    change = minimize(
        objective,
        np.zeros(3),
        jac=True,
        bounds=[(-1, None), (-1, None), (None, None)],
        method="L-BFGS-B",
    ).x
    x = np.r_[0.0, expit(np.linspace(logit(EPSILON), logit(1 - EPSILON), 201)), 1.0]
    inner = np.clip(x, EPSILON, 1 - EPSILON)
    y = expit(
        np.column_stack([np.log(inner), -np.log1p(-inner), np.ones_like(inner)])
        @ (UNCHANGED + change)
    )
    return x, np.maximum.accumulate(y)


def _isotonic_curve(
    k: np.ndarray, n: np.ndarray, p: np.ndarray, prior_visits: float
) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(
        p, k / n, sample_weight=n
    )
    x, y = model.X_thresholds_, model.y_thresholds_
    return (np.r_[x, x[-1] + 1.0], np.r_[y, y[-1]]) if len(x) == 1 else (x, y)


def _cells(
    dataset: Dataset, sites: Sequence[str], predictions: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    used = [site for site in sites if dataset.visits[site] > 0]
    if not used:
        raise DataError(
            "None of the sites has a visit; calibration compares predictions with visits."
        )
    return *dataset.counts(used), checked_predictions(dataset, used, predictions)
