"""Every plugin keeps the contract."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from butterfly_sdm.core.settings import load_settings
from butterfly_sdm.errors import PluginError
from butterfly_sdm.plugins.plugin import Report, check_plugin, get_plugin

from .example_plugin.src.example_plugin.method import Example

NAMES = ("cmmd", "dfcon", "implihate", "modan", "refine")


@pytest.mark.parametrize("name", NAMES)
def test_a_built_in_plugin_trains_resumes_measures_and_predicts(name, settings, tmp_path):
    plugin = get_plugin(name)
    config, _ = load_settings(plugin.config, settings(name))

    found = check_plugin(plugin, config, tmp_path / "check")

    assert found.metrics and all(math.isfinite(value) for value in found.metrics.values())
    assert len(found.predictions) > 0


def _spoiled(**changes: Any) -> Any:
    """Return the example of the pages with methods replaced."""
    return type("Spoiled", (Example,), changes)()


@pytest.fixture
def config(tmp_path):
    """Return settings of the example, with points to learn from and to predict."""
    points = np.random.default_rng(0).normal(size=(32, 2))
    table = pd.DataFrame(points, columns=["x", "y"]).assign(label=np.arange(32) % 2)
    table.to_csv(tmp_path / "points.csv", index=False)
    place = str(tmp_path / "points.csv")
    value = {"table": place, "inputs": place, "accelerator": "cpu"}
    return load_settings(Example.config, value)[0]


def test_the_example_of_the_pages_keeps_the_contract(config, tmp_path):
    assert check_plugin(_spoiled(), config, tmp_path / "check").metrics["accuracy"] >= 0


def test_a_plugin_that_draws_in_prediction_is_found(config, tmp_path):
    def predict(self, config, run, inputs):
        return pd.DataFrame({"score": torch.rand(3).numpy()})

    with pytest.raises(PluginError, match="evaluation mode, without drawing"):
        check_plugin(_spoiled(predict=predict), config, tmp_path / "check")


def test_a_plugin_that_keeps_state_between_epochs_is_found(config, tmp_path):
    calls = []

    def stages(self, config, data, model, part):
        found = Example.stages(self, config, data, model, part)

        @dataclass
        class Drifting:
            inner: Any

            def __call__(self, model, batch):
                calls.append(1)
                return self.inner(model, batch) * len(calls)

        first = found[0].__class__(**{**found[0].__dict__, "loss": Drifting(found[0].loss)})
        return [first, *found[1:]]

    with pytest.raises(PluginError, match="gives other weights"):
        check_plugin(_spoiled(stages=stages), config, tmp_path / "check")


def test_a_measure_that_is_not_finite_is_found(config, tmp_path):
    plugin = _spoiled(evaluate=lambda self, config, data, run: Report({"auc": float("nan")}))
    with pytest.raises(PluginError, match="auc is not a finite number"):
        check_plugin(plugin, config, tmp_path / "check")


def test_the_check_asks_for_unseen_files(config, tmp_path):
    without = config.model_copy(update={"inputs": None})
    with pytest.raises(PluginError, match="Give the settings inputs"):
        check_plugin(_spoiled(), without, tmp_path / "check")
