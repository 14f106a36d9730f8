"""Embeddings from files to a map: one line of a config, every kind of model, the same numbers."""

import json

import numpy as np
import pandas as pd
import pytest
import rasterio
import yaml

import butterfly_sdm as bs
from butterfly_sdm.baselines import make_baseline
from butterfly_sdm.config import load_config
from butterfly_sdm.errors import DataError, ModelError
from butterfly_sdm.imagery.embeddings.collection import open_embeddings
from butterfly_sdm.imagery.embeddings.options import EmbeddingReading
from butterfly_sdm.imagery.embeddings.squares import square_statistics
from butterfly_sdm.pipeline import covariate_rasters
from butterfly_sdm.simulate import simulate_region
from butterfly_sdm.simulate.embeddings import write_embeddings
from tests.imagery.embeddings.test_stac import write_item


@pytest.fixture(scope="module")
def region(tmp_path_factory):
    folder = tmp_path_factory.mktemp("region")
    made = simulate_region(folder, size_px=1024, n_sites=60, n_species=3, window_px=64, tile_px=64)
    write_embeddings(made, folder / "aef", bands=16)
    return made


@pytest.fixture(scope="module")
def settings(region):
    given = yaml.safe_load(region.config.read_text())
    given["build"] |= {
        "covariates": {
            "embeddings": {
                "path": "aef",
                "preset": "alphaearth",
                "year": 2023,
                "bands": 16,
                "side_m": [100.0, 1000.0],
            }
        }
    }
    given["build"].pop("tiles", None)
    given["train"] = {"model": {"kind": "trees", "options": {"position": False, "trees": 20}}}
    given.pop("evaluate", None)
    given["map"] = {"stride_px": 64, "layers": ["applicability"], "audit": 8, "beside": []}
    path = region.folder / "embeddings.yaml"
    path.write_text(yaml.safe_dump(given))
    return load_config(path)


@pytest.fixture(scope="module")
def dataset(settings, tmp_path_factory):
    return bs.build(settings, tmp_path_factory.mktemp("built") / "dataset")


def test_one_line_gives_mean_and_spread_of_every_band_and_the_card_tells_how(dataset, region):
    table = dataset.covariates
    assert table.shape[1] == 16 * 2 * 2
    assert list(table.columns[:2]) == ["alphaearth_e00_100m", "alphaearth_e01_100m"]
    assert "alphaearth_e15_sd_1000m" in table.columns
    assert dataset.card.embeddings == {
        "alphaearth": "1 file of 16 bands; int8, the signed square of stored / 127.5; of 2023; in "
        "EPSG:32630; 1 stored from south to north"
    }
    reading = EmbeddingReading(preset="alphaearth", bands=16)
    mean, spread = square_statistics(
        open_embeddings(region.folder / "aef", reading),
        dataset.sites["easting"],
        dataset.sites["northing"],
        dataset.card.position_crs,
        sides_m=[1000.0],
    )
    np.testing.assert_array_equal(table["alphaearth_e03_1000m"], mean[:, 0, 3])
    np.testing.assert_allclose(table["alphaearth_e03_sd_1000m"], spread[:, 0, 3], rtol=1e-5)
    names = [source.name for source in dataset.card.sources if source.role == "covariates"]
    assert names == ["aef/annual/2023/30N/simulated-0000000000-0000000000.tiff"]


def test_the_numbers_on_a_map_are_those_at_sites(dataset, settings):
    from butterfly_sdm.mapping.surfaces.covariates import covariates_at

    names = [str(name) for name in dataset.covariates.columns][::7]
    rasters = covariate_rasters(settings, names)
    assert list(rasters) == names
    sites = dataset.sites.iloc[:20]
    found = covariates_at(
        rasters,
        sites["easting"].to_numpy(),
        sites["northing"].to_numpy(),
        dataset.card.position_crs,
    )
    np.testing.assert_allclose(found, dataset.covariates[names].iloc[:20], rtol=1e-5)


def test_a_map_reads_a_collection_as_it_reads_the_files(dataset, settings, region, tmp_path):
    from butterfly_sdm.mapping.surfaces.covariates import covariates_at

    (file,) = (region.folder / "aef").rglob("*.tiff")
    write_item(tmp_path, "one", 2023, {"data": {"href": str(file)}})
    root = {"stac_version": "1.0.0", "type": "Collection", "id": "aef"}
    links = [{"rel": "item", "href": "one.json"}]
    (tmp_path / "collection.json").write_text(json.dumps(root | {"links": links}))
    names = ["alphaearth_e00_100m", "alphaearth_e01_sd_1000m"]
    elsewhere = settings.map.model_copy(
        update={"covariates": {"alphaearth": tmp_path / "collection.json"}}
    )
    rasters = covariate_rasters(settings.model_copy(update={"map": elsewhere}), names)
    assert {raster.path for raster in rasters.values()} == {tmp_path / "collection.json"}
    at = dataset.sites[["easting", "northing"]].to_numpy().T
    found = covariates_at(rasters, *at, dataset.card.position_crs)
    np.testing.assert_allclose(found, dataset.covariates[names], rtol=1e-5)


def test_the_files_of_a_map_are_described_once(dataset, settings, region, monkeypatch):
    from butterfly_sdm.imagery.scene import open_scene
    from butterfly_sdm.mapping.surfaces import covariates
    from butterfly_sdm.mapping.surfaces.lattice import Lattice

    seen, describe = [], covariates.open_stated
    monkeypatch.setattr(
        covariates, "open_stated", lambda options: seen.append(options) or describe(options)
    )
    names = ["alphaearth_e00_100m", "alphaearth_e01_sd_1000m"]
    rasters, scene = covariate_rasters(settings, names), open_scene(region.scenes[0])
    lattice = Lattice.of(scene, stride_px=64, window_px=64)
    field = covariates.CovariateField(rasters, lattice, scene.crs, dataset.card.position_crs)
    field.at(*np.indices((lattice.height, lattice.width)).reshape(2, -1))
    assert len(field.kept.tables) > 1  # blocks
    assert len(seen) == 1


def test_a_map_of_embeddings_is_what_the_model_says_of_its_positions(
    dataset, settings, region, tmp_path
):
    run = bs.train(settings, tmp_path / "run", dataset=dataset)
    path = bs.predict_map(run, [region.scenes[0]], tmp_path / "map.tif").path
    with rasterio.open(path) as source:
        values, crs = source.read(1), source.crs
        rows, cols = np.nonzero(np.isfinite(values))
        pick = np.random.default_rng(0).choice(len(rows), 5, replace=False)
        x, y = source.xy(rows[pick], cols[pick])
    import geopandas as gpd

    places = gpd.GeoDataFrame(
        index=[f"p{number}" for number in range(5)],
        geometry=gpd.points_from_xy(x, y),
        crs=crs,
    )
    told = bs.predict(run, places)
    species = run.predictor.species[0]
    column = told.species[told.species["species"] == species].set_index("place")["prediction"]
    np.testing.assert_allclose(column.loc[places.index], values[rows, cols][pick], atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("trees", {"only": "alphaearth", "trees": 10}),
        ("linear", {"only": "alphaearth_e0*", "position": False}),
        ("linear", {"embedding": "alphaearth", "components": 5}),
        ("boosting", {"only": "alphaearth", "embedding": "alphaearth", "components": 4}),
        ("gaussian_process", {"embedding": "alphaearth", "components": 5}),
        ("gaussian_process", {"groups": "alphaearth", "only": "alphaearth"}),
        ("perceptron", {"embedding": "alphaearth", "components": 5, "networks": 1, "epochs": 2}),
    ],
)
def test_table_models_take_embeddings_as_a_group(dataset, kind, options, tmp_path):
    train, held = list(dataset.split.train), list(dataset.split.validation)
    model = make_baseline(kind, **options).fit(dataset, train)
    found = model.predict(dataset, held)
    model.save(tmp_path)
    again = type(model).load(tmp_path).predict(dataset, held)
    pd.testing.assert_frame_equal(found, again)
    assert all(name.startswith("alphaearth_") for name in model.sees.covariates)


def test_components_are_those_of_the_training_sites(dataset):
    train, held = list(dataset.split.train), list(dataset.split.validation)
    options = {"position": False, "embedding": "alphaearth", "components": 6, "quadratic": False}
    model = make_baseline("linear", **options).fit(dataset, train)
    values = dataset.covariates.to_numpy(float)[dataset.rows(train)]
    np.testing.assert_allclose(model.state["component_centre"], values.mean(axis=0))
    axes = model.state["component_axes"]
    scores = (values - values.mean(axis=0)) @ axes
    _, lengths, _ = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(
        scores.std(axis=0), lengths[:6] / lengths[0], rtol=1e-8
    )  # the first has unit spread, the others what they have beside it
    correlation = np.corrcoef(scores.T)
    np.testing.assert_allclose(correlation, np.eye(6), atol=1e-8)
    assert model.predict(dataset, held).shape == (len(held), 3)


def test_a_group_that_is_not_there_is_told(dataset):
    train = list(dataset.split.train)
    with pytest.raises(DataError, match="no covariate is called 'tessera'"):
        make_baseline("trees", only="tessera").fit(dataset, train)
    with pytest.raises(ModelError, match="or neither"):
        make_baseline("linear", components=3)


def test_a_ladder_blends_its_steps_and_compares_every_two(dataset, tmp_path):
    from butterfly_sdm.evaluation.bootstrap import grid_blocks
    from butterfly_sdm.evaluation.compare import compare
    from butterfly_sdm.evaluation.ladder import run_ladder
    from butterfly_sdm.evaluation.options import EvaluateOptions

    options = EvaluateOptions.model_validate(
        {
            "ladder": [
                {"kind": "linear", "name": "near", "options": {"only": "*_100m"}},
                {"kind": "linear", "name": "wide", "options": {"only": "*_1000m"}},
                {"kind": "blend", "name": "both", "of": ["near", "wide"]},
            ],
            "bootstrap": 100,
            "folds": 2,
            "fold_distance_m": 500.0,
        },
        strict=False,
    )
    ladder = run_ladder(dataset, options, folder=tmp_path)
    assert set(ladder.table.index) == {"mean_rate", "near", "wide", "both"}
    tables = {
        name: pd.read_parquet(tmp_path / f"predictions_{name}.parquet")
        for name in ("near", "wide", "both")
    }
    pd.testing.assert_frame_equal(tables["both"], (tables["near"] + tables["wide"]) / 2)
    folds = {name: ladder.cross_validations[name].predictions for name in tables}
    pd.testing.assert_frame_equal(folds["both"], (folds["near"] + folds["wide"]) / 2)
    pairs = pd.read_csv(tmp_path / "ladder_pairs.csv")
    assert list(zip(pairs["first"], pairs["second"], strict=True)) == [
        ("near", "wide"),
        ("near", "both"),
        ("wide", "both"),
    ]
    again = compare(
        dataset,
        list(folds["near"].index),
        folds["near"],
        folds["both"],
        blocks=grid_blocks(dataset.sites, side_m=options.block_m),
        repeats=100,
        seed=0,
    ).difference
    row = pairs.iloc[1]
    np.testing.assert_allclose(
        [row["difference"], row["low"], row["high"]], [again.estimate, again.low, again.high]
    )


def test_a_blend_of_a_step_that_is_not_there_is_refused(dataset):
    from butterfly_sdm.evaluation.ladder import ladder_factories
    from butterfly_sdm.evaluation.options import LadderStep

    with pytest.raises(DataError, match="no step before it"):
        ladder_factories([LadderStep(kind="blend", name="both", of=("near", "wide"))])
    with pytest.raises(ValueError, match="names the steps"):
        LadderStep(kind="blend")
    with pytest.raises(ValueError, match="of the kind network"):
        LadderStep.model_validate({"kind": "trees", "network": {"backbone": "resnet18"}})
