"""Tiles of embeddings: built by a config, checked, opened, and refused if damaged."""

import json

import numpy as np
import pytest

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import ArtefactError, ButterflySDMError
from data_prep.checking import check_dataset
from tests.data_prep.surveys import grid_of_places, make_config, make_survey
from tests.data_prep.test_build import build
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
