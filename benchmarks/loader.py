"""
Feeding training batches: the packed loader beside a copy of the same bytes and beside other ways of
storing tiles.

    python benchmarks/loader.py [--size small|full]

Every way delivers the same tiles, cropped at random, in batches; ways are interleaved, and samples
per CPU second and ratios are medians over rounds. The script makes its tiles. ``published`` is how
the released code of the paper reads: a TIFF per tile, to float64, standardised, cropped and flipped
one sample at a time. webdataset, zarr and tifffile are used if they are installed (pip install
webdataset zarr tifffile).
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import resource
import statistics
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from butterfly_sdm.data.dataset import Dataset, DatasetCard, TileCard
from butterfly_sdm.data.tiles import ReadAhead, TileReader
from butterfly_sdm.models.augment import Augmentation
from butterfly_sdm.models.batches import Feed, Shuffled, SiteBatches
from butterfly_sdm.models.inputs import site_tensors

BANDS, CROP, BATCH = ("red", "green", "blue", "nir"), 224, 32
MEAN, STD = np.full((4, 1, 1), 2000.0), np.full((4, 1, 1), 1000.0)


def pack(folder: Path, count: int) -> Dataset:
    tiles = np.lib.format.open_memmap(
        folder / "tiles.npy", mode="w+", dtype=np.uint16, shape=(count, 4, 256, 256)
    )
    random = np.random.default_rng(0)
    for number in range(count):
        tiles[number] = random.integers(1, 4000, (4, 256, 256))
    tiles.flush()
    ids = pd.Index([f"s{number}" for number in range(count)], name="site_id")
    table = pd.DataFrame(
        {"easting": 0.0, "northing": 0.0, "visits": 9, "tile_row": np.arange(count)}, index=ids
    )
    detections = pd.DataFrame(
        random.integers(0, 9, (count, 62)), index=ids, columns=[f"species {s}" for s in range(62)]
    )
    card = DatasetCard(
        name="noise",
        position_crs="EPSG:27700",
        species=tuple(detections),
        tiles=TileCard(bands=BANDS, size_px=256, resolution_m=10.0),
    )
    return Dataset(
        card, gpd.GeoDataFrame(table), detections, np.load(folder / "tiles.npy", mmap_mode="r")
    )


class Published(TorchDataset[tuple[torch.Tensor, torch.Tensor]]):
    """One TIFF per site, decoded, converted, standardised, cropped and flipped sample by sample."""

    def __init__(self, folder: Path, labels: np.ndarray) -> None:
        from torchvision.transforms import v2

        self.folder, self.labels = folder, torch.tensor(labels, dtype=torch.float32)
        self.change = v2.Compose(
            [v2.RandomCrop(CROP), v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        import tifffile

        values = tifffile.imread(self.folder / f"{place}.tif").astype(np.float64)
        values = (values.transpose(2, 0, 1) - MEAN) / STD
        return self.change(torch.from_numpy(values).float()), self.labels[place]


def others(folder: Path, dataset: Dataset) -> dict[str, Callable[[], int]]:
    """Return the ways whose packages are installed, their files written."""
    assert dataset.tiles is not None
    tiles, count = dataset.tiles, len(dataset.sites)
    labels = dataset.detections.to_numpy()
    random = np.random.default_rng(1)
    ways: dict[str, Callable[[], int]] = {}

    def drain(loader: Any) -> int:
        return sum(len(batch[0]) for batch in loader)

    def installed(name: str) -> bool:
        found = importlib.util.find_spec(name) is not None
        if not found:
            print(f"{name} is not installed; left out")
        return found

    def crop(tile: Any) -> np.ndarray:
        top, left = random.integers(0, 256 - CROP + 1, 2)
        return np.asarray(tile[:, top : top + CROP, left : left + CROP])

    for number in range(count):
        profile = {
            "driver": "GTiff",
            "count": 4,
            "height": 256,
            "width": 256,
            "dtype": "uint16",
            "interleave": "pixel",
        }
        with rasterio.open(folder / f"{number}.tif", "w", **profile) as file:
            file.write(tiles[number])
    if installed("tifffile"):
        loader = DataLoader(Published(folder, labels), batch_size=BATCH, shuffle=True)
        ways["published"] = lambda: drain(loader)
    if installed("webdataset"):
        import webdataset

        with tarfile.open(folder / "tiles.tar", "w") as archive:
            for number in range(count):
                data = io.BytesIO()
                np.save(data, tiles[number])
                entry = tarfile.TarInfo(f"{number:06d}.npy")
                entry.size = data.tell()
                archive.addfile(entry, io.BytesIO(data.getvalue()))
        stream = (
            webdataset.WebDataset(str(folder / "tiles.tar"), shardshuffle=False)
            .decode()
            .to_tuple("npy")
            .map_tuple(lambda tile: torch.from_numpy(np.ascontiguousarray(crop(tile))))
            .batched(BATCH)
        )
        ways["webdataset"] = lambda: drain(stream)
    if installed("zarr"):
        import zarr

        for name, codecs in (("zarr", None), ("zarr, zstd", zarr.codecs.ZstdCodec())):
            array = zarr.create_array(
                folder / f"{name}.zarr",
                shape=tiles.shape,
                chunks=(1, *tiles.shape[1:]),
                dtype="uint16",
                compressors=codecs,
            )
            array[:] = tiles

            def read(array: Any = array) -> int:
                order = random.permutation(count)
                for start in range(0, count, BATCH):
                    torch.from_numpy(
                        np.stack([crop(array[int(row)]) for row in order[start : start + BATCH]])
                    )
                return count

            ways[name] = read
    return ways


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=["small", "full"], default="small")
    count, rounds = (1329, 5) if parser.parse_args().size == "full" else (300, 5)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = pack(folder, count)
        tiles = dataset.tiles
        assert tiles is not None
        source = np.ascontiguousarray(tiles[:, :, :CROP, :CROP])
        target = np.empty((BATCH, 4, CROP, CROP), np.uint16)
        reader = TileReader(dataset, BANDS, CROP)
        inputs = site_tensors(dataset, dataset.site_ids, image=True, reader=reader)
        part = SiteBatches(inputs, reader, augmentation=Augmentation())
        order = Shuffled(count, BATCH, seed=0)

        def memcpy() -> int:
            for start in range(0, count, BATCH):
                rows = source[start : start + BATCH]
                np.copyto(target[: len(rows)], rows)
            return count

        memory = reader.memory(BATCH)

        def packed() -> int:
            corners = torch.randint(0, 256 - CROP + 1, (count, 2))
            for rows in torch.randperm(count).split(BATCH):
                reader.read(rows, corners[rows], into=memory)
            return count

        def batches() -> int:
            return sum(len(batch["counts"]) for batch in Feed(part, order))

        def ahead() -> int:
            return sum(len(batch["counts"]) for batch in ReadAhead(Feed(part, order, keep=5)))

        plain = SiteBatches(inputs, reader)[range(BATCH), 0]
        assert np.array_equal(plain["counts"].numpy(), tiles[:BATCH, :, 16:240, 16:240]), (
            "the loader changes values"
        )
        ways = {
            "memcpy": memcpy,
            "packed": packed,
            "packed, labels too": batches,
            "packed, read ahead": ahead,
        }
        ways |= others(folder, dataset)
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for round_number in range(rounds + 1):
            for way, call in ways.items():
                start = time.process_time()
                samples = call()
                seconds = time.process_time() - start
                assert samples == count, f"{way} gave {samples} of {count}"
                if round_number:  # the first warms the page cache
                    rates[way].append(samples / seconds)
    print(
        f"{count} tiles of 256 px, crops of {CROP}, batches of {BATCH}; CPU time; load "
        f"{os.getloadavg()[0]:.1f}"
    )
    for way, found in rates.items():
        floor, ours = (
            statistics.median(a / b for a, b in zip(first, second, strict=True))
            for first, second in ((found, rates["memcpy"]), (rates["packed"], found))
        )
        print(
            f"{way:20} {statistics.median(found):9.0f} samples/s   {floor:6.3f} of memcpy   packed "
            f"is {ours:6.1f} times it"
        )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
