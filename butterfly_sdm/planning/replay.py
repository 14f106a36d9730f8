"""
Replay: hide sites of one's own data, let each method choose some, refit, and score the map.

So one picks a method for one's data instead of believing. It assumes that recorders go where they
are sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from butterfly_sdm.baselines.trees import Trees
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import DataError
from butterfly_sdm.planning.belief import Belief, gains_in_order
from butterfly_sdm.planning.candidates import species_numbers
from butterfly_sdm.planning.ground import Ground, ground_of
from butterfly_sdm.planning.methods import (
    Problem,
    farthest_sites,
    gain_sites,
    likely_sites,
    random_sites,
    space_sites,
)
from butterfly_sdm.planning.options import ReplayOptions
from butterfly_sdm.planning.process import fit_process
from butterfly_sdm.planning.summary import summarised
from butterfly_sdm.planning.words import verdict_of
from butterfly_sdm.progress import Progress, silent

KINDS = ("towns", "centre", "spread")
RANDOM = 3  # random plans per draw, whose errors are averaged
TREES = 40
TOWNS = 4
LARGEST_BLOCK_M = 20_000.0
BLOCKS_ACROSS = 7
HELD_SHARE = 1 / 3
MOST_START, FEWEST_START = 150, 10
FEWEST_HELD = 5


@dataclass(frozen=True)
class Replay:
    """
    How well each method would have chosen.

    Attributes
    ----------
    draws
        One row per draw and method: ``draw``, ``start`` (its kind), ``method``, ``mse`` of the
        held-out sites after the new sites (mean of trees and Gaussian process), ``promised`` and
        ``fallen``: by how much the error was to fall and fell, ``found``: sites chosen where the
        named species live.
    errors
        One row per draw and method, one column per species: the error of that species alone.
    summary
        One row per method: ``mse``, ``minus_random`` and ``minus_farthest`` with 95 % intervals
        over draws (``_low``, ``_high``), the same in per cent of the error of random
        (``percent``), ``draws_better``: share of the draws in which it beat random.
    promises
        ``r``, the correlation of promised and found falls over draws and methods; ``kept``, found
        fall per promised fall of the method gain, with ``kept_low``, ``kept_high``.
    about
        Sites at the start, added and scored, species, draws: what the replay was.
    """

    draws: pd.DataFrame
    errors: pd.DataFrame
    summary: pd.DataFrame
    promises: Mapping[str, float]
    about: Mapping[str, Any]

    @property
    def verdict(self) -> str:
        """Which method serves these data, in one paragraph."""
        return verdict_of(self.summary, self.about, self.promises)

    def rows(self) -> dict[str, str]:
        """Return the difference of each method to random sites, and the verdict."""
        told = {
            name: f"{100 * row.minus_random:+.3f}e-2 [{100 * row.minus_random_low:+.3f}, "
            f"{100 * row.minus_random_high:+.3f}]"
            for name, row in self.summary.iterrows()
            if name != "random"
        }
        return told | {"in words": self.verdict}

    def __str__(self) -> str:
        return self.verdict

    def _repr_html_(self) -> str:
        return f"<p>{self.verdict}</p>{self.summary.round(5).to_html()}"


def make_replay(
    dataset: Dataset,
    options: ReplayOptions | None = None,
    *,
    species: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Replay:
    """
    Let each method choose sites again and again from those of a data set, and score the maps.

    In each draw whole squares of ground are held out and scored; some of the other sites are
    surveyed at the start, the rest may be chosen. A method that is informed knows where the map
    will be judged (all sites without a survey, as when the places are known); a blind one knows the
    candidates only. Trees and a Gaussian process (its kernel kept from the start) are fitted to
    start and chosen sites; the error is that of their mean. No test site is used.

    Parameters
    ----------
    options
        Draws, start, sizes.
    species
        Score and plan for these only; empty: all.
    settings
        Of the Gaussian process, as in :func:`~butterfly_sdm.planning.process.fit_process`.
    seed
        Of all that is drawn: the same seed gives the same replay.

    Returns
    -------
    Replay
        Tables per draw and per method.

    Raises
    ------
    DataError
        There are too few sites, no validation part, or no such species.
    """
    options = options or ReplayOptions()
    ground = ground_of(dataset)
    stage = _Stage.of(ground, options, species, settings, seed)
    rows: list[dict[str, Any]] = []
    errors: list[np.ndarray] = []
    for draw in range(options.draws):
        for row, error in stage.play(draw):
            rows.append(row)
            errors.append(error)
        progress("replay", draw + 1, options.draws)
    draws = pd.DataFrame(rows)
    names = [ground.dataset.species[j] for j in stage.chosen]
    table = pd.DataFrame(errors, columns=names)
    summary, promises = summarised(draws, table)
    about = {
        "draws": options.draws,
        "start": options.start,
        "start_sites": stage.start_sites,
        "add": stage.add,
        "scored": round(float(draws.groupby("draw")["held"].first().mean())),
        "part": options.part,
        "species": list(species),
        "seed": seed,
        "covariates": 0 if stage.data.covariates is None else stage.data.covariates.shape[1],
    }
    return Replay(draws.drop(columns="held"), table, summary, promises, about)


@dataclass(frozen=True)
class _Stage:
    """What stays the same over draws."""

    ground: Ground
    pool: tuple[str, ...]  # sites that may be surveyed, or held out where part is blocks
    held: tuple[str, ...]  # those of the validation part
    chosen: tuple[int, ...]  # species
    start_sites: int
    add: int
    block_m: float
    options: ReplayOptions
    settings: Mapping[str, Any] | None
    seed: int
    named: bool = field(default=False)

    @property
    def data(self) -> Dataset:
        return self.ground.dataset

    @classmethod
    def of(
        cls,
        ground: Ground,
        options: ReplayOptions,
        species: Sequence[str],
        settings: Mapping[str, Any] | None,
        seed: int,
    ) -> _Stage:
        data = ground.dataset
        chosen = species_numbers(data, species)
        pool = _visited(data, data.split.train if data.split is not None else data.site_ids)
        held: tuple[str, ...] = ()
        if options.part == "validation":
            held = _visited(data, data.needed_split().part("validation"))
        usual = len(pool) if held else len(pool) * (1 - HELD_SHARE)
        start = options.start_sites or max(FEWEST_START, min(MOST_START, int(usual // 4)))
        add = options.add or max(2 * start // 5, 1)
        if start < FEWEST_START or start + 2 * add > usual:
            raise DataError(
                f"A replay with {start} sites at the start and {add} to choose needs more than the "
                f"{len(pool)} sites with visits that may be used. Lower plan.replay.start_sites "
                "and add, or survey more first."
            )
        span = np.ptp(ground.position(pool), axis=0)
        block_m = options.block_m or min(
            LARGEST_BLOCK_M, float(np.sqrt(span.prod())) / BLOCKS_ACROSS
        )
        return cls(
            ground,
            pool,
            held,
            chosen,
            start,
            add,
            block_m,
            options,
            settings,
            seed,
            named=bool(species),
        )

    def play(self, draw: int) -> list[tuple[dict[str, Any], np.ndarray]]:
        """Return a row and the errors per species for each method of a draw."""
        random = np.random.default_rng([self.seed, draw])
        kind = KINDS[draw % 3] if self.options.start == "each" else self.options.start
        held, allowed = self._hidden(random)
        start = self._start(kind, allowed, random)
        pool = [site for site in allowed if site not in set(start)]
        act = _Act(self, start, pool, held, int(random.integers(1 << 31)))
        before = act.errors(())
        out = []
        for name, picks in act.plans().items():
            error = act.errors(picks)
            chosen = [pool[pick] for pick in picks]
            row = {
                "draw": draw,
                "start": kind,
                "method": name,
                "mse": float(error.mean()),
                "fallen": float(before.mean() - error.mean()),
                "promised": act.promised(picks),
                "found": int((self._counts(chosen) > 0).any(axis=1).sum()) if self.named else 0,
                "held": len(held),
            }
            out.append((row, error))
        return out

    def _counts(self, sites: Sequence[str]) -> np.ndarray:
        return self.data.counts(sites)[0][:, list(self.chosen)]

    def _hidden(self, random: np.random.Generator) -> tuple[list[str], list[str]]:
        """Return the sites that are scored, and those that may be surveyed."""
        if self.held:
            return list(self.held), list(self.pool)
        squares = np.floor(self.ground.position(self.pool) / self.block_m)
        group = np.unique(squares, axis=0, return_inverse=True)[1].reshape(-1)
        count = group.max() + 1
        held = np.isin(group, random.choice(count, max(1, round(count * HELD_SHARE)), False))
        needed = self.start_sites + self.add
        if count < 3 or held.sum() < FEWEST_HELD or (~held).sum() <= needed:
            raise DataError(
                f"Of the squares of {self.block_m:,.0f} m a third holds {held.sum()} of the "
                f"{len(held)} sites, which leaves too few to score or to choose from. Set "
                "plan.replay.block_m, or lower start_sites."
            )
        ids = np.array(self.pool, dtype=object)
        return ids[held].tolist(), ids[~held].tolist()

    def _start(self, kind: str, allowed: list[str], random: np.random.Generator) -> list[str]:
        """Return where surveys begin."""
        place = self.ground.position(allowed)
        weight = np.ones(len(allowed))
        if kind == "towns":
            towns = place[random.choice(len(place), min(TOWNS, len(place)), replace=False)]
            away = np.sqrt(((place[:, None] - towns[None]) ** 2).sum(axis=2)).min(axis=1)
            scale = float(np.sqrt(np.ptp(place, axis=0).prod())) / 20
            weight = np.exp(-away / scale) + 1e-6
        elif kind == "centre":
            middle = place[random.integers(len(place))]
            rank = np.argsort(np.argsort(((place - middle) ** 2).sum(axis=1)))
            weight = (rank < self.start_sites * 5 // 3).astype(float)
        rows = random.choice(len(allowed), self.start_sites, replace=False, p=weight / weight.sum())
        return [allowed[row] for row in np.sort(rows)]


@dataclass
class _Act:
    """One draw: what is surveyed, what may be chosen, what is scored."""

    stage: _Stage
    start: list[str]
    pool: list[str]
    held: list[str]
    seed: int

    def __post_init__(self) -> None:
        data, stage = self.stage.data, self.stage
        self.process = fit_process(data, self.start, settings=stage.settings)
        n = data.counts(self.start)[1]
        self.visits = float(np.median(n))
        taken = set(self.start)
        unseen = (*stage.pool, *stage.held)
        self.beliefs: dict[str, Belief] = {
            "informed": self._belief(n, [site for site in unseen if site not in taken]),
            "blind": self._belief(n, self.pool),
            "scored": self._belief(n, self.held),
        }

    def _belief(self, visits: np.ndarray, places: list[str]) -> Belief:
        process, data = self.process, self.stage.data
        return process.belief(
            data,
            surveyed=self.start,
            visits=visits,
            candidates=self.pool,
            noise=np.full(len(self.pool), process.survey_noise(self.visits)),
            places=places,
            weight=process.rate_weights(data, places, self.stage.chosen),
            n_species=len(self.stage.chosen),
        )

    def plans(self) -> dict[str, list[int]]:
        """Return what each method chooses."""
        at = self.stage.ground.position
        unseen = [s for s in (*self.stage.pool, *self.stage.held) if s not in set(self.start)]

        def problem(places: list[str], belief: str = "informed", seed: int = 0) -> Problem:
            return Problem(
                self.stage.add,
                at(self.pool),
                at(self.start),
                at(places),
                self.beliefs[belief],
                seed=seed,
            )

        plans = {
            f"random {i}": random_sites(problem(self.pool, seed=self.seed + i))
            for i in range(RANDOM)
        }
        plans |= {
            "farthest": farthest_sites(problem(self.pool)),
            "space": space_sites(problem(unseen)),
            "gain": gain_sites(problem(unseen)),
            "space, blind": space_sites(problem(self.pool)),
            "gain, blind": gain_sites(problem(self.pool, "blind")),
        }
        if self.stage.named:
            likely = self.process.model.predict(self.stage.data, self.pool).to_numpy()
            finds = 1 - (1 - likely[:, list(self.stage.chosen)]) ** self.visits
            plans["find"] = likely_sites(problem(self.pool), finds.sum(axis=1))
        return plans

    def promised(self, picks: list[int]) -> float:
        """Return by how much the error of the scored sites is expected to fall."""
        belief = self.beliefs["scored"]
        fall = gains_in_order(belief, picks).sum()
        return float(fall) / (len(self.held) * belief.n_species)

    def errors(self, picks: Sequence[int]) -> np.ndarray:
        """Return the squared error (species,) of a map made with the chosen sites as well."""
        data, stage = self.stage.data, self.stage
        known = [*self.start, *(self.pool[pick] for pick in picks)]
        forest = Trees(
            trees=TREES, min_samples_leaf=3, max_features=0.3, seed=stage.seed, covariates=True
        ).fit(data, known)
        process = self.process.model.given(data, known)
        models: tuple[Callable[..., pd.DataFrame], ...] = (forest.predict, process.predict)
        predicted = np.mean([model(data, self.held).to_numpy() for model in models], axis=0)
        k, n = data.counts(self.held)
        off = predicted - k / n[:, None]
        return np.asarray((off[:, list(stage.chosen)] ** 2).mean(axis=0))


def _visited(dataset: Dataset, sites: Sequence[str]) -> tuple[str, ...]:
    n = dataset.visits.to_numpy()[dataset.rows(sites)]
    return tuple(site for site, visits in zip(sites, n, strict=True) if visits > 0)
