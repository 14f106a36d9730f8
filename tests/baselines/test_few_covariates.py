"""Predictors are fitted, kept and asked with whatever covariates there are."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from butterfly_sdm.baselines import make_baseline
from tests.evaluation.worlds import small_world

QUICK = {
    "gaussian_process": {"steps": 2},
    "perceptron": {"epochs": 1, "networks": 2, "width": 8},
    "trees": {"trees": 5},
    "boosting": {"rounds": 2},
}
EMBEDDING = {"embedding": "embedding_", "components": 2}


@pytest.fixture(scope="module")
def world():
    return small_world(sites=80, species=3)[0]


@pytest.mark.parametrize("kind", ["gaussian_process", "perceptron", "linear", "trees", "boosting"])
@pytest.mark.parametrize("covariates", ["none", "one", "holes", "constant", "embedding alone"])
def test_few_covariates_are_enough(world, tmp_path, kind, covariates):
    table = world.covariates.iloc[:, :1].copy()
    random = np.random.default_rng(0)
    if covariates == "holes":
        table.iloc[random.permutation(len(table))[: len(table) // 2]] = np.nan
    if covariates == "constant":
        table[:] = 3.0
    if covariates == "embedding alone":
        table = pd.DataFrame(random.normal(size=(len(table), 3)), index=table.index)
        table.columns = [f"embedding_{i}" for i in table.columns]
    few = replace(world, covariates=None if covariates == "none" else table)
    options = QUICK.get(kind, {})
    if covariates == "embedding alone" and kind in ("gaussian_process", "perceptron"):
        options = options | EMBEDDING
    model = make_baseline(kind, **options).fit(few, few.split.train)
    told = model.predict(few, few.split.validation)
    assert np.isfinite(told.to_numpy()).all()
    model.save(tmp_path)
    again = type(model).load(tmp_path).predict(few, few.split.validation)
    pd.testing.assert_frame_equal(again, told)
