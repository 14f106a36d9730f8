"""Pictures of seasons: when each species is seen, and on which days people looked."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import DataError
from butterfly_sdm.figures.picture import INK, OTHER, PALETTE, Picture
from butterfly_sdm.season.cells import WEEKS, week_of

MOST, COLUMNS = 12, 4
SMALLEST_PEAK = 0.05  # of the highest: a smaller one is no generation but a wave of a spline
SMALLEST_RISE = 0.005  # of the highest, from the deeper valley beside a peak
_MONTHS = pd.date_range("2019-01-01", "2019-12-01", freq="MS")


def show_seasons(dataset: Dataset, curves: pd.DataFrame, species: Sequence[str] = ()) -> Picture:
    """
    Show the season curve of each species, and below it the days on which people looked.

    Parameters
    ----------
    dataset
        Whose visits are counted.
    curves
        Columns ``species``, ``week`` (1 to 52, of seven days from 1 January), ``detectability``
        (chance that a visit to the average site sees it), ``lower`` and ``upper`` (an interval of
        the curve), as :meth:`butterfly_sdm.season.seasons.Seasons.curve_table` returns it.
    species
        Which, no more than 12; empty: those seen most.

    Returns
    -------
    Picture
        One panel a species, each on its own scale, with the days of its peaks; below every column
        the visits per week.

    Raises
    ------
    DataError
        The data set keeps no dates, or there is no curve of a species.
    """
    if dataset.visit_table is None or not dataset.visit_table.visits["date"].notna().any():
        raise DataError(
            f"The data set {dataset.card.name!r} keeps no dates of visits, so there are no days to "
            "show. Build it again with this release."
        )
    known = set(curves["species"])
    if not species:
        seen = dataset.detections.sum().sort_values(ascending=False, kind="stable")
        species = [name for name in seen.index if name in known][:MOST]
    missing = [name for name in species if name not in known]
    if missing or not species:
        raise DataError(
            f"There is no curve of {missing[0] if missing else 'any species of the data set'}; "
            f"there are curves of {', '.join(sorted(known)[:5])} ..."
        )
    species = list(species)[:MOST]
    columns = min(COLUMNS, len(species))
    rows = -(-len(species) // columns)
    picture = Picture(2.6 * columns + 0.6, 1.75 * rows + 1.5)
    grid = picture.subplots(
        rows + 1, columns, sharex=True, squeeze=False, height_ratios=[*[1.0] * rows, 0.55]
    )
    for place, axes in enumerate(grid[:rows].ravel()):
        if place < len(species):
            _curve(axes, curves[curves["species"] == species[place]], species[place])
        else:
            axes.set_visible(False)
    grid[0, 0].set_ylabel("chance to see it\nat the average site", fontsize=7)
    weeks = _visits_per_week(dataset)
    shown = weeks.index[weeks > 0].union(pd.Index(curves["week"].unique()))
    for axes in grid[rows]:
        _looked(axes, weeks)
        axes.set_xlim(_day(shown.min()) - 4, _day(shown.max()) + 4)
    grid[rows, 0].set_ylabel("visits\na week", fontsize=7)
    return picture


def peaks(week: np.ndarray, detectability: np.ndarray) -> np.ndarray:
    """
    Return the weeks in which a curve is highest, one per generation.

    A peak below 5 % of the highest is none, nor is the edge of a curve that still rises there.
    """
    from scipy.signal import find_peaks

    highest = float(np.max(detectability))
    found, _ = find_peaks(
        detectability, height=SMALLEST_PEAK * highest, prominence=SMALLEST_RISE * highest
    )
    weeks: np.ndarray = np.asarray(week)[found]
    return weeks


def _curve(axes: Any, curve: pd.DataFrame, name: str) -> None:
    curve = curve.sort_values("week")
    day = _day(curve["week"].to_numpy())
    colour = PALETTE["train"]
    axes.fill_between(day, curve["lower"], curve["upper"], color=colour, alpha=0.2, linewidth=0)
    axes.plot(day, curve["detectability"], color=colour, linewidth=1.4)
    highest = peaks(curve["week"].to_numpy(), curve["detectability"].to_numpy())
    for week in highest:
        axes.axvline(_day(week), color=INK, linewidth=0.5, linestyle=":")
    told = ", ".join(f"{date.day} {date:%b}" for date in _dates(highest))
    axes.set_title(name.replace("$", r"\$"), fontsize=8, style="italic", loc="left", pad=10)
    axes.text(0, 1.02, f"peak {told}" if told else "", transform=axes.transAxes, fontsize=6.5)
    axes.set_ylim(0, max(float(curve["upper"].max()) * 1.05, 1e-3))
    axes.tick_params(labelsize=6.5, length=2)
    axes.spines[["top", "right"]].set_visible(False)


def _looked(axes: Any, weeks: pd.Series) -> None:
    axes.bar(_day(weeks.index.to_numpy()), weeks.to_numpy(), width=6, color=OTHER)
    axes.set_xticks(_MONTHS.day_of_year, labels=[f"{month:%b}"[0] for month in _MONTHS])
    axes.tick_params(labelsize=6.5, length=2)
    axes.spines[["top", "right"]].set_visible(False)


def _visits_per_week(dataset: Dataset) -> pd.Series:
    assert dataset.visit_table is not None
    weeks = np.bincount(week_of(dataset.visit_table.visits["date"]), minlength=WEEKS + 1)
    return pd.Series(weeks[1:], index=np.arange(1, WEEKS + 1))


def _day(week: Any) -> Any:
    """Return the middle of a week as a day of the year."""
    return (week - 1) * 7 + 4


def _dates(weeks: np.ndarray) -> list[pd.Timestamp]:
    return [pd.Timestamp("2019-01-01") + pd.Timedelta(days=int(_day(week)) - 1) for week in weeks]
