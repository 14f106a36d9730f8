"""When and how people look, what they miss, and where a species is absent: known truth of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from butterfly_sdm.errors import DataError

SEASON = pd.date_range("2018-04-01", "2018-09-30").append(pd.date_range("2019-04-01", "2019-09-30"))
YEAR_DAYS = 183  # of the season in each of its years
USUAL_MINUTES = 60.0
_SELDOM = 0.003  # what is left of a curve far from its peaks
_NOISE_DAYS = 10.0  # of windows that follow latitude


@dataclass(frozen=True)
class Looking:
    """
    What makes raw rates differ from where species live; all of it is off until it is set.

    Attributes
    ----------
    seasons
        Whether each species has a season of its own, with one or two peaks between April and
        September.
    year_days
        Standard deviation of the days by which the season of a species is late in a year.
    latitude_days
        By how many days seasons are later at the northern edge than at the southern.
    window_days
        Each site is visited within so many days of one year; None: in all of both years.
    windows
        Where windows lie: ``random``, or ``latitude``, later in the north.
    effort
        Log odds of detection per doubling of the duration of a visit; None: durations are not told
        and do not matter.
    occupied
        Share of sites where a typical species lives, for a site of the usual landscape; None: all
        live everywhere. Visits to where it lives and is not seen are false zeros.
    commoner_easier
        How far what makes a species likelier to live at a site also makes it easier to see: 0 not
        at all, 1 as much. Without ``occupied`` it is 1.
    """

    seasons: bool = False
    year_days: float = 0.0
    latitude_days: float = 0.0
    window_days: int | None = None
    windows: Literal["random", "latitude"] = "random"
    effort: float | None = None
    occupied: float | None = None
    commoner_easier: float = 1.0

    def __post_init__(self) -> None:
        if self.window_days is not None and not 1 <= self.window_days <= YEAR_DAYS:
            raise DataError(
                f"window_days is {self.window_days}; a window has 1 to {YEAR_DAYS} days."
            )
        if self.windows not in ("random", "latitude"):
            raise DataError(f"windows is {self.windows!r}; it may be 'random' or 'latitude'.")
        if self.occupied is not None and not 0 < self.occupied < 1:
            raise DataError(
                f"occupied is {self.occupied}; it is a share between 0 and 1. None: everywhere."
            )
        if not self.seasons and (self.year_days or self.latitude_days):
            raise DataError("year_days and latitude_days move seasons: set seasons to True.")

    def days(self, north: np.ndarray, visits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """
        Draw days of :data:`SEASON` for the visits of each site, none twice.

        Parameters
        ----------
        north
            (sites,) 0 at the southern edge, 1 at the northern.
        visits
            (sites,) how many; no more than the days of a window.
        rng
            Where chance comes from.

        Returns
        -------
        ndarray of int
            (visits,) places in :data:`SEASON`, site by site.
        """
        if self.window_days is None:
            return np.concatenate([rng.choice(len(SEASON), n, replace=False) for n in visits])
        room = YEAR_DAYS - self.window_days
        start = rng.uniform(0, room, len(visits))
        if self.windows == "latitude":
            start = room * north + rng.normal(0, _NOISE_DAYS, len(visits))
        start = np.clip(np.rint(start), 0, room).astype(int)
        start += YEAR_DAYS * rng.integers(0, 2, len(visits))
        return np.concatenate(
            [
                first + rng.choice(self.window_days, n, replace=False)
                for first, n in zip(start, visits, strict=True)
            ]
        )


@dataclass(frozen=True)
class Detection:
    """
    How the species of a region are detected; drawn once, from the seed.

    The log odds of seeing a species that lives at site i, on day d, in m minutes, are ``a_i +
    c(d - l_i - y) + e log2(m / 60)``: ``a_i`` as the landscape has it, c the season, ``l_i`` and y
    the days by which it is late at the latitude and in the year.

    Attributes
    ----------
    peaks, widths, weights
        (species, 2) days from 1 April, days, and shares of the two generations of a year.
    late
        (species, 2) days by which a season is late in each of the two years.
    usual
        (species,) log odds of a typical visit.
    """

    looking: Looking
    species: tuple[str, ...]
    peaks: np.ndarray
    widths: np.ndarray
    weights: np.ndarray
    late: np.ndarray
    usual: np.ndarray

    @classmethod
    def draw(
        cls, looking: Looking, species: tuple[str, ...], usual: np.ndarray, seed: int
    ) -> Detection:
        """Draw seasons: half of the species have a second generation, the others one."""
        rng = np.random.default_rng([seed, 7])
        first = rng.uniform(25, 130, len(species))
        second = np.minimum(first + rng.uniform(50, 80, len(species)), 170)
        two = (rng.random(len(species)) < 0.5) & (first < 80)
        share = np.where(two, rng.uniform(0.3, 0.7, len(species)), 0.0)
        return cls(
            looking,
            species,
            np.stack([first, second], axis=1),
            rng.uniform(9, 20, (len(species), 2)),
            np.stack([1 - share, share], axis=1),
            looking.year_days * rng.normal(size=(len(species), 2)),
            np.asarray(usual, dtype=float),
        )

    def season(self, day: np.ndarray) -> np.ndarray:
        """
        Return (..., species) log odds that the season adds on days (..., species) from 1 April; the
        mean odds of a year are 1.
        """
        if not self.looking.seasons:
            return np.zeros(np.shape(day))
        all_days = np.broadcast_to(np.arange(YEAR_DAYS)[:, None], (YEAR_DAYS, len(self.species)))
        return np.asarray(np.log(self._odds(day) / self._odds(all_days).mean(axis=0)))

    def _odds(self, day: np.ndarray) -> np.ndarray:
        away = (np.asarray(day, dtype=float)[..., None] - self.peaks) / self.widths
        return np.asarray((self.weights * np.exp(-0.5 * away**2)).sum(axis=-1) + _SELDOM)

    def presence_probability(self, logit: np.ndarray) -> np.ndarray:
        """Return (..., species) the probability that a species lives at a place."""
        occupied = self.looking.occupied
        if occupied is None:
            return np.ones_like(logit)
        return _logistic(np.log(occupied / (1 - occupied)) + logit - self.usual)

    def site_effect(self, logit: np.ndarray) -> np.ndarray:
        """Return (..., species) the log odds of detection at places where the species lives."""
        if self.looking.occupied is None:
            return logit
        return np.asarray(self.usual + self.looking.commoner_easier * (logit - self.usual))

    def chance(
        self, effect: np.ndarray, north: np.ndarray, day: np.ndarray, minutes: np.ndarray
    ) -> np.ndarray:
        """
        Return (visits, species) the probability of detection where the species lives.

        Parameters
        ----------
        effect
            (visits, species) of :meth:`site_effect`.
        north
            (visits,) 0 at the southern edge, 1 at the northern.
        day
            (visits,) place in :data:`SEASON`.
        minutes
            (visits,).
        """
        year, from_april = np.divmod(day, YEAR_DAYS)
        own = from_april - self.looking.latitude_days * (north - 0.5)
        effort = (self.looking.effort or 0.0) * np.log2(minutes / USUAL_MINUTES)
        season = self.season(own[:, None] - self.late.T[year])
        return _logistic(effect + season + effort[:, None])

    def standardised(self, effect: np.ndarray, north: np.ndarray, *, step: int = 1) -> np.ndarray:
        """
        Return (places, species) the rate over all days of the season, visits of the usual duration,
        where the species lives.

        Parameters
        ----------
        effect
            (places, species).
        north
            (places,).
        step
            Every which day is looked at.
        """
        total, days = np.zeros_like(effect), np.arange(0, len(SEASON), step)
        for day in days:
            at = np.full(len(effect), day)
            total += self.chance(effect, north, at, np.full(len(effect), USUAL_MINUTES))
        return total / len(days)

    def curves(self) -> pd.DataFrame:
        """
        Return the season curves: ``date`` and per species the probability that a usual visit to a
        usual site in the middle of the region sees it where it lives.
        """
        day = np.arange(len(SEASON))
        effect = np.broadcast_to(self.site_effect(self.usual), (len(day), len(self.species)))
        chance = self.chance(effect, np.full(len(day), 0.5), day, np.full(len(day), USUAL_MINUTES))
        table = pd.DataFrame(chance, columns=list(self.species)).round(6)
        table.insert(0, "date", SEASON.strftime("%Y-%m-%d"))
        return table


def _logistic(value: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-value)))
