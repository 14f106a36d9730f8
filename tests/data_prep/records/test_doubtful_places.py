"""Places are read as they are meant, or left out and told under a name of their own."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from butterfly_sdm.errors import RecordsError
from data_prep.records.count import SurveyTable
from data_prep.records.places.grid_references import GridSquare
from tests.data_prep.records.making_records import counted, counting


def count(tmp_path: Path, header: str, rows: Sequence[str], **rules: object) -> SurveyTable:
    """Count a table in which each row is seen on a day of its own, the first of them 1 June."""
    lines = [f"2019-06-{day:02},Aglais io,{row}" for day, row in enumerate(rows, start=1)]
    path = tmp_path / "records.csv"
    path.write_text("\n".join([f"date,species,{header}", *lines]) + "\n")
    return counted(path, scratch=tmp_path, rules=counting(**rules))


def near(found: SurveyTable, lat: float, lon: float, reach: float = 0.01) -> bool:
    """Tell whether a site lies there."""
    return bool(((abs(found.sites.lat - lat) < reach) & (abs(found.sites.lon - lon) < reach)).any())


@pytest.mark.parametrize("word", ["NA", "no", "U", "n/a", "NULL", "none", "TL"])
def test_words_are_no_grid_squares(tmp_path, word):
    found = count(tmp_path, "gridref,lat,lon", [f"{word},51.5,-1.5", "SU1234,51.1,-1.8"])
    assert len(found.sites) == 2 and near(found, 51.5, -1.5)


@pytest.mark.parametrize(
    "text", ["SU1234/1334", "SU12/13", "SU1234-1235", "TL12 & 13", "SU1234;1235", "SU1234 + 1235"]
)
def test_two_squares_in_a_cell_are_none(tmp_path, text):
    found = count(tmp_path, "gridref", [text, "SU5678"])
    assert list(found.sites.index) == ["SU5678"]
    assert found.rows["dropped: unreadable grid reference"] == 1


@pytest.mark.parametrize("text", ["SU/1234", "SU-12-34", "SU 12 34", "su1234"])
def test_one_square_may_be_written_with_signs(text):
    assert GridSquare.parse(text).reference == "SU1234"


@pytest.mark.parametrize(
    ("system", "east", "north", "lat", "lon"),
    [
        ("EPSG:25832", 691000, 5335000, 48.14, 11.57),
        ("urn:ogc:def:crs:EPSG::2157", 715830, 734697, 53.35, -6.26),
        ("WGS 84 / UTM zone 33N", 391780, 5820080, 52.52, 13.40),
        ("ITM", 567000, 572000, 51.90, -8.48),
        ("OSGB36", 412000, 134000, 51.105, -1.83),
    ],
)
def test_metres_lie_where_their_crs_says(tmp_path, system, east, north, lat, lon):
    found = count(tmp_path, "easting,northing,verbatimSRS", [f"{east},{north},{system}"])
    assert near(found, lat, lon, 0.03)


def test_metres_take_the_crs_of_the_options_where_they_name_none(tmp_path):
    found = count(tmp_path, "easting,northing", ["691000,5335000"], crs="EPSG:25832")
    assert near(found, 48.14, 11.57, 0.03)


@pytest.mark.parametrize("metres", ["691000,5335000", "4321000,3210000", "690000,10000"])
def test_metres_that_are_not_british_are_left_out_and_the_cause_named(tmp_path, metres):
    found = count(tmp_path, "easting,northing", [metres, "412345,134567"])
    assert found.visits.sum() == 1 and near(found, 51.11, -1.825, 0.03)
    assert found.rows["dropped: easting and northing outside their grid"] == 1
    assert any("records.crs" in note for note in found.notes)
    with pytest.raises(RecordsError, match=r"records\.crs"):
        count(tmp_path, "easting,northing", [metres])


def test_a_crs_without_metres_is_refused():
    with pytest.raises(ValueError, match="no projected CRS"):
        counting(crs="EPSG:4326")
    with pytest.raises(ValueError, match="state both"):
        counting(grid_crs="EPSG:3035")


def test_settings_that_are_not_used_are_not_stored():
    assert not {"crs", "grid_crs"} & set(counting().model_dump(mode="json"))


def test_thousands_are_read_and_what_may_be_kilometres_is_not(tmp_path):
    rows = ['"412,345","134,567"', "412 345,134 567", "412345,134567", "412.345,134.567"]
    found = count(tmp_path, "easting,northing", rows)
    assert found.visits.tolist() == [3]
    assert found.rows["dropped: unreadable coordinates"] == 1


@pytest.mark.parametrize("nothing", ["0,0", "0.0,0.000", "-0,0"])
def test_nothing_is_no_place_in_the_gulf_of_guinea(tmp_path, nothing):
    found = count(tmp_path, "lat,lon", [nothing, nothing, "51.5,-1.5"])
    assert found.visits.tolist() == [1] and found.rows["dropped: position 0, 0"] == 2


def test_a_grid_reference_beside_nothing_is_a_place(tmp_path):
    assert list(count(tmp_path, "lat,lon,gridref", ["0,0,SU1234"]).sites.index) == ["SU1234"]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("-1.5,51.5,GB", "latitude and longitude exchanged"),
        ("13.4,52.5,DE", "latitude and longitude exchanged"),
        ("51.9,3.2,GB", "sign of a coordinate lost"),
        ("38.7,9.1,PT", "sign of a coordinate lost"),
        ("33.9,151.2,AU", "sign of a coordinate lost"),
    ],
)
def test_a_place_that_its_country_contradicts_is_left_out(tmp_path, wrong, reason):
    found = count(tmp_path, "lat,lon,countryCode", [wrong, "51.5,-1.5,GB"])
    assert found.visits.tolist() == [1] and found.rows[f"dropped: {reason}"] == 1
    assert any(reason in note for note in found.notes)


def test_a_place_abroad_counts_and_is_told(tmp_path):
    found = count(tmp_path, "lat,lon,countryCode", ["16.2,-61.5,FR", "48.8,2.3,FR"])
    assert found.visits.sum() == 2
    assert any("do not lie in the country" in note for note in found.notes)


def test_a_stranger_among_places_is_told_with_its_cause(tmp_path):
    places = [f"51.{i},-2.{i}" for i in range(1, 9)]
    assert not any("far from" in note for note in count(tmp_path, "lat,lon", places).notes)
    for wrong, cause in (("-2.3,51.4", "exchanged"), ("-51.4,-2.3", "minus sign")):
        found = count(tmp_path, "lat,lon", [*places, wrong])
        assert found.visits.sum() == 9
        assert any("1 places lie far" in note and cause in note for note in found.notes)


LOW = '"POLYGON((-1.5 51.5,-1.49 51.5,-1.49 51.51,-1.5 51.51,-1.5 51.5))"'
TURNED = '"POLYGON((51.5 -1.5,51.5 -1.49,51.51 -1.49,51.51 -1.5,51.5 -1.5))"'


def test_a_footprint_latitude_first_is_turned_where_its_point_says_so(tmp_path):
    found = count(
        tmp_path,
        "footprintWKT,lat,lon",
        [f"{TURNED},51.505,-1.495", f"{LOW},51.505,-1.495", f"{LOW},51.6,-1.6"],
    )
    assert found.visits.tolist() == [3] and near(found, 51.505, -1.495)
    assert any("latitude first" in note for note in found.notes)


def test_a_footprint_far_from_its_point_is_left_out(tmp_path):
    found = count(tmp_path, "footprintWKT,lat,lon", [f"{LOW},55,-3", f"{LOW},51.5,-1.5"])
    assert found.visits.tolist() == [1]
    assert found.rows["dropped: footprint contradicts its point"] == 1


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("900 m", True),
        ("c. 500", True),
        ("<1000", True),
        ("0.5 km", True),
        ("", True),
        ("NA", True),
        ("1,500", False),
        ("2 km", False),
        (">500", False),
        ("a field", False),
        ("-1", False),
        ("1 mile", False),
    ],
)
def test_an_uncertainty_in_words_is_understood_or_not_certain(tmp_path, text, kept):
    header = "lat,lon,coordinateUncertaintyInMeters"
    found = count(tmp_path, header, [f'51.5,-1.5,"{text}"', "51.7,-1.5,10"], max_uncertainty_m=1000)
    assert found.visits.sum() == 1 + kept
    assert found.rows.get("dropped: place too uncertain", 0) == 1 - kept


@pytest.mark.parametrize("column", ["coordinates_obscured", "geoprivacy"])
def test_a_blurred_position_is_not_exact(tmp_path, column):
    word = "true" if column == "coordinates_obscured" else "obscured"
    rows = [f"51.5,-1.5,5,{word}", "51.7,-1.5,5,"]
    header = f"latitude,longitude,positional_accuracy,{column}"
    found = count(tmp_path, header, rows, max_uncertainty_m=1000)
    assert found.visits.tolist() == [1] and near(found, 51.7, -1.5)
    assert any("obscured" in note for note in found.notes)


def test_squares_of_a_metric_grid_hold_places_anywhere(tmp_path):
    # In UTM 32N the first two lie in the square of 1 km at 691, 5335; the third one north of it.
    rows = ["691100,5335100", "691900,5335900", "691500,5336500"]
    settings = {"crs": "EPSG:25832", "grid_crs": "EPSG:25832", "grid_m": 1_000}
    found = count(tmp_path, "easting,northing", rows, **settings)
    assert found.visits.to_dict() == {"1000mE691000N5335000": 2, "1000mE691000N5336000": 1}
    british = count(tmp_path, "gridref", ["SU1234", "SU12"], grid_crs="EPSG:3035", grid_m=2_000)
    assert british.rows["dropped: place larger than the grid square"] == 1
    assert british.sites.index[0].startswith("2000mE3")
