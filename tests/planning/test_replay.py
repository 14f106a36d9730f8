"""A replay scores what was hidden, the same twice, and sums it up in pairs."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from butterfly_sdm.errors import DataError
from butterfly_sdm.planning import ReplayOptions, make_replay, write_replay
from butterfly_sdm.planning import replay as replay_module
from butterfly_sdm.planning.ground import ground_of
from butterfly_sdm.planning.outputs import read_promises
from butterfly_sdm.planning.replay import _Stage
from butterfly_sdm.planning.summary import summarised
from tests.planning.making import world

SMALL = {"draws": 2, "start_sites": 20, "add": 8, "block_m": 12_000.0}


@pytest.fixture(scope="module", autouse=True)
def few_trees():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay_module, "TREES", 5)
        yield


@pytest.fixture(scope="module")
def data():
    return world(sites=110, species=3)


@pytest.fixture(scope="module")
def played(data):
    return make_replay(data, ReplayOptions(**SMALL), seed=1)


def test_the_same_seed_plays_the_same(data, played):
    again = make_replay(data, ReplayOptions(**SMALL), seed=1)
    pd.testing.assert_frame_equal(again.draws, played.draws)
    pd.testing.assert_frame_equal(again.errors, played.errors)


def test_it_tells_every_method_with_its_promise(played):
    methods = {"random", "farthest", "space", "gain", "space, blind", "gain, blind"}
    assert set(played.summary.index) == methods
    assert (played.draws["promised"] > 0).all()
    assert played.errors.mean(axis=1).to_numpy() == pytest.approx(played.draws["mse"].to_numpy())
    assert "20 surveyed sites got 8 more" in played.verdict
    by_draw = played.draws.pivot(index="draw", columns="method", values="promised")
    assert (by_draw["gain"] > by_draw[[f"random {i}" for i in range(3)]].mean(axis=1)).all()


@pytest.mark.parametrize("start", ["towns", "centre", "spread"])
def test_sites_are_hidden_by_squares_and_no_other_part_is_touched(data, start):
    ground = ground_of(data)
    stage = _Stage.of(ground, ReplayOptions(**SMALL, start=start), (), None, 0)
    assert set(stage.pool) == set(data.split.train)
    random = np.random.default_rng(0)
    held, allowed = stage._hidden(random)
    assert set(held) | set(allowed) == set(stage.pool) and not set(held) & set(allowed)
    square = np.floor(pd.DataFrame(ground.position(held), held) / 12_000).apply(tuple, axis=1)
    other = np.floor(pd.DataFrame(ground.position(allowed), allowed) / 12_000).apply(tuple, axis=1)
    assert not set(square) & set(other)
    begun = stage._start(start, allowed, random)
    assert len(set(begun)) == 20 and set(begun) <= set(allowed)
    spread = np.ptp(ground.position(begun), axis=0).prod() ** 0.5
    if start == "centre":
        assert spread < 0.9 * np.ptp(ground.position(allowed), axis=0).prod() ** 0.5


def test_the_validation_part_can_be_scored_and_species_named(data):
    asked = ReplayOptions(draws=2, start_sites=20, add=8, part="validation")
    played = make_replay(data, asked, species=["Species 1"])
    assert played.about["scored"] == len(data.split.validation)
    assert list(played.errors.columns) == ["Species 1"]
    assert "find" in played.summary.index
    chosen = played.summary["found"]
    assert chosen["find"] == chosen.max()


def test_the_summary_is_that_of_pairs_by_hand():
    rows = []
    mse = {"random 0": (2.0, 4.0), "random 1": (4.0, 4.0), "farthest": (3.0, 3.0), "gain": (1, 2.5)}
    for draw in (0, 1):
        for method, values in mse.items():
            rows.append(
                {
                    "draw": draw,
                    "method": method,
                    "mse": values[draw],
                    "promised": 1.0 + draw,
                    "fallen": 5 - values[draw],
                    "found": 0,
                }
            )
    draws = pd.DataFrame(rows)
    summary, promises = summarised(draws, pd.DataFrame({"a": draws["mse"], "b": draws["mse"] * 2}))
    row = summary.loc["gain"]
    differences = np.array([1 - 3.0, 2.5 - 4.0])
    low, high = stats.t.interval(0.95, 1, differences.mean(), stats.sem(differences))
    assert row["minus_random"] == pytest.approx(-1.75)
    assert (row["minus_random_low"], row["minus_random_high"]) == pytest.approx((low, high))
    assert row["minus_farthest"] == pytest.approx(-1.25)
    assert row["draws_better"] == 1
    assert row["percent"] == pytest.approx(100 * (np.sqrt(1 / 3 * 2.5 / 4) - 1))
    assert promises["kept"] == pytest.approx((4 / 1 + 2.5 / 2) / 2)
    assert summary.index[0] == "gain"


def test_it_is_written_and_its_promises_read(played, tmp_path):
    folder = write_replay(played, tmp_path / "replay")
    assert read_promises(folder)["kept"] == pytest.approx(played.promises["kept"], abs=1e-5)
    assert len(pd.read_csv(folder / "replay.csv")) == 6
    assert (folder / "replay.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"start_sites": 90}, "needs more than the 73 sites"),
        ({"block_m": 1e6}, "too few to score or to choose from"),
    ],
)
def test_too_few_sites_are_one_sentence(data, asked, message):
    line = data.sites.assign(northing=data.sites["easting"])  # in two squares of 1000 km
    data = replace(data, sites=line)
    with pytest.raises(DataError, match=message):
        make_replay(data, ReplayOptions(**SMALL | asked))
