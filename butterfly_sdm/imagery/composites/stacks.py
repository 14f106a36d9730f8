"""
Many dates of one ground as one piece of a scene, composed where it is read.

A stack has the grid of its products. A window of it is the median of the dates on which each pixel
was clear, or the least cloudy date; products of one day count once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from affine import Affine
from rasterio.warp import reproject, transform_bounds
from rasterio.windows import Window

from butterfly_sdm.imagery.composites.kept import Pixels
from butterfly_sdm.imagery.composites.median import median_of
from butterfly_sdm.imagery.piece_pixels import is_plain, read_counts, read_plain
from butterfly_sdm.imagery.pixels import measured_in_all
from butterfly_sdm.imagery.products import RESAMPLING, Grid, Layer, Piece
from butterfly_sdm.imagery.reader import Reader
from butterfly_sdm.imagery.supply import AROUND_PX, bring, window_in

BLOCK_PX, MOST_PX = 512, 1024


@dataclass(frozen=True)
class Stack(Piece):
    """
    Products of one ground on several days; its one layer is no file but the grid they share.

    Attributes
    ----------
    days
        The products of each day; of two of a day, the first with a measurement counts.
    method
        median, or least_cloudy: then the days are in the order of their clouds.
    """

    days: tuple[tuple[Piece, ...], ...] = ()
    method: str = "median"

    @property
    def products(self) -> tuple[Piece, ...]:
        """The products of all days."""
        return tuple(product for day in self.days for product in day)

    @property
    def files(self) -> tuple[Layer, ...]:
        """The files of all products."""
        return tuple(layer for product in self.products for layer in product.files)

    def fill(self, scene: Reader, window: Window, out: np.ndarray) -> np.ndarray:
        """Make the pixels of a window of its own grid: what :func:`compose` does."""
        return compose(scene, self, window, out)


def compose(scene: Reader, stack: Stack, window: Window, out: np.ndarray) -> np.ndarray:
    """
    Compose the dates of a window of a stack's own grid.

    Parameters
    ----------
    out
        (bands, h, w) of the type of the scene, filled with numbers in its bands; nodata where no
        date has a clear measurement of every band.

    Returns
    -------
    ndarray of bool, shape (h, w)
        Where there is a value.
    """
    own = scene.alone(stack)
    planes = Workspace(out.shape, out.dtype)
    shown: list[tuple[np.ndarray, np.ndarray]] = []
    rest = np.ones(out.shape[1:], dtype=bool)
    for day in stack.days:
        found = _day(own, day, window, planes)
        if found is None:
            continue
        if stack.method == "median":
            shown.append(found)
            continue
        plane, valid = found
        np.copyto(out, plane, where=rest & valid)
        planes.give_back(plane)
        rest &= ~valid
        if not rest.any():
            break
    if stack.method == "median":
        return median_of([p for p, _ in shown], [v for _, v in shown], out, scene.nodata)
    out[:, rest] = scene.nodata
    return ~rest


def _day(
    own: Reader, products: Sequence[Piece], window: Window, planes: Workspace
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the counts of one day and where they are clear and measured; None if nowhere."""
    day: np.ndarray | None = None
    valid: np.ndarray | None = None
    for product in products:
        plane = planes.take()
        measured = _read(own, product, window, plane)
        if measured is None:
            planes.give_back(plane)
        elif day is None or valid is None:
            day, valid = plane, measured
        else:
            np.copyto(day, plane, where=measured & ~valid)
            valid |= measured
            planes.give_back(plane)
    return None if day is None or valid is None else (day, valid)


def _read(own: Reader, product: Piece, window: Window, out: np.ndarray) -> np.ndarray | None:
    """Read a product on the grid of its stack; return where it is measured, None if nowhere."""
    if any(layer.grid != own.grid for layer in product.layers):
        out[:] = own.nodata
        valid = np.zeros(out.shape[1:], dtype=bool)
        own.read_piece(product, window, own.bands, out, valid)
        return valid if valid.any() else None
    clear = own.clear(product, own.grid, window)
    if clear is None:
        clear = np.ones(out.shape[1:], dtype=bool)
    elif not clear.any():
        return None  # its bands are neither decoded nor, of a remote file, fetched
    if not is_plain(own, product):
        return read_counts(own, product, window, out, clear)
    read_plain(own, product, window, out)
    clear &= measured_in_all(out, own.nodata)
    return clear


class Workspace:
    """Planes of one shape, used again by this thread: fresh pages cost as much as decoding."""

    _local = threading.local()

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._shape, self._size, self._taken = shape, int(np.prod(shape)), 0
        self._dtype = dtype
        self._free: list[np.ndarray] = []

    def take(self) -> np.ndarray:
        """Return a plane whose content means nothing."""
        if self._free:
            return self._free.pop()
        planes: list[np.ndarray] = self._local.__dict__.setdefault(self._dtype.str, [])
        if self._taken == len(planes):
            planes.append(np.empty(self._size, self._dtype))
        elif planes[self._taken].size < self._size:
            planes[self._taken] = np.empty(self._size, self._dtype)
        plane = planes[self._taken][: self._size].reshape(self._shape)
        self._taken += 1
        return plane

    def give_back(self, plane: np.ndarray) -> None:
        """Let a plane be taken again."""
        self._free.append(plane)


def read_stack(
    scene: Reader, stack: Stack, window: Window, values: np.ndarray, valid: np.ndarray
) -> None:
    """
    Fill the pixels of a window of the scene's grid that are not ``valid`` yet from a stack.

    Whole blocks are composed, or resampled where the stack has another grid, and kept a while.

    Parameters
    ----------
    window
        Inside the scene.
    values, valid
        (bands, h, w) and (h, w) of the window, in the bands of the scene.
    """
    bring_stack(scene, stack, window)
    window, blocks, on_scene = _wanted(scene, stack, window)
    top, left = int(window.row_off), int(window.col_off)
    bottom, right = top + int(window.height), left + int(window.width)
    for block in blocks:
        r0, c0 = max(block.row_off, top), max(block.col_off, left)
        r1 = min(block.row_off + block.height, bottom)
        c1 = min(block.col_off + block.width, right)
        there = (slice(r0 - top, r1 - top), slice(c0 - left, c1 - left))
        todo = ~valid[there]
        if not todo.any():
            continue
        pixels, measured = _block(scene, stack, block, on_scene=on_scene)
        here = (
            slice(r0 - block.row_off, r1 - block.row_off),
            slice(c0 - block.col_off, c1 - block.col_off),
        )
        todo &= measured[here]
        if todo.all():
            values[:, *there] = pixels[:, *here]
        else:
            np.copyto(values[:, *there], pixels[:, *here], where=todo)
        valid[there] |= todo


def _wanted(scene: Reader, stack: Stack, window: Window) -> tuple[Window, list[Window], bool]:
    """
    Return a window of the scene's grid as one of the grid on which blocks lie, the blocks it
    touches, and whether that grid is the scene's: then blocks are resampled.
    """
    layer = stack.layers[0]
    origin = scene.offset_of(layer)
    if origin is None:
        return window, list(_blocks(window, (BLOCK_PX, BLOCK_PX), scene.grid)), True
    column, row = int(window.col_off) - origin[0], int(window.row_off) - origin[1]
    own = Window(column, row, window.width, window.height)
    return own, list(_blocks(own, block_shape(layer), layer.grid)), False


def blocks_of(scene: Reader, stack: Stack, window: Window) -> dict[Any, int]:
    """
    Return the blocks that reading a window of the scene's grid asks :class:`KeptBlocks` for, and
    their bytes.
    """
    _, blocks, on_scene = _wanted(scene, stack, window)
    each = np.dtype(scene.dtype).itemsize * len(scene.bands) + 1
    return {
        _key(scene, stack, block, on_scene=on_scene): int(block.height * block.width) * each
        for block in blocks
    }


def _blocks(window: Window, shape: tuple[int, int], grid: Grid) -> Iterator[Window]:
    """Yield the blocks of a grid that a window of it touches."""
    (tall, wide), (_, _, width, height) = shape, grid
    bottom = min(int(window.row_off + window.height), height)
    right = min(int(window.col_off + window.width), width)
    for row in range(max(int(window.row_off), 0) // tall * tall, bottom, tall):
        for column in range(max(int(window.col_off), 0) // wide * wide, right, wide):
            yield Window(column, row, min(wide, width - column), min(tall, height - row))


def bring_stack(scene: Reader, stack: Stack, window: Window) -> None:
    """
    Bring what a window of the scene's grid needs of the remote files of a stack.

    Raises
    ------
    SourceError
        It could not be fetched.
    """
    if scene.supply is None:
        return
    layer = stack.layers[0]
    _, blocks, on_scene = _wanted(scene, stack, window)
    if on_scene:  # resampled from blocks of its own grid
        part = window_in(layer, scene.grid, window)
        blocks = list(_blocks(part, block_shape(layer), layer.grid))
    missing = [b for b in blocks if _key(scene, stack, b, on_scene=False) not in scene.kept]
    bring(scene, [(stack, layer.grid, block) for block in missing])


def block_shape(layer: Layer) -> tuple[int, int]:
    """
    Return height and width of what is composed at once: blocks of the files, or many of them.

    Of a window that cuts through blocks, every block would be decoded again for its neighbours, of
    many dates at once.
    """
    tall, wide = min(layer.block[0], layer.height), min(layer.block[1], layer.width)
    if wide >= layer.width and tall < BLOCK_PX:  # strips
        rows = max(1, BLOCK_PX * BLOCK_PX // layer.width)
        return max(tall, rows // tall * tall), layer.width
    return _near(tall), _near(wide)


def _near(side: int) -> int:
    return BLOCK_PX if side > MOST_PX else side * max(1, BLOCK_PX // side)


def _block(scene: Reader, stack: Stack, block: Window, *, on_scene: bool) -> Pixels:
    def make() -> Pixels:
        if on_scene:
            transform = scene.transform * Affine.translation(block.col_off, block.row_off)
            grid = (scene.crs, transform, int(block.width), int(block.height))
            return warped(scene, stack, grid, scene.resampling)
        values = np.empty((len(scene.bands), int(block.height), int(block.width)), scene.dtype)
        return values, stack.fill(scene, block, values)

    return scene.kept.get(_key(scene, stack, block, on_scene=on_scene), make)


def _key(scene: Reader, stack: Stack, block: Window, *, on_scene: bool) -> tuple[Any, ...]:
    return (
        (stack.name, _told(stack.layers[0].grid), _told(scene.grid) if on_scene else None),
        (scene.bands, repr(scene.nodata), scene.offset, scene.scale, scene.dtype),
        (block.row_off, block.col_off),
    )


def _told(grid: Grid) -> tuple[Any, ...]:
    """Return a grid in numbers and text: a CRS takes long to be compared."""
    crs, transform, *shape = grid
    return (crs.wkt, *transform[:6], *shape)


def warped(scene: Reader, stack: Stack, grid: Grid, resampling: str) -> Pixels:
    """
    Return the pixels of a stack on another grid, resampled after its dates were composed.

    Parameters
    ----------
    grid
        CRS, transform, width and height of what is wanted.
    resampling
        nearest, bilinear or cubic.
    """
    crs, transform, width, height = grid
    values = np.full((len(scene.bands), height, width), scene.nodata, scene.dtype)
    own = scene.alone(stack)
    box = transform_bounds(crs, own.crs, *_bounds(grid), densify_pts=21)
    inside = own.window(*box)
    ratio = max(1.0, inside.width / width, inside.height / height)
    around = int(np.ceil(AROUND_PX * ratio))
    left, top = max(int(inside.col_off) - around, 0), max(int(inside.row_off) - around, 0)
    right = min(int(inside.col_off + inside.width) + around, own.width)
    bottom = min(int(inside.row_off + inside.height) + around, own.height)
    if right <= left or bottom <= top:
        return values, np.zeros((height, width), dtype=bool)
    pixels, valid = own.read(Window(left, top, right - left, bottom - top))
    pixels[:, ~valid] = scene.nodata
    reproject(
        pixels,
        values,
        src_crs=own.crs,
        src_transform=own.transform * Affine.translation(left, top),
        src_nodata=scene.nodata,
        dst_crs=crs,
        dst_transform=transform,
        dst_nodata=scene.nodata,
        resampling=RESAMPLING[resampling],
    )
    return values, measured_in_all(values, scene.nodata)


def _bounds(grid: Grid) -> tuple[float, float, float, float]:
    _, transform, width, height = grid
    corners = [transform * (x, y) for x in (0, width) for y in (0, height)]
    xs, ys = zip(*corners, strict=True)
    return min(xs), min(ys), max(xs), max(ys)
