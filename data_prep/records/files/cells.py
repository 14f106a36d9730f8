"""Write cells of any type as the text that a recorder would have written."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import polars as pl
import pyarrow as pa


def as_text(kind: pa.DataType, name: str) -> pl.Expr:
    """Return an Arrow column as text: whole numbers without a point, blanks for nothing."""
    column = pl.col(name)
    if pa.types.is_timestamp(kind):
        column = column.dt.to_string("%Y-%m-%dT%H:%M:%S")
    elif pa.types.is_floating(kind):
        # A whole number kept as a float, such as a year, is still a whole number.
        whole = column.fill_nan(None).round() == column
        column = (
            pl.when(whole)
            .then(column.cast(pl.Int64, strict=False).cast(pl.String))
            .otherwise(column.cast(pl.String))
        )
    elif pa.types.is_nested(kind) or pa.types.is_binary(kind):
        column = pl.lit("").alias(name)
    else:
        column = column.cast(pl.String)
    return column.fill_null("")


def cell_text(value: object) -> str:
    """
    Return a cell of a spreadsheet as text.

    >>> cell_text(3.0), cell_text(dt.datetime(2018, 6, 3)), cell_text(None)
    ('3', '2018-06-03', '')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, dt.datetime):
        midnight = value.time() == dt.time()
        return value.date().isoformat() if midnight else value.isoformat(timespec="seconds")
    return str(value).strip()


def unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """
    Return names of columns of which none is like another.

    >>> unique_names(["Count", "Count", ""])
    ('Count', 'Count (2)', '')
    """
    found: list[str] = []
    for name in names:
        number = 2
        held = name
        while held and held in found:
            held, number = f"{name} ({number})", number + 1
        found.append(held)
    return tuple(found)
