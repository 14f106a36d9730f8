"""
The soft form shapes a network in training and leaves no trace in what predicts; the log says
whether it did anything.
"""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from butterfly_sdm.config import load_config
from butterfly_sdm.core.cards import fingerprint
from butterfly_sdm.data.predictor import FitContext
from butterfly_sdm.losses.options import RegulariserOptions
from butterfly_sdm.models import fit as fitting
from butterfly_sdm.models.network_predictor import NetworkPredictor

SMALL = {
    "backbone": "test_resnet",
    "embedding": 16,
    "window_px": 32,
    "margin_px": 0,
    "batch_size": 8,
    "epochs": 4,
    "accelerator": "cpu",
    "learning_rate": 3e-3,
}
TABLE = SMALL | {"image": False, "covariates": True, "position": True}
TOLD = ["train_regulariser", "regulariser_above_collapse", "cosine_alike", "cosine_unlike"]


def test_the_projection_is_dropped_and_leaves_the_start_of_the_network_alone(
    make, tmp_path: Path, monkeypatch
) -> None:
    started = []
    monkeypatch.setattr(
        fitting.Fitting,
        "on_train_start",
        lambda self: started.append({k: v.clone() for k, v in self.net.state_dict().items()}),
    )
    dataset = make(24, tile_px=32)
    off, soft = (
        NetworkPredictor(**SMALL, regulariser=term).fit(dataset, dataset.split.train)
        for term in (None, {"form": "soft"})
    )
    for name, value in started[0].items():
        assert torch.equal(value, started[1][name])
    assert list(off.network.state_dict()) == list(soft.network.state_dict())
    sites = dataset.split.validation
    change = (off.predict(dataset, sites) - soft.predict(dataset, sites)).abs().to_numpy()
    assert change.max() > 1e-4  # it did act on the trunk
    soft.save(tmp_path)
    again = NetworkPredictor.load(tmp_path)
    assert again.fitting.regulariser == RegulariserOptions(form="soft")
    pd.testing.assert_frame_equal(again.predict(dataset, sites), soft.predict(dataset, sites))


def test_it_brings_alike_sites_together(make) -> None:
    dataset = make(60, tile_px=32)
    settings = SMALL | {"epochs": 10, "batch_size": 10, "patience": None, "learning_rate": 1e-2}
    network = NetworkPredictor(**settings, regulariser={"form": "soft", "memory": True})
    network.fit(dataset, dataset.split.train)
    first, last = network.history[TOLD].iloc[0], network.history[TOLD].iloc[-1]
    assert last["regulariser_above_collapse"] < first["regulariser_above_collapse"] - 0.2
    assert last["cosine_alike"] > last["cosine_unlike"] + 0.15


@pytest.mark.parametrize(
    "change",
    [
        {"form": "soft", "layer": "embedding", "memory": True},
        {"form": "soft", "memory": True},
        {"form": "soft", "similarity": "rates"},
        {"weight": 0.1, "layer": "projection", "bottom": 4},
        {"weight": 0.1, "similarity": "logit", "bottom": 4},
    ],
)
def test_every_form_serves_networks_with_and_without_imagery(make, change) -> None:
    dataset = make(20, tile_px=32)
    for settings in (SMALL | {"covariates": True, "modality_dropout": 0.4}, TABLE):
        network = NetworkPredictor(**settings | {"epochs": 2}, regulariser=change)
        network.fit(dataset, dataset.split.train)
        assert np.isfinite(network.history[TOLD].to_numpy()).all()
        assert (network.history["train_regulariser"] > 0).all()


def test_an_interrupted_fit_remembers_the_embeddings_of_all_sites(make, tmp_path: Path) -> None:
    dataset = make(24, tile_px=32)

    class Stop(Exception):
        pass

    def stop(task: str, done: int, total: int) -> None:
        if done == 2:
            raise Stop

    settings = SMALL | {"regulariser": {"form": "soft", "memory": True}}
    whole = NetworkPredictor(**settings).fit(dataset, dataset.split.train)
    cut = FitContext(folder=tmp_path, progress=stop)
    with pytest.raises(Stop):
        NetworkPredictor(**settings).fit(dataset, dataset.split.train, context=cut)
    again = NetworkPredictor(**settings)
    again.fit(dataset, dataset.split.train, context=FitContext(folder=tmp_path))
    pd.testing.assert_frame_equal(whole.history[TOLD], again.history[TOLD])
    sites = dataset.split.validation
    pd.testing.assert_frame_equal(whole.predict(dataset, sites), again.predict(dataset, sites))


def test_a_fit_warns_of_an_embedding_that_stays_collapsed(make, caplog) -> None:
    dataset = make(30, image=False)
    still = {"epochs": 1, "learning_rate": 1e-12}  # what has not learned tells no sites apart
    with caplog.at_level(logging.WARNING):
        NetworkPredictor(**TABLE | still, regulariser={"weight": 0.1, "bottom": 4}).fit(
            dataset, dataset.split.train
        )
    assert "stayed collapsed: after 1 epochs the term is" in caplog.text
    assert "train.fit.regulariser.weight" in caplog.text
    caplog.clear()
    moves = {"epochs": 12, "learning_rate": 1e-2}
    with caplog.at_level(logging.WARNING):
        for term in (None, {"form": "soft"}):
            NetworkPredictor(**TABLE | moves, regulariser=term).fit(dataset, dataset.split.train)
    assert "collapsed" not in caplog.text


def test_without_the_term_the_log_has_only_its_zero(make) -> None:
    dataset = make(12, image=False)
    network = NetworkPredictor(**TABLE | {"epochs": 1}).fit(dataset, dataset.split.train)
    assert NetworkPredictor(**TABLE).fitting.regulariser.weight == 0  # the default
    assert network.history["train_regulariser"].tolist() == [0.0]
    assert not set(TOLD[1:]) & set(network.history)


@pytest.mark.slow
def test_two_processes_fit_the_network_of_one_with_memory(make) -> None:
    dataset = make(24, image=False)
    settings = TABLE | {
        "regulariser": {"form": "soft", "memory": True},
        "patience": None,
        "augment": False,
        "keep": "last",
    }
    one = NetworkPredictor(**settings | {"batch_size": 8})
    two = NetworkPredictor(**settings | {"batch_size": 4, "devices": 2})
    first, second = (
        network.fit(dataset, dataset.split.train).predict(dataset, dataset.site_ids)
        for network in (one, two)
    )
    pd.testing.assert_frame_equal(first, second, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "key"),
    [("s2bms_published", "1a42dd3d50646ae5"), ("s2bms_covariates", "6de41e076cc66877")],
)
def test_runs_of_the_published_experiments_keep_their_keys(name, key, monkeypatch) -> None:
    """What is newer is left out of the key of a run, so that none is trained again."""
    monkeypatch.setenv("BUTTERFLY_SDM_SHARED", "anywhere")
    train = load_config(Path(__file__).parents[2] / "configs" / f"{name}.yaml").train
    assert fingerprint({"model": train.model.model_dump(), "fit": train.fit.model_dump()}) == key
