import base64
import json
import shutil
import threading
import urllib.error
import urllib.request
import zlib

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from affine import Affine
from shapely.geometry import Point

from butterfly_sdm.errors import DataError, MissingFileError, RasterError
from butterfly_sdm.imagery.scene import open_scene
from butterfly_sdm.mapping.map_file import Band, open_map
from butterfly_sdm.mapping.viewer import LEVELS, MapView, export_page, make_server, viewer_page
from butterfly_sdm.mapping.viewer.blocks import MapBlocks
from tests.mapping.world import Position, map_of, write_scene


class Hostile(Position):
    species = ("</script><script>alert(1)</script>", "North & <b>South</b>")

    def predict(self, dataset, sites):
        return super().predict(dataset, sites).set_axis(list(self.species), axis=1)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    path = write_scene(
        tmp_path_factory.mktemp("scene") / "scene.tif", hole=(slice(0, 200), slice(0, 200))
    )
    return open_scene(path)


@pytest.fixture(scope="module")
def plain(scene, tmp_path_factory):
    return map_of(
        Position(),
        scene,
        tmp_path_factory.mktemp("map") / "map.tif",
        layers=["richness"],
        beside=(),
    )


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A map of two bands with three overviews, random and with a hole."""
    folder = tmp_path_factory.mktemp("large")
    values = np.random.default_rng(0).uniform(size=(2, 1500, 700))
    values[:, 300:900, 200:500] = np.nan
    bands, grid = [Band("One"), Band("Two")], Affine(320.0, 0.0, 0.0, 0.0, -320.0, 480_000.0)
    with open_map(
        folder / "large.tif",
        (1500, 700),
        grid,
        "EPSG:27700",
        bands,
        dtype="float32",
        scratch=folder,
    ) as writer:
        writer.write(slice(0, 1500), values)
        writer.tag(mode="exact")
    return folder / "large.tif"


def data_of(page):
    return json.loads(
        page.split('<script id="data" type="application/json">')[1].split("</script>")[0]
    )


def values_of(packed):
    stored = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), dtype=np.uint8)
    values = np.where(stored == 255, np.nan, packed["low"] + packed["step"] * stored)
    return values.reshape(packed["rows"], packed["cols"])


def test_the_page_holds_the_values_of_every_band(plain, tmp_path):
    data = data_of(export_page(plain.path, tmp_path / "map.html").read_text())
    with rasterio.open(plain.path) as source:
        expected = source.read(masked=True).filled(np.nan)
    assert [band["name"] for band in data["bands"]] == ["East", "North", "expected richness"]
    assert [band["species"] for band in data["bands"]] == [True, True, False]
    assert data["factor"] == 1
    for packed, values in zip(data["packed"], expected, strict=True):
        assert packed["step"] == pytest.approx((np.nanmax(values) - np.nanmin(values)) / LEVELS)
        np.testing.assert_allclose(values_of(packed), values, atol=0.51 * packed["step"])


def test_a_page_that_would_be_too_large_is_averaged_and_says_so(large, tmp_path):
    whole = viewer_page(large)
    small = viewer_page(large, most_bytes=len(whole) // 2)
    assert data_of(whole)["factor"] == 1
    data = data_of(small)
    assert data["factor"] == 2
    assert len(small.encode()) <= len(whole) // 2
    with rasterio.open(large) as source:
        values = source.read(1, masked=True).filled(np.nan)
    means = values.reshape(750, 2, 350, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(values_of(data["packed"][0]), means, atol=0.003)
    with pytest.raises(DataError, match="cannot be as small"):
        viewer_page(large, most_bytes=1000)


def test_the_scale_that_is_stretched_spans_the_data_and_the_fixed_one_all_probabilities(plain):
    east, _, richness = data_of(viewer_page(plain.path))["bands"]
    assert east["fixed"] == [0, 1]
    assert 0 < east["stretched"][0] < east["stretched"][1] < 0.65
    assert richness["fixed"][0] == 0 and 1 < richness["fixed"][1] < 2


def test_nothing_is_fetched_from_outside(plain):
    page = viewer_page(plain.path)
    assert "connect-src 'none'" in page
    for outside in (" src=", "@import", "<link", "sourceMappingURL"):
        assert outside not in page
    assert "BSD 2-Clause License" in page and "Volodymyr Agafonkin" in page


def test_a_species_name_cannot_become_code(scene, tmp_path):
    result = map_of(Hostile(), scene, tmp_path / "map.tif", beside=())
    page = viewer_page(result.path)
    assert page.count("<script") == 3
    assert "alert(1)</script>" not in page
    assert data_of(page)["bands"][0]["name"] == Hostile.species[0]


def test_blocks_are_those_of_the_file_at_every_zoom(large):
    blocks = MapBlocks(large)
    assert blocks.factors == (8, 4, 2, 1)
    with rasterio.open(large) as source:
        values = source.read(2, masked=True).filled(np.nan)
    np.testing.assert_array_equal(blocks.block(1, 3, 2, 5), values[1280:1500, 512:700])
    with rasterio.open(large, overview_level=1) as source:
        smaller = source.read(2, masked=True).filled(np.nan)
    np.testing.assert_array_equal(blocks.block(1, 1, 0, 1), smaller[256:375, :175])
    np.testing.assert_array_equal(blocks.place(10, 20)[1], values[10, 20])
    for at in ((2, 0, 0, 0), (0, 4, 0, 0), (0, 3, 3, 0), (0, 0, 0, 1)):
        with pytest.raises(DataError, match=r"none of them|outside the map"):
            blocks.block(*at)


@pytest.fixture
def address(large):
    server = make_server(large)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host, port = server.server_address
    assert host == "127.0.0.1"
    yield f"http://127.0.0.1:{port}/"
    server.shutdown()
    server.server_close()


def test_the_server_answers_this_machine_alone_and_gives_blocks_and_places(large, address):
    with urllib.request.urlopen(address) as answer:
        data = data_of(answer.read().decode())
    assert "packed" not in data and data["zooms"] == 3
    with urllib.request.urlopen(f"{address}block/1/3/2/5") as answer:
        body = answer.read()
    rows, cols = np.frombuffer(body[:8], "<u4")
    block = np.frombuffer(body[8:], "<f4").reshape(rows, cols)
    np.testing.assert_array_equal(block, MapBlocks(large).block(1, 3, 2, 5))
    with urllib.request.urlopen(f"{address}place/400/300") as answer:
        assert json.load(answer) == [None, None]
    absent = (
        "etc/passwd",
        "block/9/3/0/0",
        "block/0/0/0",
        "place/1500/0",
        "place/-1/0",
        "block/..",
    )
    for path in absent:
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(address + path)
    disguised = urllib.request.Request(address, headers={"Host": "elsewhere.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(disguised)


def test_an_overlay_needs_its_limit_and_its_band(plain):
    page = viewer_page(plain.path, overlay="expected richness", limit=0.5)
    assert data_of(page)["limits"] == {"2": 0.5}
    with pytest.raises(DataError, match="needs a limit"):
        viewer_page(plain.path, overlay="expected richness")
    with pytest.raises(DataError, match="no band 'nothing'"):
        viewer_page(plain.path, overlay="nothing", limit=1)


def test_shapes_are_drawn_in_the_crs_of_the_map(plain, tmp_path):
    plan = gpd.GeoDataFrame(
        {"visits": [3]}, geometry=[Point(402_000.0, 298_000.0)], crs="EPSG:27700"
    )
    plan.to_crs("EPSG:4326").to_file(tmp_path / "plan.geojson")
    shapes = data_of(viewer_page(plain.path, shapes=tmp_path / "plan.geojson"))["shapes"]
    (feature,) = shapes["features"]
    assert feature["properties"] == {"visits": 3}
    assert feature["geometry"]["coordinates"] == pytest.approx([402_000, 298_000], abs=0.1)
    with pytest.raises(MissingFileError, match="no file"):
        viewer_page(plain.path, shapes=tmp_path / "none.geojson")
    (tmp_path / "text.geojson").write_text("not shapes")
    with pytest.raises(DataError, match="cannot be read as shapes"):
        viewer_page(plain.path, shapes=tmp_path / "text.geojson")


def test_a_notebook_shows_the_same_page_within_a_cell(plain, tmp_path):
    view = MapView(plain.path)
    assert view._repr_html_().startswith('<iframe title="map.tif" srcdoc="&lt;!DOCTYPE html&gt;')
    assert view.save(tmp_path / "view.html").read_text() == viewer_page(plain.path)
    assert "srcdoc" in plain._repr_html_()


def test_a_file_that_is_no_map_is_refused(tmp_path, scene):
    shutil.copy(scene.paths[0], tmp_path / "scene.tif")
    with pytest.raises(RasterError, match="not a map"):
        viewer_page(tmp_path / "scene.tif")
