"""Fit the season curve of one species together with the effects of its sites."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from butterfly_sdm.season.cells import Calendar
from butterfly_sdm.season.links import scoring
from butterfly_sdm.season.options import LinkName
from butterfly_sdm.season.site_effects import best_tau, log_likelihood, posterior, prior

ROUNDS, FIRST_ROUNDS = 60, 8
LAMBDA_BOUNDS = (1e-2, 1e5)


@dataclass(frozen=True)
class Curve:
    """
    The season of one species.

    Attributes
    ----------
    coefficients
        Of the design of the calendar.
    covariance
        Theirs, given the smoothness.
    tau
        Standard deviation of the effects of sites, on the scale of the link.
    smoothness
        Weight of each penalty.
    evidence
        Log marginal likelihood of the visits.
    rounds
        Of the fit.
    """

    coefficients: np.ndarray
    covariance: np.ndarray
    tau: float
    smoothness: np.ndarray
    evidence: float
    rounds: int


def fit_curve(
    k: sparse.csr_array,
    n: sparse.csr_array,
    calendar: Calendar,
    grid: np.ndarray,
    link: LinkName,
    *,
    rounds: int = ROUNDS,
) -> Curve:
    """
    Return the curve under which visits are likeliest, with a penalty on roughness.

    ``P(seen | site i, cell c) = s(a_i + eta_c)`` with ``a_i ~ Normal(0, tau²)`` and ``eta`` a sum
    of splines. Expectation-maximisation over a common grid of ``a``: the step for the curve is a
    binomial regression on the (cells, nodes) table, whatever the number of visits. The weights of
    the penalties follow Fellner and Schall [1]_.

    Parameters
    ----------
    k, n
        (sites, cells) detections and visits, sparse.
    grid
        (nodes,).

    References
    ----------
    .. [1] S. N. Wood, M. Fasiolo (2017), A generalized Fellner-Schall method for smoothing
           parameter optimization. Biometrics 73, 1071-1081.
    """
    used = np.flatnonzero(np.asarray(n.sum(axis=0)).ravel() > 0)
    k, n = k[:, used], n[:, used]
    basis, penalties, fixed = calendar.design
    basis, level = basis[used], calendar.level
    smoothness = np.ones(len(penalties))
    beta = _start(k, n, basis, _penalty(penalties, smoothness, fixed), link)
    tau, old = 1.5, (-np.inf, 1.5)
    k_t, n_t = sparse.csr_array(k.T), sparse.csr_array(n.T)
    covariance, evidence, done = fixed, -np.inf, 0
    for done in range(1, rounds + 1):
        likelihood = log_likelihood(k, n, basis @ beta, grid, link)
        weight, marginal = posterior(likelihood, prior(0.0, tau, grid))
        penalty = _penalty(penalties, smoothness, fixed)
        evidence = float(marginal.sum())
        score = evidence - 0.5 * float(beta @ penalty @ beta)
        beta, covariance = _regress(k_t @ weight, n_t @ weight, basis, beta, penalty, grid, link)
        if done > 3:
            smoothness = _smoother(penalties, smoothness, beta, covariance)
        # The mean effect of a site goes into the curve, so that the grid stays around it.
        mean = float(weight.mean(axis=0) @ grid)
        beta[:level] += mean
        tau = best_tau(likelihood, grid, mean, tau)
        settled = abs(score - old[0]) < 1e-5 * (1 + 0.01 * abs(score))
        if done > FIRST_ROUNDS and settled and abs(tau - old[1]) < 0.01 * tau:
            break
        old = score, tau
    return Curve(beta, covariance, tau, smoothness, evidence, done)


def _penalty(
    penalties: list[tuple[slice, np.ndarray]], smoothness: np.ndarray, fixed: np.ndarray
) -> np.ndarray:
    out = fixed.copy()
    for value, (part, matrix) in zip(smoothness, penalties, strict=True):
        out[part, part] += value * matrix
    return out


def _start(
    k: sparse.csr_array,
    n: sparse.csr_array,
    basis: np.ndarray,
    penalty: np.ndarray,
    link: LinkName,
) -> np.ndarray:
    """Return the curve of pooled visits, a start and no more."""
    seen, visits = (np.asarray(part.sum(axis=0)).ravel() for part in (k, n))
    rate = (seen.sum() + 0.5) / (visits.sum() + 1)
    rates = np.clip((seen + rate) / (visits + 1), 1e-5, 0.99)
    effects = np.log(rates / (1 - rates)) if link == "logit" else np.log(-np.log1p(-rates))
    normal = basis.T @ (basis * visits[:, None]) + penalty + 1e-3 * np.eye(len(penalty))
    return np.asarray(np.linalg.solve(normal, basis.T @ (visits * effects)))


def _regress(
    seen: np.ndarray,
    visits: np.ndarray,
    basis: np.ndarray,
    beta: np.ndarray,
    penalty: np.ndarray,
    grid: np.ndarray,
    link: LinkName,
) -> tuple[np.ndarray, np.ndarray]:
    """Take two steps of Fisher scoring; ``seen`` and ``visits`` are (cells, nodes)."""
    normal = penalty
    for _ in range(2):
        p, slope, information = scoring((basis @ beta)[:, None] + grid, link)
        score = ((seen - visits * p) * slope).sum(axis=1)
        normal = basis.T @ (basis * (visits * information).sum(axis=1)[:, None]) + penalty
        step = np.linalg.solve(normal, basis.T @ score - penalty @ beta)
        beta = beta + step * min(1.0, 3 / max(float(np.abs(step).max()), 1e-9))
    return beta, np.linalg.inv(normal)


def _smoother(
    penalties: list[tuple[slice, np.ndarray]],
    smoothness: np.ndarray,
    beta: np.ndarray,
    covariance: np.ndarray,
) -> np.ndarray:
    out = smoothness.copy()
    for place, (part, matrix) in enumerate(penalties):
        rank = int(np.linalg.matrix_rank(matrix))
        freedom = rank - smoothness[place] * float(np.trace(covariance[part, part] @ matrix))
        rough = max(float(beta[part] @ matrix @ beta[part]), 1e-9)
        out[place] = np.clip(max(freedom, 1e-3) / rough, *LAMBDA_BOUNDS)
    return out
