"""
Artefacts of every release are read by today's code with the same predictions; those of other
formats are refused.
"""

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio

from butterfly_sdm import pipeline
from butterfly_sdm.core.files import read_json, write_json
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.splits import Split
from butterfly_sdm.errors import ArtefactError
from butterfly_sdm.mapping.map_file import read_tags
from butterfly_sdm.predictors import load_predictor
from butterfly_sdm.run import Run

KEPT = sorted((Path(__file__).parent / "artefacts").glob("*.zip"))


@pytest.fixture(params=KEPT, ids=lambda path: path.stem)
def released(request, tmp_path) -> Path:
    """Return a folder with the artefacts of a release."""
    with zipfile.ZipFile(request.param) as archive:
        archive.extractall(tmp_path)
    return tmp_path


def test_every_release_left_its_artefacts():
    changelog = Path(__file__).parents[2].joinpath("CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", changelog, re.MULTILINE)
    assert [path.stem for path in KEPT] == sorted(released)


@pytest.mark.parametrize("name", ["dataset", "run", "mean", "map.tif"])
def test_they_are_still_whole(released, name):
    assert pipeline.check(released / name) == []


@pytest.mark.parametrize("name", ["run", "mean"])
def test_a_run_predicts_what_it_predicted(released, name):
    expected = pd.DataFrame(read_json(released / "predictions.json")[name])
    run = Run.open(released / name)
    told = run.predictor.predict(run.dataset, list(expected.index))
    assert list(told.columns) == list(expected.columns)
    np.testing.assert_allclose(told.to_numpy(), expected.to_numpy(), atol=1e-6)
    assert run.config.train.fit.epochs == 1
    assert len(run.split.train) > 0


def test_a_run_is_evaluated_and_mapped_by_todays_code(released, tmp_path):
    scores = pipeline.evaluate(released / "run", tmp_path / "scores")
    assert np.isfinite(scores.beside["mse"]).all()
    with rasterio.open(released / "map.tif") as source:
        assert source.count == 3
        assert float(np.nanmax(source.read(masked=True).filled(np.nan))) <= 1
    assert read_tags(released / "map.tif")["stride_px"] == 32


READ = {"dataset/dataset.json": 2}  # the others: 1
FILES = {
    "dataset/dataset.json": lambda folder: Dataset.open(folder / "dataset"),
    "dataset/split.json": lambda folder: Split.from_json(folder / "dataset/split.json"),
    "run/run.json": lambda folder: Run.open(folder / "run"),
    "run/model.json": lambda folder: load_predictor(folder / "run"),
    "mean/model.json": lambda folder: load_predictor(folder / "mean"),
}


@pytest.mark.parametrize("name", list(FILES))
@pytest.mark.parametrize(
    ("version", "way"),
    [
        (
            99,
            r"has format version 99; this release reads {}\. A newer release made it: update "
            r"butterfly-sdm \(git pull, or",
        ),
        (
            0,
            r"has format version 0; this release reads {}\. Make it again: butterfly-sdm "
            r"(build|train) CONFIG",
        ),
        ("1", "has format version '1'"),
        (None, "has format version None"),
    ],
)
def test_another_format_is_refused_with_the_way_out(released, name, version, way):
    value = json.loads((released / name).read_text())
    write_json(released / name, value | {"format_version": version})
    with pytest.raises(ArtefactError, match=way.format(READ.get(name, 1))):
        FILES[name](released)
