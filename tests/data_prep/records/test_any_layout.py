"""
A random survey, written in any layout, encoding and spelling, is read back to the same k of n.

The survey is counted here by hand: n of a site are its days, k of a species the days it was seen.
Layouts that know nothing of visits on which nothing was seen have the smaller n.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import random
import tempfile
import warnings
from pathlib import Path

import geopandas as gpd
import pandas as pd
import pyogrio
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from butterfly_sdm.errors import RecordsError
from data_prep.records.places.grid_references import GridSquare
from tests.data_prep.records.making_records import DWC, counted, counting, meta, zipped

SITES = ("SU1234", "SP5106", "NT2673", "TQ3080")
PLACES = {name: GridSquare.parse(name).footprint() for name in SITES}
ENGLISH = {"Pieris rapae": "Small White", "Aglais io": "Peacock", "Maniola jurtina": "Meadow Brown"}
SPECIES = (*ENGLISH, "Polygonia c-album")
SYNONYMS = {common: name for name, common in ENGLISH.items()} | {"Comma": "Polygonia c-album"}
ENGLISH |= {"Polygonia c-album": "Comma"}
AUTHOR = {"Pieris rapae": "(Linnaeus, 1758)", "Aglais io": "(Linnaeus, 1758)"}

NAMES = {
    "plain": lambda name: name,
    "capitals": str.upper,
    "small": str.lower,
    "underscore": lambda name: name.replace(" ", "_"),
    "author": lambda name: f"{name} {AUTHOR.get(name, 'Linnaeus, 1758')}",
    "subspecies": lambda name: f"{name} {name.split()[1]}",
    "spaces": lambda name: f"  {name.replace(' ', chr(160))} ",
    "english": lambda name: ENGLISH[name],
    "english capitals": lambda name: ENGLISH[name].upper(),
}
DAYS = {
    "iso": lambda day: day.isoformat(),
    "time": lambda day: f"{day.isoformat()}T09:30:00Z",
    "slashes": lambda day: f"{day.day}/{day.month}/{day.year}",
    "zeros": lambda day: f"{day:%d/%m/%Y}",
    "dots": lambda day: f"{day:%d.%m.%Y}",
    "year first": lambda day: f"{day:%Y/%m/%d}",
    "words": lambda day: f"{day.day} {day:%B} {day.year}",
    "short": lambda day: f"{day:%d-%b-%Y}",
    "ordinal": lambda day: f"{day:%Y-%j}",
    "compact": lambda day: f"{day:%Y%m%d}",
}
ENCODINGS = ("utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le")


class Survey:
    """Visits, what was seen on each, and how they are to be written."""

    def __init__(self, seed):
        self.draw = draw = random.Random(seed)
        days = [dt.date(2018, 4, 1) + dt.timedelta(days=n) for n in range(150)]
        self.visits = {}
        for site in draw.sample(SITES, draw.randint(1, 4)):
            for day in draw.sample(days, draw.randint(1, 6)):
                share = draw.choice((0, 0.5, 0.9))
                self.visits[site, day] = [s for s in SPECIES if draw.random() < share]
        self.visits[next(iter(self.visits))] = [draw.choice(SPECIES)]
        self.name = NAMES[draw.choice(list(NAMES))]
        self.day = DAYS[draw.choice(list(DAYS))]
        self.encoding = draw.choice(ENCODINGS)
        self.again = draw.random() < 0.3  # rows told twice

    def sightings(self):
        """Yield number, site, day, species and count of every sighting."""
        told = [(s, d, name) for (s, d), seen in self.visits.items() for name in seen]
        self.draw.shuffle(told)
        for number, (site, day, name) in enumerate(told, 1):
            yield number, site, day, name, self.draw.choice(("1", "12", "3"))
            if self.again:
                yield number, site, day, name, "2"

    def expected(self, *, empty):
        """Return n and k by site, as counted by hand."""
        n, k = {}, {}
        for (site, _), seen in self.visits.items():
            n[site] = n.get(site, 0) + bool(seen or empty)
            for name in seen:
                k[site, name] = k.get((site, name), 0) + 1
        return {site: number for site, number in n.items() if number}, k

    def text(self, header, rows, separator=",", encoding=None):
        """Return a table as bytes."""
        held = io.StringIO()
        end = self.draw.choice(("\n", "\r\n"))
        csv.writer(held, delimiter=separator, lineterminator=end).writerows([header, *rows])
        return held.getvalue().encode(encoding or self.encoding)


def centre(site):
    return PLACES[site].centroid.y, PLACES[site].centroid.x


def as_table(survey, folder):
    draw = survey.draw
    place = draw.choice(("grid", "degrees", "metres", "area"))
    date = draw.choice(("one", "parts"))
    whole = draw.choice((True, False))  # or genus and species in two columns
    of_place = {
        "grid": (("Grid ref",), lambda s: (s,)),
        "degrees": (("lat", "long"), centre),
        "metres": (
            ("Easting", "Northing"),
            lambda s: (GridSquare.parse(s).easting + 500, GridSquare.parse(s).northing + 500),
        ),
        "area": (("lat", "lon", "wkt"), lambda s: (*centre(s), PLACES[s].wkt)),
    }[place]
    of_day = {
        "one": (("Date",), lambda d: (survey.day(d),)),
        "parts": (("Year", "Month", "Day"), lambda d: (d.year, d.month, d.day)),
    }[date]
    of_name = ("Taxon",) if whole else ("Genus", "Species")

    def name(text):
        return (survey.name(text),) if whole else tuple(text.split())

    rows = [
        [number, *of_place[1](site), "né, to say", *of_day[1](day), *name(species), count]
        for number, site, day, species, count in survey.sightings()
    ]
    header = ["Key", *of_place[0], "Note", *of_day[0], *of_name, "Count"]
    separator = draw.choice((",", ";", "\t", "|"))
    path = folder / draw.choice(("a.csv", "a.txt", "a.tsv"))
    path.write_bytes(survey.text(header, rows, separator))
    return path, False


def as_archive(survey, folder):
    header = ("id", "scientificName", "eventDate", "decimalLatitude", "decimalLongitude", "WKT")
    rows = [
        (number, survey.name(species), survey.day(day), *centre(site), PLACES[site].wkt)
        for number, site, day, species, _ in survey.sightings()
    ]
    terms = [*header[:5], "footprintWKT"]
    fields = "".join(f'<field index="{i}" term="{DWC}{t}"/>' for i, t in enumerate(terms) if i)
    core = (
        f'<core encoding="UTF-8" rowType="{DWC}Occurrence" fieldsTerminatedBy="," '
        'fieldsEnclosedBy="&quot;" ignoreHeaderLines="1"><files><location>o.csv</location></files>'
        f'<id index="0"/>{fields}</core>'
    )
    files = {"meta.xml": meta(core), "o.csv": survey.text(header, rows, encoding="utf-8")}
    return zipped(folder / "a.zip", files), False


def as_events(survey, folder):
    def table(kind, tag, key, name, terms):
        fields = "".join(f'<field index="{i}" term="{DWC}{t}"/>' for i, t in enumerate(terms) if i)
        return (
            f'<{tag} encoding="UTF-8" rowType="{DWC}{kind}" fieldsTerminatedBy="," '
            f'fieldsEnclosedBy="&quot;" ignoreHeaderLines="1"><files><location>{name}</location>'
            f'</files><{key} index="0"/>{fields}</{tag}>'
        )

    events = ("eventID", "eventDate", "decimalLatitude", "decimalLongitude")
    seen = ("eventID", "scientificName", "occurrenceStatus")
    ids = {visit: f"e{number}" for number, visit in enumerate(survey.visits)}
    files = {
        "meta.xml": meta(
            table("Event", "core", "id", "e.csv", events),
            table("Occurrence", "extension", "coreid", "o.csv", seen),
        ),
        "e.csv": survey.text(
            events,
            [(ids[s, d], survey.day(d), *centre(s)) for s, d in survey.visits],
            encoding="utf-8",
        ),
        "o.csv": survey.text(
            seen,
            [(ids[s, d], survey.name(name), "present") for _, s, d, name, _ in survey.sightings()],
            encoding="utf-8",
        ),
    }
    return zipped(folder / "a.zip", files), True


def as_gbif(survey, folder):
    header = "gbifID datasetKey species scientificName taxonRank decimalLatitude decimalLongitude"
    rows = [
        (number, "key", name, f"{name} L.", "SPECIES", *centre(site), day.isoformat(), "PRESENT")
        for number, site, day, name, _ in survey.sightings()
    ]
    header = [*header.split(), "eventDate", "occurrenceStatus"]
    (folder / "a.csv").write_bytes(survey.text(header, rows, "\t", "utf-8"))
    return folder / "a.csv", False


def as_nbn(survey, folder):
    header = ["NBN Atlas record ID", "Scientific name", "Start date", "OSGR", "Occurrence status"]
    rows = [
        (f"n{number}", survey.name(name), f"{day:%d/%m/%Y}", site, "present")
        for number, site, day, name, _ in survey.sightings()
    ]
    (folder / "a.csv").write_bytes(survey.text(header, rows))
    return folder / "a.csv", False


def as_ukbms(survey, folder):
    own = {site: number for number, site in enumerate(SITES, 7)}
    tables = {
        "site_data": (("SITE_ID", "GRIDREF"), [(own[s], s) for s in SITES]),
        "m_visit": (("SITE_ID", "DATE"), [(own[s], survey.day(d)) for s, d in survey.visits]),
        "m_count": (
            ("SITE_ID", "DATE", "SPECIES", "COUNT"),
            [
                (own[s], f"{d.day}/{d.month}/{d.year}", survey.name(name), count)
                for _, s, d, name, count in survey.sightings()
            ],
        ),
    }
    (folder / "t").mkdir()
    for name, (header, rows) in tables.items():
        (folder / "t" / f"{name}.csv").write_bytes(survey.text(header, rows, encoding="utf-8"))
    return folder / "t", True


def as_irecord(survey, folder):
    header = "RecordKey,Rank,Taxon,Common name,Output map ref,Date interpreted,Date from,Date to"
    rows = [
        (f"i{number}", "Species", survey.name(name), "", site, *[f"{day:%d/%m/%Y}"] * 3, "")
        for number, site, day, name, _ in survey.sightings()
    ]
    header = [*header.split(","), "Zero abundance"]
    (folder / "a.csv").write_bytes(survey.text(header, rows))
    return folder / "a.csv", False


def as_mapmate(survey, folder):
    header = ["Taxon", "Vernacular", "Site", "Gridref", "VC", "Date", "Quantity", "Stage", "Status"]
    rows = [
        (survey.name(name), "", "there", site, 8, f"{day:%d/%m/%Y}", count, "Adult", "Not recorded")
        for _, site, day, name, count in survey.sightings()
    ]
    (folder / "a.txt").write_bytes(survey.text(header, rows, "\t"))
    return folder / "a.txt", False


def as_inaturalist(survey, folder):
    header = "id,observed_on,quality_grade,captive_cultivated,latitude,longitude,scientific_name"
    rows = [
        (number, day.isoformat(), "research", "false", *centre(site), survey.name(name), 5)
        for number, site, day, name, _ in survey.sightings()
    ]
    header = [*header.split(","), "taxon_id"]
    (folder / "a.csv").write_bytes(survey.text(header, rows, encoding="utf-8"))
    return folder / "a.csv", False


def as_ebird(survey, folder):
    header = (
        "GLOBAL UNIQUE IDENTIFIER,SCIENTIFIC NAME,OBSERVATION COUNT,LATITUDE,LONGITUDE,"
        "OBSERVATION DATE,SAMPLING EVENT IDENTIFIER,ALL SPECIES REPORTED,GROUP IDENTIFIER"
    )
    lists = {visit: f"S{number}" for number, visit in enumerate(survey.visits)}
    rows = [
        (f"O{number}", name, "X", *centre(s), d.isoformat(), lists[s, d], 1, "")
        for number, s, d, name, _ in survey.sightings()
    ]
    (folder / "a.txt").write_bytes(survey.text(header.split(","), rows, "\t", "utf-8"))
    return folder / "a.txt", False


def as_my_ebird(survey, folder):
    header = (
        "Submission ID,Common Name,Scientific Name,Count,Location ID,Latitude,Longitude,Date,"
        "All Obs Reported"
    )
    lists = {visit: f"S{number}" for number, visit in enumerate(survey.visits)}
    rows = [
        (lists[s, d], "", survey.name(name), "X", f"L{s}", *centre(s), f"{d:%m-%d-%Y}", 1)
        for _, s, d, name, _ in survey.sightings()
    ]
    (folder / "a.csv").write_bytes(survey.text(header.split(","), rows, encoding="utf-8"))
    return folder / "a.csv", False


def as_birdtrack(survey, folder):
    header = ["BTO species code", "Species", "Scientific name", "Count", "Date", "Grid reference"]
    rows = [
        ("B.", "", survey.name(name), f"c{count}", f"{day:%d/%m/%Y}", site)
        for _, site, day, name, count in survey.sightings()
    ]
    (folder / "a.csv").write_bytes(survey.text(header, rows))
    return folder / "a.csv", False


def wide_rows(survey):
    draw = survey.draw
    style = draw.choice([n for n in NAMES if n != "spaces"])
    header = ["Date", "Grid ref", *(NAMES[style](s) for s in SPECIES), "Total"]
    rows = []
    for (site, day), seen in survey.visits.items():
        cells = [
            draw.choice(("1", "20+", "x", "c. 5", "1-9"))
            if s in seen
            else draw.choice(("", "0", "-", "NA", "no"))
            for s in SPECIES
        ]
        rows.append([survey.day(day), site, *cells, len(seen)])
    return header, rows


def as_wide(survey, folder):
    (folder / "a.csv").write_bytes(survey.text(*wide_rows(survey)))
    return folder / "a.csv", True


def sheet(header, rows, path):
    pytest.importorskip("python_calamine", reason="workbooks are read with python-calamine")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pyogrio.write_dataframe(pd.DataFrame(rows, columns=header), path, driver="XLSX")
    return path


def as_workbook(survey, folder):
    header = ["Species", "Date", "Grid ref", "Count"]
    real = survey.draw.choice((True, False))  # dates that the program knows as such
    rows = [
        (survey.name(name), pd.Timestamp(day) if real else survey.day(day), site, float(count))
        for _, site, day, name, count in survey.sightings()
    ]
    return sheet(header, rows, folder / "a.xlsx"), False


def as_wide_workbook(survey, folder):
    return sheet(*wide_rows(survey), folder / "a.xlsx"), True


def layer(survey, *, areas):
    told = list(survey.sightings())
    frame = pd.DataFrame(
        {
            "Species": [survey.name(name) for _, _, _, name, _ in told],
            "Date": [survey.day(day) for _, _, day, _, _ in told],
        }
    )
    shapes = [PLACES[site] if areas else PLACES[site].centroid for _, site, *_ in told]
    return gpd.GeoDataFrame(frame, geometry=shapes, crs=4326)


def on_a_map(name, areas):
    def write(survey, folder):
        held = layer(survey, areas=areas)
        if name not in ("a.kml", "a.geojson"):
            held = held.to_crs(survey.draw.choice((4326, 27700, 3035)))
        if name == "a.parquet":
            held.to_parquet(folder / name)
        else:
            driver = {"driver": "LIBKML"} if name == "a.kml" else {}
            held.to_file(folder / name, engine="pyogrio", **driver)
        return folder / name, False

    return write


LAYOUTS = {
    "table": as_table,
    "archive": as_archive,
    "events": as_events,
    "gbif": as_gbif,
    "nbn": as_nbn,
    "ukbms": as_ukbms,
    "irecord": as_irecord,
    "mapmate": as_mapmate,
    "inaturalist": as_inaturalist,
    "ebird": as_ebird,
    "my ebird": as_my_ebird,
    "birdtrack": as_birdtrack,
    "wide": as_wide,
    "workbook": as_workbook,
    "wide workbook": as_wide_workbook,
}
MAPS = ("a.gpkg", "a.shp", "a.geojson", "a.kml", "a.fgb", "a.parquet")
LAYOUTS |= {f"points {name}": on_a_map(name, False) for name in MAPS}
LAYOUTS |= {f"areas {name}": on_a_map(name, True) for name in MAPS}


def site_at(lat, lon):
    return next(name for name in SITES if PLACES[name].contains(shapely.Point(lon, lat)))


def read_back(layout, seed):
    """Write a survey, read it, and compare."""
    survey = Survey(seed)
    with tempfile.TemporaryDirectory() as place:
        path, empty = LAYOUTS[layout](survey, Path(place))
        n, k = survey.expected(empty=empty)
        day_first = None if layout == "my ebird" else True
        rules = counting(synonyms=SYNONYMS, day_first=day_first)
        try:
            table = counted(path, scratch=Path(place), rules=rules)
        except RecordsError as error:
            raise AssertionError(f"refused: {error}") from error
    where = {i: site_at(row.lat, row.lon) for i, row in table.sites.iterrows()}
    assert {where[i]: int(visits) for i, visits in table.visits.items()} == n
    found = table.detections.rename(index=where).stack()
    assert {pair: int(seen) for pair, seen in found.items() if seen} == k
    assert len(table.sites) == len(n)


def few(examples):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@few(2)
@given(st.integers(0, 1 << 30))
def test_a_survey_is_read_back_from_any_layout(layout, seed):
    read_back(layout, seed)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@few(40)
@given(st.integers(0, 1 << 30))
def test_many_surveys_are_read_back_from_any_layout(layout, seed):
    read_back(layout, seed)
