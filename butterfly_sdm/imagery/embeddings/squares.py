"""
Mean and spread of every band of embeddings in squares of several sizes, each pixel read once.

A pixel counts when its centre lies in the square; where none does, because the pixels are larger,
the pixel at the middle of the square counts. The sides of a square run along the rows and columns
of the file, which need not be those of the CRS in which places are given; pixels without a value
do not count, and of files that overlap all do.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import rasterio
from rasterio.windows import Window

from butterfly_sdm.core.executor import in_order
from butterfly_sdm.imagery.embeddings.collection import Embeddings
from butterfly_sdm.imagery.embeddings.decoding import Decoding
from butterfly_sdm.imagery.embeddings.pixels import EmbeddingFile
from butterfly_sdm.imagery.products import whole_pixels
from butterfly_sdm.imagery.squares import transformer

WINDOW_VALUES = 1 << 24  # stored numbers read at a time, unless a block of the file has more
CHUNK_VALUES = 1 << 19  # values decoded at a time
TABLE_VALUES = 1 << 21  # of a table of sums
CACHE_BYTES = 64 << 20
EXACT_PIXELS = 512  # of numbers below 2^15, whose sum float32 holds
ROUNDING = 1e-6  # of sums of float32: squared deviations below are none

_kept = threading.local()

Sums = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Rectangles:
    """
    Squares in pixels of a file: rows and columns that count, (n,) each, the last one excluded.
    """

    top: np.ndarray
    bottom: np.ndarray
    left: np.ndarray
    right: np.ndarray

    def within(self, window: Window) -> tuple[np.ndarray, Rectangles]:
        """Return which have pixels in a window, and their parts of it, counted from its corner."""
        column, row, width, height = whole_pixels(window)
        top, bottom = (np.clip(edge - row, 0, height) for edge in (self.top, self.bottom))
        left, right = (np.clip(edge - column, 0, width) for edge in (self.left, self.right))
        which = np.flatnonzero((bottom > top) & (right > left))
        return which, Rectangles(top[which], bottom[which], left[which], right[which])


def square_statistics(
    embeddings: Embeddings,
    easting: np.ndarray,
    northing: np.ndarray,
    crs: str,
    *,
    sides_m: Sequence[float],
    executor: Executor | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Return mean and standard deviation of every band in squares around places.

    Every block of a file that a square touches is read and decoded once, for all places, sides and
    bands.

    Parameters
    ----------
    easting, northing
        (n,) middles of the squares in metres of ``crs``.
    sides_m
        Sides of the squares in metres.
    executor
        Reads blocks beside one another, such as threads.

    Returns
    -------
    mean, spread : ndarray of float32, shape (n, sides, bands)
        NaN where no pixel of the square has a value; the spread is that of the population.

    Raises
    ------
    RasterError
        A file is damaged.
    """
    x, y = np.asarray(easting, float), np.asarray(northing, float)
    squares, bands = len(x) * len(sides_m), len(embeddings.bands)
    number = np.zeros(squares)
    mean, squared = np.zeros((squares, bands)), np.zeros((squares, bands))
    for file in embeddings.files:
        rectangles = _rectangles(file, x, y, crs, sides_m)
        windows = needed_windows(file, rectangles)
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):  # no block is read twice
            for which, count, total, deviation in in_order(
                partial(_sums, file, rectangles), windows, executor, in_flight=4
            ):
                # the variance of both parts together, without sums of squares that cancel
                before = number[which]
                after = before + count
                step = total - mean[which]
                squared[which] += deviation + step**2 * (before * count / after)[:, None]
                mean[which] += step * (count / after)[:, None]
                number[which] = after
    known = number > 0
    mean[~known] = np.nan
    spread = np.sqrt(np.divide(squared, number[:, None], where=known[:, None], out=squared))
    spread[~known] = np.nan
    shape = len(x), len(sides_m), bands
    return mean.astype(np.float32).reshape(shape), spread.astype(np.float32).reshape(shape)


def _rectangles(
    file: EmbeddingFile, x: np.ndarray, y: np.ndarray, crs: str, sides_m: Sequence[float]
) -> Rectangles:
    """Return the squares of all places, those of one place side by side, cut to the file."""
    there, back = transformer(str(crs), file.crs.to_wkt()), ~file.transform

    def pixels(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        x, y = there.transform(x, y)
        return np.stack([back.a * x + back.c, back.e * y + back.f])  # (2, n): column, row

    middle = pixels(x, y)
    edges = []
    for side in sides_m:
        half = side / 2
        east = pixels(x + half, y) - pixels(x - half, y)
        north = pixels(x, y + half) - pixels(x, y - half)
        reach = np.hypot(east, north) / 2
        first = np.ceil(middle - reach - 0.5 - 1e-9)
        last = np.ceil(middle + reach - 0.5 - 1e-9)
        small = last <= first
        first = np.where(small, np.floor(middle), first)
        last = np.where(small, first + 1, last)
        edges.append(np.stack([first, last]))
    found = np.stack(edges, axis=-1).reshape(2, 2, -1)  # edge, axis, place and side
    found = np.where(np.isfinite(found), found, -1)  # a place the CRS of the file does not know
    size = np.array([file.width, file.height])[None, :, None]
    (left, top), (right, bottom) = np.clip(found, 0, size).astype(np.int64)
    return Rectangles(top, bottom, left, right)


def needed_windows(file: EmbeddingFile, rectangles: Rectangles) -> list[Window]:
    """Return windows of whole blocks that hold the rectangles, each pixel of the file in one."""
    tall, wide = _window_shape(file)
    down, across = -(-file.height // tall), -(-file.width // wide)
    used = (rectangles.bottom > rectangles.top) & (rectangles.right > rectangles.left)
    corners = np.zeros((down + 1, across + 1), dtype=np.int64)
    top, bottom = rectangles.top[used] // tall, (rectangles.bottom[used] - 1) // tall + 1
    left, right = rectangles.left[used] // wide, (rectangles.right[used] - 1) // wide + 1
    for row, column, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1)):
        np.add.at(corners, (row, column), sign)
    np.add.at(corners, (bottom, right), 1)
    covered = corners.cumsum(axis=0).cumsum(axis=1)[:down, :across] > 0
    return [
        Window(
            column * wide,
            row * tall,
            min(wide, file.width - column * wide),
            min(tall, file.height - row * tall),
        )
        for row, column in np.argwhere(covered).tolist()
    ]


def _window_shape(file: EmbeddingFile) -> tuple[int, int]:
    """Return a multiple of the blocks of a file that holds a moderate number of values."""
    tall, wide = (min(block, size) for block, size in zip(file.block, _size(file), strict=True))
    while 2 * tall * wide * len(file.bands) <= WINDOW_VALUES:
        if wide < file.width and wide <= tall:
            wide *= 2
        elif tall < file.height:
            tall *= 2
        elif wide < file.width:
            wide *= 2
        else:
            break
    return tall, wide


def _size(file: EmbeddingFile) -> tuple[int, int]:
    return file.height, file.width


def _sums(file: EmbeddingFile, rectangles: Rectangles, window: Window) -> Sums:
    """
    Return the squares with values in a window (s,), how many (s,), their means (s, bands), and the
    sums of squared deviations from these (s, bands).
    """
    which, parts = rectangles.within(window)
    stored, scales = file.stored(window)
    if file.upside_down:  # the same rows in the order of the file: no copy is made
        height = stored.shape[1]
        stored = stored[:, ::-1]
        parts = Rectangles(height - parts.bottom, height - parts.top, parts.left, parts.right)
    valid = file.decoding.measured(stored, scales)
    whole = bool(valid.all())
    if whole:
        count = ((parts.bottom - parts.top) * (parts.right - parts.left)).astype(float)
    else:
        ones = Centred(Decoding("none"), valid[None].view(np.int8), None, None, np.zeros(1))
        count = Cells.of(parts).sums(ones)[0][:, 0]
    seen = count > 0
    which, count = which[seen], count[seen]
    parts = Rectangles(*(edge[seen] for edge in vars(parts).values()))
    bands = len(stored)
    total, squared = np.zeros((len(which), bands)), np.zeros((len(which), bands))
    if not len(which):
        return which, count, total, squared
    cells = Cells.of(parts)
    several = max(1, TABLE_VALUES // (len(cells.rows) * len(cells.columns)))
    for first in range(0, bands, several):
        part = slice(first, min(first + several, bands))
        cut = None if scales is None else scales if scales.ndim == 2 else scales[part]
        values = Centred.of(file.decoding, stored[part], cut, valid, whole)
        sums, squares = cells.sums(values)
        sums /= count[:, None]
        deviation = squares - count[:, None] * sums**2
        squared[:, part] = np.where(deviation > ROUNDING * squares, deviation, 0)
        total[:, part] = sums + values.middle
    factor, offset = file.decoding.factor
    return which, count, total * factor + offset, squared * factor**2


@dataclass(frozen=True)
class Centred:
    """
    Unscaled values less a number near the mean of each band, so that sums of squares of what is
    left do not cancel; made some rows at a time, of a size that a processor keeps near.
    """

    decoding: Decoding
    stored: np.ndarray  # (bands, h, w)
    scales: np.ndarray | None
    valid: np.ndarray | None  # (h, w); None: all are
    middle: np.ndarray  # (bands,)

    @classmethod
    def of(
        cls,
        decoding: Decoding,
        stored: np.ndarray,
        scales: np.ndarray | None,
        valid: np.ndarray,
        whole: bool,
    ) -> Centred:
        """Choose the numbers near the means from a few pixels with a value."""
        rows, columns = np.nonzero(valid[::16, ::16])
        rows, columns = (16 * rows, 16 * columns) if len(rows) else np.nonzero(valid)
        few = stored[:, rows, columns]
        out = np.empty((2, *few.shape), np.float32)
        cut = scales if scales is None else scales[..., rows, columns]
        middle = decoding.unscaled(few, cut, *out).mean(axis=1)
        if stored.dtype.kind in "iu" and scales is None:
            middle = np.rint(middle)  # sums of whole numbers are exact, whatever other squares are
        return cls(decoding, stored, scales, None if whole else valid, middle)

    def rows(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Return (bands, rows, columns), 0 where there is no value, until the next call."""
        place = slice(top, bottom), slice(left, right)
        part = self.stored[:, *place]
        scales = self.scales if self.scales is None else self.scales[..., *place]
        # the same whole numbers of bytes and of their squares, in half the memory
        kind = np.int16 if part.itemsize == 1 and scales is None else np.float32
        numbers, spare = (_array_of(f"{name} {kind}", part.shape, kind) for name in "ab")
        self.decoding.unscaled(part, scales, numbers, spare)
        numbers -= self.middle.astype(kind)[:, None, None]
        values = numbers
        if kind is np.int16:
            values = _array_of("values", part.shape, np.float32)
            np.copyto(values, numbers)
        if self.valid is not None and not (valid := self.valid[place]).all():
            values[:, ~valid] = 0
        return values


def _array_of(name: str, shape: tuple[int, ...], kind: type[np.number]) -> np.ndarray:
    """Return an array that this thread uses again: fresh memory costs as much as decoding."""
    size = math.prod(shape)
    kept: np.ndarray | None = _kept.__dict__.get(name)
    if kept is None or len(kept) < size:
        kept = _kept.__dict__[name] = np.empty(size, kind)
    return kept[:size].reshape(shape)


@dataclass(frozen=True)
class Cells:
    """
    The cells into which the edges of rectangles divide their window: sums over cells are made once,
    and those over rectangles from four entries each of a table of their cumulative sums [1]_.

    References
    ----------
    .. [1] F. C. Crow (1984), Summed-area tables for texture mapping. SIGGRAPH 84, 207-212.
    """

    rows: np.ndarray  # edges, in order
    columns: np.ndarray
    top: np.ndarray  # (n,) of each rectangle, by the number of the edge
    bottom: np.ndarray
    left: np.ndarray
    right: np.ndarray

    @classmethod
    def of(cls, rectangles: Rectangles) -> Cells:
        """Return the cells of rectangles, of which there is one at least."""
        n = len(rectangles.top)
        rows, row = np.unique(
            np.concatenate([rectangles.top, rectangles.bottom]), return_inverse=True
        )
        columns, column = np.unique(
            np.concatenate([rectangles.left, rectangles.right]), return_inverse=True
        )
        return cls(rows, columns, row[:n], row[n:], column[:n], column[n:])

    def sums(self, values: Centred) -> tuple[np.ndarray, np.ndarray]:
        """Return sums of values and of their squares over the rectangles: (n, bands) of float64."""
        bands, (left, right) = len(values.stored), self.columns[[0, -1]].tolist()
        columns = self.columns[:-1] - left
        # (rows, columns, bands): sums along rows and columns add whole bands, which is fast
        tables = _array_of("tables", (2, len(self.rows), len(self.columns), bands), np.float64)
        tables.fill(0)
        several = max(1, CHUNK_VALUES // (bands * (right - left)))
        for number, (first, last) in enumerate(pairwise(self.rows.tolist()), start=1):
            # of few pixels, float32 holds sums of whole numbers exactly
            small = (last - first) * np.diff(self.columns).max() <= EXACT_PIXELS
            kind = np.float32 if small else np.float64
            strips = np.zeros((2, bands, right - left), np.float32)
            for top in range(first, last, several):
                part = values.rows(top, min(top + several, last), left, right)
                strips[0] += part.sum(axis=1)
                strips[1] += np.einsum("bhw,bhw->bw", part, part)
            for table, strip in zip(tables, strips, strict=True):
                table[number, 1:] += np.add.reduceat(strip, columns, axis=1, dtype=kind).T
            tables[:, number] += tables[:, number - 1]
        for number in range(2, len(self.columns)):  # ten times as fast as cumsum
            tables[:, :, number] += tables[:, :, number - 1]
        sums, squares = (self._corners(table) for table in tables)
        return sums, squares

    def _corners(self, table: np.ndarray) -> np.ndarray:
        found = table[self.bottom, self.right] - table[self.top, self.right]
        found += table[self.top, self.left] - table[self.bottom, self.left]
        return np.asarray(found)
