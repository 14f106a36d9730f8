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
    # So small, opening files is most of the time, and what is in flight at a kill most of the
    # bytes; that no block is fetched twice once it is marked is tested in test_sparse_copies.
    large = ("of the time of", "of the floor", "fetched again after")
    missed = [line for line in lines if not line.startswith("met")]
    assert all(any(of in line for of in large) for line in missed), missed
    assert "national map" in done.stdout
