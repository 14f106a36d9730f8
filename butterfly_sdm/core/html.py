"""Facts and tables in HTML: how data sets, runs, scores and maps show themselves in a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import pandas as pd

CELL = "text-align:left;vertical-align:top;padding:2px 12px 2px 0;overflow-wrap:anywhere"
NUMBER = "text-align:right;padding:2px 12px 2px 0"


def facts_html(title: str, facts: Mapping[str, object], *, warnings: Sequence[str] = ()) -> str:
    """
    Return a title, facts by name, and warnings, as HTML that needs nothing else.

    Examples
    --------
    >>> "<b>Data set</b>" in facts_html("Data set", {"sites": 3})
    True
    """
    rows = "".join(
        f"<tr><th scope='row' style='{CELL}'>{escape(str(name))}</th><td "
        f"style='{CELL}'>{escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    said = "".join(f"<li>{escape(text)}</li>" for text in warnings)
    told = (
        f"<div style='margin-top:6px'><b>Warnings</b><ul style='margin:2px 0'>{said}</ul></div>"
        if said
        else ""
    )
    return (
        f"<div><b>{escape(title)}</b><table "
        f"style='border:none'><tbody>{rows}</tbody></table>{told}</div>"
    )


def rows_html(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """
    Return a title and rows of cells under a header (empty: none), as HTML that needs nothing else.

    Examples
    --------
    >>> "<td" in rows_html("Dates", (), [("1 May 2018 to 3 June 2019",)])
    True
    """
    style = CELL.replace("anywhere", "break-word")  # a narrow column keeps its words whole
    head = "".join(f"<th scope='col' style='{style}'>{escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>" + "".join(f"<td style='{style}'>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return (
        f"<div style='margin-top:6px'><b>{escape(title)}</b><table style='border:none'>"
        f"{f'<thead><tr>{head}</tr></thead>' if head else ''}<tbody>{body}</tbody></table></div>"
    )


def table_html(table: pd.DataFrame, *, digits: str = ".4g", max_rows: int | None = None) -> str:
    """
    Return a table of numbers as HTML that can be read without a style sheet; what is missing is
    left empty.

    Parameters
    ----------
    digits
        Format of numbers.

    Examples
    --------
    >>> "0.3333" in table_html(pd.DataFrame({"mse": [1 / 3]}))
    True
    """
    plain: str = table.to_html(
        float_format=lambda value: f"{value:{digits}}", na_rep="", border=0, max_rows=max_rows
    )
    return plain.replace("<td>", f"<td style='{NUMBER}'>").replace("<th>", f"<th style='{NUMBER}'>")
