"""
What a plugin is: a card that says what it does, the verbs it implements, and the run it makes.

Nothing here imports a deep-learning library before a network is made, so that installed plugins are
listed at once.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from filecmp import cmp
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from butterfly_sdm.core.cards import sealed
from butterfly_sdm.core.files import read_json, write_json
from butterfly_sdm.core.settings import load_settings
from butterfly_sdm.errors import (
    ArtefactError,
    ButterflySDMError,
    ConfigError,
    MissingFileError,
    ModelError,
)
from butterfly_sdm.plugins.options import PluginConfig
from butterfly_sdm.progress import Progress, silent

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch
    from torch import nn

    from butterfly_sdm.plugins.stages import Stage

# How plugins fail on facts and settings that are not theirs.
_UNFIT = (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError)
RUN_FORMAT = "butterfly_sdm plugin run"
FORMAT_VERSION = 1


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
D = TypeVar("D")


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
    keeps
        Settings (dotted below a section) that may name a file or folder without which a run cannot
        predict, such as a program: it is copied into the run, which then can be moved.
    """

    config: ClassVar[type[PluginConfig]]
    keeps: ClassVar[tuple[str, ...]] = ()

    def parts(self, config: C) -> tuple[str, ...]:
        """
        Return the names of the networks trained one after the other; never are two in memory
        because of the core.
        """
        return ("model",)

    def extract(self, config: C, progress: Progress = silent) -> dict[str, object] | None:
        """
        Turn raw files, such as videos, into what :meth:`load` reads, unless that is done; called
        before it.

        Returns
        -------
        dict or None
            What was done, to be told; None: the settings name nothing to extract from.
        """
        return None

    @abstractmethod
    def load(self, config: C) -> D:
        """
        Read and check the data: anything with ``facts``, JSON-like, which hold what building and
        predicting need to know.
        """

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

    def network(self, config: C, facts: dict[str, Any], part: str) -> nn.Module:
        """
        Build one part with weights drawn by the seed: the same ones, whatever was drawn before.
        """
        import torch

        from butterfly_sdm.plugins.stages import seed_of

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(config.seed, part, "build"))
            return self.build(config, facts, part)


@dataclass(frozen=True)
class PluginRun:
    """
    A finished run folder.

    Attributes
    ----------
    plugin
        The plugin that made it.
    folder
        ``model.json``, ``config.yaml``, ``history.csv`` and one ``PART.safetensors`` per network.
    config
        The settings it was trained with.
    facts
        What the plugin noted about its training data.
    pieces
        Where :meth:`each` keeps results while an evaluation runs; None: nowhere.
    progress
        Told how many of them are made.
    """

    plugin: Plugin[Any, Any]
    folder: Path
    config: PluginConfig
    facts: dict[str, Any]
    pieces: Path | None = None
    progress: Progress = silent

    def each(self, task: str, count: int, make: Callable[[int], Any]) -> list[Any]:
        """
        Make the results of long pieces of an evaluation, such as folds; those that an interrupted
        evaluation has left are not made again.

        Parameters
        ----------
        task
            What they are called.
        count
            How many there are.
        make
            Number of a piece -> its result: numbers, text, lists and dicts of them.
        """
        found = []
        for number in range(count):
            path = self.pieces and self.pieces / f"{task}_{number:05d}.json"
            if path and path.is_file():
                found.append(read_json(path))
            else:
                found.append(json.loads(json.dumps(make(number))))
                if path:
                    write_json(path, found[-1])
            self.progress(task, number + 1, count)
        return found

    @property
    def device(self) -> torch.device:
        """Where the networks of :meth:`model` lie."""
        from butterfly_sdm.plugins.stages import device_of_config

        return device_of_config(self.config)

    def model(self, part: str = "model") -> Any:
        """
        Read one trained network, in evaluation mode.

        Raises
        ------
        MissingFileError, ArtefactError
            Its weights are absent, damaged or of another architecture.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.folder / f"{part}.safetensors"
        if not path.is_file():
            raise MissingFileError(f"The run {self.folder} lacks {path.name}. Train it again.")
        try:
            state = load_file(path)
            module = self._network(part, {name: value.shape for name, value in state.items()})
            module.load_state_dict(state)
        except ButterflySDMError:
            raise
        except (SafetensorError, RuntimeError, OSError, *_UNFIT) as error:
            raise ArtefactError(
                f"{path} is damaged or of another architecture ({error}). Train it again."
            ) from error
        return module.eval().to(self.device)

    def _network(self, part: str, shapes: dict[str, Any]) -> nn.Module:
        """Build a network without trained weights, once it is known to have the shapes of them."""
        import torch

        from butterfly_sdm.plugins.networks import untrained

        with untrained():
            # first without memory: what a card from a stranger asks for may be any amount
            planned = shapes
            # what holds a program or reads a file may not be made so
            with suppress(RuntimeError, NotImplementedError, ModelError), torch.device("meta"):
                state = self.plugin.network(self.config, self.facts, part).state_dict()
                planned = {name: value.shape for name, value in state.items()}
            wrong = [n for n in {*planned, *shapes} if planned.get(n) != shapes.get(n)]
            if wrong:
                raise RuntimeError(f"{len(wrong)} weights differ, such as {wrong[0]}")
            return self.plugin.network(self.config, self.facts, part)

    @classmethod
    def open(
        cls, plugin: Plugin[Any, Any], name: str, folder: Path, config: PluginConfig | None = None
    ) -> PluginRun:
        """
        Open a run folder.

        Parameters
        ----------
        plugin, name
            The plugin, and the name it is installed under.
        folder
            Of the run.
        config
            Used instead of the settings in the folder, such as to evaluate on other files.

        Raises
        ------
        MissingFileError, ArtefactError
            There is no finished run, or one of another plugin.
        """
        if not (folder / "model.json").is_file():
            begun = folder.with_name(folder.name + ".partial").is_dir()
            hint = " It was begun but not finished; the same command continues it." if begun else ""
            raise MissingFileError(
                f"There is no trained run at {folder}.{hint} Train with: butterfly-sdm plugin "
                f"{name} train"
            )
        card = read_json(folder / "model.json")
        if not isinstance(card, dict) or card.get("format") != RUN_FORMAT:
            message = f"{folder} is not the run of a plugin: its model.json does not say so."
            raise ArtefactError(message)
        if card.get("plugin") != name or card.get("format_version") != FORMAT_VERSION:
            raise ArtefactError(
                f"{folder} was trained by the plugin {card.get('plugin')!r} (format "
                f"{card.get('format_version')}), not by {name!r} (format {FORMAT_VERSION}). "
                "Choose another --out."
            )
        held = [card.get("settings"), card.get("facts")]
        changed_since = "seal" in card and sealed(card)["seal"] != card["seal"]
        if changed_since or not all(isinstance(part, dict) for part in held):
            raise ArtefactError(
                f"{folder / 'model.json'} was changed after it was written. Train it again."
            )
        settings = config or load_settings(plugin.config, card["settings"])[0]
        for name in plugin.keeps:
            copies = [folder / f"kept_{name}", *sorted(folder.glob(f"kept_{name}.*"))]
            kept = next((place for place in copies if place.exists()), None)
            if kept is not None:
                settings = _with_kept(settings, name.split("."), kept)
        return cls(plugin, folder, settings, card["facts"])


def _with_kept(settings: Any, names: list[str], kept: Path) -> Any:
    """
    Return settings that name the copy in the run.

    Raises
    ------
    ConfigError
        They name a file that is there and is another.
    """
    first, *rest = names
    given = getattr(settings, first)
    if rest:
        return settings.model_copy(update={first: _with_kept(given, rest, kept)})
    if given is not None and Path(given).is_file() and not cmp(given, kept, shallow=False):
        raise ConfigError(
            f"{first} names {given}, another file than the run was trained with. Leave the run its "
            f"own, {kept}, or train a run with the other."
        )
    return settings.model_copy(update={first: type(given)(str(kept)) if given else kept})
