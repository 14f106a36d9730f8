"""Keep a fitted baseline in a folder: ``model.json`` and an array file, never a pickle."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd

from butterfly_sdm.baselines.inputs.older import sees_of_0_1_0
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import FitContext, Sees, check_seen
from butterfly_sdm.data.saved_models import card_in_doubt, read_arrays, read_model, write_model
from butterfly_sdm.errors import ArtefactError, DataError, ModelError


class ArrayPredictor:
    """
    A predictor whose fitted state is a dictionary of arrays.

    Subclasses are dataclasses whose fields are the hyper-parameters (numbers, text or None), name
    their ``kind`` and implement ``_fit`` and ``_predict``; checking, saving and loading are done
    here.

    Attributes
    ----------
    kind
        The name under which :data:`butterfly_sdm.data.saved_models.PREDICTORS` lists the class.
    species
        Names of the species; empty before :meth:`fit`.
    state
        Arrays learned by :meth:`fit`.
    """

    kind: ClassVar[str]
    needed: ClassVar[str] = ""  # names of the arrays without which it cannot predict
    least: ClassVar[Mapping[str, float]] = {}  # of hyper-parameters
    newer: ClassVar[tuple[str, ...]] = ()  # hyper-parameters that are told only where they are set
    species: tuple[str, ...] = ()
    state: dict[str, np.ndarray]
    dataset_fingerprint: str = ""
    _sees: Sees | None = None

    def __post_init__(self) -> None:
        for name, least in self.least.items():
            if not getattr(self, name) >= least:
                raise ModelError(f"{name} = {getattr(self, name)}; it has to be at least {least}.")

    @property
    def sees(self) -> Sees:
        """What it looks at; before the fit only whether that is a tile."""
        return self._sees or Sees(needs_tile=self._takes_tiles)

    @property
    def _takes_tiles(self) -> bool:
        return False

    def _look(self, dataset: Dataset) -> Sees:
        """Return what it will see of this data set."""
        return Sees()

    def settings(self) -> dict[str, Any]:
        """Return the hyper-parameters by name."""
        names = [entry.name for entry in fields(self)]  # type: ignore[arg-type]
        value = {name: getattr(self, name) for name in names}
        return {name: one for name, one in value.items() if one or name not in self.newer}

    def fit(
        self, dataset: Dataset, sites: Sequence[str], *, context: FitContext | None = None
    ) -> Self:
        """
        Learn from the detections of ``sites`` and of no others; sites without a visit are passed
        over. Nothing of ``context`` is needed.

        Raises
        ------
        DataError
            None of the sites has a visit, or the data set lacks what the model needs.
        """
        used = visited(dataset, sites)
        self.species = dataset.species
        self.dataset_fingerprint = dataset.fingerprint
        if self._takes_tiles:
            dataset.tile_rows(used)  # says what is missing
        self._sees = self._look(dataset)
        self.state = self._before(dataset, used)
        self.state = self.state | self._fit(dataset, used)
        return self

    def predict(self, dataset: Dataset, sites: Sequence[str]) -> pd.DataFrame:
        """
        Return the presence probability, in [0, 1], of shape (sites, species).

        Raises
        ------
        ModelError
            The model was not fitted, or to other bands, pixels or positions than these.
        DataError
            The data set lacks a site or what the model needs.
        """
        if not self.species:
            raise ModelError(
                f"The {self.kind} model was not fitted yet. Call fit(dataset, sites) before "
                "predict, or load a run."
            )
        check_seen(self.sees, dataset, f"{self.kind} model")
        sites = list(sites)
        probability = np.clip(self._predict(dataset, sites), 0.0, 1.0)
        return pd.DataFrame(
            probability, index=pd.Index(sites, name="site_id"), columns=list(self.species)
        )

    def _before(self, dataset: Dataset, sites: Sequence[str]) -> dict[str, np.ndarray]:
        """Return what has to be learned of the inputs before the model is."""
        return {}

    def _fit(self, dataset: Dataset, sites: Sequence[str]) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def _predict(self, dataset: Dataset, sites: Sequence[str]) -> np.ndarray:
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """
        Write ``model.json`` and ``model.safetensors`` into ``folder``.

        Raises
        ------
        ModelError
            The model was not fitted.
        """
        content = {"settings": self.settings(), "dataset": self.dataset_fingerprint}
        content |= self._more_of_card()
        write_model(folder, self.kind, self, content, self.state if self.species else {})

    def _more_of_card(self) -> dict[str, Any]:
        """Return what the card of this kind holds besides."""
        return {}

    def _take_card(self, card: Mapping[str, Any]) -> None:
        """Take back what :meth:`_more_of_card` gave; the arrays are there already."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """
        Read what :meth:`save` wrote.

        Raises
        ------
        MissingFileError, ArtefactError
            A file is absent, damaged or of another kind of model.
        """
        card, state = read_model(folder, cls.kind), read_arrays(folder)
        with card_in_doubt(folder):
            model = cls(**card["settings"])
            model._sees = (
                Sees.from_dict(card["sees"])
                if "sees" in card
                else sees_of_0_1_0(cls.kind, card["settings"], card["inputs"])
            )
        missing = set(cls.needed.split()) - set(state)
        if missing:
            raise ArtefactError(
                f"The model in {folder} lacks the array {sorted(missing)[0]!r}. Train it again."
            )
        model.species = tuple(card["species"])
        model.dataset_fingerprint = str(card.get("dataset", ""))
        model.state = state
        with card_in_doubt(folder):
            model._take_card(card)
        return model


def visited(dataset: Dataset, sites: Sequence[str]) -> list[str]:
    """
    Return those of ``sites`` that have at least one visit.

    Raises
    ------
    DataError
        There are none.
    """
    sites = list(sites)
    visits = dataset.visits.to_numpy()[dataset.rows(sites)]
    used = [site for site, n in zip(sites, visits, strict=True) if n > 0]
    if not used:
        raise DataError(
            f"None of the {len(sites)} sites to learn from has a visit. Choose sites with visits."
        )
    return used
