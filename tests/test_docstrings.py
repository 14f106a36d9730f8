"""
Every public name says what it takes, gives and raises, in which shape, and where a method comes
from.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import importlib
import inspect
import json
import pkgutil
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from butterfly_sdm import errors
from butterfly_sdm.core.settings import Section
from butterfly_sdm.data.saved_models import PREDICTORS
from butterfly_sdm.errors import DataError

ROOT = Path(__file__).parents[1]
# The same everywhere, told once: settings given as key=value, who listens to long work, the seed.
COMMON = {"self", "cls", "overrides", "progress", "dataset", "seed", "args", "kwargs"}
SHAPED = re.compile(r"ndarray|Tensor|DataFrame|Series")
SHAPE = re.compile(r"\(|shape|column|index|row|table|per |each |one number|scalar", re.IGNORECASE)
SECTION = r"^{}\n-+\n(.*?)(?=^\w[\w ]*\n-+\n|\Z)"
METHODS = {  # published methods: their docstrings name the source, by year
    "butterfly_sdm.losses.contrastive:ContrastiveLoss",
    "butterfly_sdm.evaluation.applicability:Applicability",
    "butterfly_sdm.evaluation.calibration:Reliability",
    "butterfly_sdm.evaluation.calibration:fit_recalibration",
    "butterfly_sdm.evaluation.ranking:boyce_index",
    "butterfly_sdm.evaluation.uncertainty:fit_conformal",
    "butterfly_sdm.baselines.random_features:RandomFeatures",
    "butterfly_sdm.baselines.maxent:MaxEnt",
    "butterfly_sdm.baselines.trees:Trees",
}


def section(text: str, name: str) -> str:
    found = re.search(SECTION.format(name), text, re.MULTILINE | re.DOTALL)
    return found.group(1) if found else ""


def described(text: str, name: str) -> dict[str, str]:
    """Return the entries of a section: each name with its description; names may share one."""
    entries: dict[str, str] = {}
    blocks = re.split(r"^(?=\S)", section(text, name), flags=re.MULTILINE)
    for block in blocks:
        head, _, body = block.partition("\n")
        for one in re.split(r"\s*,\s*", head.split(" : ")[0]):
            if one.strip():
                entries[one.strip().lstrip("*")] = head + " " + body
    return entries


def raised(function: Callable[..., Any]) -> set[str]:
    """Return the errors of this package that a function raises by itself."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return set()
    calls = (
        node.exc.func
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
    )
    names = {call.id if isinstance(call, ast.Name) else getattr(call, "attr", "") for call in calls}
    return {name for name in names if hasattr(errors, name)}


def flaws_of_function(function: Callable[..., Any], where: str, told_above: str = "") -> list[str]:
    """
    Return what the docstring of a function or method leaves open; ``told_above``: that of its
    class.
    """
    text = inspect.getdoc(function) or ""
    if not text:
        return [f"{where} has no docstring"]
    elsewhere = re.search(r"\b[Ss]ee :(meth|func|class):", text)
    found = []
    parameters = (
        described(text, "Parameters")
        | described(told_above, "Parameters")
        | described(told_above, "Attributes")
    )
    signature = inspect.signature(function)
    for name, parameter in signature.parameters.items():
        if name in COMMON or name.startswith("_"):
            continue
        mentioned = name in parameters or re.search(rf"``{name}\b", text)
        if (
            not mentioned
            and not elsewhere
            and len(signature.parameters) - ("self" in signature.parameters) > 2
        ):
            found.append(f"{where} leaves the parameter {name} undescribed")
        elif (
            name in parameters
            and SHAPED.search(str(parameter.annotation))
            and not SHAPE.search(parameters[name])
        ):
            found.append(f"{where} does not say the shape of {name}")
    gives = str(signature.return_annotation)
    told = re.match(r"(Return|Yield)", text) or section(text, "Returns") or section(text, "Yields")
    # Dataset.open returns a Dataset
    itself = gives in (
        "Self",
        "typing.Self",
        function.__qualname__.split(".")[0],
    )
    if gives not in ("None", "<class 'inspect._empty'>") and not told and not itself:
        found.append(f"{where} does not say what it returns")
    for error in sorted(raised(function)):
        if error not in section(text, "Raises") and error not in section(told_above, "Raises"):
            found.append(f"{where} raises {error} and does not say so")
    return found


def flaws_of_class(cls: type, where: str) -> list[str]:
    text = inspect.getdoc(cls) or ""
    if not text:
        return [f"{where} has no docstring"]
    if issubclass(
        cls, Section | Exception | enum.Enum
    ):  # settings are described one by one, see test_config.py
        return []
    found = []
    told = described(text, "Attributes") | described(text, "Parameters")
    if dataclasses.is_dataclass(cls):
        missing = [
            f.name
            for f in dataclasses.fields(cls)
            if f.name[0] != "_" and f.name not in told and f.name not in COMMON
        ]
        if missing and not all(re.search(rf"``{name}\b", text) for name in missing):
            found.append(f"{where} leaves the fields {', '.join(missing)} undescribed")
    elif "__init__" in vars(cls):
        for name in inspect.signature(cls.__init__).parameters:
            if (
                name not in COMMON
                and not name.startswith("_")
                and name not in told
                and not re.search(rf"``{name}\b", text)
            ):
                found.append(f"{where} leaves the parameter {name} undescribed")
    for name, member in vars(cls).items():
        if name.startswith("_"):
            continue
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if getattr(cls, "_is_protocol", False) and not inspect.getdoc(function):
            continue  # the contract as a whole is described
        if inspect.isfunction(function) and any(name in vars(base) for base in cls.__mro__[1:]):
            continue  # as its contract says
        if (
            inspect.isfunction(function) and function.__name__ == name
        ):  # not a default that is a function
            found += flaws_of_function(function, f"{where}.{name}", text)
    return found


def flaws(thing: Any, where: str) -> list[str]:
    return (
        flaws_of_class(thing, where) if inspect.isclass(thing) else flaws_of_function(thing, where)
    )


def modules() -> Iterator[ModuleType]:
    for package in ("butterfly_sdm", "data_prep"):
        for found in pkgutil.walk_packages(
            importlib.import_module(package).__path__, f"{package}."
        ):
            if not found.name.endswith(("__main__", "cli")):
                try:
                    yield importlib.import_module(found.name)
                except ImportError:
                    continue  # needs something optional


def is_described(thing: Any) -> bool:
    return inspect.isfunction(thing) or inspect.isclass(thing)


def everything() -> dict[str, Any]:
    """Return every function and class without a leading underscore, by module and name."""
    return {
        f"{module.__name__}:{name}": thing
        for module in modules()
        for name, thing in vars(module).items()
        if not name.startswith("_") and is_described(thing) and thing.__module__ == module.__name__
    }


def public() -> dict[str, Any]:
    """
    Return what people are told to use: ``__all__`` of packages, predictors by name, what a page or
    a notebook imports.
    """
    places = set(PREDICTORS.built_in.values())
    for package in (
        "butterfly_sdm",
        *(f"butterfly_sdm.{room}" for room in ("figures", "evaluation", "mapping", "simulate")),
    ):
        places |= {f"{package}:{name}" for name in importlib.import_module(package).__all__}
    texts = [
        path.read_text(encoding="utf-8")
        for path in (*ROOT.glob("docs/**/*.md"), ROOT / "README.md")
    ]
    texts += [
        "".join(cell["source"])
        for path in ROOT.glob("notebooks/*.ipynb")
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
    ]
    for text in texts:
        for module, names in re.findall(
            r"^from ((?:butterfly_sdm|data_prep)[\w.]*) import ([\w, ]+)$", text, re.MULTILINE
        ):
            places |= {f"{module}:{name.split(' as ')[0].strip()}" for name in names.split(",")}
        for path in re.findall(r"auto(?:function|class):: ([\w.]+)\.(\w+)$", text, re.MULTILINE):
            places.add(":".join(path))
    found = {}
    for place in sorted(places):
        module, name = place.split(":")
        thing = getattr(importlib.import_module(module), name)
        if is_described(thing):
            found[f"{thing.__module__}:{thing.__name__}"] = thing
    return found


PUBLIC = public()


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_name_says_what_it_takes_gives_and_raises(name: str):
    assert flaws(PUBLIC[name], name) == []


def test_whatever_raises_an_error_of_this_package_says_so_and_published_methods_name_their_source():
    things = everything()
    found = [flaw for name, thing in things.items() for flaw in flaws(thing, name)]
    assert [flaw for flaw in found if "does not say so" in flaw or "no docstring" in flaw] == []
    assert [
        name
        for name in sorted(METHODS)
        if not re.search(r"\b(19|20)\d\d\b", inspect.getdoc(things[name]) or "")
    ] == []


def test_the_check_sees_what_is_missing():
    def scale(values: np.ndarray, factor: float, places: int) -> np.ndarray:
        """
        Scale numbers.

        Parameters
        ----------
        values
            What to scale.
        factor
            By how much.
        """
        if factor < 0:
            raise errors.DataError("negative")
        if places < 0:
            raise DataError("negative")
        return values

    assert flaws(scale, "scale") == [
        "scale does not say the shape of values",
        "scale leaves the parameter places undescribed",
        "scale does not say what it returns",
        "scale raises DataError and does not say so",
    ]
