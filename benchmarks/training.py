"""
Training throughput: our fit, through Lightning and from packed tiles, next to a bare PyTorch loop with the same model and data.

    python benchmarks/training.py [--size small|full] [--threads N] [--device cpu|cuda]

Also the step with channels_last next to the plain layout, and the share of an epoch that waits for data.
"""

from __future__ import annotations

import argparse
import copy
import resource
import statistics
import time

import geopandas as gpd
import numpy as np
import pandas as pd
import torch

from butterfly_sdm.data.dataset import Dataset, DatasetCard, TileCard
from butterfly_sdm.losses.presence import PresenceLoss
from butterfly_sdm.models.batches import Shuffled, SiteBatches, predict_batch
from butterfly_sdm.models.fitting import FitSettings, Fitting, run_fit
from butterfly_sdm.models.inputs import TileReader, site_inputs
from butterfly_sdm.models.presence_net import Architecture, PresenceNet

BANDS = ("red", "green", "blue", "nir")


def make(sites: int, tile_px: int, species: int = 62) -> Dataset:
    rng = np.random.default_rng(0)
    ids = pd.Index([f"s{i}" for i in range(sites)], name="site_id")
    table = pd.DataFrame({"easting": 0.0, "northing": 0.0, "visits": 20, "tile_row": np.arange(sites)}, index=ids)
    names = tuple(f"species {i}" for i in range(species))
    detections = pd.DataFrame(rng.integers(0, 21, (sites, species)), index=ids, columns=list(names))
    tiles = rng.integers(1, 5000, (sites, len(BANDS), tile_px, tile_px), dtype=np.uint16)
    card = DatasetCard(name="noise", species=names, tiles=TileCard(bands=BANDS, size_px=tile_px, resolution_m=10.0))
    return Dataset(card, gpd.GeoDataFrame(table), detections, tiles)


def bare(
    net: PresenceNet, part: SiteBatches, batch: int, epochs: int, device: str, layout: torch.memory_format
) -> tuple[float, float]:
    """Return sites per second of a plain loop, and the share of it that reads data."""
    net = net.to(device, memory_format=layout).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4)
    loss = PresenceLoss("binomial", species=62, mean_visits=20)
    order = Shuffled(len(part), batch, seed=0)
    waited = 0.0
    start = time.perf_counter()
    for epoch in range(epochs):
        order.set_epoch(epoch)
        for draw in order:
            before = time.perf_counter()
            sample = {name: value.to(device) for name, value in part[draw].items()}
            waited += time.perf_counter() - before
            values, valid = part.reader.reflectance(sample["counts"])  # type: ignore[union-attr]
            logits, _ = net(net.standardise(values, valid).contiguous(memory_format=layout))
            value = loss(logits, sample["detections"], sample["visits"])
            optimiser.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimiser.step()
    if device != "cpu":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return epochs * len(part) / seconds, waited / seconds


def ours(net: PresenceNet, part: SiteBatches, batch: int, epochs: int, device: str) -> float:
    net = net.to(memory_format=torch.channels_last)
    net.freeze("nothing")
    settings = FitSettings(epochs=epochs, batch_size=batch, learning_rate=1e-4, patience=None, schedule="constant",
                           accelerator="cpu" if device == "cpu" else "gpu", devices=1)  # fmt: skip
    fitting = Fitting(net, PresenceLoss("binomial", species=62, mean_visits=20), settings, part, None)
    rows = run_fit(fitting).table()
    return float(epochs * len(part) / rows["seconds"].sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sites, window, batch = (32, 64, 16) if arguments.size == "small" else (256, 192, 32)
    dataset = make(sites, window + 64)
    net = PresenceNet(Architecture(species=62, bands=BANDS, window_px=window, margin_px=32))
    reader = TileReader(dataset, BANDS, net.tile_px)
    part = SiteBatches(site_inputs(dataset, dataset.site_ids, image=True, reader=reader), reader)

    with torch.inference_mode():  # the same function before it is timed
        sample = part[range(4), 0]
        values, valid = reader.reflectance(sample["counts"])
        expected = net.eval()(net.standardise(values, valid))[0]
        torch.testing.assert_close(predict_batch(net, sample, reader)[0], expected, rtol=1e-3, atol=1e-4)

    rates: dict[str, list[float]] = {"plain layout": [], "bare loop": [], "fit": []}
    shares = []
    for _ in range(3):
        plain, _ = bare(copy.deepcopy(net), part, batch, 1, arguments.device, torch.contiguous_format)
        loop, share = bare(copy.deepcopy(net), part, batch, 1, arguments.device, torch.channels_last)
        rates["plain layout"].append(plain)
        rates["bare loop"].append(loop)
        rates["fit"].append(ours(copy.deepcopy(net), part, batch, 1, arguments.device))
        shares.append(share)
    median = {name: statistics.median(values) for name, values in rates.items()}
    print(f"ResNet-18, {net.tile_px} px, batch {batch}, {arguments.threads} thread, {arguments.device}; medians of 3 epochs")
    for name, rate in median.items():
        print(f"{name:14s} {rate:8.1f} sites/s   {rate / median['bare loop']:.2f} of the bare loop")
    print(f"channels_last is {median['bare loop'] / median['plain layout']:.2f} times the plain layout")
    print(f"waiting for data: {100 * statistics.median(shares):.1f} % of the bare loop")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


if __name__ == "__main__":
    main()
