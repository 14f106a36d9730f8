"""The data set checks that its parts fit together, in memory and on disk."""

import json
import pickle
from dataclasses import replace

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest

from butterfly_sdm.data.dataset import Dataset, DatasetCard, TileCard, read_card
from butterfly_sdm.errors import ArtefactError, DataError, MissingFileError
from data_prep.build import build_dataset
from tests.data_prep.surveys import grid_of_places, make_config, make_scene, make_survey


def parts() -> dict:
    index = pd.Index(["a", "b"], name="site_id")
    sites = gpd.GeoDataFrame(
        {"easting": [0.0, 1.0], "northing": [0.0, 1.0], "visits": [4, 0], "tile_row": [-1, 0]},
        geometry=gpd.points_from_xy([0, 1], [0, 1]),
        index=index,
        crs=4326,
    )
    detections = pd.DataFrame({"Pieris napi": [2, 0]}, index=index)
    return {
        "card": DatasetCard(name="test", species=("Pieris napi",), position_crs="EPSG:32631"),
        "sites": sites,
        "detections": detections,
    }


def test_rates_are_detections_by_visits_and_missing_without_a_visit():
    rates = Dataset(**parts()).rates["Pieris napi"]
    assert rates["a"] == 0.5
    assert np.isnan(rates["b"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detections": [5, 0]}, r"detected on 5 visits of site a, which has 4"),
        ({"detections": [-1, 0]}, "lie between 0 and the visits"),
        ({"detections": [0.5, 0.0]}, "whole numbers; these are float64"),
    ],
)
def test_impossible_detections_are_refused(change, message):
    value = parts()
    value["detections"] = pd.DataFrame(
        {"Pieris napi": change["detections"]}, index=value["sites"].index
    )
    with pytest.raises(DataError, match=message):
        Dataset(**value)


def test_tables_of_other_sites_or_species_are_refused():
    value = parts()
    with pytest.raises(DataError, match="do not list the same sites"):
        Dataset(**value | {"detections": value["detections"].iloc[::-1]})
    with pytest.raises(DataError, match="or another order"):
        Dataset(
            **value
            | {"detections": value["detections"].rename(columns={"Pieris napi": "Pieris rapae"})}
        )
    with pytest.raises(DataError, match="lack the column 'visits'"):
        Dataset(**value | {"sites": value["sites"].drop(columns="visits")})


def test_tiles_are_found_by_site_and_missing_ones_named():
    value = parts()
    card = value["card"].model_copy(
        update={"tiles": TileCard(bands=("red", "nir"), size_px=8, resolution_m=10)}
    )
    dataset = Dataset(**value | {"card": card, "tiles": np.ones((1, 2, 8, 8), np.uint16)})
    assert dataset.sites_with_tiles == ("b",)
    assert dataset.tile_rows(["b"]).tolist() == [0]
    with pytest.raises(DataError, match="Site a has no tile"):
        dataset.tile_rows(["b", "a"])
    with pytest.raises(DataError, match="Site z is not in the data set"):
        dataset.rows(["z"])
    with pytest.raises(DataError, match="tiles have 3 bands"):
        Dataset(**value | {"card": card, "tiles": np.ones((1, 3, 8, 8), np.uint16)})


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    config = make_config(make_scene(folder / "scene.tif"))
    return build_dataset(
        config, folder / "out", name="test", seed=0, survey=make_survey(grid_of_places())
    )


def test_a_folder_opens_with_its_tiles_left_on_disk(built):
    dataset = Dataset.open(built)
    assert isinstance(dataset.tiles, np.memmap)
    assert dataset.folder == built
    assert dataset.fingerprint == Dataset.open(built).fingerprint
    assert "12 of 12 sites, 32 x 32 pixels of 10 m" in dataset._repr_html_()
    assert repr(dataset).startswith("<Dataset ") and len(repr(dataset)) < 200


def test_tiles_on_disk_travel_to_other_processes_as_a_path(built):
    dataset = Dataset.open(built)
    told = pickle.dumps(dataset)
    assert len(told) < dataset.tiles.nbytes / 2
    again = pickle.loads(told)
    assert isinstance(again.tiles, np.memmap)
    np.testing.assert_array_equal(again.tiles, dataset.tiles)
    pd.testing.assert_frame_equal(again.rates, dataset.rates)
    some = pickle.loads(pickle.dumps(replace(dataset, tiles=dataset.tiles[3:5])))
    np.testing.assert_array_equal(some.tiles, dataset.tiles[3:5])


def test_a_card_of_the_first_release_that_names_no_crs_means_the_british_grid(built, tmp_path):
    card = json.loads((built / "dataset.json").read_text())
    del card["position_crs"]
    (tmp_path / "dataset.json").write_text(json.dumps(card))
    assert read_card(tmp_path).position_crs == "EPSG:27700"
    with pytest.raises(ValueError, match="position_crs"):
        DatasetCard(name="new", species=("Pieris napi",))


def test_a_folder_that_is_no_data_set_or_incomplete_says_so(built, tmp_path):
    import shutil

    with pytest.raises(MissingFileError, match="There is no data set at"):
        Dataset.open(tmp_path / "absent")
    copy = shutil.copytree(built, tmp_path / "copy")
    (copy / "detections.parquet").unlink()
    with pytest.raises(MissingFileError, match=r"lacks detections\.parquet"):
        Dataset.open(copy)
    (copy / "detections.parquet").write_bytes(b"PAR1")
    with pytest.raises(ArtefactError, match="is damaged"):
        Dataset.open(copy)
    (copy / "dataset.json").write_text('{"format": "something else"}')
    with pytest.raises(ArtefactError, match=r"its dataset\.json does not say so"):
        Dataset.open(copy)
