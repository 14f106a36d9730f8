"""Count visits n and detections k per site and species, and account for every row of the records."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import polars as pl
import shapely

from butterfly_sdm.config import RecordsConfig
from butterfly_sdm.data.artefact import sha256
from butterfly_sdm.data.dataset import Source
from butterfly_sdm.errors import RecordsError
from butterfly_sdm.progress import Progress, silent
from data_prep import dates as date_rules
from data_prep import places as place_rules
from data_prep.grid_references import accuracy_note
from data_prep.names import KINDS, read_name, read_species, read_synonyms
from data_prep.places import PlaceRules, Places, read_sites, resolve_places, site_ids
from data_prep.readers.registry import open_records
from data_prep.records import GROUPS, Occurrences, read_occurrences
from data_prep.schemes import SCHEMES, RecordingScheme, recording_scheme

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
    "list too short",
    "too few visits to the site",
)
"""Why a row is left out, in the order in which the reasons are tried; the place in the tuple is the code."""

_PLACE_OFFSET = REASONS.index(place_rules.REASONS[1]) - 1
_DATE_OFFSET = REASONS.index(date_rules.REASONS[1]) - 1
_PRESENT = {"", "PRESENT", "P", "TRUE", "YES", "1", "DETECTED", "OBSERVED"}
_ABSENT = {"ABSENT", "A", "FALSE", "NO", "0", "NOT DETECTED", "NOTDETECTED", "NOT OBSERVED"}
_COMPLETE = {"TRUE", "T", "YES", "Y", "1", "COMPLETE", "REPORTEDCOMPLETE"}


@dataclass(frozen=True)
class SurveyTable:
    """
    Visits and detections per site.

    Attributes
    ----------
    detections
        (site_id, species) visits on which the species was recorded: whole numbers k.
    visits
        (site_id,) visits, whatever was recorded: whole numbers n.
    sites
        Index ``site_id``; ``geometry`` (footprint, EPSG:4326), ``lon`` and ``lat`` of its centre, ``records`` (rows).
    rows
        Record rows read, ``dropped: REASON`` for every reason that occurred, ``kept``; then ``flagged: REASON`` among the kept.
    years
        Years of the visits.
    notes
        What a reader of the tables should know, in sentences.
    names
        ``accepted``, ``recorded``, ``rows``: which recorded names count under which accepted name.
    """

    detections: pd.DataFrame
    visits: pd.Series
    sites: gpd.GeoDataFrame
    rows: dict[str, int]
    years: tuple[int, ...]
    notes: tuple[str, ...] = ()
    names: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["accepted", "recorded", "rows"]))

    def __post_init__(self) -> None:
        if not (self.detections.index.equals(self.visits.index) and self.detections.index.equals(self.sites.index)):
            raise RecordsError("Detections, visits and sites do not list the same sites in the same order.")
        if (self.detections.to_numpy() > self.visits.to_numpy()[:, None]).any() or (self.detections.to_numpy() < 0).any():
            raise RecordsError("A species was detected on more visits than there were, or on fewer than none.")

    @property
    def species(self) -> tuple[str, ...]:
        """Species, in the order of the columns of ``detections``."""
        return tuple(self.detections.columns)

    @property
    def rates(self) -> pd.DataFrame:
        """(site_id, species) detection rates k / n."""
        return self.detections.div(self.visits, axis=0)


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
        Species to keep, in order; None: all that were detected, by name. Records of others still show that somebody looked.
    synonyms
        Recorded name: accepted name.
    day_first
        Whether 3/6/2018 is the third of June; None: as the file or its other dates tell.
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


def read_survey(config: RecordsConfig, *, scratch: Path, progress: Progress = silent) -> SurveyTable:
    """
    Read the records a config names and count them: the one entry of the build stage.

    Parameters
    ----------
    config
        The section ``build.records``.
    scratch
        Folder for the compact table of records, which a later call with the same files uses again.
    """
    occurrences = read_occurrences(
        _paths(config), scratch=scratch, format=config.format, columns=config.columns, progress=progress
    )
    return survey(occurrences, rules_of(config), sites=None if config.sites is None else read_sites(config.sites))


def rules_of(config: RecordsConfig) -> SurveyRules:
    """Return the rules a config states."""
    species = config.species
    changes = {
        "visit": config.visit,
        "absent": config.absent,
        "zero_count": config.zero_count,
        "aggregates": config.aggregates,
        "min_list_length": config.min_list_length,
        "months": config.months,
    }
    return SurveyRules(
        scheme=recording_scheme(config.scheme, **{rule: value for rule, value in changes.items() if value is not None}),
        places=PlaceRules(config.place, config.grid_m, config.max_uncertainty_m, config.out_of_range),
        institutions=config.institutions,
        years=config.years,
        min_records=config.min_records,
        min_visits=config.min_visits,
        max_footprint_deg2=config.max_footprint_deg2,
        species=read_species(species) if isinstance(species, Path) else species,
        synonyms={} if config.synonyms is None else read_synonyms(config.synonyms),
        day_first=config.day_first,
    )


def record_sources(config: RecordsConfig) -> list[Source]:
    """Return the files of records and sites a config names, with checksum and, where known, licence and citation."""
    sources = []
    for path in _paths(config):
        opened = open_records(path, format=config.format, columns=config.columns)
        held = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for number, file in enumerate(held):
            first = number == 0
            sources.append(
                Source(
                    role="records",
                    name=path.name if file == path else f"{path.name}/{file.relative_to(path).as_posix()}",
                    sha256=sha256(file),
                    bytes=file.stat().st_size,
                    licence=opened.licence if first else None,
                    citation=opened.citation if first else None,
                )
            )
    if config.sites is not None:
        sources.append(
            Source(role="sites", name=config.sites.name, sha256=sha256(config.sites), bytes=config.sites.stat().st_size)
        )
    return sources


def _paths(config: RecordsConfig) -> tuple[Path, ...]:
    return config.path if isinstance(config.path, tuple) else (config.path,)


def survey(occurrences: Occurrences, rules: SurveyRules | None = None, *, sites: gpd.GeoDataFrame | None = None) -> SurveyTable:
    """
    Count visits and detections per site.

    A visit is a site and a day (or a survey event) with at least one record that shows effort; a species is detected on a visit
    if at least one record of presence names it, however many rows or individuals. Where only records are known, visits that saw
    nothing are not, so the rates are upper bounds; a table of survey events removes that bias.

    Parameters
    ----------
    occurrences
        See :func:`data_prep.records.read_occurrences`.
    rules
        Which records and sites count.
    sites
        Listed sites, see :func:`data_prep.places.read_sites`; records elsewhere are then left out.

    Raises
    ------
    RecordsError
        No site is left, or coordinates are out of range.
    """
    rules = rules or SurveyRules()
    judged = _Judged.of(occurrences, rules, sites)
    return judged.count()


@dataclass(frozen=True)
class _Judged:
    """The records with a verdict on each row."""

    occurrences: Occurrences
    rules: SurveyRules
    places: Places
    listed_only: bool
    species: tuple[str, ...]
    names: pl.DataFrame
    rows: pl.DataFrame
    duplicates: int

    @classmethod
    def of(cls, occurrences: Occurrences, rules: SurveyRules, sites: gpd.GeoDataFrame | None) -> _Judged:
        dictionaries = occurrences.dictionaries
        places = resolve_places(dictionaries["place"], rules.places, sites)
        place = places.codes.rename({"code": "place"}).with_columns(_offset("place_reason", _PLACE_OFFSET))
        if "place" in dictionaries and not _has_place(occurrences):
            raise RecordsError("The records name no places: no file has coordinates, a footprint or a grid reference.")
        day_first = rules.day_first if rules.day_first is not None else occurrences.day_first
        date = _judge_dates(dictionaries["date"], rules, day_first)
        name, species = _judge_names(dictionaries["name"], rules)
        source = _judge_sources(dictionaries["source"], rules)
        state = _judge_states(dictionaries["state"], rules.scheme)
        higher, aggregate = KINDS.index("higher"), KINDS.index("aggregate")
        drops_higher = pl.lit(rules.scheme.higher_ranks == "drop")
        drops_aggregates = pl.lit(rules.scheme.aggregates == "drop")
        late = (
            pl.when((pl.col("kind") == higher) & drops_higher & ~pl.col("is_event"))
            .then(REASONS.index("rank above species"))
            .when((pl.col("kind") == aggregate) & drops_aggregates)
            .then(REASONS.index("species aggregate"))
            .otherwise(0)
            .cast(pl.UInt8)
        )
        reasons = ("source_reason", "place_reason", "date_reason", "state_reason")
        query = occurrences.scan()
        for table, key in ((place, "place"), (date, "date"), (name, "name"), (source, "source"), (state, "state")):
            query = query.join(table.lazy(), on=key, how="left")
        rows = query.select(
            "file",
            "row",
            "record",
            "event",
            "is_event",
            "site",
            "day",
            pl.col("species").alias("species"),
            pl.col("present") & ~pl.col("is_event"),
            pl.coalesce(*(pl.when(pl.col(r) != 0).then(pl.col(r)) for r in reasons), pl.lit(0, dtype=pl.UInt8)).alias("reason"),
            late.alias("late"),
        ).collect(engine="streaming")
        records = rows.filter(~pl.col("is_event"))["record"]
        duplicates = len(records) - records.n_unique()
        if duplicates:
            rows = rows.sort("file", "row").unique(subset=["record", "is_event"], keep="first", maintain_order=True)
        return cls(occurrences, rules, places, sites is not None, species, name, rows, duplicates)

    def count(self) -> SurveyTable:
        """Apply the rules of sites and count."""
        rules, rows = self.rules, self.rows
        dropped = dict.fromkeys(REASONS[1:], 0)
        dropped["malformed row"] = self.occurrences.malformed
        dropped["duplicate record"] = self.duplicates
        records = rows.filter(~pl.col("is_event"))
        for code, number in records.group_by("reason").len().iter_rows():
            if code:
                dropped[REASONS[code]] += number
        rows = rows.filter(pl.col("reason") == 0)

        def drop(bad: pl.Expr, reason: str) -> None:
            nonlocal rows
            dropped[reason] += int(rows.select((bad & ~pl.col("is_event")).sum()).item())
            rows = rows.filter(~bad)

        if rules.max_footprint_deg2 is not None:
            areas = shapely.area(self.places.footprints)
            drop(_in("site", np.flatnonzero(areas > rules.max_footprint_deg2)), "footprint too large")
        counts = rows.group_by("site").agg((~pl.col("is_event")).sum().alias("records"))
        drop(
            _in("site", counts.filter(pl.col("records") < rules.min_records)["site"].to_numpy()), "too few records at the site"
        )
        if self.listed_only:
            unlisted = [row for row, name in enumerate(self.places.listed) if not name]
            drop(_in("site", np.array(unlisted, dtype=np.uint32)), "not a listed site")
        for reason in ("rank above species", "species aggregate"):
            drop(pl.col("late") == REASONS.index(reason), reason)
        visit = ["site", "event"] if rules.scheme.visit == "event" else ["site", "day"]
        if rules.scheme.visit == "event" and rows["event"].eq(0).any():
            # Records without an event id are visits of their day.
            rows = rows.with_columns(
                pl.when(pl.col("event") == 0)
                .then(pl.col("day").cast(pl.Int64).cast(pl.UInt64))
                .otherwise(pl.col("event"))
                .alias("event")
            )
        seen = rows.select(*visit, "species", "present").unique()
        if rules.scheme.min_list_length > 1:
            lengths = seen.filter(pl.col("present")).group_by(visit).agg(pl.col("species").n_unique().alias("length"))
            short = (
                seen.select(visit)
                .unique()
                .join(lengths.filter(pl.col("length") >= rules.scheme.min_list_length), on=visit, how="anti")
            )
            dropped["list too short"] += int(rows.join(short, on=visit, how="semi").filter(~pl.col("is_event")).height)
            rows = rows.join(short, on=visit, how="anti")
            seen = seen.join(short, on=visit, how="anti")
        visits = seen.select(visit).unique().group_by("site").len("visits")
        few = visits.filter(pl.col("visits") < rules.min_visits)["site"].to_numpy()
        drop(_in("site", few), "too few visits to the site")
        visits = visits.filter(pl.col("visits") >= rules.min_visits)
        kept = rows.filter(~pl.col("is_event")).height
        account = {"read": self.occurrences.read, **{f"dropped: {r}": n for r, n in dropped.items() if n}, "kept": kept}
        if visits.is_empty():
            raise RecordsError(_nothing_left(account))
        return self._tables(rows, seen, visits, account)

    def _tables(self, rows: pl.DataFrame, seen: pl.DataFrame, visits: pl.DataFrame, account: dict[str, int]) -> SurveyTable:
        numbers = visits["site"].to_list()
        ids = site_ids(self.places, numbers)
        order = np.argsort(np.array(ids, dtype=object), kind="stable")
        index = pd.Index([ids[i] for i in order], name="site_id")
        place = np.full(len(self.places.footprints), -1)
        place[[numbers[i] for i in order]] = np.arange(len(order))
        n = visits["visits"].to_numpy()[order].astype(np.int64)

        found = (
            seen.filter(pl.col("present") & (pl.col("species") >= 0)).drop("present").unique().group_by("site", "species").len()
        )
        found = found.filter(pl.col("site").is_in(visits["site"].implode()))
        columns = self.species
        k = np.zeros((len(index), len(columns)), dtype=np.int64)
        k[place[found["site"].to_numpy()], found["species"].to_numpy()] = found["len"].to_numpy()
        if self.rules.species is None:
            used = np.flatnonzero(k.any(axis=0))
            columns, k = tuple(columns[i] for i in used), k[:, used]
        if not columns:
            raise RecordsError("No record of presence names a species. Are the names in another column, or all rows ABSENT?")
        footprints = self.places.footprints[[numbers[i] for i in order]]
        centres = shapely.centroid(footprints)
        per_site = dict(rows.filter(~pl.col("is_event")).group_by("site").len().iter_rows())
        sites = gpd.GeoDataFrame(
            {
                "lon": shapely.get_x(centres),
                "lat": shapely.get_y(centres),
                "records": [per_site.get(numbers[i], 0) for i in order],
            },
            index=index,
            geometry=footprints,
            crs="EPSG:4326",
        )
        years = tuple(int(year) for year in rows["day"].dt.year().unique().sort().to_list())
        other = int(rows.select(((pl.col("species") < 0) & ~pl.col("is_event")).sum()).item())
        if other:
            account = {**account, "flagged: shows effort, but no wanted species": other}
        return SurveyTable(
            detections=pd.DataFrame(k, index=index, columns=pd.Index(columns, name="species")),
            visits=pd.Series(n, index=index, name="visits"),
            sites=sites,
            rows=account,
            years=years,
            notes=self._notes(rows, seen),
            names=self._names(),
        )

    def _names(self) -> pd.DataFrame:
        names = self.names.filter(pl.col("recorded") != "").group_by("accepted", "recorded").agg(pl.len().alias("spellings"))
        return names.sort("accepted", "recorded").to_pandas()

    def _notes(self, rows: pl.DataFrame, seen: pl.DataFrame) -> tuple[str, ...]:
        notes = list(self.occurrences.notes)
        if self.occurrences.core == "event":
            visit = [column for column in seen.columns if column in ("site", "day", "event")]
            empty = seen.group_by(visit).agg(pl.col("present").any()).filter(~pl.col("present")).height
            notes.append(f"Effort is told by an event core: visits include {empty} on which nothing was seen.")
        else:
            notes.append("Effort is told by records alone (occurrence core): visits that saw nothing are unknown.")
        if any(self.places.references):
            note = accuracy_note()
            notes += [note] if note else []
        return tuple(notes)


def _has_place(occurrences: Occurrences) -> bool:
    return bool(set(GROUPS["place"]) & occurrences.columns)


def _in(column: str, values: np.ndarray) -> pl.Expr:
    return pl.col(column).is_in(pl.Series(values, dtype=pl.UInt32).implode())


def _offset(column: str, offset: int) -> pl.Expr:
    return pl.when(pl.col(column) == 0).then(0).otherwise(pl.col(column) + offset).cast(pl.UInt8).alias(column)


def _judge_dates(dates: pl.DataFrame, rules: SurveyRules, day_first: bool | None) -> pl.DataFrame:
    days = date_rules.read_days(dates, day_first=day_first).with_columns(_offset("date_reason", _DATE_OFFSET))
    outside = pl.lit(False)
    if rules.years is not None:
        outside = ~pl.col("day").dt.year().is_between(*rules.years)
    off = pl.lit(False)
    if rules.scheme.months is not None:
        first, last = rules.scheme.months
        month = pl.col("day").dt.month()
        off = ~month.is_between(first, last) if first <= last else month.is_between(last + 1, first - 1)
    return days.select(
        pl.col("code").alias("date"),
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
        read_name(s, p, r, rules.synonyms) for s, p, r in names.select("scientificName", "species", "taxonRank").iter_rows()
    ]
    detecting = {"species", "aggregate"} if rules.scheme.aggregates == "detect" else {"species"}
    if rules.species is not None:
        # A wanted species may be given by a recorded or by its accepted name; the table keeps the name that was given.
        wanted = {rules.synonyms.get(name, name): column for column, name in enumerate(rules.species)}
        species = rules.species
        if len(wanted) < len(species):
            raise RecordsError("Two of the wanted species have one accepted name. Name each species once.")
    else:
        species = tuple(sorted({name.accepted for name in read if name.kind in detecting}))
        wanted = {name: column for column, name in enumerate(species)}
    frame = pl.DataFrame(
        {
            "name": names["code"],
            "species": pl.Series([wanted.get(n.accepted, -1) if n.kind in detecting else -1 for n in read], dtype=pl.Int32),
            "kind": pl.Series([KINDS.index(n.kind) for n in read], dtype=pl.UInt8),
            "accepted": pl.Series([n.accepted for n in read], dtype=pl.String),
            "recorded": pl.Series([n.recorded for n in read], dtype=pl.String),
        }
    )
    return frame, tuple(species)


def _judge_sources(sources: pl.DataFrame, rules: SurveyRules) -> pl.DataFrame:
    other = (
        ~pl.col("institutionCode").str.strip_chars().is_in(list(rules.institutions)) if rules.institutions else pl.lit(False)
    )
    reason = pl.when(other).then(REASONS.index("another institution")).otherwise(0).cast(pl.UInt8)
    return sources.select(pl.col("code").alias("source"), reason.alias("source_reason"))


def _judge_states(states: pl.DataFrame, scheme: RecordingScheme) -> pl.DataFrame:
    status = pl.col("occurrenceStatus").str.strip_chars().str.to_uppercase()
    zero = pl.col("individualCount").str.strip_chars().cast(pl.Float64, strict=False) == 0
    absent = status.is_in(list(_ABSENT))
    unknown = ~absent & ~status.is_in(list(_PRESENT))
    zero = zero.fill_null(False) & ~absent
    incomplete = pl.lit(False)
    if scheme.complete_only:
        incomplete = ~pl.col("completeness").str.to_uppercase().str.replace_all(r"[^A-Z0-9]", "").is_in(list(_COMPLETE))
    dropped = (absent & pl.lit(scheme.absent == "drop")) | (zero & pl.lit(scheme.zero_count == "drop"))
    dropped |= zero & pl.lit(scheme.zero_count == "absent" and scheme.absent == "drop")
    return states.select(
        pl.col("code").alias("state"),
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


def _nothing_left(account: dict[str, int]) -> str:
    reasons = {key.removeprefix("dropped: "): n for key, n in account.items() if key.startswith("dropped: ")}
    told = ", ".join(f"{n:,} for {reason}" for reason, n in sorted(reasons.items(), key=lambda item: -item[1]))
    most = max(reasons, key=lambda reason: reasons[reason]) if reasons else ""
    advice = {
        "too few records at the site": "Lower records.min_records.",
        "too few visits to the site": "Lower records.min_visits.",
        "outside the years": "Widen records.years.",
        "another institution": "Correct records.institutions.",
        "ambiguous date": "Say in records.day_first whether 3/6/2018 is in June.",
        "no coordinates": "Are the coordinates in a column of another name? Say so in records.columns.",
        "not a listed site": "Do records.sites list the footprints of these records?",
    }.get(most, "Check the records against the settings in build.records.")
    return f"No site is left: of {account['read']:,} rows {told or 'none'} were left out. {advice}"
