"""Score a run beside the baselines, on sites it has not seen."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from butterfly_sdm.baselines import make_baseline
from butterfly_sdm.baselines.saved import visited
from butterfly_sdm.core.files import atomic_path
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import Predictor
from butterfly_sdm.data.saved_models import PREDICTORS
from butterfly_sdm.data.splits import Split
from butterfly_sdm.errors import DataError
from butterfly_sdm.evaluation.plots import plot_scores
from butterfly_sdm.evaluation.scores import Scores, score_predictions
from butterfly_sdm.progress import Progress, silent

log = logging.getLogger("butterfly_sdm.evaluation")

REFERENCE = "mean_rate"


def evaluate_run(
    predictor: Predictor,
    dataset: Dataset,
    split: Split | None = None,
    *,
    part: str = "validation",
    baselines: Sequence[str] = ("mean_rate",),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    name: str = "model",
    folder: Path | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Scores:
    """
    Score a fitted predictor on one part of the split, beside baselines fitted to the training part.

    A predictor that needs tiles is scored, and everything beside it, on those sites of the part
    that have one.

    Parameters
    ----------
    predictor
        Fitted to the training part.
    split
        None: that of the data set.
    part
        ``"train"``, ``"validation"`` or ``"test"``.
    baselines
        Kinds of predictors. The mean rate is always fitted, as the reference of skill and
        factors.
    options
        Hyper-parameters of baselines by kind.
    name
        Of the predictor, in the tables.
    folder
        Where ``scores.csv``, ``predictions.parquet``, ``per_species.csv``, ``per_site.csv`` and
        pictures go; None: nowhere.
    seed
        Of baselines that take chances.

    Returns
    -------
    Scores
        Of ``predictor``; ``beside`` has one row per predictor.

    Raises
    ------
    DataError
        The data set has no split, the part is empty, or species or sites do not match.
    """
    split = split if split is not None else dataset.split
    if split is None:
        raise DataError(
            f"The data set {dataset.card.name!r} has no split; build it with one, so that it can "
            "be evaluated."
        )
    sites = scorable_sites(dataset, split.part(part), [predictor])
    predictions = predictions_beside(
        predictor,
        dataset,
        split,
        sites,
        baselines=baselines,
        options=options,
        name=name,
        seed=seed,
        progress=progress,
    )
    scores = scores_beside(dataset, sites, predictions)
    if folder is not None:
        scores.to_csv(folder)
        with atomic_path(Path(folder) / "predictions.parquet") as temporary:
            predictions[name].to_parquet(temporary)
        plot_scores(scores, folder)
    return scores


def predictions_beside(
    predictor: Predictor,
    dataset: Dataset,
    split: Split,
    sites: Sequence[str],
    *,
    baselines: Sequence[str] = (),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    name: str = "model",
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, pd.DataFrame]:
    """
    Predict ``sites`` by a fitted predictor and by baselines fitted to the training part.

    Returns
    -------
    dict
        Predictions by name: the predictor first, then the mean rate, then the other baselines. A
        baseline that is called like the predictor is named ``KIND (fitted afresh)``.
    """
    kinds = list(dict.fromkeys([REFERENCE, *baselines]))
    steps = 1 + len(kinds)
    progress("evaluate", 0, steps)
    predictions = {name: predictor.predict(dataset, sites)}
    progress("evaluate", 1, steps)
    train = split.part("train")
    for done, kind in enumerate(kinds, start=2):
        label = kind if kind != name else f"{kind} (fitted afresh)"
        fitted = make_baseline(
            kind, **seeded_options(kind, dict((options or {}).get(kind, {})), seed)
        ).fit(dataset, train)
        predictions[label] = fitted.predict(dataset, sites)
        progress("evaluate", done, steps)
    return predictions


def scores_beside(
    dataset: Dataset, sites: Sequence[str], predictions: Mapping[str, pd.DataFrame]
) -> Scores:
    """
    Score the first of several predictions, with one row per prediction beside it; the second is the
    reference.
    """
    reference = list(predictions.values())[1]
    scores = [
        score_predictions(dataset, sites, table, reference=reference, name=name)
        for name, table in predictions.items()
    ]
    beside = pd.DataFrame(
        [one.overall for one in scores], index=pd.Index(list(predictions), name="predictor")
    )
    return replace(scores[0], beside=beside)


def scorable_sites(
    dataset: Dataset, sites: Sequence[str], predictors: Sequence[Predictor]
) -> list[str]:
    """
    Return those of ``sites`` that have a visit and, if one of the predictors needs tiles, a tile.

    Raises
    ------
    DataError
        There are none.
    """
    kept = visited(dataset, sites)
    if not any(predictor.sees.needs_tile for predictor in predictors):
        return kept
    have = set(dataset.sites_with_tiles)
    shown = [site for site in kept if site in have]
    if not shown:
        raise DataError(
            f"None of the {len(kept)} sites to score has a tile, and the model needs one. "
            "Name scenes that cover them, or another part."
        )
    if len(shown) < len(kept):
        log.warning(
            "%d of %d sites lack a tile; all predictors are scored on the other %d.",
            len(kept) - len(shown),
            len(kept),
            len(shown),
        )
    return shown


def seeded_options(kind: str, options: dict[str, Any], seed: int) -> dict[str, Any]:
    """Give ``seed`` to those baselines that take one."""
    return {"seed": seed, **options} if hasattr(PREDICTORS.load(kind), "seed") else options
