"""Tiles of embeddings: built by a config, checked, opened, and refused if damaged."""

import json
import os

import numpy as np
import pandas as pd
import pytest

from butterfly_sdm.core.files import files_below, sha256
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import ArtefactError, ButterflySDMError
from data_prep.checking import check_dataset
from tests.data_prep.surveys import grid_of_places, make_config, make_survey
from tests.data_prep.test_build import build
from tests.imagery.embeddings.test_stac import write_item
from tests.imagery.rasters import write_raster


def test_a_config_builds_tiles_of_embeddings_in_their_own_type(tmp_path):
    stored = np.random.default_rng(0).integers(-127, 128, (8, 300, 400)).astype(np.int8)
    stored[:, :20] = -128
    path = write_raster(tmp_path / "aef/2023/x.tif", stored, names=None, nodata=-128)
    known = {"preset": "alphaearth", "bands": 8}
    config = make_config(path.parent, scenes={"embeddings": known})
    build(config, tmp_path / "data", make_survey(grid_of_places()))
    data = Dataset.open(tmp_path / "data")
    card = data.card.tiles
    assert (data.card.format_version, card.dtype, card.signed_square) == (3, "int8", 127.5)
    assert card.bands == tuple(f"e{number:02d}" for number in range(8))
    assert data.tiles.dtype == np.int8
    left, top = data.sites.iloc[0][["tile_left", "tile_top"]]
    row, column = round((200_000 - top) / 10), round((left - 400_000) / 10)
    assert np.array_equal(data.tiles[0], stored[:, row : row + 32, column : column + 32])
    assert check_dataset(tmp_path / "data") == []
    np.save(tmp_path / "data/tiles.npy", np.asarray(data.tiles).astype(np.int16))
    with pytest.raises(ArtefactError, match="its tiles are int16, its card says int8"):
        Dataset.open(tmp_path / "data")


def test_a_card_of_the_usual_type_says_nothing_of_it(tmp_path):
    counts = np.random.default_rng(0).integers(1, 4000, (4, 300, 400)).astype(np.uint16)
    scene = write_raster(tmp_path / "s.tif", counts)
    build(make_config(scene), tmp_path / "data", make_survey(grid_of_places()))
    told = json.loads((tmp_path / "data/dataset.json").read_text())
    assert told["format_version"] == 2
    assert set(told["tiles"]) == {"bands", "size_px", "resolution_m", "scale", "offset", "nodata"}


def test_bands_of_reflectance_are_not_asked_of_embeddings(tmp_path):
    stored = np.zeros((8, 300, 400), np.int8)
    path = write_raster(tmp_path / "2023/x.tif", stored, names=None, nodata=-128)
    known = {"preset": "alphaearth", "bands": 8}
    config = make_config(path.parent, scenes={"embeddings": known}, tiles={"bands": ["red"]})
    with pytest.raises(ButterflySDMError, match="no band 'red'; theirs are e00 to e07"):
        build(config, tmp_path / "data", make_survey(grid_of_places()))


@pytest.fixture
def catalogue(tmp_path):
    """A STAC collection of one item, of the ground of the survey."""
    stored = np.random.default_rng(0).integers(-127, 128, (8, 300, 400)).astype(np.int8)
    write_raster(tmp_path / "there/x.tif", stored, names=None, nodata=-128)
    write_item(tmp_path / "there", "one", 2023, {"data": {"href": "x.tif"}})
    root = {"stac_version": "1.0.0", "type": "Collection", "id": "aef"}
    links = [{"rel": "item", "href": "one.json"}]
    path = tmp_path / "there/collection.json"
    path.write_text(json.dumps(root | {"links": links}))
    return path


def test_a_collection_becomes_tiles_and_covariates_and_is_described_once(
    tmp_path, catalogue, monkeypatch
):
    from butterfly_sdm.imagery.embeddings import columns

    seen, describe = [], columns.open_embeddings
    monkeypatch.setattr(
        columns, "open_embeddings", lambda *given: seen.append(given) or describe(*given)
    )
    known = {"preset": "alphaearth", "bands": 8, "year": 2023}
    covariates = {"embeddings": known | {"path": str(catalogue), "side_m": [200.0]}}
    config = make_config(catalogue, scenes={"embeddings": known}, covariates=covariates)
    survey = make_survey(grid_of_places())
    build(config, tmp_path / "data", survey)
    assert len(seen) == 1
    data = Dataset.open(tmp_path / "data")
    files = make_config(
        catalogue.parent / "x.tif",
        scenes={"embeddings": {"preset": "alphaearth", "bands": 8}},
        covariates={
            "embeddings": {
                **known,
                "path": str(catalogue.parent / "x.tif"),
                "side_m": [200.0],
            }
        },
    )
    build(files, tmp_path / "plain", survey)
    plain = Dataset.open(tmp_path / "plain")
    assert np.array_equal(data.tiles, plain.tiles)
    pd.testing.assert_frame_equal(data.covariates, plain.covariates)
    sources = {(source.role, source.name): source.sha256 for source in data.card.sources}
    digest = sha256(catalogue.parent / "x.tif")
    assert sources["scene", "x.tif"] == sources["covariates", "x.tif"] == digest
    assert "1 file of 8 bands; int8" in data.card.embeddings["alphaearth"]
    made = (tmp_path / "data/dataset.json").stat().st_mtime_ns
    build(config, tmp_path / "data", survey)
    assert (tmp_path / "data/dataset.json").stat().st_mtime_ns == made
    os.utime(catalogue.parent / "x.tif", ns=(1, 1))  # an asset is another file now
    build(config, tmp_path / "data", survey)
    assert (tmp_path / "data/dataset.json").stat().st_mtime_ns != made


def test_a_store_becomes_tiles_and_covariates_with_its_checksum(tmp_path):
    zarr = pytest.importorskip("zarr", reason="the extra zarr is not there")
    stored = np.random.default_rng(0).integers(-127, 128, (8, 300, 400)).astype(np.int8)
    path = tmp_path / "aef_2023.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=3)
    place = [10, 0, 400_000, 0, -10, 200_000]
    group.attrs.update({"proj:code": "EPSG:27700", "spatial:transform": place})
    names = ("band", "y", "x")
    group.create_array("e", data=stored, chunks=(8, 64, 64), dimension_names=names)
    known = {"preset": "alphaearth", "bands": 8}
    covariates = {"embeddings": known | {"path": str(path), "side_m": [200.0]}}
    survey = make_survey(grid_of_places())
    build(
        make_config(path, scenes={"embeddings": known}, covariates=covariates),
        tmp_path / "data",
        survey,
    )
    data = Dataset.open(tmp_path / "data")
    raster = write_raster(tmp_path / "2023/x.tif", stored, names=None, nodata=-128)
    covariates = {"embeddings": known | {"path": str(raster), "side_m": [200.0]}}
    build(
        make_config(raster, scenes={"embeddings": known}, covariates=covariates),
        tmp_path / "plain",
        survey,
    )
    plain = Dataset.open(tmp_path / "plain")
    assert (data.tiles.dtype, data.card.tiles.signed_square) == (np.int8, 127.5)
    assert np.array_equal(data.tiles, plain.tiles)
    pd.testing.assert_frame_equal(data.covariates, plain.covariates)
    assert "of 2023" in data.card.embeddings["alphaearth"]
    sources = {source.role: source for source in data.card.sources}
    assert sources["scene"].sha256 == sources["covariates"].sha256 == sha256(path)
    assert sources["covariates"].name == "aef_2023.zarr"
    assert sources["covariates"].bytes == sum(file.stat().st_size for file in files_below(path))
