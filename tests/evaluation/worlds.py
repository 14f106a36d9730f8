"""Small data sets with a known truth, made in memory."""

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from butterfly_sdm.data.dataset import Dataset, DatasetCard
from butterfly_sdm.data.splits import Split


def small_world(
    *,
    sites: int = 200,
    species: int = 8,
    visits: int = 30,
    seed: int = 0,
    side_m: float = 100_000.0,
) -> tuple[Dataset, pd.DataFrame]:
    """
    Return a data set whose species follow a covariate and a gradient northwards, and the true
    probabilities.
    """
    random = np.random.default_rng(seed)
    east, north = random.uniform(0, side_m, (2, sites))
    habitat = random.normal(size=sites)
    slopes = random.normal(0, 1.2, (3, species))
    design = np.column_stack([np.ones(sites), habitat, (north / side_m - 0.5) * 3])
    truth = 1 / (1 + np.exp(-(design @ slopes - 0.7)))
    n = random.integers(max(2, visits // 2), visits * 2, sites)
    k = random.binomial(n[:, None], truth)
    ids = pd.Index([f"s{i:04d}" for i in range(sites)], name="site_id")
    names = tuple(f"Species {i}" for i in range(species))
    table = gpd.GeoDataFrame(
        {"easting": east, "northing": north, "visits": n},
        geometry=shapely.points(np.zeros((sites, 2))),
        crs=4326,
        index=ids,
    )
    table["block"] = (east // (side_m / 5)).astype(int) * 10 + (north // (side_m / 5)).astype(int)
    half = sites * 2 // 3
    dataset = Dataset(
        DatasetCard(
            name="world",
            species=names,
            position_crs="EPSG:27700",
            covariates={"habitat": "", "noise": ""},
        ),
        table,
        pd.DataFrame(k, index=ids, columns=list(names)),
        covariates=pd.DataFrame(
            {"habitat": habitat, "noise": random.normal(size=sites)}, index=ids
        ),
        split=Split(tuple(ids[:half]), tuple(ids[half:])),
    )
    return dataset, pd.DataFrame(truth, index=ids, columns=list(names))
