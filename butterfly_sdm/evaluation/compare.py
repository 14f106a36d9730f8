"""Cross-validate any predictor on spatial folds, and compare two by a paired block bootstrap."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from butterfly_sdm.core.files import write_table
from butterfly_sdm.core.html import facts_html, table_html
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import Predictor
from butterfly_sdm.data.splits import Split
from butterfly_sdm.errors import DataError
from butterfly_sdm.evaluation.bootstrap import (
    Interval,
    block_means,
    grid_blocks,
    mean_interval,
    percentile_interval,
)
from butterfly_sdm.evaluation.dated import as_looked_at
from butterfly_sdm.evaluation.scores import (
    Scores,
    cell_scores,
    checked_predictions,
    score_predictions,
)
from butterfly_sdm.progress import Progress, silent

Factory = Callable[[], Predictor]
Parts = tuple[Sequence[str], Sequence[str]]  # sites to fit to, sites to predict
HeldOut = tuple[pd.DataFrame, float]  # predictions, and the seconds of fitting and predicting


@dataclass(frozen=True)
class CrossValidation:
    """
    Predictions of every site by a model that has not seen it.

    Attributes
    ----------
    name
        Of the predictor.
    predictions
        (site, species) out-of-fold presence probabilities, in the order of the data set.
    fold_of
        Number of the fold, from 0, in which each site was held out.
    scores
        Of all of them together; fold by fold in ``scores.per_block``.
    seconds
        Spent fitting and predicting.
    """

    name: str
    predictions: pd.DataFrame
    fold_of: pd.Series
    scores: Scores
    seconds: float

    def to_parquet(self, path: Path) -> None:
        """Write the predictions, with the fold as the first column."""
        table = self.predictions.copy()
        table.insert(0, "fold", self.fold_of)
        write_table(path, table)


@dataclass(frozen=True)
class Comparison:
    """
    Which of two predictors is better on the same sites, and how sure that is.

    Attributes
    ----------
    first, second, score
        Names of the predictors and of the score, of which less is better.
    difference
        Score of the first - score of the second, with its interval: below 0 the first is better.
    first_wins, second_wins
        Species on which the mean score of one is lower.
    first_surely, second_surely
        Those of them whose own interval excludes 0.
    per_species
        Both scores, their difference, ``low`` and ``high``, which are NaN for a species that was
        seen on the same share of visits at all sites, so that nothing is sure of it.
    sites, blocks
        How many the comparison rests on.
    """

    first: str
    second: str
    score: str
    difference: Interval
    first_wins: int
    second_wins: int
    first_surely: int
    second_surely: int
    per_species: pd.DataFrame
    sites: int
    blocks: int

    def _repr_html_(self) -> str:
        table = self.per_species.sort_values("difference")
        return facts_html(
            f"{self.first} beside {self.second}", {"verdict": self.verdict}
        ) + table_html(table, digits=".4f", max_rows=16)

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        total = len(self.per_species)
        if self.difference.high < 0:
            start = f"{self.first} is better than {self.second}"
        elif self.difference.low > 0:
            start = f"{self.second} is better than {self.first}"
        else:
            start = f"{self.first} and {self.second} cannot be told apart"
        return (
            f"{start}: difference in {self.score.upper()} {self.difference} over {self.sites} "
            f"sites in {self.blocks} blocks; {self.first} is ahead on {self.first_wins} of {total} "
            f"species (surely on {self.first_surely}), {self.second} on {self.second_wins} (surely "
            f"on {self.second_surely})."
        )


def cross_validate(
    make: Factory,
    dataset: Dataset,
    folds: Sequence[Split],
    *,
    name: str = "model",
    reference: pd.DataFrame | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> CrossValidation:
    """
    Fit a fresh predictor to the training part of each fold and predict its validation part.

    Parameters
    ----------
    make
        Called once per fold; returns an unfitted predictor.
    folds
        From :func:`~butterfly_sdm.data.division.spatial_folds`; no site may be held out twice.
    reference
        (site, species) out-of-fold predictions of the mean rate, for skill and factors.
    name
        Of the predictor, for tables.
    executor
        Where to fit, as :func:`~butterfly_sdm.core.executor.open_executor` gives it; ``make`` then
        has to be one that can be pickled. None: here, one fold after the other.

    Returns
    -------
    CrossValidation
        Out-of-fold predictions and their scores.

    Raises
    ------
    DataError
        A site is held out in two folds, or there are no folds.

    Examples
    --------
    >>> folds = spatial_folds(dataset.sites, distance_m=4000, n_folds=5)  # doctest: +SKIP
    >>> make = partial(NearestSites, neighbours=10)  # doctest: +SKIP
    >>> cross_validate(make, dataset, folds).scores["mse"]  # doctest: +SKIP
    """
    fold_of = folds_of(folds)
    fitted = fit_each(make, dataset, [(fold.train, fold.validation) for fold in folds], executor)
    held = gather_folds(fitted, len(folds), f"cross-validate {name}", progress)
    return score_folds(name, dataset, held, fold_of, reference)


def folds_of(folds: Sequence[Split]) -> pd.Series:
    """
    Return the number of the fold that holds each site out.

    Raises
    ------
    DataError
        A site is held out in two folds, or there are no folds.
    """
    fold_of = pd.Series(
        [number for number, fold in enumerate(folds) for _ in fold.validation],
        index=pd.Index([site for fold in folds for site in fold.validation], name="site_id"),
        name="fold",
        dtype="int64",
    )
    if fold_of.empty:
        raise DataError("There is no fold with validation sites. Make folds with spatial_folds.")
    if not fold_of.index.is_unique:
        twice = fold_of.index[fold_of.index.duplicated()][0]
        raise DataError(f"Site {twice} is held out in two folds; each site may be predicted once.")
    return fold_of


def fit_each(
    make: Factory, dataset: Dataset, parts: Sequence[Parts], executor: Executor | None
) -> Iterator[HeldOut]:
    """
    Fit a fresh predictor to the first of each two parts and predict the second.

    Yields the predictions and the seconds they took. With an executor all are under way at once,
    without one each is fitted when it is asked for.
    """
    run = map if executor is None else executor.map
    return iter(run(partial(_fit_and_predict, make, dataset), parts))


def _fit_and_predict(make: Factory, dataset: Dataset, parts: Parts) -> HeldOut:
    start = time.perf_counter()
    fitted = as_looked_at(make().fit(dataset, parts[0]), dataset)
    predictions = fitted.predict(dataset, parts[1])
    return predictions, time.perf_counter() - start


def gather_folds(fitted: Iterator[HeldOut], count: int, task: str, progress: Progress) -> HeldOut:
    """Return the predictions of all folds as one table, and the seconds of all."""
    progress(task, 0, count)
    tables, seconds = [], 0.0
    for table, spent in fitted:
        tables.append(table)
        seconds += spent
        progress(task, len(tables), count)
    return pd.concat(tables), seconds


def score_folds(
    name: str,
    dataset: Dataset,
    held: HeldOut,
    fold_of: pd.Series,
    reference: pd.DataFrame | None,
) -> CrossValidation:
    """Put gathered predictions into the order of the data set and score them."""
    order = dataset.sites.index[dataset.sites.index.isin(fold_of.index)]
    predictions, fold_of = held[0].loc[order], fold_of.loc[order]
    scores = score_predictions(
        dataset, list(order), predictions, reference=reference, blocks=fold_of, name=name
    )
    return CrossValidation(name, predictions, fold_of, scores, held[1])


def score_interval(
    dataset: Dataset,
    sites: Sequence[str],
    predictions: pd.DataFrame,
    *,
    score: str = "mse",
    blocks: pd.Series | None = None,
    repeats: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """
    Return a score of the whole set with the interval of the block bootstrap over sites.

    Parameters
    ----------
    score
        ``mse``, ``mae``, ``bce`` or ``deviance``.
    blocks
        Block of each site; None: squares of 20 km.
    """
    values, _, block_of = _cells(dataset, sites, [predictions], score, blocks)
    return mean_interval(values[0].mean(axis=1), block_of, repeats=repeats, level=level, seed=seed)


def compare(
    dataset: Dataset,
    sites: Sequence[str],
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    names: tuple[str, str] = ("first", "second"),
    score: str = "mse",
    blocks: pd.Series | None = None,
    repeats: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """
    Compare two sets of predictions of the same sites by a paired block bootstrap.

    Both predictors are scored on the same drawn blocks, so that what makes a block hard for both
    cancels.

    Parameters
    ----------
    sites
        Sites to compare on; those without a visit are left out.
    first, second
        (site, species) predictions.
    names
        What to call them.
    score
        ``mse``, ``mae``, ``bce`` or ``deviance``.
    blocks
        Block of each site; None: squares of 20 km.
    level
        Confidence of the intervals, the one over all and those per species (each by itself).
    repeats
        Of the bootstrap.

    Returns
    -------
    Comparison
        The difference with its interval, over all species and for each.

    Raises
    ------
    DataError
        Predictions are missing, the score is unknown or there are fewer than two blocks.
    """
    (one, two), used, block_of = _cells(dataset, sites, [first, second], score, blocks)
    difference = one - two  # (sites, species)
    mean, replicates, count = block_means(difference, block_of, repeats=repeats, seed=seed)
    low, high = percentile_interval(replicates, count, level=level)
    overall_low, overall_high = percentile_interval(replicates.mean(axis=1), count, level=level)
    # Seen on the same share of visits everywhere, on all or on none: nothing tells two predictors
    # apart, and the smallest error of one would count as sure.
    alike = np.ptp(dataset.rates.loc[used].to_numpy(), axis=0) == 0
    low, high = (np.where(alike, np.nan, end) for end in (low, high))
    table = pd.DataFrame(
        {
            names[0]: one.mean(axis=0),
            names[1]: two.mean(axis=0),
            "difference": mean,
            "low": low,
            "high": high,
        },
        index=pd.Index(list(dataset.species), name="species"),
    )
    return Comparison(
        first=names[0],
        second=names[1],
        score=score,
        difference=Interval(float(mean.mean()), float(overall_low), float(overall_high), level),
        first_wins=int((mean < 0).sum()),
        second_wins=int((mean > 0).sum()),
        first_surely=int((high < 0).sum()),
        second_surely=int((low > 0).sum()),
        per_species=table,
        sites=len(used),
        blocks=count,
    )


def _cells(
    dataset: Dataset,
    sites: Sequence[str],
    tables: Sequence[pd.DataFrame],
    score: str,
    blocks: pd.Series | None,
) -> tuple[list[np.ndarray], list[str], pd.Series]:
    """
    Return the score of each table per site and species, the sites with visits, and their blocks.
    """
    used = [site for site in sites if dataset.visits[site] > 0]
    k, n = dataset.counts(used)
    values = []
    for table in tables:
        cells = cell_scores(k, n, checked_predictions(dataset, used, table))
        if score not in cells:
            raise DataError(
                f"There is no score {score!r} per site and species; there are {', '.join(cells)}."
            )
        values.append(cells[score])
    block_of = grid_blocks(dataset.sites.loc[used]) if blocks is None else blocks.loc[used]
    return values, used, block_of
