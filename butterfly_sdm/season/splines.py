"""Smooth curves over the year: cubic B-splines with a penalty on second differences [1]_.

References
----------
.. [1] P. H. C. Eilers, B. D. Marx (1996), Flexible smoothing with B-splines and penalties.
       Statistical Science 11, 89-121.
"""

import numpy as np


def cyclic_basis(x: np.ndarray, period: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Return splines whose end joins their beginning.

    Returns
    -------
    basis, penalty
        (len(x), count), rows sum to 1; (count, count) of the squared second differences.
    """
    from scipy.interpolate import BSpline

    step = period / count
    knots = np.arange(-3, count + 4) * step
    wide = BSpline.design_matrix(np.mod(x, period), knots, 3).toarray()  # (n, count + 3)
    basis = wide[:, :count].copy()
    basis[:, :3] += wide[:, count:]
    unit = np.eye(count)
    second = unit - 2 * np.roll(unit, 1, axis=1) + np.roll(unit, 2, axis=1)
    return basis, second.T @ second


def open_basis(x: np.ndarray, low: float, high: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the same for a stretch of the year from ``low`` to ``high``."""
    from scipy.interpolate import BSpline

    step = (high - low) / (count - 3)
    knots = low + step * np.arange(-3, count + 1)
    basis = BSpline.design_matrix(np.clip(x, low, high - 1e-9), knots, 3).toarray()
    second = np.diff(np.eye(count), 2, axis=0)
    return basis, second.T @ second
