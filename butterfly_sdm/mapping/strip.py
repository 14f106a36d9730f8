"""Some rows of a map before they are written."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
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
    embedding
        (rows, cols, length) what the network made of the window, if it is a network; rows as in ``probability``.
    members
        (members, species, rows, cols) probability of each member of an ensemble, if it is one.
    """

    rows: slice
    species: tuple[str, ...]
    probability: np.ndarray
    fraction: np.ndarray
    embedding: np.ndarray | None = None
    members: np.ndarray | None = field(default=None, repr=False)

    @property
    def known(self) -> np.ndarray:
        """(rows, cols) where something is predicted."""
        return np.isfinite(self.probability).all(axis=0)
