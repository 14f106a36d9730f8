"""
Score the predictions of a set of sites against their detections: over the whole set, per species,
per site, per block.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from butterfly_sdm.core.files import write_table
from butterfly_sdm.core.html import facts_html, table_html
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import DataError
from butterfly_sdm.evaluation.ranking import (
    auc,
    average_precision,
    boyce_index,
    max_skill_threshold,
    true_skill,
)
from butterfly_sdm.evaluation.topk import adaptive_top_k, top_k_overlap

NOT_STATED = (
    "not stated: visits are too few to tell what a model could know from chance; compare the errors"
)
CLEAR = 2.0  # standard errors that the noise floor has to lie below the error of the reference
EPSILON = 1e-6  # probabilities are kept this far from 0 and 1 where a logarithm is taken

DEFINITIONS: dict[str, str] = {
    "mse": "mean over sites and species of (probability - rate)²",
    "mae": "mean over sites and species of |probability - rate|",
    "bce": "mean over sites and species of -(rate log probability + (1 - rate) log(1 - "
    "probability))",
    "deviance": "mean over sites and species of the binomial deviance of k in n against the "
    "saturated model (rate itself)",
    "noise_floor": "mean of rate (1 - rate) / (visits - 1): the expected MSE of the true "
    "probabilities",
    "skill": "(MSE of the reference - MSE) / (MSE of the reference - noise floor): 0 as the "
    "reference, 1 perfect; not stated where the noise floor is not clearly below the reference",
    "top5": "share of the 5 most frequent species among the 5 predicted highest; ties by expected "
    "value; not defined for 5 species or fewer",
    "top10": "share of the 10 most frequent species among the 10 predicted highest; ties by "
    "expected value; not defined for 10 species or fewer",
    "adaptive_top": "as top-k with k = species recorded at the site",
    "auc": "mean over species of the area under the ROC of recorded at all against not",
    "average_precision": "mean over species of the average precision of recorded at all",
    "tss": "mean over species of sensitivity + specificity - 1 at the stated threshold",
    "boyce": "mean over species of the continuous Boyce index",
    "richness_bias": "mean over sites of the sum of probabilities - the sum of rates: species per "
    "visit",
    "richness_mae": "mean over sites of |sum of probabilities - sum of rates|",
    "similarity": "mean over sites of the Bray-Curtis similarity of probabilities and rates",
    "sites": "sites with at least one visit",
}


@dataclass(frozen=True)
class Scores:
    """
    How well predictions agree with detections.

    Attributes
    ----------
    name
        Of the predictor.
    overall
        Scores of the whole set, by the names of ``DEFINITIONS``.
    per_species
        Index ``species``: observed and predicted mean, the scores, ``factor`` (MSE of the reference
        / MSE: above 1 is better than the reference).
    per_site
        Index ``site_id``: position, visits, the scores, ``factor``.
    per_block
        Index ``block``: sites, visits and the scores; None without blocks.
    beside
        One row per predictor scored on the same sites, this one first; set by :func:`evaluate_run`.
    folder
        Where they were written; None: nowhere.
    """

    name: str
    overall: pd.Series
    per_species: pd.DataFrame
    per_site: pd.DataFrame
    per_block: pd.DataFrame | None = None
    beside: pd.DataFrame | None = field(default=None, compare=False)
    folder: Path | None = field(default=None, compare=False)

    def summary(self) -> dict[str, str]:
        """Return the few figures that matter most, in words."""
        rows = {"sites scored": f"{self['sites']:,.0f}", "mean squared error": f"{self['mse']:.5f}"}
        if self.beside is not None:
            for name, mse in self.beside["mse"].iloc[1:].items():
                rows[f"  of {name}"] = f"{mse:.5f}"
        if np.isfinite(self["noise_floor"]):
            rows["noise floor"] = f"{self['noise_floor']:.5f} (no model can do better)"
        if np.isfinite(self["skill"]):
            rows["skill"] = f"{self['skill']:.2f} ({_meaning(self['skill'])})"
        elif self.beside is not None:
            rows["skill"] = NOT_STATED
        factor = self.per_species["factor"].dropna()
        if len(factor):
            rows["species predicted better than by the mean rate"] = (
                f"{int((factor > 1).sum())} of {len(factor)}"
            )
        if self.top_k:
            rows[f"top-{self.top_k} agreement"] = f"{self[f'top{self.top_k}']:.1%}"
        return rows

    @property
    def top_k(self) -> int:
        """
        The largest k, 10 or 5, of at most half the species (0: none): any ten of twelve species
        agree with any other ten.
        """
        return next((k for k in (10, 5) if 2 * k <= len(self.per_species)), 0)

    def __getitem__(self, score: str) -> float:
        return float(self.overall[score])

    def __repr__(self) -> str:
        told = [f"{name} {self.overall[name]:.4g}" for name in ("mse",) if name in self.overall]
        told += [f"{len(self.per_species)} species", f"{len(self.per_site):,} sites"]
        return f"<Scores of {self.name}: {', '.join(told)}>"

    def _repr_html_(self) -> str:
        shown = facts_html(f"Scores of {self.name}", self.summary())
        if self.beside is None:
            return shown
        columns = [
            "mse",
            "mae",
            *(["skill"] if self.beside["skill"].notna().any() else []),
            *([f"top{self.top_k}"] if self.top_k else []),
            "auc",
            "boyce",
        ]
        return shown + table_html(self.beside[columns])

    def to_csv(self, folder: Path) -> list[Path]:
        """
        Write ``scores.csv``, ``per_species.csv``, ``per_site.csv`` and, with blocks,
        ``per_block.csv``.

        Returns
        -------
        list of Path
            Where they lie.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        beside = (
            self.beside
            if self.beside is not None
            else self.overall.to_frame(self.name).T.rename_axis("predictor")
        )
        tables: Mapping[str, pd.DataFrame | None] = {
            "scores": beside,
            "per_species": self.per_species,
            "per_site": self.per_site,
            "per_block": self.per_block,
        }
        written = {folder / f"{name}.csv": table for name, table in tables.items()}
        for path, table in written.items():
            if table is not None:
                write_table(path, table, float_format="%.8g")
        return [path for path, table in written.items() if table is not None]


def score_predictions(
    dataset: Dataset,
    sites: Sequence[str],
    predictions: pd.DataFrame,
    *,
    reference: pd.DataFrame | None = None,
    blocks: pd.Series | None = None,
    thresholds: pd.Series | None = None,
    name: str = "model",
) -> Scores:
    """
    Score predictions on the whole set at once, so that no score depends on batches or on the order
    of sites.

    Parameters
    ----------
    dataset
        Holds the detections.
    sites
        Sites to score; those without a visit are left out.
    predictions
        (site, species) presence probabilities; more sites are allowed, the species must be those of
        the data set.
    reference
        (site, species) predictions that ``skill`` and ``factor`` compare with, usually those of the
        mean rate; None: both NaN.
    blocks
        Block of each site; None: ``dataset.sites["block"]`` if it is there.
    thresholds
        Per species, from training or out-of-fold predictions, for the true skill; None: chosen on
        these sites themselves, so that the true skill is an upper bound.
    name
        Of the predictor.

    Returns
    -------
    Scores
        Overall, per species, per site and, with blocks, per block.

    Raises
    ------
    DataError
        A site or species has no prediction, a prediction is not a probability, or no site has a
        visit.
    """
    sites = [site for site in sites if dataset.visits[site] > 0]
    if not sites:
        raise DataError(
            "None of the sites to score has a visit; nothing to compare predictions with."
        )
    probability = checked_predictions(dataset, sites, predictions)
    base = None if reference is None else checked_predictions(dataset, sites, reference)
    k, n = dataset.counts(sites)
    rate = k / n[:, None]
    cells = cell_scores(k, n, probability)
    floor = noise_floor(rate, n)
    base_error = None if base is None else (base - rate) ** 2

    per_species = _per_species(dataset, rate, probability, cells, thresholds)
    per_site = _per_site(dataset, sites, rate, probability, cells)
    for table, axis in ((per_species, 0), (per_site, 1)):
        table["noise_floor"] = _nanmean(floor, axis)
        base_mse = np.nan if base_error is None else base_error.mean(axis=axis)
        with np.errstate(divide="ignore", invalid="ignore"):
            table["factor"] = base_mse / table["mse"]
    overall = {key: float(value.mean()) for key, value in cells.items()}
    overall["noise_floor"] = float(np.nanmean(floor)) if (n > 1).any() else float("nan")
    overall["skill"] = float("nan")
    if base_error is not None and _floor_is_clear(base_error, floor):
        gap = float(base_error.mean()) - overall["noise_floor"]
        if gap > 0:
            overall["skill"] = 1 - (overall["mse"] - overall["noise_floor"]) / gap
    for key in ("top5", "top10", "adaptive_top", "similarity"):
        overall[key] = float(per_site[key].mean())
    for key in ("auc", "average_precision", "tss", "boyce"):
        overall[key] = float(per_species[key].mean())
    richness = per_site["richness_predicted"] - per_site["richness"]
    overall |= {
        "richness_bias": float(richness.mean()),
        "richness_mae": float(richness.abs().mean()),
    }
    overall["sites"] = float(len(sites))
    if blocks is None and "block" in dataset.sites.columns:
        blocks = dataset.sites["block"]
    per_block = None if blocks is None else _per_block(per_site, blocks)
    return Scores(
        name, pd.Series(overall, name=name)[list(DEFINITIONS)], per_species, per_site, per_block
    )


def checked_predictions(
    dataset: Dataset, sites: Sequence[str], predictions: pd.DataFrame
) -> np.ndarray:
    """
    Return the predictions of ``sites`` in the data set's order of species.

    Raises
    ------
    DataError
        A site or species has no prediction, or a prediction is not in [0, 1].
    """
    absent = [species for species in dataset.species if species not in predictions.columns]
    if absent:
        raise DataError(
            f"The predictions lack {len(absent)} of the {len(dataset.species)} species of the data "
            f"set, such as {absent[0]!r}. Train the model on this data set."
        )
    lost = pd.Index(list(sites)).difference(predictions.index)
    if len(lost):
        raise DataError(
            f"There is no prediction for site {lost[0]} and {len(lost) - 1} more. Predict all "
            f"{len(sites)}."
        )
    values: np.ndarray = predictions.loc[list(sites), list(dataset.species)].to_numpy(dtype=float)
    wrong = ~((values >= 0) & (values <= 1))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise DataError(
            f"The prediction of {dataset.species[column]} at site {list(sites)[row]} is "
            f"{values[row, column]}; a probability lies between 0 and 1."
        )
    return values


def cell_scores(k: np.ndarray, n: np.ndarray, probability: np.ndarray) -> dict[str, np.ndarray]:
    """
    Return the scores that are means over sites and species, before averaging.

    Parameters
    ----------
    k
        (sites, species) detections.
    n
        (sites,) visits, at least 1.
    probability
        (sites, species).

    Returns
    -------
    dict of arrays of shape (sites, species)
        ``mse``, ``mae``, ``bce``, ``deviance`` (McCullagh & Nelder 1989, section 4.4.3).
    """
    from scipy.special import xlogy

    rate = k / n[:, None]
    p = np.clip(probability, EPSILON, 1 - EPSILON)
    bce = -(rate * np.log(p) + (1 - rate) * np.log1p(-p))
    entropy = -(xlogy(rate, rate) + xlogy(1 - rate, 1 - rate))
    return {
        "mse": (probability - rate) ** 2,
        "mae": np.abs(probability - rate),
        "bce": bce,
        "deviance": 2 * n[:, None] * np.maximum(bce - entropy, 0.0),
    }


def noise_floor(rate: np.ndarray, n: np.ndarray) -> np.ndarray:
    """
    Return (sites, species) the unbiased estimate of the binomial variance of each rate; NaN at
    sites with one visit.

    If k of n is binomial with probability q, the expectation of rate (1 - rate) / (n - 1) is q (1 -
    q) / n: the squared error that remains when q itself is predicted.
    """
    return np.asarray(rate * (1 - rate) / np.where(n > 1, n - 1, np.nan)[:, None])


def _meaning(skill: float) -> str:
    if skill > 0:
        return "0: as good as the mean rate; 1: perfect"
    return "as good as the mean rate" if skill == 0 else "worse than the mean rate: do not trust it"


def _floor_is_clear(base_error: np.ndarray, floor: np.ndarray) -> bool:
    """
    Return whether the noise floor (sites, species) lies clearly below the error of the reference,
    judged on sites with more than one visit, which must be more than half of all.

    Skill divides by the difference: where that may be 0 or less, its size and its sign mean
    nothing.
    """
    known = np.isfinite(floor).all(axis=1)
    if known.sum() < 3 or 2 * known.sum() <= len(known):
        return False
    gap = (base_error - floor)[known].mean(axis=1)  # (sites,)
    return bool(gap.mean() > CLEAR * gap.std(ddof=1) / np.sqrt(len(gap)))


def _per_species(
    dataset: Dataset,
    rate: np.ndarray,
    probability: np.ndarray,
    cells: Mapping[str, np.ndarray],
    thresholds: pd.Series | None,
) -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "rate": rate.mean(axis=0),
            "predicted": probability.mean(axis=0),
            "recorded_at": (rate > 0).sum(axis=0),
        },
        index=pd.Index(list(dataset.species), name="species"),
    )
    for key, value in cells.items():
        table[key] = value.mean(axis=0)
    rankings = []
    for column, species in enumerate(dataset.species):
        detected, p = rate[:, column] > 0, probability[:, column]
        limit = (
            max_skill_threshold(detected, p) if thresholds is None else float(thresholds[species])
        )
        skill = (limit, true_skill(detected, p, limit), boyce_index(p[detected], p))
        rankings.append((auc(detected, p), average_precision(detected, p), *skill))
    return table.assign(
        **dict(
            zip(
                ("auc", "average_precision", "threshold", "tss", "boyce"),
                np.array(rankings).T,
                strict=True,
            )
        )
    )


def _per_site(
    dataset: Dataset,
    sites: Sequence[str],
    rate: np.ndarray,
    probability: np.ndarray,
    cells: Mapping[str, np.ndarray],
) -> pd.DataFrame:
    place = dataset.sites.loc[list(sites)]
    table = pd.DataFrame({name: place[name] for name in ("easting", "northing", "visits")})
    table.index.name = "site_id"
    for key, value in cells.items():
        table[key] = value.mean(axis=1)
    for k in (5, 10):  # all species agree with all species
        enough = k < rate.shape[1]
        table[f"top{k}"] = top_k_overlap(rate, probability, k) if enough else np.nan
    table["adaptive_top"] = adaptive_top_k(rate, probability)
    table["species_recorded"] = (rate > 0).sum(axis=1)
    table["richness"] = rate.sum(axis=1)
    table["richness_predicted"] = probability.sum(axis=1)
    total = (rate + probability).sum(axis=1)
    table["similarity"] = 1 - np.divide(
        np.abs(rate - probability).sum(axis=1), total, out=np.zeros(len(rate)), where=total > 0
    )
    return table


def _per_block(per_site: pd.DataFrame, blocks: pd.Series) -> pd.DataFrame:
    groups = per_site.assign(block=blocks.reindex(per_site.index).to_numpy()).groupby("block")
    table = groups[
        ["mse", "mae", "bce", "deviance", "top5", "top10", "similarity", "noise_floor"]
    ].mean()
    table.insert(0, "sites", groups.size())
    table.insert(1, "visits", groups["visits"].sum())
    return table


def _nanmean(values: np.ndarray, axis: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of the mean of nothing, which is NaN
        mean: np.ndarray = np.nanmean(values, axis=axis)
    return mean
