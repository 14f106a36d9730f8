"""Read how long a visit took, in minutes, from what recorders write."""

from __future__ import annotations

import math
import re

import numpy as np
import polars as pl

TERMS = ("duration", "durationUnit", "samplingEffort")
LONGEST = 24 * 60  # minutes; a visit is a site and a day

_UNITS = {
    1 / 60: "s sec secs second seconds",
    1.0: "m min mins minute minutes",
    60.0: "h hr hrs hour hours",
}
_MINUTES = {word: minutes for minutes, words in _UNITS.items() for word in words.split()}
_NUMBER = r"\d+(?:[.,]\d+)?"
_BARE = re.compile(rf"^{_NUMBER}$")
_CLOCK = re.compile(r"^(\d{1,2}):([0-5]\d)(?::([0-5]\d))?$")
_ISO = re.compile(rf"^pt(?=\d)(?:(?P<h>{_NUMBER})h)?(?:(?P<m>{_NUMBER})m)?(?:(?P<s>{_NUMBER})s)?$")
_PART = re.compile(
    rf"(?<![\d.,:\-–/])({_NUMBER})\s*(hours?|hrs?|h|minutes?|mins?|seconds?|secs?)(?![a-z])"
)
_ODD_MINUTES = re.compile(rf"(?<![\d.,:\-–/])({_NUMBER})\s*h\s*([0-5]?\d)(?:\s*m)?(?![a-z\d.,])")


def minutes(duration: str, unit: str = "", effort: str = "") -> float:
    """
    Return how many minutes a visit took; NaN where that is not told, or longer than a day.

    Parameters
    ----------
    duration
        A number, minutes unless ``unit`` says otherwise; hours and minutes (``1:30``, ``1 h 30``,
        ``PT1H30M``).
    unit
        Of a bare number.
    effort
        Darwin Core's ``samplingEffort``: free text, in which only a time with its unit counts.

    Examples
    --------
    >>> minutes("45"), minutes("1.5", "hours"), minutes("", "", "2 observers, 90 min")
    (45.0, 90.0, 90.0)
    >>> minutes("", "", "10 observer hours; 10 km by foot")
    nan
    """
    text = duration.strip().lower()
    found = math.nan
    if _BARE.match(text):
        word = unit.strip().lower().rstrip(".")
        found = _number(text) * (_MINUTES.get(word, math.nan) if word else 1.0)
    elif text:
        found = _of_text(text)
    if math.isnan(found) and effort.strip():
        found = _of_text(effort.strip().lower())
    return found if 0 < found <= LONGEST else math.nan


def read_minutes(texts: pl.DataFrame) -> np.ndarray:
    """
    Return the minutes of each entry of a dictionary of efforts, in the order of its codes.

    Parameters
    ----------
    texts
        Columns ``code`` and those of :data:`TERMS`.

    Returns
    -------
    ndarray of float32
        NaN where nothing is told.
    """
    told = texts.sort("code").select(TERMS)
    return np.array([minutes(*row) for row in told.iter_rows()], dtype=np.float32)


def _number(text: str) -> float:
    return float(text.replace(",", "."))


def _of_text(text: str) -> float:
    """Return the minutes that a text in small letters tells."""
    clock = _CLOCK.match(text)
    if clock:
        return int(clock[1]) * 60 + int(clock[2]) + int(clock[3] or 0) / 60
    iso = _ISO.match(text)
    if iso:
        return sum(_number(iso[unit]) * _MINUTES[unit] for unit in "hms" if iso[unit])
    odd = _ODD_MINUTES.search(text)
    if odd:
        return _number(odd[1]) * 60 + int(odd[2])
    parts = [(_MINUTES[unit], _number(number)) for number, unit in _PART.findall(text)]
    units = [unit for unit, _ in parts]
    # One time, such as 1 hour 30 min; two of one unit are two visits or a choice.
    if not parts or len(set(units)) < len(units):
        return math.nan
    return sum(unit * number for unit, number in parts)
