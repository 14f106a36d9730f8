"""From a standardised rate to a claim of any quantity, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.quantities import LEVEL, Quantity
from butterfly_sdm.errors import DataError
from butterfly_sdm.season.cells import CellCounts, week_of
from butterfly_sdm.season.seasons import Seasons
from butterfly_sdm.season.site_effects import REACH, best_tau, posterior, prior, quantiles

CENTRES = np.linspace(-REACH - 2, REACH + 2, 241)
TAIL = (1 - LEVEL) / 2


def effect_of_rate(
    rates: np.ndarray, band: np.ndarray, claim: np.ndarray, grid: np.ndarray
) -> np.ndarray:
    """
    Return the effects (sites,) of sites whose rate is ``claim``.

    Parameters
    ----------
    rates
        (bands, nodes) as of :meth:`~butterfly_sdm.season.seasons.Seasons.node_rates`.
    """
    out = np.empty(len(claim))
    for one in np.unique(band):
        here = band == one
        out[here] = np.interp(claim[here], rates[one], grid)
    return out


def centre_of_mean(
    rates: np.ndarray, band: np.ndarray, claim: np.ndarray, tau: float, grid: np.ndarray
) -> np.ndarray:
    """
    Return the middles (sites,) of the normal effects, of spread ``tau``, whose mean rate is
    ``claim``.
    """
    means = np.exp(prior(CENTRES, tau, grid)) @ rates.T  # (centres, bands)
    return effect_of_rate(means.T, band, claim, CENTRES)


@dataclass(frozen=True)
class PriorLine:
    """
    What a prediction says of the effect of a site: ``Normal(level + slope * told, tau²)``, where
    ``told`` is the effect that the predicted rate stands for.
    """

    level: float = 0.0
    slope: float = 1.0
    tau: float = 1.0

    @classmethod
    def fit(
        cls, likelihood: np.ndarray, grid: np.ndarray, told: np.ndarray, tau: float
    ) -> PriorLine:
        """
        Return the line under which the visits are likeliest, by expectation-maximisation.

        Parameters
        ----------
        likelihood
            (sites, nodes).
        told
            (sites,) from predictions that have not seen these sites.
        """
        design = np.column_stack([np.ones(len(told)), told])
        # towards the prediction itself
        pull, at = np.diag([0.01, 4.0]), np.array([0.0, 1.0])
        line = at.copy()
        for _ in range(12):
            mean = design @ line
            weight, _ = posterior(likelihood, prior(mean, tau, grid))
            effect = weight @ grid
            line = np.linalg.solve(
                design.T @ design / tau**2 + pull, design.T @ effect / tau**2 + pull @ at
            )
            tau = best_tau(likelihood, grid, design @ line, tau)
        return cls(float(line[0]), float(line[1]), tau)

    def mean(self, told: np.ndarray) -> np.ndarray:
        """Return (sites,) the middle of the effects."""
        return self.level + self.slope * told


def node_rates_of(
    seasons: Seasons,
    place: int,
    quantity: Quantity,
    bands: np.ndarray,
    counts: CellCounts | None,
) -> np.ndarray:
    """
    Return (sites, nodes) the quantity of a site with the effect of each node.

    Parameters
    ----------
    counts
        Of the visits whose dates are meant, for ``raw_rate``.
    """
    if quantity.name == "raw_rate" and counts is not None:
        rates = seasons.dated_rates(place, counts)
        lacking = np.isnan(rates).any(axis=1)
        if lacking.any():
            schedule = seasons.node_rates(place, seasons.calendar.weights())
            rates[lacking] = schedule[bands[lacking]]
        return rates
    calendar = seasons.calendar
    if quantity.name == "rate_in_week":
        weights = calendar.weights(week=quantity.week)
    elif quantity.name == "raw_rate":
        weeks = week_of(pd.DatetimeIndex(quantity.dates))
        weights = np.mean([calendar.weights(week=int(week)) for week in weeks], axis=0)
    else:
        weights = calendar.weights()
    return np.asarray(seasons.node_rates(place, weights)[bands])


def check_quantity(seasons: Seasons, quantity: Quantity) -> None:
    """
    Refuse a week or dates of which nothing is known.

    Raises
    ------
    DataError
        A date cannot be read, or nobody looked in that week.
    """
    if quantity.week is not None:
        seasons.calendar.weights(week=quantity.week)
    if quantity.dates:
        try:
            weeks = week_of(pd.DatetimeIndex(quantity.dates))
        except ValueError:
            raise DataError(
                f"The dates {', '.join(quantity.dates)} cannot all be read. Write them as "
                "2020-07-01."
            ) from None
        for week in weeks:
            seasons.calendar.weights(week=int(week))


def claims_of_effects(
    seasons: Seasons,
    tau: Sequence[float] | np.ndarray,
    dataset: Dataset,
    sites: Sequence[str],
    middles: np.ndarray,
    quantity: Quantity,
) -> np.ndarray:
    """
    Return what is claimed of a quantity at sites whose effects are normal, and whose own visits are
    not looked at.

    Parameters
    ----------
    tau
        (species,) spread of the effects around the middle.
    middles
        (sites, species) of the effects.

    Returns
    -------
    array of shape (sites, species)
        The mean over the effects, or an end of their interval.
    """
    rates = SiteRates(seasons, dataset, sites, quantity)
    out = np.empty(middles.shape)
    for place, spread in enumerate(tau):
        weight = np.exp(prior(middles[:, place], float(spread), seasons.grid))
        if quantity.bound == "mean":
            out[:, place] = (weight * rates.of(place)).sum(axis=1)
        else:
            share = TAIL if quantity.bound == "lower" else 1 - TAIL
            out[:, place] = quantiles(rates.of(place), weight, (share,))[:, 0]
    return out


def claims(
    seasons: Seasons,
    lines: Sequence[PriorLine],
    dataset: Dataset,
    sites: Sequence[str],
    standardised: np.ndarray,
    quantity: Quantity,
) -> np.ndarray:
    """
    Return what predicted standardised rates say of a quantity at sites whose own visits are not
    looked at.

    Parameters
    ----------
    lines
        One per species.
    standardised
        (sites, species) predictions.

    Returns
    -------
    array of shape (sites, species)
        The mean over the effects that a site with this prediction may have, or an end of their
        interval.
    """
    if quantity == Quantity():
        return standardised
    bands, weights = seasons.bands(dataset, sites), seasons.calendar.weights()
    middles = np.empty_like(standardised)
    for place, line in enumerate(lines):
        rates, claim = seasons.node_rates(place, weights), standardised[:, place]
        if quantity.bound == "mean":  # whose mean over the schedule is the prediction itself
            middles[:, place] = centre_of_mean(rates, bands, claim, line.tau, seasons.grid)
        else:
            middles[:, place] = line.mean(effect_of_rate(rates, bands, claim, seasons.grid))
    tau = [line.tau for line in lines]
    return claims_of_effects(seasons, tau, dataset, sites, middles, quantity)


def surveyed(
    seasons: Seasons,
    tau: Sequence[float] | np.ndarray,
    dataset: Dataset,
    sites: Sequence[str],
    middles: np.ndarray,
    quantity: Quantity,
) -> np.ndarray:
    """
    Return mean, lower and upper end (3, sites, species) of a quantity at sites, from what is
    predicted of their effects and the visits to the site itself.

    Where a species was never seen the interval is from 0 to the 90 % quantile.

    Parameters
    ----------
    tau, middles
        As of :func:`claims_of_effects`.
    """
    rates = SiteRates(seasons, dataset, sites, quantity)
    counts = seasons.counts(dataset, sites)
    out = np.empty((3, *middles.shape))
    for place, spread in enumerate(tau):
        log_prior = prior(middles[:, place], float(spread), seasons.grid)
        weight, _ = posterior(seasons.likelihood(counts, place), log_prior)
        out[0, :, place] = (weight * rates.of(place)).sum(axis=1)
        low, high, most = quantiles(rates.of(place), weight, (TAIL, 1 - TAIL, LEVEL)).T
        never = np.asarray(counts.of_species(place)[0].sum(axis=1)).ravel() == 0
        out[1, :, place] = np.where(never, 0.0, low)
        out[2, :, place] = np.where(never, most, high)
    return out


class SiteRates:
    """
    A quantity of sites with the effect of each node, species by species.

    Raises
    ------
    DataError
        Nothing is known of the week or dates, or the data set keeps no visits whose dates are
        meant.
    """

    def __init__(
        self, seasons: Seasons, dataset: Dataset, sites: Sequence[str], quantity: Quantity
    ) -> None:
        check_quantity(seasons, quantity)
        self.seasons, self.quantity = seasons, quantity
        self.bands = seasons.bands(dataset, sites)
        dated = quantity.name == "raw_rate" and not quantity.dates
        self.counts = seasons.counts(dataset, sites) if dated else None

    def of(self, place: int) -> np.ndarray:
        """Return (sites, nodes) of one species."""
        return node_rates_of(self.seasons, place, self.quantity, self.bands, self.counts)


def mixed_quantile(
    present: np.ndarray, rates: np.ndarray, weight: np.ndarray, share: float
) -> np.ndarray:
    """Return a quantile of a rate that is 0 unless the species is present."""
    inside = (share - (1 - present)) / np.maximum(present, 1e-12)
    out = np.zeros(len(present))
    for row in np.flatnonzero(inside > 0):
        out[row] = quantiles(rates[row], weight[[row]], (float(inside[row]),))[0, 0]
    return out
