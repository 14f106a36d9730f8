"""What baselines of older releases see, as far as their cards say."""

from collections.abc import Mapping, Sequence
from typing import Any

from butterfly_sdm.baselines.inputs.numbers import PLACE, STATISTICS
from butterfly_sdm.data.predictor import UNKNOWN_CRS, Sees

PLACED = {"regional_rate", "nearest_sites", "gaussian_process", "perceptron"}


def sees_of_0_1_0(kind: str, settings: Mapping[str, Any], inputs: Sequence[str]) -> Sees:
    """
    Return what a baseline of release 0.1.0 sees; the size of tiles and pixels and the CRS of
    positions, which it did not keep, are marked as unknown.

    Parameters
    ----------
    inputs
        Names of the numbers per site it was fitted to: covariates, position, statistics of bands;
        for random features the bands themselves.
    """
    names, bands = list(inputs), list[str]()
    if kind == "random_features":
        names, bands = [], names
    while settings.get("bands") and names and names[-1].endswith(f"_{STATISTICS[-1]}"):
        bands.insert(0, names[-1].removesuffix(f"_{STATISTICS[-1]}"))
        del names[-len(STATISTICS) :]
    placed = settings.get("position", kind in PLACED)
    return Sees(
        bands=tuple(band for band in bands if band != "ndvi"),
        covariates=tuple(name for name in names if not (placed and name in PLACE)),
        position_crs=UNKNOWN_CRS if placed else None,
        needs_tile=bool(bands),
    )
