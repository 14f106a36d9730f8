"""Verdicts that cannot lie: what is said of a model agrees with its errors."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from butterfly_sdm.baselines import make_baseline
from butterfly_sdm.data.predictor import Sees
from butterfly_sdm.evaluation.compare import compare
from butterfly_sdm.evaluation.drivers import input_groups, used_groups
from butterfly_sdm.evaluation.report.findings import collect_findings
from butterfly_sdm.evaluation.report.odmap import odmap
from butterfly_sdm.evaluation.report.page import to_markdown, write_report
from butterfly_sdm.evaluation.report.summary import headline, sentences
from butterfly_sdm.evaluation.scores import score_predictions
from butterfly_sdm.evaluation.trust import Trust, held_out, judge
from tests.evaluation.worlds import small_world


def of_mean(dataset):
    sites = dataset.site_ids
    return make_baseline("mean_rate").fit(dataset, sites).predict(dataset, sites)


def flat_world(visits, sites=30):
    """Species whose true rate is the same everywhere: all that varies is chance."""
    dataset, _ = small_world(sites=sites, species=3)
    n = np.full(sites, visits)
    k = np.random.default_rng(1).binomial(visits, 0.5, (sites, 3))
    changed = dataset.sites.assign(visits=n)
    detections = pd.DataFrame(k, index=changed.index, columns=list(dataset.species))
    return replace(dataset, sites=changed, detections=detections)


@pytest.mark.parametrize("visits", [1, 2, 8])
def test_a_smaller_error_than_that_of_the_mean_rate_is_never_called_worse(visits):
    dataset = flat_world(visits)
    mean = of_mean(dataset)
    better = 0.5 * mean + 0.5 * dataset.rates
    found = score_predictions(dataset, dataset.site_ids, better, reference=mean)
    scored_mean = score_predictions(dataset, dataset.site_ids, mean, reference=mean)
    assert found["mse"] < scored_mean["mse"]
    assert np.isnan(found["skill"]) and np.isnan(scored_mean["skill"])
    told = replace(found, beside=pd.DataFrame([found.overall, scored_mean.overall])).summary()
    assert told["skill"].startswith("not stated") and "worse" not in told["skill"]


def test_skill_is_stated_where_the_floor_is_clearly_below_as_the_formula_says():
    dataset, truth = small_world(sites=300)
    mean = of_mean(dataset)
    found = score_predictions(dataset, dataset.site_ids, truth, reference=mean)
    rate, n = dataset.rates.to_numpy(), dataset.visits.to_numpy(float)
    floor = (rate * (1 - rate) / (n - 1)[:, None]).mean()
    base = ((mean.to_numpy() - rate) ** 2).mean()
    expected = (base - found["mse"]) / (base - floor)
    assert found["skill"] == pytest.approx(expected) and expected > 0.9


def test_a_species_seen_on_every_visit_is_not_surely_worse():
    dataset, truth = small_world(sites=200, species=3)
    detections = dataset.detections.copy()
    detections["Species 0"] = dataset.visits
    dataset = replace(dataset, detections=detections)
    nearly = truth.assign(**{"Species 0": 0.999})
    found = compare(dataset, dataset.site_ids, nearly, of_mean(dataset))
    assert found.per_species.loc["Species 0", ["low", "high"]].isna().all()
    assert found.second_surely == 0 and found.first_surely == 2
    split = replace(dataset.split, train=dataset.site_ids[:100], validation=dataset.site_ids[100:])
    trust = judge(dataset, split, nearly.loc[list(split.validation)])
    assert trust.species.loc["Species 0", "verdict"] == "unknown"


def test_top_k_of_no_more_than_k_species_is_left_out():
    dataset, truth = small_world(sites=60, species=5)
    found = score_predictions(dataset, dataset.site_ids, truth)
    assert np.isnan(found["top5"]) and np.isnan(found["top10"])
    assert 0 < score_predictions(*wider(sites=60, species=6))["top5"] < 1


def wider(**size):
    dataset, truth = small_world(**size)
    return dataset, dataset.site_ids, truth


@pytest.fixture(scope="module")
def findings():
    dataset, _ = small_world(species=3)
    model = make_baseline("trees", trees=10, position=False).fit(dataset, dataset.split.train)
    config = {"build": {"records": {"scheme": "ukbms"}}}
    return collect_findings(model, dataset, config=config, importance_repeats=1)


def test_drivers_that_the_model_does_not_take_are_said_not_to_be_used(findings, tmp_path):
    assert "position" in findings.not_used
    assert "position" not in findings.importance.index
    page = write_report(findings, tmp_path / "r.html").read_text()
    assert "Not used by this model, though the data set has it: position" in page
    groups = {"position": (), "climate": ("rain", "sun"), "band red": (), "band nir": ()}
    sees = Sees(bands=("nir",), covariates=("sun",))
    assert list(used_groups(groups, sees)) == ["climate", "band nir"]
    assert used_groups(input_groups(findings.dataset), Sees()) == {}


def test_the_protocol_claims_no_true_absences_of_plain_records(findings):
    def absences(records):
        made = replace(findings, config={"build": {"records": records}})
        return odmap(made).set_index("element").loc["Absences", "content"]

    assert absences({"scheme": "ukbms"}).startswith("inferred") and "true" not in absences({})
    assert absences({"scheme": "complete"}).startswith("non-detections on complete checklists")
    assert absences({"visit": "event"}).startswith("non-detections on survey events")


def test_a_report_without_skill_speaks_of_the_errors(findings):
    assert "top5" not in to_markdown([findings])
    scores = findings.scores
    silent = replace(scores, overall=scores.overall.where(scores.overall.index != "skill"))
    told = replace(findings, scores=silent)
    assert not any("of the way" in meaning for _, meaning in headline(told))
    text = " ".join(sentences(told))
    assert "nan" not in text
    assert "smaller than that of the simplest guess" in text or "worse than that" in text


def test_skill_of_a_species_is_judged_beside_its_mean_rate_by_hand():
    dataset, truth = small_world(sites=240, species=4, visits=40)
    predictions = truth.loc[list(dataset.split.validation)].copy()
    predictions["Species 1"] = 1 - predictions["Species 1"]
    trust = judge(dataset, dataset.split, predictions)
    rates = dataset.rates.loc[predictions.index]
    reference = make_baseline("mean_rate").fit(dataset, dataset.split.train)
    mean = reference.predict(dataset, list(predictions.index))
    own = ((predictions - rates) ** 2).mean()
    base = ((mean - rates) ** 2).mean()
    pd.testing.assert_series_equal(
        trust.species["skill"], 1 - own / base, check_names=False, rtol=1e-9
    )
    assert (trust.species["low"] <= trust.species["skill"]).all()
    assert (trust.species["high"] >= trust.species["skill"]).all()
    assert trust.species.loc["Species 1", "verdict"] == "worse"
    assert (trust.species["verdict"] == "better").sum() == 3
    assert trust.not_better("worse") == ("Species 1",)
    assert "3 of 4 species are surely better" in trust.sentence
    told = trust.to_dict()
    assert told["species"]["Species 1"]["verdict"] == "worse" and told["sites"] == 80


def test_predictions_that_were_kept_are_taken_if_they_are_of_the_same_sites():
    dataset, truth = small_world(sites=60, species=3)
    model = make_baseline("mean_rate").fit(dataset, dataset.split.train)
    fresh = held_out(model, dataset, dataset.split)
    assert held_out(model, dataset, dataset.split, known=truth).equals(
        truth.loc[list(dataset.split.validation)]
    )
    pd.testing.assert_frame_equal(
        held_out(model, dataset, dataset.split, known=truth.iloc[:5]), fresh
    )


def test_a_mean_rate_without_error_is_told_in_words():
    """As where the one species that is told was seen on every visit."""
    trust = Trust("test", 9, {"mse": 0.01}, 0.0, pd.DataFrame({"verdict": ["worse"]}), 5)
    assert "(0.0100) is larger than that of the mean rate of each species (0.0000)" in (
        trust.sentence
    )
