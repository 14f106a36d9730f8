"""Read Parquet tables, in one file or a folder of files, and the geometry of GeoParquet."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj

from butterfly_sdm.errors import RecordsError
from data_prep.records.files.cells import as_text
from data_prep.records.files.geometry import PLACES, places_of
from data_prep.records.readers.reader import Block

PARQUET_ROWS = 200_000


@dataclass
class ParquetRows:
    """A Parquet table; see :class:`data_prep.records.files.stored.Rows`."""

    path: Path
    columns: tuple[str, ...]
    bytes: int
    geometry: str | None = None
    crs: str | None = None
    known: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def where(self) -> str:
        """Its name, for messages."""
        return self.path.name

    def blocks(self, wanted: Mapping[str, str]) -> Iterator[tuple[Block, int]]:
        """
        Yield the wanted columns.

        Raises
        ------
        RecordsError
            The file is damaged, or one of a folder lacks a column.
        """
        placed = {name: term for name, term in wanted.items() if name in PLACES.values()}
        stored = [name for name in wanted if name not in placed]
        read = [*stored, *([self.geometry] if placed and self.geometry else [])]
        done = 0
        try:
            files = [pq.ParquetFile(path) for path in parquet_files(self.path)]
            self._check(files, read)
            total = max(sum(file.metadata.num_rows for file in files), 1)
            batches = (file.iter_batches(PARQUET_ROWS, columns=read) for file in files)
            for batch in chain.from_iterable(batches):
                table = pa.Table.from_batches([batch])
                texts = cast(pl.DataFrame, pl.from_arrow(table.select(stored)))
                rows = texts.select(
                    as_text(batch.schema.field(name).type, name).alias(wanted[name])
                    for name in stored
                )
                if placed:
                    wkb = table[self.geometry].to_numpy()
                    of_shape = places_of(wkb, self.crs, self.where, self.notes)
                    rows = rows.with_columns(
                        of_shape[name].alias(term) for name, term in placed.items()
                    )
                numbers = pl.Series("row", np.arange(done + 1, done + 1 + len(batch)), pl.UInt32)
                done += len(batch)
                yield Block(rows, numbers), self.bytes * done // total
        except (pa.ArrowException, ValueError, OSError, pl.exceptions.PolarsError) as error:
            if isinstance(error, RecordsError):
                raise
            raise RecordsError(
                f"{self.path} cannot be read to its end ({error}). Make it again."
            ) from error

    def _check(self, files: list[pq.ParquetFile], read: list[str]) -> None:
        names = parquet_files(self.path)
        for place, file in zip(names, files, strict=True):
            lacking = [name for name in read if name not in file.schema_arrow.names]
            if lacking:
                raise RecordsError(
                    f"{place} has no column {lacking[0]!r}, which {names[0].name} beside it has. "
                    "Download the folder again, or name one file of it in records.path."
                )


def open_parquet(path: Path) -> ParquetRows:
    """
    Open a Parquet table.

    Raises
    ------
    RecordsError
        It is none, or keeps a column in the names of its folders.
    """
    files = parquet_files(path)
    if any("=" in part for file in files for part in file.relative_to(path).parts[:-1]):
        raise RecordsError(
            f"{path} keeps a column in the names of its folders, which is not read. Write it "
            "as one Parquet file."
        )
    try:
        schema = pq.read_schema(files[0])
    except (pa.ArrowException, ValueError, OSError) as error:
        raise RecordsError(f"{path} is not a Parquet table ({error}). Make it again.") from error
    size = sum(file.stat().st_size for file in files)
    rows = ParquetRows(path, tuple(schema.names), size)
    described = (schema.metadata or {}).get(b"geo")
    return rows if described is None else _with_geometry(rows, described)


def _with_geometry(rows: ParquetRows, described: bytes) -> ParquetRows:
    """Return the table with the places of its geometry, as GeoParquet describes it."""
    try:
        geo: dict[str, Any] = json.loads(described)
        name = geo["primary_column"]
        about = geo["columns"][name]
        encoding, crs = about["encoding"], about.get("crs", "OGC:CRS84")
        system = None if crs is None else pyproj.CRS.from_user_input(crs).to_wkt()
    except (ValueError, KeyError, TypeError, pyproj.exceptions.CRSError) as error:
        raise RecordsError(
            f"{rows.path} says of its geometry what cannot be read ({error}). Write it again, as "
            "GeoParquet or GeoPackage."
        ) from error
    if encoding != "WKB":
        raise RecordsError(
            f"{rows.path} keeps its geometry as {encoding}, which is not read. Write it as WKB "
            "(geopandas: to_parquet(geometry_encoding='WKB')) or as a GeoPackage."
        )
    rows.geometry, rows.crs, rows.known = name, system, PLACES
    rows.columns = (*(c for c in rows.columns if c != name), *PLACES.values())
    return rows


def parquet_files(path: Path) -> list[Path]:
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
