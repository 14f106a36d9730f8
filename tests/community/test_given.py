"""What was seen, as people write it down."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from butterfly_sdm.community.given import Given, read_given
from butterfly_sdm.errors import DataError

SPECIES = ("Aglais io", "Pieris napi", "Vanessa atalanta")


def table(*rows, columns=("place", "species", "date", "complete")):
    return pd.DataFrame(rows, columns=list(columns))


def test_a_complete_list_is_a_visit_on_which_all_were_looked_for():
    read = read_given(
        table(
            ("a", "Aglais io", "2020-06-01", "yes"),
            ("a", "Pieris napi", "2020-06-01", "yes"),
            ("a", "", "2020-06-09", "yes"),
        ),
        SPECIES,
    )
    assert read.detections.loc["a"].tolist() == [1, 1, 0]
    assert read.visits.loc["a"].tolist() == [2, 2, 2]
    assert read.days["date"].tolist() == ["2020-06-01", "2020-06-09"]


def test_a_list_that_does_not_say_it_is_complete_is_partial():
    read = read_given(table(("a", "Aglais io", "x", ""), ("b", "Aglais io", "x", "no")), SPECIES)
    assert read.visits.empty or not read.visits.to_numpy().any()
    assert read.lists.loc["a"].tolist() == [1, 0, 0]
    assert read.places == ["a", "b"]


def test_counts_and_single_sightings():
    read = read_given(
        table(
            ("a", "Aglais io", "5", "4", ""),
            ("a", "Pieris napi", "", "", "yes"),
            ("a", "Vanessa atalanta", "2", "", "no"),
            columns=("place", "species", "visits", "detections", "seen"),
        ),
        SPECIES,
        usual_visits=20,
    )
    assert read.detections.loc["a"].tolist() == [4, 0, 0]
    assert read.visits.loc["a"].tolist() == [5, 0, 2]
    assert read.effort.loc["a"].tolist() == [0, 20, 0]


def test_species_the_model_does_not_know_are_counted_and_left_out():
    read = read_given(
        table(("a", "Aglais io", "x", "yes"), ("a", "Zygaena trifolii", "x", "yes")), SPECIES
    )
    assert read.unknown == {"Zygaena trifolii": 1}
    assert read.detections.loc["a"].sum() == 1
    only = read_given(table(("a", "Zygaena", "x", "yes"), ("a", "Aglais io", "y", "yes")), SPECIES)
    assert only.visits.loc["a", "Pieris napi"] == 2  # a day with nothing but a moth is a visit


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([("a", "x")], ("where", "species"), "has no column place"),
        ([("a", "Aglais oi")], ("place", "species"), "Did you mean 'Aglais io'"),
        ([("a", "Aglais io", "some")], ("place", "species", "complete"), "it is yes or no"),
        ([("a", "Aglais io", "perhaps")], ("place", "species", "seen"), "it is yes or no"),
        (
            [("a", "Aglais io", "2", "three")],
            ("place", "species", "visits", "detections"),
            "'three'; it is a number of visits",
        ),
        (
            [("a", "Aglais io", "2", "3")],
            ("place", "species", "visits", "detections"),
            "Detections lie between",
        ),
        (
            [("a", "Aglais io", "x", "yes"), ("a", "Pieris napi", "x", "no")],
            ("place", "species", "date", "complete"),
            "A list is one or the other",
        ),
    ],
)
def test_what_is_not_understood_is_said(rows, columns, message):
    with pytest.raises(DataError, match=message):
        read_given(table(*rows, columns=columns), SPECIES)


ROW = st.tuples(
    st.sampled_from("ab"),
    st.sampled_from([*SPECIES, "Zygaena"]),
    st.sampled_from(["1", "2", ""]),
    st.just("yes"),
)
PARTIAL = st.tuples(st.just("c"), st.sampled_from(SPECIES), st.sampled_from("123"), st.just("no"))


@settings(max_examples=5, deadline=None)
@drawn(st.lists(ROW | PARTIAL, min_size=2, max_size=9), st.randoms(use_true_random=False))
def test_the_order_of_rows_and_their_grouping_into_tables_do_not_matter(rows, random):
    rows = [*rows, ("a", "Aglais io", "1", "yes")]
    turned = rows.copy()
    random.shuffle(turned)
    q = pd.DataFrame(0.3, index=["a", "b", "c"], columns=list(SPECIES))
    one = read_given(table(*rows), SPECIES).evidence(q)
    other = read_given(table(*turned), SPECIES).evidence(q)
    by_list = Given.nothing(SPECIES)
    for key in sorted({(row[0], row[2]) for row in rows}):
        part = [row for row in rows if (row[0], row[2]) == key]
        if any(row[1] in SPECIES for row in part):
            by_list = by_list + read_given(table(*part), SPECIES)
        else:  # a table in which nobody is known is refused
            by_list = by_list + read_given(table(*[(r[0], "", r[2], r[3]) for r in part]), SPECIES)
    for evidence in (other, by_list.evidence(q)):
        assert (evidence.k == one.k).all()
        assert (evidence.n == one.n).all()
        assert len(evidence.thinned) == len(one.thinned)
        for a, b in zip(evidence.thinned, one.thinned, strict=True):
            assert (a.listed == b.listed).all()
            assert (a.told == b.told).all()


def test_species_can_be_left_out_as_if_nobody_had_looked():
    read = read_given(
        table(("a", "Aglais io", "1", "yes"), ("a", "Aglais io", "2", "no")), SPECIES
    ).without(["Aglais io", "Unknown"])
    assert read.visits.loc["a"].tolist() == [0, 1, 1]
    assert not read.lists.to_numpy().any()
    assert np.isfinite(read.detections.to_numpy()).all()
