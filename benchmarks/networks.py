"""
What networks learn of a simulated region whose truth is known: by loss, by what they see, and beside the baselines.

    python benchmarks/networks.py [--size small|full] [--seeds N] [--folder DIR]

Scores are against the true probability p of every species at the held-out sites, not against counts: the expected log score
E = mean(p log q + (1 - p) log(1 - q)) of a claim q (largest for q = p), shown as the share of the way
from the mean rate to the truth. ``small`` uses a tiny trunk, ``full`` a ResNet-18 from scratch.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from butterfly_sdm import pipeline
from butterfly_sdm.baselines import make_baseline
from butterfly_sdm.baselines.site_inputs import band_statistics
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.models.training import NetworkPredictor
from butterfly_sdm.simulate import simulate_region


def expected_log_score(claim: np.ndarray, truth: np.ndarray) -> float:
    q = claim.clip(1e-4, 1 - 1e-4)
    return float((truth * np.log(q) + (1 - truth) * np.log(1 - q)).mean())


def read(folder: Path) -> tuple[Dataset, pd.DataFrame]:
    region = simulate_region(folder / "region", seed=0)
    dataset = (
        Dataset.open(folder / "dataset") if (folder / "dataset").is_dir() else pipeline.build(region.config, folder / "dataset")
    )
    truth = pd.read_csv(region.truth_table).set_index("site_id")[list(dataset.species)]
    return dataset, truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="names of candidates")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.folder or Path(tempfile.mkdtemp())
    dataset, truth = read(folder)
    split = dataset.split
    assert split is not None
    tiled = set(dataset.sites_with_tiles)
    held = [site for site in (*split.validation, *split.test) if site in tiled]
    train = [site for site in split.train if site in tiled]
    p = truth.loc[held].to_numpy()
    floor = expected_log_score(np.repeat(dataset.rates.loc[train].mean().to_numpy()[None], len(held), 0), p)
    bound = expected_log_score(p, p)
    print(f"{len(train)} training sites, {len(held)} held out; visits {dataset.visits.min()} to {dataset.visits.max()}")
    print(f"expected log score: mean rate {floor:.4f}, truth {bound:.4f}")

    def show(name: str, claims: list[np.ndarray], seconds: float) -> None:
        shares = [100 * (expected_log_score(claim, p) - floor) / (bound - floor) for claim in claims]
        errors = [100 * ((claim - p) ** 2).mean() for claim in claims]
        spread = f" +- {np.std(shares, ddof=1) / len(shares) ** 0.5:.1f}" if len(shares) > 1 else ""
        print(
            f"{name:34s} {np.mean(shares):6.1f} %{spread}   MSE to truth {np.mean(errors):.3f}e-2   {seconds:.0f} s", flush=True
        )

    for kind in ("mean_rate", "nearest_sites", "trees"):
        start = time.perf_counter()
        show(kind, [make_baseline(kind).fit(dataset, train).predict(dataset, held).to_numpy()], time.perf_counter() - start)
    backbone = "resnet18" if arguments.size == "full" else "test_resnet"
    common: dict[str, Any] = {
        "backbone": backbone, "window_px": 64, "margin_px": 32, "embedding": 64, "epochs": 20, "batch_size": 32,
        "patience": None, "keep": "last", "learning_rate": 1e-3 if arguments.size == "full" else 3e-3, "regulariser": None,
        "accelerator": "cpu",
    }  # fmt: skip
    # What a table can know of an image: mean, spread and percentiles of each band.
    numbers = band_statistics(dataset, [*train, *held])
    described = replace(
        dataset, covariates=pd.concat([dataset.covariates, numbers.reindex(dataset.sites.index)], axis=1).astype(float)
    )
    everything = {"covariates": True, "position": True, "modality_dropout": 0.1}
    table = {"image": False, "covariates": True, "position": True, "dropout": 0.5, "epochs": 40, "weight_decay": 1e-2}
    candidates: dict[str, tuple[Dataset, dict[str, Any]]] = {
        "covariates and position": (dataset, table),
        **{
            f"band statistics too, {loss}": (described, table | {"loss": loss})
            for loss in ("binomial", "beta_binomial", "bce", "mse")
        },
        "band statistics too, regulariser": (described, table | {"regulariser": {"weight": 0.1, "bottom": 16}}),
        "image": (dataset, {}),
        "all": (dataset, everything),
        "all, dropout and slow waves": (dataset, everything | {"dropout": 0.5, "modality_dropout": 0.3, "wave_scale": 0.1}),
        "image and covariates": (dataset, {"covariates": True, "modality_dropout": 0.3, "dropout": 0.5}),
        "all, regulariser": (dataset, everything | {"regulariser": {"weight": 0.1, "bottom": 16}}),
        "image, no margin": (dataset, {"window_px": 128, "margin_px": 0}),
    }
    for name, (data, change) in candidates.items():
        if arguments.only and name not in arguments.only:
            continue
        start = time.perf_counter()
        claims = []
        for seed in range(arguments.seeds):
            network = NetworkPredictor(**(common | change), seed=seed).fit(data, train)
            claims.append(network.predict(data, held).to_numpy())
        show(name, claims, time.perf_counter() - start)
        if len(claims) > 1:
            show(f"  the {len(claims)} seeds as one", [np.mean(claims, axis=0)], 0)


if __name__ == "__main__":
    main()
