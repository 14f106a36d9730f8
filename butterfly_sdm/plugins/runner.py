"""Train a plugin into a run folder, measure it there and predict from it."""

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import yaml
from safetensors.torch import save_file

from butterfly_sdm.core import files
from butterfly_sdm.core.cards import damage, fingerprint, is_whole, sealed, software_versions
from butterfly_sdm.core.work import is_finished, resumable_folder, tidy, work_folder
from butterfly_sdm.errors import ArtefactError, ConfigError, DataError, MissingFileError
from butterfly_sdm.plugins.contract import (
    FORMAT_VERSION,
    RUN_FORMAT,
    Plugin,
    PluginRun,
    Report,
)
from butterfly_sdm.plugins.options import PluginConfig
from butterfly_sdm.plugins.stages import Limits, previous, train_stages
from butterfly_sdm.progress import Progress, silent

logger = logging.getLogger("butterfly_sdm.plugins")


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
    plugin.extract(config, progress)
    data = plugin.load(config)
    facts = _jsonlike(data.facts)
    settings = config.model_dump(mode="json")
    key = fingerprint({"plugin": name, "settings": settings, "facts": facts, "limits": str(limits)})
    run = PluginRun(plugin, folder, config, facts)
    parts = plugin.parts(config)
    held = _card_of(folder)
    finished = is_finished(folder, key) or held.get("key") == key  # else killed unmarked, or moved
    if (finished or (limits is None and _is_same(plugin, name, run))) and (
        _of_earlier_release(held) or is_whole(folder / "model.json", f"The run {folder}")
    ):
        tidy(folder)
        logger.info("%s is there already, trained with the same settings.", folder)
        return PluginRun.open(plugin, name, folder, config)
    if len(parts) > 1:  # what cannot be made is told before the first has learned for hours
        for part in parts:
            plugin.network(config, facts, part)
    learn = partial(train_stages, progress=progress, limits=limits)
    with resumable_folder(folder, key, worth=_some_trained) as unfinished:
        # The card is written last: where it is whole, nothing is left but to tidy up.
        card = unfinished / "model.json"
        if not (card.is_file() and is_whole(card, f"The unfinished run {folder}")):
            for part in parts:
                _train_part(replace(run, folder=unfinished), data, part, learn)
            rows = [row for part in parts for row in _finished_rows(unfinished, part) or ()]
            files.write_table(unfinished / "history.csv", pd.DataFrame(rows), index=False)
            _keep_files(plugin, config, unfinished)
            _write_settings(unfinished, settings)
            about = {"format": RUN_FORMAT, "format_version": FORMAT_VERSION, "kind": "plugin"}
            content = {"plugin": name, "key": key, "settings": settings, "facts": facts}
            software = software_versions(("butterfly-sdm", "torch", "timm"))
            written = {"software": software, "files": _files(unfinished)}
            files.write_json(card, sealed(about | content | written))
        for note in unfinished.glob("*.history.json"):
            note.unlink()
    return run


def _write_settings(folder: Path, settings: dict[str, Any]) -> None:
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    files.write_text(folder / "config.yaml", text)


def _files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the files of a run that is about to be finished."""
    return {
        path.relative_to(folder).as_posix(): files.sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
        if path.name != "model.json" and not path.name.endswith(".history.json")
    }


def _some_trained(folder: Path) -> bool:
    """Whether the network of one part is finished: an error in a later one does not undo it."""
    return any(not path.stem.endswith(".checkpoint") for path in folder.glob("*.safetensors"))


def _card_of(folder: Path) -> dict[str, Any]:
    """Return the card of a run; empty where it cannot be read."""
    with suppress(ArtefactError, MissingFileError):
        card = files.read_json(folder / "model.json")
        return card if isinstance(card, dict) else {}
    return {}


def _of_earlier_release(card: dict[str, Any]) -> bool:
    """Whether the card of a run lists no files, as those of 0.1.0 did not."""
    return bool(card) and not {"files", "seal"} & card.keys()


def _is_same(plugin: Plugin[Any, Any], name: str, run: PluginRun) -> bool:
    """
    Return whether a finished run of these settings and data lies in the folder.

    Raises
    ------
    ConfigError
        One of others does.
    """
    if not (run.folder / "model.json").is_file():
        return False
    card = files.read_json(run.folder / "model.json")
    if not isinstance(card, dict) or card.get("format") != RUN_FORMAT:
        return False
    changed = _changed(run, card.get("settings") or {})
    if card.get("plugin") == name and not changed and card.get("facts") == run.facts:
        return True
    other = ", ".join(changed) or ("data" if card.get("plugin") == name else "purpose")
    raise ConfigError(
        f"{run.folder} holds a finished run of {card.get('plugin') or name} with other {other}. "
        "Keep it and choose another --out or name, or remove it."
    )


def _changed(
    run: PluginRun, trained: dict[str, Any], passing: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the settings of ``run`` that differ from those trained with, but for ``passing``."""
    used = run.config.model_dump(mode="json")
    alike = {"name", "inputs", "accelerator", "trust", *passing}
    return {k: v for k, v in used.items() if k not in alike and v != trained.get(k)}


def _keep_files(plugin: Plugin[Any, Any], config: PluginConfig, folder: Path) -> None:
    for setting in plugin.keeps:
        given = Path(str(reduce(getattr, setting.split("."), config)))
        if given.is_dir():
            shutil.copytree(given, folder / f"kept_{setting}", dirs_exist_ok=True)
        elif given.is_file():
            with files.atomic_path(folder / f"kept_{setting}{given.suffix}") as temporary:
                shutil.copyfile(given, temporary)


def _train_part(run: PluginRun, data: Any, part: str, learn: Callable[..., Any]) -> None:
    """Train one network into the folder of the run, unless it lies there already."""
    weights = run.folder / f"{part}.safetensors"
    checkpoint = run.folder / f"{part}.checkpoint.safetensors"
    if _finished_rows(run.folder, part) is not None:
        _remove(checkpoint)  # perhaps it was killed before it did
        return
    module = run.plugin.network(run.config, run.facts, part)
    stages = run.plugin.stages(run.config, data, module, part)
    rows = learn(module, stages, run.config, part=part, checkpoint=checkpoint)
    state = {key: value.contiguous() for key, value in module.state_dict().items()}
    with files.atomic_path(weights) as temporary:
        save_file(state, temporary)
    done = {"rows": rows, "files": {weights.name: files.sha256(weights)}}
    files.write_json(run.folder / f"{part}.history.json", sealed(done))
    _remove(checkpoint)


def _remove(checkpoint: Path) -> None:
    for path in (checkpoint, previous(checkpoint)):
        path.unlink(missing_ok=True)


def _finished_rows(folder: Path, part: str) -> list[dict[str, Any]] | None:
    """Return the history of a network that is finished, and whole; None: it has to be trained."""
    note = folder / f"{part}.history.json"
    problems = damage(note) if note.is_file() else []
    if problems:
        logger.warning("%s The network %s is trained again.", problems[0], part)
    whole = note.is_file() and not problems
    return cast(list[dict[str, Any]], files.read_json(note)["rows"]) if whole else None


def results_folder(run: PluginRun) -> Path:
    """
    Return where the results of an evaluation belong: the run, or, evaluated by other settings than
    it was trained with (such as other data), a folder of their own below it.
    """
    kept = (setting.partition(".")[0] for setting in run.plugin.keeps)
    trained = files.read_json(run.folder / "model.json")["settings"]
    changed = _changed(run, trained, ("precision", *kept))
    if not changed:
        return run.folder
    return run.folder / "evaluations" / f"{run.config.name}-{fingerprint(changed)[:8]}"


def evaluate(run: PluginRun, *, progress: Progress = silent) -> Report:
    """
    Measure a run and write ``metrics.json`` with the tables and arrays of the report beside it, in
    :func:`results_folder`.

    What takes long, such as folds, is kept piece by piece: an evaluation that was interrupted goes
    on where it was.

    Raises
    ------
    DataError
        The data are of another kind than the run was trained on.
    """
    run.plugin.extract(run.config, progress)
    data = run.plugin.load(run.config)
    facts = _jsonlike(data.facts)
    if facts != run.facts:
        changed = [key for key in run.facts if facts.get(key) != run.facts[key]] or ["new facts"]
        raise DataError(
            f"The data differ from those the run was trained on in: {', '.join(changed)}. "
            "Evaluate with the data of the training, or predict."
        )
    settings = run.config.model_dump(mode="json")
    weights = [
        files.sha256(run.folder / f"{part}.safetensors") for part in run.plugin.parts(run.config)
    ]
    key = fingerprint({"settings": settings, "facts": facts, "weights": weights})
    with work_folder(run.folder / "evaluation", key) as pieces:
        measured = replace(run, pieces=pieces, progress=progress)
        report = run.plugin.evaluate(run.config, data, measured)
        _write_report(run, report)
    return report


def _write_report(run: PluginRun, report: Report) -> None:
    wrong = [name for name, value in report.metrics.items() if not math.isfinite(value)]
    if wrong:
        raise DataError(
            f"The measure {wrong[0]} is not a finite number; the held-out rows are too few or of "
            "one class only."
        )
    folder = results_folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    if folder != run.folder:
        _write_settings(folder, run.config.model_dump(mode="json"))
    files.write_json(folder / "metrics.json", report.metrics)
    for name, table in report.tables.items():
        files.write_table(folder / f"{name}.csv", table, index=False)
    for name, array in report.arrays.items():
        with files.atomic_path(folder / f"{name}.npy") as temporary:
            np.save(temporary, array, allow_pickle=False)


def predict(run: PluginRun, inputs: Path) -> Path:
    """Predict for unseen files and return the table written."""
    path = run.folder / "predictions_new.csv"
    files.write_table(path, run.plugin.predict(run.config, run, inputs), index=False)
    return path


def _jsonlike(facts: dict[str, Any]) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads(json.dumps(facts)))
