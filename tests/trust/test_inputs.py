"""
Inputs that vanish, end early or hold flipped bits are told in a sentence; an artefact made of them
is whole or absent.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio

from butterfly_sdm import pipeline
from butterfly_sdm.config import load_config
from butterfly_sdm.errors import ButterflySDMError
from data_prep.records.count import read_survey
from tests.trust import faults
from tests.trust.test_kill import LEFT_OUT, workplace

FLIPS = int(os.environ.get("BUTTERFLY_SDM_FLIPS", "300"))
INPUTS = ("records.zip", "sites.csv", "covariates.csv", "scenes/west.tif", "scenes/east.tif")

DAILY = ("records.zip", "scenes/west.tif")


def _whole_or_told(finished, verb: str, work: Path, code: int, message: str) -> None:
    result, made = work / faults.RESULTS[verb], finished.work / faults.RESULTS[verb]
    if code == 0:
        assert faults.digest(result, leave_out=LEFT_OUT) == faults.digest(made, leave_out=LEFT_OUT)
        return
    assert code in (2, 3), f"{verb} ended with {code}: {message}"
    assert message, "an error without a word"
    assert not result.exists()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in DAILY else pytest.mark.slow) for name in INPUTS],
)
def test_an_input_that_vanishes_while_it_is_used_is_told(
    finished, copied_region, tmp_path, name, figures
):
    victim = copied_region.parent / name
    kept = victim.read_bytes()
    for deed in (3, 25, 45, 60):
        work = workplace(finished, "build", tmp_path / "work")
        code, message, _ = faults.run(
            "build", copied_region, work, before=faults.Vanish(work, victim, deed)
        )
        _whole_or_told(finished, "build", work, code, message)
        victim.write_bytes(kept)
        figures.tried("inputs that vanish during build", "told" if code else "no longer needed")


def _cut_short(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_scene_whose_last_blocks_are_missing_is_told_by_build_and_by_map(
    finished, copied_region, tmp_path, share
):
    scene = copied_region.parent / "scenes/west.tif"
    _cut_short(scene, share)
    work = workplace(finished, "build", tmp_path / "work")
    code, message, _ = faults.run("build", copied_region, work)
    assert code == 2 and "west.tif" in message, message
    assert not (work / "dataset").exists()
    work = workplace(finished, "map", tmp_path / "work")
    more = f"map.scenes.paths=[{scene}]"
    code, message, _ = faults.run("map", finished.config, work, None, more)
    assert code == 2 and "west.tif" in message, message
    assert not (work / "map.tif").exists()


def test_a_scene_with_a_broken_block_is_told(copied_region, tmp_path):
    scene = copied_region.parent / "scenes/west.tif"
    with rasterio.open(scene) as source:
        places = [
            int(source.get_tag_item(f"BLOCK_OFFSET_{x}_{y}", "TIFF", bidx=1))
            for x in (0, 1)
            for y in (0, 1)
        ]
    data = bytearray(scene.read_bytes())
    for place in places:
        data[place : place + 16] = b"\xff" * 16  # no beginning of compressed data
    scene.write_bytes(data)
    code, message, _ = faults.run("build", copied_region, tmp_path)
    assert code == 2 and "west.tif" in message and "damaged" in message, message
    assert not (tmp_path / "dataset").exists()


def _flip_records(copied_region: Path, scratch: Path, flips: int, figures) -> None:
    """A flipped bit in an archive is refused, or changes nothing that is counted."""
    config = load_config(copied_region).build.records
    expected = read_survey(config, scratch=scratch / "whole")
    rng = np.random.default_rng(0)
    whole = config.path.read_bytes()
    for number in range(flips):
        place = faults.flip_bit(config.path, rng)
        try:
            found = read_survey(config, scratch=scratch / "flipped")
        except ButterflySDMError as error:
            assert str(error)
            figures.tried("bits flipped in an archive of records", "refused")
        else:
            same = found.detections.equals(expected.detections) and found.visits.equals(
                expected.visits
            )
            assert same, f"flip {number} at {place} changed the counts unnoticed"
            figures.tried("bits flipped in an archive of records", "harmless")
        config.path.write_bytes(whole)
        shutil.rmtree(scratch / "flipped", ignore_errors=True)


def test_a_flipped_bit_in_an_archive_is_refused_or_harmless(copied_region, tmp_path, figures):
    _flip_records(copied_region, tmp_path, 20, figures)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_flipped_bits_everywhere_in_an_archive_are_refused_or_harmless(
    copied_region, tmp_path, figures
):
    _flip_records(copied_region, tmp_path, FLIPS, figures)


def test_an_input_that_changed_is_used_again(finished, copied_region, tmp_path):
    """An interrupted build with another file than it began with begins anew."""
    work = workplace(finished, "build", tmp_path / "work")
    assert faults.kill_before_deed("build", copied_region, work, 45)
    table = copied_region.parent / "covariates.csv"
    table.write_text(table.read_text().replace("temperature_c", "warmth"))
    text = copied_region.read_text().replace("temperature_c", "warmth")
    copied_region.write_text(text)
    code, message, _ = faults.run("build", copied_region, work)
    assert code == 0, message
    assert "warmth" in pipeline.Dataset.open(work / "dataset").covariates.columns
