"""Numbers per site from tables and rasters; missing values stay missing."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from pyproj import Transformer

from butterfly_sdm.core.executor import in_order
from butterfly_sdm.errors import DataError, MissingFileError, RasterError, counted
from butterfly_sdm.imagery.embeddings.collection import Embeddings
from butterfly_sdm.imagery.embeddings.columns import embedding_table, open_stated
from butterfly_sdm.imagery.embeddings.options import EmbeddingOptions
from butterfly_sdm.imagery.products import open_raster
from butterfly_sdm.imagery.squares import share_of, square_means, square_shares
from data_prep.options import CovariateOptions, CovariateRasterOptions
from data_prep.sources.tessera import fetch_tiles

log = logging.getLogger("data_prep.covariates")

UNIT_SITES = 500


def site_covariates(
    config: CovariateOptions,
    sites: pd.DataFrame,
    *,
    position_crs: str,
    executor: Executor | None = None,
    known: Sequence[str] = (),
    described: Callable[[EmbeddingOptions], Embeddings] = open_stated,
) -> tuple[pd.DataFrame | None, dict[str, str], list[str]]:
    """
    Return all covariates a config names, side by side.

    Parameters
    ----------
    sites
        Index ``site_id``; columns ``easting`` and ``northing`` in metres of ``position_crs``.
    known
        Names of covariates that are there whatever these sites show: of a class of a raster that
        none of them has, the share is 0.
    described
        Gives the files of embeddings that options name.

    Returns
    -------
    covariates : DataFrame of float, shape (sites, covariates), or None where the config names none
    units : dict
        Unit of every covariate, empty where none was stated.
    notes : list of str
        Which tables lack sites.

    Raises
    ------
    MissingFileError, DataError, RasterError
        A table or raster is missing, damaged or does not fit, or two of them give one covariate.
    """
    parts: list[pd.DataFrame] = []
    units: dict[str, str] = {}
    notes: list[str] = []
    for path in config.tables:
        values = read_covariates(path, sites.index)
        empty = int(values.isna().all(axis=1).sum())
        if empty:
            notes.append(
                f"{counted(empty, 'site has', 'sites have')} no covariates of {path.name}: the "
                "table does not name them."
            )
        units |= {name: config.units.get(name, "") for name in values.columns}
        parts.append(values)
    unknown = sorted(set(config.units) - set(units))
    if unknown:
        raise DataError(f"covariates.units names {unknown[0]!r}, which no table of covariates has.")
    for raster in config.rasters:
        values = raster_covariates(
            raster, sites, position_crs=position_crs, executor=executor, known=known
        )
        units |= dict.fromkeys(values.columns, raster.unit if raster.kind == "mean" else "share")
        parts.append(values)
    for embeddings in config.embedded:
        values = embedding_covariates(
            embeddings,
            sites,
            position_crs=position_crs,
            executor=executor,
            described=described,
        )
        empty = int(values.isna().all(axis=1).sum())
        if empty:
            told = counted(empty, "site lies", "sites lie")
            notes.append(f"{told} outside the embeddings {embeddings.group}.")
        units |= dict.fromkeys(values.columns, "")
        parts.append(values)
    if not parts:
        return None, {}, []
    table = pd.concat(parts, axis=1)
    twice = table.columns[table.columns.duplicated()]
    if len(twice):
        raise DataError(
            f"The covariate {twice[0]} comes from two sources. Rename it in one of the tables or "
            "rasters."
        )
    return table, units, notes


def read_covariates(path: str | Path, site_ids: pd.Index) -> pd.DataFrame:
    """
    Read a table of covariates, one row per site.

    Parameters
    ----------
    path
        CSV or Parquet with ``site_id`` and one column of numbers per covariate; or an NPZ file of
        arrays, such as embeddings: ``site_id`` (sites,) and others of shape (sites,) or (sites, d).
        The columns of the only (sites, d) array are called ``FILE_000``, ``FILE_001`` ... after the
        file; those of several ``ARRAY_000`` ... after the arrays.
    site_ids
        Sites to take, in order. Sites the table lacks get missing values (NaN).

    Returns
    -------
    DataFrame of float, shape (sites, covariates)

    Raises
    ------
    MissingFileError
        The table does not exist.
    DataError
        It has no ``site_id``, a site twice, a column that is no number, or none of the sites.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"There is no table of covariates {path}. Check covariates.table.")
    try:
        if path.suffix == ".npz":
            table = _read_arrays(path)
        else:
            table = (
                pd.read_parquet(path)
                if path.suffix == ".parquet"
                else pd.read_csv(path, dtype={"site_id": str})
            )
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read as a table: {error}. Give a CSV, Parquet or NPZ file."
        ) from error
    if "site_id" not in table.columns:
        table = table.reset_index()
    if "site_id" not in table.columns:
        raise DataError(
            f"{path} has no column site_id; it has {', '.join(map(str, table.columns[:8]))}. "
            "Rename the one with the ids."
        )
    table["site_id"] = table["site_id"].astype(str)
    twice = table["site_id"].duplicated()
    if twice.any():
        raise DataError(
            f"{path} has site {table.loc[twice, 'site_id'].iloc[0]} twice. Keep one row per site."
        )
    table = table.set_index("site_id")
    for column in table.columns:
        if not pd.api.types.is_numeric_dtype(table[column]):
            text = table[column].dropna()
            raise DataError(
                f"Covariate {column} of {path} holds {text.iloc[0]!r}, which is no number. Remove "
                "or encode the column."
            )
    known = site_ids.isin(table.index)
    if not known.any():
        raise DataError(
            f"{path} has none of the {len(site_ids)} sites (such as {site_ids[0]}). Do the site "
            "ids agree? A place that is no site of the data set needs a row there too, its name as "
            "site_id, or rasters: build.covariates.rasters."
        )
    values = table.reindex(site_ids).astype(float)
    values[np.isinf(values)] = np.nan
    if not known.all():
        log.info(
            "%s lacks %d of %d sites: their covariates are missing",
            path.name,
            int((~known).sum()),
            len(known),
        )
    values.columns = values.columns.astype(str)
    return values


def _read_arrays(path: Path) -> pd.DataFrame:
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    if "site_id" not in arrays:
        raise DataError(
            f"{path} has no array site_id; it has {', '.join(arrays)}. Store the ids beside the "
            "numbers."
        )
    ids = arrays.pop("site_id").astype(str)
    matrices = [name for name, values in arrays.items() if values.ndim == 2]
    columns: dict[str, np.ndarray] = {"site_id": ids}
    for name, values in arrays.items():
        if values.ndim not in (1, 2) or values.shape[0] != len(ids):
            raise DataError(
                f"{path}: {name} has the shape {values.shape}; it needs one row for each of the "
                f"{len(ids)} sites."
            )
        if values.ndim == 1:
            columns[name] = values
            continue
        begin, digits = (
            path.stem if len(matrices) == 1 else name,
            max(3, len(str(values.shape[1] - 1))),
        )
        columns |= {
            f"{begin}_{number:0{digits}d}": values[:, number] for number in range(values.shape[1])
        }
    return pd.DataFrame(columns)


def raster_covariates(
    raster: CovariateRasterOptions,
    sites: pd.DataFrame,
    *,
    position_crs: str,
    executor: Executor | None = None,
    known: Sequence[str] = (),
) -> pd.DataFrame:
    """
    Summarise a raster in squares around sites.

    A pixel counts when its centre lies in the square; where none does, because the pixels are
    larger, the pixel at the site counts. Pixels without a value do not count; a site without any
    has a missing value.

    Parameters
    ----------
    raster
        Its mean gives one column ``NAME_SIDEm`` per side; the fractions of its classes
        ``NAME_CLASS_SIDEm``.
    sites
        Index ``site_id``; columns ``easting`` and ``northing`` in metres of ``position_crs``.
    known
        Names of columns: classes among them have one even if no site shows them.

    Returns
    -------
    DataFrame of float, shape (sites, columns)

    Raises
    ------
    MissingFileError, RasterError
        The raster is absent, damaged, lacks the band or covers no site.
    """
    if not raster.path.exists():
        raise MissingFileError(
            f"There is no raster of covariates {raster.path}. Check covariates.rasters."
        )
    with open_raster(str(raster.path)) as source:
        if not 1 <= raster.band <= source.count:
            raise RasterError(
                f"{raster.path} has {source.count} bands, and covariates.rasters asks for band "
                f"{raster.band}."
            )
    columns: dict[str, np.ndarray] = {}
    for side in raster.side_m:
        positions = sites["easting"].to_numpy(float), sites["northing"].to_numpy(float)
        summary = partial(_summary, raster, side, position_crs, positions)
        parts = [slice(at, at + UNIT_SITES) for at in range(0, len(sites), UNIT_SITES)]
        found = list(in_order(summary, parts, executor))
        if raster.kind == "mean":
            columns[f"{raster.name}_{side:g}m"] = np.concatenate(found)
            continue
        shares = pd.concat(found, ignore_index=True).sort_index(axis=1)
        here = {*shares.columns, *_classes(raster.name, side, known)}
        named = raster.classes or {value: str(value) for value in sorted(here)}
        for value, label in named.items():
            columns[f"{raster.name}_{label}_{side:g}m"] = share_of(shares, value)
    table = pd.DataFrame(columns, index=sites.index)
    if table.isna().all(axis=None):
        raise RasterError(
            f"{raster.path} has no value at any of the {len(sites)} sites. Does it lie elsewhere?"
        )
    return table


def embedding_covariates(
    options: EmbeddingOptions,
    sites: pd.DataFrame,
    *,
    position_crs: str,
    executor: Executor | None = None,
    described: Callable[[EmbeddingOptions], Embeddings] = open_stated,
) -> pd.DataFrame:
    """
    Summarise embeddings in squares around sites: mean and spread of every band.

    Parameters
    ----------
    sites
        Index ``site_id``; columns ``easting`` and ``northing`` in metres of ``position_crs``.
    described
        Gives the files of embeddings that options name.

    Returns
    -------
    DataFrame of float, shape (sites, columns)
        ``GROUP_BAND_SIDEm`` and ``GROUP_BAND_sd_SIDEm``.

    Raises
    ------
    MissingFileError, RasterError
        A file is absent, damaged or of another kind than stated, or none covers a site.
    SourceError
        Tiles of ``options.url`` could not be fetched.
    """
    if options.url is not None:
        assert options.year is not None  # the options have checked
        there = Transformer.from_crs(position_crs, "EPSG:4326", always_xy=True)
        lon, lat = there.transform(
            sites["easting"].to_numpy(float), sites["northing"].to_numpy(float)
        )
        reach = max(options.side_m) / 2
        fetch_tiles(options.url, Path(options.paths[0]), lon, lat, year=options.year, reach_m=reach)
    table = embedding_table(
        options,
        sites["easting"].to_numpy(float),
        sites["northing"].to_numpy(float),
        position_crs,
        embeddings=described(options),
        executor=executor,
    ).set_index(sites.index)
    if table.isna().all(axis=None):
        raise RasterError(
            f"The embeddings {options.group} ({options.paths[0]}) have no value at any of the "
            f"{len(sites)} sites. Do they lie elsewhere?"
        )
    return table


def _classes(name: str, side_m: float, known: Sequence[str]) -> set[int]:
    """Return the classes without a name of their own that columns of a raster speak of."""
    pattern = re.compile(rf"{re.escape(name)}_(-?\d+)_{re.escape(f'{side_m:g}')}m")
    return {int(found[1]) for one in known if (found := pattern.fullmatch(one))}


def _summary(
    raster: CovariateRasterOptions,
    side_m: float,
    crs: str,
    positions: tuple[np.ndarray, np.ndarray],
    part: slice,
) -> Any:
    summary = square_means if raster.kind == "mean" else square_shares
    easting, northing = (values[part] for values in positions)
    return summary(raster.path, easting, northing, crs, side_m=side_m, band=raster.band)
