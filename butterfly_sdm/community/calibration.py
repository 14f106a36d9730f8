"""The interval of a number of species that holds at sites never seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from butterfly_sdm.community import logit_normal
from butterfly_sdm.community.dated import effective_counts, lists_of_sites
from butterfly_sdm.community.evidence import Evidence
from butterfly_sdm.community.richness import posterior_moments
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.season.seasons import Seasons

LEVEL = 0.9
LEAST_SITES = 30  # from which covariances and intervals are learned
#: Visits known at which the interval is calibrated, if enough sites have more.
LEVELS = (0, 1, 2, 5, 10)
MORE_VISITS = 5  # that a site must have besides
DRAWS = 2
PLACES_AT_ONCE = 512

# What some visits to sites told, and (sites, species) which species the other visits found.
Drawn = tuple[Evidence, np.ndarray]


@dataclass(frozen=True)
class Calibration:
    """
    By how much a number of species is off, and how wide its interval has to be.

    Learned out of fold: of the training sites, 90 % lie in the closed interval of whole numbers.

    Attributes
    ----------
    known
        Visits known at the place, rising from 0.
    shift, half_width
        At each of ``known``, in standard deviations; in between linear in log(1 + visits).
    """

    known: tuple[float, ...]
    shift: tuple[float, ...]
    half_width: tuple[float, ...]

    @classmethod
    def fit(cls, deviations: Mapping[float, np.ndarray]) -> Self:
        """
        Learn it.

        Parameters
        ----------
        deviations
            By visits known: (sites,) what was found less what was expected, in standard
            deviations.
        """
        known = tuple(sorted(deviations))
        shift = [float(np.median(deviations[v])) for v in known]
        width = [
            float(np.quantile(np.abs(deviations[v] - b), LEVEL, method="higher"))
            for v, b in zip(known, shift, strict=True)
        ]
        return cls(known, tuple(shift), tuple(width))

    def interval(
        self, mean: np.ndarray, sd: np.ndarray, known: np.ndarray | float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the number expected and the closed interval of whole numbers, (places,) each."""
        at, knots = np.log1p(known), np.log1p(np.array(self.known))
        centre = mean + sd * np.interp(at, knots, self.shift)
        half = sd * np.interp(at, knots, self.half_width)
        low, high = np.ceil(centre - half), np.floor(centre + half)
        # an interval between two whole numbers holds none: the nearest one then
        nearest = np.round(centre)
        centre, low = np.maximum(centre, 0), np.maximum(np.minimum(low, nearest), 0)
        return centre, low, np.maximum(high, np.maximum(nearest, 0))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for a card."""
        return {
            "known": list(self.known),
            "shift": list(self.shift),
            "half_width": list(self.half_width),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_dict` gave."""
        parts = (tuple(map(float, value[name])) for name in ("known", "shift", "half_width"))
        return cls(*parts)


def calibrate(
    q: np.ndarray, k: np.ndarray, n: np.ndarray, logit: np.ndarray, rng: np.random.Generator
) -> Calibration:
    """Learn how far the number of species is off where 0, 1, 2, 5 and 10 visits are known."""

    def drawn(known: int, use: np.ndarray) -> Drawn:
        seen = draw_visits(k[use], n[use], known, rng)
        return Evidence(seen, np.full(seen.shape, float(known))), k[use] > seen

    return _learned(q, n, logit, drawn)


def calibrate_dated(
    q: np.ndarray,
    dataset: Dataset,
    sites: Sequence[str],
    seasons: Seasons,
    logit: np.ndarray,
    rng: np.random.Generator,
) -> Calibration:
    """
    Learn the same from the visits of sites as they were, each with its day: some of them are known,
    and species are counted on the others.
    """
    lists, bands = lists_of_sites(dataset, sites), seasons.bands(dataset, sites)
    spread = logit_normal.spread(q) * np.sqrt(np.diag(logit))
    n = np.bincount(lists.row, minlength=len(q))

    def drawn(known: int, use: np.ndarray) -> Drawn:
        order = np.lexsort((rng.random(len(lists.row)), lists.row))
        turn = np.empty(len(order), dtype=np.int64)
        turn[order] = np.arange(len(order)) - np.repeat(np.cumsum(n) - n, n)
        seen = effective_counts(seasons, lists.taken(turn < known), q, bands, spread)
        left = lists.taken(turn >= known)
        later = np.zeros(q.shape, dtype=bool)
        np.logical_or.at(later, left.row, left.listed)
        return Evidence(*seen).take(use), later[use]

    return _learned(q, n, logit, drawn)


def _learned(
    q: np.ndarray,
    n: np.ndarray,
    logit: np.ndarray,
    drawn: Callable[[int, np.ndarray], Drawn],
) -> Calibration:
    """Learn from visits that are drawn as known, of n (sites,), and species on the others."""
    found: dict[float, np.ndarray] = {}
    for known in LEVELS:
        use = np.flatnonzero(n > (known + MORE_VISITS if known else 0))
        if known and len(use) < LEAST_SITES:
            break
        off = []
        for _ in range(DRAWS if known else 1):
            evidence, later = drawn(known, use)
            for at in range(0, len(use), PLACES_AT_ONCE):
                rows = slice(at, at + PLACES_AT_ONCE)
                part = logit_normal.condition(
                    q[use][rows], logit, evidence.take(rows), correlated=True
                )
                assert part.correlated is not None
                mean, sd = posterior_moments(part.mean, part.correlated, n[use][rows] - known)
                off.append((later[rows].sum(axis=1) - mean) / sd)
        found[float(known)] = np.concatenate(off)
    return Calibration.fit(found)


def draw_visits(k: np.ndarray, n: np.ndarray, visits: int, rng: np.random.Generator) -> np.ndarray:
    """
    Return (sites, species) on how many of ``visits`` visits, drawn from n (sites,), each species is
    seen: hypergeometric, species drawn independently of each other.
    """
    whole = k.astype(np.int64)
    rest = n.astype(np.int64)[:, None] - whole
    return rng.hypergeometric(whole, rest, visits).astype(float)
