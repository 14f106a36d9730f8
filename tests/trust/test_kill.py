"""Work that is killed at any moment leaves nothing half-written, and ends in the identical artefact when it is run again."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.trust import faults

NEEDS = {"build": (), "train": ("dataset",), "evaluate": ("dataset", "run"), "map": ("dataset", "run")}
LEFT_OUT = ("history.csv", "run.json")  # the history holds seconds, and the card of a run the SHA-256 of the history
KILLS = int(os.environ.get("BUTTERFLY_SDM_KILLS", "200"))


def _workplace(finished, verb: str, at: Path) -> Path:
    shutil.rmtree(at, ignore_errors=True)
    at.mkdir()
    for name in NEEDS[verb]:
        shutil.copytree(finished.work / name, at / name)
    return at


def _kill_and_run_again(finished, verb: str, work: Path, seconds: float) -> None:
    killed = faults.kill_after(verb, finished.config, work, seconds)
    result = work / faults.RESULTS[verb]
    whole = faults.digest(finished.work / faults.RESULTS[verb], leave_out=LEFT_OUT)
    if killed and result.exists() and verb != "evaluate":
        assert faults.digest(result, leave_out=LEFT_OUT) == whole, f"{verb} killed after {seconds:.2f} s left a half artefact"
    code, message, _ = faults.run(verb, finished.config, work)
    assert code == 0, f"{verb}, killed after {seconds:.2f} s, did not go on: {message}"
    assert faults.digest(result, leave_out=LEFT_OUT) == whole, f"{verb}, killed after {seconds:.2f} s, ended differently"
    left = {path.name for path in work.iterdir() if ".partial" in path.name or path.name.endswith(".tmp")}
    assert not left, f"{verb} left {left}"


@pytest.mark.parametrize("verb", ["build", "train", "map"])
def test_a_verb_killed_half_way_ends_identically_when_run_again(finished, verb, tmp_path):
    work = _workplace(finished, verb, tmp_path / "work")
    _kill_and_run_again(finished, verb, work, finished.seconds[verb] * 0.5)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_verbs_killed_at_random_moments_end_identically(finished, tmp_path):
    rng = np.random.default_rng(0)
    for attempt in range(KILLS):
        verb = list(faults.VERBS)[attempt % len(faults.VERBS)]
        work = _workplace(finished, verb, tmp_path / "work")
        _kill_and_run_again(finished, verb, work, float(rng.uniform(0.02, 1.0)) * finished.seconds[verb])


def test_two_processes_on_one_folder_one_wins_and_the_other_says_so(finished, tmp_path):
    work = _workplace(finished, "build", tmp_path / "work")
    first = faults.start("build", finished.config, work, work / "first.txt")
    second = faults.start("build", finished.config, work, work / "second.txt")
    first.join()
    second.join()
    whole = faults.digest(finished.work / "dataset")
    assert faults.digest(work / "dataset") == whole
    codes = sorted([first.exitcode, second.exitcode])
    said = "".join(path.read_text() for path in work.glob("*.txt"))
    assert codes[0] == 0
    assert codes[1] == 0 or "Another process is writing" in said
