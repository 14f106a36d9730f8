"""What a build finds out on its way and tells in the card: sources, warnings and notes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from butterfly_sdm.data.dataset import Source
from butterfly_sdm.data.splits import Split
from butterfly_sdm.data.visits import VisitTable
from butterfly_sdm.errors import counted, without_secrets
from butterfly_sdm.season.cells import CellCounts
from butterfly_sdm.season.options import SeasonOptions
from butterfly_sdm.season.seasons import Seasons, dates_share
from butterfly_sdm.season.use import MISLEADING
from data_prep.look.left_out import CHOSEN, Values
from data_prep.records.count import SurveyTable

log = logging.getLogger("data_prep.build")


@dataclass
class BuildNotes:
    """
    Lists that grow while a data set folder is filled.

    Attributes
    ----------
    imagery
        Files that pixels were taken from, each with the licence its product states, if any.
    """

    sources: list[Source] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    imagery: dict[str, str | None] = field(default_factory=dict)

    def warn(self, message: str) -> None:
        """Say a warning now, and keep it for the card."""
        message = without_secrets(message)
        log.warning(message)
        self.warnings.append(message)


MANY_LEFT_OUT = 0.05
"""Share of the rows beyond which a reason to leave them out is told."""

_CURES = {
    "malformed row": "Is the separator or the quote of the file another than its header shows? "
    "Export it again.",
    "duplicate record": "Is the same download named twice?",
    "no date": "Is the date in a column of another name? Name it in records.columns.",
    "unreadable date": "Write dates as 2018-06-03, 3/6/2018 or 3 June 2018.",
    "date is a period": "A visit needs one day: leave such records out, or give their days.",
    "ambiguous date": "Say in records.day_first whether 3/6/2018 is in June.",
    "no coordinates": "Is the place in a column of another name? Name it in records.columns.",
    "unreadable grid reference": "Grid references are read as SU31, SU3112 or SU 312 124.",
    "rank above species": "Give these names their scientific ones in records.synonyms, if they "
    "are species.",
    "name not understood": "Give these names their scientific ones in records.synonyms.",
    "latitude and longitude exchanged": "Exchange them in records.columns.",
    "species aggregate": "Set records.aggregates to detect, if they shall count as species.",
    "unknown status": "Is this column no occurrence status? Name the right one in records.columns.",
}
_CURE = "If they should count, correct the file or say in records.columns which column is which."


def covariate_doubts(covariates: pd.DataFrame | None) -> tuple[list[str], list[str]]:
    """
    Say which covariates are empty or the same at all sites, and which lack values at some.

    Parameters
    ----------
    covariates
        (sites, covariates), NaN where missing; None: there are none.

    Returns
    -------
    warnings, notes : list of str
    """
    if covariates is None or len(covariates) < 2:
        return [], []
    have = covariates.notna().sum()
    empty = list(have.index[have == 0])
    flat = list(have.index[(have > 0) & (covariates.nunique() == 1)])
    some = have[(have > 0) & (have < len(covariates))]
    warnings: list[str] = []
    notes: list[str] = []
    if empty:
        warnings.append(
            f"{_named(empty)} no value at any site, so nothing can be learned from it. Remove it, "
            "or check its table, raster and band."
        )
    if flat:
        value = covariates[flat[0]].dropna().iloc[0]
        warnings.append(
            f"{_named(flat)} the same value at all sites ({flat[0]}: {value:g}), so nothing can "
            "be learned from it. Remove it, or check its table, raster and band."
        )
    if len(some):
        lacking = len(covariates) - int(some.min())
        text = (
            f"{_named(list(some.index))} no value at up to {lacking:,} of {len(covariates):,} "
            "sites. Models take the mean of the training sites there; maps have no value where a "
            "raster has none."
        )
        (warnings if 2 * lacking > len(covariates) else notes).append(text)
    return warnings, notes


def _named(names: list[str]) -> str:
    shown = ", ".join(map(str, names[:3]))
    if len(names) == 1:
        return f"The covariate {shown} has"
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return f"{len(names):,} covariates ({shown}{more}) have"


def unwanted_losses(rows: Mapping[str, int]) -> dict[str, int]:
    """
    Return the reasons, no settings of the user, for which more than 5 % of the rows were left out.
    """
    left_out = {key.removeprefix("dropped: "): n for key, n in rows.items() if "dropped: " in key}
    return {
        reason: n
        for reason, n in left_out.items()
        if reason not in CHOSEN and n > MANY_LEFT_OUT * rows.get("read", 0)
    }


def survey_doubts(table: SurveyTable, values: Values) -> list[str]:
    """
    Say what makes the counts of a survey doubtful: rows that were not understood, lists of one
    species, sites seen once.

    Parameters
    ----------
    values
        Per reason the commonest values of the rows left out, as far as they are known.
    """
    found = []
    for place, (reason, n) in enumerate(unwanted_losses(table.rows).items()):
        told = ", ".join(f"{value!r} ({rows:,})" for value, rows in values.get(reason, ()))
        found.append(
            f"{n:,} of {table.rows['read']:,} rows ({n / table.rows['read']:.0%}) were left out: "
            f"{reason}{f', such as {told}' if told else ''}. "
            f"{_CURES.get(reason, _CURE)}"
            + ("" if place else " 'build --explain left_out.csv' lists all that is left out.")
        )
    visits = int(table.visits.sum())
    if visits and table.lists_of_one > visits / 2:
        found.append(
            f"{table.lists_of_one:,} of {visits:,} visits ({table.lists_of_one / visits:.0%}) name "
            "a single species: such records do not tell what else was there, so rates say what "
            "people report rather than what lives there. Keep longer lists with records.scheme: "
            "list_length, or complete ones with complete."
        )
    counted = table.visits[table.visits > 0]
    once = int((counted == 1).sum())
    if once > len(counted) / 2:
        found.append(
            f"{once:,} of {len(counted):,} sites ({once / len(counted):.0%}) have one visit, so "
            "each of their rates is 0 or 1. Make sites of grid squares with records.grid_m: 1000, "
            "or keep sites with more visits by records.min_visits."
        )
    return found


_LOOKED_AT = {"species": 12, "sites": 500, "detections": 30}
_CURVES = SeasonOptions(link="cloglog", shift_by=None, years=False, effort=())


def dates_apart(table: VisitTable | None, species: int) -> float | None:
    """
    Return how far dates alone make raw rates of sites differ, see
    :func:`butterfly_sdm.season.seasons.dates_share`.

    The median of the 12 commonest species, at no more than 500 sites drawn at random; None where
    there are too few dated visits to tell.
    """
    if table is None or not table.visits["date"].notna().any():
        return None
    site = table.visits["site"].to_numpy()
    visited = np.unique(site)
    if len(visited) > _LOOKED_AT["sites"]:
        rng = np.random.default_rng(0)
        visited = np.sort(rng.choice(visited, _LOOKED_AT["sites"], replace=False))
    seen = np.bincount(table.sightings["species"].to_numpy(), minlength=species)
    often = np.sort(np.argsort(-seen, kind="stable")[: _LOOKED_AT["species"]])
    own = table.taken(visited, often)
    rows = np.arange(len(visited))
    seasons = Seasons.fit(own, [str(place) for place in often], rows, _CURVES)
    counts = CellCounts.of(own, seasons.calendar, rows, bands=np.zeros(len(rows), dtype=int))
    share = dates_share(seasons, counts, fewest=_LOOKED_AT["detections"])
    return None if np.isnan(share) else float(f"{share:.3g}")


def misleading_dates(share: float | None) -> list[str]:
    """Say that dates make raw rates misleading, where they do."""
    if share is None or share <= MISLEADING:
        return []
    return [
        f"When people looked makes raw rates k/n misleading: dates alone give them {share:.2g} "
        "times the variance that there is between sites (median of the commonest species; more "
        f"than {MISLEADING:g} misleads). Learn rates over a whole season with train.season: auto, "
        "or keep the months in which all sites were visited (records.months)."
    ]


FEW_TO_LEARN, FEW_TO_JUDGE, FEW_OF_A_SPECIES = 50, 20, 5


def thin_data(rows: Mapping[str, int], detections: pd.DataFrame, split: Split) -> list[str]:
    """
    Say where there is too little to learn from, and which setting left it out.

    Parameters
    ----------
    rows
        Records by what became of them: ``kept``, ``dropped: REASON``.
    detections
        (site, species) visits on which the species was recorded.
    """
    found = []
    few = {
        "min_records": rows.get("dropped: too few records at the site", 0),
        "min_visits": rows.get("dropped: too few visits to the site", 0),
    }
    setting, left_out = max(few.items(), key=lambda item: item[1])
    if left_out > rows.get("kept", 0):
        found.append(
            f"{left_out:,} usable records were left out because their sites have too few, more "
            "than were kept "
            f"({rows.get('kept', 0):,}). Lower records.{setting} to keep more sites."
        )
    if len(split.train) < FEW_TO_LEARN or len(split.validation) < FEW_TO_JUDGE:
        apart = len(detections) - len(split.part_of())
        found.append(
            f"There are only {len(split.train)} sites to learn from and {len(split.validation)} to "
            "judge by: scores will say "
            "little, and the mean rate will be hard to beat. Widen records.years, or lower "
            "records.min_records and min_visits."
            + (
                f" {counted(apart, 'site is', 'sites are')} in no part of the split: a smaller "
                "split.buffer_m leaves out fewer."
                if apart > 0
                else ""
            )
        )
    sites = (detections > 0).sum()
    rare = sites[sites < FEW_OF_A_SPECIES].sort_values()
    if len(rare):
        named = ", ".join(map(str, rare.index[:6])) + (", ..." if len(rare) > 6 else "")
        found.append(
            f"{len(rare)} of {len(sites)} species were recorded at fewer than {FEW_OF_A_SPECIES} "
            "sites, too few to learn where "
            f"they live: {named}. Leave them out by listing the others in records.species, or do "
            "not trust their maps."
        )
    return found
