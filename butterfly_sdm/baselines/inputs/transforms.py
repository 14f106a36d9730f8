"""Turn position and covariates into groups of comparable numbers, one group per kernel."""

from collections.abc import Sequence

import numpy as np

from butterfly_sdm.baselines.inputs.numbers import positions
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import DataError

SKEWNESS = 1.0  # positive covariates more skewed than this are taken as logarithms
ROUNDING = 1e-6  # sums of fractions may exceed 1 by this
HERE = 1e-5  # nearer sites are the same place, units of 100 km
CHUNK_ROWS = 2048


def position_km(dataset: Dataset, sites: Sequence[str]) -> np.ndarray:
    """Return (sites, 2) easting and northing in units of 100 km."""
    return positions(dataset, sites) / 1e5


def group_columns(columns: Sequence[str], prefixes: Sequence[str]) -> dict[str, list[str]]:
    """
    Divide covariates by the start of their names; what no prefix takes is the group ``"other"``.

    Raises
    ------
    DataError
        A prefix takes no column.

    >>> group_columns(["bioclim_01", "roads"], ["bioclim_"])
    {'bioclim_': ['bioclim_01'], 'other': ['roads']}
    """
    groups: dict[str, list[str]] = {}
    left = list(columns)
    for prefix in prefixes:
        taken = [name for name in left if name.startswith(prefix)]
        if not taken:
            raise DataError(
                f"No covariate begins with {prefix!r}; there are "
                f"{', '.join(map(str, columns[:5])) or 'none'}{' …' if len(columns) > 5 else ''}. "
                "Name other groups, or build the data set with these covariates."
            )
        groups[prefix] = taken
        left = [name for name in left if name not in set(taken)]
    if left:
        groups["other"] = left
    return groups


def split_columns(values: np.ndarray, sizes: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """Divide joined columns into groups of these sizes; no group has no part."""
    return np.split(values, np.cumsum(sizes)[:-1], axis=1) if len(sizes) else []


def transform_codes(values: np.ndarray) -> np.ndarray:
    """
    Choose for each column what makes its values comparable.

    Returns
    -------
    array of int, shape (columns,)
        0: as it is; 1: square root (fractions); 2: log(1 + x) (positive and very skewed).
    """
    low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    spread = np.nanstd(values, axis=0)
    centred = values - np.nanmean(values, axis=0)
    skewness = np.nanmean(centred**3, axis=0) / np.maximum(spread, 1e-12) ** 3
    codes = np.zeros(values.shape[1], dtype=np.int64)
    codes[(low >= 0) & (skewness > SKEWNESS)] = 2
    codes[(low >= 0) & (high <= 1 + ROUNDING)] = 1
    return codes


def transformed(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """
    Apply :func:`transform_codes`; negative values, which the training sites do not have, count as
    0.
    """
    positive = np.maximum(values, 0.0)
    return np.where(codes == 1, np.sqrt(positive), np.where(codes == 2, np.log1p(positive), values))


def fill_from_nearest(
    values: np.ndarray, position: np.ndarray, known: np.ndarray, at: np.ndarray
) -> np.ndarray:
    """
    Replace what is missing in each column by the value of the nearest place that has one; 0 where
    none has.

    Parameters
    ----------
    values, position
        (rows, columns) with NaN and (rows, 2).
    known, at
        (places, columns), possibly with NaN, and (places, 2).
    """
    from scipy.spatial import KDTree

    out = values.copy()
    for column in np.flatnonzero(np.isnan(values).any(axis=0)):
        missing, there = np.isnan(values[:, column]), ~np.isnan(known[:, column])
        out[missing, column] = 0.0
        if there.any():
            _, nearest = KDTree(at[there]).query(position[missing])
            out[missing, column] = known[there, column][nearest]
    return out


def log_counts(places: np.ndarray, position: np.ndarray, radii_km: Sequence[float]) -> np.ndarray:
    """
    Return the logarithm of 1 + how many other places lie within each distance of each position.

    Parameters
    ----------
    places, position
        (places, 2) and (rows, 2), in units of 100 km.

    Returns
    -------
    array of shape (rows, radii)

    >>> places = np.array([[0.0, 0.0], [0.0, 0.02]])
    >>> log_counts(places, places[:1], [1.0, 3.0]).round(2).tolist()
    [[0.0, 0.69]]
    """
    from scipy.spatial import KDTree

    tree = KDTree(places)
    here = tree.query_ball_point(position, HERE, return_length=True)
    counts = [
        tree.query_ball_point(position, radius / 100, return_length=True) - here
        for radius in radii_km
    ]
    return np.asarray(np.log1p(np.column_stack(counts)))


def mean_around(
    values: np.ndarray, at: np.ndarray, position: np.ndarray, *, sd: float
) -> np.ndarray:
    """
    Return the mean of ``values`` at the places around each position, weighted by a bell curve of
    distance.

    A place at the position itself does not count, so that a site is described by others. Far from
    all places it is the value of the nearest.

    Parameters
    ----------
    values, at
        (places, columns) and (places, 2).
    position
        (rows, 2).
    sd
        Standard deviation of the bell curve, in units of position.

    Returns
    -------
    array of shape (rows, columns)
        0 where there is no other place.
    """
    out = np.zeros((len(position), values.shape[1]))
    for start in range(0, len(position), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        square = ((position[rows, None] - at[None]) ** 2).sum(axis=2)  # (rows, places)
        square[square < HERE**2] = np.inf
        nearest = square.min(axis=1, keepdims=True)
        weight = np.exp((np.where(np.isfinite(nearest), nearest, 0.0) - square) / (2 * sd**2))
        out[rows] = weight @ values / np.maximum(weight.sum(axis=1, keepdims=True), 1e-300)
    return out
