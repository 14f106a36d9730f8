"""Predictions at places, given what was seen: from a run, from Python and the command line."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import rasterio
from typer.testing import CliRunner

import butterfly_sdm as sdm
from butterfly_sdm.cli import app
from butterfly_sdm.errors import ConfigError, DataError, MissingFileError, ModelError
from butterfly_sdm.places import new_records

KIND = "train.model={kind: nearest_sites}"
FLAT = ["map.layers=[]", "map.stride_px=16", "map.audit=0", "map.beside=[]"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A simulated region, its data set and the run of a model that knows positions alone."""
    folder = tmp_path_factory.mktemp("places")
    region = sdm.simulate_region(folder / "region", size_px=1408, n_sites=110, n_species=8)
    split = ["build.split.buffer_m=0"]
    dataset = sdm.build(region.config, folder / "dataset", overrides=split)
    run = sdm.train(region.config, folder / "run", dataset=dataset, overrides=[KIND])
    # whatever neighbours of so few sites are found to share, tests need some
    at = run.folder / "community"
    near = replace(sdm.fit_community(run), share=0.5, reach_m=5000.0)
    near.save(at, more={"key": json.loads((at / "community.json").read_text())["key"]})
    return folder, dataset, sdm.Run.open(run.folder)


def held_out(dataset):
    return list(dataset.split.validation + dataset.split.test)


def write(path, *rows):
    path.write_text("\n".join(rows) + "\n")
    return path


def test_points_grid_references_and_polygons_are_places(home, tmp_path):
    _, dataset, run = home
    site = held_out(dataset)[0]
    row = dataset.sites.loc[site]
    square = dataset.sites.geometry[site]
    places = write(
        tmp_path / "places.csv",
        "place,lon,lat,grid_reference,footprint_wkt",
        f"point,{row.lon},{row.lat},,",
        "square,,,ST8551,",
        f'polygon,,,,"{square.wkt}"',
    )
    found = sdm.predict(run, places, tmp_path / "out.csv")
    assert found.places.index.tolist() == ["point", "square", "polygon"]
    wide = found.species.pivot(index="place", columns="species", values="probability")
    assert wide.loc["point"].to_numpy() == pytest.approx(wide.loc["polygon"].to_numpy(), abs=1e-3)
    plain = run.predictor.predict(dataset, [site]).iloc[0]
    assert wide.loc["polygon", plain.index].to_numpy() == pytest.approx(plain.to_numpy(), abs=1e-3)
    assert (found.species["prediction"] == found.species["probability"]).all()
    table = pd.read_csv(tmp_path / "out.csv")
    assert len(table) == 3 * 8
    assert (table["low"] <= table["probability"]).all()
    assert (table["probability"] <= table["high"]).all()
    assert set(pd.read_csv(tmp_path / "out_places.csv")) >= {"richness", "low", "high"}
    assert len(pd.read_csv(tmp_path / "out_alike.csv")) == 15
    vectors = dataset.sites.loc[held_out(dataset)[:2], ["geometry"]].rename_axis("place")
    vectors.reset_index().to_file(tmp_path / "places.gpkg")
    assert len(sdm.predict(run, tmp_path / "places.gpkg").places) == 2


def test_places_without_a_class_of_a_raster_are_known_to_lack_it(home, tmp_path):
    folder, _, _ = home
    rasters = "{path: habitats.tif, name: habitat, kind: fractions, side_m: [1000]}"
    options = [
        "build.split.buffer_m=0",
        f"build.covariates={{rasters: [{rasters}]}}",
        "train.model={kind: trees, options: {trees: 5}}",
    ]
    config = folder / "region" / "config.yaml"
    dataset = sdm.build(config, tmp_path / "dataset", overrides=options)
    run = sdm.train(config, tmp_path / "run", dataset=dataset, overrides=options)
    site = held_out(dataset)[0]
    assert (dataset.covariates.loc[site] == 0).any()
    new = dataset.sites.loc[[site], ["geometry"]].set_axis(["Meadow"])
    plain = run.predictor.predict(dataset, [site]).iloc[0]
    wide = sdm.predict(run, new).species.set_index("species")["prediction"]
    assert wide[plain.index].to_numpy() == pytest.approx(plain.to_numpy(), abs=0.05)
    both = pd.concat([new, new.set_axis(["Away"]).translate(0.5, 0).to_frame("geometry")])
    notes = sdm.predict(run, both).notes
    lost = len(run.predictor.sees.covariates)
    assert [note for note in notes if f"1 places lack covariates, such as Away {lost} of" in note]


def test_places_that_a_table_of_covariates_lacks_are_told_what_they_need(home, tmp_path):
    folder, dataset, _ = home
    table = tmp_path / "soil.csv"
    pd.DataFrame({"site_id": dataset.site_ids, "sand": 0.5}).to_csv(table, index=False)
    changes = ["build.split.buffer_m=0", f"build.covariates={{table: {table}}}"]
    config = folder / "region" / "config.yaml"
    held = sdm.build(config, tmp_path / "dataset", overrides=changes)
    linear = "train.model={kind: linear, options: {covariates: true, position: false}}"
    run = sdm.train(config, tmp_path / "run", dataset=held, overrides=[*changes, linear])
    spot = dataset.sites.loc[held_out(dataset)[0]]
    place = write(tmp_path / "p.csv", "place,lon,lat", f"Meadow,{spot.lon},{spot.lat}")
    with pytest.raises(DataError, match="needs a row there too, its name as site_id"):
        sdm.predict(run, place)
    more = pd.DataFrame({"site_id": ["Meadow"], "sand": 0.5})
    pd.concat([pd.read_csv(table), more]).to_csv(table, index=False)
    assert len(sdm.predict(run, place).species) == len(dataset.species)


def test_what_was_seen_moves_its_place_and_those_unseen_are_ranked(home, tmp_path):
    _, dataset, run = home
    first, second = held_out(dataset)[:2]
    seen = dataset.species[3]
    given = write(
        tmp_path / "given.csv",
        "place,species,date,complete",
        f"{first},{seen.upper()},2020-06-01,yes",
        f"{first},{seen},2020-06-08,yes",
        f"{first},Zygaena trifolii,2020-06-08,yes",
    )
    found = sdm.predict(run, [first, second], given=given)
    here = found.species[found.species["place"] == first].set_index("species")
    assert here.loc[seen, ["seen", "visits", "unseen_rank"]].tolist() == [2, 2, 0]
    assert here.loc[seen, "probability"] > here.loc[seen, "prediction"]
    unseen = here[here["unseen_rank"] > 0].sort_values("unseen_rank")
    assert unseen["probability"].is_monotonic_decreasing
    assert found.unseen(first)["species"].tolist() == unseen.index.tolist()
    assert found.places.loc[first, "species_seen"] == 1
    assert any("Zygaena trifolii" in note for note in found.notes)


def test_records_that_lie_in_the_ground_of_a_place_are_of_that_place(home, tmp_path):
    _, dataset, run = home
    site = held_out(dataset)[0]
    row, seen = dataset.sites.loc[site], dataset.species[0]
    by_name = write(tmp_path / "a.csv", "place,species,seen", f"{site},{seen},yes")
    by_point = write(
        tmp_path / "b.csv", "species,seen,lon,lat", f"{seen},yes,{row.lon + 0.001},{row.lat}"
    )
    one, other, third = (
        sdm.predict(run, [site], given=seen).species
        for seen in (by_name, by_point, pd.read_csv(by_point))
    )
    assert one.equals(other) and one.equals(third)


def test_at_a_training_site_the_model_starts_from_what_it_said_without_it(home, tmp_path):
    _, dataset, run = home
    site = dataset.split.train[0]
    given = write(
        tmp_path / "g.csv", "place,species,visits,detections", f"{site},{dataset.species[0]},1,1"
    )
    found = sdm.predict(run, [site], given=given)
    assert any("training sites" in note for note in found.notes)
    wide = found.species.set_index("species")["probability"]
    rate = dataset.rates.loc[site]
    plain = run.predictor.predict(dataset, [site]).iloc[0]
    assert np.abs(wide[rate.index] - rate).mean() < np.abs(plain - rate).mean() + 0.05
    alone = sdm.predict(run, [site]).species.set_index("species")["probability"]
    assert (alone[plain.index] == plain).all()


def test_sensitive_species_are_told_at_no_single_place(home, tmp_path):
    _, dataset, run = home
    site, (secret, coarse, *_) = held_out(dataset)[0], dataset.species
    given = write(tmp_path / "g.csv", "place,species,seen", f"{site},{secret},yes")
    policy = [f"map.withhold=[{secret}]", f"map.coarsen_m={{{coarse}: 5000}}"]
    found = sdm.predict(run, [site], given=given, overrides=policy)
    assert not {secret, coarse} & set(found.species["species"])
    assert (found.species["probability"] == found.species["prediction"]).all()
    assert not any(secret in note for note in found.notes)


def test_a_run_without_a_community_predicts_but_takes_nothing_as_given(home, tmp_path):
    folder, dataset, _ = home
    run = sdm.train(
        folder / "region" / "config.yaml",
        tmp_path / "run",
        dataset=dataset,
        overrides=["train.model={kind: mean_rate}"],
    )
    site = held_out(dataset)[0]
    found = sdm.predict(run, [site])
    assert "low" not in found.species
    given = write(tmp_path / "g.csv", "place,species,seen", f"{site},{dataset.species[0]},yes")
    with pytest.raises(ModelError, match="butterfly-sdm community"):
        sdm.predict(run, [site], given=given)
    with pytest.raises(ModelError, match="butterfly-sdm community"):
        sdm.predict_map(run, out=tmp_path / "m.tif", given=given)
    with pytest.raises(ModelError, match="butterfly-sdm community"):
        sdm.predict_map(run, out=tmp_path / "m.tif", overrides=["map.layers=[richness_interval]"])
    assert not (tmp_path / "m.tif").exists()


def test_mistakes_are_said(home, tmp_path):
    _, dataset, run = home
    with pytest.raises(MissingFileError, match="There is no file"):
        sdm.predict(run, tmp_path / "none.csv")
    with pytest.raises(DataError, match="Nobody says where the place 'nowhere' lies"):
        sdm.predict(run, ["nowhere"])
    with pytest.raises(DataError, match="is no place in degrees"):
        sdm.predict(run, write(tmp_path / "a.csv", "place,lon,lat", "x,200,50"))
    with pytest.raises(DataError, match="is no WKT geometry"):
        sdm.predict(run, write(tmp_path / "b.csv", "place,wkt", "x,POLYGON(1 2)"))
    with pytest.raises(DataError, match="is named twice"):
        sdm.predict(run, [held_out(dataset)[0]] * 2)
    with pytest.raises(DataError, match="does not say where its places are"):
        sdm.predict(run, write(tmp_path / "c.csv", "county", "Kent"))
    given = write(tmp_path / "d.csv", "place,species", f"elsewhere,{dataset.species[0]}")
    with pytest.raises(DataError, match="No record says where it was"):
        sdm.predict(run, [held_out(dataset)[0]], given=given)
    bare = {"name": "bare", "train": {"model": {"kind": "nearest_sites"}}}
    other = sdm.train(bare, tmp_path / "bare", dataset=dataset)
    with pytest.raises(ConfigError, match="has no section build"):
        sdm.predict(other, write(tmp_path / "e.csv", "place,lon,lat", "x,-2.2,51.2"))


def test_nothing_that_is_told_depends_on_a_sensitive_species(home, monkeypatch):
    _, dataset, run = home
    secret, *shown = dataset.species
    sites = [held_out(dataset)[0], dataset.split.train[0]]
    given = pd.DataFrame(
        {"place": sites, "species": dataset.species[1], "visits": 3, "detections": 2}
    )
    policy = [f"map.withhold=[{secret}]"]
    seen = sdm.predict(run, sites, given=given, overrides=policy)
    assert (seen.places["high"] <= len(shown)).all()
    found = seen.species.groupby("place")["found"].sum()
    assert seen.places["richness"].to_numpy() == pytest.approx(found[sites].to_numpy(), abs=0.75)
    community = run.community
    counts = dataset.detections.copy()
    counts[secret] = dataset.visits  # it was seen on every visit
    other = replace(dataset, detections=counts, visit_table=None)
    known = community.known.assign(**{secret: 1.0})
    monkeypatch.setattr(sdm.Run, "community", replace(community, known=known))
    told = sdm.predict(run, sites, given=given, overrides=policy, dataset=other)
    pd.testing.assert_frame_equal(told.species, seen.species)
    pd.testing.assert_frame_equal(told.places, seen.places)
    pd.testing.assert_frame_equal(told.alike, seen.alike)
    nothing = sdm.predict(run, sites, overrides=[f"map.withhold={list(dataset.species)}"])
    assert len(nothing.species) == 0


def test_new_records_pull_the_map_around_them_and_nothing_else(home, tmp_path, caplog):
    _, dataset, run = home
    site = held_out(dataset)[0]
    row, seen = dataset.sites.loc[site], dataset.species[2]
    given = write(
        tmp_path / "g.csv",
        "lon,lat,species,visits,detections",
        f"{row.lon},{row.lat},{seen},20,20",
        f"{row.lon + 1},{row.lat},{seen},20,20",
    )
    layers = "map.layers=[richness_interval]"
    paths = [tmp_path / name for name in ("plain.tif", "moved.tif", "secret.tif")]
    sdm.predict_map(run, out=paths[0], overrides=[*FLAT, layers])
    sdm.predict_map(run, out=paths[1], given=given, overrides=[*FLAT, layers])
    policy = f"map.withhold=[{seen}]"
    sdm.predict_map(run, out=paths[2], given=given, overrides=[*FLAT, policy, "map.layers=[]"])
    assert "1 of the 2 places with new records lie outside the map" in caplog.text
    maps = [rasterio.open(path) for path in paths]
    plain, moved, secret = (source.read(masked=True).filled(np.nan) for source in maps)
    assert maps[0].descriptions[-3:] == (
        "species in 20 visits",
        "species in 20 visits, at least",
        "species in 20 visits, at most",
    )
    expected, low, high = plain[-3:]
    known = np.isfinite(expected)
    assert ((low <= np.ceil(expected)) & (np.floor(expected) <= high))[known].all()
    change = np.nan_to_num(moved[2] - plain[2])
    x, y = rasterio.warp.transform("EPSG:4326", maps[0].crs, [row.lon], [row.lat])
    rows, cols = np.indices(change.shape)
    at = maps[0].transform * (cols.ravel() + 0.5, rows.ravel() + 0.5)
    away = np.hypot(at[0] - x[0], at[1] - y[0]).reshape(change.shape)
    assert (change[away > 5_000] == 0).all()
    assert (change[(away < 1_000) & known] > 0).all()
    others = [i for i in range(8) if dataset.species[i] != seen]
    assert np.array_equal(
        secret, plain[others], equal_nan=True
    )  # a withheld species says nothing of any other
    assert sdm.check(paths[1]) == []


def test_records_at_training_sites_do_not_pull_a_map(home):
    _, dataset, run = home
    train, other = dataset.split.train[0], held_out(dataset)[0]
    rows = pd.DataFrame({"place": [train, other], "species": dataset.species[0], "seen": "yes"})
    _, at = new_records(run, run.config, rows)
    assert at.index.tolist() == [other]


def test_the_community_is_part_of_what_check_verifies(home, tmp_path):
    _, _, run = home
    assert sdm.check(run.folder) == []
    card = run.folder / "community" / "community.json"
    before = card.read_text()
    try:
        card.write_text(json.dumps(json.loads(before) | {"visits": 3}))
        assert "was changed after it was written" in sdm.check(run.folder)[0]
    finally:
        card.write_text(before)


def test_a_config_may_ask_for_a_community_and_another_run_key_does_not_follow(home, tmp_path):
    folder, dataset, run = home
    config = folder / "region" / "config.yaml"
    asked = sdm.train(
        config, tmp_path / "run", dataset=dataset, overrides=[KIND, "community.folds=3"]
    )
    assert asked.card["key"] == run.card["key"]
    assert sdm.Run.open(asked.folder).community is not None
    written = (asked.folder / "community" / "community.json").stat().st_mtime_ns
    sdm.fit_community(asked)
    assert (asked.folder / "community" / "community.json").stat().st_mtime_ns == written


def test_the_command_line_says_what_is_likely_and_not_yet_seen(home, tmp_path):
    _, dataset, run = home
    site = held_out(dataset)[0]
    places = write(tmp_path / "p.csv", "site_id", site)
    given = write(tmp_path / "g.csv", "site_id,species,seen", f"{site},{dataset.species[0]},yes")
    runner = CliRunner()
    arguments = ["predict", str(run.folder), str(places), "--given", str(given)]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "likely but not yet seen here" in result.output
    assert (tmp_path / "p_predicted.csv").is_file()
    result = runner.invoke(app, ["community", str(run.folder)])
    assert result.exit_code == 0
    assert "usual survey" in result.output
    bad = write(
        tmp_path / "bad.csv", "site_id,species,seen", f"{site},{dataset.species[0]},perhaps"
    )
    result = runner.invoke(
        app, [*arguments[:3], "--given", str(bad), "--out", str(tmp_path / "n.csv")]
    )
    assert result.exit_code == 2
    assert not (tmp_path / "n.csv").exists()
