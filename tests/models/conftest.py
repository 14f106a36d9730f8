"""Small data sets whose answer is known."""

from collections.abc import Callable

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest

from butterfly_sdm.data.dataset import Dataset, DatasetCard, TileCard
from butterfly_sdm.data.splits import Split

BANDS = ("red", "green", "blue", "nir")


def make_dataset(
    sites: int = 60,
    *,
    tile_px: int = 64,
    seed: int = 0,
    image: bool = True,
    visits: int = 40,
    bands: tuple[str, ...] = BANDS,
) -> Dataset:
    """
    Species answer to how bright nir is in the middle of the tile, to one covariate, or to how far
    north a site lies.
    """
    rng = np.random.default_rng(seed)
    ids = pd.Index([f"s{i:03d}" for i in range(sites)], name="site_id")
    green, warm, north = rng.uniform(-1, 1, (3, sites))
    logits = np.column_stack([3 * green, -3 * green, 3 * warm, 3 * north])
    n = rng.integers(max(1, visits // 2), visits + visits // 2 + 1, sites)
    k = rng.binomial(n[:, None], 1 / (1 + np.exp(-logits)))
    species = ("Pieris napi", "Pieris rapae", "Aglais io", "Aglais urticae")
    table = pd.DataFrame(
        {
            "easting": rng.uniform(4e5, 5e5, sites),
            "northing": 3e5 + 5e4 * north,
            "visits": n,
            "tile_row": np.arange(sites)[::-1] if image else -1,
        },
        index=ids,
    )
    tiles = None
    if image:
        counts = np.empty((sites, len(bands), tile_px, tile_px), dtype=np.uint16)
        for row, level in zip(table["tile_row"], green, strict=True):
            for place, band in enumerate(bands):
                counts[row, place] = rng.normal(
                    3000 + 1500 * level if band == "nir" else 600, 50, (tile_px, tile_px)
                ).clip(1)
        counts[:, :, :2, :2] = 0
        tiles = counts
    card = DatasetCard(
        name="made",
        position_crs="EPSG:27700",
        species=species,
        tiles=TileCard(bands=bands, size_px=tile_px, resolution_m=10.0) if image else None,
    )
    covariates = pd.DataFrame(
        {"warmth": 10 + 2 * warm, "rain": rng.normal(800, 100, sites), "same": 1.0}, index=ids
    )
    covariates.iloc[3, 1] = np.nan
    third = sites // 3
    split = Split(tuple(ids[third:]), tuple(ids[:third]))
    return Dataset(
        card,
        gpd.GeoDataFrame(table),
        pd.DataFrame(k, index=ids, columns=list(species)),
        tiles,
        covariates,
        split,
    )


@pytest.fixture
def make() -> Callable[..., Dataset]:
    return make_dataset


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    return make_dataset()
