"""Layers beside the species: numbers derived from all probabilities of a position."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import DataError, ModelError
from butterfly_sdm.mapping.surfaces.rows import Strip


class Layer(Protocol):
    """One or more bands of a map that are no species."""

    @property
    def unit(self) -> str:
        """What the numbers are."""
        ...

    def names(self, species: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the bands."""
        ...

    def largest(self, species: Sequence[str]) -> float:
        """Return a number that no value exceeds: sets the scale where whole numbers are stored."""
        ...

    def values(self, strip: Strip) -> np.ndarray:
        """Return (bands, rows, cols), NaN where nothing is known."""
        ...


@dataclass(frozen=True)
class Richness:
    """
    Expected number of species: the sum of the probabilities.

    What one visit is expected to find of the species mapped, where probabilities speak of detection
    on a visit.
    """

    unit: str = "species"

    def names(self, species: Sequence[str]) -> tuple[str, ...]:
        """Return the name of the band."""
        return ("expected richness",)

    def largest(self, species: Sequence[str]) -> float:
        """Return the number of species."""
        return float(len(species))

    def values(self, strip: Strip) -> np.ndarray:
        """Return the sum over the species."""
        return strip.probability.sum(axis=0, keepdims=True)


@dataclass(frozen=True)
class RichnessVariance:
    """
    Variance of the number of species, as if they occurred independently of each other: the sum of p
    (1 - p).

    Species that come and go together make the true variance larger: a lower bound.
    """

    unit: str = "species squared"

    def names(self, species: Sequence[str]) -> tuple[str, ...]:
        """Return the name of the band."""
        return ("variance of richness",)

    def largest(self, species: Sequence[str]) -> float:
        """Return a quarter of the number of species."""
        return max(1.0, len(species) / 4)

    def values(self, strip: Strip) -> np.ndarray:
        """Return the sum over the species."""
        return (strip.probability * (1 - strip.probability)).sum(axis=0, keepdims=True)


@dataclass(frozen=True)
class Spread:
    """Standard deviation between the members of an ensemble, mean over the species."""

    unit: str = "presence probability"

    def names(self, species: Sequence[str]) -> tuple[str, ...]:
        """Return the name of the band."""
        return ("ensemble spread",)

    def largest(self, species: Sequence[str]) -> float:
        """Return 1."""
        return 1.0

    def values(self, strip: Strip) -> np.ndarray:
        """
        Return the spread.

        Raises
        ------
        ModelError
            The predictor is no ensemble.
        """
        if strip.spread is None:
            raise ModelError(
                "The spread needs an ensemble; this predictor has no members. Leave the layer out."
            )
        return strip.spread.mean(axis=0, keepdims=True)


@dataclass(frozen=True)
class Presence:
    """
    Presence (1) or absence (0) of each species by its threshold.

    Attributes
    ----------
    thresholds
        Probability from which a species counts as present: one for all, or one per species.
    """

    thresholds: float | Mapping[str, float] = 0.5
    unit: str = "presence"

    def names(self, species: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the bands."""
        return tuple(f"{name} present" for name in species)

    def largest(self, species: Sequence[str]) -> float:
        """Return 1."""
        return 1.0

    def values(self, strip: Strip) -> np.ndarray:
        """
        Return 1 or 0 per species.

        Raises
        ------
        DataError
            A species has no threshold.
        """
        given = self.thresholds
        if isinstance(given, Mapping):
            missing = [name for name in strip.species if name not in given]
            if missing:
                raise DataError(
                    f"There is no threshold for {missing[0]}. Give one per species, or one for all."
                )
            cut = np.array([given[name] for name in strip.species])
        else:
            cut = np.full(len(strip.species), given)
        present = (strip.probability >= cut[:, None, None]).astype(np.float32)
        return np.where(np.isfinite(strip.probability), present, np.nan)


@dataclass(frozen=True)
class Derived:
    """
    Any number per position, by a function: dissimilarity to the training sites, width of a
    conformal interval.

    Attributes
    ----------
    name, unit
        Of the band.
    function
        From ``of`` at n positions to (n,) numbers.
    of
        What the function is given: ``probability`` (n, species), ``embedding`` (n, length) of a
        network, or ``sites``: a data set with the positions and covariates of n places.
    limit
        A larger number is a warning: it is in the metadata, and a page of the map hatches such
        places. None: no number is.
    masks
        Whether positions above the limit lose their probabilities.
    maximum
        No value exceeds it: sets the scale where whole numbers are stored.

    Examples
    --------
    >>> Derived("dissimilarity", area.dissimilarity_of, of="embedding", limit=area.threshold)  # doctest: +SKIP
    """

    name: str
    function: Callable[[np.ndarray], np.ndarray] | Callable[[Dataset], np.ndarray]
    of: Literal["probability", "embedding", "sites"] = "embedding"
    unit: str = ""
    limit: float | None = None
    masks: bool = True
    maximum: float = 10.0

    def names(self, species: Sequence[str]) -> tuple[str, ...]:
        """Return the name of the band."""
        return (self.name,)

    def largest(self, species: Sequence[str]) -> float:
        """Return ``maximum``."""
        return self.maximum

    def values(self, strip: Strip) -> np.ndarray:
        """
        Return what the function says.

        Raises
        ------
        ModelError
            It needs embeddings, and the predictor is no network mapped densely.
        """
        known = strip.known
        out = np.full((1, *known.shape), np.nan, dtype=np.float32)
        if not known.any():
            return out
        given: object
        if self.of == "probability":
            given = strip.probability[:, known].T
        elif self.of == "embedding":
            if strip.embedding is None:
                raise ModelError(
                    f"The layer {self.name!r} needs the embeddings of a network mapped densely. "
                    "Leave it out."
                )
            given = strip.embedding[known]
        else:
            given = strip.sites(known)
        out[0, known] = np.asarray(self.function(given), dtype=np.float32)  # type: ignore[arg-type]
        return out


NAMED: dict[str, Layer] = {
    "richness": Richness(),
    "richness_variance": RichnessVariance(),
    "spread": Spread(),
}


def named_layers(layers: Sequence[str | Layer]) -> tuple[Layer, ...]:
    """
    Return layers, those given by name looked up.

    Raises
    ------
    DataError
        There is no layer of that name.
    """
    found = []
    for layer in layers:
        if isinstance(layer, str):
            if layer not in NAMED:
                raise DataError(f"There is no layer {layer!r}. Known by name: {', '.join(NAMED)}.")
            layer = NAMED[layer]
        found.append(layer)
    return tuple(found)
