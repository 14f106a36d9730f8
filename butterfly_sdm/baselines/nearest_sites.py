"""Predict a site by the detection rates of the nearest training sites, without any image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from butterfly_sdm.baselines.inputs.numbers import positions
from butterfly_sdm.baselines.saved import ArrayPredictor
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import Sees
from butterfly_sdm.errors import DataError


@dataclass
class NearestSites(ArrayPredictor):
    """
    The weighted mean rate of the nearest training sites.

    A neighbour at distance d with n visits has the weight ``n ** visits_power / max(d, floor_m) **
    distance_power``.

    Parameters
    ----------
    neighbours
        How many sites; fewer if there are not so many.
    distance_power
        0: all neighbours alike; 1: inverse distance.
    visits_power
        0: all alike; 1: every visit counts alike.
    floor_m
        Distances below this, metres, count as this: about the side of a survey square.
    """

    neighbours: int = 30
    distance_power: float = 1.0
    visits_power: float = 0.0
    floor_m: float = 1000.0
    kind: ClassVar[str] = "nearest_sites"
    needed: ClassVar[str] = "position rates visits"

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.floor_m <= 0:
            raise DataError(
                f"neighbours = {self.neighbours} and floor_m = {self.floor_m} must be at least 1 "
                "and above 0."
            )

    def _look(self, dataset: Dataset) -> Sees:
        return Sees.of(dataset, position=True)

    def _fit(self, dataset: Dataset, sites: Sequence[str]) -> dict[str, np.ndarray]:
        k, n = dataset.counts(sites)
        position = positions(dataset, sites)
        return {"position": position, "rates": k / n[:, None], "visits": n}

    def _predict(self, dataset: Dataset, sites: Sequence[str]) -> np.ndarray:
        from scipy.spatial import KDTree

        position = positions(dataset, sites)
        count = min(self.neighbours, len(self.state["position"]))
        # (sites, neighbours)
        distance, rows = KDTree(self.state["position"]).query(position, k=[*range(1, count + 1)])
        weight = (
            self.state["visits"][rows] ** self.visits_power
            / np.maximum(distance, self.floor_m) ** self.distance_power
        )
        weight /= weight.sum(axis=1, keepdims=True)
        return np.asarray(np.einsum("sn,snk->sk", weight, self.state["rates"][rows]))
