"""
The ODMAP protocol of a species distribution model, filled in from the card and the config (Zurell
et al. 2020).
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd

from butterfly_sdm.data.dataset import DatasetCard
from butterfly_sdm.evaluation.report.findings import Findings

TO_FILL = "to be filled in by the author"
FILTERS = ("institutions", "years", "min_records", "min_visits", "max_footprint_deg2")


def odmap(findings: Findings) -> pd.DataFrame:
    """
    Return the protocol as a table.

    What card, config and scores know is filled into the texts of ``odmap.tsv``; what only the
    author can know says so.

    Returns
    -------
    DataFrame
        Columns ``section``, ``element``, ``content``.

    References
    ----------
    .. [1] D. Zurell et al. (2020), A standard protocol for reporting species distribution models.
           Ecography 43, 1261-1277.
    """
    floor = findings.scores["noise_floor"]
    known = {
        "to_fill": TO_FILL,
        **_of_data(findings),
        **_of_model(findings),
        "absences": _absences(findings),
        "floor": f" (noise floor {floor:.5f})" if np.isfinite(floor) else "",
        **{key: findings.scores[key] for key in ("mse", "auc", "tss", "boyce")},
    }
    with files(__package__).joinpath("odmap.tsv").open(encoding="utf-8") as texts:
        table = pd.read_csv(texts, sep="\t")
    return table.assign(content=[text.format(**known) for text in table["content"]])


def _of_data(findings: Findings) -> dict[str, Any]:
    dataset, split = findings.dataset, findings.split
    card, sites, covariates = dataset.card, dataset.sites, dataset.covariates
    east, north = sites["easting"], sites["northing"]
    visits = dataset.visits[dataset.visits > 0]
    records = ((findings.config.get("build") or {}).get("records")) or {}
    filters = {key: records[key] for key in FILTERS if records.get(key) not in (None, (), [])}
    sources = (
        f"{source.name} ({source.role}{f', {source.licence}' if source.licence else ''})"
        for source in card.sources
    )
    columns = [] if covariates is None else list(map(str, covariates.columns))
    return {
        "species": f"{len(card.species)} species: {_first(card.species, 6)}",
        "location": f"easting {east.min():,.0f} to {east.max():,.0f} m, northing "
        f"{north.min():,.0f} to {north.max():,.0f} m ({card.position_crs})",
        "years": f"{min(card.years)} to {max(card.years)}"
        if card.years
        else "all years of the records",
        "sites": len(sites),
        "visits": int(visits.sum()),
        "fewest": int(visits.min()),
        "most": int(visits.max()),
        "median": visits.median(),
        "software": ", ".join(f"{name} {version}" for name, version in card.software.items())
        or "butterfly_sdm",
        "sources": "; ".join(sources) or TO_FILL,
        "filters": _words(filters) or "none beyond the defaults",
        "dropped": _words(card.rows) or "not recorded",
        "train": len(split.train),
        "validation": len(split.validation),
        "test": len(split.test),
        "method": split.method,
        "image": _image(card),
        "covariates": f"{len(columns)}: {_first(columns, 12)}" if columns else "none",
        "warnings": "; ".join(card.warnings) or "none noted",
    }


def _absences(findings: Findings) -> str:
    """Return what a visit without a species means, by the rules its records were counted by."""
    rules = (findings.config.get("build") or {}).get("records") or {}
    scheme = rules.get("scheme")
    if scheme == "complete" or rules.get("complete_only"):
        return (
            "non-detections on complete checklists, which name every species seen; no "
            "pseudo-absences"
        )
    if scheme == "event" or rules.get("visit") == "event":
        return (
            "non-detections on survey events; whether events with nothing seen are among them only "
            f"their source can tell ({TO_FILL}); no pseudo-absences"
        )
    return (
        "inferred: on a visit with a record, species that were not recorded count as not detected; "
        "records do not tell of visits on which nothing was seen, so rates are upper bounds; no "
        "pseudo-absences"
    )


def _of_model(findings: Findings) -> dict[str, str]:
    model, train = findings.model, findings.config.get("train") or {}
    settings = _words(model.get("settings") or train.get("model") or {})
    kind = model.get("kind", "unknown")
    is_network = kind in ("network", "ensemble")
    uncertainty = "not quantified"
    if findings.coverage is not None:
        held = findings.coverage.loc["all", "coverage"]
        uncertainty = (
            f"split-conformal 90 % intervals per species, covering {held:.1%} of held-out rates; "
            "block bootstrap of scores"
        )
    return {
        "algorithm": f"{kind} ({settings})" if settings else str(kind),
        "settings": settings or "defaults",
        "fit": _words(train.get("fit") or {}) if is_network else "see settings",
        "uncertainty": uncertainty,
    }


def _image(card: DatasetCard) -> str:
    if (tiles := card.tiles) is None:
        return "none"
    return (
        f"tiles of {tiles.size_px} x {tiles.size_px} px at {tiles.resolution_m:g} m, bands "
        f"{', '.join(tiles.bands)}"
    )


def _first(names: Sequence[str], count: int) -> str:
    return f"{', '.join(names[:count])}{' ...' if len(names) > count else ''}"


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
