"""Composed blocks that windows to come need again: in memory, and beyond that in a file."""

from __future__ import annotations

import tempfile
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

KEPT_BYTES = 40_000_000  # held in memory

Pixels = tuple[np.ndarray, np.ndarray]  # (bands, h, w) counts, and (h, w) where they are measured


class KeptBlocks:
    """
    Composed blocks, those used last; shared by threads.

    Once it is told how often each block will be asked for (:meth:`expect`), a block goes when
    nobody will ask for it again, and what does not fit into the memory until then lies in a file.
    """

    def __init__(self) -> None:
        self._blocks: OrderedDict[Any, Pixels] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._making: dict[Any, Future[Pixels]] = {}
        self._later: Counter[Any] = Counter()
        self._file: _File | None = None

    def __contains__(self, key: Any) -> bool:
        return key in self._blocks or (self._file is not None and key in self._file)

    def get(self, key: Any, make: Callable[[], Pixels]) -> Pixels:
        """Return a block, made now unless it is kept; threads that ask at once make it once."""
        with self._lock:
            found = self._found(key)
            if found is not None:
                return found
            making = self._making.get(key)
            mine: Future[Pixels] = Future()
            if making is None:
                self._making[key] = mine
        if making is not None:
            return making.result()
        try:
            made = make()
        except BaseException as error:
            mine.set_exception(error)
            with self._lock:
                del self._making[key]
            raise
        with self._lock:
            self._put(key, made)
            del self._making[key]
        mine.set_result(made)
        return made

    def expect(self, asked: Counter[Any], folder: Path, most_bytes: int) -> None:
        """
        Keep blocks until they were asked for so often.

        Parameters
        ----------
        asked
            How many times :meth:`passed` will be told of each block.
        folder
            Where the file lies; it has no name there and goes with the process.
        most_bytes
            Of the file; what is beyond is made again.
        """
        with self._lock:
            self._later = Counter(asked)
            self._close()
            self._file = _File(folder, most_bytes)

    def passed(self, keys: Iterable[Any]) -> None:
        """Note that blocks were asked for once more; those nobody will ask for again go."""
        with self._lock:
            for key in keys:
                if key not in self._later:
                    continue
                self._later[key] -= 1
                if self._later[key] <= 0:
                    del self._later[key]
                    self._drop(key)
                    if self._file is not None:
                        self._file.drop(key)

    def forget(self) -> None:
        """Expect nothing more, and give the space of the file back."""
        with self._lock:
            self._later = Counter()
            self._close()

    def _found(self, key: Any) -> Pixels | None:
        if key in self._blocks:
            self._blocks.move_to_end(key)
            return self._blocks[key]
        found = None if self._file is None else self._file.read(key)
        if found is not None:
            self._put(key, found)
        return found

    def _put(self, key: Any, pixels: Pixels) -> None:
        if key not in self._blocks:
            self._blocks[key] = pixels
            self._bytes += _size(pixels)
        while self._bytes > KEPT_BYTES and len(self._blocks) > 1:
            oldest = next(iter(self._blocks))
            if self._file is not None and oldest in self._later:
                self._file.write(oldest, self._blocks[oldest])
            self._drop(oldest)

    def _drop(self, key: Any) -> None:
        if key in self._blocks:
            self._bytes -= _size(self._blocks.pop(key))

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


class _File:
    """Blocks one after the other in a file without a name; the place of one that went is reused."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder, self._most = folder, most_bytes
        self._file: Any = None
        self._end = 0
        self._places: dict[Any, tuple[int, tuple[int, ...], str]] = {}
        self._free: dict[int, list[int]] = {}  # by size

    def __contains__(self, key: Any) -> bool:
        return key in self._places

    def write(self, key: Any, pixels: Pixels) -> None:
        """Keep a block, if there is room; a full disk keeps none."""
        size = _size(pixels)
        free = self._free.setdefault(size, [])
        if key in self._places or (not free and self._end + size > self._most):
            return
        place = free.pop() if free else self._end
        try:
            if self._file is None:
                # closed with the blocks
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
            self._file.seek(place)
            written = sum(self._file.write(_bytes(part)) or 0 for part in pixels)
        except OSError:
            return
        if written < size:
            return
        self._end = max(self._end, place + size)
        self._places[key] = place, pixels[0].shape, pixels[0].dtype.str

    def read(self, key: Any) -> Pixels | None:
        """Return a block, or None if it is not here."""
        if key not in self._places or self._file is None:
            return None
        place, shape, dtype = self._places[key]
        values, valid = np.empty(shape, dtype), np.empty(shape[1:], bool)
        self._file.seek(place)
        got = sum(self._file.readinto(_bytes(part)) or 0 for part in (values, valid))
        if got < _size((values, valid)):
            return None
        return values, valid

    def drop(self, key: Any) -> None:
        """Let the place of a block be used again."""
        if key in self._places:
            place, shape, dtype = self._places.pop(key)
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize + int(np.prod(shape[1:]))
            self._free.setdefault(size, []).append(place)

    def close(self) -> None:
        """Give the space back."""
        if self._file is not None:
            self._file.close()
        self._file = None


def _bytes(part: np.ndarray) -> memoryview:
    return np.ascontiguousarray(part).reshape(-1).view(np.uint8).data


def _size(pixels: Pixels) -> int:
    return sum(part.nbytes for part in pixels)
