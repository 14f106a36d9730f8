"""
Values of a raster in squares of ground: their mean, or the share of each class.

A pixel counts when its centre lies in the square; where none does, because the pixels are larger,
the pixel at the middle of the square counts. Pixels without a value do not count.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.windows import Window

from butterfly_sdm.errors import MissingFileError, RasterError
from butterfly_sdm.imagery.products import metres_per_unit, open_raster, reading_pixels

CHUNK = 1000
MOST_PIXELS = 4_000_000


def square_means(
    path: str | Path,
    easting: np.ndarray,
    northing: np.ndarray,
    crs: str,
    *,
    side_m: float,
    band: int = 1,
) -> np.ndarray:
    """
    Return the mean of a raster in squares around places, with the scale and offset it states.

    Parameters
    ----------
    path
        A raster in any CRS.
    easting, northing
        (n,) middles of the squares in metres of ``crs``; the sides of the squares run along its
        axes.
    side_m
        Side of the squares in metres.
    band
        Counted from 1.

    Returns
    -------
    ndarray of float, shape (n,)
        NaN where the raster has no value in the square.

    Raises
    ------
    MissingFileError, RasterError
        The raster is absent, damaged, has no CRS or lacks the band.
    """
    total, count = np.zeros(len(easting)), np.zeros(len(easting))
    scale, offset = stated_scale(path, band)
    for place, values in _in_squares(path, easting, northing, crs, side_m, band):
        total += np.bincount(place, values * scale + offset, len(easting))
        count += np.bincount(place, minlength=len(easting))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def stated_scale(path: str | Path, band: int) -> tuple[float, float]:
    """
    Return the scale and offset that a raster states of a band: ``value = stored * scale + offset``.
    """
    if not Path(path).exists():
        return 1.0, 0.0  # said when it is read
    with open_raster(str(path)) as source:
        if not 1 <= band <= source.count:
            return 1.0, 0.0
        return float(source.scales[band - 1]), float(source.offsets[band - 1])


def square_shares(
    path: str | Path,
    easting: np.ndarray,
    northing: np.ndarray,
    crs: str,
    *,
    side_m: float,
    band: int = 1,
) -> pd.DataFrame:
    """
    Return the share of each class of a raster in squares around places; arguments and errors as of
    :func:`square_means`.

    Returns
    -------
    DataFrame of float, shape (n, classes that occur)
        Columns are the class numbers; NaN where the raster has no value in the square.
    """
    counts: dict[int, np.ndarray] = {}
    for place, values in _in_squares(path, easting, northing, crs, side_m, band):
        if not len(place):
            continue
        first, several = place.min(), np.ptp(place) + 1
        code, classes = pd.factorize(values.astype(np.int64))
        flat = (place - first) * len(classes) + code
        table = np.bincount(flat, minlength=several * len(classes)).reshape(several, -1)
        for value, count in zip(classes.tolist(), table.T, strict=True):
            counts.setdefault(value, np.zeros(len(easting)))[first : first + several] += count
    shares = pd.DataFrame(counts, index=range(len(easting)), dtype=float).sort_index(axis=1)
    return shares.div(shares.sum(axis=1).replace(0, np.nan), axis=0)


def share_of(shares: pd.DataFrame, value: int) -> np.ndarray:
    """
    Return the shares (n,) of a class from those of :func:`square_shares`: 0 beside other classes,
    NaN where none is.
    """
    known = shares.notna().any(axis=1).to_numpy()
    share = shares[value].fillna(0.0).to_numpy() if value in shares else 0.0
    return np.where(known, share, np.nan)


def _in_squares(
    path: str | Path, easting: np.ndarray, northing: np.ndarray, crs: str, side_m: float, band: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """
    Yield the places, by number, and the values of the pixels that count, both (pixels,), for some
    places at a time.
    """
    if not Path(path).exists():
        raise MissingFileError(f"There is no raster {path}. Check the paths of the covariates.")
    with open_raster(str(path)) as source:
        if not 1 <= band <= source.count:
            raise RasterError(
                f"{path} has {source.count} bands; band {band} is asked for. They are counted from "
                "1."
            )
        metres_per_unit(source.crs, str(path))
        there, back = transformer(str(crs), source.crs.to_wkt()), ~source.transform

        def pixels(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            x, y = there.transform(x, y)
            return back.a * x + back.b * y + back.c, back.d * x + back.e * y + back.f

        for start in range(0, len(easting), CHUNK):
            x, y = (
                np.asarray(easting, float)[start : start + CHUNK],
                np.asarray(northing, float)[start : start + CHUNK],
            )
            middle = np.stack(pixels(x, y), axis=1)  # (n, 2): column, row
            east = np.stack(pixels(x + side_m / 2, y), axis=1) - np.stack(
                pixels(x - side_m / 2, y), axis=1
            )
            north = np.stack(pixels(x, y + side_m / 2), axis=1) - np.stack(
                pixels(x, y - side_m / 2), axis=1
            )
            reach = (np.abs(east) + np.abs(north)) / 2
            known = np.isfinite(middle).all(axis=1) & np.isfinite(reach).all(axis=1)
            size = np.array([source.width, source.height])
            known &= ((middle + reach >= 0) & (middle - reach <= size)).all(axis=1)
            for some in _groups(np.flatnonzero(known), middle, reach):
                place, values = _read(
                    source, band, middle[some], east[some], north[some], reach[some]
                )
                yield start + some[place], values


def _groups(places: np.ndarray, middle: np.ndarray, reach: np.ndarray) -> Iterator[np.ndarray]:
    """Split places until one window of moderate size serves all of a group."""
    if not len(places):
        return
    low, high = (middle - reach)[places].min(axis=0), (middle + reach)[places].max(axis=0)
    one = np.ceil(2 * reach[places].max(axis=0) + 2)
    area, needed = np.prod(high - low + 2), len(places) * np.prod(one)
    if len(places) == 1 or (area <= max(4 * needed, 10_000) and needed <= MOST_PIXELS):
        yield places
        return
    axis = int(np.argmax(high - low))
    order = places[np.argsort(middle[places, axis], kind="stable")]
    yield from _groups(order[: len(order) // 2], middle, reach)
    yield from _groups(order[len(order) // 2 :], middle, reach)


def _read(
    source: Any,
    band: int,
    middle: np.ndarray,
    east: np.ndarray,
    north: np.ndarray,
    reach: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    size = np.array([source.width, source.height])
    low = np.maximum(np.floor((middle - reach).min(axis=0)), 0).astype(int)
    high = np.minimum(np.ceil((middle + reach).max(axis=0)) + 1, size).astype(int)
    if (high <= low).any():
        return np.zeros(0, dtype=int), np.zeros(0)
    with reading_pixels(source.name):
        raw = source.read(band, window=Window(*low, *(high - low)), masked=True)
    there = ~np.ma.getmaskarray(raw)
    if raw.dtype.kind == "f":
        there &= np.isfinite(raw.data)
    first = np.floor(middle - reach).astype(int)  # (n, 2)
    wide, tall = (np.ceil(2 * reach).astype(int) + 2).max(axis=0)
    columns = first[:, 0, None, None] + np.arange(wide)[None, None, :]
    rows = first[:, 1, None, None] + np.arange(tall)[None, :, None]
    dx, dy = columns + 0.5 - middle[:, 0, None, None], rows + 0.5 - middle[:, 1, None, None]
    # How far to the east and north of the middle a pixel lies, in sides of the square: within it
    # the projection is even.
    area = east[:, 0] * north[:, 1] - east[:, 1] * north[:, 0]
    along = ((north[:, 1] / area)[:, None, None] * dx) - ((north[:, 0] / area)[:, None, None] * dy)
    up = ((east[:, 0] / area)[:, None, None] * dy) - ((east[:, 1] / area)[:, None, None] * dx)
    inside = (along >= -0.5 - 1e-9) & (along < 0.5 - 1e-9) & (up > -0.5 + 1e-9) & (up <= 0.5 + 1e-9)
    inside &= (columns >= low[0]) & (columns < high[0]) & (rows >= low[1]) & (rows < high[1])
    place, row, column = np.nonzero(inside)
    row, column = row + first[place, 1] - low[1], column + first[place, 0] - low[0]
    alone = np.setdiff1d(np.arange(len(middle)), place)
    near = np.floor(middle[alone]).astype(int) - low
    held = ((near >= 0) & (near < high - low)).all(axis=1)
    place = np.concatenate([place, alone[held]])
    row, column = np.concatenate([row, near[held, 1]]), np.concatenate([column, near[held, 0]])
    kept = there[row, column]
    return place[kept], raw.data[row[kept], column[kept]].astype(np.float64)


@lru_cache(maxsize=16)
def transformer(source: str, target: str) -> Transformer:
    """Return what turns coordinates of one CRS into those of another; making one takes long."""
    return Transformer.from_crs(CRS.from_user_input(source).to_wkt(), target, always_xy=True)
