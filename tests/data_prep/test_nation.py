"""The comparison of a nation, small: what does not depend on the machine holds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_only_what_is_needed_is_fetched_and_kills_cost_little(shared, tmp_path):
    command = [sys.executable, "benchmarks/nation.py", "--scale", "0.1", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "BUTTERFLY_SDM_SHARED": str(shared)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(("met", "MISSED"))]
    assert len(lines) == 16
    # so small, opening files is most of the time
    timed = ("of the time of", "of the floor")
    assert all(line.startswith("met") for line in lines if not any(t in line for t in timed)), lines
    assert "national map" in done.stdout
