"""Means and spreads of embeddings in squares, against plain loops over pixels."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pyproj import Transformer
from rasterio.windows import Window

from butterfly_sdm.imagery.embeddings import squares
from butterfly_sdm.imagery.embeddings.collection import open_embeddings
from butterfly_sdm.imagery.embeddings.decoding import Decoding
from butterfly_sdm.imagery.embeddings.options import EmbeddingReading
from butterfly_sdm.imagery.embeddings.squares import (
    Cells,
    Centred,
    Rectangles,
    needed_windows,
    square_statistics,
)
from tests.imagery.embeddings.layouts import (
    ZONE_30,
    ZONE_31,
    alphaearth_value,
    stored_bytes,
    write_alphaearth,
    write_tessera,
)

ALPHAEARTH = EmbeddingReading(preset="alphaearth", bands=8)
LEFT, TOP = 500_000, 5_700_000


def in_loops(values, left, top, x, y, side):
    """Mean and spread of (bands, h, w) values, NaN where missing, around one place."""
    found = []
    for row in range(values.shape[1]):
        for column in range(values.shape[2]):
            dx, dy = left + 10 * column + 5 - x, top - 10 * row - 5 - y
            inside = -side / 2 <= dx < side / 2 and -side / 2 < dy <= side / 2
            if inside and np.isfinite(values[:, row, column]).all():
                found.append(values[:, row, column].astype(float))
    if not found:
        return np.full(len(values), np.nan), np.full(len(values), np.nan)
    return np.mean(found, axis=0), np.std(found, axis=0)


@pytest.mark.parametrize("bottom_up", [True, False])
def test_statistics_are_those_of_the_pixels_in_the_square(tmp_path, monkeypatch, bottom_up):
    monkeypatch.setattr(squares, "WINDOW_VALUES", 8 * 16 * 16)  # many windows
    monkeypatch.setattr(squares, "CHUNK_VALUES", 3 * 16 * 16)  # and bands apart
    stored = stored_bytes(8)
    stored[:, 10:14, 20:30] = -128
    write_alphaearth(tmp_path, stored, bottom_up=bottom_up)
    values = alphaearth_value(stored.astype(float))
    values[:, (stored == -128).all(axis=0)] = np.nan
    rng = np.random.default_rng(5)
    x, y = LEFT + rng.uniform(-60, 700, 25), TOP - rng.uniform(-60, 540, 25)
    x[:3], y[:3] = [LEFT + 250, LEFT + 5, LEFT - 9000], [TOP - 120, TOP - 5, TOP]
    sides = (5.0, 70.0, 400.0)
    embeddings = open_embeddings(tmp_path, ALPHAEARTH)
    with ThreadPoolExecutor(2) as executor:
        mean, spread = square_statistics(
            embeddings, x, y, ZONE_30, sides_m=sides, executor=executor
        )
    for place in range(len(x)):
        for number, side in enumerate(sides):
            expected = in_loops(values, LEFT, TOP, x[place], y[place], side)
            if side == 5.0:  # smaller than a pixel: the one at the middle
                row, column = int((TOP - y[place]) // 10), int((x[place] - LEFT) // 10)
                there = 0 <= row < 48 and 0 <= column < 64
                one = values[:, row, column] if there else np.full(8, np.nan)
                expected = one, one * 0
            np.testing.assert_allclose(mean[place, number], expected[0], rtol=2e-6, atol=2e-6)
            np.testing.assert_allclose(spread[place, number], expected[1], rtol=2e-5, atol=2e-6)
    assert np.isnan(mean[2]).all() and np.isnan(spread[2]).all()


def test_a_small_spread_beside_a_large_mean_is_kept(tmp_path):
    rng = np.random.default_rng(0)
    stored = (120 + rng.integers(0, 2, (8, 48, 64))).astype(np.int8)
    write_alphaearth(tmp_path, stored)
    _, spread = square_statistics(
        open_embeddings(tmp_path, ALPHAEARTH), [LEFT + 320], [TOP - 240], ZONE_30, sides_m=[400.0]
    )
    values = alphaearth_value(stored[:, 4:44, 12:52].astype(float))
    np.testing.assert_allclose(spread[0, 0], values.std(axis=(1, 2)), rtol=1e-4)


def test_a_square_on_the_edge_of_two_zones_takes_the_pixels_of_both(tmp_path):
    east = Transformer.from_crs("EPSG:4326", ZONE_30, always_xy=True).transform(0.0, 52.0)
    west = Transformer.from_crs("EPSG:4326", ZONE_31, always_xy=True).transform(0.0, 52.0)
    left, right = stored_bytes(8, 60, 30, seed=1), stored_bytes(8, 60, 30, seed=2)
    corners = round(east[0], -1), round(east[1], -1), round(west[0], -1), round(west[1], -1)
    write_alphaearth(tmp_path, left, left=corners[0] - 300, top=corners[1] + 300)
    write_alphaearth(tmp_path, right, left=corners[2], top=corners[3] + 300, crs=ZONE_31)
    both = open_embeddings(tmp_path, ALPHAEARTH)
    mean, spread = square_statistics(both, [east[0]], [east[1]], ZONE_30, sides_m=[200.0])
    values = [alphaearth_value(part.astype(float)) for part in (left, right)]
    inside = np.concatenate(
        [values[0][:, 20:40, 20:30].reshape(8, -1), values[1][:, 20:40, 0:10].reshape(8, -1)],
        axis=1,
    )
    np.testing.assert_allclose(mean[0, 0], inside.mean(axis=1), atol=0.02)
    np.testing.assert_allclose(spread[0, 0], inside.std(axis=1), atol=0.02)
    for file, expected in zip(both.files, values, strict=True):
        found, _ = file.read(Window(0, 0, 30, 60))
        np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_pixels_of_tessera_are_scaled_before_they_are_averaged(tmp_path):
    rng = np.random.default_rng(2)
    stored, scales = stored_bytes(8, 30, 30), rng.uniform(0.01, 0.1, (30, 30)).astype(np.float32)
    scales[3, 4] = np.nan
    write_tessera(tmp_path, stored, scales)
    reading = EmbeddingReading(preset="tessera", bands=8)
    mean, spread = square_statistics(
        open_embeddings(tmp_path, reading),
        [300_157.4],
        [5_769_853.1],
        ZONE_31,
        sides_m=[300.0],
    )
    values = (stored * scales)[:, np.isfinite(scales)].astype(float)
    np.testing.assert_allclose(mean[0, 0], values.mean(axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(spread[0, 0], values.std(axis=1), rtol=1e-5)


def test_sums_over_rectangles_are_those_of_loops():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(3, 20, 30)).astype(np.float32)
    top, first = rng.integers(0, 19, 40), rng.integers(0, 29, 40)
    some = Rectangles(top, rng.integers(top + 1, 21), first, rng.integers(first + 1, 31))
    expected = [
        values[:, t:b, left:right].astype(float).sum(axis=(1, 2))
        for t, b, left, right in zip(*vars(some).values(), strict=True)
    ]
    centred = Centred(Decoding("none"), values, None, None, np.zeros(3, np.float32))
    sums, of_squares = Cells.of(some).sums(centred)
    np.testing.assert_allclose(sums, expected, atol=1e-4)
    again = Centred(Decoding("none"), values**2, None, None, np.zeros(3, np.float32))
    np.testing.assert_allclose(of_squares, Cells.of(some).sums(again)[0], rtol=1e-5)


def test_only_blocks_that_a_square_touches_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(squares, "WINDOW_VALUES", 8 * 16 * 16)
    write_alphaearth(tmp_path, stored_bytes(8))
    (file,) = open_embeddings(tmp_path, ALPHAEARTH).files
    one = Rectangles(np.array([15]), np.array([17]), np.array([32]), np.array([48]))
    windows = needed_windows(file, one)
    assert [(w.row_off, w.col_off) for w in windows] == [(0, 32), (16, 32)]
