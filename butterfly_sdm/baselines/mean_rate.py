"""
Predict every site by the mean detection rates of the training sites, over all of them or by grid
square.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from butterfly_sdm.baselines.inputs.numbers import positions
from butterfly_sdm.baselines.saved import ArrayPredictor
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import Sees


@dataclass
class MeanRate(ArrayPredictor):
    """
    The mean detection rate of each species, the same at every site.

    Parameters
    ----------
    weights
        ``"sites"``: every site counts alike, as in the published mean rate (van der Plas et al.
        2025); ``"visits"``: every visit counts alike.
    """

    weights: Literal["sites", "visits"] = "sites"
    kind: ClassVar[str] = "mean_rate"
    needed: ClassVar[str] = "rate"

    def _fit(self, dataset: Dataset, sites: Sequence[str]) -> dict[str, np.ndarray]:
        k, n = dataset.counts(sites)
        rate = (k / n[:, None]).mean(axis=0) if self.weights == "sites" else k.sum(axis=0) / n.sum()
        return {"rate": rate}

    def _predict(self, dataset: Dataset, sites: Sequence[str]) -> np.ndarray:
        return np.tile(self.state["rate"], (len(sites), 1))


@dataclass
class RegionalRate(ArrayPredictor):
    """
    The mean detection rate within a grid square, drawn towards the overall mean where few sites lie
    in it.

    The rate of a square with m sites is ``(m * mean of the square + shrinkage * overall mean) / (m
    + shrinkage)``; a square without sites has the overall mean.

    Parameters
    ----------
    size_m
        Side of a square, metres.
    shrinkage
        How many sites the overall mean counts for.
    """

    size_m: float = 100_000.0
    shrinkage: float = 3.0
    kind: ClassVar[str] = "regional_rate"
    needed: ClassVar[str] = "rate squares square_rates"

    def _look(self, dataset: Dataset) -> Sees:
        return Sees.of(dataset, position=True)

    def _squares(self, dataset: Dataset, sites: Sequence[str]) -> np.ndarray:
        position = positions(dataset, sites)
        return np.floor(position / self.size_m).astype(np.int64)  # (sites, 2)

    def _fit(self, dataset: Dataset, sites: Sequence[str]) -> dict[str, np.ndarray]:
        k, n = dataset.counts(sites)
        rates = k / n[:, None]
        rate = rates.mean(axis=0)
        squares, square_of = np.unique(self._squares(dataset, sites), axis=0, return_inverse=True)
        sums = np.zeros((len(squares), k.shape[1]))
        np.add.at(sums, square_of.ravel(), rates)
        count = np.bincount(square_of.ravel(), minlength=len(squares))[:, None]
        square_rates = (sums + self.shrinkage * rate) / (count + self.shrinkage)
        return {"rate": rate, "squares": squares, "square_rates": square_rates}

    def _predict(self, dataset: Dataset, sites: Sequence[str]) -> np.ndarray:
        known = {tuple(square): row for row, square in enumerate(self.state["squares"].tolist())}
        rows = [known.get(tuple(square)) for square in self._squares(dataset, sites).tolist()]
        return np.stack(
            [self.state["rate"] if row is None else self.state["square_rates"][row] for row in rows]
        )
