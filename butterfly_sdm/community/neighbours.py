"""What new records say of places around them: residual axes of the community, kriged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from butterfly_sdm.community import scaled_linear
from butterfly_sdm.community.evidence import Evidence

#: No record says anything of a place farther away.
FARTHEST_M = 15_000.0
#: What is tried: how much of a residual neighbours share at no distance, and how far it reaches.
SHARES = (0.0, 0.15, 0.3, 0.5)
REACHES_M = (5_000.0, 10_000.0, FARTHEST_M)
MOST_TRIED = 400  # sites of a fold
REPEATS = 2
#: Standard errors by which neighbours have to help: the best of several tries always seems to.
SURELY = 3.0


def shared(distance_m: np.ndarray, reach_m: float) -> np.ndarray:
    """
    Return how alike residuals are at a distance: 1 at none, 0 from ``reach_m`` on.

    Wendland's function of compact support [1]_, a correlation in the plane.

    References
    ----------
    .. [1] H. Wendland (1995), Piecewise polynomial, positive definite and compactly supported
           radial functions of minimal degree. Advances in Computational Mathematics 4.
    """
    part = np.clip(distance_m / reach_m, 0, 1)
    rest = (1 - part) ** 2
    return np.asarray(rest * rest * (4 * part + 1))


@dataclass(frozen=True, eq=False)
class Measured:
    """
    What records measure of the axes of a community.

    Attributes
    ----------
    axes, variances
        (species, species), (species,) eigenvectors (columns) and eigenvalues of the covariance of
        scaled residuals.
    value, noise
        (axes, records) measurement and the variance of its error.
    """

    axes: np.ndarray
    variances: np.ndarray
    value: np.ndarray
    noise: np.ndarray


@dataclass(frozen=True, eq=False)
class Records:
    """
    New records at places the model has not seen, solved once for all that is asked around them.

    Attributes
    ----------
    positions
        (records, 2) metres.
    axes, variances
        (species, species), (species,) eigenvectors (columns) and eigenvalues of the covariance of
        scaled residuals.
    weights
        (axes, records): the residual of an axis at a place is ``share * variance * (similarity to
        the records) @ weights``.
    noise
        (axes, records) of what the records measure of an axis.
    share, reach_m
        How alike neighbours are.
    of_others
        (axes, records) the residual at each record as all others tell it.
    left_by_others
        (axes, records) share of the variance that they leave open there.
    """

    positions: np.ndarray
    axes: np.ndarray
    variances: np.ndarray
    weights: np.ndarray
    noise: np.ndarray
    share: float
    reach_m: float
    of_others: np.ndarray
    left_by_others: np.ndarray

    @classmethod
    def of(
        cls,
        positions: np.ndarray,
        q: np.ndarray,
        evidence: Evidence,
        covariance: np.ndarray,
        *,
        share: float,
        reach_m: float,
    ) -> Records:
        """
        Solve for records.

        Parameters
        ----------
        positions
            (records, 2) metres; two of them at one spot are two records, so join them before.
        q
            (records, species) predictions there, of a model that was not trained on them.
        evidence
            What was seen there.
        covariance
            (species, species) of scaled residuals.
        """
        return cls.solved(positions, measure(q, evidence, covariance), share, reach_m)

    @classmethod
    def solved(
        cls, positions: np.ndarray, measured: Measured, share: float, reach_m: float
    ) -> Records:
        """Solve for what was measured; arguments as of :meth:`of`."""
        axes, variances = measured.axes, measured.variances
        value, noise = measured.value, measured.noise
        alike = share * shared(cdist(positions, positions), reach_m)
        alike[np.diag_indices(len(positions))] = 1
        weights, others, left = (np.empty_like(value) for _ in range(3))
        for axis, variance in enumerate(variances):
            inverse = np.linalg.inv(variance * alike + np.diag(noise[axis]))
            own = np.diag(inverse)
            weights[axis] = inverse @ value[axis]
            # what is told of a record when it is left out, without solving again
            others[axis] = value[axis] - weights[axis] / own
            left[axis] = np.clip((1 / own - noise[axis]) / variance, 1e-6, 1)
        return cls(positions, axes, variances, weights, noise, share, reach_m, others, left)

    def residual(self, positions: np.ndarray) -> np.ndarray:
        """
        Return (places, species) the scaled residual to expect at positions (places, 2): exactly 0
        beyond the reach of all records.
        """
        out = np.zeros((len(positions), len(self.variances)))
        near = self.near(positions)
        if near.any():
            alike = self.share * shared(cdist(positions[near], self.positions), self.reach_m)
            out[near] = (alike @ (self.variances * self.weights.T)) @ self.axes.T
        return out

    def left(self, positions: np.ndarray) -> np.ndarray:
        """Return (places, axes) the share of the variance of each axis that records leave open."""
        out = np.ones((len(positions), len(self.variances)))
        near = self.near(positions)
        if near.any():
            alike = self.share * shared(cdist(positions[near], self.positions), self.reach_m)
            between = self.share * shared(cdist(self.positions, self.positions), self.reach_m)
            between[np.diag_indices(len(between))] = 1
            for axis, variance in enumerate(self.variances):
                system = between + np.diag(self.noise[axis] / variance)
                solved = np.linalg.solve(system, alike.T)
                out[near, axis] = np.clip(1 - (alike * solved.T).sum(axis=1), 1e-6, 1)
        return out

    def near(self, positions: np.ndarray) -> np.ndarray:
        """Return (places,) bool: whether any record reaches there."""
        near = np.zeros(len(positions), dtype=bool)
        if len(self.positions) and len(positions) and self.share > 0:
            away, _ = cKDTree(self.positions).query(positions)
            near = np.asarray(away < self.reach_m)
        return near


@dataclass(frozen=True, eq=False)
class Moved:
    """
    What records around say of places, before anything known of the places themselves.

    Attributes
    ----------
    records
        They.
    residual
        (places, species) scaled residual to expect.
    left
        (places, axes) share of the variance they leave open.
    near
        (places,) whether any reaches there.
    """

    records: Records
    residual: np.ndarray
    left: np.ndarray
    near: np.ndarray

    @classmethod
    def by(cls, records: Records, positions: np.ndarray, record_of: np.ndarray | None) -> Self:
        """Ask records about positions (places, 2), of which some are records themselves."""
        residual, left = records.residual(positions), records.left(positions)
        near = records.near(positions)
        if record_of is not None:
            own = np.flatnonzero(record_of >= 0)
            number = record_of[own]
            residual[own] = records.of_others[:, number].T @ records.axes.T
            left[own] = records.left_by_others[:, number].T
            near[own] = True
        return cls(records, residual, left, near)

    def take(self, rows: np.ndarray) -> Moved:
        """Return what they say of some places."""
        return Moved(self.records, self.residual[rows], self.left[rows], self.near[rows])

    def narrowed(self, covariance: np.ndarray, *, rotated: bool = False) -> np.ndarray:
        """
        Return (places, species, species) a covariance of which the axes keep what is left open.

        Parameters
        ----------
        rotated
            The covariance is in axes, not in species.
        """
        axes, root = self.records.axes, np.sqrt(self.left)
        narrow = np.einsum("ja,na->nja", axes, root)  # (places, species, axes)
        inner = covariance if rotated else axes.T @ covariance @ axes
        return np.asarray(narrow @ inner @ narrow.swapaxes(1, 2))


def measure(q: np.ndarray, evidence: Evidence, covariance: np.ndarray) -> Measured:
    """
    Return a measurement of each axis that says as much as all that was seen at a record, whether of
    all species or of some; arguments as of :meth:`Records.of`.
    """
    variances, axes = np.linalg.eigh(covariance)
    variances = np.maximum(variances, 1e-9)
    d = scaled_linear.scale(q)
    own = np.diag(covariance) * d**2
    precision, total = scaled_linear.pseudo_visits(q, own, evidence)
    root = np.sqrt(precision) * d
    A = root[:, :, None] * covariance
    system = root[:, :, None] * A.swapaxes(1, 2)
    system[:, *np.diag_indices(q.shape[1])] += 1
    gap = np.divide((total - precision * q) * d, root, out=np.zeros_like(root), where=root > 0)
    solved = np.linalg.solve(system, np.concatenate([A, gap[..., None]], axis=2))
    mean = np.einsum("nji,nj->ni", A, solved[..., -1]) @ axes
    left = covariance - A.swapaxes(1, 2) @ solved[..., :-1]
    left = ((left @ axes) * axes).sum(axis=1)
    left = np.clip(left, 1e-6 * variances, (1 - 1e-6) * variances)
    noise = 1 / (1 / left - 1 / variances)
    return Measured(axes, variances, (mean * (variances + noise) / variances).T, noise.T)


def choose_nearness(
    positions: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    n: np.ndarray,
    fold_of: np.ndarray,
    covariance: np.ndarray,
    *,
    seed: int = 0,
) -> tuple[float, float]:
    """
    Learn how much neighbours share and how far: within each fold, half of the sites tell of the
    other half, and neither half was seen by the model.

    Returns
    -------
    share, reach_m
        Those of least squared error; a share of 0 where neighbours do not help.
    """
    rng = np.random.default_rng(seed)
    # effective visits may be next to none, and tell as much of how good a claim is
    weight = n / (n + 1) if n.ndim == 2 else np.ones(q.shape)
    n = np.broadcast_to(n if n.ndim == 2 else n[:, None], q.shape)
    rate = np.where(n > 0, k / np.maximum(n, 1e-9), q)
    tried = [(share, reach) for share in SHARES for reach in REACHES_M]
    error: dict[tuple[float, float], list[np.ndarray]] = {pair: [] for pair in tried}
    for fold in np.unique(fold_of):
        for _ in range(REPEATS):
            sites = rng.permutation(np.flatnonzero(fold_of == fold))[:MOST_TRIED]
            told, asked = sites[: len(sites) // 2], sites[len(sites) // 2 :]
            if not len(told) or not len(asked):
                continue
            seen = Evidence(k[told], n[told])
            measured = measure(q[told], seen, covariance)
            for share, reach in error:
                records = Records.solved(positions[told], measured, share, reach)
                moved = scaled_linear.scale(q[asked]) * records.residual(positions[asked])
                claim = np.clip(q[asked] + moved, 0, 1)
                square = weight[asked] * (claim - rate[asked]) ** 2
                error[share, reach].append(square.sum(axis=1))
    none = (0.0, FARTHEST_M)
    if not error[none]:
        return none
    of_site = {pair: np.concatenate(parts) for pair, parts in error.items()}
    best = min(of_site, key=lambda pair: float(of_site[pair].sum()))
    gain = of_site[none] - of_site[best]
    surely = gain.mean() > SURELY * gain.std() / np.sqrt(len(gain))
    return best if surely else none
