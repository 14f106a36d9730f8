"""Places somebody asks about: read from a file, and described as the sites of a data set are."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from butterfly_sdm.data.dataset import Dataset, DatasetCard
from butterfly_sdm.data.predictor import Sees
from butterfly_sdm.errors import DataError, MissingFileError
from butterfly_sdm.progress import Progress, silent
from data_prep.covariates import site_covariates
from data_prep.imagery.site_tiles import fill_tiles
from data_prep.options import BuildOptions, CovariateOptions
from data_prep.records.count import SurveyTable
from data_prep.records.places.grid_references import GridSquare
from data_prep.site_table import site_table
from data_prep.workbench import open_workbench

VECTORS = (".gpkg", ".geojson", ".json", ".shp", ".fgb")
IDS = ("place", "site_id", "site", "id", "name")
WKT = ("footprint_wkt", "footprintwkt", "wkt", "geometry")
REFERENCES = ("grid_reference", "gridreference", "gridref", "grid_ref")
LONGITUDES, LATITUDES = (
    ("lon", "longitude", "decimallongitude"),
    ("lat", "latitude", "decimallatitude"),
)


def read_places(path: str | Path) -> gpd.GeoDataFrame:
    """
    Read places: points, grid references or polygons.

    Parameters
    ----------
    path
        A CSV file with a column ``place`` (or ``site_id``; else rows are numbered) and
        ``footprint_wkt``, ``grid_reference``, or ``lon`` and ``lat``; or a vector file such as
        GeoPackage or GeoJSON.

    Returns
    -------
    GeoDataFrame
        Index ``place``; the geometry in EPSG:4326, missing where a place has none; all other
        columns as text, their names in small letters. A place may have several rows.

    Raises
    ------
    MissingFileError, DataError
        The file does not exist, cannot be read, or a place in it cannot.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"There is no file {path}. Name a CSV or a vector file of places.")
    if path.suffix.lower() in VECTORS:
        return _from_vector(path)
    try:
        with path.open(encoding="utf-8-sig") as file:
            header = file.readline()
        table = pd.read_csv(
            path,
            sep=max(",;\t", key=header.count),  # a comma where there is only one column
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
        )
    except (ValueError, OSError, csv.Error, pd.errors.ParserError) as error:
        raise DataError(
            f"{path} cannot be read as a table ({error}). Save it as CSV with commas."
        ) from error
    table.columns = [str(name).strip().lower().replace(" ", "_") for name in table.columns]
    if table.empty:
        raise DataError(f"{path} has no row. Give a line per place.")
    ids = _column(table, IDS)
    geometry = table_geometry(table, str(path))
    if ids is None and shapely.is_missing(geometry).all():
        raise DataError(
            f"{path} does not say where its places are: it needs footprint_wkt, grid_reference, or "
            f"lon and lat, or place (ids of sites of the run). It has "
            f"{', '.join(table.columns[:8])}."
        )
    index = pd.Index([""] * len(table) if ids is None else ids.str.strip(), name="place")
    return gpd.GeoDataFrame(table.set_axis(index), geometry=geometry, crs=4326)


def _from_vector(path: Path) -> gpd.GeoDataFrame:
    import pyogrio

    try:
        table = gpd.read_file(path)
    except (pyogrio.errors.DataSourceError, ValueError, OSError) as error:
        raise DataError(
            f"{path} cannot be read as places ({error}). Save it as GeoPackage."
        ) from error
    if table.crs is None:
        raise DataError(f"{path} does not say its CRS. Save it with one.")
    table = table.to_crs(4326).rename(columns=lambda name: str(name).lower())
    ids = _column(table, IDS)
    index = pd.Index([""] * len(table) if ids is None else ids.astype(str), name="place")
    texts = table.drop(columns="geometry").astype("string").fillna("").astype(object)
    return gpd.GeoDataFrame(texts.set_axis(index), geometry=table.geometry.to_numpy(), crs=4326)


def _column(table: pd.DataFrame, names: Sequence[str]) -> pd.Series | None:
    name = next((name for name in names if name in table.columns), None)
    return None if name is None else table[name]


def table_geometry(table: pd.DataFrame, path: str) -> np.ndarray:
    """
    Return the geometry (rows,) of a table of texts in EPSG:4326, None where a row has none.

    Parameters
    ----------
    table
        Columns ``footprint_wkt``, ``grid_reference``, or ``lon`` and ``lat``, or none of them.
    path
        What it is called in a message.

    Raises
    ------
    DataError
        A cell is no place.
    """
    found = np.full(len(table), None, dtype=object)
    wkt, reference = _column(table, WKT), _column(table, REFERENCES)
    lon, lat = _column(table, LONGITUDES), _column(table, LATITUDES)
    if wkt is not None:
        given = (wkt.str.strip() != "").to_numpy()
        shapes = shapely.from_wkt(wkt.where(given, None).to_list(), on_invalid="ignore")
        bad = shapely.is_missing(shapes) & given
        if bad.any():
            raise DataError(
                f"{path}: {wkt[bad].iloc[0][:60]!r} is no WKT geometry. Correct the row."
            )
        found[given] = np.asarray(shapes, dtype=object)[given]
    if reference is not None:
        rows = np.flatnonzero((reference.str.strip() != "").to_numpy() & shapely.is_missing(found))
        for row in rows:
            found[row] = GridSquare.parse(reference.iloc[row]).footprint()
    if lon is not None and lat is not None:
        x, y = (pd.to_numeric(text.str.strip(), errors="coerce") for text in (lon, lat))
        rows = np.flatnonzero(shapely.is_missing(found) & ((lon != "") | (lat != "")).to_numpy())
        bad = ~((x.abs() <= 180) & (y.abs() <= 90)).to_numpy()[rows]
        if bad.any():
            row = rows[bad][0]
            raise DataError(
                f"{path}: longitude {lon.iloc[row]!r}, latitude {lat.iloc[row]!r} is no place in "
                "degrees. Correct the row."
            )
        found[rows] = shapely.points(x.to_numpy()[rows], y.to_numpy()[rows])
    return found


def describe_places(
    build: BuildOptions,
    places: gpd.GeoSeries,
    *,
    species: Sequence[str],
    sees: Sees,
    position_crs: str | None,
    progress: Progress = silent,
) -> Dataset:
    """
    Describe places as building describes sites: with tiles, covariates and positions.

    Parameters
    ----------
    build
        How the data set of the model was built.
    places
        Index unique ids; points or polygons, told by their centre, in EPSG:4326.
    species, sees
        Of the model: what it does not look at is not read.
    position_crs
        CRS of easting and northing.

    Returns
    -------
    Dataset
        In memory; no site has a visit.

    Raises
    ------
    RasterError, DataError, MissingFileError
        Imagery or a covariate is missing, or shows none of the places.
    """
    ids = pd.Index(places.index.astype(str), name="site_id")
    centres = shapely.centroid(places.to_numpy())
    columns = {"lon": shapely.get_x(centres), "lat": shapely.get_y(centres), "records": 0}
    survey = SurveyTable(
        pd.DataFrame(0, index=ids, columns=list(species)),
        pd.Series(0, index=ids),
        gpd.GeoDataFrame(columns, index=ids, geometry=places.to_numpy(), crs=4326),
        {},
        (),
    )
    sites, detections, crs = site_table(survey, position_crs=position_crs)
    if not sees.bands:
        build = build.model_copy(update={"scenes": None, "ready_tiles": None})
    tiles = None
    with (
        tempfile.TemporaryDirectory() as folder,
        open_workbench(build, Path(folder), progress, None) as bench,
    ):
        try:
            sites, tile_card = fill_tiles(build, sites, bench)
        except DataError as error:
            if build.ready_tiles is None:
                raise
            raise DataError(
                f"{error} Or name scenes that show the places in their stead: "
                "--set build.ready_tiles=null --set 'build.scenes={paths: [SCENE.tif]}'."
            ) from error
        if tile_card is not None:
            tiles = np.load(Path(folder) / "tiles.npy", allow_pickle=False)
        wanted = build.covariates if sees.covariates else None
        covariates, units, _ = site_covariates(
            wanted or CovariateOptions(),
            sites,
            position_crs=crs,
            executor=bench.executor,
            known=sees.covariates,
            described=bench.described,
        )
    card = DatasetCard(
        name="places", species=tuple(species), position_crs=crs, tiles=tile_card, covariates=units
    )
    located = sites.set_geometry("geometry")
    return Dataset(card, located, detections, tiles, covariates)
