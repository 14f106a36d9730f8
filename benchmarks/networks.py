"""
What networks learn of a simulated region whose truth is known: by what they see, by loss, with
surroundings or without.

    python benchmarks/networks.py [--size small|full] [--group NAME ...] [--seeds N] [--workers N]
    python benchmarks/networks.py --group seen losses --seeds 3     # two cores, a tiny trunk
    python benchmarks/networks.py --size full --device cuda --workers 8 --seeds 6

Scores are against the true probability p of every species at the held-out sites, not against
counts: the expected log score E = mean(p log q + (1 - p) log(1 - q)) of a claim q (largest for q =
p), shown as the share of the way from the mean rate (0 %) to the truth (100 %). Networks of one
group differ in what is named only; differences are taken seed by seed and shown with their standard
error. ``small`` uses a tiny trunk, ``full`` a ResNet-18 from scratch.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import tempfile
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from butterfly_sdm import pipeline
from butterfly_sdm.baselines import make_baseline
from butterfly_sdm.baselines.inputs.numbers import tile_statistics
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import Sees
from butterfly_sdm.models.network_predictor import NetworkPredictor
from butterfly_sdm.simulate import simulate_region

SIZES: dict[str, dict[str, Any]] = {
    "small": {"backbone": "test_resnet", "epochs": 20, "learning_rate": 3e-3},
    "full": {"backbone": "resnet18", "window_px": 128, "epochs": 30, "learning_rate": 1e-3},
}
ALL = {"covariates": True, "position": True}
# A table that holds mean, spread and percentiles of each band beside the covariates: what can be
# told of an image in numbers.
TABLE = {
    "image": False,
    "described": True,
    "dropout": 0.5,
    "epochs": 40,
    "weight_decay": 1e-2,
    "learning_rate": 3e-3,
} | ALL
# The first of a group is what the others are compared with.
GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "seen": {
        "image": {},
        "image, ResNet-18": {"backbone": "resnet18", "learning_rate": 1e-3},
        "covariates": {"image": False, "covariates": True},
        "position": {"image": False, "position": True},
        "covariates and position": {"image": False} | ALL,
        "image and covariates": {"covariates": True},
        "image and position": {"position": True},
        "image, covariates and position": ALL,
        "all three, exact numbers": ALL | {"covariate_noise": 0.0, "position_blur": 0},
        "all three, blurred twice as far": ALL | {"covariate_noise": 0.2, "position_blur": 40},
        "all three, gated": ALL | {"fusion": "gate"},
        "all three, each hidden from a fifth": ALL | {"modality_dropout": 0.2},
    },
    "losses": {
        f"table, {loss}": TABLE | {"loss": loss}
        for loss in ("binomial", "beta_binomial", "bce", "mse")
    },
    "image losses": {
        f"all three, {loss}": ALL | {"loss": loss}
        for loss in ("binomial", "beta_binomial", "bce", "mse")
    },
    "regulariser": {
        "image, without": {},
        "image, weight 0.1": {"regulariser": {"weight": 0.1, "bottom": 16}},
        "image, soft form": {"regulariser": {"form": "soft"}},
    },
    "margin": {
        "no surroundings, zeros beyond": {
            "window_px": 64,
            "margin_px": 0,
            "padding": "zeros",
            "unmoved": True,
        },
        "no surroundings": {"window_px": 64, "margin_px": 0, "unmoved": True},
        "surroundings of 32 px": {"window_px": 64, "margin_px": 32, "unmoved": True},
        "surroundings of 64 px": {"window_px": 64, "margin_px": 64, "unmoved": True},
    },
}


def expected_log_score(claim: np.ndarray, truth: np.ndarray) -> float:
    q = claim.clip(1e-4, 1 - 1e-4)
    return float((truth * np.log(q) + (1 - truth) * np.log(1 - q)).mean())


@functools.cache
def read(folder: Path, size: str) -> tuple[Dataset, pd.DataFrame, list[str], list[str]]:
    """
    Return data set, truth, training sites and held-out sites; make them if they are not there.
    """
    shape = (
        {"size_px": 3072, "n_sites": 300} if size == "small" else {"size_px": 4096, "n_sites": 600}
    )
    region = simulate_region(folder / "region", seed=0, tile_px=192, **shape)
    if not (folder / "dataset").is_dir():
        pipeline.build(region.config, folder / "dataset")
    dataset = Dataset.open(folder / "dataset")
    truth = pd.read_csv(region.truth_table).set_index("site_id")[list(dataset.species)]
    split = dataset.split
    assert split is not None
    tiled = set(dataset.sites_with_tiles)
    held = [site for site in (*split.validation, *split.test) if site in tiled]
    train = [site for site in split.train if site in tiled]
    return dataset, truth, train, held


def fit(
    folder: Path, size: str, device: str, change: dict[str, Any], seed: int
) -> tuple[np.ndarray, float]:
    """Return claims at the held-out sites, and seconds."""
    torch.set_num_threads(1)
    dataset, _, train, held = read(folder, size)
    settings = (
        {
            "window_px": 64,
            "margin_px": 32,
            "embedding": 64,
            "batch_size": 32,
            "patience": None,
            "keep": "last",
            "regulariser": None,
            "accelerator": device,
            "devices": 1,
        }
        | SIZES[size]
        | change
    )
    if settings.pop(
        "unmoved", False
    ):  # tiles no larger than what the trunk sees, so that all candidates see the same ground
        assert dataset.tiles is not None
        cut = (dataset.tiles.shape[-1] - settings["window_px"] - 2 * settings["margin_px"]) // 2
        dataset = replace(dataset, tiles=dataset.tiles[..., cut : 192 - cut, cut : 192 - cut])
    if settings.pop("described", False):
        looked = Sees.of(dataset, image=True)
        numbers = tile_statistics(dataset, [*train, *held], looked).reindex(dataset.sites.index)
        dataset = replace(
            dataset, covariates=pd.concat([dataset.covariates, numbers], axis=1).astype(float)
        )
    start = time.perf_counter()
    network = NetworkPredictor(**settings, seed=seed).fit(dataset, train)
    seconds = time.perf_counter() - start
    claims = network.predict(dataset, held).to_numpy()
    return claims, seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--group", nargs="*", choices=tuple(GROUPS), default=tuple(GROUPS))
    parser.add_argument(
        "--only", nargs="*", help="names of candidates, besides the first of each group"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="networks fitted at once")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--folder", type=Path, help="where the simulated region is kept")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("There is no GPU that PyTorch can use here. Leave --device out.")
    folder = arguments.folder or Path(tempfile.mkdtemp())
    dataset, truth, train, held = read(folder, arguments.size)
    p = truth.loc[held].to_numpy()
    floor = expected_log_score(
        np.repeat(dataset.rates.loc[train].mean().to_numpy()[None], len(held), 0), p
    )
    bound = expected_log_score(p, p)

    def share(claim: np.ndarray) -> float:
        return 100 * (expected_log_score(claim, p) - floor) / (bound - floor)

    def error(claim: np.ndarray) -> float:
        return 100 * float(((claim - p) ** 2).mean())

    print(
        f"{len(train)} training sites, {len(held)} held out; visits {dataset.visits.min()} to "
        f"{dataset.visits.max()}"
    )
    for kind in ("mean_rate", "nearest_sites", "trees"):
        claim = make_baseline(kind).fit(dataset, train).predict(dataset, held).to_numpy()
        print(f"{kind:36s} {share(claim):6.1f} %   MSE to truth {error(claim):.3f}e-2")

    spawn = multiprocessing.get_context("spawn")
    pool: Any = (
        ProcessPoolExecutor(arguments.workers, mp_context=spawn)
        if arguments.workers > 1
        else nullcontext()
    )
    with pool as executor:
        for group in arguments.group:
            wanted = {
                name: change
                for place, (name, change) in enumerate(GROUPS[group].items())
                if place == 0 or not arguments.only or name in arguments.only
            }
            tasks = [
                (folder, arguments.size, arguments.device, change, seed)
                for change in wanted.values()
                for seed in range(arguments.seeds)
            ]
            start = time.perf_counter()
            results = _run(executor, tasks)
            print(f"\n{group}: {arguments.seeds} seeds, {time.perf_counter() - start:.0f} s")
            first: np.ndarray | None = None
            for place, name in enumerate(wanted):
                own = results[place * arguments.seeds : (place + 1) * arguments.seeds]
                shares = np.array([share(claim) for claim, _ in own])
                first = shares if first is None else first
                together = np.mean([claim for claim, _ in own], axis=0)
                errors, seconds = (
                    np.mean(values) for values in zip(*((error(c), s) for c, s in own), strict=True)
                )
                line = f"{name:36s} {_mean(shares)} %   beside the first {_mean(shares - first)}"
                line += f"   as one {share(together):5.1f} %   MSE to truth {errors:.3f}e-2"
                line += f", as one {error(together):.3f}e-2"
                line += f"   {seconds:.0f} s each"
                print(line, flush=True)


def _run(executor: Executor | None, tasks: list[tuple[Any, ...]]) -> list[tuple[np.ndarray, float]]:
    if executor is None:
        return [fit(*task) for task in tasks]
    return list(executor.map(fit, *zip(*tasks, strict=True)))


def _mean(values: np.ndarray) -> str:
    spread = f" +- {np.std(values, ddof=1) / len(values) ** 0.5:4.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):6.1f}{spread}"


if __name__ == "__main__":
    main()
