"""Composed blocks are made once and kept until nobody asks for them any more."""

import threading
from collections import Counter
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
from rasterio.windows import Window

from butterfly_sdm.imagery.composites import kept as kept_module
from butterfly_sdm.imagery.composites import stacks
from butterfly_sdm.imagery.composites.kept import KeptBlocks
from butterfly_sdm.imagery.options import CompositeOptions
from butterfly_sdm.imagery.scene import open_scene
from butterfly_sdm.mapping.surfaces import streaming
from data_prep.imagery.composites import compose_lazily
from tests.imagery.rasters import write_raster

PX, BANDS = 8, 2
BYTES = PX * PX * (2 * BANDS + 1)


def block(number):
    return np.full((BANDS, PX, PX), number, np.uint16), np.eye(PX, dtype=bool) ^ (number % 2 == 0)


@pytest.fixture
def holds_two(monkeypatch):
    monkeypatch.setattr(kept_module, "KEPT_BYTES", 2 * BYTES)


def test_what_is_asked_for_again_comes_from_the_file_as_it_was_and_goes_when_passed(
    tmp_path, holds_two
):
    kept, made = KeptBlocks(), []

    def ask(number):
        def make():
            made.append(number)
            return block(number)

        return kept.get(number, make)

    asked = Counter({0: 2, 1: 2, 2: 1, 3: 1, 4: 1})
    kept.expect(asked, tmp_path, most_bytes=10 * BYTES)
    for number in range(5):
        ask(number)
        kept.passed([number])
    for number in (1, 0):
        values, valid = ask(number)
        np.testing.assert_array_equal(values, block(number)[0])
        np.testing.assert_array_equal(valid, block(number)[1])
        assert number in kept
        kept.passed([number])
        assert number not in kept
    assert made == [0, 1, 2, 3, 4]
    assert list(tmp_path.iterdir()) == []  # the file has no name


def test_without_room_on_the_disk_blocks_are_made_again(tmp_path, holds_two):
    kept, made = KeptBlocks(), []
    kept.expect(Counter(dict.fromkeys(range(4), 2)), tmp_path, most_bytes=BYTES)
    for number in (0, 1, 2, 3, 0, 1):
        values, _ = kept.get(number, lambda n=number: made.append(n) or block(n))
        assert (values == number).all()
    assert made == [0, 1, 2, 3, 1]  # 0 lay in the file


def test_threads_that_ask_at_once_make_a_block_once_and_share_its_error(monkeypatch):
    waiting, made, errors = threading.Semaphore(0), [], []

    class Told(Future):
        def result(self, timeout=None):
            waiting.release()
            return super().result(timeout)

    def make():
        made.append(1)
        for _ in range(3):
            assert waiting.acquire(timeout=60)  # all others wait for this one
        raise ValueError("damaged")

    def ask():
        try:
            kept.get("a", make)
        except ValueError as error:
            errors.append(str(error))

    monkeypatch.setattr(kept_module, "Future", Told)
    kept = KeptBlocks()
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == ["damaged"] * 4
    assert made == [1]
    assert (kept.get("a", lambda: block(3))[0] == 3).all()  # an error is not kept


@pytest.mark.parametrize("limit", [10**9, 1])
@pytest.mark.parametrize("supplied", [64, 24])
def test_windows_of_a_map_compose_every_block_once(tmp_path, monkeypatch, limit, supplied):
    side, random = 128, np.random.default_rng(3)
    for day in ("20230601", "20230611", "20230621"):
        values = random.integers(1, 3000, (2, side, side)).astype(np.uint16)
        folder = tmp_path / f"S2A_{day}"
        for name, band in zip(("B04", "B08"), values, strict=True):
            write_raster(
                folder / f"{name}.tif",
                band[None],
                names=None,
                tiled=True,
                blockxsize=16,
                blockysize=16,
            )
    monkeypatch.setattr(kept_module, "KEPT_BYTES", limit)
    monkeypatch.setattr(stacks, "BLOCK_PX", 16)
    scene = open_scene(sorted(tmp_path.glob("S2A*"))).select(["red", "nir"])
    lazy, _ = compose_lazily(scene, CompositeOptions())
    composed = Counter()
    compose = stacks.compose

    def counted(scene, stack, block, out):
        composed[block.row_off, block.col_off] += 1
        return compose(scene, stack, block, out)

    monkeypatch.setattr(stacks, "compose", counted)
    whole = lazy.read(Window(0, 0, side, side))[0]
    composed.clear()
    lazy.kept.__init__()
    windows = [
        Window(c - 8, r - 8, supplied + 16, supplied + 16)
        for r in range(0, side, supplied)
        for c in range(0, side, supplied)
    ]
    units = [SimpleNamespace(scene=lazy, pixels=window) for window in windows]
    monkeypatch.setattr(streaming, "KEPT_BYTES", limit)
    stream = streaming.Stream(lazy, units, tmp_path)
    for unit in units:
        values, _ = lazy.read_in_strips(unit.pixels)
        column, row = unit.pixels.col_off, unit.pixels.row_off
        r, c = max(row, 0), max(column, 0)
        part = whole[:, r : row + unit.pixels.height, c : column + unit.pixels.width]
        inside = values[:, r - row :, c - column :][:, : part.shape[1], : part.shape[2]]
        np.testing.assert_array_equal(inside, part)
        stream.done(unit)
    assert set(composed.values()) == {1}
    assert len(composed) == (side // 16) ** 2
    assert not any(key in lazy.kept for key in lazy.expected([windows[0]])[0])
    stream.close()
