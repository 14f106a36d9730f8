"""A card of facts in HTML: how data sets, runs, scores and maps show themselves in a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

CELL = "text-align:left;vertical-align:top;padding:2px 12px 2px 0"


def facts_html(title: str, facts: Mapping[str, object], *, warnings: Sequence[str] = ()) -> str:
    """
    Return a title, facts by name, and warnings, as HTML that needs nothing else.

    Examples
    --------
    >>> "<b>Data set</b>" in facts_html("Data set", {"sites": 3})
    True
    """
    rows = "".join(
        f"<tr><th scope='row' style='{CELL}'>{escape(str(name))}</th><td style='{CELL}'>{escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    said = "".join(f"<li>{escape(text)}</li>" for text in warnings)
    told = f"<div style='margin-top:6px'><b>Warnings</b><ul style='margin:2px 0'>{said}</ul></div>" if said else ""
    return f"<div><b>{escape(title)}</b><table style='border:none'><tbody>{rows}</tbody></table>{told}</div>"
