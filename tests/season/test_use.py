"""``train.season``: auto, on or off, in the YAML; scores and files of a run that uses dates."""

import logging

import pandas as pd
import pytest

import butterfly_sdm as bs
from butterfly_sdm.config import dump_config, load_config
from butterfly_sdm.data.saved_models import load_predictor
from butterfly_sdm.errors import ConfigError, DataError, ModelError
from butterfly_sdm.evaluation.dated import in_week
from butterfly_sdm.map_of_run import MapOfRun
from butterfly_sdm.mapping.options import MapOptions
from butterfly_sdm.models.options import FitOptions, ModelOptions
from butterfly_sdm.predictors import make_predictor
from butterfly_sdm.season.options import SeasonOptions
from butterfly_sdm.season.use import share_of_dates, used_season
from tests.season.worlds import FIRST, season_world

WEEK = ["evaluate.week=22"]
QUICK = {"model": {"kind": "nearest_sites"}}


@pytest.fixture(scope="module")
def uneven():
    return season_world(sites=180).dataset


@pytest.fixture(scope="module")
def even():
    return season_world(sites=180, even=True, visits=40).dataset


def test_the_yaml_takes_a_word_or_settings(tmp_path):
    path = tmp_path / "config.yaml"
    for text, use in (("auto", "auto"), ("on", "on"), ("off", "off"), ("'off'", "off")):
        path.write_text(f"train: {{season: {text}}}\n")
        assert load_config(path).train.season.use == use
    path.write_text("train:\n  season: {use: auto, first_week: 14, last_week: 39}\n")
    assert load_config(path).train.season.first_week == 14
    assert load_config({}).train.season is None
    assert load_config({}, ["train.season=auto"]).train.season.use == "auto"
    path.write_text("train: {season: {first_week: 20}}\n")
    with pytest.raises(ConfigError, match="both first_week and last_week"):
        load_config(path)


def test_a_config_with_a_season_is_written_and_read_again(tmp_path):
    config = load_config({"train": {"season": {"use": "on", "effort": ["duration"]}}})
    assert config.train.season.effort == ("duration",)
    path = tmp_path / "config.yaml"
    for season in ("auto", {"use": "on", "effort": []}):
        written = load_config({"train": {"season": season}})
        path.write_text(dump_config(written))
        assert load_config(path).train.season == written.train.season
    with pytest.raises(ConfigError, match=r"train\.season\.effort"):
        load_config({"train": {"season": {"effort": "duration"}}})


def test_auto_is_on_where_dates_mislead_and_says_so(uneven, even, caplog):
    auto = SeasonOptions(use="auto")
    with caplog.at_level(logging.WARNING):
        assert used_season(auto, uneven, uneven.split.train) is auto
        assert used_season(auto, even, even.split.train) is None
    assert "Season: on." in caplog.text and "Season: off." in caplog.text
    assert share_of_dates(uneven, uneven.split.train) > 0.25
    assert used_season(None, uneven, uneven.split.train) is None
    assert used_season(SeasonOptions(use="off"), uneven, uneven.split.train) is None


def test_a_run_says_whether_it_used_dates_and_scores_what_was_asked(uneven, tmp_path):
    config = {"train": QUICK | {"season": {"use": "auto", "link": "logit", "shift_by": None}}}
    run = bs.train(config, tmp_path / "run", dataset=uneven)
    assert run.card["season"] == "on" and run.predictor.kind == "seasonal"
    plain = bs.train({"train": QUICK}, tmp_path / "plain", dataset=uneven)
    assert "season" not in plain.card and plain.predictor.kind == "nearest_sites"
    assert plain.card["key"] != run.card["key"]
    scores = bs.evaluate(run, dataset=uneven)
    assert scores["mse"] < bs.evaluate(plain, dataset=uneven)["mse"]  # it knows the dates
    told = pd.read_parquet(run.folder / "standardised.parquet")
    assert (told["lower"] <= told["upper"]).all() and told["species"].nunique() == 4
    assert told["surveyed_mean"].notna().all()
    for more in ({"quantity": "standardised_rate"}, {"quantity": "rate_in_week", "week": 22}):
        overrides = [f"evaluate.{name}={value}" for name, value in more.items()]
        assert bs.evaluate(run, dataset=uneven, overrides=overrides)["mse"] > 0
    with pytest.raises(ModelError, match="does not tell standardised_rate"):
        bs.evaluate(plain, dataset=uneven, overrides=["evaluate.quantity=standardised_rate"])


def test_every_kind_is_made_with_a_season():
    on = SeasonOptions(first_week=14, last_week=39)
    wrapped = make_predictor(ModelOptions(kind="trees", options={"trees": 5}), FitOptions(), 3, on)
    assert wrapped.kind == "seasonal" and wrapped.inner.trees == 5 and wrapped.inner.seed == 3
    assert wrapped.settings_of_season == on
    network = make_predictor(ModelOptions(), FitOptions(), 0, on)
    assert network.fitting.loss == "season" and network.season["first_week"] == 14
    five = make_predictor(ModelOptions(members=2), FitOptions(loss="occupancy"), 0, on)
    assert {member.fitting.loss for member in five.members} == {"occupancy"}
    assert make_predictor(ModelOptions(kind="occupancy"), FitOptions(), 0, on).options == on
    with pytest.raises(ConfigError, match=r"train\.season: a network with train\.fit\.loss mse"):
        make_predictor(ModelOptions(), FitOptions(loss="mse"), 0, on)
    with pytest.raises(ConfigError, match="trees has no option 'leaves'"):
        make_predictor(ModelOptions(kind="trees", options={"leaves": 5}), FitOptions(), 0, on)


def test_a_week_holds_the_visits_of_that_week_only(uneven):
    part = in_week(uneven, FIRST + 3)
    assert 0 < part.visits.sum() < uneven.visits.sum()
    assert (part.detections.to_numpy() <= uneven.detections.to_numpy()).all()
    with pytest.raises(DataError, match="no visit in week 2"):
        in_week(uneven, 2)


def test_a_run_with_a_season_is_loaded_anywhere(uneven, tmp_path):
    config = {"train": {"model": {"kind": "linear"}, "season": "on"}}
    run = bs.train(config, tmp_path / "run", dataset=uneven)
    moved = tmp_path / "moved"
    run.folder.rename(moved)
    again = load_predictor(moved)
    assert again.seasons.calendar.shift_by == "latitude"
    assert again.predict(uneven, uneven.split.test).notna().all().all()


def test_the_folds_of_a_community_use_dates_as_the_run_does(uneven, tmp_path, monkeypatch):
    made = []

    def make(model, fit, seed, season=None):
        made.append(season)
        return make_predictor(model, fit, seed, season)

    monkeypatch.setattr("butterfly_sdm.places.make_predictor", make)
    season = {"use": "auto", "link": "logit", "shift_by": None}
    for use, told in (("auto", True), ("off", False)):
        config = {"train": QUICK | {"season": season | {"use": use}}, "community": {"folds": 2}}
        run = bs.train(config, tmp_path / use, dataset=uneven)
        assert run.community is not None
        assert [one is not None for one in made] == [told, told]
        made.clear()


def test_the_day_of_a_given_visit_counts_in_a_run_with_a_season(uneven, tmp_path):
    season = {"use": "on", "link": "logit", "shift_by": None}
    config = {"train": QUICK | {"season": season}, "community": {"folds": 2}}
    run = bs.train(config, tmp_path / "run", dataset=uneven)
    place, (early, *_, late) = uneven.split.test[0], uneven.species

    def moved(*visits):
        table = pd.DataFrame(visits, columns=["place", "species", "date", "complete"])
        found = bs.predict(run, [place], given=table, dataset=uneven)
        told = found.species.set_index("species")
        return (told["probability"] - told["prediction"]).to_dict(), found.notes

    summer, notes = moved((place, "", "2019-08-20", "yes"))  # nothing seen
    spring, _ = moved((place, "", "2019-05-18", "yes"))
    assert summer[late] < min(-0.01, spring[late]) and spring[early] < min(-0.01, summer[early])
    assert not any("no day" in note for note in notes)
    nowhere, _ = moved((place, "", "2019-01-15", "yes"))  # nobody ever looked then
    assert all(abs(change) < 1e-3 for change in nowhere.values())
    undated, notes = moved((place, "", "one walk", "yes"))
    assert undated[early] < 0 > undated[late]
    assert any("1 visits have no day that can be read" in note for note in notes)
    with pytest.raises(DataError, match=r"shows week 22\. Leave out --given"):
        MapOfRun(run, run.config, MapOptions(quantity="rate_in_week", week=22)).check_records()
    days = {"quantity": "raw_rate", "dates": ("2019-06-01",)}
    with pytest.raises(DataError, match="on the days of some visits"):
        MapOfRun(run, run.config, MapOptions(**days)).check_records()
    with pytest.raises(DataError, match="richness_interval tell the rate"):
        MapOfRun(run, run.config, MapOptions(layers=("richness_interval",), **days)).planned()
    MapOfRun(run, run.config, MapOptions()).check_records()


def test_a_map_is_judged_alike_before_and_after_any_evaluation(uneven, tmp_path):
    season = {"use": "on", "link": "logit", "shift_by": None}
    run = bs.train({"train": QUICK | {"season": season}}, tmp_path / "run", dataset=uneven)

    def skill(**options):
        known = MapOfRun(run, run.config, MapOptions(**options))
        vars(known)["_dataset"] = uneven
        return known.planned()[2]["skill"]

    before = skill()
    scored = bs.evaluate(run, dataset=uneven)
    assert before["mse"] == pytest.approx(scored["mse"], abs=1e-6)
    bs.evaluate(run, dataset=uneven, overrides=["evaluate.quantity=rate_in_week", *WEEK])
    assert skill() == before
    for options in (
        {"quantity": "presence"},
        {"quantity": "rate_in_week", "week": 22},
        {"week": 22},
        {"bound": "upper"},
    ):
        assert skill(layers=("richness",), **options) == before
        for layer in ("lower", "richness_interval"):
            with pytest.raises(DataError, match=f"The layers {layer} tell the rate"):
                skill(layers=(layer, "richness"), **options)
    assert skill(layers=("lower",), quantity="standardised_rate") == before
