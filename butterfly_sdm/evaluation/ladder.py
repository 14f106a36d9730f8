"""
A ladder of predictors: each on the official split and in spatial cross-validation, one row each,
with intervals.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from butterfly_sdm import figures
from butterfly_sdm.core.cards import listed
from butterfly_sdm.core.executor import open_executor
from butterfly_sdm.core.files import write_table, write_text
from butterfly_sdm.core.html import table_html
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.division import spatial_folds
from butterfly_sdm.data.splits import PARTS, Split
from butterfly_sdm.errors import ButterflySDMError, DataError, ModelError
from butterfly_sdm.evaluation.bootstrap import grid_blocks
from butterfly_sdm.evaluation.compare import (
    Comparison,
    CrossValidation,
    Factory,
    HeldOut,
    Parts,
    compare,
    fit_each,
    folds_of,
    gather_folds,
    score_folds,
    score_interval,
)
from butterfly_sdm.evaluation.evaluate import REFERENCE, predictor_factory
from butterfly_sdm.evaluation.options import EvaluateOptions, LadderStep
from butterfly_sdm.evaluation.scores import Scores, score_predictions
from butterfly_sdm.progress import Progress, silent

log = logging.getLogger("butterfly_sdm.evaluation")

PAIRED = ["first", "second", "difference", "low", "high", "verdict"]
SHOWN = ("mse", "mae", "bce", "deviance", "skill", "top5", "top10", "auc", "tss", "boyce")


@dataclass(frozen=True)
class Ladder:
    """
    Predictors beside each other.

    Attributes
    ----------
    table
        One row per predictor, best cross-validated first (else best on the split). Columns: scores
        on the part of the split; ``mse_low``, ``mse_high``; with folds the same with the prefix
        ``cv_``; ``better_species`` (of all, lower cross-validated MSE than the mean rate),
        ``surely_better_species`` and ``surely_worse_species`` (interval excludes 0); ``seconds`` of
        fitting; ``note`` why a predictor could not be made.
    scores
        On the part of the split, by name.
    cross_validations
        By name; empty without folds.
    comparisons
        Each predictor with the mean rate, by name: cross-validated if there are folds, else on the
        part.
    part
        Name of the part of the split.
    pairs
        Every two predictors beside each other on the same sites: ``first``, ``second``,
        ``difference`` of their MSE with ``low`` and ``high``, ``verdict``.
    folder
        Where all of it was written; None: nowhere.
    """

    table: pd.DataFrame
    scores: Mapping[str, Scores]
    cross_validations: Mapping[str, CrossValidation]
    comparisons: Mapping[str, Comparison]
    part: str
    pairs: pd.DataFrame
    folder: Path | None = None

    def summary(self) -> dict[str, str]:
        """Return one line per predictor."""
        rows = {}
        for name, row in self.table.iterrows():
            if row["note"]:
                rows[str(name)] = f"left out: {row['note']}"
                continue
            text = f"{self.part} MSE {row['mse']:.5f} [{row['mse_low']:.5f}, {row['mse_high']:.5f}]"
            if "cv_mse" in self.table:
                text += (
                    f", cross-validated {row['cv_mse']:.5f} [{row['cv_mse_low']:.5f}, "
                    f"{row['cv_mse_high']:.5f}]"
                )
            rows[str(name)] = text
        return rows

    def to_markdown(self) -> str:
        """Return the table as Markdown."""
        return markdown_table(
            self.table.drop(columns="note") if not self.table["note"].any() else self.table
        )

    def _repr_html_(self) -> str:
        return table_html(self.table, digits=".5g")


@dataclass(frozen=True)
class BlendOf:
    """A step of a ladder that averages the predictions of others: nothing is fitted for it."""

    members: tuple[str, ...]

    def __call__(self) -> Any:
        """
        Refuse to be fitted alone.

        Raises
        ------
        ModelError
            Always.
        """
        raise ModelError("A blend of steps has no predictor of its own. Use the kind stacking.")


def ladder_factories(steps: Sequence[LadderStep], *, seed: int = 0) -> dict[str, Factory]:
    """
    Return a factory per step of a ladder.

    Raises
    ------
    ConfigError
        A kind or option is unknown.
    DataError
        Two steps have one name.

    Examples
    --------
    >>> near = LadderStep(kind="nearest_sites", name="nearest 10", options={"neighbours": 10})
    >>> list(ladder_factories([LadderStep(kind="mean_rate"), near]))
    ['mean_rate', 'nearest 10']
    """
    factories: dict[str, Factory] = {}
    for step in steps:
        name = step.name or step.kind
        if name in factories:
            raise DataError(
                f"Two steps of the ladder are called {name!r}. Give one of them another name."
            )
        # A wrong kind or option is an error now, not after an hour.
        if step.kind == "blend":
            lacking = [other for other in step.of if other not in factories]
            if lacking:
                raise DataError(
                    f"The blend {name!r} is made of {lacking[0]!r}, which is no step before it. "
                    f"There are {', '.join(factories) or 'none'}."
                )
            factories[name] = BlendOf(step.of)
            continue
        factories[name] = predictor_factory(
            step.kind,
            step.options,
            seed,
            place=f"evaluate.ladder, the step {name!r}",
            network=step.network,
            fit=step.fit,
        )
    return factories


def run_ladder(
    dataset: Dataset,
    options: EvaluateOptions,
    *,
    steps: Mapping[str, Factory] | None = None,
    split: Split | None = None,
    folds: Sequence[Split] | None = None,
    folder: Path | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Ladder:
    """
    Fit and score every predictor of a ladder on the same sites.

    The mean rate is always there. A predictor the data set does not serve (no tiles, no covariates)
    is noted and left out. If only some sites have tiles and a predictor needs them, all predictors
    are fitted and scored on those sites.

    Parameters
    ----------
    options
        The steps, the part of the split on which each is scored after fitting to the training part,
        the folds of the spatial cross-validation over both, the bootstrap and the workers.
    steps
        Factories by name, instead of those of the options.
    split
        None: that of the data set.
    folds
        Instead of those of the options.
    folder
        Where ``ladder.csv``, ``ladder_pairs.csv``, ``ladder.md``, ``ladder.png``,
        ``ladder_species.csv`` and, per predictor, ``predictions_NAME.parquet`` and
        ``out_of_fold_NAME.parquet`` go, and ``ladder.json``, the sealed card of them all.

    Returns
    -------
    Ladder
        One row per predictor, best first, and all predictions.

    Raises
    ------
    DataError
        The data set has no split, or its part is empty.
    """
    factories = dict(ladder_factories(options.ladder, seed=seed) if steps is None else steps)
    # First: the others are compared with it.
    mean_rate = factories.pop(REFERENCE, None) or predictor_factory(REFERENCE, {}, seed)
    factories = {REFERENCE: mean_rate, **factories}
    split = _with_tiles(dataset, split or dataset.needed_split(), factories)
    part = split.part(options.part)
    train, sites = split.part("train"), [site for site in part if dataset.visits[site] > 0]
    if folds is None and options.folds:
        folds = spatial_folds(
            dataset.sites.loc[[*train, *(sites if options.part != "train" else ())]],
            distance_m=options.fold_distance_m,
            n_folds=options.folds,
            seed=seed,
        )
    with open_executor(options.workers, options.dask) as (executor, _):
        scored, notes = _climb(dataset, factories, (train, sites), folds or (), executor, progress)
    ladder = _compared(dataset, scored, notes, options, seed)
    if folder is None:
        return ladder
    _write(ladder, {name: step.predictions for name, step in scored.items()}, Path(folder))
    return replace(ladder, folder=Path(folder))


@dataclass(frozen=True)
class _Step:
    predictions: pd.DataFrame
    scores: Scores
    validation: CrossValidation | None
    seconds: float


def _climb(
    dataset: Dataset,
    factories: Mapping[str, Factory],
    official: Parts,
    folds: Sequence[Split],
    executor: Executor | None,
    progress: Progress,
) -> tuple[dict[str, _Step], dict[str, str]]:
    """Fit and score every step; return those that could be, and why others could not."""
    parts = [official, *((fold.train, fold.validation) for fold in folds)]
    fold_of = folds_of(folds) if folds else None
    work = {
        name: fit_each(make, dataset, parts, executor)
        for name, make in factories.items()
        if not isinstance(make, BlendOf)
    }
    steps: dict[str, _Step] = {}
    notes: dict[str, str] = {}
    progress("ladder", 0, len(factories))
    for done, (name, make) in enumerate(factories.items(), start=1):
        try:
            if isinstance(make, BlendOf):
                (predictions, seconds), held = _blended(make, steps)
            else:
                predictions, seconds = next(work[name])
                task = f"cross-validate {name}"
                held = gather_folds(work[name], len(folds), task, progress) if folds else None
            validation = None
            if held is not None and fold_of is not None:
                first = steps[REFERENCE].validation if steps else None
                reference = held[0] if first is None else first.predictions
                validation = score_folds(name, dataset, held, fold_of, reference)
        except ButterflySDMError as error:
            if name == REFERENCE:
                raise
            notes[name] = str(error)
            log.warning("%s is left out of the ladder: %s", name, error)
        else:
            mean_rate = steps[REFERENCE].predictions if steps else predictions
            scores = score_predictions(
                dataset, official[1], predictions, reference=mean_rate, name=name
            )
            steps[name] = _Step(predictions, scores, validation, seconds)
        progress("ladder", done, len(factories))
    return steps, notes


def _blended(blend: BlendOf, steps: Mapping[str, _Step]) -> tuple[HeldOut, HeldOut | None]:
    """Return the mean of the predictions of steps, and of those of all folds, if there are any."""
    lost = [name for name in blend.members if name not in steps]
    if lost:
        raise ModelError(f"{lost[0]} was left out of the ladder, and the blend with it.")
    members = [steps[name] for name in blend.members]
    validations = [step.validation for step in members if step.validation is not None]
    return _mean(members), _mean(validations) if validations else None


def _mean(of: Sequence[_Step] | Sequence[CrossValidation]) -> HeldOut:
    """Return the mean of the predictions, and the seconds of all."""
    first = of[0].predictions
    tables = [one.predictions.loc[first.index, first.columns].to_numpy() for one in of]
    mean = pd.DataFrame(np.mean(tables, axis=0), index=first.index, columns=first.columns)
    return mean, sum(one.seconds for one in of)


def _compared(
    dataset: Dataset,
    steps: Mapping[str, _Step],
    notes: Mapping[str, str],
    options: EvaluateOptions,
    seed: int,
) -> Ladder:
    """Compare every step with the mean rate and lay them beside each other."""
    blocks = grid_blocks(dataset.sites, side_m=options.block_m)
    drawn: dict[str, Any] = {"blocks": blocks, "repeats": options.bootstrap, "seed": seed}
    validations = {name: step.validation for name, step in steps.items() if step.validation}
    tables = {name: (step.validation or step).predictions for name, step in steps.items()}
    rows: dict[str, dict[str, Any]] = {}
    comparisons = {}
    for name, step in steps.items():
        rows[name] = _score_columns(dataset, step, drawn)
        if step.validation is not None:
            columns = _score_columns(dataset, step.validation, drawn)
            rows[name] |= {f"cv_{key}": value for key, value in columns.items()}
        if name != REFERENCE:
            comparisons[name] = _paired(dataset, tables, (name, REFERENCE), drawn)
            rows[name] |= _comparison_columns(comparisons[name])
        rows[name] |= {"seconds": step.seconds, "note": ""}
    rows |= {name: {"note": note} for name, note in notes.items()}
    pairs = []
    for both in combinations(comparisons, 2):
        found = _paired(dataset, tables, both, drawn)
        gap = found.difference
        pairs.append((*both, gap.estimate, gap.low, gap.high, found.verdict))
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("predictor")
    table = table.sort_values("cv_mse" if validations else "mse", na_position="last")
    scores = {name: step.scores for name, step in steps.items()}
    paired = pd.DataFrame(pairs, columns=PAIRED)
    return Ladder(table, scores, validations, comparisons, options.part, paired)


def _paired(
    dataset: Dataset,
    tables: Mapping[str, pd.DataFrame],
    names: tuple[str, str],
    drawn: Mapping[str, Any],
) -> Comparison:
    first, second = (tables[name] for name in names)
    return compare(dataset, list(first.index), first, second, names=names, **drawn)


def _with_tiles(dataset: Dataset, split: Split, factories: Mapping[str, Factory]) -> Split:
    """
    Return the split without sites that have no tile, if a predictor needs tiles and there are some.
    """
    have = set(dataset.sites_with_tiles)
    fitted = [make for make in factories.values() if not isinstance(make, BlendOf)]
    if not have or not any(make().sees.needs_tile for make in fitted):
        return split
    parts = {part: tuple(site for site in getattr(split, part) if site in have) for part in PARTS}
    lost = sum(len(getattr(split, part)) - len(sites) for part, sites in parts.items())
    if lost:
        log.warning(
            "%d sites have no tile and are left out of the whole ladder, since one of its "
            "predictors needs tiles.",
            lost,
        )
    return Split(**parts, method=split.method)


def _score_columns(
    dataset: Dataset, scored: _Step | CrossValidation, drawn: Mapping[str, Any]
) -> dict[str, Any]:
    predictions = scored.predictions
    interval = score_interval(dataset, list(predictions.index), predictions, **drawn)
    ends = {"mse_low": interval.low, "mse_high": interval.high}
    return {key: scored.scores[key] for key in SHOWN} | ends


def _comparison_columns(comparison: Comparison) -> dict[str, Any]:
    return {
        "better_species": comparison.first_wins,
        "surely_better_species": comparison.first_surely,
        "surely_worse_species": comparison.second_surely,
        "difference": comparison.difference.estimate,
        "difference_low": comparison.difference.low,
        "difference_high": comparison.difference.high,
    }


def _write(ladder: Ladder, predictions: Mapping[str, pd.DataFrame], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    scored = {name: one.scores for name, one in ladder.cross_validations.items()} or ladder.scores
    species = pd.DataFrame({name: scores.per_species["mse"] for name, scores in scored.items()})
    tables = {"ladder.csv": (ladder.table, True), "ladder_pairs.csv": (ladder.pairs, False)}
    tables |= {"ladder_species.csv": (species, True)}
    with listed(folder / "ladder.json", "ladder") as files:
        for name, (table, index) in tables.items():
            write_table(folder / name, table, float_format="%.8g", index=index)
        write_text(folder / "ladder.md", ladder.to_markdown())
        files += [folder / name for name in (*tables, "ladder.md")]
        for name, table in predictions.items():
            files.append(folder / f"predictions_{_file_name(name)}.parquet")
            write_table(files[-1], table)
        for name, validation in ladder.cross_validations.items():
            files.append(folder / f"out_of_fold_{_file_name(name)}.parquet")
            validation.to_parquet(files[-1])
        files.append(figures.show_ladder(ladder.table).save(folder / "ladder.png"))


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)


def markdown_table(table: pd.DataFrame) -> str:
    """Return a table as Markdown, numbers with five significant digits."""

    def cell(value: Any) -> str:
        return (
            f"{value:.5g}"
            if isinstance(value, float)
            else re.sub(r"([\\|\[\]<>`*])", r"\\\1", str(value)).replace("\n", " ")
        )

    lines = [
        [cell(table.index.name or ""), *map(cell, table.columns)],
        ["---"] * (table.shape[1] + 1),
    ]
    lines += [
        [cell(index), *(cell(value) for value in row)]
        for index, row in zip(table.index, table.to_numpy(object), strict=True)
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
