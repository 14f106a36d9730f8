"""A small community with a known truth: species that come and go together."""

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from butterfly_sdm.community.community import Community
from butterfly_sdm.data.dataset import Dataset, DatasetCard
from butterfly_sdm.data.splits import Split


def community_world(
    *, sites: int = 260, species: int = 8, near: float = 0.0, seed: int = 0
) -> tuple[Dataset, pd.DataFrame, pd.DataFrame, pd.Series]:
    """
    Return a data set, predictions that know the mean rates alone, the true rates, and folds.

    Two guilds exclude each other; ``near`` is the share of that which neighbours within a few
    kilometres have in common.
    """
    rng = np.random.default_rng(seed)
    east, north = rng.uniform(0, 60_000, (2, sites))
    loading = np.where(np.arange(species) % 2, -1.2, 1.2)
    away = np.hypot(east[:, None] - east, north[:, None] - north)
    alike = near * np.exp(-away / 3_000) + (1 - near) * np.eye(sites)
    axis = np.linalg.cholesky(alike + 1e-9 * np.eye(sites)) @ rng.standard_normal(sites)
    middle = np.linspace(-2.5, 0.5, species)
    truth = 1 / (1 + np.exp(-(middle + axis[:, None] * loading)))
    truth = truth.clip(1e-4, 1 - 1e-4)
    n = rng.integers(12, 40, sites)
    k = rng.binomial(n[:, None], truth)
    ids = pd.Index([f"s{i:04d}" for i in range(sites)], name="site_id")
    names = [f"Species {chr(97 + i)}" for i in range(species)]
    table = gpd.GeoDataFrame(
        {"easting": east, "northing": north, "visits": n},
        geometry=shapely.points(np.column_stack([east / 1e5 - 2, north / 1e5 + 51])),
        crs=4326,
        index=ids,
    )
    dataset = Dataset(
        DatasetCard(name="world", species=tuple(names), position_crs="EPSG:27700"),
        table,
        pd.DataFrame(k, index=ids, columns=names),
        split=Split(tuple(ids[: sites * 3 // 4]), tuple(ids[sites * 3 // 4 :])),
    )
    mean = np.repeat((k / n[:, None])[: sites * 3 // 4].mean(axis=0)[None], sites, axis=0)
    predictions = pd.DataFrame(mean, index=ids, columns=names)
    fold_of = pd.Series(np.arange(sites) % 3, index=ids)
    return dataset, predictions, pd.DataFrame(truth, index=ids, columns=names), fold_of


def fitted(dataset: Dataset, predictions: pd.DataFrame, fold_of: pd.Series) -> Community:
    """Return the community of the training part."""
    train = list(dataset.split.train)
    return Community.fit(dataset, predictions.loc[train], fold_of.loc[train])
