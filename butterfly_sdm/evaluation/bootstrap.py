"""
Intervals for means over sites whose neighbours are alike: whole blocks are drawn again, not single
sites.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from butterfly_sdm.errors import DataError


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval that holds its true value at the confidence ``level``."""

    estimate: float
    low: float
    high: float
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.estimate:.3g} [{self.low:.3g}, {self.high:.3g}]"


def grid_blocks(sites: pd.DataFrame, *, side_m: float = 20_000.0) -> pd.Series:
    """Return the grid square of each site, as text ``"east_north"`` in units of ``side_m``."""
    east, north = (
        np.floor(sites[name].to_numpy(dtype=float) / side_m).astype(int)
        for name in ("easting", "northing")
    )
    return pd.Series(
        [f"{e}_{n}" for e, n in zip(east, north, strict=True)], index=sites.index, name="block"
    )


def bootstrap_blocks(sites: pd.DataFrame) -> pd.Series:
    """
    Return the blocks of sites for a bootstrap: squares of 20 km, smaller in a region so small that
    they would be fewer than 20.
    """
    blocks = grid_blocks(sites)
    if blocks.nunique() >= 20:
        return blocks
    extent = max(np.ptp(sites["easting"]), np.ptp(sites["northing"]), 1.0)
    return grid_blocks(sites, side_m=extent / 7)


def block_means(
    values: np.ndarray, blocks: np.ndarray | pd.Series, *, repeats: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, int]:
    """
    Return the mean over sites and its bootstrap replicates when blocks are drawn with replacement.

    Parameters
    ----------
    values
        (sites,) or (sites, columns).
    blocks
        (sites,) label of the block of each site.

    Returns
    -------
    mean
        () or (columns,).
    replicates
        (repeats,) or (repeats, columns).
    blocks
        How many there are.

    Raises
    ------
    DataError
        There are fewer than two blocks, or the lengths differ.

    References
    ----------
    .. [1] A. C. Davison, D. V. Hinkley (1997), Bootstrap Methods and their Application, section
           3.8.
    """
    if len(values) != len(blocks):
        raise DataError(f"{len(values)} values and {len(blocks)} blocks do not belong together.")
    _, block_of = np.unique(np.asarray(blocks), return_inverse=True)
    count = int(block_of.max()) + 1 if len(block_of) else 0
    if count < 2:
        raise DataError(
            f"The sites lie in {count} block; an interval needs at least 2. Make blocks smaller."
        )
    sums = np.zeros((count, *values.shape[1:]))
    np.add.at(sums, block_of, values)
    sizes = np.bincount(block_of, minlength=count)
    # (repeats, blocks)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=repeats)
    totals = drawn @ sizes
    replicates = (drawn @ sums) / (totals if values.ndim == 1 else totals[:, None])
    return values.mean(axis=0), replicates, count


def percentile_interval(replicates: np.ndarray, blocks: int, *, level: float = 0.95) -> np.ndarray:
    """
    Return (2,) or (2, columns) the ends of the interval of bootstrap replicates.

    Percentiles widened for the number of blocks as a t interval is (Hesterberg 2015, section 5.3):
    the plain ones are too narrow by a factor of about sqrt((blocks - 1) / blocks) and more.
    """
    tail = stats.norm.cdf(np.sqrt(blocks / (blocks - 1)) * stats.t.ppf((1 - level) / 2, blocks - 1))
    return np.asarray(np.quantile(replicates, [tail, 1 - tail], axis=0))


def mean_interval(
    values: np.ndarray,
    blocks: np.ndarray | pd.Series,
    *,
    repeats: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return the mean of ``values`` (sites,) with the interval of the block bootstrap."""
    mean, replicates, count = block_means(values, blocks, repeats=repeats, seed=seed)
    low, high = percentile_interval(replicates, count, level=level)
    return Interval(float(mean), float(low), float(high), level)
