"""Windows that are read and looked at some whole blocks at a time are what they are at once."""

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from rasterio.windows import Window

from butterfly_sdm.imagery.blocks import BlockGrid, by_pixel
from butterfly_sdm.imagery.embeddings.options import EmbeddingReading
from butterfly_sdm.imagery.embeddings.scene import open_embedding_scene
from butterfly_sdm.imagery.pixels import measured, measured_in_all
from butterfly_sdm.imagery.scene import Scene
from butterfly_sdm.mapping.surfaces import parts as parts_module
from butterfly_sdm.mapping.surfaces import pixel_stage
from butterfly_sdm.mapping.surfaces.dense import Phase, column_blocks, normalised
from butterfly_sdm.mapping.surfaces.engine import Engine
from butterfly_sdm.mapping.surfaces.parts import Parts
from butterfly_sdm.models.presence_net import Architecture, PresenceNet

BANDS, BLOCK = 8, 32
BYTES = {"dtype": "int8", "nodata": -128}


def raster(path, *, height=110, width=150, left=0, top=0, seed=0, turned=False, **profile):
    """Write bytes of 8 bands with pixels, and parts of pixels, without a value."""
    stored = np.random.default_rng(seed).integers(-127, 128, (BANDS, height, width))
    stored[:, 20:50, 30:90] = -128
    stored[3, 60:63, :20] = -128
    missing, kind = profile.get("nodata", -128), profile.get("dtype", "int8")
    stored = np.where(stored == -128, missing, stored).astype(kind)
    transform = Affine(10, 0, 500_000 + 10 * left, 0, -10, 5_700_000 - 10 * top)
    if turned:
        transform *= Affine.translation(0, height) * Affine.scale(1, -1)
    layout = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate"}
    size = {"count": BANDS, "height": height, "width": width, "crs": "EPSG:32631"}
    given = BYTES | layout | size | profile
    with rasterio.open(path, "w", driver="GTiff", transform=transform, **given) as out:
        out.write(stored[:, ::-1] if turned else stored)


LAYOUTS = {
    "by pixel": [{"interleave": "pixel"}],
    "by band": [{"interleave": "band"}],
    "from the south": [{"interleave": "pixel", "turned": True}],
    "fractions": [{"interleave": "pixel", "dtype": "float32", "nodata": np.nan}],
    "blocks shared": [{"interleave": "pixel"}, {"left": 96, "top": 64, "seed": 1}],
    "blocks not shared": [{"interleave": "pixel"}, {"left": 100, "top": 70, "seed": 1}],
}
SHARED = {name: name != "blocks not shared" for name in LAYOUTS}


@pytest.fixture(params=LAYOUTS)
def layout(request, tmp_path) -> tuple[str, Scene]:
    for number, file in enumerate(LAYOUTS[request.param]):
        raster(tmp_path / f"{number}.tif", **file)
    rule = "none" if request.param == "fractions" else "signed_square"
    return request.param, open_embedding_scene(tmp_path, EmbeddingReading(rule=rule))


def put_together(parts, window: Window, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    height, width = int(window.height), int(window.width)
    values = np.full((len(scene.bands), height, width), 99, scene.dtype)
    valid, times = np.zeros((height, width), bool), np.zeros((height, width), int)
    for part in parts:
        rows = slice(part.row, part.row + part.valid.shape[0])
        columns = slice(part.column, part.column + part.valid.shape[1])
        values[:, rows, columns], valid[rows, columns] = part.values, part.valid
        times[rows, columns] += 1
    assert (times == 1).all()
    return values, valid


def test_parts_are_the_pixels_of_a_window_each_once(layout, monkeypatch):
    name, scene = layout
    monkeypatch.setattr(parts_module, "PART_BYTES", 2 * BLOCK * BLOCK * BANDS)
    assert (scene.block_grid() is not None) == SHARED[name]
    reading = Parts(scene, 32)
    windows = [Window(-16, -19, 190, 74), Window(-16, 23, 190, 60), Window(-16, 51, 190, 120)]
    for window in windows:  # each begins with rows of the one before
        wanted, there = scene.read(window)
        values, valid = put_together(reading.of(window), window, scene)
        np.testing.assert_array_equal(valid, there)
        np.testing.assert_array_equal(values[:, valid], wanted[:, valid])


@pytest.mark.parametrize("turned", [False, True])
def test_no_block_is_read_twice_where_windows_follow_each_other(tmp_path, monkeypatch, turned):
    monkeypatch.setattr(parts_module, "PART_BYTES", 2 * BLOCK * BLOCK * BANDS)
    raster(tmp_path / "a.tif", height=190, interleave="pixel", turned=turned)
    scene = open_embedding_scene(tmp_path, EmbeddingReading(rule="signed_square"))
    grid, seen, read_into = scene.block_grid(), [], Scene.read_into

    def noted(self, window, values):
        if window.row_off >= 0 and window.row_off + window.height <= scene.height:
            seen.append(window)
            assert by_pixel(values) == (grid.count(window) > 1)
        return read_into(self, window, values)

    monkeypatch.setattr(Scene, "read_into", noted)
    phase = Phase("0_0", range(9), range(9), 3, 0, 1, 11, 9)  # cells of 16 px from row 3 on
    edges = [(end - 16 - phase.row0) // 16 for _, end in grid.rows(0, scene.height)]
    reading = Parts(scene, 32)
    blocks = list(column_blocks(phase, 5, 9, edges))
    assert len(blocks) > 1
    for block in blocks:
        window = block.pixels(16, 16)
        put_together(reading.of(window), window, scene)
    times = np.zeros((scene.height, scene.width), int)
    for window in seen:
        rows, columns = window.toslices()
        times[rows, columns] += 1
    assert times.max() == 1
    for top, bottom in grid.rows(0, scene.height):  # nor a part of one
        assert len({tuple(row) for row in times[top:bottom]}) == 1


def lived_in_network(scene: Scene) -> PresenceNet:
    torch.manual_seed(0)
    look = {"window_px": 32, "margin_px": 16, "embedding": 8, "backbone": "embedding", "width": 8}
    network = PresenceNet(Architecture(species=2, bands=scene.bands, **look)).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    network.mean.normal_(0, 0.2)
    network.std.uniform_(0.2, 0.5)
    return network


@pytest.mark.parametrize("values_at_a_time", [BANDS * 16 * 4, 1 << 18])
def test_cells_of_parts_are_those_of_the_image(layout, monkeypatch, values_at_a_time):
    monkeypatch.setattr(parts_module, "PART_BYTES", 2 * BLOCK * BLOCK * BANDS)
    monkeypatch.setattr(pixel_stage, "CHUNK_VALUES", values_at_a_time)
    _, scene = layout
    window, network = Window(-13, -7, 176, 128), lived_in_network(scene)
    values, valid = scene.read(window)
    wanted = Engine().run(network, normalised(values, valid, network, scene))
    found = Engine().run_stored(network, scene, Parts(scene, 32).of(window), valid.shape)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_a_window_without_a_measured_pixel_has_no_cells(layout):
    _, scene = layout
    window, network = Window(-64, -64, 64, 48), lived_in_network(scene)
    parts = Parts(scene, 32).of(window)
    assert Engine().run_stored(network, scene, parts, (48, 64)) is None


@pytest.mark.parametrize(
    ("dtype", "nodata"), [("int8", -128), ("int8", 0), ("uint16", 0), ("float32", np.nan)]
)
def test_pixels_side_by_side_are_measured_as_those_apart(dtype, nodata, monkeypatch):
    monkeypatch.setattr("butterfly_sdm.imagery.pixels.CHUNK_BYTES", 500)
    apart = np.random.default_rng(0).integers(1, 100, (5, 40, 30)).astype(dtype)
    apart[:, 3:9, 4:8], apart[2, 20, 20:25] = nodata, nodata
    beside = np.moveaxis(np.ascontiguousarray(np.moveaxis(apart, 0, -1)), -1, 0)
    assert by_pixel(beside) and not by_pixel(apart)
    wanted = measured(apart, nodata).all(axis=0)
    assert not wanted.all()
    np.testing.assert_array_equal(measured_in_all(beside, nodata), wanted)


def test_blocks_are_put_together_up_to_a_size():
    grid = BlockGrid(5, 3, 10, 10)
    assert grid.times((10, 100), 1, 399) == BlockGrid(5, 3, 10, 20)
    assert grid.times((100, 100), 1, 400) == BlockGrid(5, 3, 20, 20)
    assert grid.times((100, 100), 1, 1) == grid
    assert grid.rows(0, 26) == [(0, 5), (5, 15), (15, 25), (25, 26)]
    assert grid.columns(3, 13) == [(3, 13)]
    assert grid.count(Window(3, 5, 10, 11)) == 2


def test_a_block_of_cells_is_cut_to_those_that_are_needed():
    phase = Phase("0_0", range(9), range(9), 0, 0, 1, 40, 9)
    (block,) = column_blocks(phase, 40, 9, [])
    needed = np.zeros((40, 9), bool)
    needed[3, 5] = needed[12, 4] = True
    part = block.around(needed)
    assert (part.rows, part.cols) == (slice(3, 13), slice(4, 6))


def test_blocks_of_cells_end_where_blocks_of_the_file_do():
    phase = Phase("0_0", range(9), range(9), 0, 0, 1, 40, 9)
    rows = [(b.rows.start, b.rows.stop) for b in column_blocks(phase, 15, 9, [7, 14, 21, 28])]
    assert rows == [(0, 14), (14, 28), (28, 40)]
    rows = [(b.rows.start, b.rows.stop) for b in column_blocks(phase, 15, 5, [])]
    assert rows == [(0, 15), (15, 30), (30, 40)] * 2
