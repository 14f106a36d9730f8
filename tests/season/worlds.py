"""Small worlds whose seasons are known."""

from dataclasses import dataclass, replace

import geopandas as gpd
import numpy as np
import pandas as pd
from scipy.special import expit

from butterfly_sdm.data.dataset import Dataset, DatasetCard
from butterfly_sdm.data.splits import Split
from butterfly_sdm.data.visits import VisitTable

FIRST, WEEKS = 14, 26  # April to September


def visit_table(site, date, seen, **more):
    """Make a table of visits; ``seen`` is (visits, species) true or false."""
    order = np.lexsort((np.asarray(date), np.asarray(site)))
    seen = np.asarray(seen)[order].reshape(len(order), -1)
    visit, species = np.nonzero(seen)
    visits = pd.DataFrame(
        {
            "site": np.asarray(site)[order].astype(np.uint32),
            "date": pd.to_datetime(np.asarray(date)[order]).astype("datetime64[s]"),
            "list_length": seen.sum(axis=1).astype(np.uint16),
            **{name: pd.Series(np.asarray(values)[order]) for name, values in more.items()},
        }
    )
    columns = {"visit": visit.astype(np.uint32), "species": species.astype(np.uint16)}
    return VisitTable(visits, pd.DataFrame(columns))


def day_of(week, year=2019):
    """Return the fourth day of a week of the year, the first being 1."""
    first = np.asarray(year - 1970).astype("datetime64[Y]").astype("datetime64[D]")
    return first + (7 * (np.asarray(week) - 1) + 3).astype("timedelta64[D]")


@dataclass
class World:
    dataset: Dataset
    curves: np.ndarray  # (species, weeks)
    effects: np.ndarray  # (sites, species)
    truth: np.ndarray  # (sites, species) rate over all weeks
    presence: np.ndarray  # (sites, species) chance
    present: np.ndarray

    def rate_in_week(self, week):
        return self.present * expit(self.effects + self.curves[:, week - FIRST])


def season_world(
    *, sites=240, species=4, visits=8, even=False, seed=0, spread=1.6, absent=False
) -> World:
    """Sites along two covariates; every site was visited in ten weeks of its own."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(sites, 2))
    weeks = np.arange(WEEKS)
    peak = np.linspace(6, 19, species)
    curves = -0.3 - 0.5 * ((weeks - peak[:, None]) / 4.0) ** 2
    slopes = rng.normal(0, 0.8, (2, species))
    presence, present = np.ones((sites, species)), np.ones((sites, species), bool)
    effects = rng.normal(0, spread / 2, (sites, species))
    if absent:
        presence = expit(x @ slopes * 1.5 + rng.normal(0, 0.5, species))
        present = rng.random((sites, species)) < presence
    else:
        effects = effects + x @ slopes
    truth = np.stack(
        [expit(effects[:, [j]] + curves[j]).mean(axis=1) for j in range(species)], axis=1
    )
    start = rng.integers(0, WEEKS - 9, sites)
    span = np.where(even, WEEKS, 10)
    week = np.where(even, 0, start)[:, None] + rng.integers(0, span, (sites, visits))
    site = np.repeat(np.arange(sites), visits)
    seen = rng.random((len(site), species)) < expit(effects[site] + curves[:, week.ravel()].T)
    seen &= present[site]
    table = visit_table(site, day_of(week.ravel() + FIRST), seen)
    names = [f"species {j}" for j in range(species)]
    ids = pd.Index([f"S{i:03d}" for i in range(sites)], name="site_id")
    place = rng.uniform(0, 50_000, (sites, 2))
    k, n = table.sums(sites, species)
    columns = {
        "easting": place[:, 0],
        "northing": place[:, 1],
        "lon": place[:, 0] / 70_000,
        "lat": 50 + place[:, 1] / 111_000,
        "visits": n,
    }
    points = gpd.points_from_xy(columns["lon"], columns["lat"])
    third = sites // 6
    dataset = Dataset(
        card=DatasetCard(name="seasons", species=tuple(names), position_crs="EPSG:27700"),
        sites=gpd.GeoDataFrame(columns, index=ids, geometry=points, crs="EPSG:4326"),
        detections=pd.DataFrame(k, index=ids, columns=names),
        covariates=pd.DataFrame(x, index=ids, columns=["warmth", "woods"]),
        split=Split(
            train=tuple(ids[2 * third :]),
            validation=tuple(ids[:third]),
            test=tuple(ids[third : 2 * third]),
        ),
        visit_table=table,
    )
    return World(dataset, curves, effects, truth * present, presence, present)


def without_visits(dataset: Dataset, sites) -> Dataset:
    """Return the data set with nothing seen at ``sites``."""
    rows = dataset.rows(sites)
    table = dataset.visit_table
    site = table.visits["site"].to_numpy()[table.sightings["visit"].to_numpy()]
    kept = table.sightings[~np.isin(site, rows)].reset_index(drop=True)
    other = VisitTable(table.visits, kept)
    k, _ = other.sums(*dataset.detections.shape)
    detections = pd.DataFrame(k, dataset.detections.index, dataset.detections.columns)
    return replace(dataset, detections=detections, visit_table=other)


def with_dates(dataset: Dataset, *, first=16, weeks=12) -> Dataset:
    """Return the data set with dates for the visits that it counts, seen on the first of them."""
    k, n = dataset.detections.to_numpy(), dataset.visits.to_numpy()
    site = np.repeat(np.arange(len(n)), n)
    number = np.concatenate([np.arange(one) for one in n])
    table = visit_table(site, day_of(first + number % weeks), np.zeros((len(site), 1), bool))
    # sorted by date within a site: any visits will do
    rank = pd.Series(table.visits["site"]).groupby(table.visits["site"]).cumcount().to_numpy()
    visit, species = np.nonzero(rank[:, None] < k[table.visits["site"].to_numpy()])
    columns = {"visit": visit.astype(np.uint32), "species": species.astype(np.uint16)}
    length = np.bincount(visit, minlength=len(site)).astype(np.uint16)
    visits = table.visits.assign(list_length=length)
    return replace(dataset, visit_table=VisitTable(visits, pd.DataFrame(columns)))
