"""Score what is claimed of a season, a week or given dates against the visits that speak of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import get_args

import numpy as np
import pandas as pd

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import Predictor
from butterfly_sdm.data.quantities import Bound, Quantity, Surveyed, ask, known_quantities
from butterfly_sdm.data.visits import VisitTable
from butterfly_sdm.errors import DataError, ModelError
from butterfly_sdm.evaluation.options import EvaluateOptions
from butterfly_sdm.season.cells import week_of
from butterfly_sdm.season.effective import SeasonLabels
from butterfly_sdm.season.seasons import Seasons, visits_of


def to_score(
    predictor: Predictor,
    dataset: Dataset,
    options: EvaluateOptions,
    train: Sequence[str],
    sites: Sequence[str],
) -> tuple[Predictor, Dataset]:
    """
    Return the predictor asked for the quantity that is scored, and the data set whose k of n speak
    of it.

    Without a quantity these are the visits as they are; of a predictor that tells rates on given
    dates, those on the very dates. ``rate_in_week``: only the visits of that week.
    ``standardised_rate``: effective visits, by curves fitted to the training sites.

    Raises
    ------
    ModelError
        The predictor does not tell the quantity.
    DataError
        No visit speaks of it.
    """
    name = options.quantity
    if name is None:
        return as_looked_at(predictor, dataset), dataset
    asked = ask(predictor, Quantity(name, week=options.week))
    if name == "rate_in_week":
        return asked, in_week(dataset, options.week or 0)
    if name == "raw_rate":
        return asked, dataset
    seasons = Seasons.of(dataset, train)
    every = [site for site in dict.fromkeys([*train, *sites]) if dataset.visits[site] > 0]
    return asked, SeasonLabels.over(dataset, seasons, every)


def as_looked_at(predictor: Predictor, dataset: Dataset) -> Predictor:
    """
    Return a predictor whose claims can be compared with k of n: of one that tells rates on given
    dates, those on the dates of the visits; any other as it is.
    """
    plain = dataset.visit_table is None or isinstance(dataset, SeasonLabels)
    if plain or "raw_rate" not in known_quantities(predictor):
        return predictor
    return ask(predictor, Quantity("raw_rate"))


def in_week(dataset: Dataset, week: int) -> Dataset:
    """
    Return a data set with only the visits of one week of the year, 1 to 52.

    Raises
    ------
    DataError
        There were none.
    """
    table = visits_of(dataset)
    keep = week_of(table.visits["date"]) == week
    if not keep.any():
        raise DataError(f"There was no visit in week {week}. Score another week.")
    number = np.cumsum(keep) - 1
    visit = table.sightings["visit"].to_numpy()
    seen = keep[visit]
    own = VisitTable(
        table.visits[keep].reset_index(drop=True),
        pd.DataFrame(
            {
                "visit": number[visit[seen]].astype(np.uint32),
                "species": table.sightings["species"].to_numpy()[seen],
            }
        ),
    )
    k, n = own.sums(*dataset.detections.shape)
    detections = pd.DataFrame(k, dataset.detections.index, dataset.detections.columns)
    return replace(
        dataset, sites=dataset.sites.assign(visits=n), detections=detections, visit_table=own
    )


def told_with_intervals(
    predictor: Predictor, dataset: Dataset, sites: Sequence[str]
) -> pd.DataFrame | None:
    """
    Return the standardised rates of sites with their 90 % intervals, without and with the visits to
    the sites themselves; None if the predictor tells none.

    Returns
    -------
    DataFrame
        Index ``site_id``; columns ``species``, ``mean``, ``lower``, ``upper``, ``surveyed_mean``,
        ``surveyed_lower``, ``surveyed_upper``; with presence also ``presence`` and, where it has
        an interval, ``presence_lower`` and ``presence_upper``.
    """
    known = known_quantities(predictor)
    if "standardised_rate" not in known or dataset.visit_table is None:
        return None
    own = dataset.plain() if isinstance(dataset, SeasonLabels) else dataset
    tables = {
        bound: ask(predictor, Quantity(bound=bound)).predict(own, sites)
        for bound in get_args(Bound)
    }
    rates = ask(predictor, Quantity())
    if isinstance(rates, Surveyed):
        found = rates.surveyed(own, sites)
        tables |= {f"surveyed_{name}": table for name, table in found.items()}
    if "presence" in known:
        tables["presence"] = ask(predictor, Quantity("presence")).predict(own, sites)
        for bound in ("lower", "upper"):
            with suppress(ModelError):  # a network tells none of presence
                asked = ask(predictor, Quantity("presence", bound=bound))
                tables[f"presence_{bound}"] = asked.predict(own, sites)
    long = {name: table.rename_axis(columns="species").stack() for name, table in tables.items()}
    return pd.DataFrame(long).reset_index("species")
