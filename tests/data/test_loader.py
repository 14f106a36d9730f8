"""Batches of packed tiles."""

import numpy as np
import pytest
import torch

from butterfly_sdm.data.loader import ReadAhead, TileBatches
from butterfly_sdm.errors import DataError


@pytest.fixture
def tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 60_000, (10, 4, 12, 12), dtype=np.uint16)


def test_the_middle_of_every_tile_comes_in_stored_order_without_shuffling(tiles):
    batches = list(TileBatches(tiles, [7, 2, 3], batch_size=2, crop_px=8, shuffle=False))
    assert [places.tolist() for places, _ in batches] == [[0, 1], [2]]
    counts = torch.cat([counts for _, counts in batches]).numpy()
    np.testing.assert_array_equal(counts, tiles[[7, 2, 3], :, 2:10, 2:10])


def test_shuffled_crops_are_parts_of_their_tiles_and_each_site_comes_once(tiles):
    batches = TileBatches(tiles, range(10), batch_size=3, crop_px=5, seed=3)
    seen = []
    corners = set()
    for places, counts in batches:
        for place, crop in zip(places.tolist(), counts.numpy(), strict=True):
            views = np.lib.stride_tricks.sliding_window_view(tiles[place], (4, 5, 5))[0]
            found = np.argwhere((views == crop).all(axis=(2, 3, 4)))
            assert len(found) == 1
            corners.add(tuple(found[0]))
            seen.append(place)
    assert sorted(seen) == list(range(10))
    assert len(corners) > 4


def test_an_epoch_repeats_itself_and_the_next_differs(tiles):
    batches = TileBatches(tiles, range(10), batch_size=10, crop_px=5)
    first, again = next(iter(batches))[1], next(iter(batches))[1]
    assert torch.equal(first, again)
    batches.set_epoch(1)
    assert not torch.equal(first, next(iter(batches))[1])


def test_bands_are_taken_by_place(tiles):
    _, counts = next(iter(TileBatches(tiles, [4], bands=[3, 0], shuffle=False)))
    np.testing.assert_array_equal(counts.numpy()[0], tiles[4][[3, 0]])


def test_recycled_memory_gives_the_same_batches_while_they_are_in_use(tiles):
    own = [counts for _, counts in TileBatches(tiles, range(10), batch_size=4, crop_px=6)]
    recycled = TileBatches(tiles, range(10), batch_size=4, crop_px=6, recycle=4)
    for _ in range(3):
        for expected, (_, counts) in zip(own, ReadAhead(recycled), strict=True):
            assert torch.equal(expected, counts)


def test_reading_ahead_gives_the_same_items_in_order(tiles):
    batches = TileBatches(tiles, range(10), batch_size=3)
    direct = [counts for _, counts in batches]
    ahead = [counts for _, counts in ReadAhead(batches)]
    assert len(ReadAhead(batches)) == 4
    assert all(torch.equal(a, b) for a, b in zip(direct, ahead, strict=True))


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


def test_a_crop_larger_than_the_tiles_is_refused(tiles):
    with pytest.raises(DataError, match="13 px are larger than the tiles of 12 px"):
        TileBatches(tiles, [0], crop_px=13)
    with pytest.raises(DataError, match="there are 10 tiles"):
        TileBatches(tiles, [10])
