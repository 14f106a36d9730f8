"""
What a dense map costs from a scene of embeddings as AlphaEarth keeps them (int8, 64 bands, 10 m).

    python benchmarks/embedding_maps.py WORK [--size 5490] [--bands 64] [--rounds 2]

A scene is made (smooth fields and noise, deflate, blocks of 512 px), and a network with the trunk
for embeddings and random weights: what it says does not change what it costs. Each way runs in a
process of its own, in turn: reading every block once and nothing else, and the map. Told are CPU
seconds (user and system) and wall seconds without imports, and the peak of the memory of the
process (VmHWM) above what it held after imports. 128 bands are float32, as TESSERA is read.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 512


def make_scene(path: Path, size: int, bands: int, interleave: str) -> None:
    """Write a scene of smooth fields and noise; blocks without a value in one corner."""
    import rasterio
    from rasterio.transform import from_origin
    from rasterio.windows import Window

    fractions = bands > 64
    random = np.random.default_rng(0)
    coarse = random.normal(0, 40, (bands, size // 64 + 2, size // 64 + 2)).astype(np.float32)
    with (
        rasterio.Env(GDAL_CACHEMAX=256_000_000),
        rasterio.open(
            path,
            "w",
            driver="GTiff",
            count=bands,
            width=size,
            height=size,
            dtype="float32" if fractions else "int8",
            nodata=np.nan if fractions else -128,
            crs="EPSG:32631",
            transform=from_origin(500_000, 5_700_000, 10, 10),
            tiled=True,
            blockxsize=BLOCK,
            blockysize=BLOCK,
            compress="deflate",
            zlevel=1,
            interleave=interleave,
            predictor=3 if fractions else 2,
            BIGTIFF="YES",
        ) as target,
    ):
        for top in range(0, size, BLOCK):
            for left in range(0, size, BLOCK):
                tall, wide = min(BLOCK, size - top), min(BLOCK, size - left)
                rows, cols = (np.arange(tall) + top) // 64, (np.arange(wide) + left) // 64
                field = coarse[:, rows][:, :, cols]
                noise = random.integers(-12, 13, field.shape, dtype=np.int8)
                stored = np.clip(field + noise, -127, 127).astype(np.int8)
                if top < BLOCK and left < BLOCK:
                    stored[:] = -128
                values: np.ndarray = stored
                if fractions:
                    values = np.where(stored == -128, np.nan, stored * np.float32(0.013))
                target.write(values.astype(target.dtypes[0]), window=Window(left, top, wide, tall))


def scene_of(path: Path) -> Any:
    from butterfly_sdm.imagery.embeddings.options import EmbeddingReading
    from butterfly_sdm.imagery.embeddings.scene import open_embedding_scene

    known = EmbeddingReading(rule="none" if "128" in path.stem else "signed_square")
    return open_embedding_scene(path, known)


def read_all(path: Path) -> None:
    """Decode every block once."""
    import rasterio

    with rasterio.Env(GDAL_CACHEMAX=64_000_000), rasterio.open(path) as source:
        for _, window in source.block_windows(1):
            source.read(window=window)


def map_all(path: Path, out: Path) -> None:
    """Write the dense map of a random network."""
    import torch

    from butterfly_sdm.data.predictor import Sees
    from butterfly_sdm.mapping import MapOptions, write_map
    from butterfly_sdm.models.network_predictor import NetworkPredictor
    from butterfly_sdm.models.presence_net import Architecture, PresenceNet

    torch.set_num_threads(1)
    scene = scene_of(path)
    torch.manual_seed(0)
    look = {"window_px": 64, "margin_px": 16, "embedding": 64, "backbone": "embedding"}
    member = NetworkPredictor(**look, accelerator="cpu")
    member.species = tuple(f"Species {number}" for number in range(20))
    member.sees = Sees(scene.bands, 64, 16, scene.resolution_m, needs_tile=True)
    member.network = PresenceNet(Architecture(species=20, bands=scene.bands, **look)).eval()
    member.network.std.fill_(0.1)
    options = MapOptions(mode="dense", stride_px=32, audit=0, beside=())
    write_map(member, scene, out, options, overwrite=True)


def memory(what: str) -> float:
    """Return a number of /proc/self/status in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) / 1000
    raise KeyError(what)


def imports() -> None:
    import rasterio  # noqa: F401
    import torch  # noqa: F401

    import butterfly_sdm.mapping.map
    import butterfly_sdm.models.network_predictor  # noqa: F401


def child(way: str, path: Path) -> None:
    imports()
    held, cpu, wall = memory("VmRSS"), os.times(), time.perf_counter()
    if way == "read":
        read_all(path)
    else:
        map_all(path, path.with_name("map.tif"))
    spent = os.times()
    print(
        json.dumps(
            {
                "cpu_s": spent.user + spent.system - cpu.user - cpu.system,
                "wall_s": time.perf_counter() - wall,
                "peak_mb": memory("VmHWM") - held,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="folder of the scene and the map")
    parser.add_argument("--size", type=int, default=5490, help="side of the scene in pixels")
    parser.add_argument("--bands", type=int, default=64, help="64: int8; 128: float32")
    parser.add_argument("--interleave", default="pixel", choices=("pixel", "band"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    name = f"scene_{arguments.bands}_{arguments.size}_{arguments.interleave}.tif"
    path = arguments.work / name
    if arguments.child:
        child(arguments.child, path)
        return
    if not path.is_file():
        make_scene(path, arguments.size, arguments.bands, arguments.interleave)
    size = path.stat().st_size / 1e6
    print(f"{name}: {size:,.0f} MB on the disk, {arguments.bands} bands", flush=True)
    found: dict[str, list[dict[str, float]]] = {"read": [], "map": []}
    for _ in range(arguments.rounds):
        for way in found:
            command = [sys.executable, __file__, str(arguments.work), "--child", way]
            for option in ("size", "bands", "interleave"):
                command += [f"--{option}", str(getattr(arguments, option))]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
            print(way, found[way][-1], flush=True)
    best = {way: {k: min(run[k] for run in runs) for k in runs[0]} for way, runs in found.items()}
    times = best["map"]["cpu_s"] / best["read"]["cpu_s"]
    print(f"map: {times:.2f} times the CPU of reading, {best['map']['peak_mb']:,.0f} MB at most")


if __name__ == "__main__":
    main()
