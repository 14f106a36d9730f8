"""
Positions of a lattice as the sites of a data set in memory, so that any predictor can be mapped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
from pyproj import Transformer
from rasterio.errors import RasterioError
from rasterio.windows import Window

from butterfly_sdm.data.dataset import Dataset, DatasetCard, TileCard
from butterfly_sdm.errors import MissingFileError, RasterError
from butterfly_sdm.imagery.scene import Scene
from butterfly_sdm.imagery.squares import share_of, square_means, square_shares
from butterfly_sdm.mapping.surfaces.lattice import Lattice


@dataclass(frozen=True)
class CovariateRaster:
    """
    The raster of one covariate, and how a number is taken from it.

    Attributes
    ----------
    path
        The file.
    side_m
        Side of the square around a position whose mean counts, as in building a data set; None: the
        nearest pixel.
    value
        Class whose share of the square counts, instead of the mean.
    band
        Counted from 1.
    """

    path: Path
    side_m: float | None = None
    value: int | None = None
    band: int = 1


@dataclass(frozen=True)
class CovariateRasters:
    """
    One raster per covariate.

    Attributes
    ----------
    rasters
        By the name of the covariate.
    """

    rasters: Mapping[str, CovariateRaster]

    def __post_init__(self) -> None:
        for name, raster in self.rasters.items():
            if not Path(raster.path).is_file():
                raise MissingFileError(
                    f"There is no raster {raster.path} of the covariate {name!r}. Check covariates."
                )

    def at(self, easting: np.ndarray, northing: np.ndarray, crs: str) -> pd.DataFrame:
        """
        Return (n, covariate) values at positions in metres of ``crs``; NaN outside a raster and
        where it has no data.

        Raises
        ------
        RasterError
            A file is not a raster with a CRS, or lacks the band.
        """
        shares: dict[tuple[Path, float, int], pd.DataFrame] = {}  # of all classes at once
        found: dict[str, np.ndarray] = {}
        for name, raster in self.rasters.items():
            if raster.side_m is None:
                found[name] = sample_raster(raster.path, easting, northing, crs, band=raster.band)
            elif raster.value is None:
                found[name] = square_means(
                    raster.path, easting, northing, crs, side_m=raster.side_m, band=raster.band
                )
            else:
                key = raster.path, raster.side_m, raster.band
                if key not in shares:
                    shares[key] = square_shares(
                        raster.path, easting, northing, crs, side_m=raster.side_m, band=raster.band
                    )
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
        with rasterio.open(path) as source:
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
            columns, rows = (
                np.floor(np.where(found, columns, -1)),
                np.floor(np.where(found, rows, -1)),
            )
            found = (columns >= 0) & (rows >= 0) & (columns < source.width) & (rows < source.height)
            values = np.full(len(x), np.nan)
            if found.any():
                columns, rows = columns[found].astype(int), rows[found].astype(int)
                left, top = int(columns.min()), int(rows.min())
                window = Window(left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1)
                part = source.read(band, window=window, masked=True).astype(float).filled(np.nan)
                values[found] = part[rows - top, columns - left]
            return values
    except RasterioError as error:
        raise RasterError(
            f"{path} cannot be read as the raster of a covariate: {error}."
        ) from error


def positions_as_sites(
    lattice: Lattice,
    rows: np.ndarray,
    cols: np.ndarray,
    scene: Scene,
    *,
    species: Sequence[str],
    position_crs: str,
    tiles: bool,
    covariates: CovariateRasters | None = None,
) -> Dataset:
    """
    Make a data set whose sites are the positions ``(rows, cols)`` of a lattice, without visits.

    Parameters
    ----------
    tiles
        Cut the window with its margin around each position, in the bands of ``scene``.
    position_crs
        CRS of easting and northing.
    """
    x, y = lattice.coordinates(rows, cols)
    easting, northing = Transformer.from_crs(scene.crs, position_crs, always_xy=True).transform(
        x, y
    )
    lon, lat = Transformer.from_crs(scene.crs, "EPSG:4326", always_xy=True).transform(x, y)
    index = pd.Index([f"{row}_{col}" for row, col in zip(rows, cols, strict=True)], name="site_id")
    size_px = lattice.window_px + 2 * lattice.margin_px
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
        position_crs=position_crs,
        tiles=TileCard(
            bands=scene.bands,
            size_px=size_px,
            resolution_m=scene.resolution_m,
            scale=scene.scale,
            offset=scene.offset,
            nodata=scene.nodata,
        )
        if tiles
        else None,
    )
    table = None
    if covariates is not None:
        table = covariates.at(easting, northing, position_crs).set_index(index)
    return Dataset(
        card=card,
        sites=gpd.GeoDataFrame(
            columns, index=index, geometry=gpd.points_from_xy(lon, lat), crs="EPSG:4326"
        ),
        detections=pd.DataFrame(0, index=index, columns=list(species)),
        tiles=_cut(lattice, rows, cols, scene, size_px) if tiles else None,
        covariates=table,
    )


def _cut(
    lattice: Lattice, rows: np.ndarray, cols: np.ndarray, scene: Scene, size_px: int
) -> np.ndarray:
    """Return (n, bands, size, size) counts, nodata where there is no measurement."""
    row_starts, col_starts = (starts - lattice.margin_px for starts in lattice.window_starts())
    tops, lefts = row_starts[rows], col_starts[cols]
    height, width = int(tops.max() - tops.min()) + size_px, int(lefts.max() - lefts.min()) + size_px
    tiles = np.empty((len(rows), len(scene.bands), size_px, size_px), dtype=np.uint16)
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
