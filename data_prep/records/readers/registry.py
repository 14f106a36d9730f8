"""
Find the reader of a file: built in, or registered by another package in the group
``butterfly_sdm.readers``.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path

from butterfly_sdm.errors import MissingFileError, PluginError, RecordsError, did_you_mean
from data_prep.records.readers.reader import Reader, RecordFile

GROUP = "butterfly_sdm.readers"
BUILT_IN = {
    "dwca": "data_prep.records.readers.archive:ArchiveReader",
    "gbif": "data_prep.records.readers.tables:GbifReader",
    "nbn": "data_prep.records.readers.tables:NbnReader",
    "ukbms": "data_prep.records.readers.ukbms:UkbmsReader",
    "table": "data_prep.records.readers.tables:TableReader",
}


def reader(name: str) -> Reader:
    """
    Return the reader of that name.

    Raises
    ------
    RecordsError
        No reader has the name.
    PluginError
        It is registered, but broken, or two packages register it.
    """
    found = _registered()
    if name not in found:
        raise RecordsError(
            f"records.format = {name!r} is no known layout. Known are auto, "
            f"{', '.join(found)}.{did_you_mean(name, found)}"
        )
    return _load(name, found[name])


def readers() -> dict[str, str]:
    """
    Return the names of all readers with a line on each; a broken one is listed with its error.
    """
    lines = {}
    for name, value in _registered().items():
        try:
            lines[name] = _load(name, value).summary
        except PluginError as error:
            lines[name] = str(error)
    return lines


def open_records(
    path: Path, *, format: str = "auto", columns: Mapping[str, str] | None = None
) -> RecordFile:
    """
    Open a file of records.

    Parameters
    ----------
    path
        File or folder.
    format
        Name of a reader, or ``auto`` to take the first that recognises it.
    columns
        Our name of a column: its name in the file.

    Raises
    ------
    MissingFileError
        It does not exist.
    RecordsError
        No reader recognises it, or it is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"There are no records at {path}. Correct records.path.")
    if format != "auto":
        return reader(format).open(path, columns or {})
    found = _registered()
    order = [name for name in found if name not in BUILT_IN] + [
        name for name in BUILT_IN if name in found
    ]
    for name in order:
        try:
            candidate = _load(name, found[name])
        except PluginError:
            continue  # another package's broken reader must not keep known layouts from being read
        if candidate.recognises(path):
            return candidate.open(path, columns or {})
    raise RecordsError(_unrecognised(path, order))


def _unrecognised(path: Path, order: list[str]) -> str:
    from data_prep.records.readers.containers import is_zip, open_container

    if path.suffix.lower() in (".xlsx", ".xls", ".ods"):
        return (
            f"{path} is a spreadsheet, which is not read. Save the sheet of records as CSV, and "
            "name that in records.path."
        )
    held = ""
    if path.is_dir() or is_zip(path):
        names = open_container(path).names
        held = (
            f" It holds {', '.join(names[:5]) or 'nothing'}, and neither meta.xml nor "
            "occurrence.txt."
        )
    advice = "Name the table of records itself in records.path, or its layout in records.format."
    return f"{path} is in no known layout of records ({', '.join(order)}).{held} {advice}"


def _registered() -> dict[str, str]:
    found = dict(BUILT_IN)
    owners: dict[str, str] = {}
    for point in entry_points(group=GROUP):
        owner = point.dist.name if point.dist is not None else point.value
        if found.get(point.name) == point.value:
            continue  # the built-in readers are declared by the same door
        if point.name in owners or point.name in BUILT_IN:
            raise PluginError(
                f"Two packages register a reader named {point.name!r}: "
                f"{owners.get(point.name, 'butterfly-sdm')} and {owner}. "
                "Uninstall one of them."
            )
        found[point.name], owners[point.name] = point.value, owner
    return found


def _load(name: str, value: str) -> Reader:
    from importlib import import_module

    module, _, attribute = value.partition(":")
    try:
        made = getattr(import_module(module), attribute)
        return made() if isinstance(made, type) else made
    except Exception as error:  # whatever another package does while it is imported
        raise PluginError(
            f"The reader {name!r} ({value}) cannot be loaded: {type(error).__name__}: {error}"
        ) from error
