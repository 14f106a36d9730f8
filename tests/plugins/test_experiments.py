"""
The experiments of the plugins: tables from what has run, targets judged, and a run that survives
units that fail.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "plugins"


@pytest.fixture
def experiment(monkeypatch):
    if not FOLDER.is_dir():
        pytest.skip("the benchmarks are not installed")
    monkeypatch.syspath_prepend(str(FOLDER))
    import experiment

    yield experiment
    del sys.modules["experiment"]


def test_a_target_is_judged_by_the_mean_or_by_every_seed(experiment):
    table = pd.DataFrame({"ours": [0.9, 0.8], "theirs": [0.8, 0.79]})
    gain = experiment.Target("gain", "ours - theirs", ">=", 0.05)
    assert gain.row(table) == "| gain >= 0.05 | 0.055 | -0.517 to 0.627 | yes |"
    assert "**no**" in experiment.Target("gain", "ours - theirs", ">=", 0.05, every=True).row(table)
    assert (
        experiment.Target("gain", "ours - nothing", ">", 0).row(table)
        == "| gain > 0 | not run | | |"
    )
    table.loc[1, "ours"] = float("nan")
    assert gain.row(table) == "| gain >= 0.05 | 0.100 | - | yes, 1 seeds |"


def test_a_gain_that_is_not_sure_is_told_with_what_would_have_been_found(experiment):
    table = pd.DataFrame({"gain": [0.01, 0.02, 0.03, 0.02, 0.02]})
    sure = experiment.Target("gain", "gain", ">", 0, surely=True)
    assert sure.row(table) == "| gain > 0 (interval) | 0.020 | 0.011 to 0.029 | yes |"
    doubtful = table - 0.015
    # sd 0.00707, t(4) 2.776 and 0.941: (2.776 + 0.941) * 0.00707 / sqrt(5)
    assert sure.row(doubtful).endswith("| **no**; 0.012 would be found four times in five |")


def test_a_run_that_was_stopped_keeps_what_it_found(experiment, tmp_path):
    def once(folder, seed):
        yield {"first": 1}
        if seed:
            raise RuntimeError("stopped")
        yield {"second": 2}

    made = experiment.Experiment("A title", once)
    experiment.run("made", made, 0, tmp_path, tmp_path / "work")
    with pytest.raises(RuntimeError):
        experiment.run("made", made, 1, tmp_path, tmp_path / "work")
    assert experiment.finished(tmp_path, "made", 0) and not experiment.finished(tmp_path, "made", 1)
    found = experiment.results(tmp_path, "made")
    assert found["first"].tolist() == [1, 1] and found["second"].count() == 1
    assert "| second | 2.000 | - | 2.000 | 2.000 |" in experiment.report(tmp_path, "made", made)


def test_every_unit_is_run_and_those_that_fail_are_named(tmp_path):
    """In an environment without the real data the units stop at once, each with a sentence."""
    if not FOLDER.is_dir():
        pytest.skip("the benchmarks are not installed")
    (tmp_path / "results").mkdir()
    value = {
        "seed": 0,
        "finished": True,
        "seconds": 3.0,
        "measures": {"both": 0.75, "only_image": 0.5},
    }
    (tmp_path / "results" / "implihate_spoken_seed_0.json").write_text(json.dumps(value))
    command = [
        sys.executable,
        str(FOLDER / "all.py"),
        "--out",
        str(tmp_path),
        "--seeds",
        "1",
        "--jobs",
        "1",
    ]
    command += ["--only", "implihate_text", "implihate_spoken"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=_without_data())
    assert "1 units" in found.stdout  # what has run is not run again
    assert "failed: implihate_text 0" in found.stdout
    assert "Set BUTTERFLY_SDM_SHARED" in (tmp_path / "logs" / "implihate_text_0.txt").read_text()
    assert (
        "| both - image alone > 0 | 0.250 | - | yes |" in found.stdout
        and "Not run." in found.stdout
    )


def _without_data() -> dict[str, str]:
    root = str(FOLDER.parents[1])
    return {key: value for key, value in os.environ.items() if key != "BUTTERFLY_SDM_SHARED"} | {
        "PYTHONPATH": root
    }
