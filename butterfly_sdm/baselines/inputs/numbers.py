"""What a tabular model sees of a site: covariates, position and statistics of its tile's bands."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import Sees
from butterfly_sdm.errors import DataError

PERCENTILES = (10, 50, 90)
STATISTICS = ("mean", "sd", *(f"p{q}" for q in PERCENTILES))  # of each band
PLACE = ("easting_km", "northing_km", "east_plus_north_km", "east_minus_north_km")


def site_numbers(dataset: Dataset, sites: Sequence[str], sees: Sees) -> pd.DataFrame:
    """
    Return one row of numbers per site: covariates, position, statistics of bands, as seen.

    The covariates are NaN where missing. The position is ``easting_km`` and ``northing_km``, and
    their sum and difference: a tree cuts along axes, and with these also along diagonals.

    Returns
    -------
    DataFrame of shape (sites, inputs)

    Raises
    ------
    DataError
        A site has no tile, a covariate is absent, or there is nothing at all to learn from.
    """
    sites = list(sites)
    parts = [covariate_table(dataset, sites, sees.covariates)]
    if sees.position_crs is not None:
        east, north = positions(dataset, sites).T / 1000
        place = dict(zip(PLACE, (east, north, east + north, east - north), strict=True))
        parts.append(pd.DataFrame(place, index=parts[0].index))
    if sees.bands:
        parts.append(tile_statistics(dataset, sites, sees))
    table = pd.concat(parts, axis=1)
    if not table.shape[1]:
        raise DataError(
            f"The data set {dataset.card.name!r} has no covariates, and neither position nor bands "
            "are switched on: "
            "nothing to learn from. Set position or bands, or build with covariates."
        )
    return table


def covariate_table(dataset: Dataset, sites: Sequence[str], names: Sequence[str]) -> pd.DataFrame:
    """
    Return the covariates ``names`` of ``sites``.

    Raises
    ------
    DataError
        The data set lacks one.
    """
    known = dataset.covariates if dataset.covariates is not None else dataset.sites.iloc[:, :0]
    missing = [name for name in names if name not in known.columns]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(
            f"The model was fitted to {len(names)} covariates; this data set lacks {missing[0]!r}"
            f"{more}. Build it with the same covariates."
        )
    table = known[list(names)].iloc[dataset.rows(sites)].astype(float)
    return pd.DataFrame(table).rename_axis("site_id")


def positions(dataset: Dataset, sites: Sequence[str]) -> np.ndarray:
    """Return (sites, 2) easting and northing in metres."""
    place = dataset.sites[["easting", "northing"]].to_numpy(dtype=float)
    return np.asarray(place[dataset.rows(sites)])


def seen_tiles(dataset: Dataset, sites: Sequence[str], sees: Sees) -> Iterator[np.ndarray]:
    """
    Give what is seen of the tile of each site: the middle, (bands, window, window) stored numbers.

    Raises
    ------
    DataError
        A site has no tile.
    """
    rows = dataset.tile_rows(sites)
    assert dataset.tiles is not None and dataset.card.tiles is not None  # tile_rows has checked
    places = [dataset.card.tiles.bands.index(band) for band in sees.bands]
    side = dataset.tiles.shape[-1]
    start = (side - (sees.window_px or side)) // 2
    middle = slice(start, side - start)
    for row in rows:
        yield np.asarray(dataset.tiles[row])[places, middle, middle]


def tile_statistics(dataset: Dataset, sites: Sequence[str], sees: Sees) -> pd.DataFrame:
    """
    Return statistics of each band seen over the valid pixels of the tiles of ``sites``.

    They are mean, standard deviation and percentiles in reflectance, and the same of the vegetation
    index (nir - red) / (nir + red) if both bands are seen; NaN for a tile without a valid pixel.

    Raises
    ------
    DataError
        A site has no tile.
    """
    names = list(sees.bands)
    has_index = {"red", "nir"} <= set(names)
    columns = [f"{name}_{what}" for name in [*names, *["ndvi"] * has_index] for what in STATISTICS]
    table = np.full((len(sites), len(columns)), np.nan)
    for place, tile in enumerate(seen_tiles(dataset, sites, sees)):
        card = dataset.card.tiles
        assert card is not None
        valid = card.measured(tile)  # (h, w)
        if not valid.any():
            continue
        pixels = card.values(tile[:, valid])  # (bands, pixels)
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
