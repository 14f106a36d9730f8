"""Calibration, intervals and the area of applicability, where the truth is known."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from butterfly_sdm.baselines import make_baseline
from butterfly_sdm.data.division import spatial_folds
from butterfly_sdm.errors import ArtefactError, DataError, MissingFileError
from butterfly_sdm.evaluation.applicability import Applicability
from butterfly_sdm.evaluation.calibration import Recalibration, fit_recalibration, reliability
from butterfly_sdm.evaluation.compare import cross_validate
from butterfly_sdm.evaluation.uncertainty import Conformal, coverage, cross_coverage, fit_conformal
from tests.evaluation.worlds import small_world


@pytest.fixture(scope="module")
def world():
    return small_world(sites=600)


def overconfident(truth: pd.DataFrame) -> pd.DataFrame:
    return truth.apply(lambda column: expit(2 * logit(column.clip(1e-6, 1 - 1e-6)) + 0.3))


def test_the_truth_is_calibrated_and_overconfidence_is_seen(world):
    dataset, truth = world
    good = reliability(dataset, dataset.site_ids, truth)
    bad = reliability(dataset, dataset.site_ids, overconfident(truth))
    assert good.calibration_error < 0.01 < 0.05 < bad.calibration_error
    assert good.brier < bad.brier
    for result in (good, bad):
        assert result.brier == pytest.approx(
            result.reliability - result.resolution + result.uncertainty + result.within_bins
        )
        assert abs(result.within_bins) < 0.01
        assert result.curve["predicted"].is_monotonic_increasing
        assert result.curve["visits"].sum() == dataset.visits.sum() * len(dataset.species)


def test_the_brier_score_is_the_mean_over_single_visits(world):
    dataset, truth = world
    k, n, p = dataset.detections.to_numpy(), dataset.visits.to_numpy(), truth.to_numpy()
    squares = [
        np.r_[np.full(k[i, j], (1 - p[i, j]) ** 2), np.full(n[i] - k[i, j], p[i, j] ** 2)]
        for i in range(len(n))
        for j in range(k.shape[1])
    ]
    assert reliability(dataset, dataset.site_ids, truth).brier == pytest.approx(
        np.concatenate(squares).mean()
    )


def test_one_prediction_for_all_is_one_bin(world):
    dataset, truth = world
    flat = truth * 0 + 0.25
    result = reliability(dataset, dataset.site_ids, flat)
    assert len(result.curve) == 1 and result.resolution == pytest.approx(0)


@pytest.mark.parametrize("method", ["beta", "isotonic"])
def test_recalibration_lowers_the_calibration_error_on_sites_it_has_not_seen(
    world, method, tmp_path
):
    dataset, truth = world
    known, unseen = dataset.site_ids[:400], dataset.site_ids[400:]
    wrong = overconfident(truth)
    recalibration = fit_recalibration(dataset, wrong.loc[list(known)], method=method)
    before = reliability(dataset, unseen, wrong).calibration_error
    after = reliability(dataset, unseen, recalibration.apply(wrong)).calibration_error
    assert after < 0.4 * before
    recalibration.to_json(tmp_path / "recalibration.json")
    again = Recalibration.from_json(tmp_path / "recalibration.json")
    pd.testing.assert_frame_equal(again.apply(wrong), recalibration.apply(wrong))


def test_recalibration_keeps_the_order_of_predictions_and_the_range(world):
    dataset, truth = world
    corrected = fit_recalibration(dataset, overconfident(truth)).apply(truth)
    for species in dataset.species:
        order = np.argsort(truth[species].to_numpy())
        assert (np.diff(corrected[species].to_numpy()[order]) >= 0).all()
    assert corrected.min().min() >= 0 and corrected.max().max() <= 1


def test_a_species_with_few_detections_is_left_nearly_as_it_is(world):
    dataset, truth = world
    few = list(dataset.site_ids[:5])
    corrected = fit_recalibration(dataset, truth.loc[few], prior_visits=10_000).apply(truth)
    assert (corrected - truth).abs().max().max() < 0.1


def test_wrong_use_of_recalibration_is_refused(world, tmp_path):
    dataset, truth = world
    with pytest.raises(DataError, match="'beta' or 'isotonic'"):
        fit_recalibration(dataset, truth, method="platt")
    recalibration = fit_recalibration(dataset, truth)
    with pytest.raises(DataError, match="no recalibration of 'Other'"):
        recalibration.apply(truth.rename(columns={"Species 0": "Other"}))
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(ArtefactError, match="not a recalibration"):
        Recalibration.from_json(tmp_path / "bad.json")


def test_conformal_intervals_of_ninety_percent_hold_for_88_to_92():
    held = []
    for seed in range(5):
        dataset, truth = small_world(sites=1500, visits=40, seed=seed)
        random = np.random.default_rng(seed)
        blurred = expit(logit(truth.clip(1e-4, 1 - 1e-4)) + random.normal(0, 0.4, truth.shape))
        known, unseen = list(dataset.site_ids[:700]), list(dataset.site_ids[700:])
        conformal = fit_conformal(dataset, blurred.loc[known])
        held.append(
            coverage(dataset, *conformal.intervals(blurred.loc[unseen], dataset.visits)).loc[
                "all", "coverage"
            ]
        )
    assert 0.88 <= np.mean(held) <= 0.92
    assert all(0.87 <= value <= 0.93 for value in held)


def test_intervals_of_a_fitted_model_hold_across_spatial_folds(world):
    dataset, _ = world
    result = cross_validate(
        lambda: make_baseline("trees", trees=50), dataset, spatial_folds(dataset.sites)
    )
    table, low, high = cross_coverage(dataset, result.predictions, result.fold_of)
    assert 0.87 <= table.loc["all", "coverage"] <= 0.94
    assert (low <= high).all().all() and len(low) == len(dataset.sites)
    assert 0 < table.loc["all", "width"] < 0.6


def test_more_visits_and_lower_levels_make_intervals_narrower(world):
    dataset, truth = world
    conformal = fit_conformal(dataset, truth)
    width = {
        n: (lambda ends: (ends[1] - ends[0]).mean().mean())(conformal.intervals(truth, n))
        for n in (5.0, 50.0)
    }
    assert width[50.0] < width[5.0]
    assert (fit_conformal(dataset, truth, level=0.5).quantile < conformal.quantile).all()


def test_conformal_intervals_come_back_from_their_file(world, tmp_path):
    dataset, truth = world
    conformal = fit_conformal(dataset, truth)
    conformal.to_json(tmp_path / "conformal.json")
    again = Conformal.from_json(tmp_path / "conformal.json")
    pd.testing.assert_frame_equal(
        again.intervals(truth, 20.0)[0], conformal.intervals(truth, 20.0)[0]
    )
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ArtefactError, match="does not hold conformal intervals"):
        Conformal.from_json(tmp_path / "bad.json")


def test_impossible_intervals_are_refused(world):
    dataset, truth = world
    with pytest.raises(DataError, match="must lie between 0 and 1"):
        fit_conformal(dataset, truth, level=1.0)
    with pytest.raises(DataError, match="at least 99 sites"):
        fit_conformal(dataset, truth.iloc[:50], level=0.99)
    conformal = fit_conformal(dataset, truth)
    with pytest.raises(DataError, match="at least one visit"):
        conformal.intervals(truth, 0)
    with pytest.raises(DataError, match="no interval for 'Other'"):
        conformal.intervals(truth.rename(columns={"Species 0": "Other"}), 10)


def test_habitats_absent_from_training_are_flagged_and_the_training_region_is_not():
    random = np.random.default_rng(0)
    training = pd.DataFrame(random.normal(size=(300, 3)), columns=["heath", "wood", "flat"])
    training["flat"] = 1.0
    folds = pd.Series(random.integers(0, 5, 300), index=training.index)
    area = Applicability.fit(training, fold_of=folds)
    same = pd.DataFrame(random.normal(size=(500, 3)), columns=training.columns)
    other = same.assign(heath=same["heath"] + 12)
    assert area.applicable(same).mean() > 0.9
    assert not area.applicable(other).any()
    assert area.dissimilarity(training).max() == pytest.approx(0)
    missing = same.iloc[:1].assign(wood=np.nan)
    assert not area.applicable(missing).iloc[0] and np.isnan(area.dissimilarity(missing).iloc[0])


def test_the_dissimilarity_in_plain_loops():
    random = np.random.default_rng(1)
    training = pd.DataFrame(random.normal(size=(12, 2)) * [1, 50], columns=["a", "b"])
    folds = pd.Series(np.arange(12) % 3)
    weights = pd.Series({"a": 2.0, "b": 1.0})
    area = Applicability.fit(training, fold_of=folds, weights=weights)
    scaled = ((training - training.mean()) / training.std() * weights).to_numpy()
    distance = [[np.linalg.norm(one - two) for two in scaled] for one in scaled]
    mean = np.mean([distance[i][j] for i in range(12) for j in range(i)])
    outside = sorted(
        min(distance[i][j] for j in range(12) if folds[i] != folds[j]) / mean for i in range(12)
    )
    # R: boxplot.stats of twelve values
    hinges = (
        (outside[2] + outside[3]) / 2,
        (outside[8] + outside[9]) / 2,
    )
    limit = hinges[1] + 1.5 * (hinges[1] - hinges[0])
    assert area.threshold == pytest.approx(max(value for value in outside if value <= limit))
    place = pd.DataFrame({"a": [0.3], "b": [70.0]})
    there = ((place - training.mean()) / training.std() * weights).to_numpy()[0]
    assert area.dissimilarity(place).iloc[0] == pytest.approx(
        min(np.linalg.norm(there - one) for one in scaled) / mean
    )


def test_an_input_without_weight_does_not_count(tmp_path):
    random = np.random.default_rng(2)
    training = pd.DataFrame(random.normal(size=(50, 2)), columns=["a", "b"])
    area = Applicability.fit(training, weights=pd.Series({"a": 1.0}))
    assert area.applicable(training.assign(b=1e6)).all()
    area.save(tmp_path / "area.safetensors")
    again = Applicability.load(tmp_path / "area.safetensors")
    assert again.inputs == area.inputs and again.threshold == area.threshold
    np.testing.assert_array_equal(
        again.dissimilarity(training + 1), area.dissimilarity(training + 1)
    )


def test_wrong_use_of_applicability_is_refused(tmp_path):
    table = pd.DataFrame({"a": [1.0, 2.0, 3.0]})
    with pytest.raises(DataError, match="at least 3 training sites"):
        Applicability.fit(table.iloc[:2])
    with pytest.raises(DataError, match="in one fold"):
        Applicability.fit(table, fold_of=pd.Series([0, 0, 0]))
    with pytest.raises(DataError, match="No input varies"):
        Applicability.fit(table * 0)
    with pytest.raises(DataError, match="weights are 0 or more"):
        Applicability.fit(table, weights=pd.Series({"a": -1.0}))
    with pytest.raises(DataError, match="lack the input 'a'"):
        Applicability.fit(table).dissimilarity(table.rename(columns={"a": "b"}))
    with pytest.raises(MissingFileError, match="Fit the area"):
        Applicability.load(tmp_path / "none")
    (tmp_path / "bad").write_bytes(b"bad")
    with pytest.raises(ArtefactError, match="does not hold an area"):
        Applicability.load(tmp_path / "bad")
