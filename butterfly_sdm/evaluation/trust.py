"""What held-out sites say of a run, in the form that a map carries to whoever receives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import Predictor
from butterfly_sdm.data.splits import Split
from butterfly_sdm.evaluation.bootstrap import (
    block_means,
    bootstrap_blocks,
    percentile_interval,
)
from butterfly_sdm.evaluation.compare import compare
from butterfly_sdm.evaluation.evaluate import (
    REFERENCE,
    predictor_factory,
    scorable_sites,
)
from butterfly_sdm.evaluation.options import EvaluateOptions
from butterfly_sdm.evaluation.scores import Scores, score_predictions
from butterfly_sdm.evaluation.uncertainty import Conformal

DEFAULTS = EvaluateOptions()


@dataclass(frozen=True)
class Trust:
    """
    How far the predictions of a run can be trusted.

    Attributes
    ----------
    part, sites
        Of the split it was judged on, and how many sites that are.
    scores
        Over all species, beside the mean rate.
    reference_mse
        Mean squared error of the mean rate.
    species
        (species) ``skill``: 1 - MSE / MSE of the mean rate, so that 0 is as good as the mean rate;
        ``low`` and ``high``, the 95 % interval of the block bootstrap; ``sites`` the species was
        seen at, ``of`` all; ``verdict``: ``better`` (surely), ``unsure`` (a smaller error that may
        be chance), ``worse`` (no smaller error than the mean rate), ``unknown`` (seen on the same
        share of visits everywhere).
    visits
        Median of the sites.
    """

    part: str
    sites: int
    scores: Scores
    reference_mse: float
    species: pd.DataFrame
    visits: int

    def not_better(self, how: str) -> tuple[str, ...]:
        """
        Return the species that are ``worse`` than their mean rate or, with ``unsure``, all that are
        not surely better.
        """
        verdicts = ("worse",) if how == "worse" else ("worse", "unsure", "unknown")
        return tuple(map(str, self.species.index[self.species["verdict"].isin(verdicts)]))

    @property
    def sentence(self) -> str:
        """The result in words."""
        mse, mean = self.scores["mse"], self.reference_mse
        total, better = len(self.species), int((self.species["verdict"] == "better").sum())
        if mse < mean:
            how = f"{1 - mse / mean:.0%} smaller than"
        elif mse > mean:
            how = f"{mse / mean - 1:.0%} larger than" if mean > 0 else "larger than"
        else:
            how = "the same as"
        return (
            f"Judged on {self.sites} {self.part} sites, the mean squared error ({mse:.4f}) is "
            f"{how} that of the mean rate of each species ({mean:.4f}); {better} of {total} "
            "species are surely better than their mean rate."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for the metadata of a map; None where a number is not known."""
        rows = self.species.round(4).astype(object).where(self.species.notna(), None)
        return {
            "part": self.part,
            "sites": self.sites,
            "mse": round(self.scores["mse"], 6),
            "mse_of_mean_rate": round(self.reference_mse, 6),
            "definition": "skill of a species: 1 - MSE / MSE of its mean rate",
            "sentence": self.sentence,
            "species": {str(name): row.to_dict() for name, row in rows.iterrows()},
        }


def held_out(
    predictor: Predictor,
    dataset: Dataset,
    split: Split,
    options: EvaluateOptions = DEFAULTS,
    *,
    known: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """
    Return the predictions (site, species) of the sites that a run is judged on.

    Parameters
    ----------
    options
        Which part of the split that is.
    known
        (site, species) predictions of an earlier evaluation, taken if they are of these sites and
        species; None: there are none.

    Raises
    ------
    DataError
        No site of the part can be scored.
    """
    sites = scorable_sites(dataset, split.part(options.part), [predictor])
    if known is not None:
        fits = set(sites) <= set(known.index) and list(known.columns) == list(dataset.species)
        if fits:
            return known.loc[sites]
    return predictor.predict(dataset, sites)


def judge(
    dataset: Dataset,
    split: Split,
    predictions: pd.DataFrame,
    *,
    part: str = "validation",
    seed: int = 0,
) -> Trust:
    """
    Judge held-out predictions beside the mean rate, over all species and for each.

    Parameters
    ----------
    predictions
        (site, species), from :func:`held_out`.
    part
        Of the split the sites are of, for words.

    Returns
    -------
    Trust
        What a map of the same run carries.

    Raises
    ------
    DataError
        The sites lie in fewer than two blocks.
    """
    sites = list(predictions.index)
    mean_rate = predictor_factory(REFERENCE, {}, seed)().fit(dataset, split.part("train"))
    reference = mean_rate.predict(dataset, sites)
    scores = score_predictions(dataset, sites, predictions, reference=reference)
    blocks = bootstrap_blocks(dataset.sites.loc[sites])
    found = compare(dataset, sites, predictions, reference, blocks=blocks, seed=seed)
    low, high = _skill_interval(dataset, sites, predictions, reference, blocks, seed)
    own, base = found.per_species["first"], found.per_species["second"]
    skill = (1 - own / base).where(base > 0)
    verdict = np.select(
        [
            (dataset.rates.loc[sites].nunique() == 1).to_numpy(),
            (found.per_species["high"] < 0).to_numpy(),
            (own < base).to_numpy(),
        ],
        ["unknown", "better", "unsure"],
        "worse",
    )
    table = pd.DataFrame(
        {
            "skill": skill,
            "low": low,
            "high": high,
            "sites": scores.per_species["recorded_at"].astype(int),
            "of": len(sites),
            "verdict": verdict,
        }
    )
    visits = max(1, int(np.median(dataset.visits.loc[sites])))
    mse = float(own.mean()), float(base.mean())
    return Trust(part, len(sites), scores, mse[1], table, visits)


def _skill_interval(
    dataset: Dataset,
    sites: Sequence[str],
    predictions: pd.DataFrame,
    reference: pd.DataFrame,
    blocks: pd.Series,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (species,) the ends of the 95 % interval of 1 - MSE / MSE of the reference."""
    rates = dataset.rates.loc[list(sites)].to_numpy()
    errors = [(t[list(dataset.species)].to_numpy() - rates) ** 2 for t in (predictions, reference)]
    _, replicates, count = block_means(np.hstack(errors), blocks, seed=seed)
    own, base = np.hsplit(replicates, 2)  # (repeats, species) each, of the same draws
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = 1 - own / base
    unknown = ~np.isfinite(ratio).all(axis=0)  # the reference is right at all sites of a draw
    low, high = percentile_interval(np.where(unknown, 0.0, ratio), count)
    low, high = (np.where(unknown, np.nan, end) for end in (low, high))
    return low, high


def interval_words(conformal: Conformal, part: str, sites: int, visits: int) -> dict[str, Any]:
    """Return what the metadata of a map says of its bounds."""
    return {
        "level": conformal.level,
        "visits": visits,
        "part": part,
        "sites": sites,
        "sentence": f"An interval holds the rate that would be seen on {visits} visits at "
        f"{conformal.level:.0%} of places like the {sites} {part} sites it was learned from.",
    }
