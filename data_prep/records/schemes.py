"""Say what a visit is: the rules of a recording scheme."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from butterfly_sdm.errors import RecordsError, did_you_mean


@dataclass(frozen=True)
class RecordingScheme:
    """
    Which records show that somebody looked, and which that a species was there.

    Attributes
    ----------
    name
        For messages and cards.
    visit
        ``site_date``: all records of one site and day are one visit. ``event``: each survey event
        is one.
    absent
        Whether a record of absence shows effort (``effort``) or is left out (``drop``).
    zero_count
        What a count of zero means: ``absent``, ``present`` (the count is not to be trusted) or
        ``drop``.
    higher_ranks
        Whether a record of a genus or family shows effort (``effort``) or not (``drop``). It never
        detects a species.
    aggregates
        Records of a group of species such as *Leptidea sinapis/juvernica*: ``effort``, ``detect``
        (the group counts as a species) or ``drop``.
    complete_only
        Only lists whose ``completeness`` says that every species seen is named.
    min_list_length
        Fewest species of a visit: with incidental records a longer list shows more effort [1]_.
    months
        First and last month of the season; None: the whole year.

    References
    ----------
    .. [1] Szabo et al. (2010), Regional avian species declines estimated from volunteer-collected
           long-term data using list
       length analysis. Ecological Applications 20, 2157-2169.
    """

    name: str = "ukbms"
    visit: Literal["site_date", "event"] = "site_date"
    absent: Literal["effort", "drop"] = "effort"
    zero_count: Literal["absent", "present", "drop"] = "absent"
    higher_ranks: Literal["effort", "drop"] = "drop"
    aggregates: Literal["effort", "detect", "drop"] = "effort"
    complete_only: bool = False
    min_list_length: int = 1
    months: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.min_list_length < 1:
            raise RecordsError(
                f"A list has at least 1 species; min_list_length is {self.min_list_length}."
            )
        if self.months is not None and not (
            1 <= self.months[0] <= 12 and 1 <= self.months[1] <= 12
        ):
            raise RecordsError(f"Months are numbers from 1 to 12; the season is {self.months}.")


SCHEMES: dict[str, RecordingScheme] = {
    "ukbms": RecordingScheme(),
    "complete": RecordingScheme(name="complete", complete_only=True, visit="event"),
    "list_length": RecordingScheme(name="list_length", min_list_length=3, absent="drop"),
    "event": RecordingScheme(name="event", visit="event", higher_ranks="effort"),
}
"""
Schemes by name: transect walks, complete checklists, incidental records by list length, surveys
with an event core.
"""


def recording_scheme(name: str, **changes: object) -> RecordingScheme:
    """
    Return a scheme by name, with some rules changed.

    Raises
    ------
    RecordsError
        The name or a rule is unknown.
    """
    if name not in SCHEMES:
        raise RecordsError(
            f"{name!r} is no recording scheme. Known are "
            f"{', '.join(SCHEMES)}.{did_you_mean(name, SCHEMES)}"
        )
    try:
        return replace(SCHEMES[name], **changes)  # type: ignore[arg-type]
    except TypeError:
        known = ", ".join(RecordingScheme.__dataclass_fields__)
        raise RecordsError(
            f"A recording scheme has no rule {sorted(changes)}; its rules are {known}."
        ) from None
