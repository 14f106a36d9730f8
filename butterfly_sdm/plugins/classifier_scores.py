"""Scores of classifiers, with intervals."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd
from scipy import stats
from sklearn import metrics

from butterfly_sdm.errors import DataError

Groups: TypeAlias = (
    pd.Series | np.ndarray | None
)  # of each row its patient or video; None: not known


def classification_scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """
    Return accuracy, balanced accuracy, macro precision, recall and F1, and AUC (one against the
    rest, macro).

    Parameters
    ----------
    labels
        (n,) class numbers.
    probabilities
        (n, classes).

    Raises
    ------
    DataError
        There is no row, or a single class among the labels.
    """
    present = np.unique(labels)
    if len(present) < 2:
        raise DataError(
            f"The held-out rows are of {len(present)} class; scores need at least 2. Hold out more "
            "rows."
        )
    predicted = probabilities.argmax(axis=1)
    right = predicted == labels
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        labels, predicted, average="macro", zero_division=0
    )
    areas = [metrics.roc_auc_score(labels == value, probabilities[:, value]) for value in present]
    return {
        "accuracy": float(right.mean()),
        "balanced_accuracy": float(np.mean([right[labels == value].mean() for value in present])),
        "macro_precision": float(precision),
        "macro_recall": float(recall),
        "macro_f1": float(f1),
        "auc": float(np.mean(areas)),
    }


def by_group(
    labels: np.ndarray, probabilities: np.ndarray, groups: Groups
) -> tuple[np.ndarray, np.ndarray] | None:
    """
    Return label (m,) and mean probabilities (m, classes) per patient or video, to judge its images
    together.

    None where that is not defined: no image has a partner, a group has images of two classes, or
    all groups are of one class.
    """
    if groups is None or pd.Series(groups).nunique() == len(labels):
        return None
    table = pd.DataFrame(probabilities).groupby(np.asarray(groups))
    known = pd.Series(labels).groupby(np.asarray(groups))
    if known.nunique().max() > 1 or len(set(labels)) < 2:
        return None
    return known.first().to_numpy(), table.mean().to_numpy()


def scores_with_groups(
    labels: np.ndarray, probabilities: np.ndarray, groups: Groups, what: str
) -> dict[str, float]:
    """
    Return :func:`classification_scores`, and as ``WHAT_NAME`` those of :func:`by_group` where they
    are defined.
    """
    scores = classification_scores(labels, probabilities)
    together = by_group(labels, probabilities, groups)
    of_groups = {} if together is None else classification_scores(*together)
    return scores | {f"{what}_{name}": value for name, value in of_groups.items()}


def class_scores(
    labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> pd.DataFrame:
    """Return precision, recall, F1 and number of rows per class."""
    values = metrics.precision_recall_fscore_support(
        labels, probabilities.argmax(axis=1), labels=range(len(classes)), zero_division=0
    )
    return pd.DataFrame(
        {"class": list(classes)}
        | dict(zip(("precision", "recall", "f1", "rows"), values, strict=True))
    )


def equal_error_rate(labels: np.ndarray, scores: np.ndarray) -> float:
    """
    Return the error rate at the threshold where false positives and false negatives are equally
    frequent.

    Parameters
    ----------
    labels
        (n,) true for the positive class.
    scores
        (n,) higher means positive.
    """
    false_positive, true_positive, _ = metrics.roc_curve(labels, scores)
    gap = (1 - true_positive) - false_positive  # falls from 1 to -1
    return float(np.interp(0.0, -gap, false_positive))


def student_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and the ends of its 95 % Student interval; a single value is its own."""
    array = np.asarray(values, dtype=float)
    mean, half = float(array.mean()), 0.0
    if len(array) > 1 and np.ptp(array) > 0:
        half = float(stats.t.ppf(0.975, len(array) - 1) * stats.sem(array))
    return mean, mean - half, mean + half


def interval_metrics(name: str, values: Sequence[float]) -> dict[str, float]:
    """
    Return mean and ends of the Student interval as ``name``, ``name_low``, ``name_high``; those of
    shares stay in [0, 1]. A single value has no interval.
    """
    mean, low, high = student_interval(values)
    if len(values) < 2:
        return {name: mean}
    if min(values) >= 0 and max(values) <= 1:
        low, high = max(low, 0.0), min(high, 1.0)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def prediction_table(
    names: Sequence[object],
    probabilities: np.ndarray,
    classes: Sequence[str],
    key: str = "path",
    label: np.ndarray | None = None,
) -> pd.DataFrame:
    """
    Return one row per image or video: its name, the likeliest class and all probabilities.

    Parameters
    ----------
    names
        (n,) of the rows.
    probabilities
        (n, classes).
    classes
        Their names, for the columns ``predicted`` and ``p_CLASS``.
    key
        Column of the names.
    label
        (n,) class numbers, where they are known, for the column ``label``.
    """
    columns: dict[str, object] = {key: list(map(str, names))}
    if label is not None:
        columns["label"] = [classes[number] for number in label]
    columns["predicted"] = [classes[number] for number in probabilities.argmax(axis=1)]
    shares = {f"p_{name}": probabilities[:, number] for number, name in enumerate(classes)}
    return pd.DataFrame(columns | shares)


def paired_p_value(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test; 1 if nothing differs."""
    difference = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    return 1.0 if not difference.any() else float(stats.wilcoxon(difference).pvalue)
