"""Networks that are fitted to dated visits."""

import numpy as np
import pandas as pd
import pytest

from butterfly_sdm.data.predictor import FitContext
from butterfly_sdm.data.quantities import Quantity, ask, known_quantities
from butterfly_sdm.data.saved_models import load_predictor
from butterfly_sdm.errors import DataError, ModelError
from butterfly_sdm.models.ensemble import Ensemble
from butterfly_sdm.models.network_predictor import NetworkPredictor
from tests.season.worlds import FIRST, season_world

QUICK = {
    "image": False,
    "covariates": True,
    "embedding": 16,
    "head_width": 32,
    "epochs": 40,
    "learning_rate": 4e-3,
    "weight_decay": 0.1,
    "regulariser": None,
    "accelerator": "cpu",
}
SEASON = {"shift_by": None, "link": "logit"}


def fit(world, **options):
    part = world.dataset.split
    context = FitContext(validation=part.validation)
    model = NetworkPredictor(**QUICK, **options)
    return model.fit(world.dataset, part.train, context=context)


def error(table, truth):
    return float(((table.to_numpy() - truth) ** 2).mean())


def test_a_network_learns_the_rate_of_the_whole_season(tmp_path):
    world = season_world(sites=360, spread=1.0)
    dataset, test = world.dataset, world.dataset.split.test
    truth = world.truth[dataset.rows(test)]
    season, plain = fit(world, loss="season", season=SEASON), fit(world)
    claim = season.predict(dataset, test)
    assert error(claim, truth) < 0.9 * error(plain.predict(dataset, test), truth)
    assert error(claim, truth) < 0.6 * truth.var(axis=0).mean()
    low, high = (
        ask(season, Quantity(bound=bound)).predict(dataset, test).to_numpy()
        for bound in ("lower", "upper")
    )
    assert 0.85 < ((low <= truth) & (truth <= high)).mean() < 0.995
    week = ask(season, Quantity("rate_in_week", week=FIRST + 6)).predict(dataset, test)
    there = world.rate_in_week(FIRST + 6)[dataset.rows(test)]
    assert error(week, there) < there.var(axis=0).mean()
    own = season.surveyed(dataset, test)
    assert error(own["mean"], truth) < error(claim, truth)
    season.save(tmp_path)
    again = load_predictor(tmp_path)
    pd.testing.assert_frame_equal(again.predict(dataset, test), claim)
    assert again.settings() == season.settings()
    assert known_quantities(plain) == () and "season" not in plain.settings()


def test_a_network_tells_presence_apart_from_detection(tmp_path):
    world = season_world(sites=360, absent=True, spread=1.0)
    dataset, test = world.dataset, world.dataset.split.test
    rows = dataset.rows(test)
    model = fit(world, loss="occupancy", season=SEASON)
    presence = ask(model, Quantity("presence"))
    truth = world.presence[rows]
    assert error(presence.predict(dataset, test), truth) < 0.35 * truth.var(axis=0).mean()
    there = presence.surveyed(dataset, test)["mean"]
    seen = dataset.detections.loc[list(test)].to_numpy() > 0
    assert np.allclose(there.to_numpy()[seen], 1)
    present = world.present[rows]
    assert error(there, present) < ((1.0 * seen - present) ** 2).mean()
    rate = model.predict(dataset, test)
    assert error(rate, world.truth[rows]) < 1.1 * world.truth[rows].var(axis=0).mean()
    with pytest.raises(ModelError, match="no interval of presence"):
        ask(model, Quantity("presence", bound="lower"))
    model.save(tmp_path)
    pd.testing.assert_frame_equal(load_predictor(tmp_path).predict(dataset, test), rate)


def test_an_ensemble_is_asked_as_its_members_are():
    world = season_world(sites=120, spread=1.0)
    split = world.dataset.split
    quick = QUICK | {"epochs": 3}
    both = Ensemble.of_networks(2, loss="season", season=SEASON, **quick)
    both.fit(world.dataset, split.train)
    asked = ask(both, Quantity("rate_in_week", week=FIRST + 3))
    expected = np.mean(
        [member.predict(world.dataset, split.test) for member in asked.members], axis=0
    )
    np.testing.assert_allclose(asked.predict(world.dataset, split.test), expected)
    assert asked.quantity.week == FIRST + 3
    mixed = Ensemble([both.members[0], NetworkPredictor(**quick).fit(world.dataset, split.train)])
    with pytest.raises(ModelError, match="one rate only"):
        ask(mixed, Quantity())


def test_what_does_not_go_together_is_said():
    from dataclasses import replace

    world = season_world(sites=60)
    with pytest.raises(ModelError, match="Use score: loss"):
        NetworkPredictor(**QUICK, loss="season", score="mse")
    blind = replace(world.dataset, visit_table=None)
    with pytest.raises(DataError, match="keeps no visits"):
        NetworkPredictor(**QUICK, loss="season").fit(blind, blind.split.train)
    with pytest.raises(ModelError, match=r"season\.link"):
        NetworkPredictor(**QUICK, loss="season", season={"link": "probit"}).fit(
            world.dataset, world.dataset.split.train
        )
