"""Search hyper-parameters of a network with Optuna; a search that was interrupted continues."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from butterfly_sdm.core.cards import fingerprint
from butterfly_sdm.core.executor import open_executor
from butterfly_sdm.core.files import atomic_path
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import FitContext
from butterfly_sdm.errors import MissingPackageError, ModelError, how_to_install
from butterfly_sdm.models.network_predictor import NetworkPredictor
from butterfly_sdm.models.options import Draw, SearchOptions
from butterfly_sdm.progress import Progress, silent

log = logging.getLogger("butterfly_sdm.models.search")

STARTUP = 10  # trials that the tpe of Optuna draws at random before it learns from them


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
    options: SearchOptions,
    *,
    validation: Sequence[str],
    settings: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> SearchResult:
    """
    Fit networks with settings drawn from a space and keep the one with the least validation score.

    Parameters
    ----------
    sites, validation
        Training sites, and the sites that judge a trial. The score of the winner on them is too
        good by the choice: report it on sites that chose nothing.
    options
        The space, by names of settings of the network (``regulariser.weight`` for one of the
        regulariser's); how many trials in all, those of an interrupted search included; ``random``,
        as published, or ``tpe``, which learns from earlier trials; the workers. Trials that do not
        depend on others run side by side (all random ones, the first ten of ``tpe``), so that
        the result does not depend on how many do.
    settings
        The other settings of the network.
    folder
        Holds ``search.journal`` and ``trials.csv``; a search found there continues. None: nothing
        is written.

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
    _check_space(options.space)
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = None
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            storage = JournalStorage(JournalFileBackend(str(Path(folder) / "search.journal")))
        study = optuna.create_study(
            study_name="search", storage=storage, load_if_exists=True, direction="minimize"
        )
        key = fingerprint(
            {
                "space": {name: _plain(draw) for name, draw in options.space.items()},
                "settings": fixed,
                "method": options.method,
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
        score = partial(_score, dataset, list(sites), list(validation), seed)
        _run_trials(study, options, fixed, score, folder, seed, progress)
        if not study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)):
            raise ModelError(
                f"None of the {options.trials} trials could be fitted. Narrow the space, "
                "learning_rate first."
            )
        return SearchResult(
            _merged(fixed, study.best_params), float(study.best_value), _table(study)
        )
    finally:
        optuna.logging.set_verbosity(level)


def _run_trials(
    study: Any,
    options: SearchOptions,
    fixed: Mapping[str, Any],
    score: Callable[[dict[str, Any]], float | str],
    folder: Path | None,
    seed: int,
    progress: Progress,
) -> None:
    from optuna.samplers import RandomSampler, TPESampler
    from optuna.trial import TrialState

    found = len(study.get_trials(deepcopy=False))
    done = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL)))
    progress("search", min(done, options.trials), options.trials)
    with open_executor(options.workers, options.dask) as (executor, side_by_side):
        run = map if executor is None else executor.map
        while done < options.trials:
            alone = max(1, STARTUP - found) if options.method == "tpe" else options.trials
            asked = []
            for _ in range(min(side_by_side, options.trials - done, alone)):
                # Each trial draws anew from seed and number, so that a continued search draws what
                # it would have drawn.
                draw = TPESampler if options.method == "tpe" else RandomSampler
                study.sampler = draw(seed=seed * 100_003 + found)
                trial = study.ask()
                chosen = {
                    name: _suggest(trial, name, drawn) for name, drawn in options.space.items()
                }
                asked.append((trial, _merged(fixed, chosen)))
                found += 1
            for (trial, _), told in zip(asked, run(score, [one for _, one in asked]), strict=True):
                if isinstance(told, str):
                    log.warning("Trial %d: %s", trial.number, told)
                    study.tell(trial, state=TrialState.FAIL)
                else:
                    study.tell(trial, told)
                done += 1
                if folder is not None:
                    with atomic_path(Path(folder) / "trials.csv") as temporary:
                        _table(study).to_csv(temporary, index=False)
                progress("search", done, options.trials)


def _score(
    dataset: Dataset,
    sites: Sequence[str],
    validation: Sequence[str],
    seed: int,
    settings: dict[str, Any],
) -> float | str:
    """Return the validation score of a network, or why it could not be fitted."""
    try:
        network = NetworkPredictor(**settings, seed=seed)
        network.fit(dataset, sites, context=FitContext(validation))
    except ModelError as error:  # such as a rate that diverges
        return str(error)
    return float(network.history[f"validation_{network.score}"].min())


def _check_space(space: Mapping[str, Draw]) -> None:
    known = NetworkPredictor().settings()
    for name in space:
        first, _, second = name.partition(".")
        inner = known.get(first)
        if first not in known or (second and not (isinstance(inner, dict) and second in inner)):
            raise ModelError(f"The search space names {name!r}, which is no setting of a network.")


def _suggest(trial: Any, name: str, draw: Draw) -> Any:
    if isinstance(draw, tuple):
        return trial.suggest_categorical(name, list(draw))
    low, high = draw.low, draw.high
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=draw.log, step=draw.step or 1)
    return trial.suggest_float(name, float(low), float(high), log=draw.log, step=draw.step)


def _plain(draw: Draw) -> Any:
    return list(draw) if isinstance(draw, tuple) else draw.model_dump(exclude_defaults=True)


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
