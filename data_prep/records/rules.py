"""Judge every row of the records by rules about its place, date, name, source and status."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import geopandas as gpd
import numpy as np
import polars as pl

from butterfly_sdm.errors import RecordsError
from data_prep.records import dates as date_rules
from data_prep.records import places as place_rules
from data_prep.records.names import Name, read_name
from data_prep.records.occurrences import GROUPS, Occurrences
from data_prep.records.places import PlaceRules, Places, resolve_places
from data_prep.records.schemes import SCHEMES, RecordingScheme
from data_prep.records.sensitive import SensitiveSpecies

REASONS = (
    "",
    "malformed row",
    "duplicate record",
    "another institution",
    *place_rules.REASONS[1:],
    *date_rules.REASONS[1:],
    "outside the years",
    "outside the season",
    "absence not counted",
    "unknown status",
    "incomplete list",
    "footprint too large",
    "too few records at the site",
    "not a listed site",
    "rank above species",
    "species aggregate",
    "double recording",
    "list too short",
    "too few visits to the site",
)
"""
Why a row is left out, in the order in which the reasons are tried; the place in the tuple is the
code.
"""

_PLACE_OFFSET = REASONS.index(place_rules.REASONS[1]) - 1
_DATE_OFFSET = REASONS.index(date_rules.REASONS[1]) - 1
_FIRST = ("source", "place", "date", "state")
_PRESENT = {"", "PRESENT", "P", "TRUE", "YES", "1", "DETECTED", "OBSERVED"}
_ABSENT = {"ABSENT", "A", "FALSE", "NO", "0", "NOT DETECTED", "NOTDETECTED", "NOT OBSERVED"}
_COMPLETE = {"TRUE", "T", "YES", "Y", "1", "COMPLETE", "REPORTEDCOMPLETE"}


@dataclass(frozen=True)
class SurveyRules:
    """
    Which records and sites count.

    Attributes
    ----------
    scheme
        What a visit is.
    places
        What a site is.
    institutions
        Institution codes to keep; empty: all.
    years
        First and last year; None: all.
    min_records
        Fewest record rows of a site.
    min_visits
        Fewest visits of a site.
    max_footprint_deg2
        Largest footprint, square degrees.
    species
        Species to keep, in order; None: all that were detected, by name. Records of others still
        show that somebody looked.
    synonyms
        Recorded name: accepted name.
    day_first
        Whether 3/6/2018 is the third of June; None: as the file or its other dates tell.
    double_recording
        ``drop`` visits that another scheme tells as well, or ``keep`` them.
    sensitive
        Species that are withheld, or told only as sums over squares.
    """

    scheme: RecordingScheme = SCHEMES["ukbms"]
    places: PlaceRules = field(default_factory=PlaceRules)
    institutions: tuple[str, ...] = ()
    years: tuple[int, int] | None = None
    min_records: int = 200
    min_visits: int = 1
    max_footprint_deg2: float | None = None
    species: tuple[str, ...] | None = None
    synonyms: dict[str, str] = field(default_factory=dict)
    day_first: bool | None = None
    double_recording: Literal["drop", "keep"] = "drop"
    sensitive: SensitiveSpecies = field(default_factory=SensitiveSpecies)


@dataclass(frozen=True)
class Verdicts:
    """
    The records with a verdict on each row.

    Attributes
    ----------
    rows
        The good rows: ``file``, ``row`` where wanted; ``site`` (row of ``places.footprints``),
        ``day``, ``event`` where that is a visit, ``taxon`` (place in ``taxa``, -1 for none),
        ``present``, ``source_number`` (scheme); ``is_event`` (a survey, not a record);
        ``rank_reason`` (place in :data:`REASONS`, of rules that come after those about sites, 0 for
        none).
    dropped
        How many other records there are, by reason.
    dropped_rows
        ``file``, ``row``, ``reason`` (place in :data:`REASONS`) of the other records, where wanted.
    taxa
        Accepted names.
    names
        What each entry of the dictionary of names means: ``accepted``, ``recorded``.
    places
        The sites.
    """

    occurrences: Occurrences
    rows: pl.DataFrame
    dropped: np.ndarray
    dropped_rows: pl.DataFrame | None
    taxa: tuple[str, ...]
    names: pl.DataFrame
    places: Places

    @classmethod
    def of(
        cls,
        occurrences: Occurrences,
        rules: SurveyRules,
        sites: gpd.GeoDataFrame | None = None,
        *,
        numbered: bool = True,
    ) -> Verdicts:
        """
        Judge the rows of ``occurrences`` by all rules that need no other row; ``numbered`` keeps
        ``file`` and ``row``.

        Raises
        ------
        RecordsError
            The records name no places.
        """
        if not set(GROUPS["place"]) & occurrences.columns:
            raise RecordsError(
                "The records name no places: no file has coordinates, a footprint or a grid "
                "reference."
            )
        texts = occurrences.dictionaries
        places = resolve_places(texts["place"], rules.places, sites)
        day_first = rules.day_first if rules.day_first is not None else occurrences.day_first
        names, taxa = _judge_names(texts["name"], rules)
        judged = {
            "source": _judge_sources(texts["source"], rules),
            "place": places.codes.with_columns(_offset("place_reason", _PLACE_OFFSET)),
            "date": _judge_dates(texts["date"], rules, day_first),
            "state": _judge_states(texts["state"], rules.scheme),
            "name": names.drop("accepted", "recorded"),
        }
        told = {group: _by_code(table) for group, table in judged.items()}
        has_events = occurrences.core == "event"
        kept = [
            *(["file", "row"] if numbered else []),
            *(["event"] if rules.scheme.visit == "event" else []),
        ]
        columns = [*kept, *GROUPS, *(["is_event"] if has_events else [])]
        counts = np.zeros(len(REASONS), dtype=np.int64)
        good_parts, bad_parts, before = [], [], 0
        for part in occurrences.parts(columns):
            codes = {group: part[group].to_numpy() for group in GROUPS}
            is_event = (
                part["is_event"].to_numpy() if has_events else np.zeros(len(part), dtype=bool)
            )
            reason = np.zeros(len(part), dtype=np.uint8)
            for group in _FIRST:
                of_text = told[group][f"{group}_reason"]
                if of_text.any():
                    np.copyto(reason, of_text[codes[group]], where=reason == 0)
            first, last = np.searchsorted(occurrences.again, (before, before + len(part)))
            reason[occurrences.again[first:last] - before] = REASONS.index("duplicate record")
            before += len(part)
            bad = (reason != 0) & ~is_event
            counts += np.bincount(reason[bad], minlength=len(REASONS))
            if numbered:
                bad_parts.append(
                    part.select("file", "row")
                    .with_columns(pl.Series("reason", reason))
                    .filter(pl.Series(bad))
                )
            good = np.flatnonzero(reason == 0)
            place, date, state, name, source = (
                codes[group][good] for group in ("place", "date", "state", "name", "source")
            )
            is_event = is_event[good]
            good_parts.append(
                pl.DataFrame(
                    {column: part[column].gather(good) for column in kept}
                    | {
                        "site": told["place"]["site"][place],
                        "day": told["date"]["day"][date],
                        "taxon": told["name"]["taxon"][name],
                        "present": told["state"]["present"][state] & ~is_event,
                        "source_number": told["source"]["source_number"][source],
                        "is_event": is_event,
                        "rank_reason": told["name"]["name_reason"][name] * ~is_event,
                    }
                )
            )
        rows = pl.concat(good_parts).with_columns(pl.col("day").cast(pl.Date))
        return cls(
            occurrences,
            rows,
            counts,
            pl.concat(bad_parts) if numbered else None,
            taxa,
            names,
            places,
        )


def _by_code(table: pl.DataFrame) -> dict[str, np.ndarray]:
    """
    Return the columns of a judged dictionary, each in the order of the codes; where there is
    nothing, there is 0.
    """
    ordered = table.sort("code").drop("code")
    return {
        s.name: s.to_physical().fill_null(False if s.dtype == pl.Boolean else 0).to_numpy()
        for s in ordered
    }


def _offset(column: str, offset: int) -> pl.Expr:
    return (
        pl.when(pl.col(column) == 0)
        .then(0)
        .otherwise(pl.col(column) + offset)
        .cast(pl.UInt8)
        .alias(column)
    )


def _judge_dates(dates: pl.DataFrame, rules: SurveyRules, day_first: bool | None) -> pl.DataFrame:
    days = date_rules.read_days(dates, day_first=day_first).with_columns(
        _offset("date_reason", _DATE_OFFSET)
    )
    outside = pl.lit(False)
    if rules.years is not None:
        outside = ~pl.col("day").dt.year().is_between(*rules.years)
    off = pl.lit(False)
    if rules.scheme.months is not None:
        first, last = rules.scheme.months
        month = pl.col("day").dt.month()
        off = (
            ~month.is_between(first, last)
            if first <= last
            else month.is_between(last + 1, first - 1)
        )
    return days.select(
        "code",
        "day",
        pl.when(pl.col("date_reason") != 0)
        .then(pl.col("date_reason"))
        .when(outside)
        .then(REASONS.index("outside the years"))
        .when(off)
        .then(REASONS.index("outside the season"))
        .otherwise(0)
        .cast(pl.UInt8)
        .alias("date_reason"),
    )


def _judge_names(names: pl.DataFrame, rules: SurveyRules) -> tuple[pl.DataFrame, tuple[str, ...]]:
    read = [
        read_name(s, p, r, rules.synonyms)
        for s, p, r in names.select("scientificName", "species", "taxonRank").iter_rows()
    ]
    detecting = {"species", "aggregate"} if rules.scheme.aggregates == "detect" else {"species"}
    taxa = tuple(sorted({name.accepted for name in read if name.kind in detecting}))
    number = {name: place for place, name in enumerate(taxa)}

    def reason(name: Name) -> int:
        if name.kind == "higher" and rules.scheme.higher_ranks == "drop":
            return REASONS.index("rank above species")
        if name.kind == "aggregate" and rules.scheme.aggregates == "drop":
            return REASONS.index("species aggregate")
        return 0

    frame = pl.DataFrame(
        {
            "code": names["code"],
            "taxon": pl.Series(
                [number.get(n.accepted, -1) if n.kind in detecting else -1 for n in read],
                dtype=pl.Int32,
            ),
            "name_reason": pl.Series([reason(n) for n in read], dtype=pl.UInt8),
            "accepted": pl.Series([n.accepted for n in read], dtype=pl.String),
            "recorded": pl.Series([n.recorded for n in read], dtype=pl.String),
        }
    )
    return frame, taxa


def _judge_sources(sources: pl.DataFrame, rules: SurveyRules) -> pl.DataFrame:
    other = (
        ~pl.col("institutionCode").str.strip_chars().is_in(list(rules.institutions))
        if rules.institutions
        else pl.lit(False)
    )
    reason = pl.when(other).then(REASONS.index("another institution")).otherwise(0).cast(pl.UInt8)
    schemes = pl.concat_str("institutionCode", "collectionCode", "datasetName", separator="|").rank(
        "dense"
    )
    return sources.select(
        "code", schemes.cast(pl.UInt32).alias("source_number"), reason.alias("source_reason")
    )


def _judge_states(states: pl.DataFrame, scheme: RecordingScheme) -> pl.DataFrame:
    status = pl.col("occurrenceStatus").str.strip_chars().str.to_uppercase()
    zero = pl.col("individualCount").str.strip_chars().cast(pl.Float64, strict=False) == 0
    absent = status.is_in(list(_ABSENT))
    unknown = ~absent & ~status.is_in(list(_PRESENT))
    zero = zero.fill_null(False) & ~absent
    incomplete = pl.lit(False)
    if scheme.complete_only:
        incomplete = ~pl.col("completeness").str.to_uppercase().str.replace_all(
            r"[^A-Z0-9]", ""
        ).is_in(list(_COMPLETE))
    dropped = (absent & pl.lit(scheme.absent == "drop")) | (
        zero & pl.lit(scheme.zero_count == "drop")
    )
    dropped |= zero & pl.lit(scheme.zero_count == "absent" and scheme.absent == "drop")
    return states.select(
        "code",
        (~absent & ~(zero & pl.lit(scheme.zero_count == "absent"))).alias("present"),
        pl.when(dropped)
        .then(REASONS.index("absence not counted"))
        .when(unknown)
        .then(REASONS.index("unknown status"))
        .when(incomplete)
        .then(REASONS.index("incomplete list"))
        .otherwise(0)
        .cast(pl.UInt8)
        .alias("state_reason"),
    )
