"""Read the dates of records, in whichever way they were written, as days."""

from __future__ import annotations

import polars as pl

REASONS = ("", "no date", "unreadable date", "date is a period", "ambiguous date")
"""
Why a date is no day; the place in the tuple is the code. Ambiguous is 3/6/2018 where nobody says
which is the month.
"""

MONTHS = tuple(
    "January February March April May June July August September October November December".split()
)
TERMS = ("eventDate", "eventDateEnd", "year", "month", "day", "startDayOfYear", "endDayOfYear")
MISSING = ("na", "n/a", "#n/a", "null", r"\n", "none", "nan", "-", "--", "?", "unknown")
"""What programs write in a cell that has nothing, in small letters."""

_FULL = (
    r"\d{4}-\d{1,2}-\d{1,2}|\d{4}[/.]\d{1,2}[/.]\d{1,2}|\d{1,2}[/.]\d{1,2}[/.]\d{4}"
    r"|\d{1,2}-\d{1,2}-\d{4}"
)
_CLOCK = r"^\d{1,2}([:.h]\d{2}.*|\s*[ap]\.?m.*)$"
_WEEKDAY = r"(?i)^(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?[., ]+"
_MONTH_NUMBERS = {
    name[:length].lower(): f"{n:02}"
    for n, name in enumerate(MONTHS, start=1)
    for length in range(3, len(name) + 1)
}
_WAYS = ("iso", "year_first", "ordinal", "compact", "worded", "dmy", "mdy")


def read_days(dates: pl.DataFrame, *, day_first: bool | None = None) -> pl.DataFrame:
    """
    Read days.

    Parameters
    ----------
    dates
        Text columns ``eventDate``, ``year``, ``month``, ``day``, and ``code``; where known
        ``eventDateEnd``, ``startDayOfYear`` and ``endDayOfYear``. ISO dates, with or without a
        time, are always read, and so are year-first ones (2018/06/03), the day of a year
        (2018-154) and dates whose month is an English word (``3 June 2018``, ``03-Jun-2018``);
        ``3/6/2018`` is, if ``day_first`` or another date of the table (13/6/2018) says how.
        ``eventDate`` goes before the rest. What has an end on another day, in whichever words or
        column, is a period.
    day_first
        Whether ``3/6/2018`` is the third of June; None: as the other dates of the table tell.

    Returns
    -------
    DataFrame
        ``code``; ``day`` (date, null if there is none); ``date_reason`` (place in :data:`REASONS`).
    """
    columns = _understood(dates)
    if day_first is None:
        day_first = _told(columns)
    columns = columns.with_columns(
        _chosen("", day_first).alias("start"), _chosen("end_", day_first).alias("last")
    )
    text, end = pl.col("text"), pl.col("end_text")
    days = columns.with_columns(
        pl.when(pl.col("period"))
        .then(None)
        # A month alone, 2018-06, may have its day in the column beside it.
        .when(text != "")
        .then(pl.coalesce("start", "from_parts", "from_number"))
        .otherwise(pl.coalesce("from_parts", "from_number"))
        .alias("day")
    ).with_columns(
        (
            pl.col("period")
            | (pl.col("last") != pl.col("day")).fill_null(False)
            | (pl.col("last").is_not_null() & (text == "") & pl.col("day").is_null())
            | end.str.contains(r"^\d{4}(-\d{1,2})?$")
        ).alias("period"),
        (pl.col("last").is_null() & (end != "") & (end != text)).alias("bad_end"),
    )
    ambiguous = _ambiguous("") if day_first is None else pl.lit(False)
    reason = (
        pl.when(pl.col("period"))
        .then(3)
        .when(pl.col("day").is_not_null())
        .then(pl.col("bad_end") * 2)
        .when((text == "") & (pl.col("year") == ""))
        .then(1)
        .when(ambiguous)
        .then(4)
        .when(
            text.str.contains(r"^\d{4}([-/.]\d{1,2})?$")
            | ((text == "") & pl.col("year").str.contains(r"^\d{4}"))
        )
        .then(3)
        .otherwise(2)
        .cast(pl.UInt8)
    )
    day = pl.when(reason == 0).then(pl.col("day"))
    return days.select("code", day.alias("day"), reason.alias("date_reason"))


def _understood(dates: pl.DataFrame) -> pl.DataFrame:
    """Return each text read in every way, and whether it speaks of more than one day."""
    cells = {term: present(pl.col(term)) if term in dates.columns else pl.lit("") for term in TERMS}
    split = dates.select("code", **cells).with_columns(
        # 01/06/2018 to 1/6/2018 is one day.
        pl.col("eventDate")
        .str.replace_all(r"(^|[^\d:])0(\d)", "$1$2")
        .str.extract_all(_FULL)
        .alias("full"),
        pl.when(pl.col("eventDateEnd").str.contains(_CLOCK))
        .then(pl.lit(""))
        .otherwise(pl.col("eventDateEnd"))
        .alias("end_text"),
        *(
            pl.col(term).str.strip_suffix(".0")
            for term in ("year", "month", "day", "startDayOfYear", "endDayOfYear")
        ),
    )
    full = pl.col("full")
    one_day = (full.list.len() > 1) & (full.list.n_unique() == 1)
    several = full.list.n_unique() > 1
    numbers = (pl.col("startDayOfYear") != pl.col("endDayOfYear")) & (
        (pl.col("startDayOfYear") != "") & (pl.col("endDayOfYear") != "")
    )
    return split.with_columns(
        pl.col("month").str.to_lowercase().replace(_MONTH_NUMBERS).alias("month"),
        pl.when(one_day).then(full.list.first()).otherwise(pl.col("eventDate")).alias("text"),
        (several | numbers | _interval(pl.col("eventDate"), one_day)).alias("period"),
    ).select(
        "code",
        "text",
        "end_text",
        "period",
        "year",
        *_readings(pl.col("text"), ""),
        *_readings(pl.col("end_text"), "end_"),
        _day(
            pl.format("{}-{}-{}", "year", "month", "day"),
            r"^(\d{4})-(\d{1,2})-(\d{1,2})$",
            (1, 2, 3),
        ).alias("from_parts"),
        _ordinal(
            pl.format("{}-{}", "year", pl.coalesce(_filled("startDayOfYear"), "endDayOfYear"))
        ).alias("from_number"),
    )


def present(text: pl.Expr) -> pl.Expr:
    """Return stripped texts, ``""`` for the words that stand for nothing."""
    stripped = text.str.strip_chars()
    return (
        pl.when(stripped.str.to_lowercase().is_in(list(MISSING)))
        .then(pl.lit(""))
        .otherwise(stripped)
    )


def _filled(column: str) -> pl.Expr:
    return pl.when(pl.col(column) != "").then(pl.col(column))


def _readings(text: pl.Expr, prefix: str) -> list[pl.Expr]:
    """Return a date for each way to read a text, null where it cannot be read so."""
    slashed = r"^(\d{1,2})[/.-](\d{1,2})[/.-](\d{4})([T ,].*)?$"
    start = text.str.split("/").list.first()
    ways = {
        "iso": _day(start, r"^(\d{4})-(\d{1,2})-(\d{1,2})(?:[T ]|$)", (1, 2, 3)),
        "year_first": _day(text, r"^(\d{4})[/.](\d{1,2})[/.](\d{1,2})(?:[T ,]|$)", (1, 2, 3)),
        "ordinal": _ordinal(text.str.extract(r"^(\d{4}-\d{3})$", 1)),
        "compact": _day(text, r"^(\d{4})(\d{2})(\d{2})$", (1, 2, 3)),
        "worded": _day(_numbered(text), r"^(\d{1,2})-(\d{2})-(\d{4})$", (3, 2, 1)),
        "dmy": _day(text, slashed, (3, 2, 1)),
        "mdy": _day(text, slashed, (3, 1, 2)),
    }
    return [ways[way].alias(prefix + way) for way in _WAYS]


def _told(columns: pl.DataFrame) -> bool | None:
    """Return whether days come first, as the dates tell that can be read in one way only."""

    def only(way: str, other: str) -> pl.Expr:
        return pl.any_horizontal(
            pl.col(prefix + way).is_not_null() & pl.col(prefix + other).is_null()
            for prefix in ("", "end_")
        ).any()

    dmy, mdy = columns.select(only("dmy", "mdy").alias("d"), only("mdy", "dmy").alias("m")).row(0)
    return None if dmy == mdy else bool(dmy)


def _ambiguous(prefix: str) -> pl.Expr:
    dmy, mdy = pl.col(prefix + "dmy"), pl.col(prefix + "mdy")
    return (dmy.is_not_null() & mdy.is_not_null() & (dmy != mdy)).fill_null(False)


def _chosen(prefix: str, day_first: bool | None) -> pl.Expr:
    """Return the date of a text, where day and month are told apart."""
    dmy, mdy = prefix + "dmy", prefix + "mdy"
    if day_first is None:
        slash = pl.when(_ambiguous(prefix)).then(None).otherwise(pl.coalesce(dmy, mdy))
    else:
        slash = pl.col(dmy if day_first else mdy)
    return pl.coalesce(*(prefix + way for way in _WAYS[:-2]), slash)


def _numbered(text: pl.Expr) -> pl.Expr:
    """
    Write 3 June 2018, 03-Jun-2018, Sunday 3rd of June 2018 and June 3, 2018 as 3-06-2018; what else
    there is as nothing.
    """
    bare = text.str.replace(_WEEKDAY, "")
    day, word, year = (
        bare.str.extract(
            r"^(\d{1,2})(?:st|nd|rd|th)?(?: of)?[ ./-]+([A-Za-z]{3,9})[ .,/-]+(\d{4})$", n
        )
        for n in (1, 2, 3)
    )
    first_word, second_day, last_year = (
        bare.str.extract(r"^([A-Za-z]{3,9})\.? (\d{1,2})(?:st|nd|rd|th)?,? (\d{4})$", n)
        for n in (1, 2, 3)
    )
    month = pl.coalesce(word, first_word).str.to_lowercase()
    return pl.format(
        "{}-{}-{}",
        pl.coalesce(day, second_day),
        month.replace_strict(_MONTH_NUMBERS, default=None),
        pl.coalesce(year, last_year),
    )


def _day(text: pl.Expr, pattern: str, order: tuple[int, int, int]) -> pl.Expr:
    """
    Return the date whose year, month and day are the numbered groups of a pattern, null for none.
    """
    year, month, day = (text.str.extract(pattern, group) for group in order)
    return pl.format("{}-{}-{}", year, month.str.zfill(2), day.str.zfill(2)).str.to_date(
        "%Y-%m-%d", strict=False
    )


def _ordinal(text: pl.Expr) -> pl.Expr:
    """Return the date of a year and the number of a day in it, 2018-154."""
    year = text.str.extract(r"^(\d{4})-\d{1,3}$", 1)
    number = text.str.extract(r"^\d{4}-(\d{1,3})$", 1).cast(pl.Int64, strict=False)
    first = pl.format("{}-01-01", year).str.to_date("%Y-%m-%d", strict=False)
    found = first + pl.duration(days=number - 1)
    return pl.when((number > 0) & (found.dt.year() == first.dt.year())).then(found)


def _interval(text: pl.Expr, one_day: pl.Expr) -> pl.Expr:
    """Tell whether a date speaks of more than one day: an ISO interval, or ``... to ...``."""
    iso = text.str.contains(r"^\d{4}(-\d{1,2}){0,2}([T ][^/]*)?/\S")
    time_only = text.str.contains(r"/\d{1,2}:\d{2}")  # one day, from one time to another
    year_first = text.str.contains(r"^\d{4}/\d{1,2}/\d{1,2}(?:[T ,]|$)")
    end = text.str.extract(r"(?i)\d.*?(?:\s(?:to|until|till|through|and|&|-)\s|\s*[–—]\s*)(.+)$", 1)
    months = "|".join(month[:3] for month in MONTHS)
    second = end.str.contains(rf"(?i)^\d|{months}") & ~end.str.contains(_CLOCK)
    return ((iso & ~time_only & ~year_first) | second.fill_null(False)) & ~one_day
