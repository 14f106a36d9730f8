"""Packed tiles are read by the name of their bands, cropped, and ahead of the loop."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.tiles import ReadAhead, TileReader
from butterfly_sdm.errors import DataError, ModelError
from tests.models.conftest import BANDS, make_dataset


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    made = make_dataset(10, tile_px=32)
    return replace(
        made, tiles=np.random.default_rng(0).integers(1, 60_000, made.tiles.shape, dtype=np.uint16)
    )


def test_the_middle_of_a_tile_or_a_cut_at_a_corner(dataset):
    reader = TileReader(dataset, BANDS, 20)
    rows = torch.tensor([7, 2, 3])
    assert reader.slack == (12, 12)
    np.testing.assert_array_equal(
        reader.read(rows).numpy(), dataset.tiles[[7, 2, 3], :, 6:26, 6:26]
    )
    cut = reader.read(rows, torch.tensor([[0, 12], [5, 1], [12, 12]])).numpy()
    np.testing.assert_array_equal(cut[0], dataset.tiles[7, :, :20, 12:])
    np.testing.assert_array_equal(cut[1], dataset.tiles[2, :, 5:25, 1:21])
    assert reader.read(rows[:0]).shape == (0, 4, 20, 20)


def test_bands_are_taken_by_name(dataset):
    counts = TileReader(dataset, ("nir", "red"), 32).read(torch.tensor([4])).numpy()
    np.testing.assert_array_equal(counts[0], dataset.tiles[4][[3, 0]])


def test_memory_that_is_used_again_gives_the_same_counts(dataset):
    reader = TileReader(dataset, BANDS, 16)
    memory = reader.memory(6)
    for rows in (torch.tensor([1, 2, 3, 4, 5, 6]), torch.tensor([9, 0])):
        counts = reader.read(rows, into=memory)
        assert counts.data_ptr() == memory.data_ptr()
        assert torch.equal(counts.int(), reader.read(rows).int())


def test_reading_ahead_gives_the_same_items_in_order(dataset):
    reader = TileReader(dataset, BANDS, 32)
    source = [torch.tensor([row, 9 - row]) for row in range(10)]
    ahead = list(ReadAhead([reader.read(rows) for rows in source]))
    assert len(ReadAhead(source)) == 10
    assert all(
        torch.equal(a.int(), reader.read(rows).int()) for a, rows in zip(ahead, source, strict=True)
    )


def test_an_error_while_reading_ahead_reaches_the_loop():
    def broken():
        yield 1
        raise DataError("the disk is gone")

    with pytest.raises(DataError, match="the disk is gone"):
        list(ReadAhead(broken()))


def test_a_loop_left_early_leaves_no_thread_behind():
    import threading

    before = threading.active_count()
    for item in ReadAhead(range(1000)):
        if item == 3:
            break
    assert threading.active_count() == before


def test_what_is_not_there_is_said(dataset):
    with pytest.raises(ModelError, match="32 px wide; the network looks at 33 px"):
        TileReader(dataset, BANDS, 33)
    with pytest.raises(
        ModelError, match="needs the band swir16; the tiles have red, green, blue, nir"
    ):
        TileReader(dataset, ("red", "swir16"), 32)
    with pytest.raises(DataError, match="has no tiles"):
        TileReader(make_dataset(6, image=False), BANDS, 32)
    with pytest.raises(DataError, match="Tiles 3 to 10 are asked for; there are 10"):
        TileReader(dataset, BANDS, 32).read(torch.tensor([3, 10]))
