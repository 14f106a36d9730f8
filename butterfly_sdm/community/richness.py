"""How many species so many visits would find, and how sure that is of species that go together."""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from butterfly_sdm.community.logit_normal import offset

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(21)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
ORDERS = 3  # of the expansion of the covariance of two species being found
PLACES_AT_ONCE = 512


def found_at_all(mean: np.ndarray, sd: np.ndarray, visits: np.ndarray | float) -> np.ndarray:
    """
    Return how the chance to be found on so many visits varies with the logit of the rate.

    Parameters
    ----------
    mean, sd
        Of the logit; any shape.
    visits
        That broadcasts to it.

    Returns
    -------
    ndarray of shape (1 + ORDERS, ...)
        Coefficients c of normalised Hermite polynomials: c[0] is the chance itself, and two
        species whose logits correlate by r are found with the covariance sum of c[i] c'[i] r**i
        over i > 0 (Mehler's formula).
    """
    chance = np.zeros((1 + ORDERS, *np.broadcast(mean, sd, visits).shape))
    for node, weight in zip(NODES, WEIGHTS, strict=True):
        eta = mean + sd * node
        found = -np.expm1(-visits * np.logaddexp(0, eta))  # 1 - (1 - s(eta))^visits
        hermite = (1.0, node, (node**2 - 1) / 2**0.5, (node**3 - 3 * node) / 6**0.5)
        for order, value in enumerate(hermite):
            chance[order] += weight * value * found
    return chance


def moments(coefficients: np.ndarray, correlation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Return mean and standard deviation, (places,), of the number of species found.

    Parameters
    ----------
    coefficients
        (1 + ORDERS, places, species), of :func:`found_at_all`.
    correlation
        (species, species) of logits, or (places, species, species).
    """
    chance = coefficients[0]
    variance = (chance * (1 - chance)).sum(axis=1)
    power = np.ones_like(correlation)
    for one in coefficients[1:]:
        power = power * correlation
        along = one @ power if power.ndim == 2 else np.einsum("nij,nj->ni", power, one)
        own = np.diagonal(power, axis1=-2, axis2=-1) * one**2
        variance = variance + (along * one).sum(axis=1) - own.sum(axis=1)
    return chance.sum(axis=1), np.sqrt(np.maximum(variance, 1e-6))


def posterior_moments(
    mean: np.ndarray, covariance: np.ndarray, visits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """
    Return mean and standard deviation, (places,), of the number of species that visits find.

    Parameters
    ----------
    mean, covariance
        (places, species), (places, species, species) of logits.
    visits
        (places,) to come.
    """
    count, deviation = np.empty(len(mean)), np.empty(len(mean))
    for at in range(0, len(mean), PLACES_AT_ONCE):
        rows = slice(at, at + PLACES_AT_ONCE)
        sd = np.sqrt(np.diagonal(covariance[rows], axis1=1, axis2=2))
        found = found_at_all(mean[rows], sd, visits[rows, None])
        correlation = covariance[rows] / (sd[:, :, None] * sd[:, None, :])
        count[rows], deviation[rows] = moments(found, correlation)
    return count, deviation


def rate_interval(
    rate: np.ndarray, sd: np.ndarray, *, deviations: float = 1.6449
) -> tuple[np.ndarray, np.ndarray]:
    """
    Return the interval of rates around the expected rate, given the deviation of their logits.

    >>> low, high = rate_interval(np.array([0.3]), np.array([1.0]))
    >>> round(float(low[0]), 2), round(float(high[0]), 2)
    (0.07, 0.65)
    """
    mu = offset(rate, sd)
    low, high = expit(mu - deviations * sd), expit(mu + deviations * sd)
    return np.minimum(low, rate), np.maximum(high, rate)
