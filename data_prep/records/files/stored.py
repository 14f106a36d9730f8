"""Open whatever file holds tables: delimited text, Parquet, a workbook, a layer of a map."""

from __future__ import annotations

import gzip
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from butterfly_sdm.errors import MissingFileError, RecordsError
from data_prep.records.files.containers import Container, is_zip, open_container
from data_prep.records.files.delimited import DelimitedText
from data_prep.records.files.layout import Layout, layout_notes, sniff
from data_prep.records.files.parquet import ParquetRows, open_parquet, parquet_files
from data_prep.records.files.vector import is_map, open_map
from data_prep.records.files.workbook import is_workbook, open_workbook
from data_prep.records.readers.reader import Block

TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".tab")


class Rows(Protocol):
    """
    A stored table.

    Attributes
    ----------
    known
        Terms whose column the kind of file tells, such as the places of a map.
    bytes
        Size of all that will be read.
    notes
        What was passed over, in sentences.
    """

    known: Mapping[str, str]
    bytes: int
    notes: list[str]

    @property
    def where(self) -> str:
        """Its name, for messages."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, ``""`` for one without a name."""
        ...

    def blocks(self, wanted: Mapping[str, str]) -> Iterator[tuple[Block, int]]:
        """Yield the columns ``{name: term}``, each block with the bytes read so far."""
        ...


@dataclass
class TextRows:
    """Delimited text, as :class:`Rows`."""

    text: DelimitedText
    bytes: int
    notes: list[str] = field(default_factory=list)
    known: Mapping[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """Its name, for messages."""
        return self.text.name

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return self.text.layout.columns

    @property
    def layout(self) -> Layout:
        """How it is written."""
        return self.text.layout

    def blocks(self, wanted: Mapping[str, str]) -> Iterator[tuple[Block, int]]:
        """Yield the wanted columns."""
        text = replace(self.text, wanted=dict(wanted), notes=[])
        for found in text.blocks():
            yield found
            for note in text.notes:
                if note not in self.notes:
                    self.notes.append(note)


def holds_tables(path: Path) -> bool:
    """Tell whether a path is of a kind that :func:`open_tables` opens, and holds a table."""
    if path.is_dir():
        return is_map(path) or bool(parquet_files(path))
    if is_map(path) or is_workbook(path):
        return True
    if is_zip(path):
        return len(text_names(open_container(path))) == 1
    return path.is_file() and suffix(path) in (*TEXT_SUFFIXES, ".xls", ".parquet", ".geoparquet")


def open_tables(path: Path, named: Collection[str] = ()) -> list[Rows]:
    """
    Open the tables of a file: one, but for workbooks and maps with several sheets or layers.

    Parameters
    ----------
    named
        Columns that the user names; they help to find a header below other lines.

    Raises
    ------
    MissingFileError, RecordsError
        There is no such file, or it is no table.
    """
    folder = path.is_dir() and (is_map(path) or bool(parquet_files(path)))
    if not folder and not path.is_file():
        raise MissingFileError(f"There are no records at {path}. Correct records.path.")
    if is_map(path):
        return _chosen(path, {rows.layer: rows for rows in open_map(path)})
    if path.is_dir() or suffix(path) in (".parquet", ".geoparquet"):
        found: ParquetRows = open_parquet(path)
        return [found]
    if is_workbook(path):
        return _chosen(path, {rows.title: rows for rows in open_workbook(path, named)})
    return [_open_text(path, named)]


_TABLES: ContextVar[tuple[str, ...]] = ContextVar("tables", default=())


def chosen_tables() -> tuple[str, ...]:
    """Return the names of the sheets and layers that are read; none where all are."""
    return _TABLES.get()


@contextmanager
def only_tables(names: Sequence[str]) -> Iterator[None]:
    """Read only sheets and layers of these names; all of them where none is named."""
    before = _TABLES.set(tuple(names))
    try:
        yield
    finally:
        _TABLES.reset(before)


def _chosen(path: Path, tables: Mapping[str, Rows]) -> list[Rows]:
    """Return the tables that were named, all where none was."""
    if not chosen_tables():
        return list(tables.values())
    found = [rows for name, rows in tables.items() if name in chosen_tables()]
    if not found:
        named, held = ", ".join(chosen_tables()), ", ".join(tables)
        raise RecordsError(
            f"{path} has no sheet or layer {named}, which records.tables names; it has {held}. "
            "Name one of them."
        )
    return found


def _open_text(path: Path, named: Collection[str]) -> TextRows:
    if is_zip(path):
        container = open_container(path)
        names = text_names(container)
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
        opener = partial(_bytes, path)
        size, where = path.stat().st_size, path.name
    with opener() as file:
        sample = file.read(1 << 16)
    try:
        layout = sniff(sample, named=set(named))
    except RecordsError as error:
        raise RecordsError(
            f"{where} holds no records: {error}. Download or export it again."
        ) from None
    text = DelimitedText(where, opener, layout, {})
    return TextRows(text, size, layout_notes(layout, where))


def header(path: Path) -> tuple[str, ...]:
    """Return the names of the columns of all tables of a file; none where they cannot be read."""
    try:
        state = path.stat()
    except OSError:
        return ()
    return _header(path, state.st_size, state.st_mtime_ns, chosen_tables())


@lru_cache(maxsize=64)  # each reader asks
def _header(path: Path, size: int, time: int, chosen: tuple[str, ...]) -> tuple[str, ...]:
    del size, time, chosen
    try:
        return tuple(name for table in open_tables(path) for name in table.columns)
    except (RecordsError, MissingFileError, OSError, EOFError, ValueError):
        return ()


def text_names(container: Container) -> list[str]:
    """Return the text tables of an archive, without those that only describe others."""
    names = [
        n
        for n in container.names
        if Path(n).suffix.lower() in TEXT_SUFFIXES and not n.startswith("__MACOSX/")
    ]
    side = ("citation", "readme", "rights", "headings", "license", "licence")
    return (
        [n for n in names if not Path(n).stem.lower().startswith(side)] if len(names) > 1 else names
    )


def suffix(path: Path) -> str:
    """Return the suffix in small letters, that before ``.gz`` where a file is packed."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def _bytes(path: Path) -> BinaryIO:
    return (
        cast(BinaryIO, gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")
    )
