"""The run: a trained model in its folder, with its split, its settings and its scores."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from butterfly_sdm.community.community import Community
from butterfly_sdm.config import Config, ConfigLike, dump_config, load_config
from butterfly_sdm.core.cards import check_version, sealed, software_versions
from butterfly_sdm.core.files import read_json, sha256, write_json, write_text
from butterfly_sdm.core.html import facts_html
from butterfly_sdm.core.threads import computed_with
from butterfly_sdm.core.work import exclusive
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import Predictor
from butterfly_sdm.data.splits import Split
from butterfly_sdm.errors import ArtefactError, DataError, MissingFileError, ModelError
from butterfly_sdm.predictors import load_predictor
from butterfly_sdm.season.options import SeasonOptions

RUN_VERSION = 1
COMMUNITY = "community"  # folder in that of the run


@dataclass(frozen=True)
class Run:
    """
    A trained model in its folder.

    Attributes
    ----------
    folder
        Holds ``config.yaml``, ``split.json``, ``model.json`` and its arrays, ``history.csv``; after
        evaluation also the scores.
    card
        Content of ``run.json``: where the data set was, its fingerprint, the versions used.
    given
        Settings that decide about evaluation and maps; None: those kept in the folder.
    """

    folder: Path
    card: Mapping[str, Any]
    given: Config | None = None

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """
        Open a run folder.

        Raises
        ------
        MissingFileError
            There is no run there.
        ArtefactError
            It is damaged or of another version.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise MissingFileError(
                f"There is no run at {folder}. Make one with: butterfly-sdm train CONFIG"
            )
        card = read_json(folder / "run.json")
        if not isinstance(card, dict) or card.get("format") != "butterfly_sdm run":
            raise ArtefactError(f"{folder} is not a run: its run.json does not say so.")
        check_version(
            card.get("format_version"),
            RUN_VERSION,
            f"The run {folder}",
            f"butterfly-sdm train CONFIG --out {folder}",
        )
        return cls(folder, card)

    @cached_property
    def config(self) -> Config:
        """The config: of the model as it was trained, of evaluation and maps as given last."""
        return self.given or load_config(self.folder / "config.yaml")

    def with_settings(self, config: Config) -> Run:
        """
        Return the run with a config that differs in what its model does not depend on, and keep it
        in the folder: whoever opens the run there evaluates and maps by what was given last.
        """
        text = dump_config(config)
        digest = hashlib.sha256(text.encode()).hexdigest()
        card = {**self.card, "files": {**self.card["files"], "config.yaml": digest}}
        if card != self.card:
            with suppress(PermissionError), exclusive(self.folder):
                write_text(self.folder / "config.yaml", text)
                write_json(self.folder / "run.json", sealed(card))
        return replace(self, card=card, given=config)

    @cached_property
    def split(self) -> Split:
        """The split the run was trained with."""
        return Split.from_json(self.folder / "split.json")

    @cached_property
    def predictor(self) -> Predictor:
        """The fitted model."""
        return load_predictor(self.folder)

    @cached_property
    def community(self) -> Community | None:
        """What moves its predictions once something was seen; None if it was not fitted."""
        folder = self.folder / COMMUNITY
        return Community.load(folder) if (folder / "community.json").is_file() else None

    @cached_property
    def dataset(self) -> Dataset:
        """The data set the run was trained on, if it still lies where it was."""
        folder = (self.folder.resolve() / self.card["dataset"]).resolve()
        if not folder.is_dir():
            raise MissingFileError(
                f"The data set of the run {self.folder} does not lie at {folder}. Put it there, or "
                "name it: --dataset DIR"
            )
        return Dataset.open(folder)

    @property
    def epochs(self) -> str:
        """
        How long a network was trained, in words, and which epoch was the best on the validation
        part; else nothing.
        """
        history, fit = self.folder / "history.csv", self.config.train.fit
        if not history.is_file():
            return ""
        table = pd.read_csv(history)
        text = f"{len(table)} of at most {fit.epochs}"
        scores = table.get(f"validation_{fit.score}")
        if scores is None or scores.isna().all():
            return text
        if fit.keep == "last":
            return f"{text}; the last is kept"
        best = int(scores.idxmin()) + 1
        more = "; with more it may get better: train.fit.epochs" if best == fit.epochs else ""
        return f"{text}, number {best} was the best on the validation sites{more}"

    def __repr__(self) -> str:
        return f"<Run {self.card.get('name', '')!r} in {self.folder}>"

    def _repr_html_(self) -> str:
        model, fit = self.config.train.model, self.config.train.fit
        facts: dict[str, object] = {"model": model.kind, "species": len(self.predictor.species)}
        if model.kind == "network":
            inputs = [name for name in ("image", "covariates", "position") if getattr(model, name)]
            facts["model"] = f"{model.backbone} on {', '.join(inputs)}"
            facts["window"] = f"{model.window_px} px and a margin of {model.margin_px} px"
            facts["loss"] = f"{fit.loss}, regulariser {fit.regulariser.weight:g}"
            facts["epochs"] = self.epochs
        facts["trained on"] = f"{len(self.split.train):,} sites"
        facts["folder"] = self.folder
        return facts_html(f"Run {self.card.get('name', '')}", facts)


def finish_run(
    partial: Path,
    folder: Path,
    data: Dataset,
    config: Config,
    key: str,
    *,
    season: SeasonOptions | None = None,
) -> None:
    """
    Write the card of the run in ``partial``, which is to lie in ``folder``; ``season`` is how dates
    were used in the end, where the config asks for it.
    """
    card = {
        "format": "butterfly_sdm run",
        "format_version": RUN_VERSION,
        "key": key,
        "name": config.name,
        # Relative, so that run and data set can move together.
        "dataset": os.path.relpath(data.folder.resolve(), folder.resolve())
        if data.folder
        else None,
        "dataset_fingerprint": data.fingerprint,
        "software": software_versions(("butterfly-sdm", "torch", "numpy", "scikit-learn")),
        "computed_with": computed_with(),
        **({} if config.train.season is None else {"season": "off" if season is None else "on"}),
        "files": {
            path.relative_to(partial).as_posix(): sha256(path)
            for path in sorted(partial.rglob("*"))
            # An attempt that was interrupted at its very end leaves its card.
            if path.is_file() and not path.name.startswith(".") and path != partial / "run.json"
        },
    }
    write_json(partial / "run.json", sealed(card))


def out_folder(settings: Config) -> Path:
    """Return the folder of the artefacts of an experiment."""
    return settings.out if settings.out is not None else Path("runs", settings.name)


def open_run(run: Run | ConfigLike, overrides: Iterable[str]) -> tuple[Run, Config]:
    """
    Open a run given itself, its folder or its config; the config given now decides about evaluate
    and map.

    Raises
    ------
    MissingFileError
        There is neither a run nor a config of that name.
    """
    if isinstance(run, Run):
        return run, load_config(run.config, overrides)
    if isinstance(run, str | Path) and Path(run).is_dir():
        opened = Run.open(run)
        return opened, load_config(opened.config, overrides)
    if isinstance(run, str | Path) and not Path(run).suffix and not Path(run).exists():
        raise MissingFileError(
            f"There is no run {run}, nor a config of that name. Make a run with: butterfly-sdm "
            "train CONFIG"
        )
    settings = load_config(run, overrides)
    return Run.open(out_folder(settings) / "run"), settings


def dataset_of(run: Run, dataset: Dataset | str | Path | None = None) -> Dataset:
    """
    Open the data set a run was trained on, or the one given instead.

    Raises
    ------
    DataError
        The run does not say where its data set lies.
    ModelError
        The data set has other species than the run.
    """
    if dataset is None and not run.card.get("dataset"):
        raise DataError(
            f"The run {run.folder} does not say where its data set lies. Name it: --dataset DIR"
        )
    data = run.dataset if dataset is None else dataset
    data = data if isinstance(data, Dataset) else Dataset.open(data)
    known = run.predictor.species
    if known != data.species:
        missing = [name for name in known if name not in data.species]
        added = [name for name in data.species if name not in known]
        what = (
            f"{missing[0]} is missing there"
            if missing
            else f"{added[0]} is new there"
            if added
            else "their order differs"
        )
        raise ModelError(
            f"The run knows {len(known)} species, the data set {data.card.name!r} has "
            f"{len(data.species)}: {what}. Evaluate it on the data set it was trained on, or train "
            "again."
        )
    return data
