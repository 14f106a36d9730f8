"""Every plugin keeps the contract."""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest
import torch

from butterfly_sdm.core.settings import load_settings
from butterfly_sdm.errors import PluginError
from butterfly_sdm.plugins.plugin import Report, check_plugin, get_plugin

NAMES = ("cmmd", "dfcon", "implihate", "modan", "refine")


@pytest.mark.parametrize("name", NAMES)
def test_a_built_in_plugin_trains_resumes_measures_and_predicts(name, settings, tmp_path):
    plugin = get_plugin(name)
    config, _ = load_settings(plugin.config, settings(name))

    found = check_plugin(plugin, config, tmp_path / "check")

    assert found.metrics and all(math.isfinite(value) for value in found.metrics.values())
    assert len(found.predictions) > 0


def _spoiled(**changes: Any) -> tuple[Any, Any]:
    """Return the plugin cmmd with methods replaced."""
    base = type(get_plugin("cmmd"))
    return type("Spoiled", (base,), changes)(), base


def test_a_plugin_that_draws_in_prediction_is_found(settings, tmp_path):
    def predict(self, config, run, inputs):
        return pd.DataFrame({"score": torch.rand(3).numpy()})

    plugin, _ = _spoiled(predict=predict)
    config, _ = load_settings(plugin.config, settings("cmmd"))
    with pytest.raises(PluginError, match="evaluation mode, without drawing"):
        check_plugin(plugin, config, tmp_path / "check")


def test_a_plugin_that_keeps_state_between_epochs_is_found(settings, tmp_path):
    plugin, base = _spoiled()
    calls = []

    def stages(self, config, data, model, part):
        found = base.stages(self, config, data, model, part)

        @dataclass
        class Drifting:
            inner: Any

            def __call__(self, model, batch):
                calls.append(1)
                return self.inner(model, batch) * len(calls)

        first = found[0].__class__(**{**found[0].__dict__, "loss": Drifting(found[0].loss)})
        return [first, *found[1:]]

    type(plugin).stages = stages
    config, _ = load_settings(plugin.config, settings("cmmd"))
    with pytest.raises(PluginError, match="gives other weights"):
        check_plugin(plugin, config, tmp_path / "check")


def test_a_measure_that_is_not_finite_is_found(settings, tmp_path):
    plugin, _ = _spoiled(evaluate=lambda self, config, data, run: Report({"auc": float("nan")}))
    config, _ = load_settings(plugin.config, settings("cmmd"))
    with pytest.raises(PluginError, match="auc is not a finite number"):
        check_plugin(plugin, config, tmp_path / "check")


def test_the_check_asks_for_unseen_files(settings, tmp_path):
    plugin = get_plugin("cmmd")
    value = settings("cmmd")
    del value["inputs"]
    config, _ = load_settings(plugin.config, value)
    with pytest.raises(PluginError, match="Give the settings inputs"):
        check_plugin(plugin, config, tmp_path / "check")
