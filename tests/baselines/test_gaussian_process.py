"""Gaussian processes: what they learn, what they promise, what they refuse."""

import numpy as np
import pandas as pd
import pytest

from butterfly_sdm.baselines import BASELINES, load_class
from butterfly_sdm.baselines.gaussian_process import GaussianProcess
from butterfly_sdm.baselines.mean_rate import MeanRate
from butterfly_sdm.baselines.own_amplitudes import _objective
from butterfly_sdm.baselines.site_features import group_columns, transform_codes, transformed
from butterfly_sdm.errors import DataError, ModelError
from tests.evaluation.worlds import small_world


@pytest.fixture(scope="module")
def world():
    return small_world(sites=150, species=5)


@pytest.fixture(scope="module")
def fitted(world):
    return GaussianProcess(steps=20, own_steps=4).fit(world[0], world[0].split.train)


def test_it_comes_nearer_to_the_truth_than_the_mean_rate(world, fitted):
    dataset, truth = world
    sites = list(dataset.split.validation)
    mean = MeanRate().fit(dataset, dataset.split.train).predict(dataset, sites)
    error = ((fitted.predict(dataset, sites) - truth.loc[sites]) ** 2).to_numpy().mean()
    assert error < 0.4 * ((mean - truth.loc[sites]) ** 2).to_numpy().mean()


def test_it_comes_back_equal_from_its_folder(world, fitted, tmp_path):
    dataset = world[0]
    fitted.save(tmp_path)
    again = load_class(BASELINES["gaussian_process"]).load(tmp_path)
    pd.testing.assert_frame_equal(
        again.predict(dataset, dataset.split.validation), fitted.predict(dataset, dataset.split.validation)
    )


def test_the_gradient_of_the_likelihood_is_that_of_differences(world):
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 30, 1))
    parts = np.exp(-((x - x.transpose(0, 2, 1)) ** 2))
    theta, y, per_visit = np.log([0.4, 0.2, 0.3, 1.5]), random.normal(size=30), 1 / random.integers(5, 40, 30)
    arguments = (y, parts, theta + 0.1, per_visit, 0.5)
    _, gradient = _objective(theta, *arguments)
    step = 1e-6
    for place in range(4):
        aside = np.eye(4)[place] * step
        slope = (_objective(theta + aside, *arguments)[0] - _objective(theta - aside, *arguments)[0]) / (2 * step)
        assert gradient[place] == pytest.approx(slope, rel=1e-4)


def test_covariates_that_are_missing_do_not_break_it(world, fitted):
    from dataclasses import replace

    dataset = world[0]
    site = dataset.split.validation[0]
    covariates = dataset.covariates.copy()
    covariates.loc[site] = np.nan
    assert fitted.predict(replace(dataset, covariates=covariates), [site]).notna().all().all()


def test_groups_take_columns_by_prefix_and_refuse_a_prefix_without_columns():
    assert group_columns(["a_1", "b", "a_2"], ["a_"]) == {"a_": ["a_1", "a_2"], "other": ["b"]}
    with pytest.raises(DataError, match="No covariate begins with 'c_'"):
        group_columns(["a_1"], ["c_"])


def test_fractions_get_a_square_root_and_skewed_numbers_a_logarithm():
    random = np.random.default_rng(0)
    values = np.column_stack([random.uniform(size=200), random.lognormal(3, 2, 200), random.normal(size=200)])
    codes = transform_codes(values)
    assert codes.tolist() == [1, 2, 0]
    changed = transformed(values, codes)
    np.testing.assert_allclose(changed[:, 0] ** 2, values[:, 0])
    np.testing.assert_allclose(np.expm1(changed[:, 1]), values[:, 1])


def test_an_impossible_setting_and_an_absent_embedding_are_refused(world):
    with pytest.raises(ModelError, match="components = 0"):
        GaussianProcess(components=0)
    with pytest.raises(DataError, match="No covariate begins with 'geoclip_'"):
        GaussianProcess(embedding="geoclip_").fit(world[0], world[0].split.train)
