"""Score a run beside the baselines, on sites it has not seen."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from butterfly_sdm import figures
from butterfly_sdm.baselines.saved import visited
from butterfly_sdm.core.cards import listed
from butterfly_sdm.core.files import write_table
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import Predictor
from butterfly_sdm.data.splits import Split
from butterfly_sdm.errors import DataError
from butterfly_sdm.evaluation.compare import Factory
from butterfly_sdm.evaluation.dated import as_looked_at, to_score, told_with_intervals
from butterfly_sdm.evaluation.options import EvaluateOptions
from butterfly_sdm.evaluation.scores import Scores, score_predictions
from butterfly_sdm.models.options import FitOptions, ModelOptions, NetworkOptions
from butterfly_sdm.predictors import make_predictor
from butterfly_sdm.progress import Progress, silent

log = logging.getLogger("butterfly_sdm.evaluation")

REFERENCE = "mean_rate"
DEFAULTS = EvaluateOptions()
DEFAULT_FIT = FitOptions()


def evaluate_run(
    predictor: Predictor,
    dataset: Dataset,
    options: EvaluateOptions = DEFAULTS,
    *,
    split: Split | None = None,
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
    options
        The part, and the baselines (keys of ``BASELINES``). The mean rate is always fitted, as the
        reference of skill and factors.
    split
        None: that of the data set.
    name
        Of the predictor, in the tables.
    folder
        Where ``scores.csv``, ``predictions.parquet``, ``per_species.csv``, ``per_site.csv`` and
        pictures go, of a predictor of dated visits also ``standardised.parquet`` with rates and
        their intervals, and ``scores.json``, the sealed card of them all; None: nowhere.
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
    split = split or dataset.needed_split()
    asked, scored = to_score(
        predictor, dataset, options, split.part("train"), split.part(options.part)
    )
    sites = scorable_sites(scored, split.part(options.part), [asked])
    predictions = predictions_beside(
        asked,
        scored,
        split,
        sites,
        baselines=options.baselines,
        name=name,
        seed=seed,
        progress=progress,
    )
    scores = scores_beside(scored, sites, predictions)
    if folder is None:
        return scores
    folder = Path(folder)
    more = {"predictions": predictions[name]}
    if (told := told_with_intervals(predictor, dataset, sites)) is not None:
        more["standardised"] = told
    with listed(folder / "scores.json", "scores") as files:
        files += scores.to_csv(folder)
        for title, table in more.items():
            write_table(folder / f"{title}.parquet", table)
            files.append(folder / f"{title}.parquet")
        files += figures.save_scores(folder, scores.per_species, scores.per_site, scores.beside)
    return replace(scores, folder=folder)


def predictions_beside(
    predictor: Predictor,
    dataset: Dataset,
    split: Split,
    sites: Sequence[str],
    *,
    baselines: Sequence[str] = (),
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
    made = {kind: predictor_factory(kind, {}, seed) for kind in [REFERENCE, *baselines]}
    steps = 1 + len(made)
    progress("evaluate", 0, steps)
    predictions = {name: predictor.predict(dataset, sites)}
    progress("evaluate", 1, steps)
    train = split.part("train")
    for done, (kind, make) in enumerate(made.items(), start=2):
        label = kind if kind != name else f"{kind} (fitted afresh)"
        fitted = make().fit(dataset, train)
        predictions[label] = as_looked_at(fitted, dataset).predict(dataset, sites)
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
    if lacking := len(kept) - len(shown):
        text = "%d of %d sites lack a tile; all predictors are scored on the other %d."
        log.warning(text, lacking, len(kept), len(shown))
    return shown


def predictor_factory(
    kind: str,
    options: Mapping[str, Any],
    seed: int,
    *,
    place: str = "evaluate.baselines",
    network: NetworkOptions | None = None,
    fit: FitOptions | None = None,
) -> Factory:
    """
    Return what makes unfitted predictors of a kind, here and in other processes; ``place`` is the
    setting that asks for it.

    Raises
    ------
    ConfigError
        There is no such kind, or it does not take the options.
    """
    stated = {} if network is None else dict(network)
    model = ModelOptions(kind=kind, options=dict(options), **stated)
    make = partial(make_predictor, model, fit or DEFAULT_FIT, seed, place=place)
    make()
    return make
