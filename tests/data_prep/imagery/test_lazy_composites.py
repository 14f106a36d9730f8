"""A composite that is composed where it is read is the composite that is written as one raster."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.windows import Window

from butterfly_sdm.imagery.composites.kept import KeptBlocks
from butterfly_sdm.imagery.composites.median import median_of
from butterfly_sdm.imagery.composites.stacks import Stack
from butterfly_sdm.imagery.grids import on_grid
from butterfly_sdm.imagery.options import CompositeOptions, SceneOptions
from butterfly_sdm.imagery.scene import CLOUDY, open_scene
from data_prep.imagery.composites import compose_lazily, make_composite
from data_prep.imagery.cutting import cut_tiles
from data_prep.imagery.options import TileOptions
from data_prep.imagery.scenes import scene_of
from data_prep.imagery.tile_grids import tile_grid
from tests.imagery.rasters import write_raster

BANDS = ["red", "nir"]
LEFT, TOP = 500_000, 5_000_000
FILES = {"red": "B04", "nir": "B08"}


def write_day(folder, day, values, classes, **options):
    coarse = options.pop("coarse", None)
    place = {"left": LEFT, "top": TOP, "crs": "EPSG:32633"} | options.pop("place", {})
    for name, band in zip(BANDS, values, strict=True):
        size = {"pixel": 20} if name == coarse else {}
        pixels = band[::2, ::2] if name == coarse else band
        path = folder / f"S2A_{day}" / f"{FILES[name]}.tif"
        write_raster(path, pixels[None], names=None, **place, **size, **options)
    if classes is not None:
        write_raster(
            folder / f"S2A_{day}" / "SCL.tif",
            classes[None].astype(np.uint8),
            names=None,
            nodata=None,
            pixel=20,
            **place,
        )


def make_days(folder, n=4, shape=(120, 140), *, seed=0, classified=True, **options):
    random = np.random.default_rng(seed)
    for number in range(n):
        values = random.integers(1, 4000, (2, *shape)).astype(np.uint16)
        values[:, random.random(shape) < 0.05] = 0
        values[0, random.random(shape) < 0.02] = 0
        share = (0.2, 0.5, 0.7, 0.4)[number % 4]
        cloud = np.where(random.random((shape[0] // 2, shape[1] // 2)) < share, 9, 4)
        cloud[:20, :20] = 9
        write_day(folder, f"2023081{number}", values, cloud if classified else None, **options)
    return open_scene(folder, cloudy=CLOUDY).select(BANDS)


def both(scene, tmp_path, method="median"):
    options = CompositeOptions(method=method)
    made = make_composite(scene, tmp_path / f"{method}.tif", options)
    lazy, told = compose_lazily(scene, options)
    assert told.dates == made.dates
    return open_scene(made.path).select(BANDS), lazy


def compare(written, lazy, windows):
    for window in windows:
        (values, valid), (expected, there) = lazy.read(window), written.read(window)
        np.testing.assert_array_equal(valid, there)
        np.testing.assert_array_equal(values, expected)


WINDOWS = [Window(0, 0, 140, 120), Window(-7, 31, 64, 64), Window(99, 80, 60, 60)]


@pytest.mark.parametrize("method", ["median", "least_cloudy"])
@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"coarse": "nir"},  # bands of 10 and 20 m
        {"tiled": False, "blockysize": 8},
        {"blockxsize": 16, "blockysize": 32},
        {"nodata": 7},
    ],
)
def test_it_is_the_written_one_pixel_by_pixel(tmp_path, method, kind):
    scene = make_days(tmp_path / "days", **kind)
    written, lazy = both(scene, tmp_path, method)
    assert [type(piece) for piece in lazy.pieces] == [Stack]
    compare(written, lazy, WINDOWS)
    assert sorted(lazy.paths) == sorted(scene.paths)


def test_dates_whose_pictures_begin_elsewhere_are_composed_together(tmp_path):
    for number in range(3):
        random = np.random.default_rng(number)
        place = {"left": LEFT + 70 * number, "top": TOP - 50 * number}
        values = random.integers(1, 4000, (2, 80, 90)).astype(np.uint16)
        write_day(tmp_path / "days", f"2023081{number}", values, None, place=place)
    scene = open_scene(tmp_path / "days").select(BANDS)
    written, lazy = both(scene, tmp_path)
    assert len(lazy.pieces) == 1
    compare(written, lazy, [Window(0, 0, scene.width, scene.height), Window(5, 9, 40, 40)])


def test_neighbouring_products_are_composed_each_alone(tmp_path):
    for number, day in enumerate(("20230810", "20230812")):
        for side in range(2):
            random = np.random.default_rng([number, side])
            place = {"left": LEFT + 900 * side, "top": TOP}
            values = random.integers(1, 4000, (2, 100, 100)).astype(np.uint16)
            folder = tmp_path / "days" / str(side)
            write_day(folder, f"{day}_{side}", values, None, place=place)
    scene = open_scene(tmp_path / "days").select(BANDS)
    written, lazy = both(scene, tmp_path)
    assert [len(piece.days) for piece in lazy.pieces] == [2, 2]
    compare(written, lazy, [Window(0, 0, 90, 100), Window(100, 0, 90, 100)])
    values, valid = lazy.read(Window(90, 0, 10, 100))  # of both: the first by name
    assert valid.all()
    np.testing.assert_array_equal(
        values, replace(lazy, pieces=lazy.pieces[:1]).read(Window(90, 0, 10, 100))[0]
    )


def test_products_of_one_day_count_once(tmp_path):
    random = np.random.default_rng(0)
    days = random.integers(1, 4000, (3, 2, 60, 60)).astype(np.uint16)
    days[0, :, :30] = 0
    for name, values in zip(("20230810_A", "20230810_B", "20230812"), days, strict=True):
        write_day(tmp_path / "days", name, values, None)
    scene = open_scene(tmp_path / "days").select(BANDS)
    written, lazy = both(scene, tmp_path)
    compare(written, lazy, [Window(0, 0, 60, 60)])
    first = np.where(days[0] > 0, days[0], days[1])
    expected = np.rint((first.astype(float) + days[2]) / 2)
    np.testing.assert_array_equal(lazy.read(Window(0, 0, 60, 60))[0], expected)


@pytest.mark.parametrize("turned", ["upside down", "reflectance", "offsets"])
def test_what_files_say_of_their_pixels_is_heeded(tmp_path, turned):
    shape = (60, 70)
    for number in range(3):
        random = np.random.default_rng(number)
        values = random.integers(1, 4000, (2, *shape)).astype(np.uint16)
        scale, offset, nodata = 1e-4, -0.1 * (number > 0), 0
        if turned == "reflectance":
            values, scale, offset, nodata = (values * 1e-4).astype(np.float32), 1, 0, np.nan
        for name, band in zip(BANDS, values, strict=True):
            path = tmp_path / "days" / f"S2A_2023081{number}" / f"{FILES[name]}.tif"
            write_raster(path, band[None], names=None, left=LEFT, top=TOP, nodata=nodata)
            with rasterio.open(path, "r+") as file:
                file.scales, file.offsets = (scale,), (offset,)
                if turned == "upside down":
                    file.transform = Affine(10, 0, LEFT, 0, 10, TOP - 10 * shape[0])
    stated = {"scale": 1.0} if turned == "reflectance" else {"harmonise": True}
    scene = open_scene(tmp_path / "days", **stated).select(BANDS)
    written, lazy = both(scene, tmp_path)
    compare(written, lazy, [Window(0, 0, 70, 60), Window(10, 10, 30, 70)])


@pytest.mark.parametrize(
    ("options", "far"),
    [
        ({}, 0),
        ({"crs": "EPSG:32632"}, 0),
        ({"crs": "EPSG:3035", "resolution_m": 20.0}, 1),  # GDAL averages: its chunks differ
    ],
)
def test_tiles_of_it_are_those_of_the_written_one(tmp_path, options, far):
    scene = make_days(tmp_path / "days")
    written, lazy = both(scene, tmp_path)
    random = np.random.default_rng(1)
    lon, lat = 15 + random.uniform(0.004, 0.013, 9), 45.153 - random.uniform(0.004, 0.009, 9)
    grid = tile_grid(lon, lat, written, TileOptions(size_px=32, **options))
    cut_tiles(written, grid, tmp_path / "written.npy")
    cut_tiles(lazy, grid, tmp_path / "lazy.npy")
    expected, found = (np.load(tmp_path / f"{name}.npy") for name in ("written", "lazy"))
    assert (expected > 0).mean() > 0.5
    assert np.abs(found.astype(int) - expected).max() <= far


def test_on_another_grid_it_does_not_depend_on_how_it_is_read(tmp_path):
    scene = make_days(tmp_path / "days", shape=(700, 640))
    written, lazy = (on_grid(one, "EPSG:3035") for one in both(scene, tmp_path))
    whole = Window(0, 0, lazy.width, lazy.height)
    values, valid = lazy.read(whole)
    _, there = written.read(whole)
    assert valid.mean() > 0.5
    # GDAL's approximation of the projection, an eighth of a pixel, begins elsewhere
    assert (valid == there).mean() > 0.95
    part, seen = replace(lazy, kept=KeptBlocks()).read(Window(490, 480, 60, 70))
    np.testing.assert_array_equal(part, values[:, 480:550, 490:550])
    np.testing.assert_array_equal(seen, valid[480:550, 490:550])


def test_it_travels_to_workers(tmp_path):
    _, lazy = both(make_days(tmp_path / "days"), tmp_path)
    sent = pickle.loads(pickle.dumps(lazy))
    window = Window(3, 4, 90, 80)
    np.testing.assert_array_equal(sent.read(window)[0], lazy.read(window)[0])


def test_nothing_is_written_unless_it_is_asked_for(tmp_path):
    make_days(tmp_path / "days")
    asked = SceneOptions(paths=(tmp_path / "days",), composite={})
    scene, told = scene_of(asked, bands=BANDS, scratch=tmp_path / "scratch")
    assert not (tmp_path / "scratch").exists()
    assert told.path is None
    assert len(told.files) == 4 * 3
    written = SceneOptions(paths=(tmp_path / "days",), composite={"mosaic": True})
    again, told = scene_of(written, bands=BANDS, scratch=tmp_path / "scratch")
    assert told.path.is_file()
    compare(again, scene, WINDOWS)


def test_options_that_are_not_set_leave_fingerprints_as_they_were():
    assert set(CompositeOptions().model_dump()) == {"method", "years", "months"}
    assert CompositeOptions(mosaic=True).model_dump()["mosaic"] is True


@pytest.mark.parametrize("nodata", [0, 7, 65535])
def test_the_median_is_that_of_the_formula(nodata):
    random = np.random.default_rng(nodata)
    for number in range(1, 7):
        shape = (2, 23, 31)
        planes = [random.integers(0, 12, shape).astype(np.uint16) for _ in range(number)]
        planes[0][:, 0] = 65535  # saturated values are values
        valid = [random.random(shape[1:]) < random.choice([0.5, 1.0]) for _ in range(number)]
        expected = np.full(shape, nodata)
        for band, row, column in np.ndindex(*shape):
            seen = [
                int(p[band, row, column])
                for p, v in zip(planes, valid, strict=True)
                if v[row, column]
            ]
            if seen:
                middle = int(np.rint(np.median(seen)))
                at_nodata = nodata + 1 if nodata < 65535 else nodata - 1
                expected[band, row, column] = at_nodata if middle == nodata else middle
        out = np.empty(shape, np.uint16)
        measured = median_of([plane.copy() for plane in planes], valid, out, nodata)
        np.testing.assert_array_equal(measured, np.any(valid, axis=0))
        np.testing.assert_array_equal(out, expected)
