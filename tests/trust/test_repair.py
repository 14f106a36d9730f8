"""The way out of a damaged artefact is the command that made it."""

import logging
from itertools import product

import pytest

import butterfly_sdm as bs
from butterfly_sdm import pipeline

from .faults import QUICK


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """Return a region, its data set and a run."""
    folder = tmp_path_factory.mktemp("repair")
    region = bs.simulate_region(
        folder / "region", size_px=768, n_sites=24, n_species=3, tile_px=128
    )
    _again(folder, region)
    return folder, region


def _again(folder, region):
    bs.build(region.config, folder / "dataset", overrides=QUICK)
    bs.train(region.config, folder / "run", dataset=folder / "dataset", overrides=QUICK)


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAILY = {  # every file once, and every harm once to each artefact
    ("dataset/tiles.npy", "flip"),
    ("dataset/detections.parquet", "cut"),
    ("dataset/dataset.json", "gone"),
    ("run/model.safetensors", "cut"),
    ("run/model.json", "gone"),
    ("run/run.json", "flip"),
}


def harms():
    for name, how in product(sorted({name for name, _ in DAILY}), ("flip", "cut", "gone")):
        marks = () if (name, how) in DAILY else pytest.mark.slow
        yield pytest.param(name, how, marks=marks)


@pytest.mark.parametrize(("name", "how"), harms())
def test_the_same_command_makes_it_again(name, how, walked, caplog):
    folder, region = walked
    file = folder / name
    artefact = file.parent
    before = {path: path.read_bytes() for path in artefact.rglob("*") if path.is_file()}
    if how == "flip":
        _flip(file)
    elif how == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.unlink()
    with caplog.at_level(logging.WARNING):
        _again(folder, region)
    assert pipeline.check(artefact) == []
    for path, content in before.items():
        if path.name not in ("history.csv", "run.json"):  # which hold seconds
            assert path.read_bytes() == content, path.name
    if not (how == "gone" and name.endswith("run.json")):
        assert "again" in caplog.text


def test_what_is_whole_is_left_alone(walked, caplog):
    folder, region = walked
    stamps = {
        path: path.stat().st_mtime_ns
        for path in folder.rglob("*.*")
        if path.is_file() and path.name[0] != "."
    }
    with caplog.at_level(logging.WARNING):
        _again(folder, region)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert "damaged" not in caplog.text
