"""
Bring any recorder's files into one compact table of occurrences.

Texts repeat: a million records have some thousand places, dates and names. Each distinct text is
kept once, in a dictionary, and a record is a row of numbers of such texts. Rules are then applied
to the dictionaries, and only whole numbers are counted. The table lies in Parquet files, so that
another set of rules needs no second reading.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from butterfly_sdm.core.cards import fingerprint
from butterfly_sdm.core.files import read_json, sha256, write_json
from butterfly_sdm.core.work import resumable_folder
from butterfly_sdm.errors import ArtefactError, MissingFileError, RecordsError
from butterfly_sdm.progress import Progress, silent
from data_prep.records import dates as date_rules
from data_prep.records import efforts
from data_prep.records.columns import MISSING, with_genus, with_qualifier, without_missing
from data_prep.records.files.stored import chosen_tables
from data_prep.records.files.vector import files_of
from data_prep.records.readers.reader import MALFORMED, TERMS, Block, RecordFile
from data_prep.records.readers.registry import open_records
from data_prep.records.walks import one_visit_each

GROUPS: dict[str, tuple[str, ...]] = {
    "place": (
        "decimalLatitude",
        "decimalLongitude",
        "coordinateUncertaintyInMeters",
        "footprintWKT",
        "footprintSRS",
        "gridReference",
        "easting",
        "northing",
        "coordinateSRS",
        "countryCode",
        "coordinatesObscured",
        "locationID",
    ),
    "date": date_rules.TERMS,
    "name": ("scientificName", "species", "taxonRank"),
    "source": ("institutionCode", "collectionCode", "datasetName", "license"),
    "state": (
        "occurrenceStatus",
        "individualCount",
        "completeness",
        "status",
        "organismQuantity",
        "organismQuantityType",
        "zeroAbundance",
        "verification",
        "basisOfRecord",
        "captive",
        "qualityGrade",
    ),
    "effort": efforts.TERMS,
}
"""Texts that are looked at together; each distinct combination is one entry of a dictionary."""

log = logging.getLogger("butterfly_sdm.records")

FORMAT_VERSION = 8  # of the compact table: columns, their groups and its checksums
_MALFORMED_KEPT = 10_000
_NAMES = ("scientificName", "species")
_PART_ROWS = 500_000
_ODD = np.uint64(0x9E3779B97F4A7C15)
_SHORTEST_ID = 7  # letters and digits; two files may both number their rows
_LONGEST_MISSING = max(map(len, MISSING))


@dataclass(frozen=True)
class Occurrences:
    """
    The records of one or several files.

    Attributes
    ----------
    folder
        Where the Parquet files lie.
    dictionaries
        Per group of :data:`GROUPS` the distinct texts, with their number ``code``.
    again
        Places of rows that repeat one before them, counting all rows in the order of :meth:`parts`.
    files
        Names of the files, in the order of their numbers.
    columns
        Terms that at least one file has.
    read
        Rows read, malformed ones included.
    malformed
        Rows that could not be cut into columns.
    core
        ``event`` when a table of survey events tells the effort, else ``occurrence``.
    notes
        What a user should know of the files, in sentences.
    day_first
        As the layout of the files says.
    """

    folder: Path
    dictionaries: Mapping[str, pl.DataFrame]
    again: np.ndarray
    files: tuple[str, ...]
    columns: frozenset[str]
    read: int
    malformed: int
    core: str = "occurrence"
    notes: tuple[str, ...] = ()
    day_first: bool | None = None

    def parts(self, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """
        Yield the coded rows, part by part.

        Parameters
        ----------
        columns
            Of ``file``, ``row`` (numbers), one per group (number of its texts), ``event`` (hash of
            the event's id, 0 for none), ``is_event`` (a survey, not a record); of several files
            also ``record`` (hash of the record's id, 0 for none).
        """
        for path in sorted(self.folder.glob("rows-*.parquet")):
            yield pl.read_parquet(path, columns=list(columns), glob=False)

    def malformed_rows(self) -> pl.DataFrame:
        """Return file, row and text of the malformed rows, the first 10,000 of each file."""
        return pl.read_parquet(self.folder / "malformed.parquet", glob=False)


class _Dictionary:
    """The distinct texts of a group, numbered in the order in which they came."""

    def __init__(self, terms: Sequence[str]) -> None:
        self.terms = terms
        self.entries: list[pl.DataFrame] = []
        self.numbers: dict[int, int] = {}  # of each hash

    def number(self, held: Mapping[str, pl.Series], hashes: np.ndarray) -> np.ndarray:
        """
        Return the number (uint32) of each row of texts; new ones are kept.

        Parameters
        ----------
        held
            The columns there are; others are blank.
        hashes
            (rows,) of the texts of this group, see :func:`mixed`; (1,) where all rows have the same
            ones, and so has the result.
        """
        encoded = cast(pa.UInt64Array, pa.array(hashes)).dictionary_encode()
        before = len(self.numbers)
        numbers = np.array(
            [self.numbers.setdefault(h, len(self.numbers)) for h in encoded.dictionary.to_pylist()],
            dtype=np.uint32,
        )
        places: np.ndarray = encoded.indices.to_numpy()
        if len(self.numbers) > before:
            # The dictionary is in the order in which texts come.
            first = np.flatnonzero(np.diff(np.maximum.accumulate(places), prepend=-1))
            new = first[numbers >= before]
            blank = pl.Series([""]).new_from_index(0, len(new))
            texts = {t: held[t].gather(new) if t in held else blank for t in self.terms}
            self.entries.append(_own(pl.DataFrame(texts)))
        of_row: np.ndarray = numbers[places]
        return of_row

    def table(self) -> pl.DataFrame:
        """
        Return the texts with their number, ``code``, in an order that does not depend on that of
        the rows.
        """
        schema = dict.fromkeys(self.terms, pl.String)
        held = pl.concat(self.entries) if self.entries else pl.DataFrame(schema=schema)
        held = held.with_columns(without_missing(term) for term in self.terms)
        return held.with_row_index("code").sort(*self.terms)


def hashed(held: Mapping[str, pl.Series], same: Collection[str] = ()) -> dict[str, np.ndarray]:
    """
    Return the hash (uint64) of each text, column by column, each term in its own way; a single one,
    (1,), of those that are the ``same`` in all rows.
    """
    known = [held[term].alias(term) for term in TERMS if term in held]
    once = [series.head(1) for series in known if series.name in same]
    each = [series for series in known if series.name not in same]
    made = [
        pl.DataFrame(texts).select(pl.col(s.name).hash(seed=_seed(s.name)) for s in texts)
        for texts in (once, each)
    ]
    return {series.name: series.to_numpy() for table in made for series in table}


def mixed(hashes: Mapping[str, np.ndarray], terms: Sequence[str]) -> np.ndarray:
    """
    Return a hash (uint64) of each row of texts: the sum of those of its terms; (1,) where these are
    the same in all rows.

    A column that a file lacks costs nothing and counts as blank.
    """
    total: np.ndarray = np.zeros(1, dtype=np.uint64)
    for term in terms:
        total = total + (hashes[term] if term in hashes else _hash_of_blank(term))
    return total


def _seed(term: str) -> int:
    return 1 + TERMS.index(term)


@cache
def _hash_of_blank(term: str) -> np.uint64:
    blank: np.uint64 = hashed({term: pl.Series([""])})[term][0]
    return blank


def _told(ids: pl.Series) -> np.ndarray:
    """Return where an id is one, neither blank nor a word for a missing value."""
    length: np.ndarray = pc.binary_length(ids.to_arrow()).to_numpy()
    told: np.ndarray = length > 0
    short = told & (length <= _LONGEST_MISSING)
    if short.any():
        few = ids.filter(pl.Series(short)).to_frame("id")
        told[short] = few.select(without_missing("id") != "")["id"].to_numpy()
    return told


def _ids(held: Mapping[str, pl.Series], hashes: Mapping[str, np.ndarray], rows: int) -> np.ndarray:
    """Return the hash (uint64) of the id of each record, 0 for none or a mere number of rows."""
    ids: np.ndarray = np.zeros(rows, dtype=np.uint64)
    if "recordID" in held:
        length: np.ndarray = pc.binary_length(held["recordID"].to_arrow()).to_numpy()
        np.copyto(ids, hashes["recordID"], where=length >= _SHORTEST_ID)
    return ids


def _visit(held: Mapping[str, pl.Series]) -> pl.Series | None:
    """Return the id of the visit: that of a shared list, of the whole walk, or of the event."""
    visit = None
    for term in ("eventID", "visitID", "groupID"):
        ids = held.get(term)
        if ids is not None:
            visit = ids if visit is None else ids.zip_with(pl.Series(_told(ids)), visit)
    return visit


def _own(texts: pl.DataFrame) -> pl.DataFrame:
    """Copy texts, so that they do not keep the whole block in memory."""
    return pl.DataFrame(
        {
            term: series.to_arrow(compat_level=pl.CompatLevel.oldest())
            for term, series in zip(texts.columns, texts, strict=True)
        }
    )


@dataclass
class _Coder:
    """Turns blocks into rows of numbers and collects the dictionaries."""

    folder: Path
    parts: int = 0
    read: int = 0
    malformed: int = 0
    core: str = "occurrence"
    notes: list[str] = field(default_factory=list)
    columns: set[str] = field(default_factory=set)
    dictionaries: dict[str, _Dictionary] = field(
        default_factory=lambda: {g: _Dictionary(terms) for g, terms in GROUPS.items()}
    )
    bad: list[pl.DataFrame] = field(default_factory=list)
    records: list[np.ndarray] = field(default_factory=list)
    several: bool = False  # files
    waiting: list[pl.DataFrame] = field(default_factory=list)
    waiting_rows: int = 0

    def add_file(self, file: RecordFile, number: int) -> Iterator[int]:
        """
        Code a file, yielding the bytes read so far.

        Raises
        ------
        RecordsError
            It holds no records.
        """
        events = _events(file)
        if events is not None:
            self.core = "event"
            events, told = one_visit_each(events)
            self.notes += [f"{file.path.name}: {note}" for note in told]
            numbers = pl.Series("row", range(1, len(events) + 1), dtype=pl.UInt32)
            visits = events["is_visit"]
            only = events.drop("visitID", "is_visit").filter(visits)
            self.add(Block(only, numbers.filter(visits)), number, is_event=True)
        before, orphans = self.read, 0
        for block, position in file.blocks():
            if events is not None:
                block, without = _join_events(block, events)
                orphans += without
            self.add(block, number)
            yield position
        if self.read == before:
            raise RecordsError(
                f"{file.path} holds a header but no records. Download or export it again."
            )
        if orphans:
            self.notes.append(
                f"{file.path.name}: {orphans:,} of its records name an event that its table of "
                "events does not hold."
            )

    def add(self, block: Block, file: int, *, is_event: bool = False) -> None:
        """Code one block."""
        self.columns |= set(block.rows.columns) & set(TERMS)
        if not is_event:
            self.read += len(block.rows) + len(block.malformed)
            self.malformed += len(block.malformed)
            kept = _MALFORMED_KEPT - sum(
                len(frame) for frame in self.bad if frame["file"][0] == file
            )
            if len(block.malformed) and kept > 0:
                number = pl.lit(file, dtype=pl.UInt16).alias("file")
                self.bad.append(block.malformed.head(kept).select(number, "row", "text"))
        if block.rows.is_empty():
            return
        rows = with_qualifier(with_genus(block.rows.drop(block.blank)))
        held = {series.name: series for series in rows}
        count = len(block.rows)
        numbers = {}
        # The whole row as far as it is understood: the same row again is a duplicate, wherever it
        # stands.
        same = {term for term in block.same if term not in _NAMES}  # names may be put together
        hashes = hashed(held, same)
        identity = mixed(hashes, ("recordID", "eventID"))
        for group, terms in GROUPS.items():
            of_group = mixed(hashes, terms)
            codes = self.dictionaries[group].number(held, of_group)
            numbers[group] = np.repeat(codes, count // len(codes))
            if group != "effort":  # the same sighting, however it says how long people looked
                identity = identity * _ODD + of_group
        visit = _visit(held)
        self.records.append(np.repeat(identity, count // len(identity)) ^ np.uint64(is_event))
        event = np.zeros(len(block.rows), dtype=np.uint64)
        if visit is not None:
            same_ids = hashes["eventID"] if visit is held.get("eventID") else None
            ids = visit.hash(seed=_seed("eventID")).to_numpy() if same_ids is None else same_ids
            np.copyto(event, ids, where=_told(visit))
        alike = {
            "file": np.full(len(event), file, dtype=np.uint16),
            "is_event": np.full(len(event), is_event),
        }
        frame = pl.DataFrame({"row": block.numbers, **numbers, "event": event, **alike})
        if self.several:
            frame = frame.with_columns(pl.Series("record", _ids(held, hashes, count)))
        self.waiting.append(frame)
        self.waiting_rows += len(frame)
        if self.waiting_rows >= _PART_ROWS:
            self.write()

    def write(self) -> None:
        """Write the rows that wait."""
        if not self.waiting:
            return
        _write(
            pl.concat(self.waiting),
            self.folder / f"rows-{self.parts:05d}.parquet",
            statistics=False,
        )
        self.parts += 1
        self.waiting, self.waiting_rows = [], 0

    def finish(self) -> None:
        """Write what the codes mean, and what was no good row."""
        self.write()
        for group, dictionary in self.dictionaries.items():
            _write(dictionary.table(), self.folder / f"{group}.parquet")
        _write(pl.DataFrame({"place": self.again()}), self.folder / "again.parquet")
        bad = pl.DataFrame(schema={"file": pl.UInt16, **MALFORMED})
        _write(pl.concat([bad, *self.bad]), self.folder / "malformed.parquet")

    def again(self) -> np.ndarray:
        """
        Return the places of rows that stood before, counting all rows in the order in which they
        were read.
        """
        records = np.concatenate(self.records) if self.records else np.empty(0, dtype=np.uint64)
        ordered = np.sort(records)
        if not (ordered[1:] == ordered[:-1]).any():  # the usual case
            return np.empty(0, dtype=np.int64)
        first = pl.Series(records).is_first_distinct().to_numpy()
        return np.flatnonzero(~first)


def read_occurrences(
    paths: Sequence[Path],
    *,
    scratch: Path,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> Occurrences:
    """
    Read files of records into one table.

    The result lies in a folder of ``scratch`` named after the files, their size and time; it is
    used again as long as these do not change. Memory in use is a few blocks of 8 MiB and the
    dictionaries.

    Parameters
    ----------
    paths
        Archives or tables.
    scratch
        Folder for the compact table.
    format
        Name of a reader, or ``auto``.
    columns
        Our name of a column: its name in the files.

    Returns
    -------
    Occurrences
        One table of coded rows, with what the codes mean.

    Raises
    ------
    MissingFileError
        A file does not exist.
    RecordsError
        A file is damaged, in no known layout or without records.
    """
    if not paths:
        raise RecordsError(
            "records.path names no file. Name at least one archive or table of records."
        )
    for path in paths:
        if not Path(path).exists():
            raise MissingFileError(f"There are no records at {path}. Correct records.path.")
    key = _key([Path(path) for path in paths], format, columns or {})
    folder = Path(scratch) / f"records-{key}"
    try:
        return _stored(folder, key, check=True)
    except (ArtefactError, MissingFileError, KeyError, pl.exceptions.PolarsError, OSError):
        pass  # absent or damaged: read again
    opened = [open_records(Path(path), format=format, columns=columns) for path in paths]
    total = sum(file.bytes for file in opened)
    with resumable_folder(folder, key) as partial:
        for left in partial.glob("*.parquet"):
            left.unlink()
        coder = _Coder(partial, several=len(opened) > 1)
        done = 0
        for number, file in enumerate(opened):
            for position in coder.add_file(file, number):
                progress("reading records", done + min(position, file.bytes), total)
            done += file.bytes
        progress("reading records", total, total)
        coder.finish()
        layouts = {file.day_first for file in opened}
        card: dict[str, Any] = {
            "key": key,
            "files": [file.path.name for file in opened],
            "columns": sorted(coder.columns),
            "read": coder.read,
            "malformed": coder.malformed,
            "core": coder.core,
            "notes": [*(note for file in opened for note in file.notes), *coder.notes],
            "day_first": layouts.pop() if len(layouts) == 1 else None,
            "sha256": {path.name: sha256(path) for path in sorted(partial.glob("*.parquet"))},
        }
        write_json(partial / "records.json", card)
    return _stored(folder, key)


def _write(table: pl.DataFrame, path: Path, *, statistics: bool = True) -> None:
    try:
        table.write_parquet(path, compression="lz4", statistics=statistics)
    except pl.exceptions.ComputeError as error:  # how polars tells of a full disk
        raise OSError(errno.EIO, f"the records cannot be written ({error})", str(path)) from error


def _stored(folder: Path, key: str, *, check: bool = False) -> Occurrences:
    card = read_json(folder / "records.json")
    if card["key"] != key:
        raise ArtefactError(f"{folder} holds other records.")
    for name, digest in card["sha256"].items() if check else ():
        if sha256(folder / name) != digest:
            log.warning("%s is damaged; the records are read again.", folder / name)
            raise ArtefactError(f"{folder / name} is damaged.")
    return Occurrences(
        folder=folder,
        dictionaries={
            group: pl.read_parquet(folder / f"{group}.parquet", glob=False) for group in GROUPS
        },
        again=pl.read_parquet(folder / "again.parquet", glob=False)["place"].to_numpy(),
        files=tuple(card["files"]),
        columns=frozenset(card["columns"]),
        read=card["read"],
        malformed=card["malformed"],
        core=card["core"],
        notes=tuple(card["notes"]),
        day_first=card["day_first"],
    )


def _key(paths: Sequence[Path], format: str, columns: Mapping[str, str]) -> str:
    state = []
    for path in paths:
        held = files_of(path)
        state.append([(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in held])
    chosen = {"tables": list(chosen_tables())} if chosen_tables() else {}
    return fingerprint(
        chosen
        | {
            "files": state,
            "format": format,
            "columns": dict(columns),
            "polars": pl.__version__,
            "version": FORMAT_VERSION,
        }
    )


def _cleaned(rows: pl.DataFrame) -> pl.DataFrame:
    """Return rows in which a word for a missing value is blank."""
    return rows.with_columns(without_missing(term) for term in rows.columns)


def _events(file: RecordFile) -> pl.DataFrame | None:
    """
    Return the survey events of a file; place and date of an event that has none are those of its
    parent.
    """
    blocks = file.events()
    if blocks is None:
        return None
    frames = [_own(_cleaned(block.rows)) for block, _ in blocks]
    if not frames or not sum(map(len, frames)):
        raise RecordsError(
            f"{file.path} has a table of events without rows. Download or export it again."
        )
    events = (
        pl.concat(frames, how="diagonal")
        .fill_null("")
        .unique(subset="eventID", keep="first", maintain_order=True)
    )
    if "parentEventID" not in events.columns:
        return events
    inherited = [
        term for term in events.columns if term not in ("eventID", "parentEventID", "recordID")
    ]
    groups = [
        # A section with a name of its own may lie nowhere but at its walk.
        [t for t in GROUPS["place"] if t in inherited and t != "locationID"],
        [t for t in GROUPS["date"] if t in inherited],
    ]
    groups += [[t] for t in inherited if t not in groups[0] + groups[1]]
    for _ in range(3):  # section, visit, survey
        parents = events.select(
            pl.col("eventID").alias("parentEventID"), pl.col(inherited).name.suffix("_parent")
        )
        joined = events.join(parents, on="parentEventID", how="left", maintain_order="left")
        events = joined.with_columns(
            pl.when(pl.all_horizontal(pl.col(group) == ""))
            .then(pl.col(f"{t}_parent").fill_null(""))
            .otherwise(pl.col(t))
            .alias(t)
            for group in groups
            if group
            for t in group
        ).select(events.columns)
    return events


def _join_events(block: Block, events: pl.DataFrame) -> tuple[Block, int]:
    """
    Give occurrences the place and date of their event where they have none; also count those whose
    event is unknown.
    """
    if "eventID" not in block.rows.columns:
        return block, 0
    terms = [
        term
        for term in events.columns
        if term in TERMS and term not in ("eventID", "parentEventID", "recordID")
    ]
    block = Block(_cleaned(block.rows), block.numbers, block.malformed)
    terms += ["visitID"]
    joined = block.rows.join(
        events.select("eventID", pl.col(terms).name.suffix("_event"), known=True),
        on="eventID",
        how="left",
        maintain_order="left",
    )
    orphans = joined.select((pl.col("known").is_null() & (pl.col("eventID") != "")).sum()).item()
    rows = block.rows.columns
    filled = joined.with_columns(
        (
            pl.when(pl.col(term) == "")
            .then(pl.col(f"{term}_event").fill_null(""))
            .otherwise(pl.col(term))
            if term in rows
            else pl.col(f"{term}_event").fill_null("")
        ).alias(term)
        for term in terms
    ).select([*rows, *(term for term in terms if term not in rows)])
    return Block(filled, block.numbers, block.malformed), orphans
