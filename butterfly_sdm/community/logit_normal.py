"""
Species as a Gaussian on the scale of logits, seen through visits, by expectation propagation.

The other half of a community: ``eta = mu + a o z`` with ``z ~ N(0, S)`` and ``k ~ Bin(n, s(eta))``;
``mu`` is such that the mean of ``s(eta)`` is the prediction. The covariance S is learned by
expectation maximisation, first with Laplace's approximation [1]_, then with expectation
propagation [2]_.

References
----------
.. [1] C. Rasmussen, C. Williams (2006), Gaussian Processes for Machine Learning, chapter 3.
.. [2] T. Minka (2001), Expectation propagation for approximate Bayesian inference. UAI.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from butterfly_sdm.community.evidence import Evidence

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(15)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
SMALLEST = 1e-4  # predictions are kept this far from 0 and 1 where a logarithm is taken
SPREAD_SLOPE = 0.12
SPREAD_AT = 0.2
PRIOR_SITES, PRIOR_VARIANCE = 5.0, 1.5
#: Half of the width of the grid on which a tilted density is summed, in cavity deviations.
HALF_GRID = 4.5
DAMPING = 0.8
LEAST_SHARE = 1e-4  # of the prior variance, that a marginal may shrink to
LEAST_CAVITY = 0.01  # precision
ALMOST = np.float32(1 - 1e-6)
SHRUNK = 0.05
PLACES_AT_ONCE = 256


def mean_rate(mu: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Return the mean of ``s(mu + sd z)`` for a standard normal z."""
    total = np.zeros(np.broadcast(mu, sd).shape)
    for node, weight in zip(NODES, WEIGHTS, strict=True):
        total += weight * expit(mu + sd * node)
    return total


def offset(q: np.ndarray, sd: np.ndarray, *, steps: int = 8) -> np.ndarray:
    """Return ``mu`` such that the mean of ``s(mu + sd z)`` is ``q``, by Newton's method."""
    q = np.clip(q, SMALLEST, 1 - SMALLEST)
    mu = logit(q) * np.sqrt(1 + np.pi * sd**2 / 8)
    for _ in range(steps):
        value, slope = np.zeros_like(mu), np.zeros_like(mu)
        for node, weight in zip(NODES, WEIGHTS, strict=True):
            p = expit(mu + sd * node)
            value += weight * p
            slope += weight * p * (1 - p)
        mu = mu - np.clip((value - q) / np.maximum(slope, 1e-9), -1, 1)
    return np.asarray(mu)


def spread(q: np.ndarray) -> np.ndarray:
    """Return (places, species) by how much logits vary more where a prediction is small."""
    return np.asarray((np.clip(q, 1e-3, 0.8) / SPREAD_AT) ** -SPREAD_SLOPE)


@dataclass(frozen=True, eq=False)
class Posterior:
    """
    What is believed of places, on the scale of logits.

    Attributes
    ----------
    rate
        (places, species) expected rate.
    mean, sd
        (places, species) of the logit.
    correlated
        (places, species, species) covariance of the logits; None if it was not asked for.
    """

    rate: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    correlated: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class _Sites:
    """Messages from what was seen to the Gaussian: precision, and precision times value."""

    precision: np.ndarray
    total: np.ndarray

    @classmethod
    def none(cls, shape: tuple[int, ...]) -> _Sites:
        return cls(np.zeros(shape), np.zeros(shape))


def fit_covariance(
    q: np.ndarray,
    k: np.ndarray,
    n: np.ndarray,
    *,
    laplace_rounds: int = 10,
    rounds: int = 12,
) -> np.ndarray:
    """
    Learn the covariance of logits around predictions.

    Parameters
    ----------
    q
        (sites, species) predictions by models that have not seen the sites.
    k, n
        (sites, species) and (sites,) or (sites, species) detections and visits.

    Returns
    -------
    ndarray of shape (species, species)
        S, in which 5 sites of variance 1.5 and no covariance are counted beside those given.
    """
    evidence = Evidence(k, np.broadcast_to(n if n.ndim == 2 else n[:, None], q.shape)).limited()
    sites, species = q.shape
    prior = PRIOR_SITES * PRIOR_VARIANCE * np.eye(species)
    covariance = np.eye(species) * PRIOR_VARIANCE
    ones, mode = np.ones_like(q), None
    for number in range(laplace_rounds):
        mu = offset(q, np.sqrt(np.diag(covariance)) * ones, steps=4)
        mode, total = _laplace(mu, covariance, evidence, mode, steps=2 if number else 12)
        covariance = (total + prior) / (sites + PRIOR_SITES)
    a, messages = spread(q), _Sites.none(q.shape)
    for number in range(rounds):
        mu = offset(q, a * np.sqrt(np.diag(covariance)), steps=4)
        total = np.zeros_like(covariance)
        precision, moved = messages.precision.copy(), messages.total.copy()
        for rows in _parts(sites):
            state = _Sites(precision[rows], moved[rows])
            part = _propagate(
                mu[rows], a[rows], covariance, evidence.take(rows), state, 1 if number else 5
            )
            state, z, V = part
            precision[rows], moved[rows] = state.precision, state.total
            total += V.sum(axis=0) + z.T @ z
        messages = _Sites(precision, moved)
        covariance = (total + prior) / (sites + PRIOR_SITES)
    return covariance


def shrunk(covariance: np.ndarray) -> np.ndarray:
    """Return a covariance of which a share is given up, for those between species are many."""
    return np.asarray((1 - SHRUNK) * covariance + SHRUNK * np.diag(np.diag(covariance)))


def condition(
    q: np.ndarray,
    covariance: np.ndarray,
    evidence: Evidence,
    *,
    sweeps: int = 3,
    correlated: bool = False,
) -> Posterior:
    """
    Return what is believed of places given what is known there.

    Parameters
    ----------
    q
        (places, species) predictions.
    covariance
        S, (species, species); or one per place, (places, species, species).
    sweeps
        Of expectation propagation.
    correlated
        Also return the covariances, (places, species, species): that many numbers.
    """
    evidence, a = evidence.limited(), spread(q)
    variances = np.diagonal(covariance, axis1=-2, axis2=-1)
    mu = offset(q, a * np.sqrt(variances))
    rate, mean, sd = (np.empty_like(q) for _ in range(3))
    full = np.empty((*q.shape, q.shape[1])) if correlated else None
    for rows in _parts(len(q)):
        S = covariance if covariance.ndim == 2 else covariance[rows]
        part, scale = evidence.take(rows), a[rows]
        state, z, V = _propagate(
            mu[rows], scale, S, part, _Sites.none(scale.shape), sweeps, full=correlated
        )
        variance = np.diagonal(V, axis1=1, axis2=2) if correlated else V
        variance = np.maximum(variance, LEAST_SHARE * np.diagonal(S, axis1=-2, axis2=-1))
        mean[rows], sd[rows] = mu[rows] + scale * z, scale * np.sqrt(variance)
        cavity = _cavity(state, z, variance)
        rate[rows] = _tilted(mu[rows], scale, part, cavity)[2]
        if full is not None:
            full[rows] = scale[:, :, None] * scale[:, None, :] * V
    return Posterior(rate, mean, sd, full)


def _parts(count: int) -> Iterator[slice]:
    for at in range(0, count, PLACES_AT_ONCE):
        yield slice(at, min(at + PLACES_AT_ONCE, count))


def _laplace(
    mu: np.ndarray, S: np.ndarray, evidence: Evidence, mode: np.ndarray | None, *, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """
    Return the modes (sites, species) of k of n, and the sum over sites of the covariance there and
    of the square of the residual.
    """
    modes, total = (mu if mode is None else mode).copy(), np.zeros_like(S)
    for rows in _parts(len(mu)):
        m, k, n, eta = mu[rows], evidence.k[rows], evidence.n[rows], modes[rows]
        for _ in range(steps):
            p = expit(eta)
            w = np.maximum(n * p * (1 - p), 1e-10 * (n > 0))
            r, b = np.sqrt(w), w * (eta - m) + k - n * p
            solved = np.linalg.solve(_system(r, S), (r * (b @ S))[..., None])[..., 0]
            step = np.clip(m + (b - r * solved) @ S - eta, -4, 4)
            eta = eta + step
            if np.abs(step).max() < 1e-3:
                break
        p = expit(eta)
        r = np.sqrt(n * p * (1 - p))
        A = r[:, :, None] * S
        total += (S - np.swapaxes(A, 1, 2) @ np.linalg.solve(_system(r, S), A)).sum(axis=0)
        total += (eta - m).T @ (eta - m)
        modes[rows] = eta
    return modes, total


def _system(root: np.ndarray, S: np.ndarray) -> np.ndarray:
    """Return I + r r' o S of every place."""
    system: np.ndarray = root[:, :, None] * root[:, None, :] * S
    system += np.eye(S.shape[-1])
    return system


def _propagate(
    mu: np.ndarray,
    a: np.ndarray,
    S: np.ndarray,
    evidence: Evidence,
    state: _Sites,
    sweeps: int,
    *,
    full: bool = True,
) -> tuple[_Sites, np.ndarray, np.ndarray]:
    """
    Return the messages after ``sweeps``, the mean of z (places, species) and its covariance, or
    with ``full`` false its variance.
    """
    prior = np.diagonal(S, axis1=-2, axis2=-1)
    cells = evidence.cells
    for _ in range(sweeps):
        z, variance = _marginals(S, state, full=False)
        variance = np.maximum(variance, LEAST_SHARE * prior)
        cavity = _cavity(state, z, variance)
        mean, var, _ = _tilted(mu, a, evidence, cavity)
        precision = np.where(cells, np.maximum(1 / var - 1 / cavity[1], 1e-8), 0)
        total = np.where(cells, mean / var - cavity[0] / cavity[1], 0)
        state = _Sites(
            state.precision + DAMPING * (precision - state.precision),
            state.total + DAMPING * (total - state.total),
        )
    return state, *_marginals(S, state, full=full)


def _marginals(S: np.ndarray, state: _Sites, *, full: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return mean (places, species) of z, and its covariance or variance."""
    if not state.precision.any():
        mean = np.einsum("...ij,...j->...i", S, state.total)
        shape = state.precision.shape
        S = np.broadcast_to(S, (*shape, shape[1]))
        return mean, S.copy() if full else np.diagonal(S, axis1=1, axis2=2)
    root = np.sqrt(state.precision)
    A = root[:, :, None] * S
    solved = np.linalg.solve(_system(root, S), A)
    if full:
        V = S - np.swapaxes(A, 1, 2) @ solved
        return np.einsum("nij,nj->ni", V, state.total), V
    prior = np.diagonal(S, axis1=-2, axis2=-1)
    variance = prior - np.einsum("nij,nij->nj", A, solved)
    along = np.einsum("...ij,nj->ni" if S.ndim == 2 else "nij,nj->ni", S, state.total)
    mean = along - np.einsum("nij,ni->nj", solved, root * along)
    return mean, variance


def _cavity(state: _Sites, z: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of z without what a cell itself says."""
    without = 1 / np.maximum(1 / variance - state.precision, LEAST_CAVITY)
    return without * (z / variance - state.total), without


def _tilted(
    mu: np.ndarray, a: np.ndarray, evidence: Evidence, cavity: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Return mean and variance of z, and the mean of the rate, under the cavity times what is known of
    the cell: sums over a grid.
    """
    most = float(evidence.n.max(initial=0))
    points = 24 if most <= 12 else 48 if most <= 150 else 96
    grid = np.linspace(-HALF_GRID, HALF_GRID, points, dtype=np.float32)[:, None, None]
    middle, deviation = cavity[0].astype(np.float32), np.sqrt(cavity[1]).astype(np.float32)
    start, step = (mu + a * cavity[0]).astype(np.float32), (a * deviation).astype(np.float32)
    eta = np.clip(start + step * grid, -35, 35)  # (points, places, species)
    log = _log_likelihood(eta, evidence)
    log -= grid**2 / 2
    log -= log.max(axis=0)
    weight = np.exp(log, out=log)
    weight /= weight.sum(axis=0)
    first = (weight * grid).sum(axis=0)
    second = (weight * (grid - first) ** 2).sum(axis=0)
    rate = (weight / (1 + np.exp(-eta))).sum(axis=0)
    var = np.maximum(second * deviation**2, 1e-6)
    return (middle + deviation * first).astype(float), var.astype(float), rate.astype(float)


def _log_likelihood(eta: np.ndarray, evidence: Evidence) -> np.ndarray:
    """Return (points, places, species) what is known of the cells says of a logit."""
    softplus = np.log1p(np.exp(-np.abs(eta))) + np.maximum(eta, 0)
    log = evidence.k.astype(np.float32) * eta
    log -= evidence.n.astype(np.float32) * softplus
    for part in evidence.thinned:
        rows = np.flatnonzero(part.told > 0)
        told, listed = part.told[rows, None].astype(np.float32), part.listed[rows]
        log_rate = eta[:, rows] - softplus[:, rows]
        seen_and_told = np.minimum(told * np.exp(log_rate), ALMOST)
        log[:, rows] += np.where(listed, log_rate, np.log1p(-seen_and_told))
    if evidence.effort is not None:
        rows, columns = np.nonzero(evidence.effort > 0)
        never = -evidence.effort[rows, columns].astype(np.float32) * softplus[:, rows, columns]
        log[:, rows, columns] += np.log(np.maximum(-np.expm1(never), 1e-30))
    return np.asarray(log)


def calibrate_small(q: np.ndarray, k: np.ndarray, n: np.ndarray) -> np.ndarray:
    """
    Learn by how much small predictions are too large: what was seen over what was predicted.

    Returns
    -------
    ndarray of shape (knots,)
        Ratios, at most 1.2, at :data:`KNOTS`; 1 where nothing was predicted near a knot.
    """
    if n.ndim == 2:  # effective visits: as many of them as each cell has
        rate, weight = k.ravel(), n.ravel()
    else:
        rate, weight = (k / n[:, None]).ravel(), np.ones(q.size)
    at = np.log(np.clip(q, SMALLEST, 1)).ravel()
    small = q.ravel() < SMALL
    ratios = []
    for knot in KNOTS:
        near = small & (np.abs(at - np.log(knot)) < 0.4)
        total = (q.ravel() * weight)[near].sum()
        ratios.append(min(rate[near].sum() / total, 1.2) if total > 0 else 1.0)
    return np.array(ratios)


SMALL = 0.03
KNOTS = (3e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.5e-2)


def calibrated(q: np.ndarray, ratios: np.ndarray) -> np.ndarray:
    """Return predictions of which the small ones are corrected by the ratios at the knots."""
    at = np.log(np.clip(q, 1e-5, 1))
    return np.asarray(q * np.interp(at, np.log([*KNOTS, SMALL]), [*ratios, 1.0]))
