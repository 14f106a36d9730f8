"""Implausible reflectances are said in plain words, plausible ones are not."""

from itertools import permutations

import numpy as np
import pytest
import rasterio

from butterfly_sdm.data.spectral import implausible, sample_pixels
from tests.data_prep.surveys import land

RIGHT = ("red", "green", "blue", "nir")


def said(tiles: np.ndarray, bands=RIGHT, **options) -> str:
    return " ".join(implausible(sample_pixels(tiles, bands=bands, **options)))


@pytest.fixture
def tiles() -> np.ndarray:
    return np.stack([land(64, 64, seed) for seed in range(6)])


def test_fields_and_woods_are_plausible(tiles):
    assert said(tiles) == ""


@pytest.mark.parametrize("order", [order for order in permutations(RIGHT) if order != RIGHT])
def test_every_wrong_order_of_the_bands_is_noticed(tiles, order):
    assert "swapped" in said(tiles, order)


def test_red_and_blue_in_each_others_place_are_named(tiles):
    assert "red and blue look swapped" in said(tiles, ("blue", "green", "red", "nir"))


def test_a_band_given_twice_and_a_constant_band_are_named(tiles):
    doubled = tiles.copy()
    doubled[:, 2] = doubled[:, 1]
    assert "Bands green and blue hold the same values" in said(doubled)
    flat = tiles.copy()
    flat[:, 0] = 700
    assert "Band red holds only the value 700" in said(flat)


def test_a_forgotten_and_a_doubled_offset_are_noticed(tiles):
    assert "need an offset of 1000" in said(tiles + 1000)
    assert said(tiles + 1000, offset=1000) == ""
    assert "Was the offset subtracted twice?" in said(tiles, offset=1000)


def test_a_wrong_scale_and_clipped_values_are_noticed(tiles):
    assert "Is the scale 0.01 right?" in said(tiles, scale=0.01)
    assert "Is the scale 1e-06 right" in said(tiles, scale=1e-6)
    assert "saturated or clipped" in said(np.minimum(tiles, 2500))


def test_water_and_empty_tiles_say_nothing():
    water = np.random.default_rng(0).normal([[[300]], [[450]], [[500]], [[150]]], 20, (4, 64, 64)).astype(np.uint16)[None]
    assert said(water) == ""
    assert said(np.zeros((2, 4, 32, 32), np.uint16)) == ""


def test_the_real_tiles_are_plausible_one_by_one_and_swapped_ones_together_are_not(shared):
    tiles = []
    for path in sorted((shared / "data" / "s2bms" / "tiles").glob("*.tif")):
        with rasterio.open(path) as file:
            tiles.append(file.read())
        assert said(tiles[-1][None]) == "", path.name
    assert "red and blue look swapped" in said(np.stack(tiles), ("blue", "green", "red", "nir"))
