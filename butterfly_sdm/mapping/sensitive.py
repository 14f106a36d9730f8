"""Species whose places must not be told: left out of a map, or told coarsely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from butterfly_sdm.errors import DataError
from butterfly_sdm.mapping.surfaces.lattice import Lattice
from butterfly_sdm.mapping.surfaces.rows import Strip


@dataclass(frozen=True)
class SensitivePolicy:
    """
    What a map tells of sensitive species.

    Attributes
    ----------
    withhold
        Species that have no band. They count in no layer either.
    coarsen
        Species by the side in metres of the grid squares within which only their mean is told, such
        as 10000.
    """

    withhold: tuple[str, ...] = ()
    coarsen: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, side in self.coarsen.items():
            if side <= 0:
                raise DataError(
                    f"{name} cannot be coarsened to squares of {side} m. Give a side in metres, "
                    "such as 10000."
                )

    def shown(self, species: Sequence[str]) -> tuple[str, ...]:
        """
        Return the species that get a band.

        Raises
        ------
        DataError
            The policy leaves none.
        """
        shown = tuple(name for name in species if name not in self.withhold)
        if not shown:
            raise DataError(
                "The policy for sensitive species withholds every species of the map; nothing is "
                "left to show."
            )
        return shown

    def record(self) -> dict[str, Any]:
        """
        Return what goes into the metadata of the map; withheld species are counted, not named.
        """
        return {
            "withheld": len(self.withhold),
            "coarsened_m": {name: float(side) for name, side in self.coarsen.items()},
        }


class Coarse:
    """
    Means of the probability of species over grid squares: filled from all strips, then put in place
    of the fine values.
    """

    def __init__(self, lattice: Lattice, coarsen: Mapping[str, float]) -> None:
        self._lattice = lattice
        self._side = dict(coarsen)
        self._sums: dict[tuple[str, int, int], tuple[float, int]] = {}

    @property
    def species(self) -> tuple[str, ...]:
        """Species whose values are told coarsely."""
        return tuple(self._side)

    def _squares(self, name: str, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Return the number of the square down (rows,) and across (cols,)."""
        _, y = self._lattice.coordinates(np.arange(rows.start, rows.stop), 0)
        x, _ = self._lattice.coordinates(0, np.arange(self._lattice.width))
        return np.floor(y / self._side[name]).astype(int), np.floor(x / self._side[name]).astype(
            int
        )

    def add(self, strip: Strip) -> None:
        """Count the values of a strip."""
        for name in self._side:
            if name not in strip.species:
                continue
            values = strip.probability[strip.species.index(name)]
            down, across = self._squares(name, strip.rows)
            for i in np.unique(down):
                for j in np.unique(across):
                    part = values[np.ix_(down == i, across == j)]
                    known = part[np.isfinite(part)]
                    total, count = self._sums.get((name, int(i), int(j)), (0.0, 0))
                    self._sums[name, int(i), int(j)] = (
                        total + float(known.sum(dtype=np.float64)),
                        count + len(known),
                    )

    def apply(self, strip: Strip) -> Strip:
        """Return the strip with the means in place of the values of the coarsened species."""
        probability = strip.probability.copy()
        for name in self._side:
            if name not in strip.species:
                continue
            place = strip.species.index(name)
            down, across = self._squares(name, strip.rows)
            for i in np.unique(down):
                for j in np.unique(across):
                    total, count = self._sums.get((name, int(i), int(j)), (0.0, 0))
                    where = np.ix_(down == i, across == j)
                    mean = total / count if count else np.nan
                    probability[place][where] = np.where(
                        np.isfinite(probability[place][where]), mean, np.nan
                    )
        return replace(strip, probability=probability)
