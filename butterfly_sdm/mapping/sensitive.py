"""Species whose places are told coarsely: means over squares in place of their values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from butterfly_sdm.mapping.surfaces.lattice import Lattice
from butterfly_sdm.mapping.surfaces.rows import Strip


class Coarse:
    """
    Means of the probability of species over grid squares: filled from all strips, then put in place
    of the fine values.

    Parameters
    ----------
    side_m
        Side of the squares, by species.
    """

    def __init__(self, lattice: Lattice, side_m: Mapping[str, float]) -> None:
        self._lattice = lattice
        self._side = dict(side_m)
        self._sums: dict[tuple[str, int, int], tuple[float, int]] = {}

    @property
    def species(self) -> tuple[str, ...]:
        """Species whose values are told coarsely."""
        return tuple(self._side)

    def _parts(
        self, strip: Strip
    ) -> Iterator[tuple[tuple[str, int, int], int, tuple[np.ndarray, ...]]]:
        """
        Yield the squares of a strip: the name of the species with the number of the square down and
        across, the place of the species, and the rows and columns in the square.
        """
        rows = strip.rows
        _, y = self._lattice.coordinates(np.arange(rows.start, rows.stop), 0)
        x, _ = self._lattice.coordinates(0, np.arange(self._lattice.width))
        for name, side in self._side.items():
            down, across = (np.floor(value / side).astype(int) for value in (y, x))
            for i in np.unique(down):
                for j in np.unique(across):
                    place = strip.species.index(name)
                    yield (name, int(i), int(j)), place, np.ix_(down == i, across == j)

    def add(self, strip: Strip) -> None:
        """Count the values of a strip."""
        for square, place, where in self._parts(strip):
            part = strip.probability[place][where]
            known = part[np.isfinite(part)]
            total, count = self._sums.get(square, (0.0, 0))
            self._sums[square] = total + float(known.sum(dtype=np.float64)), count + len(known)

    def apply(self, strip: Strip) -> Strip:
        """Return the strip with the means in place of the values of the coarsened species."""
        probability = strip.probability.copy()
        for square, place, where in self._parts(strip):
            total, count = self._sums.get(square, (0.0, 0))
            mean = total / count if count else np.nan
            fine = probability[place][where]
            probability[place][where] = np.where(np.isfinite(fine), mean, np.nan)
        return replace(strip, probability=probability)
