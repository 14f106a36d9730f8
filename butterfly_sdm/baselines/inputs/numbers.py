"""What a tabular model sees of a site: covariates, position and statistics of its tile's bands."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import DataError

PERCENTILES = (10, 50, 90)


def site_inputs(
    dataset: Dataset,
    sites: Sequence[str],
    *,
    covariates: bool = True,
    position: bool = True,
    bands: bool = False,
) -> pd.DataFrame:
    """
    Return one row of numbers per site.

    Parameters
    ----------
    covariates
        The covariates of the data set; NaN where missing. A data set without covariates has none.
    position
        ``easting_km`` and ``northing_km``, and their sum and difference: a tree cuts along axes,
        and with these also along diagonals.
    bands
        Mean, standard deviation and percentiles of each band over the valid pixels of the tile, in
        reflectance, and the same of the vegetation index (nir - red) / (nir + red) if both bands
        are there.

    Returns
    -------
    DataFrame of shape (sites, inputs)

    Raises
    ------
    DataError
        ``bands`` is asked for and a site has no tile, or nothing at all is left to learn from.
    """
    sites = list(sites)
    rows = dataset.rows(sites)
    parts = []
    if covariates and dataset.covariates is not None:
        parts.append(dataset.covariates.iloc[rows].astype(float))
    if position:
        east, north = (
            dataset.sites[name].to_numpy(dtype=float)[rows] / 1000
            for name in ("easting", "northing")
        )
        place = {
            "easting_km": east,
            "northing_km": north,
            "east_plus_north_km": east + north,
            "east_minus_north_km": east - north,
        }
        parts.append(pd.DataFrame(place, index=dataset.sites.index[rows]))
    if bands:
        parts.append(band_statistics(dataset, sites))
    if not parts or not sum(part.shape[1] for part in parts):
        raise DataError(
            f"The data set {dataset.card.name!r} has no covariates, and neither position nor bands "
            "are switched on: "
            "nothing to learn from. Set position or bands, or build with covariates."
        )
    table = pd.concat(parts, axis=1)
    table.index.name = "site_id"
    return table


def band_statistics(dataset: Dataset, sites: Sequence[str]) -> pd.DataFrame:
    """
    Return statistics of each band over the valid pixels of the tiles of ``sites``, in reflectance.

    Raises
    ------
    DataError
        A site has no tile.
    """
    rows = dataset.tile_rows(sites)
    assert dataset.tiles is not None and dataset.card.tiles is not None  # tile_rows has checked
    card = dataset.card.tiles
    names = list(card.bands)
    has_index = {"red", "nir"} <= set(names)
    columns = [
        f"{name}_{what}"
        for name in [*names, *(["ndvi"] if has_index else [])]
        for what in ("mean", "sd", *(f"p{q}" for q in PERCENTILES))
    ]
    table = np.full((len(rows), len(columns)), np.nan)
    for place, row in enumerate(rows):
        tile = np.asarray(dataset.tiles[row])
        valid = (tile != card.nodata).all(axis=0)  # (h, w)
        if not valid.any():
            continue
        pixels = (tile[:, valid].astype(np.float64) - card.offset) * card.scale  # (bands, pixels)
        if has_index:
            red, nir = pixels[names.index("red")], pixels[names.index("nir")]
            total = nir + red
            index = np.divide(
                nir - red, total, out=np.zeros_like(total), where=np.abs(total) > 1e-6
            )
            pixels = np.vstack([pixels, index])
        statistics = np.column_stack(
            [pixels.mean(axis=1), pixels.std(axis=1), np.percentile(pixels, PERCENTILES, axis=1).T]
        )
        table[place] = statistics.ravel()
    return pd.DataFrame(table, index=pd.Index(list(sites), name="site_id"), columns=columns)


def match_inputs(table: pd.DataFrame, inputs: Sequence[str], kind: str) -> pd.DataFrame:
    """
    Return the columns a model was fitted to, in its order.

    Raises
    ------
    DataError
        One is missing.
    """
    missing = [name for name in inputs if name not in table.columns]
    if missing:
        raise DataError(
            f"The {kind} model was fitted to {len(inputs)} inputs; this data set lacks "
            f"{missing[0]!r}"
            f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}. Build it with the "
            "same covariates and bands."
        )
    return table[list(inputs)]
