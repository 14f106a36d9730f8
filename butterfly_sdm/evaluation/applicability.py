"""Where a model may be trusted: how unlike its training sites a place is (Meyer & Pebesma 2021)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from butterfly_sdm.core.files import atomic_path
from butterfly_sdm.errors import ArtefactError, DataError, MissingFileError

CHUNK_ROWS = 4096


@dataclass(frozen=True)
class Applicability:
    """
    The area of applicability in a space of numbers per place: covariates, band statistics or
    embeddings.

    The dissimilarity of a place is its distance to the nearest training site over the mean distance
    between training sites, after scaling each number to unit variance and multiplying it with its
    weight. Places above the threshold are unlike anything the model was judged on [1]_.

    Attributes
    ----------
    inputs
        Names of the numbers.
    mean, scale
        (inputs,) of the training sites; ``scale`` includes the weight. Numbers that do not vary
        have scale 0.
    training
        (training sites, inputs) scaled.
    mean_distance
        Between training sites.
    threshold
        Largest dissimilarity, outliers left out, of a training site to the sites outside its own
        fold.

    References
    ----------
    .. [1] H. Meyer, E. Pebesma (2021), Predicting into unknown space? Estimating the area of
           applicability of spatial
       prediction models. Methods in Ecology and Evolution 12, 1620-1633.
    """

    inputs: tuple[str, ...]
    mean: np.ndarray
    scale: np.ndarray
    training: np.ndarray
    mean_distance: float
    threshold: float

    @classmethod
    def fit(
        cls,
        training: pd.DataFrame,
        *,
        fold_of: pd.Series | None = None,
        weights: pd.Series | None = None,
    ) -> Self:
        """
        Learn the threshold from the training sites.

        Parameters
        ----------
        training
            (sites, inputs) numbers of the training sites; NaN become the mean.
        fold_of
            Fold of each site in the cross-validation that judged the model; None: every site is a
            fold of its own.
        weights
            Importance of each input, 0 or more, such as the permutation importance; None: all 1.

        Raises
        ------
        DataError
            Fewer than three sites, one fold only, nothing that varies, or a negative weight.
        """
        values = training.to_numpy(dtype=float)
        if len(values) < 3:
            raise DataError(
                "The area of applicability needs at least 3 training sites; there are "
                f"{len(values)}."
            )
        with np.errstate(invalid="ignore"):
            mean = np.nan_to_num(
                np.nanmean(np.where(np.isnan(values).all(axis=0), 0.0, values), axis=0)
            )
        values = np.where(np.isnan(values), mean, values)
        weight = (
            np.ones(values.shape[1])
            if weights is None
            else weights.reindex(training.columns).fillna(0).to_numpy(dtype=float)
        )
        if (weight < 0).any():
            raise DataError(
                f"The weight of {training.columns[weight.argmin()]} is {weight.min()}; weights are "
                "0 or more."
            )
        deviation = values.std(axis=0, ddof=1)
        scale = np.divide(weight, deviation, out=np.zeros_like(weight), where=deviation > 1e-12)
        if not scale.any():
            raise DataError(
                "No input varies between the training sites (or all weights are 0); nothing to be "
                "unlike in."
            )
        scaled = (values - mean) * scale
        folds = (
            np.arange(len(values)) if fold_of is None else fold_of.loc[training.index].to_numpy()
        )
        if len(np.unique(folds)) < 2:
            raise DataError("All training sites are in one fold; the threshold needs at least two.")
        distance = cdist(scaled, scaled)
        mean_distance = float(distance[np.triu_indices(len(values), k=1)].mean())
        outside = (
            np.where(folds[:, None] == folds[None, :], np.inf, distance).min(axis=1) / mean_distance
        )
        return cls(
            tuple(map(str, training.columns)),
            mean,
            scale,
            scaled,
            mean_distance,
            _upper_whisker(outside),
        )

    def dissimilarity(self, places: pd.DataFrame) -> pd.Series:
        """
        Return the dissimilarity index of each place: 0 as a training site, 1 as far as training
        sites are from each other.

        NaN where a number is missing.

        Raises
        ------
        DataError
            An input is missing.
        """
        absent = [name for name in self.inputs if name not in places.columns]
        if absent:
            raise DataError(
                f"The places lack the input {absent[0]!r} that the area of applicability was "
                "fitted to."
            )
        values = self.dissimilarity_of(places[list(self.inputs)].to_numpy(dtype=float))
        return pd.Series(values, index=places.index, name="dissimilarity")

    def dissimilarity_of(self, values: np.ndarray) -> np.ndarray:
        """
        Return the dissimilarity of rows of numbers (places, inputs) in the order of ``inputs``.
        """
        scaled = (values - self.mean) * self.scale
        parts = [
            cdist(scaled[i : i + CHUNK_ROWS], self.training).min(axis=1)
            for i in range(0, len(scaled), CHUNK_ROWS)
        ]
        return np.concatenate([*parts, np.empty(0)]) / self.mean_distance

    def applicable(self, places: pd.DataFrame) -> pd.Series:
        """
        Return whether each place is within the area of applicability; not where a number is
        missing.
        """
        return (self.dissimilarity(places) <= self.threshold).rename("applicable")

    def save(self, path: Path) -> None:
        """Write everything into one safetensors file."""
        from safetensors.numpy import save_file

        arrays = {
            "mean": self.mean,
            "scale": self.scale,
            "training": np.ascontiguousarray(self.training),
        }
        numbers = {
            "mean_distance": np.array([self.mean_distance]),
            "threshold": np.array([self.threshold]),
        }
        with atomic_path(Path(path)) as temporary:
            save_file(arrays | numbers, temporary, metadata={"inputs": "\n".join(self.inputs)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """
        Read what :meth:`save` wrote.

        Raises
        ------
        MissingFileError, ArtefactError
            The file is absent or damaged.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise MissingFileError(f"{path} does not exist. Fit the area of applicability first.")
        try:
            with safe_open(path, framework="numpy") as file:
                values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                inputs = tuple(file.metadata()["inputs"].split("\n"))
            found: list[Any] = [values[name] for name in ("mean", "scale", "training")]
            found += [float(values[name][0]) for name in ("mean_distance", "threshold")]
            return cls(inputs, *found)
        except (SafetensorError, OSError, KeyError, TypeError, IndexError) as error:
            raise ArtefactError(
                f"{path} does not hold an area of applicability ({error}). Fit it again."
            ) from error


def _upper_whisker(values: np.ndarray) -> float:
    """
    Return the upper whisker of a box plot, with the hinges of R's ``boxplot.stats``, as the
    authors' package does.
    """
    ordered = np.sort(values)
    place = (len(ordered) + 3) // 2 / 2
    low, high = (
        (ordered[int(np.floor(rank)) - 1] + ordered[int(np.ceil(rank)) - 1]) / 2
        for rank in (place, len(ordered) + 1 - place)
    )
    return float(ordered[ordered <= high + 1.5 * (high - low)].max())
