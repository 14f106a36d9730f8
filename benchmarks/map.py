"""
Time per position of the dense map beside window by window, and the goals D1 to D9 of maps.

    python benchmarks/map.py --size small              a raster of 2048 px
    python benchmarks/map.py --size full               10980 px, 62 species: a whole Sentinel-2 tile
    python benchmarks/map.py --size full --scene DIR   keeps the raster for the next time
    python benchmarks/map.py --size full --device cuda --engines torch,torch-fp16
    python benchmarks/map.py --workers 2 --size medium --block 1408

The last makes the same map with one process and with two, of one thread each, in turn.

Every way is checked against the others before any time is printed. CPU seconds count all threads
and hold up on a busy machine; wall seconds do so only on an idle one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine
from rasterio.windows import Window
from torch import nn

# pixels, species, windows timed
SIZES = {
    "small": (2048, 12, 48),
    "medium": (5490, 62, 48),
    "full": (10980, 62, 96),
}
BANDS = ("red", "green", "blue", "nir")
STRIDE_PX = 32


def make_scene(path: Path, size: int) -> Path:
    """
    Write a raster of fields, noise and a nodata corner, block by block, with the same content each
    time.
    """
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    level = np.array([700, 800, 500, 3200], dtype=np.float32)[:, None, None]
    noise = level * np.exp(
        np.random.default_rng(0).normal(0, 0.05, (4, 1024, 1024)).astype(np.float32)
    )
    profile = {
        "driver": "GTiff",
        "width": size,
        "height": size,
        "count": 4,
        "dtype": "uint16",
        "crs": "EPSG:32630",
        "nodata": 0,
        "transform": Affine(10, 0, 600_000, 0, -10, 5_800_000),
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "deflate",
        "zlevel": 1,
        "predictor": 2,
        "interleave": "band",
        "num_threads": "all_cpus",
    }

    def block(row: int, col: int) -> np.ndarray:
        generator = np.random.default_rng([row, col])
        top, left = generator.integers(0, 512, 2)
        part = np.rot90(
            noise[:, top : top + 512, left : left + 512], generator.integers(4), axes=(1, 2)
        )
        fields = np.exp(generator.normal(0, 0.4, (4, 16, 1, 16, 1))).astype(np.float32)
        values = (
            (part.reshape(4, 16, 32, 16, 32) * fields)
            .reshape(4, 512, 512)
            .clip(1, 20_000)
            .astype(np.uint16)
        )
        if row + col < size // 8:
            values[:] = 0
        return values[:, : size - row, : size - col]

    temporary = path.with_suffix(".part.tif")
    with (
        rasterio.open(temporary, "w", **profile) as target,
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
    ):
        target.descriptions = BANDS
        for row in range(0, size, 512):
            cols = range(0, size, 512)
            for col, values in zip(cols, pool.map(block, [row] * len(cols), cols), strict=True):
                target.write(values, window=Window(col, row, values.shape[2], values.shape[1]))
    temporary.replace(path)
    return path


def make_predictor(species: int, window_px: int, margin_px: int, device: str = "cpu"):
    """
    Return a network with the sizes of the default run and random weights: time does not depend on
    them.
    """
    from butterfly_sdm.data.predictor import Sees
    from butterfly_sdm.models.network_predictor import NetworkPredictor
    from butterfly_sdm.models.presence_net import Architecture, PresenceNet

    accelerator = "cpu" if device == "cpu" else "auto"
    predictor = NetworkPredictor(
        window_px=window_px, margin_px=margin_px, accelerator=accelerator, batch_size=32
    )
    predictor.species = tuple(f"species {number:02d}" for number in range(species))
    torch.manual_seed(0)
    network = PresenceNet(
        Architecture(species=species, bands=BANDS, window_px=window_px, margin_px=margin_px)
    )
    network.mean.copy_(torch.tensor([0.07, 0.08, 0.05, 0.32]))
    network.std.copy_(torch.tensor([0.03, 0.03, 0.02, 0.14]))
    nn.init.normal_(network.classifier[-1].weight, std=0.1)
    predictor.network = network.to(device).eval()
    predictor.sees = Sees(BANDS, window_px, margin_px, 10.0, needs_tile=True)
    return predictor


def cost(action) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - cpu


def window_cost(
    network, windows: int, *, device: str = "cpu", half: bool = False
) -> tuple[float, float]:
    """
    Return wall and CPU seconds per window of one forward pass per window in plain PyTorch (the
    fastest of rounds).
    """
    batch = 32 if device == "cpu" else 256
    image = torch.randn(batch, 4, network.tile_px, network.tile_px, device=device)
    best = (np.inf, np.inf)
    by = 1 if device == "cpu" else 0  # the CPU only waits for a GPU

    def run() -> None:
        with torch.autocast(device, torch.float16, enabled=half):
            network(image)
        if device != "cpu":
            torch.cuda.synchronize()

    with torch.inference_mode():
        network(image[:4])
        run()
        for _ in range(max(1, windows // 32)):
            best = min(best, tuple(part / batch for part in cost(run)), key=lambda pair: pair[by])
    return best


def read_floor(scene_path: Path, side: int, threads: int) -> tuple[float, float]:
    """
    Return wall and CPU seconds of reading each pixel once in blocks, with as many threads as a map
    on a GPU reads with.
    """
    from butterfly_sdm.imagery.scene import open_scene

    scene = open_scene(scene_path)
    corners = [
        (row, col) for row in range(0, scene.height, side) for col in range(0, scene.width, side)
    ]

    def read() -> None:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(
                lambda corner: scene.read(Window(corner[1], corner[0], side, side))[1].any(),
                corners,
            ):
                pass

    return cost(read)


def dense_map(scene_path: Path, out: Path, engine: str, options: argparse.Namespace) -> None:
    """Write the map in this process, which must be fresh, and print what it took as JSON."""
    from butterfly_sdm.imagery.scene import open_scene
    from butterfly_sdm.mapping import MapOptions, write_map

    predictor = make_predictor(
        SIZES[options.size][1], options.window, options.margin, options.device
    )
    with torch.inference_mode():
        # what torch sets up once
        predictor.network(torch.randn(1, 4, 256, 256, device=options.device))
    # not the peak so far: a process inherits that from the one that started it
    base = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1024
    scene = open_scene(scene_path)
    marks: dict[str, tuple[float, float]] = {}
    ends: list[tuple[int, float]] = []  # blocks done, and when

    def progress(task: str, done: int, total: int) -> None:
        if task == "map":
            ends.append((done, time.perf_counter()))
        marks.setdefault(f"{task} begins", (time.perf_counter(), time.process_time()))
        marks[f"{task} ends"] = (time.perf_counter(), time.process_time())

    results = {}

    def run() -> None:
        chosen = MapOptions(
            engine=engine, block_px=options.block, audit=0, beside=(), workers=options.workers
        )
        results["map"] = write_map(predictor, scene, out, chosen, overwrite=True, progress=progress)

    wall, cpu = cost(run)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # once every process has had a block
    steady = [pair for pair in ends if pair[0] >= options.workers]
    per_block = (steady[-1][1] - steady[0][1]) / max(1, steady[-1][0] - steady[0][0])
    trunk = [marks["map ends"][k] - marks["map begins"][k] for k in (0, 1)]
    found = {
        "wall": wall,
        "cpu": cpu,
        "per_block": per_block,
        "trunk_wall": trunk[0],
        "trunk_cpu": trunk[1],
        "positions": results["map"].counts["positions"],
        "above_base_mb": (peak - base) / 1024,
        "base_mb": base / 1024,
    }
    if options.device != "cpu":
        found["gpu_mb"] = torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps(found))


def in_fresh_process(
    options: argparse.Namespace, engine: str, scene: Path, out: Path, **changes: int
) -> dict[str, float]:
    values = {
        name: getattr(options, name)
        for name in ("size", "device", "threads", "block", "window", "margin", "workers")
    }
    arguments = [
        word for name, value in (values | changes).items() for word in (f"--{name}", str(value))
    ]
    command = [
        sys.executable,
        __file__,
        *arguments,
        "--engines",
        engine,
        "--one",
        str(scene),
        str(out),
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as source:
        return source.read(masked=True).filled(np.nan)


def apart(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    difference = np.abs(first - second)
    return difference[np.isfinite(difference)]


def check_blocks(options: argparse.Namespace, folder: Path) -> None:
    """Print how far a map in small blocks is from one in a single block (D4)."""
    small = argparse.Namespace(**vars(options) | {"size": "small", "workers": 1})
    scene = make_scene((options.scene or folder) / "scene_2048.tif", 2048)
    maps = []
    for block in (512, 4096):
        in_fresh_process(small, "torch", scene, folder / f"block_{block}.tif", block=block)
        maps.append(read(folder / f"block_{block}.tif"))
    print(
        "D4 blocks of 512 px against one block, 2048 px, torch: largest difference "
        f"{apart(*maps).max():.1e}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--scene", type=Path, help="folder in which the raster is kept")
    parser.add_argument("--engines", help="comma between; default torch, on a GPU torch,torch-fp16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--workers", type=int, default=1, help="processes; beside it one process is timed"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of --workers")
    parser.add_argument("--block", type=int, default=2304)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--margin", type=int, default=64)
    parser.add_argument(
        "--one", nargs=2, type=Path, metavar=("SCENE", "OUT"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    engines = (
        options.engines or ("torch" if options.device == "cpu" else "torch,torch-fp16")
    ).split(",")
    if options.one:
        dense_map(*options.one, engines[0], options)
        return
    size, species, windows = SIZES[options.size]
    print(
        f"{size} x {size} px, 4 bands, {species} species; window {options.window} px, margin "
        f"{options.margin} px, "
        f"stride {STRIDE_PX} px"
    )
    where = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(
        f"{where}, threads {options.threads} of {os.cpu_count()}, load {os.getloadavg()[0]:.1f}, "
        f"torch {torch.__version__}"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds = time.perf_counter()
        scene = make_scene((options.scene or folder) / f"scene_{size}.tif", size)
        print(f"raster at hand after {time.perf_counter() - seconds:.0f} s", flush=True)
        if options.workers > 1:
            scaling(options, engines[0], scene, folder)
            return
        if options.device == "cpu":
            check_blocks(options, folder)
        on_engines(options, engines, scene, folder, species, windows)


def scaling(options: argparse.Namespace, engine: str, scene: Path, folder: Path) -> None:
    """
    Print wall seconds with one process of one thread and with several, in turn, and the median of
    the rounds' ratios.
    """
    ratios: dict[str, list[float]] = {"per_block": [], "trunk_wall": [], "wall": []}
    for _ in range(options.rounds):
        alone = in_fresh_process(options, engine, scene, folder / "one.tif", workers=1, threads=1)
        several = in_fresh_process(options, engine, scene, folder / "several.tif", threads=1)
        for name, value in (("1 process", alone), (f"{options.workers} processes", several)):
            print(
                f"{engine}, {name}: {value['per_block']:.2f} s wall from block to block, "
                f"{value['trunk_wall']:.1f} s for all "
                f"blocks, {value['wall']:.1f} s in all",
                flush=True,
            )
        for key, found in ratios.items():
            found.append(alone[key] / several[key] / options.workers)
    far = apart(read(folder / "one.tif"), read(folder / "several.tif")).max()
    running, blocks, whole = (float(np.median(found)) for found in ratios.values())
    print(
        f"efficiency of {options.workers} processes, median of {options.rounds}: {running:.2f} "
        f"once they run, {blocks:.2f} "
        f"with their start, {whole:.2f} in all; difference {far:.1e}"
    )


def on_engines(
    options: argparse.Namespace,
    engines: list[str],
    scene: Path,
    folder: Path,
    species: int,
    windows: int,
) -> None:
    """Print what each engine takes, beside one forward pass per window."""
    predictor = make_predictor(species, options.window, options.margin, options.device)
    found: dict[str, dict[str, float]] = {}
    maps: dict[str, np.ndarray] = {}
    per_window: dict[str, list[tuple[float, float]]] = {"torch": [], "torch-fp16": []}
    for engine in engines:
        # in turn with the windows, so that other load on the machine hits both
        per_window["torch"].append(window_cost(predictor.network, windows, device=options.device))
        if engine == "torch-fp16":
            per_window[engine].append(
                window_cost(predictor.network, windows, device=options.device, half=True)
            )
        found[engine] = in_fresh_process(options, engine, scene, folder / f"{engine}.tif")
        maps[engine] = read(folder / f"{engine}.tif")
    for engine in engines[1:]:
        far = apart(maps[engine], maps[engines[0]])
        print(
            f"{engine}: difference to {engines[0]} mean {far.mean():.5f}, p99.9 "
            f"{np.percentile(far, 99.9):.5f}, "
            f"max {far.max():.5f}"
        )
    fastest = {
        name: min(pairs, key=lambda pair: pair[1]) for name, pairs in per_window.items() if pairs
    }
    positions = found[engines[0]]["positions"]
    km2 = (STRIDE_PX * 10 / 1000) ** 2
    for name, (wall, cpu) in fastest.items():
        print(
            f"window by window, {name}: {cpu * 1000:.2f} ms CPU each, {wall * 1000:.3f} wall: "
            f"{km2 / wall:.1f} km2/s, "
            f"{positions * wall:.0f} s for this raster"
        )
    if options.device == "cuda":
        floor = read_floor(scene, options.block, max(1, min(4, (os.cpu_count() or 1) // 2)))
        print(f"reading the raster once: {floor[0]:.2f} s wall, {floor[1]:.1f} s CPU")
    plain = fastest["torch"]
    for engine, value in found.items():
        wall, cpu = value["wall"] / value["positions"], value["cpu"] / value["positions"]
        same = fastest[engine]
        print(
            f"dense, {engine}: {value['wall']:.1f} s wall, {value['cpu']:.1f} s CPU in all "
            f"({value['trunk_wall']:.1f} and "
            f"{value['trunk_cpu']:.1f} for the blocks), {cpu * 1000:.3f} ms CPU per position, "
            f"{km2 / wall:.0f} km2/s; "
            f"{plain[0] / wall:.0f} x torch windows (wall), {plain[1] / cpu:.0f} x (CPU); "
            f"{same[0] / wall:.0f} x the same "
            f"engine (wall), {same[1] / cpu:.0f} x (CPU); memory {value['above_base_mb']:.0f} MB "
            "above the "
            f"{value['base_mb']:.0f} MB of imports"
            + (
                f"; GPU {value['gpu_mb']:.0f} MB; {value['wall'] / floor[0]:.2f} x the reading"
                if options.device == "cuda"
                else ""
            )
        )


if __name__ == "__main__":
    main()
