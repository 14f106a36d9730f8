"""Where a map has no value, why, and in which units it lies."""

import json
import logging
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import rasterio
from affine import Affine
from rasterio.windows import from_bounds

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import Sees
from butterfly_sdm.errors import RasterError
from butterfly_sdm.imagery.scene import open_scene
from butterfly_sdm.mapping.map import write_map
from butterfly_sdm.mapping.map_file import Band, open_map
from butterfly_sdm.mapping.options import MapOptions
from butterfly_sdm.mapping.sidecars import write_stac
from butterfly_sdm.mapping.surfaces.covariates import sample_raster
from tests.mapping.world import Position, Windows, map_of, read, write_scene


class Warm(Position):
    """Predicts a covariate, and 0.5 where it has none, as models do that fill with a mean."""

    species: tuple[str, ...] = ("Warm",)
    sees = Sees(covariates=("warmth",), position_crs="EPSG:27700")

    def predict(self, dataset: Dataset, sites: Sequence[str]) -> pd.DataFrame:
        assert dataset.covariates is not None
        return (
            dataset.covariates.loc[list(sites), ["warmth"]].fillna(0.5).set_axis(["Warm"], axis=1)
        )


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    # 10 x 8 positions; no imagery in the first row
    return open_scene(write_scene(path, width=320, height=256, hole=(slice(0, 32), slice(None))))


def warmth(path, scene, values, **tags):
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=values.shape[1],
        height=values.shape[0],
        count=1,
        dtype=values.dtype,
        crs=scene.crs,
        transform=scene.transform * Affine.scale(32),
        nodata=tags.pop("nodata", None),
    ) as out:
        out.write(values, 1)
        for name, value in tags.items():
            setattr(out, name, (value,))
    return path


@pytest.mark.parametrize(
    ("hole", "lacking"),
    [
        ((slice(None), slice(6, 10)), 28),  # 4 columns of 7 rows with imagery
        ((slice(0, 2), slice(None)), 10),  # the first of the two rows has no imagery either
        ((slice(0, 0), slice(None)), 0),
    ],
)
@pytest.mark.parametrize("side_m", [None, 320])
def test_where_a_covariate_is_missing_there_is_no_value(
    scene, tmp_path, hole, lacking, side_m, caplog
):
    values = np.full((8, 10), 0.25, np.float32)
    values[hole] = np.nan
    raster = {"path": warmth(tmp_path / "w.tif", scene, values), "side_m": side_m}
    with caplog.at_level(logging.WARNING):
        made = map_of(Warm(), scene, tmp_path / "map.tif", covariates={"warmth": raster}, beside=())
    expected = np.full((8, 10), 0.25)
    expected[hole] = np.nan
    expected[0] = np.nan
    np.testing.assert_array_equal(read(made)[0], expected)
    assert made.counts == {
        "positions": 80,
        "predicted": 70 - lacking,
        "without_imagery": 10,
        "outside_area": 0,
        "without_covariates": lacking,
    }
    assert ("because a covariate has none there" in caplog.text) == bool(lacking)


def test_a_map_without_a_value_is_an_error_and_leaves_no_file(scene, tmp_path):
    values = np.full((8, 10), np.nan, np.float32)
    raster = warmth(tmp_path / "w.tif", scene, values)
    with pytest.raises(RasterError, match=r"of 80, 0 lie outside .* 10 have too few .* 70 lack"):
        map_of(Warm(), scene, tmp_path / "map.tif", covariates={"warmth": raster})
    empty = open_scene(
        write_scene(tmp_path / "empty.tif", width=96, height=96, hole=(slice(None), slice(None)))
    )
    for predictor in (Windows(), Position()):
        with pytest.raises(RasterError, match="No position of the map has a value"):
            map_of(predictor, empty, tmp_path / "map.tif")
    assert not (tmp_path / "map.tif").exists()


@pytest.mark.parametrize(
    ("stored", "scale", "offset", "value"),
    [(2881, 0.1, -273.15, 14.95), (37, 0.01, 0.0, 0.37), (5, 1.0, -4.0, 1.0)],
)
def test_a_covariate_is_read_with_its_scale_and_offset(
    scene, tmp_path, stored, scale, offset, value
):
    values = np.full((8, 10), stored, np.uint16)
    values[0, 0] = 65535
    path = warmth(tmp_path / "w.tif", scene, values, nodata=65535, scales=scale, offsets=offset)
    x, y = np.array([400_010.0, 401_000.0]), np.array([300_150.0, 299_000.0])
    found = sample_raster(path, x, y, "EPSG:27700")
    np.testing.assert_allclose(found, [np.nan, value])


@pytest.mark.parametrize(
    ("left", "top", "code"), [(-2.0, 51.0, 27700), (2.1, 41.5, 32631), (150.0, -30.0, 32756)]
)
def test_a_map_in_degrees_names_a_grid_in_metres(tmp_path, left, top, code):
    path = write_scene(tmp_path / "geo.tif", width=128, height=128)
    with rasterio.open(path, "r+") as out:
        out.crs, out.transform = "EPSG:4326", Affine(9e-5, 0, left, 0, -9e-5, top)
    scene = open_scene(path)
    with pytest.raises(RasterError, match=f"map.grid, such as EPSG:{code}"):
        map_of(Windows(), scene, tmp_path / "map.tif")


@pytest.mark.parametrize(
    ("crs", "size", "gsd"),
    [("EPSG:4326", 0.00288, 320.6016), ("EPSG:27700", 320.0, 320.0), ("EPSG:2263", 1000, 304.8006)],
)
def test_the_item_of_a_map_states_metres_and_scales(tmp_path, crs, size, gsd):
    left, top = (-2, 51) if crs == "EPSG:4326" else (400_000, 300_000)
    with open_map(
        tmp_path / "m.tif",
        (16, 16),
        Affine(size, 0, left, 0, -size, top),
        crs,
        [Band("a"), Band("b", "species", 4.0)],
        dtype="uint16",
        scratch=tmp_path,
    ) as writer:
        writer.write(slice(0, 16), np.full((2, 16, 16), 0.5))
        writer.tag(mode="dense", audit={}, model={})
    item = json.loads(write_stac(tmp_path / "m.tif").read_text())
    assert item["properties"]["gsd"] == pytest.approx(gsd, abs=1e-3)
    one, four = (band["raster:scale"] for band in item["assets"]["map"]["bands"])
    assert four == pytest.approx(4 * one)
    declared = " ".join(item["stac_extensions"])
    assert all(name in declared for name in ("/raster/", "/file/", "/projection/"))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["dense", "exact"])
def test_a_map_of_scenes_far_apart_needs_space_for_what_they_show(tmp_path, caplog, mode):
    near = write_scene(tmp_path / "near.tif", width=320, height=256)
    away = write_scene(tmp_path / "away.tif", width=320, height=256)
    with rasterio.open(away, "r+") as out:
        # 800 and 300 km away, on whole pixels of the map
        out.transform = out.transform * Affine.translation(80_000, -30_016)
    both = open_scene([near, away])
    assert both.width > 80_000
    held = []

    def progress(task, done, total):
        for file in tmp_path.glob("map.tif.partial/**/*.npy"):
            held.append(file.stat().st_blocks * 512)

    caplog.set_level(logging.INFO, "butterfly_sdm.mapping")
    options = MapOptions(mode=mode, audit=0)
    made = write_map(Windows(), both, tmp_path / "map.tif", options, progress=progress)
    assert max(held) < 4_000_000  # all positions would take gigabytes
    assert "needs 0.00 GB" in caplog.text
    assert made.counts["positions"] > 2_000_000
    alone = write_map(Windows(), open_scene(near), tmp_path / "near_map.tif", options)
    assert made.counts["predicted"] == 2 * alone.counts["predicted"] > 100
    with rasterio.open(alone.path) as one, rasterio.open(made.path) as two:
        window = from_bounds(*one.bounds, transform=two.transform)
        found = two.read(window=window.round_offsets().round_lengths())
        np.testing.assert_allclose(found, one.read(), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("crs", "left", "top", "pixel", "words"),
    [
        ("EPSG:3857", 167_000, 6_621_290, 10, "squares of 640 m are 40[34] x 40[23] m"),
        ("EPSG:32633", 1_700_000, 7_600_000, 10, "turned by up to 2[0-9] degrees"),
        ("EPSG:3035", 2_700_000, 1_900_000, 10, "turned by up to 1[0-9] degrees"),
    ],
)
def test_a_map_tells_windows_that_are_not_the_ground_they_are_called(
    tmp_path, caplog, crs, left, top, pixel, words
):
    path = write_scene(tmp_path / "s.tif", width=128, height=128)
    with rasterio.open(path, "r+") as out:
        out.crs, out.transform = crs, Affine(pixel, 0, left, 0, -pixel, top)
    map_of(Windows(), open_scene(path), tmp_path / "map.tif")
    (told,) = [one.message for one in caplog.records if "not the ground" in one.message]
    assert re.search(words, told), told
    assert "map.grid=EPSG:" in told
