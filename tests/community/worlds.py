"""A small community with a known truth: species that come and go together."""

from dataclasses import replace

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from butterfly_sdm.community.community import Community
from butterfly_sdm.community.given import Given
from butterfly_sdm.data.dataset import Dataset, DatasetCard
from butterfly_sdm.data.splits import Split
from butterfly_sdm.data.visits import VisitTable
from tests.season.worlds import FIRST, WEEKS, day_of, visit_table


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
    return _surveyed("world", east, north, k, n, truth=truth, known=k / n[:, None])


def _surveyed(
    name: str,
    east: np.ndarray,
    north: np.ndarray,
    k: np.ndarray,
    n: np.ndarray,
    *,
    truth: np.ndarray,
    known: np.ndarray,
    visit_table: VisitTable | None = None,
) -> tuple[Dataset, pd.DataFrame, pd.DataFrame, pd.Series]:
    """Return the data set of counts, the training mean of what is known, true rates and folds."""
    sites, species = k.shape
    train = sites * 3 // 4
    ids = pd.Index([f"s{i:04d}" for i in range(sites)], name="site_id")
    names = [f"Species {chr(97 + i)}" for i in range(species)]
    table = gpd.GeoDataFrame(
        {"easting": east, "northing": north, "visits": n},
        geometry=shapely.points(np.column_stack([east / 1e5 - 2, north / 1e5 + 51])),
        crs=4326,
        index=ids,
    )
    dataset = Dataset(
        DatasetCard(name=name, species=tuple(names), position_crs="EPSG:27700"),
        table,
        pd.DataFrame(k, index=ids, columns=names),
        split=Split(tuple(ids[:train]), tuple(ids[train:])),
        visit_table=visit_table,
    )
    mean = np.repeat(known[:train].mean(axis=0)[None], sites, axis=0)
    predictions = pd.DataFrame(mean, index=ids, columns=names)
    fold_of = pd.Series(np.arange(sites) % 3, index=ids)
    return dataset, predictions, pd.DataFrame(truth, index=ids, columns=names), fold_of


def fitted(dataset: Dataset, predictions: pd.DataFrame, fold_of: pd.Series) -> Community:
    """Return the community of the training part."""
    train = list(dataset.split.train)
    return Community.fit(dataset, predictions.loc[train], fold_of.loc[train])


def dated_world(
    *, sites: int = 300, species: int = 6, visits: int = 10, seed: int = 0
) -> tuple[Dataset, pd.DataFrame, pd.DataFrame, pd.Series, np.ndarray]:
    """
    Return the same of visits on days: a data set, predictions that know the mean rate over the
    season alone, the true rates over it, folds, and the chances (sites, species, weeks) to be seen.

    Every site was visited within eight weeks of its own; neighbours in the list of species peak at
    the two ends of the season.
    """
    rng = np.random.default_rng(seed)
    weeks = np.arange(WEEKS)
    peak = np.where(np.arange(species) % 2, 19.0, 6.0) + rng.uniform(-1, 1, species)
    curves = -0.2 - 0.5 * ((weeks - peak[:, None]) / 3.5) ** 2
    loading = np.where(np.arange(species) % 4 < 2, 1.3, -1.3)
    effects = rng.standard_normal((sites, 1)) * loading + rng.normal(0, 0.5, (sites, species))
    chances = 1 / (1 + np.exp(-(effects[:, :, None] + curves)))
    truth = chances.mean(axis=2)
    start = rng.integers(0, WEEKS - 7, sites)
    week = start[:, None] + rng.integers(0, 8, (sites, visits))
    site = np.repeat(np.arange(sites), visits)
    seen = rng.random((len(site), species)) < chances[site, :, week.ravel()]
    table = visit_table(site, day_of(week.ravel() + FIRST), seen)
    k, n = table.sums(sites, species)
    east, north = rng.uniform(0, 60_000, (2, sites))
    world = _surveyed("dated", east, north, k, n, truth=truth, known=truth, visit_table=table)
    return *world, chances


def lists_in_weeks(
    chances: np.ndarray, places: pd.Index, species: list[str], weeks: np.ndarray, *, seed: int = 0
) -> Given:
    """
    Return complete lists of visits to places of :func:`dated_world`, one in each of ``weeks``
    (places, visits) of the season.
    """
    row = np.repeat(np.arange(len(places)), weeks.shape[1])
    week = weeks.ravel()
    seen = np.random.default_rng(seed).random((len(row), len(species))) < chances[row, :, week]
    dated = pd.DataFrame(seen.astype(float), index=places[row].rename("place"), columns=species)
    k = dated.groupby(level=0).sum()
    given = Given.of_counts(k, weeks.shape[1])
    return replace(given, dated=dated.assign(date=day_of(week + FIRST), complete=True))
