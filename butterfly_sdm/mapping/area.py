"""The area a map is wanted for: inside polygons, outside masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
from rasterio.features import geometry_mask

from butterfly_sdm.errors import DataError, MissingFileError
from butterfly_sdm.mapping.surfaces.lattice import Lattice
from butterfly_sdm.mapping.surfaces.positions import sample_raster


@dataclass(frozen=True)
class Area:
    """
    Where a map is wanted.

    Attributes
    ----------
    polygons
        A vector file (anything GDAL reads) or polygons; positions outside all of them have no
        value. None: everywhere.
    masks
        Raster file: the values that have no value in the map, such as those of sea in a land cover
        map.
    """

    polygons: Path | gpd.GeoDataFrame | None = None
    masks: Mapping[Path, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        files = [*self.masks, *([self.polygons] if isinstance(self.polygons, str | Path) else [])]
        for path in files:
            if not Path(path).is_file():
                raise MissingFileError(
                    f"There is no file {path} for the area of the map. Check area and masks."
                )

    def wanted(self, lattice: Lattice, crs: Any) -> np.ndarray:
        """
        Return (height, width) whether the centre of each map pixel lies in the area.

        Raises
        ------
        DataError
            The polygons have no CRS, or nothing of the area lies in the scene.
        """
        wanted = np.ones(lattice.shape, dtype=bool)
        if self.polygons is not None:
            shapes = self._polygons().to_crs(crs)
            wanted &= geometry_mask(shapes.geometry, lattice.shape, lattice.transform, invert=True)
        for path, values in self.masks.items():
            rows, cols = np.nonzero(wanted)
            if len(rows):
                found = sample_raster(Path(path), *lattice.coordinates(rows, cols), crs)
                wanted[rows, cols] = ~np.isin(found, values)
        if not wanted.any():
            raise DataError(
                "No position of the scene lies in the area that was asked for. Check the area and "
                "its CRS."
            )
        return wanted

    def _polygons(self) -> gpd.GeoDataFrame:
        if isinstance(self.polygons, gpd.GeoDataFrame):
            shapes = self.polygons
        else:
            try:
                shapes = gpd.read_file(self.polygons)
            except Exception as error:  # drivers raise errors of their own
                raise DataError(
                    f"{self.polygons} cannot be read as polygons: {error}. Give a GeoPackage, "
                    "GeoJSON or shapefile."
                ) from error
        if shapes.crs is None:
            raise DataError(
                "The polygons of the area have no CRS. Write one into the file, or use set_crs."
            )
        return shapes[shapes.geometry.notna()]
