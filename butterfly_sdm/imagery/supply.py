"""Bring the pixels of remote files that are about to be read, and no others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rasterio.crs import CRS
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from butterfly_sdm.imagery.products import Grid, Layer, Piece
from butterfly_sdm.imagery.reader import Reader

# Resampling looks beyond its window: by the radius of its kernel, and GDAL by some pixels more.
AROUND_PX = 16


def bring(scene: Reader, wanted: Sequence[tuple[Piece, Grid, Window]]) -> None:
    """
    Bring the pixels that windows of pieces need: the scene classification first, then the bands of
    the products that are not wholly cloudy there.

    Parameters
    ----------
    wanted
        Pieces, and a window of a grid each.

    Raises
    ------
    SourceError
        They could not be fetched.
    """
    if scene.supply is None:
        return
    products = [
        (product, grid, window)
        for piece, grid, window in wanted
        for product in piece.products
        if _meets(product, grid, window)
    ]
    if scene.cloudy:
        scene.supply.bring(
            [
                (product.mask.path, _window_of_classes(product.mask, grid, window))
                for product, grid, window in products
                if product.mask is not None
            ]
        )
    scene.supply.bring(
        [
            (layer.path, _as_stored(layer, window_in(layer, grid, window)))
            for product, grid, window in products
            if not _hidden(scene, product, grid, window)
            for layer in product.layers
            if layer.slots(scene.bands)
        ]
    )


def window_in(layer: Layer, grid: Grid, window: Window, around: int = AROUND_PX) -> Window:
    """
    Return the pixels of a file that a window of a grid is made of, cut to the file; where it is
    resampled, with some around it.
    """
    if layer.grid == grid:
        return window
    crs, transform, _, _ = grid
    corners = [
        transform * (x, y)
        for x in (window.col_off, window.col_off + window.width)
        for y in (window.row_off, window.row_off + window.height)
    ]
    xs, ys = zip(*corners, strict=True)
    box = min(xs), min(ys), max(xs), max(ys)
    if layer.crs != crs:
        box = transform_bounds(CRS.from_user_input(crs), layer.crs, *box)
    inverse = ~layer.transform
    ends = [inverse * (x, y) for x in (box[0], box[2]) for y in (box[1], box[3])]
    columns, rows = zip(*ends, strict=True)
    left, right = _whole(columns, layer.width, around)
    top, bottom = _whole(rows, layer.height, around)
    return Window(left, top, right - left, bottom - top)


def _whole(ends: Sequence[float], size: int, around: int) -> tuple[int, int]:
    low = int(np.floor(min(ends) + 1e-6)) - around
    high = int(np.ceil(max(ends) - 1e-6)) + around
    low = min(max(low, 0), size)
    return low, max(min(high, size), low)


def _as_stored(layer: Layer, window: Window) -> Window:
    """Return a window of a file whose first row lies in the south by its rows as stored."""
    if not layer.upside_down:
        return window
    top = layer.height - window.row_off - window.height
    return Window(window.col_off, top, window.width, window.height)


def _window_of_classes(mask: Layer, grid: Grid, window: Window) -> Window:
    return window_in(mask, grid, window, 0 if mask.times_larger(grid) else AROUND_PX)


def _meets(product: Piece, grid: Grid, window: Window) -> bool:
    part = window_in(product.layers[0], grid, window, around=0)
    return bool(part.width and part.height)


def _hidden(scene: Reader, product: Piece, grid: Grid, window: Window) -> bool:
    """Return whether clouds hide all of a window of a product, so that its bands are not read."""
    if product.layers[0].grid != grid:
        return False  # resampled: what is read is decided elsewhere
    clear = scene.clear(product, grid, window)
    return clear is not None and not clear.any()
