"""Gaussian processes over position and covariates, one per species, with kernels that all species share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from butterfly_sdm.baselines.site_features import (
    covariate_table,
    group_columns,
    position_km,
    transform_codes,
    transformed,
)
from butterfly_sdm.baselines.site_inputs import match_inputs
from butterfly_sdm.baselines.storage import ArrayPredictor, labels
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import DataError, ModelError

CHUNK_ROWS = 2048


@dataclass
class GaussianProcess(ArrayPredictor):
    """
    Kriging with covariates: every species is a Gaussian process on the rates, a sum of kernels over position and covariates.

    The kernels are a Matern 1/2 over position (near), a Matern 3/2 over position (far), a Matern 3/2 with a length scale per
    column over each group of covariates, one with a single length scale over the principal components of the embedding, and
    the product of each covariate group's kernel with a Matern 3/2 over position. Length scales are shared by all species and
    maximise the sum of their marginal likelihoods [1]_; then each species gets its own amplitude per kernel and its own noise,
    drawn towards the shared ones. The noise of a rate is ``nugget + sampling / visits``.

    Parameters
    ----------
    groups
        Prefixes of covariate names, separated by commas; the columns of each prefix form one kernel, the rest another.
    embedding
        Prefix of the columns that are one location embedding, of which the principal components are used; empty: none.
    components
        How many principal components.
    steps
        Steps of the optimiser of the shared kernel.
    own_steps
        Steps of the optimiser of each species' amplitudes; 0: all species share them.
    shrinkage
        Weight of the pull of a species' log amplitudes towards the shared ones.
    inflation
        Factor on the noise at prediction: 1 is what the likelihood says.

    References
    ----------
    .. [1] C. E. Rasmussen, C. K. I. Williams (2006), Gaussian Processes for Machine Learning. MIT Press, chapter 5.
    """

    groups: str = ""
    embedding: str = ""
    components: int = 40
    steps: int = 60
    own_steps: int = 12
    shrinkage: float = 0.5
    inflation: float = 1.0
    kind: ClassVar[str] = "gaussian_process"
    needed: ClassVar[tuple[str, ...]] = ("features", "position", "coefficients", "amplitudes", "mean")

    def __post_init__(self) -> None:
        for name, least in (("components", 1), ("steps", 0), ("own_steps", 0), ("shrinkage", 0), ("inflation", 0)):
            if getattr(self, name) < least:
                raise ModelError(f"{name} = {getattr(self, name)}; it has to be at least {least}.")

    # --- what the kernels see -------------------------------------------------------------------------------------

    def _fit_inputs(self, dataset: Dataset, sites: Sequence[str]) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        """Return scaling statistics and the standardised columns of each group; sets ``inputs``."""
        table = covariate_table(dataset, sites)
        table = table.loc[:, table.notna().any() & (table.max() > table.min())]  # a constant says nothing
        columns = [str(name) for name in table.columns]
        embedded = [name for name in columns if self.embedding and name.startswith(self.embedding)]
        if self.embedding and not embedded:
            raise DataError(f"No covariate begins with {self.embedding!r}. Build with the embedding, or leave embedding empty.")
        plain = [name for name in columns if name not in set(embedded)]
        prefixes = [part.strip() for part in self.groups.split(",") if part.strip()]
        groups = group_columns(plain, prefixes) if plain or prefixes else {}
        order = [name for names in groups.values() for name in names]
        self.inputs = (*order, *embedded)
        state: dict[str, np.ndarray] = {}
        if order:
            values = table[order].to_numpy()
            state["codes"] = transform_codes(values)
            values = transformed(values, state["codes"])
            state["centre"], state["spread"] = np.nanmean(values, axis=0), np.maximum(np.nanstd(values, axis=0), 1e-9)
        state["group_sizes"] = np.array([len(names) for names in groups.values()], dtype=np.int64)
        if embedded:
            values = table[embedded].to_numpy()
            state["embedding_centre"] = np.nanmean(values, axis=0)
            values = np.nan_to_num(values - state["embedding_centre"])
            _, _, axes = np.linalg.svd(values, full_matrices=False)
            state["axes"] = axes[: self.components].T / max(float((values @ axes[0]).std()), 1e-9)
        return state, self._features(state, dataset, sites)

    def _features(self, state: dict[str, np.ndarray], dataset: Dataset, sites: Sequence[str]) -> list[np.ndarray]:
        """Return one array (sites, columns) per covariate group, then the embedding."""
        table = match_inputs(covariate_table(dataset, sites), self.inputs, self.kind)
        sizes = state["group_sizes"]
        total = int(sizes.sum())
        parts: list[np.ndarray] = []
        if total:
            values = transformed(table.iloc[:, :total].to_numpy(dtype=float), state["codes"])
            values = np.nan_to_num((values - state["centre"]) / state["spread"])  # what is missing is the training mean
            parts = np.split(values, np.cumsum(sizes)[:-1], axis=1)
        if "axes" in state:
            values = np.nan_to_num(table.iloc[:, total:].to_numpy(dtype=float) - state["embedding_centre"])
            parts.append(values @ state["axes"])
        return parts

    # --- learning -------------------------------------------------------------------------------------------------

    def _fit(self, dataset: Dataset, sites: Sequence[str]) -> dict[str, np.ndarray]:
        from butterfly_sdm.baselines.kernels import SharedKernel, fit_shared
        from butterfly_sdm.baselines.own_amplitudes import fit_amplitudes

        state, features = self._fit_inputs(dataset, sites)
        position = position_km(dataset, sites)
        k, n = labels(dataset, sites)
        rates = k / n[:, None]
        kernel = SharedKernel([part.shape[1] for part in features], embedding="axes" in state)
        fit_shared(kernel, position, features, rates, n, steps=self.steps)
        parts = kernel.parts(position, features, position, features)  # (kernels, n, n)
        shared, noise = kernel.numbers()  # (kernels,), (nugget, sampling)
        amplitudes, noises = fit_amplitudes(
            parts, shared, noise, rates, n, steps=self.own_steps, shrinkage=self.shrinkage
        )  # (species, kernels), (species, 2)
        mean, coefficients = _solve(parts, amplitudes, noises, rates, n, self.inflation)
        return (
            state
            | kernel.arrays()
            | {
                "features": np.concatenate([*features, np.empty((len(position), 0))], axis=1),
                "position": position,
                "amplitudes": amplitudes,
                "noises": noises,
                "mean": mean,
                "coefficients": coefficients,
            }
        )

    # --- predicting -----------------------------------------------------------------------------------------------

    def _predict(self, dataset: Dataset, sites: Sequence[str]) -> np.ndarray:
        from butterfly_sdm.baselines.kernels import SharedKernel

        state = self.state
        kernel = SharedKernel.from_arrays(state)
        known = kernel.split(state["features"])
        out = np.tile(state["mean"], (len(sites), 1))
        for start in range(0, len(sites), CHUNK_ROWS):
            chunk = list(sites)[start : start + CHUNK_ROWS]
            features = self._features(state, dataset, chunk)
            parts = kernel.parts(position_km(dataset, chunk), features, state["position"], known)
            for part, amplitude in zip(parts, state["amplitudes"].T, strict=True):
                out[start : start + len(chunk)] += part @ state["coefficients"] * amplitude
        return out


def _solve(
    parts: np.ndarray, amplitudes: np.ndarray, noises: np.ndarray, rates: np.ndarray, n: np.ndarray, inflation: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (species,) and the coefficients (sites, species) of the posterior mean."""
    from scipy.linalg import cho_factor, cho_solve

    mean, coefficients = np.empty(rates.shape[1]), np.empty_like(rates)
    diagonal = np.diag_indices(len(n))
    for species in range(rates.shape[1]):
        covariance = np.tensordot(amplitudes[species], parts, 1)
        noise = noises[species, 0] + noises[species, 1] / n
        covariance[diagonal] += inflation * noise
        weight = 1.0 / (noise + 0.3 * amplitudes[species].sum())
        mean[species] = np.average(rates[:, species], weights=weight)
        factor = cho_factor(covariance, lower=True, overwrite_a=True)
        coefficients[:, species] = cho_solve(factor, rates[:, species] - mean[species])
    return mean, coefficients
