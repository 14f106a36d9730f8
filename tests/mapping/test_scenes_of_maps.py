"""What a run is mapped on: the grid of its tiles, and scenes whose counts may be shifted."""

import logging

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import yaml
from affine import Affine
from pyproj import Transformer
from shapely import Point

import butterfly_sdm
from butterfly_sdm.errors import RasterError
from tests.mapping.world import BANDS, write_scene

FILES = {"red": "B04", "green": "B03", "blue": "B02", "nir": "B08"}
CONFIG = """name: case
build:
  records: {path: records.csv, min_records: 0, min_visits: 1, place: point}
  scenes: {paths: [scene.tif]}
  tiles: {size_px: 64, crs: "EPSG:25831"}
  split: {method: random}
train:
  model: {window_px: 32, margin_px: 0, embedding: 16}
  fit: {epochs: 1, batch_size: 8, augment: false, regulariser: {weight: 0.0, bottom: 2, nearest: 1}}
map: {stride_px: 32, audit: 0}
"""


def write_records(path, first_lat: float, first_lon: float) -> None:
    """Write records of 20 sites, four rows of five 0.0068 degrees apart."""
    rows = ["species,date,latitude,longitude,site id"]
    random = np.random.default_rng(0)
    for site in range(20):
        lat, lon = first_lat - 0.0068 * (site // 5), first_lon + 0.0065 * (site % 5)
        for day in range(1, 5):
            seen = ["Aglais io"] + ["Pieris napi"] * int(random.random() < 0.5)
            rows += [f"{name},2018-06-0{day},{lat},{lon},S{site}" for name in seen]
    path.write_text("\n".join(rows))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    scene = write_scene(folder / "scene.tif", width=420, height=420)
    with rasterio.open(scene, "r+") as out:
        out.crs, out.transform = "EPSG:4326", Affine(9e-5, 0, 2.1, 0, -9e-5, 41.5)
    write_records(folder / "records.csv", 41.494, 2.106)
    (folder / "config.yaml").write_text(CONFIG)
    butterfly_sdm.build(folder / "config.yaml")
    return butterfly_sdm.train(folder / "config.yaml")


@pytest.mark.parametrize("resolution_m", [20.0, 6.0])
def test_scenes_of_the_tiles_are_mapped_at_the_resolution_of_the_tiles(resolution_m, tmp_path):
    x, y = Transformer.from_crs(4326, 25831, always_xy=True).transform(2.1, 41.5)
    left, top = round(x, -2), round(y, -2)
    write_scene(tmp_path / "scene.tif", width=400, height=400, left=left, top=top, crs="EPSG:25831")
    write_records(tmp_path / "records.csv", 41.494, 2.106)
    config = yaml.safe_load(CONFIG)
    config["build"]["tiles"] = {"size_px": 32, "resolution_m": resolution_m}
    config["train"] = {"model": {"kind": "linear", "options": {"position": False, "bands": True}}}
    config["map"] |= {"stride_px": 128, "beside": []}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    data = butterfly_sdm.build(tmp_path / "config.yaml", tmp_path / "dataset")
    coarse = [text for text in data.card.warnings if "Set tiles.resolution_m: 10." in text]
    assert len(coarse) == (resolution_m < 10)
    run = butterfly_sdm.train(tmp_path / "config.yaml", tmp_path / "run", dataset=data)
    made = butterfly_sdm.predict_map(run)
    with rasterio.open(made.path) as source:
        assert source.transform.a == 128 * resolution_m
        values = source.read(1)
        row, col = np.argwhere(values >= 0)[1]
        place = gpd.GeoDataFrame(
            index=["here"], geometry=[Point(source.xy(row, col))], crs=source.crs
        )
    told = butterfly_sdm.predict(run, place).species
    np.testing.assert_allclose(told["prediction"].iloc[0], values[row, col], atol=0.01)
    elsewhere = [tmp_path / "scene.tif"]
    if resolution_m < 10:
        with pytest.raises(RasterError, match="or a finer one, or build tiles of this one"):
            butterfly_sdm.predict_map(run, elsewhere, tmp_path / "other.tif")
    else:
        butterfly_sdm.predict_map(run, elsewhere, tmp_path / "other.tif")
        assert (tmp_path / "other.tif").read_bytes() == made.path.read_bytes()


@pytest.mark.slow
def test_a_scene_in_degrees_is_mapped_on_the_grid_of_the_tiles(run, tmp_path, caplog):
    made = butterfly_sdm.predict_map(run, out=tmp_path / "map.tif")
    assert made.crs == "EPSG:25831"
    assert "the map is made in EPSG:25831" in caplog.text
    with rasterio.open(made.path) as source:
        assert (source.transform.a, source.transform.e) == (320, -320)


@pytest.mark.slow
def test_a_map_tells_products_whose_counts_may_be_higher_by_a_thousand(run, tmp_path, caplog):
    x, y = Transformer.from_crs(4326, 25831, always_xy=True).transform(2.1, 41.5)
    left = round(x, -1)
    for day in ("20210610", "20230610"):
        whole = write_scene(
            tmp_path / f"{day}.tif",
            width=128,
            height=128,
            left=left,
            top=round(y, -1),
            crs="EPSG:25831",
        )
        left += 1280
        (tmp_path / f"S2_{day}").mkdir()
        with rasterio.open(whole) as source:
            profile = {**source.profile, "count": 1}
            for number, band in enumerate(BANDS, start=1):
                name = tmp_path / f"S2_{day}" / f"T31TDF_{day}T105619_{FILES[band]}_10m.tif"
                with rasterio.open(name, "w", **profile) as out:
                    out.write(source.read(number), 1)
    scenes = [tmp_path / "S2_20210610", tmp_path / "S2_20230610"]
    caplog.set_level(logging.WARNING)
    butterfly_sdm.predict_map(run, scenes, tmp_path / "map.tif")
    (told,) = [one.message for one in caplog.records if "1,000 higher" in one.message]
    assert "1 products of Sentinel-2" in told
    assert "1 others are older" in told
