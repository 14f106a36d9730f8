"""Visits that are kept: their days, lists, effort and schemes, and what they must not tell."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import butterfly_sdm
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import DataError
from data_prep.checking import check_dataset
from data_prep.records.count import survey
from data_prep.records.efforts import minutes
from data_prep.records.occurrences import read_occurrences
from data_prep.site_table import with_unrecorded
from tests.data_prep.records.making_records import (
    COLUMNS,
    archive,
    core,
    counted,
    counting,
    meta,
    row,
    text,
    zipped,
)

NAPI, IO, ARION = "Pieris napi", "Aglais io", "Maculinea arion"


def dated(table, *columns):
    visits = table.visit_table.visits
    return [tuple(r) for r in visits.assign(date=visits["date"].astype(str))[list(columns)].values]


def by_loops(table):
    """Count detections and visits one by one."""
    k = np.zeros(table.detections.shape, dtype=int)
    n = np.zeros(len(k), dtype=int)
    sites = table.visit_table.visits["site"].tolist()
    for site in sites:
        n[site] += 1
    for visit, species in table.visit_table.sightings.values.tolist():
        k[sites[visit], species] += 1
    return k, n


def test_a_visit_has_its_day_and_the_species_seen(tmp_path):
    rows = [
        row(1, "2018-06-04", IO, ident=1),
        row(1, "2018-05-04", NAPI, ident=2),
        row(0, "2018-06-03", NAPI, ident=3),
        row(0, "2018-06-03", NAPI, ident=4),  # another section of the walk
        row(0, "2018-06-03", IO, ident=5),
        row(0, "2018-07-01", NAPI, status="ABSENT", ident=6),
    ]
    table = counted(archive(tmp_path / "a.zip", rows), scratch=tmp_path)
    assert dated(table, "site", "date", "list_length") == [
        (0, "2018-06-03", 2),
        (0, "2018-07-01", 0),
        (1, "2018-05-04", 1),
        (1, "2018-06-04", 1),
    ]
    assert table.species == (IO, NAPI)
    assert table.visit_table.sightings.values.tolist() == [[0, 0], [0, 1], [2, 1], [3, 0]]
    assert table.visit_table.visits["scheme"].tolist() == ["UKBMS"] * 4
    assert table.visit_table.visits["complete"].all()  # walks of the scheme
    k, n = by_loops(table)
    assert k.tolist() == table.detections.values.tolist() and n.tolist() == table.visits.tolist()


def test_random_records_sum_to_the_table_that_plain_loops_give(tmp_path):
    rng = np.random.default_rng(0)
    kinds = [NAPI, IO, "Pieris rapae", "Aglais urticae"]
    rows = [
        row(
            int(rng.integers(6)),
            f"201{rng.integers(7, 9)}-0{rng.integers(4, 9)}-1{rng.integers(4)}",
            kinds[rng.integers(4)],
            status="ABSENT" if rng.random() < 0.2 else "PRESENT",
            ident=number,
        )
        for number in range(400)
    ]
    rules = counting(species=("Aglais urticae", NAPI, IO), months=(5, 8), min_list_length=2)
    table = counted(archive(tmp_path / "a.zip", rows), scratch=tmp_path, rules=rules)
    seen = {}
    for r in rows:
        if r["occurrenceStatus"] == "PRESENT" and "-04-" not in r["eventDate"]:
            seen.setdefault((r["decimalLongitude"], r["eventDate"]), set()).add(r["species"])
    lists = {visit: species for visit, species in seen.items() if len(species) >= 2}
    assert sorted(table.visit_table.visits["list_length"]) == sorted(map(len, lists.values()))
    k, n = by_loops(table)
    assert (k == table.detections.values).all() and (n == table.visits.values).all()
    for column, name in enumerate(table.species):
        assert k[:, column].sum() == sum(name in species for species in lists.values())
    assert n.sum() == len(lists)


def test_the_order_of_rows_changes_nothing(tmp_path):
    rows = [
        row(s, f"2018-06-0{d}", n, ident=(s, d, n))
        for s in (2, 0)
        for d in (3, 1)
        for n in (IO, NAPI)
    ]
    one = counted(archive(tmp_path / "a.zip", rows), scratch=tmp_path / "1").visit_table
    two = counted(archive(tmp_path / "b.zip", rows[::-1]), scratch=tmp_path / "2").visit_table
    pd.testing.assert_frame_equal(one.visits, two.visits)
    pd.testing.assert_frame_equal(one.sightings, two.sightings)


def checklists(tmp_path, rows):
    columns = (*COLUMNS, "eventID", "completeness", "duration", "samplingEffort", "datasetName")
    path = tmp_path / "lists.csv"
    path.write_text(text(rows, columns, separator=";"))
    return path


def test_checklists_keep_duration_completeness_and_scheme(tmp_path):
    def told(date, species, event, all_seen, took="", effort="", **more):
        return row(
            0,
            date,
            species,
            eventID=event,
            completeness=all_seen,
            duration=took,
            samplingEffort=effort,
            institutionCode="eBird",
            **more,
        )

    rows = [
        told("2018-06-05", NAPI, "late", "0", effort="observer: 1, 1 hour 15 min", datasetName="B"),
        told("2018-06-03", NAPI, "z", "1", "45"),
        told("2018-06-03", IO, "z", "1", "45"),
        told("2018-06-03", NAPI, "y", ""),
    ]
    rules = counting(visit="event")
    table = counted(checklists(tmp_path, rows), scratch=tmp_path, rules=rules)
    visits = table.visit_table.visits
    assert visits["date"].dt.day.tolist() == [3, 3, 5]
    assert sorted(visits["list_length"][:2]) == [1, 2] and visits["list_length"][2] == 1
    whole = int(np.argmax(visits["list_length"]))
    assert visits["duration"][whole] == 45 and visits["duration"][2] == 75
    assert math.isnan(visits["duration"][1 - whole])
    assert visits["complete"][whole] and not visits["complete"][2]
    assert visits["complete"][1 - whole] is pd.NA
    assert visits["scheme"].tolist() == ["eBird", "eBird", "B"]
    k, _ = by_loops(table)
    assert k.tolist() == table.detections.values.tolist()


def test_one_record_is_one_however_it_says_how_long_people_looked(tmp_path):
    rows = [row(ident=1, duration="45"), row(ident=1, duration="")]
    path = tmp_path / "a.csv"
    path.write_text(text(rows, (*COLUMNS, "duration"), separator=";"))
    table = counted(path, scratch=tmp_path)
    assert table.rows["dropped: duplicate record"] == 1
    assert table.visit_table.visits["duration"].tolist() == [45]


def test_a_file_that_tells_no_effort_has_no_such_columns(tmp_path):
    rows = [row(institutionCode="", ident=1)]
    table = counted(archive(tmp_path / "a.zip", rows), scratch=tmp_path)
    assert list(table.visit_table.visits.columns) == ["site", "date", "list_length"]


def test_an_event_core_tells_visits_on_which_nothing_was_seen(tmp_path):
    columns = ("eventID", "eventDate", "decimalLatitude", "decimalLongitude", "samplingEffort")
    events = [
        {**row(), "eventID": "a", "eventDate": "2018-06-03", "samplingEffort": "30 min"},
        {**row(), "eventID": "b", "eventDate": "2018-05-01", "samplingEffort": "10 observer hours"},
    ]
    seen = ("id", "occurrenceStatus", "scientificName", "taxonRank")
    rows = [{"id": "a", **row(species=NAPI)}]
    made = {
        "meta.xml": meta(
            core(columns, kind="Event", files=("event.txt",)),
            core(seen, tag="extension", ids="coreid"),
        ),
        "event.txt": text(events, columns),
        "occurrence.txt": text(rows, seen),
    }
    table = counted(zipped(tmp_path / "e.zip", made), scratch=tmp_path)
    assert dated(table, "date", "list_length") == [("2018-05-01", 0), ("2018-06-03", 1)]
    np.testing.assert_array_equal(table.visit_table.visits["duration"], [np.nan, 30])
    assert "visits include 1 on which nothing was seen" in " ".join(table.notes)


def secret_rows():
    return [
        row(0, "2018-06-03", ARION, ident=1, datasetName="Search for arion"),
        row(0, "2018-06-04", NAPI, ident=2),
        row(0, "2018-06-04", ARION, ident=3, datasetName="Search for arion"),
        row(0, "2018-06-05", NAPI, status="ABSENT", ident=4),
        row(1, "2018-06-03", ARION, ident=5),
        row(1, "2018-06-07", ARION, ident=6),
        row(2, "2018-06-03", IO, ident=7),
    ]


@pytest.mark.parametrize("protection", ["withhold", "10km"])
@pytest.mark.parametrize("asked", [None, (ARION, NAPI, IO), (NAPI, IO)])
def test_nothing_tells_a_visit_on_which_only_sensitive_species_were_seen(
    tmp_path, protection, asked
):
    columns = (*COLUMNS, "datasetName")
    files = {"meta.xml": meta(core(columns)), "occurrence.txt": text(secret_rows(), columns)}
    path = zipped(tmp_path / "a.zip", files)
    rules = counting(sensitive={ARION: protection}, species=asked)
    occurrences = read_occurrences([path], scratch=tmp_path)
    table = survey(occurrences, rules)
    assert ARION not in table.species
    assert dated(table, "site", "date", "list_length") == [
        (0, "2018-06-04", 1),
        (0, "2018-06-05", 0),
        (1, "2018-06-03", 1),
    ]
    assert table.visits.tolist() == [2, 1]
    assert "arion" not in str(table.visit_table.visits["scheme"].cat.categories)
    assert any("nothing but sensitive species was seen on them: 1 visit" in n for n in table.notes)
    if protection == "10km" and asked is None:
        assert table.coarse["detections"].tolist() == [4] and table.coarse["visits"].tolist() == [5]
    k, n = by_loops(table)
    assert k.tolist() == table.detections.values.tolist() and n.tolist() == table.visits.tolist()


def test_sums_over_squares_count_no_visit_on_which_only_withheld_species_were_seen(tmp_path):
    rows = [
        *secret_rows(),
        row(1, "2018-07-01", "Boloria selene", ident=8),
    ]
    rules = counting(sensitive={ARION: "withhold", "Boloria selene": "10km"})
    table = counted(archive(tmp_path / "a.zip", rows), scratch=tmp_path, rules=rules)
    # at the two sites of the square six visits, three of them saw arion alone
    assert table.coarse[["species", "detections", "visits"]].values.tolist() == [
        ["Boloria selene", 1, 3]
    ]


def small_dataset(tmp_path, **records):
    rows = [
        row(site, f"2018-0{5 + day}-0{1 + site}", name, ident=(site, day, name))
        for site in range(8)
        for day in range(3)
        for name in (NAPI, IO)[: 1 + (site + day) % 2]
    ]
    config = {
        "build": {
            "records": {
                "path": str(archive(tmp_path / "a.zip", rows)),
                "min_records": 0,
                **records,
            },
            "split": {"method": "random"},
        }
    }
    return butterfly_sdm.build(config, tmp_path / "dataset")


def test_a_data_set_keeps_its_visits_and_checks_them(tmp_path):
    dataset = small_dataset(tmp_path)
    assert dataset.card.format_version == 2
    assert {"visits.parquet", "sightings.parquet"} <= set(dataset.card.files)
    assert check_dataset(tmp_path / "dataset") == []
    visits = dataset.visit_table.visits
    assert visits["site"].dtype == "uint32" and visits["list_length"].dtype == "uint16"
    assert visits["date"].dtype == "datetime64[s]" and visits["complete"].dtype == "boolean"
    assert dataset.visit_table.sightings.dtypes.astype(str).tolist() == ["uint32", "uint16"]
    changed = dataset.detections.copy()
    changed.iloc[3, 0] -= 1
    with pytest.raises(
        DataError, match=r"of 1 sites are not the sums of the table of visits.*None"
    ):
        replace(dataset, detections=changed)
    assert replace(dataset, detections=changed, visit_table=None).visit_table is None
    assert replace(dataset, visit_table=None).fingerprint != dataset.fingerprint


def test_a_data_set_whose_visits_were_changed_is_told(tmp_path):
    small_dataset(tmp_path)
    path = tmp_path / "dataset" / "sightings.parquet"
    pd.read_parquet(path).iloc[1:].to_parquet(path, index=False)
    assert "sightings.parquet was changed" in " ".join(check_dataset(tmp_path / "dataset"))
    with pytest.raises(DataError, match="are not the sums of the table of visits"):
        Dataset.open(tmp_path / "dataset")


def test_listed_sites_without_a_record_have_no_visit(tmp_path):
    table = counted(
        archive(tmp_path / "a.zip", [row(2, ident=1), row(0, species=IO, ident=2)]),
        scratch=tmp_path,
    )
    listed = table.sites.set_axis(["0 first", "z last"])
    both = with_unrecorded(table, pd.concat([table.sites, listed]))
    assert len(both.visits) == 4
    k, n = by_loops(both)
    assert k.tolist() == both.detections.values.tolist() and n.tolist() == both.visits.tolist()


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (("45",), 45),
        (("1,5", "hours"), 90),
        (("90", "seconds"), 1.5),
        (("30", "fortnights"), math.nan),
        (("1:30",), 90),
        (("PT1H30M",), 90),
        (("PT45M",), 45),
        (("0",), math.nan),
        (("2000",), math.nan),
        (("", "", "1 h 30"), 90),
        (("", "", "2 observers, 90 min."), 90),
        (("", "", "1 hour 15 minutes"), 75),
        (("", "", "30-45 min"), math.nan),
        (("", "", "10 observer hours; 10 km by foot; 30 km by car"), math.nan),
        (("", "", "20 min and 30 min"), math.nan),
        (("", "", "5 traps"), math.nan),
        (("", "", "12"), math.nan),  # of what?
        (("NA", "", "20 mins"), 20),
    ],
)
def test_minutes_are_read_where_a_unit_says_so(told, expected):
    np.testing.assert_equal(minutes(*told), expected)
