"""Write the rows that were left out, each with its reason, so that a recorder can look at them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl

from butterfly_sdm.core.files import FORMULA, NUMBER, atomic_path
from butterfly_sdm.errors import RecordsError
from data_prep.records.names import accepted_name, read_name
from data_prep.records.nomenclature import tidy
from data_prep.records.occurrences import GROUPS, Occurrences
from data_prep.records.places.grid_references import GridSquare, square_names
from data_prep.records.rules import REASONS
from data_prep.records.sensitive import SensitiveSpecies

_TEXTS = tuple(
    term for group in ("name", "date", "place", "source", "state") for term in GROUPS[group]
)
_PLACE = GROUPS["place"]


def dropped_rows(
    occurrences: Occurrences,
    reasons: pl.DataFrame,
    *,
    sensitive: SensitiveSpecies | None = None,
    synonyms: dict[str, str] | None = None,
) -> pl.DataFrame:
    """
    Return the rows that were left out.

    Parameters
    ----------
    occurrences
        The records.
    reasons
        ``file``, ``row``, ``reason`` (place in :data:`data_prep.records.rules.REASONS`).
    sensitive
        Species whose places are not told, or only coarsely.
    synonyms
        Recorded name: accepted name; a sensitive species is known by either.

    Returns
    -------
    DataFrame
        ``file`` (name), ``row`` (number in the file, the first row of data being 1), ``reason``,
        the texts of the row as far as the package understands them, ``text`` (the whole row, of a
        malformed one; the first 10,000 of each file).
    """
    parts = occurrences.parts(["file", "row", *GROUPS, "is_event"])
    held = pl.concat(
        part.filter(~pl.col("is_event"))
        .drop("is_event")
        .join(reasons, on=["file", "row"], how="inner")
        for part in parts
    )
    for group, texts in occurrences.dictionaries.items():
        held = held.join(texts.rename({"code": group}), on=group, how="left").drop(group)
    malformed = occurrences.malformed_rows().with_columns(
        pl.lit(REASONS.index("malformed row"), dtype=pl.UInt8).alias("reason")
    )
    held = pl.concat([held, malformed.select("file", "row", "reason", "text")], how="diagonal")
    if sensitive:
        held = _protect(held, sensitive, synonyms or {})
    names = dict(enumerate(occurrences.files))
    # Where a sensitive species is told coarsely its square is a grid reference, whatever the file
    # has.
    told = {*occurrences.columns} | ({"gridReference"} if sensitive else set())
    used = [term for term in _TEXTS if term in held.columns and term in told]
    return held.sort("file", "row").select(
        pl.col("file").replace_strict(names, return_dtype=pl.String),
        "row",
        pl.col("reason").replace_strict(dict(enumerate(REASONS)), return_dtype=pl.String),
        *used,
        "text",
    )


def write_dropped(path: Path, rows: pl.DataFrame) -> None:
    """
    Write rows as Parquet or CSV, by the name of the file.

    Raises
    ------
    RecordsError
        The name ends in neither ``.parquet`` nor ``.csv``.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ".csv"):
        raise RecordsError(
            f"The rows left out can be written as .parquet or .csv; {path.name} is neither."
        )
    with atomic_path(path) as temporary:
        if path.suffix == ".csv":
            formula = pl.col(pl.String).str.contains(f"^{FORMULA.pattern}") & ~pl.col(
                pl.String
            ).str.contains(f"^{NUMBER.pattern}")
            safe = pl.when(formula).then("'" + pl.col(pl.String)).otherwise(pl.col(pl.String))
            rows.with_columns(safe.name.keep()).write_csv(temporary)
        else:
            rows.write_parquet(temporary)


def _protect(
    rows: pl.DataFrame, sensitive: SensitiveSpecies, synonyms: dict[str, str]
) -> pl.DataFrame:
    """Blank or coarsen the places of sensitive species."""
    frame = rows.to_pandas()
    accepted = {accepted_name(species, synonyms): species for species in sensitive.actions}
    names = frame[["scientificName", "species", "taxonRank"]].fillna("")
    unique = names.drop_duplicates()
    meant = {
        tuple(row): accepted.get(read_name(row[0], row[1], row[2], synonyms).accepted)
        or _hinted(f"{row[0]} {row[1]}", accepted)
        for row in unique.itertuples(index=False, name=None)
    }
    species = pd.Series(
        [meant[row] for row in names.itertuples(index=False, name=None)],
        index=frame.index,
        dtype=object,
    )
    told = species.notna()
    squares = {
        index: _square(frame.loc[index], sensitive.size_m(species[index]))
        for index in frame.index[told]
    }
    for term in _PLACE:
        frame.loc[told, term] = ""
    for index, reference in squares.items():
        if reference is None:
            frame.loc[index, ["scientificName", "species"]] = "withheld"
        else:
            frame.loc[index, "gridReference"] = reference
    also = {*sensitive.actions, *accepted, *(s for s, a in synonyms.items() if a in accepted)}
    naming = frame["text"].fillna("").map(lambda text: any(name in text for name in also))
    frame.loc[naming, "text"] = "withheld"
    return pl.from_pandas(
        frame.astype(object).where(frame.notna(), None), schema_overrides=rows.schema
    )


def _hinted(text: str, accepted: dict[str, str]) -> str | None:
    """Return the sensitive species whose words a text holds, such as ``Maculinea cf. arion``."""
    words = set(re.findall(r"[\w-]+", tidy(text).lower()))
    return next((key for name, key in accepted.items() if {*name.lower().split()} <= words), None)


def _square(row: pd.Series, size_m: int | None) -> str | None:
    """
    Return the square in which a row may be told, ``""`` for no readable place, None to withhold it.
    """
    if size_m is None:
        return None
    try:
        return GridSquare.parse(row["gridReference"] or "").coarsen(size_m).reference
    except RecordsError:
        pass
    try:
        lon, lat = float(row["decimalLongitude"]), float(row["decimalLatitude"])
    except (TypeError, ValueError):
        return ""
    known = np.isfinite(lon + lat)
    return square_names(np.array([lon]), np.array([lat]), size_m)[0] if known else ""
