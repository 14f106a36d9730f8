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


def read_days(dates: pl.DataFrame, *, day_first: bool | None = None) -> pl.DataFrame:
    """
    Read days.

    Parameters
    ----------
    dates
        Text columns ``eventDate``, ``year``, ``month``, ``day``, and ``code``. ISO dates, with or
        without a time, are always read, and so are dates whose month is an English word (``3 June
        2018``, ``03-Jun-2018``); ``3/6/2018`` is, if ``day_first`` or another date of the table
        (13/6/2018) says how. ``eventDate`` goes before the rest.
    day_first
        Whether ``3/6/2018`` is the third of June; None: as the other dates of the table tell.

    Returns
    -------
    DataFrame
        ``code``; ``day`` (date, null if there is none); ``date_reason`` (place in :data:`REASONS`).
    """
    text = pl.col("eventDate").str.strip_chars()
    start = text.str.split("/").list.first()
    slashed = r"^(\d{1,2})[/.-](\d{1,2})[/.-](\d{4})([T ,].*)?$"
    columns = dates.select(
        "code",
        text.alias("text"),
        _day(start, r"^(\d{4})-(\d{1,2})-(\d{1,2})(?:[T ]|$)", (1, 2, 3)).alias("iso"),
        _day(text, r"^(\d{4})(\d{2})(\d{2})$", (1, 2, 3)).alias("compact"),
        _day(_numbered(text), r"^(\d{1,2})-(\d{2})-(\d{4})$", (3, 2, 1)).alias("worded"),
        _day(text, slashed, (3, 2, 1)).alias("dmy"),
        _day(text, slashed, (3, 1, 2)).alias("mdy"),
        _period(text).alias("period"),
        pl.format(
            "{}-{}-{}", *(pl.col(part).str.strip_chars() for part in ("year", "month", "day"))
        ).alias("parts"),
        pl.col("year").str.strip_chars().alias("year"),
    )
    from_parts = _day(
        pl.col("parts"), r"^(\d{4})(?:\.0)?-(\d{1,2})(?:\.0)?-(\d{1,2})(?:\.0)?$", (1, 2, 3)
    )
    if day_first is None:
        only_dmy, only_mdy = columns.select(
            (pl.col("dmy").is_not_null() & pl.col("mdy").is_null()).any().alias("dmy"),
            (pl.col("mdy").is_not_null() & pl.col("dmy").is_null()).any().alias("mdy"),
        ).row(0)
        day_first = None if only_dmy == only_mdy else bool(only_dmy)
    both = (
        pl.col("dmy").is_not_null() & pl.col("mdy").is_not_null() & (pl.col("dmy") != pl.col("mdy"))
    )
    chosen = (
        pl.coalesce("dmy", "mdy") if day_first is None else pl.col("dmy" if day_first else "mdy")
    )
    slash_day = pl.when(both & pl.lit(day_first is None)).then(None).otherwise(chosen)
    days = columns.with_columns(from_parts.alias("from_parts")).with_columns(
        pl.when(pl.col("period"))
        .then(None)
        .when(pl.col("text") != "")
        # A month alone, 2018-06, may have its day in the column beside it.
        .then(pl.coalesce("iso", "compact", "worded", slash_day, "from_parts"))
        .otherwise(pl.col("from_parts"))
        .alias("day")
    )
    reason = (
        pl.when(pl.col("day").is_not_null())
        .then(0)
        .when(pl.col("period"))
        .then(3)
        .when((pl.col("text") == "") & (pl.col("year") == ""))
        .then(1)
        .when(both & pl.lit(day_first is None))
        .then(4)
        .when(
            pl.col("text").str.contains(r"^\d{4}(-\d{1,2})?$")
            | ((pl.col("text") == "") & pl.col("year").str.contains(r"^\d{4}"))
        )
        .then(3)
        .otherwise(2)
    )
    return days.select("code", "day", reason.cast(pl.UInt8).alias("date_reason"))


def _numbered(text: pl.Expr) -> pl.Expr:
    """Write 3 June 2018 and 03-Jun-2018 as 3-06-2018; what else there is as nothing."""
    day, word, year = (
        text.str.extract(r"^(\d{1,2})(?:st|nd|rd|th)?[ ./-]+([A-Za-z]{3,9})[ .,/-]+(\d{4})$", n)
        for n in (1, 2, 3)
    )
    names = [name.lower() for name in MONTHS]
    numbers = {
        name[:length]: f"{n:02}"
        for n, name in enumerate(names, start=1)
        for length in range(3, len(name) + 1)
    }
    return pl.format(
        "{}-{}-{}", day, word.str.to_lowercase().replace_strict(numbers, default=None), year
    )


def _day(text: pl.Expr, pattern: str, order: tuple[int, int, int]) -> pl.Expr:
    """
    Return the date whose year, month and day are the numbered groups of a pattern, null for none.
    """
    year, month, day = (text.str.extract(pattern, group) for group in order)
    return pl.format("{}-{}-{}", year, month.str.zfill(2), day.str.zfill(2)).str.to_date(
        "%Y-%m-%d", strict=False
    )


def _period(text: pl.Expr) -> pl.Expr:
    """Tell whether a date is an ISO interval of more than one day."""
    start = text.str.extract(r"^(\d{4}-\d{1,2}-\d{1,2})[^/]*/", 1)
    full_end = text.str.extract(r"/(\d{4}-\d{1,2}-\d{1,2})", 1)
    interval = text.str.contains(r"^\d{4}(-\d{1,2}){0,2}([T ][^/]*)?/\S")
    time_only = text.str.contains(r"/\d{1,2}:\d{2}")  # one day, from one time to another
    return (
        interval
        & ~time_only
        & (start.is_null() | full_end.is_null() | (start != full_end)).fill_null(True)
    )
