"""The number of threads: fixed where it is asked for, given back, and told."""

import json
import os
import subprocess
import sys

import pytest
import threadpoolctl
import torch

import butterfly_sdm as bs
from butterfly_sdm.core.executor import open_executor
from butterfly_sdm.core.threads import computed_with, fixed_threads
from tests.trust.faults import QUICK, digest

NETWORK = (*QUICK, "train.fit.epochs=2", "map.beside=[]")
WALK = """
import sys, butterfly_sdm as bs
config, out, dataset, *overrides = sys.argv[1:]
bs.train(config, out + "/run", dataset=dataset, overrides=overrides)
bs.predict_map(out + "/run", out=out + "/map.tif", overrides=overrides)
"""


def _blas():
    return {p["num_threads"] for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"}


def test_threads_are_fixed_in_the_block_and_given_back():
    before, blas = torch.get_num_threads(), _blas()
    with pytest.raises(ZeroDivisionError), fixed_threads(3):
        assert torch.get_num_threads() == 3
        assert computed_with()["threads"] == 3 and computed_with()["fixed"]
        raise ZeroDivisionError
    assert torch.get_num_threads() == before and _blas() == blas
    with fixed_threads(None):
        assert torch.get_num_threads() == before and not computed_with()["fixed"]


@pytest.mark.slow
def test_workers_have_the_threads_that_are_fixed():
    with fixed_threads(3), open_executor(2) as (executor, _):
        assert executor.submit(torch.get_num_threads).result() == 3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_same_seed_and_threads_give_the_same_bits_whatever_the_machine_offers(tmp_path):
    region = bs.simulate_region(
        tmp_path / "region", size_px=768, n_sites=24, n_species=3, tile_px=128
    )
    bs.build(region.config, tmp_path / "dataset", overrides=QUICK)
    made = {}
    for offered in ("1", "2"):
        out = tmp_path / offered
        command = [sys.executable, "-c", WALK, str(region.config), str(out)]
        command += [str(tmp_path / "dataset"), *NETWORK, "train.threads=2"]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": offered})
        card = json.loads((out / "run/run.json").read_text())
        assert card["computed_with"]["threads"] == 2 and card["computed_with"]["fixed"]
        made[offered] = [
            *digest(out / "run", leave_out=("history.csv", "run.json")).values(),
            *digest(out / "map.tif").values(),
        ]
    assert made["1"] == made["2"]
