"""What every kind of predictor promises, and what others may ask of it."""

import json
import re
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import EntryPoint
from pathlib import Path

import pandas as pd
import pytest

from butterfly_sdm.config import load_config
from butterfly_sdm.core import registry
from butterfly_sdm.data.predictor import (
    UNKNOWN_CRS,
    FitContext,
    Members,
    Predictor,
    Sees,
    check_seen,
    seen_by_all,
)
from butterfly_sdm.errors import ArtefactError, ModelError
from butterfly_sdm.predictors import PREDICTORS, load_predictor, make_predictor
from tests.models.conftest import BANDS, make_dataset
from tests.season.worlds import with_dates

COVARIATES = ("warmth", "rain", "same")
PLACE = "EPSG:27700"
TILE = {"bands": BANDS, "resolution_m": 10.0, "needs_tile": True}
NETWORK = {"embedding": 8, "head_width": 8, "window_px": 32, "margin_px": 0}
# the section ``model`` of a config, and what the predictor then sees
CASES = {
    "mean_rate": ({}, Sees()),
    "regional_rate": ({}, Sees(position_crs=PLACE)),
    "nearest_sites": ({}, Sees(position_crs=PLACE)),
    "linear": ({"options": {"position": False}}, Sees(covariates=COVARIATES)),
    "trees": (
        {"options": {"trees": 5, "bands": True}},
        Sees(window_px=64, covariates=COVARIATES, position_crs=PLACE, **TILE),
    ),
    "boosting": (
        {"options": {"rounds": 2, "covariates": False, "bands": True, "position": False}},
        Sees(window_px=64, **TILE),
    ),
    "maxent": ({}, Sees(covariates=COVARIATES, position_crs=PLACE)),
    "random_features": ({"options": {"filters": 4}}, Sees(window_px=64, **TILE)),
    "probe": ({"options": {"components": 2}}, Sees()),
    "gaussian_process": (
        {"options": {"steps": 2}},
        Sees(covariates=COVARIATES[:2], position_crs=PLACE),  # one that never varies is not seen
    ),
    "perceptron": (
        {"options": {"epochs": 1, "networks": 2, "width": 8}},
        Sees(covariates=COVARIATES[:2], position_crs=PLACE),
    ),
    "stacking": (
        {
            "options": {
                "members": "nearest_sites,random_features",
                "weights": "1,1",
                "random_features.filters": 4,
            }
        },
        Sees(window_px=64, position_crs=PLACE, **TILE),
    ),
    "seasonal": (
        {"options": {"predictor": "nearest_sites", "folds": 0}},
        Sees(position_crs=PLACE),
    ),
    "occupancy": ({}, Sees(covariates=COVARIATES)),
    "network": (
        NETWORK | {"covariates": True},
        Sees(BANDS, 32, 0, 10.0, COVARIATES),
    ),
    "ensemble": (
        NETWORK | {"kind": "network", "members": 2, "image": False, "position": True},
        Sees(position_crs=PLACE),
    ),
}


@pytest.fixture(scope="module")
def world():
    return with_dates(make_dataset(30))


@pytest.fixture(scope="module")
def fit(world, tmp_path_factory):
    """Return a function: kind -> that predictor, fitted once."""
    folder = tmp_path_factory.mktemp("embeddings")
    return cache(partial(_fit, world=world, folder=folder))


@pytest.fixture
def fitted(kind, fit):
    return fit(kind)


def _fit(kind, world, folder):
    model = {"kind": kind} | CASES[kind][0]
    if kind == "probe":
        table = world.covariates.drop(columns="same").fillna(0.0)
        table.to_csv(folder / "embeddings.csv")
        model["options"] = model["options"] | {"embeddings": str(folder / "embeddings.csv")}
    fit = {"epochs": 1, "batch_size": 10, "accelerator": "cpu", "regulariser": {"bottom": 4}}
    train = load_config({"train": {"model": model, "fit": fit}}).train
    predictor = make_predictor(train.model, train.fit, seed=0)
    assert predictor.sees == Sees(needs_tile=CASES[kind][1].needs_tile)
    context = FitContext(validation=world.split.validation)
    return predictor.fit(world, world.split.train, context=context)


def test_the_predictor_of_the_documentation_is_trained_by_its_name(tmp_path, monkeypatch):
    page = Path(__file__).parents[2].joinpath("docs", "extending.md").read_text(encoding="utf-8")
    code = next(c for c in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "Sees" in c)
    tmp_path.joinpath("my_package.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("constant", "my_package:Constant", PREDICTORS.group)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    config = load_config(
        {"train": {"model": {"kind": "constant", "options": {"probability": 0.3}}}}
    )
    world = make_dataset()
    made = make_predictor(config.train.model, config.train.fit, seed=0)
    made.fit(world, world.split.train).save(tmp_path / "run")
    again = load_predictor(tmp_path / "run").predict(world, world.split.validation)
    assert (again == 0.3).all(axis=None) and list(again.columns) == list(world.species)


def test_every_kind_is_tried():
    assert set(CASES) == set(PREDICTORS.built_in)  # whatever other packages offer


@pytest.mark.parametrize("kind", list(CASES))
def test_every_kind_says_what_it_sees_and_is_the_same_after_saving(kind, fitted, world, tmp_path):
    assert isinstance(fitted, Predictor)
    assert fitted.sees == CASES[kind][1]
    fitted.save(tmp_path / "model")
    card = json.loads((tmp_path / "model" / "model.json").read_text())
    assert card["kind"] == kind
    assert Sees.from_dict(card["sees"]) == fitted.sees
    again = load_predictor(tmp_path / "model")
    assert again.sees == fitted.sees
    assert not again.sees.unknown
    pd.testing.assert_frame_equal(
        again.predict(world, world.site_ids), fitted.predict(world, world.site_ids)
    )
    assert isinstance(again, Members) == (kind == "ensemble")


@pytest.mark.parametrize("kind", list(CASES))
def test_another_world_is_refused_by_every_kind_that_would_see_another(kind, fitted, world):
    tiles = world.card.tiles.model_copy(update={"resolution_m": 20.0})
    coarse = replace(world, card=world.card.model_copy(update={"tiles": tiles}))
    abroad = replace(world, card=world.card.model_copy(update={"position_crs": "EPSG:32633"}))
    sees = CASES[kind][1]
    for other, refused, words in (
        (coarse, sees.bands, "trained on pixels of 10 m; these tiles have 20 m"),
        (abroad, sees.position_crs, "knows positions in EPSG:27700; these sites have EPSG:32633"),
    ):
        if refused:
            with pytest.raises(ModelError, match=words):
                fitted.predict(other, world.site_ids)
        else:
            fitted.predict(other, world.site_ids)


def as_0_1_0_kept_it(folder: Path, inputs: dict[str, list[str]]) -> None:
    """Take out of every card of a model what release 0.1.0 did not keep."""
    for path in folder.rglob("model.json"):
        card = json.loads(path.read_text())
        sees = card.pop("sees")
        if card["kind"] == "network":
            card |= {"bands": sees["bands"], "covariates": sees["covariates"]}
            card["resolution_m"] = sees["resolution_m"]
            card["dataset"]["position_crs"] = PLACE
        elif card["kind"] != "ensemble":
            card["inputs"] = inputs.get(card["kind"], sees["covariates"])
        path.write_text(json.dumps(card))


@pytest.mark.parametrize("kind", list(CASES))
def test_models_of_release_0_1_0_are_read_and_say_what_they_do_not_know(
    kind, fitted, world, tmp_path
):
    statistics = [
        f"{band}_{what}"
        for band in (*BANDS, "ndvi")
        for what in ("mean", "sd", "p10", "p50", "p90")
    ]
    place = ["easting_km", "northing_km", "east_plus_north_km", "east_minus_north_km"]
    inputs = {
        "trees": [*COVARIATES, *place, *statistics],
        "boosting": statistics,
        "maxent": [*COVARIATES, *place],
        "random_features": list(BANDS),
    }
    fitted.save(tmp_path / "model")
    as_0_1_0_kept_it(tmp_path / "model", inputs)
    again = load_predictor(tmp_path / "model")
    pd.testing.assert_frame_equal(
        again.predict(world, world.site_ids), fitted.predict(world, world.site_ids)
    )
    if kind in ("network", "ensemble"):
        assert again.sees == fitted.sees
        return
    known = fitted.sees
    assert (again.sees.bands, again.sees.covariates) == (known.bands, known.covariates)
    assert again.sees.position_crs == (known.position_crs and UNKNOWN_CRS)
    assert bool(again.sees.unknown) == bool(known.bands or known.position_crs)


def test_what_several_see_serves_every_one():
    joined = seen_by_all(
        [
            Sees(("red", "nir"), 96, 64, 10.0, ("warmth",)),
            Sees(("nir", "blue"), 128, 32, 10.0, ("rain", "warmth"), PLACE),
            Sees(("red",), 225, 0, 10.0, needs_tile=True),
            Sees(),
        ]
    )
    assert joined == Sees(
        ("red", "nir", "blue"), 225, 0, 10.0, ("warmth", "rain"), PLACE, needs_tile=True
    )
    assert seen_by_all([Sees(BANDS, 96, 64, 10.0), Sees(BANDS, 128, 32, 10.0)]).tile_px == 224
    assert seen_by_all([Sees(position_crs=UNKNOWN_CRS), Sees(position_crs=PLACE)]).unknown
    with pytest.raises(ModelError, match=r"pixels of different sizes \(10.0, 20.0\)"):
        seen_by_all([Sees(BANDS, 96, 0, 10.0), Sees(BANDS, 96, 0, 20.0)])
    with pytest.raises(ModelError, match=r"different CRSs \(EPSG:27700, EPSG:32633\)"):
        seen_by_all([Sees(position_crs=PLACE), Sees(position_crs="EPSG:32633")])


def test_a_crs_is_the_same_however_it_is_written(world):
    written = "OGC:CRS84"
    same = replace(world, card=world.card.model_copy(update={"position_crs": "epsg:27700"}))
    check_seen(Sees(position_crs=PLACE), same, "trees model")
    with pytest.raises(ModelError, match="these sites have OGC:CRS84"):
        other = world.card.model_copy(update={"position_crs": written})
        check_seen(Sees(position_crs=PLACE), replace(world, card=other), "trees")


def test_tiles_that_are_too_small_are_refused(world):
    with pytest.raises(
        ModelError, match="The tiles are 64 px wide; the trees model looks at 96 px"
    ):
        check_seen(Sees(BANDS, 96, 0, 10.0), world, "trees model")


@pytest.mark.parametrize("value", [None, {"bands": 3}, {"window_px": "wide"}])
def test_a_damaged_word_of_what_is_seen_is_refused(value):
    with pytest.raises(ArtefactError, match=r"model\.json: sees"):
        Sees.from_dict(value)
