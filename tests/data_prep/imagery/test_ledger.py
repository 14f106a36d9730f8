"""Tiles and composites that were damaged between a kill and the next run are made again."""

import logging

import numpy as np
import pytest

from butterfly_sdm.errors import ArtefactError
from butterfly_sdm.imagery.options import CompositeOptions
from butterfly_sdm.imagery.scene import open_scene
from data_prep.imagery import cutting
from data_prep.imagery.composites import make_composite
from data_prep.imagery.cutting import CutReport, cut_tiles
from data_prep.imagery.ledger import Ledger, at, checksum_of, place_of
from data_prep.imagery.options import TileOptions
from data_prep.imagery.tile_grids import tile_grid
from tests.data_prep.imagery.test_cutting import LEFT, TOP, Serial, degrees
from tests.imagery.rasters import counts, write_raster


@pytest.fixture
def many_units(monkeypatch):
    """Write the journal after every unit, and make units small."""
    monkeypatch.setattr("data_prep.imagery.blocks.UNIT_BYTES", 20_000)
    monkeypatch.setattr(cutting, "WARP_TILES", 4)
    monkeypatch.setattr("data_prep.imagery.ledger.WRITE_S", 0.0)


def _mosaic(folder):
    """Return three pieces side by side that overlap, with gaps, and 40 places on them."""
    scenes = []
    for number in range(3):
        values = counts(150, 150, seed=number)
        values[:, 30:50, 60:90] = 0
        values[1, 100:110, 20:60] = 0
        scenes.append(write_raster(folder / f"{number}.tif", values, left=LEFT + 1000 * number))
    random = np.random.default_rng(3)
    east, north = random.uniform(150, 3300, 40), random.uniform(150, 1350, 40)
    return open_scene(scenes), degrees(LEFT + east, TOP - north)


def _flip(path, rng):
    data = bytearray(path.read_bytes())
    head = 128 if path.suffix == ".npy" else 0
    if len(data) > head:
        data[int(rng.integers(head, len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)


def _halve(path, _):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "whole": lambda folder, rng: None,
    "pixels flipped": lambda folder, rng: _flip(folder / "tiles.npy", rng),
    "pixels halved": lambda folder, rng: _halve(folder / "tiles.npy", rng),
    "journal flipped": lambda folder, rng: _flip(folder / "tiles.npy.done", rng),
    "journal halved": lambda folder, rng: _halve(folder / "tiles.npy.done", rng),
}


@pytest.mark.parametrize("crs", [None, "EPSG:32630"])
@pytest.mark.parametrize("how", list(DAMAGE))
@pytest.mark.parametrize("step", [19, pytest.param(2, marks=pytest.mark.slow)])
def test_whatever_was_damaged_ends_in_the_same_tiles(tmp_path, many_units, crs, how, step, caplog):
    scene, places = _mosaic(tmp_path)
    grid = tile_grid(*places, scene, TileOptions(size_px=24, crs=crs))
    whole = CutReport()
    valid = cut_tiles(scene, grid, tmp_path / "whole.npy", executor=Serial(), report=whole)
    rng = np.random.default_rng(list(DAMAGE).index(how))
    warned = 0
    for killed_after in range(3, whole.units_done, step):
        with pytest.raises(KeyboardInterrupt):
            cut_tiles(scene, grid, tmp_path / "tiles.npy", executor=Serial(killed_after))
        DAMAGE[how](tmp_path, rng)
        with caplog.at_level(logging.WARNING):
            again = cut_tiles(scene, grid, tmp_path / "tiles.npy", executor=Serial())
        np.testing.assert_array_equal(again, valid)
        assert (tmp_path / "tiles.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
        warned += bool(caplog.records)
        caplog.clear()
    if how == "whole":
        assert not warned
    elif step == 2 and how.endswith("flipped"):
        assert warned


def test_a_finished_cut_is_looked_over_when_its_journal_is_kept(tmp_path, many_units, caplog):
    scene, places = _mosaic(tmp_path)
    grid = tile_grid(*places, scene, TileOptions(size_px=24))
    out = tmp_path / "tiles.npy"
    cut_tiles(scene, grid, out, keep_journal=True)
    whole = out.read_bytes()
    report = CutReport()
    cut_tiles(scene, grid, out, keep_journal=True, report=report)
    assert report.units_done == 0 and not caplog.records
    _flip(out, np.random.default_rng(0))
    cut_tiles(scene, grid, out, report=report)
    assert report.units_done == 0 and out.read_bytes() == whole
    assert "1 of 40 tiles" in caplog.text and "were damaged since they were cut" in caplog.text


@pytest.mark.parametrize("how", ["flip", "halve"])
def test_a_damaged_block_of_a_composite_is_made_again(
    tmp_path, many_units, monkeypatch, how, caplog
):
    monkeypatch.setattr("data_prep.imagery.composites.BLOCK_PX", 64)
    paths = [
        write_raster(tmp_path / f"S2_2020060{day}.tif", counts(150, 150, seed=day))
        for day in (1, 2, 3)
    ]
    scene = open_scene(paths)
    made = make_composite(scene, tmp_path / "whole.tif", CompositeOptions())
    work = tmp_path / ".again.work.npy"
    with pytest.raises(KeyboardInterrupt):
        make_composite(scene, tmp_path / "again.tif", CompositeOptions(), executor=Serial(5))
    assert work.is_file()
    data = bytearray(work.read_bytes())
    data[200] ^= 4  # of the first block
    work.write_bytes(data if how == "flip" else data[: len(data) // 2])
    again = make_composite(scene, tmp_path / "again.tif", CompositeOptions())
    assert again.path.read_bytes() == made.path.read_bytes()
    assert how != "flip" or "1 of 5 blocks" in caplog.text


def test_a_ledger_keeps_the_last_checksum_of_a_place_and_refuses_a_changed_line(tmp_path):
    array = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.uint16, (4, 3))
    ledger = Ledger(tmp_path / "done", array)
    ledger.add("one", ["0", "1"])
    array[1] = 7
    ledger.add("two", ["1"])
    ledger.doubt(["3"])
    ledger.save()
    again = Ledger(tmp_path / "done", array)
    assert again.done == {"one", "two"} and again.doubted == {"3"} and again.unlike() == set()
    array[0, 0] = 1
    assert again.unlike() == {"0"}
    text = (tmp_path / "done").read_text()
    (tmp_path / "done").write_text(text.replace("two", "six"))
    with pytest.raises(ArtefactError, match="was changed since it was written"):
        Ledger(tmp_path / "done", array)


@pytest.mark.parametrize("shape", [(3,), (2, 5, 7), (4, 64, 64), (4, 100, 100)])
def test_every_changed_bit_changes_the_checksum(shape):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 9000, shape, dtype=np.uint16)
    whole = checksum_of(values)
    assert checksum_of(values.copy()) == whole
    for _ in range(200):
        changed = values.copy()
        changed.reshape(-1).view(np.uint8)[rng.integers(changed.nbytes)] ^= 1 << rng.integers(8)
        assert checksum_of(changed) != whole
    if values.nbytes > 8192:
        assert checksum_of(np.roll(values.reshape(-1), 2048)) != whole


def test_a_place_is_named_and_found_again():
    where = (slice(0, 4), slice(512, 1024))
    assert at(place_of(where)) == where and at("12") == (12,)
