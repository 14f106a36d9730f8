"""What a replay says over all draws: differences in pairs, and how promises held."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

RANDOM, FARTHEST, GAIN = "random", "farthest", "gain"


def paired_interval(values: np.ndarray) -> tuple[float, float, float]:
    """
    Return the mean and the 95 % interval of differences in pairs, by Student's t over draws.

    Parameters
    ----------
    values
        (draws,)

    Examples
    --------
    >>> tuple(round(value, 2) for value in paired_interval(np.array([1.0, 2.0, 3.0])))
    (2.0, -0.48, 4.48)
    """
    from scipy.stats import t

    values = np.asarray(values, float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
    return mean, mean - half, mean + half


def summarised(
    draws: pd.DataFrame, errors: pd.DataFrame
) -> tuple[pd.DataFrame, Mapping[str, float]]:
    """
    Return the table of methods and how promises held.

    Parameters
    ----------
    draws
        One row per draw and method, with ``mse``, ``promised``, ``fallen``, ``found``; several
        random plans of a draw count as their mean.
    errors
        (draws and methods, species) errors, rows as of ``draws``.
    """
    names = draws["method"].str.replace(r"^random \d+$", RANDOM, regex=True)
    keys = [draws["draw"], names.rename("method")]
    numbers = ["mse", "promised", "fallen", "found"]
    mean = draws[numbers].groupby(keys, sort=False).mean()
    per_species = errors.groupby(keys, sort=False).mean()
    tables = {name: mean[name].unstack("method") for name in numbers}
    mse = tables["mse"]
    rows = {}
    for method in mse.columns:
        row: dict[str, float] = {"mse": float(mse[method].mean())}
        for against in (RANDOM, FARTHEST):
            found = paired_interval((mse[method] - mse[against]).to_numpy())
            row |= _named(f"minus_{against}", found)
        ratio = _log_ratio(per_species, method)
        percent = tuple(100 * (np.exp(value) - 1) for value in paired_interval(ratio))
        row |= _named("percent", percent)
        row["draws_better"] = float((mse[method] < mse[RANDOM]).mean())
        row["found"] = float(tables["found"][method].mean())
        rows[method] = row
    summary = pd.DataFrame(rows).T.rename_axis("method").sort_values("mse")
    promised, fallen = tables["promised"], tables["fallen"]
    kept = paired_interval((fallen[GAIN] / promised[GAIN]).to_numpy())
    r = np.corrcoef(promised.to_numpy().ravel(), fallen.to_numpy().ravel())[0, 1]
    return summary, {"r": float(r)} | _named("kept", kept)


def _log_ratio(errors: pd.DataFrame, method: str) -> np.ndarray:
    """
    Return (draws,) the mean over species of the logarithm of the error over that of random sites;
    species that a draw holds no error of are left out of it.
    """
    own = errors.xs(method, level="method").to_numpy()
    other = errors.xs(RANDOM, level="method").to_numpy()
    known = (own > 1e-9) & (other > 1e-9)
    ratio = np.log(np.where(known, own, 1.0) / np.where(known, other, 1.0))
    return np.asarray(ratio.sum(axis=1) / np.maximum(known.sum(axis=1), 1))


def _named(name: str, found: tuple[float, ...]) -> dict[str, float]:
    mean, low, high = (float(value) for value in found)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}
