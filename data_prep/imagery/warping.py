"""
Tiles from pixels on another grid: another CRS, another resolution, or a shifted raster.

The exact projection is computed on a lattice of points of every tile, for all tiles in one call,
and interpolated between them; the pixels are then resampled directly. Where the source is finer
than the tile, or its bands lie on different grids, GDAL's warp is used instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import rasterio
from rasterio.warp import reproject
from rasterio.windows import Window

from butterfly_sdm.imagery.composites.stacks import Stack, warped
from butterfly_sdm.imagery.pixels import apart
from butterfly_sdm.imagery.pixels import measured as measured_in
from butterfly_sdm.imagery.products import RESAMPLING, Grid, Layer, Piece, reading_pixels
from butterfly_sdm.imagery.scene import Scene
from butterfly_sdm.imagery.supply import bring
from data_prep.imagery.tile_grids import TileGrid, transformer


def source_coordinates(
    grid: TileGrid, layer: Layer, node_px: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """
    Return where a lattice of points of each tile lies in the pixels of a file.

    Returns
    -------
    columns, rows : ndarray of shape (tiles, nodes, nodes)
        Fractional pixels of the file (0 is the left or upper edge of its first pixel) at points
        spread evenly from the first to the last pixel centre of the tile.
    """
    nodes = max(17, grid.size_px // node_px + 1)
    t = np.linspace(0.5, grid.size_px - 0.5, nodes) * grid.resolution
    x = np.broadcast_to(grid.left[:, None, None] + t[None, None, :], (len(grid), nodes, nodes))
    y = np.broadcast_to(grid.top[:, None, None] - t[None, :, None], (len(grid), nodes, nodes))
    if layer.crs != grid.crs:
        x, y = transformer(grid.crs, layer.crs).transform(x, y)
    inverse = ~layer.transform
    return inverse.a * x + inverse.b * y + inverse.c, inverse.d * x + inverse.e * y + inverse.f


def warp_patch(
    patch: np.ndarray,
    columns: np.ndarray,
    rows: np.ndarray,
    size_px: int,
    *,
    nodata: float,
    resampling: str,
) -> tuple[np.ndarray, np.ndarray | None]:
    """
    Resample a patch of a file into a tile.

    A pixel is measured where the source pixel it falls into is; neighbours without a measurement do
    not count and the weights of the others are scaled up, as GDAL does.

    Parameters
    ----------
    patch
        (bands, H, W) of any type; reaches two pixels beyond all positions.
    columns, rows
        (nodes, nodes) positions in the patch of points spread evenly from the first to the last
        pixel centre of the tile; 0 is the edge of the first pixel, 0.5 its centre.
    size_px
        Pixels along a side of the tile.
    resampling
        nearest, bilinear or cubic.

    Returns
    -------
    values : ndarray of the type of the patch, shape (bands, size_px, size_px)
    measured : ndarray of bool, shape (size_px, size_px), or None where all are
    """
    present = measured_in(patch, nodata).all(axis=0)
    whole = bool(present.all())
    if patch.dtype.kind == "f" and not whole:
        patch = np.where(present, patch, np.float32(0))  # nothing times NaN is NaN
    if resampling == "bilinear":
        values, measured = _bilinear(patch, columns, rows, size_px, None if whole else present)
    else:
        across, down = _between_nodes(columns, size_px), _between_nodes(rows, size_px)
        near = np.floor(down).astype(np.int32) * patch.shape[2] + np.floor(across).astype(np.int32)
        measured = None if whole else present.ravel().take(near)
        if resampling == "nearest":
            values = patch.reshape(len(patch), -1).take(near, axis=1)
        else:
            values = _cubic(patch, across, down, None if whole else present)
    if nodata or resampling == "cubic":
        values = apart(values, nodata)  # a measured value is never nodata
    return (
        (values, None)
        if measured is None
        else (np.where(measured, values, patch.dtype.type(nodata)), measured)
    )


def _bilinear(
    patch: np.ndarray,
    columns: np.ndarray,
    rows: np.ndarray,
    size_px: int,
    present: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray | None]:
    # PyTorch's sampler is vectorised: ten times as fast here as NumPy's indexing.
    import torch
    from torch.nn.functional import grid_sample

    height, width = patch.shape[1:]
    at = np.empty((1, size_px, size_px, 2), dtype=np.float32)
    at[0, ..., 0] = _between_nodes((columns * (2 / width) - 1).astype(np.float32), size_px)
    at[0, ..., 1] = _between_nodes((rows * (2 / height) - 1).astype(np.float32), size_px)
    places = torch.from_numpy(at)
    counts = torch.from_numpy(patch.astype(np.float32))[None]
    if present is None:
        values = grid_sample(counts, places, align_corners=False)[0].numpy()
        return _nearest_number(values, patch.dtype), None
    there = torch.from_numpy(present.astype(np.float32))[None, None]
    weight = grid_sample(there, places, align_corners=False)[0].clamp(min=1e-3).numpy()
    values = grid_sample(counts * there, places, align_corners=False)[0].numpy() / weight
    measured = grid_sample(there, places, mode="nearest", align_corners=False)[0, 0].numpy() > 0.5
    return _nearest_number(values, patch.dtype), measured


def _nearest_number(values: np.ndarray, kind: np.dtype[Any]) -> np.ndarray:
    if kind.kind == "f":
        return values.astype(kind, copy=False)
    limits = np.iinfo(kind)
    halves = values + np.float32(0.5)
    if limits.min < 0:  # the others are cut off towards zero, which is faster
        halves = np.floor(halves)
    return halves.clip(limits.min, limits.max).astype(kind)


def _between_nodes(nodes: np.ndarray, size_px: int) -> np.ndarray:
    """
    Interpolate (k, k) values at nodes linearly to (size_px, size_px) pixels, of which the outermost
    are nodes.
    """
    position = np.linspace(0, len(nodes) - 1, size_px)
    low = np.minimum(position.astype(int), len(nodes) - 2)
    part = (position - low).astype(nodes.dtype)
    # Neither a matrix product nor PyTorch's interpolation: their threads would fight with those of
    # the executor.
    rows = nodes[low] * (1 - part)[:, None] + nodes[low + 1] * part[:, None]
    values: np.ndarray = np.diff(rows, axis=1).take(low, axis=1)
    values *= part
    values += rows.take(low, axis=1)
    return values


def _cubic(
    patch: np.ndarray, columns: np.ndarray, rows: np.ndarray, present: np.ndarray | None
) -> np.ndarray:
    """Cubic convolution of Keys (1981) with a = -1/2, as GDAL; PyTorch's has a = -3/4."""
    bands, _, width = patch.shape
    left, top = np.floor(columns - 0.5).astype(np.int32), np.floor(rows - 0.5).astype(np.int32)
    across, down = (
        _cubic_weights((columns - 0.5 - left).astype(np.float32)),
        _cubic_weights((rows - 0.5 - top).astype(np.float32)),
    )
    counts = patch.reshape(bands, -1).astype(np.float32)
    total = np.zeros((bands, *columns.shape), dtype=np.float32)
    weight_sum = np.zeros(columns.shape, dtype=np.float32)
    for i in range(4):
        for j in range(4):
            index = (top + (i - 1)) * width + (left + (j - 1))
            weight = down[i] * across[j]
            if present is not None:
                weight = weight * present.ravel().take(index)
                weight_sum += weight
            for band in range(bands):
                total[band] += counts[band].take(index) * weight
    if present is not None:
        total /= np.where(np.abs(weight_sum) > 1e-5, weight_sum, 1)
    if patch.dtype.kind == "f":
        return total
    limits = np.iinfo(patch.dtype)
    return np.clip(np.rint(total), limits.min, limits.max).astype(patch.dtype)


def warp_with_gdal(
    scene: Scene, piece: Piece, grid: TileGrid, tile: int, *, resampling: str
) -> tuple[np.ndarray, np.ndarray]:
    """
    Warp one tile with GDAL, which averages where the source is finer than the tile.

    Returns
    -------
    values : ndarray of the type of the scene, shape (bands, h, w)
    measured : ndarray of bool, shape (h, w)
    """
    size = grid.size_px
    values = np.full((len(scene.bands), size, size), scene.nodata, dtype=scene.dtype)
    measured = np.ones((size, size), dtype=bool)
    here = (grid.crs, grid.transform(tile), size, size)
    if isinstance(piece, Stack):
        return warped(scene, piece, here, resampling)
    if scene.supply is not None:
        bring(scene, [(piece, here, Window(0, 0, size, size))])
    clear = None
    if scene.cloudy and piece.mask is not None:
        classes = np.zeros((size, size), np.uint8)
        reproject(
            rasterio.band(scene.handle(piece.mask), piece.mask.indexes[0]),
            classes,
            src_crs=piece.mask.crs,
            src_transform=piece.mask.transform,
            dst_crs=here[0],
            dst_transform=here[1],
            resampling=RESAMPLING["nearest"],
        )
        clear = ~np.isin(classes, scene.cloudy)
    found = [
        (slot, layer, _reprojected(scene, layer, index, here, resampling))
        for layer in piece.layers
        for slot, index in layer.slots(scene.bands).items()
    ]
    inside = np.zeros((size, size), dtype=bool)  # where a zero in one band is one
    for _, layer, raw in found:
        if layer.border:
            inside |= np.isfinite(raw)
    for slot, layer, raw in found:
        if layer.border:
            raw[inside & np.isnan(raw)] = 0
        present = np.isfinite(raw) if clear is None else np.isfinite(raw) & clear
        counts = scene.counts(raw, piece, layer, present)
        values[slot] = np.where(present, counts, values.dtype.type(scene.nodata))
        measured &= present
    return values, measured


def _reprojected(scene: Scene, layer: Layer, index: int, grid: Grid, resampling: str) -> np.ndarray:
    """Return (h, w) stored values of a band on a grid, NaN where there is none."""
    crs, transform, width, height = grid
    raw = np.full((height, width), np.nan, dtype=np.float64)
    source = scene.handle(layer)
    source = source.source if layer.upside_down else source
    with reading_pixels(layer.path):
        reproject(
            rasterio.band(source, index),
            raw,
            src_crs=layer.crs,
            src_transform=layer.stored_transform,
            src_nodata=layer.warp_nodata,
            dst_crs=crs,
            dst_transform=transform,
            dst_nodata=np.nan,
            resampling=RESAMPLING[resampling],
        )
    return raw


def _cubic_weights(fraction: np.ndarray) -> list[np.ndarray]:
    f = fraction
    return [
        ((-0.5 * f + 1) * f - 0.5) * f,
        ((1.5 * f - 2.5) * f) * f + 1,
        ((-1.5 * f + 2) * f + 0.5) * f,
        ((0.5 * f - 0.5) * f) * f,
    ]
