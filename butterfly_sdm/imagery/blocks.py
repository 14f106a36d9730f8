"""
Whole blocks of a file, decoded once and not kept: what reads every pixel a single time.

GDAL keeps decoded blocks band by band in case they are asked for again, and takes those of many
bands apart for it, which costs as much as decoding them. Asked for several whole blocks it can hand
over what it has decoded at once, pixel by pixel where the file is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import rasterio
from rasterio.windows import Window

# Known to GDAL from 3.6 on, for the compressions of GeoTIFF; others read as ever.
_PAST_THE_CACHE = {"GTIFF_DIRECT_IO": "YES", "GDAL_NUM_THREADS": "2"}


@contextmanager
def past_the_cache() -> Iterator[None]:
    """
    Files that are opened in the block, by this thread, decode blocks in two threads and keep none:
    for windows of whole blocks, as a block is decoded anew for every window.
    """
    with rasterio.Env(**_PAST_THE_CACHE):
        yield


@dataclass(frozen=True)
class BlockGrid:
    """
    How the pixels of a scene or a file are divided into blocks.

    Attributes
    ----------
    row, column
        A pixel with which a block begins.
    height, width
        Of a block.
    """

    row: int
    column: int
    height: int
    width: int

    def times(self, size: tuple[int, int], bytes_per_pixel: float, most: int) -> BlockGrid:
        """
        Return blocks put together, as long as their pixels take at most so many bytes: nearly
        squares, and no larger than ``size`` (height, width) asks for.
        """
        tall, wide = self.height, self.width
        while 2 * tall * wide * bytes_per_pixel <= most:
            if wide < size[1] and (wide <= tall or tall >= size[0]):
                wide *= 2
            elif tall < size[0]:
                tall *= 2
            else:
                break
        return BlockGrid(self.row, self.column, tall, wide)

    def count(self, window: Window) -> int:
        """Return how many blocks hold the pixels of a window."""
        top, left = int(window.row_off), int(window.col_off)
        down = self.rows(top, top + int(window.height))
        return len(down) * len(self.columns(left, left + int(window.width)))

    def rows(self, top: int, bottom: int) -> list[tuple[int, int]]:
        """Return the first and last row, the last excluded, of blocks from one row to another."""
        return _cut(top, bottom, self.row, self.height)

    def columns(self, left: int, right: int) -> list[tuple[int, int]]:
        """Return the same of columns."""
        return _cut(left, right, self.column, self.width)


def _cut(start: int, stop: int, origin: int, step: int) -> list[tuple[int, int]]:
    if stop <= start:
        return []
    first = start + 1 + (origin - start - 1) % step
    return list(pairwise([start, *range(first, stop, step), stop]))


def by_pixel(values: np.ndarray) -> bool:
    """Return whether the bands of each pixel of (bands, height, width) lie side by side."""
    return len(values) > 1 and values.strides[0] == values.itemsize


class Room:
    """Memory that is used again: fresh pages cost as much as decoding what fills them."""

    def __init__(self) -> None:
        self._held: dict[str, np.ndarray] = {}

    def __reduce__(self) -> tuple[type[Room], tuple[()]]:
        return Room, ()

    def take(
        self, name: str, shape: tuple[int, int, int], dtype: str | np.dtype, *, pixels: bool
    ) -> np.ndarray:
        """
        Return an array (bands, height, width) whose content means nothing, the same memory for one
        name; ``pixels``: with the bands of each pixel side by side.
        """
        size = math.prod(shape) * np.dtype(dtype).itemsize
        held = self._held.get(name)
        if held is None or held.size < size:
            held = self._held[name] = np.empty(size, np.uint8)
        flat = held[:size].view(dtype)
        if not pixels:
            return flat.reshape(shape)
        return np.moveaxis(flat.reshape(*shape[1:], shape[0]), -1, 0)
