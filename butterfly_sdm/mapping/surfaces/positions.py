"""The positions of a map, and what a predictor is shown at each: a data set in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import geopandas as gpd
import numpy as np
import pandas as pd
from rasterio.windows import Window

from butterfly_sdm.data.dataset import Dataset, DatasetCard, TileCard
from butterfly_sdm.data.predictor import Predictor
from butterfly_sdm.imagery.scene import Scene
from butterfly_sdm.mapping.options import CovariateRaster
from butterfly_sdm.mapping.surfaces.covariates import CovariateField, Kept, moved
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
    kept
        Covariates of blocks of positions.
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
    kept: Kept = field(default_factory=Kept, repr=False)

    @property
    def predictor(self) -> Predictor:
        """The predictor."""
        predictor: Predictor = self.handle.predictor
        return predictor

    @property
    def covariate_field(self) -> CovariateField:
        """The covariates at the positions."""
        return CovariateField(
            self.covariates, self.lattice, self.scene.crs, self.position_crs, self.kept
        )

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
        table = self.covariate_field.at(rows, cols)
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
            table = self.covariate_field.at(rows, cols).set_index(index)
        shapes = gpd.points_from_xy(lon, lat)
        return Dataset(
            card=card,
            sites=gpd.GeoDataFrame(columns, index=index, geometry=shapes, crs="EPSG:4326"),
            detections=pd.DataFrame(0, index=index, columns=list(species)),
            tiles=_cut(lattice, rows, cols, scene) if tiles else None,
            covariates=table,
        )


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
