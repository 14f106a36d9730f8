"""Of remote files only what is read is fetched, once, and what is read is what lies there."""

import json
import pickle
import struct
from dataclasses import replace

import numpy as np
import pytest
import rasterio
from pyproj import Transformer
from rasterio.transform import from_origin
from rasterio.windows import Window

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import SourceError
from butterfly_sdm.imagery.options import CompositeOptions, SceneOptions, StacOptions
from butterfly_sdm.imagery.scene import open_scene
from butterfly_sdm.imagery.supply import bring
from data_prep.build import build_dataset
from data_prep.imagery.cutting import cut_tiles
from data_prep.imagery.options import TileOptions
from data_prep.imagery.scenes import scene_of
from data_prep.imagery.tile_grids import tile_grid
from data_prep.sources.sparse import Copy, SparseCopies, have_mark, remote_mark, sums_mark
from data_prep.sources.tiff_layout import TooShortError, UnsuitableError, read_layout
from data_prep.sources.transfer import Service
from tests.data_prep.range_server import serving
from tests.data_prep.surveys import make_config, make_survey

BANDS = ("red", "nir")
NOISE = np.random.default_rng(9).integers(1, 4000, (300, 300)).astype(np.uint16)
DAYS = ("2023-06-03", "2023-06-18", "2023-07-06")
SIDE, BLOCK = 640, 128


def at_once(seconds):
    pass


NOW = Service(attempts=6, pause_s=0.0, sleep=at_once)
SEARCH = {"bbox": (-12, 45, 20, 60), "start": "2023-01-01", "end": "2023-12-31", "max_cloud": 100}


def write_cog(path, values, pixel=10, left=500_000, block=BLOCK, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"driver": "COG", "compress": "deflate", "predictor": 2, "blocksize": block} | more
    if options["driver"] == "GTiff":
        options |= {"tiled": True, "blockxsize": options.pop("blocksize"), "blockysize": block}
    with rasterio.open(
        path,
        "w",
        count=1,
        height=values.shape[0],
        width=values.shape[1],
        dtype=values.dtype,
        crs="EPSG:32633",
        transform=from_origin(left, 5_000_000, pixel, pixel),
        nodata=0,
        **options,
    ) as out:
        out.write(values, 1)


def make_catalogue(folder, *, grids=2, days=3, bands=BANDS, **more):
    links = []
    for grid in range(grids):
        for number, day in enumerate(DAYS[:days]):
            random = np.random.default_rng([grid, number])
            name = f"S2A_{grid}_{day.replace('-', '')}"
            left = 500_000 + grid * 10 * (SIDE - 64)
            assets = {}
            for key in (*bands, "scl"):
                pixels = random.integers(1, 4000, (SIDE, SIDE)).astype(np.uint16)
                if key == "scl":
                    pixels = np.full((SIDE // 2, SIDE // 2), 4, np.uint8)
                    pixels[random.random(pixels.shape) < 0.2] = 9
                    pixels[:, : SIDE // 6 * number] = 8  # wholly cloudy blocks
                write_cog(
                    folder / name / f"{key}.tif", pixels, 20 if key == "scl" else 10, left, **more
                )
                assets[key] = {"href": f"{name}/{key}.tif"}
                if key != "scl":
                    assets[key]["eo:bands"] = [{"name": key, "common_name": key}]
            item = {
                "type": "Feature",
                "stac_version": "1.0.0",
                "id": name,
                "collection": "sentinel-2-l2a",
                "bbox": [14.9, 44.9, 15.3, 45.2],
                "properties": {"datetime": f"{day}T11:00:00Z", "s2:processing_baseline": "05.09"},
                "links": [],
                "assets": assets,
            }
            (folder / f"{name}.json").write_text(json.dumps(item))
            links.append({"rel": "item", "href": f"{name}.json"})
    (folder / "catalog.json").write_text(json.dumps({"type": "Catalog", "links": links}))
    return folder


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    return make_catalogue(tmp_path_factory.mktemp("catalogue"))


def remote_scene(server, scratch, *, method="median", **stac):
    options = SceneOptions(
        stac=StacOptions(url=f"{server.url}/catalog.json", **SEARCH, **stac),
        composite=CompositeOptions(method=method),
    )
    scene, told = scene_of(options, bands=BANDS, scratch=scratch)
    scene.supply.service = NOW
    return scene, told


def local_scene(folder, tmp_path, method="median"):
    options = SceneOptions(paths=(folder,), composite=CompositeOptions(method=method))
    return scene_of(options, bands=BANDS, scratch=tmp_path)[0]


def some_places(scene, crs=None):
    random = np.random.default_rng(3)
    lon, lat = 15 + random.uniform(0.01, 0.14, 6), 45.15 - random.uniform(0.02, 0.05, 6)
    return tile_grid(lon, lat, scene, TileOptions(size_px=64, crs=crs))


def needed_bytes(folder, scratch):
    """Return the bytes of the headers and of the blocks that copies have."""
    total = 0
    for mark in scratch.rglob("*.have"):
        file = folder / mark.parent.name / mark.name.removesuffix(".have")
        data = file.read_bytes()
        have = np.fromfile(mark, np.uint8) > 0
        total += int(read_layout(data, len(data)).counts[have].sum())
        total += json.loads(remote_mark(mark.with_suffix("")).read_text())["header"]
    return total


@pytest.mark.parametrize(
    ("method", "crs", "faults"),
    [
        ("median", None, (0, 0)),
        ("median", None, (5, 7)),
        ("median", "EPSG:32632", (0, 0)),
        ("least_cloudy", None, (0, 0)),
    ],
)
def test_tiles_are_those_of_local_files_byte_by_byte(catalogue, tmp_path, method, crs, faults):
    local = local_scene(catalogue, tmp_path, method)
    grid = some_places(local, crs)
    cut_tiles(local, grid, tmp_path / "local.npy")
    with serving(catalogue) as server:
        server.busy, server.broken = faults
        scene, told = remote_scene(server, tmp_path / "remote", method=method)
        assert sorted(told.files) == sorted(
            f"{server.url}/{p.relative_to(catalogue)}" for p in catalogue.rglob("*.tif")
        )
        kept = []
        scene.supply.forget = lambda paths: kept.extend(paths)
        cut_tiles(scene, grid, tmp_path / "remote.npy")
        assert (tmp_path / "local.npy").read_bytes() == (tmp_path / "remote.npy").read_bytes()
        assert len(kept) == len(told.files)
        least = needed_bytes(catalogue, tmp_path / "remote")
        whole = sum(path.stat().st_size for path in catalogue.rglob("*.tif"))
        assert least < 0.75 * whole
        if not any(faults):
            assert server.sent() <= 1.05 * least
        parts = [part for part in server.asked if part[2] > part[1]]
        assert any(faults) or len(parts) == len(set(parts))


def test_dates_that_are_wholly_cloudy_are_not_fetched(catalogue, tmp_path):
    with serving(catalogue) as server:
        scene, _ = remote_scene(server, tmp_path)
        server.asked.clear()
        stack = scene.pieces[0]  # its second and third date show clouds alone here
        bring(scene, [(stack, stack.layers[0].grid, Window(0, 0, 100, 100))])
        asked = [name for name, _, _ in server.asked if name.endswith("scl.tif")]
        assert len(asked) == len(set(asked)) <= 3  # what is in the first bytes of a file is here
        assert sum(name.endswith("red.tif") for name, _, _ in server.asked) == 1


def test_a_map_window_is_read_in_parts_as_it_is_from_local_files(catalogue, tmp_path):
    local = local_scene(catalogue, tmp_path)
    window = Window(-20, 100, 700, 300)
    expected, there = local.read(window)
    with serving(catalogue) as server:
        scene, _ = remote_scene(server, tmp_path / "remote")
        server.asked.clear()
        sent = pickle.loads(pickle.dumps(scene))  # a worker's
        for left in range(-20, 680, 100):
            values, valid = sent.read(Window(left, 100, 100, 300))
            at = slice(left + 20, left + 120)
            np.testing.assert_array_equal(values, expected[:, :, at])
            np.testing.assert_array_equal(valid, there[:, at])
        parts = sorted(server.asked)
        assert len(parts) == len(set(parts))


def test_without_a_composite_the_first_product_is_read_alone(catalogue, tmp_path):
    with serving(catalogue) as server:
        stac = StacOptions(url=f"{server.url}/catalog.json", **SEARCH)
        scene, _ = scene_of(SceneOptions(stac=stac), bands=BANDS, scratch=tmp_path / "a")
        local = open_scene(catalogue).select(BANDS)
        server.asked.clear()
        window = Window(200, 200, 80, 90)
        np.testing.assert_array_equal(scene.read(window)[0], local.read(window)[0])
        assert server.sent() < 600_000
        grid = some_places(scene)
        cut_tiles(local, grid, tmp_path / "local.npy")
        cut_tiles(scene, grid, tmp_path / "remote.npy")
        assert (tmp_path / "local.npy").read_bytes() == (tmp_path / "remote.npy").read_bytes()


def test_what_was_fetched_is_not_fetched_again_after_an_interruption(catalogue, tmp_path):
    with serving(catalogue) as server:
        scene, _ = remote_scene(server, tmp_path)
        window = Window(0, 0, 300, 300)
        expected, _ = scene.read(window)
        server.asked.clear()
        again, _ = remote_scene(server, tmp_path)
        np.testing.assert_array_equal(again.read(window)[0], expected)
        assert server.sent() == 0
        # killed between the bytes and the mark: that block is fetched again, no other
        mark = have_mark(next(tmp_path.rglob("S2A_0_20230603/red.tif")))
        have = np.fromfile(mark, np.uint8)
        have[np.flatnonzero(have)[0]] = 0
        have.tofile(mark)
        third, _ = remote_scene(server, tmp_path)
        np.testing.assert_array_equal(third.read(window)[0], expected)
        assert len([name for name, _, _ in server.asked if name.endswith("red.tif")]) == 1


def test_what_was_damaged_since_it_was_fetched_is_fetched_again(catalogue, tmp_path, caplog):
    window = Window(0, 0, 300, 300)
    with serving(catalogue) as server:
        scene, _ = remote_scene(server, tmp_path)
        expected, _ = scene.read(window)
        files = [tmp_path.rglob(f"S2A_0_{DAYS[day].replace('-', '')}/red.tif") for day in range(3)]
        block, header, mark = (Copy(next(found)) for found in files)
        held = int(np.flatnonzero(np.fromfile(have_mark(block.path), np.uint8))[0])
        for path, at in (
            (block.path, int(block.layout.offsets[held]) + 5),
            (header.path, 20),
            (remote_mark(mark.path), 3),
        ):
            data = bytearray(path.read_bytes())
            data[at] ^= 1
            path.write_bytes(data)
        server.asked.clear()
        again, _ = remote_scene(server, tmp_path)
        np.testing.assert_array_equal(again.read(window)[0], expected)
        told = [record.getMessage() for record in caplog.records]
        assert sorted("damaged since" in line for line in told) == [True] * 3
        assert sum("fetched (1), and" in line for line in told) == 1
        assert {name for name, _, _ in server.asked if name.endswith(".tif")} == {
            f"{copy.path.parent.name}/red.tif" for copy in (block, header, mark)
        }
        have = np.fromfile(have_mark(block.path), np.uint8)
        have[:] = 1  # so marked, and never fetched
        have.tofile(have_mark(block.path))
        third, _ = remote_scene(server, tmp_path)
        np.testing.assert_array_equal(third.read(window)[0], expected)
        assert third.supply.copy(str(block.path)).held().sum() < len(have)


def test_a_copy_begun_by_an_earlier_release_is_gone_on_with(tmp_path):
    write_cog(tmp_path / "there" / "a.tif", NOISE)
    path = tmp_path / "here" / "a.tif"
    with serving(tmp_path / "there") as server:
        copies = SparseCopies(service=NOW)
        copies.hold(f"{server.url}/a.tif", path)
        copies.bring([(str(path), Window(0, 0, 100, 100))])
        sums_mark(path).unlink()
        told = json.loads(remote_mark(path).read_text())
        told.pop("sha256")
        remote_mark(path).write_text(json.dumps(told))
        server.asked.clear()
        later = SparseCopies(service=NOW)
        assert later.look_over(path.parent)
        later.bring([(str(path), Window(0, 0, 100, 100))])
        assert not server.asked
        later.bring([(str(path), Window(0, 0, 300, 300))])
        with rasterio.open(path) as file:
            np.testing.assert_array_equal(file.read(1), NOISE)


def test_space_that_is_given_back_is_filled_again_when_it_is_read(catalogue, tmp_path):
    with serving(catalogue) as server:
        scene, _ = remote_scene(server, tmp_path)
        window = Window(0, 0, 300, 300)
        expected, _ = scene.read(window)
        copy = next(tmp_path.rglob("S2A_0_20230603/red.tif"))
        held = copy.stat().st_blocks
        scene.supply.forget(scene.paths)
        assert copy.stat().st_blocks < held / 2
        np.testing.assert_array_equal(scene.read(window)[0], expected)  # kept in memory
        fresh = replace(scene, kept=type(scene.kept)())
        np.testing.assert_array_equal(fresh.read(window)[0], expected)


@pytest.mark.parametrize(
    "kind",
    [
        {"driver": "GTiff", "tiled": False},
        {"driver": "JP2OpenJPEG"},
        {"dtype": "float32"},
        {"ranges": False},
        {"small": True},
        {"weak": True},
    ],
)
def test_files_that_cannot_be_had_in_parts_are_fetched_whole(tmp_path, kind):
    random = np.random.default_rng(0)
    dtype = kind.get("dtype", "uint16")
    side = 64 if kind.get("small") else 400
    values = random.integers(1, 4000, (side, side)).astype(dtype)
    folder = tmp_path / "there"
    name = "a.jp2" if kind.get("driver") == "JP2OpenJPEG" else "a.tif"
    if kind.get("driver"):
        folder.mkdir()
        options = {"REVERSIBLE": "YES", "QUALITY": "100"} if name == "a.jp2" else {"tiled": False}
        profile = {"count": 1, "height": side, "width": side, "dtype": dtype, "crs": "EPSG:32633"}
        with rasterio.open(
            folder / name,
            "w",
            driver=kind["driver"],
            transform=from_origin(0, 0, 10, 10),
            **profile,
            **options,
        ) as out:
            out.write(values, 1)
    else:
        write_cog(folder / name, values)
    with serving(folder) as server:
        server.ranges, server.weak = kind.get("ranges", True), kind.get("weak", False)
        copies = SparseCopies(service=NOW)
        path = copies.hold(f"{server.url}/{name}?a=b", tmp_path / "here" / name)
        copies.bring([(str(path), Window(0, 0, side, side))])
        with rasterio.open(path) as file:
            np.testing.assert_array_equal(file.read(1), values)
        partial = kind.get("small") or kind.get("weak")
        assert remote_mark(path).is_file() is bool(partial)
        assert path.stat().st_size == (folder / name).stat().st_size


def test_a_file_that_changes_at_its_source_is_noticed(tmp_path):
    random = np.random.default_rng(0)
    first, second = random.integers(1, 4000, (2, 300, 300)).astype(np.uint16)
    write_cog(tmp_path / "there" / "a.tif", first)
    with serving(tmp_path / "there") as server:
        copies = SparseCopies(service=NOW)
        path = copies.hold(f"{server.url}/a.tif", tmp_path / "here" / "a.tif")
        write_cog(tmp_path / "there" / "a.tif", second)
        with pytest.raises(SourceError, match="has changed since its copy was begun"):
            copies.bring([(str(path), Window(0, 0, 300, 300))])


def test_a_server_that_ends_is_one_sentence_without_the_token(tmp_path):
    write_cog(tmp_path / "there" / "a.tif", NOISE)
    with serving(tmp_path / "there") as server:
        copies = SparseCopies(service=NOW)
        path = copies.hold(f"{server.url}/a.tif?sig=hush", tmp_path / "here" / "a.tif")
        assert copies.address(str(path)) == f"{server.url}/a.tif"
        server.busy = 1
        with pytest.raises(SourceError, match=r"could not be fetched in 6 attempts") as told:
            copies.bring([(str(path), Window(0, 0, 300, 300))])
    assert "hush" not in str(told.value)
    assert "hush" not in repr(copies)


def test_addresses_are_signed_for_every_request(tmp_path, monkeypatch):
    write_cog(tmp_path / "there" / "a.tif", NOISE)
    signed = []

    def sign(url):
        signed.append(url)
        return f"{url}?n={len(signed)}"

    monkeypatch.setattr("data_prep.sources.sparse.signer_of", lambda name: sign)
    with serving(tmp_path / "there") as server:
        copies = SparseCopies(sign="mine", service=NOW)
        path = copies.hold(f"{server.url}/a.tif", tmp_path / "here" / "a.tif")
        server.broken = 2
        copies.bring([(str(path), Window(0, 0, 300, 300))])
        assert sorted(server.queries) == sorted(f"n={n + 1}" for n in range(len(signed)))
        assert len(signed) > 2
        assert set(signed) == {f"{server.url}/a.tif"}
    assert "?" not in remote_mark(path).read_text()


@pytest.mark.parametrize("big", ["NO", "YES"])
@pytest.mark.parametrize("shape", [(300, 500), (128, 128), (1000, 130)])
def test_blocks_are_found_where_gdal_finds_them(tmp_path, big, shape):
    path = tmp_path / "a.tif"
    values = np.random.default_rng(0).integers(1, 4000, shape).astype(np.uint16)
    write_cog(path, values, bigtiff=big)
    data = path.read_bytes()
    layout = read_layout(data, len(data))
    assert (layout.height, layout.width, layout.block) == (*shape, (BLOCK, BLOCK))
    across = -(-shape[1] // BLOCK)
    with rasterio.open(path) as file:
        for number in range(len(layout.offsets)):
            at = f"{number % across}_{number // across}"
            assert int(file.get_tag_item(f"BLOCK_OFFSET_{at}", "TIFF", 1)) == layout.offsets[number]
            assert int(file.get_tag_item(f"BLOCK_SIZE_{at}", "TIFF", 1)) == layout.counts[number]
    np.testing.assert_array_equal(layout.blocks(0, 0, *shape), np.arange(len(layout.offsets)))
    assert layout.blocks(-5, -5, 6, 6).tolist() == [0]
    assert layout.blocks(2000, 0, 5, 5).size == 0


def test_directories_at_the_end_with_masks_or_in_strips_are_unsuitable(tmp_path):
    values = np.random.default_rng(0).integers(1, 4000, (3000, 3000)).astype(np.uint16)
    write_cog(tmp_path / "a.tif", values, driver="GTiff", predictor=1, compress="none")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    struct.pack_into("<I", data, 4, len(data) - 20)
    with pytest.raises(UnsuitableError, match="do not lie at its beginning"):
        read_layout(bytes(data[:20_000]), len(data))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write_cog(tmp_path / "m.tif", values[:300, :300])
        with rasterio.open(tmp_path / "m.tif") as file:
            profile = file.profile | {"driver": "GTiff", "nodata": None}
        with rasterio.open(tmp_path / "m.tif", "w", **profile) as out:
            out.write(values[:300, :300], 1)
            out.write_mask(np.full((300, 300), 255, np.uint8))
    data = (tmp_path / "m.tif").read_bytes()
    with pytest.raises(UnsuitableError, match="a mask of its own"):
        read_layout(data, len(data))


def test_damaged_directories_end_in_no_other_error(tmp_path):
    values = np.random.default_rng(0).integers(1, 4000, (300, 300)).astype(np.uint16)
    write_cog(tmp_path / "a.tif", values)
    data = (tmp_path / "a.tif").read_bytes()
    random = np.random.default_rng(1)
    ended = 0
    for _ in range(3000):
        changed = bytearray(data[: int(random.integers(0, 3000))])
        for _ in range(int(random.integers(0, 6))):
            if changed:
                changed[int(random.integers(len(changed)))] = int(random.integers(256))
        try:
            read_layout(bytes(changed), len(data))
        except (TooShortError, UnsuitableError):
            ended += 1
    assert 1500 < ended < 3000


def test_a_copy_begun_and_killed_is_begun_anew(tmp_path):
    write_cog(tmp_path / "there" / "a.tif", NOISE)
    path = tmp_path / "here" / "a.tif"
    path.parent.mkdir()
    remote_mark(path).write_text("{}")  # written before the file itself
    with serving(tmp_path / "there") as server:
        copies = SparseCopies(service=NOW)
        copies.hold(f"{server.url}/a.tif", path)
        copies.bring([(str(path), Window(0, 0, 300, 300))])
        assert Copy(path).held().all()


def test_a_data_set_is_built_out_of_a_catalogue_and_names_the_originals(catalogue, tmp_path):
    random = np.random.default_rng(5)
    lon, lat = 15 + random.uniform(0.01, 0.14, 40), 45.15 - random.uniform(0.02, 0.05, 40)
    to_grid, made = Transformer.from_crs(4326, 27700, always_xy=True), []
    with serving(catalogue) as server:
        stac = {"url": f"{server.url}/catalog.json", **SEARCH}
        for scenes in ({"stac": stac}, {"paths": [str(catalogue)]}):
            config = make_config(
                scenes=scenes | {"composite": {}},
                tiles={"size_px": 64, "bands": list(BANDS), "min_valid_fraction": 0.01},
            )
            survey = make_survey(np.transpose(to_grid.transform(lon, lat)))
            folder = tmp_path / str(len(made))
            made.append(build_dataset(config, folder, name="test", seed=0, survey=survey))
        one, other = (Dataset.open(folder) for folder in made)
        np.testing.assert_array_equal(one.tiles, other.tiles)
        sources = [source for source in one.card.sources if source.role == "scene"]
        assert len(sources) == len(DAYS) * 2 * 3
        assert all(source.name.startswith(f"{server.url}/S2A_") for source in sources)
    assert any("median of 2023-06-03" in note for note in one.card.notes)
    assert not list(made[0].rglob("*.remote"))
