"""Tiles of every type: as stored, bit by bit; what is missing; and the same whatever the type."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
from rasterio.windows import Window

from butterfly_sdm.baselines import make_baseline
from butterfly_sdm.data.dataset import Dataset, DatasetCard, TileCard
from butterfly_sdm.data.splits import Split
from butterfly_sdm.data.tiles import TileReader
from butterfly_sdm.errors import RasterError
from butterfly_sdm.imagery.options import CompositeOptions
from butterfly_sdm.imagery.scene import Scene, open_scene
from butterfly_sdm.models.inputs import mean_and_spread
from butterfly_sdm.models.network_predictor import NetworkPredictor
from data_prep.imagery.composites import compose_lazily, make_composite
from data_prep.imagery.cutting import cut_tiles
from data_prep.imagery.export import export_tiles
from data_prep.imagery.options import ReadyTileOptions, TileOptions
from data_prep.imagery.ready_tiles import find_ready_tiles, pack_tiles
from data_prep.imagery.tile_grids import tile_grid
from tests.data_prep.imagery.test_cutting import LEFT, TOP, degrees
from tests.imagery.rasters import write_raster
from tests.mapping.world import map_of, read

TYPES = ("uint8", "int8", "uint16", "int16", "float32")
NODATA = {"uint8": 0, "int8": -128, "uint16": 0, "int16": -9999, "float32": float("nan")}
OTHERS = ("uint8", "uint16", "int16")
SIDE = 16


def names(bands: int) -> tuple[str, ...]:
    return tuple(f"e{number:02d}" for number in range(bands))


def bits(bands: int, height: int, width: int, dtype: str, seed: int = 0) -> np.ndarray:
    """Return numbers over all of a type but what stands for none."""
    random = np.random.default_rng(seed)
    if dtype == "float32":
        exponent = random.uniform(-30, 30, (bands, height, width))
        return (random.normal(size=exponent.shape) * 10**exponent).astype(np.float32)
    limits = np.iinfo(dtype)
    values = random.integers(limits.min, limits.max + 1, (bands, height, width)).astype(dtype)
    return np.where(values == NODATA[dtype], 5, values).astype(dtype)


def cut(scene: Scene, out: Path, places: int = 12, **options):
    random = np.random.default_rng(1)
    east = LEFT + 10 * random.integers(10, scene.width - 10, places)
    north = TOP - 10 * random.integers(10, scene.height - 10, places)
    grid = tile_grid(*degrees(east, north), scene, TileOptions(size_px=SIDE, **options))
    return cut_tiles(scene, grid, out), np.load(out), grid


@pytest.mark.parametrize("interleave", ["band", "pixel"])
@pytest.mark.parametrize("dtype", TYPES)
def test_tiles_of_every_type_are_bit_identical_and_know_what_is_missing(
    tmp_path, dtype, interleave
):
    values = bits(7, 60, 80, dtype)
    values[:, 20:40, 30:50] = NODATA[dtype]
    values[3, 50, 10] = NODATA[dtype]
    path = write_raster(
        tmp_path / "a.tif", values, names=names(7), nodata=NODATA[dtype], interleave=interleave
    )
    scene = open_scene(path, dtype=dtype)
    assert scene.dtype == dtype
    share, tiles, grid = cut(scene, tmp_path / "tiles.npy")
    assert tiles.dtype == dtype
    padded = np.full((7, 60 + 2 * SIDE, 80 + 2 * SIDE), scene.nodata, dtype)
    padded[:, SIDE:-SIDE, SIDE:-SIDE] = values
    for number, tile in enumerate(tiles):
        c = round((grid.left[number] - LEFT) / 10) + SIDE
        r = round((TOP - grid.top[number]) / 10) + SIDE
        wanted = padded[:, r : r + SIDE, c : c + SIDE]
        assert tile.tobytes() == np.ascontiguousarray(wanted).tobytes()
        known = (wanted == wanted) & (wanted != NODATA[dtype])
        assert share[number] == known.all(axis=0).mean()


def test_a_tile_of_128_bands_of_fractions_is_stored_and_read_back_bit_by_bit(tmp_path):
    values = bits(128, 48, 48, "float32")
    scene = open_scene(write_raster(tmp_path / "a.tif", values, names=names(128), nodata=None))
    assert (scene.dtype, scene.scale, scene.offset) == ("float32", 1.0, 0.0)
    _, tiles, grid = cut(scene, tmp_path / "tiles.npy", places=1)
    c, r = round((grid.left[0] - LEFT) / 10), round((TOP - grid.top[0]) / 10)
    window = np.ascontiguousarray(values[:, max(r, 0) : r + SIDE, max(c, 0) : c + SIDE])
    inside = tiles[0][:, max(-r, 0) :, max(-c, 0) :]
    inside = inside[:, : window.shape[1], : window.shape[2]]
    assert np.ascontiguousarray(inside).tobytes() == window.tobytes()
    data = dataset_of(scene, tiles, ["A"])
    reader = TileReader(data, names(128), SIDE)
    assert reader.read(rows_of(data)).numpy().tobytes() == tiles.tobytes()
    (exported,) = export_tiles(data, tmp_path / "out", ["A"])
    with rasterio.open(exported) as source:
        assert source.read().tobytes() == tiles[0].tobytes()
        assert np.isnan(source.nodata)


def rows_of(data: Dataset):
    import torch

    return torch.arange(len(data.sites))


def dataset_of(scene: Scene, tiles: np.ndarray, sites: list[str], seed: int = 0) -> Dataset:
    random = np.random.default_rng(seed)
    index = pd.Index(sites, name="site_id")
    table = pd.DataFrame(
        {
            "easting": random.uniform(4e5, 5e5, len(sites)),
            "northing": random.uniform(2e5, 3e5, len(sites)),
            "visits": 20,
            "tile_row": np.arange(len(sites)),
            "tile_crs": "EPSG:27700",
            "tile_left": 4e5,
            "tile_top": 2e5,
        },
        index=index,
    )
    card = DatasetCard(
        name="typed",
        species=("Aglais io", "Pieris napi"),
        position_crs="EPSG:27700",
        tiles=TileCard.of_scene(scene, size_px=tiles.shape[-1]),
    )
    k = random.integers(0, 21, (len(sites), 2))
    return Dataset(
        card,
        gpd.GeoDataFrame(table),
        pd.DataFrame(k, index=index, columns=list(card.species)),
        tiles,
        split=Split(tuple(sites[2:]), tuple(sites[:2])),
    )


@pytest.fixture(scope="module")
def typed(tmp_path_factory) -> dict[str, tuple[Scene, Dataset]]:
    """The same numbers, -100 to 100, kept in each type; the unsigned with an offset of 120."""
    folder = tmp_path_factory.mktemp("typed")
    random = np.random.default_rng(3)
    coarse = random.normal(size=(5, 14, 14)).repeat(8, axis=1).repeat(8, axis=2)
    numbers = np.clip(40 * coarse + random.normal(0, 5, coarse.shape), -100, 100).round()
    found = {}
    for dtype in TYPES:
        offset = 120.0 if dtype.startswith("u") else 0.0
        stored = (numbers + offset).astype(dtype)
        stored[:, 40:52, 60:70] = NODATA[dtype]
        path = write_raster(
            folder / f"{dtype}.tif", stored, names=names(5), nodata=NODATA[dtype], blockxsize=32
        )
        scene = open_scene(path, dtype=dtype, scale=1.0, offset=offset)
        grid = tile_grid(
            *degrees(LEFT + random_places(112), TOP - random_places(112, 9)),
            scene,
            TileOptions(size_px=64),
        )
        cut_tiles(scene, grid, folder / f"{dtype}.npy")
        tiles = np.load(folder / f"{dtype}.npy")
        found[dtype] = scene, dataset_of(scene, tiles, [f"s{number}" for number in range(10)])
    return found


def random_places(size: int, seed: int = 7) -> np.ndarray:
    return 10 * np.random.default_rng(seed).integers(30, size - 30, 10)


@pytest.fixture(scope="module")
def learned(typed, tmp_path_factory):
    """Return what is learned of the numbers in a type, each type once."""
    folder = tmp_path_factory.mktemp("learned")

    @cache
    def of(kind: str) -> list[np.ndarray]:
        scene, data = typed[kind]
        moments = mean_and_spread(TileReader(data, names(5), 64), rows_of(data))
        network = NetworkPredictor(
            backbone="test_resnet",
            window_px=32,
            margin_px=0,
            embedding=8,
            head_width=8,
            epochs=2,
            batch_size=8,
            accelerator="cpu",
        ).fit(data, data.split.train)
        models = [network, make_baseline("linear", bands=True).fit(data, data.split.train)]
        if kind != "uint16":  # which takes what is missing as 0, as it always did
            filters = make_baseline("random_features", filters=4)
            models.append(filters.fit(data, data.split.train))
        maps = [
            read(map_of(network, scene, folder / f"{kind}_{mode}.tif", mode=mode, stride_px=16))
            for mode in ("dense", "exact")
        ]
        found = [*moments, *maps, *(model.predict(data, data.site_ids) for model in models)]
        return [np.asarray(value, dtype=float) for value in found]

    return of


@pytest.mark.parametrize(
    "dtype", ["int8", *(pytest.param(kind, marks=pytest.mark.slow) for kind in OTHERS)]
)
def test_statistics_training_prediction_and_maps_do_not_depend_on_the_type(learned, dtype):
    for one, other in zip(learned(dtype), learned("float32"), strict=dtype != "uint16"):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)
        assert np.isfinite(one).any()


def test_signed_numbers_without_a_stated_nodata_keep_their_zeros(tmp_path):
    values = bits(3, 20, 30, "int16")
    values[:, 4:9] = 0
    path = write_raster(tmp_path / "a.tif", values, names=names(3), nodata=None)
    scene = open_scene(path)
    found, valid = scene.read(Window(0, 0, 30, 20))
    assert (scene.dtype, scene.nodata) == ("int16", -32768)
    assert valid.all() and np.array_equal(found, values)


def test_fractions_lose_only_what_is_not_finite_or_stated(tmp_path):
    values = np.random.default_rng(0).normal(size=(2, 20, 20)).astype(np.float32)
    values[0, 1, 2], values[1, 3, 4], values[:, 5] = np.inf, np.nan, -9999
    for nodata in (-9999, None):
        path = write_raster(tmp_path / f"{nodata}.tif", values, names=names(2), nodata=nodata)
        found, valid = open_scene(path).read(Window(0, 0, 20, 20))
        wanted = np.isfinite(values).all(axis=0)
        if nodata is not None:
            wanted[5] = False
        assert np.array_equal(valid, wanted)
        assert np.array_equal(found[:, valid], values[:, valid])
        assert np.isnan(found[:, ~valid]).any(axis=0).all()


def test_a_mosaic_takes_the_smallest_type_that_holds_all(tmp_path):
    for name, dtype, left in (("a", "int8", LEFT), ("b", "uint8", LEFT + 400)):
        write_raster(
            tmp_path / f"{name}.tif",
            bits(2, 40, 40, dtype),
            names=names(2),
            left=left,
            nodata=NODATA[dtype],
        )
    scene = open_scene(tmp_path)
    assert scene.dtype == "int16"
    found, valid = scene.read(Window(0, 0, 80, 40))
    assert valid.all()
    assert np.array_equal(found[:, :, :40], bits(2, 40, 40, "int8"))
    assert np.array_equal(found[:, :, 40:], bits(2, 40, 40, "uint8"))


def test_numbers_that_no_type_holds_exactly_are_refused(tmp_path):
    values = np.random.default_rng(0).normal(size=(2, 20, 20))
    path = write_raster(tmp_path / "a.tif", values, names=names(2), nodata=None)
    with pytest.raises(RasterError, match=r"holds float64;.*State scenes.dtype"):
        open_scene(path)
    found, _ = open_scene(path, dtype="float32").read(Window(0, 0, 20, 20))
    assert np.array_equal(found, values.astype(np.float32))
    with pytest.raises(RasterError, match=r"fractions .float64., which scenes.dtype: int8"):
        open_scene(path, dtype="int8")
    wide = write_raster(
        tmp_path / "b.tif", np.full((2, 20, 20), 300, np.int16), names=names(2), nodata=-1
    )
    with pytest.raises(RasterError, match="holds 300; int8 holds whole numbers from -128 to 127"):
        open_scene(wide, dtype="int8").read(Window(0, 0, 20, 20))


def test_a_measured_number_never_becomes_what_stands_for_none(tmp_path):
    one, other = bits(2, 20, 20, "int16"), bits(2, 20, 20, "int16", seed=1)
    one[0, 3, 3] = -32768
    write_raster(tmp_path / "a.tif", one, names=names(2), nodata=-9999)
    write_raster(tmp_path / "b.tif", other, names=names(2), nodata=-32768, left=LEFT + 200)
    with pytest.raises(RasterError, match="-32768 as a measured value"):
        open_scene(tmp_path).read(Window(0, 0, 40, 20))


@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "cubic"])
@pytest.mark.parametrize("dtype", ["int8", "int16", "float32"])
def test_resampled_tiles_of_other_types_are_those_of_the_fractions(tmp_path, dtype, resampling):
    smooth = np.add.outer(np.sin(np.arange(60) / 9), np.cos(np.arange(80) / 7))
    values = np.stack([60 * smooth, 20 - 50 * smooth])
    if dtype != "float32":
        values = values.round()
    values = values.astype(dtype)
    values[:, 30:34, 40:44] = NODATA[dtype]
    path = write_raster(tmp_path / "a.tif", values, names=names(2), nodata=NODATA[dtype])
    fractions = np.where(values == NODATA[dtype], np.nan, values.astype(np.float32))
    same = write_raster(tmp_path / "b.tif", fractions, names=names(2), nodata=float("nan"))
    told = [
        cut(
            open_scene(file), tmp_path / f"{file.stem}.npy", crs="EPSG:32630", resampling=resampling
        )
        for file in (path, same)
    ]
    assert np.array_equal(told[0][0], told[1][0])
    own, wanted = told[0][1], told[1][1]
    measured = np.isfinite(wanted)
    assert measured.mean() > 0.5
    difference = np.abs(own[measured] - wanted[measured])
    assert difference.max() <= (0.0 if dtype == "float32" else 0.5 + 1e-4)


@pytest.mark.parametrize("dtype", ["int8", "int16", "float32"])
def test_ready_tiles_keep_their_type(tmp_path, dtype):
    values = bits(3, SIDE, SIDE, dtype)
    values[:, 2, :5] = NODATA[dtype]
    write_raster(tmp_path / "x_A1.tif", values, names=None, nodata=NODATA[dtype])
    options = ReadyTileOptions(folder=tmp_path, bands=names(3))
    ready = find_ready_tiles(options, ["A1"], TileOptions(bands=names(3)))
    share = pack_tiles(ready, tmp_path / "t.npy", executor=None)
    assert np.load(tmp_path / "t.npy")[0].tobytes() == values.tobytes()
    assert share[0] == 1 - 5 / SIDE**2


def test_exported_embeddings_are_read_as_the_same_values(tmp_path):
    values = bits(3, SIDE, SIDE, "int8")
    write_raster(tmp_path / "plain_A.tif", values, names=names(3), nodata=-128)
    scene = replace(open_scene(tmp_path / "plain_A.tif", bands=names(3)), signed_square=127.5)
    data = dataset_of(scene, values[None], ["A"])
    export_tiles(data, tmp_path / "out")
    options = ReadyTileOptions(folder=tmp_path / "out", bands=names(3), pattern="{site_id}.tif")
    ready = find_ready_tiles(options, ["A"], TileOptions())  # its bands are not the usual ones
    assert ready.bands == tuple(names(3)) and ready.signed_square == 127.5
    with pytest.raises(RasterError, match="no band 'red'; they have"):
        find_ready_tiles(options, ["A"], TileOptions(bands=("red",)))
    (tmp_path / "plain_A.tif").rename(tmp_path / "out" / "B.tif")
    with pytest.raises(RasterError, match="and others have not"):
        find_ready_tiles(options, ["A", "B"], TileOptions())


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_a_median_of_dates_keeps_the_type(tmp_path, dtype):
    dates = []
    for number, day in enumerate(("20230601", "20230611", "20230621")):
        values = np.random.default_rng(number).normal(0, 50, (2, 40, 40)).astype(dtype)
        values[:, 10 * number : 10 * number + 15, :20] = NODATA[dtype]
        values[:, 35:] = NODATA[dtype]
        write_raster(tmp_path / f"x_{day}.tif", values, names=names(2), nodata=NODATA[dtype])
        dates.append(np.where(values == NODATA[dtype], np.nan, values.astype(float)))
    with np.errstate(all="ignore"):
        wanted = np.nanmedian(np.stack(dates)[:, :, :35], axis=0)
    wanted = wanted.astype(np.float32) if dtype == "float32" else np.rint(wanted)
    scene = open_scene(tmp_path)
    lazy, _ = compose_lazily(scene, CompositeOptions())
    made = make_composite(scene, tmp_path / "made/c.tif").path
    for composed in (lazy, open_scene(made, dtype=scene.dtype)):
        found, valid = composed.read(Window(0, 0, 40, 40))
        assert composed.dtype == dtype == found.dtype
        assert valid[:35].all() and not valid[35:].any()
        assert np.array_equal(found[:, :35], wanted)
