"""Stacking: weights that are right, members that come back, options that are checked."""

import numpy as np
import pandas as pd
import pytest

from butterfly_sdm.baselines.stacking import Stacking, blend_weights
from butterfly_sdm.data.predictor import Predictor
from butterfly_sdm.data.saved_models import PREDICTORS
from butterfly_sdm.errors import ArtefactError, ModelError
from tests.evaluation.worlds import small_world

QUICK = {"members": "trees,mean_rate", "trees.trees": 20, "folds": 3, "distance_m": 2000.0}


@pytest.fixture(scope="module")
def world():
    return small_world()[0]


def test_the_weights_are_those_that_made_the_truth():
    random = np.random.default_rng(0)
    predictions = random.uniform(size=(3, 400, 4))
    rates = np.tensordot([0.7, 0.3, 0.0], predictions, 1)
    np.testing.assert_allclose(
        blend_weights(predictions, rates, shrinkage=0), [[0.7, 0.3, 0.0]] * 4, atol=1e-3
    )


def test_strong_shrinkage_gives_every_species_the_common_weights():
    random = np.random.default_rng(0)
    predictions = random.uniform(size=(2, 300, 2))
    rates = np.stack([predictions[0, :, 0], predictions[1, :, 1]], axis=1)
    own = blend_weights(predictions, rates, shrinkage=0)
    np.testing.assert_allclose(own, [[1, 0], [0, 1]], atol=1e-3)
    common = blend_weights(predictions, rates, shrinkage=1e9)
    np.testing.assert_allclose(common, 0.5, atol=0.1)


def test_a_member_that_says_nothing_gets_little_weight_and_all_comes_back_from_the_folder(
    world, tmp_path
):
    model = Stacking(**QUICK)
    assert isinstance(model, Predictor)
    with pytest.raises(ModelError, match="not fitted"):
        model.predict(world, world.split.validation)
    predicted = model.fit(world, world.split.train).predict(world, world.split.validation)
    assert model.weight[:, 0].mean() > 0.6
    np.testing.assert_allclose(model.weight.sum(axis=1), 1)
    model.save(tmp_path)
    again = PREDICTORS.load("stacking").load(tmp_path)
    assert again.settings() == model.settings()
    pd.testing.assert_frame_equal(again.predict(world, world.split.validation), predicted)
    (tmp_path / "model.json").write_text(
        (tmp_path / "model.json").read_text().replace('"mean_rate": [', '"other": [')
    )
    with pytest.raises(ArtefactError, match="damaged"):
        Stacking.load(tmp_path)


def test_given_weights_are_used_as_they_are(world):
    model = Stacking(members="trees,mean_rate", weights="1,3", **{"trees.trees": 5}).fit(
        world, world.split.train
    )
    np.testing.assert_allclose(model.weight, [[0.25, 0.75]] * len(world.species))


def test_wrong_members_weights_and_options_are_refused_before_any_work():
    with pytest.raises(ModelError, match="names that differ"):
        Stacking(members="trees,trees")
    with pytest.raises(ModelError, match="names that differ"):
        Stacking(members="trees:../elsewhere")
    with pytest.raises(ModelError, match="as many weights"):
        Stacking(members="trees,mean_rate", weights="1")
    with pytest.raises(TypeError, match=r"'member\.parameter'"):
        Stacking(members="trees", **{"forest.trees": 3})
    with pytest.raises(ModelError, match="trees has no option 'leaves'"):
        Stacking(members="trees", **{"trees.leaves": 3})
