"""Implausible reflectances are said in plain words, plausible ones are not."""

from itertools import permutations

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from butterfly_sdm.imagery.scene import open_scene
from butterfly_sdm.imagery.spectral_check import implausible, sample_pixels
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


#: Typical surface reflectances of red, green, blue and near infrared.
COVERS = np.array(
    [
        (0.03, 0.05, 0.025, 0.32),  # broadleaved wood
        (0.02, 0.03, 0.018, 0.20),  # conifers
        (0.05, 0.08, 0.040, 0.42),  # meadow
        (0.13, 0.11, 0.070, 0.28),  # ripe crop, dry grass
        (0.16, 0.12, 0.085, 0.23),  # bare soil
        (0.15, 0.14, 0.125, 0.20),  # town
    ]
)


#: The same of the north in May.
NORTH = np.array(
    [
        (0.020, 0.028, 0.018, 0.17),  # conifers, low sun
        (0.065, 0.055, 0.038, 0.17),  # birch without leaves
        (0.090, 0.072, 0.045, 0.19),  # mire
        (0.720, 0.740, 0.750, 0.66),  # snow
        (0.020, 0.022, 0.025, 0.01),  # lakes
        (0.120, 0.100, 0.070, 0.22),  # last year's grass
    ]
)


def mixed(
    shares: list[float], *, haze: float = 0.0, seed: int = 0, covers: np.ndarray = COVERS
) -> np.ndarray:
    """
    Return a tile of mixed covers whose brightness varies; haze adds most to blue and takes contrast
    from it.
    """
    random = np.random.default_rng(seed)
    weight = random.dirichlet(np.asarray(shares) * 2 + 0.02, 64 * 64)
    values = (weight @ covers) * random.normal(1, 0.08, (64 * 64, 1)) + random.normal(
        0, 0.002, (64 * 64, 4)
    )
    values = values * (1 - haze * np.array([0.3, 0.5, 0.8, 0.1])) + haze * np.array(
        [0.03, 0.05, 0.09, 0.01]
    )
    return np.rint(values.T.reshape(4, 64, 64) * 10_000).clip(1).astype(np.uint16)


@pytest.mark.parametrize("haze", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "shares", [[1, 1, 1, 1, 1, 1], [4, 2, 1, 0, 0, 0], [0, 0, 1, 3, 3, 1], [1, 0, 4, 1, 0, 0]]
)
def test_haze_over_land_hides_no_swap_and_makes_none_up(shares, haze):
    tiles = np.stack([mixed(shares, haze=haze, seed=seed) for seed in range(4)])
    assert "swapped" not in said(tiles)
    for order in permutations(("red", "green", "blue")):
        if order != RIGHT[:3]:
            assert "swapped" in said(tiles, (*order, "nir"))
    assert "red and blue look swapped" in said(tiles, ("blue", "green", "red", "nir"))
    assert "green and red look swapped" in said(tiles, ("green", "red", "blue", "nir"))
    circle = said(tiles, ("green", "blue", "red", "nir"))
    assert "what is called blue is green, green is red and red is blue" in circle


def test_one_odd_tile_decides_nothing():
    tiles = np.stack([mixed([1, 1, 1, 1, 1, 1], seed=seed) for seed in range(9)])
    odd = tiles.copy()
    odd[:2, [0, 2]] = odd[:2, [2, 0]]
    assert said(odd) == ""
    message = said(odd, ("blue", "green", "red", "nir"))
    assert (
        "7 of 9 tiles or groups of tiles look the wrong way round: red and blue look swapped"
        in message
    )


def test_a_band_given_twice_and_a_constant_band_are_named(tiles):
    doubled = tiles.copy()
    doubled[:, 2] = doubled[:, 1]
    assert "Bands green and blue hold the same values" in said(doubled)
    doubled[:, 3] = doubled[:, 1]
    assert "Bands green and blue, green and nir hold the same values" in said(doubled)
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
    water = (
        np.random.default_rng(0)
        .normal([[[300]], [[450]], [[500]], [[150]]], 20, (4, 64, 64))
        .astype(np.uint16)[None]
    )
    assert said(water) == ""
    assert said(np.zeros((2, 4, 32, 32), np.uint16)) == ""


def test_every_real_tile_is_plausible_and_shows_when_its_bands_are_swapped(shared):
    folders = [shared / "data" / "s2bms" / "tiles", shared / "data" / "sentinel2" / "uk_tiles_2024"]
    paths = sorted(path for folder in folders for path in folder.glob("*.tif"))
    assert len(paths) == 26
    for path in paths:
        with rasterio.open(path) as file:
            tile = file.read()[None]
        assert said(tile) == "", path.name
        assert "red and blue look swapped" in said(tile, ("blue", "green", "red", "nir")), path.name


def test_a_hazy_scene_of_winter_and_cloudy_products_make_no_false_alarm(shared):
    folder = shared / "data" / "sentinel2"
    with rasterio.open(
        folder / "scene_10m_virginia.tif"
    ) as file:  # Level-1C, blue is its brightest visible band
        scene = file.read()[None]
    assert said(scene, ("blue", "green", "red", "nir")) == ""
    assert "red and blue look swapped" in said(scene)
    for product in (
        "S2B_33TWL_20230810_0_L2A",
        "S2A_33TWL_20230818_0_L2A",
        "S2B_33TWM_20230813_0_L2A",
    ):
        path = folder / "l2a_products" / product
        piece = open_scene(path).select(RIGHT)
        values, _ = piece.read(Window(0, 0, piece.width, piece.height))
        assert "swapped" not in said(values[None], offset=piece.offset), product


MAY = {
    "conifers": [6, 1, 1, 0, 0.3, 0.2],
    "birch": [0, 1, 0, 0, 0, 0],
    "mires": [2, 1, 4, 0, 0.5, 1],
    "snow": [3, 1, 1, 3, 0.3, 0],
    "lakes": [2, 1, 0, 0, 4, 0],
}


@pytest.mark.parametrize("haze", [0.0, 0.5])
@pytest.mark.parametrize("place", MAY)
def test_the_north_in_may_makes_no_false_alarm(place, haze):
    tiles = [mixed(MAY[place], haze=haze, seed=seed, covers=NORTH) for seed in range(6)]
    assert said(np.stack(tiles)) == ""


@pytest.mark.parametrize("scale", [1e-3, 1e-5])
@pytest.mark.parametrize("place", ["fields", "conifers", "birch", "mires"])
def test_a_scale_wrong_by_a_factor_of_ten_is_noticed(place, scale):
    shares, covers = (MAY[place], NORTH) if place in MAY else ([1, 0, 4, 1, 0, 0], COVERS)
    tiles = np.stack([mixed(shares, seed=seed, covers=covers) for seed in range(4)])
    assert f"Is the scale {scale:g} right" in said(tiles, scale=scale)
