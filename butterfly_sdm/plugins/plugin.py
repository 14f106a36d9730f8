"""
The door to the plugins: which are installed, and how one is used.

A distribution offers a plugin through the entry-point group ``butterfly_sdm.plugins``; the built-in
ones use the same door. The entry point names a :class:`PluginCard`: a few words and the place of
the implementation, so that listing what is installed imports no heavy library. The implementation
is a subclass of :class:`Plugin`, imported when it is used.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from inspect import isabstract
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from butterfly_sdm.core.cards import damage
from butterfly_sdm.core.files import read_json, write_text
from butterfly_sdm.core.registry import Offer, Registry
from butterfly_sdm.core.settings import Section, commented, load_settings
from butterfly_sdm.errors import (
    ButterflySDMError,
    ConfigError,
    MissingFileError,
    MissingPackageError,
    PluginError,
)
from butterfly_sdm.plugins.contract import (
    RUN_FORMAT,
    Plugin,
    PluginCard,
    PluginRun,
    Report,
)
from butterfly_sdm.plugins.options import PluginConfig
from butterfly_sdm.progress import Progress, silent

if TYPE_CHECKING:
    from butterfly_sdm.plugins.conformance import Conformance

# What a plugin subclasses and returns is defined beside, and imported from here.
__all__ = ["Plugin", "PluginCard", "PluginConfig", "PluginRun", "Report"]

PLUGINS = Registry("butterfly_sdm.plugins", "plugin", unknown=PluginError)
Verb = Literal["extract", "train", "evaluate", "predict"]


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
    return [_inspect(offer)[0] for _, offer in sorted(PLUGINS.offers().items())]


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
    offer = PLUGINS.offer(name)
    info, card = _inspect(offer)
    if card is None or info.error is not None:
        lacks = card is not None and any(map(_absent, card.needs))
        message = f"The plugin {name!r} of {info.distribution} cannot be used: {info.error}"
        raise MissingPackageError(message) if lacks else PluginError(message)
    made = replace(offer, value=card.implementation).load()
    if not (isinstance(made, type) and issubclass(made, Plugin)) or isabstract(made):
        raise PluginError(
            f"{card.implementation} of {info.distribution} is no complete subclass of "
            "butterfly_sdm.plugins.plugin.Plugin."
        )
    return made()


def run_plugin(
    name: str,
    verb: Verb,
    config_path: str | Path,
    out: str | Path | None = None,
    overrides: Iterable[str] = (),
    progress: Progress = silent,
) -> Path:
    """
    Extract, train, evaluate or predict with a plugin, as ``butterfly-sdm plugin NAME VERB`` does.

    Parameters
    ----------
    name
        Of the plugin.
    verb
        ``train`` makes a run folder; ``evaluate`` and ``predict`` add their results to it.
        ``extract`` turns raw files into what the others read, which they also do themselves.
    config_path
        YAML file with the settings of the plugin.
    out
        Run folder; None: ``runs/NAME`` beside the YAML, NAME being its key ``name``.
    overrides
        ``key=value`` pairs with dotted keys.

    Returns
    -------
    Path
        The run folder, or for ``predict`` the table of predictions, for ``extract`` the features.

    Raises
    ------
    PluginError, ConfigError, MissingFileError, DataError, ArtefactError
        The message says what to do.
    """
    if verb not in get_args(Verb):
        known = ", ".join(get_args(Verb))
        raise PluginError(f"The verbs of a plugin are {known}; {verb!r} is none of them.")
    if verb == "extract":
        return Path(str(extract_features(name, config_path, overrides, progress)["features"]))
    plugin = get_plugin(name)
    from butterfly_sdm.plugins import runner

    config, base = _settings(plugin, name, config_path, overrides)
    folder = Path(out) if out is not None else Path(base or ".", "runs", config.name)
    if verb == "train":
        runner.train(plugin, name, config, folder, progress=progress)
        return folder
    if verb == "evaluate":
        run = PluginRun.open(plugin, name, folder, config)
        runner.evaluate(run, progress=progress)
        return runner.results_folder(run)
    if config.inputs is None:
        raise ConfigError("predict reads the files that the key inputs names: --set inputs=PATH")
    if not config.inputs.exists():
        raise MissingFileError(
            f"There is nothing to predict at {config.inputs}. A path is relative to the folder of "
            "the YAML, in --set too."
        )
    return runner.predict(PluginRun.open(plugin, name, folder, config), config.inputs)


def extract_features(
    name: str, config_path: str | Path, overrides: Iterable[str], progress: Progress
) -> dict[str, object]:
    """
    Turn raw files, such as videos, into what a plugin reads; training does it too.

    Returns
    -------
    dict
        ``features``, the folder of them, and what was done.

    Raises
    ------
    ConfigError
        The plugin reads its files as they are, or the settings name nothing to extract from.
    """
    plugin = get_plugin(name)
    if type(plugin).extract is Plugin.extract:
        raise ConfigError(
            f"The plugin {name} has nothing to extract: it reads its files as they are. Train."
        )
    config, _ = _settings(plugin, name, config_path, overrides)
    told = plugin.extract(config, progress)
    if told is None:
        raise ConfigError(f"{config_path} names nothing to extract from: give media and extract.")
    return told


def check_run(folder: Path) -> list[str]:
    """
    Verify the run of a plugin: every byte against its card, and, where the plugin is installed,
    that its networks can be read.

    Returns
    -------
    list of str
        One sentence per problem; empty if all is well.
    """
    try:
        card = read_json(folder / "model.json")
        if isinstance(card, dict) and card.get("format") not in (None, RUN_FORMAT):
            return [
                f"{folder} holds the model of a run without the card of the run, run.json: nobody "
                "can tell whether it is whole. Train it again."
            ]
        if problems := damage(folder / "model.json"):
            return problems
        plugin = get_plugin(str(card.get("plugin")))
        run = PluginRun.open(plugin, str(card.get("plugin")), folder)
        for part in plugin.parts(run.config):
            run.model(part)
    except PluginError as error:
        return [f"Its bytes are as they were written, but its networks cannot be read: {error}"]
    except ButterflySDMError as error:
        return [str(error)]
    return []


def write_starter(name: str, path: Path) -> None:
    """
    Write a YAML of all settings of a plugin: those that have to be filled in, and the others with
    their defaults, commented out.

    Raises
    ------
    ConfigError
        The file is there already.
    """
    config = get_plugin(name).config
    if path.exists():
        raise ConfigError(f"{path} exists already. Choose another name with --config.")
    lines = [f"# Settings of the plugin {name}. What follows uncommented has to be filled in;"]
    lines += ["# paths are relative to this file.", f"name: {name}", "", *_needed(config), ""]
    lines += commented(config, 0, skip=("name", "inputs"))
    for key, field in config.model_fields.items():
        if isinstance(field.default, Section):
            lines.append(f"# {key}:    # {field.description}")
            lines += [f"#   {line[2:]}" for line in commented(type(field.default), 0)]
    write_text(path, "\n".join(lines) + "\n")


def _settings(
    plugin: Plugin[Any, Any], name: str, path: str | Path, overrides: Iterable[str]
) -> tuple[Any, Path | None]:
    starter = f"butterfly-sdm plugin {name} init"
    return load_settings(plugin.config, path, overrides, example="--set seed=1", starter=starter)


def _sections(annotation: Any) -> list[type[Section]]:
    """Return the sections that a setting may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [found for part in get_args(annotation) for found in _sections(part)]


def _needed(config: type[Section]) -> list[str]:
    """Return one line, or a block, per setting without a default."""
    lines = []
    for key, field in config.model_fields.items():
        if not field.is_required():
            continue
        note = f"    # {field.description}" if field.description else ""
        sections = _sections(field.annotation)
        many = get_origin(field.annotation) is tuple
        if not sections:
            lines.append(f"{key}: {'[]' if many else ''}{note}")
            continue
        lines.append(f"{key}:{note}")
        inside = _needed(sections[0]) + commented(sections[0], 0)
        lead = "  - " if many else "  "
        if all(line.startswith("#") for line in inside):  # of comments alone no item is made
            inside[0] = inside[0].removeprefix("# ")
        lines += [f"{lead if n == 0 else ' ' * len(lead)}{line}" for n, line in enumerate(inside)]
    return lines


def check_installed(name: str, config_path: Path, overrides: Iterable[str] = ()) -> Conformance:
    """
    Let an installed plugin show on its own settings that it keeps the contract.

    Raises
    ------
    PluginError
        Names the first thing it does not keep.
    """
    plugin = get_plugin(name)
    config, _ = _settings(plugin, name, config_path, overrides)
    with tempfile.TemporaryDirectory() as folder:
        return check_plugin(plugin, config, Path(folder))


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


def _inspect(offer: Offer) -> tuple[PluginInfo, PluginCard | None]:
    info = PluginInfo(offer.name, "", offer.distribution, offer.version)
    try:
        card = offer.load()
    except PluginError as error:
        return replace(info, error=str(error)), None
    if not isinstance(card, PluginCard):
        kind = type(card).__name__
        problem = f"{offer.value} is a {kind}; the entry point must name a PluginCard"
        return replace(info, error=problem), None
    return replace(info, summary=card.summary, error=_problem(offer, card)), card


def _problem(offer: Offer, card: PluginCard) -> str | None:
    missing = [module for module in card.needs if _absent(module)]
    package, _, attribute = card.implementation.partition(":")
    if card.name != offer.name:
        return f"its card calls it {card.name!r}, its entry point {offer.name!r}"
    if missing:
        return f"it needs {', '.join(missing)}: pip install {card.extra or ' '.join(missing)}"
    if not attribute or _absent(package):
        return f"its implementation {card.implementation} does not exist; write module:Class"
    return None


def _absent(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is None
    except (ImportError, ValueError):
        return True
