"""
Tiles from pixels on another grid: another CRS, another resolution, or a shifted raster.

The exact projection is computed on a lattice of points of every tile, for all tiles in one call, and interpolated between
them; the pixels are then gathered directly. Where the source is finer than the tile, or its bands lie on different grids,
GDAL's warp is used instead.
"""

from __future__ import annotations

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.warp import reproject

from butterfly_sdm.data.products import Layer, Piece
from butterfly_sdm.data.raster import RESAMPLING, Scene, unreadable
from data_prep.grids import TileGrid, transformer


def source_coordinates(grid: TileGrid, layer: Layer, node_px: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """
    Return where a lattice of points of each tile lies in the pixels of a file.

    Returns
    -------
    columns, rows : ndarray of shape (tiles, nodes, nodes)
        Fractional pixels of the file (0 is the left or upper edge of its first pixel) at points spread evenly from the first
        to the last pixel centre of the tile.
    """
    nodes = max(17, grid.size_px // node_px + 1)
    t = np.linspace(0.5, grid.size_px - 0.5, nodes) * grid.resolution
    x = np.broadcast_to(grid.left[:, None, None] + t[None, None, :], (len(grid), nodes, nodes))
    y = np.broadcast_to(grid.top[:, None, None] - t[None, :, None], (len(grid), nodes, nodes))
    if layer.crs != grid.crs:
        x, y = transformer(grid.crs, layer.crs).transform(x, y)
    inverse = ~layer.transform
    return inverse.a * x + inverse.b * y + inverse.c, inverse.d * x + inverse.e * y + inverse.f


def between_nodes(nodes: np.ndarray, size_px: int) -> np.ndarray:
    """Interpolate (k, k) values at nodes linearly to (size_px, size_px) pixels, of which the outermost are nodes."""
    position = np.linspace(0, len(nodes) - 1, size_px)
    low = np.minimum(position.astype(int), len(nodes) - 2)
    part = position - low
    # Not a matrix product: its threads would fight with those of the executor.
    rows = nodes[low] * (1 - part)[:, None] + nodes[low + 1] * part[:, None]
    return rows[:, low] * (1 - part) + rows[:, low + 1] * part


def gather(
    patch: np.ndarray, columns: np.ndarray, rows: np.ndarray, *, nodata: int, resampling: str
) -> tuple[np.ndarray, np.ndarray]:
    """
    Take the values of a patch at fractional pixels.

    A pixel is measured where the source pixel it falls into is; neighbours without a measurement do not count and the
    weights of the others are scaled up, as GDAL does.

    Parameters
    ----------
    patch
        (bands, H, W) uint16.
    columns, rows
        (h, w) positions in the patch; 0 is the edge of the first pixel, 0.5 its centre.

    Returns
    -------
    values : ndarray of uint16, shape (bands, h, w)
    measured : ndarray of bool, shape (h, w)
    """
    bands, height, width = patch.shape
    flat = patch.reshape(bands, -1)
    near_c, near_r = np.floor(columns).astype(np.int32), np.floor(rows).astype(np.int32)
    inside = (near_c >= 0) & (near_c < width) & (near_r >= 0) & (near_r < height)
    near = np.clip(near_r, 0, height - 1) * width + np.clip(near_c, 0, width - 1)
    present = (patch != nodata).all(axis=0).ravel()
    measured = present.take(near) & inside
    if resampling == "nearest":
        values = flat.take(near.ravel(), axis=1).reshape(bands, *columns.shape)
        return np.where(inside, values, np.uint16(nodata)), measured
    taps = (0, 1) if resampling == "bilinear" else (-1, 0, 1, 2)
    c0, r0 = np.floor(columns - 0.5).astype(np.int32), np.floor(rows - 0.5).astype(np.int32)
    across = _weights((columns - 0.5 - c0).astype(np.float32), resampling)
    down = _weights((rows - 0.5 - r0).astype(np.float32), resampling)
    whole = bool(present.all()) and bool(
        c0.min() + taps[0] >= 0 and r0.min() + taps[0] >= 0
        and c0.max() + taps[-1] < width and r0.max() + taps[-1] < height
    )  # fmt: skip
    counts = flat.astype(np.float32)
    total = np.zeros((bands, columns.size), dtype=np.float32)
    weight_sum = None if whole else np.zeros(columns.size, dtype=np.float32)
    for i, dy in enumerate(taps):
        row = r0 + dy
        for j, dx in enumerate(taps):
            column = c0 + dx
            weight = (down[i] * across[j]).ravel()
            if weight_sum is None:
                index = (row * width + column).ravel()
            else:
                within = (column >= 0) & (column < width) & (row >= 0) & (row < height)
                index = (np.clip(row, 0, height - 1) * width + np.clip(column, 0, width - 1)).ravel()
                weight = weight * (present.take(index) & within.ravel())
                weight_sum += weight
            for band in range(bands):
                total[band] += counts[band].take(index) * weight
    if weight_sum is not None:
        total /= np.where(np.abs(weight_sum) > 1e-5, weight_sum, 1)
    values = np.clip(np.rint(total), 0, 65535).astype(np.uint16).reshape(bands, *columns.shape)
    values[values == nodata] = nodata + 1 if nodata < 65535 else nodata - 1  # a measured value is never nodata
    return np.where(measured, values, np.uint16(nodata)), measured


def warp_with_gdal(scene: Scene, piece: Piece, grid: TileGrid, tile: int, *, resampling: str) -> tuple[np.ndarray, np.ndarray]:
    """
    Warp one tile with GDAL, which averages where the source is finer than the tile.

    Returns
    -------
    values : ndarray of uint16, shape (bands, h, w)
    measured : ndarray of bool, shape (h, w)
    """
    size = grid.size_px
    values = np.full((len(scene.bands), size, size), scene.nodata, dtype=np.uint16)
    measured = np.ones((size, size), dtype=bool)
    here = (grid.crs, grid.transform(tile), size, size)
    clear = None
    if scene.cloudy and piece.mask is not None:
        classes = np.zeros((size, size), np.uint8)
        reproject(
            rasterio.band(scene.handle(piece.mask), piece.mask.indexes[0]), classes, src_crs=piece.mask.crs,
            src_transform=piece.mask.transform, dst_crs=here[0], dst_transform=here[1], resampling=RESAMPLING["nearest"],
        )  # fmt: skip
        clear = ~np.isin(classes, scene.cloudy)
    for layer in piece.layers:
        source = scene.handle(layer)
        for slot, band in enumerate(scene.bands):
            if band not in layer.bands:
                continue
            raw = np.full((size, size), np.nan, dtype=np.float64)
            try:
                reproject(
                    rasterio.band(source, layer.indexes[layer.bands.index(band)]),
                    raw,
                    src_crs=layer.crs,
                    src_transform=layer.transform,
                    src_nodata=layer.nodata,
                    dst_crs=here[0],
                    dst_transform=here[1],
                    dst_nodata=np.nan,
                    resampling=RESAMPLING[resampling],
                )
            except (RasterioError, OSError) as error:
                raise unreadable(layer, error) from error
            present = np.isfinite(raw) if clear is None else np.isfinite(raw) & clear
            values[slot] = np.where(present, scene.counts(raw, piece), np.uint16(scene.nodata))
            measured &= present
    return values, measured


def _weights(fraction: np.ndarray, resampling: str) -> list[np.ndarray]:
    """Return the weights of the neighbours: linear, or the cubic convolution of Keys (1981) with a = -1/2."""
    f = fraction
    if resampling == "bilinear":
        return [1 - f, f]
    return [
        ((-0.5 * f + 1) * f - 0.5) * f,
        ((1.5 * f - 2.5) * f) * f + 1,
        ((-1.5 * f + 2) * f + 0.5) * f,
        ((0.5 * f - 0.5) * f) * f,
    ]
