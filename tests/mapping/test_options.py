import json
import logging
import os
import shutil
import subprocess
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pystac
import pytest
import rasterio
from pydantic import ValidationError
from rasterio.warp import transform
from shapely.geometry import Polygon, box

from butterfly_sdm.checking import check
from butterfly_sdm.errors import (
    ArtefactError,
    DataError,
    MissingFileError,
    ModelError,
    RasterError,
)
from butterfly_sdm.imagery.scene import open_scene
from butterfly_sdm.mapping import MapOptions
from butterfly_sdm.mapping.difference import map_difference
from butterfly_sdm.mapping.layers import Derived, Presence
from butterfly_sdm.mapping.map_file import check_map, read_tags
from butterfly_sdm.mapping.options import _warn_of_engine
from butterfly_sdm.mapping.viewer import viewer_page
from butterfly_sdm.mapping.zonal import polygons_table, squares_table, write_zonal
from tests.mapping.world import Position, Windows, map_of, read, write_scene


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return open_scene(write_scene(tmp_path_factory.mktemp("scene") / "scene.tif"))


@pytest.fixture(scope="module")
def plain(scene, tmp_path_factory):
    out = tmp_path_factory.mktemp("map") / "map.tif"
    return map_of(Position(), scene, out, beside=("stac", "styles", "picture"))


def test_check_of_a_folder_around_artefacts_names_them_and_the_maps(plain, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").touch()
    shutil.copy(plain.path, tmp_path / "map.tif")
    (tmp_path / "scene.tif").write_bytes(b"no map")
    with pytest.raises(ArtefactError, match=r"holds some. Name them: \S+map.tif, \S+run$"):
        check(tmp_path)


def test_only_the_area_asked_for_has_values(scene, plain, tmp_path):
    polygon = box(401_000, 296_000, 403_000, 299_000)
    gpd.GeoDataFrame(geometry=[polygon], crs="EPSG:27700").to_crs("EPSG:4326").to_file(
        tmp_path / "area.gpkg"
    )
    result = map_of(Position(), scene, tmp_path / "map.tif", area=tmp_path / "area.gpkg", beside=())
    values, everywhere = read(result), read(plain)
    with rasterio.open(plain.path) as source:
        rows, cols = np.indices(source.shape)
        x, y = source.transform.c + 320 * (cols + 0.5), source.transform.f - 320 * (rows + 0.5)
        whole = source.transform
    inside = (x > 401_000) & (x < 403_000) & (y > 296_000) & (y < 299_000)
    with rasterio.open(result.path) as source:  # no larger than the area
        assert source.shape == (len(np.unique(rows[inside])), len(np.unique(cols[inside])))
        place = whole * (cols[inside].min(), rows[inside].min())
        assert (source.transform.c, source.transform.f) == place
    np.testing.assert_array_equal(
        values, everywhere[:, inside].reshape(len(values), *values.shape[1:])
    )
    assert result.counts["outside_area"] == 0


def test_the_map_of_an_area_of_any_shape_is_part_of_the_whole_map(scene, plain, tmp_path):
    shape = Polygon([(400_900, 296_000), (404_000, 297_000), (402_000, 299_500)])
    area = gpd.GeoDataFrame(geometry=[shape], crs="EPSG:27700")
    result = map_of(Position(), scene, tmp_path / "map.tif", area=area, beside=())
    with rasterio.open(result.path) as part, rasterio.open(plain.path) as whole:
        window = rasterio.windows.from_bounds(*part.bounds, transform=whole.transform)
        rows, cols = window.round_offsets().round_lengths().toslices()
    values, expected = read(result), read(plain)[:, rows, cols]
    seen = np.isfinite(values)
    assert 0 < result.counts["outside_area"] == (~seen[0]).sum() < seen[0].size
    np.testing.assert_array_equal(values[seen], expected[seen])
    assert seen[0].any(axis=0).all() and seen[0].any(axis=1).all()


def test_a_map_says_what_space_it_needs_and_is_refused_where_there_is_less(
    scene, tmp_path, monkeypatch, caplog
):
    with caplog.at_level(logging.INFO):
        map_of(Position(), scene, tmp_path / "map.tif", beside=())
    assert "needs 0.00 GB of space" in caplog.text
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(RasterError, match=r"GB of space in .* smaller map\.area"):
        map_of(Position(), scene, tmp_path / "other.tif", beside=())
    assert not (tmp_path / "other.tif").exists()


def test_masked_places_have_no_values(scene, tmp_path):
    with rasterio.open(scene.paths[0]) as source:
        profile = source.profile | {"count": 1, "dtype": "uint8", "nodata": None}
    sea = np.full((576, 640), 1, dtype=np.uint8)
    sea[:, :320] = 7
    with rasterio.open(tmp_path / "cover.tif", "w", **profile) as target:
        target.write(sea, 1)
    masks = {tmp_path / "cover.tif": (7, 8)}
    values = read(map_of(Position(), scene, tmp_path / "map.tif", masks=masks, beside=()))
    assert np.isnan(values[:, :, :10]).all()
    assert np.isfinite(values[:, :, 10:]).all()


def test_an_area_outside_the_scene_and_a_missing_file_are_named(scene, tmp_path):
    far = gpd.GeoDataFrame(geometry=[box(0, 0, 1000, 1000)], crs="EPSG:27700")
    with pytest.raises(DataError, match="lies in the area"):
        map_of(Position(), scene, tmp_path / "map.tif", area=far)
    with pytest.raises(MissingFileError, match=r"nowhere\.gpkg"):
        map_of(Position(), scene, tmp_path / "map.tif", area=tmp_path / "nowhere.gpkg")
    with pytest.raises(DataError, match="no CRS"):
        map_of(
            Position(),
            scene,
            tmp_path / "map.tif",
            area=far.set_crs(None, allow_override=True),
        )


def test_another_grid_has_whole_multiples_of_its_pixel_and_the_same_places(scene, tmp_path):
    result = map_of(Position(), scene, tmp_path / "map.tif", grid="EPSG:32630", beside=())
    with rasterio.open(result.path) as source:
        assert source.crs == "EPSG:32630"
        assert source.transform.c % 320 == 0
        assert source.transform.f % 320 == 0
        values = source.read(1, masked=True)
        row, col = 9, 10
        east, _ = transform("EPSG:32630", "EPSG:27700", *([v] for v in source.xy(row, col)))
    assert values[row, col] == pytest.approx((east[0] - 400_000) / 10_000, abs=1e-4)
    with pytest.raises(RasterError, match="degrees"):
        map_of(Position(), scene, tmp_path / "map.tif", grid="EPSG:4326")
    with pytest.raises(RasterError, match="no CRS 'nonsense'"):
        map_of(Position(), scene, tmp_path / "map.tif", grid="nonsense")


def test_layers_follow_the_species(scene, tmp_path):
    half = Derived("half", lambda p: p[:, 0] / 2, of="probability", unit="half", maximum=1)
    layers = ["richness", "richness_variance", Presence({"East": 0.3, "North": 0.2}), half]
    for dtype, tolerance in [("float32", 1e-6), ("uint8", 0.005)]:
        result = map_of(
            Position(), scene, tmp_path / f"{dtype}.tif", layers=layers, dtype=dtype, beside=()
        )
        with rasterio.open(result.path) as source:
            assert source.descriptions == (
                "East",
                "North",
                "expected richness",
                "variance of richness",
                "East present",
                "North present",
                "half",
            )
            values = source.read(masked=True).filled(0) * np.array(source.scales)[:, None, None]
        east, north = values[:2]
        np.testing.assert_allclose(values[2], east + north, atol=4 * tolerance)
        np.testing.assert_allclose(
            values[3], east * (1 - east) + north * (1 - north), atol=4 * tolerance
        )
        clear = abs(east - 0.3) > 2 * tolerance
        np.testing.assert_array_equal(values[4][clear] > 0.5, east[clear] >= 0.3)
        np.testing.assert_allclose(values[6], east / 2, atol=2 * tolerance)


def test_places_unlike_the_training_sites_lose_their_values(scene, tmp_path):
    far = Derived(
        "dissimilarity",
        lambda sites: (sites.sites["easting"].to_numpy() - 400_000) / 1000,
        of="sites",
        limit=3.0,
    )
    values = read(
        map_of(
            Position(),
            scene,
            tmp_path / "map.tif",
            layers=["richness", far, Presence(0.1)],
            beside=(),
        )
    )
    for band in (0, 1, 2, 4):  # species, richness and presence alike
        np.testing.assert_array_equal(np.isnan(values[band]), values[3] > 3.0)
    assert np.isfinite(values[3]).all()


def test_a_limit_that_masks_nothing_is_told_to_whoever_looks_at_the_map(scene, tmp_path):
    far = Derived(
        "dissimilarity",
        lambda sites: sites.sites["easting"].to_numpy() - 400_000,
        of="sites",
        limit=3000.0,
        masks=False,
    )
    result = map_of(Position(), scene, tmp_path / "map.tif", layers=[far], beside=())
    assert np.isfinite(read(result)).all()
    assert read_tags(result.path)["limits"] == {"dissimilarity": 3000.0}
    page = viewer_page(result.path)
    assert '"limits":{"2":3000.0}' in page


def test_embeddings_of_a_network_feed_layers(scene, tmp_path):
    lengths = []

    def length(embedding):
        lengths.append(embedding.shape[1])
        return np.linalg.norm(embedding, axis=1)

    layer = Derived("length", length, of="embedding")
    result = map_of(Windows(), scene, tmp_path / "map.tif", layers=[layer], audit=0, beside=())
    np.testing.assert_allclose(read(result)[3], 1.0, atol=1e-5)
    assert set(lengths) == {16}
    with pytest.raises(ModelError, match="embeddings"):
        map_of(Position(), scene, tmp_path / "position.tif", layers=[layer])


def test_layers_that_cannot_be_made_are_named(scene, tmp_path):
    with pytest.raises(ValidationError, match="beauty"):
        MapOptions(layers=("beauty",))
    with pytest.raises(ModelError, match="no members"):
        map_of(Position(), scene, tmp_path / "map.tif", layers=["spread"])
    with pytest.raises(DataError, match="threshold for North"):
        map_of(Position(), scene, tmp_path / "map.tif", layers=[Presence({"East": 0.1})])


def test_sensitive_species_are_withheld_or_told_coarsely_and_the_metadata_says_so(
    scene, plain, tmp_path
):
    result = map_of(
        Position(),
        scene,
        tmp_path / "map.tif",
        coarsen_m={"East": 2000.0},
        layers=["richness"],
        beside=(),
    )
    values, fine = read(result), read(plain)
    # 6.4 km are squares 400-402, 402-404, 404-406 and 406-408
    assert len(np.unique(values[0])) == 4
    np.testing.assert_allclose(values[0].mean(), fine[0].mean(), atol=1e-5)
    np.testing.assert_array_equal(values[1], fine[1])
    np.testing.assert_allclose(values[2], values[0] + values[1], atol=1e-6)
    assert read_tags(result.path)["sensitive"] == {"withheld": 0, "coarsened_m": {"East": 2000.0}}
    hidden = map_of(
        Position(),
        scene,
        tmp_path / "hidden.tif",
        withhold=("East",),
        beside=(),
    )
    assert hidden.species == ("North",)
    assert b"East" not in hidden.path.read_bytes()
    with pytest.raises(DataError, match="withholds every species"):
        map_of(
            Position(),
            scene,
            tmp_path / "none.tif",
            withhold=("East", "North"),
        )


def test_a_changed_map_is_found_out(scene, tmp_path):
    result = map_of(Position(), scene, tmp_path / "map.tif", beside=())
    assert check_map(result.path) == []
    with rasterio.open(result.path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as source:
        values = source.read(1)
        values[3, 3] = 0.123
        source.write(values, 1)
    assert "changed after it was written" in check_map(result.path)[0]
    with pytest.raises(RasterError, match="not a map of butterfly_sdm"):
        check_map(write_scene(tmp_path / "scene.tif"))


def test_the_stac_item_describes_the_map(plain):
    item = pystac.Item.from_dict(json.loads(plain.files["stac"].read_text()))
    assert item.assets["map"].href == "./map.tif"
    bands = item.assets["map"].extra_fields["bands"]
    assert [band["name"] for band in bands] == ["East", "North"]
    assert item.properties["proj:code"] == "EPSG:27700"
    west, south, east, north = item.bbox
    assert -2.1 < west < east < -1.8
    assert 52.4 < south < north < 52.7


def test_styles_and_picture_lie_beside_the_map(plain):
    from xml.etree import ElementTree

    styles = sorted(plain.files["styles"].glob("*.qml"))
    assert [path.name for path in styles] == ["001 East.qml", "002 North.qml"]
    for number, path in enumerate(styles, start=1):
        renderer = ElementTree.fromstring(path.read_text()).find("pipe/rasterrenderer")
        assert renderer.get("band") == str(number)
        assert len(renderer.findall("rastershader/colorrampshader/item")) == 5
    assert plain.path.with_suffix(".qml").is_file()
    assert plain.files["picture"].read_bytes()[:4] == b"\x89PNG"


IN_QGIS = """
import json, os, sys
from qgis.core import QgsApplication, QgsPointXY, QgsRaster, QgsRasterLayer
application = QgsApplication([], False)
application.initQgis()
layer = QgsRasterLayer(sys.argv[1], "map")
point = QgsPointXY(float(sys.argv[2]), float(sys.argv[3]))
at = layer.dataProvider().identify(point, QgsRaster.IdentifyFormatValue)
names = [layer.bandName(1), layer.bandName(2)]
found = {"names": names, "crs": layer.crs().authid(), "values": list(at.results().values())}
styles = [(layer.loadNamedStyle(style)[1], layer.renderer().usesBands()) for style in sys.argv[4:]]
found["styles"] = styles
print("FOUND " + json.dumps(found), flush=True)
os._exit(0)  # QGIS takes itself apart in an order of its own, and may crash at it
"""


def test_qgis_opens_the_map_with_names_values_and_styles(plain):
    python = os.environ.get("QGIS_PYTHON", "/usr/bin/python3")
    outside = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "VIRTUAL_ENV"))
    }
    outside |= {"QT_QPA_PLATFORM": "offscreen"}
    if (
        not Path(python).is_file()
        or subprocess.run(
            [python, "-c", "import qgis.core"], env=outside, capture_output=True, check=False
        ).returncode
    ):
        pytest.skip(
            "QGIS is not installed for /usr/bin/python3 (apt install python3-qgis), and "
            "QGIS_PYTHON names no other"
        )
    with rasterio.open(plain.path) as source:
        x, y = source.xy(7, 9)
        values = source.read()[:, 7, 9]
    styles = sorted(plain.files["styles"].glob("*.qml"))
    arguments = [str(plain.path), str(x), str(y), *map(str, styles)]
    done = subprocess.run(
        [python, "-c", IN_QGIS, *arguments], env=outside, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.partition("FOUND ")[2].splitlines()[0])
    assert found["names"] == ["Band 1: East", "Band 2: North"]
    assert found["crs"] == "EPSG:27700"
    assert found["values"] == pytest.approx(values.tolist())
    assert found["styles"] == [[True, [1]], [True, [2]]]


def test_means_over_squares_are_those_of_the_pixels_in_them(plain, tmp_path):
    table = squares_table(plain.path, 1000)
    with rasterio.open(plain.path) as source:
        values = source.read()
        rows, cols = np.indices(source.shape)
        x, y = source.transform.c + 320 * (cols + 0.5), source.transform.f - 320 * (rows + 0.5)
    inside = (x // 1000 == 402) & (y // 1000 == 297)
    row = table.set_index("zone").loc["E402 N297"]
    assert row["positions"] == inside.sum()
    assert row["East"] == pytest.approx(values[0][inside].mean(), abs=1e-6)
    assert row.geometry.bounds == (402_000, 297_000, 403_000, 298_000)
    assert table["positions"].sum() == plain.counts["predicted"]
    csv, parquet = write_zonal(table, tmp_path / "squares")
    assert list(pd.read_csv(csv).columns) == ["zone", "positions", "East", "North"]
    assert gpd.read_parquet(parquet).crs == "EPSG:27700"
    elsewhere = squares_table(plain.path, 10_000, crs="EPSG:32630")
    assert elsewhere["positions"].sum() == plain.counts["predicted"]


def test_means_over_polygons_are_those_of_the_pixels_in_them(plain, tmp_path):
    shapes = gpd.GeoDataFrame(
        {"name": ["west", "nowhere"]},
        geometry=[box(400_000, 290_000, 403_200, 305_000), box(0, 0, 9, 9)],
        crs="EPSG:27700",
    )
    table = polygons_table(plain.path, shapes, name="name").set_index("zone")
    with rasterio.open(plain.path) as source:
        assert table.loc["west", "East"] == pytest.approx(source.read(1)[:, :10].mean(), abs=1e-6)
    assert table.loc["nowhere", "positions"] == 0
    assert np.isnan(table.loc["nowhere", "East"])
    with pytest.raises(DataError, match="no column 'county'"):
        polygons_table(plain.path, shapes, name="county")
    (tmp_path / "reserves.gpkg").write_text("no vector file")
    (tmp_path / "reserves.csv").write_text("name,area\nwest,3\n")
    for name, message in (("gpkg", "cannot be read as polygons"), ("csv", "holds no shapes")):
        with pytest.raises(DataError, match=message):
            polygons_table(plain.path, tmp_path / f"reserves.{name}")


def test_the_difference_of_two_maps_is_that_of_their_values(plain, scene, tmp_path):
    class Warmer(Position):
        def predict(self, dataset, sites):
            return super().predict(dataset, sites).add([0.1, -0.05])

    later = map_of(Warmer(), scene, tmp_path / "later.tif", dtype="uint16", beside=())
    found = map_difference(later.path, plain.path, tmp_path / "difference.tif")
    with rasterio.open(tmp_path / "difference.tif") as source:
        values = source.read(masked=True)
    np.testing.assert_allclose(values[0], 0.1, atol=1e-4)
    np.testing.assert_allclose(values[1], -0.05, atol=1e-4)
    assert found["mean_abs"] == pytest.approx(0.075, abs=1e-4)
    assert found["positions"] == plain.counts["predicted"]
    assert check_map(tmp_path / "difference.tif") == []
    other = map_of(Windows(), scene, tmp_path / "other.tif", audit=0, beside=())
    with pytest.raises(DataError, match="share no band"):
        map_difference(other.path, plain.path, tmp_path / "none.tif")


@pytest.mark.parametrize("name", ["auto", "onnx", "onnx-int8"])
def test_engines_of_version_0_1_0_are_taken_as_torch_with_one_warning(name, caplog):
    _warn_of_engine.cache_clear()
    for _ in range(3):
        assert MapOptions(engine=name).engine == MapOptions().engine == "torch"
    assert [record.getMessage() for record in caplog.records] == [
        f"map.engine: {name} is taken as torch: ONNX Runtime was hardly faster and has gone."
    ]
    with pytest.raises(ValidationError, match="torch-fp16"):
        MapOptions(engine="magic")


def test_the_area_of_applicability_needs_to_be_told(scene, tmp_path):
    with pytest.raises(DataError, match="needs the training sites"):
        map_of(Position(), scene, tmp_path / "map.tif", only_applicable=True)
    assert not list(tmp_path.iterdir())
