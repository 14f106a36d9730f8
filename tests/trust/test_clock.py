"""Nothing depends on what the clock says, nor on which file is younger."""

import os

import numpy as np
import pytest

from tests.trust import faults
from tests.trust.test_kill import LEFT_OUT, workplace


def _same(finished, verb, work) -> bool:
    name = faults.RESULTS[verb]
    return faults.digest(work / name, leave_out=LEFT_OUT) == faults.digest(
        finished.work / name, leave_out=LEFT_OUT
    )


@pytest.mark.parametrize("verb", list(faults.VERBS))
def test_work_goes_on_identically_when_the_clock_jumps(finished, verb, tmp_path, figures):
    """
    Killed half way, all its files given times in no order, and run again by a clock that jumps.
    """
    work = workplace(finished, verb, tmp_path / "work")
    code, message, _ = faults.run(verb, finished.config, work, before=faults.JumpingClock(1))
    assert code == 0, message
    assert _same(finished, verb, work)
    work = workplace(finished, verb, tmp_path / "work")
    assert faults.kill_before_deed(verb, finished.config, work, 12)
    faults.scramble_times(work, np.random.default_rng(0))
    code, message, _ = faults.run(verb, finished.config, work, before=faults.JumpingClock(2))
    assert code == 0, message
    assert _same(finished, verb, work)
    figures.tried("clock jumps", verb, 2)


@pytest.mark.parametrize(
    "second",
    [pytest.param(0, id="1970"), pytest.param(4_102_444_800, id="2100", marks=pytest.mark.slow)],
)
def test_the_times_of_inputs_are_in_no_artefact(finished, copied_region, tmp_path, second):
    for path in copied_region.parent.rglob("*"):
        os.utime(path, (second, second))
    code, message, _ = faults.run("build", copied_region, tmp_path)
    assert code == 0, message
    assert faults.digest(tmp_path / "dataset") == faults.digest(finished.work / "dataset")
