"""The sites of a data set as a page shows them: where people looked, and what they saw there."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyproj import Transformer

from butterfly_sdm.data.dataset import Dataset


@dataclass(frozen=True, eq=False)
class SitesSeen:
    """
    Sites to be shown on a map.

    Attributes
    ----------
    dataset
        Its sites with a visit are shown.
    hidden
        Species whose places must not be shown: nothing is told of them.
    """

    dataset: Dataset
    hidden: Collection[str] = ()

    def rows(self, species: tuple[str, ...], crs: Any) -> list[list[Any]]:
        """
        Return one row per site: name, x, y in ``crs``, visits, and the visits with each of the
        species seen there, by its number in ``species``.
        """
        data = self.dataset
        sites = data.sites[data.visits.reindex(data.sites.index).to_numpy() > 0]
        there = Transformer.from_crs(data.card.position_crs, crs, always_xy=True)
        x, y = there.transform(sites["easting"].to_numpy(), sites["northing"].to_numpy())
        shown = [
            (number, name)
            for number, name in enumerate(species)
            if name in data.detections.columns and name not in self.hidden
        ]
        seen = data.detections.loc[sites.index, [name for _, name in shown]].to_numpy()
        numbers = np.array([number for number, _ in shown], dtype=int)
        digits = 6 if crs.is_geographic else 1
        return [
            [
                str(name),
                round(float(x[i]), digits),
                round(float(y[i]), digits),
                int(sites["visits"].iloc[i]),
                {int(numbers[j]): int(seen[i, j]) for j in np.nonzero(seen[i])[0]},
            ]
            for i, name in enumerate(sites.index)
            if np.isfinite(x[i]) and np.isfinite(y[i])
        ]
