"""
Find the reader of a file: built in, or registered by another package in the group
``butterfly_sdm.readers``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from butterfly_sdm.core.registry import Offer, Registry
from butterfly_sdm.errors import MissingFileError, PluginError, RecordsError, did_you_mean
from data_prep.records.files.containers import is_zip, open_container
from data_prep.records.readers.reader import Reader, RecordFile

# In the order in which ``auto`` asks them: the last takes any table.
BUILT_IN = {
    "dwca": "data_prep.records.readers.archive:ArchiveReader",
    "gbif": "data_prep.records.readers.tables:GbifReader",
    "nbn": "data_prep.records.readers.tables:NbnReader",
    "ukbms": "data_prep.records.readers.ukbms:UkbmsReader",
    "irecord": "data_prep.records.readers.exports:IRecordReader",
    "mapmate": "data_prep.records.readers.exports:MapMateReader",
    "inaturalist": "data_prep.records.readers.exports:INaturalistReader",
    "ebird": "data_prep.records.readers.exports:EbirdReader",
    "birdtrack": "data_prep.records.readers.exports:BirdTrackReader",
    "table": "data_prep.records.readers.tables:TableReader",
}
READERS = Registry("butterfly_sdm.readers", "reader", BUILT_IN, needs=("recognises", "open"))


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
    found = READERS.offers()
    if name not in found:
        raise RecordsError(
            f"records.format = {name!r} is no known layout. Known are auto, "
            f"{', '.join(found)}.{did_you_mean(name, found)}"
        )
    return _load(found[name])


def readers() -> dict[str, str]:
    """
    Return the names of all readers with a line on each; a broken one is listed with its error.
    """
    lines = {}
    for name, offer in READERS.offers().items():
        try:
            lines[name] = _load(offer).summary
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
    found = READERS.offers()
    order = [*(name for name in found if name not in BUILT_IN), *BUILT_IN]
    for name in order:
        try:
            candidate = _load(found[name])
        except PluginError:
            continue  # another package's broken reader must not keep known layouts from being read
        if candidate.recognises(path):
            return candidate.open(path, columns or {})
    raise RecordsError(_unrecognised(path, order))


def _unrecognised(path: Path, order: list[str]) -> str:
    if re.search(r"\.(tgz|tbz2?|txz|tar(\.\w+)?|7z|rar|bz2|xz|zst)$", path.name.lower()):
        return (
            f"{path} is an archive that is not read: records come in zip or gzip. Unpack it and "
            "name the table or folder within in records.path."
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


def _load(offer: Offer) -> Reader:
    made = offer.load()
    try:
        read: Reader = made() if isinstance(made, type) else made
    except Exception as error:  # whatever another package does while it is made
        raise PluginError(
            f"The reader {offer.name!r} of {offer.distribution} cannot be made: "
            f"{type(error).__name__}: {error}. Update or remove that package."
        ) from error
    return read
