"""Read Darwin Core Archives, with an occurrence core or an event core."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element

import polars as pl

from butterfly_sdm.errors import RecordsError
from data_prep.records.columns import match_columns, require
from data_prep.records.files.containers import Container, escapes, is_zip, open_container
from data_prep.records.files.delimited import DelimitedText, block_end
from data_prep.records.files.layout import Layout, known_encoding, sniff
from data_prep.records.files.limits import current_limits, raise_limit
from data_prep.records.files.markup import children, first_text, local_name, parse_xml
from data_prep.records.files.workbook import is_workbook
from data_prep.records.readers.reader import Block

_ESCAPES = {"\\t": "\t", "\\n": "\n", "\\r": "\r", "\\r\\n": "\r\n", "&quot;": '"'}


@dataclass(frozen=True)
class Table:
    """
    One table of an archive: its files, their layout, which columns mean what, and columns with one
    value throughout.
    """

    row_type: str
    files: tuple[str, ...]
    layout: Layout
    columns: dict[str, str]
    defaults: dict[str, str]
    notes: tuple[str, ...] = ()


@dataclass
class DarwinCoreArchive:
    """An opened archive; a :class:`~data_prep.records.readers.reader.RecordFile`."""

    path: Path
    container: Container
    occurrences: Table
    event_table: Table | None
    licence: str | None
    citation: str | None
    extra_notes: list[str] = field(default_factory=list)
    day_first: bool | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the archive."""
        return tuple(self.extra_notes)

    @property
    def bytes(self) -> int:
        """Unpacked size of the occurrences."""
        return sum(self.container.size(name) for name in self.occurrences.files)

    def blocks(self) -> Iterator[tuple[Block, int]]:
        """Yield the occurrences."""
        return self._rows(self.occurrences)

    def events(self) -> Iterator[tuple[Block, int]] | None:
        """Yield the events of an event core."""
        return None if self.event_table is None else self._rows(self.event_table)

    def _rows(self, table: Table) -> Iterator[tuple[Block, int]]:
        offset = rows = 0
        for name in table.files:
            opener = partial(self.container.open, name)
            text = DelimitedText(f"{name} in {self.path.name}", opener, table.layout, table.columns)
            last = 0
            for block, position in text.blocks():
                block = block.after(rows)
                filled = (
                    block.rows
                    if not table.defaults
                    else block.rows.with_columns(
                        pl.lit(value).alias(term)
                        if term not in block.rows.columns
                        else pl.when(pl.col(term) == "")
                        .then(pl.lit(value))
                        .otherwise(pl.col(term))
                        .alias(term)
                        for term, value in table.defaults.items()
                    )
                )
                last = block_end(block, last)
                same = {t: text for t, text in block.same.items() if t not in table.defaults}
                yield Block(filled, block.numbers, block.malformed, same), offset + position
            rows = max(rows, last)
            offset += self.container.size(name)
            self.extra_notes.extend(text.notes)


class ArchiveReader:
    """
    Darwin Core Archives, as GBIF, the NBN Atlas and IPT servers publish them; zipped or unpacked.
    """

    name = "dwca"
    summary = "Darwin Core Archive with an occurrence or event core (zip or folder)"

    def recognises(self, path: Path) -> bool:
        """Tell whether it is a zip archive or folder with meta.xml or an occurrence table."""
        if path.is_dir():
            return (path / "meta.xml").is_file() or (path / "occurrence.txt").is_file()
        if not is_zip(path) or is_workbook(path):  # one of OpenDocument has a meta.xml, too
            return False
        names = {name.lower().rsplit("/", 1)[-1] for name in open_container(path).names}
        return bool(names & {"meta.xml", "occurrence.txt"})

    def open(self, path: Path, columns: Mapping[str, str]) -> DarwinCoreArchive:
        """
        Open an archive.

        Raises
        ------
        RecordsError
            The archive is damaged or holds no occurrences.
        """
        container = open_container(path)
        root = _root(container)
        notes: list[str] = []
        if root + "meta.xml" in container.names:
            tables = _described(container, root, columns)
        else:
            tables = [_undescribed(container, root, columns)]
            notes.append(
                f"{path.name} has no meta.xml; the header row of occurrence.txt was taken to name "
                "the columns."
            )
        core, *extensions = tables
        occurrences, events = core, None
        if core.row_type == "event":
            events = core
            found = [table for table in extensions if table.row_type == "occurrence"]
            if not found:
                raise RecordsError(
                    f"{path} has an event core but no table of occurrences: nobody says what was "
                    "seen. Add it."
                )
            occurrences = found[0]
        elif core.row_type != "occurrence":
            raise RecordsError(
                f"{path} has a core of type {core.row_type!r}; records need an Occurrence or an "
                "Event core. "
                "Choose another download, or name its table directly."
            )
        require(
            [*occurrences.columns.values(), *occurrences.defaults],
            f"{occurrences.files[0]} in {path.name}",
        )
        licence, citation = _metadata(container, root)
        notes.extend(
            note for table in (events, occurrences) if table is not None for note in table.notes
        )
        return DarwinCoreArchive(path, container, occurrences, events, licence, citation, notes)


def _root(container: Container) -> str:
    """Return the folder within the archive that holds it, ``""`` or ending in ``/``."""
    for wanted in ("meta.xml", "occurrence.txt"):
        places = [name for name in container.names if name.rsplit("/", 1)[-1] == wanted]
        if len(places) > 1:
            raise RecordsError(
                f"{container.path} holds {len(places)} archives, each with a {wanted}: "
                f"{', '.join(places[:5])}. Name one of their folders in records.path, or list them "
                "all there."
            )
        if places:
            return min(places, key=len)[: -len(wanted)]
    held = ", ".join(container.names[:5]) or "nothing"
    raise RecordsError(
        f"{container.path} is no Darwin Core Archive: it has neither meta.xml nor occurrence.txt, "
        f"but {held}. "
        "Download it as a Darwin Core Archive, or name its format in records.format."
    )


def _described(container: Container, root: str, columns: Mapping[str, str]) -> list[Table]:
    where = f"meta.xml in {container.path.name}"
    meta = parse_xml(container.read(root + "meta.xml"), where)
    cores = children(meta, "core")
    if not cores:
        held = "an extension but no core" if children(meta, "extension") else "no core"
        raise RecordsError(
            f"{where} names {held}: nothing says which table holds the records. Export the archive "
            "again."
        )
    return [
        _table(container, root, element, columns, where)
        for element in [cores[0], *children(meta, "extension")]
        if element is cores[0] or local_type(element) == "occurrence"
    ]


def local_type(element: Element) -> str:
    """Return the type of the rows of a table in small letters, such as ``occurrence``."""
    return _local(element.get("rowType", "")).lower()


def _names_columns(
    row: Sequence[str], fields: Sequence[tuple[int, str, str | None]], quote: str | None
) -> bool:
    """Tell whether a row names any field in its own column, for SPECIES is also a rank."""
    cells = [cell.strip().strip(quote or "").rsplit(":", 1)[-1].lower() for cell in row]
    return any(
        _local(term).lower() == cell
        for index, term, _ in fields
        for cell in cells[index : index + 1]
        if index >= 0
    )


def _local(address: str) -> str:
    return address.rsplit("/", 1)[-1].rsplit("#", 1)[-1]


@dataclass(frozen=True)
class _Described:
    """What ``meta.xml`` says of columns: (place, term, default) of fields, places of ids."""

    fields: tuple[tuple[int, str, str | None], ...]
    ids: tuple[int, ...]
    header_rows: int

    @classmethod
    def read(cls, element: Element, where: str) -> _Described:
        try:
            made = cls(
                tuple(
                    (int(f.get("index", "-1")), f.get("term", ""), f.get("default"))
                    for f in children(element, "field")
                ),
                tuple(
                    int(f.get("index", "0"))
                    for tag in ("id", "coreid")
                    for f in children(element, tag)
                ),
                int(element.get("ignoreHeaderLines") or 0),
            )
        except ValueError as error:
            raise RecordsError(
                f"{where} has an index that is no number ({error}). Export the archive again."
            ) from error
        places = [place for place, _, _ in made.fields]
        if made.header_rows < 0 or min(places, default=0) < -1 or min(made.ids, default=0) < 0:
            raise RecordsError(
                f"{where} has a negative index or count of header lines. Export the archive again."
            )
        if made.width > current_limits().columns:
            raise RecordsError(
                f"{where} names {made.width:,} columns: this is no table of records. "
                f"{raise_limit('columns')}"
            )
        return made

    @property
    def width(self) -> int:
        return max([place for place, _, _ in self.fields] + list(self.ids), default=0) + 1


def _files(container: Container, root: str, element: Element, where: str) -> tuple[str, ...]:
    """Return the files of a table, which the archive must hold."""
    files = [
        " ".join("".join(place.itertext()).split())
        for held in children(element, "files")
        for place in children(held, "location")
    ]
    if not files:
        raise RecordsError(
            f"{where} names no file for its {local_name(element.tag)}. Export the archive again."
        )
    for name in files:
        if escapes(name):
            raise RecordsError(
                f"{where} names the file {name!r}, which would escape the archive. It is not to be "
                "trusted."
            )
        if root + name not in container.names:
            held_names = ", ".join(container.names[:8])
            raise RecordsError(
                f"{container.path} has no {name}, which its meta.xml names; it holds {held_names}. "
                "Download it again."
            )
    return tuple(root + name for name in files)


def _meaning(
    described: _Described, layout: Layout, element: Element, columns: Mapping[str, str], where: str
) -> dict[str, str]:
    """Return the columns of a table that mean something: name in the layout, term."""
    by_place = {f"#{place}": term for place, term, _ in described.fields if place >= 0}
    named = [by_place.get(name, name) for name in layout.columns]
    back = dict(zip(reversed(named), reversed(layout.columns), strict=True))
    used = {back[name]: term for name, term in match_columns(named, columns, where).items()}
    if described.ids:
        of_event = local_type(element) == "event" or local_name(element.tag) == "extension"
        held, column = "eventID" if of_event else "recordID", f"#{described.ids[0]}"
        used = {name: term for name, term in used.items() if term != held or name == column}
        used.setdefault(column, held)
    return used


def _table(
    container: Container, root: str, element: Element, columns: Mapping[str, str], where: str
) -> Table:
    files = _files(container, root, element, where)
    described = _Described.read(element, where)
    text = {key: _unescape(element.get(key), default) for key, default in _TEXT.items()}
    layout = Layout(
        text["fieldsTerminatedBy"] or "\t",
        text["fieldsEnclosedBy"] or None,
        tuple(f"#{index}" for index in range(described.width)),
        known_encoding(element.get("encoding") or "utf-8", where),
        described.header_rows,
    )
    # The files may have more columns than meta.xml names, and the first row tells how many.
    layout, first = _fit(container, files[0], layout)
    notes: tuple[str, ...] = ()
    if layout.separator != (text["fieldsTerminatedBy"] or "\t"):
        notes = (
            f"{where} says fieldsTerminatedBy={text['fieldsTerminatedBy']!r}, but the columns of "
            f"{files[0].removeprefix(root)} are separated by tabs; it was read so. (A tab written "
            "as itself in XML becomes a blank.)",
        )
    if (
        layout.header_rows == 1
        and len(first) == len(layout.columns)
        and not _names_columns(first, described.fields, layout.quote)
    ):
        layout = replace(layout, header_rows=0)
        notes = (
            *notes,
            f"{files[0].removeprefix(root)} begins with a row that names no column, though "
            "meta.xml calls it a header; it was read as data.",
        )
    used = _meaning(described, layout, element, columns, where)
    defaults = {}
    for _, term, default in described.fields:
        if default is not None and (known := match_columns([term], {}, where).get(term)):
            defaults[known] = default
    return Table(local_type(element), files, layout, used, defaults, notes)


_TEXT = {"fieldsTerminatedBy": ",", "fieldsEnclosedBy": '"'}


def _unescape(value: str | None, default: str) -> str:
    return default if value is None else _ESCAPES.get(value, value)


def _fit(container: Container, name: str, layout: Layout) -> tuple[Layout, list[str]]:
    """Return the layout with as many columns as the first row has, and the cells of that row."""
    with container.open(name) as file:
        sample = file.read(1 << 16)
    if not sample.strip():
        raise RecordsError(
            f"{name} in {container.path.name} is empty: there are no records. Download the archive "
            "again."
        )
    text = sample.decode(
        layout.encoding if layout.encoding != "utf-8" else "utf-8-sig", errors="replace"
    )
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    first = lines[0]
    if layout.separator == " " and first.count("\t") + 1 >= len(layout.columns):
        layout = replace(layout, separator="\t")
    held = 0
    if layout.quote is None or layout.quote not in first:
        below = next((line for line in lines[layout.header_rows :] if line.strip()), first)
        of_header, of_row = (line.count(layout.separator) + 1 for line in (first, below))
        # The header of some downloads ends in a tab too many: rows as meta.xml says are right.
        held = of_row if of_row == len(layout.columns) else of_header
    if held > len(layout.columns):
        layout = replace(
            layout,
            columns=(*layout.columns, *(f"#{index}" for index in range(len(layout.columns), held))),
        )
    return layout, first.split(layout.separator)


def _undescribed(container: Container, root: str, columns: Mapping[str, str]) -> Table:
    name = root + "occurrence.txt"
    where = f"{name} in {container.path.name}"
    with container.open(name) as file:
        sample = file.read(1 << 16)
    if not sample.strip():
        raise RecordsError(f"{where} is empty: there are no records. Download the archive again.")
    layout = sniff(sample)
    return Table("occurrence", (name,), layout, match_columns(layout.columns, columns, where), {})


def _metadata(container: Container, root: str) -> tuple[str | None, str | None]:
    """Return licence and citation from the archive's EML, where they are given."""
    for name in ("metadata.xml", "eml.xml"):
        if root + name not in container.names:
            continue
        try:
            eml = parse_xml(container.read(root + name), name)
        except RecordsError:
            return None, None  # the records do not depend on it
        licence = first_text(eml, "dataset", "intellectualRights")
        citation = (
            first_text(eml, "additionalMetadata", "metadata", "gbif", "citation")
            or first_text(eml, "dataset", "citation")
            or first_text(eml, "dataset", "title")
        )
        return licence, citation
    return None, None
