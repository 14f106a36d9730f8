"""The one contract of everything that predicts, and all that others may ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

import pandas as pd

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.progress import Progress, silent


@dataclass(frozen=True)
class Sees:
    """
    What a fitted predictor looks at, in which units.

    Mapping, evaluation, applicability and checks ask this and nothing else.

    Attributes
    ----------
    bands
        Of the image, by name, in the predictor's order; empty: it sees no image.
    window_px
        Side of the ground a prediction speaks of.
    margin_px
        Surroundings it sees besides, on each side: a tile has ``window_px + 2 * margin_px``.
    resolution_m
        Side of a pixel; None: it sees no image.
    covariates
        Names, in the predictor's order.
    position_crs
        CRS of easting and northing; None: it does not know where it is.
    """

    bands: tuple[str, ...] = ()
    window_px: int = 0
    margin_px: int = 0
    resolution_m: float | None = None
    covariates: tuple[str, ...] = ()
    position_crs: str | None = None

    @property
    def tile_px(self) -> int:
        """Side of the tile that is needed around a place."""
        return self.window_px + 2 * self.margin_px


@dataclass(frozen=True)
class FitContext:
    """
    What a fit may use beside its sites; every predictor takes it, few need it.

    Attributes
    ----------
    validation
        Sites to watch while fitting: never learned from, but the best epoch is that of theirs.
    folder
        Where to keep checkpoints and a history; None: nowhere.
    progress
        Told how far the fit is.
    """

    validation: Sequence[str] = ()
    folder: Path | None = None
    progress: Progress = silent


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
    sees
        What it looks at; saved with it. Says something only after :meth:`fit`.
    """

    species: tuple[str, ...]

    @property
    def sees(self) -> Sees: ...  # noqa: D102

    def fit(
        self, dataset: Dataset, sites: Sequence[str], *, context: FitContext | None = None
    ) -> Self:
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

    def save(self, folder: Path) -> None:
        """
        Write ``model.json`` (with the keys ``kind`` and ``sees``) and the arrays beside it into
        ``folder``.
        """
        ...

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what :meth:`save` wrote: fitted, as it was saved; never a pickle."""
        ...


@runtime_checkable
class Embedding(Protocol):
    """A predictor that also says where a site lies in the space it has learned."""

    def embed(self, dataset: Dataset, sites: Sequence[str]) -> pd.DataFrame:
        """Return the embeddings, (sites, length)."""
        ...


@runtime_checkable
class Saved(Protocol):
    """A predictor that can be kept in a run folder and read back without a pickle."""

    def save(self, folder: Path) -> None: ...  # noqa: D102
