"""Cross-validation, the paired block bootstrap and the ladder."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from butterfly_sdm.baselines import make_baseline
from butterfly_sdm.data.dataset import TileCard
from butterfly_sdm.data.division import spatial_folds
from butterfly_sdm.data.splits import Split
from butterfly_sdm.errors import ConfigError, DataError
from butterfly_sdm.evaluation import compare, cross_validate, run_ladder, score_predictions
from butterfly_sdm.evaluation.bootstrap import block_means, grid_blocks, mean_interval
from butterfly_sdm.evaluation.compare import score_interval
from butterfly_sdm.evaluation.ladder import ladder_factories, markdown_table
from butterfly_sdm.evaluation.options import EvaluateOptions, LadderStep
from tests.evaluation.real_sites import s2bms
from tests.evaluation.worlds import small_world


@pytest.fixture(scope="module")
def world():
    return small_world()[0]


def test_out_of_fold_predictions_are_those_of_models_fitted_without_the_fold(world):
    folds = spatial_folds(world.sites, n_folds=3)
    result = cross_validate(lambda: make_baseline("nearest_sites"), world, folds)
    assert list(result.predictions.index) == list(world.site_ids)
    for number, fold in enumerate(folds):
        expected = (
            make_baseline("nearest_sites").fit(world, fold.train).predict(world, fold.validation)
        )
        pd.testing.assert_frame_equal(result.predictions.loc[expected.index], expected)
        assert (result.fold_of[list(fold.validation)] == number).all()
    assert result.scores["mse"] == pytest.approx(
        ((result.predictions - world.rates) ** 2).to_numpy().mean()
    )
    assert len(result.scores.per_block) == 3


def test_a_site_held_out_twice_is_refused(world):
    fold = Split(world.site_ids[5:], world.site_ids[:5])
    with pytest.raises(DataError, match="held out in two folds"):
        cross_validate(lambda: make_baseline("mean_rate"), world, [fold, fold])
    with pytest.raises(DataError, match="no fold"):
        cross_validate(lambda: make_baseline("mean_rate"), world, [])


def test_out_of_fold_predictions_can_be_kept(world, tmp_path):
    result = cross_validate(
        lambda: make_baseline("mean_rate"), world, spatial_folds(world.sites, n_folds=3)
    )
    result.to_parquet(tmp_path / "oof.parquet")
    table = pd.read_parquet(tmp_path / "oof.parquet")
    assert list(table["fold"]) == list(result.fold_of)
    np.testing.assert_allclose(table.drop(columns="fold"), result.predictions)


def test_bootstrap_replicates_are_weighted_means_of_blocks():
    values, blocks = np.array([1.0, 2.0, 6.0]), np.array(["a", "a", "b"])
    mean, replicates, count = block_means(values, blocks, repeats=500)
    assert mean == 3 and count == 2
    # Two draws of two blocks: a and a 1.5, a and b 3, b and b 6.
    assert set(np.round(replicates, 6)) == {1.5, 3.0, 6.0}
    assert np.mean(replicates == 3.0) == pytest.approx(0.5, abs=0.08)


def test_an_interval_needs_two_blocks():
    with pytest.raises(DataError, match="needs at least 2"):
        mean_interval(np.ones(4), np.zeros(4))
    with pytest.raises(DataError, match="do not belong together"):
        block_means(np.ones(4), np.zeros(3))


def test_grid_blocks_are_squares():
    sites = pd.DataFrame({"easting": [0.0, 19_999, 20_000, -1], "northing": [0.0, 0, 0, 0]})
    assert list(grid_blocks(sites)) == ["0_0", "0_0", "1_0", "-1_0"]


def test_the_better_of_two_models_is_told_with_certainty_and_equal_ones_are_not(world):
    _, truth = small_world()
    random = np.random.default_rng(0)
    worse = (truth + random.normal(0, 0.15, truth.shape)).clip(0, 1)
    result = compare(world, world.site_ids, truth, worse, names=("truth", "noise"), repeats=500)
    assert result.difference.high < 0 and result.first_wins == len(world.species)
    assert result.verdict.startswith("truth is better than noise")
    assert result.difference.estimate == pytest.approx(
        score_predictions(world, world.site_ids, truth)["mse"]
        - score_predictions(world, world.site_ids, worse)["mse"]
    )
    other = compare(world, world.site_ids, worse, truth, names=("noise", "truth"), repeats=500)
    assert other.difference.low == pytest.approx(-result.difference.high, rel=0.1)
    assert other.verdict.startswith("truth is better than noise")
    twin = (truth + random.normal(0, 0.15, truth.shape)).clip(0, 1)
    even = compare(world, world.site_ids, worse, twin, repeats=500)
    assert (
        even.difference.low <= 0 <= even.difference.high and "cannot be told apart" in even.verdict
    )


def test_unknown_scores_are_refused(world):
    _, truth = small_world()
    with pytest.raises(DataError, match="no score 'auc' per site"):
        score_interval(world, world.site_ids, truth, score="auc")


@pytest.mark.slow
def test_the_interval_of_the_difference_of_equal_models_covers_zero_as_often_as_it_says():
    # 2,000 repetitions pin the coverage down to a standard error of 0.5 %.
    covered = 0
    for repetition in range(2000):
        random = np.random.default_rng(repetition)
        blocks = np.repeat(np.arange(60), 4)
        shared = random.normal(size=(60, 2))[blocks]  # neighbours err together
        difference = np.square(shared + random.normal(size=(240, 2))) @ [1.0, -1.0]
        found = mean_interval(difference, blocks, repeats=1000, seed=repetition)
        covered += found.low <= 0 <= found.high
    assert 0.93 <= covered / 2000 <= 0.97


@pytest.mark.slow
def test_the_comparison_of_equal_models_covers_zero_in_93_to_97_of_100_worlds():
    covered = 0
    for repetition in range(400):
        world, truth = small_world(sites=240, seed=repetition)
        random = np.random.default_rng(repetition)
        one, two = ((truth + random.normal(0, 0.1, truth.shape)).clip(0, 1) for _ in range(2))
        result = compare(
            world,
            world.site_ids,
            one,
            two,
            blocks=world.sites["block"],
            repeats=800,
            seed=repetition,
        )
        covered += result.difference.low <= 0 <= result.difference.high
    assert 0.93 <= covered / 400 <= 0.97


def quick(*steps: LadderStep, **more) -> EvaluateOptions:
    return EvaluateOptions(ladder=steps, folds=0, bootstrap=100, **more)


@pytest.mark.parametrize("where", [pytest.param("processes", marks=pytest.mark.slow), "cluster"])
def test_workers_climb_a_ladder_to_the_same_numbers(world, where):
    steps = ("regional_rate", "nearest_sites", LadderStep(kind="trees", options={"bands": True}))
    options = EvaluateOptions(ladder=steps, folds=3, bootstrap=100)
    here = run_ladder(world, options)
    if where == "processes":
        there = run_ladder(world, options.model_copy(update={"workers": 2}))
    else:
        distributed = pytest.importorskip("distributed")
        with distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
        ) as cluster:
            there = run_ladder(
                world, options.model_copy(update={"dask": cluster.scheduler_address})
            )
    pd.testing.assert_frame_equal(
        here.table.drop(columns="seconds"), there.table.drop(columns="seconds"), check_exact=True
    )
    for name, validation in here.cross_validations.items():
        pd.testing.assert_frame_equal(
            validation.predictions, there.cross_validations[name].predictions, check_exact=True
        )


def test_a_ladder_ranks_its_steps_and_writes_them(world, tmp_path):
    few = LadderStep(kind="trees", name="few trees", options={"trees": 20})
    options = EvaluateOptions(ladder=("nearest_sites", few), folds=3, bootstrap=200)
    ladder = run_ladder(world, options, folder=tmp_path)
    assert ladder.table.index[0] == "few trees" and set(ladder.table.index) == {
        "mean_rate",
        "nearest_sites",
        "few trees",
    }
    row = ladder.table.loc["few trees"]
    assert (
        row["mse_low"] < row["mse"] < row["mse_high"]
        and row["cv_mse_low"] < row["cv_mse"] < row["cv_mse_high"]
    )
    assert row["better_species"] > row["surely_worse_species"]
    assert ladder.table.loc["mean_rate", "cv_skill"] == pytest.approx(0)
    assert "few trees" in ladder.summary() and "cross-validated" in ladder.summary()["few trees"]
    for name in (
        "ladder.csv",
        "ladder.md",
        "ladder.png",
        "ladder_species.csv",
        "predictions_few_trees.parquet",
        "out_of_fold_few_trees.parquet",
    ):
        assert (tmp_path / name).stat().st_size > 100


def test_a_step_the_data_do_not_serve_is_noted_and_left_out(world):
    ladder = run_ladder(world, quick(LadderStep(kind="trees", options={"bands": True})))
    assert (
        "has no tiles" in ladder.table.loc["trees", "note"]
        and "left out" in ladder.summary()["trees"]
    )
    assert "cv_mse" not in ladder.table


def test_if_one_step_needs_tiles_all_are_scored_on_the_sites_that_have_one(world):
    sites = world.sites.copy()
    sites["tile_row"] = np.where(
        np.arange(len(sites)) % 4 == 0, -1, np.cumsum(np.arange(len(sites)) % 4 != 0) - 1
    )
    tiles = (
        np.random.default_rng(0)
        .integers(1, 3000, (sites["tile_row"].max() + 1, 1, 8, 8))
        .astype(np.uint16)
    )
    card = world.card.model_copy(
        update={"tiles": TileCard(bands=("nir",), size_px=8, resolution_m=10)}
    )
    pictured = replace(world, card=card, sites=sites, tiles=tiles)
    step = LadderStep(kind="trees", options={"bands": True, "trees": 5})
    ladder = run_ladder(pictured, quick(step))
    assert not ladder.table["note"].any()
    assert {scores["sites"] for scores in ladder.scores.values()} == {51}  # of 67 validation sites


def test_a_ladder_takes_any_predictor_by_its_factory(world):
    steps = {"near": lambda: make_baseline("nearest_sites", neighbours=5)}
    ladder = run_ladder(world, quick(), steps=steps)
    assert list(ladder.scores) == ["mean_rate", "near"]


def test_wrong_steps_are_refused_before_anything_is_fitted():
    with pytest.raises(ConfigError, match="no predictor 'forest'"):
        ladder_factories([LadderStep(kind="mean_rate"), LadderStep(kind="forest")])
    with pytest.raises(DataError, match="Two steps of the ladder are called 'trees'"):
        ladder_factories([LadderStep(kind="trees"), LadderStep(kind="trees", options={"trees": 5})])


def test_a_markdown_table_keeps_its_columns():
    table = pd.DataFrame({"a": [1.23456789], "b|c": ["x|y"]}, index=pd.Index(["r"], name="n"))
    assert markdown_table(table).splitlines()[2] == r"| r | 1.2346 | x\|y |"


@pytest.mark.shared
@pytest.mark.slow
def test_the_ladder_of_the_real_sites(shared):
    ladder = run_ladder(s2bms(shared), EvaluateOptions(ladder=("nearest_sites", "trees")))
    assert ladder.table.loc["mean_rate", "mse"] == pytest.approx(1.348e-2, abs=5e-6)
    assert ladder.table.loc["nearest_sites", "mse"] <= 1.14e-2
    assert ladder.table.loc["trees", "mse"] <= 1.03e-2
    assert ladder.table.loc["trees", "difference_high"] < 0


def test_a_path_among_the_options_of_a_step_may_name_an_environment_variable(monkeypatch):
    from butterfly_sdm.config import load_config

    monkeypatch.setenv("SOMEWHERE", "/data")
    step = {"kind": "probe", "options": {"embeddings": "${SOMEWHERE}/table.npz", "components": 8}}
    config = load_config({"name": "trial", "evaluate": {"ladder": [step]}})
    assert config.evaluate.ladder[0].options == {"embeddings": "/data/table.npz", "components": 8}
