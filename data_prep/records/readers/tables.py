"""
Read tables of records, wherever they are stored: text, Parquet, sheets of a workbook, layers of a
map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import polars as pl

from butterfly_sdm.errors import RecordsError
from data_prep.records.columns import key, match_columns, require
from data_prep.records.files.delimited import block_end
from data_prep.records.files.stored import Rows, header, holds_tables, open_tables
from data_prep.records.readers.reader import Block
from data_prep.records.readers.wide import Spread, spread_over


@dataclass(frozen=True)
class Part:
    """
    A table of a file and what its columns mean.

    Attributes
    ----------
    used
        Name of a column: its term.
    spread
        The species that have columns of their own, None where a column names the species.
    """

    rows: Rows
    used: Mapping[str, str]
    spread: Spread | None = None

    def blocks(self) -> Iterator[tuple[Block, int]]:
        """Yield sightings."""
        return self.rows.blocks(self.used) if self.spread is None else self.spread.sightings()


@dataclass
class RecordTable:
    """Opened tables of one file; a :class:`~data_prep.records.readers.reader.RecordFile`."""

    path: Path
    parts: Sequence[Part]
    day_first: bool | None = None
    licence: str | None = None
    citation: str | None = None
    extra_notes: list[str] = field(default_factory=list)
    words: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the file."""
        told = [*self.extra_notes, *(note for part in self.parts for note in part.rows.notes)]
        told += [note for part in self.parts if part.spread for note in part.spread.notes]
        return tuple(dict.fromkeys(told))

    @property
    def bytes(self) -> int:
        """Size of all that will be read."""
        return sum(part.rows.bytes for part in self.parts)

    def blocks(self) -> Iterator[tuple[Block, int]]:
        """Yield the rows, numbered on from table to table."""
        return self._numbered([part.blocks for part in self.parts])

    def events(self) -> Iterator[tuple[Block, int]] | None:
        """Yield the surveys, where species have columns: each row is one."""
        spread = [part.spread for part in self.parts if part.spread is not None]
        if len(spread) < len(self.parts):
            return None
        return self._numbered([one.surveys for one in spread])

    def _numbered(
        self, tables: Sequence[Callable[[], Iterator[tuple[Block, int]]]]
    ) -> Iterator[tuple[Block, int]]:
        before = offset = 0
        for part, read in zip(self.parts, tables, strict=True):
            last = 0
            for block, position in read():
                last = block_end(block, last)
                yield self._meant(block).after(before), offset + position
            before += last
            offset += part.rows.bytes

    def _meant(self, block: Block) -> Block:
        """Return a block in which the words of the program stand as what they mean."""
        held = [term for term in self.words if term in block.rows.columns]
        if not held:
            return block
        meant = [pl.col(t).str.strip_chars().replace(dict(self.words[t])) for t in held]
        same = {term: text for term, text in block.same.items() if term not in held}
        return replace(block, rows=block.rows.with_columns(meant), same=same)


class TableReader:
    """
    Any table: text, Parquet, workbook or map; headers are recognised, others are named in
    ``records.columns``.
    """

    name = "table"
    summary = (
        "a CSV, TSV (also .gz, or alone in a zip), Parquet, Excel, GeoPackage, shapefile, GeoJSON "
        "or KML; unusual headers named in records.columns"
    )
    day_first: bool | None = None
    ignored: frozenset[str] = frozenset()
    """Simplified names of columns that mean something else than they seem to."""
    words: Mapping[str, Mapping[str, str]] = MappingProxyType({})
    """Term: texts that a program writes, and what they mean."""

    def recognises(self, path: Path) -> bool:
        """
        Tell whether it is a table; one alone in a zip archive must name what is known.

        Parameters
        ----------
        path
            A file.

        Returns
        -------
        bool
            Whether it is.
        """
        if not holds_tables(path):
            return False
        if path.suffix.lower() == ".zip":  # a lone readme is no table
            return bool(match_columns(sorted(set(header(path))), {}, ""))
        return True

    def open(self, path: Path, columns: Mapping[str, str]) -> RecordTable:
        """
        Open a table.

        Parameters
        ----------
        path
            A file.
        columns
            A term of :data:`data_prep.records.readers.reader.TERMS`: its name in the file.

        Returns
        -------
        RecordTable
            All tables of the file that hold records.

        Raises
        ------
        MissingFileError, RecordsError
            There is no such file, or it is no table of records.
        """
        tables = open_tables(path, set(columns.values()))
        parts, errors = [], []
        for rows in tables:
            try:
                parts.append(self._part(rows, columns))
            except RecordsError as error:
                errors.append((rows, error))
        if not parts:
            raise max(errors, key=lambda told: told[0].bytes)[1]
        notes = self.told(parts)
        if errors:
            passed = ", ".join(rows.where for rows, _ in errors)
            notes.append(f"Not read, for want of a date, place or species: {passed}.")
        if len(parts) > 1:
            read = ", ".join(part.rows.where for part in parts)
            notes.append(
                f"{path.name} has several tables, which were read together: {read}. If only some "
                "of them hold records, name these in records.tables."
            )
        return RecordTable(path, parts, self.day_first, extra_notes=notes, words=self.words)

    def _part(self, rows: Rows, columns: Mapping[str, str]) -> Part:
        named = [name for name in rows.columns if name and name not in rows.known.values()]
        stated = dict(rows.known) | self.known(rows.columns) | dict(columns)
        used = match_columns(rows.columns, stated, rows.where)
        used = {
            name: term
            for name, term in used.items()
            if key(name) not in self.ignored or name in stated.values()
        }
        have = set(used.values())
        if not have & {"scientificName", "species"}:
            spread = spread_over(rows, used)
            if spread is not None:
                require([*spread.visit.values(), "species"], rows.where, named)
                told = dict(spread.visit) | {name: f"count of {name}" for name in spread.species}
                return Part(rows, told, spread)
        require(list(used.values()), rows.where, named)
        return Part(rows, used)

    def known(self, header: tuple[str, ...]) -> dict[str, str]:
        """
        Return columns that mean something else here than elsewhere.

        Parameters
        ----------
        header
            Names of the columns.

        Returns
        -------
        dict of str
            A term: its name in the file.
        """
        return {}

    def told(self, parts: Sequence[Part]) -> list[str]:
        """
        Return what a user should know of the layout.

        Parameters
        ----------
        parts
            The tables that will be read.

        Returns
        -------
        list of str
            Sentences.
        """
        return []


def keys(path: Path) -> set[str]:
    """Return the simplified names of the columns of a file."""
    return {key(name) for name in header(path)}


class GbifReader(TableReader):
    """
    GBIF's simple download: tab-separated whatever its name says, with quotes around cells where a
    program saved it again.
    """

    name = "gbif"
    summary = "GBIF simple download (TSV, also in its zip, or Parquet)"

    def recognises(self, path: Path) -> bool:
        """Tell whether the header is GBIF's."""
        return super().recognises(path) and {"gbifid", "datasetkey"} <= keys(path)


class NbnReader(TableReader):
    """
    The NBN Atlas' record download: quoted CSV with spaced headers, or headers in Darwin Core's way.
    """

    name = "nbn"
    summary = "NBN Atlas record download (CSV)"
    day_first = True

    def recognises(self, path: Path) -> bool:
        """Tell whether the header is the Atlas'."""
        return super().recognises(path) and "nbnatlasrecordid" in keys(path)

    def known(self, header: tuple[str, ...]) -> dict[str, str]:
        """Prefer the Atlas' own reading of place over what the recorder typed."""
        chosen = {
            "gridReference": ("OSGR", "Grid reference", "gridReference"),
            "decimalLatitude": (
                "Latitude (WGS84)",
                "decimalLatitudeWGS84",
                "Decimal latitude (WGS84)",
            ),
            "decimalLongitude": (
                "Longitude (WGS84)",
                "decimalLongitudeWGS84",
                "Decimal longitude (WGS84)",
            ),
            "eventDate": ("Start date", "eventDate", "Event Date"),
            "scientificName": ("Scientific name", "scientificName"),
            "datasetName": ("Dataset name", "Data resource name"),
        }
        return {
            term: name for term, names in chosen.items() for name in names[::-1] if name in header
        }
