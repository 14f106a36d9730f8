"""The blocks of a map and of its overviews, read one by one."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.windows import Window

from butterfly_sdm.errors import DataError
from butterfly_sdm.imagery.products import open_raster, reading_pixels
from butterfly_sdm.mapping.map_file import TILE_PX
from butterfly_sdm.mapping.map_reader import MapReader

CACHE_BYTES = 32 * 2**20


class MapBlocks:
    """
    A map as squares of at most 256 pixels at every zoom: 0 the whole map in its smallest overview,
    ``zooms`` the map itself.

    Nothing is resampled: a square is a block of the file. May be asked from several threads.

    Parameters
    ----------
    path
        The map.

    Attributes
    ----------
    map
        Names, units and metadata of its bands.
    factors
        By zoom: pixels of the map that a pixel of the overview is wide.

    Raises
    ------
    MissingFileError, RasterError
        There is no such file, or it is no map of this package.
    """

    def __init__(self, path: str | Path) -> None:
        self.map = MapReader(path)
        with open_raster(path) as source:
            overviews = source.overviews(1)
        powers = [2**power for power in range(1, len(overviews) + 1)]
        # of a map that another program wrote anew
        self.factors = (1,) if list(overviews) != powers else (*reversed(powers), 1)
        self._sources: dict[int, Any] = {}
        self._lock = threading.Lock()

    @property
    def zooms(self) -> int:
        """The largest zoom: that of the map itself."""
        return len(self.factors) - 1

    def _source(self, zoom: int) -> Any:
        if zoom not in self._sources:
            above = {} if zoom == self.zooms else {"overview_level": self.zooms - zoom - 1}
            self._sources[zoom] = open_raster(self.map.path, **above)
        return self._sources[zoom]

    def read(
        self, band: int, zoom: int, *, window: tuple[int, int, int, int] | None = None
    ) -> np.ndarray:
        """
        Return (rows, cols) float32 numbers of a band, counted from 0; NaN where there are none.

        Parameters
        ----------
        window
            Row, column, rows and columns at that zoom, cut at the edges; None: all.

        Raises
        ------
        DataError
            There is no such band, zoom or place.
        """
        if not (0 <= band < len(self.map.names) and 0 <= zoom <= self.zooms):
            raise DataError(
                f"The map has {len(self.map.names)} bands at {self.zooms + 1} zooms; band {band} "
                f"at zoom {zoom} is none of them."
            )
        with self._lock, rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
            source = self._source(zoom)
            row, col, height, width = window or (0, 0, source.height, source.width)
            height, width = min(height, source.height - row), min(width, source.width - col)
            if min(row, col) < 0 or min(height, width) < 1:
                raise DataError(f"Row {row} and column {col} lie outside the map at zoom {zoom}.")
            with reading_pixels(str(self.map.path)):
                stored = source.read(band + 1, window=Window(col, row, width, height))
        values = stored.astype(np.float32) * np.float32(self.map.scales[band])
        return np.where(stored == self.map.nodata, np.float32(np.nan), values)

    def block(self, band: int, zoom: int, across: int, down: int) -> np.ndarray:
        """Return (rows, cols) of one square, at most 256 pixels a side, as :meth:`read`."""
        window = (down * TILE_PX, across * TILE_PX, TILE_PX, TILE_PX)
        return self.read(band, zoom, window=window)

    def place(self, row: int, col: int) -> np.ndarray:
        """Return (bands,) the numbers of one pixel of the map."""
        window = (row, col, 1, 1)
        bands = range(len(self.map.names))
        return np.array([self.read(b, self.zooms, window=window)[0, 0] for b in bands])
