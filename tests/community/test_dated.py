"""The day of a given visit counts where the season is known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from butterfly_sdm.community.community import Community
from butterfly_sdm.community.dated import DatedLists, effective_counts
from butterfly_sdm.community.given import Given, read_given, undated_visits
from butterfly_sdm.season.cells import week_of
from butterfly_sdm.season.links import chance
from butterfly_sdm.season.seasons import Seasons
from tests.community.worlds import dated_world, lists_in_weeks
from tests.season.worlds import FIRST, WEEKS, day_of

EARLY, LATE = 0, 1  # species that peak in the 7th and in the 20th week


@pytest.fixture(scope="module")
def dated():
    """A data set, predictions, true rates, chances per week, and communities with and without."""
    dataset, q, truth, fold_of, chances = dated_world(sites=400)
    train = list(dataset.split.train)
    seasons = Seasons.of(dataset, train)
    fitted = [
        Community.fit(dataset, q.loc[train], fold_of.loc[train], seasons=one)
        for one in (seasons, None)
    ]
    return dataset, q.rename_axis("place"), truth, chances, *fitted


def lists(week, listed, *, complete=True):
    rows = np.atleast_1d(np.asarray(week))
    listed = np.broadcast_to(listed, (len(rows), 6))
    return DatedLists(np.zeros(len(rows), int), day_of(rows), np.full(len(rows), complete), listed)


def of_lists(community, found, rate=0.2):
    q = np.full((1, 6), rate)
    return effective_counts(community.seasons, found, q, np.zeros(1, int))


def test_a_visit_out_of_season_with_nothing_seen_says_almost_nothing(dated):
    *_, community, _ = dated
    nothing = np.zeros(6, bool)
    for week, says, silent in ((FIRST + 6, EARLY, LATE), (FIRST + 19, LATE, EARLY)):
        k, n = of_lists(community, lists(week, nothing))
        assert n[0, says] > 1 and n[0, silent] < 0.1 and (k < 0.1).all()
    k, n = of_lists(community, lists(2, nothing))  # in January nobody ever looked
    assert (k == 0).all() and (n == 0).all()
    k, n = of_lists(community, lists(2, ~nothing))
    assert (k >= 0.5).all()  # but what was seen was there


def test_effective_visits_are_those_of_the_likelihood_of_the_days(dated):
    """As the posterior over site effects summed by hand, for two visits in unlike weeks."""
    *_, community, _ = dated
    seasons, q = community.seasons, 0.2
    weeks, listed = (FIRST + 5, FIRST + 12), np.array([[1] * 6, [0] * 6], bool)
    k, n = of_lists(community, lists(weeks, listed), q)
    rates = seasons.node_rates(EARLY, seasons.calendar.weights())[0]
    tau = round(float(seasons.tau[EARLY]) * 8) / 8
    weight = None
    for middle in np.linspace(-6, 6, 4801):  # of the prior whose mean rate is the prediction
        tried = np.exp(-0.5 * ((seasons.grid - middle) / tau) ** 2)
        tried /= tried.sum()
        if tried @ rates >= q:
            weight = tried
            break
    assert weight is not None
    exact, approximate = weight.copy(), weight.copy()
    for week, seen in zip(weeks, (True, False), strict=True):
        at = np.ravel_multi_index((week - FIRST, 0, 0, 0), seasons.calendar.shape, mode="clip")
        p = chance(seasons.effects(EARLY)[at] + seasons.grid, seasons.link)
        exact *= p if seen else 1 - p
    approximate *= rates ** k[0, EARLY] * (1 - rates) ** (n - k)[0, EARLY]
    exact, approximate = exact / exact.sum(), approximate / approximate.sum()
    assert approximate @ rates == pytest.approx(exact @ rates, abs=0.02)
    logits = np.log(rates / (1 - rates))
    spread = [np.sqrt(w @ logits**2 - (w @ logits) ** 2) for w in (exact, approximate)]
    assert spread[1] == pytest.approx(spread[0], rel=0.06)


def test_days_make_what_was_seen_worth_more_where_visits_are_uneven(dated):
    dataset, q, truth, chances, community, ignorant = dated
    sites = dataset.split.validation
    rows, species = dataset.rows(sites), list(dataset.species)
    q, truth = q.loc[list(sites)], truth.loc[list(sites)].to_numpy()
    rng = np.random.default_rng(1)
    spring = rng.integers(0, 9, (len(rows), 5))
    even = np.tile(np.linspace(1, WEEKS - 2, 5).astype(int), (len(rows), 1))

    def errors(weeks, which, *, days=True):
        total = np.zeros(len(rows))
        for seed in range(3):
            given = lists_in_weeks(chances[rows], q.index, species, weeks, seed=seed)
            given = given if days else replace(given, dated=given.dated.iloc[:0])
            claim = which.condition(q, given).probability.to_numpy()
            total += ((claim - truth) ** 2).mean(axis=1) / 3
        return total

    def gain(weeks, which):
        less = errors(weeks, which, days=False) - errors(weeks, community)
        return less.mean(), 2.6 * less.std() / np.sqrt(len(less))

    mean, half = gain(spring, community)
    assert mean - half > 0
    mean, half = gain(spring, ignorant)  # which also learned from raw rates
    assert mean - half > 0
    mean, half = gain(even, community)
    assert abs(mean) < 0.1 * errors(even, community).mean() + half


@pytest.mark.parametrize("visits", (0, 1, 5))
def test_intervals_hold_with_visits_on_days(dated, visits):
    dataset, q, truth, chances, community, _ = dated
    sites = list(dataset.split.validation)
    rows, q = dataset.rows(sites), q.loc[sites]
    weeks = np.random.default_rng(2).integers(0, WEEKS, (len(rows), visits))
    given = None
    if visits:
        given = lists_in_weeks(chances[rows], q.index, list(dataset.species), weeks)
    found = community.condition(q, given)
    true = truth.loc[sites].to_numpy()
    inside = (found.low.to_numpy() <= true) & (true <= found.high.to_numpy())
    assert 0.85 < inside.mean() < 0.97


def test_nothing_given_is_the_prediction_and_order_does_not_matter(dated):
    dataset, q, _, chances, community, _ = dated
    places = list(dataset.split.validation)[:6]
    q = q.loc[places]
    assert (community.condition(q).probability.to_numpy() == q.to_numpy()).all()
    weeks = np.random.default_rng(3).integers(0, WEEKS, (4, 3))
    given = lists_in_weeks(
        chances[dataset.rows(places[:4])], q.index[:4], list(dataset.species), weeks
    )
    found = community.condition(q, given).probability
    assert (found.iloc[4:].to_numpy() == q.iloc[4:].to_numpy()).all()
    turned = replace(given, dated=given.dated.iloc[::-1])
    assert community.condition(q, turned).probability.equals(found)
    halves = [given.only(places[:2]), given.only(places[2:4])]
    assert community.condition(q, halves[1] + halves[0]).probability.equals(found)
    hidden = given.without([dataset.species[0]])
    evidence = community.evidence(hidden, q)
    assert (evidence.n[:, 0] == 0).all() and (evidence.n[:4, 1:] > 0).any()


def test_lists_without_a_day_count_as_visits_on_an_average_one(dated):
    dataset, q, *_, community, _ = dated
    names = list(dataset.species)
    rows = [
        ("A", names[0], "2019-05-20", "yes"),
        ("A", names[1], "second walk", "yes"),
        ("A", names[2], "", "no"),
        ("A", names[3], "2019-06-02", "no"),
    ]
    table = pd.DataFrame(rows, columns=["place", "species", "date", "complete"])
    given = read_given(table, names)
    assert len(given.dated) == 2 and list(week_of(given.dated["date"])) == [20, 22]
    left = given.undated()
    assert left.detections.loc["A"].tolist() == [0, 1, 0, 0, 0, 0]
    assert left.visits.loc["A"].tolist() == [1] * 6 and len(left.lists) == 1
    assert left.lists[names[2]].tolist() == [1] and undated_visits(given) == 2
    prediction = q.iloc[:1].set_axis(["A"]).rename_axis("place")
    evidence = community.evidence(given, prediction)
    plain = community.evidence(left, prediction)
    assert (evidence.n >= plain.n).all() and len(evidence.thinned) == 1
    assert evidence.k[0, 0] > 0.5 and evidence.k[0, 3] > 0.5  # both dated lists count


def test_sites_of_the_data_set_are_given_with_their_days(dated):
    dataset, *_ = dated
    sites = list(dataset.split.train)[:3]
    given = Given.of_visits(dataset, sites)
    assert undated_visits(given) == 0
    assert (given.detections.to_numpy() == dataset.detections.loc[sites].to_numpy()).all()


def test_a_community_keeps_its_seasons(dated, tmp_path):
    dataset, q, _, chances, community, _ = dated
    community.save(tmp_path)
    again = Community.load(tmp_path)
    places = list(dataset.split.validation)[:5]
    weeks = np.full((5, 1), 6)
    given = lists_in_weeks(
        chances[dataset.rows(places)], q.loc[places].index, list(dataset.species), weeks
    )
    before, after = (one.condition(q.loc[places], given) for one in (community, again))
    assert np.allclose(before.probability, after.probability, atol=1e-6)
