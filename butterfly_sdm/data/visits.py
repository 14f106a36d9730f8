"""Visits with dates and what was seen on them: detections k and visits n are sums of these."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from butterfly_sdm.errors import DataError


@dataclass(frozen=True)
class VisitTable:
    """
    One row per visit, and one per species seen on it.

    Attributes
    ----------
    visits
        Sorted by site and date; a row number. Columns ``site`` (uint32, row of the site in
        ``Dataset.sites``), ``date`` (datetime64[s], NaT where the day is not known),
        ``list_length`` (uint16, species seen; sensitive species that are withheld do not count);
        optional ``complete`` (boolean, whether all species seen were told), ``duration`` (float32,
        minutes, NaN where not told), ``scheme`` (category).
    sightings
        Sorted by visit and species, each pair once. Columns ``visit`` (uint32, row of ``visits``),
        ``species`` (uint16, column of ``Dataset.detections``).
    """

    visits: pd.DataFrame
    sightings: pd.DataFrame

    def __len__(self) -> int:
        return len(self.visits)

    def sums(self, sites: int, species: int) -> tuple[np.ndarray, np.ndarray]:
        """
        Return detections k (sites, species) and visits n (sites,), whole numbers.

        Raises
        ------
        DataError
            A visit or sighting speaks of a site, visit or species that there is not.
        """
        site = self.visits["site"].to_numpy()
        visit, column = (self.sightings[name].to_numpy() for name in ("visit", "species"))
        for name, values, end in (
            ("site", site, sites),
            ("visit", visit, len(site)),
            ("species", column, species),
        ):
            if len(values) and values.max() >= end:
                raise DataError(
                    f"The visits speak of {name} {int(values.max())}, but there are {end}."
                )
        cell = site[visit].astype(np.int64) * species + column
        k = np.bincount(cell, minlength=sites * species).reshape(sites, species)
        return k, np.bincount(site, minlength=sites)
