"""
Training throughput: our fit, through Lightning and from packed tiles, next to a bare PyTorch loop
with the same model and data.

    python benchmarks/training.py [--size small|full] [--threads N]        # on the CPU
    python benchmarks/training.py --size full --device cuda --threads 8    # on a GPU

Printed are images per second, their ratio to the bare loop (channels_last, the same network and
batches, not augmented), the share of an epoch that waits for tiles, and memory. The published step
has the plain layout and zeros beyond the edge of an image. On the CPU the seconds are CPU time,
which a busy machine changes little. On a GPU the values of the regulariser under bf16 and the
repeatability of a fit are checked as well.
"""

from __future__ import annotations

import argparse
import copy
import os
import resource
import statistics
import time
from dataclasses import replace
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import torch

from butterfly_sdm.data.dataset import Dataset, DatasetCard, TileCard
from butterfly_sdm.data.tiles import TileReader
from butterfly_sdm.losses.contrastive import SoftRegulariser
from butterfly_sdm.losses.options import RegulariserOptions
from butterfly_sdm.losses.presence import PresenceLoss
from butterfly_sdm.models.augment import Augmentation
from butterfly_sdm.models.batches import Shuffled, SiteBatches, predict_batch
from butterfly_sdm.models.fit import Fitting, run_fit
from butterfly_sdm.models.inputs import site_tensors
from butterfly_sdm.models.network_predictor import NetworkPredictor
from butterfly_sdm.models.options import FitOptions
from butterfly_sdm.models.presence_net import Architecture, PresenceNet

BANDS = ("red", "green", "blue", "nir")


def make(sites: int, tile_px: int, species: int = 62) -> Dataset:
    rng = np.random.default_rng(0)
    ids = pd.Index([f"s{i}" for i in range(sites)], name="site_id")
    table = pd.DataFrame(
        {"easting": 0.0, "northing": 0.0, "visits": 20, "tile_row": np.arange(sites)}, index=ids
    )
    names = tuple(f"species {i}" for i in range(species))
    detections = pd.DataFrame(rng.integers(0, 21, (sites, species)), index=ids, columns=list(names))
    tiles = rng.integers(1, 5000, (sites, len(BANDS), tile_px, tile_px), dtype=np.uint16)
    card = DatasetCard(
        name="noise",
        species=names,
        position_crs="EPSG:27700",
        tiles=TileCard(bands=BANDS, size_px=tile_px, resolution_m=10.0),
    )
    return Dataset(card, gpd.GeoDataFrame(table), detections, tiles)


def clock(device: str) -> float:
    return time.process_time() if device == "cpu" else time.perf_counter()


def bare(
    net: PresenceNet,
    part: SiteBatches,
    batch: int,
    epochs: int,
    device: str,
    layout: torch.memory_format,
    bf16: bool = False,
) -> tuple[float, float]:
    """
    Return images per second of a plain loop after its first epoch, and the share of it that reads
    data.
    """
    assert part.reader is not None
    net = net.to(device, memory_format=layout).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4)
    loss = PresenceLoss("binomial", species=62, mean_visits=20)
    order = Shuffled(len(part), batch, seed=0)
    seconds, shares = [], []
    for epoch in range(epochs + 1):
        order.set_epoch(epoch)
        start, begun, waited = time.perf_counter(), clock(device), 0.0
        for draw in order:
            before = time.perf_counter()
            sample = {name: value.to(device) for name, value in part[draw].items()}
            waited += time.perf_counter() - before
            values, valid = part.reader.reflectance(sample["counts"])
            with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
                logits, _ = net(net.standardise(values, valid).contiguous(memory_format=layout))
            value = loss(logits, sample["detections"], sample["visits"])
            optimiser.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimiser.step()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(clock(device) - begun)
        shares.append(waited / (time.perf_counter() - start))
    return len(part) / statistics.median(seconds[1:]), statistics.median(shares[1:])


def ours(
    net: PresenceNet,
    part: SiteBatches,
    batch: int,
    epochs: int,
    device: str,
    precision: str = "32-true",
) -> tuple[float, float]:
    """
    Return images per second of our fit after its first epoch, and the share of it that waits for
    data.
    """
    assert net.trunk is not None
    net.trunk.to(memory_format=torch.channels_last)
    net.freeze("nothing")
    settings = FitOptions(
        regulariser=RegulariserOptions(weight=0.0),
        epochs=epochs + 1,
        batch_size=batch,
        learning_rate=1e-4,
        patience=None,
        schedule="constant",
        precision=precision,
        accelerator="cpu" if device == "cpu" else "gpu",
        devices=1,
    )
    fitting = Fitting(
        net, PresenceLoss("binomial", species=62, mean_visits=20), settings, part, None
    )
    ends: list[float] = []
    rows = run_fit(fitting, progress=lambda *_: ends.append(clock(device))).table().iloc[1:]
    return len(part) / statistics.median(np.diff(ends)), float(rows["waiting"].median())


def check_cuda(dataset: Dataset) -> None:
    """Compare what a GPU computes with the CPU, and with itself."""
    generator = torch.Generator().manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(64, 256, generator=generator), dim=1)
    rates = torch.rand(64, 62, generator=generator) ** 3
    loss = SoftRegulariser(temperature=0.5, nearest=5, bottom=32)
    expected = loss(z, rates)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        value = loss(z.cuda(), rates.cuda())
        rounded = loss(z.cuda().bfloat16(), rates.cuda())
    torch.testing.assert_close(value.cpu(), expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(rounded.cpu(), expected, rtol=2e-2, atol=0)
    print(
        f"regulariser {expected:.6f} on the CPU, {value:.6f} on the GPU under bf16, {rounded:.6f} "
        "with embeddings in bf16"
    )
    few = dataset.site_ids[:64]
    settings: dict[str, Any] = {
        "backbone": "resnet18",
        "window_px": 64,
        "margin_px": 32,
        "epochs": 2,
        "batch_size": 16,
        "accelerator": "gpu",
        "devices": 1,
        "deterministic": True,
        "dropout": 0.1,
    }
    first, second = (
        NetworkPredictor(**settings).fit(dataset, few).predict(dataset, few) for _ in range(2)
    )
    torch.use_deterministic_algorithms(False)
    assert first.equals(second), (
        f"the same seed gives another network: {(first - second).abs().to_numpy().max():.1e}"
    )
    print("the same seed gives the same network on the GPU, to the last bit")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("There is no GPU that PyTorch can use here. Leave --device out.")
    torch.set_num_threads(arguments.threads)
    device = arguments.device
    gpu = device == "cuda"
    # before the GPU is used: one order of sums
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    sites, window, batch = (
        (32, 64, 16)
        if arguments.size == "small"
        else (1024 if gpu else 128, 192, 64 if gpu else 32)
    )
    epochs = 3 if gpu else 1
    dataset = make(sites, window + 64)
    torch.manual_seed(0)
    net = PresenceNet(Architecture(species=62, bands=BANDS, window_px=window, margin_px=32))
    reader = TileReader(dataset, BANDS, net.tile_px)
    inputs = site_tensors(dataset, dataset.site_ids, image=True, reader=reader)
    part = SiteBatches(inputs, reader)
    augmented = SiteBatches(inputs, reader, augmentation=Augmentation())

    with torch.inference_mode():  # the same function before it is timed
        sample = part[range(4), 0]
        values, valid = reader.reflectance(sample["counts"])
        expected = net.eval()(net.standardise(values, valid))[0]
        torch.testing.assert_close(
            predict_batch(net, sample, reader)[0], expected, rtol=1e-3, atol=1e-4
        )
    zeros = PresenceNet(replace(net.architecture, padding="zeros"))
    zeros.load_state_dict(net.state_dict())
    where = torch.cuda.get_device_name() if gpu else f"CPU, {arguments.threads} thread"
    print(
        f"ResNet-18, {net.tile_px} px, batch {batch}, {where}, torch {torch.__version__}, load "
        f"{os.getloadavg()[0]:.1f}"
    )

    def run(name: str, bf16: bool) -> tuple[float, float]:
        own = copy.deepcopy(zeros if name in ("published step", "bare loop, zeros") else net)
        if name == "published step":
            return bare(own, part, batch, epochs, device, torch.contiguous_format, bf16)
        if name.startswith("bare loop"):
            return bare(own, part, batch, epochs, device, torch.channels_last, bf16)
        chosen = augmented if name == "fit, augmented" else part
        return ours(own, chosen, batch, epochs, device, "bf16-mixed" if bf16 else "32-true")

    names = ("published step", "bare loop, zeros", "bare loop", "fit", "fit, augmented")
    for bf16 in (False, True) if gpu else (False,):
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
        for _ in range(arguments.rounds):
            for name in names:
                if gpu:
                    torch.cuda.reset_peak_memory_stats()
                found[name].append(
                    (*run(name, bf16), torch.cuda.max_memory_allocated() / 2**30 if gpu else 0.0)
                )
        print("bf16" if bf16 else "float32")
        for name, rows in found.items():
            rate, waited, memory = (statistics.median(column) for column in zip(*rows, strict=True))
            ratio = statistics.median(
                a[0] / b[0] for a, b in zip(rows, found["bare loop"], strict=True)
            )
            used = f"   {memory:5.1f} GiB" if gpu else ""
            print(
                f"  {name:16s} {rate:8.1f} images/s   {ratio:.3f} of the bare loop   "
                f"{100 * waited:4.1f} % waiting{used}"
            )
    print(
        "peak memory of the process "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB"
    )
    if gpu:
        check_cuda(dataset)


if __name__ == "__main__":
    main()
