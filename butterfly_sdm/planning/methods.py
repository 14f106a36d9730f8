"""
Ways to choose sites: at random, by distance, by what a survey takes away of the expected error.

Each takes a :class:`Problem` and returns numbers of candidates in the order in which they are
chosen.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from butterfly_sdm.planning.belief import Belief

CHUNK = 4096


@dataclass(frozen=True)
class Problem:
    """
    What a method chooses from.

    Attributes
    ----------
    count
        Most sites.
    position, surveyed, places
        (candidates, 2), (surveyed, 2) and (places, 2) in one unit of length.
    belief
        What is believed of the candidates; None for methods that do not ask.
    cost
        (candidates,) of going there, above 0; None: all alike.
    budget
        Sum that the costs may reach; None: any.
    seed
        Of what is drawn.
    """

    count: int
    position: np.ndarray
    surveyed: np.ndarray
    places: np.ndarray
    belief: Belief | None = None
    cost: np.ndarray | None = None
    budget: float | None = None
    seed: int = 0

    def purse(self) -> Purse:
        """Return the means that are left before anything is chosen."""
        cost = np.ones(len(self.position)) if self.cost is None else np.asarray(self.cost, float)
        return Purse(cost, np.inf if self.budget is None else self.budget)


@dataclass
class Purse:
    """
    The means that are left, and who can still be paid.

    Attributes
    ----------
    cost
        (candidates,) of each.
    left
        What is left of the budget.
    open
        (candidates,) whether each may be chosen: not yet chosen and not too dear.
    """

    cost: np.ndarray
    left: float
    open: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.open = self.cost <= self.left

    def pay(self, candidate: int) -> None:
        """Choose one."""
        self.left -= float(self.cost[candidate])
        self.open &= self.cost <= self.left + 1e-9
        self.open[candidate] = False


def random_sites(problem: Problem) -> list[int]:
    """Return candidates drawn at random, every one alike."""
    purse, picks = problem.purse(), list[int]()
    for candidate in np.random.default_rng(problem.seed).permutation(len(problem.position)):
        if len(picks) < problem.count and purse.open[candidate]:
            picks.append(int(candidate))
            purse.pay(int(candidate))
    return picks


def space_sites(problem: Problem) -> list[int]:
    """
    Return candidates that bring a surveyed site near to every place: the greedy median.

    Each pick shortens the mean distance from a place to the nearest site most, per cost. What a
    candidate shortens can only fall as others are chosen, so few are reckoned again [1]_.

    References
    ----------
    .. [1] M. Minoux (1978), Accelerated greedy algorithms for maximizing submodular set functions.
           Optimization Techniques, Lecture Notes in Control and Information Sciences 7, 234-243.
    """
    near = _distances(problem.places, problem.surveyed).min(axis=1, initial=_far(problem))
    purse = problem.purse()

    def shortens(candidate: int) -> float:
        away = _distances(problem.places, problem.position[candidate : candidate + 1])[:, 0]
        return float(np.maximum(near - away, 0).sum() / purse.cost[candidate])

    heap: list[tuple[float, int, int]] = []
    for start in range(0, len(problem.position), CHUNK):
        part = problem.position[start : start + CHUNK]
        saved = np.maximum(near[:, None] - _distances(problem.places, part), 0).sum(axis=0)
        saved = saved / purse.cost[start : start + CHUNK]
        heap += [(-float(value), start + row, 0) for row, value in enumerate(saved)]
    heapq.heapify(heap)
    picks = list[int]()
    while heap and len(picks) < problem.count:
        _, candidate, when = heapq.heappop(heap)
        if not purse.open[candidate]:
            continue
        if when < len(picks):
            heapq.heappush(heap, (-shortens(candidate), candidate, len(picks)))
            continue
        picks.append(candidate)
        purse.pay(candidate)
        away = _distances(problem.places, problem.position[candidate : candidate + 1])[:, 0]
        near = np.minimum(near, away)
    return picks


def gain_sites(problem: Problem) -> list[int]:
    """
    Return the candidates that take most away of the expected error at the places, one by one.

    The greedy choice of the least weighted sum of posterior variances [1]_: what a survey of
    candidate c takes away is ``sum_t w_t C(t, c)^2 / (C(c, c) + noise(c))``, C the posterior
    covariance given all sites surveyed or chosen. Sums of squares are brought up to date after each
    pick; the matrix itself never is.

    Raises
    ------
    ValueError
        The problem has no belief.

    References
    ----------
    .. [1] A. Krause, A. Singh, C. Guestrin (2008), Near-optimal sensor placements in Gaussian
           processes. Journal of Machine Learning Research 9, 235-284.
    """
    belief = problem.belief
    if belief is None:
        raise ValueError("gain_sites needs problem.belief; make one with Process.belief.")
    purse, weight = problem.purse(), belief.weight
    between = belief.between
    power = np.einsum("t,tc,tc->c", weight, between, between, optimize=False).astype(float)
    variance = belief.variance.astype(float)
    of_places, of_candidates, picks = list[np.ndarray](), list[np.ndarray](), list[int]()
    while len(picks) < problem.count and purse.open.any():
        value = np.where(purse.open, power / (variance + belief.noise) / purse.cost, -np.inf)
        pick = int(value.argmax())
        picks.append(pick)
        purse.pay(pick)
        a = between[:, pick].copy()
        b = belief.among(slice(None), [pick])[:, 0]
        for x, y in zip(of_places, of_candidates, strict=True):
            a -= x * y[pick]
            b -= y * y[pick]
        root = np.sqrt(variance[pick] + belief.noise[pick]).astype(a.dtype)
        a, b = a / root, b / root
        heavy = weight * a
        crossed = between.T @ heavy
        for x, y in zip(of_places, of_candidates, strict=True):
            crossed -= y * (x @ heavy)
        power += b * (b * float(a @ heavy) - 2 * crossed)
        variance = np.maximum(variance - b.astype(float) ** 2, 0)
        of_places.append(a)
        of_candidates.append(b)
    return picks


def farthest_sites(problem: Problem) -> list[int]:
    """
    Return candidates each of which is farthest from all sites surveyed or chosen.

    It fills gaps, also those that matter to no place. Kept to compare with: no plan is made so.
    """
    near = _distances(problem.position, problem.surveyed).min(axis=1, initial=_far(problem))
    purse, picks = problem.purse(), list[int]()
    while len(picks) < problem.count and purse.open.any():
        pick = int(np.where(purse.open, near, -1).argmax())
        picks.append(pick)
        purse.pay(pick)
        near = np.minimum(
            near, _distances(problem.position, problem.position[pick : pick + 1])[:, 0]
        )
    return picks


def likely_sites(problem: Problem, finds: np.ndarray) -> list[int]:
    """
    Return the candidates with the most expected finds, per cost.

    Parameters
    ----------
    finds
        (candidates,) how many of the named species the visits planned are expected to find.
    """
    purse, picks = problem.purse(), list[int]()
    for candidate in np.argsort(-(finds / purse.cost), kind="stable").tolist():
        if len(picks) < problem.count and purse.open[candidate]:
            picks.append(candidate)
            purse.pay(candidate)
    return picks


#: What plan.method may be. Farthest in space is none of them, and no ranking by uncertainty is.
METHODS: Mapping[str, Callable[[Problem], list[int]]] = {
    "gain": gain_sites,
    "space": space_sites,
    "random": random_sites,
}


def _far(problem: Problem) -> float:
    """Return a distance beyond all others, for the first site of all."""
    every = np.concatenate([problem.position, problem.places])
    return float(np.hypot(*np.ptp(every, axis=0))) + 1.0 if len(every) else 1.0


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    from scipy.spatial.distance import cdist

    return np.asarray(cdist(a, b))
