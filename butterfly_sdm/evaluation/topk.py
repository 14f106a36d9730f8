"""How many of the k most frequent species of a site are among the k predicted highest."""

import numpy as np

from butterfly_sdm.errors import DataError


def top_k_overlap(observed: np.ndarray, predicted: np.ndarray, k: int) -> np.ndarray:
    """
    Return, per site, the share of the k most frequent species that are among the k predicted
    highest.

    The published score [1]_ breaks ties by the order of the columns, and a site with fewer than k
    recorded species has ties at rate 0. Here ties, observed and predicted, count with their
    expected value if broken at random, each table by itself: a species has the probability of being
    among the first k, and the overlap is the sum of products of the two probabilities.

    Parameters
    ----------
    observed, predicted
        (sites, species) detection rates and presence probabilities.
    k
        1 to the number of species.

    Returns
    -------
    array of shape (sites,)
        In [0, 1].

    Raises
    ------
    DataError
        The shapes differ or k is out of range.

    References
    ----------
    .. [1] T. van der Plas, S. Law, M. Pocock (2025), Predicting butterfly species presence from
           satellite imagery using soft
       contrastive regularisation, arXiv 2505.09306.

    Examples
    --------
    >>> top_k_overlap(np.array([[0.9, 0.5, 0.0, 0.0]]), np.array([[0.8, 0.1, 0.2, 0.3]]), 2)
    array([0.5])

    Three species tie for the second place:

    >>> top_k_overlap(np.array([[0.9, 0.0, 0.0, 0.0]]), np.array([[0.8, 0.4, 0.2, 0.1]]), 2)
    array([0.66666667])
    """
    if observed.shape != predicted.shape or observed.ndim != 2:
        raise DataError(
            f"Observed {observed.shape} and predicted {predicted.shape} must have one shape "
            "(sites, species)."
        )
    if not 1 <= k <= observed.shape[1]:
        raise DataError(
            f"k = {k} must lie between 1 and the number of species, {observed.shape[1]}."
        )
    return np.asarray((_membership(observed, k) * _membership(predicted, k)).sum(axis=1) / k)


def adaptive_top_k(observed: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """
    Return, per site, the share of the recorded species that are among as many predicted highest;
    NaN without any.

    k is the number of species recorded at the site (SatBird, Teng et al. 2023), so nothing observed
    is tied at the border.
    """
    recorded = observed > 0  # (sites, species)
    count = recorded.sum(axis=1)
    result = np.full(len(observed), np.nan)
    for k in np.unique(count[count > 0]):
        rows = count == k
        result[rows] = (recorded[rows] * _membership(predicted[rows], int(k))).sum(axis=1) / k
    return result


def _membership(values: np.ndarray, k: int) -> np.ndarray:
    """
    Return the probability of each entry to be among the first k of its row, ties broken at random.
    """
    limit = -np.partition(-values, k - 1, axis=1)[:, k - 1 : k]  # (rows, 1) the k-th largest
    above, tied = values > limit, values == limit
    share = (k - above.sum(axis=1, keepdims=True)) / tied.sum(axis=1, keepdims=True)
    return np.asarray(above + tied * share)
