"""
Does a share of the rates around in the embedding make an ensemble of networks on covariates better?

    python benchmarks/neighbours.py WORK [--seed N]

The published sites without imagery (947 for training, BUTTERFLY_SDM_SHARED), spatial folds within
the training part, settings of configs/s2bms_covariates.yaml, no regulariser. Every network is
fitted once and predicts with and without its neighbours, so the difference is theirs alone; its
interval draws squares of 20 km again. The share of 0.1 was fixed before; the others are told
beside it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
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
    found: dict[float, list[pd.DataFrame]] = {share: [] for share in (0.0, *SHARES)}
    for fold in spatial_folds(dataset.sites.loc[train], n_folds=FOLDS, seed=arguments.seed):
        networks = Ensemble.of_networks(
            MEMBERS, settings.train.model, settings.train.fit, seed=10 * arguments.seed
        ).fit(dataset, fold.train)
        found[0.0].append(networks.predict(dataset, fold.validation))
        for share in SHARES:
            for member in networks.members:
                assert isinstance(member, NetworkPredictor)
                blend(member, dataset, list(fold.train), share)
            found[share].append(networks.predict(dataset, fold.validation))
        print(f"{fold.method}: {len(fold.train)} + {len(fold.validation)} sites", flush=True)
    tables = {share: pd.concat(parts) for share, parts in found.items()}
    sites = list(tables[0.0].index)
    rates = dataset.rates.loc[sites].to_numpy()
    errors = {
        share: 100 * ((table.to_numpy() - rates) ** 2).mean(axis=1)
        for share, table in tables.items()
    }
    blocks = grid_blocks(dataset.sites.loc[sites])
    print(f"{len(sites)} sites in {blocks.nunique()} squares, {time.process_time() - start:.0f} s")
    for share, error in errors.items():
        difference = error - errors[0.0]
        line = f"share {share:.2f}: MSE {error.mean():.4f}e-2"
        if share:
            line += f", difference {mean_interval(difference, blocks)} e-2"
            line += f", better at {np.mean(difference < 0):.0%} of the sites"
        print(line, flush=True)


if __name__ == "__main__":
    main()
