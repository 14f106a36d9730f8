"""The whole product in one walk: the ten lines of the README, and the same way on real input."""

import json

import numpy as np
import pandas as pd
import pytest
import rasterio
from typer.testing import CliRunner

import butterfly_sdm as bs
from butterfly_sdm.cli import SMALL_REGION as SMALL
from butterfly_sdm.cli import app


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """Walk the demo through the command line, in a smaller region than the demo's own."""
    out = tmp_path_factory.mktemp("demo")
    result = CliRunner().invoke(app, ["demo", "--small", "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    return out, json.loads(result.stdout.strip().splitlines()[-1])


def test_the_demo_leaves_every_artefact_as_it_was_written(walked):
    out, summary = walked
    for name in ("dataset", "run", "map.tif"):
        assert bs.check(out / name) == [], name
    assert (out / "run" / "scores.csv").is_file()
    assert str(out / "map.tif") in json.dumps(summary)


def test_the_network_beats_the_mean_rate_on_held_out_blocks(walked):
    out, _ = walked
    scores = pd.read_csv(out / "run" / "scores.csv", index_col=0)
    assert scores.loc["model", "mse"] < 0.95 * scores.loc["mean_rate", "mse"]


def test_the_map_has_one_named_band_per_species_and_follows_the_truth(walked):
    out, _ = walked
    dataset = bs.Dataset.open(out / "dataset")
    with (
        rasterio.open(out / "map.tif") as map_,
        rasterio.open(out / "region" / "truth.tif") as truth,
    ):
        assert map_.descriptions[: len(dataset.species)] == dataset.species
        correlations = []
        for name in dataset.species:
            predicted = map_.read(map_.descriptions.index(name) + 1, masked=True)
            band = truth.descriptions.index(name)
            rows, columns = np.nonzero(~np.ma.getmaskarray(predicted))
            assert len(rows) > 1000
            x, y = rasterio.transform.xy(map_.transform, rows, columns)
            true = np.array([value[band] for value in truth.sample(zip(x, y, strict=True))])
            correlations.append(np.corrcoef(predicted[rows, columns], true)[0, 1])
    assert np.mean(correlations) > 0.4, correlations


def test_ten_lines_of_python_do_the_same(walked):
    out, _ = walked
    region = bs.simulate_region(out / "region", **SMALL)
    dataset = bs.build(region.config, out / "dataset")
    run = bs.train(region.config, out / "run", dataset=dataset)
    scores = bs.evaluate(run, out / "scores")
    map_ = bs.predict_map(run, out=out / "map.tif")
    assert len(dataset.site_ids) > 100
    assert scores["mse"] < scores.beside.loc["mean_rate", "mse"]
    assert map_.species == dataset.species
    assert "the last is kept" in run.epochs
    for thing, word in (
        (dataset, "blocks"),
        (run, "resnet18 on image"),
        (scores, "noise floor"),
        (map_, "<iframe"),
    ):
        assert len(repr(thing)) < 400
        shown = thing._repr_html_()  # in a notebook
        assert word in shown
        assert "object at 0x" not in shown


def test_a_run_refuses_a_data_set_with_other_species(walked, tmp_path):
    out, _ = walked
    other = bs.simulate_region(
        tmp_path / "region", size_px=768, n_sites=25, n_species=5, tile_px=128
    )
    bs.build(other.config, tmp_path / "dataset")
    result = CliRunner().invoke(
        app, ["evaluate", str(out / "run"), "--dataset", str(tmp_path / "dataset")]
    )
    assert result.exit_code == 2
    assert "The run knows 8 species, the data set" in result.output
    assert "Traceback" not in result.output
