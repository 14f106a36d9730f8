"""Stored numbers of embeddings and their values."""

from pathlib import Path

import numpy as np
import pytest

from butterfly_sdm.errors import RasterError
from butterfly_sdm.imagery.embeddings.decoding import Decoding, band_names, decoding_of
from butterfly_sdm.imagery.embeddings.options import EmbeddingOptions, EmbeddingReading

ALPHAEARTH = EmbeddingReading(preset="alphaearth")
TESSERA = EmbeddingReading(preset="tessera")
EVERY = np.arange(-128, 128, dtype=np.int8)


def test_every_byte_of_alphaearth_is_decoded_as_its_documentation_says():
    decoding = decoding_of(ALPHAEARTH, "int8", nodata=-128.0)
    stored = EVERY[1:].reshape(3, 5, 17)
    by_hand = [(number / 127.5) ** 2 * (1 if number > 0 else -1) for number in range(-127, 128)]
    np.testing.assert_array_equal(
        decoding.decode(stored), np.array(by_hand, dtype=np.float32).reshape(3, 5, 17)
    )
    assert decoding.decode(np.array([0], np.int8))[0] == 0
    assert decoding.nodata == -128


def test_a_unit_vector_of_alphaearth_comes_back_within_its_rounding():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(64, 9, 9))
    values /= np.linalg.norm(values, axis=0)
    stored = np.round(np.sqrt(np.abs(values)) * 127.5 * np.sign(values)).astype(np.int8)
    decoded = decoding_of(ALPHAEARTH, "int8").decode(stored)
    # half a step of the root, at most 1: d(x^2) = 2 |x| dx
    assert np.abs(decoded - values).max() <= 2 * 0.5 / 127.5
    np.testing.assert_allclose(np.linalg.norm(decoded, axis=0), 1, atol=0.02)


def test_a_pixel_without_a_value_in_one_band_has_none():
    decoding = decoding_of(ALPHAEARTH, "int8")
    stored = np.zeros((4, 2, 3), np.int8)
    stored[2, 1, 2] = -128
    expected = np.ones((2, 3), bool)
    expected[1, 2] = False
    np.testing.assert_array_equal(decoding.measured(stored), expected)


@pytest.mark.parametrize("per_band", [False, True], ids=["one scale", "a scale per band"])
def test_every_byte_of_tessera_is_multiplied_by_the_scale_of_its_pixel(per_band):
    rng = np.random.default_rng(1)
    stored = np.resize(EVERY, (8, 16, 4)).astype(np.int8)
    scales = rng.uniform(0.01, 0.2, size=(8, 16, 4) if per_band else (16, 4)).astype(np.float32)
    decoding = decoding_of(TESSERA, "int8", scaled_pixels=True)
    found = decoding.decode(stored, scales)
    assert found.dtype == np.float32
    for band in range(8):
        for row in range(16):
            for column in range(4):
                scale = scales[band, row, column] if per_band else scales[row, column]
                assert found[band, row, column] == np.float32(stored[band, row, column]) * scale
    scales[..., 3, 1] = np.nan
    measured = decoding.measured(stored, scales)
    assert not measured[3, 1] and measured.sum() == measured.size - 1


def test_scale_and_offset_are_those_of_the_file_unless_stated():
    plain = EmbeddingReading()
    assert decoding_of(plain, "uint8", scale=0.5, offset=-3).decode(
        np.array([0, 255], np.uint8)
    ).tolist() == [-3, 124.5]
    stated = EmbeddingReading(rule="linear", scale=0.25, offset=1.0)
    assert decoding_of(stated, "int16", scale=0.5, offset=-3).decode(
        np.array([-4, 32000], np.int16)
    ).tolist() == [0, 8001]
    assert decoding_of(plain, "int8").decode(EVERY).tolist() == EVERY.tolist()


def test_fractions_are_values_already_whatever_the_preset():
    values = np.array([-128.0, 0.25, np.nan], np.float32)
    for reading in (ALPHAEARTH, TESSERA):
        decoding = decoding_of(reading, "float32")
        np.testing.assert_array_equal(decoding.decode(values), values)
        assert decoding.measured(values.reshape(1, 1, 3)).tolist() == [[True, True, False]]


def test_a_rule_that_does_not_fit_is_refused():
    with pytest.raises(RasterError, match="set rule: none"):
        decoding_of(ALPHAEARTH, "uint8")
    with pytest.raises(RasterError, match=r"_scales\.npy"):
        decoding_of(TESSERA, "int8")
    with pytest.raises(RasterError, match=r"_scales\.npy"):
        decoding_of(ALPHAEARTH, "int8", scaled_pixels=True)
    with pytest.raises(RasterError, match="scale of every pixel"):
        Decoding("pixel_scale").decode(EVERY)
    with pytest.raises(ValueError, match="each side once"):
        EmbeddingOptions(path=Path("a"), side_m=(100.0, 100.0))


def test_bands_are_numbered_with_as_many_digits_as_they_need():
    assert band_names(64)[:2] == ("e00", "e01") and band_names(64)[-1] == "e63"
    assert band_names(128)[5] == "e005"


@pytest.mark.parametrize(
    "decoding",
    [
        decoding_of(ALPHAEARTH, "int8"),
        decoding_of(EmbeddingReading(rule="linear", scale=0.25, offset=2.0), "int8"),
        decoding_of(EmbeddingReading(), "int8"),
    ],
    ids=lambda decoding: decoding.rule,
)
def test_unscaled_numbers_become_values_by_one_factor(decoding):
    factor, offset = decoding.factor
    stored, out = EVERY.reshape(1, 16, 16), np.empty((1, 16, 16), np.float32)
    found = decoding.unscaled(stored, None, out, np.empty_like(out))
    assert found is out
    np.testing.assert_allclose(
        found * factor + offset, decoding.decode(stored), rtol=1e-6, atol=1e-7
    )
