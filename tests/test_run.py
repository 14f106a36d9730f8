"""A finished run evaluates and maps by the settings that are given now, and keeps them."""

from pathlib import Path

import pytest
import rasterio
import yaml
from typer.testing import CliRunner

import butterfly_sdm as bs
from butterfly_sdm.cli import app
from butterfly_sdm.errors import ArtefactError, MissingFileError


@pytest.fixture(scope="module")
def region(tmp_path_factory):
    """Return a config whose model is quickly trained, and its data set."""
    folder = tmp_path_factory.mktemp("region")
    made = bs.simulate_region(folder, size_px=768, n_sites=30, n_species=3, tile_px=128)
    settings = yaml.safe_load(made.config.read_text())
    settings["train"] = {"model": {"kind": "nearest_sites"}}
    settings["map"] = {"stride_px": 64}
    settings["evaluate"] = {"baselines": ["mean_rate"]}
    (folder / "first.yaml").write_text(yaml.safe_dump(settings))
    return settings, bs.build(folder / "first.yaml", folder / "dataset")


def _pixel_m(path: Path) -> float:
    with rasterio.open(path) as map_:
        return map_.transform.a


@pytest.fixture
def edited(region, tmp_path):
    """Return a YAML whose sections evaluate and map were edited when its run was finished."""
    settings, dataset = region
    path = dataset.folder.parent / f"{tmp_path.name}.yaml"
    path.write_text(yaml.safe_dump(settings | {"out": str(tmp_path / "runs")}))
    first = bs.train(path, dataset=dataset)
    changed = {"map": {"stride_px": 32}, "evaluate": {"baselines": ["regional_rate"]}}
    path.write_text(yaml.safe_dump(settings | changed | {"out": str(tmp_path / "runs")}))
    return path, dataset, first


def test_from_python_the_yaml_as_it_is_now_decides(edited):
    path, dataset, first = edited
    again = bs.train(path, dataset=dataset)
    assert again.card["key"] == first.card["key"]  # not trained anew
    assert _pixel_m(bs.predict_map(again).path) == 320
    assert "regional_rate" in bs.evaluate(again).beside.index
    assert bs.check(again.folder) == []
    with pytest.raises(ArtefactError, match=r"a finished map of other settings.*--force"):
        bs.predict_map(first)
    once_more = bs.predict_map(first, overwrite=True)
    assert _pixel_m(once_more.path) == 640  # the settings it was made with


def test_from_the_command_line_the_yaml_as_it_is_now_decides(edited, tmp_path):
    path, dataset, first = edited
    run = str(first.folder)
    for command in (
        ["train", str(path), "--dataset", str(dataset.folder)],
        ["evaluate", run],
        ["map", run, "--out", str(tmp_path / "map.tif")],
        ["check", run],
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    assert _pixel_m(tmp_path / "map.tif") == 320
    assert "regional_rate" in (first.folder / "scores.csv").read_text()


def test_a_change_of_this_call_alone_decides_for_it_alone(edited, tmp_path):
    path, dataset, _ = edited
    run = bs.train(path, dataset=dataset)
    other = bs.train(path, dataset=dataset, overrides=["map.stride_px=128"])
    for given, pixel_m in ((other, 1280), (run, 320)):
        made = bs.predict_map(given, out=tmp_path / "map.tif", overwrite=True)
        assert _pixel_m(made.path) == pixel_m
    once = bs.predict_map(run.folder, out=tmp_path / "once.tif", overrides=["map.stride_px=64"])
    assert _pixel_m(once.path) == 640


def test_a_run_whose_data_set_has_moved_asks_for_it_and_is_mapped_with_it(region, tmp_path):
    settings, dataset = region
    given = settings | {"map": {"stride_px": 64, "layers": ["applicability"], "beside": []}}
    path = dataset.folder.parent / "moved.yaml"
    path.write_text(yaml.safe_dump(given))
    moved = tmp_path / "elsewhere" / "run"
    moved.parent.mkdir()
    bs.train(path, tmp_path / "run", dataset=dataset).folder.rename(moved)
    told = r"The data set of the run .*run does not lie at .* name it: --dataset DIR"
    for verb in (bs.evaluate, bs.predict_map, bs.report, bs.plan, bs.fit_community):
        with pytest.raises(MissingFileError, match=told):
            verb(moved)
    with pytest.raises(MissingFileError, match="There is no data set at"):
        bs.predict_map(moved, dataset=tmp_path / "nothing", overrides=["map.layers=[]"])
    made = bs.predict_map(moved, dataset=dataset.folder)
    with rasterio.open(made.path) as map_:
        assert "dissimilarity of the ground" in map_.descriptions
