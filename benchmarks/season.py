"""
Standardised rates, presence and their intervals beside k / n, on real walks and on known truth.

    BUTTERFLY_SDM_SHARED=... python benchmarks/season.py gatekeeper|semireal|presence|rbms

    gatekeeper   weekly walks of one butterfly, cut to a random ten weeks of one year per site
    semireal     real rates and covariates of 62 species with imposed seasons, nine visits per site
    presence     simulated presence and detection
    rbms         season curves of two species

Numbers after the word: how many seeds, and the first. Times are processor times of this process
with one thread.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from butterfly_sdm.baselines.occupancy import OccupancyModel
from butterfly_sdm.baselines.seasonal import Seasonal
from butterfly_sdm.baselines.trees import Trees
from butterfly_sdm.data.dataset import Dataset, DatasetCard
from butterfly_sdm.data.predictor import Predictor
from butterfly_sdm.data.quantities import Quantity, ask
from butterfly_sdm.data.visits import VisitTable
from butterfly_sdm.models.network_predictor import NetworkPredictor
from butterfly_sdm.season.cells import CellCounts
from butterfly_sdm.season.links import chance
from butterfly_sdm.season.options import SeasonOptions
from butterfly_sdm.season.seasons import Seasons, surveyed_rates
from butterfly_sdm.season.site_effects import quantiles
from butterfly_sdm.simulate.looking import SEASON, Detection, Looking

SHARED = Path(os.environ.get("BUTTERFLY_SDM_SHARED", "."))
WEEKS = 26


def visit_table(
    site: np.ndarray, date: np.ndarray, seen: np.ndarray, **more: np.ndarray
) -> VisitTable:
    """Make a table of visits; ``seen`` is (visits, species) true or false."""
    order = np.lexsort((date, site))
    seen = np.asarray(seen)[order].reshape(len(order), -1)
    visit, species = np.nonzero(seen)
    visits = pd.DataFrame(
        {
            "site": site[order].astype(np.uint32),
            "date": pd.to_datetime(date[order]).astype("datetime64[s]"),
            "list_length": seen.sum(axis=1).astype(np.uint16),
            **{name: np.asarray(values)[order] for name, values in more.items()},
        }
    )
    sightings = pd.DataFrame(
        {"visit": visit.astype(np.uint32), "species": species.astype(np.uint16)}
    )
    return VisitTable(visits, sightings)


def day_in_week(year: np.ndarray, week: np.ndarray) -> np.ndarray:
    """Return the fourth day of weeks counted from 1 April = 0."""
    first = (np.asarray(year) - 1970).astype("datetime64[Y]").astype("datetime64[D]")
    return first + (90 + 7 * np.asarray(week) + 3).astype("timedelta64[D]")


def gatekeeper(draws: int = 5, seed: int = 0) -> None:
    walks = pd.read_csv(SHARED / "data/ukbms/gatekeeper_weekly_2017_2019.csv.gz")
    walks = walks[walks.year.isin([2018, 2019])]
    count = walks.groupby("site_id").size()
    walks = walks[walks.site_id.isin(count[count >= 36].index)]
    names = np.array(sorted(walks.site_id.unique()))
    site = np.searchsorted(names, walks.site_id)
    week, year = walks.week.to_numpy() - 1, walks.year.to_numpy()
    seen = walks["count"].to_numpy() > 0
    sites = len(names)
    sums, walked = np.zeros((sites, 26)), np.zeros((sites, 26))
    np.add.at(sums, (site, week), seen)
    np.add.at(walked, (site, week), 1)
    truth = np.nanmean(np.where(walked > 0, sums / np.maximum(walked, 1), np.nan), axis=1)
    warmth = pd.read_csv(SHARED / "data/s2bms/covariates.csv").set_index("site_id")
    warmth = warmth["bioclim_01"].reindex(names).to_numpy(float)
    options = SeasonOptions(first_week=14, last_week=39, shift_by="temperature")
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(draws):
        start, chosen = rng.integers(0, 17, sites), rng.choice([2018, 2019], sites)
        use = (year == chosen[site]) & (week >= start[site]) & (week < start[site] + 10)
        n = np.bincount(site[use], minlength=sites)
        k = np.bincount(site[use], seen[use], minlength=sites)
        ok = n > 0
        table = visit_table(site[use], day_in_week(year[use], week[use]), seen[use][:, None])
        begin = time.process_time()
        seasons = Seasons.fit(table, ["Gatekeeper"], np.arange(sites), options, gradient=warmth)
        bands = seasons.calendar.band_of(warmth, sites)
        counts = CellCounts.of(table, seasons.calendar, np.arange(sites), bands=bands)
        weight, rates = surveyed_rates(seasons, counts, 0)
        took = time.process_time() - begin
        claim = (weight * rates).sum(axis=1)
        # noise of the truth: what the walks of two years scatter around the rate
        p = chance(seasons.effects(0)[:, None] + seasons.grid, seasons.link)
        noise = np.zeros((seasons.calendar.bands, len(seasons.grid)))
        weights = seasons.calendar.weights() ** 2 * len(seasons.calendar.years)
        np.add.at(
            noise,
            np.arange(len(seasons.calendar)) % seasons.calendar.bands,
            weights[:, None] * p * (1 - p) * 26 / walked.sum(axis=1).mean(),
        )
        spread = np.sqrt((weight * (rates**2 + noise[bands])).sum(axis=1) - claim**2)
        limits = quantiles(rates, weight, (0.05, 0.95))
        rows.append(
            {
                "k/n": 100 * ((k / np.maximum(n, 1) - truth) ** 2)[ok].mean(),
                "constant": 100 * truth.var(),
                "standardised": 100 * ((claim - truth) ** 2)[ok].mean(),
                "cover": ((truth >= limits[:, 0]) & (truth <= limits[:, 1]))[ok].mean(),
                "cover_with_noise": (np.abs(truth - claim) < 1.645 * spread)[ok].mean(),
                "tau": seasons.tau[0],
                "cpu_s": took,
                "link": float(seasons.link == "cloglog"),
            }
        )
    print(pd.DataFrame(rows).round(3).to_string())
    print(pd.DataFrame(rows).mean().round(4).to_string())


def real_rates() -> tuple[Dataset, np.ndarray, np.ndarray, np.ndarray]:
    """Return the sites of S2BMS with covariates, rates (sites, species), training, latitude."""
    told = pd.read_csv(SHARED / "data/s2bms/presence.csv").set_index("site_id")
    parts = pd.read_csv(SHARED / "data/s2bms/sites.csv").set_index("site_id")
    table = pd.read_csv(SHARED / "data/s2bms/covariates.csv").set_index("site_id")
    table = table.reindex(told.index)
    table = table.fillna(table.median())
    table = table.loc[:, table.std() > 0]
    cover = table.columns.str.startswith("corine")
    table.loc[:, cover] = np.sqrt(table.loc[:, cover].clip(lower=0))
    n = told.n_visits.to_numpy()
    k = np.rint(told.iloc[:, 2:-1].to_numpy() * n[:, None])
    rates = (k + 0.5 * k.sum(0) / n.sum()) / (n[:, None] + 0.5)
    train = (parts.split.reindex(told.index) == "train").to_numpy()
    species = tuple(map(str, told.columns[2:-1]))
    places = {
        "easting": told.lon * 70_000,
        "northing": told.lat * 111_200,
        "lon": told.lon,
        "lat": told.lat,
        "visits": 9,
    }
    points = gpd.points_from_xy(told.lon, told.lat)
    sites = gpd.GeoDataFrame(places, index=told.index, geometry=points, crs="EPSG:4326")
    data = Dataset(
        card=DatasetCard(name="S2BMS", species=species, position_crs="EPSG:27700"),
        sites=sites,
        detections=pd.DataFrame(0, index=told.index, columns=list(species)),
        covariates=table,
    )
    return data, rates, train, told.lat.to_numpy()


def imposed_seasons(rng: np.random.Generator, top: np.ndarray) -> np.ndarray:
    """Return (species, weeks) log-odds with one or two broods, broad for common species."""
    t, out = np.arange(WEEKS) + 0.5, []
    for common in top >= 0.45:
        width = rng.uniform(5, 8) if common else rng.uniform(1.8, 3.5)
        flying = np.exp(-0.5 * ((t - rng.uniform(4, 20)) / width) ** 2)
        if rng.random() < 0.35 and not common:
            first = np.exp(-0.5 * ((t - rng.uniform(3, 8)) / width) ** 2)
            height = rng.uniform(0.5, 1.3)
            flying = first + height * np.exp(-0.5 * ((t - rng.uniform(15, 21)) / width) ** 2)
        out.append(np.log(flying + 1e-4))
    return np.array(out)


def sites_effects(rates: np.ndarray, curves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return effects (sites, species) whose mean rate over the season is ``rates``; that rate."""
    grid = np.linspace(-12, 22, 500)
    effects, truth = np.empty_like(rates), np.empty_like(rates)
    for place, curve in enumerate(curves):
        mean = expit(grid[:, None] + curve).mean(axis=1)
        effects[:, place] = np.interp(rates[:, place], mean, grid)
        truth[:, place] = expit(effects[:, place, None] + curve).mean(axis=1)
    return effects, truth


def walked(
    rng: np.random.Generator,
    data: Dataset,
    effects: np.ndarray,
    curves: np.ndarray,
    weeks: np.ndarray,
) -> Dataset:
    """Return the data set with visits in ``weeks`` (sites, visits)."""
    sites, visits = weeks.shape
    site, week = np.repeat(np.arange(sites), visits), weeks.ravel()
    seen = rng.random((len(site), len(curves))) < expit(effects[site] + curves[:, week].T)
    table = visit_table(site, day_in_week(np.full(len(site), 2018), week), seen)
    k, n = table.sums(sites, len(curves))
    detections = pd.DataFrame(k, index=data.detections.index, columns=data.detections.columns)
    sites_now = data.sites.assign(visits=n)
    return replace(data, sites=sites_now, detections=detections, visit_table=table)


FOREST = {"trees": 100, "min_samples_leaf": 4, "max_features": 0.4}
NETWORK: dict[str, Any] = {
    "image": False,
    "covariates": True,
    "position": True,
    "accelerator": "cpu",
    "embedding": 256,
    "head_width": 256,
    "dropout": 0.5,
    "regulariser": None,
    "epochs": 20,
    "batch_size": 128,
    "learning_rate": 4e-3,
    "weight_decay": 0.3,
}


def survey_weeks(rng: np.random.Generator, latitude: np.ndarray) -> dict[str, np.ndarray]:
    """Return the weeks (sites, visits) of each way of looking."""
    sites = len(latitude)
    start = rng.integers(0, 17, sites)
    rank = latitude.argsort().argsort() / sites
    along = np.clip(np.rint(16 * rank + rng.normal(0, 2, sites)), 0, 16).astype(int)
    return {
        "full": rng.integers(0, WEEKS, (sites, 45)),
        "even": rng.integers(0, WEEKS, (sites, 9)),
        "uneven": start[:, None] + rng.integers(0, 10, (sites, 9)),
        "confounded": along[:, None] + rng.integers(0, 10, (sites, 9)),
    }


def made(name: str, seed: int) -> Predictor:
    """Return an unfitted predictor."""
    if name.startswith("trees"):
        return Seasonal("trees", FOREST, folds=0) if "season" in name else Trees(**FOREST)
    loss = "season" if "season" in name else "binomial"
    return NetworkPredictor(**NETWORK, loss=loss, seed=seed)


def semireal(
    seeds: int = 4,
    first: int = 0,
    kinds: str = "trees,network",
    settings: str = "full,even,uneven,confounded",
) -> None:
    data, rates, train, latitude = real_rates()
    learn, judge = (tuple(data.detections.index[part]) for part in (train, ~train))
    rows: list[tuple[str, str, int, float, float]] = []
    for seed in range(first, first + seeds):
        rng = np.random.default_rng(1000 + seed)
        curves = imposed_seasons(rng, np.quantile(rates, 0.95, axis=0))
        effects, truth = sites_effects(rates, curves)
        base = ((truth[train].mean(0) - truth[~train]) ** 2).mean()
        for setting, weeks in survey_weeks(rng, latitude).items():
            here = walked(rng, data, effects, curves, weeks)
            ways = ("k/n",) if setting == "full" else ("k/n", "season")
            for kind, way in product(kinds.split(","), ways):
                if setting not in settings.split(","):
                    continue
                begin = time.process_time()
                model = made(f"{kind}, {way}", seed).fit(here, learn)
                claim = model.predict(here, judge).to_numpy()
                value = 1 - ((claim - truth[~train]) ** 2).mean() / base
                rows.append((setting, f"{kind}, {way}", seed, value, time.process_time() - begin))
                print(*rows[-1], flush=True)
    table = pd.DataFrame(rows, columns=["setting", "model", "seed", "skill", "cpu_s"])
    for value in ("skill", "cpu_s"):
        shown = table.pivot_table(index="model", columns="setting", values=value)
        print(shown.round(4).to_string())
    if seeds > 1 and len(settings.split(",")) == 4:
        tell_lost(table, kinds.split(","))


def tell_lost(table: pd.DataFrame, kinds: list[str]) -> None:
    """Print which share of the skill of full seasons is lost, and the difference if even."""
    skill = table.pivot_table(index="seed", columns=["model", "setting"], values="skill")
    for kind in kinds:
        full = skill[f"{kind}, k/n", "full"].mean()
        for setting, way in product(("uneven", "confounded"), ("k/n", "season")):
            lost = 1 - skill[f"{kind}, {way}", setting].mean() / full
            print(f"{kind}, {way}, {setting}: {lost:.1%} of the skill of full seasons is lost")
        paired = skill[f"{kind}, season", "even"] - skill[f"{kind}, k/n", "even"]
        error = paired.std(ddof=1) / len(paired) ** 0.5
        print(f"{kind}, even: season - k/n {paired.mean():+.4f}, standard error {error:.4f}")


def looked_at(
    looking: Looking, usual: float, seed: int, *, sites: int = 400, species: int = 20
) -> dict[str, Any]:
    """Return a data set of the simulator's way of looking, with presence as it is."""
    rng = np.random.default_rng(seed)
    names = tuple(f"species {place}" for place in range(species))
    levels = np.full(species, usual) + rng.uniform(-1, 1, species)
    detection = Detection.draw(looking, names, levels, seed)
    x = rng.normal(size=(sites, 3))
    north = x[:, 2].argsort().argsort() / (sites - 1)
    logit = levels + rng.normal(0, 0.8, species) + x @ rng.normal(0, 0.9, (3, species))
    psi = detection.presence_probability(logit)
    present = rng.random(psi.shape) < psi
    n = np.minimum(2 + rng.poisson(6, sites), looking.window_days or 60)
    day, site = detection.looking.days(north, n, rng), np.repeat(np.arange(sites), n)
    minutes = rng.choice([30.0, 60.0, 120.0], len(site), p=[0.4, 0.35, 0.25])
    effect = detection.site_effect(logit) + rng.normal(0, 0.6, (sites, species))
    seen = rng.random((len(site), species)) < detection.chance(
        effect[site], north[site], day, minutes
    )
    dates = SEASON.to_numpy()[day]
    table = visit_table(site, dates, seen & present[site], duration=minutes.astype(np.float32))
    k, n = table.sums(sites, species)
    index = pd.Index([f"S{place:04d}" for place in range(sites)], name="site_id")
    columns = {
        "easting": np.zeros(sites),
        "northing": 100_000 * north,
        "lon": np.zeros(sites),
        "lat": 50 + 5 * north,
        "visits": n,
    }
    points = gpd.points_from_xy(columns["lon"], columns["lat"])
    dataset = Dataset(
        card=DatasetCard(name="simulated", species=names, position_crs="EPSG:27700"),
        sites=gpd.GeoDataFrame(columns, index=index, geometry=points, crs="EPSG:4326"),
        detections=pd.DataFrame(k, index=index, columns=list(names)),
        covariates=pd.DataFrame(x, index=index, columns=["a", "b", "c"]),
        visit_table=table,
    )
    return {"dataset": dataset, "psi": psi, "present": present, "x": x}


def presence(seeds: int = 6, first: int = 0, only: str = "") -> None:
    settings = {
        "uneven": (Looking(True, 0.0, 10.0, 70, "latitude", 0.9, 0.5, 0.0), -0.5),
        "uneven, commoner easier": (Looking(True, 0.0, 10.0, 70, "latitude", 0.9, 0.5, 0.5), -0.5),
        "even, certain": (Looking(effort=0.9, occupied=0.5, commoner_easier=0.0), 6.0),
    }
    for name, (looking, usual) in settings.items():
        if only and name != only:
            continue
        rows = []
        for seed in range(first, first + seeds):
            world = looked_at(looking, usual, seed)
            dataset, psi, present = world["dataset"], world["psi"], world["present"]
            begin = time.process_time()
            model = OccupancyModel().fit(dataset, dataset.site_ids)
            took = (time.process_time() - begin) / psi.shape[1]
            claim, low, high = (
                ask(model, Quantity("presence", bound=bound))
                .predict(dataset, dataset.site_ids)
                .to_numpy()
                for bound in ("mean", "lower", "upper")
            )
            asked = ask(model, Quantity("presence"))
            assert isinstance(asked, OccupancyModel)
            here = asked.surveyed(dataset, dataset.site_ids)["mean"].to_numpy()
            k = dataset.detections.to_numpy()
            ever = 1.0 * (k > 0)
            known = k.sum(axis=0) >= 10
            plain = np.array(
                [
                    LogisticRegression(C=2.0).fit(world["x"], one).predict_proba(world["x"])[:, 1]
                    if 0 < one.sum() < len(one)
                    else one
                    for one in ever.T
                ]
            ).T
            inside = (low <= psi) & (psi <= high)
            for place in np.flatnonzero(known):
                p = psi[:, place]
                rows.append(
                    {
                        "mse": ((claim[:, place] - p) ** 2).mean(),
                        "mse_constant": ((ever[:, place].mean() - p) ** 2).mean(),
                        "mse_true_mean": p.var(),
                        "mse_ever_seen": ((ever[:, place] - p) ** 2).mean(),
                        "mse_logistic_of_ever_seen": ((plain[:, place] - p) ** 2).mean(),
                        "cover": inside[:, place].mean(),
                        "width": (high - low)[:, place].mean(),
                        "brier": ((here - present)[:, place] ** 2).mean(),
                        "brier_ever_seen": ((ever - present)[:, place] ** 2).mean(),
                        "cpu_s": took,
                    }
                )
        table = pd.DataFrame(rows).mean()
        print(f"== {name}: {len(rows)} species-runs")
        print(table.round(4).to_string())
        print(f"mse / constant {table['mse'] / table['mse_constant']:.3f}", end=", ")
        print(
            f"Brier / ever seen {table['brier'] / max(table['brier_ever_seen'], 1e-9):.3f}",
            flush=True,
        )


def rbms() -> None:
    visits = pd.read_csv(SHARED / "data/ukbms/m_visit.csv", parse_dates=["DATE"])
    counts = pd.read_csv(SHARED / "data/ukbms/m_count.csv", parse_dates=["DATE"])
    visits = visits.drop_duplicates(["SITE_ID", "DATE"]).reset_index(drop=True)
    places = np.unique(visits.SITE_ID)
    columns = []
    for species in (2, 4):
        own = counts[(species == counts.SPECIES) & (counts.COUNT > 0)]
        own = own[["SITE_ID", "DATE"]].drop_duplicates().assign(seen=1)
        columns.append(visits.merge(own, how="left").seen.fillna(0).to_numpy() > 0)
    site = np.searchsorted(places, visits.SITE_ID)
    table = visit_table(site, visits.DATE.to_numpy(), np.column_stack(columns))
    seasons = Seasons.fit(table, ["species 2", "species 4"], np.arange(len(places)))
    curves = seasons.curve_table()
    print(f"{len(visits):,} visits of {len(places)} sites, {seasons.calendar.years[0]} onwards")
    for name, curve in curves.groupby("species"):
        value = curve.relative.to_numpy()
        tops = [
            at
            for at in range(1, len(value) - 1)
            if value[at] > max(value[at - 1], value[at + 1], 0.05)
        ]
        days = pd.Timestamp("2001-01-04") + pd.to_timedelta(7 * (curve.week - 1), unit="D")
        told = ", ".join(f"{days.iloc[at]:%d %B} ({value[at]:.2f})" for at in tops)
        print(f"{name}: peaks around {told}")
        print(" ".join(f"{one:.2f}" for one in value))


if __name__ == "__main__":
    given = [int(one) if one.isdigit() else one for one in sys.argv[2:]]
    globals()[sys.argv[1]](*given)
