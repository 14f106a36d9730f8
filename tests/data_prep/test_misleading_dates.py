"""The warning of build that dates make raw rates misleading, and its number."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import butterfly_sdm
from butterfly_sdm.core.files import read_json
from butterfly_sdm.data.visits import VisitTable
from data_prep.notes import dates_apart, misleading_dates

SHARED = os.environ.get("BUTTERFLY_SDM_SHARED")


def walks(site, date, seen) -> VisitTable:
    """Return a table of visits with (visits, species) sightings."""
    frame = pd.DataFrame({"site": np.asarray(site, dtype=np.uint32), "date": date})
    order = frame.sort_values(["site", "date"], kind="stable").index.to_numpy()
    frame, seen = frame.loc[order].reset_index(drop=True), np.atleast_2d(seen)[order]
    frame["date"] = frame["date"].astype("datetime64[s]")
    frame["list_length"] = seen.sum(axis=1).astype(np.uint16)
    visit, species = np.nonzero(seen)
    sightings = {"visit": visit.astype(np.uint32), "species": species.astype(np.uint16)}
    return VisitTable(frame, pd.DataFrame(sightings))


def seasonal(window: int, *, spread: float = 1.0, sites: int = 150, seed: int = 0) -> VisitTable:
    """Return nine walks a site within ``window`` days; the species fly in July."""
    rng = np.random.default_rng(seed)
    site = np.repeat(np.arange(sites), 9)
    start = np.repeat(rng.integers(0, 183 - window + 1, sites), 9)
    day = start + rng.integers(0, window, len(site))
    effect = rng.normal(0, spread, (sites, 2))[site]
    chance = 1 / (1 + np.exp(-(effect + 1 - ((day - 100) / 25)[:, None] ** 2)))
    date = pd.Timestamp("2018-04-01") + pd.to_timedelta(day, "D")
    return walks(site, date, rng.random(chance.shape) < chance)


def test_dates_mislead_where_sites_were_visited_in_different_weeks():
    """Whole seasons: little. Ten weeks of it: more than sites differ."""
    whole, part = dates_apart(seasonal(183), 2), dates_apart(seasonal(30), 2)
    assert whole < part / 3 and part > 2
    assert dates_apart(seasonal(30, spread=3.0), 2) < part  # sites differ more
    (said,) = misleading_dates(part)
    assert f"dates alone give them {part:.2g} times the variance" in said
    assert "train.season: auto" in said and "records.months" in said


def test_species_without_a_season_are_not_misled():
    rng = np.random.default_rng(1)
    table = seasonal(30, seed=1)
    site = table.visits["site"].to_numpy()
    chance = 1 / (1 + np.exp(-rng.normal(0, 1, 150)))[site]
    even = walks(site, table.visits["date"], (rng.random(len(site)) < chance)[:, None])
    share = dates_apart(even, 1)
    assert share < 0.1 and misleading_dates(share) == []


@pytest.mark.parametrize("share", [None, 0.0, 0.25])
def test_nothing_is_said_without_need(share):
    assert misleading_dates(share) == []


def test_too_few_visits_tell_nothing():
    table = seasonal(30, sites=3)
    assert dates_apart(None, 2) is None
    assert dates_apart(table, 2) is None
    undated = table.visits.assign(date=pd.Series(pd.NaT, index=table.visits.index))
    undated["date"] = undated["date"].astype("datetime64[s]")
    assert dates_apart(VisitTable(undated, table.sightings), 2) is None


def records_of(table: VisitTable, path: Path) -> Path:
    """Write walks as records, absences where nothing was seen."""
    names = np.array(["Pieris napi", "Aglais io"])
    visits = table.visits.assign(visit=np.arange(len(table)))
    rows = table.sightings.assign(species=names[table.sightings["species"]], status="present")
    blank = visits.loc[visits["list_length"] == 0, ["visit"]]
    rows = pd.concat([rows, blank.assign(species=names[0], status="absent")])
    rows = rows.merge(visits, on="visit")
    rows["latitude"] = 51 + rows["site"] // 15 * 0.02
    rows["longitude"] = -2 + rows["site"] % 15 * 0.03
    rows = rows.rename(columns={"status": "occurrenceStatus"})
    rows.drop(columns=["visit", "site", "list_length"]).to_csv(path, index=False)
    return path


@pytest.mark.parametrize(("window", "warned"), [(30, True), (183, False)])
def test_build_says_the_number_and_keeps_it_in_the_card(tmp_path, window, warned):
    table = seasonal(window, spread=1.0 if warned else 4.0)
    records = {"path": str(records_of(table, tmp_path / "walks.csv")), "min_records": 0}
    config = {"build": {"records": records, "split": {"method": "random"}}}
    dataset = butterfly_sdm.build(config, tmp_path / "dataset")
    assert int(dataset.visits.sum()) == len(dataset.visit_table)
    said = [message for message in dataset.card.warnings if "When people looked" in message]
    assert len(said) == warned
    share = read_json(tmp_path / "dataset" / "dataset.json")["dates_share"]
    assert (share > 0.25) == warned
    assert all(f"{share:.2g} times" in message for message in said)


@pytest.mark.skipif(SHARED is None, reason="BUTTERFLY_SDM_SHARED is not set: the data are not here")
@pytest.mark.parametrize(("kept", "expected"), [("all", 0.11), ("nine", 3.8), ("ten weeks", 12.3)])
def test_the_number_on_real_walks(kept, expected):
    """Gatekeeper: 486 sites with at least 36 walks in two years."""
    path = Path(SHARED) / "data" / "ukbms" / "gatekeeper_weekly_2017_2019.csv.gz"
    real = pd.read_csv(path)
    real = real[real["year"] > 2017]
    often = real.groupby("site_id").size() >= 36
    real = real[real["site_id"].map(often)]
    site, _ = pd.factorize(real["site_id"], sort=True)
    rng, count = np.random.default_rng(0), site.max() + 1
    start, year = rng.integers(0, 17, count), rng.choice([2018, 2019], count)
    week = real["week"].to_numpy() - 1
    within = (week >= start[site]) & (week < start[site] + 10)
    use = {
        "all": np.ones(len(real), dtype=bool),
        "nine": rng.random(len(real)) < 9 / 45,
        "ten weeks": (real["year"] == year[site]) & within,
    }[kept]
    date = pd.to_datetime(real["year"].astype(str) + "-04-01") + pd.to_timedelta(7 * week, "D")
    seen = (real["count"] > 0).to_numpy()[:, None]
    number = dates_apart(walks(site[use], date[use].to_numpy(), seen[use]), 1)
    assert number == pytest.approx(expected, rel=0.2)
