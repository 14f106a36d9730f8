"""
Does a plan beat going at random? Replays on real and simulated surveys, and the cost of a big plan.

The real sites are the published British ones (BUTTERFLY_SDM_SHARED); the regions are simulated. All
figures of docs/measured/planning.md come from here.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd

import butterfly_sdm as bs
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.planning import PlanOptions, Replay, ReplayOptions, make_plan
from butterfly_sdm.planning.ground import ground_of
from butterfly_sdm.planning.methods import Problem, gain_sites, random_sites
from butterfly_sdm.planning.replay import KINDS, RANDOM, _Act, _Stage
from butterfly_sdm.planning.summary import paired_interval

CONFIG = Path(__file__).parents[1] / "configs" / "s2bms_covariates.yaml"
RARE = (0.03, 0.15)  # share of the training sites where a rare species was found
REGION = {"size_px": 4096, "n_sites": 600, "n_species": 24}
NO_IMAGES = (
    "build.scenes=null",
    "build.split.fractions=[1,0,0]",
    "build.split.buffer_m=0",
    "build.covariates.rasters=[{name: habitat, path: habitats.tif, kind: fractions,"
    " side_m: [1000]}]",
)


def british(out: Path) -> Dataset:
    if "BUTTERFLY_SDM_SHARED" not in os.environ:
        raise SystemExit("Name the folder of the real data: BUTTERFLY_SDM_SHARED.")
    return bs.build(CONFIG, out / "s2bms")


def region(out: Path, seed: int) -> Dataset:
    """Return a simulated region of 41 km: 600 sites, climate and habitats, no imagery."""
    made = bs.simulate_region(out / f"region{seed}", seed=seed, **REGION)  # type: ignore[arg-type]
    return bs.build(made.config, out / f"dataset{seed}", overrides=NO_IMAGES)


def rare_species(dataset: Dataset) -> list[str]:
    rates = dataset.rates.loc[list(dataset.needed_split().train)]
    found = (rates > 0).mean()
    return [str(name) for name in found.index[(found > RARE[0]) & (found < RARE[1])]]


def told(name: str, replay: Replay, seconds: float) -> None:
    """Print the differences to random and farthest sites, in 1e-2 of mean squared error."""
    about = replay.about
    print(
        f"\n{name}: {about['draws']} draws, {about['start_sites']} + {about['add']} sites, "
        f"{about['scored']} scored, {about['covariates']} covariates; {seconds:.0f} CPU s"
    )
    for method, row in replay.summary.iterrows():
        cells = [f"{method:13s} {100 * row['mse']:.4f}"]
        for against in ("random", "farthest"):
            mean, low, high = (100 * row[f"minus_{against}{end}"] for end in ("", "_low", "_high"))
            cells.append(f"- {against} {mean:+.4f} [{low:+.4f}, {high:+.4f}]")
        cells.append(
            f"{row['percent']:+.2f} % [{row['percent_low']:+.2f}, {row['percent_high']:+.2f}]"
        )
        cells.append(f"better in {row['draws_better']:.0%}, found at {row['found']:.1f}")
        print("  ".join(cells))
    print({key: round(value, 3) for key, value in replay.promises.items()}, flush=True)


def one_by_one(dataset: Dataset, draws: int) -> None:
    """Plan for each rare species alone: its own error beside that after random sites."""
    names = rare_species(dataset)
    stage = _Stage.of(ground_of(dataset), ReplayOptions(draws=draws), names, None, 0)
    ratios, found = [], []
    for draw in range(draws):
        random = np.random.default_rng([0, draw])
        held, allowed = stage._hidden(random)
        start = stage._start(KINDS[draw % 3], allowed, random)
        pool = [site for site in allowed if site not in set(start)]
        act = _Act(stage, start, pool, held, int(random.integers(1 << 31)))
        unseen = [site for site in stage.pool if site not in set(start)]
        at = stage.ground.position
        problem = Problem(stage.add, at(pool), at(start), at(unseen), act.beliefs["informed"])
        plans = [random_sites(replace(problem, seed=act.seed + i)) for i in range(RANDOM)]
        chance = np.mean([act.errors(plan) for plan in plans], axis=0)
        counts = (stage.data.counts(pool)[0] > 0)[:, list(stage.chosen)]
        for place, species in enumerate(stage.chosen):
            weight = act.process.rate_weights(stage.data, unseen, [species]).astype(np.float32)
            assert problem.belief is not None
            picks = gain_sites(replace(problem, belief=replace(problem.belief, weight=weight)))
            ratios.append((draw, np.log(act.errors(picks)[place] / chance[place])))
            found.append((counts[picks, place].sum(), counts[plans[0], place].sum()))
        table = pd.DataFrame(ratios, columns=["draw", "ratio"])
        table = table[np.isfinite(table["ratio"])]
        if draw > 1:
            per_draw = table.groupby("draw")["ratio"].mean().to_numpy()
            cells = ", ".join(f"{100 * np.expm1(v):+.2f} %" for v in paired_interval(per_draw))
            print(
                f"{draw + 1} draws, {len(names)} species, each alone: mean, low, high {cells}; "
                f"found at {np.mean(found, axis=0).round(1)} of {stage.add} (planned, random)",
                flush=True,
            )


def speed(dataset: Dataset) -> None:
    """Plan 100 of 50,000 candidates with covariates: the sites themselves, moved and mixed."""
    random = np.random.default_rng(0)
    covariates = dataset.covariates
    assert covariates is not None
    drawn = random.integers(len(dataset.sites), size=50_000)
    place = dataset.sites[["easting", "northing"]].to_numpy(float)[drawn]
    place = place + random.normal(0, 30_000, place.shape)
    values = covariates.fillna(covariates.median()).to_numpy(float)[drawn]
    values = values * random.uniform(0.9, 1.1, values.shape)
    table = gpd.GeoDataFrame(
        pd.DataFrame(values, columns=list(covariates.columns)),
        geometry=gpd.points_from_xy(*place.T),
        crs=dataset.card.position_crs,
    )
    for method in ("gain", "space"):
        start = time.process_time()
        plan = make_plan(dataset, PlanOptions(sites=100, method=method), candidates=table)  # type: ignore[arg-type]
        seconds = time.process_time() - start
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{method}: {len(plan.sites)} of {plan.about['candidates']:,} candidates, "
            f"{plan.about['surveyed']} surveyed: {seconds:.1f} CPU s, most memory {memory:.2f} GiB",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "what", choices=["british", "validation", "rare", "alone", "regions", "speed"]
    )
    parser.add_argument("--draws", type=int, default=24)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the regions")
    parser.add_argument("--out", type=Path, default=Path("runs", "planning"))
    arguments = parser.parse_args()
    out: Path = arguments.out
    if arguments.what == "speed":
        speed(british(out))
        return
    if arguments.what == "alone":
        one_by_one(british(out), arguments.draws)
        return
    jobs = {f"region {seed}": (region, seed) for seed in arguments.seeds}
    names = list(jobs) if arguments.what == "regions" else [arguments.what]
    for name in names:
        dataset = jobs[name][0](out, jobs[name][1]) if name in jobs else british(out)
        settings: dict[str, object] = {"draws": arguments.draws}
        if name == "rare":
            settings["species"] = rare_species(dataset)
            print(f"{len(rare_species(dataset))} rare species", flush=True)
        if name == "validation":
            settings["part"] = "validation"
        start = time.process_time()
        replay = bs.replay_plan(dataset, out / f"replay {name}", **settings)
        told(name, replay, time.process_time() - start)


if __name__ == "__main__":
    main()
