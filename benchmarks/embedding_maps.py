"""
What a dense map costs from a scene of embeddings as AlphaEarth keeps them (int8, 64 bands, 10 m).

    python benchmarks/embedding_maps.py WORK [--size 5490] [--bands 64] [--rounds 2]

A scene is made (smooth fields and noise, deflate, blocks of 512 px, nine of them over and over),
and a network with the trunk for embeddings and random weights: what it says does not change what it
costs. Each way runs in a process of its own, in turn: reading every block once and nothing else,
and the map. Told are CPU seconds (user and system) and wall seconds without imports, and the peak
of the memory of the process (VmHWM) above what it held after imports. 128 bands are float32, as
TESSERA is read.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 512


def profile(size: int, bands: int, interleave: str) -> dict[str, Any]:
    from rasterio.transform import from_origin

    fractions = bands > 64
    return {
        "driver": "GTiff",
        "count": bands,
        "width": size,
        "height": size,
        "dtype": "float32" if fractions else "int8",
        "nodata": np.nan if fractions else -128,
        "crs": "EPSG:32631",
        "transform": from_origin(500_000, 5_700_000, 10, 10),
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "compress": "deflate",
        "zlevel": 1,
        "predictor": 3 if fractions else 2,
        "interleave": interleave,
        "BIGTIFF": "YES",
    }


def make_blocks(path: Path, bands: int, interleave: str) -> None:
    """Write 3 x 3 blocks of smooth fields and noise; one of them has no value."""
    import rasterio
    from rasterio.windows import Window

    random, side = np.random.default_rng(0), 3 * BLOCK
    coarse = random.normal(0, 40, (bands, side // 64, side // 64)).clip(-110, 110).astype(np.int8)
    with rasterio.open(path, "w", **profile(side, bands, interleave)) as target:
        for number in range(9):
            top, left = number // 3 * BLOCK, number % 3 * BLOCK
            rows, cols = (np.arange(BLOCK) + top) // 64, (np.arange(BLOCK) + left) // 64
            stored = coarse[:, rows][:, :, cols]
            stored = stored + random.integers(-12, 13, stored.shape, dtype=np.int8)
            if not number:
                stored[:] = -128
            if bands > 64:
                stored = np.where(stored == -128, np.nan, stored * np.float32(0.013))
            target.write(stored, window=Window(left, top, BLOCK, BLOCK))


def make_scene(path: Path, size: int, bands: int, interleave: str) -> None:
    """
    Write a scene whose blocks are those of :func:`make_blocks` again and again: they lie in the
    file once and are decoded as often as it names them.
    """
    few = path.with_name("blocks.tif")
    make_blocks(few, bands, interleave)
    repeat_blocks(few, path, profile(size, bands, interleave))
    few.unlink()


def repeat_blocks(few: Path, path: Path, wanted: dict[str, Any]) -> None:
    """Write a square BigTIFF whose blocks are the 3 x 3 of another one, again and again."""
    import rasterio

    with rasterio.open(path, "w", SPARSE_OK=True, **wanted):
        pass
    (starts, sizes), content = (_array(few, tag) for tag in (324, 325)), few.read_bytes()
    (where, _, count, _), (also, kind, _, _) = _entry(path, 324), _entry(path, 325)
    across = -(-wanted["width"] // BLOCK)
    planes = 1 if wanted["interleave"] == "pixel" else wanted["count"]
    assert count == across**2 * planes
    with path.open("r+b") as file:
        shift = file.seek(0, 2)
        file.write(content)
        for number in range(count):
            plane, block = divmod(number, across**2)
            own = plane * 9 + block // across % 3 * 3 + block % across % 3
            file.seek(where + 8 * number)
            file.write(struct.pack("<Q", shift + starts[own]))
            code = CODES[kind]
            file.seek(also + struct.calcsize(code) * number)
            file.write(struct.pack("<" + code, sizes[own]))


CODES = {3: "H", 4: "I", 16: "Q"}


def _entry(path: Path, tag: int) -> tuple[int, int, int, bytes]:
    """Return where the array of a tag of a BigTIFF begins, its type and length, and its bytes."""
    content = path.read_bytes()
    (first,) = struct.unpack_from("<Q", content, 8)
    (entries,) = struct.unpack_from("<Q", content, first)
    for number in range(entries):
        at = first + 8 + 20 * number
        found, kind, count = struct.unpack_from("<HHQ", content, at)
        if found == tag:
            size = struct.calcsize(CODES[kind]) * count
            start = at + 12 if size <= 8 else struct.unpack_from("<Q", content, at + 12)[0]
            return start, kind, count, content[start : start + size]
    raise KeyError(tag)


def _array(path: Path, tag: int) -> tuple[int, ...]:
    _, kind, count, content = _entry(path, tag)
    return struct.unpack(f"<{count}{CODES[kind]}", content)


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


def measured(work: Callable[[], None]) -> dict[str, float]:
    """Do the work; return its CPU and wall seconds, and peak MB above what was held before."""
    held, cpu, wall = memory("VmRSS"), os.times(), time.perf_counter()
    work()
    spent = os.times()
    return {
        "cpu_s": spent.user + spent.system - cpu.user - cpu.system,
        "wall_s": time.perf_counter() - wall,
        "peak_mb": memory("VmHWM") - held,
    }


def child(way: str, path: Path) -> None:
    imports()
    work = {"read": lambda: read_all(path), "map": lambda: map_all(path, path.with_name("map.tif"))}
    print(json.dumps(measured(work[way])))


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
