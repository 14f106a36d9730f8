"""
What the embedding of networks on covariates is good for: a share of the rates around in it, and
the regulariser in both forms.

    python benchmarks/embedding.py WORK [--seed N]

The published sites without imagery (947 for training, BUTTERFLY_SDM_SHARED), spatial folds within
the training part, settings of configs/s2bms_covariates.yaml, ensembles of four. Networks without a
regulariser are fitted once and predict with and without their neighbours, so the difference is
theirs alone. Intervals draw squares of 20 km again. The share of 0.1, and the settings of the
forms, were fixed before; the other shares are told beside it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from butterfly_sdm import pipeline
from butterfly_sdm.config import load_config
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.division import spatial_folds
from butterfly_sdm.evaluation.bootstrap import grid_blocks, mean_interval
from butterfly_sdm.losses.pairs import smoothed_rates
from butterfly_sdm.models.ensemble import Ensemble
from butterfly_sdm.models.network_predictor import NetworkPredictor

CONFIG = Path(__file__).parents[1] / "configs" / "s2bms_covariates.yaml"
SHARES = (0.1, 0.05, 0.25)
FORMS: dict[str, dict[str, Any]] = {
    "off": {"weight": 0.0},
    "published": {"weight": 0.1},
    "soft": {"form": "soft"},
    "soft, weight 0.02": {"form": "soft", "weight": 0.02},
}
MEMBERS, FOLDS = 4, 5


def blend(member: NetworkPredictor, dataset: Dataset, sites: list[str], share: float) -> None:
    """Let a fitted network take this share from its training sites."""
    net = member.network
    assert net is not None
    k, n = (torch.tensor(value, dtype=torch.float32) for value in dataset.counts(sites))
    net.architecture = net.architecture.model_copy(update={"remembered": 0})
    z = torch.tensor(member.embed(dataset, sites).to_numpy(), dtype=torch.float32)
    net.architecture = net.architecture.model_copy(update={"neighbours": share})
    net.remember(z, smoothed_rates(k, n))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="folder of the data set")
    parser.add_argument("--seed", type=int, default=0, help="of the folds and the networks")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    settings = load_config(CONFIG)
    dataset = pipeline.build(settings, arguments.work / "s2bms")
    train = list(dataset.needed_split().train)
    found: dict[str, list[pd.DataFrame]] = {}

    def predict(name: str, networks: Ensemble, sites: Sequence[str]) -> None:
        found.setdefault(name, []).append(networks.predict(dataset, sites))

    for fold in spatial_folds(dataset.sites.loc[train], n_folds=FOLDS, seed=arguments.seed):
        for form, term in FORMS.items():
            networks = Ensemble.of_networks(
                MEMBERS,
                settings.train.model,
                settings.train.fit,
                seed=10 * arguments.seed,
                regulariser=term,
            ).fit(dataset, fold.train)
            predict(form, networks, fold.validation)
            for share in SHARES if form == "off" else ():
                for member in networks.members:
                    assert isinstance(member, NetworkPredictor)
                    blend(member, dataset, list(fold.train), share)
                predict(f"neighbours {share}", networks, fold.validation)
        print(f"{fold.method}: {len(fold.train)} + {len(fold.validation)} sites", flush=True)
    tables = {name: pd.concat(parts) for name, parts in found.items()}
    sites = list(tables["off"].index)
    rates = dataset.rates.loc[sites].to_numpy()
    errors = {
        name: 100 * ((table.to_numpy() - rates) ** 2).mean(axis=1) for name, table in tables.items()
    }
    blocks = grid_blocks(dataset.sites.loc[sites])
    print(f"{len(sites)} sites in {blocks.nunique()} squares, {time.process_time() - start:.0f} s")
    for name, error in errors.items():
        line = f"{name:16s} MSE {error.mean():.4f}e-2"
        if name != "off":
            line += f", difference {mean_interval(error - errors['off'], blocks)} e-2"
        print(line, flush=True)


if __name__ == "__main__":
    main()
