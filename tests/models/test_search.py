"""A search keeps the best trial, repeats itself and continues where it was interrupted."""

from pathlib import Path

import pandas as pd
import pytest

from butterfly_sdm.data.predictor import FitContext
from butterfly_sdm.errors import ModelError
from butterfly_sdm.models.options import SearchOptions
from butterfly_sdm.models.search import search

pytest.importorskip("optuna")
SETTINGS = {
    "image": False,
    "covariates": True,
    "embedding": 8,
    "epochs": 2,
    "batch_size": 8,
    "accelerator": "cpu",
}
SPACE = {
    "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
    "regulariser.weight": (0.0, 0.5),
    "head_layers": (1, 2),
}


@pytest.fixture(scope="module")
def data():
    from tests.models.conftest import make_dataset

    return make_dataset(24, image=False)


def run(data, *, space=SPACE, trials=3, method="tpe", workers=1, **change):
    options = SearchOptions(space=space, trials=trials, method=method, workers=workers)
    context = FitContext(**{"validation": data.split.validation} | change)
    return search(data, data.split.train, options, context=context, settings=SETTINGS)


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_an_interrupted_search_continues_to_the_same_trials(data, tmp_path: Path, method) -> None:
    whole = run(data, method=method)
    assert len(whole.trials) == 3
    assert whole.score == whole.trials["score"].min()
    assert whole.best["regulariser"]["weight"] == whole.trials["regulariser.weight"].iloc[0]
    run(data, method=method, trials=2, folder=tmp_path)
    told: list[int] = []
    again = run(
        data, method=method, folder=tmp_path, progress=lambda task, done, total: told.append(done)
    )
    assert told == [2, 3]
    pd.testing.assert_frame_equal(again.trials, whole.trials)
    assert (tmp_path / "trials.csv").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random", "tpe"])
def test_two_processes_make_the_same_trials(data, method) -> None:
    here, there = (run(data, method=method, trials=4, workers=workers) for workers in (1, 2))
    pd.testing.assert_frame_equal(here.trials, there.trials, check_exact=True)


def test_another_search_in_the_same_folder_is_refused(data, tmp_path: Path) -> None:
    run(data, trials=1, folder=tmp_path)
    with pytest.raises(ModelError, match="holds a search with another space"):
        run(data, trials=2, folder=tmp_path, space=SPACE | {"dropout": (0.0, 0.5)})


def test_what_does_not_fit_is_said(data) -> None:
    with pytest.raises(ModelError, match="'wings', which is no setting"):
        run(data, space={"wings": (1, 2)})
    with pytest.raises(ModelError, match=r"'regulariser.wings', which is no setting"):
        run(data, space={"regulariser.wings": (1, 2)})
    with pytest.raises(ValueError, match=r"space\.dropout"):
        run(data, space={"dropout": ()})
    with pytest.raises(ModelError, match="validation sites: they judge"):
        run(data, validation=())
    with pytest.raises(ModelError, match="None of the 1 trials could be fitted"):
        run(data, space={"learning_rate": (float("nan"),)}, trials=1)
