"""A Gaussian process over position and covariates, whose kernel all species share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from butterfly_sdm.baselines.inputs.groups import GroupedInputs
from butterfly_sdm.baselines.inputs.transforms import position_km, split_columns
from butterfly_sdm.baselines.saved import visited
from butterfly_sdm.data.dataset import Dataset

if TYPE_CHECKING:
    from butterfly_sdm.baselines.inputs.kernels import SharedKernel

CHUNK_ROWS = 2048
# towards slopes 1 and 0, in units of the mean species' variance
SQUARE_PULL, BEND_PULL = 0.02, 0.01


@dataclass
class GaussianProcess(GroupedInputs):
    """
    Kriging with covariates: each species' arcsine-transformed rate is a Gaussian process, all with
    one kernel.

    The kernel is a sum of Matern kernels over position (near, middle, far), over each group of
    covariates with a length scale per column, over the principal components of a location
    embedding, and of products: each group with position, and each pair of groups. Its numbers
    maximise the mean marginal likelihood of all species [1]_. The noise of a site is ``nugget +
    sampling / visits``, on the scale of ``arcsin(sqrt((k + offset) / (n + 2 offset)))``, which
    makes binomial noise nearly the same at all rates [2]_. Transforming back gives medians rather
    than means, so a parabola per species, fitted to leave-one-out predictions, ends the work.

    Parameters
    ----------
    groups
        Prefixes of covariate names, separated by commas; the columns of each prefix form a group,
        the rest another.
    embedding
        Prefix of the columns that are one location embedding, of which the principal components are
        used; empty: none.
    components
        How many principal components.
    density_km
        Distances, separated by commas, within which the other sites of the data set are counted,
        with visits or without: where people survey says something of the place. The counts join the
        last group. Empty: none.
    only
        Which covariates, as in :func:`~butterfly_sdm.data.groups.chosen_covariates`; empty: all.
    steps
        Steps of the optimiser of the kernel.
    inflation
        Factor on the noise at prediction. A likelihood that takes species as independent is too
        sure of the kernel.
    offset
        Added to the detections, and twice to the visits, before the transform.

    References
    ----------
    .. [1] C. E. Rasmussen, C. K. I. Williams (2006), Gaussian Processes for Machine Learning. MIT
           Press, chapter 5.
    .. [2] F. J. Anscombe (1948), The transformation of Poisson, binomial and negative-binomial
           data. Biometrika 35, 246-254.
    """

    steps: int = 35
    inflation: float = 1.5
    offset: float = 0.1
    kind: ClassVar[str] = "gaussian_process"
    needed: ClassVar[str] = "features position coefficients mean calibration sizes"
    least: ClassVar[Mapping[str, float]] = {"components": 1} | dict.fromkeys(
        ("steps", "inflation", "offset"), 0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.radii_km  # a wrong one shall be known before the work

    def _fit(self, dataset: Dataset, sites: Sequence[str]) -> dict[str, np.ndarray]:
        from butterfly_sdm.baselines.inputs.kernels import SharedKernel, fit_kernel

        state, features = self._fit_inputs(dataset, sites)
        position = state["position"]
        k, n = dataset.counts(sites)
        values = np.arcsin(np.sqrt((k + self.offset) / (n + 2 * self.offset)[:, None]))
        spreads = [max(2.0 * float(np.sqrt(part.var(axis=0).sum())), 1e-3) for part in features]
        embedded = "axes" in state
        if embedded:
            spreads[-1] = 1.2  # of the first component's standard deviation
        kernel = SharedKernel(
            [part.shape[1] for part in features], embedding=embedded, spreads=spreads
        )
        fit_kernel(kernel, position, features, values, n, steps=self.steps)
        return state | kernel.arrays() | self._conditioned(kernel, position, features, k, n)

    def given(self, dataset: Dataset, sites: Sequence[str]) -> Self:
        """
        Return the same process, kernel and scales kept, that knows other sites: a hundredth of the
        work of a fit.
        """
        known = visited(dataset, sites)
        position, features = self.inputs(dataset, known)
        k, n = dataset.counts(known)
        other = replace(self)
        other.species, other._sees = self.species, self._sees
        other.dataset_fingerprint = self.dataset_fingerprint
        joined = np.concatenate([*features, np.empty((len(known), 0))], axis=1)
        other.state = (
            self.state
            | {"position": position, "features": joined}
            | self._conditioned(self.kernel, position, features, k, n)
        )
        return other

    def _conditioned(
        self,
        kernel: "SharedKernel",
        position: np.ndarray,
        features: list[np.ndarray],
        k: np.ndarray,
        n: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Return what follows from the sites once the kernel is known."""
        values = np.arcsin(np.sqrt((k + self.offset) / (n + 2 * self.offset)[:, None]))
        covariance = kernel.covariance(position, features, position, features)
        nugget, sampling = np.exp(kernel.arrays()["kernel_noise"])
        noise = nugget + sampling / n
        mean = np.average(values, axis=0, weights=1 / (noise + covariance.diagonal().mean() / 3))
        inverse = np.linalg.inv(covariance + np.diag(self.inflation * noise + 1e-6))
        coefficients = inverse @ (values - mean)
        # Rasmussen & Williams 2006, eq. 5.12
        left_out = values - coefficients / inverse.diagonal()[:, None]
        return {
            "mean": mean,
            "coefficients": coefficients,
            "calibration": _calibration(_sine(left_out), k / n[:, None]),
        }

    def _predict(self, dataset: Dataset, sites: Sequence[str]) -> np.ndarray:
        return _calibrated(_sine(self.angles(dataset, sites)), self.state["calibration"])

    def angles(self, dataset: Dataset, sites: Sequence[str]) -> np.ndarray:
        """
        Return the expected arcsine of the root of each rate, (sites, species), before the parabola
        of each species.
        """
        state = self.state
        kernel = self.kernel
        known = split_columns(state["features"], state["sizes"])
        out = np.empty((len(sites), len(self.species)))
        for start in range(0, len(sites), CHUNK_ROWS):
            chunk = list(sites)[start : start + CHUNK_ROWS]
            position, features = self.inputs(dataset, chunk)
            alike = kernel.covariance(position, features, state["position"], known)
            out[start : start + len(chunk)] = state["mean"] + alike @ state["coefficients"]
        return out

    @property
    def kernel(self) -> "SharedKernel":
        """The fitted kernel, which says how alike any two places are."""
        from butterfly_sdm.baselines.inputs.kernels import SharedKernel

        return SharedKernel.from_arrays(self.state)

    def inputs(self, dataset: Dataset, sites: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        """
        Return what the kernel takes of sites: positions (sites, 2) in units of 100 km, and one
        array (sites, columns) per group of features.
        """
        return position_km(dataset, sites), self._features(self.state, dataset, sites)


def _sine(angle: np.ndarray) -> np.ndarray:
    """Undo the arcsine transform; the square is the rate."""
    return np.asarray(np.sin(np.clip(angle, 0.0, np.pi / 2)))


def _calibration(sine: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """
    Return (3, species) coefficients of 1, square and sine: each species' parabola from sine to
    rate, drawn towards the square.

    The part of the sine that the square does not explain is drawn to 0, so that the two do not
    compete.
    """
    square = sine**2
    away = square - square.mean(axis=0)
    spread = (away**2).sum(axis=0)
    unit = max(float(spread.mean()), 1e-12)
    along = (away * sine).sum(axis=0) / np.maximum(spread, 1e-12)
    beyond = sine - sine.mean(axis=0) - along * away
    slope = ((away * rates).sum(axis=0) + SQUARE_PULL * unit) / (spread + SQUARE_PULL * unit)
    bend = (beyond * rates).sum(axis=0) / ((beyond**2).sum(axis=0) + BEND_PULL * unit)
    level = (
        rates.mean(axis=0) - (slope - bend * along) * square.mean(axis=0) - bend * sine.mean(axis=0)
    )
    return np.stack([level, slope - bend * along, bend])


def _calibrated(sine: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    level, slope, bend = calibration
    return np.asarray(level + slope * sine**2 + bend * sine)
