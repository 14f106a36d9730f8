"""Where a sparse file holds no block nothing is read, and all pixels are what they are."""

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window

from butterfly_sdm.imagery import piece_pixels
from butterfly_sdm.imagery.scene import Scene, open_scene
from butterfly_sdm.mapping.surfaces.exact import valid_fractions
from butterfly_sdm.mapping.surfaces.lattice import Lattice
from tests.imagery.rasters import BANDS

SIDE = 1024  # 64 x 64 blocks
HELD = ((0, 0), (5, 40), (5, 41), (33, 20), (63, 63))


def sparse(path, *, held=HELD, left=4e5, one_band_only=(), nodata=0, **layout):
    """Write a scene of which few blocks are held, and return its path."""
    shape = {"width": SIDE, "height": SIDE, "count": 4, "dtype": "uint16", "nodata": nodata}
    layout = {"tiled": True, "blockxsize": 16, "blockysize": 16, "interleave": "pixel"} | layout
    place = {"crs": "EPSG:27700", "transform": from_origin(left, 2e5, 10, 10)}
    rng = np.random.default_rng(0)
    with rasterio.open(path, "w", driver="GTiff", SPARSE_OK=True, **shape, **layout, **place) as to:
        to.descriptions = BANDS
        for row, col in held:
            bands = 1 if (row, col) in one_band_only else 4
            values = rng.integers(1, 5000, (bands, 16, 16)).astype(np.uint16)
            values[:, 3:6, 9:] = 0  # not measured within a block
            to.write(values, list(range(1, bands + 1)), window=Window(col * 16, row * 16, 16, 16))
    return path


def same_as_read_whole(paths, monkeypatch) -> Scene:
    rng = np.random.default_rng(1)
    corners, sides = rng.integers(-40, SIDE, (40, 2)), rng.integers(1, 300, (40, 2))
    windows = [
        Window(0, 0, SIDE + 300, SIDE),
        *(Window(*map(int, (*at, *side))) for at, side in zip(corners, sides, strict=True)),
    ]
    scene = open_scene(paths)
    found = [scene.read(window) for window in windows]
    shown = scene.shown(windows)
    with monkeypatch.context() as patch:
        patch.setattr(piece_pixels, "MANY_BLOCKS", 10**9)
        whole = open_scene(paths)
        expected = [whole.read(window) for window in windows]
    for (values, valid), (wanted, measured), there in zip(found, expected, shown, strict=True):
        np.testing.assert_array_equal(values, wanted)
        np.testing.assert_array_equal(valid, measured)
        assert there or not measured.any()
    assert not shown.all()
    return scene


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"interleave": "band", "one_band_only": HELD[1:3]},
        {"compress": "deflate", "nodata": 7},
    ],
)
def test_pixels_of_a_sparse_scene_are_those_read_whole(tmp_path, monkeypatch, how):
    scene = same_as_read_whole(sparse(tmp_path / "a.tif", **how), monkeypatch)
    assert scene._held(scene.pieces[0]).sum() == len(HELD)


def test_pieces_of_a_sparse_mosaic_fill_each_others_holes(tmp_path, monkeypatch):
    first = sparse(tmp_path / "a.tif")
    second = sparse(tmp_path / "b.tif", held=((5, 30), (7, 7), (33, 10)), left=4e5 + 10 * 160)
    same_as_read_whole([first, second], monkeypatch)


def test_holes_that_count_as_measured_are_read(tmp_path):
    scene = open_scene(sparse(tmp_path / "a.tif", nodata=None), nodata=9)
    assert scene._held(scene.pieces[0]) is None
    assert scene.read(Window(300, 300, 20, 20))[1].all()


def test_a_scene_that_holds_its_blocks_is_asked_for_some_of_them_alone(tmp_path, monkeypatch):
    every = tuple((row, col) for row in range(64) for col in range(64))
    scene = open_scene(sparse(tmp_path / "a.tif", held=every))
    asked, source = [], scene.handle(scene.pieces[0].layers[0])

    class Asked:
        def __getattr__(self, name):
            asked.append(name)
            return getattr(source, name)

    monkeypatch.setattr(Scene, "handle", lambda self, layer: Asked())
    assert piece_pixels.held_blocks(scene, scene.pieces[0]) is None
    assert asked.count("get_tag_item") == 1024


def test_what_is_measured_is_counted_where_blocks_are(tmp_path, monkeypatch):
    scene = open_scene(sparse(tmp_path / "a.tif"))
    lattice = Lattice.of(scene, stride_px=64, window_px=64)
    rows, cols = slice(0, lattice.height), slice(0, lattice.width)
    read, real = [], Scene.read
    with monkeypatch.context() as patch:
        patch.setattr("butterfly_sdm.mapping.surfaces.exact.MOST_PIXELS", 512)
        patch.setattr(Scene, "read", lambda self, at: read.append(at) or real(self, at))
        found = valid_fractions(scene, lattice, rows, cols)
    assert len(read) == 8 * 4  # strips of 8 rows in the four windows that show a block
    monkeypatch.setattr(piece_pixels, "MANY_BLOCKS", 10**9)
    whole = valid_fractions(open_scene(scene.paths), lattice, rows, cols)
    np.testing.assert_array_equal(found, whole)
    assert np.count_nonzero(found) == 4
