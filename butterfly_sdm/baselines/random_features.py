"""
Random convolutional features of the tiles (MOSAIKS) under a logistic regression: an image model
without training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import expit

from butterfly_sdm.baselines.inputs.numbers import seen_tiles
from butterfly_sdm.baselines.linear import fit_logistic, mean_and_deviation
from butterfly_sdm.baselines.saved import ArrayPredictor
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import Sees
from butterfly_sdm.errors import DataError
from butterfly_sdm.imagery.pixels import measured


@dataclass
class RandomFeatures(ArrayPredictor):
    """
    Small patches drawn from the training tiles serve as filters; their mean response over a tile
    describes it [1]_.

    The patches are whitened (so that they respond to texture, not to brightness alone), every tile
    is convolved with each, what is above 0 and what is below -0 is averaged over the tile, and a
    ridge-penalised logistic regression follows.

    Parameters
    ----------
    filters
        How many; each gives two numbers.
    patch_px
        Side of a patch.
    penalty, visits_power
        As in :class:`~butterfly_sdm.baselines.linear.Linear`.
    seed
        Of the choice of patches.

    References
    ----------
    .. [1] E. Rolf et al. (2021), A generalizable and accessible approach to machine learning with
           global satellite imagery.
       Nature Communications 12, 4392.
    """

    filters: int = 128
    patch_px: int = 3
    penalty: float = 0.1
    visits_power: float = 0.5
    seed: int = 0
    kind: ClassVar[str] = "random_features"
    needed: ClassVar[str] = "centre spread filters bias mean deviation slopes intercept"

    def __post_init__(self) -> None:
        if self.filters < 1 or self.patch_px < 1:
            raise DataError(
                f"filters = {self.filters} and patch_px = {self.patch_px} must be at least 1."
            )

    @property
    def _takes_tiles(self) -> bool:
        return True

    def _look(self, dataset: Dataset) -> Sees:
        return Sees.of(dataset, image=True)

    def _fit(self, dataset: Dataset, sites: Sequence[str]) -> dict[str, np.ndarray]:
        rows = dataset.tile_rows(sites)
        assert dataset.tiles is not None and dataset.card.tiles is not None
        if min(dataset.tiles.shape[2:]) < self.patch_px:
            raise DataError(
                f"The tiles are {dataset.tiles.shape[2:]} pixels, smaller than patch_px = "
                f"{self.patch_px}."
            )
        patches = self._patches(dataset, rows)  # (patches, bands, side, side)
        centre, spread = patches.mean(axis=(0, 2, 3)), patches.std(axis=(0, 2, 3))
        spread = np.where(spread > 1e-9, spread, 1.0)
        flat = ((patches - centre[:, None, None]) / spread[:, None, None]).reshape(len(patches), -1)
        mean = flat.mean(axis=0)
        values, vectors = np.linalg.eigh(
            np.cov(flat - mean, rowvar=False) + 1e-9 * np.eye(flat.shape[1])
        )
        whiten = vectors / np.sqrt(values + 0.1) @ vectors.T  # ZCA
        chosen = (flat[: self.filters] - mean) @ whiten
        chosen /= np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), 1e-9)
        kernel = chosen @ whiten  # whitening of a patch, then the product with a white filter
        state = {
            "centre": centre,
            "spread": spread,
            "bias": -(kernel @ mean).astype(np.float32),
            "filters": kernel.reshape(-1, *patches.shape[1:]).astype(np.float32),
        }
        described = self._describe(dataset, sites, state)
        state["mean"], state["deviation"] = mean_and_deviation(described)
        k, n = dataset.counts(sites)
        design = np.clip((described - state["mean"]) / state["deviation"], -3, 3)
        state["slopes"], state["intercept"] = fit_logistic(
            design, k / n[:, None], n**self.visits_power, self.penalty
        )
        return state

    def _patches(self, dataset: Dataset, rows: np.ndarray) -> np.ndarray:
        assert dataset.tiles is not None
        random = np.random.default_rng(self.seed)
        side, height, width = self.patch_px, *dataset.tiles.shape[2:]
        count = max(self.filters, 2000)
        patches = np.empty((count, dataset.tiles.shape[1], side, side))
        which = random.choice(rows, count)
        top, left = (
            random.integers(0, height - side + 1, count),
            random.integers(0, width - side + 1, count),
        )
        for i, row in enumerate(which):
            patches[i] = dataset.tiles[row, :, top[i] : top[i] + side, left[i] : left[i] + side]
        assert dataset.card.tiles is not None
        known = measured(patches, dataset.card.tiles.missing)
        total = np.where(known, patches, 0.0).sum(axis=(0, 2, 3))
        centre = total / np.maximum(known.sum(axis=(0, 2, 3)), 1)
        return np.where(known, patches, centre[:, None, None])

    def _describe(
        self, dataset: Dataset, sites: Sequence[str], state: dict[str, np.ndarray]
    ) -> np.ndarray:
        """Return (sites, 2 x filters) mean responses above and below 0."""
        import torch

        assert dataset.card.tiles is not None
        kernel, bias = (
            torch.from_numpy(state["filters"].copy()),
            torch.from_numpy(state["bias"].copy()),
        )
        result = np.empty((len(sites), 2 * len(kernel)))
        with torch.inference_mode():
            for i, tile in enumerate(seen_tiles(dataset, sites, self.sees)):
                # A pixel without a measurement is taken as average, so that no filter sees an edge
                # there.
                scaled = (tile - state["centre"][:, None, None]) / state["spread"][:, None, None]
                there = measured(tile, dataset.card.tiles.missing)
                scaled[:, ~there.any(axis=0)] = 0.0
                image = torch.from_numpy(np.nan_to_num(scaled).astype(np.float32))[None]
                # (filters, positions)
                response = torch.nn.functional.conv2d(image, kernel, bias)[0].flatten(1)
                above, below = (
                    response.clamp(min=0).mean(dim=1),
                    (-response).clamp(min=0).mean(dim=1),
                )
                result[i] = torch.cat([above, below]).numpy()
        return result

    def _predict(self, dataset: Dataset, sites: Sequence[str]) -> np.ndarray:
        described = self._describe(dataset, sites, self.state)
        design = np.clip((described - self.state["mean"]) / self.state["deviation"], -3, 3)
        return np.asarray(expit(design @ self.state["slopes"] + self.state["intercept"]))
