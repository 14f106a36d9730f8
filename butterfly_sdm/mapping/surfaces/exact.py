"""
Prediction position by position, through ``predict`` of any predictor: the exact way, and the only
one for most models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window

from butterfly_sdm.core.block_store import Store
from butterfly_sdm.core.executor import Unit
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.imagery.scene import Scene
from butterfly_sdm.mapping.surfaces.lattice import Lattice
from butterfly_sdm.mapping.surfaces.positions import CovariateRasters, positions_as_sites
from butterfly_sdm.mapping.surfaces.rows import Strip
from butterfly_sdm.predictors import Handle

WITH_TILES, WITHOUT_TILES = (
    8,
    64,
)  # positions down and across a unit: a tile of 256 px and 4 bands holds half a MB


@dataclass(frozen=True, eq=False)
class WindowUnit:
    """Some rows and columns of positions, to be predicted one by one."""

    job: WindowSurface
    rows: slice
    cols: slice

    @property
    def key(self) -> str:
        """Name in the journal."""
        return f"{self.rows.start}:{self.cols.start}"

    def read(self) -> tuple[np.ndarray, Dataset | None]:
        """Return the valid fraction of each position and the wanted positions as sites."""
        job = self.job
        fraction = valid_fractions(job.scene, job.lattice, self.rows, self.cols)
        wanted = (
            job.wanted[self.rows, self.cols] & (fraction > 0) & (fraction >= job.min_valid_fraction)
        )
        rows, cols = np.nonzero(wanted)
        if not len(rows):
            return fraction, None
        return fraction, job.sites(rows + self.rows.start, cols + self.cols.start)

    def compute(self, data: tuple[np.ndarray, Dataset | None]) -> dict[str, np.ndarray]:
        """
        Return the valid fractions (rows, cols), and probabilities and spread (rows, cols, species),
        NaN where none.
        """
        fraction, sites = data
        result = {
            "fraction": fraction,
            "probability": np.full((*fraction.shape, len(self.job.species)), np.nan, np.float32),
        }
        if self.job.members > 1:
            result["spread"] = result["probability"].copy()
        if sites is None:
            return result
        places = np.array([[int(part) for part in site.split("_")] for site in sites.site_ids])
        where = places[:, 0] - self.rows.start, places[:, 1] - self.cols.start
        predictor = self.job.handle.predictor
        if self.job.embeds:
            z = predictor.embed(sites, sites.site_ids).to_numpy(dtype=np.float32)
            result["embedding"] = np.full((*fraction.shape, z.shape[1]), np.nan, np.float32)
            result["embedding"][where] = z
        if self.job.members > 1:
            tables = np.stack(
                [table.to_numpy() for table in predictor.predict_members(sites, sites.site_ids)]
            )
            result["probability"][where] = tables.mean(axis=0)
            result["spread"][where] = tables.std(axis=0, ddof=1)
        else:
            result["probability"][where] = predictor.predict(sites, sites.site_ids).to_numpy()
        return result


def valid_fractions(scene: Scene, lattice: Lattice, rows: slice, cols: slice) -> np.ndarray:
    """
    Return the share of pixels with a measurement in the window of each position; of its map pixel
    if it has no window.
    """
    side = lattice.window_px or lattice.stride_px
    shift = 0 if lattice.window_px else -(lattice.stride_px // 2)
    tops, lefts = (
        starts[part] + shift
        for starts, part in zip(lattice.window_starts(), (rows, cols), strict=True)
    )
    window = Window(
        int(lefts[0]),
        int(tops[0]),
        int(lefts[-1] - lefts[0]) + side,
        int(tops[-1] - tops[0]) + side,
    )
    _, valid = scene.read(window)
    total = np.zeros(
        (valid.shape[0] + 1, valid.shape[1] + 1), dtype=np.int64
    )  # sums from the corner
    total[1:, 1:] = valid.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    r, c = (tops - tops[0])[:, None], (lefts - lefts[0])[None, :]
    return (
        total[r + side, c + side] - total[r, c + side] - total[r + side, c] + total[r, c]
    ) / side**2


@dataclass(frozen=True, eq=False)
class WindowSurface:
    """
    Probabilities of any predictor, position by position.

    Attributes
    ----------
    wanted
        (height, width) positions that lie in the area of interest.
    tiles
        Whether the predictor looks at images.
    embeds
        Whether the embeddings of a network are kept for a layer.
    """

    handle: Handle
    species: tuple[str, ...]
    scene: Scene
    lattice: Lattice
    wanted: np.ndarray
    min_valid_fraction: float
    position_crs: str
    tiles: bool
    covariates: CovariateRasters | None = None
    embeds: bool = False

    def places(self, rows: np.ndarray, cols: np.ndarray) -> Dataset:
        """Return positions as the sites of a data set without imagery."""
        return self.sites(rows, cols, tiles=False)

    def sites(self, rows: np.ndarray, cols: np.ndarray, *, tiles: bool | None = None) -> Dataset:
        """
        Return positions as the sites of a data set, with tiles if the predictor looks at images.
        """
        return positions_as_sites(
            self.lattice,
            rows,
            cols,
            self.scene,
            species=self.species,
            position_crs=self.position_crs,
            tiles=self.tiles if tiles is None else tiles,
            covariates=self.covariates,
        )

    def open(self, folder: Path) -> Store:
        """Make or continue the arrays of this surface in ``folder``."""
        shape = (*self.lattice.shape, len(self.species))
        arrays = {"fraction": (self.lattice.shape, "float32"), "probability": (shape, "float32")}
        if self.members > 1:
            arrays["spread"] = (shape, "float32")
        if self.embeds:
            length = self.handle.predictor.network.architecture.embedding
            arrays["embedding"] = ((*self.lattice.shape, length), "float32")
        return Store(folder, arrays)

    @property
    def members(self) -> int:
        """Members of the ensemble, if the predictor is one that is their mean; else 0."""
        predictor = self.handle.predictor
        return len(predictor.members) if getattr(predictor, "kind", "") == "ensemble" else 0

    def units(self, store: Store) -> Sequence[Unit]:
        """Return what is still to be done."""
        side = WITH_TILES if self.tiles else WITHOUT_TILES
        height, width = self.lattice.shape
        units = [
            WindowUnit(
                self, slice(row, min(row + side, height)), slice(col, min(col + side, width))
            )
            for row in range(0, height, side)
            for col in range(0, width, side)
        ]
        return [
            unit
            for unit in units
            if unit.key not in store.done and self.wanted[unit.rows, unit.cols].any()
        ]

    def keep(self, store: Store, unit: Any, result: dict[str, np.ndarray]) -> None:
        """Write the result of one unit."""
        store.keep(
            unit.key, {name: ((unit.rows, unit.cols), values) for name, values in result.items()}
        )

    def strip(self, store: Store, rows: slice) -> Strip:
        """Return the probabilities of some rows of positions."""
        probability = np.array(store["probability"][rows]).transpose(2, 0, 1)
        fraction = np.array(store["fraction"][rows])
        probability[:, ~self.wanted[rows]] = np.nan
        spread = None
        if self.members > 1:
            spread = np.array(store["spread"][rows]).transpose(2, 0, 1)
            spread[:, ~self.wanted[rows]] = np.nan
        embedding = np.array(store["embedding"][rows]) if self.embeds else None
        store.release()
        return Strip(rows, self.species, probability, fraction, self.places, embedding, spread)


class BesideExact:
    """
    What a faster way of the same map shares with the window-by-window way it stands beside, its
    attribute ``exact``.
    """

    exact: WindowSurface

    @property
    def handle(self) -> Handle:
        """The predictor."""
        return self.exact.handle

    @property
    def species(self) -> tuple[str, ...]:
        """Names of the species."""
        return self.exact.species

    @property
    def scene(self) -> Scene:
        """Where the pixels are read."""
        return self.exact.scene

    @property
    def lattice(self) -> Lattice:
        """The positions."""
        return self.exact.lattice

    @property
    def wanted(self) -> np.ndarray:
        """(height, width) positions that lie in the area of interest."""
        return self.exact.wanted

    @property
    def min_valid_fraction(self) -> float:
        """Smallest share of measured pixels in the window of a position with a value."""
        return self.exact.min_valid_fraction
