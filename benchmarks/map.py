"""
Time per position of the dense map beside window by window, and the goals D1 to D8 of maps.

    python benchmarks/map.py --size small            a raster of 2048 px, about a minute on an idle machine
    python benchmarks/map.py --size full             10980 px, 62 species
    python benchmarks/map.py --size full --scene DIR keeps the raster for the next time

Every way is checked against the others before any time is printed. CPU seconds count all threads and hold up on a busy machine;
wall seconds do so only on an idle one.
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
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine
from rasterio.windows import Window
from torch import nn

SIZES = {"small": (2048, 12, 48), "full": (10980, 62, 96)}  # pixels, species, windows timed
BANDS = ("red", "green", "blue", "nir")


def make_scene(path: Path, size: int) -> Path:
    """Write a raster of fields, noise and a nodata corner, block by block, with the same content each time."""
    if path.is_file():
        return path
    level = np.array([700, 800, 500, 3200])[:, None, None]
    profile = {
        "driver": "GTiff", "width": size, "height": size, "count": 4, "dtype": "uint16", "crs": "EPSG:32630", "nodata": 0,
        "transform": Affine(10, 0, 600_000, 0, -10, 5_800_000), "tiled": True, "blockxsize": 512, "blockysize": 512,
        "compress": "deflate", "predictor": 2, "interleave": "band", "num_threads": "all_cpus",
    }  # fmt: skip
    temporary = path.with_suffix(".part.tif")
    with rasterio.open(temporary, "w", **profile) as target:
        target.descriptions = BANDS
        for row in range(0, size, 512):
            for col in range(0, size, 512):
                height, width = min(512, size - row), min(512, size - col)
                generator = np.random.default_rng([row, col])
                fields = np.kron(generator.normal(0, 0.4, (4, 16, 16)), np.ones((32, 32)))[:, :height, :width]
                values = level * np.exp(fields + generator.normal(0, 0.05, (4, height, width)))
                values = np.clip(values, 1, 20_000).astype(np.uint16)
                if row + col < size // 8:
                    values[:] = 0
                target.write(values, window=Window(col, row, width, height))
    temporary.replace(path)
    return path


def make_predictor(species: int, window_px: int, margin_px: int):
    """Return a network with the sizes of the default run and random weights: time does not depend on them."""
    from butterfly_sdm.models.presence_net import Architecture, PresenceNet
    from butterfly_sdm.models.training import NetworkPredictor

    predictor = NetworkPredictor(window_px=window_px, margin_px=margin_px, accelerator="cpu", batch_size=32)
    predictor.species = tuple(f"species {number:02d}" for number in range(species))
    torch.manual_seed(0)
    network = PresenceNet(Architecture(species=species, bands=BANDS, window_px=window_px, margin_px=margin_px))
    network.mean.copy_(torch.tensor([0.07, 0.08, 0.05, 0.32]))
    network.std.copy_(torch.tensor([0.03, 0.03, 0.02, 0.14]))
    nn.init.normal_(network.classifier[-1].weight, std=0.4)
    predictor.network = network.eval()
    return predictor


def cost(action) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - cpu


def window_cost(network, windows: int, batch: int = 32) -> tuple[float, float]:
    """Return wall and CPU seconds of one forward pass per window, per window, in plain PyTorch (the fastest of rounds)."""
    side = network.tile_px
    image = torch.randn(batch, 4, side, side)
    best = (np.inf, np.inf)
    with torch.inference_mode():
        network(image[:4])
        for _ in range(max(1, windows // batch)):
            best = min(best, tuple(part / batch for part in cost(lambda: network(image))), key=lambda pair: pair[1])
    return best


def onnx_window_cost(network, folder: Path, windows: int) -> tuple[float, float]:
    """Return the same on the engine of the dense way."""
    from butterfly_sdm.mapping.engines import choose_engine

    engine = choose_engine(network, "onnx", folder, list)
    side = network.tile_px
    image = np.random.default_rng(0).normal(size=(1, 4, side, side)).astype(np.float32)
    engine.run(network, image)

    def run() -> None:
        for _ in range(8):
            engine.run(network, image)

    best = min((cost(run) for _ in range(max(2, windows // 16))), key=lambda pair: pair[1])
    return best[0] / 8, best[1] / 8


def dense_map(scene_path: Path, out: Path, size: str, engine: str, block_px: int, window_px: int, margin_px: int) -> None:
    """Write the map in this process, which must be fresh, and print what it took as JSON."""
    from butterfly_sdm.data.raster import open_scene
    from butterfly_sdm.mapping import predict_map

    predictor = make_predictor(SIZES[size][1], window_px, margin_px)
    if engine != "torch":
        import onnxruntime  # noqa: F401
        from onnxruntime import quantization  # noqa: F401
    image = torch.randn(1, 4, 256, 256)
    with torch.inference_mode():
        predictor.network(image)  # what torch sets up once
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scene = open_scene(scene_path)
    marks: dict[str, tuple[float, float]] = {}

    def progress(task: str, done: int, total: int) -> None:
        marks.setdefault(f"{task} begins", (time.perf_counter(), time.process_time()))
        marks[f"{task} ends"] = (time.perf_counter(), time.process_time())

    results = {}

    def run() -> None:
        results["map"] = predict_map(
            predictor, scene, out, engine=engine, block_px=block_px, audit=0, beside=(), progress=progress
        )

    wall, cpu = cost(run)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trunk = [marks["map ends"][k] - marks["map begins"][k] for k in (0, 1)]
    print(
        json.dumps(
            {
                "wall": wall,
                "cpu": cpu,
                "trunk_wall": trunk[0],
                "trunk_cpu": trunk[1],
                "positions": results["map"].counts["positions"],
                "above_base_mb": (peak - base) / 1024,
                "base_mb": base / 1024,
            }
        )
    )  # fmt: skip


def in_fresh_process(*arguments: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as source:
        return source.read(masked=True).filled(np.nan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--scene", type=Path, help="folder in which the raster is kept")
    parser.add_argument("--engines", default="torch,onnx,onnx-int8")
    parser.add_argument("--block", type=int, default=2048)
    parser.add_argument("--window", type=int, default=192)
    parser.add_argument("--margin", type=int, default=32)
    parser.add_argument("--one", nargs=2, metavar=("SCENE", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    engines = options.engines.split(",")
    if options.one:
        scene, out = map(Path, options.one)
        dense_map(scene, out, options.size, engines[0], options.block, options.window, options.margin)
        return
    size, species, windows = SIZES[options.size]
    print(
        f"{size} x {size} px, 4 bands, {species} species; window {options.window} px, margin {options.margin} px, stride 32 px"
    )
    print(f"threads {torch.get_num_threads()}, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scene = make_scene((options.scene or folder) / f"scene_{size}.tif", size)
        predictor = make_predictor(species, options.window, options.margin)
        found: dict[str, dict[str, float]] = {}
        maps: dict[str, np.ndarray] = {}
        per_window = {"torch": [], "onnx": []}
        for engine in engines:
            # in turn with the windows, so that other load on the machine hits both
            per_window["torch"].append(window_cost(predictor.network, windows))
            if any(name != "torch" for name in engines):
                per_window["onnx"].append(onnx_window_cost(predictor.network, folder / "engine", windows))
            out = folder / f"{engine}.tif"
            found[engine] = in_fresh_process(
                "--size", options.size, "--engines", engine, "--block", str(options.block), "--window", str(options.window),
                "--margin", str(options.margin), "--one", str(scene), str(out),
            )  # fmt: skip
            maps[engine] = read(out)
        reference = maps[engines[0]]
        for engine, values in maps.items():
            apart = np.abs(values - reference)
            apart = apart[np.isfinite(apart)]
            limit = 0.05 if "int8" in engine else 1e-3
            print(f"{engine}: difference to {engines[0]} mean {apart.mean():.5f}, p99.9 {np.percentile(apart, 99.9):.5f}, "
                  f"max {apart.max():.5f}")  # fmt: skip
            if apart.max() > limit and "int8" not in engine:
                sys.exit(f"{engine} differs by more than {limit}: no time is printed")
        torch_window, onnx_window = (
            min(pairs, key=lambda pair: pair[1]) if pairs else (np.nan, np.nan) for pairs in per_window.values()
        )
        print(f"window by window: torch {torch_window[1] * 1000:.1f} ms CPU each ({torch_window[0] * 1000:.1f} wall), "
              f"onnx {onnx_window[1] * 1000:.1f} ({onnx_window[0] * 1000:.1f})")  # fmt: skip
        for engine, value in found.items():
            each = value["cpu"] / value["positions"], value["wall"] / value["positions"]
            same = torch_window if engine == "torch" else onnx_window
            print(
                f"dense, {engine}: {value['wall']:.1f} s wall, {value['cpu']:.1f} s CPU in all "
                f"({value['trunk_cpu']:.1f} in the trunk), {each[0] * 1000:.3f} ms CPU per position; "
                f"{torch_window[1] / each[0]:.0f} x torch windows (CPU), {torch_window[0] / each[1]:.0f} x (wall); "
                f"{same[1] / each[0]:.0f} x the same engine (CPU); "
                f"memory {value['above_base_mb']:.0f} MB above the {value['base_mb']:.0f} MB of imports"
            )


if __name__ == "__main__":
    main()
