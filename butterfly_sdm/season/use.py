"""Whether the dates of a data set are used: what ``season: auto`` decides."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.season.options import SeasonOptions
from butterfly_sdm.season.seasons import Seasons, dates_share

log = logging.getLogger("butterfly_sdm.season")

MISLEADING = 0.25  # share of dates in raw rates from which they mislead


def share_of_dates(dataset: Dataset, sites: Sequence[str]) -> float:
    """
    Return how much dates alone make raw rates differ, see
    :func:`butterfly_sdm.season.seasons.dates_share`: as the card of the data set tells it, else
    from curves fitted to ``sites``. NaN where the data set keeps no visits with dates.
    """
    if dataset.card.dates_share is not None:
        return float(dataset.card.dates_share)
    table = dataset.visit_table
    if table is None or not table.visits["date"].notna().any():
        return float("nan")
    options = SeasonOptions(shift_by=None, curve_sites=1000, link="cloglog")
    seasons = Seasons.of(dataset, sites, options)
    return dates_share(seasons, seasons.counts(dataset, sites))


def used_season(
    options: SeasonOptions | None, dataset: Dataset, sites: Sequence[str]
) -> SeasonOptions | None:
    """
    Return how dates are used, or None: not at all.

    With ``auto`` they are where dates alone make raw rates differ by more than a quarter of what
    sites do; the log says which, and why.
    """
    if options is None or options.use == "off":
        return None
    if options.use == "on":
        return options
    share = share_of_dates(dataset, sites)
    if not np.isfinite(share):
        log.warning(
            "Season: off. The data set %r keeps too few visits with dates to tell how they "
            "mislead.",
            dataset.card.name,
        )
        return None
    on = share > MISLEADING
    log.warning(
        "Season: %s. Dates alone make raw rates differ %.2f times as much as sites do; above %g "
        "they mislead.",
        "on" if on else "off",
        share,
        MISLEADING,
    )
    return options if on else None
