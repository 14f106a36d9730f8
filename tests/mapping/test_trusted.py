"""A map carries how good it is, bounds, and where it does not apply; and is handed on."""

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import yaml
from rasterio.windows import Window
from shapely.geometry import box

import butterfly_sdm as bs
from butterfly_sdm.cli import app
from butterfly_sdm.errors import ArtefactError, DataError, MissingFileError
from butterfly_sdm.evaluation.uncertainty import fit_conformal
from butterfly_sdm.imagery.scene import open_scene
from butterfly_sdm.mapping import MapResult
from butterfly_sdm.mapping.layers import Bounds
from butterfly_sdm.mapping.map import _given_up
from butterfly_sdm.mapping.map_file import read_tags
from butterfly_sdm.mapping.surfaces.ground import window_means
from butterfly_sdm.mapping.surfaces.lattice import Lattice
from butterfly_sdm.mapping.viewer import viewer_page
from butterfly_sdm.pipeline import map_to_view
from tests.mapping.test_viewer import data_of
from tests.mapping.world import Position, map_of, read, write_scene

LAYERS = ["richness", "lower", "upper", "width", "applicability"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    path = write_scene(
        tmp_path_factory.mktemp("scene") / "scene.tif", hole=(slice(0, 200), slice(0, 200))
    )
    return open_scene(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of nearest sites over a small simulated region, never evaluated, and its map."""
    folder = tmp_path_factory.mktemp("region")
    region = bs.simulate_region(folder, size_px=1024, n_sites=60, n_species=4, tile_px=128)
    settings = yaml.safe_load(region.config.read_text())
    settings |= {"train": {"model": {"kind": "nearest_sites"}}, "out": str(folder / "runs")}
    settings["build"]["split"] = {"method": "random"}
    settings["map"] = {"stride_px": 64, "layers": LAYERS}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    dataset = bs.build(folder / "config.yaml", folder / "runs" / "dataset")
    run = bs.train(folder / "config.yaml", dataset=dataset)
    return folder, dataset, run, bs.predict_map(run)


def test_skill_travels_in_tags_stac_style_picture_and_page(made):
    _, dataset, run, result = made
    tags = read_tags(result.path)
    assert tags["skill"]["part"] == "validation"
    assert list(tags["skill"]["species"]) == sorted(dataset.species)
    name = dataset.species[0]
    skill = tags["skill"]["species"][name]
    assert skill.keys() == {"skill", "low", "high", "sites", "of", "verdict"}
    assert skill["of"] == len(run.split.validation)
    item = json.loads(result.files["stac"].read_text())
    assert item["assets"]["map"]["bands"][0]["butterfly_sdm:skill"] == skill
    assert tags["skill"]["sentence"] in item["properties"]["description"]
    style = result.path.with_suffix(".qml").read_text()
    assert f"seen at {skill['sites']} of {skill['of']} sites" in style
    band = data_of(viewer_page(result.path))["bands"][0]
    assert band["skill"] == skill
    assert (
        bs.evaluate(run, result.path.parent / "scores").per_species.loc[name, "recorded_at"]
        == (skill["sites"])
    )


def test_bounds_are_those_of_the_held_out_sites(made):
    _, dataset, run, result = made
    tags = read_tags(result.path)["interval"]
    held = list(run.split.validation)
    conformal = fit_conformal(dataset, run.predictor.predict(dataset, held), level=0.9)
    assert tags["visits"] == max(1, int(np.median(dataset.visits.loc[held])))
    values = dict(zip(MapResult.open(result.path).species, read(result), strict=False))
    with rasterio.open(result.path) as source:
        read_all = source.read(masked=True).filled(np.nan)
        bands = dict(zip(source.descriptions, read_all, strict=True))
    name, (row, col) = dataset.species[1], (3, 4)
    p = pd.DataFrame([[values[s][row, col] for s in dataset.species]], columns=dataset.species)
    low, high = conformal.intervals(p, float(tags["visits"]))
    assert bands[f"{name} lower"][row, col] == pytest.approx(low[name][0], abs=1e-5)
    assert bands[f"{name} upper"][row, col] == pytest.approx(high[name][0], abs=1e-5)
    width = bands[f"{name} upper"] - bands[f"{name} lower"]
    np.testing.assert_allclose(bands[f"{name} width"], width, atol=1e-6)


def test_sites_of_a_data_set_that_has_moved_are_missed_and_named(made, tmp_path, caplog):
    _, dataset, run, result = made
    where, gone = dataset.folder, tmp_path / "moved"
    shutil.move(where, gone)
    try:
        assert map_to_view(result.path)[1] is None
        assert "without the sites of its run" in caplog.text and "--dataset DIR" in caplog.text
        assert map_to_view(run.folder, gone)[1].dataset.visits.equals(dataset.visits)
        with pytest.raises(MissingFileError):
            map_to_view(run.folder, tmp_path / "nowhere")
    finally:
        shutil.move(gone, where)


def test_bounds_can_be_of_chosen_species_and_need_a_run(scene, tmp_path):
    ends = Bounds("lower", lambda p, names: (p / 2, p), ("North",))
    result = map_of(Position(), scene, tmp_path / "map.tif", layers=[ends], beside=())
    values = read(result)
    np.testing.assert_allclose(values[2], values[1] / 2, rtol=1e-6)
    assert len(values) == 3
    with pytest.raises(DataError, match="'lower' needs held-out sites"):
        map_of(Position(), scene, tmp_path / "other.tif", layers=["lower"])


def test_the_yaml_of_a_run_leads_to_its_map_and_sites(made):
    folder, dataset, run, result = made
    for what in (folder / "config.yaml", run.folder, result.path):
        path, sites = map_to_view(what)
        assert path == result.path
        content = data_of(viewer_page(path, sites=sites))["sites"]
        assert len(content) == (dataset.visits > 0).sum()
    name, x, y, visits, seen = content[0]
    assert visits == dataset.visits[name]
    place = dataset.sites.loc[name]
    with rasterio.open(path) as source:
        assert source.bounds.left < x < source.bounds.right
        assert source.bounds.bottom < y < source.bounds.top
    assert place["visits"] == visits
    counts = dataset.detections.loc[name].to_numpy()
    assert {int(key): k for key, k in seen.items()} == {
        j: int(k) for j, k in enumerate(counts) if k
    }
    hidden = replace(sites, hidden=dataset.species[:1])
    shown = data_of(viewer_page(path, sites=hidden))["sites"]
    assert all("0" not in row[4] for row in shown)


def test_view_writes_the_page_of_a_yaml(made):
    from typer.testing import CliRunner

    folder, dataset, *_ = made
    asked = ["view", str(folder / "config.yaml"), "--export", str(folder / "page.html")]
    assert CliRunner().invoke(app, asked).exit_code == 0
    data = data_of((folder / "page.html").read_text())
    assert len(data["sites"]) == (dataset.visits > 0).sum() and len(data["limits"]) == 1
    assert CliRunner().invoke(app, [*asked, "--no-sites"]).exit_code == 0
    assert data_of((folder / "page.html").read_text())["sites"] == []
    refused = CliRunner().invoke(app, ["view", str(folder / "scenes" / "west.tif")])
    assert refused.exit_code == 2


def test_species_that_are_no_better_than_their_mean_rate_are_left_out_if_asked(made, tmp_path):
    _, dataset, run, result = made
    verdicts = {k: v["verdict"] for k, v in read_tags(result.path)["skill"]["species"].items()}
    kept = [name for name in dataset.species if verdicts[name] == "better"]
    asked = ["map.leave_out=unsure", "map.layers=[]"]
    if kept:
        shown = bs.predict_map(run, out=tmp_path / "map.tif", overrides=asked)
        assert list(shown.species) == kept
        assert read_tags(shown.path)["left_out"] == len(dataset.species) - len(kept)
    else:
        with pytest.raises(DataError, match="leaves no species"):
            bs.predict_map(run, out=tmp_path / "map.tif", overrides=asked)


def test_a_finished_map_of_other_settings_is_not_replaced_unless_told(scene, tmp_path):
    out = tmp_path / "map.tif"
    map_of(Position(), scene, out, beside=(), overwrite=False)
    written = out.stat().st_mtime_ns
    again = map_of(Position(), scene, out, beside=(), overwrite=False)  # done is done
    assert out.stat().st_mtime_ns == written
    assert again.counts == MapResult.open(out).counts
    for other in ({"dtype": "uint8"}, {"species": ("East",)}, {"layers": ["richness"]}):
        with pytest.raises(ArtefactError, match="a finished map of other settings"):
            map_of(Position(), scene, out, beside=(), overwrite=False, **other)
        assert out.stat().st_mtime_ns == written
    (tmp_path / "text.tif").write_text("mine")
    with pytest.raises(ArtefactError, match="there already and no map"):
        map_of(Position(), scene, tmp_path / "text.tif", beside=(), overwrite=False)
    assert (tmp_path / "text.tif").read_text() == "mine"
    assert not list(tmp_path.glob("*.partial"))


def test_from_the_command_line_force_replaces_a_map(made):
    from typer.testing import CliRunner

    folder, _, _, result = made
    plain = [
        "--set",
        "map.layers=[]",
        "--set",
        "map.beside=[]",
        "--out",
        str(folder / "forced.tif"),
    ]
    other = ["--set", "map.stride_px=128", *plain]
    first = CliRunner().invoke(app, ["map", str(folder / "config.yaml"), *plain])
    assert first.exit_code == 0, first.output
    refused = CliRunner().invoke(app, ["map", str(folder / "config.yaml"), *other])
    assert refused.exit_code == 2
    forced = CliRunner().invoke(app, ["map", str(folder / "config.yaml"), *other, "--force"])
    assert forced.exit_code == 0, forced.output
    assert MapResult.open(folder / "forced.tif").counts["positions"] < result.counts["positions"]


@pytest.mark.parametrize(
    ("mean", "p99", "given_up"), [(0.004, 0.02, False), (0.02, 0.52, True), (0.04, 0.05, True)]
)
def test_a_dense_map_is_given_up_on_its_mean_or_its_99th_percentile(mean, p99, given_up):
    found = {"mean_abs": mean, "p99_abs": p99, "max_abs": 0.6}
    assert _given_up(found, "auto") is given_up
    assert not _given_up(found, "dense")


def test_means_over_windows_are_those_of_the_pixels(scene):
    lattice = Lattice.of(scene, stride_px=32, window_px=0)
    wanted = np.ones(lattice.height, dtype=bool)
    means = window_means(scene, lattice, slice(0, lattice.height), wanted, 50)
    assert means.shape == (4, *lattice.shape)
    for row, col in [(0, 0), (4, 6), (8, 8), (17, 19)]:
        top, left = 32 * row + 16 - 25, 32 * col + 16 - 25
        counts, valid = scene.read(Window(left, top, 50, 50))
        if valid.any():
            expected = (counts[:, valid].mean(axis=1) - scene.offset) * scene.scale
            np.testing.assert_allclose(means[:, row, col], expected, rtol=1e-12)
        else:
            assert np.isnan(means[:, row, col]).all()
    none = window_means(scene, lattice, slice(0, 4), np.zeros(4, dtype=bool), 50)
    assert np.isnan(none).all()  # nothing is read where nothing is wanted


@pytest.mark.parametrize("seen", [(300, 400, 200, 100), (8000, 8000, 8000, 8000)])
def test_water_and_snow_are_outside_for_a_model_that_sees_no_image(seen, made, tmp_path):
    folder, _, run, result = made
    name = "dissimilarity of the ground"
    with rasterio.open(result.path) as source:
        ground = source.read(source.descriptions.index(name) + 1, masked=True).compressed()
    limit = read_tags(result.path)["limits"][name]
    assert (ground <= limit).mean() > 0.5
    scenes = []
    for path in sorted((folder / "scenes").glob("*.tif")):
        with rasterio.open(path) as source:
            values, profile, names = source.read(), source.profile, source.descriptions
        values[:] = np.array(seen)[: len(values), None, None]
        scenes.append(tmp_path / path.name)
        with rasterio.open(scenes[-1], "w", **profile) as target:
            target.write(values)
            target.descriptions = names
    asked = ["map.layers=[applicability]", "map.stride_px=128", "map.beside=[]"]
    there = bs.predict_map(run, scenes, tmp_path / "there.tif", overrides=asked)
    with rasterio.open(there.path) as source:
        unlike = source.read(source.descriptions.index(name) + 1, masked=True).compressed()
    assert (unlike > limit).all()
    asked.append("map.only_applicable=true")
    only = bs.predict_map(run, scenes, tmp_path / "only.tif", overrides=asked)
    assert np.isnan(read(only)[: len(only.species)]).all()


def test_nothing_is_predicted_off_land(tmp_path):
    # the south-west of the Isle of Wight and the sea around it
    path = write_scene(tmp_path / "scene.tif", left=440_000.0, top=86_080.0)
    scene = open_scene(path)
    result = map_of(Position(), scene, tmp_path / "map.tif", land="natural_earth", beside=())
    values = read(result)[0]
    with rasterio.open(result.path) as source:
        inland, at_sea = source.index(445_500, 85_500), source.index(440_500, 81_000)
    assert np.isfinite(values[inland]) and np.isnan(values[at_sea])
    assert 0.2 < np.isfinite(values).mean() < 0.9
    own = gpd.GeoDataFrame(geometry=[box(440_000, 80_000, 443_000, 90_000)], crs="EPSG:27700")
    own.to_file(tmp_path / "land.gpkg")
    mine = map_of(Position(), scene, tmp_path / "mine.tif", land=tmp_path / "land.gpkg", beside=())
    assert np.isfinite(read(mine)[0][:, :9]).all() and np.isnan(read(mine)[0][:, 10:]).all()
    with pytest.raises(MissingFileError, match="no file"):
        map_of(Position(), scene, tmp_path / "none.tif", land=tmp_path / "none.gpkg")


def test_a_map_becomes_a_table_of_squares_or_polygons(made):
    result = MapResult.open(made[3].path)
    squares = result.to_geodataframe(2000)
    assert {"zone", "positions", *result.species} <= set(squares.columns)
    with rasterio.open(result.path) as source:
        bounds = box(*source.bounds)
        mean = source.read(1, masked=True).mean()
    whole = gpd.GeoDataFrame({"of": ["all"]}, geometry=[bounds], crs=squares.crs)
    table = result.to_geodataframe(polygons=whole, name="of")
    assert table["zone"].tolist() == ["all"]
    assert table[result.species[0]][0] == pytest.approx(mean, rel=1e-5)


@pytest.mark.skipif(find_spec("xarray") is None, reason="needs the package xarray")
def test_a_map_becomes_an_xarray_data_set(made):
    _, dataset, _, result = made
    array = result.to_xarray()
    assert array["probability"].dims == ("species", "y", "x")
    assert array["species"].values.tolist() == list(dataset.species)
    assert {"lower", "upper", "width", "expected richness"} <= set(array.data_vars)
    with rasterio.open(result.path) as source:
        x, y = source.xy(3, 4)
        expected = source.read(2, masked=True).filled(np.nan)[3, 4]
    found = array["probability"].sel(species=dataset.species[1]).sel(x=x, y=y, method="nearest")
    assert float(found) == pytest.approx(expected)
    assert result.to_xarray(dataset.species[:1])["lower"].sizes["species"] == 1
    with pytest.raises(DataError, match="no species"):
        result.to_xarray(["Unicorn"])


def test_a_report_shows_the_map_and_where_not_to_trust_it(made):
    page = bs.report([made[2]]).read_text()
    assert "On the map map.tif" in page
    assert "of its predicted positions are unlike the training sites" in page
    assert page.count("data:image/png;base64,") == 1


def test_a_report_shows_no_site_of_a_species_that_maps_withhold(made, tmp_path, monkeypatch):
    _, dataset, run, _ = made
    told = []

    def write_report(findings, target, *, withheld=(), on_map=None):
        told.append(withheld)

    monkeypatch.setattr("butterfly_sdm.evaluation.report.page.write_report", write_report)
    first, second, *_ = dataset.species
    policy = {"withhold": (first,), "coarsen_m": {second: 2000.0}}
    config = run.config
    hidden = config.model_copy(update={"map": config.map.model_copy(update=policy)})
    bs.report([run.with_settings(hidden)], tmp_path / "report.html")
    assert told == [(first, second)]
