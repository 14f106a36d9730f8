"""Small networks on covariates: they learn, come back, and repeat themselves."""

import pandas as pd
import pytest

from butterfly_sdm.baselines import BASELINES, load_class
from butterfly_sdm.baselines.mean_rate import MeanRate
from butterfly_sdm.baselines.perceptron import Perceptron
from butterfly_sdm.errors import ModelError
from tests.evaluation.worlds import small_world

QUICK = {"networks": 2, "width": 16, "epochs": 25, "dropout": 0.1, "input_dropout": 0.0, "learning_rate": 0.02}


@pytest.mark.parametrize("regulariser", [0.0, 0.1])
def test_it_comes_nearer_to_the_truth_than_the_mean_rate_and_comes_back_from_its_folder(regulariser, tmp_path):
    dataset, truth = small_world()
    sites = list(dataset.split.validation)
    model = Perceptron(**QUICK, regulariser=regulariser).fit(dataset, dataset.split.train)
    predicted = model.predict(dataset, sites)
    mean = MeanRate().fit(dataset, dataset.split.train).predict(dataset, sites)
    assert ((predicted - truth.loc[sites]) ** 2).mean().mean() < 0.5 * ((mean - truth.loc[sites]) ** 2).mean().mean()
    again = Perceptron(**QUICK, regulariser=regulariser).fit(dataset, dataset.split.train).predict(dataset, sites)
    pd.testing.assert_frame_equal(again, predicted)
    model.save(tmp_path)
    pd.testing.assert_frame_equal(load_class(BASELINES["perceptron"]).load(tmp_path).predict(dataset, sites), predicted)


def test_an_impossible_setting_is_refused():
    with pytest.raises(ModelError, match=r"dropout = 1\.0"):
        Perceptron(dropout=1.0)
