"""
How far a dense map is from window by window, by margin and padding of the network, and what they do
to skill.

    python benchmarks/surroundings.py           a ResNet-18 per setting: minutes on a GPU
    python benchmarks/surroundings.py --thin    a quarter of the channels: 20 s of CPU a setting
    python benchmarks/surroundings.py --only 128,64,replicate

A held-out site is predicted twice by each network: from the tile it was trained on (``window + 2 *
margin`` px), as window by window does, and from the same window with 224 px of true surroundings,
farther than a cell of a ResNet-18 can see, as the dense way does. Skill is the mean square error to
the true probability; its difference has an interval by bootstrap over sites.
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
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import FitContext
from butterfly_sdm.models import trunk as backbone
from butterfly_sdm.models.network_predictor import NetworkPredictor
from butterfly_sdm.simulate import simulate_region

REACH_PX = 224
TILE_PX = 192 + 2 * REACH_PX
SETTINGS = "192,32,zeros 192,32,replicate 128,64,zeros 128,64,replicate 96,64,replicate 128,0,zeros"


def cut(dataset: Dataset, side: int) -> Dataset:
    """Return the data set with only the middle of its tiles."""
    start = (TILE_PX - side) // 2
    tiles = dataset.card.tiles.model_copy(update={"size_px": side})
    inner = np.ascontiguousarray(dataset.tiles[:, :, start : start + side, start : start + side])
    return replace(dataset, card=dataset.card.model_copy(update={"tiles": tiles}), tiles=inner)


def thin_resnet(name: str, bands: int) -> torch.nn.Module:
    """Return a ResNet-18 with 16 channels where it has 64."""
    from torchvision.models.resnet import BasicBlock, ResNet

    net = ResNet(BasicBlock, [2, 2, 2, 2])
    net.inplanes = 16
    net.conv1, net.bn1 = torch.nn.Conv2d(bands, 16, 7, 2, 3, bias=False), torch.nn.BatchNorm2d(16)
    for number, width in enumerate((16, 32, 64, 128), start=1):
        setattr(
            net,
            f"layer{number}",
            net._make_layer(BasicBlock, width, 2, stride=1 if number == 1 else 2),
        )
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    del net.fc, net.avgpool
    return backbone._ResNetBody(net)


def interval(differences: np.ndarray, repetitions: int = 2000) -> tuple[float, float]:
    """Return the 95 % interval of the mean of (sites,) numbers."""
    generator = np.random.default_rng(0)
    draws = generator.integers(0, len(differences), (repetitions, len(differences)))
    low, high = np.percentile(differences[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", default=SETTINGS, help="window,margin,padding of the networks, blanks between"
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--thin", action="store_true")
    parser.add_argument("--folder", type=Path, help="where region and data set are kept")
    options = parser.parse_args()
    if options.thin:
        backbone._torchvision_resnet = thin_resnet
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        region = simulate_region(folder / "region")
        larger = [f"build.tiles.size_px={TILE_PX}", "build.tiles.min_valid_fraction=0.3"]
        dataset = pipeline.build(region.config, folder / "dataset", overrides=larger)
        truth = pd.read_csv(region.truth_table).set_index("site_id")
        for text in options.only.split():
            for seed in range(options.seeds):
                window, margin, padding = text.split(",")
                show(dataset, truth, int(window), int(margin), padding, seed, options)


def show(
    dataset: Dataset,
    truth: pd.DataFrame,
    window: int,
    margin: int,
    padding: Any,
    seed: int,
    options: argparse.Namespace,
) -> None:
    """Train one network and print a line."""
    start, cpu = time.perf_counter(), time.process_time()
    network = NetworkPredictor(
        window_px=window,
        margin_px=margin,
        padding=padding,
        epochs=options.epochs,
        batch_size=32,
        embedding=64,
        patience=None,
        regulariser={"weight": 0.1, "bottom": 16},
        accelerator=options.accelerator,
        seed=seed,
    )
    network.fit(
        cut(dataset, window + 2 * margin),
        dataset.split.train,
        context=FitContext(validation=dataset.split.validation),
    )
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    trained = set(dataset.split.train)
    held = [site for site in dataset.sites_with_tiles if site not in trained]
    predictions = {}
    for width in (margin, REACH_PX):
        network.network.margin_px = width
        predictions[width] = network.predict(cut(dataset, window + 2 * width), held).to_numpy()
    exact, dense, known = (
        predictions[margin],
        predictions[REACH_PX],
        truth.loc[held, list(dataset.species)].to_numpy(),
    )
    apart = np.abs(dense - exact)
    errors = [((claim - known) ** 2).mean(axis=1) for claim in (exact, dense)]  # (sites,) each
    low, high = interval(errors[1] - errors[0])
    print(
        f"window {window:3d} + 2 x {margin:2d} px, {padding:9s} seed {seed}: difference mean "
        f"{apart.mean():.4f}, p99 "
        f"{np.percentile(apart, 99):.4f}, max {apart.max():.4f}; MSE to truth "
        f"{errors[0].mean() * 100:.3f}e-2 exact, "
        f"{errors[1].mean() * 100:.3f}e-2 dense, difference {low * 100:+.3f} to "
        f"{high * 100:+.3f}e-2; {len(held)} sites; "
        f"{wall:.0f} s ({cpu:.0f} s CPU)",
        flush=True,
    )


if __name__ == "__main__":
    main()
