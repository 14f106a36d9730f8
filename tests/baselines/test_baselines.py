"""What every baseline promises, and what each one computes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from butterfly_sdm.baselines import make_baseline
from butterfly_sdm.baselines.saved import ArrayPredictor
from butterfly_sdm.data.predictor import Predictor
from butterfly_sdm.data.saved_models import PREDICTORS
from butterfly_sdm.errors import ArtefactError, DataError, MissingFileError, ModelError
from tests.evaluation.worlds import small_world

OWN = ["mean_rate", "regional_rate", "nearest_sites", "trees"]
QUICK = {"trees": {"trees": 20}}


@pytest.fixture(scope="module")
def world():
    return small_world()[0]


@pytest.mark.parametrize("kind", OWN)
def test_a_baseline_keeps_the_contract_and_comes_back_equal_from_its_folder(kind, world, tmp_path):
    train, validation = world.split.train, world.split.validation
    model = make_baseline(kind, **QUICK.get(kind, {}))
    assert isinstance(model, Predictor)
    with pytest.raises(ModelError, match="not fitted"):
        model.predict(world, validation)
    with pytest.raises(ModelError, match="nothing to save"):
        model.save(tmp_path)
    predicted = model.fit(world, train).predict(world, validation)
    assert list(predicted.index) == list(validation) and predicted.index.name == "site_id"
    assert tuple(predicted.columns) == model.species == world.species
    assert ((predicted >= 0) & (predicted <= 1)).all().all()
    model.save(tmp_path)
    again = PREDICTORS.load(kind).load(tmp_path)
    assert again.settings() == model.settings()
    pd.testing.assert_frame_equal(again.predict(world, validation), predicted)
    backwards = model.predict(world, validation[::-1])
    np.testing.assert_allclose(backwards.to_numpy()[::-1], predicted.to_numpy(), atol=1e-12)


@pytest.mark.parametrize("kind", OWN)
def test_a_baseline_learns_from_the_named_sites_only(kind, world):
    train, validation = world.split.train, world.split.validation
    options = QUICK.get(kind, {})
    expected = make_baseline(kind, **options).fit(world, train).predict(world, validation)
    other = world.detections.copy()
    other.loc[list(validation)] = 0
    changed = (
        make_baseline(kind, **options)
        .fit(replace(world, detections=other), train)
        .predict(world, validation)
    )
    pd.testing.assert_frame_equal(changed, expected)


@pytest.mark.parametrize("kind", OWN)
def test_a_damaged_folder_is_refused_in_words(kind, world, tmp_path):
    cls = PREDICTORS.load(kind)
    with pytest.raises(MissingFileError, match=r"model\.json"):
        cls.load(tmp_path)
    make_baseline(kind, **QUICK.get(kind, {})).fit(world, world.split.train).save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ArtefactError, match="damaged"):
        cls.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(MissingFileError, match="Train the model again"):
        cls.load(tmp_path)
    card = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(card | {"kind": "network"}))
    with pytest.raises(ArtefactError, match="of kind 'network'"):
        cls.load(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(card | {"species": "all"}))
    with pytest.raises(ArtefactError, match="needs species"):
        cls.load(tmp_path)


def test_an_array_missing_from_the_file_is_named(world, tmp_path):
    from safetensors.numpy import save_file

    make_baseline("mean_rate").fit(world, world.split.train).save(tmp_path)
    save_file({"other": np.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ArtefactError, match="lacks the array 'rate'"):
        PREDICTORS.load("mean_rate").load(tmp_path)


def test_unknown_baselines_and_options_are_refused():
    with pytest.raises(ModelError, match="no predictor 'median'"):
        make_baseline("median")
    with pytest.raises(ModelError, match=r"mean_rate has no option 'colour'\. It takes weights"):
        make_baseline("mean_rate", colour="red")
    with pytest.raises(ModelError, match=r"probe needs the option 'embeddings'\. It takes emb"):
        make_baseline("probe")
    with pytest.raises(DataError, match="at least 1"):
        make_baseline("nearest_sites", neighbours=0)


def test_trees_take_one_species_alone_without_a_warning(world, recwarn):
    one = world.species[:1]
    card = world.card.model_copy(update={"species": one})
    alone = replace(world, card=card, detections=world.detections[list(one)])
    make_baseline("trees", trees=3).fit(alone, world.split.train)
    assert not [str(told.message) for told in recwarn if "column-vector" in str(told.message)]


def test_the_mean_rate_counts_sites_or_visits(world):
    train = list(world.split.train)
    by_site = make_baseline("mean_rate").fit(world, train).predict(world, train[:1]).iloc[0]
    np.testing.assert_allclose(by_site, world.rates.loc[train].mean())
    by_visit = (
        make_baseline("mean_rate", weights="visits")
        .fit(world, train)
        .predict(world, train[:1])
        .iloc[0]
    )
    np.testing.assert_allclose(
        by_visit, world.detections.loc[train].sum() / world.visits[train].sum()
    )


def test_sites_without_visits_teach_nothing(world):
    train = list(world.split.train)
    sites, detections = world.sites.copy(), world.detections.copy()
    sites.loc[train[:5], "visits"] = 0
    detections.loc[train[:5]] = 0
    changed = replace(world, sites=sites, detections=detections)
    model = make_baseline("mean_rate").fit(changed, train)
    np.testing.assert_allclose(
        model.predict(world, train[:1]).iloc[0], world.rates.loc[train[5:]].mean()
    )
    with pytest.raises(DataError, match="has a visit"):
        make_baseline("mean_rate").fit(changed, train[:5])


def test_a_square_without_sites_has_the_overall_mean_and_a_full_one_mostly_its_own(world):
    train = list(world.split.train)
    model = make_baseline("regional_rate", size_m=50_000.0, shrinkage=2.0).fit(world, train)
    mean = world.rates.loc[train].mean()
    far = world.sites.copy()
    far["easting"] += 1e6
    np.testing.assert_allclose(model.predict(replace(world, sites=far), train[:1]).iloc[0], mean)
    place = world.sites.loc[train]
    corner = [
        site for site in train if place.easting[site] < 50_000 and place.northing[site] < 50_000
    ]
    own = world.rates.loc[corner]
    expected = (own.sum() + 2 * mean) / (len(corner) + 2)
    np.testing.assert_allclose(model.predict(world, corner[:1]).iloc[0], expected)


def test_nearest_sites_weigh_by_distance_as_in_plain_loops(world):
    train, validation = list(world.split.train), list(world.split.validation)[:5]
    model = make_baseline(
        "nearest_sites", neighbours=4, distance_power=2.0, visits_power=1.0, floor_m=3000.0
    ).fit(world, train)
    predicted = model.predict(world, validation)
    position = world.sites[["easting", "northing"]]
    for site in validation:
        distance = ((position.loc[train] - position.loc[site]) ** 2).sum(axis=1) ** 0.5
        nearest = distance.nsmallest(4)
        weight = world.visits[nearest.index] / nearest.clip(lower=3000.0) ** 2
        expected = world.rates.loc[nearest.index].mul(weight, axis=0).sum() / weight.sum()
        np.testing.assert_allclose(predicted.loc[site], expected)


def test_fewer_sites_than_neighbours_are_all_used(world):
    train = list(world.split.train)[:1]
    predicted = (
        make_baseline("nearest_sites").fit(world, train).predict(world, world.split.validation)
    )
    np.testing.assert_allclose(predicted.iloc[0], world.rates.loc[train[0]])


def test_trees_predict_what_scikit_learn_predicts_and_say_on_which_sites_they_rest(world):
    from sklearn.ensemble import ExtraTreesRegressor

    from butterfly_sdm.baselines.inputs.numbers import site_numbers

    train, validation = list(world.split.train), list(world.split.validation)
    model = make_baseline("trees", trees=15, seed=3).fit(world, train)
    forest = ExtraTreesRegressor(15, min_samples_leaf=2, random_state=3).fit(
        site_numbers(world, train, model.sees).to_numpy(np.float32),
        world.rates.loc[train],
        sample_weight=world.visits[train],
    )
    expected = forest.predict(site_numbers(world, validation, model.sees).to_numpy(np.float32))
    np.testing.assert_allclose(model.predict(world, validation), expected, atol=1e-9)
    weights = model.site_weights(world, validation)
    assert weights.shape == (len(validation), len(train))
    np.testing.assert_allclose(weights.sum(axis=1), 1)


def test_trees_beat_the_mean_rate_in_a_world_with_habitats(world):
    train, validation = world.split.train, world.split.validation
    rates = world.rates.loc[list(validation)]
    errors = {
        kind: ((make_baseline(kind).fit(world, train).predict(world, validation) - rates) ** 2)
        .mean()
        .mean()
        for kind in ("mean_rate", "trees")
    }
    assert errors["trees"] < 0.5 * errors["mean_rate"]


def test_missing_covariates_become_the_training_median(world):
    train, validation = list(world.split.train), list(world.split.validation)
    model = make_baseline("trees", trees=10, position=False).fit(world, train)
    empty, median = world.covariates.copy(), world.covariates.copy()
    empty.loc[validation] = np.nan
    median.loc[validation] = world.covariates.loc[train].median().to_numpy()
    pd.testing.assert_frame_equal(
        model.predict(replace(world, covariates=empty), validation),
        model.predict(replace(world, covariates=median), validation),
    )


def test_trees_refuse_other_covariates_and_nothing_at_all(world):
    model = make_baseline("trees", trees=5).fit(world, world.split.train)
    with pytest.raises(DataError, match="lacks 'habitat' and 1 more"):
        model.predict(replace(world, covariates=None), world.split.validation)
    with pytest.raises(DataError, match="nothing to learn from"):
        make_baseline("trees", position=False).fit(
            replace(world, covariates=None), world.split.train
        )


def test_listing_the_baselines_imports_none_of_them():
    import subprocess
    import sys

    code = (
        "import sys, butterfly_sdm.baselines; print([m for m in ('sklearn', 'scipy', 'torch') if m "
        "in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
    assert all(issubclass(PREDICTORS.load(kind), ArrayPredictor) for kind in OWN)


def test_a_saved_baseline_is_two_plain_files(world, tmp_path: Path):
    make_baseline("trees", trees=5).fit(world, world.split.train).save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
