"""Predictors that see one row of numbers per site."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from butterfly_sdm.baselines.inputs.numbers import site_numbers
from butterfly_sdm.baselines.saved import ArrayPredictor
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import Sees


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
    """

    covariates: bool = True
    position: bool = True
    bands: bool = False

    def settings(self) -> dict[str, Any]:
        """Return the hyper-parameters by name, those of the model before what it sees."""
        value = super().settings()
        return value | {name: value.pop(name) for name in ("covariates", "position", "bands")}

    @property
    def _takes_tiles(self) -> bool:
        return self.bands

    def _look(self, dataset: Dataset) -> Sees:
        return Sees.of(
            dataset, image=self.bands, covariates=self.covariates, position=self.position
        )

    def _numbers(self, dataset: Dataset, sites: Sequence[str]) -> pd.DataFrame:
        return site_numbers(dataset, sites, self.sees)
