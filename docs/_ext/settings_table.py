"""
A table of the settings of one section of the config, so that the site cannot say anything else than
the code.
"""

from __future__ import annotations

import types
import typing
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from butterfly_sdm.config import Config


def type_name(annotation: object) -> str:
    """Return a type as an ecologist would say it."""
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(inside[0])
    if origin is typing.Literal:
        return ", ".join(str(value) for value in inside)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_name(one) for one in inside if one is not type(None)))
    if origin in (tuple, list):
        kinds = [one for one in inside if one is not Ellipsis]
        return "list of " + " and ".join(dict.fromkeys(type_name(one) for one in kinds))
    if origin is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section of its own"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))  # type: ignore[call-overload]


def limits(field: object) -> str:
    """Return the limits of a number in words."""
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    found = [
        f"{text} {getattr(rule, key):g}"
        for rule in field.metadata  # type: ignore[attr-defined]
        for key, text in words.items()
        if getattr(rule, key, None) is not None
    ]
    return ", ".join(found)


def default_text(value: object) -> str:
    """Return a default as it would be written in YAML."""
    if value is PydanticUndefined:
        return "(needed)"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(str, value)) + "]"
    return str(value) if str(value) != "" else '""'


class ScoreTable(Directive):
    """``.. score-table::`` lists every score with its definition."""

    def run(self) -> list[nodes.Node]:
        from butterfly_sdm.evaluation.scores import DEFINITIONS

        return [table(("score", "what it is"), list(DEFINITIONS.items()))]


def section_named(section: type[BaseModel], name: str) -> type[BaseModel]:
    """Return the section of that class name at or below ``section``."""
    found, left = {section.__name__: section}, [section]
    while left:
        for field in left.pop().model_fields.values():
            kinds = [field.annotation, *typing.get_args(field.annotation)]
            kinds += [inner for kind in kinds for inner in typing.get_args(kind)]
            for kind in kinds:
                known = isinstance(kind, type) and issubclass(kind, BaseModel)
                if known and kind.__name__ not in found:
                    found[kind.__name__] = kind
                    left.append(kind)
    return found[name]


class Settings(Directive):
    """``.. settings:: BuildOptions`` lists the plain settings of a section."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        section = section_named(Config, self.arguments[0])
        rows = []
        for name, field in section.model_fields.items():
            default = field.get_default(call_default_factory=True)
            if isinstance(default, BaseModel):
                continue  # a section of its own, with a table of its own
            kind = type_name(field.annotation)
            rule = limits(field)
            rows.append(
                (
                    name,
                    default_text(default),
                    field.description or "",
                    f"{kind} ({rule})" if rule else kind,
                )
            )
        return [table(("setting", "default", "meaning, and what it may be"), rows)]


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> nodes.table:
    """
    Return a docutils table: code in all columns but the last; texts beyond the columns stand below
    the last.
    """
    group = nodes.tgroup(cols=len(head))
    for width in (20, 20, 60) if len(head) == 3 else (25, 75):
        group += nodes.colspec(colwidth=width)
    top, body = nodes.thead(), nodes.tbody()
    group += [top, body]
    for part, cells_of, code in ((top, [head], False), (body, rows, True)):
        for cells in cells_of:
            row = nodes.row()
            for number, text in enumerate(cells[: len(head)]):
                inline = (
                    nodes.literal(text, text)
                    if code and number < max(1, len(head) - 1) and text
                    else nodes.Text(text)
                )
                row += nodes.entry("", nodes.paragraph("", "", inline))
            for text in cells[len(head) :]:
                row.children[-1] += nodes.paragraph("", "", nodes.emphasis(text, text))
            part += row
    whole = nodes.table()
    whole += group
    return whole


def setup(app: object) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("settings", Settings)  # type: ignore[attr-defined]
    app.add_directive("score-table", ScoreTable)  # type: ignore[attr-defined]
    return {"parallel_read_safe": True}
