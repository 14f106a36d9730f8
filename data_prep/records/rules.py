"""Judge every row of the records by rules about its place, date, name, source and status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from data_prep.records import dates as date_rules
from data_prep.records import efforts
from data_prep.records.names import Name, Synonyms, read_name, read_synonyms
from data_prep.records.occurrences import GROUPS, Occurrences
from data_prep.records.options import RecordsOptions
from data_prep.records.places import sites as place_rules
from data_prep.records.places.sites import Places

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
    "rejected identification",
    "captive or cultivated",
    "casual observation",
    "fossil or living specimen",
    "incomplete list",
    "footprint too large",
    "too few records at the site",
    "not a listed site",
    "rank above species",
    "uncertain name",
    "name not understood",
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
_PRESENT = {"", *"PRESENT P PRESENCE TRUE YES 1 DETECTED OBSERVED SEEN RECORDED".split()}
_ABSENT = {
    *"ABSENT A ABSENCE FALSE NO 0 NOTDETECTED NOTOBSERVED UNDETECTED".split(),
    *("NOT DETECTED", "NOT OBSERVED", "NOT PRESENT", "NOT SEEN", "NOT RECORDED"),
}
_SAYS_PRESENCE = (_PRESENT | _ABSENT) - {
    "",
    "NOT RECORDED",  # in MapMate: nobody said
    *"P A 1 0 YES NO TRUE FALSE RECORDED".split(),
}
_REJECTED = r"^(?:not accepted|rejected|incorrect|invalid|misidentif|r(?:[45])?$)"
_CAPTIVE = r"^(?:true|t|yes|y|1|captive|cultivated|managed|released|reared|captive.*|cultivated.*)$"
_NO_SIGHTING = "FOSSILSPECIMEN LIVINGSPECIMEN".split()
_INDIVIDUALS = r"individual|specimen|count|adult|number|butterfl|^$"
_FEW_ROWS, _MANY_ON_ONE_DAY = 3, 0.05
_ZERO = r"^(?:0+(?:[.,]0+)?(?: [a-z]+)*|zero|nil|absent|nothing|(?:none|not) (?:seen|found))$"
_GENUS_LIKE = {
    "higher": "rank above species",
    "uncertain": "uncertain name",
    "unread": "name not understood",
}
_COMPLETE = {"TRUE", "T", "YES", "Y", "1", "COMPLETE", "REPORTEDCOMPLETE"}
_INCOMPLETE = {"FALSE", "F", "NO", "N", "0", "INCOMPLETE", "REPORTEDINCOMPLETE"}
_SOURCE = ("institutionCode", "collectionCode", "datasetName")
_WALKS = r"(?i)\bUKBMS\b|UK Butterfly Monitoring Scheme"  # its walks tell every species seen


@dataclass(frozen=True)
class Verdicts:
    """
    The records with a verdict on each row.

    Attributes
    ----------
    rows
        The good rows: ``file``, ``row`` where wanted; ``site`` (row of ``places.footprints``),
        ``day``, ``event`` where that is a visit, ``record`` (hash of its id) of several files,
        ``taxon`` (place in ``taxa``, -1 for none), ``present``, ``source_number`` (scheme); where
        it is known also ``list_state`` (of the list it is from: 2 complete, 1 not) and ``minutes``
        (that the visit took); ``is_event`` (a survey, not a record); ``rank_reason`` (place in
        :data:`REASONS`, of rules that come after those about sites, 0 for none).
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
    notes
        What was understood of names and of a column ``Status``, in sentences.
    schemes
        What each ``source_number`` is called.
    """

    occurrences: Occurrences
    rows: pl.DataFrame
    dropped: np.ndarray
    dropped_rows: pl.DataFrame | None
    taxa: tuple[str, ...]
    names: pl.DataFrame
    places: Places
    notes: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ()


Judged = Mapping[str, Mapping[str, np.ndarray]]
"""By group of texts and column: what is known of each code."""


def judge(
    occurrences: Occurrences,
    places: Places,
    rules: RecordsOptions,
    synonyms: Mapping[str, str],
    *,
    numbered: bool = True,
) -> Verdicts:
    """
    Judge the rows of ``occurrences`` by all rules that need no other row.

    Parameters
    ----------
    places
        Where they are.
    rules
        Which of them count, nothing being left to the rules.
    synonyms
        Recorded name: accepted name.
    numbered
        Whether ``file`` and ``row`` are kept.
    """
    texts = occurrences.dictionaries
    names, taxa = _judge_names(texts["name"], rules, synonyms)
    judged = {
        "source": _judge_sources(texts["source"], rules),
        "place": places.codes.with_columns(_offset("place_reason", _PLACE_OFFSET)),
        "date": _judge_dates(texts["date"], rules, occurrences.day_first),
        "state": _judge_states(texts["state"], rules),
        "name": names.select("code", "taxon", "name_reason"),
        "effort": texts["effort"].select(
            pl.col("code").sort(), minutes=pl.Series(efforts.read_minutes(texts["effort"]))
        ),
    }
    told = {group: _by_code(table) for group, table in judged.items()}
    several = len(occurrences.files) > 1
    kept = ["file", "row"] if numbered else ["file"] if several else []
    kept += [*(["event"] if rules.visit == "event" else []), *(["record"] if several else [])]
    counts = np.zeros(len(REASONS), dtype=np.int64)
    named = np.zeros(len(names), dtype=np.int64)
    good, bad, before = [], [], 0
    events = ["is_event"] if occurrences.core == "event" else []
    for part in occurrences.parts([*kept, *GROUPS, *events]):
        if not events:
            part = part.with_columns(is_event=False)
        first, last = np.searchsorted(occurrences.again, (before, before + len(part)))
        reason = _reasons(part, told, occurrences.again[first:last] - before)
        before += len(part)
        dropped = (reason != 0) & ~part["is_event"].to_numpy()
        counts += np.bincount(reason[dropped], minlength=len(REASONS))
        if numbered:
            of_row = part.select("file", "row", pl.Series("reason", reason))
            bad.append(of_row.filter(pl.Series(dropped)))
        good.append(_understood(part, told, reason))
        named += np.bincount(part["name"].to_numpy(), minlength=len(named))
    rows = pl.concat(good).with_columns(pl.col("day").cast(pl.Date))
    told_names = names.filter(~_names_sensitive(rules.sensitive))
    rows_named = named[told_names["code"].to_numpy()]
    notes = (
        *_status_note(texts["state"]),
        *_grade_note(texts["state"]),
        *_names_note(told_names, rows_named),
        *_names_apart(taxa, known_as=synonyms),
        *_first_of_january(rows),
    )
    dropped_rows = pl.concat(bad) if numbered else None
    schemes = _schemes(texts["source"])
    return Verdicts(occurrences, rows, counts, dropped_rows, taxa, names, places, notes, schemes)


def _names_sensitive(sensitive: Mapping[str, str]) -> pl.Expr:
    """Whether a text is one that no note may repeat."""
    return pl.col("text").str.to_lowercase().is_in([name.lower() for name in sensitive])


def _names_note(names: pl.DataFrame, rows: np.ndarray) -> list[str]:
    """Tell the commonest names that are not understood, in rows of the records."""
    told = names.with_columns(rows=pl.Series(rows)).filter(pl.col("kind") == "unread")
    told = told.filter(pl.col("rows") > 0).group_by("text").agg(pl.col("rows").sum())
    if told.is_empty():
        return []
    common = told.sort(["rows", "text"], descending=[True, False]).head(8)
    examples = ", ".join(f"{text!r} ({n:,})" for text, n in common.iter_rows())
    more = f" and {len(told) - 8:,} more" if len(told) > 8 else ""
    return [
        f"Name not understood in {int(told['rows'].sum()):,} rows: {examples}{more}. Say what "
        "English names, codes, numbers and old names mean in records.synonyms, such as "
        f"{{{common['text'][0]!r}: Genus species}}."
    ]


def _names_apart(taxa: tuple[str, ...], *, known_as: Mapping[str, str]) -> list[str]:
    """Tell species that count apart, though the table of the package says that they are one."""
    one = read_synonyms("s2bms")
    apart = [
        f"{name} and {one[name]}"
        for name in taxa
        if one.get(name, name) != name and one[name] in taxa and name not in known_as
    ]
    if not apart:
        return []
    return [
        f"Counted apart, though they are two names of one species: {', '.join(apart[:5])}. "
        "records.synonyms: s2bms counts them together."
    ]


def _first_of_january(rows: pl.DataFrame) -> list[str]:
    """Tell of many rows on the first day of the year."""
    day = pl.col("day")
    first = (day.dt.ordinal_day() == 1) & ~pl.col("is_event")
    number = int(rows.select(first.sum()).item() or 0)
    if number < max(_FEW_ROWS, _MANY_ON_ONE_DAY * len(rows)):
        return []
    return [
        f"{number:,} rows are dated 1 January, as programs write a date of which only the year is "
        "known. If that is so here, leave them out with records.months."
    ]


def _says_presence(states: pl.DataFrame) -> bool:
    """Tell whether a column of the bare name ``Status`` tells presence and absence."""
    values = {v.strip().upper() for v in states["status"].unique().to_list()} - {""}
    said = values & (_PRESENT | _ABSENT)
    return bool(values & _SAYS_PRESENCE) and 2 * len(said) >= len(values)


def _status_note(states: pl.DataFrame) -> list[str]:
    values = sorted({v.strip() for v in states["status"].unique().to_list()} - {""})
    if not values or _says_presence(states):
        return []
    told = ", ".join(repr(value) for value in values[:4]) + (", ..." if len(values) > 4 else "")
    return [
        f"The column Status holds {told}: it was not taken as presence or absence. If it is, say "
        "so in records.columns: {occurrenceStatus: ...}."
    ]


def _grade_note(states: pl.DataFrame) -> list[str]:
    if not states["qualityGrade"].str.strip_chars().str.to_lowercase().is_in(["needs_id"]).any():
        return []
    return [
        "Some observations still need an identification (quality_grade needs_id) and count as "
        "their observer named them. Export research grade alone to leave them out."
    ]


def _reasons(part: pl.DataFrame, told: Judged, again: np.ndarray) -> np.ndarray:
    """Return why each row is left out; ``again`` are those that repeat one before them."""
    reason = np.zeros(len(part), dtype=np.uint8)
    for group in _FIRST:
        of_text = told[group][f"{group}_reason"]
        if of_text.any():
            np.copyto(reason, of_text[part[group].to_numpy()], where=reason == 0)
    reason[again] = REASONS.index("duplicate record")
    return reason


def _understood(part: pl.DataFrame, told: Judged, reason: np.ndarray) -> pl.DataFrame:
    """Return the good rows of a part, their codes replaced by what these mean."""
    good = np.flatnonzero(reason == 0)
    is_event = part["is_event"].to_numpy()[good]

    def meaning(group: str, column: str) -> np.ndarray:
        meant: np.ndarray = told[group][column][part[group].to_numpy()[good]]
        return meant

    columns = {
        "site": meaning("place", "site"),
        "day": meaning("date", "day"),
        "taxon": meaning("name", "taxon"),
        "present": meaning("state", "present") & ~is_event,
        "source_number": meaning("source", "source_number"),
        "is_event": is_event,
        "rank_reason": meaning("name", "name_reason") * ~is_event,
    }
    known = [group for group in ("source", "state") if told[group]["list_state"].any()]
    if known:
        columns["list_state"] = np.maximum.reduce([meaning(g, "list_state") for g in known])
    if np.isfinite(told["effort"]["minutes"]).any():
        columns["minutes"] = meaning("effort", "minutes")
    others = [name for name in part.columns if name not in (*GROUPS, "is_event")]
    return pl.DataFrame({name: part[name].gather(good) for name in others} | columns)


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


def _judge_dates(
    dates: pl.DataFrame, rules: RecordsOptions, layout_says: bool | None
) -> pl.DataFrame:
    day_first = layout_says if rules.day_first is None else rules.day_first
    days = date_rules.read_days(dates, day_first=day_first).with_columns(
        _offset("date_reason", _DATE_OFFSET)
    )
    outside = pl.lit(False)
    if rules.years is not None:
        outside = ~pl.col("day").dt.year().is_between(*rules.years)
    off = pl.lit(False)
    if rules.months is not None:
        first, last = rules.months
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


def _judge_names(
    names: pl.DataFrame, rules: RecordsOptions, synonyms: Mapping[str, str]
) -> tuple[pl.DataFrame, tuple[str, ...]]:
    known = synonyms if isinstance(synonyms, Synonyms) else Synonyms(synonyms)
    read = [
        read_name(s, p, r, known)
        for s, p, r in names.select("scientificName", "species", "taxonRank").iter_rows()
    ]
    detecting = {"species", "aggregate"} if rules.aggregates == "detect" else {"species"}
    taxa = tuple(sorted({name.accepted for name in read if name.kind in detecting}))
    number = {name: place for place, name in enumerate(taxa)}

    def reason(name: Name) -> int:
        if name.kind in _GENUS_LIKE and rules.higher_ranks == "drop":
            return REASONS.index(_GENUS_LIKE[name.kind])
        if name.kind in ("aggregate", "hybrid") and rules.aggregates == "drop":
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
            "kind": pl.Series([n.kind for n in read], dtype=pl.String),
            "text": names.select(
                pl.when(pl.col("scientificName") != "")
                .then(pl.col("scientificName"))
                .otherwise(pl.col("species"))
                .str.strip_chars()
            ).to_series(),
        }
    )
    return frame, taxa


def _judge_sources(sources: pl.DataFrame, rules: RecordsOptions) -> pl.DataFrame:
    other = (
        ~pl.col("institutionCode").str.strip_chars().is_in(list(rules.institutions))
        if rules.institutions
        else pl.lit(False)
    )
    reason = pl.when(other).then(REASONS.index("another institution")).otherwise(0).cast(pl.UInt8)
    complete = pl.any_horizontal(pl.col(term).str.contains(_WALKS) for term in _SOURCE)
    return sources.select(
        "code",
        _source_number(),
        reason.alias("source_reason"),
        pl.when(complete).then(2).otherwise(0).cast(pl.UInt8).alias("list_state"),
    )


def _source_number() -> pl.Expr:
    number = pl.concat_str(*_SOURCE, separator="|").rank("dense")
    return number.cast(pl.UInt32).alias("source_number")


def _schemes(sources: pl.DataFrame) -> tuple[str, ...]:
    """Return what each source is called: its data set, else its collection or institution."""
    texts = [pl.col(term).str.strip_chars() for term in reversed(_SOURCE)]
    name = pl.coalesce(pl.when(text != "").then(text) for text in texts).fill_null("")
    named = sources.select(_source_number(), name.alias("name")).unique("source_number")
    by_number = dict(named.iter_rows())
    return tuple(by_number.get(number, "") for number in range(max(by_number, default=-1) + 1))


def _judge_states(states: pl.DataFrame, rules: RecordsOptions) -> pl.DataFrame:
    status = pl.col("occurrenceStatus").str.strip_chars().str.to_uppercase()
    if _says_presence(states):
        bare = pl.col("status").str.strip_chars().str.to_uppercase()
        status = pl.when(status == "").then(bare).otherwise(status)
    absent = status.is_in(list(_ABSENT)) | _says("zeroAbundance", r"^(?:y|yes|true|t|1)$")
    count = pl.col("individualCount").str.strip_chars().cast(pl.Float64, strict=False)
    unknown = ~absent & (~status.is_in(list(_PRESENT)) | (count < 0).fill_null(False))
    zero = _is_zero() & ~absent
    said = pl.col("completeness").str.to_uppercase().str.replace_all(r"[^A-Z0-9]", "")
    complete = said.is_in(list(_COMPLETE))
    incomplete = ~complete if rules.complete_only else pl.lit(False)
    dropped = (absent & pl.lit(rules.absent == "drop")) | (
        zero & pl.lit(rules.zero_count == "drop")
    )
    dropped |= zero & pl.lit(rules.zero_count == "absent" and rules.absent == "drop")
    basis = pl.col("basisOfRecord").str.to_uppercase().str.replace_all(r"[^A-Z]", "")
    reasons = {
        "absence not counted": dropped,
        "unknown status": unknown,
        "rejected identification": _says("verification", _REJECTED),
        "captive or cultivated": _says("captive", _CAPTIVE),
        "casual observation": _says("qualityGrade", r"^casual$"),
        "fossil or living specimen": basis.is_in(_NO_SIGHTING),
        "incomplete list": incomplete,
    }
    code = pl.lit(0)
    for reason, holds in reversed(reasons.items()):
        code = pl.when(holds).then(REASONS.index(reason)).otherwise(code)
    return states.select(
        "code",
        (~absent & ~(zero & pl.lit(rules.zero_count == "absent"))).alias("present"),
        code.cast(pl.UInt8).alias("state_reason"),
        pl.when(complete)
        .then(2)
        .when(said.is_in(list(_INCOMPLETE)))
        .then(1)
        .otherwise(0)
        .cast(pl.UInt8)
        .alias("list_state"),
    )


def _says(term: str, pattern: str) -> pl.Expr:
    return pl.col(term).str.strip_chars().str.to_lowercase().str.contains(pattern)


def _is_zero() -> pl.Expr:
    """
    Whether nobody was counted; an amount that counts no individuals, such as a cover, tells nothing
    where it is 0 of another unit.
    """
    number = pl.col("individualCount").str.strip_chars().str.to_lowercase()
    quantity = pl.col("organismQuantity").str.strip_chars().cast(pl.Float64, strict=False)
    of_quantity = (quantity == 0) & _says("organismQuantityType", _INDIVIDUALS)
    count = number.cast(pl.Float64, strict=False)
    said = (count == 0).fill_null(False) | number.str.contains(_ZERO)
    return pl.when(number == "").then(of_quantity).otherwise(said).fill_null(False)
