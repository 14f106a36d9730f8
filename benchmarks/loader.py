"""
Feeding training batches: the packed loader beside a copy of the same bytes and a data set of one GeoTIFF per tile.

python benchmarks/loader.py [--size small|full]

The script makes its tiles. Ways are interleaved; printed are samples per second and the ratio to memcpy.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import torch

from butterfly_sdm.data.loader import ReadAhead, TileBatches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["small", "full"], default="small")
    count, rounds = (1329, 7) if parser.parse_args().size == "full" else (300, 5)
    torch.set_num_threads(1)
    crop, batch = 224, 32
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiles = np.lib.format.open_memmap(folder / "tiles.npy", mode="w+", dtype=np.uint16, shape=(count, 4, 256, 256))
        random = np.random.default_rng(0)
        for number in range(count):
            tiles[number] = random.integers(1, 4000, (4, 256, 256))
            with rasterio.open(
                folder / f"{number}.tif",
                "w",
                driver="GTiff",
                count=4,
                height=256,
                width=256,
                dtype="uint16",
                interleave="pixel",
            ) as file:
                file.write(tiles[number])
        tiles.flush()
        tiles = np.load(folder / "tiles.npy", mmap_mode="r")
        source = np.ascontiguousarray(tiles[:, :, :crop, :crop])
        target = np.empty((batch, 4, crop, crop), np.uint16)
        mean, std = np.full((4, 1, 1), 2000.0), np.full((4, 1, 1), 1000.0)

        recycled = TileBatches(tiles, range(count), batch_size=batch, crop_px=crop, recycle=5)

        def memcpy() -> int:
            for start in range(0, count - batch + 1, batch):
                np.copyto(target, source[start : start + batch])
            return count // batch * batch

        def packed() -> int:
            return sum(len(counts) for _, counts in recycled)

        def ahead() -> int:
            return sum(len(counts) for _, counts in ReadAhead(recycled))

        def per_file() -> int:
            for number in range(count):
                with rasterio.open(folder / f"{number}.tif") as file:
                    values = (file.read().astype(np.float64) - mean) / std
                top, left = random.integers(0, 33, 2)
                torch.from_numpy(np.ascontiguousarray(values[:, top : top + crop, left : left + crop])).float()
            return count

        _, counts = next(iter(TileBatches(tiles, range(count), batch_size=batch, crop_px=crop, shuffle=False)))
        assert np.array_equal(counts.numpy(), tiles[:batch, :, 16:240, 16:240]), "the loader changes values"
        ways = {"memcpy": memcpy, "packed": packed, "packed, read ahead": ahead, "GeoTIFF per tile": per_file}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for round_number in range(rounds + 1):
            for way, call in ways.items():
                start = time.process_time()
                samples = call()
                if round_number:  # the first warms the page cache
                    rates[way].append(samples / (time.process_time() - start))
    print(f"{count} tiles of 256 px, crops of {crop}, batches of {batch}; CPU time; load {os.getloadavg()[0]:.1f}")
    for way, found in rates.items():
        ratio = statistics.median(rate / floor for rate, floor in zip(found, rates["memcpy"], strict=True))
        print(f"{way:20} {statistics.median(found):10.0f} samples per CPU second   {ratio:6.3f} x memcpy")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
