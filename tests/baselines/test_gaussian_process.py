"""Gaussian processes: what they learn, what they promise, what they refuse."""

import numpy as np
import pandas as pd
import pytest

from butterfly_sdm.baselines.gaussian_process import GaussianProcess, _calibrated, _calibration
from butterfly_sdm.baselines.inputs.kernels import SharedKernel
from butterfly_sdm.baselines.inputs.transforms import (
    fill_from_nearest,
    group_columns,
    log_counts,
    transform_codes,
    transformed,
)
from butterfly_sdm.baselines.mean_rate import MeanRate
from butterfly_sdm.data.saved_models import PREDICTORS
from butterfly_sdm.errors import DataError, ModelError
from tests.evaluation.worlds import small_world


@pytest.fixture(scope="module")
def world():
    return small_world(sites=150, species=5)


@pytest.fixture(scope="module")
def fitted(world):
    return GaussianProcess(steps=20).fit(world[0], world[0].split.train)


def test_it_comes_nearer_to_the_truth_than_the_mean_rate(world, fitted):
    dataset, truth = world
    sites = list(dataset.split.validation)
    mean = MeanRate().fit(dataset, dataset.split.train).predict(dataset, sites)
    error = ((fitted.predict(dataset, sites) - truth.loc[sites]) ** 2).to_numpy().mean()
    assert error < 0.4 * ((mean - truth.loc[sites]) ** 2).to_numpy().mean()


def test_it_comes_back_equal_from_its_folder(world, fitted, tmp_path):
    dataset = world[0]
    fitted.save(tmp_path)
    again = PREDICTORS.load("gaussian_process").load(tmp_path)
    pd.testing.assert_frame_equal(
        again.predict(dataset, dataset.split.validation),
        fitted.predict(dataset, dataset.split.validation),
    )


def test_leaving_one_out_in_closed_form_is_leaving_one_out():
    random = np.random.default_rng(0)
    x = random.normal(size=(12, 1))
    covariance = np.exp(-((x - x.T) ** 2)) + 0.1 * np.eye(12)
    y = random.normal(size=12)
    inverse = np.linalg.inv(covariance)
    closed = y - inverse @ y / inverse.diagonal()
    rest = np.arange(1, 12)
    by_hand = covariance[0, rest] @ np.linalg.solve(covariance[np.ix_(rest, rest)], y[rest])
    assert closed[0] == pytest.approx(by_hand)


def test_calibration_undoes_a_parabola_of_the_sine():
    random = np.random.default_rng(0)
    sine = random.uniform(0.2, 0.9, size=(500, 3))
    rates = (
        np.array([0.1, 0.05, 0.0])
        + np.array([1.3, 0.4, 1.0]) * sine**2
        + np.array([0.0, 0.3, 0.0]) * sine
    )
    noisy = rates + random.normal(scale=0.02, size=rates.shape)
    np.testing.assert_allclose(_calibrated(sine, _calibration(sine, noisy)), rates, atol=0.01)


def test_calibration_leaves_a_species_alone_that_hardly_varies():
    random = np.random.default_rng(0)
    sine = np.column_stack([random.uniform(0.2, 0.9, 300), random.uniform(0.30, 0.31, 300)])
    rates = np.column_stack([sine[:, 0] ** 2, random.uniform(0, 0.2, 300)])
    level, slope, bend = _calibration(sine, rates)
    assert slope[1] == pytest.approx(1.0, abs=0.1) and bend[1] == pytest.approx(0.0, abs=0.1)
    assert _calibrated(sine, (level, slope, bend))[:, 1].mean() == pytest.approx(rates[:, 1].mean())


def test_the_kernel_is_symmetric_and_positive():
    random = np.random.default_rng(0)
    position, features = (
        random.normal(size=(40, 2)),
        [random.normal(size=(40, size)) for size in (3, 2, 4)],
    )
    kernel = SharedKernel([3, 2, 4], embedding=True)
    covariance = kernel.covariance(position, features, position, features)
    np.testing.assert_allclose(covariance, covariance.T)
    assert np.linalg.eigvalsh(covariance).min() > 0


def test_covariates_that_are_missing_do_not_break_it(world, fitted):
    from dataclasses import replace

    dataset = world[0]
    site = dataset.split.validation[0]
    covariates = dataset.covariates.copy()
    covariates.loc[site] = np.nan
    assert fitted.predict(replace(dataset, covariates=covariates), [site]).notna().all().all()


def test_where_people_survey_is_counted_among_all_other_sites():
    places = np.array([[0.0, 0.0], [0.0, 0.02], [0.0, 0.05], [3.0, 3.0]])
    counts = log_counts(places, np.array([[0.0, 0.0], [0.0, 0.01]]), [3.0, 10.0])
    np.testing.assert_allclose(np.expm1(counts), [[1, 2], [2, 3]])  # a site does not count itself


def test_a_process_that_counts_sites_comes_back_equal_and_knows_sites_without_visits(
    world, tmp_path
):
    dataset = world[0]
    site = list(dataset.split.validation[:1])
    model = GaussianProcess(steps=2, density_km="5, 20").fit(dataset, dataset.split.train)
    model.save(tmp_path)
    predicted = PREDICTORS.load("gaussian_process").load(tmp_path).predict(dataset, site)
    pd.testing.assert_frame_equal(predicted, model.predict(dataset, site))
    known = dataset.site_ids
    assert model.state["places"].shape == (len(known), 2) and len(known) > len(dataset.split.train)
    with pytest.raises(ModelError, match="density_km = '5,far'"):
        GaussianProcess(density_km="5,far")


def test_groups_take_columns_by_prefix_and_refuse_a_prefix_without_columns():
    assert group_columns(["a_1", "b", "a_2"], ["a_"]) == {"a_": ["a_1", "a_2"], "other": ["b"]}
    with pytest.raises(DataError, match="No covariate begins with 'c_'"):
        group_columns(["a_1"], ["c_"])


def test_fractions_get_a_square_root_and_skewed_numbers_a_logarithm():
    random = np.random.default_rng(0)
    values = np.column_stack(
        [random.uniform(size=200), random.lognormal(3, 2, 200), random.normal(size=200)]
    )
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


def test_what_is_missing_comes_from_the_nearest_place_that_has_it():
    values = np.array([[np.nan, 1.0], [2.0, np.nan]])
    known = np.array([[5.0, np.nan], [np.nan, np.nan], [7.0, np.nan]])
    at = np.array([[3.0, 0.0], [0.1, 0.0], [9.0, 0.0]])
    filled = fill_from_nearest(values, np.zeros((2, 2)), known, at)
    np.testing.assert_allclose(filled, [[5.0, 1.0], [2.0, 0.0]])


def test_the_same_sites_given_again_say_the_same_and_other_sites_other_things():
    dataset, _ = small_world(sites=60, species=3)
    ids = list(dataset.site_ids)
    fitted = GaussianProcess(steps=5).fit(dataset, ids[:40])
    same = fitted.given(dataset, ids[:40])
    pd.testing.assert_frame_equal(same.predict(dataset, ids), fitted.predict(dataset, ids))
    before = fitted.predict(dataset, ids)
    more = fitted.given(dataset, ids)
    assert len(more.state["position"]) == 60 and len(fitted.state["position"]) == 40
    pd.testing.assert_frame_equal(fitted.predict(dataset, ids), before)  # itself unchanged
    off = [
        ((model.predict(dataset, ids) - dataset.rates) ** 2).iloc[40:] for model in (more, fitted)
    ]
    assert off[0].mean().mean() < off[1].mean().mean()  # it has seen them now
