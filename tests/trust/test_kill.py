"""
Work that is killed at any moment leaves nothing half-written, and ends in the identical artefact
when it is run again.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from butterfly_sdm import pipeline
from tests.trust import faults

NEEDS = {
    "build": (),
    "train": ("dataset",),
    "evaluate": ("dataset", "run"),
    "map": ("dataset", "run"),
    "plugin train": (),
}
EVERY = [*faults.VERBS, *faults.PLUGIN]
# the history holds seconds, and the card of a run the SHA-256 of the history
LEFT_OUT = (
    "history.csv",
    "run.json",
)
# the STAC item beside them says when the map was written
BESIDE = (
    "map.png",
    "map.qml",
    "map_styles",
)
KILLS = int(os.environ.get("BUTTERFLY_SDM_KILLS", "30"))


def workplace(finished, verb: str, at: Path) -> Path:
    """Return a fresh folder with what a verb needs."""
    shutil.rmtree(at, ignore_errors=True)
    at.mkdir()
    for name in NEEDS[verb]:
        (at / name).symlink_to(finished.work / name)
    return at


def _whole(finished, verb: str, work: Path) -> bool:
    """Tell whether the artefact of a verb is there; whatever is there has to be whole."""
    result = work / faults.RESULTS[verb]
    if not result.exists():
        return False
    there = faults.digest(result, leave_out=LEFT_OUT)
    expected = faults.digest(finished.work / faults.RESULTS[verb], leave_out=LEFT_OUT)
    if (
        verb == "evaluate"
    ):  # the folder grows file by file, each whole; names with a dot are no results
        there = {
            name: value for name, value in there.items() if not Path(name).name.startswith(".")
        }
        assert there.items() <= expected.items(), "a half table of scores was left"
        return there == expected
    assert there == expected, f"{verb} left a half artefact"
    if verb != "map":  # a map is whole before its STAC item tells its checksum
        assert pipeline.check(result) == []
    return True


def _runs_again(finished, verb: str, work: Path, when: str) -> None:
    code, message, _ = faults.run(verb, finished.config, work)
    assert code == 0, f"{verb}, killed {when}, did not go on: {message}"
    assert _whole(finished, verb, work), f"{verb}, killed {when}, did not end"
    if verb == "map":
        assert pipeline.check(work / "map.tif") == []
        for name in BESIDE:
            assert faults.digest(work / name) == faults.digest(finished.work / name), (
                f"{name} differs after a kill {when}"
            )
    left = {
        path.name
        for path in work.rglob("*")
        if any(mark in path.name for mark in (".partial", ".tmp", "unfinished-"))
    }
    left |= {
        path.name for path in work.iterdir() if path.name.endswith((".lock", ".replaced", ".new"))
    }
    assert not left, f"{verb}, killed {when} and run again, left {left}"


@pytest.mark.parametrize("verb", list(faults.VERBS))
def test_a_verb_killed_half_way_ends_identically_when_run_again(finished, verb, tmp_path):
    work = workplace(finished, verb, tmp_path / "work")
    deeds = faults.count_deeds(verb, finished.config, work, tmp_path / "deeds.txt")
    work = workplace(finished, verb, tmp_path / "work")
    assert faults.kill_before_deed(verb, finished.config, work, deeds // 2)
    _whole(finished, verb, work)
    _runs_again(finished, verb, work, f"before deed {deeds // 2} of {deeds}")


def _unfinished(work: Path) -> list[Path]:
    """Return the files that a killed verb left to go on from."""
    return sorted(
        path
        for path in work.rglob("*")
        if path.is_file()
        and not any(part.is_symlink() for part in (path, *path.parents))
        and any(
            part.endswith(".partial") or part.startswith(".")
            for part in path.relative_to(work).parts
        )
        and path.suffix != ".lock"
    )


def _damage(verb: str, work: Path, rng: np.random.Generator) -> list[str]:
    """Damage up to three of the files that a killed verb left; tell which and how."""
    scores = (work / "scores").glob("[!.]*.*")  # each is whole or absent; all are written anew
    left = sorted(scores) if verb == "evaluate" else _unfinished(work)
    some = rng.permutation(len(left))[: rng.integers(1, 4)]
    return [f"{left[i].relative_to(work)} ({faults.harm(left[i], rng)})" for i in some]


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("verb", EVERY)
def test_a_verb_killed_before_any_deed_and_damaged_ends_identically(
    with_plugin, verb, tmp_path, figures
):
    """
    Kill a verb with SIGKILL before each of its deeds on the disk, damage what it left, run it
    again.

    Every fifth time, and where nothing was left to be damaged, it is run again as it is.
    """
    finished = with_plugin
    rng = np.random.default_rng(0)
    work = workplace(finished, verb, tmp_path / "work")
    deeds = faults.count_deeds(verb, finished.config, work, tmp_path / "deeds.txt")
    for number in range(1, deeds + 1):
        work = workplace(finished, verb, tmp_path / "work")
        killed = faults.kill_before_deed(verb, finished.config, work, number)
        when = f"before deed {number} of {deeds}"
        _whole(finished, verb, work)
        told = _damage(verb, work, rng) if number % 5 else []
        what = "damage what was left, run again" if told else "run again"
        figures.tried(f"kill -9 before each change on the disk, {what}", verb, killed)
        _runs_again(finished, verb, work, f"{when} and damaged in {told}" if told else when)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("verb", EVERY)
def test_a_verb_killed_at_random_moments_ends_identically(with_plugin, verb, tmp_path, figures):
    finished = with_plugin
    rng = np.random.default_rng(0)
    seconds, killed = finished.seconds[verb], 0
    while killed < KILLS // len(EVERY):
        work = workplace(finished, verb, tmp_path / "work")
        after = float(rng.uniform(0.02, 1.0)) * seconds
        if not faults.kill_after(verb, finished.config, work, after):
            seconds *= 0.9  # it was faster than when it was measured
            continue
        killed += 1
        figures.tried("kill -9 at random moments", verb)
        _whole(finished, verb, work)
        _runs_again(finished, verb, work, f"after {after:.2f} s")


@pytest.mark.parametrize("verb", list(faults.VERBS))
def test_two_processes_on_one_folder_one_wins_and_the_other_says_so(finished, verb, tmp_path):
    work = workplace(finished, verb, tmp_path / "work")
    both = [
        faults.start(verb, finished.config, work, tmp_path / f"{name}.txt")
        for name in ("first", "second")
    ]
    for process in both:
        process.join()
    said = "".join(path.read_text() for path in tmp_path.glob("*.txt"))
    codes = sorted(process.exitcode for process in both)
    assert _whole(finished, verb, work)
    assert codes[0] == 0
    assert codes[1] == 0 or "Another process is writing" in said, said
