"""A data set whose bytes are as its card says, but whose parts do not fit together, is told."""

import hashlib
import json
import shutil

import geopandas as gpd
import numpy as np
import pytest

from butterfly_sdm.core.cards import sealed
from data_prep.build import build_dataset
from data_prep.checking import check_dataset
from tests.data_prep.surveys import grid_of_places, make_config, make_scene, make_survey


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    config = make_config(make_scene(folder / "scene.tif"))
    survey = make_survey(grid_of_places())
    build_dataset(config, folder / "dataset", name="test", seed=0, survey=survey)
    assert check_dataset(folder / "dataset") == []
    return folder / "dataset"


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "dataset")


def sealed_again(folder, **changes):
    """Write the card as a build would that had written just these files."""
    card = json.loads((folder / "dataset.json").read_text()) | changes
    card["files"] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in card["files"]
        if (folder / name).is_file()
    }
    (folder / "dataset.json").write_text(json.dumps(sealed(card)))


def test_a_file_that_nobody_wrote_is_told(copy):
    (copy / "notes.txt").write_text("mine")
    assert check_dataset(copy) == [f"{copy / 'notes.txt'} is not part of the data set."]


def test_a_site_of_the_split_that_is_not_there_is_told(copy):
    split = json.loads((copy / "split.json").read_text())
    split["train"].append("S999")
    (copy / "split.json").write_text(json.dumps(split))
    sealed_again(copy)
    assert check_dataset(copy) == ["The split names site S999, which is not there."]


def test_tiles_that_the_card_describes_but_nobody_holds_are_told(copy):
    (copy / "tiles.npy").unlink()
    sealed_again(copy)
    assert check_dataset(copy) == [
        f"{copy / 'tiles.npy'} is missing, but the card describes tiles."
    ]


def test_tiles_of_another_shape_are_told(copy):
    tiles = np.load(copy / "tiles.npy")
    np.save(copy / "tiles.npy", tiles[:, :, :16, :16])
    sealed_again(copy)
    (problem,) = check_dataset(copy)
    assert "shape (4, 16, 16); the card says 4 bands, 32 px" in problem


def test_a_tile_of_two_sites_is_told(copy):
    sites = gpd.read_parquet(copy / "sites.parquet")
    sites.loc[1, "tile_row"] = sites.loc[0, "tile_row"]
    sites.to_parquet(copy / "sites.parquet")
    sealed_again(copy)
    (problem,) = check_dataset(copy)
    assert "12 tiles are stored" in problem and "or to one twice" in problem


def test_a_share_of_valid_pixels_that_is_not_the_one_of_the_tile_is_told(copy):
    tiles = np.load(copy / "tiles.npy")
    tiles[0, :, :8] = 0  # a quarter of the tile is no measurement now
    np.save(copy / "tiles.npy", tiles)
    sealed_again(copy)
    (problem,) = check_dataset(copy)
    assert "valid pixels of site S000 is not the one that is stated, 1.0000" in problem


def test_a_card_that_cannot_be_read_ends_the_check(copy):
    (copy / "dataset.json").write_text("{")
    (problem,) = check_dataset(copy)
    assert "dataset.json" in problem
    shutil.rmtree(copy)
    (problem,) = check_dataset(copy)
    assert "dataset.json" in problem


def test_a_data_set_that_does_not_open_is_told_in_its_own_words(copy):
    (copy / "sites.parquet").write_bytes(b"not a table")
    sealed_again(copy)
    (problem,) = check_dataset(copy)
    assert "is damaged" in problem and "Build it again" in problem
