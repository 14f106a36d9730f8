"""Covariates at places, and at the positions of a map."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.windows import Window

from butterfly_sdm.errors import RasterError
from butterfly_sdm.imagery.embeddings.collection import Embeddings
from butterfly_sdm.imagery.embeddings.columns import embedding_table, open_stated
from butterfly_sdm.imagery.embeddings.options import EmbeddingOptions
from butterfly_sdm.imagery.products import metres_per_unit, open_raster
from butterfly_sdm.imagery.squares import share_of, square_means, square_shares
from butterfly_sdm.mapping.options import CovariateRaster
from butterfly_sdm.mapping.surfaces.lattice import Lattice

KEPT_BYTES = 200_000_000  # covariates of blocks of positions that are kept
LEAST, MOST = 8, 128  # positions along a block


def moved(
    x: np.ndarray, y: np.ndarray, source: object, target: object
) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates (n,) of one CRS in another."""
    east, north = Transformer.from_crs(source, target, always_xy=True).transform(x, y)
    return np.asarray(east), np.asarray(north)


def covariates_at(
    rasters: Mapping[str, CovariateRaster],
    easting: np.ndarray,
    northing: np.ndarray,
    crs: str,
    *,
    described: Callable[[EmbeddingOptions], Embeddings] = open_stated,
) -> pd.DataFrame:
    """
    Return (n, covariate) values at positions in metres of ``crs``; NaN outside a raster and where
    it has no data.

    Parameters
    ----------
    described
        Gives the files of embeddings that options name.

    Raises
    ------
    RasterError
        A file is not a raster with a CRS, or lacks the band.
    """
    shares: dict[tuple[Path, float, int], pd.DataFrame] = {}  # of all classes at once
    found: dict[str, np.ndarray] = {}
    embedded: dict[EmbeddingOptions, list[str]] = {}
    for name, raster in rasters.items():
        path, side, band = raster.path, raster.side_m, raster.band
        if raster.embedding is not None:
            embedded.setdefault(raster.embedding, []).append(name)
        elif side is None:
            found[name] = sample_raster(path, easting, northing, crs, band=band)
        elif raster.value is None:
            found[name] = square_means(path, easting, northing, crs, side_m=side, band=band)
        else:
            key = path, side, band
            if key not in shares:
                shares[key] = square_shares(path, easting, northing, crs, side_m=side, band=band)
            found[name] = share_of(shares[key], raster.value)
    tables = [
        embedding_table(
            options, easting, northing, crs, columns=names, embeddings=described(options)
        )
        for options, names in embedded.items()
    ]
    if not tables:
        return pd.DataFrame(found)
    if found:
        tables.append(pd.DataFrame(found))
    return pd.concat(tables, axis=1)[list(rasters)]


def sample_raster(
    path: Path, x: np.ndarray, y: np.ndarray, crs: object, *, band: int = 1
) -> np.ndarray:
    """
    Return (n,) values of a band at coordinates given in ``crs``; NaN outside the raster and where
    it has no data.

    Raises
    ------
    RasterError
        The file is not a raster with a CRS.
    """
    try:
        with open_raster(path) as source:
            if not 1 <= band <= source.count:
                raise RasterError(
                    f"{path} has {source.count} bands; band {band} is asked for. They are counted "
                    "from 1."
                )
            if source.crs is None:
                raise RasterError(
                    f"{path} has no CRS, so positions cannot be found in it. Write one with "
                    "gdal_edit -a_srs."
                )
            xs, ys = moved(x, y, crs, source.crs)
            back = ~source.transform
            columns = back.a * xs + back.b * ys + back.c
            rows = back.d * xs + back.e * ys + back.f
            found = np.isfinite(columns) & np.isfinite(rows)
            columns = np.floor(np.where(found, columns, -1))
            rows = np.floor(np.where(found, rows, -1))
            found = (columns >= 0) & (rows >= 0) & (columns < source.width) & (rows < source.height)
            values = np.full(len(x), np.nan)
            if found.any():
                columns, rows = columns[found].astype(int), rows[found].astype(int)
                left, top = int(columns.min()), int(rows.min())
                window = Window(left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1)
                part = source.read(band, window=window, masked=True).astype(float).filled(np.nan)
                scale, offset = source.scales[band - 1], source.offsets[band - 1]
                values[found] = part[rows - top, columns - left] * scale + offset
            return values
    except RasterioError as error:
        raise RasterError(
            f"{path} cannot be read as the raster of a covariate: {error}."
        ) from error


class Kept:
    """
    Files of embeddings as they were described, and tables of blocks of positions, those used last;
    shared by threads, not sent to workers.
    """

    def __init__(self) -> None:
        self.files: dict[EmbeddingOptions, Embeddings] = {}
        self.tables: OrderedDict[Any, np.ndarray] = OrderedDict()
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()

    def described(self, options: EmbeddingOptions) -> Embeddings:
        """Return the files that options name: looking at all of them takes long."""
        if options not in self.files:
            self.files[options] = open_stated(options)
        return self.files[options]

    def get(self, key: Any, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Return a table, made now unless it is kept."""
        with self.lock:  # held while it is made: other threads wait for the same block
            if key not in self.tables:
                self.tables[key] = make()
            self.tables.move_to_end(key)
            while (
                len(self.tables) > 1
                and sum(table.nbytes for table in self.tables.values()) > KEPT_BYTES
            ):
                self.tables.popitem(last=False)
            found: np.ndarray = self.tables[key]
            return found


@dataclass(frozen=True, eq=False)
class CovariateField:
    """
    Covariates at the positions of a map.

    Squares of embeddings around neighbouring positions overlap: these are read for a block of
    positions at once, as wide as the largest square, and kept.

    Attributes
    ----------
    rasters
        Of each covariate, in order.
    lattice
        The positions.
    crs
        Of the scene that the lattice lies on.
    position_crs
        In whose metres squares are measured.
    """

    rasters: Mapping[str, CovariateRaster]
    lattice: Lattice
    crs: CRS
    position_crs: str
    kept: Kept = field(default_factory=Kept, repr=False)

    def at(self, rows: np.ndarray, cols: np.ndarray) -> pd.DataFrame:
        """
        Return (n, covariates) values at the positions ``(rows, cols)``; NaN where there are none.

        Raises
        ------
        RasterError
            A file is damaged, or no raster with a CRS.
        """
        embedded = {name: one for name, one in self.rasters.items() if one.embedding is not None}
        if not embedded or not len(rows):
            return self._sampled(self.rasters, rows, cols)
        side = self._block(embedded)
        values = np.empty((len(rows), len(embedded)), np.float32)
        block_of = rows // side, cols // side
        for row, col in sorted(set(zip(*(axis.tolist() for axis in block_of), strict=True))):
            here = (block_of[0] == row) & (block_of[1] == col)
            key = row, col, side, tuple(embedded)
            table = self.kept.get(key, partial(self._made, embedded, side, row, col))
            values[here] = table[rows[here] - row * side, cols[here] - col * side]
        table = pd.DataFrame(values.astype(np.float64), columns=list(embedded))
        plain = {name: one for name, one in self.rasters.items() if one.embedding is None}
        if plain:
            table = pd.concat([table, self._sampled(plain, rows, cols)], axis=1)
        return table[list(self.rasters)]

    def _sampled(
        self, rasters: Mapping[str, CovariateRaster], rows: np.ndarray, cols: np.ndarray
    ) -> pd.DataFrame:
        x, y = self.lattice.coordinates(rows, cols)
        if self.crs.to_string() != self.position_crs:
            x, y = moved(x, y, self.crs, self.position_crs)
        return covariates_at(rasters, x, y, self.position_crs, described=self.kept.described)

    def _block(self, embedded: Mapping[str, CovariateRaster]) -> int:
        """Return how many positions along a block: twice the ground of the largest square."""
        largest = max(one.side_m or 0.0 for one in embedded.values())
        step = abs(self.lattice.scene_transform.a) * self.lattice.stride_px
        step *= metres_per_unit(self.crs, "the scene")
        return int(np.clip(np.ceil(2 * largest / step), LEAST, MOST))

    def _made(
        self, embedded: Mapping[str, CovariateRaster], side: int, row: int, col: int
    ) -> np.ndarray:
        height = min(side, self.lattice.height - row * side)
        width = min(side, self.lattice.width - col * side)
        rows, cols = np.mgrid[row * side : row * side + height, col * side : col * side + width]
        table = self._sampled(embedded, rows.ravel(), cols.ravel()).to_numpy(np.float32)
        found: np.ndarray = table.reshape(height, width, len(embedded))
        return found
