"""Exports as people have them: each is read to the k and n counted by hand."""

from __future__ import annotations

import warnings
import zipfile

import geopandas as gpd
import pandas as pd
import pyogrio
import pytest
import shapely

from butterfly_sdm.errors import RecordsError
from data_prep.records.count import read_survey
from data_prep.records.places.sites import read_sites
from data_prep.records.readers.registry import READERS, open_records, reader
from tests.data_prep.records.making_records import counted, counting

IRECORD = (
    "ID,RecordKey,Source,Rank,Taxon,Common name,Site name,Original map ref,Latitude,Longitude,"
    "Output map ref,Date interpreted,Date from,Date to,Date type,Count of sex or stage,"
    "Zero abundance,Verification status 1\n"
)
MAPMATE = "Taxon\tVernacular\tSite\tGridref\tVC\tRecorder\tDate\tQuantity\tStage\tStatus\tComment\n"
INATURALIST = (
    "id,uuid,observed_on_string,observed_on,time_observed_at,user_login,quality_grade,license,"
    "captive_cultivated,latitude,longitude,positional_accuracy,public_positional_accuracy,"
    "coordinates_obscured,species_guess,scientific_name,common_name,taxon_id\n"
)
EBD = (
    "GLOBAL UNIQUE IDENTIFIER\tCATEGORY\tCOMMON NAME\tSCIENTIFIC NAME\tOBSERVATION COUNT\t"
    "COUNTRY CODE\tLOCALITY ID\tLATITUDE\tLONGITUDE\tOBSERVATION DATE\tSAMPLING EVENT IDENTIFIER\t"
    "PROTOCOL TYPE\tALL SPECIES REPORTED\tGROUP IDENTIFIER\tAPPROVED\n"
)
MY_EBIRD = (
    "Submission ID,Common Name,Scientific Name,Taxonomic Order,Count,State/Province,Location ID,"
    "Location,Latitude,Longitude,Date,Time,Protocol,All Obs Reported\n"
)
BIRDTRACK = (
    "BTO species code,Species,Scientific name,Count,Date,Place,Grid reference,Lat,Long,"
    "Breeding status,Comment\n"
)


def k(table):
    """Return the detections of each species over all sites."""
    return {species: int(table.detections[species].sum()) for species in table.species}


def n(table):
    """Return the visits to all sites."""
    return int(table.visits.sum())


def written(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def workbook(path, **sheets):
    """Write a workbook of sheets, given as rows of cells, the header first."""
    pytest.importorskip("python_calamine", reason="workbooks are read with python-calamine")
    for number, (name, rows) in enumerate(sheets.items()):
        width = max(map(len, rows))
        cells = [[*row, *[None] * (width - len(row))] for row in rows]
        frame = pd.DataFrame(cells[1:], columns=[c or f"_{i}" for i, c in enumerate(cells[0])])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pyogrio.write_dataframe(frame, path, driver="XLSX", layer=name, append=number > 0)
    return path


def open_document(path, **sheets):
    """Write the same as LibreOffice does: meta.xml lies beside the sheets."""
    pytest.importorskip("python_calamine", reason="workbooks are read with python-calamine")
    names = "urn:oasis:names:tc:opendocument:xmlns"

    def cell(value):
        if value is None:
            return "<table:table-cell/>"
        kind = f'office:value-type="string"><text:p>{value}'
        if isinstance(value, pd.Timestamp):
            kind = f'office:value-type="date" office:date-value="{value:%Y-%m-%d}"><text:p>{value}'
        elif isinstance(value, int):
            kind = f'office:value-type="float" office:value="{value}"><text:p>{value}'
        return f"<table:table-cell {kind}</text:p></table:table-cell>"

    tables = ""
    for name, rows in sheets.items():
        held = (f"<table:table-row>{''.join(map(cell, row))}</table:table-row>" for row in rows)
        tables += f'<table:table table:name="{name}">{"".join(held)}</table:table>'
    content = (
        f'<office:document-content xmlns:office="{names}:office:1.0" '
        f'xmlns:table="{names}:table:1.0" xmlns:text="{names}:text:1.0"><office:body>'
        f"<office:spreadsheet>{tables}</office:spreadsheet></office:body></office:document-content>"
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
        archive.writestr("meta.xml", "<office:document-meta/>")
        manifest = f'<manifest:manifest xmlns:manifest="{names}:manifest:1.0"/>'
        archive.writestr("META-INF/manifest.xml", manifest)
        archive.writestr("content.xml", content)
    return path


def test_irecord(tmp_path):
    rows = [
        "1,i1,s,Species,Pieris rapae,Small White,Down,SU123345,51.1,-1.8,SU1234,03/06/2018,"
        "03/06/2018,03/06/2018,D,2,,Accepted",
        "2,i2,s,Species,Aglais io,Peacock,Down,SU123345,51.1,-1.8,SU1234,04/06/2018,04/06/2018,"
        "04/06/2018,D,,Y,Accepted",
        "3,i3,s,Species,Aglais io,Peacock,Down,SU123345,51.1,-1.8,SU1234,June 2018,01/06/2018,"
        "30/06/2018,O,1,,Accepted",
        "4,i4,s,Species,Pieris napi,Green-veined White,Down,SU123345,51.1,-1.8,SU1234,05/06/2018,"
        "05/06/2018,05/06/2018,D,1,,Not accepted",
    ]
    path = written(tmp_path / "download.csv", IRECORD + "\n".join(rows) + "\n")
    assert reader("irecord").recognises(path)
    table = counted(path, scratch=tmp_path)
    assert (n(table), k(table)) == (2, {"Pieris rapae": 1})  # Aglais io was not there
    assert list(table.sites.index) == ["SU1234"]
    assert table.rows["dropped: date is a period"] == 1
    assert table.rows["dropped: rejected identification"] == 1


def test_mapmate_says_not_recorded_of_a_breeding_status(tmp_path):
    rows = [
        "Pieris rapae\tSmall White\tDown\tSU1234\t8\tA\t03/06/2018\t3\tAdult\tNot recorded\t",
        "Aglais io\tPeacock\tDown\tSU1234\t8\tA\t03/06/2018\t1\tAdult\tNot recorded\t",
        "Aglais io\tPeacock\tDown\tSU1234\t8\tA\t14/06/2018\t0\tAdult\tNot recorded\t",
        "Aglais io\tPeacock\tDown\tSU1234\t8\tA\t01/06/2018-30/06/2018\t2\tAdult\tBreeding\t",
        "Aglais io\tPeacock\tDown\tSU1234\t8\tA\t15/06/2018\t-7\tAdult\tNot recorded\t",
    ]
    path = written(tmp_path / "mapmate.txt", MAPMATE + "\n".join(rows) + "\n", "cp1252")
    assert reader("mapmate").recognises(path)
    table = counted(path, scratch=tmp_path)
    assert (n(table), k(table)) == (3, {"Aglais io": 2, "Pieris rapae": 1})
    assert table.rows["dropped: date is a period"] == 1
    assert any("records.format: table" in note for note in table.notes)


@pytest.mark.parametrize(
    ("quantity", "seen"), [("0", 1), ("-1", 1), ("-6", 1), ("12", 1), ("", 1), ("-7", 0)]
)
def test_quantities_of_mapmate_are_words_below_one(tmp_path, quantity, seen):
    row = "{}\t\tDown\tSU1234\t8\tA\t03/06/2018\t{}\tAdult\tNot recorded\t"
    rows = [row.format("Pieris rapae", 3), row.format("Aglais io", quantity)]
    path = written(tmp_path / "a.txt", MAPMATE + "\n".join(rows) + "\n")
    table = counted(path, scratch=tmp_path)
    assert n(table) == 1 and k(table).get("Aglais io", 0) == seen


def test_inaturalist_leaves_out_casual_and_captive_observations(tmp_path):
    def row(number, day, grade, captive="false", blur="false", name="Pieris rapae"):
        return (
            f"{number},u{number},{day},{day},,ann,{grade},CC-BY,{captive},51.5,-1.5,20,20,{blur},"
            f'"White, small",{name},Small White,55401'
        )

    rows = [
        row(1, "2018-06-03", "research"),
        row(2, "2018-06-04", "needs_id", name="Aglais io"),
        row(3, "2018-06-05", "casual"),
        row(4, "2018-06-06", "research", captive="true"),
        row(5, "2018-06-07", "research", blur="true"),
    ]
    path = written(tmp_path / "observations-1.csv", INATURALIST + "\n".join(rows) + "\n")
    assert reader("inaturalist").recognises(path)
    table = counted(path, scratch=tmp_path, rules=counting(max_uncertainty_m=1000))
    assert (n(table), k(table)) == (2, {"Aglais io": 1, "Pieris rapae": 1})
    for reason in ("casual observation", "captive or cultivated", "place too uncertain"):
        assert table.rows[f"dropped: {reason}"] == 1
    assert any("needs_id" in note for note in table.notes)


def test_ebird_basic_dataset(tmp_path):
    def row(number, name, count, sample, complete="1", group="", category="species"):
        return (
            f"O{number}\t{category}\tBird\t{name}\t{count}\tGB\tL1\t51.5\t-1.5\t2018-06-03\t"
            f"{sample}\tTraveling\t{complete}\t{group}\t1"
        )

    rows = [
        row(1, "Turdus merula", "X", "S1", group="G1"),
        row(2, "Turdus merula", "2", "S2", group="G1"),
        row(3, "Parus major", "1", "S2", group="G1"),
        row(4, "Turdus merula", "1", "S3"),
        row(5, "Corvus corone", "1", "S4", complete="0"),
        row(6, "Corvus corone x cornix (hybrid)", "1", "S3", category="hybrid"),
    ]
    path = written(tmp_path / "ebd_GB.txt", EBD + "\n".join(rows) + "\n")
    assert reader("ebird").recognises(path)
    table = counted(path, scratch=tmp_path, rules=counting(scheme="complete"))
    assert (n(table), k(table)) == (2, {"Parus major": 1, "Turdus merula": 2})
    assert table.rows["dropped: incomplete list"] == 1


@pytest.mark.parametrize("days", [("2018-06-03", "2018-06-14"), ("06-03-2018", "06-14-2018")])
def test_my_ebird(tmp_path, days):
    rows = [
        f"S1,Blackbird,Turdus merula,1,X,GB-OXF,L1,Home,51.5,-1.5,{days[0]},07:30 AM,Stationary,1",
        f"S1,Great Tit,Parus major,2,3,GB-OXF,L1,Home,51.5,-1.5,{days[0]},07:30 AM,Stationary,1",
        f"S2,Blackbird,Turdus merula,1,1,GB-OXF,L1,Home,51.5,-1.5,{days[1]},08:00 AM,Incidental,0",
    ]
    path = written(tmp_path / "MyEBirdData.csv", MY_EBIRD + "\n".join(rows) + "\n")
    assert reader("ebird").recognises(path)
    table = counted(path, scratch=tmp_path)
    assert (n(table), k(table)) == (2, {"Parus major": 1, "Turdus merula": 2})
    whole = counted(path, scratch=tmp_path, rules=counting(scheme="complete"))
    assert (n(whole), k(whole)) == (1, {"Parus major": 1, "Turdus merula": 1})


def test_birdtrack(tmp_path):
    rows = [
        "B.,Blackbird,Turdus merula,c20,03/06/2018,Home,SP5106,51.75,-1.26,,",
        "GT,Great Tit,Parus major,10+,03/06/2018,Home,SP5106,51.75,-1.26,,",
        "B.,Blackbird,Turdus merula,Present,14/06/2018,Home,SP5106,51.75,-1.26,,",
        "GT,Great Tit,Parus major,0,14/06/2018,Home,SP5106,51.75,-1.26,,",
    ]
    path = written(tmp_path / "birdtrack.csv", BIRDTRACK + "\n".join(rows) + "\n")
    assert reader("birdtrack").recognises(path)
    table = counted(path, scratch=tmp_path)
    assert (n(table), k(table)) == (2, {"Parus major": 1, "Turdus merula": 2})


WIDE = [
    ["Date", "Grid ref", "Recorder", "Small White", "Peacock", "Silver Y", "Comma", "Total"],
    ["03/06/2018", "SU1234", "Ann", "3", "0", "1", "", "4"],
    ["14/06/2018", "SU1234", "Ann", "", "", "", "", "0"],
    ["14/06/2018", "SU9999", "Ann", "x", "10+", "", "none", "11"],
]
NAMES = {"Small White": "Pieris rapae", "Peacock": "Aglais io", "Comma": "Polygonia c-album"}


def test_a_column_per_species_knows_the_surveys_that_saw_nothing(tmp_path):
    path = written(tmp_path / "count.csv", "\n".join(map(",".join, WIDE)) + "\n")
    names = {**NAMES, "Silver Y": "Autographa gamma"}
    table = counted(path, scratch=tmp_path, rules=counting(synonyms=names))
    assert table.visits.to_dict() == {"SU1234": 2, "SU9999": 1}
    assert k(table) == {"Aglais io": 1, "Autographa gamma": 1, "Pieris rapae": 2}
    assert any("4 species" in note for note in table.notes)
    few = counted(path, scratch=tmp_path, rules=counting(synonyms=NAMES))
    assert n(few) == 3 and few.rows["dropped: name not understood"] == 1


@pytest.mark.parametrize(
    "header",
    [
        ["Pieris rapae", "Aglais io"],
        ["Pieris.rapae", "Aglais.io"],
        ["pieris_rapae", "AGLAIS IO"],
        ["Count of Pieris rapae", "Count of Aglais io"],
        ["Pieris rapae (Linnaeus, 1758)", "Aglais io (adults)"],
    ],
)
def test_species_columns_may_have_any_spelling(tmp_path, header):
    lines = [
        ["visit date", "lat", "long", *header],
        ["2018-06-03", "51.5", "-1.5", "2", "0"],
        ["2018-06-04", "51.5", "-1.5", "0", "NA"],
        ["2018-06-05", "51.5", "-1.5", "1-5", "c. 20"],
    ]
    path = written(tmp_path / "wide.csv", "\n".join(",".join(f'"{c}"' for c in r) for r in lines))
    table = counted(path, scratch=tmp_path)
    assert (n(table), k(table)) == (3, {"Aglais io": 1, "Pieris rapae": 2})


def test_two_surveys_of_a_day_are_two_events_of_a_wide_table(tmp_path):
    lines = "date,gridref,Pieris rapae,Aglais io\n2018-06-03,SU1234,1,0\n2018-06-03,SU1234,0,0\n"
    path = written(tmp_path / "wide.csv", lines)
    assert n(counted(path, scratch=tmp_path)) == 1
    assert n(counted(path, scratch=tmp_path, rules=counting(scheme="event"))) == 2
    joined = written(
        tmp_path / "sections.csv",
        "visit id,date,gridref,Pieris rapae,Aglais io\n7,2018-06-03,SU1234,1,0\n"
        "7,2018-06-03,SU1234,1,1\n8,2018-06-03,SU1234,0,0\n",
    )
    table = counted(joined, scratch=tmp_path, rules=counting(scheme="event"))
    assert (n(table), k(table)) == (2, {"Aglais io": 1, "Pieris rapae": 1})


def test_a_cell_that_is_no_count_is_told_and_not_counted(tmp_path):
    path = written(
        tmp_path / "wide.csv",
        "date,gridref,Pieris rapae,Aglais io\n2018-06-03,SU1234,maybe,2\n",
    )
    table = counted(path, scratch=tmp_path)
    assert (n(table), k(table)) == (1, {"Aglais io": 1})
    assert table.rows["dropped: unknown status"] == 1


LONG = [
    ["Species", "Date", "Grid ref", "Count"],
    ["Pieris rapae", pd.Timestamp("2018-06-03"), "SU1234", 3],
    ["Aglais io", pd.Timestamp("2018-06-03"), "SU1234", 1],
    ["Pieris rapae", pd.Timestamp("2018-06-14"), "SU1234", 0],
]


@pytest.mark.parametrize("suffix", ["xlsx", "ods"])
def test_a_workbook_with_dates_and_numbers(tmp_path, suffix):
    write = open_document if suffix == "ods" else workbook
    table = counted(write(tmp_path / f"a.{suffix}", Records=LONG), scratch=tmp_path)
    assert (n(table), k(table)) == (2, {"Aglais io": 1, "Pieris rapae": 1})


def test_sheets_of_records_are_read_together_and_others_named(tmp_path):
    more = [LONG[0], ["Aglais io", pd.Timestamp("2019-06-03"), "SU1234", 2]]
    notes = [["About", ""], ["Ann walks on Sundays", ""]]
    path = workbook(tmp_path / "a.xlsx", y2018=LONG, y2019=more, About=notes)
    table = counted(path, scratch=tmp_path)
    assert (n(table), k(table)) == (3, {"Aglais io": 2, "Pieris rapae": 1})
    told = " ".join(table.notes)
    assert "sheet y2018 of a.xlsx, sheet y2019 of a.xlsx" in told and "sheet About" in told


@pytest.mark.parametrize("suffix", ["xlsx", "ods", "gpkg"])
def test_sheets_and_layers_can_be_chosen(tmp_path, suffix):
    more = [LONG[0], ["Aglais io", pd.Timestamp("2019-06-03"), "SU1234", 2]]
    path = tmp_path / f"a.{suffix}"
    if suffix == "gpkg":
        for number, (name, rows) in enumerate({"y2018": LONG, "y2019": more}.items()):
            frame = pd.DataFrame(rows[1:], columns=rows[0])
            frame = frame.assign(Date=frame["Date"].dt.strftime("%Y-%m-%d"))
            pyogrio.write_dataframe(frame, path, driver="GPKG", layer=name, append=number > 0)
    else:
        write = open_document if suffix == "ods" else workbook
        write(path, y2018=LONG, y2019=more)
    found = read_survey(counting(path=path), scratch=tmp_path)
    assert (n(found), k(found)) == (3, {"Aglais io": 2, "Pieris rapae": 1})
    assert any("name these in records.tables" in note for note in found.notes)
    found = read_survey(counting(path=path, tables=("y2019",)), scratch=tmp_path)
    assert (n(found), k(found)) == (1, {"Aglais io": 1})
    with pytest.raises(RecordsError, match=r"no sheet or layer y2020, .* it has y2018, y2019"):
        read_survey(counting(path=path, tables=("y2020",)), scratch=tmp_path)
    assert "tables" not in counting(path=path).model_dump()


def test_titles_blank_rows_and_a_total_of_a_sheet_are_no_records(tmp_path):
    rows = [
        ["Walks of 2018", None, None, None],
        ["by the group", None, None, None],
        LONG[0],
        ["Pieris rapae", "03/06/2018", "SU1234", 3],
        [None, None, None, None],
        ["Aglais io", "14/06/2018", "SU1234", 1],
        ["Total", None, None, 4],
    ]
    rows[0][1] = None
    path = workbook(tmp_path / "a.xlsx", Sheet1=[["Walks", "x", "y", "z"], *rows])
    table = counted(path, scratch=tmp_path)
    assert (n(table), k(table)) == (2, {"Aglais io": 1, "Pieris rapae": 1})
    assert any("above its header" in note for note in table.notes)


def test_a_wide_sheet(tmp_path):
    rows = [
        ["Date", "Grid ref", "Pieris rapae", "Aglais io"],
        [pd.Timestamp("2018-06-03"), "SU1234", 2.0, 0.0],
        [pd.Timestamp("2018-06-14"), "SU1234", 0.0, None],
    ]
    table = counted(workbook(tmp_path / "a.xlsx", Sheet1=rows), scratch=tmp_path)
    assert (n(table), k(table)) == (2, {"Pieris rapae": 1})


def points(crs=4326):
    """Return three records at two points, as a layer."""
    frame = pd.DataFrame(
        {
            "species": ["Pieris rapae", "Aglais io", "Pieris rapae"],
            "eventDate": ["2018-06-03", "2018-06-03", "2018-06-04"],
        }
    )
    shapes = gpd.points_from_xy([-1.5, -1.5, -1.4], [51.5, 51.5, 51.6])
    return gpd.GeoDataFrame(frame, geometry=shapes, crs=4326).to_crs(crs)


FORMATS = ["a.gpkg", "a.shp", "a.geojson", "a.kml", "a.fgb", "a.parquet", "a.json"]


def saved(layer, path):
    """Save a layer in the format of a name."""
    drivers = {".json": "GeoJSON", ".kml": "LIBKML"}
    if path.suffix == ".parquet":
        layer.to_parquet(path)
    else:
        layer.to_file(path, driver=drivers.get(path.suffix), engine="pyogrio")
    return path


@pytest.mark.parametrize("crs", [4326, 27700, 25830])
@pytest.mark.parametrize("name", FORMATS)
def test_points_of_a_map_are_records(tmp_path, name, crs):
    if crs != 4326 and name in ("a.kml", "a.geojson", "a.json"):
        pytest.skip("these formats are always in degrees")
    table = counted(saved(points(crs), tmp_path / name), scratch=tmp_path)
    assert (n(table), k(table)) == (2, {"Aglais io": 1, "Pieris rapae": 2})
    assert table.sites["lat"].round(4).to_list() == [51.5, 51.6]


@pytest.mark.parametrize("name", FORMATS)
def test_areas_of_a_map_are_footprints(tmp_path, name):
    areas = points()
    areas["geometry"] = shapely.box(-1.5, 51.5, -1.49, 51.51)
    table = counted(saved(areas, tmp_path / name), scratch=tmp_path)
    assert (n(table), k(table), len(table.sites)) == (2, {"Aglais io": 1, "Pieris rapae": 2}, 1)
    assert table.sites.geometry.iloc[0].equals_exact(
        shapely.normalize(shapely.box(-1.5, 51.5, -1.49, 51.51)), 1e-6
    )


def test_lines_of_a_map_are_strips_and_told(tmp_path):
    lines = points(27700)
    lines["geometry"] = shapely.LineString([(430_000, 180_000), (431_000, 180_000)])
    table = counted(saved(lines, tmp_path / "a.gpkg"), scratch=tmp_path)
    width = table.sites.to_crs(27700).area.iloc[0] / 1000
    assert n(table) == 2 and width == pytest.approx(10, rel=0.01)
    assert any("strip of 5 m" in note for note in table.notes)


def test_a_zipped_shapefile_with_its_short_names_is_read(tmp_path):
    layer = points().rename(columns={"species": "scientificName"})
    layer["occurrenceStatus"] = ["present", "absent", "present"]
    saved(layer, tmp_path / "a.shp")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for part in ("shp", "shx", "dbf", "prj"):
            archive.write(tmp_path / f"a.{part}", f"a.{part}")
    table = counted(tmp_path / "a.zip", scratch=tmp_path)
    assert (n(table), k(table)) == (2, {"Pieris rapae": 2})


def test_shapes_without_a_crs_are_degrees_or_metres_of_the_options(tmp_path):
    saved(points(25830), tmp_path / "m.shp")
    (tmp_path / "m.prj").unlink()
    table = counted(tmp_path / "m.shp", scratch=tmp_path, rules=counting(crs="EPSG:25830"))
    assert table.sites["lat"].round(3).to_list() == [51.5, 51.6]
    assert any("does not say in which CRS" in note for note in table.notes)
    areas = points(25832)
    areas["geometry"] = areas.buffer(50)
    saved(areas, tmp_path / "b.shp")
    (tmp_path / "b.prj").unlink()
    with pytest.raises(RecordsError, match=r"in which CRS its areas are.*Set the CRS"):
        counted(tmp_path / "b.shp", scratch=tmp_path)


def test_a_map_without_records_is_refused_with_its_columns(tmp_path):
    path = saved(points().rename(columns={"species": "what"}), tmp_path / "a.gpkg")
    with pytest.raises(RecordsError, match=r"no species column.*Its columns are what, eventDate"):
        open_records(path)


@pytest.mark.parametrize("name", ["s.gpkg", "s.geojson", "s.parquet", "s.shp", "s.kml"])
def test_sites_may_be_a_map(tmp_path, name):
    squares = [shapely.box(-1.5, 51.5, -1.49, 51.51), shapely.box(-1.4, 51.6, -1.39, 51.61)]
    layer = gpd.GeoDataFrame({"site_id": ["A", "B"]}, geometry=squares, crs=4326)
    crs = 4326 if name.endswith(("geojson", "kml")) else 27700
    sites = read_sites(saved(layer.to_crs(crs), tmp_path / name))
    assert list(sites.index) == ["A", "B"] and sites.crs == "EPSG:4326"
    assert sites.geometry["B"].centroid.y == pytest.approx(51.605, abs=1e-4)
    records = written(
        tmp_path / "r.csv",
        "siteID,date,species\nA,2018-06-03,Pieris rapae\nB,2018-06-03,Aglais io\n"
        "C,2018-06-03,Aglais io\n",
    )
    from data_prep.records.count import survey
    from data_prep.records.occurrences import read_occurrences

    table = survey(read_occurrences([records], scratch=tmp_path), counting(), sites=sites)
    assert table.visits.to_dict() == {"A": 1, "B": 1}


def test_sites_may_be_a_workbook_or_have_another_header(tmp_path):
    rows = [["Site No", "Grid ref"], [101.0, "SU1234"], [102.0, "SU1235"]]
    path = workbook(tmp_path / "sites.xlsx", Sites=rows)
    assert list(read_sites(path).index) == ["101", "102"]


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("Genus,Species", ("Pieris,rapae", "Aglais,io", "Pieris,")),
        ("genus,specificEpithet", ("PIERIS,RAPAE", "Aglais,io", "Pieris,sp.")),
        ("Genus,Species", ("Pieris,Pieris rapae", "Aglais,Aglais io", "Pieris,NA")),
        ("Genus,Taxon", ("Pieris,rapae", "Aglais,io", "Pieris,agg. rapae")),
    ],
)
def test_genus_and_species_may_be_two_columns(tmp_path, header, names):
    days = ("2018-06-03", "2018-06-04", "2018-06-05")
    lines = [f"{name},{day},SU1234" for name, day in zip(names, days, strict=True)]
    path = written(tmp_path / "a.csv", "\n".join([f"{header},date,gridref", *lines]) + "\n")
    table = counted(path, scratch=tmp_path)
    assert k(table) == {"Aglais io": 1, "Pieris rapae": 1}
    assert n(table) <= 3


def test_every_reader_is_offered_under_its_name():
    for name in READERS.offers():
        if name in ("irecord", "mapmate", "inaturalist", "ebird", "birdtrack"):
            assert reader(name).name == name and reader(name).summary
