"""Number the visits of the rows that count, and tell what was seen on each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import polars as pl

from butterfly_sdm.data.visits import VisitTable

_LARGEST_TABLE = 2  # numbers per row that are looked up in a table instead of sorted

KNOWN = ("list_state", "minutes", "source_number")
"""What the rows may tell of their visit besides its day; columns that say nothing are not there."""


@dataclass(frozen=True)
class Lists:
    """
    Every visit and every species seen on it, sensitive ones included.

    Attributes
    ----------
    site
        (visits,) number of the site, ascending: its place among those asked for.
    day
        (visits,) datetime64[D], ascending within a site.
    visit, taxon
        (sightings,) row of a visit and number of a taxon; sorted, each pair once.
    about
        (visits,) as far as it is known: ``list_state`` (2 complete, 1 not, 0 unknown), ``minutes``,
        ``source_number``.
    blank
        Visits without a record of presence, as a table of survey events tells them.
    """

    site: np.ndarray
    day: np.ndarray
    visit: np.ndarray
    taxon: np.ndarray
    about: pl.DataFrame
    blank: int = 0

    def length(self, counts: np.ndarray | None = None) -> np.ndarray:
        """Return how many species were seen on each visit, of the taxa that count."""
        visit = self.visit if counts is None else self.visit[counts[self.taxon]]
        return np.bincount(visit, minlength=len(self.site))

    def detections(self, sites: int, taxa: int) -> np.ndarray:
        """Return (sites, taxa) visits on which each taxon was seen."""
        cell = self.site[self.visit].astype(np.int64) * taxa + self.taxon
        return np.bincount(cell, minlength=sites * taxa).reshape(sites, taxa)


def lists_of(
    rows: pl.DataFrame, sites: np.ndarray, by: str, taxa: int, private: Sequence[int] = ()
) -> Lists:
    """
    Gather rows to visits.

    Parameters
    ----------
    rows
        See :class:`data_prep.records.rules.Verdicts`.
    sites
        Numbers of the sites that have a row, in the order in which the visits shall lie.
    by
        ``day`` or ``event``: what makes a visit of one site.
    taxa
        How many taxa there are.
    private
        Taxa whose rows tell nothing of their visit but that it was.
    """
    number = rows[by].to_physical() if by == "day" else rows[by].rank("dense")
    numbers = number.to_numpy()
    first = int(numbers.min())
    span = int(numbers.max()) - first + 1
    most = len(sites) * span * max(taxa, 1)
    kind = np.uint32 if most < 2**32 else np.uint64  # half of the memory where it is enough
    rank = np.zeros(int(sites.max()) + 1, dtype=kind)
    rank[sites] = np.arange(len(sites)) * span
    key = rank[rows["site"].to_numpy()]  # one number a visit: far faster to compare than columns
    key += (numbers - first).astype(kind)
    keys, row_of = _numbered(key, len(sites) * span)
    seen = rows.select((pl.col("present") & (pl.col("taxon") >= 0)).alias("seen")).to_series()
    named = key[seen.to_numpy()] * kind(taxa)
    named += rows["taxon"].filter(seen).to_numpy().astype(kind)
    named = _distinct(named)
    taxon = (named % kind(max(taxa, 1))).astype(np.uint32)
    named //= kind(max(taxa, 1))
    visit = np.searchsorted(keys, named).astype(np.uint32) if row_of is None else row_of[named]
    del named, row_of
    blank = 0
    if rows["is_event"].any():
        blank = len(keys) - len(_distinct(key[rows["present"].to_numpy()]))
    about = _about(rows, pl.Series("key", key), keys, private)
    site = (keys // kind(span)).astype(np.uint32)
    if by == "day":
        day = ((keys % kind(span)).astype(np.int64) + first).astype("datetime64[D]")
        return Lists(site, day, visit, taxon, about, blank)
    days = pl.DataFrame({"key": key, "day": rows["day"]}).group_by("key").agg(pl.col("day").min())
    day = days.sort("key")["day"].to_numpy().astype("datetime64[D]")
    order = np.lexsort((day, site))
    place = np.empty(len(order), dtype=np.uint32)
    place[order] = np.arange(len(order))
    visit = place[visit]
    again = np.lexsort((taxon, visit))
    return Lists(site[order], day[order], visit[again], taxon[again], about[order], blank)


def _numbered(numbers: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray | None]:
    """
    Return the distinct numbers, ascending, and the place of each number below ``most`` among them,
    None where that table would be large.
    """
    if most > _LARGEST_TABLE * len(numbers):
        return _distinct(numbers), None
    there = np.zeros(most, dtype=bool)
    there[numbers] = True
    places = np.cumsum(there, dtype=np.uint32)
    places -= np.uint32(1)  # of what is not there it means nothing
    return np.flatnonzero(there).astype(numbers.dtype), places


def _distinct(numbers: np.ndarray) -> np.ndarray:
    """Return the distinct numbers, ascending."""
    ordered = np.sort(numbers)
    if not len(ordered):
        return ordered
    first = np.empty(len(ordered), dtype=bool)
    first[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]


def _about(
    rows: pl.DataFrame, key: pl.Series, keys: np.ndarray, private: Sequence[int]
) -> pl.DataFrame:
    """Return what the rows of each visit tell of it; the most complete and the longest counts."""
    known = [name for name in KNOWN if name in rows.columns]
    same = {name: rows[name].first() for name in known if rows[name].n_unique() == 1}
    held = rows.select(key.alias("key"), "taxon", *(name for name in known if name not in same))
    if private:
        held = held.filter(~pl.col("taxon").is_in(list(private)))
    least = [pl.col(name).min() for name in held.columns if name == "source_number"]
    most = [pl.col(name).max() for name in held.columns if name in ("list_state", "minutes")]
    about = pl.DataFrame({"key": keys})
    if least or most:
        told = held.group_by("key").agg(*least, *most)
        about = about.join(told, on="key", how="left", maintain_order="left")
    return about.with_columns(pl.lit(value).alias(name) for name, value in same.items()).drop("key")


def visit_table(
    lists: Lists,
    columns: np.ndarray,
    *,
    kept: np.ndarray,
    length: np.ndarray,
    schemes: Sequence[str],
) -> VisitTable:
    """
    Return the visits that may be told.

    Parameters
    ----------
    columns
        (taxa,) column of each taxon among the species of the table, -1 for none.
    kept
        (visits,) which are told.
    length
        (visits,) species seen, sensitive ones left out.
    schemes
        Name of each ``source_number``.
    """
    columns = columns.astype(np.int32)
    place = (np.cumsum(kept, dtype=np.int32) - 1).astype(np.uint32)
    told = kept[lists.visit] & (columns[lists.taxon] >= 0)
    visit, species = place[lists.visit[told]], columns[lists.taxon[told]]
    if (np.diff(columns[columns >= 0]) < 0).any():
        order = np.lexsort((species, visit))
        visit, species = visit[order], species[order]
    visits = pd.DataFrame(
        {
            "site": lists.site[kept].astype(np.uint32),
            "date": lists.day[kept].astype("datetime64[s]"),
            "list_length": np.minimum(length[kept], 65_535).astype(np.uint16),
        }
    )
    about = lists.about.filter(pl.Series(kept))
    if "list_state" in about.columns:
        state = about["list_state"].fill_null(0).to_numpy()
        visits["complete"] = pd.array(state == 2, dtype="boolean")
        visits.loc[state == 0, "complete"] = pd.NA
    if "minutes" in about.columns:
        visits["duration"] = about["minutes"].fill_null(np.nan).to_numpy().astype(np.float32)
    if "source_number" in about.columns and any(schemes):
        number = about["source_number"].cast(pl.Int64).fill_null(len(schemes)).to_numpy()
        used = np.flatnonzero(np.bincount(number, minlength=len(schemes) + 1)[:-1])
        names = sorted({schemes[source] for source in used.tolist()} - {""})
        code = [names.index(name) if name in names else -1 for name in (*schemes, "")]
        visits["scheme"] = pd.Categorical.from_codes(np.array(code)[number], categories=names)
    sightings = {"visit": visit, "species": species.astype(np.uint16)}
    return VisitTable(visits, pd.DataFrame(sightings))
