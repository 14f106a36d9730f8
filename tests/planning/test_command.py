"""From a finished run of any kind to a file a phone opens, by the command line and in Python."""

import json
import re
from pathlib import Path

import geopandas as gpd
import pytest
from typer.testing import CliRunner

import butterfly_sdm as bs
from butterfly_sdm.cli import app
from butterfly_sdm.errors import ConfigError
from tests.planning.making import all_text, ranked

RASTER = (
    "build.covariates.rasters="
    "[{name: habitat, path: habitats.tif, kind: fractions, side_m: [1000]}]"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Return a folder with a region, its data set and runs of several kinds, without imagery."""
    folder = tmp_path_factory.mktemp("planning")
    region = bs.simulate_region(folder / "region", size_px=1024, n_sites=60, n_species=4)
    quick = [RASTER, "build.scenes=null", "build.split.fractions=[0.8,0.2,0]"]
    quick += ["build.split.distance_m=2000"]
    dataset = bs.build(region.config, folder / "dataset", overrides=quick)
    for kind in ("trees", "gaussian_process", "mean_rate"):
        options = "{trees: 30}" if kind == "trees" else "{}"
        changes = [*quick, f"train.model={{kind: {kind}, options: {options}}}"]
        bs.train(region.config, folder / kind / "run", dataset=dataset, overrides=changes)
    return folder


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())  # however wide the terminal


def told(*arguments: object) -> dict:
    result = CliRunner().invoke(app, ["plan", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("kind", ["trees", "gaussian_process", "mean_rate"])
def test_from_a_run_of_any_kind_to_a_phone(made, kind):
    said = run(made / kind / "run", "--sites", 6, "--visits", 8)
    folder = made / kind / "plan"
    assert "plan.gpx" in said.replace(" ", "") and "Together they promise to" in said, said
    phone = gpd.read_file(folder / "plan.gpx", layer="waypoints")
    assert len(phone) == 6 and phone["desc"].str.contains("8 visits").all()
    card = json.loads((folder / "plan.json").read_text())
    # the habitats of a square are read from the raster; climate came from a table of the sites
    assert card["about"]["covariates"] >= 5
    assert any("temperature_c" in note for note in card["notes"])


def test_a_data_set_alone_gives_a_plan_that_knows_positions(made):
    said = told(made / "dataset", "--sites", 3, "--out", made / "p")
    assert said["sites"].startswith("3, the first E")
    assert json.loads((made / "p" / "plan.json").read_text())["about"]["covariates"] == 0


def test_python_takes_shapes_and_settings(made):
    dataset = bs.Dataset.open(made / "dataset")
    held = dataset.sites.loc[list(dataset.split.validation)]
    places = gpd.GeoDataFrame(geometry=gpd.points_from_xy(held["lon"], held["lat"]), crs=4326)
    plan = bs.plan(made / "trees" / "run", None, made / "py", places=places, sites=4, seed=2)
    assert len(plan.sites) == 4 and plan.about["places"] == len(held)
    again = bs.plan(
        made / "trees" / "run", None, made / "py2", places="validation", sites=4, seed=2
    )
    assert list(again.sites.index) == list(plan.sites.index)
    assert (made / "py" / "plan.csv").read_text() == (made / "py2" / "plan.csv").read_text()
    with pytest.raises(ConfigError, match=r"plan\.site is an unknown key; did you mean 'sites'"):
        bs.plan(made / "trees" / "run", site=4)


def test_the_policy_of_the_config_is_kept(made):
    dataset = bs.Dataset.open(made / "dataset")
    secret = dataset.species[1]
    policy = f"map.coarsen_m={{{secret}: 2000}}"
    run(made / "trees" / "run", "--out", made / "kept", "--sites", 5, "--set", policy)
    assert secret not in all_text(made / "kept")
    found = dataset.sites[dataset.detections[secret] > 0]
    taken = {
        (x // 2000, y // 2000) for x, y in zip(found["easting"], found["northing"], strict=True)
    }
    plan = ranked(made / "kept")
    assert not taken & {
        (x // 2000, y // 2000) for x, y in zip(plan["easting"], plan["northing"], strict=True)
    }
    said = run(made / "trees" / "run", "--species", secret, "--set", policy, code=2)
    assert "a plan names no protected species" in said


def test_grid_references_are_candidates(made, tmp_path):
    (tmp_path / "squares.csv").write_text("grid_reference\nST7771\nST7872\nST7973\nST8074\n")
    squares = tmp_path / "squares.csv"
    asked = ("--candidates", squares, "--sites", 2, "--out", tmp_path / "plan")
    said = told(made / "dataset", *asked)
    assert said["sites"].startswith("2, the first ST")


def test_a_replay_is_made_and_quoted(made):
    said = run(
        made / "trees" / "run",
        "--replay",
        "--set",
        "plan.replay.draws=2",
        "--set",
        "plan.replay.start_sites=14",
        "--set",
        "plan.replay.add=5",
        "--set",
        "plan.replay.block_m=1500",
    )
    assert "gain, blind" in said and "per promised fall" in said
    replay = made / "trees" / "replay"
    assert (replay / "replay.csv").is_file()
    told = bs.plan(made / "trees" / "run", None, made / "quoted", held=replay, sites=2)
    assert "a replay of these data" in told.words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--replay", "--sites", "3"), "leave out --sites"),
        (("--candidates", "gone.gpkg"), "There is no file of candidates"),
        (("--species", "Vanessa atlanta"), "Did you mean|no species"),
        (("--set", "plan.aim=find"), "aim find needs species"),
        (("--set", "plan.cost=hours"), "name candidates"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(made, tmp_path, arguments, message):
    said = run(made / "trees" / "run", "--out", tmp_path / "plan", *arguments, code=2)
    assert re.search(message, said)
    assert not (tmp_path / "plan").exists() and not (tmp_path / "plan.partial").exists()
