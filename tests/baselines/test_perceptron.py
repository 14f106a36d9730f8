"""Small networks on covariates: they learn, come back, and repeat themselves."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from butterfly_sdm.baselines.inputs.transforms import mean_around
from butterfly_sdm.baselines.mean_rate import MeanRate
from butterfly_sdm.baselines.perceptron import Perceptron
from butterfly_sdm.data.saved_models import PREDICTORS
from butterfly_sdm.errors import ModelError
from tests.evaluation.worlds import small_world

QUICK = {
    "networks": 2,
    "width": 16,
    "epochs": 25,
    "dropout": 0.1,
    "input_dropout": 0.0,
    "learning_rate": 0.02,
}


@pytest.mark.parametrize("regulariser", [0.0, 0.1])
def test_it_comes_nearer_to_the_truth_than_the_mean_rate_and_comes_back_from_its_folder(
    regulariser, tmp_path
):
    dataset, truth = small_world()
    sites = list(dataset.split.validation)
    model = Perceptron(**QUICK, regulariser=regulariser).fit(dataset, dataset.split.train)
    predicted = model.predict(dataset, sites)
    mean = MeanRate().fit(dataset, dataset.split.train).predict(dataset, sites)
    assert ((predicted - truth.loc[sites]) ** 2).mean().mean() < 0.5 * (
        (mean - truth.loc[sites]) ** 2
    ).mean().mean()
    again = (
        Perceptron(**QUICK, regulariser=regulariser)
        .fit(dataset, dataset.split.train)
        .predict(dataset, sites)
    )
    pd.testing.assert_frame_equal(again, predicted)
    model.save(tmp_path)
    pd.testing.assert_frame_equal(
        PREDICTORS.load("perceptron").load(tmp_path).predict(dataset, sites), predicted
    )


def test_surroundings_are_a_weighted_mean_of_other_places():
    values, at = np.array([[1.0], [3.0], [9.0]]), np.array([[0.0, 0.0], [0.0, 0.02], [5.0, 5.0]])
    weight = np.exp(-0.5 * np.array([0.5, 1.5]) ** 2)
    around = mean_around(values, at, np.array([[0.0, 0.005], [0.0, 0.0], [3.0, 5.0]]), sd=0.01)
    assert around[0, 0] == pytest.approx((weight * [1, 3]).sum() / weight.sum())
    assert around[1, 0] == pytest.approx(3.0)  # itself does not count
    assert around[2, 0] == pytest.approx(9.0)  # far from all: the nearest
    assert mean_around(values[:1], at[:1], at[:1], sd=0.01)[0, 0] == 0.0


def test_covariates_of_sites_without_visits_tell_of_the_surroundings():
    dataset, _ = small_world()
    sites, others = list(dataset.split.validation[:5]), list(dataset.split.validation[5:])
    model = Perceptron(**QUICK | {"epochs": 3}).fit(dataset, dataset.split.train)
    changed = dataset.covariates.copy()
    changed.loc[others] += 5.0
    other = Perceptron(**QUICK | {"epochs": 3}).fit(
        replace(dataset, covariates=changed), dataset.split.train
    )
    assert not np.allclose(other.predict(dataset, sites), model.predict(dataset, sites))
    deaf = Perceptron(**QUICK | {"epochs": 3, "surroundings_km": 0.0})
    pd.testing.assert_frame_equal(
        deaf.fit(dataset, dataset.split.train).predict(dataset, sites),
        deaf.fit(replace(dataset, covariates=changed), dataset.split.train).predict(dataset, sites),
    )


def test_an_impossible_setting_is_refused():
    with pytest.raises(ModelError, match=r"dropout = 1\.0"):
        Perceptron(dropout=1.0)
