"""
What dated visits tell of rates over a season: as many undated visits as say the same.

A visit to a place with the effect a sees a species on a day with the chance ``s(a + eta(day))``
of the season curves. The likelihood of all dated visits of a place, as a function of its
standardised rate, is turned into the k of n with the same slope and curvature
(:func:`butterfly_sdm.season.effective.effective_visits`): a visit in January with nothing seen is
next to no visit for a butterfly of June, and one in June is more than one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import logsumexp

from butterfly_sdm.community.evidence import share_told
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.season.cells import week_of
from butterfly_sdm.season.claims import centre_of_mean
from butterfly_sdm.season.effective import effective_visits
from butterfly_sdm.season.links import chance
from butterfly_sdm.season.seasons import Seasons, visits_of
from butterfly_sdm.season.site_effects import TAU_BOUNDS, posterior

LEAST_SEEN = 0.5  # visits with the species that one counts for at least, whatever the day


@dataclass(frozen=True, eq=False)
class DatedLists:
    """
    Lists of species seen on known days.

    Attributes
    ----------
    row
        (lists,) row of the place.
    date
        (lists,) datetime64.
    complete
        (lists,) bool: what is not listed was not seen.
    listed
        (lists, species) bool.
    """

    row: np.ndarray
    date: np.ndarray
    complete: np.ndarray
    listed: np.ndarray

    def taken(self, which: np.ndarray) -> DatedLists:
        """Return some of the lists."""
        return DatedLists(
            self.row[which], self.date[which], self.complete[which], self.listed[which]
        )


def lists_of_sites(dataset: Dataset, sites: Sequence[str]) -> DatedLists:
    """Return the dated visits of sites of a data set as complete lists, by their order there."""
    table = visits_of(dataset)
    row_of = np.full(len(dataset.sites), -1)
    row_of[dataset.rows(sites)] = np.arange(len(sites))
    row = row_of[table.visits["site"].to_numpy().astype(np.int64)]
    date = table.visits["date"].to_numpy()
    used = (row >= 0) & ~np.isnat(date)
    place = np.cumsum(used) - 1
    visit = table.sightings["visit"].to_numpy().astype(np.int64)
    of_used = used[visit]
    listed = np.zeros((int(used.sum()), len(dataset.species)), dtype=bool)
    listed[place[visit[of_used]], table.sightings["species"].to_numpy()[of_used]] = True
    return DatedLists(row[used], date[used], np.ones(len(listed), dtype=bool), listed)


def season_counts(
    seasons: Seasons,
    dataset: Dataset,
    sites: Sequence[str],
    q: np.ndarray,
    spread: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (sites, species) k of n that say what the dated visits of sites of a data set say."""
    lists, bands = lists_of_sites(dataset, sites), seasons.bands(dataset, sites)
    return effective_counts(seasons, lists, q, bands, spread)


def cells_of(
    seasons: Seasons, lists: DatedLists, bands: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """
    Return the kinds of days (kinds, cells) as shares of the cells of the calendar, and (lists,) the
    kind of each list: its week, the nearest with visits if it lies outside (of such a list only
    what was seen counts); its year, or all alike where that is not known; effort as it was on
    average.
    """
    calendar, days = seasons.calendar, pd.DatetimeIndex(lists.date)
    week = np.clip(week_of(days), calendar.first_week, calendar.last_week) - calendar.first_week
    first, year = calendar.years, np.asarray(days.year)
    longest = int(np.diff(first).max(initial=1))
    group = np.digitize(year, first[1:])
    group = np.where((year >= first[0]) & (year < first[-1] + longest), group, -1)
    kinds, which = np.unique(
        np.column_stack([week, group, bands[lists.row]]), axis=0, return_inverse=True
    )
    weights = np.zeros((len(kinds), *calendar.shape))
    share = np.asarray(calendar.effort_share)
    for number, (at, one, band) in enumerate(kinds):
        years = [one] if one >= 0 else list(range(len(first)))
        weights[number, at, years, :, band] = share / len(years)
    return weights.reshape(len(kinds), -1), which.ravel()


def effective_counts(
    seasons: Seasons,
    lists: DatedLists,
    q: np.ndarray,
    bands: np.ndarray,
    spread: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Return (places, species) k of n of undated visits that say what dated lists say.

    Parameters
    ----------
    q
        (places, species) prediction of the standardised rate.
    bands
        (places,) band of climate or latitude of the calendar.
    spread
        (places, species) of the effects of places around the prediction; None: as widely as
        places differ without one.

    Returns
    -------
    k, n
        Not whole; both 0 where there is no list.
    """
    k, n = np.zeros_like(q), np.zeros_like(q)
    places = np.unique(lists.row)
    if not len(places):
        return k, n
    row = np.searchsorted(places, lists.row)
    kinds, which = cells_of(seasons, lists, bands)
    used = np.flatnonzero(kinds.any(axis=0))
    kinds, band, grid = kinds[:, used], bands[places], seasons.grid
    schedule = seasons.calendar.weights()

    def before(species: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return prior and rates (places, nodes), and chances (lists, nodes)."""
        rates = seasons.node_rates(species, schedule)
        tau = np.full(len(places), float(seasons.tau[species]))
        if spread is not None:
            tau = np.clip(spread[places, species], *TAU_BOUNDS)
        tau = np.round(tau * 8) / 8  # so that there are few different ones
        middle = np.empty(len(places))
        for one in np.unique(tau):
            here = tau == one
            claim = q[places[here], species]
            middle[here] = centre_of_mean(rates, band[here], claim, float(one), grid)
        weight = -0.5 * ((grid - middle[:, None]) / tau[:, None]) ** 2
        weight -= logsumexp(weight, axis=1, keepdims=True)
        by_cell = chance(seasons.effects(species)[used][:, None] + grid, seasons.link)
        p = np.clip(kinds @ by_cell, 1e-9, 1 - 1e-9)[which]
        return weight, rates[band], p

    week, partial = week_of(pd.DatetimeIndex(lists.date)), ~lists.complete
    # nobody knows what is to be seen in a week in which nobody looked
    inside = (week >= seasons.calendar.first_week) & (week <= seasons.calendar.last_week)
    told = np.ones(len(row))
    if partial.any():
        expected = np.zeros(int(partial.sum()))
        for species in range(q.shape[1]):
            weight, _, p = before(species)
            expected += (np.exp(weight)[row[partial]] * p[partial]).sum(axis=1)
        told[partial] = share_told(lists.listed[partial], expected[:, None])
    for species in range(q.shape[1]):
        weight, rates, p = before(species)
        seen = lists.listed[:, species, None]
        unseen = np.log1p(-told[:, None] * p) * inside[:, None]
        log = np.where(seen, np.log(p), unseen)
        likelihood = np.zeros_like(weight)
        np.add.at(likelihood, row, log)
        after, _ = posterior(likelihood, weight)
        found, looked = effective_visits(likelihood, after, rates)
        # far out of season the likelihood has no such k of n; what was seen is there all the same
        some = np.bincount(row, lists.listed[:, species], minlength=len(places)) > 0
        found = np.where(some, np.maximum(found, LEAST_SEEN), found)
        k[places, species], n[places, species] = found, np.maximum(looked, found)
    return k, n
