"""
Read delimited text in blocks of whole rows, however large the file and however broken the rows.

pyarrow cuts all rows of a block at once; where that is not safe, because quotes are used in no
orderly way, they are cut one by one. Only wanted columns are kept. The next block is read
meanwhile.
"""

from __future__ import annotations

import codecs
import csv
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from typing import BinaryIO, cast

import numpy as np
import polars as pl
import pyarrow as pa
from pyarrow import csv as arrow_csv

from butterfly_sdm.errors import RecordsError
from data_prep.records.files.layout import Layout as Layout
from data_prep.records.files.layout import known_encoding
from data_prep.records.files.layout import sniff as sniff
from data_prep.records.files.limits import current_limits, raise_limit
from data_prep.records.readers.reader import MALFORMED, Block

BLOCK_BYTES = 8 << 20
# threads; one more reads, and the caller has something to do as well
CUTTERS = 2 if (os.cpu_count() or 1) > 2 else 1
PIECE_BYTES = 1 << 20
CUT_BYTES = 2 << 20  # as much as pyarrow cuts at once stays in the processor's cache
FEWEST_COLUMNS = 4  # of a narrower table a line of quoted text may look like a row by chance
_LONGEST_FIELD_LINES = 200
_NEEDED = frozenset(
    "scientificName species eventDate year month day decimalLatitude decimalLongitude "
    "gridReference footprintWKT easting northing locationID eventID occurrenceStatus "
    "individualCount".split()
)
"""What a row that ends early must have all the same."""


@dataclass
class DelimitedText:
    """
    A delimited text, read once from start to end.

    Parameters
    ----------
    name
        As it should appear in messages.
    open
        Opens the text as bytes.
    layout
        How it is written.
    wanted
        Column of the file: its term. Other columns are left out.
    block_bytes
        Size of a block; memory in use is a few times that.
    """

    name: str
    open: Callable[[], BinaryIO]
    layout: Layout
    wanted: dict[str, str]
    block_bytes: int = BLOCK_BYTES
    notes: list[str] = field(default_factory=list)

    def blocks(self) -> Iterator[tuple[Block, int]]:
        """Yield blocks of rows, each with the bytes read so far."""
        number, whole, first = 0, 0, ""
        pieces = row_blocks(self.name, self.open, self.layout, self.block_bytes)
        for (block, damaged), position in _cut_ahead(pieces, _Cutter(self.layout, self.wanted)):
            if damaged and not self.notes:
                self.notes.append(
                    f"{self.name} has text that is not UTF-8; it was read as Windows-1252."
                )
            block = block.after(number)
            number = block_end(block, number)
            whole += len(block.rows)
            first = first or (str(block.malformed["text"][0]) if len(block.malformed) else "")
            if not whole and number >= 1000:
                break  # another layout: reading on would only take time
            yield block, position
        if number and not whole:
            raise _wrong_layout(self.name, number, self.layout, first)


def _cut_ahead(
    pieces: Iterator[tuple[list[bytes], int]], cut: Callable[[list[bytes]], tuple[Block, bool]]
) -> Iterator[tuple[tuple[Block, bool], int]]:
    """
    Cut pieces, in their order; meanwhile the next are cut and the one after them is read, under the
    same limits.
    """

    def following() -> tuple[list[bytes], int] | None:
        return next(pieces, None)

    waiting: deque[tuple[Future[tuple[Block, bool]], int]] = deque()
    with ThreadPoolExecutor(1) as reading, ThreadPoolExecutor(CUTTERS) as cutting:
        coming = reading.submit(copy_context().run, following)
        while (piece := coming.result()) is not None:
            coming = reading.submit(copy_context().run, following)
            waiting.append((cutting.submit(copy_context().run, cut, piece[0]), piece[1]))
            if len(waiting) > CUTTERS:
                done, position = waiting.popleft()
                yield done.result(), position
        for done, position in waiting:
            yield done.result(), position


def _wrong_layout(name: str, rows: int, layout: Layout, first: str) -> RecordsError:
    shown = f" The first is {first[:80]!r}."
    if first.count(layout.separator) == len(layout.columns):
        shown += (
            " Rows have one cell more than the header: a column of row names without a header (R: "
            "write them with row.names = FALSE), or a separator within text without quotes."
        )
    return RecordsError(
        f"None of the first {rows} rows of {name} has the {len(layout.columns)} columns that its "
        "header or meta.xml names "
        f"(separator {layout.separator!r}, quote {layout.quote!r}).{shown} Check the separator, or "
        "export the file again."
    )


def block_end(block: Block, before: int) -> int:
    """Return the number of the last row of a block that follows row ``before``."""
    last = [int(block.numbers[-1])] if len(block.numbers) else []
    last += [int(block.malformed["row"][-1])] if len(block.malformed) else []
    return max([before, *last])


def row_blocks(
    name: str, open_bytes: Callable[[], BinaryIO], layout: Layout, block_bytes: int = BLOCK_BYTES
) -> Iterator[tuple[list[bytes], int]]:
    r"""
    Yield texts of whole rows without the header, line ends as ``\n``, text as UTF-8 wherever it was
    another known encoding. A text comes in parts, which whoever cuts it joins.

    Raises
    ------
    RecordsError
        A row is longer than the limit, 16 MiB: the file is no table.
    """
    lines, skip = len(layout.above), layout.header_rows
    for parts, position in _whole_rows(name, open_bytes, layout, block_bytes):
        if lines or skip:
            data = b"".join(parts)
            while lines and data:
                data = data[data.find(b"\n") + 1 or len(data) :]
                lines -= 1
            while skip and data:
                data = data[_first_row_end(data, layout) :]
                skip -= 1
            parts = [data]
        if any(parts):
            yield parts, position


def _whole_rows(
    name: str, open_bytes: Callable[[], BinaryIO], layout: Layout, block_bytes: int
) -> Iterator[tuple[list[bytes], int]]:
    longest = current_limits().row_mib << 20
    with open_bytes() as file:
        held: list[bytes] = []
        size = position = row = 0
        for piece, read in _pieces(file, layout.encoding, name):
            position += read
            held.append(piece)
            size += len(piece)
            row = len(piece) - piece.rindex(b"\n") - 1 if b"\n" in piece else row + len(piece)
            if row > longest:
                raise RecordsError(
                    f"{name} has a row longer than {longest >> 20} MiB: it is no table of records. "
                    f"{raise_limit('row_mib')}"
                )
            if size < block_bytes or (layout.quote is None and b"\n" not in piece):
                continue
            if layout.quote is None:
                cut = piece.rindex(b"\n") + 1
                held[-1], rest = piece[:cut], piece[cut:]
            else:
                data = b"".join(held)
                cut = _last_row_end(data, layout)
                held, rest = [data[:cut]], data[cut:]
            yield held, position
            held, size = [rest], len(rest)
        yield held, position


def _pieces(file: BinaryIO, encoding: str, name: str) -> Iterator[tuple[bytes, int]]:
    r"""
    Yield the text piece by piece as UTF-8 with ``\n`` as line end and no mark at its start, each
    with the bytes read.
    """
    decode = _decoder(encoding, name)
    first, hanging = True, b""
    while True:
        raw = file.read(PIECE_BYTES)
        piece = hanging + decode(raw, not raw)
        if first:
            piece, first = piece.removeprefix(b"\xef\xbb\xbf"), False
        hanging = b""
        if raw and piece.endswith(b"\r"):
            piece, hanging = piece[:-1], b"\r"  # the other half of the line end may follow
        if b"\r" in piece:
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if piece:
            yield piece, len(raw)
        if not raw:
            return


def _decoder(encoding: str, name: str) -> Callable[[bytes, bool], bytes]:
    canonical = known_encoding(encoding, name)
    if canonical in ("utf-8", "ascii", "utf-8-sig"):
        return lambda piece, last: piece
    if canonical == "iso8859-1":
        canonical = "cp1252"  # what writers that say Latin-1 mean; undefined bytes are replaced
    decoder = codecs.getincrementaldecoder(canonical)(errors="replace")
    return lambda piece, last: decoder.decode(piece, last).encode("utf-8")


def _last_row_end(data: bytes, layout: Layout) -> int:
    r"""Return the place after the last ``\n`` that is not within quotes, 0 for none."""
    end = data.rfind(b"\n") + 1
    if layout.quote is None:
        return end
    quote = layout.quote.encode()
    count = data.count(quote, 0, end)
    start = end
    for _ in range(1000):
        if count % 2 == 0:
            return end
        before = data.rfind(b"\n", 0, end - 1) + 1
        if not before:
            break
        count -= data.count(quote, before, end)
        end = before
    return start  # a stray quote: no row is that long, so take the line end


def _first_row_end(data: bytes, layout: Layout) -> int:
    end = data.find(b"\n") + 1
    if layout.quote is not None:
        quote = layout.quote.encode()
        while end and data.count(quote, 0, end) % 2:
            end = data.find(b"\n", end) + 1
    return end or len(data)


def utf8(data: bytes) -> tuple[bytes, bool]:
    """
    Return valid UTF-8; rows that are not are read as Windows-1252, and the second value is True.
    """
    if data.isascii():
        return data, False
    try:
        data.decode("utf-8")
        return data, False
    except UnicodeDecodeError:
        rows = []
        for row in data.split(b"\n"):
            try:
                row.decode("utf-8")
                rows.append(row)
            except UnicodeDecodeError:
                rows.append(row.decode("cp1252", errors="replace").encode("utf-8"))
        return b"\n".join(rows), True


@dataclass
class _Cutter:
    """
    Cuts blocks into columns.

    What was blank throughout in the blocks before is only looked at, not taken out of the text; a
    block in which it is not blank is cut again.
    """

    layout: Layout
    wanted: dict[str, str]
    blank: frozenset[str] | None = None

    def __call__(self, parts: list[bytes]) -> tuple[Block, bool]:
        """Cut a block; also tell whether some of its text was not UTF-8."""
        layout, wanted, blank, damaged = self.layout, self.wanted, self.blank, False
        if not all(part.isascii() for part in parts):
            data, damaged = utf8(b"".join(parts))
            parts = [data]
        if layout.quote is not None and not any(layout.quote.encode() in part for part in parts):
            layout = replace(layout, quote=None)
        if layout.quote is not None or b"\n" not in parts[0]:
            parts = [b"".join(parts)]
        wide = _wider(parts[0], layout)
        if wide is not None:
            block = cut_at_once(parts, wide, wanted, empty_from=len(layout.columns))
            if block is not None:
                return block, damaged
        block = cut_at_once(parts, layout, wanted, blank=blank) if blank else None
        if block is None:
            block = cut_at_once(parts, layout, wanted)
            if block is not None:  # the blank ones are at most those of every block before
                self.blank = block.blank if blank is None else block.blank & blank
        return block or cut_rows(b"".join(parts), layout, wanted), damaged


def _wider(data: bytes, layout: Layout) -> Layout | None:
    """Return a layout with the empty cells in which the first row goes on; None if in none."""
    first = data[: _first_row_end(data, layout)].decode("utf-8", errors="replace")
    cells = next(_rows(first.removesuffix("\n"), layout), [])
    width = len(layout.columns)
    if len(cells) <= width or any(cells[width:]):
        return None
    return replace(layout, columns=(*layout.columns, *[""] * (len(cells) - width)))


def cut_at_once(
    parts: list[bytes],
    layout: Layout,
    wanted: dict[str, str],
    *,
    empty_from: int | None = None,
    blank: frozenset[str] = frozenset(),
) -> Block | None:
    r"""
    Cut all rows of a text with pyarrow.

    Parameters
    ----------
    parts
        Whole rows, valid UTF-8, with ``\n`` as line end, where quotes are used in one part. Blank
        lines are no rows.
    layout
        How they are written.
    wanted
        Column of the file: its term.
    empty_from
        Columns from here on must be empty in every row.
    blank
        Terms that must be blank in every row.

    Returns
    -------
    Block
        A row with too few cells, or with text in more cells than there are columns, is malformed.
        None where only a look at each row can tell what is meant: rows go on in empty cells, quotes
        enclose whole rows or stand beside malformed ones, a row is very long, or a column is not
        blank that must be.
    """
    width, separator = len(layout.columns), layout.separator
    quoted = layout.quote is not None
    malformed: list[tuple[int, str]] = []
    unclear = False

    def keep(row: arrow_csv.InvalidRow) -> str:
        nonlocal unclear
        longer = row.actual_columns > width and not any(row.text.split(separator)[width:])
        unclear = unclear or quoted or longer or layout.short_rows
        malformed.append((row.number, row.text[:500]))
        return "skip"

    used = {str(layout.columns.index(column)): term for column, term in wanted.items()}
    beyond = [] if empty_from is None else [str(index) for index in range(empty_from, width)]
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(parts[0] if len(parts) == 1 else b"".join(parts)),
            read_options=arrow_csv.ReadOptions(
                use_threads=False,  # rows are numbered only then
                column_names=[str(index) for index in range(width)],
                block_size=len(parts[0]) + 1 if quoted else CUT_BYTES,
            ),
            parse_options=arrow_csv.ParseOptions(
                delimiter=separator,
                quote_char=layout.quote or False,
                newlines_in_values=quoted,
                invalid_row_handler=keep,
            ),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=[*used, *beyond],
                column_types=dict.fromkeys([*used, *beyond], pa.string())
                | {index: pa.null() for index, term in used.items() if term in blank},
                null_values=[""],
                strings_can_be_null=False,
                check_utf8=False,
            ),
        )
    except pa.ArrowInvalid:
        return None
    swallowed = quoted and table.num_rows < parts[0].count(b"\n")
    if unclear or (swallowed and not _orderly(parts[0], layout)):
        return None
    if beyond and (malformed or any(_same(table[index]) != "" for index in beyond)):
        return None
    return _block(table, used, malformed)


def _block(table: pa.Table, used: dict[str, str], malformed: list[tuple[int, str]]) -> Block:
    """Return the block of a table whose columns ``used`` names; what is the same is not copied."""
    bad = pl.DataFrame(malformed, schema=MALFORMED, orient="row")
    numbers = np.arange(1, table.num_rows + len(bad) + 1, dtype=np.uint32)
    row = pl.Series("row", np.delete(numbers, bad["row"].to_numpy() - 1))
    same = {used[index]: text for index in used if (text := _same(table[index])) is not None}
    varied = [index for index, term in used.items() if term not in same]
    held = (
        cast(pl.DataFrame, pl.from_arrow(table.select(varied), rechunk=False))
        if varied
        else pl.DataFrame()
    )
    once = {text: pl.Series([text]).new_from_index(0, len(row)) for text in set(same.values())}
    columns = [
        (once[same[term]] if term in same else held[index]).alias(term)
        for index, term in used.items()
    ]
    return Block(pl.DataFrame(columns), row, bad, same)


def _same(column: pa.ChunkedArray) -> str | None:
    """Return the one text that all rows have; None where they differ or there are none."""
    if pa.types.is_null(column.type):
        return ""
    first: bytes | None = None
    for chunk in column.chunks:
        rows = len(chunk)
        if not rows:
            continue
        _, ends, text = chunk.buffers()
        places = np.frombuffer(ends, dtype=np.int32)[chunk.offset : chunk.offset + rows + 1]
        start, size = int(places[0]), int(places[1] - places[0])
        if places[-1] - start != rows * size or (np.diff(places) != size).any():
            return None
        held = text[start : int(places[-1])].to_pybytes() if size else b""
        first = held[:size] if first is None else first
        if held != first * rows:
            return None
    return None if first is None else first.decode()


def _orderly(data: bytes, layout: Layout) -> bool:
    """
    Tell whether quotes enclose whole cells, and no two lines in turn that have all columns by
    themselves.
    """
    text = np.frombuffer(b"\n" + data + b"\n", dtype=np.uint8)
    marks = text == ord(layout.quote or "")
    line_end = text == 10
    between = line_end | (text == ord(layout.separator))
    places = np.flatnonzero(marks)
    if len(places) % 2:
        return False
    opens, closes = places[::2], places[1::2]
    doubled = closes[:-1] + 1 == opens[1:]  # the halves of a quote that is text
    begins = opens[np.append(True, ~doubled)[: len(opens)]]
    ends = closes[np.append(~doubled, True)[: len(closes)]]
    if not (between[begins - 1].all() and between[ends + 1].all()):
        return False
    within = np.cumsum(marks, dtype=np.uint8)[line_end] % 2 == 1
    whole = np.diff(np.cumsum(between)[line_end], prepend=0) == len(layout.columns)
    swallowed = whole[1:-1] & whole[2:] & within[1:-1]
    return len(layout.columns) < FEWEST_COLUMNS or not swallowed.any()


def cut_rows(data: bytes, layout: Layout, wanted: dict[str, str]) -> Block:
    """Cut rows one by one: slow, and never stopped by what a row holds."""
    width = len(layout.columns)
    used = {term: layout.columns.index(column) for column, term in wanted.items()}
    text = data.decode("utf-8", errors="replace")
    good: list[list[str]] = []
    numbers: list[int] = []
    bad: list[tuple[int, str]] = []
    number = 0
    needed = [place for term, place in used.items() if term in _NEEDED]
    fewest = 1 + max(needed, default=width)
    for cells in _rows(text, layout):
        if not cells or cells == [""]:
            continue
        number += 1
        if len(cells) > width and not any(cells[width:]):
            cells = cells[:width]
        if layout.short_rows and fewest <= len(cells) < width:
            cells = [*cells, *[""] * (width - len(cells))]
        if len(cells) == width:
            good.append(cells)
            numbers.append(number)
        else:
            bad.append((number, layout.separator.join(cells)[:500]))
    rows = pl.DataFrame(
        {term: [cells[index] for cells in good] for term, index in used.items()},
        schema=dict.fromkeys(used, pl.String),
    )
    malformed = pl.DataFrame(bad, schema=MALFORMED, orient="row")
    return Block(rows, pl.Series("row", numbers, dtype=pl.UInt32), malformed)


def _rows(text: str, layout: Layout) -> Iterator[list[str]]:
    if layout.quote is None:
        for line in text.split("\n"):
            yield line.split(layout.separator)
        return
    csv.field_size_limit(current_limits().row_mib << 20)
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    place = 0
    while place < len(lines):
        # A quote that is never closed would swallow the rest: no field has that many lines.
        held = lines[place : place + _LONGEST_FIELD_LINES]
        reader = csv.reader(held, delimiter=layout.separator, quotechar=layout.quote, strict=False)
        width = len(layout.columns)
        try:
            cells = next(reader)
            used = reader.line_num
        except (StopIteration, csv.Error):
            cells, used = ["", "unreadable"] * 999, 1
        if used > 1:
            plain = [line.removesuffix("\n").split(layout.separator) for line in held[:used]]
            # Lines that are rows by themselves are no text within quotes: a quote was opened and
            # never closed.
            if len(cells) != width or (
                width >= FEWEST_COLUMNS and all(len(row) == width for row in plain)
            ):
                cells, used = plain[0], 1
        yield cells
        place += used
