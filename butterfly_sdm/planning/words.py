"""What a plan and a replay say, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from butterfly_sdm.planning.options import PlanOptions

#: What a replay on the published British data said (docs/measured/planning.md): correlation of
#: promised and found falls, and found per promised fall with its interval.
BRITISH: Mapping[str, float] = {"r": 0.92, "kept": 1.32, "kept_low": 1.14, "kept_high": 1.50}


def words_of(
    options: PlanOptions, promise: Mapping[str, float], about: Mapping[str, Any], n: int
) -> str:
    """
    Return one paragraph: what a plan is good for, what it promises, how promises have held.

    Parameters
    ----------
    options, promise, about
        Of the plan.
    n
        How many sites it names.
    """
    one = "square" if about["grid"] else "site"
    many = f"{n} {one}{'s' if n != 1 else ''} with {options.visits} visits each"
    if options.aim == "find":
        named = ", ".join(options.species)
        return (
            f"These {many} are where {named} {'are' if len(options.species) > 1 else 'is'} most "
            f"likely: {promise['finds']:.1f} finds are expected, a species counting once per "
            f"{one}. It is a plan to find, not to map: in replays the most likely places "
            "found most and made no better map."
        )
    what = f"{about['species']} species"
    if options.species:
        what = ", ".join(options.species[:3])
        if (more := len(options.species) - 3) > 0:
            what += f" and {more} more"
    where = _where(options, about)
    last = (
        "what is promised for species that are rare was far too little in replays."
        if options.species
        else "a plan for one purpose is none for another: it does not look for rare species."
    )
    how = {
        "gain": "take most away of the expected error",
        "space": "bring a surveyed site near to every place",
        "random": "are drawn at random",
    }[options.method]
    return (
        f"These {many} {how}, for a map of {what} that is judged at {where}. Together they promise "
        f"to lower the expected squared error of a rate there by {promise['gain']:.1f} %; as "
        f"many drawn at random promise {promise['gain_random']:.1f} %. "
        f"{promises_in_words(about['promises'])} The promise holds only if people go where they "
        f"are sent; {last}"
    )


def _where(options: PlanOptions, about: Mapping[str, Any]) -> str:
    places = str(options.places)
    if places == "candidates":
        return (
            f"{about['places']:,} of the candidates (nobody said where it will be judged, and such "
            "plans gain less: plan.places)"
        )
    if places in ("sites", "train", "validation", "test"):
        return f"{about['places']:,} sites of the data set"
    return f"the {about['places']:,} places given"


def promises_in_words(promises: Mapping[str, Any] | None) -> str:
    """
    Return how promises held.

    Parameters
    ----------
    promises
        Of a replay of the same data; None: those on British data are told.
    """
    whose = "a replay of these data" if promises else "a replay on British data, not on these"
    told = promises or BRITISH
    return (
        f"In {whose}, promised and found falls went together (r = {told['r']:.2f}), and per "
        f"promised fall {told['kept']:.2f} [{told['kept_low']:.2f}, {told['kept_high']:.2f}] was "
        "found."
    )


def verdict_of(table: pd.DataFrame, about: Mapping[str, Any], promises: Mapping[str, float]) -> str:
    """
    Return which method serves the data of a replay, in one paragraph.

    Parameters
    ----------
    table
        Its summary, one row per method.
    about, promises
        Of the replay.
    """
    gain, blind = table.loc["gain"], table.loc["gain, blind"]

    def against(row: Any) -> str:
        low, high = 100 * row["minus_random_low"], 100 * row["minus_random_high"]
        return f"{100 * row['minus_random']:+.3f}e-2 [{low:+.3f}, {high:+.3f}]"

    offered = [
        name for name in ("gain", "gain, blind", "space", "space, blind") if name in table.index
    ]
    sure = [name for name in offered if table.loc[name, "minus_random_high"] < 0]
    best = table.loc[offered, "mse"].idxmin()
    advice = (
        f"Of what can be asked for, {best} had the least error."
        if sure
        else "No method was surely better than random sites: let convenience decide."
    )
    return (
        f"{about['draws']} times, {about['start_sites']} surveyed sites got {about['add']} more, "
        f"and the map was scored at {about['scored']} held-out sites. Mean squared error minus "
        f"that of random sites: gain {against(gain)} where it knows which places are judged, "
        f"{against(blind)} where it knows only the candidates; it was better in "
        f"{gain['draws_better']:.0%} of the draws. {advice} "
        f"{promises_in_words(promises)} Intervals are over draws from the same data, not "
        "over other regions."
    )
