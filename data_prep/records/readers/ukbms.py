"""
Read UKBMS site-visit tables: one table of visits, empty ones included, one of counts, and one of
sites.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from butterfly_sdm.errors import MissingFileError, RecordsError
from data_prep.records.columns import key, match_columns
from data_prep.records.dates import TERMS as DATE_TERMS
from data_prep.records.dates import read_days
from data_prep.records.files.containers import Container, is_zip, open_container
from data_prep.records.files.delimited import DelimitedText, sniff
from data_prep.records.readers.reader import Block

_SUFFIXES = (".csv", ".tsv", ".txt")


@dataclass
class SiteVisitTables:
    """Opened tables; a :class:`~data_prep.records.readers.reader.RecordFile` with events."""

    path: Path
    container: Container
    counts: str
    visits: str | None
    sites: str | None
    columns: Mapping[str, str]
    day_first: bool | None = True
    licence: str | None = None
    citation: str | None = None
    extra_notes: list[str] = field(default_factory=list)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the tables."""
        return tuple(self.extra_notes)

    @property
    def bytes(self) -> int:
        """Size of the counts."""
        return self.container.size(self.counts)

    def blocks(self) -> Iterator[tuple[Block, int]]:
        """Yield the counts, each with the id of its visit."""
        for block, position in self._table(self.counts, ("scientificName", "locationID")):
            rows = _with_visits(block.rows)
            if self.visits is None and self.sites is not None:
                rows = self._placed(rows)
            yield Block(rows, block.numbers, block.malformed), position

    def events(self) -> Iterator[tuple[Block, int]] | None:
        """Yield the visits, with the place of their site."""
        return None if self.visits is None else self._events(self.visits)

    def _events(self, name: str) -> Iterator[tuple[Block, int]]:
        for block, position in self._table(name, ("locationID",)):
            yield (
                Block(
                    self._placed(_with_visits(block.rows)),
                    block.numbers,
                    block.malformed,
                ),
                position,
            )

    def _placed(self, rows: pl.DataFrame) -> pl.DataFrame:
        if self.sites is None:
            return rows
        sites = pl.concat([block.rows for block, _ in self._table(self.sites, ("locationID",))])
        sites = sites.select(
            c for c in sites.columns if c not in rows.columns or c == "locationID"
        ).unique("locationID", keep="first")
        return rows.join(sites, on="locationID", how="left", maintain_order="left").fill_null("")

    def _table(self, name: str, needed: tuple[str, ...]) -> Iterator[tuple[Block, int]]:
        where = f"{name} in {self.path.name}"
        with self.container.open(name) as file:
            sample = file.read(1 << 16)
        try:
            layout = sniff(sample)
        except RecordsError as error:
            raise RecordsError(f"{where} holds no table: {error}. Export it again.") from None
        named = {term: column for term, column in self.columns.items() if column in layout.columns}
        used = match_columns(layout.columns, named, where)
        # Here SPECIES is the name of what was counted, a number in some exports.
        used = {
            column: "scientificName"
            if term == "species" and "scientificName" not in used.values()
            else term
            for column, term in used.items()
        }
        have = set(used.values())
        for term in needed:
            if term not in have:
                raise RecordsError(
                    f"{where} has no column for {term}; it has {', '.join(layout.columns[:20])}. "
                    "Name it in records.columns."
                )
        if name != self.sites and not ({"eventDate"} <= have or {"year", "month", "day"} <= have):
            raise RecordsError(
                f"{where} has no column for eventDate, nor year, month and day; it has "
                f"{', '.join(layout.columns[:20])}. Name it in records.columns."
            )
        text = DelimitedText(where, lambda: self.container.open(name), layout, used)
        # Site 101 of one table is 101.0 in another, and 007 is 7, where a program took numbers.
        site = pl.col("locationID").str.strip_chars().str.replace(r"^0*(\d+?)(?:\.0+)?$", "$1")
        for block, position in text.blocks():
            rows = block.rows.with_columns(site) if "locationID" in have else block.rows
            yield Block(rows, block.numbers, block.malformed), position


class UkbmsReader:
    """Tables of visits, counts and sites in one folder or zip archive, known by their names."""

    name = "ukbms"
    summary = "UKBMS site-visit tables: *visit*, *count* and *site* CSV files in a folder or zip"

    def recognises(self, path: Path) -> bool:
        """Tell whether there are a table of visits and one of counts."""
        if not path.is_dir() and not is_zip(path):
            return False
        names = open_container(path).names
        return _find(names, "visit") is not None and _find(names, "count") is not None

    def open(self, path: Path, columns: Mapping[str, str]) -> SiteVisitTables:
        """
        Open the tables.

        Raises
        ------
        MissingFileError, RecordsError
            A table is missing or does not fit.
        """
        if not path.exists():
            raise MissingFileError(f"There are no records at {path}. Correct records.path.")
        if not path.is_dir() and not is_zip(path):
            raise RecordsError(
                f"{path} is one file; UKBMS site-visit tables are a folder or zip archive of "
                "visits, counts and sites."
            )
        container = open_container(path)
        visits, counts, sites = (
            _find(container.names, word) for word in ("visit", "count", "site")
        )
        if counts is None:
            held = ", ".join(container.names[:8]) or "nothing"
            raise RecordsError(
                f"{path} has no table of counts (a CSV file with 'count' in its name); it holds "
                f"{held}."
            )
        opened = SiteVisitTables(path, container, counts, visits, sites, columns)
        if visits is None:
            opened.extra_notes.append(
                f"{path.name} has no table of visits; only visits with a count are known."
            )
        return opened


def _find(names: tuple[str, ...], word: str) -> str | None:
    """Return the table with a word in its name; a table of site visits is one of visits."""
    found = [
        n
        for n in names
        if word in key(Path(n).stem) and Path(n).suffix.lower() in _SUFFIXES and "__MACOSX" not in n
    ]
    if word == "site":
        found = [
            n
            for n in found
            if "visit" not in key(Path(n).stem) and "count" not in key(Path(n).stem)
        ]
    return min(found, key=len) if found else None


def _with_visits(rows: pl.DataFrame) -> pl.DataFrame:
    """
    Name visits by site and day: the tables have no id of their own that all exports share.

    Dates are compared as days, for ``1/6/2018`` in one table may be ``01/06/2018`` in the other;
    what is no day is compared as text. ``eventDate`` is made of year, month and day where need be.
    """
    if "eventDate" not in rows.columns:
        rows = rows.with_columns(eventDate=pl.lit(""))
    parts = [term for term in DATE_TERMS if term in rows.columns]
    for term in ("year", "month", "day"):
        if term not in parts:
            rows = rows.with_columns(pl.lit("").alias(term))
            parts.append(term)
    texts = rows.select(parts).unique(maintain_order=True).with_row_index("code")
    other = read_days(texts, day_first=False).select("code", pl.col("day").alias("other"))
    days = read_days(texts, day_first=True).join(other, on="code")
    day = pl.coalesce("day", "other").dt.strftime("%Y-%m-%d").alias("visit_day")
    dates = texts.join(days.select("code", day), on="code", maintain_order="left").drop("code")
    text = pl.col("eventDate").str.strip_chars()
    rows = rows.join(dates, on=parts, how="left", maintain_order="left", nulls_equal=True)
    named = pl.coalesce("visit_day", text)
    if "completeness" not in rows.columns:  # a walk of the scheme tells every species seen
        rows = rows.with_columns(completeness=pl.lit("complete"))
    return rows.with_columns(
        pl.format("{}|{}", pl.col("locationID").str.strip_chars(), named).alias("eventID"),
        pl.when(text == "")
        .then(pl.col("visit_day").fill_null(""))
        .otherwise(text)
        .alias("eventDate"),
    ).drop("visit_day")
