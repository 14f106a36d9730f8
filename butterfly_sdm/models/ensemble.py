"""Several predictors as one: their mean, and how far they disagree."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from butterfly_sdm.core.files import atomic_path, read_json, write_json
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import FitContext, Predictor, Sees, seen_by_all
from butterfly_sdm.errors import ArtefactError, DataError, ModelError
from butterfly_sdm.models import MODELS
from butterfly_sdm.models.card import FORMAT, FORMAT_VERSION, read_model_card
from butterfly_sdm.progress import Progress


@dataclass(eq=False)
class Ensemble:
    """
    The mean of the presence probabilities of several predictors.

    Parameters
    ----------
    members
        Predictors, fitted or not.

    Examples
    --------
    >>> five = Ensemble.of_networks(5, image=False, covariates=True)
    >>> [member.seed for member in five.members]
    [0, 1, 2, 3, 4]
    """

    members: Sequence[Any]

    kind = "ensemble"

    def __post_init__(self) -> None:
        self.members = tuple(self.members)
        if not self.members:
            raise ModelError("An ensemble needs at least one member.")

    @classmethod
    def of_networks(cls, count: int, *, seed: int = 0, **settings: Any) -> Ensemble:
        """
        Return an unfitted ensemble of networks that differ in their seeds: ``seed``, ``seed + 1``,
        and so on.

        Parameters
        ----------
        count
            Number of networks.
        settings
            Of each :class:`~butterfly_sdm.models.network_predictor.NetworkPredictor`.

        Raises
        ------
        ModelError
            There is not one member, or a setting is wrong.
        """
        from butterfly_sdm.models.network_predictor import NetworkPredictor

        if count < 1:
            raise ModelError(f"An ensemble needs at least one member; {count} were asked for.")
        return cls([NetworkPredictor(**settings, seed=seed + place) for place in range(count)])

    @property
    def species(self) -> tuple[str, ...]:
        """Names of the species; empty before :meth:`fit`."""
        return tuple(self.members[0].species)

    @property
    def sees(self) -> Sees:
        """What the members look at together."""
        return seen_by_all(member.sees for member in self.members)

    @property
    def history(self) -> pd.DataFrame:
        """One row per member and epoch."""
        tables = [getattr(member, "history", pd.DataFrame()) for member in self.members]
        return pd.concat(
            [table.assign(member=place) for place, table in enumerate(tables)], ignore_index=True
        )

    def fit(
        self, dataset: Dataset, sites: Sequence[str], *, context: FitContext | None = None
    ) -> Self:
        """
        Fit every member; see :meth:`butterfly_sdm.models.network_predictor.NetworkPredictor.fit`.

        Checkpoints of member 3 go to ``context.folder/members/3``.
        """
        context = context or FitContext()
        folder = context.folder
        for place, member in enumerate(self.members):
            own = replace(
                context,
                folder=None if folder is None else Path(folder) / "members" / str(place),
                progress=_shifted(context.progress, place, len(self.members)),
            )
            member.fit(dataset, sites, context=own)
        if folder is not None:
            with atomic_path(Path(folder) / "history.csv") as path:
                self.history.to_csv(path, index=False)
        return self

    def predict(self, dataset: Dataset, sites: Sequence[str]) -> pd.DataFrame:
        """Return the mean over members of the presence probabilities (sites, species)."""
        return self._mean(self.predict_members(dataset, sites))

    def spread(self, dataset: Dataset, sites: Sequence[str]) -> pd.DataFrame:
        """
        Return the standard deviation over members (sites, species): how much of a claim is owed to
        the start of the fit.

        Raises
        ------
        ModelError
            There is only one member.
        """
        if len(self.members) < 2:
            raise ModelError(
                "One member alone cannot disagree: an ensemble needs two for a spread."
            )
        tables = self.predict_members(dataset, sites)
        values = np.stack([table.to_numpy() for table in tables]).std(axis=0, ddof=1)
        return pd.DataFrame(values, index=tables[0].index, columns=tables[0].columns)

    def predict_members(self, dataset: Dataset, sites: Sequence[str]) -> list[pd.DataFrame]:
        """Return the prediction of every member."""
        return [member.predict(dataset, sites) for member in self.members]

    @staticmethod
    def _mean(tables: list[pd.DataFrame]) -> pd.DataFrame:
        first = tables[0]
        for table in tables[1:]:
            if tuple(table.columns) != tuple(first.columns):
                raise ModelError(
                    "The members of the ensemble do not predict the same species in the same order."
                )
        return pd.DataFrame(
            np.mean([table.to_numpy() for table in tables], axis=0),
            index=first.index,
            columns=first.columns,
        )

    def save(self, folder: Path) -> None:
        """Write ``model.json`` and one folder per member into ``folder``."""
        folder = Path(folder)
        for place, member in enumerate(self.members):
            own = folder / "members" / str(place)
            own.mkdir(parents=True, exist_ok=True)
            member.save(own)
        write_json(
            folder / "model.json",
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "kind": self.kind,
                "species": list(self.species),
                "sees": self.sees.to_dict(),
                "members": [f"members/{place}" for place in range(len(self.members))],
            },
        )

    @classmethod
    def load(
        cls, folder: Path, *, load_member: Callable[[Path], Predictor] | None = None
    ) -> Ensemble:
        """
        Read what :meth:`save` wrote.

        Parameters
        ----------
        folder
            What :meth:`save` wrote.
        load_member
            Reads the folder of a member; by default members are networks or ensembles.

        Raises
        ------
        MissingFileError, ArtefactError, ModelError
            A file is absent or damaged, or the members do not belong together.
        """
        folder = Path(folder)
        value = read_model_card(folder, cls.kind)
        names = value.get("members")
        if (
            not isinstance(names, list)
            or not names
            or not all(isinstance(name, str) for name in names)
        ):
            raise ArtefactError(
                f"{folder / 'model.json'} is damaged: it does not list its members. Train again."
            )
        root = folder.resolve()
        for name in names:
            if not (root / name).resolve().is_relative_to(root):
                raise ArtefactError(
                    f"{folder / 'model.json'} names the member {name!r}, which lies outside the "
                    "run."
                )
        loaded = cls([(load_member or _load_member)(folder / name) for name in names])
        for place, member in enumerate(loaded.members):
            if tuple(member.species) != tuple(value.get("species", ())):
                raise ModelError(
                    f"Member {place} of {folder} does not predict the species that model.json "
                    "names. Train again."
                )
        return loaded

    @classmethod
    def of_runs(
        cls,
        folders: Sequence[str | Path],
        *,
        load_member: Callable[[Path], Predictor] | None = None,
    ) -> Ensemble:
        """
        Join the fitted models of several run folders.

        Parameters
        ----------
        folders
            Run folders, or folders of saved models.
        load_member
            Reads one of them; None: as its ``model.json`` says.

        Raises
        ------
        DataError
            They do not predict the same species.
        ModelError
            A folder holds a kind of model that cannot be a member.
        """
        members = [(load_member or _load_member)(Path(folder)) for folder in folders]
        for folder, member in zip(folders, members, strict=True):
            if tuple(member.species) != tuple(members[0].species):
                raise DataError(
                    f"The runs {folders[0]} and {folder} do not predict the same species, so they "
                    "have no mean."
                )
        return cls(members)


def _load_member(folder: Path) -> Predictor:
    value = read_json(folder / "model.json")
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind not in MODELS:
        raise ModelError(
            f"{folder} holds a {kind!r}; members of an ensemble are read as {', '.join(MODELS)}."
        )
    module, _, name = MODELS[kind].partition(":")
    return getattr(importlib.import_module(module), name).load(folder)  # type: ignore[no-any-return]


def _shifted(progress: Progress, place: int, members: int) -> Progress:
    """Report one member as its share of the whole."""

    def report(task: str, done: int, total: int) -> None:
        progress(task, place * total + done, members * total)

    return report
