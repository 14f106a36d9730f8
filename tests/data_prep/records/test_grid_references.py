"""A grid reference is a square of the ground, and back."""

import re

import numpy as np
import osbng
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterfly_sdm.errors import RecordsError
from data_prep.records.places.grid_references import (
    SIZES_M,
    GridSquare,
    grid_of,
    squares_of,
    to_metres,
)

sizes = st.sampled_from(SIZES_M)
west, north = st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)


@settings(deadline=None)
@given(sizes, west, north, st.sampled_from([("GB", 700_000, 1_300_000), ("IE", 500_000, 500_000)]))
def test_a_reference_round_trips_to_its_square_at_every_resolution(size, x, y, grid):
    name, width, height = grid
    square = GridSquare(name, int(x * width) // size * size, int(y * height) // size * size, size)
    assert GridSquare.parse(square.reference) == square


@settings(deadline=None)
@given(st.sampled_from([s for s in SIZES_M if s not in (2_000,)]), west, north)
def test_british_references_are_those_of_the_ordnance_survey(size, x, y):
    square = GridSquare(
        "GB", int(x * 700_000) // size * size, int(y * 1_300_000) // size * size, size
    )
    oracle = osbng.BNGReference(square.reference)
    left, low, right, high = oracle.bng_to_bbox()
    assert (left, low, right - left, high - low) == (square.easting, square.northing, size, size)


def test_tetrads_are_lettered_from_the_south_west_corner_northwards_without_o():
    letters = [
        [
            GridSquare("GB", 410_000 + 2_000 * c, 120_000 + 2_000 * r, 2_000).reference
            for r in range(5)
        ]
        for c in range(5)
    ]
    assert ["".join(name[-1] for name in column) for column in letters] == [
        "ABCDE",
        "FGHIJ",
        "KLMNP",
        "QRSTU",
        "VWXYZ",
    ]


@pytest.mark.parametrize("text", ["su 12 34", "SU1234", "Su-12-34", " SU 1234 "])
def test_a_reference_may_be_written_with_spaces_and_small_letters(text):
    assert GridSquare.parse(text) == GridSquare("GB", 412_000, 134_000, 1_000)


@pytest.mark.parametrize(
    ("text", "east", "north", "size"),
    [
        ("J12", 310_000, 320_000, 10_000),
        ("IJ1234", 312_000, 334_000, 1_000),
        ("V00A", 0, 0, 2_000),
        ("O12NE", 315_000, 225_000, 5_000),
    ],
)
def test_irish_references_have_one_letter(text, east, north, size):
    assert GridSquare.parse(text) == GridSquare("IE", east, north, size)


def test_a_known_place_lies_in_its_square():
    # Stonehenge: 51.1789 N, 1.8262 W is in SU1242.
    found = squares_of(np.array([-1.8262]), np.array([51.1789]), 1_000)[0]
    assert found is not None and found.reference == "SU1242"
    assert found.footprint().bounds[0] < -1.8262 < found.footprint().bounds[2]
    # Newgrange: 53.6947 N, 6.4755 W is in O0072 of the Irish grid.
    irish = squares_of(np.array([-6.4755]), np.array([53.6947]), 1_000)[0]
    assert irish is not None and (irish.grid, irish.reference) == ("IE", "O0072")


def test_the_footprint_has_the_corners_of_the_square():
    square = GridSquare.parse("SU1234")
    x, y = to_metres("GB", *np.array(square.footprint().exterior.coords).T)
    assert np.allclose(
        [x.min(), x.max(), y.min(), y.max()], [412_000, 413_000, 134_000, 135_000], atol=0.01
    )


def test_ireland_is_told_from_its_neighbours():
    # Belfast, Cork, Rathlin; Mull of Kintyre, Holyhead, Isle of Man, St Davids, Islay
    lon = np.array([-5.93, -8.47, -6.2, -5.75, -4.63, -4.5, -5.27, -6.2])
    lat = np.array([54.6, 51.9, 55.29, 55.31, 53.31, 54.2, 51.88, 55.75])
    assert list(grid_of(lon, lat)) == ["IE"] * 3 + ["GB"] * 5


def test_a_square_lies_in_the_larger_square_of_its_reference():
    assert GridSquare.parse("SU12345678").coarsen(10_000).reference == "SU15"
    assert GridSquare.parse("SU1534").coarsen(2_000).reference == "SU13M"


def test_a_square_cannot_be_placed_in_a_smaller_or_an_overlapping_one():
    with pytest.raises(RecordsError, match="cannot be placed in one of 1000 m"):
        GridSquare.parse("SU12").coarsen(1_000)
    with pytest.raises(RecordsError, match="cannot be placed in one of 5000 m"):
        GridSquare.parse("SU12A").coarsen(5_000)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "12",
        "SU1",
        "SU123",
        "SU12O",
        "SI12",
        "ZZ99",
        "SU12AB",
        "SU1234A",
        "hello",
        "A"[:0] + "AA00",
        "SU123456789012",
    ],
)
def test_what_is_no_reference_is_said_so(text):
    with pytest.raises(
        RecordsError, match=re.escape(repr(text)) + ".*Write letters and an even number"
    ):
        GridSquare.parse(text)


def test_a_corner_off_the_lattice_or_the_grid_is_refused():
    with pytest.raises(RecordsError, match="no corner of a 1000 m square"):
        GridSquare("GB", 412_500, 134_000, 1_000)
    with pytest.raises(RecordsError, match="outside the GB grid"):
        GridSquare("GB", 700_000, 0, 1_000)
    with pytest.raises(RecordsError, match="no GB grid square of 3000 m"):
        GridSquare("GB", 0, 0, 3_000)
    assert squares_of(np.array([2.35]), np.array([48.85]), 1_000) == [None]  # Paris
