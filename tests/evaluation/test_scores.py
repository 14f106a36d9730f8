"""Scores agree with independent implementations and with cases done by hand."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from butterfly_sdm.baselines import make_baseline
from butterfly_sdm.errors import ConfigError, DataError
from butterfly_sdm.evaluation import evaluate_run, score_predictions
from butterfly_sdm.evaluation.ladder import run_ladder
from butterfly_sdm.evaluation.options import EvaluateOptions
from butterfly_sdm.evaluation.ranking import (
    auc,
    average_precision,
    boyce_index,
    max_skill_threshold,
    true_skill,
)
from butterfly_sdm.evaluation.scores import cell_scores, noise_floor
from butterfly_sdm.evaluation.topk import adaptive_top_k, top_k_overlap
from tests.evaluation.real_sites import s2bms
from tests.evaluation.worlds import small_world


@pytest.fixture(scope="module")
def world():
    return small_world()[0]


def noisy(truth: pd.DataFrame, seed: int = 1) -> pd.DataFrame:
    return (truth + np.random.default_rng(seed).normal(0, 0.1, truth.shape)).clip(0, 1)


def test_scores_agree_with_scikit_learn(world):
    from sklearn.metrics import (
        average_precision_score,
        mean_absolute_error,
        mean_squared_error,
        roc_auc_score,
    )

    _, truth = small_world()
    predicted = noisy(truth).round(1)  # with ties
    scores = score_predictions(world, world.site_ids, predicted)
    assert scores["mse"] == pytest.approx(mean_squared_error(world.rates, predicted))
    assert scores["mae"] == pytest.approx(mean_absolute_error(world.rates, predicted))
    detected = world.detections > 0
    for species in world.species:
        if detected[species].all():
            assert np.isnan(scores.per_species.loc[species, "auc"])
            continue
        assert scores.per_species.loc[species, "auc"] == pytest.approx(
            roc_auc_score(detected[species], predicted[species])
        )
        assert scores.per_species.loc[species, "average_precision"] == pytest.approx(
            average_precision_score(detected[species], predicted[species])
        )


def test_cross_entropy_agrees_with_torch(world):
    import torch

    _, truth = small_world()
    predicted = noisy(truth).clip(0.01, 0.99)
    expected = torch.nn.functional.binary_cross_entropy(
        torch.tensor(predicted.to_numpy()), torch.tensor(world.rates.to_numpy())
    ).item()
    assert score_predictions(world, world.site_ids, predicted)["bce"] == pytest.approx(expected)


def test_the_deviance_is_that_of_the_binomial_likelihood():
    from scipy.stats import binom

    random = np.random.default_rng(0)
    n = random.integers(1, 40, 30)
    p = random.uniform(0.02, 0.98, (30, 4))
    k = random.binomial(n[:, None], p)
    saturated = binom.logpmf(k, n[:, None], k / n[:, None])
    expected = 2 * (saturated - binom.logpmf(k, n[:, None], p))
    np.testing.assert_allclose(
        cell_scores(k.astype(float), n.astype(float), p)["deviance"], expected, atol=1e-9
    )


def test_the_noise_floor_is_the_error_of_the_truth_itself():
    dataset, truth = small_world(sites=4000, visits=10)
    floor = np.nanmean(noise_floor(dataset.rates.to_numpy(), dataset.visits.to_numpy(float)))
    assert floor == pytest.approx(((truth - dataset.rates) ** 2).to_numpy().mean(), rel=0.02)
    reference = (
        make_baseline("mean_rate").fit(dataset, dataset.site_ids).predict(dataset, dataset.site_ids)
    )
    assert score_predictions(dataset, dataset.site_ids, truth, reference=reference)[
        "skill"
    ] == pytest.approx(1, abs=0.01)
    assert score_predictions(dataset, dataset.site_ids, reference, reference=reference)[
        "skill"
    ] == pytest.approx(0)


def test_scores_do_not_depend_on_the_order_of_sites_or_species(world):
    _, truth = small_world()
    predicted = noisy(truth)
    forwards = score_predictions(world, world.site_ids, predicted)
    backwards = score_predictions(world, world.site_ids[::-1], predicted.iloc[::-1, ::-1])
    pd.testing.assert_series_equal(forwards.overall, backwards.overall)
    pd.testing.assert_frame_equal(forwards.per_species, backwards.per_species)
    pd.testing.assert_frame_equal(
        forwards.per_site, backwards.per_site.loc[forwards.per_site.index]
    )


def test_whole_set_means_are_means_of_the_tables(world):
    _, truth = small_world()
    scores = score_predictions(world, world.site_ids, noisy(truth), reference=truth)
    assert (
        scores["mse"]
        == pytest.approx(scores.per_species["mse"].mean())
        == pytest.approx(scores.per_site["mse"].mean())
    )
    assert scores.per_block is not None
    weighted = (scores.per_block["mse"] * scores.per_block["sites"]).sum() / scores.per_block[
        "sites"
    ].sum()
    assert weighted == pytest.approx(scores["mse"])
    truth_error = ((truth - world.rates) ** 2).mean()
    np.testing.assert_allclose(
        scores.per_species["factor"], truth_error / scores.per_species["mse"]
    )


def test_ties_in_top_k_count_with_their_expected_value():
    random = np.random.default_rng(0)
    observed = random.integers(0, 3, (6, 7)).astype(float)  # many ties
    predicted = random.integers(0, 4, (6, 7)).astype(float)
    expected = top_k_overlap(observed, predicted, 3)
    simulated = np.zeros(6)
    for _ in range(4000):
        first = [
            np.argsort(-(table + random.uniform(0, 0.5, table.shape)), axis=1)[:, :3]
            for table in (observed, predicted)
        ]
        simulated += [len(set(a) & set(b)) / 3 for a, b in zip(*first, strict=True)]
    np.testing.assert_allclose(expected, simulated / 4000, atol=0.02)
    np.testing.assert_allclose(top_k_overlap(observed, predicted, 7), 1)


def test_without_ties_top_k_is_the_plain_overlap():
    random = np.random.default_rng(1)
    observed, predicted = random.uniform(size=(2, 20, 12))
    plain = [
        len({*np.argsort(a)[-5:]} & {*np.argsort(b)[-5:]}) / 5
        for a, b in zip(observed, predicted, strict=True)
    ]
    np.testing.assert_allclose(top_k_overlap(observed, predicted, 5), plain)


def test_adaptive_top_k_asks_for_as_many_species_as_were_recorded():
    observed = np.array([[0.5, 0.2, 0, 0], [0, 0, 0, 0.1], [0, 0, 0, 0]])
    predicted = np.array([[0.9, 0.1, 0.5, 0.4], [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]])
    np.testing.assert_array_equal(adaptive_top_k(observed, predicted), [0.5, 1.0, np.nan])


def test_top_k_refuses_impossible_k():
    with pytest.raises(DataError, match="between 1 and the number of species, 3"):
        top_k_overlap(np.ones((2, 3)), np.ones((2, 3)), 4)
    with pytest.raises(DataError, match="one shape"):
        top_k_overlap(np.ones((2, 3)), np.ones((3, 3)), 1)


def test_true_skill_by_hand_and_its_best_threshold():
    detected = np.array([True, True, True, False, False, False, False, False])
    predicted = np.array([0.9, 0.8, 0.3, 0.7, 0.2, 0.2, 0.1, 0.0])
    assert true_skill(detected, predicted, 0.5) == pytest.approx(2 / 3 + 4 / 5 - 1)
    best = max_skill_threshold(detected, predicted)
    assert best == 0.3 and true_skill(detected, predicted, best) == pytest.approx(1 + 4 / 5 - 1)
    trials = [true_skill(detected, predicted, limit) for limit in np.linspace(0, 1, 101)]
    assert max(trials) == pytest.approx(true_skill(detected, predicted, best))


def test_scores_of_presence_are_undefined_where_all_or_none_are_detected():
    predicted = np.array([0.1, 0.2, 0.3])
    for detected in (np.zeros(3, bool), np.ones(3, bool)):
        assert np.isnan(auc(detected, predicted)) and np.isnan(true_skill(detected, predicted, 0.5))
        assert np.isnan(max_skill_threshold(detected, predicted))
    assert np.isnan(average_precision(np.zeros(3, bool), predicted))


def test_the_boyce_index_is_one_for_a_good_model_and_minus_one_for_its_opposite():
    random = np.random.default_rng(0)
    background = random.uniform(0, 1, 20_000)
    presence = background[random.uniform(size=20_000) < background]
    assert boyce_index(presence, background) > 0.97
    assert boyce_index(1 - presence, 1 - background) < -0.97


def test_the_boyce_index_in_plain_loops():
    random = np.random.default_rng(4)
    background, presence = random.beta(1, 3, 300), random.beta(2, 2, 60)
    low, high = background.min(), background.max()
    width = (high - low) / 10
    ratios, middles = [], []
    for start in np.linspace(low, high - width, 101):
        expected = np.mean([start <= value <= start + width for value in background])
        if expected > 0:
            ratios.append(
                np.mean([start <= value <= start + width for value in presence]) / expected
            )
            middles.append(start + width / 2)
    kept = [0, *(i for i in range(1, len(ratios)) if ratios[i] != ratios[i - 1])]
    expected = pd.Series(np.array(ratios)[kept]).corr(
        pd.Series(np.array(middles)[kept]), method="spearman"
    )
    assert boyce_index(presence, background) == pytest.approx(expected, abs=1e-3)


def test_the_boyce_index_is_undefined_without_presences_or_with_one_value():
    assert np.isnan(boyce_index(np.array([]), np.arange(3.0)))
    assert np.isnan(boyce_index(np.ones(2), np.ones(5)))
    with pytest.raises(DataError, match="at least 2 steps"):
        boyce_index(np.ones(2), np.arange(5.0), steps=1)


def test_wrong_predictions_are_refused_in_words(world):
    _, truth = small_world()
    sites = world.site_ids
    with pytest.raises(DataError, match="no prediction for site s0000"):
        score_predictions(world, sites, truth.iloc[1:])
    with pytest.raises(DataError, match="lack 1 of the 8 species"):
        score_predictions(world, sites, truth.iloc[:, 1:])
    wrong = truth.copy()
    wrong.iloc[3, 2] = 1.5
    with pytest.raises(DataError, match=r"Species 2 at site s0003 is 1\.5"):
        score_predictions(world, sites, wrong)
    wrong.iloc[3, 2] = np.nan
    with pytest.raises(DataError, match="is nan"):
        score_predictions(world, sites, wrong)


def test_sites_without_visits_are_not_scored(world):
    _, truth = small_world()
    sites, detections = world.sites.copy(), world.detections.copy()
    sites.iloc[:10, sites.columns.get_loc("visits")] = 0
    detections.iloc[:10] = 0
    changed = replace(world, sites=sites, detections=detections)
    assert score_predictions(changed, changed.site_ids, truth)["sites"] == 190
    with pytest.raises(DataError, match="None of the sites to score has a visit"):
        score_predictions(changed, changed.site_ids[:10], truth)


def test_a_run_is_scored_beside_its_baselines_and_written(world, tmp_path):
    model = make_baseline("trees", trees=20).fit(world, world.split.train)
    steps = []
    scores = evaluate_run(
        model,
        world,
        EvaluateOptions(baselines=("nearest_sites",)),
        folder=tmp_path,
        name="forest",
        progress=lambda *step: steps.append(step),
    )
    assert list(scores.beside.index) == ["forest", "mean_rate", "nearest_sites"]
    assert scores.beside.loc["mean_rate", "skill"] == pytest.approx(0) and scores["skill"] > 0.5
    assert steps[0] == ("evaluate", 0, 3) and steps[-1] == ("evaluate", 3, 3)
    table = pd.read_csv(tmp_path / "scores.csv", index_col="predictor")
    np.testing.assert_allclose(
        table.loc["forest"].to_numpy(float), scores.overall.to_numpy(float), rtol=1e-6
    )
    assert list(pd.read_parquet(tmp_path / "predictions.parquet").index) == list(
        world.split.validation
    )
    for name in (
        "per_species.csv",
        "per_site.csv",
        "per_block.csv",
        "species_rates.png",
        "species_factor.png",
        "site_factor.png",
        "ladder.png",
    ):
        assert (tmp_path / name).stat().st_size > 200


@pytest.mark.parametrize(
    ("ladder", "told"),
    [
        (("tree",), "evaluate.ladder, the step 'tree': There is no predictor 'tree'"),
        (({"kind": "trees", "name": "old", "options": {"tree": 5}},), "step 'old': trees has no"),
        (("probe",), "the step 'probe': probe needs the option 'embeddings'"),
        ((), "evaluate.baselines: There is no predictor 'median'"),
    ],
)
def test_the_setting_that_asks_for_a_wrong_predictor_is_named(world, ladder, told):
    options = EvaluateOptions.model_validate({"ladder": ladder, "baselines": ("median",)})
    with pytest.raises(ConfigError, match=re.escape(told)):
        if ladder:
            run_ladder(world, options)
        else:
            evaluate_run(make_baseline("mean_rate").fit(world, world.split.train), world, options)


def test_evaluating_needs_a_split_and_its_part(world):
    model = make_baseline("mean_rate").fit(world, world.split.train)
    with pytest.raises(DataError, match="has no split"):
        evaluate_run(model, replace(world, split=None))
    with pytest.raises(DataError, match="test part of the split is empty"):
        evaluate_run(model, world, EvaluateOptions(part="test"))


@pytest.mark.shared
def test_baselines_on_the_real_sites_score_what_was_measured(shared):
    dataset = s2bms(shared)
    model = make_baseline("mean_rate").fit(dataset, dataset.split.train)
    scores = evaluate_run(model, dataset, EvaluateOptions(baselines=("nearest_sites",)))
    assert round(scores["mse"] * 100, 3) == 1.348
    assert round(scores["mae"] * 100, 3) == 6.427
    assert round(scores["noise_floor"] * 100, 3) == 0.185
    assert scores.beside.loc["nearest_sites", "mse"] <= 1.14e-2


@pytest.mark.slow
@pytest.mark.shared
def test_trees_on_the_real_sites_score_what_was_measured(shared):
    dataset = s2bms(shared)
    model = make_baseline("mean_rate").fit(dataset, dataset.split.train)
    scores = evaluate_run(model, dataset, EvaluateOptions(baselines=("trees",)))
    assert scores.beside.loc["trees", "mse"] <= 1.03e-2
