"""How many species visits find where nothing was seen: fast enough for every pixel of a map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.special import expit

from butterfly_sdm.community import logit_normal
from butterfly_sdm.community.calibration import Calibration
from butterfly_sdm.community.logit_normal import offset
from butterfly_sdm.community.richness import found_at_all, moments

#: Predictions between which a :class:`Prior` interpolates.
GRID = expit(np.linspace(-9.2, 6.0, 200))


@dataclass(frozen=True, eq=False)
class Prior:
    """
    Richness where nothing was seen: a function of the predictions alone, fast enough for maps.

    Attributes
    ----------
    table
        (1 + ORDERS, species, predictions) coefficients at :data:`GRID`.
    correlation
        (species, species) of logits.
    """

    table: np.ndarray
    correlation: np.ndarray

    @classmethod
    def of(cls, covariance: np.ndarray, spread_at: np.ndarray, visits: float) -> Self:
        """
        Tabulate it.

        Parameters
        ----------
        covariance
            (species, species) of logits.
        spread_at
            (predictions,) factor of their deviation at each prediction of :data:`GRID`.
        """
        sd = np.sqrt(np.diag(covariance))
        wide = sd[:, None] * spread_at  # (species, predictions)
        mu = offset(np.broadcast_to(GRID, wide.shape), wide)
        return cls(found_at_all(mu, wide, visits), covariance / (sd[:, None] * sd))

    def __call__(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation, (places,), for predictions (places, species)."""
        at, knots = np.clip(q, GRID[0], GRID[-1]), np.log(GRID / (1 - GRID))
        at = (np.log(at / (1 - at)) - knots[0]) / (knots[1] - knots[0])
        low = np.minimum(at.astype(int), len(GRID) - 2)
        share, species = at - low, np.arange(q.shape[1])
        found = np.stack(
            [one[species, low] * (1 - share) + one[species, low + 1] * share for one in self.table]
        )
        return moments(found, self.correlation)


@dataclass(frozen=True, eq=False)
class Unvisited:
    """
    The number of species that visits find where nothing was seen: for every pixel of a map.

    Attributes
    ----------
    visits
        To come.
    """

    prior: Prior
    small: np.ndarray
    calibration: Calibration
    visits: float

    @classmethod
    def of(
        cls, covariance: np.ndarray, small: np.ndarray, calibration: Calibration, visits: float
    ) -> Self:
        """Tabulate it for a covariance (species, species) of logits."""
        prior = Prior.of(covariance, logit_normal.spread(GRID), visits)
        return cls(prior, small, calibration, visits)

    def moments(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and deviation, (places,), before calibration."""
        return self.prior(logit_normal.calibrated(q, self.small))

    def interval(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Return the number expected and the closed 90 % interval, (places,) each, for predictions
        (places, species).
        """
        centre, low, high = self.calibration.interval(*self.moments(q), 0.0)
        return centre, low, np.minimum(high, q.shape[1])
