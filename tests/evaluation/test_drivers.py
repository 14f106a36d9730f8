"""What drives a prediction is found where it is known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from butterfly_sdm.baselines import make_baseline
from butterfly_sdm.data.dataset import TileCard
from butterfly_sdm.data.predictor import Sees
from butterfly_sdm.errors import DataError
from butterfly_sdm.evaluation.drivers import (
    input_groups,
    most_alike,
    occlusion,
    partial_dependence,
    permutation_importance,
    shuffled,
    subset,
    used_groups,
)
from tests.evaluation.worlds import small_world


class Greenness:
    """Predicts the mean of the last band over the upper left quarter of the tile."""

    species = ("Species 0", "Species 1")

    def predict(self, dataset, sites):
        tiles = dataset.tiles[dataset.tile_rows(sites)]
        half = tiles.shape[2] // 2
        value = tiles[:, -1, :half, :half].mean(axis=(1, 2)) / 1000
        return pd.DataFrame(
            dict.fromkeys(self.species, value), index=pd.Index(list(sites), name="site_id")
        )


@pytest.fixture(scope="module")
def world():
    return small_world()[0]


@pytest.fixture(scope="module")
def pictures():
    dataset, _ = small_world(species=2, sites=60)
    random = np.random.default_rng(0)
    tiles = random.integers(100, 900, (60, 1, 1, 1)).astype(np.uint16) + random.integers(
        0, 9, (60, 2, 16, 16), dtype=np.uint16
    )
    sites = dataset.sites.copy()
    sites["tile_row"] = np.arange(60)[::-1]
    card = dataset.card.model_copy(
        update={"tiles": TileCard(bands=("red", "nir"), size_px=16, resolution_m=10)}
    )
    return replace(dataset, card=card, sites=sites, tiles=tiles)


def test_the_habitat_matters_and_noise_does_not(world):
    model = make_baseline("linear").fit(world, world.split.train)
    table = permutation_importance(model, world, world.split.validation, repeats=3)
    assert set(table.index) == {"habitat", "noise", "position"}
    assert table.index[-1] == "noise"
    assert table.loc["habitat", "share"] > 0.5 > abs(table.loc["noise", "share"])
    again = permutation_importance(model, world, world.split.validation, repeats=3)
    pd.testing.assert_frame_equal(table, again)


def test_a_band_the_model_does_not_see_has_no_importance(pictures):
    table = permutation_importance(
        Greenness(), pictures, pictures.site_ids, groups={"band red": (), "band nir": ()}, repeats=2
    )
    assert table.loc["band red", "importance"] == 0 and table.loc["band nir", "importance"] != 0


def test_all_bands_of_an_embedding_are_shuffled_as_one(world, pictures):
    assert pictures.card.tiles is not None
    tiles = pictures.card.tiles.model_copy(update={"bands": ("e00", "e01")})
    card = pictures.card.model_copy(update={"tiles": tiles})
    embedded = replace(pictures, card=card)
    assert list(input_groups(embedded))[-1] == "embedding"
    assert not any(group.startswith("band ") for group in input_groups(embedded))
    order = np.arange(60)[::-1]
    turned = shuffled(embedded, "embedding", (), order)
    assert np.array_equal(turned.tiles, embedded.tiles[order])
    assert used_groups(input_groups(embedded), Sees(bands=("e01",))) == {"embedding": ()}
    with pytest.raises(DataError, match="has no embedding; its groups are position"):
        shuffled(pictures, "embedding", (), order)
    names = ["aef_e00_100m", "aef_e01_sd_1000m", "rain_01"]
    table = pd.DataFrame(np.zeros((len(world.sites), 3)), index=world.sites.index, columns=names)
    groups = input_groups(replace(world, covariates=table))
    assert groups == {"position": (), "aef": tuple(names[:2]), "rain": ("rain_01",)}


def test_groups_join_covariates_that_differ_by_a_number(world):
    names = ["bioclim_01", "bioclim_02", "frac_11", "roads"]
    table = pd.DataFrame(np.zeros((len(world.sites), 4)), index=world.sites.index, columns=names)
    groups = input_groups(replace(world, covariates=table))
    assert groups == {
        "position": (),
        "bioclim": ("bioclim_01", "bioclim_02"),
        "frac": ("frac_11",),
        "roads": ("roads",),
    }


def test_unknown_inputs_are_refused(world, pictures):
    model = make_baseline("mean_rate").fit(world, world.split.train)
    with pytest.raises(DataError, match="not all covariates of the group 'climate'"):
        permutation_importance(model, world, world.split.validation, groups={"climate": ["rain"]})
    with pytest.raises(DataError, match="no band blue"):
        permutation_importance(Greenness(), pictures, pictures.site_ids, groups={"band blue": ()})
    with pytest.raises(DataError, match="no covariate 'rain'"):
        partial_dependence(model, world, world.split.validation, "rain")


def test_partial_dependence_follows_the_truth(world):
    model = make_baseline("linear", quadratic=False).fit(world, world.split.train)
    curve = partial_dependence(model, world, world.split.validation, "habitat", points=7)
    assert curve.shape == (7, len(world.species)) and curve.index.is_monotonic_increasing
    slopes = model.state["slopes"][0]
    assert (np.sign(curve.iloc[-1] - curve.iloc[0]).to_numpy() == np.sign(slopes)).all()


def test_painting_over_what_the_model_looks_at_changes_its_prediction_and_nothing_else_does(
    pictures,
):
    tiles = pictures.tiles.copy()
    tiles[:, 1, :8, :8] += 100
    change, species = occlusion(Greenness(), replace(pictures, tiles=tiles), "s0003", side_px=8)
    assert change.shape == (2, 2, 2) and species == Greenness.species
    assert (change[0, 0] < -0.05).all() and np.abs(change.reshape(4, 2)[1:]).max() == 0
    with pytest.raises(DataError, match="fit into a tile of 16 x 16"):
        occlusion(Greenness(), pictures, "s0003", side_px=17)


def test_a_subset_keeps_what_belongs_to_each_site(pictures):
    sites = ["s0007", "s0002"]
    part = subset(pictures, sites)
    assert list(part.site_ids) == sites and len(part.tiles) == 2
    np.testing.assert_array_equal(
        part.tiles[part.tile_rows(sites)], pictures.tiles[pictures.tile_rows(sites)]
    )
    pd.testing.assert_frame_equal(part.covariates, pictures.covariates.loc[sites])


def test_the_sites_most_alike_are_the_nearest_in_scaled_numbers():
    table = pd.DataFrame(
        {"a": [0.0, 0.1, 5.0, 0.2], "b": [0.0, 900.0, 0.0, np.nan]}, index=list("wxyz")
    )
    assert most_alike(table, "w", count=3).index[0] == "z"
    assert list(most_alike(table, "w", among=["x", "w"]).index) == ["x"]
    with pytest.raises(DataError, match="not in the table of 4"):
        most_alike(table, "q")
