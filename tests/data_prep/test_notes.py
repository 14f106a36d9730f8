"""A build says where there is too little to learn from."""

import numpy as np
import pandas as pd

from butterfly_sdm.data.splits import Split
from data_prep.notes import thin_data

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
