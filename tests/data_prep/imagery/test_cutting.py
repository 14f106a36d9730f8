"""Tiles: bit-identical copies, warps that agree with GDAL, blocks decoded once, interruption."""

import threading
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest
import rasterio
from pyproj import Transformer
from rasterio.warp import Resampling, reproject
from rasterio.windows import Window

from butterfly_sdm.errors import RasterError
from butterfly_sdm.imagery.scene import open_scene
from data_prep.imagery import cutting as tiles_module
from data_prep.imagery.blocks import plan_reads
from data_prep.imagery.cutting import CutReport, cut_tiles
from data_prep.imagery.options import TileOptions
from data_prep.imagery.tile_grids import tile_grid
from tests.imagery.rasters import counts, write_raster

LEFT, TOP = 400_000, 200_000


class Serial(Executor):
    """Runs work at once; fails when its budget is spent."""

    def __init__(self, budget: int = 10**9) -> None:
        self.budget = budget

    def submit(self, call, /, *arguments, **named):
        future: Future = Future()
        self.budget -= 1
        if self.budget < 0:
            future.set_exception(KeyboardInterrupt())
        else:
            future.set_result(call(*arguments, **named))
        return future


def degrees(east, north, crs="EPSG:27700"):
    lon, lat = Transformer.from_crs(crs, 4326, always_xy=True).transform(
        np.asarray(east, float), np.asarray(north, float)
    )
    return np.atleast_1d(lon), np.atleast_1d(lat)


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return reflectances that vary over a few pixels, as land does."""
    coarse = np.random.default_rng(seed).uniform(200, 4000, (4, height // 8 + 2, width // 8 + 2))
    rows, columns = (
        np.linspace(0, coarse.shape[1] - 1.001, height),
        np.linspace(0, coarse.shape[2] - 1.001, width),
    )
    r, c = rows.astype(int), columns.astype(int)
    fr, fc = (rows - r)[:, None], (columns - c)[None, :]
    mixed = (coarse[:, r][:, :, c] * (1 - fr) + coarse[:, r + 1][:, :, c] * fr) * (1 - fc) + (
        coarse[:, r][:, :, c + 1] * (1 - fr) + coarse[:, r + 1][:, :, c + 1] * fr
    ) * fc
    return mixed.round().astype(np.uint16)


@pytest.mark.parametrize(
    "layout",
    [
        {"tiled": True, "blockxsize": 32, "blockysize": 16},
        {"tiled": False},
        {"tiled": False, "blockysize": 7},
        {"tiled": True, "interleave": "band", "compress": "deflate"},
    ],
)
def test_a_tile_on_the_pixels_of_the_scene_is_bit_identical(tmp_path, layout):
    values = counts(150, 170)
    values[:, 20:60, 30:40] = 0
    values[1, 100, 100] = 0
    scene = open_scene(write_raster(tmp_path / "a.tif", values, **layout))
    random = np.random.default_rng(1)
    lon, lat = degrees(LEFT + random.uniform(-50, 1750, 40), TOP - random.uniform(-50, 1550, 40))
    grid = tile_grid(lon, lat, scene, TileOptions(size_px=24))
    valid = cut_tiles(scene, grid, tmp_path / "tiles.npy")
    cut = np.load(tmp_path / "tiles.npy")
    for number in range(40):
        column, row = round((grid.left[number] - LEFT) / 10), round((TOP - grid.top[number]) / 10)
        expected, measured = scene.read(Window(column, row, 24, 24))
        np.testing.assert_array_equal(cut[number], expected)
        assert valid[number] == measured.mean()
    assert 0 < valid.min() < 1


def test_a_tile_is_centred_on_its_site_to_half_a_pixel(tmp_path):
    scene = open_scene(write_raster(tmp_path / "a.tif", counts(100, 100)))
    lon, lat = degrees([LEFT + 503.0], [TOP - 497.0])
    grid = tile_grid(lon, lat, scene, TileOptions(size_px=20))
    assert abs(grid.left[0] + 100 - (LEFT + 503)) <= 5.001
    assert abs(grid.top[0] - 100 - (TOP - 497)) <= 5.001


def test_every_block_that_is_needed_is_decoded_once(tmp_path):
    values = counts(160, 160)
    scene = open_scene(write_raster(tmp_path / "a.tif", values))
    random = np.random.default_rng(2)
    east, north = random.uniform(100, 1500, 60), random.uniform(100, 1500, 60)
    grid = tile_grid(*degrees(LEFT + east, TOP - north), scene, TileOptions(size_px=24))
    needed = set()
    for left, top in zip(grid.left, grid.top, strict=True):
        column, row = round((left - LEFT) / 10), round((TOP - top) / 10)
        needed |= {
            (r, c)
            for r in range(max(row, 0) // 16, min(row + 23, 159) // 16 + 1)
            for c in range(max(column, 0) // 16, min(column + 23, 159) // 16 + 1)
        }
    report = CutReport()
    cut_tiles(scene, grid, tmp_path / "tiles.npy", report=report)
    assert report.blocks == len(needed) < 60 * 4


def test_strips_are_read_in_runs_without_those_that_nobody_needs(tmp_path):
    layer = (
        open_scene(write_raster(tmp_path / "a.tif", counts(900, 40), tiled=False, blockysize=4))
        .pieces[0]
        .layers[0]
    )
    reads = plan_reads(layer, np.array([10, 300, 310]), np.array([0, 5, 5]), 20, 20)
    assert [(read.row, read.height) for read in reads] == [(8, 24), (300, 32)]
    assert [list(read.windows) for read in reads] == [[0], [1, 2]]


@pytest.mark.parametrize(("method", "mean", "p99"), [("bilinear", 0.2, 1), ("cubic", 0.3, 2)])
def test_a_tile_in_another_crs_agrees_with_gdal(tmp_path, method, mean, p99):
    values = smooth(300, 300)
    scene = open_scene(
        write_raster(tmp_path / "a.tif", values, left=560_000, top=5_700_000, crs="EPSG:32630")
    )
    east, north = Transformer.from_crs(32630, 27700, always_xy=True).transform(
        [561_500.0, 561_200.0], [5_698_500.0, 5_698_900.0]
    )
    grid = tile_grid(*degrees(east, north), scene, TileOptions(size_px=96, crs="EPSG:27700"))
    cut_tiles(scene, grid, tmp_path / "tiles.npy", resampling=method)
    ours = np.load(tmp_path / "tiles.npy")
    for number in range(2):
        theirs = np.zeros((4, 96, 96), np.uint16)
        with rasterio.open(tmp_path / "a.tif") as source:
            reproject(
                rasterio.band(source, [1, 2, 3, 4]),
                theirs,
                dst_crs="EPSG:27700",
                dst_transform=grid.transform(number),
                resampling=Resampling[method],
                src_nodata=0,
                dst_nodata=0,
            )
        difference = np.abs(ours[number].astype(int) - theirs)
        assert difference.mean() <= mean
        assert np.percentile(difference, 99) <= p99


def test_nearest_pixels_in_another_crs_are_those_of_gdal(tmp_path):
    values = counts(300, 300)
    scene = open_scene(
        write_raster(tmp_path / "a.tif", values, left=560_000, top=5_700_000, crs="EPSG:32630")
    )
    east, north = Transformer.from_crs(32630, 27700, always_xy=True).transform(
        [561_500.0], [5_698_500.0]
    )
    grid = tile_grid(*degrees(east, north), scene, TileOptions(size_px=128, crs="EPSG:27700"))
    cut_tiles(scene, grid, tmp_path / "tiles.npy", resampling="nearest")
    theirs = np.zeros((4, 128, 128), np.uint16)
    with rasterio.open(tmp_path / "a.tif") as source:
        reproject(
            rasterio.band(source, [1, 2, 3, 4]),
            theirs,
            dst_crs="EPSG:27700",
            dst_transform=grid.transform(0),
            resampling=Resampling.nearest,
            src_nodata=0,
            dst_nodata=0,
            tolerance=0,
        )
    assert (np.load(tmp_path / "tiles.npy")[0] == theirs).mean() >= 0.999


def test_nodata_does_not_bleed_into_its_neighbours(tmp_path):
    values = np.full((4, 200, 200), 1000, np.uint16)
    values[:, :, 100:] = 0
    scene = open_scene(
        write_raster(tmp_path / "a.tif", values, left=560_000, top=5_700_000, crs="EPSG:32630")
    )
    east, north = Transformer.from_crs(32630, 27700, always_xy=True).transform(
        [561_000.0], [5_699_000.0]
    )
    grid = tile_grid(*degrees(east, north), scene, TileOptions(size_px=64, crs="EPSG:27700"))
    for method in ("bilinear", "cubic"):
        valid = cut_tiles(scene, grid, tmp_path / "tiles.npy", resampling=method)
        assert set(np.unique(np.load(tmp_path / "tiles.npy"))) == {0, 1000}
        assert valid[0] == pytest.approx(0.5, abs=0.05)


def test_coarser_tiles_are_averages_not_samples(tmp_path):
    values = counts(200, 200)
    scene = open_scene(write_raster(tmp_path / "a.tif", values))
    grid = tile_grid(
        *degrees([LEFT + 1000], [TOP - 1000]), scene, TileOptions(size_px=16, resolution_m=100)
    )
    valid = cut_tiles(scene, grid, tmp_path / "tiles.npy")
    cut = np.load(tmp_path / "tiles.npy")[0]
    assert valid[0] == 1
    assert cut.std() < 0.25 * values.std()


def test_pieces_overlap_in_the_same_way_whatever_their_order(tmp_path):
    whole = counts(100, 160)
    west, east = whole[:, :, :100].copy(), whole[:, :, 60:] + 7
    west[:, 30:50, 70:90] = 0
    paths = [
        write_raster(tmp_path / "west.tif", west),
        write_raster(tmp_path / "east.tif", east, left=LEFT + 600),
    ]
    lon, lat = degrees(LEFT + np.array([500, 800, 1100]), TOP - np.array([400, 400, 600]))
    found = []
    for order in (paths, paths[::-1]):
        scene = open_scene(order)
        grid = tile_grid(lon, lat, scene, TileOptions(size_px=40))
        cut_tiles(scene, grid, tmp_path / "tiles.npy")
        found.append(np.load(tmp_path / "tiles.npy"))
        for number in range(3):
            column, row = (
                round((grid.left[number] - LEFT) / 10),
                round((TOP - grid.top[number]) / 10),
            )
            np.testing.assert_array_equal(
                found[-1][number], scene.read(Window(column, row, 40, 40))[0]
            )
    np.testing.assert_array_equal(*found)


def test_tiles_of_a_mosaic_in_two_crss_are_whole(tmp_path):
    flat = np.full((4, 200, 200), 500, np.uint16)
    a = write_raster(tmp_path / "a.tif", flat, left=560_000, top=5_700_000, crs="EPSG:32630")
    x, y = Transformer.from_crs(32630, 32631, always_xy=True).transform(561_500.0, 5_700_000.0)
    b = write_raster(tmp_path / "b.tif", flat, left=x, top=y + 300, crs="EPSG:32631")
    scene = open_scene([a, b])
    grid = tile_grid(
        *degrees([561_950.0], [5_699_000.0], "EPSG:32630"), scene, TileOptions(size_px=64)
    )
    valid = cut_tiles(scene, grid, tmp_path / "tiles.npy")
    assert valid[0] > 0.99
    assert set(np.unique(np.load(tmp_path / "tiles.npy"))) <= {0, 500}


def test_separate_band_files_are_one_product(tmp_path):
    values = counts(80, 80)
    for name, band in zip(("B04", "B03", "B02", "B08"), values, strict=True):
        write_raster(tmp_path / "product" / f"{name}.tif", band[None], names=None)
    scene = open_scene(tmp_path / "product").select(["red", "green", "blue", "nir"])
    grid = tile_grid(*degrees([LEFT + 400], [TOP - 400]), scene, TileOptions(size_px=32))
    cut_tiles(scene, grid, tmp_path / "tiles.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "tiles.npy")[0], values[:, 24:56, 24:56])


def test_a_band_file_that_covers_less_ground_keeps_its_place(tmp_path):
    values = counts(60, 60)
    for number, (name, skipped) in enumerate({"B04": 0, "B03": 10, "B02": 0, "B08": 0}.items()):
        band = values[number : number + 1, :, skipped:]
        write_raster(tmp_path / "p" / f"{name}.tif", band, names=None, left=LEFT + 10 * skipped)
    scene = open_scene(tmp_path / "p").select(["red", "green", "blue", "nir"])
    read, valid = scene.read(Window(0, 0, 60, 60))
    assert valid[:, 10:].all()
    assert not valid[:, :10].any()
    values[1, :, :10] = 0
    np.testing.assert_array_equal(read, values)
    grid = tile_grid(
        *degrees(LEFT + np.array([100.0, 300]), TOP - np.array([300.0, 300])),
        scene,
        TileOptions(size_px=16),
    )
    shares = cut_tiles(scene, grid, tmp_path / "tiles.npy")
    for number, tile in enumerate(np.load(tmp_path / "tiles.npy")):
        column, row = round((grid.left[number] - LEFT) / 10), round((TOP - grid.top[number]) / 10)
        np.testing.assert_array_equal(tile, values[:, row : row + 16, column : column + 16])
        assert shares[number] == valid[row : row + 16, column : column + 16].mean()


def test_cloudy_pixels_are_not_valid(tmp_path):
    values = counts(80, 80)
    for name, band in zip(("B04", "B03", "B02", "B08"), values, strict=True):
        write_raster(tmp_path / "product" / f"{name}.tif", band[None], names=None)
    classes = np.full((1, 40, 40), 4, np.uint8)
    classes[:, 10:20, 10:20] = 9
    write_raster(tmp_path / "product" / "SCL.tif", classes, names=None, pixel=20, nodata=None)
    scene = open_scene(tmp_path / "product", cloudy=(8, 9))
    grid = tile_grid(*degrees([LEFT + 400], [TOP - 400]), scene, TileOptions(size_px=80))
    valid = cut_tiles(scene, grid, tmp_path / "tiles.npy")
    assert valid[0] == 1 - 400 / 6400
    assert (np.load(tmp_path / "tiles.npy")[0, :, 20:40, 20:40] == 0).all()
    assert open_scene(tmp_path / "product").read(Window(0, 0, 80, 80))[1].all()


def test_the_lattice_of_the_national_grid_moves_tiles_to_its_squares(tmp_path):
    scene = open_scene(write_raster(tmp_path / "a.tif", counts(300, 300)))
    lon, lat = degrees([LEFT + 1490, LEFT + 1010], [TOP - 1990, TOP - 1010])
    grid = tile_grid(lon, lat, scene, TileOptions(size_px=100, lattice_m=1000))
    np.testing.assert_allclose(grid.left, LEFT + 1000, atol=1e-6)
    np.testing.assert_allclose(grid.top, TOP - 1000, atol=1e-6)


@pytest.mark.parametrize("crs", [None, "EPSG:32630"])
def test_an_interrupted_cut_goes_on_where_it_was_and_ends_the_same(tmp_path, monkeypatch, crs):
    monkeypatch.setattr("data_prep.imagery.blocks.UNIT_BYTES", 20_000)
    monkeypatch.setattr(tiles_module, "WARP_TILES", 4)
    scene = open_scene(
        [
            write_raster(tmp_path / "a.tif", counts(150, 150)),
            write_raster(tmp_path / "b.tif", counts(150, 150, seed=1), left=LEFT + 1000),
        ]
    )
    random = np.random.default_rng(3)
    grid = tile_grid(
        *degrees(LEFT + random.uniform(200, 2200, 30), TOP - random.uniform(200, 1300, 30)),
        scene,
        TileOptions(size_px=24, crs=crs),
    )
    whole = CutReport()
    cut_tiles(scene, grid, tmp_path / "whole.npy", executor=Serial(), report=whole)
    attempts = 0
    while True:
        attempts += 1
        report = CutReport()
        try:
            cut_tiles(
                scene,
                grid,
                tmp_path / "tiles.npy",
                executor=Serial(6 if crs is None else 21),
                report=report,
            )
        except KeyboardInterrupt:
            continue
        finally:
            assert attempts < 60
        break
    assert attempts >= 2
    assert report.units_done < whole.units_done  # what an earlier attempt did is not done again
    assert (tmp_path / "tiles.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.tif",
        "b.tif",
        "tiles.npy",
        "whole.npy",
    ]


def test_threads_and_processes_cut_the_same_tiles(tmp_path):
    scene = open_scene(write_raster(tmp_path / "a.tif", counts(150, 150)))
    random = np.random.default_rng(4)
    grid = tile_grid(
        *degrees(LEFT + random.uniform(200, 1300, 20), TOP - random.uniform(200, 1300, 20)),
        scene,
        TileOptions(size_px=24),
    )
    cut_tiles(scene, grid, tmp_path / "threads.npy")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        cut_tiles(scene, grid, tmp_path / "processes.npy", executor=pool)
    assert (tmp_path / "threads.npy").read_bytes() == (tmp_path / "processes.npy").read_bytes()


def test_a_broken_block_stops_the_cut_with_the_name_of_the_file(tmp_path):
    path = write_raster(tmp_path / "a.tif", counts(300, 300), compress="deflate")
    scene = open_scene(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = b"\0" * (len(data) - len(data) // 2)
    path.write_bytes(data)
    grid = tile_grid(*degrees([LEFT + 1500], [TOP - 1500]), scene, TileOptions(size_px=256))
    with pytest.raises(RasterError, match=r"a\.tif cannot be (read|opened)"):
        cut_tiles(scene, grid, tmp_path / "tiles.npy")
    assert threading.active_count() < 12


def test_tiles_in_degrees_are_refused_with_the_way_out(tmp_path):
    scene = open_scene(
        write_raster(tmp_path / "a.tif", counts(), left=-2, top=51, pixel=0.0001, crs="EPSG:4326")
    )
    with pytest.raises(RasterError, match=r"Set tiles\.crs to a projected CRS"):
        tile_grid(np.array([-2.0]), np.array([51.0]), scene, TileOptions())
    grid = tile_grid(
        np.array([-1.996]), np.array([50.997]), scene, TileOptions(size_px=16, crs="EPSG:27700")
    )
    assert cut_tiles(scene, grid, tmp_path / "tiles.npy")[0] == 1


def test_an_offset_that_is_harmonised_reaches_the_tiles(tmp_path):
    values = counts(60, 60) + 1000
    path = write_raster(tmp_path / "a.tif", values)
    scene = open_scene(path, offset=1000)
    lower = replace(scene, offset=0.0)
    grid = tile_grid(*degrees([LEFT + 300], [TOP - 300]), scene, TileOptions(size_px=16))
    cut_tiles(lower, grid, tmp_path / "tiles.npy")
    np.testing.assert_array_equal(
        np.load(tmp_path / "tiles.npy")[0], values[:, 22:38, 22:38] - 1000
    )


@pytest.mark.parametrize("where", [{}, {"crs": "EPSG:32630"}, {"resolution_m": 30.0}])
def test_tiles_of_fractions_are_those_of_counts(tmp_path, where):
    values = smooth(150, 170)
    whole = open_scene(write_raster(tmp_path / "counts.tif", values))
    fractions = open_scene(
        write_raster(tmp_path / "fractions.tif", (values / 10_000).astype(np.float32), nodata=None),
        scale=1.0,
    )
    lon, lat = degrees([LEFT + 700, LEFT + 900], [TOP - 700, TOP - 800])
    for name, scene in (("a", whole), ("b", fractions)):
        cut_tiles(
            scene,
            tile_grid(lon, lat, scene, TileOptions(size_px=32, **where)),
            tmp_path / f"{name}.npy",
        )
    first, second = np.load(tmp_path / "a.npy").astype(int), np.load(tmp_path / "b.npy").astype(int)
    assert np.abs(first - second).max() <= (1 if "resolution_m" in where else 0)
    assert first.mean() > 500
