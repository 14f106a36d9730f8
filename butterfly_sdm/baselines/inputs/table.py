"""Predictors that see one row of numbers per site."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from butterfly_sdm.baselines.inputs.components import fit_components, with_components
from butterfly_sdm.baselines.inputs.numbers import covariate_table, site_numbers
from butterfly_sdm.baselines.saved import ArrayPredictor
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import Sees
from butterfly_sdm.errors import ModelError


@dataclass
class TablePredictor(ArrayPredictor):
    """
    The part of a predictor that says which numbers of a site it sees.

    Parameters
    ----------
    covariates
        The covariates of the data set; a data set without covariates has none.
    position
        Easting, northing, their sum and difference.
    bands
        Statistics of each band of the tile, see
        :func:`~butterfly_sdm.baselines.inputs.numbers.tile_statistics`.
    only
        Which covariates, as in :func:`~butterfly_sdm.data.groups.chosen_covariates`: the name of a
        group such as ``alphaearth``, names, or beginnings with ``*``; empty: all.
    embedding, components
        A group of covariates of which only as many principal components of the training sites are
        taken; 0: it is taken as it is.
    """

    covariates: bool = True
    position: bool = True
    bands: bool = False
    only: str = ""
    embedding: str = ""
    components: int = 0
    newer: ClassVar[tuple[str, ...]] = ("only", "embedding", "components")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.components < 0 or bool(self.components) != bool(self.embedding):
            raise ModelError(
                f"embedding = {self.embedding!r}, components = {self.components}: name a group of "
                "covariates and how many principal components of it, or neither."
            )

    def settings(self) -> dict[str, Any]:
        """Return the hyper-parameters by name, those of the model before what it sees."""
        value = super().settings()
        seen = ("covariates", "position", "bands", *self.newer)
        return value | {name: value.pop(name) for name in seen if name in value}

    @property
    def _takes_tiles(self) -> bool:
        return self.bands

    def _look(self, dataset: Dataset) -> Sees:
        return Sees.of(
            dataset,
            image=self.bands,
            covariates=self.covariates,
            position=self.position,
            only=self.only,
        )

    def _before(self, dataset: Dataset, sites: Sequence[str]) -> dict[str, np.ndarray]:
        if not self.components:
            return {}
        table = covariate_table(dataset, sites, self.sees.covariates)
        return fit_components(table, self.embedding, self.components)

    def _numbers(self, dataset: Dataset, sites: Sequence[str]) -> pd.DataFrame:
        table = site_numbers(dataset, sites, self.sees)
        return with_components(table, self.embedding, self.state) if self.components else table
