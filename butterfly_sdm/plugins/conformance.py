"""
The check any plugin can run on itself: does it train, resume, measure and predict as the contract
says.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import load_file

from butterfly_sdm.core.settings import load_settings
from butterfly_sdm.errors import ButterflySDMError, PluginError
from butterfly_sdm.plugins import runner
from butterfly_sdm.plugins.contract import Plugin, PluginRun
from butterfly_sdm.plugins.options import PluginConfig
from butterfly_sdm.plugins.stages import Limits

LIMITS = Limits(epochs=2, steps=2)


@dataclass(frozen=True)
class Conformance:
    """
    What the check found: the metrics of two steps of training (of no other value), and the
    predictions.
    """

    metrics: dict[str, float]
    predictions: pd.DataFrame


def check(plugin: Plugin[Any, Any], config: PluginConfig, folder: Path) -> Conformance:
    """
    Train two epochs of two steps twice, once interrupted and continued; compare; measure; predict.

    Parameters
    ----------
    plugin
        To be checked.
    config
        Settings with small data, and ``inputs`` naming unseen files.
    folder
        For the runs; existing or not.

    Raises
    ------
    PluginError
        Names the first rule the plugin does not keep.
    """
    if not isinstance(config, plugin.config):
        asked, given = plugin.config.__name__, type(config).__name__
        raise PluginError(f"The settings are a {given}; this plugin says {asked}.")
    if config.inputs is None:
        raise PluginError("Give the settings inputs with unseen files, to check predicting, too.")
    again, _ = load_settings(plugin.config, config.model_dump(mode="json"))
    if again != config:
        raise PluginError("Settings do not survive being written and read: use JSON-like types.")

    train = partial(runner.train, plugin, "checked", config, limits=LIMITS)
    with _step("train"):
        whole = train(folder / "whole")
    with contextlib.suppress(KeyboardInterrupt):
        train(folder / "resumed", progress=_interrupt)
    with _step("resume"):
        resumed = train(folder / "resumed")
    for part in plugin.parts(config):
        first, second = (load_file(run.folder / f"{part}.safetensors") for run in (whole, resumed))
        different = [name for name in first if not first[name].equal(second[name])]
        if different:
            raise PluginError(
                f"Interrupted and continued training of {part!r} gives other weights "
                f"({different[0]}). Draw all randomness in Stage.batches from its generator and in "
                "Stage.loss from torch, and keep no state between epochs."
            )
    with _step("evaluate"):
        report = runner.evaluate(whole)
    if not report.metrics:
        raise PluginError("Evaluation must give metrics; it gave none.")
    opened = PluginRun.open(plugin, "checked", folder / "resumed")
    with _step("predict"):
        tables = [plugin.predict(run.config, run, config.inputs) for run in (whole, opened, opened)]
    if tables[0].empty:
        raise PluginError(f"Prediction gave no row for {config.inputs}.")
    if not all(tables[0].equals(table) for table in tables[1:]):
        raise PluginError(
            "The same weights and files gave other predictions. Predict in evaluation mode, "
            "without drawing."
        )
    return Conformance(report.metrics, tables[0])


def _interrupt(task: str, done: int, total: int) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _step(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, ButterflySDMError) else f"{type(error).__name__}: "
        raise PluginError(f"The plugin fails in {name}: {kind}{error}") from error
