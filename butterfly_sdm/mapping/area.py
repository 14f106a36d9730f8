"""The area a map is wanted for: inside polygons, outside masks."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal

import geopandas as gpd
import numpy as np
from rasterio.features import geometry_mask
from rasterio.transform import array_bounds
from rasterio.warp import transform_bounds
from shapely.geometry import box

from butterfly_sdm.errors import DataError, MissingFileError
from butterfly_sdm.mapping.surfaces.covariates import sample_raster
from butterfly_sdm.mapping.surfaces.lattice import Lattice


def wanted_positions(
    lattice: Lattice,
    crs: Any,
    polygons: Path | gpd.GeoDataFrame | None,
    masks: Mapping[Path, tuple[int, ...]],
    land: Path | Literal["natural_earth"] | None = None,
) -> tuple[Lattice, np.ndarray]:
    """
    Return the lattice around the area, and (height, width) whether the centre of each map pixel
    lies in it.

    A map of a small area of a large scene costs what its area costs, in time, memory and disk.

    Parameters
    ----------
    crs
        Of the map.
    polygons
        A vector file (anything GDAL reads) or polygons; positions outside all of them are not
        wanted. None: everywhere.
    masks
        Raster file: the values that are not wanted, such as those of sea in a land cover map.
    land
        Vector file of land, or ``natural_earth`` for the land that comes with the package:
        positions off it are not wanted. None: any are.

    Raises
    ------
    MissingFileError
        There is no such file.
    DataError
        The polygons have no CRS, or nothing of the area lies in the scene.
    """
    named = [*masks, *(path for path in (polygons, land) if isinstance(path, Path))]
    for path in named:
        if not path.is_file():
            raise MissingFileError(
                f"There is no file {path} for the area of the map. Check area and masks."
            )
    shapes = None
    if polygons is not None:
        shapes = _read(polygons).to_crs(crs)
        lattice = lattice.around(_bounds(shapes))
    wanted = np.ones(lattice.shape, dtype=bool)
    if shapes is not None and wanted.size:
        wanted &= _inside(lattice, shapes)
    if land is not None and wanted.size:
        ground = _natural_earth(lattice, crs) if land == "natural_earth" else _read(land)
        wanted &= _inside(lattice, ground.to_crs(crs))
    for path, values in masks.items():
        rows, cols = np.nonzero(wanted)
        if len(rows):
            found = sample_raster(path, *lattice.coordinates(rows, cols), crs)
            wanted[rows, cols] = ~np.isin(found, values)
    if not wanted.any():
        raise DataError(
            "No position of the scene lies in the area that was asked for. Check the area and its "
            "CRS."
        )
    if shapes is None:
        return lattice, wanted
    rows, cols = (np.flatnonzero(wanted.any(axis=axis)) for axis in (1, 0))
    box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)
    return lattice.part(*box), wanted[box]


def _bounds(shapes: gpd.GeoDataFrame) -> tuple[float, float, float, float]:
    found = shapes.total_bounds
    if not np.isfinite(found).all():
        return 0.0, 0.0, 0.0, 0.0  # no shape, or one that has no place in this CRS
    left, bottom, right, top = map(float, found)
    return left, bottom, right, top


def _inside(lattice: Lattice, shapes: gpd.GeoDataFrame) -> np.ndarray:
    if shapes.empty:
        return np.zeros(lattice.shape, dtype=bool)
    inside: np.ndarray = geometry_mask(
        shapes.geometry, lattice.shape, lattice.transform, invert=True
    )
    return inside


def _natural_earth(lattice: Lattice, crs: Any) -> gpd.GeoDataFrame:
    """Return the land of Natural Earth at 1:10 million around the positions of a map."""
    bounds = array_bounds(*lattice.shape, lattice.transform)
    west, south, east, north = transform_bounds(crs, "EPSG:4326", *bounds, densify_pts=51)
    packed = files("butterfly_sdm.mapping").joinpath("land/land_10m.topojson.gz")
    with as_file(packed) as path:
        land = gpd.read_file(f"/vsigzip/{path}")
    parts = land.geometry.explode(index_parts=False)
    # across the 180th meridian both ends of the world are near
    around = box(-180, south, 180, north) if west > east else box(west, south, east, north)
    near = parts[parts.intersects(around)].make_valid().intersection(around.buffer(0.1))
    return gpd.GeoDataFrame(geometry=near[~near.is_empty], crs="EPSG:4326")


def read_polygons(polygons: Path | gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """
    Return polygons out of a vector file, or as they are given.

    Raises
    ------
    MissingFileError, DataError
        There is no such file, it holds no shapes, or they have no CRS.
    """
    shapes: gpd.GeoDataFrame
    if not isinstance(polygons, Path):
        shapes = polygons
    else:
        if not polygons.exists():
            raise MissingFileError(f"There is no file {polygons} of polygons.")
        try:
            shapes = gpd.read_file(polygons)
        except Exception as error:  # drivers raise errors of their own
            raise DataError(
                f"{polygons} cannot be read as polygons: {error}. Give a GeoPackage, GeoJSON or "
                "shapefile."
            ) from error
        if not isinstance(shapes, gpd.GeoDataFrame):  # a table
            raise DataError(f"{polygons} holds no shapes. Give a GeoPackage, GeoJSON or shapefile.")
    if shapes.crs is None:
        raise DataError("The polygons have no CRS. Write one into the file, or use set_crs.")
    return shapes


def _read(polygons: Path | gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Return the polygons that have a shape."""
    shapes = read_polygons(polygons)
    return shapes[shapes.geometry.notna()]
