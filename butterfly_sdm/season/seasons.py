"""The seasons of all species: one calendar, one grid of site effects, a curve per species."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.visits import VisitTable
from butterfly_sdm.errors import DataError
from butterfly_sdm.season.cells import Calendar, CellCounts
from butterfly_sdm.season.curve import Curve, fit_curve
from butterfly_sdm.season.links import chance
from butterfly_sdm.season.options import LinkName, SeasonOptions
from butterfly_sdm.season.site_effects import NODES, grid_of, log_likelihood, posterior, prior

log = logging.getLogger("butterfly_sdm.season")

LINK_SPECIES, LINK_SITES = 6, 1500  # that decide which link is likelier
DEFAULTS = SeasonOptions()


@dataclass(frozen=True, eq=False)
class Seasons:
    """
    What is known of when species are seen.

    Attributes
    ----------
    species
        Names.
    calendar
        The cells that curves are over.
    link
        Of detection.
    grid
        (nodes,) effects of a site.
    coefficients, covariance
        (species, coefficients) of the curves, and (species, coefficients, coefficients).
    tau
        (species,) standard deviation of the effects of sites.
    detections
        (species,) dated visits with the species that the fit saw.
    """

    species: tuple[str, ...]
    calendar: Calendar
    link: LinkName
    grid: np.ndarray
    coefficients: np.ndarray
    covariance: np.ndarray
    tau: np.ndarray
    detections: np.ndarray

    @classmethod
    def fit(
        cls,
        table: VisitTable,
        species: Sequence[str],
        rows: np.ndarray,
        options: SeasonOptions = DEFAULTS,
        *,
        gradient: np.ndarray | None = None,
        seed: int = 0,
    ) -> Seasons:
        """
        Fit the curves to the visits of some sites.

        Parameters
        ----------
        table
            Visits and sightings.
        species
            Names of the columns that sightings speak of.
        rows
            Rows of the sites to learn from; no others are looked at.
        gradient
            (all sites,) what the season shifts along; None: it does not.
        seed
            Draws the sites that the curves are fitted to, where there are more than
            ``options.curve_sites``.

        Raises
        ------
        DataError
            No visit of these sites has a date.
        """
        known = np.unique(rows)
        own = _of_sites(table, known)
        calendar = Calendar.of(own, options, gradient=gradient)
        visited = np.unique(own.visits["site"].to_numpy()).astype(np.int64)
        rng = np.random.default_rng(seed)
        if len(visited) > options.curve_sites:
            visited = np.sort(rng.choice(visited, options.curve_sites, replace=False))
        bands = calendar.band_of(None if gradient is None else gradient[visited], len(visited))
        counts = CellCounts.of(own, calendar, visited, bands=bands)
        grid = grid_of(options.nodes)
        link = options.link
        if link == "auto":
            link = likelier_link(counts, len(species), grid, rng)
        curves = [
            fit_curve(*counts.of_species(place), calendar, grid, link)
            for place in range(len(species))
        ]
        detections = np.array([len(counts.seen(place)) for place in range(len(species))])
        return cls._of(species, calendar, link, grid, curves, detections)

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        sites: Sequence[str],
        options: SeasonOptions = DEFAULTS,
        *,
        seed: int = 0,
    ) -> Seasons:
        """
        Fit the curves to the visits of ``sites`` of a data set, see :meth:`fit`.

        Raises
        ------
        DataError
            The data set keeps no visits, or no dates of them, or not what the season is to shift
            along.
        """
        table, rows = visits_of(dataset), dataset.rows(sites)
        along = gradient(dataset, options.shift_by)
        return cls.fit(table, dataset.species, rows, options, gradient=along, seed=seed)

    @classmethod
    def blank(
        cls, dataset: Dataset, sites: Sequence[str], options: SeasonOptions = DEFAULTS
    ) -> Seasons:
        """
        Return the cells of the visits to ``sites``, without any curve yet, over a narrower grid;
        the link is logit unless the options name another.

        Parameters
        ----------
        options
            How dates are used.
        """
        table, along = visits_of(dataset), gradient(dataset, options.shift_by)
        own = _of_sites(table, np.unique(dataset.rows(sites)))
        calendar = Calendar.of(own, options, gradient=along)
        link: LinkName = "cloglog" if options.link == "cloglog" else "logit"
        return cls._of(dataset.species, calendar, link, NODES, [], np.zeros(0))

    def with_curves(
        self, curves: Sequence[tuple[np.ndarray, np.ndarray, float]], detections: np.ndarray
    ) -> Seasons:
        """Return the same with coefficients, their covariance and log tau of every species."""
        beta, covariance, log_tau = (np.array(part) for part in zip(*curves, strict=True))
        return replace(
            self,
            coefficients=beta,
            covariance=covariance,
            tau=np.exp(log_tau),
            detections=detections,
        )

    @classmethod
    def _of(
        cls,
        species: Sequence[str],
        calendar: Calendar,
        link: LinkName,
        grid: np.ndarray,
        curves: Sequence[Curve],
        detections: np.ndarray,
    ) -> Seasons:
        return cls(
            tuple(species),
            calendar,
            link,
            grid,
            np.array([curve.coefficients for curve in curves]),
            np.array([curve.covariance for curve in curves]),
            np.array([curve.tau for curve in curves]),
            detections,
        )

    def effects(self, place: int) -> np.ndarray:
        """Return (cells,) the effects of the cells on a species."""
        return np.asarray(self.calendar.design[0] @ self.coefficients[place])

    def counts(self, dataset: Dataset, sites: Sequence[str]) -> CellCounts:
        """Return the visits of sites of a data set, counted in the cells of this calendar."""
        rows = dataset.rows(sites)
        bands = self.bands(dataset, sites)
        return CellCounts.of(visits_of(dataset), self.calendar, rows, bands=bands)

    def bands(self, dataset: Dataset, sites: Sequence[str]) -> np.ndarray:
        """Return the band of climate or latitude (sites,) of sites of a data set."""
        along = gradient(dataset, self.calendar.shift_by)
        rows = dataset.rows(sites)
        return self.calendar.band_of(None if along is None else along[rows], len(rows))

    def likelihood(self, counts: CellCounts, place: int) -> np.ndarray:
        """Return (sites, nodes) the log-likelihood of the visits for one species."""
        k, n = counts.of_species(place)
        return log_likelihood(k, n, self.effects(place), self.grid, self.link)

    def node_rates(self, place: int, weights: np.ndarray) -> np.ndarray:
        """
        Return (bands, nodes) the rate over a schedule of a site with the effect of each node.

        Parameters
        ----------
        weights
            (cells,) as of :meth:`Calendar.weights`.
        """
        cells = np.flatnonzero(weights)
        chances = chance(self.effects(place)[cells, None] + self.grid, self.link)
        band = cells % self.calendar.bands
        out = np.zeros((self.calendar.bands, len(self.grid)))
        np.add.at(out, band, weights[cells, None] * chances)
        return out

    def dated_rates(self, place: int, counts: CellCounts) -> np.ndarray:
        """
        Return (sites, nodes) the rate that a site with the effect of each node is expected to have
        on the dates of its own visits; NaN without any.
        """
        _, n = counts.of_species(place)
        chances = chance(self.effects(place)[:, None] + self.grid, self.link)
        total = np.asarray(n.sum(axis=1)).ravel()
        with np.errstate(invalid="ignore"):
            return np.asarray((n @ chances) / np.where(total > 0, total, np.nan)[:, None])

    def curve_table(self, level: float = 0.9) -> pd.DataFrame:
        """
        Return the season of each species at the average site, in the average year and band.

        Returns
        -------
        DataFrame
            Columns ``species``, ``week`` (1 to 52), ``detectability``, ``lower``, ``upper``
            (an interval of the curve), ``relative`` (1 at the peak).
        """
        from scipy.stats import norm

        calendar, z = self.calendar, float(norm.ppf(0.5 + level / 2))
        basis = calendar.design[0].reshape(*calendar.shape, -1)
        share = np.asarray(calendar.effort_share)
        mean = np.einsum("wyebp,e->wp", basis, share) / (calendar.shape[1] * calendar.bands)
        tables = []
        for place, name in enumerate(self.species):
            middle = mean @ self.coefficients[place]
            spread = np.sqrt(np.einsum("wp,pq,wq->w", mean, self.covariance[place], mean))
            weights = np.exp(prior(0.0, float(self.tau[place]), self.grid))[0]
            values = [
                chance((middle + shift * spread)[:, None] + self.grid, self.link) @ weights
                for shift in (0.0, -z, z)
            ]
            tables.append(
                pd.DataFrame(
                    {
                        "species": name,
                        "week": np.arange(calendar.first_week, calendar.last_week + 1),
                        "detectability": values[0],
                        "lower": values[1],
                        "upper": values[2],
                        "relative": values[0] / values[0].max(),
                    }
                )
            )
        return pd.concat(tables, ignore_index=True)

    def to_card(self) -> dict[str, Any]:
        """Return what ``model.json`` keeps, beside :meth:`to_arrays`."""
        return {
            "species": list(self.species),
            "link": self.link,
            "calendar": self.calendar.to_dict(),
        }

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays to save."""
        return {
            "season_grid": self.grid,
            "season_coefficients": self.coefficients,
            "season_covariance": self.covariance,
            "season_tau": self.tau,
            "season_detections": self.detections,
        }

    @classmethod
    def from_saved(cls, card: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Seasons:
        """
        Read what :meth:`to_card` and :meth:`to_arrays` gave.

        Parameters
        ----------
        card, arrays
            The two; coefficients are (species, coefficients).

        Raises
        ------
        KeyError, TypeError, ValueError
            Something is missing or does not fit.
        """
        parts = [
            arrays[f"season_{name}"]
            for name in ("grid", "coefficients", "covariance", "tau", "detections")
        ]
        calendar = Calendar.from_dict(card["calendar"])
        found = cls(tuple(card["species"]), calendar, card["link"], *parts)
        if found.coefficients.shape != (len(found.species), calendar.design[0].shape[1]):
            raise ValueError("the season's coefficients do not fit its calendar")
        return found


def visits_of(dataset: Dataset) -> VisitTable:
    """
    Return the visits of a data set.

    Raises
    ------
    DataError
        It keeps none.
    """
    if dataset.visit_table is None:
        raise DataError(
            f"The data set {dataset.card.name!r} keeps no visits with dates, so there is no season "
            "to learn. Build it again with this release, or switch season off."
        )
    return dataset.visit_table


def gradient(dataset: Dataset, shift_by: str | None) -> np.ndarray | None:
    """
    Return (sites,) what the season shifts along: latitude or a covariate.

    Raises
    ------
    DataError
        The data set has no such covariate.
    """
    if shift_by is None:
        return None
    if shift_by == "latitude":
        if "lat" in dataset.sites.columns:
            return np.asarray(dataset.sites["lat"], dtype=float)
        return None
    table = dataset.covariates
    if table is None or shift_by not in table.columns:
        raise DataError(
            f"The season is to shift along {shift_by!r}; the data set {dataset.card.name!r} has no "
            "such covariate. Name one of its covariates, or latitude: season.shift_by."
        )
    return np.asarray(table[shift_by], dtype=float)


def likelier_link(
    counts: CellCounts, species: int, grid: np.ndarray, rng: np.random.Generator
) -> LinkName:
    """
    Return the link under which the visits are likelier, judged by the species that were seen most
    at some of the sites.
    """
    seen = np.array([len(counts.seen(place)) for place in range(species)])
    often = np.argsort(-seen, kind="stable")[:LINK_SPECIES]
    some = np.arange(len(counts))
    if len(some) > LINK_SITES:
        some = np.sort(rng.choice(some, LINK_SITES, replace=False))
    links: tuple[LinkName, ...] = ("cloglog", "logit")
    total = [0.0, 0.0]
    for place in often:
        k, n = (part[some] for part in counts.of_species(int(place)))
        for number, link in enumerate(links):
            total[number] += fit_curve(k, n, counts.calendar, grid, link, rounds=25).evidence
    log.info("Evidence of the links %s: %s.", links, total)
    return links[int(np.argmax(total))]


def dates_share(seasons: Seasons, counts: CellCounts, *, fewest: int = 30) -> float:
    """
    Return how much dates alone make raw rates differ: the variance between sites of the rate that
    an average site would have on the dates of each, over the variance of the standardised rates of
    sites. The median over species with at least ``fewest`` detections; NaN if there is none.

    On weekly walks of a whole season it is about 0.1, on nine random walks 4, within ten weeks 13;
    above 0.25 raw rates mislead.
    """
    schedule, share = seasons.calendar.weights(), []
    middle = seasons.calendar.bands // 2
    for place in np.flatnonzero(seasons.detections >= fewest):
        weights = np.exp(prior(0.0, float(seasons.tau[place]), seasons.grid))[0]
        by_dates = seasons.dated_rates(int(place), counts) @ weights
        rates = seasons.node_rates(int(place), schedule)[middle]
        mean = weights @ rates
        spread = float(weights @ rates**2 - mean**2)
        share.append(float(np.nanvar(by_dates)) / max(spread, 1e-12))
    return float(np.median(share)) if share else float("nan")


def surveyed_rates(seasons: Seasons, counts: CellCounts, place: int) -> tuple[np.ndarray, ...]:
    """
    Return the posterior (sites, nodes) of a species under the prior that all sites share, and the
    standardised rate (sites, nodes) at the nodes.
    """
    likelihood = seasons.likelihood(counts, place)
    weight, _ = posterior(likelihood, prior(0.0, float(seasons.tau[place]), seasons.grid))
    rates = seasons.node_rates(place, seasons.calendar.weights())[counts.bands]
    return weight, rates


def _of_sites(table: VisitTable, rows: np.ndarray) -> VisitTable:
    """Return the visits of some sites, with what was seen on them."""
    keep = np.isin(table.visits["site"].to_numpy(), rows)
    if keep.all():
        return table
    number = np.cumsum(keep) - 1
    visit = table.sightings["visit"].to_numpy()
    seen = keep[visit]
    return VisitTable(
        table.visits[keep].reset_index(drop=True),
        pd.DataFrame(
            {
                "visit": number[visit[seen]].astype(np.uint32),
                "species": table.sightings["species"].to_numpy()[seen],
            }
        ),
    )
