"""Several predictors as one: their mean, and how far they disagree."""

from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd

from butterfly_sdm.core.files import write_table
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import FitContext, Predictor, Sees, seen_by_all
from butterfly_sdm.data.quantities import Quantities, Quantity, ask, known_quantities
from butterfly_sdm.data.saved_models import load_predictor, read_model, write_model
from butterfly_sdm.errors import ArtefactError, DataError, ModelError
from butterfly_sdm.models.options import FitOptions, NetworkOptions
from butterfly_sdm.progress import Progress, silent


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

    members: Sequence[Predictor]

    kind: ClassVar[str] = "ensemble"

    def __post_init__(self) -> None:
        self.members = tuple(self.members)
        if not self.members:
            raise ModelError("An ensemble needs at least one member.")

    @classmethod
    def of_networks(
        cls,
        count: int,
        model: NetworkOptions | None = None,
        fitting: FitOptions | None = None,
        *,
        seed: int = 0,
        **settings: Any,
    ) -> Self:
        """
        Return an unfitted ensemble of networks that differ in their seeds: ``seed``, ``seed + 1``,
        and so on.

        Parameters
        ----------
        count
            Number of networks.
        model, fitting, settings
            Of each :class:`~butterfly_sdm.models.network_predictor.NetworkPredictor`.

        Raises
        ------
        ModelError
            There is not one member, or a setting is wrong.
        """
        from butterfly_sdm.models.network_predictor import NetworkPredictor

        if count < 1:
            raise ModelError(f"An ensemble needs at least one member; {count} were asked for.")
        return cls(
            [
                NetworkPredictor(model, fitting, seed=seed + place, **settings)
                for place in range(count)
            ]
        )

    @property
    def species(self) -> tuple[str, ...]:
        """Names of the species; empty before :meth:`fit`."""
        return tuple(self.members[0].species)

    @property
    def sees(self) -> Sees:
        """What the members look at together."""
        return seen_by_all(member.sees for member in self.members)

    @property
    def quantities(self) -> tuple[str, ...]:
        """What every member can be asked for."""
        known = [known_quantities(member) for member in self.members]
        return tuple(name for name in known[0] if all(name in other for other in known))

    @property
    def quantity(self) -> Quantity:
        """What :meth:`predict` gives, where members tell quantities."""
        first = self.members[0]
        return first.quantity if isinstance(first, Quantities) else Quantity()

    def asked_for(self, quantity: Quantity) -> "Ensemble":
        """Return the mean of the same members, all asked for this quantity."""
        return Ensemble([ask(member, quantity) for member in self.members])

    @property
    def history(self) -> pd.DataFrame:
        """One row per member and epoch."""
        from butterfly_sdm.models.network_predictor import NetworkPredictor

        tables = [
            member.history.assign(member=place)
            for place, member in enumerate(self.members)
            if isinstance(member, NetworkPredictor | Ensemble)
        ]
        return pd.concat([pd.DataFrame(), *tables], ignore_index=True)

    def fit(
        self, dataset: Dataset, sites: Sequence[str], *, context: FitContext | None = None
    ) -> Self:
        """
        Fit every member; see :meth:`butterfly_sdm.models.network_predictor.NetworkPredictor.fit`.

        Checkpoints of member 3 go to ``context.folder/members/3``. With an executor the members are
        fitted beside one another, with the numbers they have in a process with as many threads.
        """
        context = context or FitContext()
        folder, executor, count = context.folder, context.executor, len(self.members)
        own = [
            replace(
                context,
                folder=None if folder is None else Path(folder) / "members" / str(place),
                progress=_shifted(context.progress, place, count),
            )
            for place in range(count)
        ]
        if executor is None:
            for member, part in zip(self.members, own, strict=True):
                member.fit(dataset, sites, context=part)
        else:
            # Neither a listener nor the executor can follow into another process.
            there = [replace(part, progress=silent, executor=None) for part in own]
            fitting = [
                executor.submit(member.fit, dataset, list(sites), context=part)
                for member, part in zip(self.members, there, strict=True)
            ]
            for done, _ in enumerate(as_completed(fitting), start=1):
                context.progress("fit", done, count)
            self.members = tuple(future.result() for future in fitting)
        if folder is not None:
            write_table(Path(folder) / "history.csv", self.history, index=False)
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
        names = [f"members/{place}" for place in range(len(self.members))]
        for name, member in zip(names, self.members, strict=True):
            member.save(Path(folder) / name)
        write_model(folder, self.kind, self, {"members": names})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """
        Read what :meth:`save` wrote.

        Raises
        ------
        MissingFileError, ArtefactError, ModelError
            A file is absent or damaged, or the members do not belong together.
        """
        folder = Path(folder)
        card = read_model(folder, cls.kind)
        names = card.get("members")
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
        loaded = cls([load_predictor(folder / name) for name in names])
        for place, member in enumerate(loaded.members):
            if list(member.species) != card["species"]:
                raise ModelError(
                    f"Member {place} of {folder} does not predict the species that model.json "
                    "names. Train again."
                )
        return loaded

    @classmethod
    def of_runs(cls, folders: Sequence[str | Path]) -> Self:
        """
        Join the fitted models of several run folders.

        Parameters
        ----------
        folders
            Run folders, or folders of saved models of any kind.

        Raises
        ------
        DataError
            They do not predict the same species.
        """
        members = [load_predictor(folder) for folder in folders]
        for folder, member in zip(folders, members, strict=True):
            if tuple(member.species) != tuple(members[0].species):
                raise DataError(
                    f"The runs {folders[0]} and {folder} do not predict the same species, so they "
                    "have no mean."
                )
        return cls(members)


def _shifted(progress: Progress, place: int, members: int) -> Progress:
    """Report one member as its share of the whole."""

    def report(task: str, done: int, total: int) -> None:
        progress(task, place * total + done, members * total)

    return report
