"""Presence apart from detection: its likelihood, its posterior and what is claimed."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.special import expit

from butterfly_sdm.baselines import make_baseline
from butterfly_sdm.data.predictor import Predictor
from butterfly_sdm.data.quantities import Quantity, Surveyed, ask
from butterfly_sdm.data.saved_models import load_predictor
from butterfly_sdm.season.cells import Calendar
from butterfly_sdm.season.occupancy import NODES, Problem, fit_occupancy
from tests.season.worlds import season_world

SEASON = {"shift_by": None}


def small_problem() -> Problem:
    rng = np.random.default_rng(0)
    n = rng.integers(0, 3, (6, 4))
    k = rng.binomial(n, 0.4)
    k[:2] = 0
    numbers = np.column_stack([np.ones(6), rng.normal(size=6)])
    return Problem(
        sparse.csr_array(k.astype(float)), sparse.csr_array(n.astype(float)), np.eye(4), numbers
    )


def test_the_likelihood_is_the_sum_over_presence_and_effect_visit_by_visit():
    problem = small_problem()
    theta = np.array([-0.5, 0.2, 0.7, -1.0, 0.4, 0.8, np.log(0.9), 0.3])
    k, n = problem.k.toarray().astype(int), problem.n.toarray().astype(int)
    odds = problem.numbers @ theta[4:6]
    found = problem.states(theta)
    for site in range(6):
        middle = 0.3 * (odds[site] - odds.mean())
        weight = np.exp(-0.5 * ((NODES - middle) / 0.9) ** 2)
        weight /= weight.sum()
        present = 0.0
        for node, effect in enumerate(NODES):
            chance = 1.0
            for cell in range(4):
                p = expit(theta[cell] + effect)
                for visit in range(n[site, cell]):
                    chance *= p if visit < k[site, cell] else 1 - p
            present += weight[node] * chance
        psi = expit(odds[site])
        total = psi * present + (0 if k[site].any() else 1 - psi)
        assert found["value"][site] == pytest.approx(np.log(total), rel=1e-9)
        assert found["here"][site] == pytest.approx(psi * present / total, rel=1e-9)


def test_the_gradient_is_that_of_the_value():
    problem = small_problem()
    rng = np.random.default_rng(1)
    theta, penalty = rng.normal(0, 0.5, 8), np.diag([0.5, 1.0, 2.0, 0.1])
    gradient = problem.loss(theta, penalty)[1]
    for place, step in itertools.product(range(8), [1e-5]):
        move = np.zeros(8)
        move[place] = step
        slope = problem.loss(theta + move, penalty)[0] - problem.loss(theta - move, penalty)[0]
        assert gradient[place] == pytest.approx(slope / (2 * step), abs=1e-6)


@pytest.fixture(scope="module")
def world():
    return season_world(sites=420, species=3, absent=True, spread=1.0)


@pytest.fixture(scope="module")
def fitted(world):
    model = make_baseline("occupancy", season=SEASON)
    return model.fit(world.dataset, world.dataset.split.train)


def test_presence_is_found_where_k_of_n_and_ever_seen_are_far_off(world, fitted):
    dataset, test = world.dataset, world.dataset.split.test
    rows = dataset.rows(test)
    truth = world.presence[rows]
    assert isinstance(fitted, Predictor) and isinstance(fitted, Surveyed)
    asked = ask(fitted, Quantity("presence"))
    claim = asked.predict(dataset, test).to_numpy()
    assert ((claim - truth) ** 2).mean() < 0.2 * truth.var(axis=0).mean()
    low, high = (
        ask(fitted, Quantity("presence", bound=bound)).predict(dataset, test).to_numpy()
        for bound in ("lower", "upper")
    )
    assert ((low <= truth) & (truth <= high)).mean() > 0.6
    there = asked.surveyed(dataset, test)["mean"].to_numpy()
    seen = dataset.detections.to_numpy()[rows] > 0
    assert (there[seen] == pytest.approx(1)) and (there[~seen] < 1).all()
    present = world.present[rows]
    assert ((there - present) ** 2).mean() < 0.7 * ((1.0 * seen - present) ** 2).mean()


def test_the_rate_is_that_of_the_whole_season_and_holds_the_truth(world, fitted):
    dataset, test = world.dataset, world.dataset.split.test
    truth = world.truth[dataset.rows(test)]
    claim = fitted.predict(dataset, test).to_numpy()
    np.testing.assert_allclose(claim.mean(axis=0), truth.mean(axis=0), atol=0.04)
    low, high = (
        ask(fitted, Quantity(bound=bound)).predict(dataset, test).to_numpy()
        for bound in ("lower", "upper")
    )
    assert 0.8 < ((low <= truth) & (truth <= high)).mean() < 0.99
    own = fitted.surveyed(dataset, test)
    assert ((own["mean"] - truth) ** 2).mean().mean() < 0.7 * ((claim - truth) ** 2).mean()


def test_intervals_are_wide_where_visits_are_few(world):
    few = season_world(sites=420, species=1, absent=True, spread=1.0, visits=2)
    sites = few.dataset.split.train
    widths = []
    for number in (40, 280):
        model = make_baseline("occupancy", season=SEASON).fit(few.dataset, sites[:number])
        low, high = (
            ask(model, Quantity("presence", bound=bound)).predict(few.dataset, sites[-50:])
            for bound in ("lower", "upper")
        )
        widths.append((high - low).mean().mean())
    assert widths[0] > 1.3 * widths[1]


def test_it_comes_back_from_its_folder(world, fitted, tmp_path):
    test = world.dataset.split.test
    chosen = ask(fitted, Quantity("presence", bound="upper"))
    chosen.save(tmp_path)
    again = load_predictor(tmp_path)
    expected = chosen.predict(world.dataset, test)
    pd.testing.assert_frame_equal(again.predict(world.dataset, test), expected)
    assert again.settings() == fitted.settings()
    assert again.seasons.calendar == fitted.seasons.calendar


def test_commoner_where_easier_is_found():
    rng = np.random.default_rng(5)
    sites, visits = 600, 8
    x = rng.normal(size=sites)
    odds = 1.2 * x
    effect = 0.8 * odds + rng.normal(0, 0.4, sites)
    present = rng.random(sites) < expit(odds)
    k = rng.binomial(visits, expit(-0.6 + effect)) * present
    calendar = Calendar(first_week=20, last_week=23, schedule=(20, 23), years=(2019,))
    problem = Problem(
        sparse.csr_array(np.column_stack([k, *[np.zeros(sites)] * 3]).astype(float)),
        sparse.csr_array(np.column_stack([np.full(sites, visits), *[np.zeros(sites)] * 3]) * 1.0),
        calendar.design[0],
        np.column_stack([np.ones(sites), x]),
    )
    found = fit_occupancy(problem, calendar, rng=rng)
    assert found.theta[-1] == pytest.approx(0.8, abs=0.4)
    assert found.theta[-3] == pytest.approx(1.2, abs=0.35)
