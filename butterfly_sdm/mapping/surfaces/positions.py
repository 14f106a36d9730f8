"""The positions of a map, and what a predictor is shown at each: a data set in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
from pyproj import Transformer
from rasterio.errors import RasterioError
from rasterio.windows import Window

from butterfly_sdm.data.dataset import Dataset, DatasetCard, TileCard
from butterfly_sdm.data.predictor import Predictor
from butterfly_sdm.errors import RasterError
from butterfly_sdm.imagery.products import open_raster
from butterfly_sdm.imagery.scene import Scene
from butterfly_sdm.imagery.squares import share_of, square_means, square_shares
from butterfly_sdm.mapping.options import CovariateRaster
from butterfly_sdm.mapping.surfaces.lattice import Lattice
from butterfly_sdm.predictors import Handle

Where = slice | np.ndarray


@dataclass(frozen=True, eq=False)
class Positions:
    """
    The positions of a map: what is predicted where, in a form that travels to workers.

    Attributes
    ----------
    handle
        The predictor.
    scene
        In the bands of the predictor, if it sees any.
    wanted
        (height, width) positions that lie in the area of interest.
    min_valid_fraction
        Smallest share of measured pixels in the window of a position with a value.
    position_crs
        CRS of easting and northing.
    covariates
        Raster of each covariate.
    spread
        Whether the spread between the members of an ensemble is kept for a layer.
    embedding
        Length of the embeddings that are kept for a layer; 0: none are.
    """

    handle: Handle
    scene: Scene
    lattice: Lattice
    wanted: np.ndarray
    min_valid_fraction: float
    position_crs: str
    covariates: Mapping[str, CovariateRaster] = field(default_factory=dict)
    spread: bool = False
    embedding: int = 0

    @property
    def predictor(self) -> Predictor:
        """The predictor."""
        predictor: Predictor = self.handle.predictor
        return predictor

    def measured(self, fraction: np.ndarray, rows: Where, cols: Where) -> np.ndarray:
        """Return which positions have imagery, given the share of measured pixels of each."""
        enough = (fraction > 0) & (fraction >= self.min_valid_fraction)
        good: np.ndarray = self.wanted[rows, cols] & enough
        return good

    def predictable(self, fraction: np.ndarray, rows: Where, cols: Where) -> np.ndarray:
        """
        Return which positions get a value: those with imagery and every covariate, which no
        neighbour or mean stands in for.
        """
        good = self.measured(fraction, rows, cols)
        r, c = np.nonzero(good)
        if self.covariates and len(r):
            height, width = self.wanted.shape
            r, c = np.arange(height)[rows].ravel()[r], np.arange(width)[cols].ravel()[c]
            good[good] = self.described(r, c)
        return good

    def described(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """Return which of the positions ``(rows, cols)`` have a value of every covariate."""
        x, y = self.lattice.coordinates(rows, cols)
        easting, northing = moved(x, y, self.scene.crs, self.position_crs)
        table = covariates_at(self.covariates, easting, northing, self.position_crs)
        known: np.ndarray = np.isfinite(table.to_numpy(float)).all(axis=1)
        return known

    def moved(self, x: np.ndarray, y: np.ndarray, crs: str) -> tuple[np.ndarray, np.ndarray]:
        """Return coordinates of the scene in another CRS."""
        if self.scene.crs.to_string() == crs:
            return x, y
        return moved(x, y, self.scene.crs, crs)

    def sites(self, rows: np.ndarray, cols: np.ndarray, *, tiles: bool) -> Dataset:
        """
        Return the positions ``(rows, cols)`` as the sites of a data set, in this order and without
        visits.

        Parameters
        ----------
        tiles
            Cut the window with its margin around each position, in the bands of the scene.
        """
        lattice, scene, species = self.lattice, self.scene, self.predictor.species
        x, y = lattice.coordinates(rows, cols)
        easting, northing = moved(x, y, scene.crs, self.position_crs)
        lon, lat = moved(x, y, scene.crs, "EPSG:4326")
        index = pd.Index(np.arange(len(rows)).astype(str), name="site_id")
        columns = {
            "easting": easting,
            "northing": northing,
            "lon": lon,
            "lat": lat,
            "visits": np.zeros(len(index), dtype=np.int64),
            "tile_row": np.arange(len(index)) if tiles else np.full(len(index), -1),
            "valid_fraction": 1.0,
        }
        card = DatasetCard(
            name="positions of a map",
            species=tuple(species),
            position_crs=self.position_crs,
            tiles=TileCard.of_scene(scene, size_px=lattice.tile_px) if tiles else None,
        )
        table = None
        if self.covariates:
            table = covariates_at(self.covariates, easting, northing, self.position_crs)
            table = table.set_index(index)
        shapes = gpd.points_from_xy(lon, lat)
        return Dataset(
            card=card,
            sites=gpd.GeoDataFrame(columns, index=index, geometry=shapes, crs="EPSG:4326"),
            detections=pd.DataFrame(0, index=index, columns=list(species)),
            tiles=_cut(lattice, rows, cols, scene) if tiles else None,
            covariates=table,
        )


def moved(
    x: np.ndarray, y: np.ndarray, source: object, target: object
) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates (n,) of one CRS in another."""
    east, north = Transformer.from_crs(source, target, always_xy=True).transform(x, y)
    return np.asarray(east), np.asarray(north)


def covariates_at(
    rasters: Mapping[str, CovariateRaster], easting: np.ndarray, northing: np.ndarray, crs: str
) -> pd.DataFrame:
    """
    Return (n, covariate) values at positions in metres of ``crs``; NaN outside a raster and where
    it has no data.

    Raises
    ------
    RasterError
        A file is not a raster with a CRS, or lacks the band.
    """
    shares: dict[tuple[Path, float, int], pd.DataFrame] = {}  # of all classes at once
    found: dict[str, np.ndarray] = {}
    for name, raster in rasters.items():
        path, side, band = raster.path, raster.side_m, raster.band
        if side is None:
            found[name] = sample_raster(path, easting, northing, crs, band=band)
        elif raster.value is None:
            found[name] = square_means(path, easting, northing, crs, side_m=side, band=band)
        else:
            key = path, side, band
            if key not in shares:
                shares[key] = square_shares(path, easting, northing, crs, side_m=side, band=band)
            found[name] = share_of(shares[key], raster.value)
    return pd.DataFrame(found)


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
            xs, ys = Transformer.from_crs(crs, source.crs, always_xy=True).transform(x, y)
            back = ~source.transform
            columns = back.a * np.asarray(xs) + back.b * np.asarray(ys) + back.c
            rows = back.d * np.asarray(xs) + back.e * np.asarray(ys) + back.f
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


def _cut(lattice: Lattice, rows: np.ndarray, cols: np.ndarray, scene: Scene) -> np.ndarray:
    """Return (n, bands, size, size) counts, nodata where there is no measurement."""
    size_px = lattice.tile_px
    row_starts, col_starts = (starts - lattice.margin_px for starts in lattice.window_starts())
    tops, lefts = row_starts[rows], col_starts[cols]
    height, width = int(tops.max() - tops.min()) + size_px, int(lefts.max() - lefts.min()) + size_px
    tiles = np.empty((len(rows), len(scene.bands), size_px, size_px), dtype=scene.dtype)
    near = height * width <= 4 * len(rows) * size_px * size_px
    if near:  # neighbours share pixels: read them once
        values, valid = scene.read(Window(int(lefts.min()), int(tops.min()), width, height))
        values[:, ~valid] = scene.nodata
    for number, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        if near:
            row, col = int(top - tops.min()), int(left - lefts.min())
            tiles[number] = values[:, row : row + size_px, col : col + size_px]
        else:
            values, valid = scene.read(Window(int(left), int(top), size_px, size_px))
            values[:, ~valid] = scene.nodata
            tiles[number] = values
    return tiles
