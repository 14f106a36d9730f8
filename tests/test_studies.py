"""A search ends in a config that trains; a comparison in one table of paired differences."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

import butterfly_sdm
from butterfly_sdm.cli import app
from butterfly_sdm.errors import ConfigError, ModelError
from tests.models.conftest import make_dataset

pytest.importorskip("optuna")
DATA = make_dataset(24, image=False)
EXPERIMENT = {
    "name": "trial",
    "train": {
        "model": {
            "image": False,
            "covariates": True,
            "embedding": 8,
            "head_width": 16,
            "members": 2,
        },
        "fit": {"epochs": 2, "batch_size": 8, "accelerator": "cpu"},
    },
    "search": {
        "trials": 3,
        "method": "random",
        "space": {
            "train.fit.learning_rate": {"low": 1e-4, "high": 0.1, "log": True},
            "train.fit.regulariser.weight": [0.0, 0.5],
            "train.model.head_layers": {"low": 1, "high": 2},
        },
    },
}


def test_the_best_settings_become_a_config_that_trains(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(EXPERIMENT))
    told: list[int] = []
    butterfly_sdm.search(path, dataset=DATA, overrides=["search.trials=1"])
    found = butterfly_sdm.search(
        path, dataset=DATA, progress=lambda task, done, total: told.append(done)
    )
    assert told == [1, 2, 3]  # goes on where it was
    assert found.config == tmp_path / "runs" / "trial" / "search" / "best.yaml"
    pd.testing.assert_frame_equal(pd.read_csv(found.config.with_name("trials.csv")), found.table)
    winner = butterfly_sdm.load_config(found.config)
    row = found.table.iloc[0]
    assert winner.train.fit.learning_rate == row["learning_rate"]
    assert winner.train.fit.regulariser.weight == row["regulariser.weight"]
    assert winner.train.model.head_layers == row["head_layers"]
    assert winner.train.model.members == 2  # what was not searched stays
    assert set(found.best) >= {f"train.model.head_layers={int(row['head_layers'])}"}
    assert len(butterfly_sdm.train(found.config, dataset=DATA).predictor.members) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("search.space={}", "search.space is empty"),
        (
            "search.space={build.workers: [1, 2]}",
            "search.space.build.workers: a search draws settings of train.fit and train.model",
        ),
        ("search.space={train.model.members: [1, 2]}", "a search draws settings of"),
        ("search.space={train.fit.wings: [1, 2]}", "train.fit.wings is an unknown key"),
        ("search.space={train.fit.epochs: [3, 0]}", "train.fit.epochs = 0"),
        ("search.space={train.fit.epochs: {low: 1}}", "high"),
        ("train.model.kind=mean_rate", "search draws settings of a network"),
    ],
)
def test_what_cannot_be_drawn_is_said(change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        butterfly_sdm.search(EXPERIMENT, dataset=DATA, overrides=[change])


def test_a_changed_search_wants_another_folder(tmp_path: Path) -> None:
    butterfly_sdm.search(EXPERIMENT, tmp_path, dataset=DATA, overrides=["search.trials=1"])
    with pytest.raises(
        ModelError,
        match=r"another space, other settings or other data. Choose another folder \(--out\)",
    ):
        butterfly_sdm.search(EXPERIMENT, tmp_path, dataset=DATA, overrides=["train.fit.epochs=3"])


def test_the_command_says_what_to_do_next(tmp_path: Path, monkeypatch) -> None:
    from butterfly_sdm import studies

    monkeypatch.setattr(studies, "dataset_for", lambda *_: DATA)
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(EXPERIMENT))
    result = CliRunner().invoke(app, ["search", str(path), "--trials", "2", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["trials"].startswith("2, 0 of them")
    plain = CliRunner().invoke(app, ["search", str(path), "--trials", "2"])
    assert "butterfly-sdm train" in plain.output
    assert "best.yaml" in plain.output


def test_the_published_search_is_a_search_of_the_published_setting(monkeypatch) -> None:
    monkeypatch.setenv("BUTTERFLY_SDM_SHARED", "anywhere")
    config = butterfly_sdm.load_config("configs/s2bms_published.yaml")
    assert config.search.method == "random"
    for key, choice in config.search.space.items():
        for value in (choice.low, choice.high) if not isinstance(choice, tuple) else choice:
            butterfly_sdm.load_config(
                config, [f"{key}={value:.6f}" if isinstance(value, float) else f"{key}={value}"]
            )


SLOWER = ["train.fit.learning_rate=1.0e-6"]  # stays at the mean rates


def sensible() -> dict[str, object]:
    """Return an experiment that learns where sites lie."""
    fit = {
        "epochs": 12,
        "batch_size": 16,
        "learning_rate": 0.02,
        "patience": None,
        "accelerator": "cpu",
    }
    model = EXPERIMENT["train"]["model"] | {"position": True, "members": 1}
    return {"train": {"model": model, "fit": fit}, "evaluate": {"folds": 2}}


def test_a_change_that_spoils_an_experiment_is_found_out_seed_by_seed(tmp_path: Path) -> None:
    data = make_dataset(120, image=False, seed=3)
    experiment = sensible()
    found = butterfly_sdm.compare_change(experiment, SLOWER, tmp_path, seeds=2, dataset=data)
    assert found.table.index.tolist() == ["seed 0", "seed 1", "mean of all seeds"]
    assert (found.table["low"] > 0).all()  # changed - as it is: worse, and surely so
    assert (found.table["changed"] - found.table["as_it_is"]).to_numpy() == pytest.approx(
        found.table["difference"].to_numpy()
    )
    assert found.table["sites"].tolist() == [120, 120, 120]
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    files = sorted((tmp_path / "out_of_fold").iterdir())
    assert len(files) == 2 * 2 * 2
    before = [file.stat().st_mtime_ns for file in files]
    again = butterfly_sdm.compare_change(experiment, SLOWER, tmp_path, seeds=2, dataset=data)
    assert [file.stat().st_mtime_ns for file in files] == before  # nothing is fitted twice
    pd.testing.assert_frame_equal(again.table, found.table)
    with pytest.raises(ConfigError, match="changes nothing of train"):
        butterfly_sdm.compare_change(experiment, ["evaluate.folds=3"], tmp_path, dataset=data)


@pytest.mark.slow
def test_two_processes_compare_as_one_does(tmp_path: Path) -> None:
    data = make_dataset(120, image=False, seed=3)
    one, two = (
        butterfly_sdm.compare_change(
            sensible(),
            SLOWER,
            tmp_path / str(workers),
            seeds=1,
            dataset=data,
            overrides=[f"evaluate.workers={workers}"],
        )
        for workers in (1, 2)
    )
    # Two processes share the cores: a network's last digits depend on how many threads add up.
    pd.testing.assert_frame_equal(two.table, one.table, rtol=1e-4)
