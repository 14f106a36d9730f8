"""Folds keep neighbours together and use every site once."""

import numpy as np
import pandas as pd
import pytest

from butterfly_sdm.data.division import neighbour_clusters, spatial_folds
from butterfly_sdm.errors import DataError
from tests.evaluation.worlds import small_world


def test_every_site_is_validated_once_and_far_from_its_training_sites():
    sites = small_world()[0].sites
    folds = spatial_folds(sites, distance_m=4000, n_folds=4, seed=1)
    assert sorted(site for fold in folds for site in fold.validation) == sorted(sites.index)
    assert (
        max(len(fold.validation) for fold in folds) - min(len(fold.validation) for fold in folds)
        <= 2
    )
    position = sites[["easting", "northing"]].to_numpy()
    for fold in folds:
        assert set(fold.train).isdisjoint(fold.validation) and len(fold.train) + len(
            fold.validation
        ) == len(sites)
        held, seen = (position[sites.index.isin(part)] for part in (fold.validation, fold.train))
        distance = ((held[:, None] - seen[None]) ** 2).sum(axis=2) ** 0.5
        assert distance.min() > 4000


def test_the_same_seed_gives_the_same_folds_and_another_seed_others():
    sites = small_world()[0].sites
    assert (
        spatial_folds(sites, seed=1) == spatial_folds(sites, seed=1) != spatial_folds(sites, seed=2)
    )


def test_a_chain_of_neighbours_is_one_cluster():
    sites = pd.DataFrame(
        {"easting": [0.0, 9, 18, 100], "northing": [0.0, 0, 0, 0]}, index=list("abcd")
    )
    assert list(neighbour_clusters(sites, distance_m=10)) == [0, 0, 0, 1]


def test_sites_too_dense_for_clusters_are_divided_by_squares():
    east, north = np.meshgrid(np.arange(0, 12_000, 1000.0), np.arange(0, 12_000, 1000.0))
    sites = pd.DataFrame(
        {"easting": east.ravel(), "northing": north.ravel()}, index=[f"S{n}" for n in range(144)]
    )
    # nine squares of sixteen sites, one cluster
    folds = spatial_folds(sites, distance_m=4000, n_folds=3)
    assert [len(fold.validation) for fold in folds] == [48, 48, 48]
    assert "squares of 4000 m" in folds[0].method
    for fold in folds:
        squares = np.floor(sites.loc[list(fold.validation)] / 4000).drop_duplicates()
        assert len(squares) == 3


def test_too_few_clusters_or_folds_are_refused():
    sites = small_world()[0].sites
    with pytest.raises(DataError, match=r"form 1 clusters .*, fewer than the 5 folds"):
        spatial_folds(sites, distance_m=1e6)
    with pytest.raises(DataError, match="at least 2 folds"):
        spatial_folds(sites, n_folds=1)
