"""
The kind of model that predicts British butterflies best, taken by the ordinary verbs from rasters
to a map.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from scipy.ndimage import uniform_filter

import butterfly_sdm as bs
from butterfly_sdm.config import load_config
from butterfly_sdm.data.predictor import Sees
from butterfly_sdm.errors import DataError
from butterfly_sdm.mapping.surfaces.covariates import covariates_at
from butterfly_sdm.pipeline import _covariate_rasters

BLEND = {"members": "gaussian_process,perceptron", "weights": "0.7,0.3"}
QUICK = {"gaussian_process.steps": 15, "perceptron.networks": 2, "perceptron.epochs": 20}


@pytest.fixture(scope="module")
def region(tmp_path_factory):
    return bs.simulate_region(
        tmp_path_factory.mktemp("region"),
        seed=4,
        size_px=1024,
        n_sites=45,
        n_species=5,
        window_px=128,
        tile_px=128,
    )


@pytest.fixture(scope="module")
def config(region):
    """
    Shares of habitats in the window a species answers to are covariates, one raster each; no tile
    is cut.
    """
    with rasterio.open(region.habitats) as source:
        habitats, profile = source.read(1), source.profile | {"dtype": "float32", "nodata": -1.0}
    paths = {}
    for number, name in enumerate(("woodland", "grassland", "arable")):
        paths[name] = str(region.folder / f"{name}.tif")
        with rasterio.open(paths[name], "w", **profile) as target:
            target.write(
                uniform_filter((habitats == number).astype(np.float32), 129, mode="nearest"), 1
            )
    return {
        "name": "blend",
        "build": {
            "records": {
                "path": str(region.records),
                "sites": str(region.sites),
                "institutions": ["SIMULATED"],
                "years": [2018, 2019],
                "min_records": 0,
                "min_visits": 3,
            },
            "covariates": {
                "rasters": [
                    {"path": path, "name": name, "side_m": [30.0]} for name, path in paths.items()
                ]
            },
            "split": {"method": "blocks", "distance_m": 2000},
        },
        "train": {"model": {"kind": "stacking", "options": BLEND | QUICK}},
        "map": {"scenes": {"paths": [str(path) for path in region.scenes]}},
    }


def test_its_map_comes_nearer_to_the_truth_than_the_mean_rate_everywhere(region, config, tmp_path):
    dataset = bs.build(config, tmp_path / "dataset")
    run = bs.train(config, tmp_path / "run", dataset=dataset)
    made = bs.predict_map(run, out=tmp_path / "map.tif")
    with rasterio.open(made.path) as source, rasterio.open(region.truth_map) as true:
        values, truth = source.read(masked=True), true.read()
        rows, cols = np.nonzero(~values.mask[0])
        x, y = source.transform * (cols + 0.5, rows + 0.5)
        there = np.array(rasterio.transform.rowcol(true.transform, x, y)).clip(
            0, truth.shape[1] - 1
        )
        truth = truth[[true.descriptions.index(name) for name in source.descriptions]][:, *there]
        mean = (
            dataset.rates.loc[list(dataset.split.train), list(source.descriptions)]
            .mean()
            .to_numpy()[:, None]
        )
    assert len(rows) == made.counts["predicted"] > 900
    error = ((values[:, rows, cols] - truth) ** 2).mean()
    assert error < 0.5 * ((mean - truth) ** 2).mean()


def test_a_map_without_the_rasters_of_its_covariates_is_refused(config, tmp_path):
    run = bs.train(config, tmp_path / "run", dataset=bs.build(config, tmp_path / "dataset"))
    with pytest.raises(DataError, match="no raster is given for 'woodland_30m'"):
        bs.predict_map(
            run,
            out=tmp_path / "map.tif",
            overrides=["map.covariates={}", "build.covariates.rasters=[]"],
        )


def test_covariates_of_a_map_are_those_of_the_data_set_at_the_middles_of_sites(
    region, config, tmp_path
):
    built = [
        {"path": str(region.folder / "woodland.tif"), "name": "woodland", "side_m": [30.0, 1000.0]},
        {"path": str(region.habitats), "name": "habitat", "kind": "fractions", "side_m": [500.0]},
        {
            "path": str(region.habitats),
            "name": "land",
            "kind": "fractions",
            "side_m": [500.0],
            "classes": {0: "wood"},
        },
    ]
    settings = config | {"build": config["build"] | {"covariates": {"rasters": built}}, "map": {}}
    dataset = bs.build(settings, tmp_path / "dataset")
    predictor = SimpleNamespace(sees=Sees.of(dataset, covariates=True))
    rasters = _covariate_rasters(load_config(settings), predictor)
    assert (
        dataset.covariates["woodland_30m"].sub(dataset.covariates["woodland_1000m"]).abs().max()
        > 0.01
    )
    easting, northing = dataset.sites["easting"].to_numpy(), dataset.sites["northing"].to_numpy()
    found = covariates_at(rasters, easting, northing, dataset.card.position_crs)
    found = found[list(dataset.covariates.columns)]
    np.testing.assert_allclose(found, dataset.covariates, atol=1e-6)
