"""The bands of a finished map, read by name and block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.windows import Window

from butterfly_sdm.errors import DataError
from butterfly_sdm.mapping.map_file import TILE_PX, read_tags
from butterfly_sdm.mapping.quantity import is_of_species


class MapReader:
    """
    A finished map.

    Parameters
    ----------
    path
        The GeoTIFF.

    Attributes
    ----------
    names, units
        Of the bands, in order.
    tags
        Metadata by lower-case name.

    Raises
    ------
    MissingFileError, RasterError
        There is no such file, or it is no map of this package.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.tags = read_tags(self.path)
        with rasterio.open(self.path) as source:
            self.names: tuple[str, ...] = source.descriptions
            self.units: tuple[str, ...] = tuple(unit or "" for unit in source.units)
            self.scales = np.array(source.scales)
            self.crs: Any = source.crs
            self.transform: Any = source.transform
            self.shape: tuple[int, int] = source.shape
            self.nodata = source.nodata

    @property
    def species(self) -> tuple[str, ...]:
        """Bands that are probabilities of a species."""
        layers = {"ensemble spread"}
        return tuple(
            name
            for name, unit in zip(self.names, self.units, strict=True)
            if is_of_species(unit) and name not in layers
        )

    def indexes(self, names: Sequence[str] | None) -> list[int]:
        """
        Return the numbers (from 1) of bands.

        Raises
        ------
        DataError
            There is no band of that name.
        """
        wanted = self.names if names is None else tuple(names)
        for name in wanted:
            if name not in self.names:
                raise DataError(
                    f"{self.path} has no band {name!r}; it has {len(self.names)}: "
                    f"{', '.join(self.names[:5])} ..."
                )
        return [self.names.index(name) + 1 for name in wanted]

    def blocks(self, names: Sequence[str] | None = None) -> Iterator[tuple[Window, np.ndarray]]:
        """Yield windows and their (bands, rows, cols) numbers, NaN where nothing is predicted."""
        indexes = self.indexes(names)
        scales = self.scales[np.array(indexes) - 1]
        with rasterio.Env(GDAL_CACHEMAX=64 * 2**20), rasterio.open(self.path) as source:
            for row in range(0, self.shape[0], TILE_PX):
                for col in range(0, self.shape[1], TILE_PX):
                    window = Window(
                        col,
                        row,
                        min(TILE_PX, self.shape[1] - col),
                        min(TILE_PX, self.shape[0] - row),
                    )
                    stored = source.read(indexes, window=window)
                    values = stored.astype(np.float64) * scales[:, None, None]
                    yield window, np.where(stored == self.nodata, np.nan, values)

    def centres(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Return x (cols,) and y (rows,) of the centres of the pixels of a window."""
        grid = self.transform
        x = grid.c + grid.a * (window.col_off + np.arange(window.width) + 0.5)
        y = grid.f + grid.e * (window.row_off + np.arange(window.height) + 0.5)
        return x, y
