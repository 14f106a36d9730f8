"""What is believed of places and candidates before anybody goes there: a posterior covariance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.linalg import solve_triangular

from butterfly_sdm.baselines.gaussian_process import GaussianProcess
from butterfly_sdm.baselines.inputs.kernels import SharedKernel
from butterfly_sdm.data.dataset import Dataset

CHUNK = 256  # candidates at a time: what is made of them stays in the cache
#: Angles below this are taken as this in the weights: a species that the process expects nowhere
#: may be found all the same.
LEAST_ANGLE = 0.05
FLOOR = 1e-6


@dataclass(frozen=True)
class Belief:
    """
    How places and candidates vary together, given all surveys there are.

    Attributes
    ----------
    between
        (places, candidates) posterior covariance.
    variance
        (candidates,) posterior variance.
    noise
        (candidates,) variance of what the surveys of a candidate will say beside the truth.
    among
        Takes rows and columns, numbers of candidates, and returns their posterior covariance
        (rows, columns).
    weight
        (places,) variance of the rates per posterior variance, summed over the species asked for.
    total
        Weighted sum of the posterior variances of all places: what there is to gain.
    n_species
        Over which ``weight`` sums.
    """

    between: np.ndarray
    variance: np.ndarray
    noise: np.ndarray
    among: Callable[[Sequence[int] | slice, Sequence[int]], np.ndarray] = field(repr=False)
    weight: np.ndarray
    total: float
    n_species: int = 1

    @property
    def error(self) -> float:
        """The squared error of a rate that is expected at the places, as long as nobody goes."""
        return self.total / (float(len(self.between)) * self.n_species)

    def with_noise(self, noise: np.ndarray) -> Belief:
        """Return the same for another noise (candidates,)."""
        return replace(self, noise=np.broadcast_to(noise, self.variance.shape))


def gains_in_order(belief: Belief, picks: Sequence[int]) -> np.ndarray:
    """
    Return what each pick takes away of the weighted variance of the places, given those before it.

    Parameters
    ----------
    picks
        Numbers of candidates, in order.

    Returns
    -------
    array of shape (picks,)
        The sum is the gain of all together, whatever their order.
    """
    picks = list(picks)
    if not picks:
        return np.zeros(0)
    own = belief.among(picks, picks).astype(float) + np.diag(belief.noise[picks].astype(float))
    root = np.linalg.cholesky(own)  # (picks, picks)
    along = solve_triangular(root, belief.between[:, picks].astype(float).T, lower=True)
    return np.asarray(along**2 @ belief.weight)


@dataclass(frozen=True)
class Process:
    """
    A Gaussian process fitted to a data set, asked for covariances instead of predictions.

    Attributes
    ----------
    model
        Fitted, without counts of sites around (``density_km``): these change with every new site.
    trained
        Sites it was fitted to.
    scale
        (species,) variance of each species in units of the kernel.
    """

    model: GaussianProcess
    trained: tuple[str, ...]
    scale: np.ndarray

    @classmethod
    def of(cls, dataset: Dataset, sites: Sequence[str], model: GaussianProcess) -> Process:
        """
        Find how much each species varies in units of the kernel.

        Parameters
        ----------
        dataset
            Its covariates are those the process may see.
        sites
            That the model learned from; all have visits.
        model
            Fitted.
        """
        k, n = dataset.counts(sites)
        values = np.arcsin(np.sqrt((k + model.offset) / (n + 2 * model.offset)[:, None]))
        position, features = model.inputs(dataset, sites)
        own = model.kernel.covariance(position, features, position, features)
        own += np.diag(_noise(model, n) + FLOOR)
        white = np.linalg.solve(np.linalg.cholesky(own), values - model.state["mean"])
        return cls(model, tuple(sites), (white**2).mean(axis=0))

    def survey_noise(
        self, visits: np.ndarray | float, before: np.ndarray | float = 0
    ) -> np.ndarray:
        """
        Return the variance of what ``visits`` more visits will say of a site with ``before``.

        What is peculiar to a site (the nugget) is not learned a second time, so more visits to a
        surveyed site say less than the same visits to a new one.
        """
        nugget, sampling = np.exp(self.model.state["kernel_noise"])
        visits, before = np.broadcast_arrays(np.asarray(visits, float), np.asarray(before, float))
        after = nugget + sampling / (before + visits)
        old = nugget + sampling / np.maximum(before, 1)
        again = 1 / np.maximum(1 / after - 1 / old, 1e-12)
        return np.asarray(np.where(before > 0, again, after))

    def rate_weights(
        self, dataset: Dataset, places: Sequence[str], species: Sequence[int]
    ) -> np.ndarray:
        """
        Return (places,) the variance of the rates of ``species`` per posterior variance, summed.

        By the delta method a rate ``sin(f)^2`` varies ``sin(2 f)^2 = 4 p (1 - p)`` as much as its
        angle: most where a species is neither rare nor everywhere.
        """
        angle = np.clip(self.model.angles(dataset, places), LEAST_ANGLE, np.pi / 2)
        return np.asarray((np.sin(2 * angle) ** 2 * self.scale)[:, list(species)].sum(axis=1))

    def belief(
        self,
        dataset: Dataset,
        *,
        surveyed: Sequence[str],
        visits: np.ndarray,
        candidates: Sequence[str],
        noise: np.ndarray,
        places: Sequence[str],
        weight: np.ndarray,
        n_species: int = 1,
    ) -> Belief:
        """
        Return what is believed of ``places`` and ``candidates``, given surveys at ``surveyed``.

        Parameters
        ----------
        dataset
            Holds all of them, with their covariates.
        surveyed, visits
            Sites with a survey and their visits (surveyed,); what was seen there does not matter.
        candidates, noise
            Sites that may be surveyed, and the variance (candidates,) of what is then said.
        places, weight
            Where the map is judged, and how much each place (places,) weighs.
        n_species
            How many species the weights are of.
        """
        single = np.float32  # half the memory; the noise keeps all matrices well conditioned
        kernel = self.model.kernel.to(torch.float32)
        at = {
            name: _single(self.model.inputs(dataset, sites))
            for name, sites in (("s", surveyed), ("c", candidates), ("p", places))
        }
        known = _alike(kernel, at["s"], at["s"]).astype(float)
        root = np.linalg.cholesky(known + np.diag(_noise(self.model, visits) + FLOOR))
        root = root.astype(single)
        of_places = _white(kernel, root, at["s"], at["p"])  # (surveyed, places)
        between = np.empty((len(places), len(candidates)), single)
        of_candidates = np.empty((len(surveyed), len(candidates)), single)
        for start in range(0, len(candidates), CHUNK):
            part = slice(start, start + CHUNK)
            some = _some(at["c"], part)
            of_candidates[:, part] = _white(kernel, root, at["s"], some)
            between[:, part] = _alike(kernel, at["p"], some) - of_places.T @ of_candidates[:, part]
        prior = float(kernel.amplitude.detach().exp().sum())

        def among(rows: Sequence[int] | slice, columns: Sequence[int]) -> np.ndarray:
            columns = list(columns)
            alike = _alike(kernel, _some(at["c"], rows), _some(at["c"], columns))
            drawn: np.ndarray = of_candidates[:, rows].T @ of_candidates[:, columns]
            return np.asarray(alike - drawn)

        def left(white: np.ndarray) -> np.ndarray:
            return np.asarray(np.maximum(prior - np.einsum("ij,ij->j", white, white), FLOOR))

        weight = np.asarray(weight, single)
        return Belief(
            between,
            left(of_candidates),
            np.asarray(noise, single),
            among,
            weight,
            float(left(of_places) @ weight.astype(float)),
            n_species,
        )


_Inputs = tuple[np.ndarray, list[np.ndarray]]


def _noise(model: GaussianProcess, visits: np.ndarray) -> np.ndarray:
    nugget, sampling = np.exp(model.state["kernel_noise"])
    return np.asarray(model.inflation * (nugget + sampling / np.maximum(visits, 1)))


def _single(inputs: _Inputs) -> _Inputs:
    position, features = inputs
    # float32 holds a position in units of 100 km to centimetres only if it is near 0
    return position.astype(np.float32), [part.astype(np.float32) for part in features]


def _some(inputs: _Inputs, rows: Sequence[int] | slice) -> _Inputs:
    position, features = inputs
    return position[rows], [part[rows] for part in features]


def _alike(kernel: SharedKernel, one: _Inputs, other: _Inputs) -> np.ndarray:
    return np.asarray(kernel.covariance(*one, *other))


def _white(kernel: SharedKernel, root: np.ndarray, known: _Inputs, new: _Inputs) -> np.ndarray:
    """Return (known, new) covariances from which those of the known places are taken out."""
    alike = _alike(kernel, known, new)
    return np.asarray(solve_triangular(root, alike, lower=True, check_finite=False))
