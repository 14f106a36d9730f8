"""Check a dense map against the same network, window by window, at random positions."""

from __future__ import annotations

import numpy as np

from butterfly_sdm.mapping.surfaces.filled import FilledSurface
from butterfly_sdm.progress import Progress

CHUNK = 25


def audit_positions(
    filled: FilledSurface, *, count: int, seed: int, progress: Progress
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
    positions = filled.positions
    everywhere = slice(None)
    places = np.argwhere(positions.measured(filled.fractions(), everywhere, everywhere))
    if not len(places):
        return {}
    picked = np.random.default_rng(seed).choice(len(places), min(count, len(places)), replace=False)
    places = places[np.sort(picked)]  # neighbours share pixels
    if positions.covariates:
        places = places[positions.described(places[:, 0], places[:, 1])]
        if not len(places):
            return {}
    predictor = positions.predictor
    dense = np.empty((len(places), len(predictor.species)), dtype=np.float64)
    for row in np.unique(places[:, 0]):
        here = places[:, 0] == row
        strip = filled.strip(slice(int(row), int(row) + 1))
        dense[here] = strip.probability[:, 0, places[here, 1]].T
    again = np.empty_like(dense)
    for start in range(0, len(places), CHUNK):
        part = places[start : start + CHUNK]
        sites = positions.sites(part[:, 0], part[:, 1], tiles=True)
        again[start : start + CHUNK] = predictor.predict(sites, sites.site_ids).to_numpy()
        progress("audit", min(start + CHUNK, len(places)), len(places))
    return differences(dense, again)


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
