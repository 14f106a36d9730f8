"""The one contract of everything that predicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import pandas as pd

from butterfly_sdm.data.dataset import Dataset


@runtime_checkable
class Predictor(Protocol):
    """
    Mean rates, nearest sites, trees, networks and ensembles: all are fitted to sites and predict
    species at sites.

    Attributes
    ----------
    species
        The names of the species, in the order of the columns of :meth:`predict`; empty before
        :meth:`fit`.
    """

    species: tuple[str, ...]

    def fit(self, dataset: Dataset, sites: Sequence[str]) -> Self:
        """Learn from the detections of ``sites`` and of no others."""
        ...

    def predict(self, dataset: Dataset, sites: Sequence[str]) -> pd.DataFrame:
        """
        Return the presence probability, in [0, 1].

        Returns
        -------
        DataFrame of shape (sites, species)
            Rows in the order of ``sites``, index named ``site_id``; columns in the order of
            ``species``.
        """
        ...


@runtime_checkable
class Saved(Protocol):
    """A predictor that can be kept in a run folder and read back without a pickle."""

    def save(self, folder: Path) -> None:
        """Write ``model.json`` (with the key ``kind``) and the arrays beside it into ``folder``."""
        ...

    @classmethod
    def load(cls, folder: Path) -> Any:
        """
        Read what :meth:`save` wrote.

        Returns
        -------
        Self
            Fitted, as it was saved.
        """
        ...


@runtime_checkable
class Embedding(Protocol):
    """A predictor that also says where a site lies in the space it has learned."""

    def embed(self, dataset: Dataset, sites: Sequence[str]) -> pd.DataFrame:
        """Return the embeddings, (sites, length)."""
        ...
