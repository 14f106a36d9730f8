"""
Does the soft contrastive regulariser help, where, and in which form? Networks in pairs, with and
without it, on simulated regions whose truth is known.

    python benchmarks/regulariser.py WORK study            # tune "off", then judge; hours
    python benchmarks/regulariser.py WORK more --only 2    # further comparisons, see MORE
    python benchmarks/regulariser.py WORK table            # what the journal holds so far

Every fit is one row of ``WORK/rows.csv``; a run that was stopped goes on where it was. Regions 1
and 2 choose dropout, decay and the length of the fit of "off" at every number of labelled sites;
regions 3 to 8 choose nothing and judge. Both networks of a pair see the same sites in the same
order from the same start, with the settings that are best without the term.

Labelled and held-out sites lie in different blocks and share no ground. The score is the expected
log score of a claim against the true probability of every species at the held-out sites, as the
share of the way from the mean rate of the labelled sites (0 %) to the truth (100 %), over all
species and over the quarter of them that is rarest. Seconds are CPU time of one thread.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import t

from butterfly_sdm import pipeline
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.models.network_predictor import NetworkPredictor
from butterfly_sdm.simulate import simulate_region

LABELS = (100, 50, 200, 400)  # in the order in which they are worked on
TUNED_ON, JUDGES = (1, 2), (3, 4, 5, 6, 7, 8)
WINDOW_M = 1920  # of which a simulated species knows
BATCH = 25
TILE_PX = 64
# The trunk of the study: a ResNet-18 with 8 channels where it has 64, on the window of the species
# in pixels of 30 m, without surroundings: a fit of seconds where users have hours.
NARROW = {
    "backbone": "resnet18",
    "width": 8,
    "window_px": 64,
    "margin_px": 0,
    "padding": "zeros",
    "embedding": 64,
}
FULL = {name: value for name, value in NARROW.items() if name != "width"}
TABLE = {"image": False, "covariates": True, "position": True, "embedding": 64}
NETWORKS: dict[str, dict[str, Any]] = {
    "narrow": NARROW,
    "resnet18": FULL,
    "narrow and covariates": NARROW | {"covariates": True},
    "covariates": TABLE,
}
FORMS: dict[str, dict[str, Any]] = {
    "off": {"weight": 0.0},
    "soft": {"form": "soft"},
    "soft, all sites": {"form": "soft", "memory": True},
    "published": {"weight": 0.1, "bottom": 16},
}
# What is tried for "off": dropout, decay, thousands of images seen by the fit.
TUNING = ((0.3, 0.02, 6), (0.0, 0.02, 6), (0.3, 0.2, 6), (0.3, 0.02, 3))
PAIRS = 10  # of a comparison, regions first
# Further comparisons: network, form, labels, seeds.
MORE: tuple[tuple[str, str, int, tuple[int, ...]], ...] = (
    ("narrow", "published", 100, (0, 1)),
    ("narrow and covariates", "soft", 100, (0, 1)),
    ("covariates", "soft", 100, (0, 1)),
    ("narrow", "soft", 100, (2, 3)),  # with the first two seeds: ensembles of four
    ("narrow", "soft, all sites", 100, (0, 1)),
    ("narrow", "published", 400, (0, 1)),
    ("resnet18", "soft", 100, (0, 1)),
)
COLUMNS = (
    "network region seed labels form dropout decay passes way rare mse_e2 seconds version".split()
)
VERSION = 4  # of what a row means


@dataclass(frozen=True)
class Fit:
    """One row of the journal before its result."""

    network: str
    region: int
    seed: int
    labels: int
    form: str
    dropout: float
    decay: float
    passes: int

    @property
    def key(self) -> tuple[str, ...]:
        return tuple(str(value) for value in vars(self).values())


@dataclass(frozen=True)
class Place:
    """A simulated region: its data set, its truth, which sites may be labelled or are held out."""

    dataset: Dataset
    truth: pd.DataFrame
    pool: tuple[str, ...]
    held: tuple[str, ...]


def place(work: Path, seed: int) -> Place:
    """Return a region; make it if it is not there."""
    folder = work / f"region{seed}"
    region = simulate_region(folder, seed=seed, size_px=3584, n_sites=800, n_species=24)
    if not (folder / "dataset" / "dataset.json").is_file():
        changes = ["build.tiles.size_px=96", "build.tiles.resolution_m=20"]
        pipeline.build(region.config, folder / "dataset", overrides=changes)
    dataset = coarser(Dataset.open(folder / "dataset"), TILE_PX)
    tiled = list(dataset.sites_with_tiles)
    truth = pd.read_csv(region.truth_table).set_index("site_id").loc[tiled]
    at = truth[["easting", "northing"]].to_numpy()
    block = np.unique(np.floor(at / 6000), axis=0, return_inverse=True)[1].reshape(-1)
    pool = np.zeros(len(at), dtype=bool)
    for number in np.random.default_rng(seed).permutation(block.max() + 1):
        if pool.sum() < 420:
            pool |= block == number
    gap = np.abs(at[:, None] - at[None, pool]).max(axis=2).min(axis=1)
    held = ~pool & (gap > WINDOW_M * 1.02)  # squares that touch no square of the pool
    names = np.array(tiled)
    return Place(dataset, truth[list(dataset.species)], tuple(names[pool]), tuple(names[held]))


def coarser(dataset: Dataset, side: int) -> Dataset:
    """Return the data set with tiles of fewer, larger pixels on the same ground."""
    card = dataset.card.tiles
    assert card is not None and dataset.tiles is not None
    counts = torch.from_numpy(np.asarray(dataset.tiles).astype(np.float32))
    valid = (counts != card.nodata).all(dim=1, keepdim=True).float()
    shape = {"size": (side, side), "mode": "bilinear", "antialias": True}
    whole = torch.nn.functional.interpolate(valid, **shape) > 0.999
    counts = torch.nn.functional.interpolate(counts, **shape).round().clamp(min=1)
    tiles = torch.where(whole, counts, float(card.nodata)).numpy().astype(np.uint16)
    update = {"size_px": side, "resolution_m": card.resolution_m * card.size_px / side}
    return replace(
        dataset,
        card=dataset.card.model_copy(update={"tiles": card.model_copy(update=update)}),
        tiles=tiles,
    )


def expected_log_score(claim: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the expected log score of every species, for (sites, species)."""
    q = claim.clip(1e-4, 1 - 1e-4)
    value: np.ndarray = (truth * np.log(q) + (1 - truth) * np.log(1 - q)).mean(axis=0)
    return value


def scores(region: Place, labelled: list[str], claim: np.ndarray) -> dict[str, float]:
    """Return the share of the way to the truth and the squared error of a claim."""
    p = region.truth.loc[list(region.held)].to_numpy()
    k, n = region.dataset.counts(labelled)
    rate = np.repeat((k.sum(axis=0) / n.sum())[None], len(p), axis=0)
    own, floor, bound = (expected_log_score(value, p) for value in (claim, rate, p))
    means = region.truth.to_numpy().mean(axis=0)
    rare = means <= np.sort(means)[len(means) // 4 - 1]

    def share(which: np.ndarray) -> float:
        top, bottom = (own - floor)[which].sum(), (bound - floor)[which].sum()
        return float(100 * top / bottom)

    return {
        "way": share(np.ones_like(rare)),
        "rare": share(rare),
        "mse_e2": 100 * float(((claim - p) ** 2).mean()),
    }


def run(work: Path, fit: Fit, region: Place) -> dict[str, float]:
    """Fit one network; keep its claims at the held-out sites; return its scores."""
    order = np.random.default_rng([fit.seed, 7]).permutation(len(region.pool))
    labelled = [region.pool[row] for row in order[: fit.labels]]
    batches = max(1, fit.labels // BATCH)
    settings = NETWORKS[fit.network] | {
        "regulariser": FORMS[fit.form],
        "dropout": fit.dropout,
        "weight_decay": fit.decay,
        "epochs": fit.passes * 1000 // (batches * BATCH),
        "batch_size": BATCH,
        "learning_rate": 3e-3,
        "patience": None,
        "keep": "last",
        "accelerator": "cpu",
    }
    start = time.process_time()
    network = NetworkPredictor(**settings, seed=fit.seed).fit(region.dataset, labelled)
    seconds = time.process_time() - start
    claim = network.predict(region.dataset, region.held).to_numpy()
    claims = work / "claims"
    claims.mkdir(exist_ok=True)
    np.save(claims / ("_".join(fit.key).replace(" ", "-") + ".npy"), claim.astype(np.float32))
    return scores(region, labelled, claim) | {"seconds": seconds}


def journal(work: Path) -> pd.DataFrame:
    """Return the rows so far."""
    path = work / "rows.csv"
    if not path.is_file():
        return pd.DataFrame(columns=COLUMNS)
    return pd.read_csv(path)


def work_off(work: Path, fits: Iterator[Fit] | list[Fit], until: float) -> None:
    """Fit what the journal lacks, in order."""
    known = {
        tuple(str(value) for value in row)
        for row in journal(work)[list(Fit.__dataclass_fields__)].itertuples(index=False)
    }
    regions: dict[int, Place] = {}
    for fit in fits:
        if fit.key in known:
            continue
        if time.time() > until:
            raise SystemExit("The time is up; the same command goes on from here.")
        if fit.region not in regions:
            regions = {fit.region: place(work, fit.region)}  # one at a time: they are large
        row = vars(fit) | run(work, fit, regions[fit.region]) | {"version": VERSION}
        path = work / "rows.csv"
        fresh = not path.is_file()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if fresh:
                writer.writeheader()
            writer.writerow(
                {
                    k: f"{v:.4f}" if k in ("way", "rare", "mse_e2", "seconds") else v
                    for k, v in row.items()
                }
            )
        print(*(f"{name} {value}" for name, value in row.items()), flush=True)


def chosen(work: Path, labels: int, until: float) -> tuple[float, float, int]:
    """Return dropout, decay and length of "off" that regions 1 and 2 choose, narrow network."""
    tried = [
        Fit("narrow", region, 0, labels, "off", *settings)
        for settings in TUNING
        for region in TUNED_ON
    ]
    work_off(work, tried, until)
    rows = journal(work)
    own = rows[(rows.network == "narrow") & (rows.form == "off") & (rows.labels == labels)]
    own = own[own.region.isin(TUNED_ON)]
    means = own.groupby(["dropout", "decay", "passes"]).way.mean().sort_values(ascending=False)
    print(labels, "labels, off:", means.round(2).to_dict(), flush=True)
    dropout, decay, passes = means.index[0]
    return float(dropout), float(decay), int(passes)


def judging(
    network: str,
    labels: int,
    forms: tuple[str, ...],
    seeds: tuple[int, ...],
    settings: tuple[float, float, int],
) -> list[Fit]:
    """Return the fits of the regions that choose nothing, both networks of a pair in turn."""
    pairs = [(region, seed) for seed in seeds for region in JUDGES]
    return [
        Fit(network, region, seed, labels, form, *settings)
        for region, seed in pairs[:PAIRS]
        for form in forms
    ]


def study(work: Path, until: float) -> None:
    """Tune "off" at every number of labels, and judge the soft form there."""
    for labels in LABELS:
        settings = chosen(work, labels, until)
        work_off(work, judging("narrow", labels, ("off", "soft"), (0, 1), settings), until)


def table(work: Path) -> pd.DataFrame:
    """Return the differences from "off" in pairs, with their 95 % intervals."""
    rows = journal(work)
    rows = rows[rows.region.isin(JUDGES)]
    pair = ["network", "labels", "dropout", "decay", "passes", "region", "seed"]
    off = rows[rows.form == "off"].set_index(pair)
    lines = []
    for (network, labels, form), own in rows.groupby(["network", "labels", "form"]):
        own = own.set_index(pair)
        both = own.index.intersection(off.index)
        line = {"network": network, "labels": labels, "form": form, "pairs": len(both)}
        line |= {"off": off.loc[both, "way"].mean()}
        for score in ("way", "rare", "mse_e2"):
            difference = (own.loc[both, score] - off.loc[both, score]).to_numpy()
            line[score] = difference.mean()
            spread = difference.std(ddof=1) / len(both) ** 0.5 if len(both) > 1 else np.nan
            line[f"+- {score}"] = t.ppf(0.975, max(len(both) - 1, 1)) * spread
        if form != "off":
            lines.append(line)
    return pd.DataFrame(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="folder of regions, claims and the journal")
    parser.add_argument("stage", choices=("study", "more", "table"))
    parser.add_argument("--only", type=int, nargs="*", help="rows of MORE, counted from 0")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after so many")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    work, until = arguments.work, time.time() + 60 * arguments.minutes
    work.mkdir(parents=True, exist_ok=True)
    if arguments.stage == "study":
        study(work, until)
    if arguments.stage == "more":
        wanted = range(len(MORE)) if arguments.only is None else arguments.only
        for network, form, labels, seeds in (MORE[number] for number in wanted):
            settings = chosen(work, labels, until)
            work_off(work, judging(network, labels, ("off", form), seeds, settings), until)
    print(table(work).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
