"""
The experiments of the plugins: tables from what has run, targets judged, and a run that survives
units that fail.
"""

import json
import runpy
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
    share = experiment.Target("share", "ours", ">=", 0.5)  # an interval of shares stays in [0, 1]
    assert share.row(table) == "| share >= 0.5 | 0.850 | 0.215 to 1.000 | yes |"
    table.loc[1, "ours"] = float("nan")
    assert gain.row(table) == "| gain >= 0.05 | 0.100 | - | yes, 1 seeds |"


def test_a_gain_that_is_not_sure_is_told_with_what_would_have_been_found(experiment):
    table = pd.DataFrame({"gain": [0.01, 0.02, 0.03, 0.02, 0.02]})
    sure = experiment.Target("gain", "gain", ">", 0, surely=True)
    assert sure.row(table) == "| gain > 0 (interval) | 0.020 | 0.011 to 0.029 | yes |"
    doubtful = table - 0.015
    # sd 0.00707, t(4) 2.776 and 0.941: (2.776 + 0.941) * 0.00707 / sqrt(5)
    assert sure.row(doubtful).endswith("| **no**; 0.012 would be found four times in five |")
    missed = experiment.Target("gain", "gain", ">=", 0.03)  # by the mean: so far from the bound
    assert missed.row(table).endswith(
        "| **no**; 0.012 beyond it would be found four times in five |"
    )


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


def test_one_line_tells_how_many_targets_are_met_and_which_are_missed(experiment, tmp_path):
    targets = (
        experiment.Target("half", "first", ">=", 0.5),
        experiment.Target("all", "first", ">=", 1, every=True),
        experiment.Target("another", "never_measured", ">", 0),
    )
    made = experiment.Experiment("A title", lambda folder, seed: iter([{"first": 0.9}]), targets)
    assert experiment.summary(tmp_path, "made", made) == "| A title | 0 | 0 of 3 |  |"
    for seed in range(2):
        experiment.run("made", made, seed, tmp_path, tmp_path / "work")
    assert experiment.summary(tmp_path, "made", made) == "| A title | 2 | 1 of 3 | all |"


@pytest.mark.slow
def test_every_unit_is_run_and_those_that_fail_are_named(tmp_path, monkeypatch, capsys):
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
    command = ["all.py", "--out", str(tmp_path), "--seeds", "1", "--jobs", "1"]
    command += ["--only", "implihate_text", "implihate_spoken"]
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parents[1]))
    monkeypatch.delenv("BUTTERFLY_SDM_SHARED", raising=False)
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", command)
    known = set(sys.modules)
    runpy.run_path(str(FOLDER / "all.py"), run_name="__main__")
    for name in set(sys.modules) - known:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == FOLDER:
            del sys.modules[name]
    printed = capsys.readouterr().out
    assert "1 units" in printed  # what has run is not run again
    assert "failed: implihate_text 0" in printed
    assert "Set BUTTERFLY_SDM_SHARED" in (tmp_path / "logs" / "implihate_text_0.txt").read_text()
    assert "| both - image alone > 0 | 0.250 | - | yes |" in printed and "Not run." in printed
