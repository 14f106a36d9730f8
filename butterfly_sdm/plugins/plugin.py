"""
What a plugin is, and which ones are installed.

A distribution offers a plugin through the entry-point group ``butterfly_sdm.plugins``; the built-in
ones use the same door. The entry point names a :class:`PluginCard`: a few words and the place of
the implementation, so that listing what is installed imports no heavy library. The implementation
is a subclass of :class:`Plugin`, imported when it is used.
"""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar

from butterfly_sdm.errors import MissingPackageError, PluginError, did_you_mean
from butterfly_sdm.plugins.settings import PluginConfig
from butterfly_sdm.progress import Progress, silent

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import nn

    from butterfly_sdm.plugins.conformance import Conformance
    from butterfly_sdm.plugins.runner import PluginRun
    from butterfly_sdm.plugins.stages import Stage

GROUP = "butterfly_sdm.plugins"
Verb = Literal["train", "evaluate", "predict"]


@dataclass(frozen=True)
class PluginCard:
    """
    What a distribution says about its plugin without importing it.

    Attributes
    ----------
    name
        Lower-case name, unique among the installed plugins.
    summary
        One line: what it does, and where the method is published.
    implementation
        ``module:Class`` of the :class:`Plugin` subclass.
    needs
        Modules that must be installed.
    extra
        What to install to get them, such as ``butterfly-sdm[medical]``.
    """

    name: str
    summary: str
    implementation: str
    needs: tuple[str, ...] = ()
    extra: str | None = None


class PluginData(Protocol):
    """
    What :meth:`Plugin.load` returns: anything with ``facts``, JSON-like: what building and
    predicting need to know.
    """

    @property
    def facts(self) -> dict[str, Any]: ...  # noqa: D102


@dataclass(frozen=True)
class Report:
    """
    What an evaluation found.

    Attributes
    ----------
    metrics
        Finite numbers by name, written as ``metrics.json``.
    tables
        Tables by name, each written as ``NAME.csv``.
    arrays
        Arrays by name, each written as ``NAME.npy``.
    """

    metrics: dict[str, float]
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


C = TypeVar("C", bound=PluginConfig)
D = TypeVar("D", bound=PluginData)


class Plugin(ABC, Generic[C, D]):
    """
    A method: how its data are read, its network built, its stages trained, its results measured.

    The core owns everything else: the command line, seeds, devices, checkpoints, resuming, the
    files of a run. A plugin keeps no state between the verbs; what must survive training stands in
    ``facts`` and in the weights.

    Attributes
    ----------
    config
        Strict settings of the plugin; the defaults are those of the paper.
    """

    config: ClassVar[type[PluginConfig]]

    def parts(self, config: C) -> tuple[str, ...]:
        """
        Return the names of the networks trained one after the other; never are two in memory
        because of the core.
        """
        return ("model",)

    @abstractmethod
    def load(self, config: C) -> D:
        """Read and check the data."""

    @abstractmethod
    def build(self, config: C, facts: dict[str, Any], part: str) -> nn.Module:
        """Make the untrained network of one part from the settings and the facts alone."""

    @abstractmethod
    def stages(self, config: C, data: D, model: nn.Module, part: str) -> Sequence[Stage]:
        """Return the stages in which one part is trained."""

    @abstractmethod
    def evaluate(self, config: C, data: D, run: PluginRun) -> Report:
        """Measure the trained networks on held-out rows."""

    @abstractmethod
    def predict(self, config: C, run: PluginRun, inputs: Path) -> pd.DataFrame:
        """Predict for unseen files: one row per file, none of the training data needed."""


@dataclass(frozen=True)
class PluginInfo:
    """
    One installed plugin, as listed.

    Attributes
    ----------
    name, summary
        As its card says; of a broken plugin the name of its entry point.
    distribution, version
        The installed package it comes from.
    error
        Why it cannot be used; None if it can.
    """

    name: str
    summary: str
    distribution: str
    version: str
    error: str | None = None


def list_plugins() -> list[PluginInfo]:
    """
    List the installed plugins by name, broken ones with their error, without importing a
    deep-learning library.

    Raises
    ------
    PluginError
        Two distributions offer a plugin of the same name.
    """
    points = _entry_points()
    return [_inspect(point)[0] for point in sorted(points.values(), key=lambda point: point.name)]


def get_plugin(name: str) -> Plugin[Any, Any]:
    """
    Import a plugin.

    Raises
    ------
    PluginError
        No plugin has that name, or it is broken.
    MissingPackageError
        It needs a package that is not installed.
    """
    points = _entry_points()
    if name not in points:
        raise PluginError(
            f"There is no plugin {name!r}. Installed: "
            f"{', '.join(sorted(points)) or 'none'}.{did_you_mean(name, points)}"
        )
    info, card = _inspect(points[name])
    if card is None or info.error is not None:
        kind = (
            MissingPackageError
            if card is not None and any(map(_absent, card.needs))
            else PluginError
        )
        raise kind(f"The plugin {name!r} of {info.distribution} cannot be used: {info.error}")
    module, _, attribute = card.implementation.partition(":")
    try:
        plugin = getattr(importlib.import_module(module), attribute)()
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"The plugin {name!r} of {info.distribution} {info.version} is broken: "
            f"{type(error).__name__}: {error}. "
            "Update or remove that package."
        ) from error
    if not isinstance(plugin, Plugin):
        raise PluginError(
            f"{card.implementation} of {info.distribution} is no subclass of "
            "butterfly_sdm.plugins.plugin.Plugin."
        )
    return plugin


def run_plugin(
    name: str,
    verb: Verb,
    config_path: str | Path,
    out: str | Path | None = None,
    overrides: Iterable[str] = (),
    progress: Progress = silent,
) -> Path:
    """
    Train, evaluate or predict with a plugin, as ``butterfly-sdm plugin NAME VERB`` does.

    Parameters
    ----------
    name
        Of the plugin.
    verb
        ``train`` makes a run folder; ``evaluate`` and ``predict`` add their results to it.
    config_path
        YAML file with the settings of the plugin.
    out
        Run folder; None: ``runs/NAME`` beside the YAML, NAME being its key ``name``.
    overrides
        ``key=value`` pairs with dotted keys.

    Returns
    -------
    Path
        The run folder, or for ``predict`` the table of predictions.

    Raises
    ------
    PluginError, ConfigError, MissingFileError, DataError, ArtefactError
        The message says what to do.
    """
    plugin = get_plugin(name)
    from butterfly_sdm.plugins import runner

    return runner.run(plugin, name, verb, config_path, out, overrides, progress)


def check_plugin(plugin: Plugin[Any, Any], config: PluginConfig, folder: Path) -> Conformance:
    """
    Let a plugin show that it keeps the contract; see :mod:`butterfly_sdm.plugins.conformance`.

    Raises
    ------
    PluginError
        Names the first thing it does not keep.
    """
    from butterfly_sdm.plugins import conformance

    return conformance.check(plugin, config, folder)


def _entry_points() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        first = found.setdefault(point.name, point)
        # One distribution seen twice on the path (an editable install beside its metadata) is no
        # conflict.
        if _distribution(first)[0] != _distribution(point)[0] or first.value != point.value:
            raise PluginError(
                f"Two packages offer a plugin {point.name!r}: {_distribution(first)[0]} "
                f"({first.value}) and "
                f"{_distribution(point)[0]} ({point.value}). Remove one of them."
            )
    return found


def _inspect(point: EntryPoint) -> tuple[PluginInfo, PluginCard | None]:
    distribution, version = _distribution(point)
    try:
        card = point.load()
    except (Exception, SystemExit) as error:
        reason = f"{point.value} cannot be imported: {type(error).__name__}: {error}"
        return PluginInfo(point.name, "", distribution, version, reason), None
    if not isinstance(card, PluginCard):
        reason = f"{point.value} is a {type(card).__name__}; the entry point must name a PluginCard"
        return PluginInfo(point.name, "", distribution, version, reason), None
    problem = None
    missing = [module for module in card.needs if _absent(module)]
    package, _, attribute = card.implementation.partition(":")
    if card.name != point.name:
        problem = f"its card calls it {card.name!r}, its entry point {point.name!r}"
    elif missing:
        problem = f"it needs {', '.join(missing)}: pip install {card.extra or ' '.join(missing)}"
    elif not attribute or _absent(package):
        problem = (
            f"its implementation {card.implementation} does not exist; it is written module:Class"
        )
    return PluginInfo(point.name, card.summary, distribution, version, problem), card


def _absent(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is None
    except (ImportError, ValueError):
        return True


def _distribution(point: EntryPoint) -> tuple[str, str]:
    return (
        ("an unknown package", "") if point.dist is None else (point.dist.name, point.dist.version)
    )
