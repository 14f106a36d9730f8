"""What two files or two schemes tell of one survey counts once, in Britain and elsewhere."""

from __future__ import annotations

import pytest

from data_prep.records.places.grid_references import square_names
from tests.data_prep.records.making_records import counted, counting

MUNICH = (48.14012, 11.57012)


def table(path, rows, header="occurrenceID,datasetName,eventDate,species,lat,lon"):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def test_a_record_that_two_downloads_place_differently_counts_once(tmp_path):
    one = table(
        tmp_path / "one.csv",
        [
            ("gbif:4711001", "A", "2018-06-03", "Pieris rapae", 51.5, -1.5),
            ("gbif:4711002", "A", "2018-06-04", "Aglais io", 51.5, -1.5),
        ],
    )
    other = table(
        tmp_path / "other.csv",
        [
            ("gbif:4711001", "A", "2018-06-03T10:00:00", "Pieris rapae L.", 51.5004, -1.5004),
            ("gbif:4711003", "A", "2018-06-05", "Aglais io", 51.5, -1.5),
        ],
    )
    found = counted(one, other, scratch=tmp_path)
    assert list(found.visits) == [3]
    assert dict(found.detections.iloc[0]) == {"Aglais io": 2, "Pieris rapae": 1}
    assert found.rows["dropped: duplicate record"] == 1
    again = counted(other, one, scratch=tmp_path)
    assert again.visits.sum() == 3 and again.rows["dropped: duplicate record"] == 1


def test_numbers_that_two_projects_happen_to_share_are_two_records(tmp_path):
    one = table(tmp_path / "a.csv", [(1, "", "2018-06-03", "Pieris rapae", 51.5, -1.5)])
    other = table(
        tmp_path / "b.csv",
        [
            (1, "", "2018-06-03", "Pieris rapae", 51.6, -1.5),
            ("", "", "2018-06-03", "Pieris rapae", 52.5, -1.5),
        ],
    )
    assert counted(one, other, scratch=tmp_path).visits.sum() == 3


@pytest.mark.parametrize("lat, lon", [(51.50012, -1.50012), MUNICH, (-33.9001, 18.4201)])
def test_a_visit_that_two_schemes_tell_counts_once_anywhere(tmp_path, lat, lon):
    rows = [
        (f"{scheme}{number}", scheme, "2018-06-03", species, lat + shift, lon + shift)
        for scheme, shift in (("A", 0), ("B", 0.0002))
        for number, species in enumerate(("Pieris rapae", "Aglais io"))
    ]
    found = counted(table(tmp_path / "a.csv", rows), scratch=tmp_path)
    assert len(found.sites) == 1 and list(found.visits) == [1]
    kept = counted(tmp_path / "a.csv", scratch=tmp_path, rules=counting(double_recording="keep"))
    assert kept.visits.sum() == 2


def test_a_sensitive_species_is_told_as_sums_anywhere(tmp_path):
    rows = [
        (number, "A", f"2018-06-0{number}", species, MUNICH[0], MUNICH[1] + 0.01 * (number % 2))
        for number in range(1, 5)
        for species in ("Pieris rapae", "Maculinea arion")
    ]
    found = counted(
        table(tmp_path / "a.csv", rows),
        scratch=tmp_path,
        rules=counting(sensitive={"Maculinea arion": "10km"}),
    )
    assert list(found.species) == ["Pieris rapae"]
    assert found.coarse is not None
    row = found.coarse.iloc[0]
    assert (row["detections"], row["visits"]) == (4, 4)
    assert row["square"].startswith("EPSG:32632 10000m")


def test_squares_have_a_name_on_either_side_of_a_zone():
    names = square_names([11.99, 12.01, 0.0, 0.0], [48.0, 48.0, 89.0, -10.0], 10_000)
    assert names[0].startswith("EPSG:32632") and names[1].startswith("EPSG:32633")
    assert names[2] == "" and names[3].startswith("EPSG:32731")
