"""What is done in an array on disk, unit by unit, with the checksums of the places it filled."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from butterfly_sdm.core.arrays import release_pages
from butterfly_sdm.core.work import Journal
from butterfly_sdm.errors import ArtefactError

WRITE_S = 5.0  # seconds between two writes of a journal
DOUBTED, AGAIN = "doubted", "again"


class Ledger:
    """
    A journal of finished units in which the places that are filled have their checksum.

    A place is what :func:`at` understands: a row of the array (``"12"``), or ranges of its axes
    (``"0:4,0:512,512:1024"``). The last checksum of a place counts.

    Parameters
    ----------
    path
        Of the journal.
    array
        Mapped from its file; on the disk before a unit is called done.

    Attributes
    ----------
    done
        Names of the units.
    sums
        Places with their checksum and the unit that filled them last.
    doubted
        Places whose content nobody vouches for any more, until they are made again.

    Raises
    ------
    ArtefactError
        A line of the journal was changed: nothing in it can be relied on.
    """

    def __init__(self, path: Path, array: np.memmap) -> None:
        self.array = array
        self.journal = Journal(path, flush=array.flush, every_s=WRITE_S)
        self.done: set[str] = set()
        self.sums: dict[str, tuple[str, str]] = {}
        self.doubted: set[str] = set()
        for line in self.journal.lines:
            self._enter(*_parts(line, path))

    def _enter(self, unit: str, held: Iterable[str]) -> None:
        for entry in held:
            place, _, checksum = entry.partition("@")
            if unit == DOUBTED:
                self.doubted.add(place)
                continue
            self.sums[place] = (checksum, unit)
            self.doubted -= {place} if unit == AGAIN else set()
        if unit not in (DOUBTED, AGAIN):
            self.done.add(unit)

    def add(self, unit: str, places: Iterable[str] = ()) -> None:
        """Note that a unit is done, and what is now in the places that no one else will change."""
        self._note(unit, [f"{place}@{self.checksum(place)}" for place in places])

    def doubt(self, places: Iterable[str]) -> None:
        """Note that places have to be made again; :meth:`add` the unit ``again`` when they are."""
        if held := sorted(set(places) - self.doubted):
            self._note(DOUBTED, held)

    def _note(self, unit: str, held: list[str]) -> None:
        text = f"{unit}|{';'.join(held)}"
        self.journal.add(f"{text}|{zlib.crc32(text.encode()):08x}")
        self._enter(unit, held)

    def save(self) -> None:
        """Write down what is done, once it is on the disk."""
        self.journal.save()

    def checksum(self, place: str) -> str:
        """Return the checksum of what is in a place now."""
        return checksum_of(self.array[at(place)])

    def unlike(self) -> set[str]:
        """Return the places that are no longer as they were left."""
        found = {place for place, (sum_, _) in self.sums.items() if self.checksum(place) != sum_}
        release_pages(self.array)
        return found


def checksum_of(values: np.ndarray) -> str:
    """
    Return the CRC-32 of the sums of every 512 words of 8 bytes, and of what is left over.

    Any bit that changes changes a sum; it takes a sixth of the time of the CRC-32 of all bytes,
    which would be 4 % of the time of cutting.
    """
    flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    whole = len(flat) // 4096 * 4096
    sums = flat[:whole].view(np.uint64).reshape(-1, 512).sum(axis=1, dtype=np.uint64)
    return f"{zlib.crc32(flat[whole:].data, zlib.crc32(sums.data)):08x}"


def at(place: str) -> tuple[int | slice, ...]:
    """
    Return where a place lies in an array.

    >>> at("12"), at("0:4,512:1024")
    ((12,), (slice(0, 4, None), slice(512, 1024, None)))
    """
    axes = [axis.partition(":") for axis in place.split(",")]
    return tuple(slice(int(a), int(b)) if colon else int(a) for a, colon, b in axes)


def place_of(where: tuple[slice, ...]) -> str:
    """
    Return the name of a place.

    >>> place_of((slice(0, 4), slice(512, 1024)))
    '0:4,512:1024'
    """
    return ",".join(f"{axis.start}:{axis.stop}" for axis in where)


def _parts(line: str, path: Path) -> tuple[str, list[str]]:
    text, _, checksum = line.rpartition("|")
    unit, bar, held = text.partition("|")
    if not bar or f"{zlib.crc32(text.encode()):08x}" != checksum:
        raise ArtefactError(f"{path} was changed since it was written.")
    return unit, held.split(";") if held else []
