"""Curves, rates and effective visits come out as plain loops and known truth say."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import expit

from butterfly_sdm.errors import DataError
from butterfly_sdm.season.cells import Calendar, CellCounts, week_of
from butterfly_sdm.season.effective import SeasonLabels, effective_visits
from butterfly_sdm.season.links import chance, log_chances, scoring
from butterfly_sdm.season.options import SeasonOptions
from butterfly_sdm.season.seasons import Seasons, dates_share, surveyed_rates
from butterfly_sdm.season.site_effects import (
    best_tau,
    grid_of,
    log_likelihood,
    posterior,
    prior,
    quantiles,
)
from butterfly_sdm.season.splines import cyclic_basis, open_basis
from tests.season.worlds import FIRST, day_of, season_world, visit_table

FLAT = SeasonOptions(shift_by=None, years=False, link="logit")


@pytest.fixture(scope="module")
def world():
    return season_world()


@pytest.fixture(scope="module")
def seasons(world):
    return Seasons.of(world.dataset, world.dataset.site_ids, FLAT)


def test_weeks_are_counted_from_the_first_of_january():
    dates = pd.to_datetime(["2019-01-01", "2019-01-08", "2020-12-31", None])
    assert week_of(dates).tolist() == [1, 2, 52, 0]
    assert week_of(pd.DatetimeIndex(day_of(np.arange(1, 53)))).tolist() == list(range(1, 53))


@pytest.mark.parametrize("link", ["logit", "cloglog"])
def test_the_links_agree_with_their_derivatives(link):
    at, step = np.linspace(-5, 2, 9), 1e-6
    p = chance(at, link)
    seen, unseen = log_chances(at, link)
    np.testing.assert_allclose(np.exp(seen), p, rtol=1e-9)
    np.testing.assert_allclose(np.exp(unseen), 1 - p, rtol=1e-7, atol=1e-12)
    slope = (chance(at + step, link) - chance(at - step, link)) / (2 * step)
    _, weight, information = scoring(at, link)
    np.testing.assert_allclose(weight, slope / (p * (1 - p)), rtol=1e-5)
    np.testing.assert_allclose(information, slope**2 / (p * (1 - p)), rtol=1e-5)


def test_splines_sum_to_one_and_the_cyclic_ones_join():
    week = np.arange(52) + 0.5
    for basis, penalty in (cyclic_basis(week, 52, 20), open_basis(week, 0, 52, 12)):
        np.testing.assert_allclose(basis.sum(axis=1), 1)
        np.testing.assert_allclose(penalty @ np.ones(len(penalty)), 0, atol=1e-12)
    ends, _ = cyclic_basis(np.array([0.0, 52.0]), 52, 20)
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-12)


def test_the_likelihood_over_the_grid_is_that_of_single_visits(world, seasons):
    dataset = world.dataset
    sites = dataset.site_ids[5:9]
    counts = seasons.counts(dataset, sites)
    found = seasons.likelihood(counts, 1)
    table = dataset.visit_table
    for row, site in enumerate(dataset.rows(sites)):
        expected = np.zeros(len(seasons.grid))
        for visit in np.flatnonzero(table.visits["site"] == site):
            week = int(week_of(table.visits["date"].iloc[[visit]])[0])
            seen = ((table.sightings["visit"] == visit) & (table.sightings["species"] == 1)).any()
            cell = week - seasons.calendar.first_week  # one year, one effort, one band
            p = expit(seasons.effects(1)[cell] + seasons.grid)
            expected += np.log(p if seen else 1 - p)
        np.testing.assert_allclose(found[row], expected, rtol=1e-9)


def test_posterior_and_spread_agree_with_plain_integrals():
    grid = np.linspace(-8, 8, 401)
    k, n = np.array([[3.0], [0.0]]), np.array([[5.0], [9.0]])
    from scipy import sparse

    like = log_likelihood(sparse.csr_array(k), sparse.csr_array(n), np.array([-0.5]), grid, "logit")
    weight, evidence = posterior(like, prior(0.2, 1.3, grid))
    density = stats.norm.pdf(grid, 0.2, 1.3)
    for row in range(2):
        p = expit(grid - 0.5)
        joint = density * p ** k[row, 0] * (1 - p) ** (n[row, 0] - k[row, 0])
        np.testing.assert_allclose(weight[row], joint / joint.sum(), rtol=1e-6, atol=1e-12)
        assert evidence[row] == pytest.approx(np.log(np.trapezoid(joint, grid)), abs=1e-4)
    ends = quantiles(grid, weight, (0.05, 0.95))
    reached = np.cumsum(weight[0])
    assert np.interp(ends[0, 0], grid, reached) == pytest.approx(0.05, abs=0.02)


def test_the_spread_between_sites_is_found_again():
    rng = np.random.default_rng(0)
    grid, effect = grid_of(33), rng.normal(0, 0.7, 2000)
    p = expit(-1 + effect)
    k = rng.binomial(20, p)
    like = k[:, None] * np.log(expit(grid - 1)) + (20 - k[:, None]) * np.log(expit(1 - grid))
    tau = 1.5
    for _ in range(6):
        tau = best_tau(like, grid, 0.0, tau)
    assert tau == pytest.approx(0.7, abs=0.06)


def test_curves_follow_the_season_and_rates_the_truth(world, seasons):
    dataset = world.dataset
    counts = seasons.counts(dataset, dataset.site_ids)
    for place in range(len(dataset.species)):
        table = seasons.curve_table()
        own = table[table["species"] == dataset.species[place]]
        peak = int(own["week"].iloc[int(own["relative"].argmax())])
        assert abs(peak - (FIRST + world.curves[place].argmax())) <= 3
        assert (own["lower"] <= own["detectability"]).all()
        weight, rates = surveyed_rates(seasons, counts, place)
        truth = world.truth[:, place]
        claim = (weight * rates).sum(axis=1)
        raw = dataset.rates.to_numpy()[:, place]
        error = ((claim - truth) ** 2).mean()
        assert error < 0.35 * ((raw - truth) ** 2).mean()
        assert error < 0.8 * truth.var()
        low, high = quantiles(rates, weight, (0.05, 0.95)).T
        assert 0.8 < ((low <= truth) & (truth <= high)).mean() < 0.98


def test_effective_visits_are_the_visits_where_the_season_is_flat():
    k, n = np.array([0.0, 2.0, 7.0, 9.0]), np.array([6.0, 8.0, 9.0, 12.0])
    grid = np.linspace(-8, 8, 201)
    p = expit(grid)
    like = k[:, None] * np.log(p) + (n - k)[:, None] * np.log(1 - p)
    weight, _ = posterior(like, prior(0.0, 1.0, grid))
    seen, all_ = effective_visits(like, weight, np.broadcast_to(p, like.shape))
    np.testing.assert_allclose(seen, k, atol=0.35)
    np.testing.assert_allclose(all_, n, rtol=0.12)


def test_a_visit_out_of_season_says_little(world, seasons):
    dates = np.r_[day_of(np.full(6, FIRST)), day_of(np.full(6, FIRST + 6))]
    table = visit_table(np.repeat([0, 1], 6), dates, np.zeros((12, 4), bool))
    counts = CellCounts.of(table, seasons.calendar, np.arange(2), bands=np.zeros(2, int))
    like = seasons.likelihood(counts, 0)
    weight, rates = surveyed_rates(seasons, counts, 0)
    _, n = effective_visits(like, weight, rates)
    assert n[0] < 0.5 * n[1]


def test_labels_are_learned_from_by_their_rates(world, seasons):
    dataset = world.dataset
    view = SeasonLabels.over(dataset, seasons, dataset.site_ids[:50])
    k, n = view.counts(dataset.site_ids[:50])
    rate = k / n[:, None]
    assert ((rate > 0) & (rate < 1)).all() and (n >= 1).all()
    truth = world.truth[:50]
    raw = dataset.rates.to_numpy()[:50]
    assert ((rate - truth) ** 2).mean() < 0.5 * ((raw - truth) ** 2).mean()


def test_effort_makes_detection_easier_and_is_taken_out():
    rng = np.random.default_rng(3)
    sites, visits = 300, 8
    site = np.repeat(np.arange(sites), visits)
    minutes = rng.choice([10.0, 30.0, 90.0], len(site), p=[0.4, 0.3, 0.3])
    minutes[::17] = np.nan
    complete = rng.random(len(site)) < 0.5
    effort = np.where(np.isnan(minutes), 0, np.log(np.nan_to_num(minutes, nan=30.0) / 30))
    effect = rng.normal(0, 0.6, sites)
    seen = rng.random(len(site)) < expit(-0.8 + effect[site] + 0.9 * effort + 0.8 * complete)
    date = day_of(rng.integers(15, 30, len(site)))
    table = visit_table(
        site,
        date,
        seen,
        duration=minutes.astype(np.float32),
        complete=pd.array(complete, dtype="boolean"),
    )
    seasons = Seasons.fit(table, ["one"], np.arange(sites), FLAT)
    assert seasons.calendar.effort == ("duration", "complete")
    slopes = seasons.coefficients[0][-4:]
    assert slopes[0] == pytest.approx(0.9 * np.log(3), abs=0.35)
    assert slopes[2] == pytest.approx(0.8, abs=0.35)
    again = Calendar.from_dict(seasons.calendar.to_dict())
    assert again == seasons.calendar


def test_list_length_leaves_the_species_itself_out():
    rng = np.random.default_rng(4)
    site = np.repeat(np.arange(200), 8)
    seen = rng.random((len(site), 12)) < 0.3
    date = day_of(rng.integers(15, 30, len(site)))
    table = visit_table(site, date, seen)
    options = SeasonOptions(shift_by=None, link="logit", effort=("list_length",))
    seasons = Seasons.fit(table, [str(j) for j in range(12)], np.arange(200), options)
    assert abs(seasons.coefficients[:, -1].mean()) < 0.15  # with itself: 1 or so


def test_years_deviate_and_bands_shift():
    world = season_world(sites=120, species=1)
    table = world.dataset.visit_table
    dates = table.visits["date"].to_numpy().copy()
    dates[::2] = dates[::2] + np.timedelta64(365, "D")
    visits = table.visits.assign(date=dates).sort_values(["site", "date"])
    order = np.argsort(visits.index)
    own = table.sightings["visit"].to_numpy()
    seen = pd.DataFrame(
        {"visit": order[own].astype(np.uint32), "species": table.sightings["species"]}
    )
    seen = seen.sort_values(["visit", "species"]).reset_index(drop=True)
    moved = type(table)(visits.reset_index(drop=True), seen)
    seasons = Seasons.fit(moved, ["one"], np.arange(120), gradient=np.arange(120.0))
    assert seasons.calendar.years == (2019, 2020) and seasons.calendar.bands == 5
    assert len(seasons.effects(0)) == len(seasons.calendar)
    weights = seasons.calendar.weights()
    by_band = weights.reshape(seasons.calendar.shape).sum(axis=(0, 1, 2))
    np.testing.assert_allclose(by_band, 1)


def test_dates_alone_make_raw_rates_differ_only_where_they_are_uneven(world, seasons):
    uneven = dates_share(seasons, seasons.counts(world.dataset, world.dataset.site_ids))
    even = season_world(even=True, visits=40)
    flat = Seasons.of(even.dataset, even.dataset.site_ids, FLAT)
    level = dates_share(flat, flat.counts(even.dataset, even.dataset.site_ids))
    assert uneven > 0.25 > level


def test_what_is_lacking_is_said():
    table = visit_table([0, 1], np.array(["NaT", "NaT"], "datetime64[s]"), [[1], [0]])
    with pytest.raises(DataError, match="None of the 2 visits has a date"):
        Seasons.fit(table, ["one"], np.arange(2))
    from dataclasses import replace

    world = season_world(sites=60)
    with pytest.raises(DataError, match="keeps no visits with dates"):
        Seasons.of(replace(world.dataset, visit_table=None), world.dataset.site_ids)
    with pytest.raises(DataError, match=r"season\.shift_by"):
        Seasons.of(world.dataset, world.dataset.site_ids, SeasonOptions(shift_by="altitude"))
    seasons = Seasons.of(world.dataset, world.dataset.site_ids, FLAT)
    with pytest.raises(DataError, match="outside the weeks with visits"):
        seasons.calendar.weights(week=2)
    with pytest.raises(ValueError, match="both first_week and last_week"):
        SeasonOptions(first_week=14)
    assert SeasonOptions.model_validate(False).use == "off"  # as YAML reads off


def test_the_same_seed_gives_the_same_curves_and_other_sites_are_not_looked_at(world):
    train = world.dataset.split.train
    options = SeasonOptions(curve_sites=80, shift_by=None)
    first = Seasons.of(world.dataset, train, options, seed=1)
    again = Seasons.of(world.dataset, train, options, seed=1)
    np.testing.assert_array_equal(first.coefficients, again.coefficients)
    from tests.season.worlds import without_visits

    blind = without_visits(world.dataset, [*world.dataset.split.test])
    other = Seasons.of(blind, train, options, seed=1)
    np.testing.assert_array_equal(first.coefficients, other.coefficients)
