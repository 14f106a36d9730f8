"""
Each mistake a user can make is one clear sentence and exit code 2; nothing half-written is left.
"""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml
from rasterio.transform import from_origin
from typer.testing import CliRunner

from butterfly_sdm.cli import app
from butterfly_sdm.simulate import Region, simulate_region


@pytest.fixture(scope="module")
def region(tmp_path_factory) -> Region:
    return simulate_region(
        tmp_path_factory.mktemp("bad") / "region",
        size_px=512,
        n_sites=12,
        n_species=3,
        tile_px=64,
        window_px=64,
    )


def _config(region: Region, at: Path, **changes: object) -> Path:
    """
    Write the region's config into an empty folder, with absolute paths and some changes of build.
    """
    config = yaml.safe_load(region.config.read_text())
    build = config["build"]
    build["records"]["path"], build["records"]["sites"] = str(region.records), str(region.sites)
    build["scenes"]["paths"] = [str(path) for path in region.scenes]
    build["covariates"]["table"] = str(region.covariates)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        build[section][name] = value
    path = at / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def _refused(arguments: list[str], at: Path, *, leaves: set[str]) -> str:
    result = CliRunner().invoke(app, arguments)
    said = result.output
    assert result.exit_code == 2, said
    assert "Traceback" not in said
    left = {path.name for path in at.iterdir()}
    assert left == leaves, left
    sentence = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert len(sentence) == 1, said
    return sentence[0]


def _scene(
    path: Path,
    *,
    bands: tuple[str, ...],
    crs: object = "EPSG:32630",
    left: float = 545_000,
    pixel: float = 10,
) -> Path:
    profile = {
        "driver": "GTiff",
        "width": 600,
        "height": 600,
        "count": len(bands),
        "dtype": "uint16",
        "nodata": 0,
        "crs": crs,
    }
    with rasterio.open(
        path,
        "w",
        transform=from_origin(left, 5_690_000 if pixel == 10 else 52, pixel, pixel),
        **profile,
    ) as raster:
        raster.write(np.full((len(bands), 600, 600), 500, np.uint16))
        raster.descriptions = bands
    return path


def _archive(path: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


def _build(config: Path, at: Path, *more: str) -> str:
    leaves = {path.name for path in at.iterdir()}
    return _refused(["build", str(config), "--out", str(at / "dataset"), *more], at, leaves=leaves)


def test_a_missing_file_is_named(region, tmp_path):
    assert "nowhere.zip" in _build(_config(region, tmp_path, records__path="nowhere.zip"), tmp_path)


def test_a_zip_without_occurrences_is_told(region, tmp_path):
    archive = _archive(tmp_path / "archive.zip", {"readme.txt": "nothing here"})
    said = _build(_config(region, tmp_path, records__path=str(archive)), tmp_path)
    assert "occurrence" in said


def test_a_truncated_zip_is_told(region, tmp_path):
    archive = tmp_path / "archive.zip"
    data = region.records.read_bytes()
    archive.write_bytes(data[: len(data) // 2])
    said = _build(_config(region, tmp_path, records__path=str(archive)), tmp_path)
    assert "archive.zip" in said
    assert any(
        word in said for word in ("truncated", "damaged", "incomplete", "cut short", "not a zip")
    )


def test_an_archive_whose_entry_escapes_its_folder_is_refused(region, tmp_path):
    with zipfile.ZipFile(region.records) as archive:
        members = {name: archive.read(name).decode() for name in archive.namelist()}
    evil = _archive(tmp_path / "archive.zip", members | {"../escaped.txt": "out"})
    said = _build(_config(region, tmp_path, records__path=str(evil)), tmp_path)
    assert "escaped.txt" in said
    assert not (tmp_path.parent / "escaped.txt").exists()


def test_a_table_without_a_date_column_is_told(region, tmp_path):
    table = tmp_path / "records.csv"
    table.write_text("species,decimalLatitude,decimalLongitude\nPieris rapae,51.2,-2.1\n")
    said = _build(_config(region, tmp_path, records__path=str(table)), tmp_path)
    assert "date" in said.lower()


def test_coordinates_out_of_range_are_told(region, tmp_path):
    table = tmp_path / "records.csv"
    rows = "".join(f"Pieris rapae,2018-06-{day:02d},151.2,-2.1\n" for day in range(1, 9))
    table.write_text("species,eventDate,decimalLatitude,decimalLongitude\n" + rows)
    config = _config(
        region, tmp_path, records__path=str(table), records__institutions=[], records__sites=None
    )
    said = _build(config, tmp_path)
    assert "151.2" in said or "latitude" in said.lower()


def test_a_scene_with_fewer_bands_than_named_is_told(region, tmp_path):
    scene = _scene(tmp_path / "scene.tif", bands=("red", "green", "blue"))
    config = _config(
        region, tmp_path, scenes__paths=[str(scene)], scenes__bands=["red", "green", "blue", "nir"]
    )
    said = _build(config, tmp_path)
    assert "3 bands" in said
    assert "4" in said or "nir" in said


def test_a_scene_in_a_crs_without_units_is_told(region, tmp_path):
    scene = _scene(
        tmp_path / "scene.tif",
        bands=("red", "green", "blue", "nir"),
        crs='LOCAL_CS["somewhere",UNIT["unknown",1]]',
    )
    said = _build(_config(region, tmp_path, scenes__paths=[str(scene)]), tmp_path)
    assert "CRS" in said


def test_a_scene_that_covers_no_site_is_told(region, tmp_path):
    scene = _scene(tmp_path / "scene.tif", bands=("red", "green", "blue", "nir"), left=200_000)
    said = _build(_config(region, tmp_path, scenes__paths=[str(scene)]), tmp_path)
    assert "no site" in said.lower() or "none of" in said.lower() or "covers" in said.lower()


def test_an_unknown_key_is_named(region, tmp_path):
    said = _build(_config(region, tmp_path), tmp_path, "--set", "build.recrods.path=x")
    assert "build.recrods is an unknown key; did you mean 'records'?" in said


def test_a_swapped_band_order_is_warned_of(region, tmp_path):
    config = _config(region, tmp_path, scenes__bands=["blue", "green", "red", "nir"])
    result = CliRunner().invoke(app, ["build", str(config), "--out", str(tmp_path / "dataset")])
    assert result.exit_code == 0, result.output
    assert "red" in result.output
    assert "swapped" in result.output


def test_a_scene_without_a_band_of_the_run_is_told(region, tmp_path):
    config = _config(region, tmp_path)
    quick = ["--set", "train.fit.epochs=1", "--set", "train.fit.batch_size=4"]
    built = CliRunner().invoke(app, ["build", str(config), "--out", str(tmp_path / "dataset")])
    assert built.exit_code == 0, built.output
    trained = CliRunner().invoke(
        app,
        [
            "train",
            str(config),
            "--dataset",
            str(tmp_path / "dataset"),
            "--out",
            str(tmp_path / "run"),
            *quick,
        ],
    )
    assert trained.exit_code == 0, trained.output
    scene = _scene(tmp_path / "scene.tif", bands=("red", "green", "blue"))
    leaves = {path.name for path in tmp_path.iterdir()}
    said = _refused(
        ["map", str(tmp_path / "run"), str(scene), "--out", str(tmp_path / "map.tif")],
        tmp_path,
        leaves=leaves,
    )
    assert "nir" in said


def test_a_damaged_run_is_told(region, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{")
    said = _refused(["evaluate", str(run)], tmp_path, leaves={"run"})
    assert "damaged" in said
    shutil.rmtree(run)
