"""Numbers per site from tables and rasters; missing values stay missing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from butterfly_sdm.errors import DataError, MissingFileError

log = logging.getLogger("data_prep.covariates")


def read_covariates(
    path: str | Path, site_ids: pd.Index, *, units: Mapping[str, str] | None = None
) -> tuple[pd.DataFrame, dict[str, str]]:
    """
    Read a table of covariates, one row per site.

    Parameters
    ----------
    path
        CSV or Parquet with ``site_id`` and one column of numbers per covariate.
    site_ids
        Sites to take, in order. Sites the table lacks get missing values (NaN).
    units
        Unit of covariates, by name.

    Returns
    -------
    covariates : DataFrame of float, shape (sites, covariates)
    units : dict
        Unit of every covariate, empty where none was stated.

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
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype={"site_id": str})
    except (ValueError, OSError) as error:
        raise DataError(f"{path} cannot be read as a table: {error}. Give a CSV or Parquet file.") from error
    if "site_id" not in table.columns:
        table = table.reset_index()
    if "site_id" not in table.columns:
        raise DataError(
            f"{path} has no column site_id; it has {', '.join(map(str, table.columns[:8]))}. Rename the one with the ids."
        )
    table["site_id"] = table["site_id"].astype(str)
    twice = table["site_id"].duplicated()
    if twice.any():
        raise DataError(f"{path} has site {table.loc[twice, 'site_id'].iloc[0]} twice. Keep one row per site.")
    table = table.set_index("site_id")
    for column in table.columns:
        if not pd.api.types.is_numeric_dtype(table[column]):
            text = table[column].dropna()
            raise DataError(
                f"Covariate {column} of {path} holds {text.iloc[0]!r}, which is no number. Remove or encode the column."
            )
    unknown = sorted(set(units or {}) - set(table.columns))
    if unknown:
        raise DataError(f"covariates.units names {unknown[0]!r}, which {path} does not have.")
    known = site_ids.isin(table.index)
    if not known.any():
        raise DataError(f"{path} has none of the {len(site_ids)} sites (such as {site_ids[0]}). Do the site ids agree?")
    values = table.reindex(site_ids).astype(float)
    values[np.isinf(values)] = np.nan
    if not known.all():
        log.info("%s lacks %d of %d sites: their covariates are missing", path.name, int((~known).sum()), len(known))
    return values, {str(column): (units or {}).get(str(column), "") for column in values.columns}
