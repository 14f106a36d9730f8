"""A run of a plugin: the folder it trains into, measures in and predicts from."""

from __future__ import annotations

import importlib.metadata
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from butterfly_sdm.core.cards import fingerprint
from butterfly_sdm.core.files import atomic_path, read_json, write_json, write_text
from butterfly_sdm.core.settings import load_settings
from butterfly_sdm.core.work import resumable_folder
from butterfly_sdm.errors import (
    ArtefactError,
    ConfigError,
    DataError,
    MissingFileError,
    PluginError,
)
from butterfly_sdm.plugins.plugin import Plugin, Report, Verb
from butterfly_sdm.plugins.settings import PluginConfig
from butterfly_sdm.plugins.stages import Limits, device_of_config, seed_of, train_stages
from butterfly_sdm.progress import Progress, silent

FORMAT_VERSION = 1


@dataclass(frozen=True)
class PluginRun:
    """
    A finished run folder.

    Attributes
    ----------
    plugin
        The plugin that made it.
    folder
        ``model.json``, ``config.yaml``, ``history.csv`` and one ``PART.safetensors`` per network.
    config
        The settings it was trained with.
    facts
        What the plugin noted about its training data.
    """

    plugin: Plugin[Any, Any]
    folder: Path
    config: PluginConfig
    facts: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """Where the networks of :meth:`model` lie."""
        return device_of_config(self.config)

    def model(self, part: str = "model") -> Any:
        """
        Read one trained network, in evaluation mode.

        Raises
        ------
        MissingFileError, ArtefactError
            Its weights are absent, damaged or of another architecture.
        """
        path = self.folder / f"{part}.safetensors"
        if not path.is_file():
            raise MissingFileError(f"The run {self.folder} lacks {path.name}. Train it again.")
        module = build(self.plugin, self.config, self.facts, part)
        try:
            module.load_state_dict(load_file(path))
        except (SafetensorError, RuntimeError, OSError) as error:
            raise ArtefactError(
                f"{path} is damaged or of another architecture ({error}). Train it again."
            ) from error
        return module.eval().to(self.device)

    @classmethod
    def open(
        cls, plugin: Plugin[Any, Any], name: str, folder: Path, config: PluginConfig | None = None
    ) -> PluginRun:
        """
        Open a run folder.

        Parameters
        ----------
        config
            Used instead of the settings in the folder, such as to evaluate on other files.

        Raises
        ------
        MissingFileError, ArtefactError
            There is no finished run, or one of another plugin.
        """
        if not (folder / "model.json").is_file():
            partial = folder.with_name(folder.name + ".partial")
            hint = (
                " It was begun but not finished; the same command continues it."
                if partial.is_dir()
                else ""
            )
            raise MissingFileError(
                f"There is no trained run at {folder}.{hint} Train with: butterfly-sdm plugin "
                f"{name} train"
            )
        card = read_json(folder / "model.json")
        if not isinstance(card, dict) or card.get("format") != "butterfly_sdm plugin run":
            raise ArtefactError(
                f"{folder} is not the run of a plugin: its model.json does not say so."
            )
        if card.get("plugin") != name or card.get("format_version") != FORMAT_VERSION:
            raise ArtefactError(
                f"{folder} was trained by the plugin {card.get('plugin')!r} (format "
                f"{card.get('format_version')}), "
                f"not by {name!r} (format {FORMAT_VERSION}). Choose another --out."
            )
        settings = config or load_settings(plugin.config, card["settings"])[0]
        return cls(plugin, folder, settings, card["facts"])


def run(
    plugin: Plugin[Any, Any],
    name: str,
    verb: Verb,
    config_path: str | Path,
    out: str | Path | None,
    overrides: Iterable[str],
    progress: Progress,
) -> Path:
    """
    Do what :func:`butterfly_sdm.plugins.plugin.run_plugin` promises, with an imported plugin.

    Raises
    ------
    ConfigError, MissingFileError, PluginError
        The settings are wrong, what is to be predicted is not there, or the verb is none.
    """
    if verb not in ("train", "evaluate", "predict"):
        raise PluginError(f"A plugin can train, evaluate and predict; {verb!r} is none of them.")
    config, base = load_settings(plugin.config, config_path, overrides, example="--set seed=1")
    folder = Path(out) if out is not None else Path(base or ".", "runs", config.name)
    if verb == "train":
        train(plugin, name, config, folder, progress=progress)
        return folder
    if verb == "evaluate":
        evaluate(PluginRun.open(plugin, name, folder, config))
        return folder
    if config.inputs is None:
        raise ConfigError("predict reads the files that the key inputs names: --set inputs=PATH")
    if not config.inputs.exists():
        raise MissingFileError(f"There is nothing to predict at {config.inputs}.")
    return predict(PluginRun.open(plugin, name, folder, config), config.inputs)


def train(
    plugin: Plugin[Any, Any],
    name: str,
    config: PluginConfig,
    folder: Path,
    *,
    progress: Progress = silent,
    limits: Limits | None = None,
) -> PluginRun:
    """
    Train all parts of a plugin into ``folder``; interrupted training continues after the last
    finished epoch.

    Parameters
    ----------
    plugin, name
        The plugin, and the name it is installed under.
    config
        Its settings. Changed settings start anew.
    folder
        Where the finished run shall lie.
    progress
        Told the epochs done per stage.
    limits
        Fewer epochs and steps, for a trial.

    Returns
    -------
    PluginRun
        The finished run.
    """
    data = plugin.load(config)
    facts = _jsonlike(data.facts)
    settings = config.model_dump(mode="json")
    key = fingerprint({"plugin": name, "settings": settings, "facts": facts, "limits": str(limits)})
    with resumable_folder(folder, key) as partial:
        if not (
            partial / "model.json"
        ).is_file():  # else interrupted at its very end: nothing is left but to tidy up
            rows: list[dict[str, Any]] = []
            for part in plugin.parts(config):
                weights, history = partial / f"{part}.safetensors", partial / f"{part}.history.json"
                if not weights.is_file():
                    checkpoint = partial / f"{part}.checkpoint.safetensors"
                    module = build(plugin, config, facts, part)
                    stages = plugin.stages(config, data, module, part)
                    part_rows = train_stages(
                        module,
                        stages,
                        config,
                        part=part,
                        checkpoint=checkpoint,
                        progress=progress,
                        limits=limits,
                    )
                    write_json(history, part_rows)
                    with atomic_path(weights) as temporary:
                        save_file(
                            {key: value.contiguous() for key, value in module.state_dict().items()},
                            temporary,
                        )
                    checkpoint.unlink(missing_ok=True)
                    del module, stages
                rows += read_json(history)
            _write_table(partial / "history.csv", pd.DataFrame(rows))
            write_text(
                partial / "config.yaml",
                yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
            )
            card = {
                "format": "butterfly_sdm plugin run",
                "format_version": FORMAT_VERSION,
                "kind": "plugin",
                "plugin": name,
                "settings": settings,
                "facts": facts,
                "software": {
                    package: _version(package) for package in ("butterfly-sdm", "torch", "timm")
                },
            }
            write_json(partial / "model.json", card)
        for part in plugin.parts(config):
            (partial / f"{part}.history.json").unlink(missing_ok=True)
    return PluginRun(plugin, folder, config, facts)


def evaluate(run: PluginRun) -> Report:
    """
    Measure a run and write ``metrics.json`` with the tables and arrays of the report beside it.

    Raises
    ------
    DataError
        The data are of another kind than the run was trained on.
    """
    data = run.plugin.load(run.config)
    facts = _jsonlike(data.facts)
    if facts != run.facts:
        changed = [key for key in run.facts if facts.get(key) != run.facts[key]]
        raise DataError(
            "The data differ from those the run was trained on in: "
            f"{', '.join(changed) or 'new facts'}. "
            "Evaluate with the data of the training, or predict."
        )
    report = run.plugin.evaluate(run.config, data, run)
    wrong = [name for name, value in report.metrics.items() if not math.isfinite(value)]
    if wrong:
        raise DataError(
            f"The measure {wrong[0]} is not a finite number; the held-out rows are too few or of "
            "one class only."
        )
    write_json(run.folder / "metrics.json", report.metrics)
    for name, table in report.tables.items():
        _write_table(run.folder / f"{name}.csv", table)
    for name, array in report.arrays.items():
        with atomic_path(run.folder / f"{name}.npy") as temporary:
            np.save(temporary, array, allow_pickle=False)
    return report


def predict(run: PluginRun, inputs: Path) -> Path:
    """Predict for unseen files and return the table written."""
    path = run.folder / "predictions_new.csv"
    _write_table(path, run.plugin.predict(run.config, run, inputs))
    return path


def build(
    plugin: Plugin[Any, Any], config: PluginConfig, facts: dict[str, Any], part: str
) -> nn.Module:
    """
    Make one untrained network; the same seed gives the same weights, whatever was drawn before.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(config.seed, part, "build"))
        return plugin.build(config, facts, part)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _jsonlike(facts: dict[str, Any]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(json.dumps(facts))
    return value


def _write_table(path: Path, table: pd.DataFrame) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)
