"""
Cut delimited text into columns, all rows at once.

All separators of a piece of text are found at once, and a cell is a place in the text: columns are
made of Arrow's string views, which point into the text, so that nothing is copied and unwanted
columns cost no more than their separators.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from data_prep.records.readers.reader import Block

PIECE_BYTES = 1 << 19  # its separators, eight bytes each, stay in the processor's cache
FEWEST_COLUMNS = (
    4  # in a narrower table a line of a quoted text has as many separators as a row by chance
)
_PAD = 16
_LOOK_BACK = 1 << 14  # rows are rarely longer; where one is, it is a piece by itself
_SHORT = 12  # bytes of a text that a view holds itself


def _masks() -> np.ndarray:
    """
    Return which bytes of a view a text of 0 to 12 bytes fills, and at last those of a longer one:
    its first four.
    """
    masks = np.zeros((_SHORT + 2, 16), dtype=np.uint8)
    for length in range(_SHORT + 1):
        masks[length, 4 : 4 + length] = 255
    masks[_SHORT + 1, 4:8] = 255
    return masks.reshape(-1).view("V16")


_MASKS = _masks()


def padded(parts: Sequence[bytes]) -> np.ndarray:
    r"""
    Return a text as bytes that end with ``\n``, with some more before and after it; :func:`body`
    takes these off again.
    """
    size = sum(map(len, parts))
    held = (
        np.full(size + 2 * _PAD + 1, 10, dtype=np.uint8)
        if size < _PAD
        else np.empty(size + 2 * _PAD + 1, dtype=np.uint8)
    )
    held[:_PAD] = 10
    place = _PAD
    for part in parts:
        held[place : place + len(part)] = np.frombuffer(part, dtype=np.uint8)
        place += len(part)
    held[place:] = 10
    return held if held[place - 1] != 10 else held[:-1]


def body(text: np.ndarray) -> np.ndarray:
    """Return a padded text without its padding."""
    return text[_PAD : len(text) - _PAD]


def cut_cells(
    text: np.ndarray,
    separator: str,
    columns: Sequence[str],
    wanted: Mapping[str, str],
    quote: str | None = None,
) -> Block | None:
    r"""
    Cut rows into columns.

    Parameters
    ----------
    text
        Whole rows, valid UTF-8, with ``\n`` as line end, as :func:`padded` makes it. Blank lines
        are no rows.
    separator
        One character.
    columns
        Names of the columns in file order.
    wanted
        Column of the file: its term.
    quote
        Encloses cells in which separators and line ends are text, and is written twice for itself;
        None: an ordinary character.

    Returns
    -------
    Block
        A row with too few cells, or with text in more cells than there are columns, is malformed.
        None where quotes stand within cells, enclose whole rows, or rows among quotes are
        malformed, so that only a look at each row can tell what is meant.
    """
    rows_of = body(text)
    size = len(rows_of)
    place = {column: index for index, column in reversed(list(enumerate(columns)))}
    chosen = np.array([place[column] for column in wanted], dtype=np.int64)
    views = np.zeros(
        (len(chosen), size // len(columns), 4), dtype=np.uint32
    )  # memory is taken where it is written
    windows = np.ndarray((len(text) - 15,), dtype="V16", buffer=text, strides=(1,))
    numbers: list[np.ndarray] = []
    malformed: list[tuple[int, str]] = []
    done = number = 0
    doubled = False
    for start, end in _pieces(rows_of) if quote is None else [(0, size)]:
        piece = rows_of[start:end]
        line_end = piece == 10
        between = piece == ord(separator)
        if quote is not None:
            quoted = _quoted(piece, ord(quote), line_end | between)
            if quoted is None:
                return None
            outside, doubled = quoted
            if _swallows_rows(line_end, between, outside, len(columns)):
                return None
            line_end &= outside
            between &= outside
        lines = np.count_nonzero(line_end)
        between |= line_end
        places = np.flatnonzero(between)
        ends, starts, row_numbers, bad, number = _rows(
            piece, places, int(lines), len(columns), chosen, number
        )
        numbers.append(row_numbers)
        if quote is not None:
            blank = int(lines) - len(row_numbers)
            if bad or len(places) != len(columns) * len(row_numbers) + blank:
                return None
            within = (ends > starts) & (piece[starts] == ord(quote))
            starts, ends = starts + within, ends - within
        malformed += bad
        rows = slice(done, done + len(row_numbers))
        done = rows.stop
        lengths = ends - starts
        some = np.flatnonzero(lengths.any(axis=1))
        if len(some):
            views[some, rows] = _views(windows, starts[some] + (_PAD + start), lengths[some])
    buffer = pa.py_buffer(text)
    series = [
        _series(view[:done], buffer, term)
        for view, term in zip(views, wanted.values(), strict=True)
    ]
    if doubled and quote is not None:
        series = [column.str.replace_all(quote * 2, quote, literal=True) for column in series]
    return Block(
        pl.DataFrame(series),
        pl.Series("row", np.concatenate(numbers) if numbers else np.empty(0), dtype=pl.UInt32),
        pl.DataFrame(malformed, schema={"row": pl.UInt32, "text": pl.String}, orient="row"),
    )


def _pieces(text: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield begin and end of pieces of whole rows."""
    start = 0
    while start < len(text):
        end = start + PIECE_BYTES
        if end < len(text):
            near = max(start, end - _LOOK_BACK)
            ends = np.flatnonzero(text[near:end] == 10)
            end = (
                near + int(ends[-1]) + 1
                if len(ends)
                else start + int((text[start:] == 10).argmax()) + 1
            )
        yield start, min(end, len(text))
        start = end


def _quoted(piece: np.ndarray, quote: int, stops: np.ndarray) -> tuple[np.ndarray, bool] | None:
    """
    Return where text is outside of quotes, and whether some are doubled; None if a quote encloses
    no cell.
    """
    marks = piece == quote
    places = np.flatnonzero(marks)
    if len(places) % 2:
        return None
    opens, closes = places[::2], places[1::2]
    doubled = np.append(closes[:-1] + 1 == opens[1:], False)[: len(closes)]
    begins = opens[
        np.append(True, ~doubled[:-1])[: len(opens)]
    ]  # the others are second halves of a doubled quote
    if not (stops[begins[begins > 0] - 1].all() and stops[closes[~doubled] + 1].all()):
        return None
    return np.cumsum(marks, dtype=np.uint8) % 2 == 0, bool(doubled.any())


def _swallows_rows(
    line_end: np.ndarray, between: np.ndarray, outside: np.ndarray, width: int
) -> bool:
    """
    Tell whether quotes enclose a line that has all columns by itself, and the line after it has,
    too.
    """
    if width < FEWEST_COLUMNS or outside[line_end].all():
        return False
    ends = np.flatnonzero(line_end)
    whole = np.diff(np.cumsum(between)[ends], prepend=0) == width - 1
    return bool((whole[:-1] & whole[1:] & ~outside[ends[:-1]]).any())


def _rows(
    piece: np.ndarray, places: np.ndarray, lines: int, width: int, chosen: np.ndarray, before: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[int, str]], int]:
    """
    Find the wanted cells of the good rows of a piece.

    Returns
    -------
    ends, starts : (columns, rows) places in the piece
    numbers : (rows,) number of each row
    malformed : number and text of the other rows
    last : number of the last row
    """
    malformed: list[tuple[int, str]] = []
    cells = places.reshape(lines, width) if len(places) == lines * width else None
    if cells is not None and (piece[cells[:, -1]] == 10).all() and not _blank(cells):
        begin = np.append(0, cells[:-1, -1] + 1)
        numbers = np.arange(before + 1, before + 1 + len(cells), dtype=np.uint32)
        last = before + len(cells)
    else:
        line_end = np.flatnonzero(piece[places] == 10)
        first = np.append(0, line_end[:-1] + 1)
        held = line_end - first + 1
        begin, end = np.append(0, places[line_end[:-1]] + 1), places[line_end]
        blank = begin == end
        every = before + np.cumsum(~blank)
        last = int(every[-1]) if len(every) else before
        good = (held == width) & ~blank
        more = np.flatnonzero(held > width)
        good[more] = (
            end[more] - places[first[more] + width - 1] == held[more] - width
        )  # the cells beyond are empty
        malformed += [
            (
                int(every[row]),
                piece[begin[row] : end[row]].tobytes().decode("utf-8", errors="replace")[:500],
            )
            for row in np.flatnonzero(~good & ~blank).tolist()
        ]
        cells = places[first[good][:, None] + np.arange(width)]
        begin, numbers = begin[good], every[good].astype(np.uint32)
    ends = cells[:, chosen].T
    starts = cells[:, np.maximum(chosen - 1, 0)].T + 1
    starts[chosen == 0] = begin
    return ends, starts, numbers, malformed, last


def _blank(cells: np.ndarray) -> bool:
    """Tell whether some row of a table with one column is empty."""
    return cells.shape[1] == 1 and bool((np.diff(cells[:, 0], prepend=-1) == 1).any())


def _views(windows: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """
    Return Arrow's string views: (columns, rows, 4) words; ``starts`` are places in the buffer.
    """
    made = windows[starts - 4]  # four bytes for the length, then the first twelve of the text
    pairs = made.view(np.uint64)
    pairs &= np.take(_MASKS, np.minimum(lengths, _SHORT + 1)).view(np.uint64)
    words = made.view(np.uint32).reshape(*starts.shape, 4)
    words[..., 0] = lengths
    np.copyto(words[..., 3], starts, where=lengths > _SHORT, casting="unsafe")
    return words


def _series(views: np.ndarray, buffer: pa.Buffer, term: str) -> pl.Series:
    array = pa.Array.from_buffers(
        pa.string_view(), len(views), [None, pa.py_buffer(np.ascontiguousarray(views)), buffer]
    )
    return pl.Series(term, array)
