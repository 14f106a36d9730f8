"""Recognise the columns of a table of records by their headers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import polars as pl

from butterfly_sdm.errors import RecordsError, did_you_mean
from data_prep.records.readers.reader import TERMS

_ALIASES = {
    term: tuple(aliases.split())
    for term, aliases in {
        "recordID": "gbifid occurrenceid recordid nbnatlasrecordid id recordkey",
        "scientificName": (
            "scientificname matchedscientificname taxon taxonname latinname sciname speciesname "
            "latin scientific binomial recommendedname recommendedtaxonname preferredname "
            "specieslatin specieslatinname speciesscientificname scientificnameofspecies taxa"
        ),
        "species": "species speciesinterpreted specificepithet speciesepithet epithet",
        "genus": "genus genusname",
        "taxonRank": "taxonrank rank",
        "occurrenceStatus": "occurrencestatus",
        "individualCount": "individualcount count abundance number individuals observationcount "
        "quantity countofsexorstage howmany numberseen numbercounted nocounted noseen "
        "numberofindividuals "
        "countofindividuals totalcount",
        "status": "status",
        "organismQuantity": "organismquantity",
        "organismQuantityType": "organismquantitytype",
        "zeroAbundance": "zeroabundance",
        "verification": (
            "identificationverificationstatus verificationstatus1 verificationstatus "
            "recordstatus verified acceptedstatus"
        ),
        "basisOfRecord": "basisofrecord",
        "qualityGrade": "qualitygrade",
        "captive": ("captivecultivated captive iscaptive degreeofestablishment establishmentmeans"),
        "eventID": "eventid visitid samplingeventidentifier checklistid sampleid submissionid",
        "parentEventID": "parenteventid",
        "eventDate": "eventdate date visitdate surveydate observationdate observedon startdate "
        "datefrom eventdatestart sampledate recorddate daterecorded dateobserved dateofvisit "
        "dateofrecord dateofobservation recordingdate countdate obsdate walkdate "
        "vaguedatestart datum",
        "eventDateEnd": "eventdateend enddate dateto dateend eventenddate visitenddate "
        "dateinterpretedto vaguedateend",
        "startDayOfYear": "startdayofyear",
        "endDayOfYear": "enddayofyear",
        "qualifier": "identificationqualifier",
        "year": "year",
        "month": "month",
        "day": "day",
        "decimalLatitude": "decimallatitude latitude lat latitudewgs84 decimallatitudewgs84",
        "decimalLongitude": (
            "decimallongitude longitude lon long lng longitudewgs84 decimallongitudewgs84"
        ),
        "coordinateUncertaintyInMeters": (
            "coordinateuncertaintyinmeters coordinateuncertaintyinmetres coordinateuncertaintym "
            "coordinateuncertainty uncertaintym uncertainty publicpositionalaccuracy "
            "positionalaccuracy"
        ),
        "footprintWKT": "footprintwkt wkt geometry geom thegeom wktgeometry geometrywkt",
        "footprintSRS": "footprintsrs",
        "gridReference": (
            "gridreference gridref osgr osgbgridref gridsquare osiegridreference mapref "
            "outputmapref originalmapref gr ngr osgridref osgridreference osref spatialreference "
            "spatialref sref enteredsref irishgridref britishgridref gridreferences "
            "centroidgridref monad kmsquare 1kmsquare 1kmsq tetrad hectad 10kmsquare"
        ),
        "easting": "easting",
        "northing": "northing",
        "coordinateSRS": "verbatimsrs coordinatesystem coordinatereferencesystem crs srs epsg "
        "geodeticdatum",
        "countryCode": "countrycode",
        "coordinatesObscured": "coordinatesobscured geoprivacy",
        "locationID": "locationid siteid siteno sitenumber sitecode",
        "institutionCode": "institutioncode",
        "collectionCode": "collectioncode",
        "datasetName": "datasetname datasetkey dataresourcename",
        "license": "license licence",
        "groupID": "groupidentifier",
        "duration": (
            "durationminutes durationmin eventdurationvalue eventduration effortminutes duration"
        ),
        "durationUnit": "eventdurationunit durationunit",
        "samplingEffort": "samplingeffort",
        "completeness": (
            "completeness allspeciesreported completelist completechecklist islistcomplete "
            "allobsreported alltaxareported"
        ),
    }.items()
}
"""What a column is called, as :func:`key` writes it, in order of preference."""

_COMMON_NAMES = (
    "vernacularname",
    "commonname",
    "englishname",
    "vernacular",
    "speciescommonname",
    "butterfly",
    "butterflyspecies",
)
"""Columns of common names, which are read where a table has no other names."""

_DOUBT = r"^(?:cf|aff|nr|near|poss|prob|uncertain|unsure|doubtful|\?)|\?$"
_DATE = r"\d{1,4}[/.-](?:\d{1,2}|[A-Za-z]{3,9})(?:[/.-]\d{1,4})?|(?:[Ww]eek|[Ww]) ?\d{1,2}"

MISSING = frozenset(
    "na n/a n.a. #n/a #na #ref! #value! #div/0! #name? #null! #num! null (null) \\n none nan nat "
    "<na> -nan 1.#qnan 1.#ind #n/d #nv".split()
)
"""Words that programs write for a missing value, in small letters."""


def without_missing(term: str) -> pl.Expr:
    """
    Return a text column in which a word for a missing value is blank.

    A whole cell is meant: NA1234 is a grid reference. ``None`` as a name tells that nothing was
    seen.

    >>> pl.DataFrame({"day": ["NA", "3"]}).select(without_missing("day"))["day"].to_list()
    ['', '3']
    """
    words = MISSING - {"none"} if term in ("scientificName", "species") else MISSING
    cell = pl.col(term).str.strip_chars().str.to_lowercase()
    return pl.when(cell.is_in(sorted(words))).then(pl.lit("")).otherwise(pl.col(term)).alias(term)


def key(header: str) -> str:
    """
    Return a header without case, spaces, punctuation or namespace: ``dwc:eventDate`` is
    ``eventdate``.
    """
    return re.sub(r"[^a-z0-9]", "", header.rsplit("/", 1)[-1].rsplit(":", 1)[-1].lower())


def match_columns(header: Sequence[str], columns: Mapping[str, str], where: str) -> dict[str, str]:
    """
    Find the wanted columns of a table.

    Parameters
    ----------
    header
        Names of the columns in the file.
    columns
        A term: its name in the file, for columns that are named otherwise.
    where
        The file, for messages.

    Returns
    -------
    dict
        Name in the file: term.

    Raises
    ------
    RecordsError
        ``columns`` names a term or a column that does not exist.

    Examples
    --------
    >>> match_columns(["Date", "Taxon", "Grid ref", "notes"], {}, "walks.csv")["Grid ref"]
    'gridReference'
    """
    found: dict[str, str] = {}
    for term, name in columns.items():
        meant = term if term in TERMS else _term(key(term))
        if meant is None:
            hint = did_you_mean(term, TERMS) or f" Known are {', '.join(TERMS)}."
            raise RecordsError(
                f"records.columns names {term!r}, which is no column of records.{hint}"
            )
        if name not in header:
            hint = did_you_mean(name, header) or f" It has {', '.join(header[:40])}."
            raise RecordsError(
                f"{where} has no column {name!r}, which records.columns names for {term}.{hint}"
            )
        found[name] = meant
    keys = {name: key(name) for name in header}
    with_key: dict[str, list[str]] = {}
    for name, held in keys.items():
        with_key.setdefault(held, []).append(name)
    for term, aliases in _ALIASES.items():
        if term in found.values() or (term == "genus" and "scientificname" in keys.values()):
            continue
        for alias in aliases:  # in order of preference
            names = [name for name in with_key.get(alias, ()) if name not in found]
            if names:
                found[names[0]] = term
                break
    if not {"scientificName", "species"} & set(found.values()):
        named = [name for name in header if keys[name] in _COMMON_NAMES and name not in found]
        found |= dict.fromkeys(named[:1], "species")
    if not {"easting", "northing"} & set(found.values()):  # the CRS of metres, not of degrees
        found = {name: term for name, term in found.items() if term != "coordinateSRS"}
    return found


def with_genus(rows: pl.DataFrame) -> pl.DataFrame:
    """
    Write genus and species of two columns as one name.

    >>> with_genus(pl.DataFrame({"genus": ["Pieris"], "species": ["rapae"]}))["species"].to_list()
    ['Pieris rapae']
    """
    if "genus" not in rows.columns:
        return rows
    for term in ("scientificName", "species"):
        if term not in rows.columns:
            continue
        pairs = rows.select("genus", term).unique()
        joined = [_joined(genus.strip(), name.strip()) for genus, name in pairs.iter_rows()]
        whole = pairs.with_columns(pl.Series("joined", joined, dtype=pl.String))
        rows = rows.join(whole, on=["genus", term], how="left", maintain_order="left")
        rows = rows.with_columns(pl.col("joined").alias(term)).drop("joined")
    return rows.drop("genus")


def with_qualifier(rows: pl.DataFrame) -> pl.DataFrame:
    """
    Write a doubt that a column of its own tells beside the name.

    >>> rows = pl.DataFrame({"species": ["Pieris rapae"], "qualifier": ["cf. rapae"]})
    >>> with_qualifier(rows)["species"].to_list()
    ['Pieris rapae ?']
    """
    if "qualifier" not in rows.columns:
        return rows
    if not (rows["qualifier"] != "").any():  # the usual case
        return rows.drop("qualifier")
    doubt = pl.col("qualifier").str.strip_chars().str.to_lowercase().str.contains(_DOUBT)
    told = [term for term in ("scientificName", "species") if term in rows.columns]
    return rows.with_columns(
        pl.when(doubt & (pl.col(term) != ""))
        .then(pl.format("{} ?", term))
        .otherwise(pl.col(term))
        .alias(term)
        for term in told
    ).drop("qualifier")


def _joined(genus: str, name: str) -> str:
    """Return genus and epithet as one name, and a whole or a common name as it is."""
    if not genus or genus.lower() in MISSING:
        return name
    if not name or name.lower() in MISSING:
        return genus
    alone = len(name.split()) == 1 or re.match(r"(?:cf|aff|agg|sp|spp)[. ]", name.lower())
    return f"{genus} {name.lower()}" if alone and genus.lower() != name.lower() else name


def _term(alias: str) -> str | None:
    return next((term for term, aliases in _ALIASES.items() if alias in aliases), None)


def require(terms: Sequence[str], where: str, header: Sequence[str] = ()) -> None:
    """
    Refuse a table that cannot say which species was where and when.

    Parameters
    ----------
    terms
        What was recognised.
    where
        The file, for messages.
    header
        Names of all its columns, for messages.

    Raises
    ------
    RecordsError
        There is no date, place or name column.
    """
    have = set(terms)
    dated = [name for name in header if re.fullmatch(_DATE, name.strip())]
    if len(dated) > 1 and not have & {"eventDate", "year"}:
        raise RecordsError(
            f"{where} has a column of dates for each day or week ({', '.join(dated[:3])}), "
            "which is not read. Turn it so that each row is a species, a date, a place and a "
            "count: pivot longer in R, unpivot in Excel's Power Query."
        )
    named = ", ".join(name for name in header[:20] if name)
    columns = f" Its columns are {named}{', ...' if len(header) > 20 else ''}." if named else ""

    def missing(what: str, needed: str, term: str, more: str = "") -> RecordsError:
        return RecordsError(
            f"{where} has no {what} column: {needed} is needed.{columns} "
            f"If it has another name, say so in records.columns, such as {{{term}: NAME}}.{more}"
        )

    if not have & {"eventDate", "year", "eventID"}:
        raise missing("date", "eventDate (or year, month and day)", "eventDate")
    if not have & {"scientificName", "species"}:
        wide = " If each species has a column, head them with their scientific names."
        raise missing("species", "scientificName or species", "species", wide)
    places = {"footprintWKT", "gridReference", "locationID", "eventID"} & have
    if (
        not places
        and not {"decimalLatitude", "decimalLongitude"} <= have
        and not {"easting", "northing"} <= have
    ):
        raise missing(
            "place",
            "decimalLatitude and decimalLongitude, footprintWKT or gridReference",
            "gridReference",
        )
