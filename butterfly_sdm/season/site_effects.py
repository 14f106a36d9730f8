"""Effects of sites on a grid of nodes: likelihood, prior, posterior and the spread of the prior."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.special import logsumexp

from butterfly_sdm.season.links import log_chances
from butterfly_sdm.season.options import LinkName

NODES = np.linspace(-6, 6, 31)  # where a species may also be absent
REACH = 8.0  # of the grid, on the scale of the link
# Normal prior of log tau: sites of a species differ by a factor of 3 or so
LOG_TAU, LOG_TAU_SPREAD = float(np.log(1.2)), 0.7
TAU_BOUNDS = (0.25, 4.0)


def grid_of(nodes: int) -> np.ndarray:
    """Return the nodes, evenly from -8 to 8."""
    return np.linspace(-REACH, REACH, nodes)


def log_likelihood(
    k: sparse.csr_array,
    n: sparse.csr_array,
    curve: np.ndarray,
    grid: np.ndarray,
    link: LinkName,
) -> np.ndarray:
    """
    Return the log-likelihood of each site's visits at each node.

    Parameters
    ----------
    k, n
        (sites, cells) detections and visits.
    curve
        (cells,) effect of each cell.
    grid
        (nodes,) effects of a site.

    Returns
    -------
    array of shape (sites, nodes)
        ``sum_c k log p + (n - k) log(1 - p)``: the only step whose cost grows with the visits.
    """
    seen, unseen = log_chances(curve[:, None] + grid, link)  # (cells, nodes)
    return np.asarray(k @ (seen - unseen) + n @ unseen)


def prior(mean: np.ndarray | float, tau: float, grid: np.ndarray) -> np.ndarray:
    """Return (sites, nodes) logarithms of the weights of Normal(mean, tau²) on the nodes."""
    weight = -0.5 * ((grid - np.reshape(mean, (-1, 1))) / tau) ** 2
    return np.asarray(weight - logsumexp(weight, axis=1, keepdims=True))


def posterior(likelihood: np.ndarray, log_prior: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Return weights (sites, nodes), rows summing to 1, and the log marginal likelihood (sites,).
    """
    joint = likelihood + log_prior
    top = joint.max(axis=1, keepdims=True)
    weight = np.exp(joint - top)
    total = weight.sum(axis=1, keepdims=True)
    return weight / total, np.asarray(top + np.log(total)).ravel()


def best_tau(
    likelihood: np.ndarray,
    grid: np.ndarray,
    mean: np.ndarray | float,
    tau: float,
    *,
    shares: np.ndarray | None = None,
) -> float:
    """
    Return the spread of the effects whose marginal likelihood given ``likelihood`` is best, near
    ``tau``.

    Plain expectation-maximisation stops too early where detections are few; this looks at the
    likelihood itself, with a weak prior.

    Parameters
    ----------
    shares
        (sites,) how much each counts; None: 1.
    """
    top = likelihood.max(axis=1, keepdims=True)
    like = np.exp(likelihood - top)
    square = 0.5 * (grid - np.reshape(mean, (-1, 1))) ** 2  # (sites or 1, nodes)

    def value(log_tau: float) -> float:
        weight = np.exp(-square / np.exp(2 * log_tau))
        weight /= weight.sum(axis=1, keepdims=True)
        one = np.log(np.einsum("sq,sq->s", like, np.broadcast_to(weight, like.shape)) + 1e-300)
        total = float(one.sum() if shares is None else shares @ one)
        return total - 0.5 * ((log_tau - LOG_TAU) / LOG_TAU_SPREAD) ** 2

    at = np.clip(np.log(tau) + np.array([-0.4, -0.15, 0.0, 0.15, 0.4]), *np.log(TAU_BOUNDS))
    at = np.unique(at)
    found = np.array([value(place) for place in at])
    middle = int(np.clip(found.argmax(), 1, len(at) - 2))
    near = slice(middle - 1, middle + 2)
    bend, slope, _ = np.polyfit(at[near] - at[middle], found[near], 2)
    best = at[int(found.argmax())]
    if bend < -1e-9:
        best = at[middle] + np.clip(-slope / (2 * bend), at[0] - at[middle], at[-1] - at[middle])
    return float(np.exp(best))


def quantiles(values: np.ndarray, weights: np.ndarray, shares: tuple[float, ...]) -> np.ndarray:
    """
    Return quantiles of a number that grows along the grid.

    Parameters
    ----------
    values
        (nodes,) or (sites, nodes), growing.
    weights
        (sites, nodes), rows summing to 1.

    Returns
    -------
    array of shape (sites, shares)
        Linear between the middles of the nodes' weights.
    """
    reached = np.cumsum(weights, axis=1) - 0.5 * weights
    values = np.broadcast_to(values, weights.shape)
    return np.array(
        [np.interp(shares, reached[row], values[row]) for row in range(len(weights))]
    ).reshape(len(weights), len(shares))
