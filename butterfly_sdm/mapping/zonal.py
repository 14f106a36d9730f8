"""Means of a map over grid squares or polygons."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
from pyproj import Transformer
from rasterio.features import rasterize
from rasterio.windows import transform as window_transform
from shapely.geometry import box

from butterfly_sdm.core.files import atomic_path, write_table
from butterfly_sdm.errors import DataError
from butterfly_sdm.mapping.area import read_polygons
from butterfly_sdm.mapping.map_reader import MapReader


def squares_table(path: str | Path, side_m: float, *, crs: str | None = None) -> gpd.GeoDataFrame:
    """
    Return the mean of every band over squares of ``side_m`` metres.

    Parameters
    ----------
    path
        A map.
    side_m
        Side of the squares, which lie on whole multiples of it: 1000 for 1 km squares.
    crs
        CRS of the squares, such as ``EPSG:27700``; None: that of the map.

    Returns
    -------
    GeoDataFrame
        One row per square with a value: ``zone`` (easting and northing of its lower left corner in
        km), ``positions`` (map pixels with a value whose centre lies in it), one column per band.

    Raises
    ------
    DataError
        The side is not positive.
    """
    source = MapReader(path)
    if side_m <= 0:
        raise DataError(
            f"Squares of {side_m} m are impossible. Give a side in metres, such as 1000."
        )
    target = crs or source.crs
    there = Transformer.from_crs(source.crs, target, always_xy=True)
    sums: dict[tuple[int, int], np.ndarray] = {}
    for window, values in source.blocks():
        x, y = np.meshgrid(*source.centres(window))
        east, north = there.transform(x.ravel(), y.ravel())
        squares = np.column_stack(
            [np.floor(np.asarray(east) / side_m), np.floor(np.asarray(north) / side_m)]
        ).astype(np.int64)
        unique, zone = np.unique(squares, axis=0, return_inverse=True)
        table = _sums(values, zone.ravel(), len(unique))
        for place, square in enumerate(map(tuple, unique.tolist())):
            sums[square] = sums.get(square, 0) + table[place]
    kept = {square: total for square, total in sorted(sums.items()) if total[-1] > 0}
    frame = _means(source.names, np.array(list(kept.values())).reshape(len(kept), -1))
    frame.insert(0, "zone", [f"E{i * side_m / 1000:g} N{j * side_m / 1000:g}" for i, j in kept])
    shapes = [box(i * side_m, j * side_m, (i + 1) * side_m, (j + 1) * side_m) for i, j in kept]
    return gpd.GeoDataFrame(frame, geometry=shapes, crs=target)


def polygons_table(
    path: str | Path, polygons: Path | gpd.GeoDataFrame, *, name: str | None = None
) -> gpd.GeoDataFrame:
    """
    Return the mean of every band over polygons; a map pixel belongs to the polygon its centre lies
    in.

    Parameters
    ----------
    path
        The map.
    polygons
        Vector file, or one row per polygon; where they overlap, the last counts.
    name
        Column that names them; None: their number.

    Raises
    ------
    MissingFileError, DataError
        There is no such file or column, it holds no shapes, or they have no CRS.
    """
    source = MapReader(path)
    polygons = read_polygons(Path(polygons) if isinstance(polygons, str) else polygons)
    if name is not None and name not in polygons.columns:
        raise DataError(
            f"The polygons have no column {name!r}; they have "
            f"{', '.join(map(str, polygons.columns))}."
        )
    shapes = polygons.to_crs(source.crs).reset_index(drop=True)
    numbered = [
        (shape, number + 1)
        for number, shape in enumerate(shapes.geometry)
        if shape is not None and not shape.is_empty
    ]
    total = np.zeros((len(shapes), len(source.names) + 1))
    for window, values in source.blocks():
        grid = window_transform(window, source.transform)
        zone = (
            rasterize(numbered, values.shape[1:], transform=grid, dtype="int32")
            if numbered
            else np.zeros(values.shape[1:], int)
        )
        total += _sums(values, zone.ravel(), len(shapes) + 1)[1:]
    frame = _means(source.names, total)
    frame.insert(
        0,
        "zone",
        shapes[name].astype(str)
        if name is not None
        else [str(n) for n in range(1, len(shapes) + 1)],
    )
    return gpd.GeoDataFrame(frame, geometry=shapes.geometry, crs=source.crs)


def _sums(values: np.ndarray, zone: np.ndarray, zones: int) -> np.ndarray:
    """
    Return (zones, bands + 1): the sum of every band over the positions that have a value in all,
    and their number.
    """
    flat = values.reshape(len(values), -1)
    known = np.isfinite(flat).all(axis=0)
    sums = [np.bincount(zone[known], weights=band[known], minlength=zones) for band in flat]
    return np.column_stack([*sums, np.bincount(zone[known], minlength=zones)])


def _means(names: Sequence[str], sums: np.ndarray) -> pd.DataFrame:
    count = sums[:, -1]
    means = np.divide(
        sums[:, :-1],
        count[:, None],
        out=np.full_like(sums[:, :-1], np.nan),
        where=count[:, None] > 0,
    )
    frame = pd.DataFrame(means, columns=list(names))
    frame.insert(0, "positions", count.astype(int))
    return frame


def write_zonal(table: gpd.GeoDataFrame, stem: Path) -> tuple[Path, Path]:
    """
    Write a table as ``STEM.csv`` (without shapes) and ``STEM.parquet`` (GeoParquet).

    Returns
    -------
    csv, parquet
        Where they lie.
    """
    stem = Path(stem)
    csv, parquet = stem.with_suffix(".csv"), stem.with_suffix(".parquet")
    write_table(csv, pd.DataFrame(table.drop(columns="geometry")), index=False, float_format="%.6g")
    with atomic_path(parquet) as temporary:
        table.to_parquet(temporary)
    return csv, parquet
