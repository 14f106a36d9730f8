"""
Count visits n and detections k per site and species, and account for every row of the records.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import polars as pl
import shapely

from butterfly_sdm.core.files import sha256
from butterfly_sdm.data.dataset import Source
from butterfly_sdm.data.visits import VisitTable
from butterfly_sdm.errors import RecordsError, counted
from butterfly_sdm.progress import Progress, silent
from data_prep.records.double_recording import double_recordings, told_before
from data_prep.records.dropped import dropped_rows, write_dropped
from data_prep.records.files.limits import within
from data_prep.records.files.stored import only_tables
from data_prep.records.files.vector import files_of
from data_prep.records.names import accepted_name, read_species, read_synonyms
from data_prep.records.occurrences import GROUPS, Occurrences, read_occurrences
from data_prep.records.options import RecordsOptions
from data_prep.records.places.grid_references import accuracy_note
from data_prep.records.places.sites import Places, read_sites, resolve_places, site_ids
from data_prep.records.readers.registry import open_records
from data_prep.records.rules import REASONS, Verdicts, judge
from data_prep.records.sensitive import SensitiveSpecies
from data_prep.records.visits import Lists, lists_of, visit_table
from data_prep.sources.provenance import read_provenance

INCOMPLETE = ("0", "false", "False", "FALSE", "no", "No", "NO", "n", "N", "incomplete")


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
        Index ``site_id``; ``geometry`` (footprint, EPSG:4326), ``lon`` and ``lat`` of its centre,
        ``records`` (rows).
    rows
        Record rows read, ``dropped: REASON`` for every reason that occurred, ``kept``; then
        ``flagged: REASON`` among the kept.
    years
        Years of the visits.
    lists_of_one
        Visits on which exactly one species was detected.
    notes
        What a reader of the tables should know, in sentences.
    coarse
        ``species``, ``square``, ``size_m``, ``detections``, ``visits`` of sensitive species that
        are told only as sums over squares; they are no columns of ``detections``.
    names
        ``accepted``, ``recorded``, ``spellings``, ``texts``: under which name each recorded name
        counts, in how many spellings (with and without author, say) it occurs, and the first 12.
    visit_table
        One row per visit, and what was seen on it; None where only the sums are known.
    """

    detections: pd.DataFrame
    visits: pd.Series
    sites: gpd.GeoDataFrame
    rows: dict[str, int]
    years: tuple[int, ...]
    notes: tuple[str, ...] = ()
    coarse: pd.DataFrame | None = None
    names: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame(columns=["accepted", "recorded", "spellings", "texts"])
    )
    lists_of_one: int = 0
    visit_table: VisitTable | None = None

    def __post_init__(self) -> None:
        if not (
            self.detections.index.equals(self.visits.index)
            and self.detections.index.equals(self.sites.index)
        ):
            raise RecordsError(
                "Detections, visits and sites do not list the same sites in the same order."
            )
        if (self.detections.to_numpy() > self.visits.to_numpy()[:, None]).any() or (
            self.detections.to_numpy() < 0
        ).any():
            raise RecordsError(
                "A species was detected on more visits than there were, or on fewer than none."
            )

    @property
    def species(self) -> tuple[str, ...]:
        """Species, in the order of the columns of ``detections``."""
        return tuple(self.detections.columns)

    @property
    def spellings(self) -> dict[str, tuple[str, ...]]:
        """Texts that were counted as each species, or as the species it is another name of."""
        told: dict[str, tuple[str, ...]] = {}
        for accepted, of in self.names.groupby("accepted"):
            if {str(accepted), *of["recorded"]} & set(self.species):
                told[str(accepted)] = tuple(sorted({t for texts in of["texts"] for t in texts}))
        return told

    @property
    def rates(self) -> pd.DataFrame:
        """(site_id, species) detection rates k / n."""
        return self.detections.div(self.visits, axis=0)


def read_survey(
    config: RecordsOptions,
    *,
    scratch: Path,
    progress: Progress = silent,
    explain: Path | None = None,
) -> SurveyTable:
    """
    Read the records a config names and count them: the one entry of the build stage.

    Parameters
    ----------
    config
        The section ``build.records``.
    scratch
        Folder for the compact table of records, which a later call with the same files uses again.
    explain
        A ``.parquet`` or ``.csv`` file in which to write every row that was left out, with its
        reason.

    Returns
    -------
    SurveyTable
        See :func:`survey`.

    Raises
    ------
    MissingFileError, RecordsError
        A file does not exist or is damaged, or no site is left.
    """
    with within(config.limits), only_tables(config.tables):
        occurrences = read_occurrences(
            config.paths,
            scratch=scratch,
            format=config.format,
            columns=config.columns,
            progress=progress,
        )
    sites = None if config.sites is None else read_sites(config.sites)
    return survey(occurrences, config, sites=sites, explain=explain)


def record_sources(config: RecordsOptions) -> list[Source]:
    """
    Return the files of records and sites a config names, with checksum and, where known, licence
    and citation.
    """
    sources = []
    for path in config.paths:
        with within(config.limits), only_tables(config.tables):
            opened = open_records(path, format=config.format, columns=config.columns)
        held = files_of(path)
        fetched = read_provenance(path) if path.is_file() else None
        for number, file in enumerate(held):
            first = number == 0
            sources.append(
                Source(
                    role="records",
                    name=file.name
                    if not path.is_dir()
                    else f"{path.name}/{file.relative_to(path).as_posix()}",
                    sha256=sha256(file),
                    bytes=file.stat().st_size,
                    licence=((fetched and fetched.licence) or opened.licence) if first else None,
                    citation=((fetched and fetched.citation) or opened.citation) if first else None,
                )
            )
    if config.sites is not None:
        sources.append(
            Source(
                role="sites",
                name=config.sites.name,
                sha256=sha256(config.sites),
                bytes=config.sites.stat().st_size,
            )
        )
    return sources


def survey(
    occurrences: Occurrences,
    rules: RecordsOptions,
    *,
    sites: gpd.GeoDataFrame | None = None,
    explain: Path | None = None,
) -> SurveyTable:
    """
    Count visits and detections per site.

    A visit is a site and a day (or a survey event) with at least one record that shows effort; a
    species is detected on a visit if at least one record of presence names it, however many rows or
    individuals. Where only records are known, visits that saw nothing are not, so the rates are
    upper bounds; a table of survey events removes that bias.

    Parameters
    ----------
    occurrences
        See :func:`data_prep.records.occurrences.read_occurrences`.
    rules
        Which records and sites count; their files and sites are those that are handed over.
    sites
        One row per listed site, see
        :func:`data_prep.records.places.sites.read_sites`; records elsewhere
        are then left out.
    explain
        A ``.parquet`` or ``.csv`` file in which to write every row that was left out, with its
        reason.

    Returns
    -------
    SurveyTable
        (site, species) detections *k*, visits *n*, and the account of all rows.

    Raises
    ------
    RecordsError
        No site is left, or coordinates are out of range.
    """
    rules = rules.as_scheme_says()
    synonyms = read_synonyms(rules.synonyms)
    if not set(GROUPS["place"]) & occurrences.columns:
        raise RecordsError(
            "The records name no places: no file has coordinates, a footprint or a grid reference."
        )
    places = resolve_places(occurrences.dictionaries["place"], rules, sites)
    verdicts = judge(occurrences, places, rules, synonyms, numbered=explain is not None)
    count = _Count(verdicts, rules, synonyms)
    count.apply_rules_of_sites(listed_only=sites is not None)
    count.apply_rules_of_visits()
    if explain is not None:
        rows = dropped_rows(
            occurrences, count.reasons(), sensitive=count.sensitive, synonyms=synonyms
        )
        write_dropped(explain, rows)
    return count.table()


class _Count:
    """The good rows, fewer after each rule, and the reasons of the others."""

    def __init__(self, verdicts: Verdicts, rules: RecordsOptions, synonyms: dict[str, str]) -> None:
        self.verdicts, self.rules, self.synonyms = verdicts, rules, synonyms
        spelled = (*verdicts.taxa, *(read_species(rules.species) or ()))
        self.sensitive = SensitiveSpecies(rules.sensitive).named(spelled, synonyms)
        self.rows = verdicts.rows
        self.dropped = verdicts.dropped.copy()
        self.dropped_rows = None if verdicts.dropped_rows is None else [verdicts.dropped_rows]
        self.flags: dict[str, int] = {}
        self.visit = ["site", "event" if rules.visit == "event" else "day"]
        if rules.visit == "event" and (self.rows["event"] == 0).any():
            # records without an event are visits of their day
            by_day = pl.col("day").cast(pl.Int64).cast(pl.UInt64)
            self.rows = self.rows.with_columns(
                pl.when(pl.col("event") == 0).then(by_day).otherwise(pl.col("event")).alias("event")
            )

    def drop(self, bad: pl.Expr | np.ndarray, reason: str) -> None:
        """Take the rows where ``bad`` holds out, for a reason."""
        bad = bad if isinstance(bad, pl.Expr) else pl.lit(pl.Series(bad))
        marked = self.rows.select(bad.fill_null(False).alias("bad")).to_series()
        if not marked.any():
            return
        code = REASONS.index(reason)
        records = marked & ~self.rows["is_event"]
        self.dropped[code] += int(records.sum())
        if self.dropped_rows is not None:
            told = self.rows.filter(records).select(
                "file", "row", pl.lit(code, dtype=pl.UInt8).alias("reason")
            )
            self.dropped_rows.append(told)
        self.rows = self.rows.filter(~marked)

    def apply_rules_of_sites(self, *, listed_only: bool) -> None:
        """Leave out sites that are too large, hold too few records or are not listed."""
        rules, places = self.rules, self.verdicts.places
        if "record" in self.rows.columns:
            self.drop(told_before(self.rows), "duplicate record")
        if rules.max_footprint_deg2 is not None:
            self._drop_sites(
                shapely.area(places.footprints) > rules.max_footprint_deg2, "footprint too large"
            )
        self._drop_sites(self._records() < rules.min_records, "too few records at the site")
        if listed_only:
            self._drop_sites(
                np.array([not name for name in places.listed], dtype=bool), "not a listed site"
            )

    def apply_rules_of_visits(self) -> None:
        """
        Leave out rows that show no effort, visits told twice, short lists and sites with few
        visits.
        """
        rules = self.rules
        for reason in (
            "rank above species",
            "uncertain name",
            "name not understood",
            "species aggregate",
        ):
            self.drop(pl.col("rank_reason") == REASONS.index(reason), reason)
        if rules.double_recording != "keep":
            twice, shared_rows = double_recordings(self.rows, self.verdicts.places)
            if len(twice):
                self._drop_visits(twice, ["site", "day"], "double recording")
            if shared_rows:
                self.flags["the same species on one visit in two schemes"] = shared_rows
        shortest = rules.min_list_length or 1
        if shortest > 1:
            length = (
                pl.col("taxon")
                .filter(pl.col("present") & (pl.col("taxon") >= 0))
                .n_unique()
                .alias("length")
            )
            lists = self.rows.group_by(self.visit).agg(length).filter(pl.col("length") < shortest)
            self._drop_visits(lists, self.visit, "list too short")
        if rules.min_visits > 1:
            visits = self.rows.select(self.visit).unique().group_by("site").len("visits")
            few = np.ones(len(self.verdicts.places.footprints), dtype=bool)
            few[visits.filter(pl.col("visits") >= rules.min_visits)["site"].to_numpy()] = False
            self._drop_sites(few, "too few visits to the site")

    def _records(self) -> np.ndarray:
        """Return how many records each site has."""
        site = self.rows["site"].to_numpy()
        if self.rows["is_event"].any():
            site = site[~self.rows["is_event"].to_numpy()]
        return np.bincount(site, minlength=len(self.verdicts.places.footprints))

    def _drop_sites(self, bad: np.ndarray, reason: str) -> None:
        if bad.any():
            self.drop(bad[self.rows["site"].to_numpy()], reason)

    def _drop_visits(self, visits: pl.DataFrame, by: list[str], reason: str) -> None:
        marked = self.rows.join(
            visits.select(*by, bad=True), on=by, how="left", maintain_order="left"
        )["bad"]
        self.drop(pl.lit(marked), reason)

    def reasons(self) -> pl.DataFrame:
        """Return ``file``, ``row`` and ``reason`` of every row that was left out."""
        return pl.concat(self.dropped_rows or []).sort("file", "row")

    def account(self) -> dict[str, int]:
        """Return how many rows were read, left out for each reason, and kept."""
        dropped = self.dropped.tolist()
        dropped[REASONS.index("malformed row")] = self.verdicts.occurrences.malformed
        told = {
            f"dropped: {reason}": dropped[code]
            for code, reason in enumerate(REASONS)
            if dropped[code]
        }
        kept = len(self.rows) - int(self.rows["is_event"].sum())
        return {"read": self.verdicts.occurrences.read, **told, "kept": kept}

    def table(self) -> SurveyTable:
        """Count."""
        account = self.account()
        if self.rows.is_empty():
            raise RecordsError(_nothing_left(account, self.verdicts))
        places = self.verdicts.places
        numbers = self.rows["site"].unique().sort().to_list()
        ids = site_ids(places, numbers)
        order = sorted(range(len(ids)), key=ids.__getitem__)
        index = pd.Index([ids[i] for i in order], name="site_id")
        sites = np.array([numbers[i] for i in order])
        taxa = self.verdicts.taxa
        private = [place for place, name in enumerate(taxa) if name in self.sensitive.actions]
        lists = lists_of(self.rows, sites, self.visit[1], len(taxa), private)
        species, columns, k = self._detections(lists, len(sites))
        every = pd.DataFrame(k, index=index, columns=pd.Index(species, name="species"))
        footprints = places.footprints[sites]
        centres = shapely.centroid(footprints)
        frame = {
            "lon": shapely.get_x(centres),
            "lat": shapely.get_y(centres),
            "records": self._records()[sites],
        }
        held = gpd.GeoDataFrame(frame, index=index, geometry=footprints, crs="EPSG:4326")
        told = self._told(lists, every, held, columns)
        years = self.rows["day"].dt.year().unique().sort().to_list()
        return replace(
            told,
            rows={
                **account,
                **{f"flagged: {flag}": number for flag, number in self.flags.items() if number},
            },
            years=tuple(int(year) for year in years),
            notes=(*self._notes(lists.blank, places), *told.notes),
            names=self._names(),
        )

    def _told(
        self, lists: Lists, every: pd.DataFrame, held: gpd.GeoDataFrame, columns: np.ndarray
    ) -> SurveyTable:
        """
        Return what may be told: no sensitive species, nor where or when nothing else was seen.

        Parameters
        ----------
        every
            (site, species) detections of all wanted species.
        columns
            (taxa,) their columns.
        """
        open_taxa, told_taxa = self._open_taxa(every.columns, columns)
        length, all_seen = lists.length(open_taxa), lists.length()
        # Sums over squares do not count visits on which only withheld species were seen, either.
        secret = (lists.length(told_taxa) == 0) & (all_seen > 0)
        n = np.bincount(lists.site[~secret], minlength=len(held))
        detections, coarse, notes = self.sensitive.split(
            every, pd.Series(n, index=held.index), held
        )
        if not len(detections.columns):
            raise RecordsError(
                "All species are sensitive: none is left to count. Remove one from "
                "records.sensitive."
            )
        # A site where nothing else was ever seen would say by itself that the sensitive species was
        # seen there, and so would a visit.
        hidden_sites = (every.any(axis=1) & ~detections.any(axis=1)).to_numpy()
        alone = (length == 0) & (all_seen > 0)
        kept = ~alone & ~hidden_sites[lists.site]
        n = np.bincount(lists.site[kept], minlength=len(held))
        if hidden_sites.any() or (n == 0).any():
            notes = (
                *notes,
                "Left out, because nothing but sensitive species was seen there: "
                f"{counted(int((n == 0).sum()), 'site', 'sites')}.",
            )
        if on_others := int((alone & (n > 0)[lists.site]).sum()):
            notes = (
                *notes,
                "Left out, because nothing but sensitive species was seen on them: "
                f"{counted(on_others, 'visit', 'visits')} to other sites.",
            )
        if not n.any():
            raise RecordsError(
                "No site is left: nothing but sensitive species was seen. Remove one from "
                "records.sensitive."
            )
        column_of = detections.columns.get_indexer(every.columns)  # -1: sensitive
        columns = np.append(column_of, -1)[columns]
        table = visit_table(lists, columns, kept=kept, length=length, schemes=self.verdicts.schemes)
        if not n.all():
            table = table.taken(np.flatnonzero(n))
        visited = held.index[n > 0]
        return SurveyTable(
            detections=detections.loc[visited],
            visits=pd.Series(n[n > 0], index=visited, name="visits"),
            sites=held.loc[visited],
            rows={},
            years=(),
            notes=notes,
            coarse=coarse if len(coarse) else None,
            lists_of_one=int(((all_seen == 1) & kept).sum()),
            visit_table=table,
        )

    def _open_taxa(self, species: pd.Index, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Return (taxa,) which are not sensitive, and which are not withheld, under their own name and
        the one asked for.
        """
        taxa = self.verdicts.taxa

        def free(names: list[str]) -> np.ndarray:
            asked_for = np.append(np.asarray(species.isin(names)), False)[columns]
            hidden = np.array([name in names for name in taxa], dtype=bool) | asked_for
            return np.asarray(~hidden)

        actions = self.sensitive.actions
        return free(list(actions)), free([n for n, a in actions.items() if a == "withhold"])

    def _detections(
        self, lists: Lists, sites: int
    ) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
        """
        Return the species, (taxa,) their columns, and (site, species) counts of visits on which
        they were seen.
        """
        taxa = self.verdicts.taxa
        k = lists.detections(sites, len(taxa))
        asked = read_species(self.rules.species)
        if asked is None:
            wanted = [(taxa[column], column) for column in np.flatnonzero(k.any(axis=0)).tolist()]
            if not wanted:
                said = _no_species(self.verdicts.occurrences.dictionaries["name"])
                raise RecordsError(" ".join((said, *self.verdicts.notes)))
        else:
            # A wanted species may be given by a recorded or by its accepted name; the table keeps
            # the name that was given.
            accepted = [
                self.synonyms.get(name)
                or (name if name in taxa else accepted_name(name, self.synonyms))
                for name in asked
            ]
            if len(set(accepted)) < len(asked):
                raise RecordsError(
                    "Two of the wanted species have one accepted name. Name each species once."
                )
            column_of = {name: column for column, name in enumerate(taxa)}
            wanted = [
                (name, column_of.get(counted, -1))
                for name, counted in zip(asked, accepted, strict=True)
            ]
            others = np.setdiff1d(
                np.arange(-1, len(taxa)), [column for _, column in wanted if column >= 0]
            )
            effort = self.rows.select(
                (pl.col("taxon").is_in(others.tolist()) & ~pl.col("is_event")).sum()
            ).item()
            self.flags["shows effort, but no wanted species"] = int(effort)
        # the last column: wanted, never recorded
        k = np.hstack([k, np.zeros((len(k), 1), dtype=np.int64)])
        columns = np.full(len(taxa), -1)
        for place, (_, column) in enumerate(wanted):
            if column >= 0:
                columns[column] = place
        return tuple(name for name, _ in wanted), columns, k[:, [column for _, column in wanted]]

    def _names(self) -> pd.DataFrame:
        withheld = [name for name, action in self.sensitive.actions.items() if action == "withhold"]
        accepted = [accepted_name(name, self.synonyms) for name in withheld]
        told = (pl.col("recorded") != "") & ~pl.col("accepted").is_in(accepted)
        names = self.verdicts.names.filter(told).group_by("accepted", "recorded")
        texts = pl.col("text").unique()
        held = names.agg(pl.len().alias("spellings"), texts.sort().head(12).alias("texts"))
        return held.sort("accepted", "recorded").to_pandas()

    def _other_names(self) -> list[str]:
        """Tell which texts count under a name that they do not begin with."""
        held = self._names()
        told = []
        for accepted, of in held.groupby("accepted"):
            texts = {text for texts in of["texts"] for text in texts}
            others = sorted(text for text in texts if not text.startswith(str(accepted)))
            if others:
                more = ", ..." if len(others) > 4 else ""
                told.append(f"{accepted} from {', '.join(map(repr, others[:4]))}{more}")
        if not told:
            return []
        more = f"; and {len(told) - 20} more species" if len(told) > 20 else ""
        return [f"Counted under another name or spelling: {'; '.join(told[:20])}{more}."]

    def _notes(self, empty: int, places: Places) -> tuple[str, ...]:
        read = self.verdicts
        notes = [*read.occurrences.notes, *read.notes, *places.notes, *self._other_names()]
        if self.verdicts.occurrences.core == "event":
            notes.append(
                f"Effort is told by an event core: visits include {empty} on which nothing was "
                "seen."
            )
        else:
            notes.append(
                "Effort is told by records alone (occurrence core): visits that saw nothing are "
                "unknown."
            )
        states = self.verdicts.occurrences.dictionaries["state"]
        if not self.rules.complete_only and states["completeness"].is_in(list(INCOMPLETE)).any():
            notes.append(
                "Some lists do not name every species that was seen, but count as visits: "
                "records.scheme: complete leaves them out."
            )
        british = any(name and "mE" not in name for name in places.references)
        note = accuracy_note() if british else None
        return (*notes, note) if note else tuple(notes)


def _no_species(names: pl.DataFrame) -> str:
    """Say why no species is left to count."""
    told = names.select(pl.concat_list("species", "scientificName").explode().str.strip_chars())
    texts = told.to_series().unique().sort()
    numbers = texts.filter(texts.str.contains(r"^\d+(\.0)?$")).to_list()
    if numbers:
        return (
            f"No record of presence names a species: species are numbers, such as "
            f"{', '.join(numbers[:3])}. Say in records.synonyms which species each number is, such "
            f"as {{'{numbers[0]}': Pieris rapae}}, or name another column in records.columns."
        )
    return (
        "No record of presence names a species. Are the names in another column, or all rows "
        "ABSENT?"
    )


def _nothing_left(account: dict[str, int], verdicts: Verdicts) -> str:
    columns, notes = verdicts.occurrences.columns, verdicts.notes
    reasons = {
        key.removeprefix("dropped: "): n
        for key, n in account.items()
        if key.startswith("dropped: ")
    }
    told = ", ".join(
        f"{n:,} for {reason}" for reason, n in sorted(reasons.items(), key=lambda item: -item[1])
    )
    most = max(reasons, key=lambda reason: reasons[reason]) if reasons else ""
    advice = {
        "too few records at the site": "Lower records.min_records.",
        "too few visits to the site": "Lower records.min_visits.",
        "outside the years": "Widen records.years.",
        "another institution": (
            "Correct records.institutions."
            if "institutionCode" in columns
            else "The records do not name institutions: take records.institutions out, or name the "
            "column in records.columns."
        ),
        "no date": "Are the dates in a column of another name? Say so in records.columns.",
        "unreadable date": "Dates are read as 2018-06-03, 3/6/2018 or 3 June 2018.",
        "easting and northing outside their grid": "Say in records.crs which CRS they have, such "
        "as EPSG:25832.",
        "position 0, 0": "Places without coordinates have 0, 0: fill in where they are.",
        "unreadable coordinates": "Coordinates are read as decimal degrees, such as 51.31627.",
        "ambiguous date": "Say in records.day_first whether 3/6/2018 is in June.",
        "no coordinates": "Are the coordinates in a column of another name? Say so in "
        "records.columns.",
        "name not understood": " ".join(notes),
        "not a listed site": "Do records.sites list the footprints of these records?",
    }.get(most, "Check the records against the settings in build.records.")
    return f"No site is left: of {account['read']:,} rows {told or 'none'} were left out. {advice}"
