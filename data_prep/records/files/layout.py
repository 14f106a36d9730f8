"""Tell from its first bytes how a delimited text is written: encoding, separator, header."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from butterfly_sdm.errors import RecordsError
from data_prep.records.columns import match_columns

_NO_TABLES = (
    "idna punycode unicode-escape unicode_escape raw-unicode-escape raw_unicode_escape utf-7"
).split()
_MOST_LINES_ABOVE = 30
_FEWEST_KNOWN = 3  # columns that make a line below others the header: name, date and place


@dataclass(frozen=True)
class Layout:
    """
    How a delimited text is written.

    Attributes
    ----------
    separator
        One character.
    quote
        One character, or None where quotes are ordinary characters.
    encoding
        As Python names it. Rows that are not valid UTF-8 are read as Windows-1252.
    header_rows
        Rows before the data.
    columns
        Names of the columns in file order.
    above
        Lines before the header that are no part of the table.
    row_names
        Whether the first column has no header, as R writes the names of rows.
    short_rows
        Whether blank cells at the end of a row may be missing, as spreadsheets leave them out.
    """

    separator: str
    quote: str | None
    columns: tuple[str, ...]
    encoding: str = "utf-8"
    header_rows: int = 1
    above: tuple[str, ...] = ()
    row_names: bool = False
    short_rows: bool = False

    def __post_init__(self) -> None:
        if len(self.separator) != 1 or ord(self.separator) > 127:
            raise RecordsError(
                f"Columns separated by {self.separator!r} cannot be read: the separator must be "
                "one character."
            )
        if self.quote is not None and (len(self.quote) != 1 or ord(self.quote) > 127):
            raise RecordsError(
                f"Cells enclosed by {self.quote!r} cannot be read: a quote must be one character."
            )


def known_encoding(encoding: str, name: str) -> str:
    """
    Return the usual name of an encoding of text.

    Raises
    ------
    RecordsError
        There is no such encoding, or it is not one of text (hex, say).
    """
    try:
        canonical = codecs.lookup(encoding or "utf-8").name
        b"a".decode(canonical, errors="replace")  # what is no text encoding refuses
    except (LookupError, ValueError):
        canonical = ""
    if not canonical or canonical in _NO_TABLES:
        raise RecordsError(
            f"{name} is said to be in the encoding {encoding!r}, which is unknown. Correct "
            "meta.xml."
        )
    return canonical


def sniff(sample: bytes, *, encoding: str | None = None, named: Collection[str] = ()) -> Layout:
    """
    Guess the layout of a delimited text from its first bytes.

    Parameters
    ----------
    sample
        The first bytes.
    encoding
        None: by its mark, or by its zero bytes where UTF-16 has no mark.
    named
        Columns that the user names; they help to find a header below other lines.

    Raises
    ------
    RecordsError
        The text is empty or an archive.
    """
    if sample[257:262] == b"ustar":
        raise RecordsError("it is a tar archive; unpack it and name the table within")
    encoding = encoding or _encoding(sample)
    text = sample.decode(encoding, errors="replace").removeprefix("\ufeff")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    first = next((place for place, line in enumerate(lines) if line.strip()), None)
    if first is None:
        raise RecordsError("it is empty")
    if re.match(r"\s*<(?:!doctype html|html)", text, re.IGNORECASE):
        raise RecordsError("it is a web page, such as one that asks to sign in")
    stated = re.fullmatch(r'"?sep=(.)"?', lines[first].rstrip(" "), re.IGNORECASE)
    separator = stated[1] if stated and ord(stated[1]) < 128 else None
    if separator is not None and lines[first + 1 :]:
        first += 1
    place = _header_place(lines, first, separator, named)
    names, separator, used = _header(lines, place, separator)
    rows = [line for line in lines[place + used : -1] if line.strip()][:200]
    quoted = separator != "\t" or lines[place].startswith('"') or _cells_quoted(rows)
    layout = Layout(
        separator,
        '"' if quoted else None,
        tuple(re.sub(r"\s*\n\s*", " ", name).strip() for name in names),
        encoding,
        above=tuple(lines[:place]),
        short_rows=separator != "\t",
    )
    return _with_width_of(rows, layout)


def _encoding(sample: bytes) -> str:
    if sample[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    pairs = max(len(sample[:4096]) // 2, 1)
    if sample[1:4096:2].count(0) > 0.6 * pairs:
        return "utf-16-le"
    return "utf-16-be" if sample[:4096:2].count(0) > 0.6 * pairs else "utf-8"


def _header(lines: list[str], place: int, separator: str | None) -> tuple[list[str], str, int]:
    """Return the names in a header, their separator, and how many lines the header takes."""
    text, used = lines[place], 1
    while text.count('"') % 2 and used < 50 and place + used < len(lines):
        text, used = f"{text}\n{lines[place + used]}", used + 1
    if text.count('"') % 2:
        text, used = lines[place], 1
    bare = re.sub(r'"[^"]*"', "", text)
    separator = separator or max(("\t", ",", ";", "|"), key=bare.count)
    if separator == "\t" and not text.startswith('"') and used == 1:
        return text.split("\t"), separator, 1
    return next(csv.reader(text.splitlines(keepends=True), delimiter=separator)), separator, used


def _header_place(
    lines: list[str], first: int, separator: str | None, named: Collection[str]
) -> int:
    """Return the line of the header: the first, or one below titles that names columns."""

    def known(place: int) -> int:
        names = _header(lines, place, separator)[0]
        return len(match_columns(names, {}, "")) + len(set(names) & set(named))

    if known(first) >= 2:
        return first
    below = range(first + 1, min(first + _MOST_LINES_ABOVE, len(lines)))
    return next((place for place in below if known(place) >= _FEWEST_KNOWN), first)


def _cells_quoted(rows: list[str]) -> bool:
    """Tell whether quotes enclose cells of a tab-separated text: all cells of some column."""
    cells = [row.split("\t") for row in rows]
    stray = any(
        cell.count('"') % 2 or (cell[:1] == '"') != (cell[-1:] == '"')
        for row in cells
        for cell in row
    )
    columns = [[cell for cell in held if cell] for held in zip(*cells, strict=False)]
    return not stray and any(held and all(c[0] == '"' for c in held) for held in columns)


def _with_width_of(rows: list[str], layout: Layout) -> Layout:
    """Return the layout with the column of row names that rows have, or without empty names."""
    if layout.quote is None:
        cells = [row.split(layout.separator) for row in rows]
    else:
        cells = list(csv.reader(rows, delimiter=layout.separator))
    if not cells:
        return layout
    widths, width = {len(row) for row in cells}, len(layout.columns)
    named = max((place + 1 for place, name in enumerate(layout.columns) if name), default=width)
    if named < width and max(widths) < width:
        return replace(layout, columns=layout.columns[: max(named, *widths)])
    numbers = [row[0] for row in cells]
    if (
        widths == {width + 1}
        and any(row[-1] for row in cells)
        and all(number.isdecimal() for number in numbers)
        and len(set(numbers)) == len(numbers)
        and match_columns(layout.columns[:1], {}, "").get(layout.columns[0]) != "recordID"
    ):
        return replace(layout, columns=("", *layout.columns), row_names=True)
    return layout


def layout_notes(layout: Layout, where: str) -> list[str]:
    """Say what of a text was passed over, in sentences."""
    notes = []
    above = [line for line in layout.above if line.strip()]
    if above and not re.match(r'"?sep=', above[0], re.IGNORECASE):
        notes.append(
            f"{where} has {len(above)} lines above its header, which were passed over; the first "
            f"is {above[0][:80]!r}."
        )
    if layout.row_names:
        notes.append(
            f"The rows of {where} have one cell more than its header and begin with a number; the "
            "numbers were taken for names of rows, as R writes them."
        )
    return notes
