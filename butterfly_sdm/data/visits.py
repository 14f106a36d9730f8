"""Visits with dates and what was seen on them: detections k and visits n are sums of these."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd

from butterfly_sdm.errors import DataError

FILES = ("visits.parquet", "sightings.parquet")
NEEDED = {"site": "u", "date": "M", "list_length": "u"}
PIECE = 1 << 20
OPTIONAL = ("complete", "duration", "scheme")


@dataclass(frozen=True)
class VisitTable:
    """
    One row per visit, and one per species seen on it.

    Attributes
    ----------
    visits
        Sorted by site and date; a row number. Columns ``site`` (uint32, row of the site in
        ``Dataset.sites``), ``date`` (datetime64[s], NaT where the day is not known),
        ``list_length`` (uint16, species seen; sensitive species that are withheld do not count);
        optional ``complete`` (boolean, whether all species seen were told), ``duration`` (float32,
        minutes, NaN where not told), ``scheme`` (category).
    sightings
        Sorted by visit and species, each pair once. Columns ``visit`` (uint32, row of ``visits``),
        ``species`` (uint16, column of ``Dataset.detections``).
    """

    visits: pd.DataFrame
    sightings: pd.DataFrame

    def __post_init__(self) -> None:
        held = list(self.visits.columns)
        if held[: len(NEEDED)] != list(NEEDED) or set(held) - {*NEEDED, *OPTIONAL}:
            raise DataError(
                f"The table of visits has the columns {held}; it needs {list(NEEDED)}, in this "
                f"order, and may have {list(OPTIONAL)}."
            )
        if list(self.sightings.columns) != ["visit", "species"]:
            raise DataError(
                f"The table of sightings has the columns {list(self.sightings.columns)}; it needs "
                "['visit', 'species']."
            )
        kinds = {**NEEDED, "visit": "u", "species": "u"}
        for name, column in (*self.visits.items(), *self.sightings.items()):
            if name in kinds and column.dtype.kind != kinds[str(name)]:
                kind = "a date" if kinds[str(name)] == "M" else "an unsigned whole number"
                raise DataError(f"Visits: {name} is {kind}; this one is {column.dtype}.")
        _check_order(self.visits["site"].to_numpy(), self.visits["date"].to_numpy())
        visit, species = (self.sightings[name].to_numpy() for name in ("visit", "species"))
        if len(visit) > 1:
            later = (visit[1:] > visit[:-1]) | (
                (visit[1:] == visit[:-1]) & (species[1:] > species[:-1])
            )
            if not later.all():
                row = int(np.argmin(later)) + 1
                raise DataError(
                    f"Sighting {row} does not come after the one before it. Sightings are sorted "
                    "by visit and species, each once."
                )

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits that change with any visit or sighting."""
        digest = hashlib.sha256()
        for table in (self.visits, self.sightings):
            digest.update(pd.util.hash_pandas_object(table, index=False).to_numpy().tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.visits)

    def sums(self, sites: int, species: int) -> tuple[np.ndarray, np.ndarray]:
        """
        Return detections k (sites, species) and visits n (sites,), whole numbers.

        Raises
        ------
        DataError
            A visit or sighting speaks of a site, visit or species that there is not.
        """
        site = self.visits["site"].to_numpy()
        visit, column = (self.sightings[name].to_numpy() for name in ("visit", "species"))
        for name, values, end in (
            ("site", site, sites),
            ("visit", visit, len(site)),
            ("species", column, species),
        ):
            if len(values) and values.max() >= end:
                raise DataError(
                    f"The visits speak of {name} {int(values.max())}, but there are {end}."
                )
        k = np.zeros(sites * species, dtype=np.int64)
        for start in range(0, len(visit), PIECE):  # a piece at a time takes little memory
            part = slice(start, start + PIECE)
            cell = site[visit[part]].astype(np.int64) * species + column[part]
            k += np.bincount(cell, minlength=sites * species)
        return k.reshape(sites, species), np.bincount(site, minlength=sites)

    def taken(self, sites: np.ndarray, species: np.ndarray | None = None) -> Self:
        """
        Return the visits of some sites and the sightings of some species, numbered anew.

        Parameters
        ----------
        sites
            Rows of sites, in the new order; one may occur several times, and -1 is a site without
            a visit.
        species
            Columns of species, in the new order; None for all.

        Returns
        -------
        VisitTable
            Lists keep their length: it says how much was seen, not how many species are kept.
        """
        sites = np.asarray(sites, dtype=np.int64)
        rows, lengths = _runs(self.visits["site"].to_numpy(), sites)
        visits = self.visits.iloc[rows].reset_index(drop=True)
        visits["site"] = np.repeat(np.arange(len(sites), dtype=np.uint32), lengths)
        seen, lengths = _runs(self.sightings["visit"].to_numpy(), rows)
        visit = np.repeat(np.arange(len(rows), dtype=np.uint32), lengths)
        column = self.sightings["species"].to_numpy()[seen]
        if species is not None:
            species = np.asarray(species, dtype=np.int64)
            new = np.full(max(int(column.max(initial=0)), int(species.max(initial=0))) + 1, -1)
            new[species] = np.arange(len(species))
            kept = new[column] >= 0
            visit, column = visit[kept], new[column[kept]].astype(np.uint16)
            if (np.diff(species) < 0).any():
                order = np.lexsort((column, visit))
                visit, column = visit[order], column[order]
        return type(self)(visits, pd.DataFrame({"visit": visit, "species": column}))

    def check_sums(self, k: np.ndarray, n: np.ndarray) -> None:
        """
        Refuse detections k (sites, species) and visits n (sites,) that are not sums of the visits.

        Raises
        ------
        DataError
            They differ, or the visits speak of a site or species that there is not.
        """
        own_k, own_n = self.sums(*k.shape)
        different = (own_k != k).any(axis=1) | (own_n != n)
        if different.any():
            site = int(np.argmax(different))
            raise DataError(
                f"Detections and visits of {int(different.sum()):,} sites are not the sums of the "
                f"table of visits: site {site} of it has {int(own_n[site])} visits and "
                f"{int(own_k[site].sum())} sightings, the data set says {int(n[site])} and "
                f"{int(k[site].sum())}. Change both alike, or take visit_table away (None)."
            )

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """
        Read the two tables of a data set folder; None where it has none.

        Raises
        ------
        DataError
            They do not fit together.
        FileNotFoundError
            One of the two is missing.
        """
        if not any((folder / name).is_file() for name in FILES):
            return None
        visits, sightings = (pd.read_parquet(folder / name) for name in FILES)
        visits["date"] = visits["date"].astype("datetime64[s]", copy=False)
        return cls(visits, sightings)


def _check_order(site: np.ndarray, date: np.ndarray) -> None:
    """Refuse visits that are not sorted by site and date (a missing date is the last)."""
    day = date.view(np.int64)
    if np.isnat(date).any():
        day = np.where(np.isnat(date), np.iinfo(np.int64).max, day)
    later = (site[1:] > site[:-1]) | ((site[1:] == site[:-1]) & (day[1:] >= day[:-1]))
    if not later.all():
        row = int(np.argmin(later)) + 1
        raise DataError(f"Visit {row} comes too late. Visits are sorted by site and date.")


def _runs(sorted_numbers: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of each wanted number among sorted ones, and how many each has."""
    start = np.searchsorted(sorted_numbers, wanted, side="left")
    lengths = np.searchsorted(sorted_numbers, wanted, side="right") - start
    before = np.cumsum(lengths) - lengths
    return np.repeat(start - before, lengths) + np.arange(lengths.sum()), lengths
