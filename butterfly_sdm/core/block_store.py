"""
Results of blocks, kept on disk until all are there, so that an interrupted map continues where it
stopped.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from butterfly_sdm.core.arrays import new_array, release_pages
from butterfly_sdm.core.work import Journal

log = logging.getLogger("butterfly_sdm")

Shape = tuple[int, ...]


class Store:
    """
    Arrays in a folder, filled block by block, with a journal of the blocks that are done.

    A block is entered in the journal, with the checksum of what was written, only after its arrays
    are written; a process that is killed in between computes that block again, to the same values.
    So is a block that no longer fits its checksum when the work is continued: the disk was damaged,
    or the power went before the pages of the array were on it.

    Parameters
    ----------
    folder
        Where the arrays lie.
    arrays
        Shape and type of each array, by name.
    parts
        Rows and columns of each array that will be written, for which alone there has to be space
        on the disk; None: all.
    """

    def __init__(
        self,
        folder: Path,
        arrays: Mapping[str, tuple[Shape, str]],
        parts: Mapping[str, Sequence[tuple[slice, ...]]] | None = None,
    ) -> None:
        self.folder, self._parts = Path(folder), parts or {}
        self.folder.mkdir(parents=True, exist_ok=True)
        self._arrays = {
            name: self._open(name, shape, dtype) for name, (shape, dtype) in arrays.items()
        }
        self._journal = Journal(self.folder / "done.txt")
        self.done, damaged = self._checked()
        if damaged:
            log.warning(
                "%d of %d blocks in %s were damaged since they were written; they are made again.",
                damaged,
                damaged + len(self.done),
                self.folder,
            )

    def _checked(self) -> tuple[set[str], int]:
        """Return the keys of the blocks that are as they were written, and how many are not."""
        latest = {line.partition("|")[0]: line for line in self._journal.lines}
        whole = {key for key, line in latest.items() if self._fits(line)}
        return whole, len(latest) - len(whole)

    def _fits(self, line: str) -> bool:
        key, *parts = line.split("|")
        try:
            for part in parts:
                name, where, checksum = part.split("@")
                at = tuple(slice(*map(int, axis.split(":"))) for axis in where.split(","))
                if _checksum(f"{key}|{name}@{where}", self._arrays[name][at]) != checksum:
                    return False
        except (KeyError, ValueError):
            return False
        return bool(parts)

    def _open(self, name: str, shape: Shape, dtype: str) -> np.memmap:
        path = self.folder / f"{name}.npy"
        if path.is_file():
            with suppress(ValueError, OSError, EOFError, SyntaxError):
                array = np.lib.format.open_memmap(path, mode="r+")
                if array.shape == shape and array.dtype == np.dtype(dtype):
                    return array
            log.warning("%s is damaged; it is made again.", path)  # and all blocks with it
        # Under another name first: a file of that name is always whole.
        fresh = path.with_suffix(".new")
        new_array(fresh, shape, dtype, self._parts.get(name)).flush()
        fresh.replace(path)
        return np.lib.format.open_memmap(path, mode="r+")

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def release(self) -> None:
        """
        Take the arrays out of the memory of this process: a map of any size then needs what its
        blocks need.
        """
        for array in self._arrays.values():
            release_pages(array)

    def keep(self, key: str, parts: Mapping[str, tuple[tuple[slice, ...], np.ndarray]]) -> None:
        """Write the parts of one block (array name: where, values) and enter it in the journal."""
        line = [key]
        for name, (where, values) in parts.items():
            array = self._arrays[name]
            array[where] = values
            bounds = [
                part.indices(size)[:2] for part, size in zip(where, array.shape, strict=False)
            ]
            place = ",".join(f"{first}:{last}" for first, last in bounds)
            checksum = _checksum(f"{key}|{name}@{place}", array[where])
            line.append(f"{name}@{place}@{checksum}")
        self.done.add(key)
        self._journal.add("|".join(line))
        self.release()


def _checksum(what: str, values: np.ndarray) -> str:
    return f"{zlib.crc32(np.ascontiguousarray(values).data, zlib.crc32(what.encode())):08x}"
