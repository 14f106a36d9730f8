"""Look at files of records and scenes as they are understood, before anything is built."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import yaml

from butterfly_sdm.core.html import rows_html
from butterfly_sdm.errors import MissingFileError
from butterfly_sdm.imagery.embeddings.zarr_store import is_store
from butterfly_sdm.progress import Progress, silent
from data_prep.look.records import ColumnSeen, RecordsSeen, look_at_records
from data_prep.look.scenes import SceneSeen, look_at_scene
from data_prep.notes import survey_doubts

_RASTERS = frozenset(".tif .tiff .jp2 .vrt .img .nc .safe".split())
_COMMONEST, _SPELLINGS, _SHAPES = 12, 3, 6


@dataclass(frozen=True)
class Section:
    """
    A part of what is told: lines, or a table.

    Attributes
    ----------
    title
        What it is about.
    rows
        Cells; one cell a row is a sentence.
    header
        Of the columns.
    """

    title: str
    rows: tuple[tuple[str, ...], ...]
    header: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Look:
    """
    What files hold, as they were understood.

    Attributes
    ----------
    records
        None where no records were looked at.
    scene
        None where no raster was looked at.
    """

    records: RecordsSeen | None = None
    scene: SceneSeen | None = None

    @property
    def understood(self) -> bool:
        """Whether a data set can be built of them."""
        return not any(part is not None and part.missing for part in (self.records, self.scene))

    @property
    def sections(self) -> tuple[Section, ...]:
        """All of it in words, in the order in which one asks."""
        found: list[Section] = []
        if self.records is not None:
            found += _told_of_records(self.records)
        if self.scene is not None:
            found += _told_of_scene(self.scene)
        return tuple(found)

    @property
    def yaml(self) -> str:
        """The lines to paste under a config."""
        lines = ["build:"]
        for name in ("records", "scenes"):
            if own := self.lines(name):
                lines += [f"  {name}:", *own]
        return "\n".join(lines) + "\n"

    def lines(self, section: str, *, beside: Path | None = None) -> list[str]:
        """
        Return the lines of a section of ``build``.

        Parameters
        ----------
        section
            ``records`` or ``scenes``; one that was not looked at has no lines.
        beside
            The YAML for which they are: names of files are relative to it.
        """
        part = self.records if section == "records" else self.scene
        if part is None:
            return []
        if beside is not None:
            home = beside.resolve().parent
            paths = tuple(Path(os.path.relpath(path.resolve(), home)) for path in part.paths)
            part = replace(part, paths=paths)
        return setting_lines(part.settings(), 4)

    def __str__(self) -> str:
        texts = []
        for section in self.sections:
            rows = [" | ".join(row) for row in section.rows]
            texts.append("\n".join([section.title, *(f"  {row}" for row in rows)]))
        return "\n\n".join([*texts, self.yaml])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        parts = [rows_html(part.title, part.header, part.rows) for part in self.sections]
        lines = f"<div><b>Lines for your config</b><pre>{escape(self.yaml)}</pre></div>"
        return "".join([*parts, lines])


def look(
    paths: Sequence[Path],
    *,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> Look:
    """
    Look at files: rasters together as one scene, all others together as records.

    Parameters
    ----------
    paths
        Files or folders.
    format, columns
        Of the records, as in ``build.records``.

    Raises
    ------
    MissingFileError
        One does not exist.
    """
    paths = [Path(path) for path in paths]
    for path in paths:
        if not path.exists():
            raise MissingFileError(f"There is nothing at {path}. Correct the name.")
    rasters = [path for path in paths if is_scene(path)]
    tables = [path for path in paths if path not in rasters]
    records = None
    if tables:
        with tempfile.TemporaryDirectory() as scratch:
            records = look_at_records(
                tables, scratch=Path(scratch), format=format, columns=columns, progress=progress
            )
    return Look(records, look_at_scene(rasters) if rasters else None)


def is_scene(path: Path) -> bool:
    """Tell whether a path holds imagery rather than records."""
    if path.suffix.lower() in _RASTERS:
        return True
    if path.is_dir():
        return is_store(path) or any(held.suffix.lower() in _RASTERS for held in path.rglob("*"))
    if path.suffix.lower() == ".json":
        try:
            return "stac_version" in json.loads(path.read_text("utf-8"))
        except (ValueError, OSError):
            return False
    return False


def setting_lines(settings: Mapping[str, tuple[object, str]], indent: int) -> list[str]:
    """Write settings as lines of YAML, each with its reason as a comment."""
    lines = []
    for name, (value, why) in settings.items():
        text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
        told = text.removesuffix("\n").removesuffix("\n...")
        lines.append(" " * indent + f"{name}: {told}" + (f"    # {why}" if why else ""))
    return lines


def _told_of_records(seen: RecordsSeen) -> list[Section]:
    found = [Section("Files", tuple((line,) for line in seen.layout))]
    if seen.missing:
        told = [(seen.missing,)]
        if "records.columns" in seen.missing:
            told.append(("Try a name here: butterfly-sdm look FILE --column eventDate=NAME",))
        found.append(Section("What is missing", tuple(told)))
    found += _told_of_columns(seen)
    if seen.dates:
        span = f"Dates: {seen.first_day} to {seen.last_day}" if seen.first_day else "Dates"
        rows = [(f"{s.rows:,}", s.example[:40], s.meaning) for s in seen.dates[:_SHAPES]]
        found.append(Section(span, tuple(rows), ("rows", "written", "read as")))
    if seen.names is not None and len(seen.names):
        found.append(_told_of_names(seen))
    if seen.table is not None:
        found.append(_told_of_counts(seen))
    found += _told_of_losses(seen)
    return found


def _told_of_columns(seen: RecordsSeen) -> list[Section]:
    found = []
    tables = dict.fromkeys(column.table for column in seen.columns)
    for table in tables:
        own = [column for column in seen.columns if column.table == table]
        used = [column for column in own if column.meaning]
        rows = [(c.name, _meaning(c, seen), _values(c)) for c in used]
        ignored = [c for c in own if not c.meaning]
        if seen.missing:
            rows += [(c.name, "?", _values(c)) for c in ignored]
        title = f"Columns of {table}" if len(tables) > 1 else "Columns"
        if rows:
            found.append(Section(title, tuple(rows), ("column", "read as", "such as")))
        if ignored and not seen.missing:
            told = tuple((c.name, _values(c)) for c in ignored[:15])
            more = f" (the first 15 of {len(ignored)})" if len(ignored) > 15 else ""
            found.append(Section(f"Columns ignored{more}", told, ("column", "such as")))
    return found


def _meaning(column: ColumnSeen, seen: RecordsSeen) -> str:
    guessed = seen.suggested.get(column.meaning) == column.name
    same = "as it is named" if column.meaning == column.name else column.meaning
    return f"{column.meaning} (by its values)" if guessed else same


def _values(column: ColumnSeen) -> str:
    return " · ".join(" ".join(value.split())[:30] for value in column.values) or "(empty)"


def _told_of_names(seen: RecordsSeen) -> Section:
    names = seen.names
    assert names is not None
    rows = []
    for species, count, spellings in names.head(_COMMONEST).itertuples(index=False):
        others = [text for text in spellings if text != species]
        more = f", and {len(others) - _SPELLINGS} more" if len(others) > _SPELLINGS else ""
        rows.append((f"{count:,}", species, ", ".join(others[:_SPELLINGS]) + more))
    more = f", the {_COMMONEST} commonest" if len(names) > _COMMONEST else ""
    return Section(
        f"Species: {len(names):,}{more}", tuple(rows), ("rows", "species", "also written")
    )


def _told_of_counts(seen: RecordsSeen) -> Section:
    table = seen.table
    assert table is not None
    west, south, east, north = table.sites.total_bounds
    visits = table.visits
    enough = ", ".join(f"{n} or more: {int((visits >= n).sum()):,}" for n in (2, 5, 10))
    scheme = seen.settings()["scheme"][1]
    rows = [
        ("sites", f"{len(visits):,}; by visits, {enough}"),
        ("visits", f"{int(visits.sum()):,} ({scheme})"),
        ("species", f"{len(table.species):,}"),
        ("extent", f"{west:.4f} to {east:.4f} E, {south:.4f} to {north:.4f} N (WGS 84)"),
    ]
    seen_most = (table.detections.sum() / max(int(visits.sum()), 1)).nlargest(3)
    told = ", ".join(f"{name} on {rate:.0%}" for name, rate in seen_most.items())
    rows.append(("most seen", f"{told} of the visits"))
    return Section("Counted, without any filter", tuple(rows))


def _told_of_losses(seen: RecordsSeen) -> list[Section]:
    found = []
    table = seen.table
    if table is not None:
        read = table.rows["read"]
        losses = {
            key.removeprefix("dropped: "): n
            for key, n in table.rows.items()
            if key.startswith("dropped: ")
        }
        rows = [
            (f"{n:,}", f"{n / read:.1%}", reason, _examples(seen, reason))
            for reason, n in sorted(losses.items(), key=lambda item: -item[1])
        ]
        title = f"Left out: {sum(losses.values()):,} of {read:,} rows"
        found.append(Section(title, tuple(rows), ("rows", "", "why", "such as") if rows else ()))
        doubts = survey_doubts(table, {})
        if doubts:
            found.append(Section("Doubts", tuple((text,) for text in doubts)))
    elif seen.left_out:
        rows = [("", "", reason, _examples(seen, reason)) for reason in seen.left_out]
        found.append(Section("Left out", tuple(rows), ("rows", "", "why", "such as")))
    if seen.notes:
        found.append(Section("Notes", tuple((note,) for note in seen.notes)))
    return found


def _examples(seen: RecordsSeen, reason: str) -> str:
    values = seen.left_out.get(reason, ())
    return " · ".join(f"{value} ({rows:,})" for value, rows in values)


def _told_of_scene(seen: SceneSeen) -> list[Section]:
    found = []
    if seen.missing:
        found.append(Section("What is missing", ((seen.missing,),)))
    if seen.facts:
        found.append(Section("Scene", tuple(seen.facts.items())))
    known = not seen.missing or bool(seen.suggested)
    digits = ".3f" if known else ".0f"
    rows = [
        (str(number), band.name, *(f"{v:{digits}}" for v in (band.low, band.median, band.high)))
        for number, band in enumerate(seen.bands, start=1)
    ]
    if rows:
        what = "reflectance" if known else "stored values"
        what += ", if they are named so" if seen.suggested else ""
        header = ("", "band", "2 %", "median", "98 %")
        found.append(Section(f"Bands, with {what}", tuple(rows), header))
    if known:
        checks = seen.doubts or ("The order and range of the bands look like vegetated land.",)
        found.append(Section("Spectral check", tuple((text,) for text in checks)))
    return found
