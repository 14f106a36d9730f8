"""Tell which values the rows have that were left out, reason by reason."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from data_prep.records.count import read_survey
from data_prep.records.options import RecordsOptions

Values = Mapping[str, tuple[tuple[str, int], ...]]
"""Per reason the commonest values, each with its rows."""

CHOSEN = frozenset(
    (
        "another institution",
        "outside the years",
        "outside the season",
        "incomplete list",
        "footprint too large",
        "place too uncertain",
        "place larger than the grid square",
        "too few records at the site",
        "too few visits to the site",
        "not a listed site",
        "list too short",
        "absence not counted",
    )
)
"""Reasons that follow from a setting, not from how the file was understood."""

_SHOWING = (
    ("name", ("scientificName|species",)),
    ("easting", ("easting", "northing")),
    ("position", ("decimalLatitude", "decimalLongitude")),
    ("latitude", ("decimalLatitude", "decimalLongitude")),
    ("malformed", ("text",)),
    ("duplicate", ("scientificName|species", "eventDate")),
    ("institution", ("institutionCode",)),
    ("footprint", ("footprintWKT",)),
    ("grid reference", ("gridReference",)),
    ("uncertain", ("coordinateUncertaintyInMeters",)),
    ("coordinate", ("decimalLatitude", "decimalLongitude", "easting", "northing")),
    ("place", ("gridReference", "decimalLatitude", "decimalLongitude", "locationID")),
    ("grid", ("gridReference", "decimalLatitude", "decimalLongitude")),
    ("site", ("locationID", "gridReference", "decimalLatitude", "decimalLongitude")),
    ("status", ("occurrenceStatus",)),
    ("absence", ("occurrenceStatus", "individualCount")),
    ("list", ("completeness",)),
    ("rank", ("scientificName|species", "taxonRank")),
    ("aggregate", ("scientificName", "taxonRank")),
    ("date", ("eventDate|year",)),
    ("period", ("eventDate|year",)),
    ("year", ("eventDate|year",)),
    ("season", ("eventDate|month",)),
)
_LONGEST = 60


def commonest(rows: pl.DataFrame, *, most: int = 3) -> dict[str, tuple[tuple[str, int], ...]]:
    """
    Return the commonest values of the rows left out for each reason.

    Parameters
    ----------
    rows
        As :func:`data_prep.records.dropped.dropped_rows` makes them.
    most
        How many values.

    Examples
    --------
    >>> rows = pl.DataFrame({"reason": ["unreadable date"] * 3, "eventDate": ["?", "May", "?"]})
    >>> commonest(rows)
    {'unreadable date': (('?', 2), ('May', 1))}
    """
    found = {}
    for reason in rows["reason"].unique(maintain_order=True):
        terms = next(
            (terms for word, terms in _SHOWING if word in reason),
            ("scientificName|species", "eventDate"),
        )
        shown = [_shown(term, rows.columns) for term in terms]
        held = [value for value in shown if value is not None]
        if not held:
            continue
        values = (
            rows.lazy()
            .filter(pl.col("reason") == reason)
            .select(
                pl.concat_str(
                    held,
                    separator=", ",
                    ignore_nulls=True,
                )
                .str.replace_all(r"\s+", " ")
                .str.slice(0, _LONGEST)
                .alias("value")
            )
            .group_by("value")
            .len()
            .sort(["len", "value"], descending=[True, False])
            .head(most)
            .collect()
        )
        found[reason] = tuple((value or "(empty)", int(rows)) for value, rows in values.iter_rows())
    return found


def _shown(terms: str, columns: list[str]) -> pl.Expr | None:
    """Return the first of some columns that has a value."""
    held = [pl.col(term) for term in terms.split("|") if term in columns]
    return (
        pl.coalesce([pl.when(value.str.strip_chars() != "").then(value) for value in held])
        if held
        else None
    )


def values_left_out(rules: RecordsOptions, *, scratch: Path, told: Path | None = None) -> Values:
    """
    Return the commonest values of the records left out.

    Parameters
    ----------
    told
        Where they have been written already; None: the records are counted again.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        if told is None:
            told = Path(place) / "left_out.parquet"
            read_survey(rules, scratch=scratch, explain=told)
        csv = told.suffix == ".csv"
        return commonest(
            pl.read_csv(told, infer_schema=False) if csv else pl.read_parquet(told, glob=False)
        )
