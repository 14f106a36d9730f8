"""What a run is mapped on: the grid of its tiles, and scenes whose counts may be shifted."""

import logging

import numpy as np
import pytest
import rasterio
from affine import Affine
from pyproj import Transformer

import butterfly_sdm
from tests.mapping.world import BANDS, write_scene

pytestmark = pytest.mark.slow
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


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    scene = write_scene(folder / "scene.tif", width=420, height=420)
    with rasterio.open(scene, "r+") as out:
        out.crs, out.transform = "EPSG:4326", Affine(9e-5, 0, 2.1, 0, -9e-5, 41.5)
    rows = ["species,date,latitude,longitude,site id"]
    random = np.random.default_rng(0)
    for site in range(20):
        lat, lon = 41.494 - 0.0068 * (site // 5), 2.106 + 0.0065 * (site % 5)
        for day in range(1, 5):
            seen = ["Aglais io"] + ["Pieris napi"] * int(random.random() < 0.5)
            rows += [f"{name},2018-06-0{day},{lat},{lon},S{site}" for name in seen]
    (folder / "records.csv").write_text("\n".join(rows))
    (folder / "config.yaml").write_text(CONFIG)
    butterfly_sdm.build(folder / "config.yaml")
    return butterfly_sdm.train(folder / "config.yaml")


def test_a_scene_in_degrees_is_mapped_on_the_grid_of_the_tiles(run, tmp_path, caplog):
    made = butterfly_sdm.predict_map(run, out=tmp_path / "map.tif")
    assert made.crs == "EPSG:25831"
    assert "the map is made in EPSG:25831" in caplog.text
    with rasterio.open(made.path) as source:
        assert (source.transform.a, source.transform.e) == (320, -320)


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
