"""The stage build: a whole data set, byte by byte the same however often it was interrupted."""

import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from rasterio.windows import Window

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import Sees
from butterfly_sdm.errors import ConfigError, DataError, MissingFileError, RasterError
from butterfly_sdm.imagery.grids import usual_crs
from butterfly_sdm.imagery.scene import open_scene
from data_prep.asked import describe_places
from data_prep.build import build_dataset
from data_prep.checking import check_dataset
from data_prep.imagery.export import export_tiles
from data_prep.site_table import stretched
from tests.data_prep.surveys import (
    LEFT,
    TOP,
    grid_of_places,
    land,
    make_config,
    make_scene,
    make_survey,
)
from tests.imagery.rasters import write_raster
from tests.trust.faults import processes


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


def build(config, folder, survey, seed=0, **options):
    return build_dataset(config, folder, name="test", seed=seed, survey=survey, **options)


def test_a_scene_and_a_survey_become_a_data_set(tmp_path):
    scene = make_scene(tmp_path / "scene.tif")
    survey = make_survey(grid_of_places())
    build(make_config(scene), tmp_path / "out", survey)
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.card.tiles.bands == ("red", "green", "blue", "nir")
    assert dataset.card.years == (2018, 2019)
    pd.testing.assert_frame_equal(
        dataset.detections, survey.detections, check_dtype=False, check_names=False
    )
    assert dataset.sites["valid_fraction"].eq(1).all()
    for site in dataset.site_ids:
        left, top = dataset.sites.loc[site, ["tile_left", "tile_top"]]
        window = Window(round((left - LEFT) / 10), round((TOP - top) / 10), 32, 32)
        np.testing.assert_array_equal(
            dataset.tiles[dataset.tile_rows([site])[0]], open_scene(scene).read(window)[0]
        )
        assert abs(left + 160 - dataset.sites.loc[site, "easting"]) < 7.5
    assert check_dataset(tmp_path / "out") == []
    source = next(source for source in dataset.card.sources if source.role == "scene")
    assert source.sha256 == hashlib.sha256(scene.read_bytes()).hexdigest()
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == [
        "out",
        "scene.tif",
    ]


def test_two_builds_are_the_same_byte_by_byte_and_the_seed_changes_the_split(tmp_path):
    config = make_config(make_scene(tmp_path / "scene.tif"))
    survey = make_survey(grid_of_places())
    first, second, third = (
        build(config, tmp_path / name, survey, seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert digests(first) == digests(second)
    assert digests(first)["split.json"] != digests(third)["split.json"]
    assert digests(first)["tiles.npy"] == digests(third)["tiles.npy"]


def test_sites_without_enough_of_a_tile_stay_without_one(tmp_path):
    values = land(300, 400)
    values[:, :, 200:] = 0
    scene = write_raster(tmp_path / "scene.tif", values)
    places = np.array(
        [
            (LEFT + 500, TOP - 500),
            (LEFT + 2000, TOP - 500),
            (LEFT + 3000, TOP - 500),
            (LEFT - 9000, TOP),
            (LEFT + 700, TOP - 900),
        ]
    )
    config = make_config(scene, tiles={"size_px": 32, "min_valid_fraction": 0.6})
    with pytest.raises(
        DataError, match=r"Only 2 of 5 sites have visits and a tile. The 2 sites form 2 groups"
    ):
        build(config, tmp_path / "out", make_survey(places))
    build(
        config.model_copy(
            update={"split": config.split.model_copy(update={"fractions": (0.5, 0.5, 0)})}
        ),
        tmp_path / "out",
        make_survey(places),
    )
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.sites["tile_row"].tolist() == [0, -1, -1, -1, 1]
    assert dataset.sites["valid_fraction"].round(2).tolist() == [1, 0.5, 0, 0, 1]
    assert dataset.tiles.shape == (2, 4, 32, 32)
    assert dataset.sites_with_tiles == ("S000", "S004")
    assert any("2 sites have no tile because fewer than 60%" in note for note in dataset.card.notes)
    assert any("1 of 5 sites have no tile because no scene" in note for note in dataset.card.notes)
    assert check_dataset(tmp_path / "out") == []


def test_bands_named_in_the_wrong_order_give_a_warning(tmp_path):
    scene = write_raster(tmp_path / "scene.tif", land(300, 400), names=None)
    survey = make_survey(grid_of_places())
    right = make_config(scene, scenes={"bands": ["red", "green", "blue", "nir"]})
    build(right, tmp_path / "right", survey)
    assert not [
        text for text in Dataset.open(tmp_path / "right").card.warnings if text.startswith("Tiles")
    ]
    wrong = make_config(scene, scenes={"bands": ["blue", "green", "red", "nir"]})
    build(wrong, tmp_path / "wrong", survey)
    assert any(
        "red and blue look swapped" in text
        for text in Dataset.open(tmp_path / "wrong").card.warnings
    )


def test_a_scene_that_covers_no_site_is_one_clear_sentence_and_leaves_nothing(tmp_path):
    scene = make_scene(tmp_path / "scene.tif", left=600_000)
    with pytest.raises(
        RasterError, match=r"cover none of the 12 sites.* lie at .* E, .* N; the sites at"
    ):
        build(make_config(scene), tmp_path / "out", make_survey(grid_of_places()))
    assert not (tmp_path / "out").exists()


def test_three_bands_where_four_are_named(tmp_path):
    scene = write_raster(tmp_path / "scene.tif", land(300, 400)[:3], names=None)
    config = make_config(scene, scenes={"bands": ["red", "green", "blue", "nir"]})
    with pytest.raises(RasterError, match="has 3 bands, but 4 are named"):
        build(config, tmp_path / "out", make_survey(grid_of_places()))


@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        (
            {"tiles": {"bands": ["red", "swir16"]}},
            RasterError,
            "has no band 'swir16'; it has red, green, blue, nir",
        ),
        (
            {"scenes": {"paths": ["nowhere.tif"]}},
            MissingFileError,
            r"no scene .*nowhere\.tif\. Check scenes\.paths",
        ),
        ({"tiles": {"crs": "EPSG:4326"}}, RasterError, "would be measured in degrees"),
        (
            {"covariates": {"table": "nowhere.csv"}},
            MissingFileError,
            r"nowhere\.csv for the covariates",
        ),
        (
            {"split": {"method": "file", "path": "nowhere.json"}},
            MissingFileError,
            r"nowhere\.json for the split",
        ),
    ],
)
def test_what_is_wrong_with_scenes_is_told_before_the_records_are_read(
    tmp_path, sections, error, message
):
    records = tmp_path / "records.csv"
    records.write_text("no,table,of,records\n")
    config = make_config(
        make_scene(tmp_path / "scene.tif"), records={"path": str(records)}, **sections
    )
    with pytest.raises(error, match=message):
        build_dataset(config, tmp_path / "out", name="test", seed=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["records.csv", "scene.tif"]


def test_an_older_data_set_survives_a_build_that_fails(tmp_path):
    survey = make_survey(grid_of_places())
    build(make_config(make_scene(tmp_path / "scene.tif")), tmp_path / "out", survey)
    before = digests(tmp_path / "out")
    with pytest.raises(MissingFileError):
        build(make_config(tmp_path / "absent.tif"), tmp_path / "out", survey)
    assert digests(tmp_path / "out") == before


def test_ready_tiles_are_read_as_they_are_and_larger_ones_cut_down(tmp_path):
    survey = make_survey(grid_of_places())
    tiles = {}
    for number, (x, y) in enumerate(grid_of_places()[:6]):
        size = 40 if number % 2 else 32
        values = land(size, size, seed=number)
        tiles[f"S{number:03d}"] = values[:, 4:36, 4:36] if size == 40 else values
        write_raster(
            tmp_path / "tiles" / f"s2_S{number:03d}_y-2019.tif",
            values,
            left=x - size * 5,
            top=y + size * 5,
            names=None,
        )
    ready = {"folder": str(tmp_path / "tiles"), "bands": ["red", "green", "blue", "nir"]}
    build(make_config(ready_tiles=ready), tmp_path / "out", survey)
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.sites_with_tiles == tuple(tiles)
    for site, values in tiles.items():
        np.testing.assert_array_equal(dataset.tiles[dataset.tile_rows([site])[0]], values)
    assert check_dataset(tmp_path / "out") == []
    with pytest.raises(
        DataError, match=r"No file .*name scenes that show the places in their stea"
    ):
        describe_places(
            make_config(ready_tiles=ready),
            dataset.sites.geometry.iloc[:1].set_axis(["a new place"]),
            species=dataset.species,
            sees=Sees.of(dataset, image=True),
            position_crs=dataset.card.position_crs,
        )
    nir_first = make_config(ready_tiles=ready, tiles={"size_px": 32, "bands": ["nir", "red"]})
    build(nir_first, tmp_path / "two", survey)
    np.testing.assert_array_equal(Dataset.open(tmp_path / "two").tiles[0], tiles["S000"][[3, 0]])


def test_ready_tiles_of_two_sizes_ask_for_one(tmp_path):
    for number, size in enumerate((32, 40)):
        write_raster(tmp_path / "tiles" / f"S{number:03d}.tif", land(size, size), names=None)
    config = make_config(
        ready_tiles={"folder": str(tmp_path / "tiles"), "bands": ["red", "green", "blue", "nir"]}
    )
    config = config.model_copy(update={"tiles": type(config.tiles)()})
    with pytest.raises(
        RasterError, match=r"differ in size, from 32 to 40 pixels. State tiles\.size_px"
    ):
        build(config, tmp_path / "out", make_survey(grid_of_places()))


def test_two_ready_tiles_of_one_site_are_an_error_and_an_id_is_no_prefix(tmp_path):
    for name in ("S001_y-2018.tif", "S001_y-2019.tif"):
        write_raster(tmp_path / "tiles" / name, land(32, 32), names=None)
    config = make_config(
        ready_tiles={"folder": str(tmp_path / "tiles"), "bands": ["red", "green", "blue", "nir"]}
    )
    with pytest.raises(
        DataError, match=r"Two ready tiles fit site S001: S001_y-2018\.tif and S001_y-2019\.tif"
    ):
        build(config, tmp_path / "out", make_survey(grid_of_places()))


def test_covariates_may_be_missing_for_a_site(tmp_path):
    table = pd.DataFrame({"site_id": ["S000", "S002"], "rain": [1.5, None]})
    table.to_csv(tmp_path / "covariates.csv", index=False)
    config = make_config(
        covariates={"table": str(tmp_path / "covariates.csv"), "units": {"rain": "mm"}}
    )
    build(config, tmp_path / "out", make_survey(grid_of_places()))
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.covariates["rain"].isna().sum() == 11
    assert dataset.covariates.loc["S000", "rain"] == 1.5
    assert dataset.card.covariates == {"rain": "mm"}
    assert dataset.tiles is None


def test_a_split_from_a_table_ignores_sites_that_are_not_there(tmp_path):
    rows = [
        ("S000", "train"),
        ("S001", "val"),
        ("S002", "test"),
        ("elsewhere", "train"),
        ("S003", ""),
    ]
    pd.DataFrame(rows, columns=["site_id", "split"]).to_csv(tmp_path / "split.csv", index=False)
    config = make_config(split={"method": "file", "path": str(tmp_path / "split.csv")})
    build(config, tmp_path / "out", make_survey(grid_of_places()))
    dataset = Dataset.open(tmp_path / "out")
    assert (dataset.split.train, dataset.split.validation, dataset.split.test) == (
        ("S000",),
        ("S001",),
        ("S002",),
    )
    assert any("Not in the data set: 1 site of split.csv" in note for note in dataset.card.notes)
    assert any("9 sites are in no part" in note for note in dataset.card.notes)


def test_sites_that_no_scene_shows_are_told_and_take_no_part_of_the_split(tmp_path):
    scene = make_scene(tmp_path / "scene.tif")
    places = np.vstack([grid_of_places(), grid_of_places() + 100_000])  # as many elsewhere as here
    build(
        make_config(scene), tmp_path / "out", make_survey(np.vstack([places, places[-1:] + 1000]))
    )
    dataset = Dataset.open(tmp_path / "out")
    assert set(dataset.split.part_of()) == set(dataset.sites_with_tiles)
    lost = len(dataset.sites) - len(dataset.sites_with_tiles)
    assert any(
        f"{lost} of {len(dataset.sites)} sites have no tile" in text
        for text in dataset.card.warnings
    )


def test_a_split_that_leaks_is_a_warning_that_names_the_sites(tmp_path):
    places = grid_of_places(apart=200)
    build(make_config(make_scene(tmp_path / "scene.tif")), tmp_path / "out", make_survey(places))
    assert any(
        "The split leaks" in text and "S0" in text
        for text in Dataset.open(tmp_path / "out").card.warnings
    )


def test_scenes_and_ready_tiles_together_are_refused(tmp_path):
    config = make_config(
        tmp_path / "a.tif", ready_tiles={"folder": str(tmp_path), "bands": ["red"]}
    )
    with pytest.raises(ConfigError, match="both given"):
        build(config, tmp_path / "out", make_survey(grid_of_places()))


def test_a_changed_byte_anywhere_is_found(tmp_path):
    build(
        make_config(make_scene(tmp_path / "scene.tif")),
        tmp_path / "out",
        make_survey(grid_of_places()),
    )
    for path in sorted((tmp_path / "out").iterdir()):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        assert check_dataset(tmp_path / "out"), path.name
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert check_dataset(tmp_path / "out") == []
    (tmp_path / "out" / "tiles.npy").unlink()
    assert any("tiles.npy is missing" in problem for problem in check_dataset(tmp_path / "out"))


def test_exported_tiles_open_as_geotiffs_in_place(tmp_path):
    build(
        make_config(make_scene(tmp_path / "scene.tif")),
        tmp_path / "out",
        make_survey(grid_of_places()),
    )
    dataset = Dataset.open(tmp_path / "out")
    paths = export_tiles(dataset, tmp_path / "export", ["S004", "S001"])
    with rasterio.open(paths[0]) as file:
        assert file.descriptions == dataset.card.tiles.bands
        assert file.crs == "EPSG:27700"
        np.testing.assert_array_equal(file.read(), dataset.tiles[4])
    assert open_scene(paths[1]).resolution_m == 10
    with rasterio.open(tmp_path / "scene.tif") as scene, rasterio.open(paths[1]) as tile:
        np.testing.assert_array_equal(
            scene.read(window=scene.window(*tile.bounds).round_offsets().round_lengths()),
            tile.read(),
        )


def test_progress_grows_and_ends(tmp_path):
    seen: dict[str, list[tuple[int, int]]] = {}
    build(
        make_config(make_scene(tmp_path / "scene.tif")),
        tmp_path / "out",
        make_survey(grid_of_places()),
        progress=lambda task, done, total: seen.setdefault(task, []).append((done, total)),
    )
    assert {"cutting tiles", "checksums of the sources", "writing the data set"} <= set(seen)
    for steps in seen.values():
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)
        assert steps[-1][0] == steps[-1][1]


def _build(root: Path, name: str, kind: str) -> None:
    import data_prep.imagery.blocks

    data_prep.imagery.blocks.UNIT_BYTES = 30_000
    tiles = {"size_px": 64} | ({"crs": "EPSG:32630"} if kind == "warp" else {})
    config = make_config(root / "scenes", tiles=tiles)
    survey = make_survey(grid_of_places(8, 10, 260))
    build_dataset(config, root / name, name="test", seed=0, survey=survey)


def run_builder(root: Path, name: str, kind: str, kill_after: float | None) -> bool:
    """
    Run a build in a process of its own, kill it after some seconds, and say whether it finished.
    """
    process = processes.Process(target=_build, args=(root, name, kind))
    process.start()
    process.join(kill_after)
    process.kill()
    process.join()
    return process.exitcode == 0


def killed_again_and_again(root: Path, kind: str, moments: int, seed: int) -> None:
    for number in range(2):
        make_scene(
            root / "scenes" / f"{number}.tif",
            left=LEFT + 2000 * number,
            seed=number,
            compress="deflate",
        )
    start = time.perf_counter()
    assert run_builder(root, "whole", kind, None)
    lasted = time.perf_counter() - start
    random = np.random.default_rng(seed)
    expected = digests(root / "whole")
    for moment in range(moments):
        name = f"killed{moment}"
        run_builder(root, name, kind, float(random.uniform(0, lasted)))
        assert run_builder(root, name, kind, None)
        assert digests(root / name) == expected
        assert not (root / f"{name}.partial").exists()


@pytest.mark.slow
def test_killed_at_a_random_moment_a_build_ends_with_the_same_bytes(tmp_path):
    killed_again_and_again(tmp_path, "copy", moments=1, seed=int(os.environ.get("KILL_SEED", "0")))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["copy", "warp"])
def test_killed_at_twenty_random_moments_every_build_ends_with_the_same_bytes(tmp_path, kind):
    killed_again_and_again(tmp_path, kind, moments=20, seed=7)


@pytest.mark.parametrize("crs", [None, "EPSG:32630"])
def test_a_dask_cluster_by_address_builds_the_same_bytes(tmp_path, crs):
    distributed = pytest.importorskip("distributed")
    scene, survey, tiles = (
        make_scene(tmp_path / "scene.tif"),
        make_survey(grid_of_places()),
        {"size_px": 32, "crs": crs},
    )
    here = build(make_config(scene, tiles=tiles), tmp_path / "here", survey)
    with distributed.LocalCluster(
        1, threads_per_worker=2, processes=False, dashboard_address=None, protocol="tcp"
    ) as cluster:
        there = build(
            make_config(scene, tiles=tiles, dask=cluster.scheduler_address),
            tmp_path / "there",
            survey,
        )
    assert digests(here) == digests(there)


def real_tiles(shared):
    """Return the folders of the 26 real tiles, and a survey whose sites they show."""
    folders = [shared / "data" / "s2bms" / "tiles", shared / "data" / "sentinel2" / "uk_tiles_2024"]
    ids, places = [], []
    for folder in folders:
        for path in sorted(folder.glob("*.tif")):
            with rasterio.open(path) as file:
                x, y = (
                    (file.bounds.left + file.bounds.right) / 2,
                    (file.bounds.bottom + file.bounds.top) / 2,
                )
                places.append(rasterio.warp.transform(file.crs, 27700, [x], [y]))
            ids.append(
                path.stem.split("_y-")[0].replace("_sent2-4band", "").replace("sent2-4band_", "")
            )
    survey = make_survey([(x[0], y[0]) for x, y in places])
    renamed = dict(zip(survey.detections.index, ids, strict=True))
    survey = type(survey)(
        detections=survey.detections.rename(renamed),
        visits=survey.visits.rename(renamed),
        sites=survey.sites.rename(renamed),
        rows=survey.rows,
        years=survey.years,
    )
    return folders, survey


def test_the_real_tiles_of_two_years_build_into_one_data_set(shared, tmp_path):
    folders, survey = real_tiles(shared)
    for bands, warned in (
        (["red", "green", "blue", "nir"], False),
        (["blue", "green", "red", "nir"], True),
    ):
        ready = {"folder": [str(folder) for folder in folders], "bands": bands}
        build(
            make_config(ready_tiles=ready, tiles={"size_px": 128}), tmp_path / str(warned), survey
        )
        dataset = Dataset.open(tmp_path / str(warned))
        assert len(dataset.sites_with_tiles) == 26
        assert any("red and blue look swapped" in text for text in dataset.card.warnings) == warned
    near_infrared = dataset.tiles[:, 3].astype(float).mean()
    assert near_infrared > 2 * dataset.tiles[:, 1].mean()


def test_what_was_built_from_the_same_inputs_is_not_built_again(tmp_path):
    config = make_config(make_scene(tmp_path / "scene.tif"))
    survey = make_survey(grid_of_places())
    build(config, tmp_path / "out", survey)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    build(config, tmp_path / "out", survey)
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    build(config, tmp_path / "out", survey, seed=1)
    assert stamps != {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_a_composite_and_rasters_of_covariates_come_from_the_config(tmp_path):
    for day in range(3):
        folder = tmp_path / "scenes" / f"S2A_2023081{day}"
        values = land(300, 400)
        values[:, day * 50 : day * 50 + 40] = 9000  # a cloud over everything
        for name, band in zip(("B04", "B03", "B02", "B08"), values, strict=True):
            write_raster(folder / f"{name}.tif", band[None], names=None)
        classes = np.where(values[0] == 9000, 9, 4).astype(np.uint8)
        write_raster(folder / "SCL.tif", classes[None], names=None, nodata=None)
    cover = write_raster(
        tmp_path / "cover.tif", np.full((1, 30, 40), 3, np.uint8), pixel=100, names=None, nodata=0
    )
    config = make_config(
        tmp_path / "scenes",
        scenes={"composite": {"method": "median", "months": [6, 9]}},
        covariates={"rasters": [{"path": str(cover), "name": "cover", "kind": "fractions"}]},
    )
    build(config, tmp_path / "out", make_survey(grid_of_places()))
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.tiles.max() < 9000
    assert dataset.sites["valid_fraction"].eq(1).all()
    assert dataset.covariates["cover_3_1000m"].eq(1).all()
    assert any("median of 2023-08-10, 2023-08-11" in note for note in dataset.card.notes)
    assert check_dataset(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("lon", "lat", "crs"),
    [
        ((-5.2, 1.6), (50.2, 58.7), "EPSG:27700"),
        ((-75.7, -75.6), (37.6, 37.7), "EPSG:32618"),
        ((14.1, 16.2), (46.0, 46.9), "EPSG:32633"),
        ((150.2, 150.9), (-34.0, -33.5), "EPSG:32756"),
        ((180.0, 180.0), (-17.0, -16.8), "EPSG:32760"),
    ],
)
def test_positions_are_in_the_crs_of_the_region(lon, lat, crs):
    places = pd.DataFrame({"lon": lon, "lat": lat})
    assert usual_crs(places["lon"], places["lat"]) == crs
    assert stretched(places, crs) < 0.002


def test_a_crs_in_which_distances_are_wrong_is_told(tmp_path):
    config = make_config(make_scene(tmp_path / "scene.tif"))
    survey = make_survey(grid_of_places())
    build(config, tmp_path / "own", survey)
    card = Dataset.open(tmp_path / "own").card
    assert card.position_crs == "EPSG:27700"
    assert not any("distances" in warning for warning in card.warnings)
    build(config.model_copy(update={"position_crs": "EPSG:3857"}), tmp_path / "web", survey)
    wrong = (
        1 / np.cos(np.deg2rad(survey.sites.to_crs(4326).geometry.representative_point().y.max()))
        - 1
    )
    warnings = Dataset.open(tmp_path / "web").card.warnings
    assert f"In EPSG:3857 distances are wrong by up to {wrong:.0%}" in warnings[0]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_explained_losses_are_counted_once(tmp_path, monkeypatch, suffix):
    from data_prep import build as stage
    from data_prep.look import left_out

    rows = [
        f"2018-06-{day:02},5{site}.5,-1.5,Pieris rapae" for day in range(1, 5) for site in "012"
    ]
    rows += [f"soon,5{site}.5,-1.5,Pieris rapae" for site in "012"]
    (tmp_path / "r.csv").write_text("\n".join(["date,lat,lon,species", *rows]) + "\n")
    read = []
    for module in (stage, left_out):
        real = module.read_survey
        monkeypatch.setattr(
            module, "read_survey", lambda *a, real=real, **k: read.append(1) or real(*a, **k)
        )
    config = make_config(records={"path": str(tmp_path / "r.csv"), "min_records": 0})
    explain = tmp_path / f"left.{suffix}"
    build_dataset(config, tmp_path / "d", name="d", seed=0, explain=explain)
    assert len(read) == 1 and explain.exists()
    card = Dataset.open(tmp_path / "d").card
    assert any("'soon' (3)" in text for text in card.warnings)
    explain.unlink()
    build_dataset(config, tmp_path / "d", name="d", seed=0, explain=explain)  # it is there already
    assert len(read) == 2 and explain.exists()
