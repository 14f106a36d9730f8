"""Any predictor of k of n learns standardised rates, and claims what it is asked for."""

import numpy as np
import pandas as pd
import pytest

from butterfly_sdm.baselines import make_baseline
from butterfly_sdm.data.predictor import Predictor
from butterfly_sdm.data.quantities import Quantities, Quantity, ask, known_quantities
from butterfly_sdm.data.saved_models import load_predictor
from butterfly_sdm.errors import DataError, ModelError
from tests.season.worlds import FIRST, season_world, without_visits

TREES = {"trees": 40, "min_samples_leaf": 4}
SEASON = {"link": "logit", "shift_by": None}


@pytest.fixture(scope="module")
def world():
    return season_world(sites=360)


@pytest.fixture(scope="module")
def fitted(world):
    model = make_baseline("seasonal", predictor="trees", options=TREES, season=SEASON)
    return model.fit(world.dataset, world.dataset.split.train)


def test_it_learns_the_rate_of_the_whole_season(world, fitted):
    dataset, test = world.dataset, world.dataset.split.test
    plain = make_baseline("trees", **TREES).fit(dataset, dataset.split.train)
    truth = world.truth[dataset.rows(test)]

    def error(table):
        return ((table.to_numpy() - truth) ** 2).mean()

    assert isinstance(fitted, Predictor) and isinstance(fitted, Quantities)
    assert error(fitted.predict(dataset, test)) < 0.9 * error(plain.predict(dataset, test))
    assert known_quantities(plain) == ()


@pytest.mark.parametrize(
    "kind",
    ["mean_rate", "regional_rate", "nearest_sites", "linear", "boosting", "gaussian_process"],
)
def test_every_kind_that_learns_from_k_of_n_takes_effective_visits(kind, tmp_path):
    world = season_world(sites=150)
    quick = {"boosting": {"rounds": 5}, "gaussian_process": {"steps": 0}}
    options = {"predictor": kind, "options": quick.get(kind, {}), "season": SEASON, "folds": 0}
    model = make_baseline("seasonal", **options).fit(world.dataset, world.dataset.split.train)
    test = world.dataset.split.test
    found = model.predict(world.dataset, test)
    assert ((found >= 0) & (found <= 1)).all().all()
    truth = world.truth[world.dataset.rows(test)]
    assert abs(found.to_numpy().mean() - truth.mean()) < 0.06  # k / n: a mixture of dates
    model.save(tmp_path)
    pd.testing.assert_frame_equal(load_predictor(tmp_path).predict(world.dataset, test), found)


def test_the_rate_of_a_week_and_of_given_dates_are_those_of_the_season(world, fitted):
    dataset, test = world.dataset, world.dataset.split.test
    rows = dataset.rows(test)
    week = FIRST + 6
    found = ask(fitted, Quantity("rate_in_week", week=week)).predict(dataset, test)
    truth = world.rate_in_week(week)[rows]
    assert ((found.to_numpy() - truth) ** 2).mean() < ((truth.mean(axis=0) - truth) ** 2).mean()
    np.testing.assert_allclose(found.mean(), truth.mean(axis=0), atol=0.12)
    dated = ask(fitted, Quantity("raw_rate")).predict(dataset, test)
    raw = dataset.rates.loc[list(test)]
    plain = fitted.predict(dataset, test)
    assert ((dated - raw) ** 2).mean().mean() < 0.8 * ((plain - raw) ** 2).mean().mean()
    # claims of raw rates come from dates, never from what was seen on them
    blind = without_visits(dataset, test)
    pd.testing.assert_frame_equal(ask(fitted, Quantity("raw_rate")).predict(blind, test), dated)
    given = ask(fitted, Quantity("raw_rate", dates=("2021-05-15", "2021-05-16")))
    both = given.predict(dataset, test)
    one = ask(fitted, Quantity("rate_in_week", week=20)).predict(dataset, test)
    np.testing.assert_allclose(both, one, atol=1e-9)


def test_intervals_hold_the_truth_where_nobody_looked_and_where_somebody_did(world, fitted):
    dataset, test = world.dataset, world.dataset.split.test
    truth = world.truth[dataset.rows(test)]
    low, high = (
        ask(fitted, Quantity(bound=bound)).predict(dataset, test).to_numpy()
        for bound in ("lower", "upper")
    )
    assert 0.8 < ((low <= truth) & (truth <= high)).mean() < 0.98
    train = dataset.split.train
    truth = world.truth[dataset.rows(train)]
    own = fitted.surveyed(dataset, train)
    inside = (own["lower"] <= truth) & (truth <= own["upper"])
    assert 0.82 < inside.mean().mean() < 0.98
    alone = ((fitted.left_out - truth) ** 2).mean().mean()
    assert ((own["mean"] - truth) ** 2).mean().mean() < 0.8 * alone
    there = fitted.surveyed(dataset, test)
    seen = dataset.detections.loc[list(test)].to_numpy() > 0
    width = (there["upper"] - there["lower"]).to_numpy()
    assert width[seen].mean() < 0.9 * (high - low)[seen].mean()  # visits say something


def test_what_it_knows_comes_back_from_its_folder(world, fitted, tmp_path):
    test = world.dataset.split.test
    chosen = ask(fitted, Quantity("rate_in_week", week=FIRST + 4, bound="upper"))
    chosen.save(tmp_path)
    again = load_predictor(tmp_path)
    assert again.quantity == chosen.quantity and again.settings() == fitted.settings()
    expected = chosen.predict(world.dataset, test)
    pd.testing.assert_frame_equal(again.predict(world.dataset, test), expected)


def test_what_cannot_be_asked_is_said_in_a_sentence(world, fitted):
    with pytest.raises(ModelError, match="does not tell presence"):
        ask(fitted, Quantity("presence"))
    plain = make_baseline("mean_rate")
    with pytest.raises(ModelError, match=r"train\.season: on"):
        ask(plain, Quantity())
    with pytest.raises(DataError, match="needs the week"):
        Quantity("rate_in_week")
    with pytest.raises(DataError, match="outside the weeks"):
        asked = ask(fitted, Quantity("rate_in_week", week=1))
        asked.predict(world.dataset, world.dataset.split.test)
    with pytest.raises(ModelError, match="folds"):
        make_baseline("seasonal", folds=1)
    with pytest.raises(ModelError, match="not fitted"):
        make_baseline("seasonal").predict(world.dataset, ["S000"])
