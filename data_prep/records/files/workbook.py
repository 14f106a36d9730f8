"""Read the sheets of workbooks: xlsx, xls, xlsb and ods."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from butterfly_sdm.errors import RecordsError
from data_prep.records.columns import match_columns
from data_prep.records.files.cells import cell_text, unique_names
from data_prep.records.files.containers import is_zip, open_container
from data_prep.records.readers.reader import Block

SUFFIXES = (".xlsx", ".xlsm", ".xls", ".xlsb", ".ods")
_OLE = b"\xd0\xcf\x11\xe0"
_ROWS = 50_000
_MOST_LINES_ABOVE = 30
_FEWEST_KNOWN = 3
_FEWEST_CELLS = 2  # of a header; a title is one cell


@dataclass
class SheetRows:
    """A sheet of a workbook; see :class:`data_prep.records.files.stored.Rows`."""

    where: str
    columns: tuple[str, ...]
    rows: list[tuple[int, list[str]]]  # number in the sheet below the header, cells
    bytes: int
    known: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    title: str = ""

    def blocks(self, wanted: Mapping[str, str]) -> Iterator[tuple[Block, int]]:
        """Yield the wanted columns."""
        places = {self.columns.index(name): term for name, term in wanted.items()}
        for start in range(0, len(self.rows), _ROWS):
            held = self.rows[start : start + _ROWS]
            texts = {
                term: pl.Series([cells[place] for _, cells in held], dtype=pl.String)
                for place, term in places.items()
            }
            numbers = np.array([number for number, _ in held], dtype=np.uint32)
            done = self.bytes * min(start + _ROWS, len(self.rows)) // max(len(self.rows), 1)
            yield Block(pl.DataFrame(texts), pl.Series("row", numbers)), done


def is_workbook(path: Path) -> bool:
    """Tell whether a file is a workbook, by its name, or by what is in it."""
    if not path.is_file() or path.name[:2] == "~$":
        return False
    if path.suffix.lower() == ".xls":  # many programs call text so
        with path.open("rb") as file:
            return file.read(4) in (_OLE, b"PK\x03\x04")
    if path.suffix.lower() in SUFFIXES:
        return True
    return is_zip(path) and "xl/workbook.xml" in open_container(path).names


def open_workbook(path: Path, named: Collection[str] = ()) -> list[SheetRows]:
    """
    Open the visible sheets of a workbook that hold something.

    A value of merged cells stands in each of them; blank rows are no rows.

    Raises
    ------
    RecordsError
        It is damaged or empty, or the package that reads workbooks is not installed.
    """
    try:
        import python_calamine
    except ImportError as error:
        raise RecordsError(
            f"{path} is a workbook: install python-calamine to read it (pip install "
            "python-calamine), or save the sheet of records as CSV."
        ) from error
    try:
        book = python_calamine.CalamineWorkbook.from_path(str(path))
        shown = [sheet for sheet in book.sheets_metadata if _visible(sheet)]
        found = [_sheet(path, book, sheet.name, named, len(shown) > 1) for sheet in shown]
        hidden = len(book.sheets_metadata) - len(shown)
    except (python_calamine.CalamineError, OSError, ValueError) as error:
        raise RecordsError(
            f"{path} cannot be read as a workbook ({error}). Does it need a password? Save the "
            "sheet of records as CSV."
        ) from error
    held = [sheet for sheet in found if sheet is not None and sheet.rows]
    if not held:
        raise RecordsError(f"{path} has no sheet with rows. Save the records again.")
    size = path.stat().st_size
    total = sum(len(sheet.rows) for sheet in held)
    for sheet in held:
        sheet.bytes = size * len(sheet.rows) // total
    if hidden:
        held[0].notes.append(f"{path.name} has {hidden} hidden sheets, which were passed over.")
    return held


def _visible(sheet: Any) -> bool:
    return str(sheet.visible).endswith("Visible") and str(sheet.typ).endswith("WorkSheet")


def _sheet(
    path: Path, book: Any, name: str, named: Collection[str], several: bool
) -> SheetRows | None:
    sheet = book.get_sheet_by_name(name)
    cells = [[cell_text(c) for c in row] for row in sheet.to_python(skip_empty_area=False)]
    for (top, left), (bottom, right) in sheet.merged_cell_ranges or ():
        for row in range(top, min(bottom + 1, len(cells))):
            for column in range(left, min(right + 1, len(cells[row]))):
                cells[row][column] = cells[top][left]
    place = _header_place(cells, named)
    if place is None:
        return None
    header = [" ".join(text.split()) for text in cells[place]]
    width = max((n + 1 for n, text in enumerate(header) if text), default=0)
    where = f"sheet {name} of {path.name}" if several else path.name
    rows = [
        (number, row[:width])
        for number, row in enumerate(cells[place + 1 :], start=1)
        if any(row[:width])
    ]
    found = SheetRows(where, unique_names(header[:width]), rows, 0, title=name)
    above = [row for row in cells[:place] if any(row)]
    if above:
        first = next(text for text in above[0] if text)
        found.notes.append(
            f"{where} has {len(above)} rows above its header, which were passed over; the first "
            f"is {first[:80]!r}."
        )
    return found


def _header_place(cells: list[list[str]], named: Collection[str]) -> int | None:
    """Return the row of the header: the first, or one below titles that names columns."""
    filled = [
        place
        for place, row in enumerate(cells)
        if len({*row} - {""}) >= min(_FEWEST_CELLS, len(row))
    ][: _MOST_LINES_ABOVE + 1]
    if not filled:
        return None

    def known(place: int) -> int:
        names = cells[place]
        return len(match_columns(names, {}, "")) + len(set(names) & set(named))

    if known(filled[0]) >= 2:
        return filled[0]
    return next((place for place in filled if known(place) >= _FEWEST_KNOWN), filled[0])
