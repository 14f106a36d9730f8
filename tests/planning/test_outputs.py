"""The files of a plan say the same in every form, open where people open them, and tell no more."""

import json
from dataclasses import replace

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from PIL import Image

from butterfly_sdm.errors import ArtefactError, MissingFileError
from butterfly_sdm.planning import PlanOptions, make_plan, write_plan
from butterfly_sdm.planning.outputs import read_promises
from tests.planning.making import all_text, points, ranked, world


@pytest.fixture(scope="module")
def plan():
    return make_plan(world(covariates=False), PlanOptions(sites=6, grid_m=5000.0, visits=7))


@pytest.fixture(scope="module")
def folder(plan, tmp_path_factory):
    return write_plan(plan, tmp_path_factory.mktemp("plans") / "plan").folder


def test_every_file_has_the_same_sites_in_the_same_order(plan, folder):
    names = list(plan.sites.index)
    table = ranked(folder)
    assert list(table.index) == names
    assert table["visits"].eq(7).all() and table["share"].sum() == pytest.approx(100, abs=1e-3)
    assert list(gpd.read_file(folder / "plan.gpkg", layer="plan")["name"]) == names
    page = gpd.read_file(folder / "plan.geojson")
    assert list(page["name"]) == names and page.crs == "EPSG:4326"
    phone = gpd.read_file(folder / "plan.gpx", layer="waypoints")
    assert list(phone["name"]) == [f"{rank} {name}" for rank, name in enumerate(names, start=1)]
    assert phone.geometry.x.to_numpy() == pytest.approx(table["lon"].to_numpy(), abs=1e-6)
    assert shapely.get_y(shapely.centroid(page.geometry.to_numpy())) == pytest.approx(
        table["lat"].to_numpy(), abs=1e-4
    )


def test_the_raster_has_the_numbers_of_the_layer_at_their_squares(plan, folder):
    layer = gpd.read_file(folder / "plan.gpkg", layer="gain")
    assert len(layer) == len(plan.layer)
    with rasterio.open(folder / "gain.tif") as raster:
        assert raster.descriptions == ("gain", "gain_left")
        assert raster.crs == "EPSG:27700" and raster.res == (5000, 5000)
        middles = layer.geometry.centroid
        found = np.array(list(raster.sample(zip(middles.x, middles.y, strict=True))))
        assert np.isfinite(raster.read(1)).sum() == len(layer)
    assert found == pytest.approx(layer[["gain", "gain_left"]].to_numpy(), rel=1e-5)


def test_the_picture_and_the_page_are_there(plan, folder):
    with Image.open(folder / "plan.png") as picture:
        assert min(picture.size) > 600
    assert plan.words in (folder / "plan.md").read_text()
    card = json.loads((folder / "plan.json").read_text())
    assert card["promise"]["gain"] == pytest.approx(plan.promise["gain"], abs=1e-6)
    assert card["asked"]["sites"] == 6


def test_points_make_no_raster_and_a_second_plan_takes_the_place_of_the_first(tmp_path):
    data = world()
    for sites in (3, 4):
        made = write_plan(
            make_plan(data, PlanOptions(sites=sites), candidates=points(data, 20)), tmp_path / "p"
        )
        assert len(ranked(made.folder)) == sites
    assert not (tmp_path / "p" / "gain.tif").exists()


def test_a_folder_of_other_things_is_left_alone(plan, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtefactError, match="is there already and holds no plan"):
        write_plan(plan, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_homes_paths_and_what_is_protected_are_in_no_file(tmp_path):
    data = world(covariates=False)
    home = gpd.GeoDataFrame(
        {"name": ["Ann Miller"]}, geometry=gpd.points_from_xy([412_345], [223_456]), crs=27700
    )
    home.to_file(tmp_path / "homes_of_us.gpkg")
    asked = PlanOptions(
        sites=4,
        grid_m=5000.0,
        homes=tmp_path / "homes_of_us.gpkg",
        protected=("Species 3",),
        protect_m=2000.0,
    )
    text = all_text(write_plan(make_plan(data, asked), tmp_path / "plan").folder)
    for secret in ("Ann Miller", "412345", "homes_of_us", "Species 3", str(tmp_path)):
        assert secret not in text


def test_promises_are_read_from_a_replay_alone(tmp_path, plan):
    with pytest.raises(MissingFileError):
        read_promises(tmp_path)
    (tmp_path / "replay.json").write_text('{"format": "butterfly_sdm replay"}')
    with pytest.raises(ArtefactError, match="no replay, or damaged"):
        read_promises(tmp_path)
    kept = {"r": 0.5, "kept": 1.1, "kept_low": 0.9, "kept_high": 1.3}
    told = replace(plan, about={**plan.about, "promises": kept}).words
    assert "a replay of these data" in told and "1.10 [0.90, 1.30]" in told
    assert "British data, not on these" in plan.words
