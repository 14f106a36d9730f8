"""Some rows of a map before they are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.mapping.surfaces.positions import Positions


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
    positions
        The positions of the map.
    embedding
        (length, rows, cols) what networks made of the window, if it is kept.
    spread
        (species, rows, cols) standard deviation between the members of an ensemble, if it is kept.
    """

    rows: slice
    species: tuple[str, ...]
    probability: np.ndarray
    positions: Positions = field(repr=False)
    embedding: np.ndarray | None = field(default=None, repr=False)
    spread: np.ndarray | None = field(default=None, repr=False)

    @property
    def known(self) -> np.ndarray:
        """(rows, cols) where something is predicted."""
        known: np.ndarray = np.isfinite(self.probability).all(axis=0)
        return known

    def sites(self, where: np.ndarray) -> Dataset:
        """Return the positions marked in ``where`` (rows, cols) as a data set without imagery."""
        rows, cols = np.nonzero(where)
        return self.positions.sites(rows + self.rows.start, cols, tiles=False)

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


def mean_strip(strips: Sequence[Strip], *, spread: bool) -> Strip:
    """
    Return the mean of the members of an ensemble, their embeddings side by side and, if asked for,
    their spread.
    """
    if len(strips) == 1:
        return strips[0]
    tables = np.stack([strip.probability for strip in strips]).astype(np.float64)
    embeddings = [strip.embedding for strip in strips if strip.embedding is not None]
    return replace(
        strips[0],
        probability=tables.mean(axis=0).astype(np.float32),
        spread=tables.std(axis=0, ddof=1).astype(np.float32) if spread else None,
        embedding=np.concatenate(embeddings) if embeddings else None,
    )
