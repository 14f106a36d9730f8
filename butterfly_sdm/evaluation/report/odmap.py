"""
The ODMAP protocol of a species distribution model, filled in from the card and the config (Zurell
et al. 2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.splits import Split
from butterfly_sdm.evaluation.scores import Scores

TO_FILL = "to be filled in by the author"


def odmap(
    dataset: Dataset,
    *,
    model: Mapping[str, Any],
    split: Split,
    scores: Scores,
    config: Mapping[str, Any] | None = None,
    uncertainty: str | None = None,
) -> pd.DataFrame:
    """
    Return the protocol as a table.

    What card, config and scores know is filled in; what only the author can know says so.

    Parameters
    ----------
    model
        Content of ``model.json``.
    config
        The resolved config of the run.
    uncertainty
        How uncertainty was quantified, in words.

    Returns
    -------
    DataFrame
        Columns ``section``, ``element``, ``content``.

    References
    ----------
    .. [1] D. Zurell et al. (2020), A standard protocol for reporting species distribution models.
           Ecography 43, 1261-1277.
    """
    card = dataset.card
    build = dict((config or {}).get("build") or {})
    records = dict(build.get("records") or {})
    train = dict((config or {}).get("train") or {})
    sites = dataset.sites
    east, north = sites["easting"], sites["northing"]
    years = f"{min(card.years)} to {max(card.years)}" if card.years else "all years of the records"
    visits = dataset.visits[dataset.visits > 0]
    tiles = card.tiles
    covariates = (
        [] if dataset.covariates is None else [str(name) for name in dataset.covariates.columns]
    )
    image = (
        "none"
        if tiles is None
        else f"tiles of {tiles.size_px} x {tiles.size_px} px at {tiles.resolution_m:g} m, bands "
        f"{', '.join(tiles.bands)}"
    )
    numbers = (
        "none"
        if not covariates
        else f"{len(covariates)}: "
        f"{', '.join(covariates[:12])}{' ...' if len(covariates) > 12 else ''}"
    )
    filters = {
        key: records[key]
        for key in ("institutions", "years", "min_records", "min_visits", "max_footprint_deg2")
        if records.get(key) not in (None, (), [])
    }
    sources = "; ".join(
        f"{source.name} ({source.role}{f', {source.licence}' if source.licence else ''})"
        for source in card.sources
    )
    settings = model.get("settings") or train.get("model") or {}
    rows = [
        ("Overview", "Authorship", TO_FILL),
        (
            "Overview",
            "Objective",
            "prediction of detection rates at unsurveyed places, and their map",
        ),
        (
            "Overview",
            "Focal taxa",
            f"{len(card.species)} species: "
            f"{', '.join(card.species[:6])}{' ...' if len(card.species) > 6 else ''}",
        ),
        (
            "Overview",
            "Location",
            f"easting {east.min():,.0f} to {east.max():,.0f} m, northing {north.min():,.0f} to "
            f"{north.max():,.0f} m ({card.position_crs})",
        ),
        (
            "Overview",
            "Scale of analysis",
            f"{years}; grain: the survey sites and the tile around each",
        ),
        (
            "Overview",
            "Biodiversity data",
            f"{len(sites):,} sites, {int(visits.sum()):,} visits, counts of visits with a "
            "detection",
        ),
        (
            "Overview",
            "Assumptions",
            "visits to a site are alike; what was not recorded on a visit was not detected; "
            "detection is part of the rate; sites are where surveyors chose to go",
        ),
        (
            "Overview",
            "Algorithm",
            f"{model.get('kind', 'unknown')} ({_words(settings)})"
            if settings
            else str(model.get("kind", "unknown")),
        ),
        (
            "Overview",
            "Software",
            ", ".join(f"{name} {version}" for name, version in card.software.items())
            or "butterfly_sdm",
        ),
        ("Data", "Source of records", sources or TO_FILL),
        ("Data", "Sampling design", "repeated visits to fixed sites; " + TO_FILL),
        (
            "Data",
            "Sample size",
            f"{int(visits.min())} to {int(visits.max())} visits per site, median "
            f"{visits.median():g}",
        ),
        ("Data", "Cleaning and filtering", _words(filters) or "none beyond the defaults"),
        ("Data", "Rows dropped", _words(card.rows) or "not recorded"),
        ("Data", "Absences", "true non-detections on visits; no pseudo-absences"),
        (
            "Data",
            "Partitioning",
            f"{len(split.train)} training, {len(split.validation)} validation, {len(split.test)} "
            f"test sites; {split.method}",
        ),
        ("Data", "Imagery", image),
        ("Data", "Covariates", numbers),
        ("Data", "Known errors and warnings", "; ".join(card.warnings) or "none noted"),
        (
            "Model",
            "Selection of variables",
            "none: all bands and covariates of the data set that the model takes",
        ),
        ("Model", "Settings", _words(settings) or "defaults"),
        (
            "Model",
            "Fit",
            _words(train.get("fit") or {})
            if model.get("kind") in ("network", "ensemble")
            else "see settings",
        ),
        (
            "Model",
            "Spatial autocorrelation",
            "not modelled unless position is an input; parts of the split are groups of "
            "neighbouring sites",
        ),
        (
            "Assessment",
            "Performance on held-out sites",
            f"MSE {scores['mse']:.5f} (noise floor {scores['noise_floor']:.5f}), AUC "
            f"{scores['auc']:.3f}, TSS {scores['tss']:.3f} at the threshold of largest TSS on the "
            f"same sites, Boyce {scores['boyce']:.3f}",
        ),
        ("Assessment", "Plausibility", TO_FILL),
        (
            "Prediction",
            "Output",
            "presence probability per species: the expected share of visits with a detection",
        ),
        ("Prediction", "Uncertainty", uncertainty or "not quantified"),
    ]
    return pd.DataFrame(rows, columns=["section", "element", "content"])


def _words(value: Mapping[str, Any]) -> str:
    """Return a mapping as ``key value, key value``, nested ones in brackets."""
    return ", ".join(
        f"{str(key).replace('_', ' ')} ({_words(item)})"
        if isinstance(item, Mapping)
        else f"{str(key).replace('_', ' ')} {_plain(item)}"
        for key, item in value.items()
        if item is not None and item != {}
    )


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
