"""
Presence apart from detection: the likelihood of visits if a species may be absent, its mode, and
draws around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.special import expit, log_expit

from butterfly_sdm.season.cells import Calendar
from butterfly_sdm.season.curve import fit_curve
from butterfly_sdm.season.links import scoring
from butterfly_sdm.season.options import LinkName
from butterfly_sdm.season.site_effects import NODES, log_likelihood, posterior, prior

if TYPE_CHECKING:
    from butterfly_sdm.season.cells import CellCounts
    from butterfly_sdm.season.seasons import Seasons

# Standard deviations of the priors: log-odds of presence at the average site, effects of numbers,
# of log tau around log 0.7, of rho.
LEVEL_SD, SLOPE_SD, LOG_TAU, LOG_TAU_SD, RHO_SD = 2.0, 1.5, float(np.log(0.7)), 0.5, 0.4
FEW = 5.0  # numbers of a site with the full spread of effects; of more, each has less
DRAWS, FREEDOM, KEPT = 400, 6.0, 200
MANY_SITES = 5000  # from which the normal around the mode is the posterior


@dataclass(frozen=True, eq=False)
class Occupancy:
    """
    The posterior of one species, as an array of numbers ``theta`` = (curve, effects on presence,
    log tau, rho), in this order.

    ``presence: logit psi_i = z_i . gamma``; where present, ``P(seen | i, c) = s(a_i + eta_c)`` with
    ``a_i ~ Normal(rho (logit psi_i - mean), tau²)``: a species may be easier to find where it is
    likelier to live.

    Attributes
    ----------
    theta
        The mode.
    covariance
        Inverse of the second derivatives there.
    draws
        (draws, numbers) of the posterior, all alike.
    """

    theta: np.ndarray
    covariance: np.ndarray
    draws: np.ndarray


@dataclass(frozen=True, eq=False)
class Problem:
    """
    The visits of one species and the numbers of its sites.

    Attributes
    ----------
    k, n
        (sites, cells) sparse.
    basis
        (cells, coefficients) of the curve.
    numbers
        (sites, numbers) of presence, standardised; the first is 1.
    """

    k: sparse.csr_array
    n: sparse.csr_array
    basis: np.ndarray
    numbers: np.ndarray
    link: LinkName = "logit"

    @property
    def sizes(self) -> tuple[int, int]:
        """Coefficients of the curve, numbers of presence."""
        return self.basis.shape[1], self.numbers.shape[1]

    def parts(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
        """Return curve coefficients, effects on presence, tau, rho."""
        curve, numbers = self.sizes
        gamma = theta[curve : curve + numbers]
        return theta[:curve], gamma, float(np.exp(theta[-2])), float(theta[-1])

    def states(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """
        Return what the visits say given ``theta``.

        Returns
        -------
        dict
            ``value`` (sites,) log-likelihood; ``odds`` (sites,) logit psi; ``here`` (sites,)
            probability of presence given the visits; ``weight``, ``prior`` (sites, nodes) of the
            effect where present, with and without the visits; ``scaled`` (sites, nodes) its
            distance from the middle in tau.
        """
        beta, gamma, tau, rho = self.parts(theta)
        odds = self.numbers @ gamma
        middle = rho * (odds - odds.mean())
        log_prior = prior(middle, tau, NODES)
        likelihood = log_likelihood(self.k, self.n, self.basis @ beta, NODES, self.link)
        weight, marginal = posterior(likelihood, log_prior)
        here = log_expit(odds) + marginal
        value = np.where(self.seen, here, np.logaddexp(here, log_expit(-odds)))
        return {
            "value": value,
            "odds": odds,
            "here": np.exp(here - value),
            "weight": weight,
            "prior": np.exp(log_prior),
            "scaled": (NODES - middle[:, None]) / tau,
        }

    @property
    def seen(self) -> np.ndarray:
        """(sites,) whether the species was ever seen."""
        return np.asarray(self.k.sum(axis=1)).ravel() > 0

    def loss(self, theta: np.ndarray, penalty: np.ndarray) -> tuple[float, np.ndarray]:
        """Return minus the log posterior, and its gradient."""
        beta, gamma, tau, rho = self.parts(theta)
        numbers = self.sizes[1]
        found = self.states(theta)
        here, weight, scaled = found["here"], found["weight"], found["scaled"]
        own = weight * here[:, None]
        p, slope, _ = scoring((self.basis @ beta)[:, None] + NODES, self.link)
        score = (((self.k.T @ own) - (self.n.T @ own) * p) * slope).sum(axis=1)
        change = weight - found["prior"]
        by_middle = here * (change * scaled).sum(axis=1) / tau
        by_tau = here * (change * scaled**2).sum(axis=1)
        away = found["odds"] - found["odds"].mean()
        by_odds = here - expit(found["odds"]) + rho * (by_middle - by_middle.mean())
        spread = _spread(numbers)
        value = found["value"].sum() - 0.5 * beta @ penalty @ beta
        value -= 0.5 * ((gamma / spread) ** 2).sum() + 0.5 * (rho / RHO_SD) ** 2
        value -= 0.5 * ((theta[-2] - LOG_TAU) / LOG_TAU_SD) ** 2
        gradient = np.concatenate(
            [
                self.basis.T @ score - penalty @ beta,
                self.numbers.T @ by_odds - gamma / spread**2,
                [by_tau.sum() - (theta[-2] - LOG_TAU) / LOG_TAU_SD**2],
                [by_middle @ away - rho / RHO_SD**2],
            ]
        )
        return -float(value), -gradient


def fit_occupancy(
    problem: Problem,
    calendar: Calendar,
    *,
    rng: np.random.Generator | None = None,
) -> Occupancy:
    """
    Return the posterior of one species: mode, second derivatives, and draws of a t distribution
    around the mode, weighted by the posterior.

    The smoothness of the curve is chosen as in :func:`~butterfly_sdm.season.curve.fit_curve`.

    Parameters
    ----------
    problem
        Its basis is that of the calendar.
    calendar
        The cells.
    rng
        Draws; None: only the mode and its covariance.
    """
    _, penalties, fixed = calendar.design
    used = np.flatnonzero(np.asarray(problem.n.sum(axis=0)).ravel() > 0)
    inner = Problem(
        problem.k[:, used], problem.n[:, used], problem.basis[used], problem.numbers, problem.link
    )
    theta, smoothness = _begin(problem, calendar)
    curve = inner.sizes[0]
    covariance = np.eye(len(theta))
    penalty = fixed
    for last in (False, False, True):
        penalty = fixed + 0.02 * np.eye(curve)
        for value, (part, matrix) in zip(smoothness, penalties, strict=True):
            penalty[part, part] += value * matrix
        theta = _mode(inner, theta, penalty)
        covariance = _covariance(inner, theta, penalty)
        if last:
            break
        for place, (part, matrix) in enumerate(penalties):
            rank = float(np.linalg.matrix_rank(matrix))
            freedom = rank - smoothness[place] * np.trace(covariance[part, part] @ matrix)
            rough = max(float(theta[part] @ matrix @ theta[part]), 1e-9)
            smoothness[place] = np.clip(max(freedom, 1e-3) / rough, 1e-2, 1e5)
    draws = theta[None]
    if rng is not None:
        draws = _draws(inner, theta, covariance, penalty, rng)
    return Occupancy(theta, covariance, draws)


def _begin(problem: Problem, calendar: Calendar) -> tuple[np.ndarray, np.ndarray]:
    """Return a start: the curve at sites where the species was seen, the share of such sites."""
    seen = problem.seen
    some = seen if seen.sum() >= 3 else np.ones_like(seen)
    start = fit_curve(problem.k[some], problem.n[some], calendar, NODES, problem.link, rounds=15)
    theta = np.zeros(sum(problem.sizes) + 2)
    curve = problem.sizes[0]
    theta[:curve] = start.coefficients
    theta[: calendar.level] -= 0.5  # sites where it was seen are those where it is easy to see
    share = np.clip(seen.mean() * 1.3, 0.02, 0.95)
    theta[curve] = np.log(share / (1 - share))
    theta[-2], theta[-1] = LOG_TAU, 0.1
    return theta, np.asarray(start.smoothness, dtype=float).copy()


def _spread(numbers: int) -> np.ndarray:
    slopes = SLOPE_SD * min(1.0, float(np.sqrt(FEW / max(numbers - 1, 1))))
    return np.asarray(np.r_[LEVEL_SD, np.full(numbers - 1, slopes)])


def _mode(problem: Problem, theta: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    from scipy.optimize import minimize

    low, high = np.full(len(theta), -np.inf), np.full(len(theta), np.inf)
    low[-2], high[-2] = np.log(0.15), np.log(3.0)
    low[-1], high[-1] = -2.0, 2.0
    found = minimize(
        problem.loss,
        theta,
        args=(penalty,),
        jac=True,
        method="L-BFGS-B",
        bounds=np.column_stack([low, high]),
        options={"maxiter": 300, "maxcor": 20, "ftol": 1e-10},
    )
    return np.asarray(found.x)


def _covariance(problem: Problem, theta: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """Return the inverse of the second derivatives, from differences of gradients."""
    step, size = 1e-4, len(theta)
    hessian = np.empty((size, size))
    for place in range(size):
        move = np.zeros(size)
        move[place] = step
        above, below = (problem.loss(theta + way * move, penalty)[1] for way in (1, -1))
        hessian[place] = (above - below) / (2 * step)
    values, vectors = np.linalg.eigh((hessian + hessian.T) / 2)
    return np.asarray((vectors / np.maximum(values, 1e-3)) @ vectors.T)


def _draws(
    problem: Problem,
    theta: np.ndarray,
    covariance: np.ndarray,
    penalty: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return draws of the posterior by importance sampling [1]_, resampled to equal weights.

    References
    ----------
    .. [1] E. L. Ionides (2008), Truncated importance sampling. Journal of Computational and
           Graphical Statistics 17, 295-311.
    """
    size = len(theta)
    root = np.linalg.cholesky(covariance + 1e-9 * np.eye(size))
    if problem.numbers.shape[0] > MANY_SITES:
        return np.asarray(theta + rng.normal(size=(KEPT, size)) @ root.T)
    normal = rng.normal(size=(DRAWS, size))
    scale = rng.chisquare(FREEDOM, DRAWS) / FREEDOM
    draws = theta + normal @ root.T / np.sqrt(scale)[:, None]
    distance = (normal**2).sum(axis=1) / scale
    proposal = -0.5 * (FREEDOM + size) * np.log1p(distance / FREEDOM)
    log_weight = np.array([-problem.loss(draw, penalty)[0] for draw in draws]) - proposal
    weight = np.exp(log_weight - log_weight.max())
    weight = np.minimum(weight / weight.sum(), DRAWS**-0.5)
    reached = np.cumsum(weight / weight.sum())
    places = (np.arange(KEPT) + rng.random()) / KEPT
    chosen = np.minimum(np.searchsorted(reached, places), DRAWS - 1)
    return np.asarray(draws[chosen])


def fit_species(
    seasons: Seasons, counts: CellCounts, numbers: np.ndarray, *, seed: int | None
) -> tuple[Seasons, list[Occupancy]]:
    """
    Fit all species to visits.

    Parameters
    ----------
    seasons
        As of :meth:`~butterfly_sdm.season.seasons.Seasons.blank`.
    counts
        The visits.
    numbers
        (sites, numbers) of presence, standardised; the first is 1.
    seed
        Of the draws; None: without any.

    Returns
    -------
    seasons, fits
        With the curves of detection where a species is present; one posterior per species.
    """
    basis, fits = seasons.calendar.design[0], []
    for place in range(len(seasons.species)):
        problem = Problem(*counts.of_species(place), basis, numbers, seasons.link)
        rng = None if seed is None else np.random.default_rng((seed, place))
        fits.append(fit_occupancy(problem, seasons.calendar, rng=rng))
    curve = basis.shape[1]
    known = seasons.with_curves(
        [(one.theta[:curve], one.covariance[:curve, :curve], one.theta[-2]) for one in fits],
        np.array([len(counts.seen(place)) for place in range(len(fits))]),
    )
    return known, fits
