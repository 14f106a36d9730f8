"""The command line speaks in one sentence, ends with the right code and shows no traceback."""

import errno
import json
import logging
import re
import shlex
import subprocess
import sys
from importlib.metadata import version

import pytest
import typer
import yaml
from rich.console import Console
from typer.testing import CliRunner

import butterfly_sdm as sdm
from butterfly_sdm import terminal
from butterfly_sdm.cli import _told_at_the_end, app
from butterfly_sdm.config import load_config
from butterfly_sdm.simulate import simulate_region

runner = CliRunner()


def flat(result):
    return " ".join(result.output.split())


COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    result = runner.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"butterfly-sdm {command}" in result.output
    # a line of the source that ends within a sentence would end there on the terminal too
    told = typer.main.get_command(app).commands[command].help
    assert all("\n" not in paragraph for paragraph in told.split("\n\n"))


def test_examples_of_help_can_be_typed():
    group = typer.main.get_command(app)
    examples = re.findall(
        r"butterfly-sdm (.+)",
        "\n".join(command.epilog or "" for command in app.registered_commands),
    )
    assert len(examples) >= len(COMMANDS)
    for example in examples:
        verb, *arguments = shlex.split(example)
        # refuses options and numbers of arguments it does not know
        context = group.commands[verb].make_context(verb, arguments)
        changes = [*(context.params.get("overrides") or ()), *(context.params.get("change") or ())]
        load_config({"build": {"records": {"path": "records.zip"}}}, changes)


def test_help_imports_neither_torch_nor_rasterio():
    code = (
        "import sys; from butterfly_sdm.cli import app\ntry:\n app(['--help'])\nexcept SystemExit: "
        "pass\n"
    )
    code += (
        "print([m for m in ('torch', 'rasterio', 'lightning', 'sklearn', 'pandas') if m in "
        "sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip().endswith("[]")


def test_check_looks_at_all_that_are_named_also_where_one_is_not_there(tmp_path):
    (tmp_path / "scores.csv").touch()
    (tmp_path / "per_species.csv").touch()
    result = runner.invoke(app, ["check", "none", str(tmp_path)])
    told = " ".join(result.output.split())
    assert result.exit_code == 2 and "none does not exist." in told
    assert "butterfly-sdm evaluate writes, but no scores.json that lists it" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "none.yaml"], "There is no config file none.yaml"),
        (["train", "none.yaml"], "There is no config file none.yaml"),
        (["evaluate", "none"], "There is no run none, nor a config"),
        (["map", "none", "scene.tif"], "There is no run none, nor a config"),
    ],
)
def test_a_missing_file_is_one_sentence_and_code_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_key_is_named_with_the_nearest_one(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("train:\n  fit:\n    epoch: 3\n")
    result = runner.invoke(app, ["train", str(path)])
    assert result.exit_code == 2
    assert "did you mean 'epochs'" in result.output


def test_init_writes_a_starter_and_never_replaces_a_file_unasked(tmp_path):
    path = tmp_path / "mine.yaml"
    written = runner.invoke(app, ["init", str(path)])
    assert written.exit_code == 0 and "change the 3 lines marked <--" in flat(written)
    assert "name: mine" in path.read_text()
    path.write_text("precious")
    result = runner.invoke(app, ["init", str(path)])
    assert result.exit_code == 2
    assert path.read_text() == "precious"


def test_doctor_says_what_the_machine_has():
    result = runner.invoke(app, ["doctor", "--json"])
    found = json.loads(result.output.strip().splitlines()[-1])
    assert {"cores", "memory", "gpu"} <= set(found)


def test_a_full_disk_is_one_sentence(monkeypatch, tmp_path):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device", "dataset/tiles.npy")

    monkeypatch.setattr("butterfly_sdm.core.files.write_text", full)
    result = runner.invoke(app, ["init", str(tmp_path / "x.yaml")])
    assert result.exit_code == 2
    assert "No space left on device (dataset/tiles.npy)" in result.output


def test_an_interruption_says_how_to_continue(monkeypatch, tmp_path):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("butterfly_sdm.core.files.write_text", interrupt)
    result = runner.invoke(app, ["init", str(tmp_path / "x.yaml")])
    assert result.exit_code == 130
    assert "continues where it was" in result.output


def test_init_can_write_every_setting(tmp_path):
    path = tmp_path / "all.yaml"
    assert runner.invoke(app, ["init", str(path), "--all"]).exit_code == 0
    assert "# weight_decay: 0.0001" in path.read_text()


def test_progress_without_a_terminal_is_told_once_and_now_and_then(monkeypatch, capsys):
    clock = iter([0.0, 5.0, 21.0, 30.0, 31.0, 31.5])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(terminal, "err", Console(stderr=True, soft_wrap=True))
    lines = terminal._Lines()
    for done in (0, 1, 2, 9, 9):  # the end is reported twice
        lines("fit", done, 9)
    lines("cut", 7, 7)  # done before
    assert capsys.readouterr().err.splitlines() == ["fit ...", "fit: 2 of 9", "fit: done in 30.0 s"]


def test_warnings_kept_for_the_end_are_not_lost_afterwards(caplog):
    logger = logging.getLogger("data_prep.build")
    with _told_at_the_end("data_prep.build"):
        logger.warning("within")
    logger.warning("after")
    assert [record.message for record in caplog.records] == ["after"]


def test_a_data_set_built_from_other_settings_is_not_trained_on_unasked(tmp_path):
    region = simulate_region(tmp_path / "region", size_px=1024, n_sites=24, n_species=3)
    changed = yaml.safe_load(region.config.read_text())
    changed["train"] = {"model": {"kind": "mean_rate"}}
    changed["build"]["split"] = {"method": "random"}
    changed["build"].pop("scenes")
    config = tmp_path / "region" / "changed.yaml"
    config.write_text(yaml.safe_dump(changed))
    assert runner.invoke(app, ["build", str(config)]).exit_code == 0
    assert runner.invoke(app, ["train", str(config), "--set", "seed=1"]).exit_code == 0
    edited = ["train", str(config), "--set", "build.records.min_visits=4"]
    result = runner.invoke(app, edited)
    assert result.exit_code == 2
    assert "was built before the section build of the config was changed" in result.output
    dataset = tmp_path / "region" / "runs" / "simulated" / "dataset"
    assert (
        runner.invoke(
            app, [*edited, "--dataset", str(dataset), "--out", str(tmp_path / "run")]
        ).exit_code
        == 0
    )


ODD = "Falter;Wann;GridRef\nPieris rapae;3.6.2020;SU3112\nAglais io;14.6.2020;SU3112\n"


def test_look_says_what_a_table_holds(tmp_path):
    path = tmp_path / "odd.csv"
    path.write_text(ODD)
    result = runner.invoke(app, ["look", str(path)])
    assert result.exit_code == 0, result.output
    assert "eventDate (by its values)" in result.output
    assert "2020-06-03" in result.output
    assert "⠁" not in result.output  # no map where nobody looks at a terminal
    told = json.loads(runner.invoke(app, ["look", str(path), "--json"]).stdout)
    assert "years: [2020, 2020]" in told["yaml"]


def test_look_at_a_table_nobody_understands_is_code_2(tmp_path):
    path = tmp_path / "none.csv"
    path.write_text("a,b\n1,x\n")
    result = runner.invoke(app, ["look", str(path)])
    assert result.exit_code == 2
    assert "no date column" in result.output
    assert runner.invoke(app, ["look", str(path), "--column", "a"]).exit_code == 2


def test_init_fills_the_starter_with_what_the_records_hold(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "odd.csv").write_text(ODD)
    path = tmp_path / "mine.yaml"
    arguments = ["init", str(path), "--records", str(tmp_path / "data" / "odd.csv")]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "by their values alone" in result.output
    assert "path: data/odd.csv" in path.read_text()
    config = sdm.load_config(path)
    assert config.build.records.years == (2020, 2020)
    assert config.build.records.columns == {"eventDate": "Wann", "scientificName": "Falter"}
    assert config.build.scenes.paths[0].name == "scene.tif"  # as the starter has it
    assert runner.invoke(app, [*arguments, "--all", "--force"]).exit_code == 2


def test_the_version_is_told_by_command_and_package():
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout == f"butterfly-sdm {sdm.__version__}\n"
    assert sdm.__version__ == version("butterfly-sdm")


def test_a_port_in_use_is_told_with_the_way_out(monkeypatch, tmp_path):
    def taken(*args, **kwargs):
        raise OSError(errno.EADDRINUSE, "Address already in use")

    monkeypatch.setattr("butterfly_sdm.mapping.viewer.make_server", taken)
    monkeypatch.setattr("butterfly_sdm.pipeline.map_to_view", lambda what, dataset: (what, None))
    result = runner.invoke(app, ["view", "map.tif", "--port", "8000"])
    assert result.exit_code == 2
    assert "Port 8000" in flat(result) and "Leave --port out" in flat(result)
    assert "half-written" not in flat(result)


def test_all_that_is_missing_is_told_at_once(tmp_path):
    runner.invoke(app, ["init", str(tmp_path / "a.yaml")])
    result = runner.invoke(app, ["build", str(tmp_path / "a.yaml")])
    assert result.exit_code == 2
    for part in ("2 of the files", "build.records.path", "records.zip", "build.scenes.paths"):
        assert part in flat(result)
    assert not (tmp_path / "runs").exists()
