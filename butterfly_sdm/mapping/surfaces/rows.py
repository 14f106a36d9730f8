"""Some rows of a map before they are written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from butterfly_sdm.data.dataset import Dataset


@dataclass(frozen=True, eq=False)
class Strip:
    """
    Some rows of positions with their probabilities.

    Attributes
    ----------
    rows
        Rows of the map.
    species
        Names of the species.
    probability
        (species, rows, cols) float32 presence probability; NaN where nothing is predicted.
    fraction
        (rows, cols) share of the window with a measurement.
    places
        Makes a data set of positions from their rows and columns in the map.
    embedding
        (rows, cols, length) what the network made of the window, if it is a network mapped densely.
    spread
        (species, rows, cols) standard deviation between the members of an ensemble, if it is one.
    """

    rows: slice
    species: tuple[str, ...]
    probability: np.ndarray
    fraction: np.ndarray
    places: Callable[[np.ndarray, np.ndarray], Dataset] | None = field(default=None, repr=False)
    embedding: np.ndarray | None = field(default=None, repr=False)
    spread: np.ndarray | None = field(default=None, repr=False)

    @property
    def known(self) -> np.ndarray:
        """(rows, cols) where something is predicted."""
        return np.isfinite(self.probability).all(axis=0)

    def sites(self, where: np.ndarray) -> Dataset:
        """Return the positions marked in ``where`` (rows, cols) as a data set."""
        assert self.places is not None
        rows, cols = np.nonzero(where)
        return self.places(rows + self.rows.start, cols)

    def take(self, species: tuple[str, ...]) -> Strip:
        """Return the strip with only ``species``."""
        places = [self.species.index(name) for name in species]
        spread = None if self.spread is None else self.spread[places]
        return replace(self, species=species, probability=self.probability[places], spread=spread)

    def without(self, where: np.ndarray) -> Strip:
        """
        Return the strip with nothing predicted at the positions marked in ``where`` (rows, cols).
        """
        return replace(self, probability=np.where(where, np.float32(np.nan), self.probability))
