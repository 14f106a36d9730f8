"""Principal components of a group of covariates, by the training sites."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from butterfly_sdm.data.groups import chosen_covariates


def fit_components(table: pd.DataFrame, group: str, count: int) -> dict[str, np.ndarray]:
    """
    Return the centre (columns,) and the leading axes (columns, components) of a group of columns.

    The axes are divided by the spread of the first component: all keep one scale, since the leading
    ones of an embedding say most.

    Parameters
    ----------
    table
        (sites, columns) of the training sites; missing numbers count as the mean.
    group
        As in :func:`~butterfly_sdm.data.groups.chosen_covariates`.

    Raises
    ------
    DataError
        The table has no such column.
    """
    values = table[list(chosen_covariates(list(table.columns), group))].to_numpy(float)
    known = np.isfinite(values)
    centre = np.where(known, values, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    values = np.where(known, values - centre, 0)
    axes = principal_axes(values, count)
    # the sign of an axis is arbitrary: its largest entry is above 0
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]
    return {"component_centre": centre, "component_axes": axes * np.sign(largest)}


def principal_axes(values: np.ndarray, count: int) -> np.ndarray:
    """
    Return the leading axes (columns, axes) of centred values, divided by the spread of the first
    component.
    """
    _, _, axes = np.linalg.svd(values, full_matrices=False)
    scaled: np.ndarray = axes[:count].T / max(float((values @ axes[0]).std()), 1e-9)
    return scaled


def with_components(
    table: pd.DataFrame, group: str, state: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """
    Return a table in which the components take the place of a group; NaN where the whole group is
    missing.
    """
    names = list(chosen_covariates(list(table.columns), group))
    values = table[names].to_numpy(float)
    missing = ~np.isfinite(values)
    centred = np.where(missing, 0, values - state["component_centre"])
    found = centred @ state["component_axes"]
    found[missing.all(axis=1)] = np.nan
    columns = [f"{group.rstrip('_*')}_pc{number}" for number in range(1, found.shape[1] + 1)]
    parts = [table.drop(columns=names), pd.DataFrame(found, table.index, columns)]
    return pd.concat(parts, axis=1)
