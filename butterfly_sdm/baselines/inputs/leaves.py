"""In which leaf of which tree a row of numbers ends."""

from collections.abc import Mapping

import numpy as np


def leaves(state: Mapping[str, np.ndarray], values: np.ndarray) -> np.ndarray:
    """
    Return (rows, trees) the node in which each row ends.

    Parameters
    ----------
    state
        ``roots`` (trees,), ``children`` (nodes, 2; left and right, -1 for a leaf), ``feature`` and
        ``threshold`` (nodes,; up to it: left); where numbers may be missing, ``missing_left``.
    values
        (rows, inputs).
    """
    node = np.tile(state["roots"], (len(values), 1))
    row = np.arange(len(values))[:, None]
    while True:
        children = state["children"][node]  # (rows, trees, 2)
        inner = children[..., 0] >= 0
        if not inner.any():
            return node
        seen = values[row, state["feature"][node]]
        left = seen <= state["threshold"][node]
        if "missing_left" in state:
            left = np.where(np.isnan(seen), state["missing_left"][node], left)
        node = np.where(inner, np.where(left, children[..., 0], children[..., 1]), node)
