"""The runs of plugins are artefacts: sealed, checked, made again, and whole after any damage."""

import logging
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from butterfly_sdm import pipeline
from butterfly_sdm.cli import app
from butterfly_sdm.core.cards import sealed
from butterfly_sdm.core.files import read_json, write_json
from butterfly_sdm.core.settings import load_settings
from butterfly_sdm.errors import ButterflySDMError, RasterError
from butterfly_sdm.mapping.map_file import check_map
from butterfly_sdm.mapping.map_reader import MapReader
from butterfly_sdm.plugins.contract import PluginRun
from butterfly_sdm.plugins.dfcon.method import Dfcon
from butterfly_sdm.plugins.plugin import get_plugin
from butterfly_sdm.plugins.runner import train
from tests.plugins.conftest import settings_of
from tests.trust import faults


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the settings of a plugin with two networks, and its finished run."""
    folder = tmp_path_factory.mktemp("plugin")
    config, _ = load_settings(Dfcon.config, settings_of("dfcon", folder / "data"))
    train(get_plugin("dfcon"), "dfcon", config, folder / "run")
    return config, folder / "run"


def test_check_finds_every_flipped_bit_of_a_plugin_run(trained, tmp_path):
    _, run = trained
    assert pipeline.check(run) == []
    rng = np.random.default_rng(0)
    names = sorted(path.name for path in run.iterdir())
    assert {"model.json", "a.safetensors", "b.safetensors", "history.csv"} <= set(names)
    for name in names:
        copy = tmp_path / "run"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(run, copy)
        place = faults.flip_bit(copy / name, rng)
        assert pipeline.check(copy), f"bit {place} of {name}"
        (copy / name).unlink()
        assert name == "model.json" or pipeline.check(copy)
    said = CliRunner().invoke(app, ["check", str(run)])
    assert said.exit_code == 0
    (copy / "a.safetensors").write_bytes(b"")
    assert CliRunner().invoke(app, ["check", str(copy)]).exit_code != 0


@pytest.mark.parametrize("name", ["a.safetensors", "model.json"])
def test_training_again_makes_a_damaged_plugin_run_whole(trained, tmp_path, name, caplog):
    config, run = trained
    shutil.copytree(run, tmp_path / "run")
    shutil.copyfile(run.with_name(".run.key"), tmp_path / ".run.key")
    before = faults.digest(run)
    faults.flip_bit(tmp_path / "run" / name, np.random.default_rng(1))
    with caplog.at_level(logging.WARNING):
        train(get_plugin("dfcon"), "dfcon", config, tmp_path / "run")
    assert "was damaged since it was made and is made again" in caplog.text
    assert faults.digest(tmp_path / "run") == before and pipeline.check(tmp_path / "run") == []


def test_a_plugin_run_of_an_earlier_release_is_left_alone(trained, tmp_path):
    config, run = trained
    shutil.copytree(run, tmp_path / "run")
    shutil.copyfile(run.with_name(".run.key"), tmp_path / ".run.key")
    card = read_json(run / "model.json")
    write_json(
        tmp_path / "run/model.json", {k: v for k, v in card.items() if k not in ("files", "seal")}
    )
    before = faults.digest(tmp_path / "run")
    train(get_plugin("dfcon"), "dfcon", config, tmp_path / "run")
    assert faults.digest(tmp_path / "run") == before
    assert "lists no files" in pipeline.check(tmp_path / "run")[0]


class _Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("how", "after"),
    [
        ("flip", 6),
        *(
            pytest.param(how, after, marks=pytest.mark.slow)
            for how in ("flip", "halve", "empty")
            for after in (1, 4)
        ),
    ],
)
def test_a_plugin_run_damaged_before_it_goes_on_ends_identically(trained, tmp_path, how, after):
    config, run = trained
    count = 0

    def stop(*_):
        nonlocal count
        count += 1
        if count == after:
            raise _Stop

    with pytest.raises(_Stop):
        train(get_plugin("dfcon"), "dfcon", config, tmp_path / "run", progress=stop)
    rng = np.random.default_rng(after)
    for path in sorted((tmp_path / "run.partial").rglob("*")):
        if path.is_file() and path.name != ".key":
            content = path.read_bytes()
            if how == "flip":
                faults.flip_bit(path, rng)
            else:
                path.write_bytes(content[: len(content) // 2] if how == "halve" else b"")
    train(get_plugin("dfcon"), "dfcon", config, tmp_path / "run")
    assert faults.digest(tmp_path / "run") == faults.digest(run)


@pytest.mark.parametrize("left", ["a.checkpoint.safetensors", ".a.checkpoint.safetensors.previous"])
def test_checkpoints_of_a_finished_network_that_a_kill_left_are_cleared_away(
    trained, tmp_path, left
):
    config, run = trained

    def stop(*_):
        if (tmp_path / "run.partial/a.history.json").is_file():
            raise _Stop

    with pytest.raises(_Stop):
        train(get_plugin("dfcon"), "dfcon", config, tmp_path / "run", progress=stop)
    (tmp_path / "run.partial" / left).write_bytes(b"of the network that is finished")
    train(get_plugin("dfcon"), "dfcon", config, tmp_path / "run")
    assert faults.digest(tmp_path / "run") == faults.digest(run)


@pytest.mark.parametrize(
    "change",
    [
        {"facts": None},
        {"settings": []},
        {"settings": {"projection": 10**8}},
        {"settings": {"backbones": {"b": {"model": "small:4"}}}},
        {"settings": {"wings": 2}},
    ],
)
@pytest.mark.parametrize("reseal", [True, False])
def test_a_card_that_a_stranger_changed_is_one_sentence(trained, tmp_path, change, reseal):
    _, run = trained
    copy = shutil.copytree(run, tmp_path / "run")
    card = read_json(copy / "model.json")
    card |= {
        key: card[key] | value if isinstance(value, dict) else value
        for key, value in change.items()
    }
    write_json(copy / "model.json", sealed(card) if reseal else card)
    with pytest.raises(ButterflySDMError):
        PluginRun.open(get_plugin("dfcon"), "dfcon", copy).model("a")
    assert len(pipeline.check(copy)) == 1


def test_a_block_that_is_broken_is_told_by_every_reader_of_maps(finished, tmp_path):
    path = tmp_path / "map.tif"
    content = bytearray((finished.work / "map.tif").read_bytes())
    content[-len(content) // 3 :] = bytes(len(content) - len(content) * 2 // 3)
    path.write_bytes(content)
    with pytest.raises(RasterError, match=r"map\.tif cannot be read"):
        list(MapReader(path).blocks())
    assert "is damaged" in check_map(path)[0]
