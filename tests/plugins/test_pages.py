"""What the pages of the plugins show to be tried runs as it stands there."""

import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from butterfly_sdm.cli import app
from butterfly_sdm.core.settings import load_settings
from butterfly_sdm.plugins.plugin import get_plugin

PAGES = Path(__file__).parents[2] / "docs" / "plugins"
NAMES = ("cmmd", "dfcon", "implihate", "modan", "refine")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_example_has_keys_that_exist(name, tmp_path):
    code = next(
        code
        for language, code in FENCE.findall((PAGES / f"{name}.md").read_text())
        if language == "yaml"
    )
    (tmp_path / "example.yaml").write_text(code)
    load_settings(get_plugin(name).config, tmp_path / "example.yaml")


def _try(name: str, title: str) -> None:
    """Run the code of a section of a page, one block after the other, in this folder."""
    tried = (PAGES / f"{name}.md").read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for language, code in FENCE.findall(tried):
            if language == "python":
                exec(compile(code, f"{name}.md", "exec"), {})
            elif language == "yaml":
                Path(code.splitlines()[0].removeprefix("# ")).write_text(code)
            else:
                for line in code.splitlines():
                    command = line.removeprefix("butterfly-sdm ").split()
                    result = CliRunner().invoke(app, [*command, "--set", "accelerator=cpu"])
                    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", NAMES)
def test_what_is_to_be_tried_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _try(name, "Try it")
    assert len(pd.read_csv("runs/try/predictions_new.csv")) >= 5
    assert Path("runs/try/metrics.json").is_file()


def test_videos_are_tried_from_their_files_to_a_prediction(tmp_path, monkeypatch):
    pytest.importorskip("av", reason="videos are read by PyAV: the extra video")
    monkeypatch.chdir(tmp_path)
    _try("implihate", "Try it with videos")
    table = pd.read_csv("runs/films/predictions_new.csv", index_col="video_id")
    assert table["predicted"].to_dict() == {"unknown": "red"}
