"""A build says where there is too little to learn from."""

import numpy as np
import pandas as pd
import polars as pl
import pytest

from butterfly_sdm.data.splits import Split
from data_prep.look.left_out import commonest, values_left_out
from data_prep.notes import covariate_doubts, survey_doubts, thin_data, unwanted_losses
from data_prep.records.count import read_survey
from data_prep.records.options import RecordsOptions

MANY = Split(
    tuple(f"t{number}" for number in range(60)), tuple(f"v{number}" for number in range(25))
)


def counts(*sites_of_each):
    table = np.zeros((85, len(sites_of_each)), dtype=int)
    for column, sites in enumerate(sites_of_each):
        table[:sites, column] = 1
    return pd.DataFrame(
        table, columns=[f"species {number}" for number in range(len(sites_of_each))]
    )


def test_enough_data_needs_no_word():
    assert (
        thin_data({"kept": 100, "dropped: too few records at the site": 99}, counts(5, 80), MANY)
        == []
    )


def test_the_setting_that_left_most_records_out_is_named():
    (said,) = thin_data({"kept": 10, "dropped: too few visits to the site": 11}, counts(9), MANY)
    assert "11 usable records were left out" in said
    assert "Lower records.min_visits" in said


def test_few_sites_and_rare_species_are_told():
    few, rare = thin_data({"kept": 10}, counts(4, 20), Split(("a", "b"), ("c",)))
    assert "only 2 sites to learn from and 1 to judge by" in few
    assert "1 of 2 species were recorded at fewer than 5 sites" in rare
    assert "species 0" in rare


HEADER = "recordID,scientificName,eventDate,decimalLatitude,decimalLongitude\n"


def doubts(tmp_path, lines, **options):
    path = tmp_path / "records.csv"
    path.write_text(
        HEADER + "".join(f"{number},{line}\n" for number, line in enumerate(lines)),
        encoding="utf-8",
    )
    rules = RecordsOptions(path=path, min_records=0, **options)
    table = read_survey(rules, scratch=tmp_path)
    return table, survey_doubts(table, values_left_out(rules, scratch=tmp_path))


TWICE = [
    f"{species},2018-06-{day:02},51.{site},-1.5"
    for site in range(1, 5)
    for day in (1, 2)
    for species in ("Pieris rapae", "Pieris napi", "Aglais io")
]


def test_a_reason_that_takes_more_than_a_twentieth_is_told_with_the_commonest_values(tmp_path):
    bad = ["Pieris rapae,in May,51.1,-1.5"] * 2 + ["Aglais io,soon,51.1,-1.5"]
    table, (said,) = doubts(tmp_path, TWICE + bad)
    assert table.rows["dropped: unreadable date"] == 3
    assert "3 of 27 rows (11%)" in said
    assert "unreadable date, such as 'in May' (2), 'soon' (1)" in said
    assert "3 June 2018" in said


def test_names_above_species_are_told_with_what_to_do(tmp_path):
    _, (said,) = doubts(tmp_path, [*TWICE, *["Pieris,2018-06-01,51.1,-1.5"] * 4])
    assert "4 of 28 rows (14%)" in said
    assert "'Pieris' (4)" in said
    assert "records.synonyms" in said


def test_a_twentieth_and_what_a_setting_leaves_out_need_no_word(tmp_path):
    assert doubts(tmp_path, [*TWICE, "Pieris,2018-06-01,51.1,-1.5"])[1] == []
    told = {"read": 100, "dropped: outside the years": 60, "dropped: unreadable date": 5}
    assert unwanted_losses(told) == {}
    assert unwanted_losses(told | {"dropped: unreadable date": 6}) == {"unreadable date": 6}


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("name not understood", "Large White"),
        ("uncertain name", "Large White"),
        ("unreadable coordinates", "51, -1"),
        ("latitude and longitude exchanged", "51, -1"),
        ("ambiguous date", "3/6/2018"),
        ("no such reason yet", "Large White, 3/6/2018"),
    ],
)
def test_every_reason_shows_the_cells_it_speaks_of(reason, shown):
    row = {
        "reason": reason,
        "scientificName": "",
        "species": "Large White",
        "eventDate": "3/6/2018",
        "year": "2018",
        "decimalLatitude": "51",
        "decimalLongitude": "-1",
    }
    assert commonest(pl.DataFrame([row])) == {reason: ((shown, 1),)}


def test_visits_of_one_species_are_told(tmp_path):
    lists = [f"Aglais io,2018-07-{day:02},51.1,-1.5" for day in range(1, 10)]
    table, (said,) = doubts(tmp_path, TWICE + lists)
    assert table.lists_of_one == 9
    assert "9 of 17 visits (53%) name a single species" in said
    assert doubts(tmp_path, TWICE + lists[:8])[1] == []
    hidden = [line.replace("Aglais io", "Maculinea arion") for line in lists]
    sensitive = {"Maculinea arion": "withhold"}
    table, said = doubts(tmp_path, TWICE + hidden, sensitive=sensitive)
    assert table.lists_of_one == 0  # visits left out are none of those counted
    assert said == []


def test_sites_of_one_visit_are_told(tmp_path):
    once = [
        f"{species},2018-06-01,52.{site},-1.5"
        for site in range(1, 6)
        for species in ("Pieris rapae", "Pieris napi")
    ]
    _, (said,) = doubts(tmp_path, TWICE + once)
    assert "5 of 9 sites (56%) have one visit" in said
    assert "records.grid_m" in said
    assert doubts(tmp_path, TWICE + once[:8])[1] == []


@pytest.mark.parametrize(
    ("values", "warned", "noted"),
    [
        ([1.0, 2.0, 3.0, 4.0], [], []),
        ([7.0, 7.0, 7.0, 7.0], ["x has the same value at all sites (x: 7)"], []),
        ([np.nan] * 4, ["x has no value at any site"], []),
        ([1.0, 2.0, 3.0, np.nan], [], ["x has no value at up to 1 of 4 sites"]),
        ([1.0, np.nan, np.nan, np.nan], ["the same value", "up to 3 of 4 sites"], []),
    ],
)
def test_covariates_that_say_nothing_or_lack_values_are_told(values, warned, noted):
    warnings, notes = covariate_doubts(pd.DataFrame({"x": values, "y": [1.0, 2.0, 3.0, 5.0]}))
    for told, expected in ((warnings, warned), (notes, noted)):
        assert len(told) == len(expected)
        assert all(part in one for part, one in zip(expected, told, strict=True))


def test_many_covariates_that_say_nothing_are_one_sentence():
    table = pd.DataFrame(np.zeros((5, 64)), columns=[f"e_{number:03d}" for number in range(64)])
    (told,), _ = covariate_doubts(table)
    assert told.startswith("64 covariates (e_000, e_001, e_002 and 61 more) have the same value")
    assert covariate_doubts(None) == ([], [])
