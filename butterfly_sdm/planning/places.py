"""Read squares, polygons and points: candidates, places, homes, plans made already."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from butterfly_sdm.errors import ButterflySDMError, DataError, MissingFileError
from butterfly_sdm.planning.ground import Ground

#: From a grid reference to the square it means (EPSG:4326).
SquareOf = Callable[[str], shapely.Polygon]

NAMES = ("site_id", "name", "id", "square")
REFERENCES = ("grid_reference", "gridreference", "grid_ref", "gridref")
DEGREES = (("lon", "lat"), ("longitude", "latitude"), ("decimallongitude", "decimallatitude"))
WKT = ("footprint_wkt", "footprintwkt", "wkt")


def read_shapes(
    source: Path | gpd.GeoDataFrame, ground: Ground, what: str, *, square_of: SquareOf | None = None
) -> gpd.GeoDataFrame:
    """
    Read shapes and bring them into the CRS of a plan.

    Parameters
    ----------
    source
        A vector file (anything GDAL reads), GeoParquet, or a CSV with ``lon`` and ``lat``,
        ``easting`` and ``northing`` (in the CRS of the data set), ``grid_reference`` or
        ``footprint_wkt``; or one row per shape, with a CRS.
    what
        They are, for messages: ``candidates``.
    square_of
        Reads grid references; None: they cannot be read.

    Returns
    -------
    GeoDataFrame
        Index: the names (``site_id``, ``name``, ``id``, else a grid reference, else a number), each
        once; the other columns as they were. Rows without a shape are left out.

    Raises
    ------
    MissingFileError, DataError
        The file is absent, cannot be read, says no place or no CRS, or names two alike.
    """
    if isinstance(source, Path):
        if not source.is_file():
            raise MissingFileError(f"There is no file of {what} {source}. Check plan.{what}.")
        table = _from_file(source, ground, what, square_of)
    else:
        table = source
    if table.crs is None:
        raise DataError(f"The {what} have no CRS. Write one into the file, or use set_crs.")
    table = table.to_crs(ground.crs)
    table = table[table.geometry.notna() & ~table.geometry.is_empty]
    finite = np.isfinite(table.geometry.bounds.to_numpy(float)).all(axis=1)
    table = table[finite]
    if not len(table):
        raise DataError(f"The file of {what} holds no shape that lies in {ground.crs.name}.")
    by_name = {str(column).lower(): column for column in table.columns}
    named = next((by_name[name] for name in (*NAMES, *REFERENCES) if name in by_name), None)
    if named is not None:
        names = table[named].astype(str).str.strip()
    elif pd.api.types.is_string_dtype(table.index):
        names = pd.Series(table.index.astype(str), index=table.index)
    else:
        names = pd.Series(np.arange(1, len(table) + 1).astype(str), index=table.index)
    if names.duplicated().any():
        raise DataError(
            f"The {what} name {names[names.duplicated()].iloc[0]!r} twice. Give each its own name, "
            f"in a column {NAMES[0]} or {NAMES[1]}."
        )
    return table.set_index(pd.Index(names, name="name"))


def _from_file(
    path: Path, ground: Ground, what: str, square_of: SquareOf | None
) -> gpd.GeoDataFrame:
    try:
        if path.suffix.lower() in (".csv", ".tsv", ".txt"):
            with path.open(encoding="utf-8-sig") as file:
                head = file.readline()
            table = pd.read_csv(path, sep=max(",;\t", key=head.count), encoding="utf-8-sig")
            return _placed(table, path, ground, what, square_of)
        if path.suffix.lower() == ".parquet":
            return gpd.read_parquet(path)
        return gpd.read_file(path)
    except ButterflySDMError:
        raise
    except Exception as error:  # drivers raise errors of their own
        raise DataError(
            f"The {what} {path} cannot be read: {str(error).splitlines()[0]}. Give a GeoPackage, "
            "GeoJSON, GPX or CSV."
        ) from error


def _placed(
    table: pd.DataFrame, path: Path, ground: Ground, what: str, square_of: SquareOf | None
) -> gpd.GeoDataFrame:
    """Return a table with the shapes that its columns speak of."""
    by_name = {str(column).strip().lower(): column for column in table.columns}

    def column(names: Iterable[str]) -> pd.Series | None:
        return next((table[by_name[name]] for name in names if name in by_name), None)

    if (text := column(WKT)) is not None:
        shapes = shapely.from_wkt(text.fillna("").where(text.notna(), None), on_invalid="ignore")
        return gpd.GeoDataFrame(table, geometry=shapes, crs="EPSG:4326")
    for x, y in (*DEGREES, ("easting", "northing")):
        if x in by_name and y in by_name:
            place = table[[by_name[x], by_name[y]]].apply(pd.to_numeric, errors="coerce")
            bad = place.isna().any(axis=1)
            if bad.any():
                raise DataError(f"Row {bad.to_numpy().argmax() + 1} of {path} has no {x} and {y}.")
            metric = x == "easting"
            xy = place.to_numpy(float) / (ground.unit_m if metric else 1.0)
            return gpd.GeoDataFrame(
                table,
                geometry=gpd.points_from_xy(*xy.T),
                crs=ground.crs if metric else "EPSG:4326",
            )
    if (text := column(REFERENCES)) is not None and square_of is not None:
        return gpd.GeoDataFrame(
            table, geometry=[square_of(str(one)) for one in text], crs="EPSG:4326"
        )
    raise DataError(
        f"The table of {what} {path} does not say where they lie: it needs lon and lat, easting "
        f"and northing, grid_reference or footprint_wkt; it has {', '.join(map(str, by_name))}."
    )


def overlapping(shapes: gpd.GeoSeries, others: gpd.GeoSeries) -> np.ndarray:
    """
    Return (shapes,) whether each shares ground with one of ``others``; to touch is not to share.

    Points share ground with what they lie in or on.
    """
    hit = np.zeros(len(shapes), dtype=bool)
    if not len(shapes) or not len(others):
        return hit
    own, theirs = shapes.to_numpy(), others.to_numpy()
    which, whose = shapely.STRtree(theirs).query(own, predicate="intersects")
    flat = (shapely.get_dimensions(own[which]) < 2) | (shapely.get_dimensions(theirs[whose]) < 2)
    shared = flat | ~shapely.touches(own[which], theirs[whose])
    hit[which[shared]] = True
    return hit
