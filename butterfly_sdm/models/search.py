"""Search hyper-parameters of a network with Optuna; a search that was interrupted continues."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from butterfly_sdm.core.cards import fingerprint
from butterfly_sdm.core.executor import open_executor
from butterfly_sdm.core.files import write_table
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import FitContext
from butterfly_sdm.errors import MissingPackageError, ModelError, how_to_install
from butterfly_sdm.losses.options import RegulariserOptions
from butterfly_sdm.models.network_predictor import NetworkPredictor
from butterfly_sdm.models.options import (
    BoundOptions,
    Choices,
    FitOptions,
    NetworkOptions,
    SearchOptions,
)

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
    context: FitContext,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> SearchResult:
    """
    Fit networks with settings drawn at random and keep the one with the least validation score.

    Parameters
    ----------
    sites
        To fit the networks to.
    options
        The space by names of settings (``regulariser.weight`` for one of the regulariser's), how
        many trials in all, those of an interrupted search included, and how they are drawn:
        ``random``, as published, or ``tpe``, which learns from earlier trials. Trials that
        depend on no others (all random ones, the first ten of ``tpe``) run side by side on the
        workers, so that the result does not depend on how many there are.
    context
        ``validation`` judges a trial; the score of the winner on these sites is too good by the
        choice: report it on sites that chose nothing. ``folder`` holds ``search.journal`` and
        ``trials.csv``; a search found there continues.
    settings
        The other settings of the network.
    seed
        Of the draws and of every network.

    Raises
    ------
    MissingPackageError
        Optuna is not installed.
    ModelError
        The space names an unknown setting, the folder holds another search, or no trial ended well.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingPackageError(f"A search needs Optuna: {how_to_install('search')}.") from error
    if not len(context.validation):
        raise ModelError("A search needs validation sites: they judge the trials.")
    fixed = dict(settings or {})
    _check_space(options)
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = _open_study(context.folder)
        key: dict[str, Any] = {
            "space": _plain(options),
            "settings": fixed,
            "method": options.method,
            "seed": seed,
        }
        key |= {"dataset": dataset.fingerprint, "sites": list(sites)}
        _check_key(study, fingerprint(key | {"validation": list(context.validation)}), context)
        score = partial(_score, dataset, list(sites), list(context.validation), seed)
        _run_trials(study, options, fixed, score, context, seed)
        if not study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)):
            raise ModelError(
                f"None of the {options.trials} trials could be fitted. Narrow the space, "
                "learning_rate first."
            )
        best = _merged(fixed, study.best_params)
        return SearchResult(best, float(study.best_value), _table(study))
    finally:
        optuna.logging.set_verbosity(level)


def _run_trials(
    study: Any,
    options: SearchOptions,
    fixed: Mapping[str, Any],
    score: Callable[[dict[str, Any]], float | str],
    context: FitContext,
    seed: int,
) -> None:
    from optuna.samplers import RandomSampler, TPESampler
    from optuna.trial import TrialState

    found = len(study.get_trials(deepcopy=False))  # one that was interrupted has a number too
    done = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL)))
    context.progress("search", min(done, options.trials), options.trials)
    with open_executor(options.workers, options.dask) as (executor, side_by_side):
        run = map if executor is None else executor.map
        while done < options.trials:
            alike = max(1, STARTUP - found) if options.method == "tpe" else options.trials
            asked = []
            for _ in range(min(side_by_side, options.trials - done, alike)):
                # Each trial draws anew from seed and number, so that a continued search draws what
                # it would have drawn.
                sampler = TPESampler if options.method == "tpe" else RandomSampler
                study.sampler = sampler(seed=seed * 100_003 + found)
                trial = study.ask()
                chosen = {name: _suggest(trial, name, draw) for name, draw in options.space.items()}
                asked.append((trial, _merged(fixed, chosen)))
                found += 1
            for (trial, _), told in zip(asked, run(score, [one for _, one in asked]), strict=True):
                if isinstance(told, str):
                    log.warning("Trial %d: %s", trial.number, told)
                    study.tell(trial, state=TrialState.FAIL)
                else:
                    study.tell(trial, told)
                done += 1
                if context.folder is not None:
                    write_table(Path(context.folder) / "trials.csv", _table(study), index=False)
                context.progress("search", done, options.trials)


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
    except ModelError as error:  # such as with a rate that diverges
        return str(error)
    return float(network.history[f"validation_{network.fitting.score}"].min())


def _open_study(folder: Path | None) -> Any:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = None
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(Path(folder) / "search.journal")))
    return optuna.create_study(
        study_name="search", storage=storage, load_if_exists=True, direction="minimize"
    )


def _check_key(study: Any, key: str, context: FitContext) -> None:
    if study.user_attrs.get("key", key) != key:
        raise ModelError(
            f"{context.folder} holds a search with another space, other settings or other data. "
            "Choose another folder (--out), or remove it."
        )
    study.set_user_attr("key", key)


def _plain(options: SearchOptions) -> dict[str, Any]:
    return {
        name: draw.model_dump(exclude_defaults=True)
        if isinstance(draw, BoundOptions)
        else list(draw)
        for name, draw in options.space.items()
    }


def _check_space(options: SearchOptions) -> None:
    known = {*NetworkOptions.model_fields, *FitOptions.model_fields, "species_weights", "seed"}
    for name in options.space:
        first, _, second = name.partition(".")
        inner = RegulariserOptions.model_fields if first == "regulariser" else {}
        if first not in known or (second and second not in inner):
            raise ModelError(f"The search space names {name!r}, which is no setting of a network.")


def _suggest(trial: Any, name: str, draw: BoundOptions | Choices) -> Any:
    if not isinstance(draw, BoundOptions):
        return trial.suggest_categorical(name, list(draw))
    low, high = draw.low, draw.high
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=draw.log, step=draw.step or 1)
    return trial.suggest_float(name, float(low), float(high), log=draw.log, step=draw.step)


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
