"""What lies on the ground at the positions of a map: means of bands, and covariates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from rasterio.windows import Window

from butterfly_sdm.imagery.embeddings.meaning import values_of
from butterfly_sdm.imagery.scene import Scene
from butterfly_sdm.mapping.options import CovariateRaster
from butterfly_sdm.mapping.surfaces.covariates import CovariateField, Kept
from butterfly_sdm.mapping.surfaces.lattice import Lattice

if TYPE_CHECKING:
    from butterfly_sdm.mapping.surfaces.rows import Strip

MOST_PIXELS = 4_000_000  # of a scene read at a time


@dataclass(frozen=True)
class Ground:
    """
    The numbers that tell one place from another, whatever a predictor sees of it.

    Attributes
    ----------
    bands
        Of the scene, in order; empty: none.
    side_m
        Of the square around a position whose mean counts.
    covariates
        Raster of each covariate, in order.
    position_crs
        CRS the covariates are read in.
    """

    bands: tuple[str, ...]
    side_m: float
    covariates: Mapping[str, CovariateRaster] = field(default_factory=dict)
    position_crs: str = ""
    kept: Kept = field(default_factory=Kept, repr=False, compare=False)

    def numbers(self, strip: Strip, where: np.ndarray) -> np.ndarray:
        """
        Return (n, bands and covariates) of the positions marked in ``where`` (rows, cols): mean
        reflectance of each band over the measured pixels, then covariates; NaN where unknown.
        """
        lattice, scene = strip.positions.lattice, strip.positions.scene
        parts = []
        if self.bands:
            side_px = max(1, round(self.side_m / scene.resolution_m))
            means = window_means(
                scene.select(self.bands), lattice, strip.rows, np.any(where, axis=1), side_px
            )
            parts.append(means[:, where].T)
        if self.covariates:
            rows, cols = np.nonzero(where)
            sampled = CovariateField(
                self.covariates, lattice, scene.crs, self.position_crs, self.kept
            )
            table = sampled.at(rows + strip.rows.start, cols)
            parts.append(table.to_numpy(float))
        return np.concatenate(parts, axis=1)


def window_means(
    scene: Scene, lattice: Lattice, rows: slice, wanted: np.ndarray, side_px: int
) -> np.ndarray:
    """
    Return (bands, rows, cols) the mean reflectance of the measured pixels in the square of
    ``side_px`` around each position; NaN without one.

    Rows of the scene are read once for as many rows of positions as fit into the memory; a sum over
    a square is four entries of a table of cumulative sums [1]_.

    Parameters
    ----------
    wanted
        (rows,) rows of positions that are to be filled; others may stay NaN.

    References
    ----------
    .. [1] F. C. Crow (1984), Summed-area tables for texture mapping. SIGGRAPH 84, 207-212.
    """
    stride = lattice.stride_px
    shift = (stride - side_px) // 2
    left, width = lattice.col0 + shift, (lattice.width - 1) * stride + side_px
    means = np.full((len(scene.bands), rows.stop - rows.start, lattice.width), np.nan)
    pixels = MOST_PIXELS // max(1, len(scene.bands) // 4)
    at_once = max(1, (pixels // width - side_px) // stride + 1)
    starts = np.arange(lattice.width) * stride
    for first in range(0, len(wanted), at_once):
        part = slice(first, min(first + at_once, len(wanted)))
        if not wanted[part].any():
            continue
        top = lattice.row0 + (rows.start + part.start) * stride + shift
        height = (part.stop - part.start - 1) * stride + side_px
        counts, valid = scene.read(Window(left, top, width, height))
        tops = np.arange(part.stop - part.start) * stride
        number = _square_sums(valid.astype(np.float64), tops, starts, side_px)
        for band in range(len(scene.bands)):
            stored = np.where(valid, counts[band], 0)
            rooted = scene.signed_square is not None
            values = values_of(stored, scene) if rooted else stored.astype(np.float64)
            total = _square_sums(values, tops, starts, side_px)
            mean = np.divide(total, number, out=np.full_like(total, np.nan), where=number > 0)
            means[band, part] = mean if rooted else (mean - scene.offset) * scene.scale
    return means


def _square_sums(values: np.ndarray, tops: np.ndarray, lefts: np.ndarray, side: int) -> np.ndarray:
    table = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
    table[1:, 1:] = values.cumsum(axis=0).cumsum(axis=1)
    low, high = table[tops], table[tops + side]
    found: np.ndarray = (high - low)[:, lefts + side] - (high - low)[:, lefts]
    return found
