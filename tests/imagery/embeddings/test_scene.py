"""Embeddings as scenes: both published layouts, tiles in their own type, and maps of them."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from rasterio.windows import Window

from butterfly_sdm.baselines import make_baseline
from butterfly_sdm.data.dataset import Dataset, DatasetCard, TileCard
from butterfly_sdm.data.splits import Split
from butterfly_sdm.data.tiles import TileReader
from butterfly_sdm.errors import ConfigError, RasterError
from butterfly_sdm.imagery.embeddings.options import EmbeddingReading
from butterfly_sdm.imagery.embeddings.scene import open_embedding_scene
from butterfly_sdm.imagery.options import SceneOptions
from butterfly_sdm.imagery.scene import Scene
from butterfly_sdm.models.batches import image_of
from butterfly_sdm.models.inputs import mean_and_spread
from butterfly_sdm.models.network_predictor import NetworkPredictor
from data_prep.imagery.cutting import cut_tiles
from data_prep.imagery.options import TileOptions
from data_prep.imagery.scenes import open_named
from data_prep.imagery.tile_grids import tile_grid
from tests.data_prep.imagery.test_cutting import degrees
from tests.imagery.embeddings.layouts import (
    ZONE_31,
    alphaearth_value,
    write_alphaearth,
    write_tessera_as,
)
from tests.mapping.world import map_of, read

LEFT, TOP, SIDE = 500_000.0, 5_700_000.0, 64
ALPHAEARTH = EmbeddingReading(preset="alphaearth")


def fields(bands: int, height: int = 224, width: int = 256, seed: int = 0) -> np.ndarray:
    """Return unit vectors (bands, height, width) that vary over some pixels."""
    random = np.random.default_rng(seed)
    shape = (bands, height // 16 + 1, width // 16 + 1)
    coarse = random.normal(size=shape).repeat(16, axis=1).repeat(16, axis=2)
    values = coarse[:, :height, :width] + 0.3 * random.normal(size=(bands, height, width))
    return values / np.linalg.norm(values, axis=0)


def alphaearth_file(folder: Path, values: np.ndarray, **place) -> np.ndarray:
    """Write values as AlphaEarth keeps them; return the bytes, from north to south."""
    stored = np.sign(values) * np.sqrt(np.abs(values)) * 127.5
    stored = stored.round().clip(-127, 127).astype(np.int8)
    stored[:, 8:24, 32:48] = -128
    blocks = {"blockxsize": 64, "blockysize": 64, "interleave": "pixel"}
    write_alphaearth(folder, stored, crs=ZONE_31, **blocks | {"left": LEFT, "top": TOP} | place)
    return stored


def tessera_files(folder: Path, values: np.ndarray, name: str = "grid_2023") -> np.ndarray:
    """
    Write values as TESSERA keeps them, the mask beside them; return what they decode to, NaN where
    there is none.
    """
    scales = (np.abs(values).max(axis=0) / 127).astype(np.float32)
    stored = (values / scales).round().astype(np.int8)
    scales[4:8] = np.nan
    files = folder / f"{name}.npy", folder / f"{name}.tiff"
    write_tessera_as(*files, stored, scales, left=LEFT, top=TOP)
    return stored * scales


def decoded(stored: np.ndarray) -> np.ndarray:
    return np.where(stored == -128, np.nan, alphaearth_value(stored))


def whole(scene: Scene) -> Window:
    return Window(0, 0, scene.width, scene.height)


@pytest.mark.parametrize("turned", [False, True])
def test_alphaearth_is_read_in_its_own_bytes_in_either_order_of_rows(tmp_path, turned):
    stored = alphaearth_file(tmp_path, fields(64), bottom_up=turned)
    scene = open_embedding_scene(tmp_path, ALPHAEARTH)
    assert (scene.dtype, scene.nodata, scene.signed_square) == ("int8", -128, 127.5)
    assert scene.bands[::21] == ("e00", "e21", "e42", "e63")
    found, valid = scene.read(whole(scene))
    assert np.array_equal(found, stored) and np.array_equal(valid, stored[0] != -128)
    part, _ = scene.read(Window(20, 5, 70, 90), ["e05", "e63"])
    assert np.array_equal(part, stored[[5, 63], 5:95, 20:90])


def test_files_side_by_side_are_one_mosaic(tmp_path):
    east = alphaearth_file(tmp_path, fields(3, 64, 64), left=LEFT + 640, name="a")
    west = alphaearth_file(tmp_path, fields(3, 64, 64, seed=1), bottom_up=False, name="b")
    scene = open_embedding_scene(tmp_path, EmbeddingReading(preset="alphaearth", bands=3))
    found, _ = scene.read(whole(scene))
    assert np.array_equal(found, np.concatenate([west, east], axis=2))


def test_tessera_is_decoded_where_it_is_read(tmp_path):
    values = tessera_files(tmp_path / "2023", fields(128, 100, 90))
    scene = open_embedding_scene(tmp_path, EmbeddingReading(preset="tessera"))
    assert (scene.dtype, scene.signed_square) == ("float32", None)
    found, valid = scene.read(whole(scene))
    assert np.array_equal(found, values.astype(np.float32), equal_nan=True)
    assert np.array_equal(valid, np.isfinite(values[0]))
    assert [Path(layer.path).name for layer in scene.pieces[0].files] == [
        "grid_2023.npy",
        "grid_2023_scales.npy",
    ]


def dataset_of(scene: Scene, folder: Path, sites: int = 24, size_px: int = SIDE) -> Dataset:
    random = np.random.default_rng(5)
    east = LEFT + 10 * random.integers(20, scene.width - 20, sites)
    north = TOP - 10 * random.integers(20, scene.height - 20, sites)
    grid = tile_grid(*degrees(east, north, "EPSG:32631"), scene, TileOptions(size_px=size_px))
    valid = cut_tiles(scene, grid, folder / "tiles.npy")
    index = pd.Index([f"s{number:02d}" for number in range(sites)], name="site_id")
    table = pd.DataFrame(
        {
            "easting": east * 1.0,
            "northing": north * 1.0,
            "visits": 30,
            "tile_row": np.arange(sites),
            "valid_fraction": valid,
        },
        index=index,
    )
    card = DatasetCard(
        name="embedded",
        species=("Aglais io", "Pieris napi"),
        position_crs="EPSG:32631",
        tiles=TileCard.of_scene(scene, size_px=size_px),
    )
    k = random.integers(0, 31, (sites, 2))
    return Dataset(
        card,
        gpd.GeoDataFrame(table),
        pd.DataFrame(k, index=index, columns=list(card.species)),
        np.load(folder / "tiles.npy", mmap_mode="r"),
        split=Split(tuple(index[6:]), tuple(index[:6])),
    )


def network(**options) -> NetworkPredictor:
    plain = {
        "backbone": "embedding",
        "window_px": 32,
        "margin_px": 16,
        "embedding": 16,
        "head_width": 16,
        "epochs": 2,
        "batch_size": 8,
        "accelerator": "cpu",
    }
    return NetworkPredictor(**plain | options)


@pytest.fixture(scope="module")
def alphaearth(tmp_path_factory) -> tuple[Scene, Dataset]:
    folder = tmp_path_factory.mktemp("alphaearth")
    alphaearth_file(folder, fields(64))
    scene = open_embedding_scene(folder / "annual", ALPHAEARTH)
    return scene, dataset_of(scene, folder)


def test_tiles_keep_the_bytes_and_the_card_keeps_the_rule(alphaearth):
    scene, data = alphaearth
    card = data.card.tiles
    assert (data.tiles.dtype, card.signed_square, card.nodata) == (np.int8, 127.5, -128)
    assert TileCard.model_validate_json(card.model_dump_json()) == card
    reader = TileReader(data, scene.bands, SIDE)
    rows = reader.read(np_rows(data))
    wanted = decoded(np.asarray(data.tiles))
    values, valid = reader.reflectance(rows)
    values = np.where(valid.numpy(), values.numpy(), np.nan)
    np.testing.assert_allclose(values, wanted, rtol=1e-6, atol=1e-9)
    mean, spread = mean_and_spread(reader, np_rows(data))
    np.testing.assert_allclose(mean, np.nanmean(wanted, axis=(0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(spread, np.nanstd(wanted, axis=(0, 2, 3)), rtol=1e-5)
    table = make_baseline("linear", bands=True).fit(data, data.split.train)
    assert np.isfinite(table.predict(data, data.site_ids).to_numpy()).all()


def np_rows(data: Dataset):
    import torch

    return torch.arange(len(data.tiles))


def test_the_trunk_is_given_decoded_and_standardised_numbers(alphaearth):
    _, data = alphaearth
    fitted = network(epochs=1).fit(data, data.split.train)
    net = fitted.network
    reader = TileReader(data, net.bands, net.tile_px)
    image = image_of(net, reader.read(np_rows(data)), reader).numpy()
    wanted = (decoded(np.asarray(data.tiles)) - net.mean.numpy()[:, None, None]) / net.std.numpy()[
        :, None, None
    ]
    np.testing.assert_allclose(image, np.nan_to_num(wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride_px", [pytest.param(16, marks=pytest.mark.slow), 32])
def test_a_dense_map_of_embeddings_is_the_exact_one(tmp_path, alphaearth, stride_px):
    scene, data = alphaearth
    fitted = network(margin_px=16).fit(data, data.split.train)
    assert fitted.network.stride == 16 and fitted.network.dense
    options = {"stride_px": stride_px, "min_valid_fraction": 0.3, "block_px": 128}
    dense, exact = (
        map_of(fitted, scene, tmp_path / f"{mode}.tif", mode=mode, **options)
        for mode in ("dense", "exact")
    )
    one, other = read(dense), read(exact)
    inside = np.isfinite(other)
    inside[:, 0], inside[:, -1], inside[:, :, 0], inside[:, :, -1] = (False,) * 4
    assert inside.sum() > 20
    np.testing.assert_allclose(one[inside], other[inside], atol=2e-4)


@pytest.mark.slow
def test_a_network_of_128_bands_of_fractions_is_saved_and_maps(tmp_path):
    tessera_files(tmp_path / "2023", fields(128, 128, 128))
    scene = open_embedding_scene(tmp_path, EmbeddingReading(preset="tessera"))
    data = dataset_of(scene, tmp_path, sites=10)
    fitted = network(width=8).fit(data, data.split.train)
    fitted.save(tmp_path / "model")
    loaded = NetworkPredictor.load(tmp_path / "model")
    wanted = fitted.predict(data, data.site_ids)
    assert np.array_equal(loaded.predict(data, data.site_ids), wanted)
    assert wanted.to_numpy().std() > 0
    result = read(map_of(loaded, scene, tmp_path / "m.tif", stride_px=32))
    assert np.isfinite(result).mean() > 0.5


def test_a_scene_of_embeddings_is_named_in_a_config(tmp_path):
    alphaearth_file(tmp_path, fields(64, 64, 64), bottom_up=False)
    options = SceneOptions(paths=(tmp_path / "annual",), embeddings=ALPHAEARTH)
    assert len(open_named(options, options.paths).bands) == 64
    assert open_named(options, options.paths, bands=["e03", "e01"]).bands == ("e03", "e01")
    with pytest.raises(RasterError, match="no band 'red'; theirs are e00 to e63"):
        open_named(options, options.paths, bands=["red"])
    stated = options.model_copy(update={"scale": 0.1})
    with pytest.raises(ConfigError, match=r"scenes.scale is not read beside scenes.embeddings"):
        open_named(stated, options.paths)
