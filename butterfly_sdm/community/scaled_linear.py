"""
Residuals of all species as one Gaussian on the scale of rates, wider where a rate is moderate.

The linear half of a community: with ``d = (q (1 - q) + 0.01)^(1/4)`` the residual of a rate from
its prediction q has the covariance ``d d' o C``, and what was seen moves all species at once as
kriging moves places.
"""

from __future__ import annotations

import numpy as np

from butterfly_sdm.community.evidence import Evidence

#: Kept away from 0: the noise of a visit to a species that is predicted never to be seen.
LEAST_NOISE = 0.004
#: Share of the covariances that is given up, for they are many and the sites are few.
SHRUNK = 0.05
#: Least variance of a scaled residual: a species never seen so far may still be there.
LEAST_VARIANCE = 0.01
PLACES_AT_ONCE = 256
HALF_WEIGHT = 5.0  # visits from which a site counts half


def scale(q: np.ndarray) -> np.ndarray:
    """Return (places, species) the scale of residuals around predictions ``q``."""
    return np.asarray((q * (1 - q) + 0.01) ** 0.25)


def fit_covariance(q: np.ndarray, k: np.ndarray, n: np.ndarray) -> np.ndarray:
    """
    Estimate the covariance of scaled residuals, without the noise of the visits.

    Parameters
    ----------
    q
        (sites, species) predictions by models that have not seen the sites.
    k, n
        (sites, species) and (sites,) detections and visits; or n (sites, species), not whole, of
        effective visits.

    Returns
    -------
    ndarray of shape (species, species)
        Positive definite.
    """
    if n.ndim == 2:
        return _of_effective(q, k, n)
    rate, d = k / n[:, None], scale(q)
    weight = (n / (n + HALF_WEIGHT))[:, None]
    residual = (rate - q) / d
    noise = rate * (1 - rate) / np.maximum(n[:, None] - 1, 1) / d**2
    covariance = (residual * weight).T @ residual / weight.sum()
    covariance -= np.diag((noise * weight).sum(axis=0) / weight.sum())
    return _sound(covariance)


def _of_effective(q: np.ndarray, k: np.ndarray, n: np.ndarray) -> np.ndarray:
    """
    Estimate it from effective visits, each cell with as many of its own. Their noise is that of the
    rates behind them, ``q (1 - q)`` less what these vary: found in a few turns.
    """
    d, root = scale(q), np.sqrt(n / (n + HALF_WEIGHT))
    residual = np.where(n > 0, k / np.maximum(n, 1e-9) - q, 0) / d * root
    weight = np.maximum(root.T @ root, 1e-9)
    raw, variance = residual.T @ residual / weight, np.zeros(q.shape[1])
    for _ in range(5):
        noise = np.maximum(q * (1 - q) - variance * d**2, 0) / np.maximum(n, 1e-9)
        extra = np.where(n > 0, noise, 0) / d**2 * root**2
        variance = np.clip(np.diag(raw) - extra.sum(axis=0) / np.diag(weight), 0, None)
    return _sound(raw - np.diag(np.diag(raw) - variance))


def _sound(covariance: np.ndarray) -> np.ndarray:
    """Return a covariance that is positive definite, shrunk, and nowhere next to nothing."""
    values, vectors = np.linalg.eigh(covariance)
    covariance = (vectors * np.clip(values, 1e-4, None)) @ vectors.T
    covariance = (1 - SHRUNK) * covariance + SHRUNK * np.diag(np.diag(covariance))
    lacking = np.clip(LEAST_VARIANCE - np.diag(covariance), 0, None)
    return np.asarray(covariance + np.diag(lacking))


def pseudo_visits(
    q: np.ndarray, variance: np.ndarray, evidence: Evidence
) -> tuple[np.ndarray, np.ndarray]:
    """
    Return what is known as measurements of the rate, (places, species): precision, and precision
    times value.

    The noise is that at the prediction, not at what is concluded: a few lucky visits would else
    seem precise. A partial list tells ``listed / told`` of every species.

    Parameters
    ----------
    variance
        (places, species) of the rate before anything is known.
    """
    one = np.maximum(q * (1 - q), LEAST_NOISE)
    precision, total = evidence.n / one, evidence.k / one
    for part in evidence.thinned:
        told = np.maximum(part.told, 1e-9)[:, None]
        there = (part.told > 0)[:, None]
        noise = np.maximum(q * (1 - told * q), LEAST_NOISE) / told
        precision = precision + np.where(there, 1 / noise, 0)
        total = total + np.where(there, part.listed / told / noise, 0)
    if evidence.effort is not None:
        more, moved = _seen_at_all(q, variance, evidence.effort)
        precision, total = precision + more, total + moved
    return precision, total


def _seen_at_all(
    q: np.ndarray, variance: np.ndarray, effort: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Turn 'seen at least once in so many visits' into a measurement with the same two moments."""
    rows, columns = np.nonzero(effort > 0)
    precision, total = np.zeros_like(q), np.zeros_like(q)
    if len(rows):
        grid = np.linspace(5e-4, 1 - 5e-4, 400)[:, None]
        mean, var = q[rows, columns], variance[rows, columns]
        weight = np.exp(-((grid - mean) ** 2) / (2 * var)) * (
            1 - (1 - grid) ** effort[rows, columns]
        )
        weight /= weight.sum(axis=0)
        tilted = (weight * grid).sum(axis=0)
        spread = (weight * (grid - tilted) ** 2).sum(axis=0)
        gain = np.clip(1 / spread - 1 / var, 1e-3 / var, 1e4)
        precision[rows, columns] = gain
        total[rows, columns] = mean * gain + (tilted - mean) * (1 / var + gain)
    return precision, total


def condition(
    q: np.ndarray, covariance: np.ndarray, evidence: Evidence, *, about: np.ndarray | None = None
) -> np.ndarray:
    """
    Return (places, species) the expected rates given what is known.

    Parameters
    ----------
    q
        (places, species) predictions; they set the noise of visits and the scale of residuals.
    covariance
        (species, species) of scaled residuals, or (places, species, species).
    about
        (places, species) what the residuals are about, if it is not ``q``: the predictions moved by
        neighbours.
    """
    mean = q if about is None else about
    d = scale(q)
    variances = np.diagonal(covariance, axis1=-2, axis2=-1) * d**2
    precision, total = pseudo_visits(q, variances, evidence)
    root = np.sqrt(precision) * d  # (places, species)
    # total - precision * mean, divided by the root that the solution is multiplied with
    gap = np.divide((total - precision * mean) * d, root, out=np.zeros_like(root), where=root > 0)
    moved = np.empty_like(root)
    for at in range(0, len(q), PLACES_AT_ONCE):
        rows = slice(at, at + PLACES_AT_ONCE)
        C = covariance if covariance.ndim == 2 else covariance[rows]
        moved[rows] = _solved(root[rows], gap[rows], C)
    return np.asarray(np.clip(mean + d * moved, 0, 1))


def _solved(root: np.ndarray, gap: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    system = root[:, :, None] * root[:, None, :] * covariance
    system[:, *np.diag_indices(root.shape[1])] += 1
    weight = root * np.linalg.solve(system, gap[..., None])[..., 0]
    if covariance.ndim == 2:
        return np.asarray(weight @ covariance)
    return np.asarray(np.einsum("nij,nj->ni", covariance, weight))
