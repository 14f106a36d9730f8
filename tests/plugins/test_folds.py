"""
Folds keep a person on one side and tell how far they are; an evaluation that was killed goes on
with the fold it was in.
"""

import numpy as np
import pandas as pd
import pytest

from butterfly_sdm.core.settings import load_settings
from butterfly_sdm.errors import DataError
from butterfly_sdm.plugins.implihate import method as video_method
from butterfly_sdm.plugins.implihate.method import Implihate
from butterfly_sdm.plugins.modan import method as medical_method
from butterfly_sdm.plugins.modan.method import Modan
from butterfly_sdm.plugins.networks import TrunkAndHead
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


def _videos_of_people(folder, people, **changes):
    """Give every video of ``made.videos`` the person of its number, and read them."""
    settings = settings_of("implihate", folder) | {"folds": 4} | changes
    table = pd.read_csv(settings["labels"])
    table.assign(group=people(np.arange(len(table)))).to_csv(settings["labels"], index=False)
    config, _ = load_settings(Implihate.config, settings)
    return config, Implihate().load(config)


def test_the_videos_of_a_person_are_on_one_side_of_a_fold(tmp_path):
    config, data = _videos_of_people(tmp_path, lambda number: [f"p{n % 12}" for n in number])
    folds = video_method._divisions(config, data)
    for inside, outside in folds:
        assert not set(data.group[inside]) & set(data.group[outside])
        assert set(data.label[outside]) == {0, 1, 2} and len(outside) == 12
    assert sorted(np.concatenate([outside for _, outside in folds])) == list(range(48))


def test_a_video_without_a_person_is_its_own_group(tmp_path):
    names = np.array([f"p{n % 12}" if n < 24 else None for n in range(48)], dtype=object)
    _, data = _videos_of_people(tmp_path, lambda number: names)
    assert len(set(data.group)) == 12 + 24
    split = pd.Series(data.split).groupby(data.group).nunique()
    assert (split == 1).all() and set(data.split[24:]) == {"train", "validation", "test"}


def test_a_class_of_fewer_people_than_folds_is_told_before_training(tmp_path):
    with pytest.raises(DataError, match="'explicit' has 3 groups; 4 folds"):
        _videos_of_people(tmp_path, lambda number: [f"p{n % 9}" if n % 3 else "x" for n in number])


def test_images_are_embedded_once_for_the_probes_of_all_folds(tmp_path, monkeypatch):
    run = _trained("modan", tmp_path)
    seen, given = [], []

    def counted(network, images, rows):
        seen.append(len(rows))
        return features_of(network, images, rows)

    features_of, probe = TrunkAndHead.features_of, medical_method._probe
    monkeypatch.setattr(TrunkAndHead, "features_of", counted)
    monkeypatch.setattr(
        medical_method, "_probe", lambda *a: given.append((*a, probe(*a))) or given[-1][-1]
    )
    evaluate(run)
    monkeypatch.undo()
    data = Modan().load(run.config)
    divisions = list(medical_method._divisions(run.config, data.task))
    held_out = len(data.images.rows) - len(data.listed("train"))
    assert seen == [held_out, len(data.task.images.rows)] and len(given) == len(divisions) == 6
    for (_, _, train_rows, test_rows), (*_, found) in zip(divisions, given, strict=True):
        alone = medical_method.linear_probe(
            data.task, train_rows, test_rows, run.model().encoder.eval()
        )
        np.testing.assert_allclose(found, alone, atol=1e-5)


def _fail(*args):
    raise DataError("The labels are unknown.")
