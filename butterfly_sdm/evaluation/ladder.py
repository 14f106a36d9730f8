"""
A ladder of predictors: each on the official split and in spatial cross-validation, one row each,
with intervals.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from butterfly_sdm.baselines import make_baseline
from butterfly_sdm.core.files import atomic_path, write_text
from butterfly_sdm.core.html import table_html
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import Predictor
from butterfly_sdm.data.splits import PARTS, Split, spatial_folds
from butterfly_sdm.errors import ButterflySDMError, DataError
from butterfly_sdm.evaluation.compare import (
    Comparison,
    CrossValidation,
    Factory,
    compare,
    cross_validate,
    rescored,
    score_interval,
)
from butterfly_sdm.evaluation.evaluate import REFERENCE, seeded_options
from butterfly_sdm.evaluation.plots import plot_ladder
from butterfly_sdm.evaluation.scores import Scores, score_predictions
from butterfly_sdm.progress import Progress, silent

log = logging.getLogger("butterfly_sdm.evaluation")

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
    """

    table: pd.DataFrame
    scores: Mapping[str, Scores]
    cross_validations: Mapping[str, CrossValidation]
    comparisons: Mapping[str, Comparison]
    part: str

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


def ladder_factories(
    steps: Sequence[str | Mapping[str, Any]], *, seed: int = 0
) -> dict[str, Factory]:
    """
    Return a factory per step of a ladder of baselines.

    Parameters
    ----------
    steps
        Kinds of predictors, or mappings with ``kind`` and optionally ``name`` and ``options``.

    Raises
    ------
    ModelError
        A kind or option is unknown.
    DataError
        Two steps have one name.

    Examples
    --------
    >>> list(ladder_factories(["mean_rate", {"kind": "nearest_sites", "name": "nearest 10", "options": {"neighbours": 10}}]))
    ['mean_rate', 'nearest 10']
    """
    factories: dict[str, Factory] = {}
    for step in steps:
        given: dict[str, Any] = {"kind": step} if isinstance(step, str) else dict(step)
        kind = given["kind"]
        name = given.get("name") or kind
        options = seeded_options(kind, dict(given.get("options") or {}), seed)
        make_baseline(kind, **options)  # a wrong option is an error now, not after an hour
        if name in factories:
            raise DataError(
                f"Two steps of the ladder are called {name!r}. Give one of them another name."
            )
        factories[name] = lambda kind=kind, options=options: make_baseline(kind, **options)  # type: ignore[misc]
    return factories


def run_ladder(
    dataset: Dataset,
    steps: Sequence[str | Mapping[str, Any]] | Mapping[str, Factory],
    *,
    part: str = "validation",
    split: Split | None = None,
    n_folds: int = 5,
    distance_m: float = 4000.0,
    folds: Sequence[Split] | None = None,
    blocks: pd.Series | None = None,
    repeats: int = 2000,
    folder: Path | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Ladder:
    """
    Fit and score every predictor of a ladder on the same sites.

    Parameters
    ----------
    steps
        Kinds of baselines, mappings with ``kind``, ``name`` and ``options``, or factories by name.
        The mean rate is always there. A predictor the data set does not serve (no tiles, no
        covariates) is noted and left out. If only some sites have tiles and a predictor needs them,
        all predictors are fitted and scored on those sites.
    part, split
        Where each is scored after fitting to the training part; ``split`` None: that of the data
        set.
    n_folds, distance_m, folds
        Spatial cross-validation over the training and this part; ``n_folds = 0``: none; ``folds``:
        these instead.
    blocks
        Block of each site, for the bootstrap; None: squares of 20 km.
    repeats
        Of the bootstrap.
    folder
        Where ``ladder.csv``, ``ladder.md``, ``ladder.png``, ``ladder_species.csv`` and, per
        predictor, ``predictions_NAME.parquet`` and ``out_of_fold_NAME.parquet`` go.

    Returns
    -------
    Ladder
        One row per predictor, best first, and all predictions.

    Raises
    ------
    DataError
        The data set has no split, or its part is empty.
    """
    split = split if split is not None else dataset.split
    if split is None:
        raise DataError(
            f"The data set {dataset.card.name!r} has no split; build it with one, so that it can "
            "be evaluated."
        )
    factories = dict(steps) if isinstance(steps, Mapping) else ladder_factories(steps, seed=seed)
    if REFERENCE not in factories:
        factories = {REFERENCE: lambda: make_baseline(REFERENCE), **factories}
    factories = {
        REFERENCE: factories.pop(REFERENCE),
        **factories,
    }  # first: the others are compared with it
    split = _with_tiles(dataset, split, factories)
    sites = [site for site in split.part(part) if dataset.visits[site] > 0]
    known = dataset.sites.loc[[*split.part("train"), *(sites if part != "train" else ())]]
    if folds is None:
        folds = (
            spatial_folds(known, distance_m=distance_m, n_folds=n_folds, seed=seed)
            if n_folds
            else []
        )

    predictions: dict[str, pd.DataFrame] = {}
    scores: dict[str, Scores] = {}
    validations: dict[str, CrossValidation] = {}
    seconds: dict[str, float] = {}
    notes: dict[str, str] = {}
    progress("ladder", 0, len(factories))
    for done, (name, make) in enumerate(factories.items(), start=1):
        start = time.perf_counter()
        try:
            predictions[name] = _fitted(make, dataset, split).predict(dataset, sites)
            seconds[name] = time.perf_counter() - start
            if folds:
                reference = validations[REFERENCE].predictions if validations else None
                validations[name] = cross_validate(
                    make, dataset, folds, name=name, reference=reference, progress=progress
                )
                if reference is None:
                    validations[name] = rescored(
                        validations[name], dataset, validations[name].predictions
                    )
        except ButterflySDMError as error:
            if name == REFERENCE:
                raise
            predictions.pop(name, None)
            notes[name] = str(error)
            log.warning("%s is left out of the ladder: %s", name, error)
        else:
            scores[name] = score_predictions(
                dataset, sites, predictions[name], reference=predictions[REFERENCE], name=name
            )
        progress("ladder", done, len(factories))

    tables = {key: value.predictions for key, value in validations.items()} or predictions
    drawn: dict[str, Any] = {"blocks": blocks, "repeats": repeats, "seed": seed}
    comparisons = {
        name: compare(
            dataset, list(table.index), table, tables[REFERENCE], names=(name, REFERENCE), **drawn
        )
        for name, table in tables.items()
        if name in scores and name != REFERENCE
    }
    rows = {}
    for name in scores:
        rows[name] = _score_columns(dataset, predictions[name], scores[name], drawn)
        if folds:
            validation = validations[name]
            columns = _score_columns(dataset, validation.predictions, validation.scores, drawn)
            rows[name] |= {f"cv_{key}": value for key, value in columns.items()}
        rows[name] |= _comparison_columns(comparisons.get(name)) | {
            "seconds": seconds[name],
            "note": "",
        }
    table = pd.DataFrame.from_dict(
        rows | {name: {"note": note} for name, note in notes.items()}, orient="index"
    )
    table = table.sort_values("cv_mse" if folds else "mse", na_position="last").rename_axis(
        "predictor"
    )
    ladder = Ladder(table, scores, validations, comparisons, part)
    if folder is not None:
        _write(ladder, predictions, Path(folder))
    return ladder


def _with_tiles(dataset: Dataset, split: Split, factories: Mapping[str, Factory]) -> Split:
    """
    Return the split without sites that have no tile, if a predictor needs tiles and there are some.
    """
    have = set(dataset.sites_with_tiles)
    if not have or not any(make().sees.needs_tile for make in factories.values()):
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


def _fitted(make: Factory, dataset: Dataset, split: Split) -> Predictor:
    return make().fit(dataset, split.part("train"))


def _score_columns(
    dataset: Dataset, predictions: pd.DataFrame, scores: Scores, drawn: Mapping[str, Any]
) -> dict[str, Any]:
    interval = score_interval(dataset, list(predictions.index), predictions, **drawn)
    return {key: scores[key] for key in SHOWN} | {
        "mse_low": interval.low,
        "mse_high": interval.high,
    }


def _comparison_columns(comparison: Comparison | None) -> dict[str, Any]:
    if comparison is None:  # the reference itself
        return {}
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
    with atomic_path(folder / "ladder.csv") as temporary:
        ladder.table.to_csv(temporary, float_format="%.8g")
    write_text(folder / "ladder.md", ladder.to_markdown())
    species = pd.DataFrame(
        {
            name: (
                ladder.cross_validations[name].scores if ladder.cross_validations else scores
            ).per_species["mse"]
            for name, scores in ladder.scores.items()
        }
    )
    with atomic_path(folder / "ladder_species.csv") as temporary:
        species.to_csv(temporary, float_format="%.8g")
    for name, table in predictions.items():
        with atomic_path(folder / f"predictions_{_file_name(name)}.parquet") as temporary:
            table.to_parquet(temporary)
    for name, validation in ladder.cross_validations.items():
        validation.to_parquet(folder / f"out_of_fold_{_file_name(name)}.parquet")
    plot_ladder(ladder.table, folder / "ladder.png")


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)


def markdown_table(table: pd.DataFrame) -> str:
    """Return a table as Markdown, numbers with five significant digits."""

    def cell(value: Any) -> str:
        return (
            f"{value:.5g}"
            if isinstance(value, float)
            else str(value).replace("|", "\\|").replace("\n", " ")
        )

    lines = [[table.index.name or "", *map(str, table.columns)], ["---"] * (table.shape[1] + 1)]
    lines += [
        [cell(index), *(cell(value) for value in row)]
        for index, row in zip(table.index, table.to_numpy(object), strict=True)
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
