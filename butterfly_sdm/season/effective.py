"""Effective visits: k of n that say of the standardised rate what the dated visits say of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.season.cells import CellCounts
from butterfly_sdm.season.seasons import Seasons, surveyed_rates

PSEUDO_VISITS = 1.0


def effective_visits(
    likelihood: np.ndarray, weight: np.ndarray, rates: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """
    Return the binomial k of n whose slope s and curvature c in the standardised rate R are those
    of the likelihood at the posterior mean r.

    ``k = r² (c (1 - r) + s)`` and ``n - k = (1 - r)² (c r - s)``, both at least 0: of ``k log R +
    (n - k) log(1 - R)`` slope and curvature are ``k / r - (n - k) / (1 - r)`` and ``k / r² + (n -
    k) / (1 - r)²``.

    Parameters
    ----------
    likelihood, weight
        (sites, nodes) log-likelihood and posterior.
    rates
        (sites, nodes) R, growing along the nodes.

    Returns
    -------
    k, n
        (sites,) each.
    """
    r = (weight * rates).sum(axis=1)
    spread = np.sqrt(np.maximum((weight * (rates - r[:, None]) ** 2).sum(axis=1), 1e-8))
    step = np.clip(0.7 * spread, 1e-4, 0.45 * np.minimum(r, 1 - r))
    low, middle, high = (
        _interpolated(rates, likelihood, r + shift * step) for shift in (-1.0, 0.0, 1.0)
    )
    slope = (high - low) / (2 * step)
    bend = -(high - 2 * middle + low) / step**2
    seen = np.maximum(r**2 * (bend * (1 - r) + slope), 0)
    unseen = np.maximum((1 - r) ** 2 * (bend * r - slope), 0)
    return seen, seen + unseen


def _interpolated(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return y at a place of x in each row, linear between nodes; x grows along a row."""
    upper = np.clip((x < at[:, None]).sum(axis=1), 1, x.shape[1] - 1)
    rows = np.arange(len(x))
    left, right = x[rows, upper - 1], x[rows, upper]
    share = np.clip((at - left) / np.maximum(right - left, 1e-300), 0, 1)
    return np.asarray((1 - share) * y[rows, upper - 1] + share * y[rows, upper])


def season_labels(seasons: Seasons, counts: CellCounts) -> tuple[np.ndarray, np.ndarray]:
    """
    Return what predictors of k of n are to learn from.

    Returns
    -------
    rates
        (sites, species) ``(k + m) / (n + 1)`` of effective visits, m the mean rate of the species:
        a site whose visits say nothing has the mean.
    visits
        (sites,) how much the visits of a site say, in visits: the mean n over species, and one.
    """
    columns, sizes = [], np.zeros(len(counts))
    for place in range(len(seasons.species)):
        likelihood = seasons.likelihood(counts, place)
        weight, rates = surveyed_rates(seasons, counts, place)
        k, n = effective_visits(likelihood, weight, rates)
        mean = (weight * rates).sum(axis=1).mean()
        columns.append((k + PSEUDO_VISITS * mean) / (n + PSEUDO_VISITS))
        sizes += n
    return np.array(columns).T, sizes / len(seasons.species) + PSEUDO_VISITS


def _parts(dataset: Dataset) -> dict[str, Any]:
    return {entry.name: getattr(dataset, entry.name) for entry in fields(Dataset)}


@dataclass(frozen=True)
class SeasonLabels(Dataset):
    """
    A data set whose k of n at some sites are effective visits: predictors that learn from k of n
    learn standardised rates from it, as they are.

    Attributes
    ----------
    label_rates, label_visits
        (sites, species) and (sites,); NaN where a site has none.
    """

    label_rates: np.ndarray = field(default_factory=lambda: np.empty((0, 0)), compare=False)
    label_visits: np.ndarray = field(default_factory=lambda: np.empty(0), compare=False)

    @classmethod
    def over(cls, dataset: Dataset, seasons: Seasons, sites: Sequence[str]) -> SeasonLabels:
        """Return ``dataset`` with effective visits at ``sites``, from curves that are known."""
        rows = dataset.rows(sites)
        rates = np.full(dataset.detections.shape, np.nan)
        visits = np.full(len(dataset.sites), np.nan)
        rates[rows], visits[rows] = season_labels(seasons, seasons.counts(dataset, sites))
        return cls(**_parts(dataset), label_rates=rates, label_visits=visits)

    def plain(self) -> Dataset:
        """Return the data set as it is without labels: k of n, and every visit."""
        return Dataset(**_parts(self))

    def counts(self, sites: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return effective k (sites, species) and n (sites,)."""
        rows = self.rows(sites)
        n = self.label_visits[rows]
        return self.label_rates[rows] * n[:, None], n
