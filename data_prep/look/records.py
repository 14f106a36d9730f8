"""Look at files of records as they are understood, before anything is built."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import pandas as pd
import polars as pl
import pyarrow as pa

from butterfly_sdm.errors import ButterflySDMError, RecordsError
from butterfly_sdm.progress import Progress, silent
from data_prep.look.left_out import Values, commonest
from data_prep.look.names import helpful_synonyms, rows_of, species_seen
from data_prep.records.columns import match_columns
from data_prep.records.count import SurveyTable, survey
from data_prep.records.dates import REASONS as DATE_REASONS
from data_prep.records.dates import read_days
from data_prep.records.files.containers import is_zip, open_container
from data_prep.records.files.delimited import DelimitedText, sniff
from data_prep.records.files.layout import Layout
from data_prep.records.files.stored import (
    TEXT_SUFFIXES,
    Rows,
    TextRows,
    holds_tables,
    open_tables,
)
from data_prep.records.names import read_synonyms
from data_prep.records.nomenclature import binomial
from data_prep.records.occurrences import Occurrences, read_occurrences
from data_prep.records.options import RecordsOptions
from data_prep.records.places.grid_references import GridSquare
from data_prep.records.readers.archive import DarwinCoreArchive
from data_prep.records.readers.reader import TERMS, RecordFile
from data_prep.records.readers.registry import BUILT_IN, open_records, reader, readers
from data_prep.records.readers.tables import RecordTable
from data_prep.records.readers.ukbms import SiteVisitTables

VALUES, LOOKED_AT = 3, 200
LONG_TO_COUNT = 200_000  # rows: seconds


@dataclass(frozen=True)
class ColumnSeen:
    """
    A column of a file.

    Attributes
    ----------
    table, name
        Where it stands.
    meaning
        The term it is read as; ``""``: it is ignored.
    values
        The first three different ones.
    """

    table: str
    name: str
    meaning: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Shape:
    """
    A way in which dates are written.

    Attributes
    ----------
    shape
        Digits as 9, letters as a.
    example, meaning
        A date, and the day it is read as, or why it is none.
    rows
        How many.
    """

    shape: str
    example: str
    meaning: str
    rows: int


@dataclass(frozen=True)
class RecordsSeen:
    """
    What files of records hold, as it was understood.

    Attributes
    ----------
    paths
        The files.
    layout
        In words, one per file.
    columns
        Of all files; values as they stand there.
    stated
        Columns that the user named, ``{term: name}``.
    suggested
        Columns that were not recognised by their names but by their values, ``{term: name}``; all
        that follows is counted with them.
    missing
        Why the records cannot be counted; ``""`` if they can.
    dates
        How dates are written, the commonest first.
    names
        ``species``, ``rows``, ``spellings``: how each species is written.
    table
        Visits, detections and sites, where there are any.
    left_out
        Per reason the commonest values.
    synonyms
        The setting that explains names which are not understood, and the reason.
    notes
        What else a user should know, in sentences.
    """

    paths: tuple[Path, ...]
    layout: tuple[str, ...]
    columns: tuple[ColumnSeen, ...]
    stated: Mapping[str, str] = field(default_factory=dict)
    suggested: Mapping[str, str] = field(default_factory=dict)
    missing: str = ""
    first_day: str = ""
    last_day: str = ""
    dates: tuple[Shape, ...] = ()
    names: pd.DataFrame | None = None
    table: SurveyTable | None = None
    left_out: Values = field(default_factory=dict)
    as_squares: tuple[int, float] | None = None
    synonyms: tuple[str | dict[str, str] | None, str] = (None, "")
    notes: tuple[str, ...] = ()

    def settings(self) -> dict[str, tuple[object, str]]:
        """Return the settings of ``build.records`` that fit, each with the reason."""
        paths = [str(path) for path in self.paths]
        found: dict[str, tuple[object, str]] = {
            "path": (paths[0] if len(paths) == 1 else paths, "")
        }
        if self.stated or self.suggested:
            why = "by their values: check them" if self.suggested else ""
            found["columns"] = ({**self.stated, **self.suggested}, why)
        if self.synonyms[0] is not None:
            found["synonyms"] = self.synonyms
        if self.table is None:
            return found
        years = self.table.years
        found["years"] = ([years[0], years[-1]], "all there are; narrow to those of the scenes")
        scheme = _scheme(self.columns)
        why = {
            "complete": "a visit is a list that names every species seen",
            "ukbms": "a visit is a site and a day",
        }[scheme]
        found["scheme"] = (scheme, why)
        found["min_records"] = (0, "fewest rows of a site")
        enough = int((self.table.visits >= 5).sum())
        found["min_visits"] = (
            (5, f"{enough:,} sites have as many: on few visits chance decides")
            if enough >= 50
            else (1, f"only {enough:,} sites have 5 or more, where chance would matter less")
        )
        if self.as_squares is not None:
            sites, visits = self.as_squares
            found["grid_m"] = (
                1000,
                f"squares: {sites:,} sites of {visits:.1f} visits on average, instead of "
                f"{len(self.table.visits):,} of {self.table.visits.mean():.1f}",
            )
        if self.table.rows.get("dropped: coordinates out of range"):
            found["out_of_range"] = ("drop", "else build refuses the impossible coordinates")
        return found


def look_at_records(
    paths: Sequence[Path],
    *,
    scratch: Path,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> RecordsSeen:
    """
    Look at files of records, whether they are understood or not.

    Parameters
    ----------
    paths
        Files or folders of one survey.
    scratch
        Folder for the compact table of the records.
    format, columns
        As in ``build.records``.

    Raises
    ------
    MissingFileError
        A file does not exist.
    """
    paths = _together(paths)
    stated = dict(columns or {})
    layouts, seen, missing = [], [], ""
    suggested: dict[str, str] = {}
    for path in paths:
        try:
            opened: RecordFile | None = open_records(path, format=format, columns=stated)
        except RecordsError as error:
            opened, missing = None, str(error)
            own = _columns_if_any(None, path, stated)
            guessed = guess_columns(own)
            if guessed:
                try:
                    opened = open_records(path, format=format, columns=stated | guessed)
                    suggested |= guessed
                    missing = ""
                except RecordsError:
                    suggested |= guessed
        layouts.append(f"{path.name}: {_layout(opened, path, format)}")
        seen += _columns_if_any(opened, path, stated | suggested)
    found = RecordsSeen(paths, tuple(layouts), tuple(seen), stated, suggested, missing)
    if missing:
        return found
    rules = RecordsOptions(
        path=paths,
        format=format,
        columns=stated | suggested,
        min_records=0,
        out_of_range="drop",
        scheme=_scheme(seen),
    )
    try:
        occurrences = read_occurrences(
            paths, scratch=scratch, format=format, columns=rules.columns, progress=progress
        )
    except RecordsError as error:
        return replace(found, missing=str(error))
    listener = progress if occurrences.read > LONG_TO_COUNT else silent
    listener("counting", 0, 1)
    found = replace(found, synonyms=helpful_synonyms(occurrences))
    rules = rules.model_copy(update={"synonyms": found.synonyms[0]})
    counted = _counted(_described(found, occurrences, rules), occurrences, rules, scratch)
    listener("counting", 1, 1)
    return counted


def _scheme(columns: Sequence[ColumnSeen]) -> str:
    """Return the scheme of complete lists where a column says which are, else that of walks."""
    told = any(column.meaning == "completeness" and column.values for column in columns)
    return "complete" if told else "ukbms"


def _together(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Take the folder for tables of visits and counts that only say something together."""
    folders: list[Path] = []
    for path in map(Path, paths):
        home = path.parent
        pair = path.is_file() and any(
            word in path.stem.lower() for word in ("visit", "count", "site")
        )
        if pair and len(paths) > 1:
            beside = {other for other in map(Path, paths) if other.parent == home}
            stems = " ".join(other.stem.lower() for other in beside)
            if "visit" in stems and "count" in stems:
                path = home
        if path not in folders:
            folders.append(path)
    return tuple(folders)


def _layout(opened: RecordFile | None, path: Path, format: str) -> str:
    if opened is None:
        return "not understood"
    known = readers()
    order = [*(name for name in known if name not in BUILT_IN), *BUILT_IN]
    name = format if format != "auto" else next(n for n in order if reader(n).recognises(path))
    told = f"{name}, {known[name]}"
    match opened:
        case DarwinCoreArchive():
            core = "event" if opened.event_table is not None else "occurrence"
            return f"{told}; this one has an {core} core"
        case SiteVisitTables():
            held = (opened.visits, opened.counts, opened.sites)
            return f"{told}; here {', '.join(name for name in held if name)}"
        case RecordTable():
            rows = [part.rows for part in opened.parts]
            written = [_written(held.layout) for held in rows if isinstance(held, TextRows)]
            wide = ["one column per species" for part in opened.parts if part.spread][:1]
            return "; ".join([told, *written, *wide])
    return told


def _written(layout: Layout) -> str:
    names = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}
    quote = ", cells in quotes" if layout.quote else ""
    separator = names.get(layout.separator, repr(layout.separator))
    return f"cut at {separator}{quote}, {layout.encoding}"


def _columns(opened: RecordFile | None, path: Path, stated: Mapping[str, str]) -> list[ColumnSeen]:
    """Return all columns of a file with their meaning and first values."""
    match opened:
        case RecordTable():
            return [
                column
                for part in opened.parts
                for column in _of_rows(part.rows, part.used, part.rows.where)
            ]
        case DarwinCoreArchive():
            tables = [opened.occurrences, *([opened.event_table] if opened.event_table else [])]
            found = []
            for table in tables:
                for name in table.files[:1]:
                    text = DelimitedText(
                        name, _opener(opened.path, name), table.layout, table.columns
                    )
                    found += _of_text(text, table.columns, name)
            return found
    if holds_tables(path):
        return [
            column
            for rows in open_tables(path, set(stated.values()))
            for column in _of_rows(rows, _meanings(rows.columns, stated, rows.where), rows.where)
        ]
    found = []
    for name, text in _texts(path):
        found += _of_text(text, _meanings(text.layout.columns, stated, name), name)
    if not found and opened is not None:
        return _of_blocks(opened, path.name)
    return found


def _meanings(header: Sequence[str], stated: Mapping[str, str], where: str) -> dict[str, str]:
    known = {term: column for term, column in stated.items() if column in header}
    return match_columns(header, known, where)


def _columns_if_any(
    opened: RecordFile | None, path: Path, stated: Mapping[str, str]
) -> list[ColumnSeen]:
    """Return the columns; none of a file that is damaged, which is told elsewhere."""
    try:
        return _columns(opened, path, stated)
    except (RecordsError, OSError, ValueError, pa.ArrowException, pl.exceptions.PolarsError):
        return []


def _opener(path: Path, name: str) -> Callable[[], BinaryIO]:
    container = open_container(path)
    return lambda: container.open(name)


def _texts(path: Path) -> Iterator[tuple[str, DelimitedText]]:
    """Yield the text tables of a folder or zip archive, whatever they mean."""
    names = []
    if path.is_dir() or is_zip(path):
        names = [n for n in open_container(path).names if Path(n).suffix.lower() in TEXT_SUFFIXES]
    for name in names[:5]:
        opener = _opener(path, name)
        try:
            with opener() as file:
                layout = sniff(file.read(1 << 16))
        except (RecordsError, OSError):
            continue
        yield name, DelimitedText(name, opener, layout, {})


def _of_text(text: DelimitedText, used: Mapping[str, str], table: str) -> list[ColumnSeen]:
    header = text.layout.columns
    start = _start(text)
    every = {name: name for name in header if name}
    short = DelimitedText(text.name, lambda: io.BytesIO(start), text.layout, every)
    try:
        block, _ = next(short.blocks())
        rows = block.rows
    except (RecordsError, StopIteration, pl.exceptions.PolarsError):
        rows = pl.DataFrame({name: [] for name in every}, schema=dict.fromkeys(every, pl.String))
    return [
        ColumnSeen(table, name, used.get(name, ""), _first(rows[name]))
        for name in every
        if name in rows.columns
    ]


def _start(text: DelimitedText) -> bytes:
    """Return the first whole rows of a text."""
    with text.open() as file:
        start = file.read(1 << 18)
    end = start.rfind(b"\n")
    return start if len(start) < 1 << 18 or end < 0 else start[: end + 1]


def _of_rows(rows: Rows, used: Mapping[str, str], table: str) -> list[ColumnSeen]:
    """Return the columns of any stored table."""
    if isinstance(rows, TextRows):
        return _of_text(rows.text, used, table)
    names = dict.fromkeys(name for name in rows.columns if name)
    if rows.known:  # of a shape only what it has
        names = dict.fromkeys(n for n in names if n not in rows.known.values() or n in used)
    block = next((block for block, _ in rows.blocks({name: name for name in names})), None)
    found = [
        ColumnSeen(
            table,
            name,
            used.get(name, ""),
            () if block is None else _first(block.rows[name]),
        )
        for name in names
    ]
    return [c for c in found if c.values or c.name not in rows.known.values()]


def _of_blocks(opened: RecordFile, table: str) -> list[ColumnSeen]:
    """Return what a reader hands over, where its file is no text."""
    block = next((block for block, _ in opened.blocks()), None)
    if block is None:
        return []
    return [
        ColumnSeen(table, term, term, _first(block.rows[term]))
        for term in block.rows.columns
        if term in TERMS
    ]


def _first(values: pl.Series, most: int = VALUES) -> tuple[str, ...]:
    held = values.cast(pl.String).drop_nulls()
    held = held.filter(held.str.strip_chars() != "").head(LOOKED_AT)
    return tuple(held.unique(maintain_order=True).head(most).to_list())


def guess_columns(columns: Sequence[ColumnSeen]) -> dict[str, str]:
    """
    Say by its values which column may be the date, the name or the place that no header tells.

    Examples
    --------
    >>> guess_columns([ColumnSeen("a.csv", "When", "", ("3 June 2018", "14 June 2018"))])
    {'eventDate': 'When'}
    """
    have = {column.meaning for column in columns}
    tests = {
        "eventDate": ({"eventDate", "year", "eventID"}, _is_date),
        "scientificName": ({"scientificName", "species"}, _is_species),
        "gridReference": (
            {"gridReference", "decimalLatitude", "footprintWKT", "easting"},
            _is_reference,
        ),
    }
    found: dict[str, str] = {}
    for term, (others, test) in tests.items():
        if have & others:
            continue
        for column in columns:
            fits = [test(value.strip()) for value in column.values]
            if not column.meaning and column.name not in found.values() and fits and all(fits):
                found[term] = column.name
                break
    if not have & {"gridReference", "decimalLatitude"} and "gridReference" not in found:
        found |= _guess_degrees(columns)
    return found


def _guess_degrees(columns: Sequence[ColumnSeen]) -> dict[str, str]:
    """Take two columns of decimal numbers, one named for the north and one for the east."""
    sides = {"decimalLatitude": ("lat", "y"), "decimalLongitude": ("lon", "lng", "x")}
    found = {}
    for term, starts in sides.items():
        bound = 90 if term == "decimalLatitude" else 180
        for column in columns:
            named = any(word.startswith(starts) for word in column.name.lower().split("_"))
            if (
                named
                and not column.meaning
                and column.values
                and all(_is_degree(value, bound) for value in column.values)
            ):
                found[term] = column.name
                break
    return found if len(found) == 2 else {}


def _is_degree(text: str, bound: int) -> bool:
    try:
        return "." in text and abs(float(text)) <= bound
    except ValueError:
        return False


def _is_date(text: str) -> bool:
    parts = {"year": "", "month": "", "day": "", "code": 0}
    read = read_days(pl.DataFrame([{"eventDate": text, **parts}]), day_first=True)
    return read["day"][0] is not None


def _is_species(text: str) -> bool:
    return bool(binomial(text) or read_synonyms("s2bms").whole(text))


def _is_reference(text: str) -> bool:
    try:
        return text.upper() == text and bool(GridSquare.parse(text))
    except RecordsError:
        return False


def _described(found: RecordsSeen, occurrences: Occurrences, rules: RecordsOptions) -> RecordsSeen:
    dates = occurrences.dictionaries["date"]
    days = read_days(dates, day_first=occurrences.day_first)
    known = days["day"].drop_nulls()
    return replace(
        found,
        first_day=str(known.min()) if len(known) else "",
        last_day=str(known.max()) if len(known) else "",
        dates=_shapes(
            dates.join(days.rename({"day": "read"}), on="code"), rows_of(occurrences, "date")
        ),
        names=species_seen(occurrences, read_synonyms(rules.synonyms)),
        notes=(*found.notes, *occurrences.notes),
    )


def _shapes(dates: pl.DataFrame, rows: Mapping[int, int]) -> tuple[Shape, ...]:
    parts = pl.concat_str("year", "month", "day", separator=" ").str.strip_chars()
    told = dates.with_columns(
        pl.col("eventDate").str.strip_chars().replace("", None).fill_null(parts).alias("text"),
        pl.col("code").replace_strict(rows, default=0).alias("rows"),
    ).filter(pl.col("rows") > 0)
    told = told.with_columns(
        pl.col("text").str.replace_all(r"\d", "9").str.replace_all(r"[A-Za-z]+", "a").alias("shape")
    )
    groups = (
        told.sort("rows", descending=True)
        .group_by("shape", "date_reason", maintain_order=True)
        .agg(pl.col("text").first(), pl.col("read").first(), pl.col("rows").sum())
        .sort("rows", descending=True)
    )
    return tuple(
        Shape(
            row["shape"],
            row["text"],
            str(row["read"]) if row["read"] is not None else DATE_REASONS[row["date_reason"]],
            row["rows"],
        )
        for row in groups.iter_rows(named=True)
    )


def _counted(
    found: RecordsSeen, occurrences: Occurrences, rules: RecordsOptions, scratch: Path
) -> RecordsSeen:
    explain = scratch / "left_out.parquet"
    try:
        table = survey(occurrences, rules, explain=explain)
    except ButterflySDMError as error:
        table, found = None, replace(found, missing=str(error))
    left_out: Values = {}
    if explain.exists():
        left_out = commonest(pl.read_parquet(explain))
    as_squares = None
    if table is not None and (table.visits == 1).mean() > 0.5:
        try:
            squares = survey(occurrences, rules.model_copy(update={"grid_m": 1000}))
            helps = squares.visits.mean() > 1.2 * table.visits.mean()
            if helps and squares.rows["kept"] > table.rows["kept"] / 2:
                as_squares = (len(squares.visits), float(squares.visits.mean()))
        except ButterflySDMError:
            pass  # no grid there
    notes = found.notes if table is None else tuple(dict.fromkeys((*found.notes, *table.notes)))
    return replace(found, table=table, left_out=left_out, as_squares=as_squares, notes=notes)
