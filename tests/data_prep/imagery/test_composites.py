"""
Composites: the right median, clouds left out, no order, no seam; and products fetched from a STAC
API.
"""

import functools
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import MissingFileError, RasterError, SourceError
from butterfly_sdm.imagery.options import CompositeOptions, SceneOptions, StacOptions
from butterfly_sdm.imagery.scene import CLOUDY, open_scene
from data_prep.build import build_dataset
from data_prep.imagery.composites import make_composite, select_dates, window_shape
from data_prep.imagery.cutting import cut_tiles
from data_prep.imagery.options import TileOptions
from data_prep.imagery.scenes import scene_of
from data_prep.imagery.tile_grids import tile_grid
from data_prep.sources.stac import fetch_products, search_items
from data_prep.sources.transfer import Service
from tests.data_prep.surveys import grid_of_places, make_config, make_scene, make_survey
from tests.imagery.rasters import counts, write_raster

ROOT = Path(__file__).parents[3]
FILES = {"red": "B04", "green": "B03", "blue": "B02", "nir": "B08"}


def write_product(folder: Path, values: np.ndarray, classes: np.ndarray) -> Path:
    for (_, name), band in zip(FILES.items(), values, strict=True):
        write_raster(folder / f"{name}.tif", band[None], names=None)
    write_raster(folder / "SCL.tif", classes[None].astype(np.uint8), names=None, nodata=None)
    return folder


@pytest.fixture
def dates(tmp_path) -> tuple[Path, np.ndarray, np.ndarray]:
    """Return four dates of one ground, with clouds, and their values and cloud masks."""
    random = np.random.default_rng(0)
    values = random.integers(1, 4000, (4, 4, 40, 50)).astype(np.uint16)
    cloudy = random.random((4, 40, 50)) < np.array([0.1, 0.3, 0.5, 0.7])[:, None, None]
    cloudy[:, :5, :5] = True
    for number in range(4):
        write_product(
            tmp_path / "scenes" / f"S2A_2023081{number}",
            values[number],
            np.where(cloudy[number], 9, 4),
        )
    return tmp_path / "scenes", values, cloudy


def test_the_median_is_that_of_the_clear_dates(dates, tmp_path):
    folder, values, cloudy = dates
    composite = make_composite(
        open_scene(folder, cloudy=CLOUDY).select(list(FILES)), tmp_path / "out.tif"
    )
    assert composite.dates == ("2023-08-10", "2023-08-11", "2023-08-12", "2023-08-13")
    assert composite.cloudiness == pytest.approx(tuple(cloudy.mean(axis=(1, 2))))
    clear = np.where(cloudy[:, None], np.nan, values)
    with np.errstate(all="ignore"), pytest.warns(RuntimeWarning):
        expected = np.nan_to_num(np.rint(np.nanmedian(clear, axis=0)), nan=0)
    with rasterio.open(composite.path) as file:
        np.testing.assert_array_equal(file.read(), expected)
        assert file.descriptions == tuple(FILES)
        assert file.tags()["method"] == "median"


def test_the_least_cloudy_clear_date_is_taken_per_pixel(dates, tmp_path):
    folder, values, cloudy = dates
    composite = make_composite(
        open_scene(folder, cloudy=CLOUDY).select(list(FILES)),
        tmp_path / "out.tif",
        CompositeOptions(method="least_cloudy"),
    )
    expected = np.zeros_like(values[0])
    for number in reversed(range(4)):
        expected = np.where(cloudy[number], expected, values[number])
    with rasterio.open(composite.path) as file:
        np.testing.assert_array_equal(file.read(), expected)


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        ({"blockxsize": 256, "blockysize": 256}, (512, 512)),
        ({"blockxsize": 1024, "blockysize": 1024}, (1024, 1024)),
        ({"tiled": False, "blockysize": 16}, (208, 1250)),
    ],
)
def test_blocks_of_the_files_shape_the_work_but_not_the_composite(tmp_path, layout, shape):
    days = [counts(1060, 1250, 2, seed=day) for day in range(3)]
    days[2][:, 5:900, 7] = 65535  # saturated values are values
    for number, values in enumerate(days):
        write_raster(
            tmp_path / "scenes" / f"2023081{number}.tif", values, names=("red", "nir"), **layout
        )
    scene = open_scene(tmp_path / "scenes", cloudy=CLOUDY)
    assert window_shape(scene) == shape
    with rasterio.open(make_composite(scene, tmp_path / "out.tif").path) as file:
        np.testing.assert_array_equal(file.read(), np.median(days, axis=0))


def test_a_scene_of_no_use_is_refused_before_its_dates_are_composed(dates, tmp_path):
    def refuse(scene):
        raise RasterError(f"{scene.resolution_m:g} m")

    config = SceneOptions(paths=(dates[0],), composite={"mosaic": True})
    with pytest.raises(RasterError, match="10 m"):
        scene_of(config, scratch=tmp_path / "scratch", check=refuse)
    assert not (tmp_path / "scratch").exists()
    scene, composite = scene_of(config, scratch=tmp_path / "scratch", check=lambda scene: None)
    assert composite is not None and scene.paths == (str(composite.path),)


def test_the_order_of_the_files_makes_no_difference(dates, tmp_path):
    folder, _, _ = dates
    products = sorted(folder.iterdir())
    first = make_composite(
        open_scene(products, cloudy=CLOUDY), tmp_path / "a.tif"
    ).path.read_bytes()
    assert (
        make_composite(
            open_scene(products[::-1], cloudy=CLOUDY), tmp_path / "b.tif"
        ).path.read_bytes()
        == first
    )


def test_seasons_and_years_choose_dates(dates):
    scene = open_scene(dates[0])
    assert len(select_dates(scene, CompositeOptions(years=(2023, 2023), months=(6, 9))).pieces) == 4
    with pytest.raises(RasterError, match="they are of 2023-08-10 to 2023-08-13"):
        select_dates(scene, CompositeOptions(months=(11, 2)))


def item_of(
    values: np.ndarray,
    folder: Path,
    name: str,
    *,
    offset_applied: bool = True,
    baseline: str = "05.09",
) -> dict:
    """
    Write band files without a place on earth, as in a reduced copy, and return their STAC item.
    """
    folder.mkdir(parents=True, exist_ok=True)
    assets = {}
    for (band, file), layer in zip(FILES.items(), values, strict=True):
        write_raster(
            folder / f"{file}.tif",
            layer[None],
            names=None,
            crs=None,
            nodata=None,
            left=0,
            top=0,
            pixel=1,
        )
        assets[band] = {
            "href": f"{file}.tif",
            "eo:bands": [{"name": band, "common_name": band}],
            "proj:shape": [400, 400],
            "proj:transform": [10, 0, 500_000, 0, -10, 5_100_000],
            "raster:bands": [{"nodata": 0, "scale": 0.0001, "offset": -0.1}],
        }
    assets["coastal"] = {"href": "https://example.org/B01.tif", "eo:bands": [{"name": "coastal"}]}
    properties = {
        "datetime": "2023-08-15T09:58:11Z",
        "proj:epsg": 32633,
        "s2:processing_baseline": baseline,
        "eo:cloud_cover": 12.0,
        "earthsearch:boa_offset_applied": offset_applied,
    }
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": "sentinel-2-l2a",
        "geometry": None,
        "links": [],
        "properties": properties,
        "assets": assets,
        "bbox": [14, 45, 16, 47],
    }


def test_a_stac_item_places_files_that_do_not_say_where_they_lie(tmp_path):
    values = counts(40, 40)
    (tmp_path / "item").mkdir()
    (tmp_path / "item" / "P.json").write_text(json.dumps(item_of(values, tmp_path / "item", "P")))
    scene = open_scene(tmp_path / "item")
    assert (scene.resolution_m, scene.crs.to_epsg(), scene.transform.c, scene.transform.f) == (
        100,
        32633,
        500_000,
        5_100_000,
    )
    assert scene.bands == ("red", "green", "blue", "nir")
    np.testing.assert_array_equal(scene.read(Window(0, 0, 40, 40))[0], values)
    assert scene.offset == 0  # subtracted already, whatever the bands state
    assert scene.pieces[0].date == "2023-08-15"


def test_an_offset_that_was_not_applied_is_taken_from_the_item(tmp_path):
    item = item_of(counts(40, 40), tmp_path / "item", "P", offset_applied=False)
    (tmp_path / "item" / "P.json").write_text(json.dumps(item))
    assert open_scene(tmp_path / "item").offset == pytest.approx(1000)
    for asset in item["assets"].values():
        asset.pop("raster:bands", None)
    (tmp_path / "item" / "P.json").write_text(json.dumps(item))
    assert open_scene(tmp_path / "item").offset == 1000  # by its processing baseline
    item["properties"]["s2:processing_baseline"] = "03.01"
    (tmp_path / "item" / "P.json").write_text(json.dumps(item))
    assert open_scene(tmp_path / "item").offset == 0


def test_an_item_whose_file_is_missing_names_it(tmp_path):
    item = item_of(counts(40, 40), tmp_path / "item", "P")
    (tmp_path / "item" / "B04.tif").unlink()
    (tmp_path / "item" / "P.json").write_text(json.dumps(item))
    with pytest.raises(
        MissingFileError, match=r"B04\.tif, which does not exist. Fetch the asset red"
    ):
        open_scene(tmp_path / "item" / "P.json")


def test_a_safe_product_gives_its_bands_date_and_offset(tmp_path):
    safe = tmp_path / "S2A_MSIL2A_20230815T095031_N0509_R079_T33TWL_20230815T155057.SAFE"
    values = counts(40, 40)
    images = safe / "GRANULE" / "L2A" / "IMG_DATA"
    for name, band in zip(("B04", "B03", "B02", "B08"), values, strict=True):
        write_raster(
            images / "R10m" / f"T33TWL_20230815T095031_{name}_10m.tif", band[None], names=None
        )
    write_raster(
        images / "R20m" / "T33TWL_20230815T095031_B04_20m.tif",
        values[:1, ::2, ::2],
        names=None,
        pixel=20,
    )
    classes = np.full((1, 20, 20), 4, np.uint8)
    write_raster(
        images / "R20m" / "T33TWL_20230815T095031_SCL_20m.tif", classes, names=None, pixel=20
    )
    (safe / "MTD_MSIL2A.xml").write_text(
        "<r><PRODUCT_START_TIME>2023-08-15T09:50:31Z</PRODUCT_START_TIME><PROCESSING_BASELINE>05.09</PROCESSING_BASELINE>"
        "<BOA_QUANTIFICATION_VALUE>10000</BOA_QUANTIFICATION_VALUE><BOA_ADD_OFFSET>-1000</BOA_ADD_OFFSET></r>"
    )
    scene = open_scene(safe).select(["red", "green", "blue", "nir"])
    assert (scene.offset, scene.scale, scene.resolution_m, scene.pieces[0].date) == (
        1000,
        1e-4,
        10,
        "2023-08-15",
    )
    assert scene.pieces[0].mask is not None
    np.testing.assert_array_equal(scene.read(Window(0, 0, 40, 40))[0], values)
    (safe / "MTD_MSIL2A.xml").write_text('<!DOCTYPE r [<!ENTITY a "b">]><r>&a;</r>')
    with pytest.raises(RasterError, match="defines XML entities"):
        open_scene(safe)


class Stac(http.server.SimpleHTTPRequestHandler):
    """A small STAC API over a folder of items."""

    def log_message(self, *arguments) -> None: ...

    def answer(self, value: dict) -> None:
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/geo+json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    @property
    def here(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def do_GET(self) -> None:
        if self.path.strip("/") == "":
            to = {"root": self.here, "self": self.here, "data": f"{self.here}/collections"}
            links = [{"rel": rel, "href": href} for rel, href in to.items()]
            search = {
                "rel": "search",
                "href": f"{self.here}/search",
                "type": "application/geo+json",
            }
            links += [search | {"method": method} for method in ("GET", "POST")]
            conforms = [
                f"https://api.stacspec.org/v1.0.0/{part}" for part in ("core", "item-search")
            ]
            about = {
                "type": "Catalog",
                "id": "test",
                "stac_version": "1.0.0",
                "description": "test",
            }
            self.answer(about | {"links": links, "conformsTo": conforms})
        else:
            super().do_GET()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        start, end = asked["datetime"].split("/")
        west, _, east, _ = asked["bbox"]
        found = []
        for path in sorted(Path(self.directory).glob("*/*.json")):
            item = json.loads(path.read_text())
            box = item.get("bbox") or [
                f(point[axis] for point in item["geometry"]["coordinates"][0])
                for f in (min, max)
                for axis in (0, 1)
            ]
            if (
                start[:10] <= item["properties"]["datetime"][:10] <= end[:10]
                and box[0] <= east
                and box[2] >= west
            ):
                for asset in item["assets"].values():
                    if "://" not in asset["href"]:
                        asset["href"] = f"{self.here}/{path.parent.name}/{asset['href']}"
                found.append(item | {"links": [], "bbox": box})
        self.answer({"type": "FeatureCollection", "features": found, "links": []})


@pytest.fixture
def serve() -> Iterator:
    servers = []

    def start(folder: Path) -> str:
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Stac, directory=str(folder))
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_products_come_from_a_stac_api_once(tmp_path, serve):
    values = counts(40, 40)
    (tmp_path / "api" / "P").mkdir(parents=True)
    (tmp_path / "api" / "P" / "P.json").write_text(
        json.dumps(item_of(values, tmp_path / "api" / "P", "P"))
    )
    url = serve(tmp_path / "api")
    search = {"bbox": (14, 45, 16, 47), "start": "2023-08-01", "end": "2023-08-31"}
    paths = fetch_products(StacOptions(url=url, **search), tmp_path / "fetched")
    np.testing.assert_array_equal(open_scene(paths).read(Window(0, 0, 40, 40))[0], values)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "fetched").rglob("*")}
    assert fetch_products(StacOptions(url=url, **search), tmp_path / "fetched") == paths
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "fetched").rglob("*")}
    with pytest.raises(
        SourceError, match=r"1 products of sentinel-2-l2a .* none of them with at most 5 % clouds"
    ):
        fetch_products(StacOptions(url=url, **search, max_cloud=5), tmp_path / "fetched")
    with pytest.raises(SourceError, match="did not answer a search"):
        fetch_products(StacOptions(url="http://127.0.0.1:9", **search), tmp_path / "fetched")


def test_a_product_whose_transfer_breaks_off_is_fetched_whole(tmp_path, serve, monkeypatch):
    (tmp_path / "api" / "P").mkdir(parents=True)
    (tmp_path / "api" / "P" / "P.json").write_text(
        json.dumps(item_of(counts(40, 40), tmp_path / "api" / "P", "P"))
    )
    broken, whole = [], Stac.copyfile

    def copyfile(self: Stac, source: BinaryIO, target: BinaryIO) -> None:
        if self.path.endswith(".tif") and not broken:
            broken.append(self.path)
            target.write(source.read(100))
            self.close_connection = True
        else:
            whole(self, source, target)

    monkeypatch.setattr(Stac, "copyfile", copyfile)
    search = {"bbox": (14, 45, 16, 47), "start": "2023-08-01", "end": "2023-08-31"}
    fetch_products(
        StacOptions(url=serve(tmp_path / "api"), **search),
        tmp_path / "fetched",
        service=Service(sleep=lambda _: None),
    )
    fetched = {path.name: path.read_bytes() for path in (tmp_path / "fetched" / "P").glob("*.tif")}
    assert len(broken) == 1
    assert sorted(fetched.values()) == sorted(
        path.read_bytes() for path in (tmp_path / "api" / "P").glob("*.tif")
    )
    assert not list((tmp_path / "fetched").rglob("*.part*"))


@pytest.fixture
def elsewhere(tmp_path) -> Iterator[str]:
    """
    Serve a folder from a process of its own, because opening a raster by an address blocks this
    one.
    """
    command = [sys.executable, "-m", "tests.data_prep.serving", str(tmp_path)]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    )
    assert server.stdout is not None
    yield server.stdout.readline().strip()
    server.kill()
    server.wait()
    server.stdout.close()


def test_items_and_rasters_are_read_where_they_lie_on_the_network(tmp_path, elsewhere):
    values = counts(40, 40)
    (tmp_path / "P").mkdir()
    (tmp_path / "P" / "P.json").write_text(json.dumps(item_of(values, tmp_path / "P", "P")))
    links = [{"rel": "item", "href": "P/P.json"}]
    (tmp_path / "c.json").write_text(
        json.dumps({"type": "Collection", "stac_version": "1.0.0", "links": links})
    )
    write_raster(tmp_path / "whole.tif", values)
    bands = ["red", "green", "blue", "nir"]
    for address in ("P/P.json", "c.json", "whole.tif"):
        scene = open_scene(f"{elsewhere}/{address}", bands=bands)
        np.testing.assert_array_equal(scene.read(Window(0, 0, 40, 40))[0], values)
    with pytest.raises(SourceError, match="was not read"):
        open_scene(f"{elsewhere}/absent.json")
    links[0]["href"] = "c.json"
    (tmp_path / "c.json").write_text(
        json.dumps({"type": "Collection", "stac_version": "1.0.0", "links": links})
    )
    with pytest.raises(RasterError, match="links to itself"):
        open_scene(tmp_path / "c.json")


def test_a_data_set_from_a_scene_on_the_network_names_it_as_a_source(tmp_path, elsewhere):
    make_scene(tmp_path / "scene.tif")
    config = make_config(scenes={"paths": [f"{elsewhere}/scene.tif"]})
    assert config.scenes.paths == (f"{elsewhere}/scene.tif",)
    folder = build_dataset(
        config, tmp_path / "out", name="test", seed=0, survey=make_survey(grid_of_places())
    )
    sources = [source for source in Dataset.open(folder).card.sources if source.role == "scene"]
    assert [(source.name, source.sha256) for source in sources] == [
        (f"{elsewhere}/scene.tif", None)
    ]


def test_a_static_catalogue_is_searched_as_an_api_is(shared, tmp_path, serve):
    folder = shared / "data" / "sentinel2" / "l2a_products"
    search = {
        "bbox": (14.9, 45, 16.5, 47),
        "start": "2023-08-13",
        "end": "2023-08-15",
        "max_cloud": 5,
    }
    by_api = search_items(StacOptions(url=serve(folder), **search))
    walked = search_items(StacOptions(url=f"{serve(folder)}/collection.json", **search))
    assert [item["id"] for item in walked] == [item["id"] for item in by_api]
    assert len(walked) == 4
    assert walked[0]["assets"]["red"]["href"].startswith("http://127.0.0.1")


def test_the_real_products_come_from_a_stac_api(shared, tmp_path, serve):
    folder = shared / "data" / "sentinel2" / "l2a_products"
    paths = fetch_products(
        StacOptions(
            url=serve(folder),
            bbox=(14.9, 45, 16.5, 47),
            start="2023-08-13",
            end="2023-08-15",
            max_cloud=5,
        ),
        tmp_path,
        bands=("red", "nir"),
    )
    assert len(paths) == 4
    scene = open_scene(paths)
    assert (scene.resolution_m, scene.offset, set(scene.bands)) == (120, 0, {"red", "nir"})


def test_the_real_products_become_tiles_on_both_sides_of_their_seam(shared, tmp_path):
    folder = shared / "data" / "sentinel2" / "l2a_products"
    products = sorted(folder.glob("S2*_2023081[358]_*")) + sorted(folder.glob("S2*_20230820_*"))
    scene = open_scene(products[::-1]).select(["red", "green", "blue", "nir"])
    assert (scene.crs.to_epsg(), scene.resolution_m, scene.offset, len(scene.pieces)) == (
        32633,
        120,
        0,
        8,
    )
    # One product alone: the share of valid pixels is what its scene classification says, counted by
    # hand.
    one = open_scene(folder / "S2A_33TWL_20230818_0_L2A", cloudy=(0, 1, 3, 8, 9, 10)).select(
        ["red", "green", "blue", "nir"]
    )
    grid = tile_grid(
        np.array([15.6, 15.9]),
        np.array([45.5, 45.6]),
        one,
        TileOptions(size_px=64, resolution_m=120),
    )
    valid = cut_tiles(one, grid, tmp_path / "one.npy")
    with rasterio.open(folder / "S2A_33TWL_20230818_0_L2A" / "SCL.tif") as file:
        classes = file.read(1)
    for number in range(2):
        column, row = (
            round((grid.left[number] - 499_980) / 120),
            round((5_100_000 - grid.top[number]) / 120),
        )
        bands = []
        for name in ("B02", "B03", "B04", "B08"):
            with rasterio.open(folder / "S2A_33TWL_20230818_0_L2A" / f"{name}.tif") as file:
                bands.append(file.read(1)[row : row + 64, column : column + 64])
        clear = ~np.isin(classes[row : row + 64, column : column + 64], (0, 1, 3, 8, 9, 10)) & (
            np.stack(bands) > 0
        ).all(axis=0)
        assert valid[number] == clear.mean()


@pytest.mark.slow
def test_the_composite_of_the_real_products_is_the_median_of_clear_dates_counted_by_hand(
    shared, tmp_path
):
    products = sorted(
        path for path in (shared / "data" / "sentinel2" / "l2a_products").iterdir() if path.is_dir()
    )
    assert len(products) == 10
    made = []
    for order in (products, products[::-1]):
        scene = open_scene(order, cloudy=CLOUDY).select(["red", "green", "blue", "nir"])
        made.append(make_composite(scene, tmp_path / f"{len(made)}.tif").path)
    assert made[0].read_bytes() == made[1].read_bytes()
    with rasterio.open(made[0]) as file:
        composite, left, top = file.read(), file.transform.c, file.transform.f
    days: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for (
        folder
    ) in products:  # of two products of a day, the first by name counts where both are clear
        item = json.loads(next(folder.glob("*.json")).read_text())
        place = item["assets"]["red"]["proj:transform"]
        row, column = (
            int(np.floor((top - place[5]) / 120 + 0.5)),
            int(np.floor((place[2] - left) / 120 + 0.5)),
        )
        layers = []
        for name in ("B04", "B03", "B02", "B08", "SCL"):
            with rasterio.open(folder / f"{name}.tif") as file:
                layers.append(file.read(1))
        values, classes = np.stack(layers[:4]), layers[4]
        clear = (values > 0).all(axis=0) & ~np.isin(classes, (0, 1, 3, 8, 9, 10))
        total, seen = days.setdefault(
            item["properties"]["datetime"][:10],
            (np.zeros(composite.shape), np.zeros(composite.shape[1:], bool)),
        )
        at = slice(row, row + clear.shape[0]), slice(column, column + clear.shape[1])
        new = clear & ~seen[at]
        total[:, *at][:, new] = values[:, new]
        seen[at] |= clear
    assert len(days) == 5
    stack = np.ma.array([np.where(seen, total, 0) for total, seen in days.values()])
    stack.mask = np.broadcast_to(
        ~np.stack([seen for _, seen in days.values()])[:, None], stack.shape
    )
    np.testing.assert_array_equal(composite, np.rint(np.ma.median(stack, axis=0)).filled(0))
