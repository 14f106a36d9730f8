"""Search hyper-parameters of a network with Optuna; a search that was interrupted continues."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from butterfly_sdm.core.cards import fingerprint
from butterfly_sdm.core.files import atomic_path
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import FitContext
from butterfly_sdm.errors import MissingPackageError, ModelError, how_to_install
from butterfly_sdm.models.network_predictor import NetworkPredictor
from butterfly_sdm.progress import Progress, silent

log = logging.getLogger("butterfly_sdm.models.search")


@dataclass(frozen=True)
class SearchResult:
    """
    What a search found.

    Attributes
    ----------
    best
        Settings of the best trial, ready for
        :class:`~butterfly_sdm.models.network_predictor.NetworkPredictor`.
    score
        Its validation score.
    trials
        One row per trial: ``score`` and the value of every setting.
    """

    best: dict[str, Any]
    score: float
    trials: pd.DataFrame


def search(
    dataset: Dataset,
    sites: Sequence[str],
    *,
    validation: Sequence[str],
    space: Mapping[str, Any],
    trials: int,
    settings: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    method: Literal["random", "tpe"] = "tpe",
    seed: int = 0,
    progress: Progress = silent,
) -> SearchResult:
    """
    Fit networks with settings drawn from ``space`` and keep the one with the least validation
    score.

    Parameters
    ----------
    sites, validation
        Training sites, and the sites that judge a trial. The score of the winner on them is too
        good by the choice: report it on sites that chose nothing.
    space
        Name of a setting (``regulariser.weight`` for one of the regulariser's): a list of choices,
        or ``low`` and ``high`` with optionally ``log`` (true) or ``step``.
    trials
        How many in all, those of an interrupted search included.
    settings
        The other settings of the network.
    folder
        Holds ``search.journal`` and ``trials.csv``; a search found there continues. None: nothing
        is written.
    method
        ``random``, as published, or ``tpe``, which learns from earlier trials.

    Raises
    ------
    MissingPackageError
        Optuna is not installed.
    ModelError
        The space names an unknown setting, the folder holds another search, or no trial ended well.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise MissingPackageError(f"A search needs Optuna: {how_to_install('search')}.") from error
    if not len(validation):
        raise ModelError("A search needs validation sites: they judge the trials.")
    fixed = dict(settings or {})
    _check_space(space)
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = None
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            storage = JournalStorage(JournalFileBackend(str(Path(folder) / "search.journal")))
        found = 0
        if storage is not None and storage.get_all_studies():
            found = len(
                optuna.load_study(study_name="search", storage=storage).get_trials(deepcopy=False)
            )
        # Each trial draws anew from seed and number, so that a continued search draws what it would
        # have drawn.
        samplers: dict[str, type] = {
            "random": optuna.samplers.RandomSampler,
            "tpe": optuna.samplers.TPESampler,
        }
        study = optuna.create_study(
            study_name="search", storage=storage, load_if_exists=True, direction="minimize"
        )
        key = fingerprint(
            {
                "space": dict(space),
                "settings": fixed,
                "method": method,
                "seed": seed,
                "dataset": dataset.fingerprint,
            }
            | {"sites": list(sites), "validation": list(validation)}
        )
        if study.user_attrs.get("key", key) != key:
            raise ModelError(
                f"{folder} holds a search with another space, other settings or other data. Choose "
                "another folder (--out), "
                "or remove it."
            )
        study.set_user_attr("key", key)
        ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL)
        done = len(study.get_trials(deepcopy=False, states=ended))
        progress("search", min(done, trials), trials)
        while done < trials:
            study.sampler = samplers[method](seed=seed * 100_003 + found)
            trial = study.ask()
            found += 1
            chosen = {name: _suggest(trial, name, choice) for name, choice in space.items()}
            try:
                network = NetworkPredictor(**_merged(fixed, chosen), seed=seed)
                network.fit(dataset, sites, context=FitContext(validation=validation))
                study.tell(trial, float(network.history[f"validation_{network.score}"].min()))
            except (
                ModelError
            ) as error:  # settings that cannot be fitted, such as a rate that diverges
                log.warning("Trial %d: %s", trial.number, error)
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            done += 1
            if folder is not None:
                with atomic_path(Path(folder) / "trials.csv") as temporary:
                    _table(study).to_csv(temporary, index=False)
            progress("search", done, trials)
        if not study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)):
            raise ModelError(
                f"None of the {trials} trials could be fitted. Narrow the space, learning_rate "
                "first."
            )
        return SearchResult(
            _merged(fixed, study.best_params), float(study.best_value), _table(study)
        )
    finally:
        optuna.logging.set_verbosity(level)


def _check_space(space: Mapping[str, Any]) -> None:
    known = NetworkPredictor().settings()
    for name, choice in space.items():
        first, _, second = name.partition(".")
        inner = known.get(first)
        if first not in known or (second and not (isinstance(inner, dict) and second in inner)):
            raise ModelError(f"The search space names {name!r}, which is no setting of a network.")
        bounds = isinstance(choice, Mapping) and {"low", "high"} <= set(choice) <= {
            "low",
            "high",
            "log",
            "step",
        }
        if not bounds and not (
            isinstance(choice, Sequence) and not isinstance(choice, str) and len(choice)
        ):
            raise ModelError(
                f"The search space of {name} needs a list of choices, or low and high (and log or "
                f"step): {choice!r}."
            )


def _suggest(trial: Any, name: str, choice: Any) -> Any:
    if not isinstance(choice, Mapping):
        return trial.suggest_categorical(name, list(choice))
    low, high = choice["low"], choice["high"]
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(
            name, low, high, log=choice.get("log", False), step=choice.get("step", 1)
        )
    return trial.suggest_float(
        name, float(low), float(high), log=choice.get("log", False), step=choice.get("step")
    )


def _merged(fixed: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    settings = {name: value for name, value in fixed.items() if name != "seed"}
    for name, value in chosen.items():
        first, _, second = name.partition(".")
        if second:
            settings[first] = {**(settings.get(first) or {}), second: value}
        else:
            settings[first] = value
    return settings


def _table(study: Any) -> pd.DataFrame:
    rows = [
        {"trial": trial.number, "score": trial.value, **trial.params}
        for trial in study.get_trials(deepcopy=False)
    ]
    return pd.DataFrame(rows).sort_values("score", na_position="last", ignore_index=True)
