"""Methods choose what a search over all candidates chooses, within their means."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from butterfly_sdm.planning.belief import Belief, gains_in_order
from butterfly_sdm.planning.methods import (
    METHODS,
    Problem,
    farthest_sites,
    gain_sites,
    likely_sites,
    random_sites,
    space_sites,
)


def problem(seed: int = 0, *, candidates: int = 25, places: int = 30, count: int = 6) -> Problem:
    random = np.random.default_rng(seed)
    at = random.uniform(0, 1, (candidates + places, 2))
    every = np.exp(-cdist(at, at) / 0.4) * 0.5
    noise = random.uniform(0.05, 0.2, candidates)
    own = every[:candidates, :candidates]
    weight = random.uniform(0.2, 2, places)
    belief = Belief(
        every[candidates:, :candidates],
        own.diagonal(),
        noise,
        lambda rows, columns: own[rows][:, columns],
        weight,
        float(weight @ every.diagonal()[candidates:]),
    )
    return Problem(
        count, at[:candidates], random.uniform(0, 1, (4, 2)), at[candidates:], belief, seed=seed
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("priced", [False, True])
def test_gain_takes_the_best_of_all_at_every_step(seed, priced):
    told = problem(seed)
    cost = np.random.default_rng(seed).uniform(0.5, 3, 25) if priced else np.ones(25)
    told = dataclasses.replace(told, cost=cost)
    picks = gain_sites(told)
    assert len(set(picks)) == 6
    for step, pick in enumerate(picks):
        before = gains_in_order(told.belief, picks[:step]).sum()
        worth = {
            c: (gains_in_order(told.belief, [*picks[:step], c]).sum() - before) / cost[c]
            for c in range(25)
            if c not in picks[:step]
        }
        assert worth[pick] == pytest.approx(max(worth.values()), rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_space_shortens_the_way_from_a_place_to_a_site_most(seed):
    told = problem(seed)
    picks, near = space_sites(told), cdist(told.places, told.surveyed).min(axis=1)
    for pick in picks:
        left = np.minimum(near[:, None], cdist(told.places, told.position)).sum(axis=0)
        assert left[pick] == pytest.approx(left.min())
        near = np.minimum(near, cdist(told.places, told.position[[pick]])[:, 0])


def test_farthest_is_farthest_from_all_sites():
    told = problem()
    picks, known = farthest_sites(told), told.surveyed
    for pick in picks:
        away = cdist(told.position, known).min(axis=1)
        assert away[pick] == pytest.approx(away.max())
        known = np.concatenate([known, told.position[[pick]]])


def test_likely_takes_the_most_expected_finds():
    finds = np.array([0.1, 0.9, 0.5, 0.7])
    told = dataclasses.replace(problem(candidates=4), count=2)
    assert likely_sites(told, finds) == [1, 3]
    dear = dataclasses.replace(told, cost=np.array([1.0, 3.0, 1.0, 1.0]))
    assert likely_sites(dear, finds) == [3, 2]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.5, 12), st.sampled_from(sorted(METHODS)))
def test_no_method_spends_more_than_the_budget_nor_chooses_twice(seed, budget, method):
    cost = np.random.default_rng(seed).uniform(0.3, 4, 25)
    told = dataclasses.replace(problem(seed), cost=cost, budget=budget)
    picks = METHODS[method](told)
    assert cost[picks].sum() <= budget + 1e-6
    assert len(picks) == len(set(picks)) <= told.count
    assert picks == METHODS[method](told)
    left = budget - cost[picks].sum()
    if len(picks) < told.count:  # then nobody else could be paid
        assert np.delete(cost, picks).min() > left - 1e-6


def test_random_sites_follow_the_seed():
    told = problem()
    again = dataclasses.replace(told, seed=9)
    assert random_sites(told) == random_sites(told) != random_sites(again)


def test_gain_without_a_belief_says_so():
    with pytest.raises(ValueError, match=r"needs problem\.belief"):
        gain_sites(dataclasses.replace(problem(), belief=None))
