"""A changed byte in an artefact is found by check, or changes nothing."""

import os
import shutil

import numpy as np
import pytest

from butterfly_sdm import pipeline
from butterfly_sdm.core.files import read_json
from butterfly_sdm.errors import ButterflySDMError
from tests.trust import faults

FLIPS = int(os.environ.get("BUTTERFLY_SDM_FLIPS", "300"))


def _found(artefact) -> bool:
    try:
        return bool(pipeline.check(artefact))
    except ButterflySDMError:
        return True


@pytest.mark.parametrize("name", ["dataset", "run", "map.tif"])
def test_an_artefact_as_it_was_written_has_no_problem(finished, name):
    assert pipeline.check(finished.work / name) == []


def _flip_everywhere(finished, tmp_path, flips: int) -> None:
    rng = np.random.default_rng(1)
    for name in ("dataset", "run"):
        copy = tmp_path / name
        for _ in range(flips):
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(
                finished.work / name, copy, ignore=shutil.ignore_patterns("checkpoints")
            )
            file = (
                copy
                / sorted(read_json(copy / f"{name}.json")["files"] | {f"{name}.json": ""})[
                    rng.integers(0, 3)
                ]
            )
            place = faults.flip_bit(file, rng)
            assert _found(copy), f"a flipped bit at {place} of {file.name} was not found"
    for _ in range(flips):
        copy = tmp_path / "map.tif"
        for path in finished.work.glob("map*.*"):
            shutil.copy(path, tmp_path / path.name)
        place = faults.flip_bit(copy, rng)
        assert _found(copy), f"a flipped bit at {place} of the map was not found"


def test_a_flipped_bit_is_found(finished, tmp_path):
    _flip_everywhere(finished, tmp_path, 10)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_flipped_bits_everywhere_are_found(finished, tmp_path):
    _flip_everywhere(finished, tmp_path, FLIPS)


@pytest.mark.parametrize(
    ("name", "gone", "message"),
    [
        ("dataset", "detections.parquet", "detections.parquet"),
        ("dataset", "dataset.json", "dataset.json"),
        ("run", "model.json", "model.json"),
    ],
)
def test_a_missing_file_is_named(finished, tmp_path, name, gone, message):
    copy = tmp_path / name
    shutil.copytree(finished.work / name, copy)
    (copy / gone).unlink()
    try:
        problems = pipeline.check(copy)
    except ButterflySDMError as error:
        problems = [str(error)]
    assert any(message in problem for problem in problems) or any(
        "holds neither" in problem for problem in problems
    )
