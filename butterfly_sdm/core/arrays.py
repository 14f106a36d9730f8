"""Arrays in files, mapped into memory for units of work that write to them."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np


def new_array(
    path: Path,
    shape: tuple[int, ...],
    dtype: Any,
    parts: Sequence[tuple[slice, ...]] | None = None,
) -> np.memmap:
    """
    Make a ``.npy`` file of zeros, memory-mapped for writing, with its space on the disk reserved.

    Without the reservation a full disk ends the process (SIGBUS) when a page is written, with no
    error to catch.

    Parameters
    ----------
    parts
        Rows and columns of what will be written; the rest of the file takes no space. None: all.

    Raises
    ------
    OSError
        The disk is full.
    """
    path = Path(path)
    array: np.memmap = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.dtype(dtype), shape=shape
    )
    if hasattr(os, "posix_fallocate"):
        try:
            with path.open("r+b") as file:
                for start, length in _ranges(array, parts):
                    os.posix_fallocate(file.fileno(), start, length)
        except OSError as error:
            del array
            path.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from None
    # a large page would take the space around a part as well
    return array if parts is not None else _in_large_pages(array)


def _ranges(
    array: np.memmap, parts: Sequence[tuple[slice, ...]] | None
) -> Iterator[tuple[int, int]]:
    """Yield start and length of the bytes of a file that hold parts of its array."""
    whole = array.offset + array.nbytes
    if parts is None or sum(part_bytes(array.shape, array.dtype, part) for part in parts) >= (
        0.9 * array.nbytes
    ):
        yield 0, whole
        return
    yield 0, array.offset
    each = array.strides[1]
    for rows, cols in parts:
        first, last, _ = rows.indices(array.shape[0])
        left, right, _ = cols.indices(array.shape[1])
        for row in range(first, last):
            yield array.offset + row * array.strides[0] + left * each, (right - left) * each


def part_bytes(shape: tuple[int, ...], dtype: Any, part: tuple[slice, ...]) -> int:
    """Return the bytes of some rows and columns of an array."""
    rows, cols = (len(range(*at.indices(size))) for at, size in zip(part, shape, strict=False))
    return int(rows * cols * math.prod(shape[2:]) * np.dtype(dtype).itemsize)


def open_array(path: Path) -> np.memmap:
    """Open a ``.npy`` file made by :func:`new_array`, memory-mapped for writing."""
    array: np.memmap = np.load(path, mmap_mode="r+", allow_pickle=False)
    return _in_large_pages(array)


class PackedArray:
    """
    A ``.npy`` file made by :func:`new_array`, for units of work that write to it: mapped once for
    all units in this process.

    Each new mapping would have to be told of every page again, which costs more than filling it.
    Sent to another process, it is mapped there, and :meth:`written` sees to it that other machines
    see what was written.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._array: np.memmap | None = None
        self._sent = False

    def open(self) -> np.memmap:
        """Return the array, mapped for writing."""
        if self._array is None:
            self._array = open_array(self.path)
        return self._array

    def written(self) -> None:
        """
        End a unit of work: what another process than the first has written is flushed, for no one
        else there will.
        """
        if self._sent and self._array is not None:
            self._array.flush()

    def close(self) -> None:
        """Let go of the mapping."""
        self._array = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_array": None, "_sent": True}


def release_pages(array: np.memmap) -> None:
    """
    Take a mapped array out of the memory of this process; what was written is in its file, or on
    its way there.
    """
    if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        with suppress(OSError):
            array.base.madvise(mmap.MADV_DONTNEED)


def _in_large_pages(array: np.memmap) -> np.memmap:
    # Touching a new page of 4 kB costs more than filling it; where the system can, it then maps 2
    # MB at once.
    if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            array.base.madvise(mmap.MADV_HUGEPAGE)
    return array
