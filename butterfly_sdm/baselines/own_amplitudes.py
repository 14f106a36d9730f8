"""Give each species its own amplitude per kernel and its own noise, drawn towards those that all share."""

from __future__ import annotations

import numpy as np


def fit_amplitudes(
    parts: np.ndarray,
    shared: np.ndarray,
    noise: np.ndarray,
    rates: np.ndarray,
    n: np.ndarray,
    *,
    steps: int,
    shrinkage: float,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Maximise the marginal likelihood of each species over log amplitudes, with a Gaussian prior around the shared ones.

    Parameters
    ----------
    parts
        (kernels, sites, sites) correlation matrices.
    shared, noise
        (kernels,) amplitudes and (2,) nugget and sampling noise of all species together.
    rates
        (sites, species) detection rates.
    n
        (sites,) visits.
    steps
        Iterations of L-BFGS; 0 leaves the shared amplitudes, scaled to the variance of each species.
    shrinkage
        Inverse variance of the prior on the logarithms.

    Returns
    -------
    amplitudes : array of shape (species, kernels)
    noises : array of shape (species, 2)
    """
    from scipy.optimize import minimize

    total = shared.sum() + noise[0] + noise[1] * (1.0 / n).mean()
    start = np.log(np.maximum(np.concatenate([shared, noise]) / total, 1e-6))
    found = []
    for column in rates.T:
        values = column - column.mean()
        variance = max(float(values.var()), 1e-12)
        theta = start
        if steps and variance > 1e-12:
            theta = minimize(
                _objective,
                start,
                args=(values / np.sqrt(variance), parts, start, 1.0 / n, shrinkage),
                jac=True,
                method="L-BFGS-B",
                bounds=[(place - 7.0, place + 7.0) for place in start],
                options={"maxiter": steps},
            ).x
        found.append(np.exp(theta) * variance)
    theta = np.stack(found)
    return theta[:, : len(shared)], theta[:, len(shared) :]


def _objective(
    theta: np.ndarray, y: np.ndarray, parts: np.ndarray, centre: np.ndarray, per_visit: np.ndarray, shrinkage: float
) -> tuple[float, np.ndarray]:
    """Return the negative log posterior of the log amplitudes and its gradient (Rasmussen & Williams 2006, eq. 5.9)."""
    from scipy.linalg import cho_solve, lapack

    amplitude, (nugget, sampling) = np.exp(theta[:-2]), np.exp(theta[-2:])
    covariance = np.tensordot(amplitude, parts, 1)
    covariance[np.diag_indices(len(y))] += nugget + sampling * per_visit
    factor, failed = lapack.dpotrf(covariance, lower=1)
    if failed:
        return 1e9, np.zeros_like(theta)
    alpha = cho_solve((factor, True), y)
    value = 0.5 * y @ alpha + np.log(np.diag(factor)).sum()
    inverse, _ = lapack.dpotri(factor, lower=1)
    diagonal = np.diag(inverse).copy()
    lower = np.tril(inverse, -1)
    gradient = np.empty_like(theta)
    for place, part in enumerate(parts):
        trace = 2 * np.vdot(lower, part) + diagonal @ np.diag(part)
        gradient[place] = 0.5 * (trace - alpha @ part @ alpha)
    gradient[-2] = 0.5 * (diagonal.sum() - alpha @ alpha)
    gradient[-1] = 0.5 * (diagonal @ per_visit - alpha**2 @ per_visit)
    away = theta - centre
    return value + 0.5 * shrinkage * away @ away, gradient * np.exp(theta) + shrinkage * away
