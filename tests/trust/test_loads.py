"""Loads far above the usual end, in the memory that is promised; the figures are printed."""

import os

import pytest

from benchmarks.loads import BOUNDS_MB, LOADS, SPECIES, Load, run_all

SHARE = float(os.environ.get("BUTTERFLY_SDM_LOAD", "1"))


def test_every_load_has_a_bound():
    assert LOADS.keys() == BOUNDS_MB.keys()


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_loads_far_above_the_usual_keep_to_their_memory(tmp_path, figures):
    load = Load(tmp_path, SHARE)
    if SHARE == 1:
        assert (load.records, load.sites, load.side_px) == (20_000_000, 50_000, 200_000)
    for row in run_all(load, tuple(LOADS)):
        name = str(row["load"])
        figures.tried(
            f"load {name}: {row['told']}, {row['cpu_s']:.0f} s of CPU, {row['peak_mb']:.0f} MB of "
            f"at most {BOUNDS_MB[name]:,} MB"
        )
        assert name != "records" or f" {SPECIES:,} species" in str(row["told"]), row
        assert row["peak_mb"] < BOUNDS_MB[name], row
