"""
Scores that ask only whether a species was recorded at all: AUC, average precision, TSS, Boyce
index.
"""

import numpy as np
from scipy.stats import rankdata

from butterfly_sdm.errors import DataError


def auc(detected: np.ndarray, predicted: np.ndarray) -> float:
    """
    Return the area under the receiver operating characteristic; NaN if all or none are detected.

    The probability that a site with the species is ranked above one without, ties counting half.
    """
    positives = int(detected.sum())
    negatives = len(detected) - positives
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(predicted)
    return float(
        (ranks[detected].sum() - positives * (positives + 1) / 2) / (positives * negatives)
    )


def average_precision(detected: np.ndarray, predicted: np.ndarray) -> float:
    """
    Return the mean precision over the recall steps, tied predictions taken together; NaN if none is
    detected.
    """
    positives = int(detected.sum())
    if not positives:
        return float("nan")
    order = np.argsort(-predicted, kind="stable")
    # last place of each group of ties
    ends = np.flatnonzero(np.r_[np.diff(predicted[order]) != 0, True])
    hits = np.cumsum(detected[order])[ends]
    return float((np.diff(hits, prepend=0) / positives * hits / (ends + 1)).sum())


def true_skill(detected: np.ndarray, predicted: np.ndarray, threshold: float) -> float:
    """
    Return sensitivity + specificity - 1 with ``predicted >= threshold`` taken as presence (Allouche
    et al. 2006).

    NaN if all or none are detected.
    """
    if detected.all() or not detected.any():
        return float("nan")
    presence = predicted >= threshold
    return float(presence[detected].mean() - presence[~detected].mean())


def max_skill_threshold(detected: np.ndarray, predicted: np.ndarray) -> float:
    """
    Return the threshold with the largest true skill, the lowest of equals; NaN if all or none are
    detected.

    On the data it is then scored on this is an upper bound; choose it on training or out-of-fold
    predictions.
    """
    if detected.all() or not detected.any():
        return float("nan")
    values = np.unique(predicted)
    positives, negatives = np.sort(predicted[detected]), np.sort(predicted[~detected])
    sensitivity = 1 - np.searchsorted(positives, values, side="left") / len(positives)
    false_positive = 1 - np.searchsorted(negatives, values, side="left") / len(negatives)
    return float(values[np.argmax(sensitivity - false_positive)])


def boyce_index(presence: np.ndarray, background: np.ndarray, *, steps: int = 101) -> float:
    """
    Return the continuous Boyce index (Hirzel et al. 2006).

    Windows of a tenth of the range slide over the predictions; in each, the share of the presences
    over the share of the background is the ratio of predicted to expected. The index is Spearman's
    correlation of that ratio with the middle of the window. Runs of equal ratios count once, as in
    the R package ecospat.

    Parameters
    ----------
    presence
        Predictions where the species was recorded.
    background
        Predictions at all sites.
    steps
        How many windows.

    Returns
    -------
    float
        -1 to 1; NaN where it is undefined (no presences, one value throughout, fewer than three
        different ratios).

    Raises
    ------
    DataError
        Fewer than two windows.

    References
    ----------
    .. [1] A. H. Hirzel et al. (2006), Evaluating the ability of habitat suitability models to
           predict species presences.
       Ecological Modelling 199, 142-152.
    """
    if steps < 2:
        raise DataError(f"The Boyce index needs at least 2 steps; got {steps}.")
    if len(presence) == 0 or len(background) == 0:
        return float("nan")
    low, high = float(background.min()), float(background.max())
    if not low < high:
        return float("nan")
    width = (high - low) / 10
    starts = np.linspace(low, high - width, steps)
    # The last window reaches the highest prediction whatever the rounding.
    ends = np.where(np.arange(steps) == steps - 1, high, starts + width)
    expected = _share_between(background, starts, ends)
    found = _share_between(presence, starts, ends)
    kept = expected > 0
    ratio, middle = found[kept] / expected[kept], ((starts + ends) / 2)[kept]
    new = np.r_[True, np.diff(ratio) != 0]
    ratio, middle = ratio[new], middle[new]
    if len(ratio) < 3 or ratio.std() == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(ratio), rankdata(middle))[0, 1])


def _share_between(values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    ordered = np.sort(values)
    count = np.searchsorted(ordered, ends, side="right") - np.searchsorted(
        ordered, starts, side="left"
    )
    return count / len(values)
