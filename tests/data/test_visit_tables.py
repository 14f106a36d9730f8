"""Tables of visits: sums, subsets and what is refused."""

import numpy as np
import pandas as pd
import pytest

from butterfly_sdm.data.visits import VisitTable
from butterfly_sdm.errors import DataError


def table(sites=5, species=4, seed=0) -> VisitTable:
    rng = np.random.default_rng(seed)
    site = np.sort(rng.integers(0, sites, 40)).astype(np.uint32)
    site = site[site != 3]  # one site without a visit
    days = pd.Timestamp("2018-05-01") + pd.to_timedelta(rng.integers(0, 100, len(site)), "D")
    visits = pd.DataFrame({"site": site, "date": days.astype("datetime64[s]")})
    visits = visits.sort_values(["site", "date"], ignore_index=True)
    seen = rng.random((len(site), species)) < 0.4
    visits["list_length"] = seen.sum(axis=1).astype(np.uint16)
    visit, column = np.nonzero(seen)
    sightings = {"visit": visit.astype(np.uint32), "species": column.astype(np.uint16)}
    return VisitTable(visits, pd.DataFrame(sightings))


@pytest.mark.parametrize("sites", [[0, 1, 2, 3, 4], [4, 0], [2, 2, -1, 3], []])
@pytest.mark.parametrize("species", [None, [0, 2], [3, 1]])
def test_a_part_has_the_sums_of_its_sites_and_species(sites, species):
    whole = table()
    k, n = whole.sums(5, 4)
    k, n = np.vstack([k, np.zeros((1, 4), int)]), np.append(n, 0)
    part = whole.taken(np.array(sites, dtype=int), species)
    columns = list(range(4)) if species is None else species
    own_k, own_n = part.sums(len(sites), len(columns))
    assert own_k.tolist() == k[sites][:, columns].tolist()
    assert own_n.tolist() == n[sites].tolist()
    assert part.visits["site"].dtype == "uint32" and part.sightings["species"].dtype == "uint16"


def test_the_whole_taken_in_its_order_is_the_same():
    whole = table()
    same = whole.taken(np.arange(5), np.arange(4))
    pd.testing.assert_frame_equal(same.visits, whole.visits)
    pd.testing.assert_frame_equal(same.sightings, whole.sightings)
    assert same.fingerprint == whole.fingerprint != table(seed=1).fingerprint


def test_sums_that_are_not_those_of_the_data_set_are_refused():
    k, n = table().sums(5, 4)
    table().check_sums(k, n)
    with pytest.raises(DataError, match=r"1 sites are not the sums.*site 1 of it has"):
        table().check_sums(k, n + np.eye(5, dtype=int)[1])
    with pytest.raises(DataError, match="speak of site 4, but there are 3"):
        table().sums(3, 4)
    with pytest.raises(DataError, match="speak of species 3, but there are 2"):
        table().sums(5, 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v, s: (v.iloc[::-1], s), "comes too late. Visits are sorted by site and date"),
        (lambda v, s: (v.drop(columns="date"), s), r"it needs \['site', 'date', 'list_length'\]"),
        (lambda v, s: (v.assign(weather=1), s), "may have"),
        (lambda v, s: (v.astype({"site": int}), s), "site is an unsigned whole number"),
        (lambda v, s: (v.assign(date=1), s), "date is a date; this one is int64"),
        (lambda v, s: (v, s.iloc[[0, 0, 1]]), "Sighting 1 does not come after"),
        (lambda v, s: (v, s[["species", "visit"]]), "it needs"),
    ],
)
def test_a_table_that_is_no_table_of_visits_is_refused(change, said):
    whole = table()
    with pytest.raises(DataError, match=said):
        VisitTable(*change(whole.visits, whole.sightings))


def test_a_missing_date_comes_last():
    visits = table().visits
    visits.loc[visits["site"].eq(0)[::-1].idxmax(), "date"] = pd.NaT
    assert VisitTable(visits, table().sightings).visits["date"].isna().sum() == 1
