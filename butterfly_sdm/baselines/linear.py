"""
Generalised linear model: binomial regression of detections on the numbers of a site, with a ridge
penalty.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import expit, logit

from butterfly_sdm.baselines.inputs.table import TablePredictor
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import DataError


@dataclass
class Linear(TablePredictor):
    """
    Logistic regression of k detections in n visits on standardised covariates and position, and
    their squares.

    The log-likelihood of a site counts ``n ** visits_power`` times that of one visit: visits to one
    site are alike, so that the full binomial weight (1) trusts well-visited sites too much.

    Parameters
    ----------
    penalty
        On the sum of squared slopes, per training site; larger draws every species towards its mean
        rate.
    quadratic
        Add the square of every input, so that a species can prefer the middle of a gradient.
    visits_power
        0: all sites weigh alike; 1: all visits.
    covariates, position, bands, only, embedding, components
        What the model sees, as in
        :class:`~butterfly_sdm.baselines.inputs.table.TablePredictor`. Missing numbers
        become the mean.

    References
    ----------
    .. [1] P. McCullagh, J. A. Nelder (1989), Generalized Linear Models, chapter 4.
    """

    penalty: float = 0.03
    quadratic: bool = True
    visits_power: float = 0.5
    kind: ClassVar[str] = "linear"
    needed: ClassVar[str] = "mean deviation square_mean square_deviation slopes intercept"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.penalty <= 0:
            raise DataError(
                f"penalty = {self.penalty} must be above 0, else species with few detections have "
                "no solution."
            )

    def _fit(self, dataset: Dataset, sites: Sequence[str]) -> dict[str, np.ndarray]:
        table = self._numbers(dataset, sites)
        values = table.to_numpy(dtype=float)
        mean, deviation = mean_and_deviation(values)
        state = {"mean": mean, "deviation": deviation}
        scaled = np.nan_to_num((values - mean) / deviation)
        state["square_mean"], state["square_deviation"] = mean_and_deviation(scaled**2)
        k, n = dataset.counts(sites)
        slopes, intercept = fit_logistic(
            self._design(values, state), k / n[:, None], n**self.visits_power, self.penalty
        )
        return state | {"slopes": slopes, "intercept": intercept}

    def _design(self, values: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
        # Beyond the range of training a straight line has no say: three deviations are the end of
        # the scale.
        scaled: np.ndarray = (values - state["mean"]) / state["deviation"]
        scaled = np.asarray(np.clip(np.nan_to_num(scaled), -3, 3))
        if not self.quadratic:
            return scaled
        return np.hstack([scaled, (scaled**2 - state["square_mean"]) / state["square_deviation"]])

    def _predict(self, dataset: Dataset, sites: Sequence[str]) -> np.ndarray:
        values = self._numbers(dataset, sites).to_numpy(dtype=float)
        design = self._design(values, self.state)
        return np.asarray(expit(design @ self.state["slopes"] + self.state["intercept"]))


def mean_and_deviation(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both per column, NaN left out; the deviation of a column that does not vary is 1."""
    known = ~np.isnan(values)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, values, 0).sum(axis=0) / count
    deviation = np.sqrt(np.where(known, (values - mean) ** 2, 0).sum(axis=0) / count)
    return mean, np.where(deviation > 1e-9, deviation, 1.0)


def fit_logistic(
    design: np.ndarray, rate: np.ndarray, weight: np.ndarray, penalty: float
) -> tuple[np.ndarray, np.ndarray]:
    """
    Return slopes (inputs, species) and intercepts (species,) of the penalised likelihood, all
    species at once.
    """
    from scipy.optimize import minimize

    sites, inputs = design.shape
    species = rate.shape[1]
    weight = (weight / weight.mean())[:, None] / sites
    start = np.zeros((inputs + 1, species))
    start[-1] = logit(np.clip(rate.mean(axis=0), 1e-4, 1 - 1e-4))

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        slopes, intercept = np.split(flat.reshape(inputs + 1, species), [inputs])
        logits = design @ slopes + intercept
        value = (weight * (np.logaddexp(0, logits) - rate * logits)).sum() + penalty / 2 * (
            slopes**2
        ).sum()
        error = weight * (expit(logits) - rate)
        return value, np.vstack([design.T @ error + penalty * slopes, error.sum(axis=0)]).ravel()

    found = minimize(
        objective,
        start.ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 500, "maxcor": 20},
    ).x
    slopes, intercept = np.split(found.reshape(inputs + 1, species), [inputs])
    return slopes, intercept[0]
