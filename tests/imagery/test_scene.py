"""Scenes: bands by name, windows, mosaics, and errors that help."""

import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.windows import Window

from butterfly_sdm.errors import MissingFileError, RasterError
from butterfly_sdm.imagery.scene import open_scene
from tests.imagery.rasters import counts, write_raster


def test_a_window_is_read_with_bands_by_name(tmp_path):
    values = counts()
    scene = open_scene(write_raster(tmp_path / "a.tif", values))
    read, valid = scene.read(Window(5, 7, 20, 30), ["nir", "red"])
    np.testing.assert_array_equal(read, values[[3, 0], 7:37, 5:25])
    assert read.dtype == np.uint16
    assert valid.all()
    assert scene.resolution_m == 10
    assert scene.select(["blue"]).bands == ("blue",)


def test_outside_the_scene_there_is_nodata_and_nothing_is_valid(tmp_path):
    values = counts(20, 20)
    read, valid = open_scene(write_raster(tmp_path / "a.tif", values)).read(Window(-5, -5, 40, 40))
    np.testing.assert_array_equal(read[:, 5:25, 5:25], values)
    assert valid.sum() == 400
    assert read.sum() == values.sum(dtype=np.int64)


def test_a_pixel_missing_in_one_band_is_not_valid_but_keeps_its_values(tmp_path):
    values = counts(20, 20)
    values[2, 4, 6] = 0
    read, valid = open_scene(write_raster(tmp_path / "a.tif", values)).read(Window(0, 0, 20, 20))
    assert not valid[4, 6]
    assert valid.sum() == 399
    np.testing.assert_array_equal(read, values)


def test_two_overlapping_files_are_one_mosaic_whatever_their_order(tmp_path):
    whole = counts(40, 60)
    west, east = whole[:, :, :40].copy(), whole[:, :, 20:] + 1
    west[:, 10:20, 25:35] = 0  # a gap that the other file fills
    a = write_raster(tmp_path / "a.tif", west)
    b = write_raster(tmp_path / "b.tif", east, left=400_200)
    expected = np.concatenate([west, east[:, :, 20:]], axis=2)
    expected[:, 10:20, 25:35] = east[:, 10:20, 5:15]
    for paths in ([a, b], [b, a], tmp_path):
        scene = open_scene(paths)
        assert (scene.width, scene.height) == (60, 40)
        read, valid = scene.read(Window(0, 0, 60, 40))
        assert valid.all()
        np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize(("shift", "moved"), [(0.3, 0), (0.5, 1), (-0.4, 0)])
def test_a_piece_with_shifted_pixels_is_moved_to_the_nearest_and_not_blurred(
    tmp_path, shift, moved
):
    north, south = counts(30, 40, seed=1), counts(30, 40, seed=2)
    write_raster(tmp_path / "a.tif", north, left=0, top=3000, pixel=10)
    write_raster(tmp_path / "b.tif", south, left=0, top=3000 - 200 - 10 * shift, pixel=10)
    scene = open_scene([tmp_path / "b.tif", tmp_path / "a.tif"])
    values, valid = scene.read(Window(0, 0, 40, 20 + 30 + moved))
    np.testing.assert_array_equal(values[:, :30], north)
    np.testing.assert_array_equal(values[:, 30 : 50 + moved], south[:, 10 - moved :])
    assert valid.all()


def test_a_file_in_another_crs_is_resampled_into_the_mosaic(tmp_path):
    flat = np.full((4, 60, 60), 777, np.uint16)
    a = write_raster(tmp_path / "a.tif", flat)
    b = write_raster(tmp_path / "b.tif", flat, left=400_300, crs="EPSG:27700", pixel=20)
    scene = open_scene([a, b])
    assert scene.resolution_m == 10
    assert (scene.width, scene.height) == (150, 120)
    read, valid = scene.read(Window(0, 0, 150, 120))
    assert set(np.unique(read)) <= {0, 777}
    assert valid[:, 60:].mean() > 0.95


def test_a_scene_travels_to_another_process(tmp_path):
    values = counts()
    scene = open_scene(write_raster(tmp_path / "a.tif", values))
    scene.read(Window(0, 0, 5, 5))
    again = pickle.loads(pickle.dumps(scene))
    assert again == scene
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        read, _ = pool.submit(scene.read, Window(1, 2, 3, 4)).result()
    np.testing.assert_array_equal(read, values[:, 2:6, 1:4])


def test_sentinel_names_and_colours_are_the_same_bands(tmp_path):
    path = write_raster(tmp_path / "a.tif", counts(), names=("B02", "B03", "B04", "B08"))
    assert open_scene(path).bands == ("blue", "green", "red", "nir")
    assert open_scene(path, bands=["B4", "B3", "B2", "B8"]).bands == ("red", "green", "blue", "nir")
    np.testing.assert_array_equal(
        open_scene(path).read(Window(0, 0, 9, 9), ["B08"])[0], counts()[3:, :9, :9]
    )


def test_three_bands_where_four_are_named_is_an_error(tmp_path):
    path = write_raster(tmp_path / "a.tif", counts(bands=3))
    with pytest.raises(
        RasterError, match=r"has 3 bands, but 4 are named \(red, green, blue, nir\)"
    ):
        open_scene(path, bands=["red", "green", "blue", "nir"])


def test_a_file_without_band_names_asks_for_them(tmp_path):
    path = write_raster(tmp_path / "a.tif", counts(), names=None)
    with pytest.raises(RasterError, match="does not say what its 4 bands are"):
        open_scene(path)


def test_a_band_that_is_not_there_is_named(tmp_path):
    scene = open_scene(write_raster(tmp_path / "a.tif", counts()))
    with pytest.raises(RasterError, match="has no band 'swir16'; it has red, green, blue, nir"):
        scene.read(Window(0, 0, 2, 2), ["swir16"])


@pytest.mark.parametrize("crs", [None, 'LOCAL_CS["a site plan",UNIT["unknown",1]]'])
def test_a_scene_in_a_crs_without_units_is_an_error(tmp_path, crs):
    path = write_raster(tmp_path / "a.tif", counts(), crs=crs)
    with pytest.raises(RasterError, match=r"has no CRS|no units on the ground"):
        open_scene(path)


def test_a_missing_file_and_a_file_that_is_no_raster_are_told_apart(tmp_path):
    with pytest.raises(MissingFileError, match=r"There is no scene .*b\.tif"):
        open_scene(tmp_path / "b.tif")
    (tmp_path / "c.tif").write_text("not a raster")
    with pytest.raises(RasterError, match="cannot be opened as a raster"):
        open_scene(tmp_path / "c.tif")


def test_a_truncated_file_says_so_when_it_is_read(tmp_path):
    path = write_raster(tmp_path / "a.tif", counts(200, 200), compress="deflate")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(RasterError, match=r"cannot be (read|opened)"):
        open_scene(path).read(Window(0, 0, 200, 200))


def test_scale_and_offset_of_the_file_are_used_unless_stated(tmp_path):
    path = write_raster(tmp_path / "a.tif", counts())
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (1e-4,) * 4, (-0.1,) * 4
    scene = open_scene(path)
    assert (scene.scale, scene.offset) == (1e-4, pytest.approx(1000))
    assert open_scene(path, offset=0).offset == 0


def test_scenes_with_different_offsets_are_refused_unless_harmonised(tmp_path):
    old, new = counts(20, 20), counts(20, 20, seed=1) + 1000
    a = write_raster(tmp_path / "a.tif", old)
    b = write_raster(tmp_path / "b.tif", new, left=400_200)
    with rasterio.open(b, "r+") as file:
        file.scales, file.offsets = (1e-4,) * 4, (-0.1,) * 4
    with pytest.raises(
        RasterError,
        match=r"mix processing baselines: zero reflectance is 0 in a\.tif and 1000 in b\.tif",
    ):
        open_scene([a, b])
    scene = open_scene([a, b], harmonise=True)
    assert scene.offset == 0
    read, _ = scene.read(Window(0, 0, 40, 20))
    np.testing.assert_array_equal(read[:, :, 20:], new - 1000)
    np.testing.assert_array_equal(read[:, :, :20], old)


def test_other_nodata_values_become_that_of_the_scene(tmp_path):
    values = counts(20, 20).astype(np.int16)
    values[:, 3, 3] = -9999
    values[1, 5, 5] = 0  # measured
    scene = open_scene(write_raster(tmp_path / "a.tif", values, nodata=-9999))
    read, valid = scene.read(Window(0, 0, 20, 20))
    assert scene.nodata == 0
    assert not valid[3, 3]
    assert (read[:, 3, 3] == 0).all()
    assert valid[5, 5]
    assert read[1, 5, 5] == 1


def test_a_raster_that_is_upside_down_is_turned(tmp_path):
    values = counts(30, 30)
    path = tmp_path / "a.tif"
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=4,
        height=30,
        width=30,
        dtype="uint16",
        crs="EPSG:27700",
        nodata=0,
        transform=Affine(10, 0, 400_000, 0, 10, 199_700),
    ) as out:
        out.write(values[:, ::-1])
        out.descriptions = ("red", "green", "blue", "nir")
    scene = open_scene(path, resampling="nearest")
    assert scene.transform.e < 0
    read, valid = scene.read(Window(0, 0, 30, 30))
    assert valid.all()
    np.testing.assert_array_equal(read, values)


def test_reflectance_as_fractions_is_read_in_steps_of_a_ten_thousandth(tmp_path):
    fractions = np.random.default_rng(0).uniform(0.0002, 0.6, (4, 30, 40)).astype(np.float32)
    fractions[:, 3, 5] = np.nan
    fractions[1, 4, 6] = 0
    path = write_raster(tmp_path / "a.tif", fractions, nodata=None)
    with pytest.raises(
        RasterError, match=r"a\.tif holds fractions of up to 0\.6; .* set scenes\.scale: 1\.0"
    ):
        open_scene(path)
    scene = open_scene(path, scale=1.0)
    assert (scene.scale, scene.offset, scene.nodata) == (1e-4, 0.0, 0)
    read, valid = scene.read(Window(0, 0, 40, 30))
    expected = np.rint(np.nan_to_num(fractions).astype(float) * 10_000)
    expected[1, 4, 6] = 1  # a measured zero is not nodata
    np.testing.assert_array_equal(read, expected)
    assert valid.sum() == 40 * 30 - 1
    assert not valid[3, 5]
    shifted = open_scene(path, scale=1.0, offset=-0.1).read(Window(0, 0, 40, 30))[0]
    np.testing.assert_array_equal(
        shifted[0, 10:], np.rint((fractions[0, 10:].astype(float) + 0.1) * 10_000)
    )


def test_fractions_of_counts_keep_their_scale(tmp_path):
    values = counts(30, 40).astype(np.float32)
    scene = open_scene(write_raster(tmp_path / "a.tif", values, nodata=None))
    assert scene.scale == 1e-4
    np.testing.assert_array_equal(scene.read(Window(0, 0, 40, 30))[0], values)


def test_a_packed_archive_is_to_be_unpacked(tmp_path):
    (tmp_path / "S2A_MSIL2A.zip").write_bytes(b"PK")
    with pytest.raises(RasterError, match=r"is a packed archive\. Unpack it and name the folder"):
        open_scene(tmp_path / "S2A_MSIL2A.zip")
