"""Check a dense map against the same network, window by window, at random positions."""

from __future__ import annotations

from typing import Any

import numpy as np

from butterfly_sdm.core.block_store import Store
from butterfly_sdm.mapping.surfaces.exact import WindowSurface
from butterfly_sdm.progress import Progress, silent

CHUNK = 25


def audit_positions(
    surface: Any,
    exact: WindowSurface,
    store: Store,
    *,
    count: int,
    seed: int,
    progress: Progress = silent,
) -> dict[str, float]:
    """
    Predict random positions again, window by window, and compare.

    Returns
    -------
    dict
        ``positions``, and over all of them and all species ``mean_abs``, ``p99_abs`` and
        ``max_abs`` difference in probability and the ``correlation``. Empty if nothing is predicted
        anywhere.
    """
    places = predicted_positions(surface, store)
    if not len(places):
        return {}
    picked = np.random.default_rng(seed).choice(len(places), min(count, len(places)), replace=False)
    places = places[np.sort(picked)]  # neighbours share pixels
    dense = np.empty((len(places), len(surface.species)), dtype=np.float64)
    for row in np.unique(places[:, 0]):
        here = places[:, 0] == row
        strip = surface.strip(store, slice(int(row), int(row) + 1))
        dense[here] = strip.probability[:, 0, places[here, 1]].T
    again = np.empty_like(dense)
    predictor = exact.handle.predictor
    for start in range(0, len(places), CHUNK):
        part = places[start : start + CHUNK]
        sites = exact.sites(part[:, 0], part[:, 1])
        again[start : start + CHUNK] = predictor.predict(sites, sites.site_ids).to_numpy()
        progress("audit", min(start + CHUNK, len(places)), len(places))
    return differences(dense, again)


def audit_engine(surface: Any, *, blocks: int = 4, seed: int = 0) -> dict[str, float]:
    """
    Compare an engine of fewer digits with PyTorch in float32 on random blocks.

    Returns
    -------
    dict
        For int8 ``int8_mean_abs``, ``int8_p999_abs`` and ``int8_max_abs`` difference in probability
        over the windows inside the blocks; for fp16 likewise.
    """
    units = surface.all_units()
    picked = np.random.default_rng(seed).choice(len(units), min(blocks, len(units)), replace=False)
    apart = [
        part
        for number in picked
        if (part := surface.engine_difference(units[int(number)])) is not None
    ]
    if not apart:
        return {}
    whole = np.concatenate(apart)
    digits = surface.engine.name.rpartition("-")[2]
    return {
        f"{digits}_mean_abs": float(whole.mean()),
        f"{digits}_p999_abs": float(np.percentile(whole, 99.9)),
        f"{digits}_max_abs": float(whole.max()),
    }


def differences(dense: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Return how far two sets of predictions (positions, species) are apart."""
    apart = np.abs(dense - exact)
    varies = dense.std() > 0 and exact.std() > 0
    return {
        "positions": float(len(dense)),
        "mean_abs": float(apart.mean()),
        "p99_abs": float(np.percentile(apart, 99)),
        "max_abs": float(apart.max()),
        "correlation": float(np.corrcoef(dense.ravel(), exact.ravel())[0, 1]) if varies else 1.0,
    }


def predicted_positions(surface: Any, store: Store) -> np.ndarray:
    """Return (n, 2) rows and columns of all positions that have a value."""
    fraction = surface.fractions(store)
    good = surface.wanted & (fraction > 0) & (fraction >= surface.min_valid_fraction)
    return np.argwhere(good)
