"""
Cells that visits fall into: week x year x effort x band of climate. Visits per site and cell, and
those with the species, are all that the likelihood needs, however many visits there were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from butterfly_sdm.data.visits import VisitTable
from butterfly_sdm.errors import DataError
from butterfly_sdm.season.options import EffortName, SeasonOptions
from butterfly_sdm.season.splines import cyclic_basis, open_basis

WEEKS = 52  # of seven days; the last has one or two more
MOST_YEARS = 10  # groups of consecutive years, if there are more
BANDS = 5
CYCLIC_FROM = 44  # weeks with visits from which the year is a circle
LIST_CLASSES = 5


def week_of(dates: pd.Series | pd.DatetimeIndex) -> np.ndarray:
    """Return weeks of seven days counted from 1 January, 1 to 52; 0 where the date is unknown."""
    day = np.asarray(pd.DatetimeIndex(dates).dayofyear, dtype=float)
    week = np.minimum((np.nan_to_num(day, nan=-6.0) - 1) // 7, WEEKS - 1) + 1
    return np.asarray(np.maximum(week, 0), dtype=np.int64)


@dataclass(frozen=True)
class Calendar:
    """
    Which cells there are, and what a curve over them is made of.

    Attributes
    ----------
    first_week, last_week
        With visits, 1 to 52.
    schedule
        First and last week of the schedule that rates are standardised to.
    years
        First year of each group of years.
    effort
        What makes the classes of effort.
    duration_edges
        Minutes between classes of duration; the class after the last is of visits that do not tell.
    list_edges
        Other species seen between classes of list length.
    effort_share
        (classes,) share of the visits.
    band_edges
        Of climate or latitude between bands; empty: one band.
    shift_by
        What the bands are of.
    """

    first_week: int
    last_week: int
    schedule: tuple[int, int]
    years: tuple[int, ...]
    effort: tuple[EffortName, ...] = ()
    duration_edges: tuple[float, ...] = ()
    list_edges: tuple[float, ...] = ()
    effort_share: tuple[float, ...] = (1.0,)
    band_edges: tuple[float, ...] = ()
    shift_by: str | None = None
    deviates: bool = field(default=True)

    @classmethod
    def of(
        cls, table: VisitTable, options: SeasonOptions, *, gradient: np.ndarray | None = None
    ) -> Calendar:
        """
        Return the cells of visits.

        Parameters
        ----------
        gradient
            (sites,) what the season shifts along; NaN where unknown.

        Raises
        ------
        DataError
            No visit has a date.
        """
        dates = table.visits["date"]
        weeks = week_of(dates)
        dated = weeks > 0
        if not dated.any():
            raise DataError(
                f"None of the {len(table)} visits has a date, so there is no season to learn. "
                "Switch season off."
            )
        count = np.bincount(weeks[dated], minlength=WEEKS + 1)
        often = np.flatnonzero(count >= max(1.0, 1e-3 * count.sum()))
        schedule = (int(often[0]), int(often[-1]))
        if options.first_week is not None and options.last_week is not None:
            schedule = (options.first_week, options.last_week)
        told = np.flatnonzero(count)
        years = np.unique(pd.DatetimeIndex(dates[dated]).year)
        groups = np.array_split(years, min(len(years), MOST_YEARS))
        effort = tuple(name for name in options.effort if _varies(table, name))
        calendar = cls(
            first_week=min(int(told[0]), schedule[0]),
            last_week=max(int(told[-1]), schedule[1]),
            schedule=schedule,
            years=tuple(int(group[0]) for group in groups),
            effort=effort,
            duration_edges=_duration_edges(table) if "duration" in effort else (),
            list_edges=_list_edges(table) if "list_length" in effort else (),
            band_edges=_band_edges(gradient, table),
            shift_by=options.shift_by if gradient is not None else None,
            deviates=options.years and len(years) > 1,
        )
        classes = calendar.effort_of(table, None)[dated]
        share = np.bincount(classes, minlength=calendar.efforts) / max(len(classes), 1)
        return replace(calendar, effort_share=tuple(map(float, share)))

    @property
    def weeks(self) -> int:
        """How many weeks."""
        return self.last_week - self.first_week + 1

    @property
    def bands(self) -> int:
        """How many bands of climate or latitude."""
        return len(self.band_edges) + 1

    @property
    def _effort_sizes(self) -> dict[str, int]:
        sizes = {"duration": len(self.duration_edges) + 2, "complete": 3}
        sizes["list_length"] = len(self.list_edges) + 1
        return {name: sizes[name] for name in self.effort}

    @property
    def efforts(self) -> int:
        """How many classes of effort."""
        return int(np.prod([*self._effort_sizes.values(), 1]))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Weeks, years, classes of effort, bands."""
        return self.weeks, len(self.years), self.efforts, self.bands

    def __len__(self) -> int:
        return int(np.prod(self.shape))

    def effort_of(self, table: VisitTable, others: np.ndarray | None) -> np.ndarray:
        """
        Return the class of effort of every visit.

        Parameters
        ----------
        others
            (visits,) species seen beside the one in question; None: all are counted.
        """
        out = np.zeros(len(table), dtype=np.int64)
        for name, size in self._effort_sizes.items():
            if name == "duration":
                minutes = table.visits["duration"].to_numpy(dtype=float)
                own = np.digitize(minutes, self.duration_edges, right=True)
                own[~np.isfinite(minutes)] = size - 1
            elif name == "complete":
                told = table.visits["complete"].astype("Float64").to_numpy(float, na_value=2.0)
                own = told.astype(np.int64)
            else:
                length = table.visits["list_length"].to_numpy() if others is None else others
                own = np.digitize(length, self.list_edges)
            out = out * size + own
        return out

    @cached_property
    def _effort_numbers(self) -> np.ndarray:
        """(classes, slopes): what each class of effort adds to the slopes, 0 on average."""
        columns = []
        for name, size in self._effort_sizes.items():
            values = np.linspace(-1, 1, size)
            if name == "duration":  # visits that do not tell have an effect of their own
                told = np.r_[np.linspace(-1, 1, max(size - 1, 1)), 0.0]
                own = np.c_[told, np.eye(size)[-1]]
            elif name == "complete":
                own = np.array([[-0.5, 0.0], [0.5, 0.0], [0.0, 1.0]])
            else:
                own = values[:, None]
            columns.append(own)
        if not columns:
            return np.zeros((1, 0))
        sizes = list(self._effort_sizes.values())
        index = np.unravel_index(np.arange(self.efforts), sizes)
        numbers = np.hstack([own[at] for own, at in zip(columns, index, strict=True)])
        return np.asarray(numbers - np.asarray(self.effort_share) @ numbers)

    @cached_property
    def design(self) -> tuple[np.ndarray, list[tuple[slice, np.ndarray]], np.ndarray]:
        """
        What a curve is made of.

        Returns
        -------
        basis
            (cells, coefficients); the first :attr:`level` sum to 1 in each row.
        penalties
            Coefficients and the matrix whose weight the data choose.
        fixed
            (coefficients, coefficients) a precision that is always there.
        """
        week, year, effort, band = np.unravel_index(np.arange(len(self)), self.shape)
        middle = week + 0.5
        blocks: list[np.ndarray] = []
        penalties: list[tuple[slice, np.ndarray]] = []

        def add(block: np.ndarray, matrix: np.ndarray | None) -> None:
            start = sum(part.shape[1] for part in blocks)
            blocks.append(block)
            if matrix is not None:
                penalties.append((slice(start, start + block.shape[1]), matrix))

        main, penalty = self._curve(middle, self.level)
        add(main, penalty)
        few, bent = self._curve(middle, min(8, self.level))
        own = bent + 0.05 * np.eye(few.shape[1])
        if self.deviates:
            if len(self.years) == 2:  # one contrast
                add(few * (year - 0.5)[:, None], own)
            else:
                parts = [few * (year == place)[:, None] for place in range(len(self.years))]
                add(np.hstack(parts), np.kron(np.eye(len(parts)), own))
        if self.bands > 1:
            # Where windows of visits follow the gradient, shift and sites can hardly be told apart:
            # a shift is drawn towards none.
            along = (band - (self.bands - 1) / 2) / ((self.bands - 1) / 2)
            add(few * along[:, None], bent + 16 * np.eye(few.shape[1]))
        add(self._effort_numbers[effort], None)
        basis = np.hstack(blocks)
        fixed = np.full(basis.shape[1], 1e-3)
        slopes = self._effort_numbers.shape[1]
        fixed[basis.shape[1] - slopes :] = 0.25  # effects of effort: Normal(0, 2^2)
        return basis, penalties, np.diag(fixed)

    @property
    def level(self) -> int:
        """Coefficients of the curve that all years and bands share."""
        wide = 20 if self._cyclic else int(np.clip(round(self.weeks / 2), 5, 14))
        return min(wide, max(4, self.weeks))

    @property
    def _cyclic(self) -> bool:
        return self.weeks >= CYCLIC_FROM

    def _curve(self, week: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        if self._cyclic:
            return cyclic_basis(week + self.first_week - 1, WEEKS, count)
        return open_basis(week, 0, self.weeks, max(count, 4))

    def band_of(self, gradient: np.ndarray | None, sites: int) -> np.ndarray:
        """Return the band (sites,) of sites; the middle one where the gradient is unknown."""
        if self.bands == 1 or gradient is None:
            return np.full(sites, (self.bands - 1) // 2)
        band = np.digitize(gradient, self.band_edges)
        return np.where(np.isfinite(gradient), band, (self.bands - 1) // 2)

    def weights(self, *, week: int | None = None) -> np.ndarray:
        """
        Return the schedule: how much each cell counts, summing to 1 within each band.

        All weeks of the schedule and all years count alike; effort is what it was on average.

        Parameters
        ----------
        week
            1 to 52; only this one. None: the schedule's.

        Raises
        ------
        DataError
            There were no visits in that week.
        """
        first, last = self.schedule if week is None else (week, week)
        if first < self.first_week or last > self.last_week:
            raise DataError(
                f"Week {week} lies outside the weeks with visits, {self.first_week} to "
                f"{self.last_week}: nothing is known of it. Name one of them."
            )
        out = np.zeros(self.shape)
        weeks = slice(first - self.first_week, last - self.first_week + 1)
        count = (last - first + 1) * len(self.years)
        out[weeks] = np.asarray(self.effort_share)[None, None, :, None] / count
        return out.ravel()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
            if name in self.__dataclass_fields__
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Calendar:
        """Read what :meth:`to_dict` gave."""
        plain: dict[str, Any] = {
            name: tuple(given) if isinstance(given, list) else given
            for name, given in value.items()
        }
        return cls(**plain)


@dataclass(frozen=True, eq=False)
class CellCounts:
    """
    Visits per site and cell, and those with each species.

    Attributes
    ----------
    calendar
        The cells.
    visits
        (sites, cells) sparse n.
    site, cell
        (visits,) of every visit with a date that counts.
    table
        Where sightings are looked up; only its sites that were asked for count.
    """

    calendar: Calendar
    visits: sparse.csr_array
    row_of_visit: np.ndarray
    cell_of_visit: np.ndarray
    table: VisitTable
    bands: np.ndarray

    @classmethod
    def of(
        cls,
        table: VisitTable,
        calendar: Calendar,
        rows: np.ndarray,
        *,
        bands: np.ndarray,
    ) -> CellCounts:
        """
        Count the visits of some sites; those without a date, or in weeks and years outside the
        calendar, are left out.

        Parameters
        ----------
        rows
            (sites,) rows of the sites in the data set, each once.
        bands
            (sites,) band of each.
        """
        site = table.visits["site"].to_numpy().astype(np.int64)
        row_of = np.full(max(int(site.max(initial=0)), int(np.max(rows, initial=0))) + 1, -1)
        row_of[rows] = np.arange(len(rows))
        row = row_of[site]
        week = week_of(table.visits["date"])
        inside = (week >= calendar.first_week) & (week <= calendar.last_week)
        row[~inside] = -1
        years = np.asarray(pd.DatetimeIndex(table.visits["date"]).year, dtype=float)
        year = np.digitize(np.nan_to_num(years, nan=0.0), calendar.years[1:])
        effort = calendar.effort_of(table, None)
        band = bands[np.maximum(row, 0)] if len(bands) else row
        place = (week - calendar.first_week, year, effort, band)
        cell = np.ravel_multi_index(place, calendar.shape, mode="clip")
        used = row >= 0
        visits = _sum(row[used], cell[used], (len(rows), len(calendar)))
        return cls(calendar, visits, row, cell, table, np.asarray(bands))

    def __len__(self) -> int:
        return len(self.bands)

    def total(self) -> np.ndarray:
        """(sites,) dated visits."""
        return np.asarray(self.visits.sum(axis=1)).ravel()

    @cached_property
    def _by_species(self) -> tuple[np.ndarray, np.ndarray]:
        """Visits ordered by species, and where each species begins."""
        species = self.table.sightings["species"].to_numpy()
        used = self.row_of_visit[self.table.sightings["visit"].to_numpy()] >= 0
        visit = self.table.sightings["visit"].to_numpy()[used]
        order = np.argsort(species[used], kind="stable")
        count = np.bincount(species[used], minlength=int(species.max(initial=0)) + 1)
        return visit[order], np.r_[0, np.cumsum(count)]

    def seen(self, species: int) -> np.ndarray:
        """Return the rows of the visits on which a species was seen."""
        visit, start = self._by_species
        if species + 1 >= len(start):
            return visit[:0]
        return visit[start[species] : start[species + 1]]

    def of_species(self, species: int) -> tuple[sparse.csr_array, sparse.csr_array]:
        """
        Return detections k and visits n (sites, cells), sparse.

        With list length as effort the cells of a visit depend on the species: it does not count
        itself.
        """
        seen = self.seen(species)
        shape = self.visits.shape
        if "list_length" not in self.calendar.effort:
            k = _sum(self.row_of_visit[seen], self.cell_of_visit[seen], shape)
            return k, self.visits
        others = self.table.visits["list_length"].to_numpy().astype(np.int64)
        others[seen] -= 1
        effort = self.calendar.effort_of(self.table, others)
        week, year, _, band = np.unravel_index(self.cell_of_visit, self.calendar.shape)
        cell = np.ravel_multi_index((week, year, effort, band), self.calendar.shape)
        used = self.row_of_visit >= 0
        n = _sum(self.row_of_visit[used], cell[used], shape)
        return _sum(self.row_of_visit[seen], cell[seen], shape), n


def _sum(row: np.ndarray, cell: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    ones = np.ones(len(row))
    return sparse.csr_array(sparse.coo_array((ones, (row, cell)), shape=shape))


def _varies(table: VisitTable, name: str) -> bool:
    column = "list_length" if name == "list_length" else name
    return column in table.visits.columns and table.visits[column].nunique(dropna=False) > 1


def _duration_edges(table: VisitTable) -> tuple[float, ...]:
    minutes = table.visits["duration"].to_numpy(dtype=float)
    minutes = minutes[np.isfinite(minutes)]
    return tuple(np.unique(np.quantile(minutes, [1 / 3, 2 / 3]))) if len(minutes) else ()


def _list_edges(table: VisitTable) -> tuple[float, ...]:
    length = table.visits["list_length"].to_numpy()
    cuts = np.quantile(length, np.arange(1, LIST_CLASSES) / LIST_CLASSES)
    return tuple(np.unique(cuts))


def _band_edges(gradient: np.ndarray | None, table: VisitTable) -> tuple[float, ...]:
    """Return the quantiles between the bands, of the sites with visits."""
    if gradient is None:
        return ()
    known = gradient[np.unique(table.visits["site"].to_numpy())]
    known = known[np.isfinite(known)]
    if len(known) < 10 * BANDS:
        return ()
    edges = np.unique(np.quantile(known, np.arange(1, BANDS) / BANDS))
    return tuple(map(float, edges)) if len(edges) == BANDS - 1 else ()
