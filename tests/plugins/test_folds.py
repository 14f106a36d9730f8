"""Folds tell how far they are; an evaluation that was killed goes on with the fold it was in."""

import pandas as pd
import pytest

from butterfly_sdm.core.settings import load_settings
from butterfly_sdm.errors import DataError
from butterfly_sdm.plugins.implihate import method as video_method
from butterfly_sdm.plugins.implihate.method import Implihate
from butterfly_sdm.plugins.modan import method as medical_method
from butterfly_sdm.plugins.modan.method import Modan
from butterfly_sdm.plugins.runner import evaluate, train

from .conftest import settings_of

CASES = {"implihate": (Implihate, video_method, 5), "modan": (Modan, medical_method, 6)}


def _trained(name, folder):
    plugin = CASES[name][0]()
    settings = settings_of(name, folder / "data")
    if name == "modan":
        settings |= {"folds": 3, "repeats": 2, "tune_epochs": 1, "epochs": 1}
    else:
        settings |= {"folds": 5, "contrastive": "none", "classifier_epochs": 1}
    return train(plugin, name, load_settings(plugin.config, settings)[0], folder / "run")


@pytest.fixture(scope="module")
def video_run(tmp_path_factory):
    return _trained("implihate", tmp_path_factory.mktemp("videos"))


@pytest.mark.parametrize("name", ["implihate", "modan"])
def test_an_evaluation_killed_in_a_fold_goes_on_with_that_fold(
    name, video_run, tmp_path, monkeypatch
):
    run = video_run if name == "implihate" else _trained(name, tmp_path)
    _, module, count = CASES[name]
    whole = evaluate(run)
    trained, told = [], []
    stages = module.train_stages

    def counted(model, *args, part, **kwargs):
        if len(set(trained)) == 4 and part not in trained:
            raise KeyboardInterrupt
        trained.append(part)
        return stages(model, *args, part=part, **kwargs)

    monkeypatch.setattr(module, "train_stages", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, progress=lambda *step: told.append(step))
    assert told == [("folds", number, count) for number in range(1, 5)]
    again = []
    monkeypatch.setattr(
        module,
        "train_stages",
        lambda *a, part, **k: again.append(part) or stages(*a, part=part, **k),
    )
    resumed = evaluate(run)
    assert len(set(again)) == count - 4 and not set(again) & set(trained)
    assert resumed.metrics == whole.metrics
    for table in whole.tables:
        pd.testing.assert_frame_equal(resumed.tables[table], whole.tables[table])
    assert not (run.folder / "evaluation.partial").exists()


def test_folds_of_other_settings_are_not_taken_over(video_run, monkeypatch):
    run = video_run
    monkeypatch.setattr(video_method, "classification_scores", _fail)
    with pytest.raises(DataError):
        evaluate(run)
    pieces = run.folder / "evaluation.partial"
    pieces.mkdir(exist_ok=True)
    (pieces / "folds_00000.json").write_text('{"macro_f1": 9, "auc": 9}')
    (pieces / ".key").write_text("of other settings")
    monkeypatch.undo()
    assert evaluate(run).tables["folds"]["macro_f1"].max() <= 1


def _fail(*args):
    raise DataError("The labels are unknown.")
