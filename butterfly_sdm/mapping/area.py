"""The area a map is wanted for: inside polygons, outside masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
from rasterio.features import geometry_mask

from butterfly_sdm.errors import DataError, MissingFileError
from butterfly_sdm.mapping.surfaces.lattice import Lattice
from butterfly_sdm.mapping.surfaces.positions import sample_raster


def wanted_positions(
    lattice: Lattice,
    crs: Any,
    polygons: Path | gpd.GeoDataFrame | None,
    masks: Mapping[Path, tuple[int, ...]],
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

    Raises
    ------
    MissingFileError
        There is no such file.
    DataError
        The polygons have no CRS, or nothing of the area lies in the scene.
    """
    files = [*masks, *([polygons] if isinstance(polygons, Path) else [])]
    for path in files:
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
        wanted &= geometry_mask(shapes.geometry, lattice.shape, lattice.transform, invert=True)
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


def _read(polygons: Path | gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    if isinstance(polygons, Path):
        try:
            shapes = gpd.read_file(polygons)
        except Exception as error:  # drivers raise errors of their own
            raise DataError(
                f"{polygons} cannot be read as polygons: {error}. Give a GeoPackage, GeoJSON or "
                "shapefile."
            ) from error
    else:
        shapes = polygons
    if shapes.crs is None:
        raise DataError(
            "The polygons of the area have no CRS. Write one into the file, or use set_crs."
        )
    return shapes[shapes.geometry.notna()]
