"""Shapes of a vector file as a page draws them above a map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas as gpd

from butterfly_sdm.errors import DataError, MissingFileError

MOST_SHAPES = 20_000


def overlay_of(path: Path, crs: Any) -> dict[str, Any]:
    """
    Return the shapes of a vector file as GeoJSON with coordinates in ``crs``, and their columns.

    Raises
    ------
    MissingFileError
        There is no such file.
    DataError
        It cannot be read as shapes, has no CRS, or holds too many.
    """
    if not Path(path).is_file():
        raise MissingFileError(f"There is no file {path} to draw above the map. Check --overlay.")
    try:
        shapes = gpd.read_file(path)
    except Exception as error:  # drivers raise errors of their own
        raise DataError(
            f"{path} cannot be read as shapes: {error}. Give a GeoJSON, GeoPackage or shapefile."
        ) from error
    if not isinstance(shapes, gpd.GeoDataFrame) or shapes.crs is None:
        raise DataError(f"{path} holds no shapes with a CRS. Write one into the file.")
    if len(shapes) > MOST_SHAPES:
        raise DataError(
            f"{path} holds {len(shapes):,} shapes; a page draws at most {MOST_SHAPES:,}. Take the "
            "part that matters."
        )
    shapes = shapes[shapes.geometry.notna() & ~shapes.geometry.is_empty].to_crs(crs)
    found: dict[str, Any] = json.loads(shapes.to_json(na="drop", default=str))
    found.pop("crs", None)
    return found
