"""Make a plan: candidates, places and means in, ranked sites and their share of the gain out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import DataError
from butterfly_sdm.mapping.options import CovariateRaster
from butterfly_sdm.planning.belief import CHUNK, Belief, Process, gains_in_order
from butterfly_sdm.planning.candidates import (
    ENOUGH,
    SITE,
    Candidates,
    covariates_of,
    find_candidates,
    species_numbers,
    without,
)
from butterfly_sdm.planning.ground import Ground, ground_of
from butterfly_sdm.planning.methods import METHODS, Problem, likely_sites, random_sites
from butterfly_sdm.planning.options import PlanOptions
from butterfly_sdm.planning.places import SquareOf, overlapping, read_shapes
from butterfly_sdm.planning.process import fit_process
from butterfly_sdm.planning.protection import Protection, find_protection
from butterfly_sdm.planning.words import words_of
from butterfly_sdm.progress import Progress, silent

MOST_SURVEYED = 3000  # the memory grows with sites times candidates
RANDOM_PLANS = 20
LEAST_KM = 1.0


@dataclass(frozen=True)
class Sources:
    """
    What a plan takes from the config of a run, or from the package around it.

    Attributes
    ----------
    settings
        Of a Gaussian process in the run; None: none.
    rasters
        Raster of each covariate, for places that are no sites.
    policy
        Sensitive species: side in metres of the squares to keep from; None: the usual one.
    square_of
        Reads grid references; None: they cannot be read.
    promises
        How promises held in a replay of these data; None: there was none.
    """

    settings: Mapping[str, Any] | None = None
    rasters: Mapping[str, CovariateRaster] = field(default_factory=dict)
    policy: Mapping[str, float | None] = field(default_factory=dict)
    square_of: SquareOf | None = None
    promises: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Plan:
    """
    Where to survey next.

    Attributes
    ----------
    sites
        Ranked, the first best; index ``name``. Columns ``rank``, ``visits``, ``share`` (of the gain
        of all together, in per cent), ``gain`` (of the expected error at the places, in per cent,
        given the sites before it; with aim find the expected finds), ``lon``, ``lat``, ``easting``,
        ``northing``, with costs ``cost``; ``geometry`` in the CRS of the plan.
    layer
        All candidates: ``gain`` of a survey there alone, ``gain_left`` after the plan, both in per
        cent; with aim find ``finds``. The best of it are no plan: neighbours tell the same.
    surveyed
        (surveyed, 2) coordinates of the sites there are.
    side_m
        Of the squares, if candidates are a grid.
    promise
        ``error`` expected at the places without new surveys (mean squared error of a rate),
        ``gain`` and ``gain_random`` in per cent of it, ``finds``, ``cost``.
    options
        What was asked for.
    about
        Data set, species, candidates, places, covariates: what the plan rests on.
    notes
        What was left out or assumed, in sentences.
    folder
        Where it was written; None: nowhere yet.
    """

    sites: gpd.GeoDataFrame
    layer: gpd.GeoDataFrame
    surveyed: np.ndarray
    side_m: float | None
    promise: Mapping[str, float]
    options: PlanOptions
    about: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    @property
    def words(self) -> str:
        """What the plan is good for, what it promises and how such promises have held."""
        return words_of(self.options, self.promise, self.about, len(self.sites))

    def __str__(self) -> str:
        return self.words

    def _repr_html_(self) -> str:
        columns = [name for name in ("rank", "visits", "share", "lon", "lat") if name in self.sites]
        table = pd.DataFrame(self.sites[columns]).round(4).to_html()
        return f"<p>{self.words}</p>{table}"


def make_plan(
    dataset: Dataset,
    options: PlanOptions,
    *,
    candidates: gpd.GeoDataFrame | None = None,
    places: gpd.GeoDataFrame | None = None,
    sources: Sources | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Plan:
    """
    Choose where to survey next.

    A Gaussian process is fitted to the training sites of the data set; sites of the other parts
    count as surveyed, but what was seen there is not looked at. Sites are chosen so that the
    expected squared error of the species at the places falls most.

    Parameters
    ----------
    dataset
        What was surveyed so far; tiles are not looked at.
    options
        What to choose from, how much, and what for.
    candidates, places
        One row per shape, with a CRS, in place of the files of ``options``.
    sources
        Rasters of covariates, the policy for sensitive species, and what else comes from a config.
    seed
        Of what is drawn: the same seed gives the same plan.

    Returns
    -------
    Plan
        Ranked sites, a layer over all candidates, and what is promised.

    Raises
    ------
    MissingFileError, DataError, RasterError
        A file is absent or does not fit, nothing is left to choose from, or a species is unknown or
        protected.
    """
    if places is not None:
        options = options.model_copy(update={"places": Path("given")})
    scene = _Scene.of(dataset, options, candidates, places, sources or Sources(), seed)
    progress("plan", 1, 3)
    belief = scene.belief()
    progress("plan", 2, 3)
    picks, finds = scene.choose(belief)
    plan = scene.plan(belief, picks, finds)
    progress("plan", 3, 3)
    return plan


@dataclass(frozen=True)
class _Scene:
    """All that is known before anything is chosen."""

    ground: Ground  # sites of the data set, then candidates, then places
    candidates: Candidates
    ids: list[str]
    places: list[str]
    place_weight: np.ndarray
    planned: list[str]
    surveyed: list[str]
    cost: np.ndarray | None
    process: Process
    species: tuple[int, ...]
    options: PlanOptions
    sources: Sources
    notes: tuple[str, ...]
    seed: int
    fingerprint: str  # of the data set

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        options: PlanOptions,
        given: gpd.GeoDataFrame | None,
        places: gpd.GeoDataFrame | None,
        sources: Sources,
        seed: int,
    ) -> _Scene:
        ground = ground_of(dataset)
        protection = find_protection(ground, options, sources.policy, sources.square_of)
        species = _planned_species(ground.dataset, options, protection)
        found = find_candidates(ground, options, given, square_of=sources.square_of)
        planned = _planned(ground, options, sources)
        if planned is not None:
            found = without(found, planned.geometry.centroid, "hold a place that is planned")
        found = found.only(
            ~overlapping(found.table.geometry, protection.squares), "lie in protected squares"
        )
        cost, found = _costs(ground, found, options, sources)
        asked = _asked_places(ground, options, places, sources)
        joined, found, cost, asked, told = _joined(ground, found, cost, asked, options, sources)
        ids = [f"candidate {name}" for name in found.table.index]
        generator = np.random.default_rng([seed, 1])
        if asked is None:
            at, weight = ids, np.ones(len(ids))
        else:
            at = [f"place {name}" for name in asked.index]
            weight = asked["weight"].to_numpy(float)
        if len(at) > options.most_places:
            rows = np.sort(generator.choice(len(at), options.most_places, replace=False))
            at, weight = [at[row] for row in rows], weight[rows]
        known, joined, unknown = _with_planned(joined, planned, options, sources)
        surveyed, more = _surveyed(joined.dataset, seed)
        data = joined.dataset
        split = data.split
        trained = split.train if split is not None and split.train else data.site_ids
        process = fit_process(data, trained, settings=sources.settings, seed=seed)
        return cls(
            joined,
            found,
            ids,
            at,
            weight,
            known,
            surveyed,
            cost,
            process,
            species,
            options,
            sources,
            (*ground.notes, *found.notes, *told, *unknown, *more),
            seed,
            dataset.fingerprint,
        )

    def belief(self) -> Belief:
        """Return what is believed of the candidates and places."""
        process, data, visits = self.process, self.ground.dataset, self.options.visits
        before = self.candidates.table["before"].to_numpy(float)
        weight = process.rate_weights(data, self.places, self.species) * self.place_weight
        n = data.counts(self.surveyed)[1]
        return process.belief(
            data,
            surveyed=[*self.surveyed, *self.planned],
            visits=np.concatenate([n, np.full(len(self.planned), float(visits))]),
            candidates=self.ids,
            noise=process.survey_noise(visits, before),
            places=self.places,
            weight=weight,
            n_species=len(self.species),
        )

    def choose(self, belief: Belief) -> tuple[list[int], np.ndarray | None]:
        """Return the candidates chosen, in order, and the expected finds of all (aim find)."""
        problem = self._problem(belief)
        if self.options.aim == "find":
            likely = self.process.model.predict(self.ground.dataset, self.ids).to_numpy()
            missed = (1 - likely[:, list(self.species)]) ** self.options.visits
            finds = (1 - missed).sum(axis=1)
            picks = likely_sites(problem, finds)
        else:
            finds, picks = None, METHODS[self.options.method](problem)
        if not picks:
            raise DataError(
                f"The cheapest candidate costs {problem.purse().cost.min():g}, more than the "
                f"budget of {self.options.budget:g}. Raise plan.budget."
            )
        return picks, finds

    def _problem(self, belief: Belief) -> Problem:
        at = self.ground.position
        return Problem(
            self.options.sites,
            at(self.ids),
            at([*self.surveyed, *self.planned]),
            at(self.places),
            belief,
            self.cost,
            self.options.budget,
            self.seed,
        )

    def plan(self, belief: Belief, picks: list[int], finds: np.ndarray | None) -> Plan:
        """Return the plan with what it promises."""
        gains = 100 * gains_in_order(belief, picks) / belief.total
        problem = self._problem(belief)
        chance = [
            100 * gains_in_order(belief, random_sites(replace(problem, seed=seed))).sum()
            for seed in range(RANDOM_PLANS)
        ]
        promise = {
            "error": belief.error,
            "gain": float(gains.sum()),
            "gain_random": float(np.mean(chance)) / belief.total,
        }
        layer = self.candidates.table[["geometry"]].copy()
        layer["gain"], layer["gain_left"] = _alone(belief, picks)
        worth = gains
        if finds is not None:
            layer["finds"], worth = finds, finds[picks]
            promise["finds"] = float(worth.sum())
        sites = self._ranked(picks, worth)
        if "cost" in sites:
            promise["cost"] = float(sites["cost"].sum())
        data = self.ground.dataset
        place = self.ground.coordinates(self.ground.position(self.surveyed))
        about = {
            "dataset": data.card.name,
            "dataset_fingerprint": self.fingerprint,
            "species": len(self.species),
            "candidates": len(self.ids),
            "places": len(self.places),
            "surveyed": len(self.surveyed),
            "planned": len(self.planned),
            "covariates": 0 if data.covariates is None else data.covariates.shape[1],
            "grid": self.candidates.side_m is not None,
            "crs": self.ground.crs.to_string(),
            "seed": self.seed,
            "promises": self.sources.promises,
        }
        return Plan(
            sites,
            layer,
            place,
            self.candidates.side_m,
            promise,
            self.options,
            about,
            self.notes,
        )

    def _ranked(self, picks: list[int], worth: np.ndarray) -> gpd.GeoDataFrame:
        """Return the chosen candidates in order, with what each is worth."""
        shapes = self.candidates.table.geometry.iloc[picks]
        position = self.ground.position([self.ids[pick] for pick in picks])
        place = self.ground.coordinates(position)
        points = gpd.GeoSeries(gpd.points_from_xy(*place.T), crs=self.ground.crs).to_crs(4326)
        columns = {
            "rank": np.arange(1, len(picks) + 1),
            "visits": self.options.visits,
            "share": 100 * worth / max(float(worth.sum()), 1e-300),
            "gain": worth,
            "lon": points.x.round(6).to_numpy(),
            "lat": points.y.round(6).to_numpy(),
            "easting": place[:, 0].round(2),
            "northing": place[:, 1].round(2),
        }
        # a distance to homes would tell where people live
        if self.cost is not None and self.options.homes is None:
            columns["cost"] = self.cost[picks]
        frame = gpd.GeoDataFrame(columns, index=shapes.index, geometry=shapes.to_numpy())
        return frame.set_crs(self.ground.crs)


def _planned_species(
    data: Dataset, options: PlanOptions, protection: Protection
) -> tuple[int, ...]:
    """Return the species a plan is made for: those named, or all that are not protected."""
    chosen = species_numbers(data, options.species)
    open_ = tuple(j for j in chosen if data.species[j] not in protection.species)
    if not open_:
        raise DataError(
            "Every species of the data set is protected, so there is none to plan for. Set "
            "plan.allow_protected if you may know their places."
        )
    return open_


def _costs(
    ground: Ground, found: Candidates, options: PlanOptions, sources: Sources
) -> tuple[np.ndarray | None, Candidates]:
    """Return (candidates,) what each costs, and the candidates that have a cost."""
    if options.homes is not None:
        from scipy.spatial import KDTree

        homes = read_shapes(options.homes, ground, "homes", square_of=sources.square_of)
        tree = KDTree(ground.middles(homes.geometry))
        away, _ = tree.query(ground.middles(found.table.geometry))
        return np.maximum(away / 1000, LEAST_KM), found
    if options.cost is None:
        if options.budget is not None:
            return np.ones(len(found)), found
        return None, found
    if options.cost not in found.table.columns:
        raise DataError(
            f"The candidates have no column {options.cost!r} of costs; they have "
            f"{', '.join(map(str, found.table.columns.drop(['geometry', 'before', SITE])))}."
        )
    cost = pd.to_numeric(found.table[options.cost], errors="coerce").to_numpy(float)
    if (cost <= 0).any():
        bad = found.table.index[cost <= 0][0]
        raise DataError(f"The candidate {bad} costs {cost[cost <= 0][0]:g}; costs are above 0.")
    there = np.isfinite(cost)
    return cost[there], found.only(there, f"have no number in {options.cost}")


def _asked_places(
    ground: Ground, options: PlanOptions, given: gpd.GeoDataFrame | None, sources: Sources
) -> gpd.GeoDataFrame | None:
    """Return where the map will be judged, with a weight; None: at the candidates."""
    data = ground.dataset
    if given is None and options.places == "candidates":
        return None
    if given is not None or isinstance(options.places, Path):
        source = given if given is not None else options.places
        assert isinstance(source, Path | gpd.GeoDataFrame)
        table = read_shapes(source, ground, "places", square_of=sources.square_of)
        weight = pd.to_numeric(table.get("weight", pd.Series(1.0, table.index)), errors="coerce")
        if not (weight.notna() & (weight >= 0)).all() or not (weight > 0).any():
            raise DataError("The weights of the places are not all numbers of at least 0.")
        return table.assign(weight=weight / weight.mean(), **{SITE: ""})
    part = str(options.places)
    sites = data.site_ids if part == "sites" else data.needed_split().part(part)
    place = ground.coordinates(ground.position(sites))
    return gpd.GeoDataFrame(
        {"weight": 1.0, SITE: list(sites)},
        index=pd.Index(sites, name="name"),
        geometry=gpd.points_from_xy(*place.T),
        crs=ground.crs,
    )


def _joined(
    ground: Ground,
    found: Candidates,
    cost: np.ndarray | None,
    asked: gpd.GeoDataFrame | None,
    options: PlanOptions,
    sources: Sources,
) -> tuple[Ground, Candidates, np.ndarray | None, gpd.GeoDataFrame | None, list[str]]:
    """Return the ground with candidates and places as sites, and those that have all covariates."""
    tables = [covariates_of(ground, found.table, options, sources.rasters)]
    if asked is not None:
        tables.append(covariates_of(ground, asked, options, sources.rasters))
    names = list(tables[0].columns)
    used = [n for n in names if all(table[n].notna().mean() >= ENOUGH for table in tables)]
    notes = _told_of_covariates(names, used)
    whole = [table[used].notna().all(axis=1).to_numpy() for table in tables]
    found = found.only(whole[0], "lack a covariate")
    cost = cost if cost is None else cost[whole[0]]
    ids = [f"candidate {name}" for name in found.table.index]
    parts = [(found.table.geometry, tables[0][used][whole[0]])]
    if asked is not None:
        if not whole[1].any():
            raise DataError("No place has all covariates that the candidates have.")
        if not whole[1].all():
            notes.append(f"{(~whole[1]).sum():,} places lack a covariate and are left out.")
        asked = asked[whole[1]]
        ids += [f"place {name}" for name in asked.index]
        parts.append((asked.geometry, tables[1][used][whole[1]]))
    position = np.concatenate([ground.middles(shapes) for shapes, _ in parts])
    values = pd.concat([table for _, table in parts]) if used else None
    return ground.with_places(ids, position, values), found, cost, asked, notes


def _told_of_covariates(names: Sequence[str], used: Sequence[str]) -> list[str]:
    lost = [name for name in names if name not in set(used)]
    if not lost:
        return []
    if not used:
        return [
            f"The candidates have none of the {len(names)} covariates of the data set, so the plan "
            "knows positions alone. Give them as columns, in plan.covariates or as rasters of "
            "build.covariates."
        ]
    return [
        f"{len(lost)} of {len(names)} covariates are not known at the candidates: {lost[0]} ..."
    ]


def _planned(ground: Ground, options: PlanOptions, sources: Sources) -> gpd.GeoDataFrame | None:
    if options.planned is None:
        return None
    table = read_shapes(options.planned, ground, "planned", square_of=sources.square_of)
    return table.assign(**{SITE: ""})


def _with_planned(
    joined: Ground, table: gpd.GeoDataFrame | None, options: PlanOptions, sources: Sources
) -> tuple[list[str], Ground, list[str]]:
    """Return the places planned already as sites of the ground, and what is not known of them."""
    if table is None:
        return [], joined, []
    ids = [f"planned {name}" for name in table.index]
    values, notes = None, list[str]()
    if joined.dataset.covariates is not None:
        values = covariates_of(joined, table, options, sources.rasters)
        values = values.reindex(columns=joined.dataset.covariates.columns)
        if lacking := int(values.isna().any(axis=1).sum()):
            notes.append(
                f"{lacking} of {len(table)} planned places lack covariates, and are taken for like "
                "the nearest site in them."
            )
    return ids, joined.with_places(ids, joined.middles(table.geometry), values), notes


def _surveyed(data: Dataset, seed: int) -> tuple[list[str], list[str]]:
    sites = [site for site, n in data.visits.items() if n > 0]
    if len(sites) <= MOST_SURVEYED:
        return sites, []
    drawn = np.random.default_rng([seed, 2]).choice(len(sites), MOST_SURVEYED, replace=False)
    note = (
        f"{MOST_SURVEYED:,} of the {len(sites):,} surveyed sites, drawn at random, stand for all."
    )
    return [sites[row] for row in np.sort(drawn)], [note]


def _alone(belief: Belief, picks: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """
    Return (candidates,) what a survey there alone takes away of the expected error, in per cent:
    now, and once the plan is carried out.
    """
    weight, between = belief.weight, belief.between
    now = np.einsum("t,tc,tc->c", weight, between, between) / (belief.variance + belief.noise)
    picks = list(picks)
    own = belief.among(picks, picks).astype(float) + np.diag(belief.noise[picks].astype(float))
    inverse = np.linalg.inv(own).astype(between.dtype)
    after = np.zeros(len(belief.variance))
    for start in range(0, len(after), CHUNK):
        part = slice(start, start + CHUNK)
        across = belief.among(part, picks)  # (candidates, picks)
        solved = across @ inverse
        left = between[:, part] - between[:, picks] @ solved.T
        variance = belief.variance[part] - np.einsum("cp,cp->c", across, solved)
        power = np.einsum("t,tc,tc->c", weight, left, left)
        after[part] = power / (np.maximum(variance, 0) + belief.noise[part])
    after[picks] = 0.0
    return 100 * now / belief.total, 100 * after / belief.total


def with_folder(plan: Plan, folder: Path) -> Plan:
    """Return the plan, written."""
    return replace(plan, folder=folder)
