"""Counting what is measured takes bounded memory, however far apart the positions are."""

import numpy as np
import pytest

from butterfly_sdm.imagery.scene import open_scene
from butterfly_sdm.mapping.surfaces import exact
from butterfly_sdm.mapping.surfaces.exact import valid_fractions
from butterfly_sdm.mapping.surfaces.lattice import Lattice
from tests.imagery.rasters import counts, write_raster


@pytest.mark.parametrize(("stride", "window"), [(20, 0), (13, 0), (10, 24), (30, 8), (60, 0)])
@pytest.mark.parametrize("most", [1, 50, 700, 2000])
def test_counts_are_those_of_one_large_window(tmp_path, monkeypatch, stride, window, most):
    values = counts(100, 120)
    values[:, 20:60, 30:40] = 0
    values[1, 70:, 50:] = 0
    scene = open_scene(write_raster(tmp_path / "a.tif", values))
    lattice = Lattice.of(scene, stride_px=stride, window_px=window)
    rows, cols = slice(0, lattice.height), slice(0, lattice.width)
    whole = valid_fractions(scene, lattice, rows, cols)
    read = []
    real = type(scene).read
    monkeypatch.setattr(exact, "MOST_PIXELS", most)
    monkeypatch.setattr(
        type(scene),
        "read",
        lambda self, at: read.append(at.width * at.height) or real(self, at),
    )
    np.testing.assert_array_equal(valid_fractions(scene, lattice, rows, cols), whole)
    assert max(read) <= max(most, window or stride)
    assert 0 < whole.mean() < 1
