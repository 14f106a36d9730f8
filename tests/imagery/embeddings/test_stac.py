"""Embeddings of STAC collections, here and at an address: the same as the files themselves."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rasterio.windows import Window

from butterfly_sdm.errors import MissingFileError, RasterError, SourceError
from butterfly_sdm.imagery.embeddings.collection import open_embeddings
from butterfly_sdm.imagery.embeddings.options import EmbeddingReading
from butterfly_sdm.imagery.embeddings.scene import open_embedding_scene
from butterfly_sdm.imagery.embeddings.squares import square_statistics
from tests.imagery.embeddings.layouts import ZONE_30, ZONE_31, stored_bytes, write_alphaearth
from tests.imagery.rasters import write_raster

READING = EmbeddingReading(preset="alphaearth", bands=4)


def write_item(folder: Path, name: str, year: int, assets: dict, **properties) -> Path:
    """Write a STAC item whose time is a year, as annual embeddings have it."""
    span = {"datetime": None, "start_datetime": f"{year}-01-01T00:00:00Z"}
    item = {
        "stac_version": "1.0.0",
        "type": "Feature",
        "id": name,
        "properties": span | properties,
        "assets": assets,
        "links": [],
    }
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(item))
    return path


@pytest.fixture
def catalogue(tmp_path):
    """A collection of two UTM zones and two years, links from items in folders of their own."""
    folder, links = tmp_path / "there", []
    for number, (crs, left, year) in enumerate(
        [(ZONE_30, 707_500, 2023), (ZONE_31, 292_200, 2023), (ZONE_31, 292_200, 2022)]
    ):
        stored = stored_bytes(4, 60, 70, seed=number)
        stored[:, 3, 4:9] = -128
        file = write_alphaearth(folder / "cogs", stored, crs=crs, left=left, year=year, name="a")
        picture = write_raster(folder / f"p{number}.tif", np.ones((3, 4, 4), np.uint8))
        assets = {
            "data": {"href": f"../../{file.relative_to(folder)}", "roles": ["data"]},
            "thumbnail": {"href": f"../../{picture.name}", "type": "image/tiff"},
        }
        item = write_item(folder / "items" / str(number), f"item{number}", year, assets)
        links.append({"rel": "item", "href": f"./{item.relative_to(folder)}"})
    root = {"stac_version": "1.0.0", "type": "Collection", "id": "aef", "links": links}
    (folder / "collection.json").write_text(json.dumps(root))
    return folder


@pytest.fixture
def address(catalogue):
    """The catalogue on a server of its own process: GDAL opens files without letting others run."""
    command = [sys.executable, "-m", "tests.data_prep.serving", str(catalogue)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.terminate()


def of_year(year: int) -> EmbeddingReading:
    return READING.model_copy(update={"year": year})


def test_a_collection_is_read_as_its_files_are_in_both_zones(catalogue):
    found = open_embeddings(catalogue / "collection.json", of_year(2023))
    plain = open_embeddings(catalogue / "cogs/annual/2023", READING)
    assert [file.year for file in found.files] == [2023, 2023] and len(plain.files) == 2
    assert found.told() == plain.told()
    assert "EPSG:32630, EPSG:32631" in found.told() and "2 stored from south" in found.told()
    x, y = np.array([707_800.0, 708_100.0]), np.array([5_699_700.0, 5_699_650.0])
    for mine, theirs in zip(
        square_statistics(found, x, y, ZONE_30, sides_m=[200.0, 5000.0]),
        square_statistics(plain, x, y, ZONE_30, sides_m=[200.0, 5000.0]),
        strict=True,
    ):
        assert np.isfinite(theirs).all()
        np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(RasterError, match=r"of 2022, 2023.*State which year"):
        open_embeddings(catalogue / "collection.json", READING)
    with pytest.raises(MissingFileError, match="No embeddings are of 2019"):
        open_embeddings(catalogue / "collection.json", of_year(2019))


def test_a_scene_of_a_collection_is_that_of_its_files(catalogue):
    found = open_embedding_scene(catalogue / "collection.json", of_year(2023))
    plain = open_embedding_scene(catalogue / "cogs/annual/2023", READING)
    assert (found.grid, found.signed_square, found.dtype) == (plain.grid, 127.5, "int8")
    window = Window(0, 0, plain.width, plain.height)
    for mine, theirs in zip(found.read(window), plain.read(window), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_collection_at_an_address_is_read_where_it_lies(catalogue, address):
    plain = open_embeddings(catalogue / "cogs/annual/2022", READING)
    found = open_embeddings(f"{address}/collection.json", of_year(2022))
    assert found.paths == () and found.addresses == (found.files[0].path,)
    assert found.addresses[0].startswith(address)
    window = Window(2, 1, 30, 40)
    for mine, theirs in zip(found.files[0].read(window), plain.files[0].read(window), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    scene = open_embedding_scene(f"{address}/collection.json", of_year(2022))
    here = open_embedding_scene(catalogue / "cogs/annual/2022", READING)
    np.testing.assert_array_equal(scene.read(window)[0], here.read(window)[0])
    alone = open_embeddings(found.addresses[0], READING)
    assert alone.years == (2022,) and alone.bands == found.bands
    with pytest.raises(SourceError, match="was not read"):
        open_embeddings(f"{address}/nothing.json", READING)
    with pytest.raises(RasterError, match="not read where it lies"):
        open_embeddings(f"{address}/store.zarr", READING)


def test_what_an_item_says_of_its_numbers_and_place_is_used(tmp_path):
    stored = stored_bytes(4, 20, 30)
    stored[:, 2, 2] = 7
    raster = write_raster(tmp_path / "x.tif", stored, names=None, nodata=None, crs=None)
    asset = {
        "href": "x.tif",
        "type": "image/tiff; application=geotiff",
        "raster:bands": [{"nodata": 7, "scale": 0.5, "offset": -1.0}],
        "proj:code": ZONE_31,
        "proj:shape": [20, 30],
        "proj:transform": [10, 0, 300_000, 0, -10, 5_800_000],
    }
    item = write_item(tmp_path, "one", 2021, {"embedding": asset})
    (file,) = open_embeddings(item, EmbeddingReading()).files
    assert (file.year, file.crs.to_epsg(), file.path) == (2021, 32631, str(raster))
    assert file.transform * (0, 0) == (300_000, 5_800_000)
    values, valid = file.read(Window(0, 0, 30, 20))
    np.testing.assert_array_equal(valid, (stored != 7).all(axis=0))
    np.testing.assert_array_equal(values[:, valid], stored[:, valid] * 0.5 - 1)


def test_an_asset_is_named_where_an_item_has_several(tmp_path):
    for name in ("mean", "spread"):
        write_raster(tmp_path / f"{name}.tif", stored_bytes(4, 20, 30), names=None)
    assets = {name: {"href": f"{name}.tif"} for name in ("mean", "spread")}
    write_item(tmp_path, "two", 2021, assets)
    with pytest.raises(RasterError, match=r"several assets.*mean, spread.*embeddings.layer"):
        open_embeddings(tmp_path)
    (file,) = open_embeddings(tmp_path, EmbeddingReading(layer="spread")).files
    assert Path(file.path).name == "spread.tif"
    with pytest.raises(RasterError, match="no asset of embeddings called 'median'"):
        open_embeddings(tmp_path, EmbeddingReading(layer="median"))
    (tmp_path / "spread.tif").unlink()
    with pytest.raises(MissingFileError, match="Fetch the asset spread"):
        open_embeddings(tmp_path, EmbeddingReading(layer="spread"))
    write_item(tmp_path, "two", 2021, {"spread": {"href": 5, "roles": 3}})
    with pytest.raises(RasterError, match="not STAC as it is specified"):
        open_embeddings(tmp_path)
