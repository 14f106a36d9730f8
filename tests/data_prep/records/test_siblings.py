"""
Small inputs as people have them, each with its k and n counted by hand, by kind of trouble.

Each is read alone: `header` and `rows` make a CSV; `k` are all species that are detected, `n` all
visits; `out` are rows left out, by reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from butterfly_sdm.errors import RecordsError
from tests.data_prep.records.making_records import counted, counting

PLAIN = "date,lat,lon,species"
AT = "51.5,-1.5"


@dataclass
class Case:
    """A table and what is right."""

    kind: str
    name: str
    rows: list[str]
    n: int = 0
    k: dict[str, int] = field(default_factory=dict)
    header: str = PLAIN
    out: dict[str, int] = field(default_factory=dict)
    rules: dict[str, object] = field(default_factory=dict)
    note: str = ""
    refused: str = ""
    sites: int | None = None
    file: str = "a.csv"
    encoding: str = "utf-8"
    end: str = "\n"


def days(*texts, species="Pieris rapae"):
    """Return a row of one species at one place for each date."""
    return [f'"{text}",{AT},{species}' for text in texts]


def names(*texts):
    """Return a row at one place for each name, each on a day of its own."""
    return [f'2018-06-{day:02},{AT},"{text}"' for day, text in enumerate(texts, 1)]


def places(header, *texts):
    """Return the header and a row for each place, each on a day of its own."""
    return {
        "header": f"date,species,{header}",
        "rows": [f"2018-06-{day:02},Pieris rapae,{text}" for day, text in enumerate(texts, 1)],
    }


def with_columns(header, *texts, species="Pieris rapae"):
    """Return the header and a row for each set of further cells, each on a day of its own."""
    return {
        "header": f"{PLAIN},{header}",
        "rows": [f"2018-06-{day:02},{AT},{species},{text}" for day, text in enumerate(texts, 1)],
    }


ONE = {"Pieris rapae": 1}
CASES = [
    # 1. names
    Case(
        "names",
        "title case, tabs and dots of R",
        names("Pieris Rapae", "Pieris.rapae", "Pieris  rapae", "PIERIS RAPAE (L.)"),
        4,
        {"Pieris rapae": 4},
    ),
    Case(
        "names",
        "common names that begin like a species",
        names("Small white moth sp", "Green-veined white butterfly", "Red admiral", "Pieris rapae"),
        1,
        ONE,
        out={"name not understood": 2, "rank above species": 1},
    ),
    Case(
        "names",
        "groups of two species",
        names("Thymelicus sylvestris/lineola", "Small/Essex Skipper", "Pieris rapae"),
        3,
        ONE,
    ),
    Case(
        "names",
        "nobody, in words",
        names("No butterflies seen", "None seen", "-", "no sightings", "Pieris rapae"),
        4,
        ONE,
    ),
    Case(
        "names",
        "a name in the wrong case with its author",
        names("pieris rapae linnaeus, 1758", "Pieris rapae Linnaeus 1758", "Pieris rapae L"),
        3,
        {"Pieris rapae": 3},
    ),
    Case(
        "names",
        "a dead one, a web, a doubtful one",
        names("Pieris ?", "Pieris rapae?", "?Pieris rapae", "Pieris rapae"),
        1,
        ONE,
    ),
    Case(
        "names",
        "abbreviated genus is not guessed",
        names("P. rapae", "P rapae", "Pieris rapae"),
        1,
        ONE,
        out={"name not understood": 2},
    ),
    Case(
        "names",
        "English names by synonyms, with notes in brackets",
        names("Small White", "small white ", "SMALL WHITE", "Peacock"),
        4,
        {"Pieris rapae": 3, "Aglais io": 1},
        rules={"synonyms": {"Small white": "Pieris rapae", "Peacock": "Aglais io"}},
    ),
    Case(
        "names",
        "two species in a cell detect nobody",
        names(
            "Pieris rapae & Pieris napi",
            "Pieris rapae, Pieris napi",
            "Pieris rapae or P. napi",
            "Pieris rapae",
        ),
        1,
        ONE,
        out={"name not understood": 3},
    ),
    Case(
        "names",
        "counts, sexes, tags and dashes in the cell of a name",
        names(
            "Pieris rapae x3",
            "Pieris rapae ♂",
            "<i>Pieris rapae</i>",
            "Pieris rapae.",
            "Polygonia c–album",
            "Pieris rapae (3)",
        ),
        6,
        {"Pieris rapae": 5, "Polygonia c-album": 1},
    ),
    Case(
        "names",
        "a name that was not seen",
        names("Pieris rapae - none seen", "Pieris rapae absent", "Pieris rapae not found"),
        refused="name not understood",
    ),
    Case(
        "names",
        "a doubt in a column of its own",
        **with_columns("identificationQualifier", "cf. rapae", "?", "", "s. str."),
        n=2,
        k={"Pieris rapae": 2},
        out={"uncertain name": 2},
    ),
    # 2. dates
    Case(
        "dates",
        "periods in words",
        days(
            "1-3 June 2018",
            "01/06/2018-03/06/2018",
            "between 1/6/2018 and 5/6/2018",
            "June 2018",
            "Summer 2018",
            "2018",
            "1st week of June 2018",
            "4 June 2018",
        ),
        1,
        ONE,
    ),
    Case(
        "dates",
        "weekdays and ordinals",
        days(
            "Sunday 3 June 2018",
            "Sun, 3rd June 2018",
            "3rd of June 2018",
            "June 4, 2018",
            "Jun 5 2018",
        ),
        3,
        {"Pieris rapae": 3},
    ),
    Case(
        "dates",
        "a time beside the day",
        days("03/06/2018 14:30", "03/06/2018 02:30 PM", "2018-06-03 14:30:00+01", "14/06/2018"),
        2,
        {"Pieris rapae": 2},
    ),
    Case(
        "dates",
        "an end that is the day itself",
        [f"3/6/2018,03/06/2018,{AT},Pieris rapae", f"14/6/2018,15/06/2018,{AT},Aglais io"],
        1,
        ONE,
        header="Start date,End date,lat,lon,species",
        out={"date is a period": 1},
        rules={"day_first": True},
    ),
    Case(
        "dates",
        "American order is told by one date",
        days("6/3/2018", "6/14/2018", "06/03/2018"),
        2,
        {"Pieris rapae": 2},
    ),
    Case(
        "dates",
        "days that cannot be",
        days("31/06/2018", "2018-02-30", "0000-00-00", "1900-01-00", "3 Juni 2018", "2018-06-03"),
        1,
        ONE,
        rules={"day_first": True},
    ),
    Case(
        "dates",
        "the same day in three time zones",
        days("2018-06-03T23:59:59Z", "2018-06-03T00:00:00.000", "2018-06-03T12:00+02:00"),
        1,
        ONE,
    ),
    Case(
        "dates",
        "months that are words",
        [
            f"2018,June,3,{AT},Pieris rapae",
            f"2018,jun,4,{AT},Aglais io",
            f"2018,6,5,{AT},Aglais io",
        ],
        3,
        {"Aglais io": 2, "Pieris rapae": 1},
        header="year,month,day,lat,lon,species",
    ),
    # 3. places
    Case(
        "places",
        "words and halves of a grid reference",
        **places(
            "gridref", "SU1234", "SU 12 34", "su1234", "SU", "unknown", "SU123", "SU12 34?", "TBC"
        ),
        n=3,
        k={"Pieris rapae": 3},
        sites=1,
        out={"unreadable grid reference": 4, "no coordinates": 1},
    ),
    Case(
        "places",
        "Irish references in their ways",
        **places("gridref", "O1234", "O 12 34", "IO1234", "o1234"),
        n=4,
        k={"Pieris rapae": 4},
        sites=1,
    ),
    Case(
        "places",
        "lost signs told by the country",
        **places("lat,lon,countryCode", "51.5,1.9,GB", "51.5,-1.5,GB", "53.3,6.2,IE"),
        n=2,
        k={"Pieris rapae": 2},
        out={"sign of a coordinate lost": 1},
        note="do not lie in the country",
    ),
    Case(
        "places",
        "decimal commas and degree signs",
        **places("lat,lon", '"51,5","-1,5"', "51.5°,-1.5°", "51.5 N,1.5 W", "51.5,-1.5"),
        n=2,
        k={"Pieris rapae": 2},
        sites=1,
        out={"unreadable coordinates": 2},
    ),
    Case(
        "places",
        "uncertainties in words",
        **places(
            "lat,lon,coordinateUncertaintyInMeters",
            "51.5,-1.5,5km",
            "51.5,-1.5,100m",
            "51.5,-1.5,<500",
            "51.5,-1.5,unknown",
            '51.5,-1.5,"2,000"',
        ),
        n=3,
        k={"Pieris rapae": 3},
        rules={"max_uncertainty_m": 1000},
    ),
    Case(
        "places",
        "a place of 0 beside a grid reference",
        **places("lat,lon,gridref", "0,0,SU1234", "0.0,0.0,", "51.1,-1.83,SU1234"),
        n=2,
        k={"Pieris rapae": 2},
        sites=1,
        out={"position 0, 0": 1},
    ),
    Case(
        "places",
        "metres in degrees' columns are refused",
        **places("latitude,longitude", "123456,412345"),
        refused="out of range",
    ),
    Case(
        "places",
        "degrees in metres' columns are left out",
        **places("easting,northing,lat,lon", "-1.5,51.5,,", ",,51.5,-1.5"),
        n=1,
        k=ONE,
        out={"easting and northing outside their grid": 1},
    ),
    Case(
        "places",
        "points as text of a database",
        **places(
            "geom", "POINT(-1.5 51.5)", "SRID=4326;POINT (-1.5 51.5)", "POINT Z (-1.5 51.5 90)", ""
        ),
        n=3,
        k={"Pieris rapae": 3},
        sites=1,
        out={"no coordinates": 1},
    ),
    Case(
        "places",
        "areas alone",
        **places("wkt", '"POLYGON((-1.5 51.5,-1.4 51.5,-1.4 51.6,-1.5 51.5))"', "POLYGON EMPTY"),
        n=1,
        k=ONE,
        sites=1,
    ),
    Case(
        "places",
        "whole degrees are told",
        **places("lat,lon", "51,-1", "51.5,-1.5"),
        n=2,
        k={"Pieris rapae": 2},
        note="whole degrees",
    ),
    # 4. presence
    Case(
        "presence",
        "counts that are none",
        **with_columns("count", "0", "0.0", "zero", "nil", "none seen", "3", "present", ""),
        n=8,
        k={"Pieris rapae": 3},
    ),
    Case(
        "presence",
        "a state of conservation is no presence",
        **with_columns("Status", "Least concern", "Red list", "Least concern"),
        n=3,
        k={"Pieris rapae": 3},
        note="was not taken as presence",
    ),
    Case(
        "presence",
        "verifiers' words",
        **with_columns(
            "verificationStatus",
            "Rejected",
            "Not accepted - unable to verify",
            "Accepted - correct",
            "Unconfirmed",
            "incorrect",
        ),
        n=2,
        k={"Pieris rapae": 2},
        out={"rejected identification": 3},
    ),
    Case(
        "presence",
        "an amount of cover of 0 counts nobody, one of individuals does",
        **with_columns("organismQuantity,organismQuantityType", "0,individuals", "5,individuals"),
        n=2,
        k=ONE,
    ),
    Case(
        "presence",
        "released and bred",
        **with_columns("establishmentMeans", "released", "native", "cultivated", ""),
        n=2,
        k={"Pieris rapae": 2},
        out={"captive or cultivated": 2},
    ),
    Case(
        "presence",
        "absence in the words of other programs",
        **with_columns("occurrenceStatus", "Absent", "not present", "FALSE", "N", "0", "Present"),
        n=5,
        k=ONE,
        out={"unknown status": 1},
    ),
    Case(
        "presence",
        "a negative count is none",
        **with_columns("count", "-1", "-99", "2"),
        n=1,
        k=ONE,
        out={"unknown status": 2},
    ),
    # 5. events
    Case(
        "events",
        "two shared lists and one alone",
        [
            f"S1,G1,2018-06-03,{AT},Pieris rapae,1",
            f"S2,G1,2018-06-03,{AT},Aglais io,1",
            f"S3,,2018-06-03,{AT},Pieris rapae,1",
        ],
        2,
        {"Aglais io": 1, "Pieris rapae": 2},
        header="checklist id,group identifier,date,lat,lon,species,all species reported",
        rules={"scheme": "complete"},
    ),
    Case(
        "events",
        "ids that are missing are visits of their day",
        [
            f"NA,2018-06-03,{AT},Pieris rapae",
            f"NA,2018-06-04,{AT},Pieris rapae",
            f"e1,2018-06-04,{AT},Aglais io",
        ],
        3,
        {"Aglais io": 1, "Pieris rapae": 2},
        header="eventID,date,lat,lon,species",
        rules={"scheme": "event"},
    ),
    Case(
        "events",
        "one id on two days is two visits by day",
        [f"e1,2018-06-03,{AT},Pieris rapae", f"e1,2018-06-04,{AT},Pieris rapae"],
        2,
        {"Pieris rapae": 2},
        header="eventID,date,lat,lon,species",
    ),
    Case(
        "events",
        "incomplete in the words of other programs",
        [
            f"S1,2018-06-03,{AT},Pieris rapae,TRUE",
            f"S2,2018-06-04,{AT},Pieris rapae,FALSE",
            f"S3,2018-06-05,{AT},Pieris rapae,yes",
            f"S4,2018-06-06,{AT},Pieris rapae,",
        ],
        2,
        {"Pieris rapae": 2},
        header="checklist id,date,lat,lon,species,complete list",
        rules={"scheme": "complete"},
        out={"incomplete list": 2},
    ),
    # 6. missing values
    Case(
        "missing",
        "in every column of a row",
        [
            f"2018-06-03,{AT},Pieris rapae,NA,N/A,NULL,nan",
            f"2018-06-04,{AT},Pieris rapae,#N/A,<NA>,None,NaN",
            f"2018-06-05,{AT},NA,NA,NA,NA,NA",
        ],
        3,  # nobody is named on the last: somebody was there
        {"Pieris rapae": 2},
        header=f"{PLAIN},count,occurrenceStatus,taxonRank,gridref",
    ),
    Case(
        "missing",
        "dates and places",
        [
            f"NA,{AT},Pieris rapae",
            "2018-06-03,NA,NA,Pieris rapae",
            "2018-06-04,null,NULL,Pieris rapae",
            f"2018-06-05,{AT},Pieris rapae",
        ],
        1,
        ONE,
        out={"no date": 1, "no coordinates": 2},
    ),
    Case(
        "missing",
        "\\N of a database, beside a grid reference of land in square NA",
        **places("gridref,lat,lon", r"\N,51.5,-1.5", r"NA1234,\N,\N", r"\N,\N,\N"),
        n=2,
        k={"Pieris rapae": 2},
        sites=2,
        out={"no coordinates": 1},
    ),
    Case(
        "missing",
        "numbers that stand for nothing",
        **places("lat,lon", "-999,-999", "51.5,-1.5"),
        n=1,
        k=ONE,
        rules={"out_of_range": "drop"},
    ),
    # 7. files
    Case(
        "files",
        "rows that end early, as Excel leaves them",
        [f"2018-06-03,{AT},Pieris rapae", f"2018-06-04,{AT},Aglais io,note", f"2018-06-05,{AT}"],
        2,
        {"Aglais io": 1, "Pieris rapae": 1},
        header=f"{PLAIN},note,more",
        out={"malformed row": 1},
    ),
    Case(
        "files",
        "old Macintosh line ends",
        days("2018-06-03", "2018-06-04"),
        2,
        {"Pieris rapae": 2},
        end="\r",
    ),
    Case(
        "files",
        "a file of Windows with accents, in quotes",
        [f'2018-06-03,{AT},"Pieris rapae","Höhe ""Süd"", né"'],
        1,
        ONE,
        header=f"{PLAIN},note",
        encoding="cp1252",
    ),
    Case(
        "files",
        "bars and a total at the end",
        ["2018-06-03|51.5|-1.5|Pieris rapae", "Total|||1"],
        1,
        ONE,
        header=PLAIN.replace(",", "|"),
    ),
    Case(
        "files",
        "semicolons and decimal commas",
        ["2018-06-03;51,5;-1,5;Pieris rapae", "2018-06-04;51,5;-1,5;Pieris rapae"],
        2,
        {"Pieris rapae": 2},
        header=PLAIN.replace(",", ";"),
        sites=1,
    ),
    Case(
        "files",
        "a web page that was saved instead",
        ["<body>Please sign in</body></html>"],
        header="<!DOCTYPE html><html>",
        refused="web page",
    ),
    Case("files", "a header alone", [], refused="no records"),
    # 8. layouts
    Case(
        "layouts",
        "a week a column is refused with the cure",
        ["Pieris rapae,3,0", "Aglais io,0,1"],
        header="Species,03/06/2018,10/06/2018",
        refused="a column of dates",
    ),
    Case(
        "layouts",
        "species in columns, presence as crosses",
        ["03/06/2018,SU1234,x,,X", "14/06/2018,SU1234,,,"],
        2,
        {"Aglais io": 1, "Pieris rapae": 1},
        header="Date,Grid ref,Pieris rapae,Pieris napi,Aglais io",
    ),
    Case(
        "layouts",
        "genus and species, and a common name beside them",
        [f"2018-06-03,{AT},Small White,Pieris,rapae", f"2018-06-04,{AT},Peacock,Aglais,io"],
        2,
        {"Aglais io": 1, "Pieris rapae": 1},
        header="date,lat,lon,Common name,Genus,Species",
    ),
    Case(
        "layouts",
        "headers of a spreadsheet",
        ["3 June 2018,SU 123 345,Small White,Pieris rapae,c. 20,Ann"],
        1,
        ONE,
        header="Date of visit,OS grid ref,English name,Latin name,How many?,Seen by",
    ),
    Case(
        "layouts",
        "text that is called a workbook",
        ["2018-06-03\tSU1234\tPieris rapae"],
        1,
        ONE,
        header="date\tgridref\tspecies",
        file="a.xls",
    ),
    Case(
        "layouts",
        "species by codes in columns are refused with the cure",
        ["2018-06-03,SU1234,1,0"],
        header="date,gridref,PIERAP,AGLAIO",
        refused="head them with their scientific names",
    ),
    Case(
        "layouts",
        "males and females have a column each",
        ["2018-06-03,SU1234,1,0,0", "2018-06-04,SU1234,0,2,0", "2018-06-05,SU1234,0,0,0"],
        3,
        {"Pieris rapae": 2},
        header="date,gridref,Pieris rapae (male),Pieris rapae (female),Aglais io",
    ),
    # 9. silence
    Case(
        "silence",
        "old names count apart, and that is told",
        names("Ladoga camilla", "Limenitis camilla"),
        2,
        {"Ladoga camilla": 1, "Limenitis camilla": 1},
        note="two names of one species: Ladoga camilla and Limenitis camilla",
    ),
    Case(
        "silence",
        "dates of a year alone that were written as its first day",
        days(*(f"{year}-01-01" for year in range(2010, 2016))),
        6,
        {"Pieris rapae": 6},
        note="6 rows are dated 1 January",
    ),
    Case(
        "silence",
        "most rows of another status",
        **with_columns("occurrenceStatus", "maybe", "perhaps", "present"),
        n=1,
        k=ONE,
        out={"unknown status": 2},
    ),
    Case(
        "silence",
        "codes without synonyms are refused with examples",
        names("SMWH", "PEAC"),
        refused="SMWH",
    ),
    Case(
        "silence",
        "numbers without synonyms are refused with examples",
        names("98", "12"),
        refused="'98'",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.name}")
def test_a_sibling(case, tmp_path):
    path = tmp_path / case.file
    path.write_bytes((case.end.join([case.header, *case.rows]) + case.end).encode(case.encoding))
    rules = counting(**case.rules)
    if case.refused:
        with pytest.raises(RecordsError, match=case.refused):
            counted(path, scratch=tmp_path, rules=rules)
        return
    table = counted(path, scratch=tmp_path, rules=rules)
    found = {name: int(k) for name, k in table.detections.sum().items()}
    assert (int(table.visits.sum()), found) == (case.n, case.k), (table.rows, table.notes)
    for reason, rows in case.out.items():
        assert table.rows.get(f"dropped: {reason}", 0) == rows, table.rows
    if case.sites is not None:
        assert len(table.sites) == case.sites, list(table.sites.index)
    assert case.note in " ".join(table.notes)


def test_each_kind_has_three_siblings():
    kinds = [case.kind for case in CASES]
    assert all(kinds.count(kind) >= 3 for kind in kinds)
