"""Arrays in files, mapped into memory for units of work that write to them."""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np


def new_array(path: Path, shape: tuple[int, ...], dtype: Any) -> np.memmap:
    """
    Make a ``.npy`` file of zeros, memory-mapped for writing, with its space on the disk reserved.

    Without the reservation a full disk ends the process (SIGBUS) when a page is written, with no
    error to catch.

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
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            del array
            path.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from None
    return _in_large_pages(array)


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
