"""
Read single tables of records: CSV, TSV or Parquet, with the layouts of GBIF and the NBN Atlas known
by name.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from butterfly_sdm.errors import MissingFileError, RecordsError
from data_prep.records.columns import key, match_columns, require
from data_prep.records.readers.containers import Container, is_zip, open_container
from data_prep.records.readers.delimited import DelimitedText
from data_prep.records.readers.layout import layout_notes, sniff
from data_prep.records.readers.reader import Block

PARQUET_ROWS = 200_000
_TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".tab")


@dataclass
class TextTable:
    """An opened text table; a :class:`~data_prep.records.readers.reader.RecordFile`."""

    path: Path
    text: DelimitedText
    bytes: int
    day_first: bool | None = None
    licence: str | None = None
    citation: str | None = None
    extra_notes: list[str] = field(default_factory=list)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the file."""
        return (*self.extra_notes, *self.text.notes)

    def blocks(self) -> Iterator[tuple[Block, int]]:
        """Yield the rows."""
        return self.text.blocks()

    def events(self) -> None:
        """A single table has no events beside its records."""
        return None


@dataclass
class ParquetTable:
    """An opened Parquet table; a :class:`~data_prep.records.readers.reader.RecordFile`."""

    path: Path
    columns: dict[str, str]
    bytes: int
    day_first: bool | None = None
    licence: str | None = None
    citation: str | None = None
    notes: tuple[str, ...] = ()

    def blocks(self) -> Iterator[tuple[Block, int]]:
        """
        Yield the rows.

        Raises
        ------
        RecordsError
            The file is damaged.
        """
        done = 0
        try:
            files = [pq.ParquetFile(path) for path in _parquet_files(self.path)]
            total = max(sum(file.metadata.num_rows for file in files), 1)
            batches = (
                file.iter_batches(PARQUET_ROWS, columns=list(self.columns)) for file in files
            )
            for batch in chain.from_iterable(batches):
                rows = cast(pl.DataFrame, pl.from_arrow(pa.Table.from_batches([batch]))).select(
                    _as_text(batch.schema.field(name).type, name).alias(term)
                    for name, term in self.columns.items()
                )
                numbers = pl.Series(
                    "row", np.arange(done + 1, done + 1 + len(rows), dtype=np.uint32)
                )
                done += len(rows)
                yield Block(rows, numbers), self.bytes * done // total
        except (pa.ArrowException, ValueError, OSError, pl.exceptions.PolarsError) as error:
            raise RecordsError(
                f"{self.path} cannot be read to its end ({error}). Make it again."
            ) from error

    def events(self) -> None:
        """A single table has no events beside its records."""
        return None


def _as_text(kind: pa.DataType, name: str) -> pl.Expr:
    column = pl.col(name)
    if pa.types.is_timestamp(kind):
        column = column.dt.to_string("%Y-%m-%dT%H:%M:%S")
    elif pa.types.is_floating(kind):
        # A whole number kept as a float, such as a year, is still a whole number.
        whole = column.fill_nan(None).round() == column
        column = (
            pl.when(whole)
            .then(column.cast(pl.Int64, strict=False).cast(pl.String))
            .otherwise(column.cast(pl.String))
        )
    else:
        column = column.cast(pl.String)
    return column.fill_null("")


class TableReader:
    """
    Any CSV, TSV or Parquet table; headers are recognised, others are named in ``records.columns``.
    """

    name = "table"
    summary = (
        "CSV, TSV or Parquet table (also .gz, or alone in a zip); unusual headers named in "
        "records.columns"
    )
    day_first: bool | None = None

    def recognises(self, path: Path) -> bool:
        """Tell whether it is a text or Parquet file, or a zip archive that holds one text file."""
        if path.is_dir():
            return bool(_parquet_files(path))
        if is_zip(path):
            # A lone readme is no table.
            return len(_text_names(open_container(path))) == 1 and bool(
                match_columns(sorted(_header(self, path, raw=True)), {}, "")
            )
        return path.is_file() and _suffix(path) in (*_TEXT_SUFFIXES, ".parquet")

    def open(self, path: Path, columns: Mapping[str, str]) -> TextTable | ParquetTable:
        """
        Open a table.

        Raises
        ------
        MissingFileError, RecordsError
            There is no such file, or it is no table of records.
        """
        folder = path.is_dir() and _parquet_files(path)
        if not folder and not path.is_file():
            raise MissingFileError(f"There are no records at {path}. Correct records.path.")
        if folder or path.suffix.lower() == ".parquet":
            return self._open_parquet(path, columns)
        if is_zip(path):
            container = open_container(path)
            names = _text_names(container)
            if len(names) != 1:
                held = ", ".join(container.names[:5]) or "nothing"
                raise RecordsError(
                    f"{path} holds {held}; a zip archive of records holds one table, or is a "
                    "Darwin Core Archive with "
                    "occurrence.txt. Unpack it and name the table in records.path."
                )
            opener = partial(container.open, names[0])
            size, where = container.size(names[0]), f"{names[0]} in {path.name}"
        else:
            opener = partial(_open_text, path)
            size, where = path.stat().st_size, path.name
        with opener() as file:
            sample = file.read(1 << 16)
        try:
            layout = sniff(sample, named=set(columns.values()))
        except RecordsError as error:
            raise RecordsError(
                f"{where} holds no records: {error}. Download or export it again."
            ) from None
        used = match_columns(layout.columns, self.known(layout.columns) | dict(columns), where)
        require(list(used.values()), where, layout.columns)
        text = DelimitedText(where, opener, layout, used)
        notes = layout_notes(layout, where)
        return TextTable(path, text, size, self.day_first, extra_notes=notes)

    def known(self, header: tuple[str, ...]) -> dict[str, str]:
        """Return columns that mean something else here than elsewhere."""
        return {}

    def _open_parquet(self, path: Path, columns: Mapping[str, str]) -> ParquetTable:
        files = _parquet_files(path)
        if any("=" in part for file in files for part in file.relative_to(path).parts[:-1]):
            raise RecordsError(
                f"{path} keeps a column in the names of its folders, which is not read. Write it "
                "as one Parquet file."
            )
        try:
            schemas = [pq.read_schema(file) for file in files]
            schema = schemas[0]
        except (pa.ArrowException, ValueError, OSError) as error:
            raise RecordsError(
                f"{path} is not a Parquet table ({error}). Make it again."
            ) from error
        used = match_columns(
            schema.names, self.known(tuple(schema.names)) | dict(columns), path.name
        )
        require(list(used.values()), path.name, schema.names)
        for file, held in zip(files, schemas, strict=True):
            lacking = [name for name in used if name not in held.names]
            if lacking:
                raise RecordsError(
                    f"{file} has no column {lacking[0]!r}, which {files[0].name} beside it has. "
                    "Download the folder again, or name one file of it in records.path."
                )
        size = sum(file.stat().st_size for file in files)
        return ParquetTable(path, used, size, self.day_first)


class GbifReader(TableReader):
    """
    GBIF's simple download: tab-separated whatever its name says, with quotes around cells where a
    program saved it again.
    """

    name = "gbif"
    summary = "GBIF simple download (TSV, also in its zip, or Parquet)"

    def recognises(self, path: Path) -> bool:
        """Tell whether the header is GBIF's."""
        return super().recognises(path) and {"gbifid", "datasetkey"} <= _header(self, path)


class NbnReader(TableReader):
    """
    The NBN Atlas' record download: quoted CSV with spaced headers, or headers in Darwin Core's way.
    """

    name = "nbn"
    summary = "NBN Atlas record download (CSV)"
    day_first = True

    def recognises(self, path: Path) -> bool:
        """Tell whether the header is the Atlas'."""
        return super().recognises(path) and "nbnatlasrecordid" in _header(self, path)

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


def _text_names(container: Container) -> list[str]:
    names = [
        n
        for n in container.names
        if Path(n).suffix.lower() in _TEXT_SUFFIXES and not n.startswith("__MACOSX/")
    ]
    side = ("citation", "readme", "rights", "headings", "license", "licence")
    return (
        [n for n in names if not Path(n).stem.lower().startswith(side)] if len(names) > 1 else names
    )


def _parquet_files(path: Path) -> list[Path]:
    """Return the Parquet files that make up a table; none unless all in the folder are such."""
    if not path.is_dir():
        return [path]
    files = sorted(held for held in path.rglob("*") if held.is_file() and held.name[0] not in "._")
    files = [file for file in files if file.stat().st_size]  # GBIF leaves an empty one
    for file in files:
        with file.open("rb") as opened:
            if opened.read(4) != b"PAR1":
                return []
    return files


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def _open_text(path: Path) -> BinaryIO:
    return (
        cast(BinaryIO, gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")
    )


def _header(reader: TableReader, path: Path, *, raw: bool = False) -> set[str]:
    """
    Return the names of the columns, simplified unless ``raw``; none where they cannot be read.
    """
    if path.is_dir() or path.suffix.lower() == ".parquet":
        try:
            names = pq.read_schema(_parquet_files(path)[0]).names
            return {name if raw else key(name) for name in names}
        except (pa.ArrowException, ValueError, OSError):
            return set()
    try:
        if is_zip(path):
            container = open_container(path)
            with container.open(_text_names(container)[0]) as file:
                sample = file.read(1 << 16)
        else:
            with _open_text(path) as file:
                sample = file.read(1 << 16)
        return {name if raw else key(name) for name in sniff(sample).columns}
    except (RecordsError, OSError, EOFError):
        return set()
