"""
What embeddings of the Earth cost to read, and what they are worth.

python benchmarks/embeddings.py cost [--side PX] [--sites N] [--rounds N] [--interleave pixel|band]
python benchmarks/embeddings.py map [--side PX] [--stride PX]
python benchmarks/embeddings.py worth [--sites N] [--seeds N]

cost: mean and spread of 64 bands in squares of 100 m, 1 km and 5 km around sites beside decoding
each needed block once with GDAL; map: the same at the positions of a map; worth: on simulated
regions whose embeddings are a hidden mix of the landscape plus noise, models of embeddings beside
those of band statistics and an image network, with paired intervals. The script makes all files.
Each way of cost and map runs in a process of its own, interleaved; printed are CPU seconds
(user and system) and peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from embedding_maps import measured, repeat_blocks

SIDES_M = (100.0, 1000.0, 5000.0)
CRS, LEFT, TOP, PIXEL_M, BANDS = "EPSG:32630", 500_000, 5_700_000, 10, 64


def cpu_seconds() -> float:
    spent = os.times()
    return spent.user + spent.system


def profile(side: int, interleave: str) -> dict[str, Any]:
    from affine import Affine

    return {
        "driver": "GTiff",
        "count": BANDS,
        "height": side,
        "width": side,
        "dtype": "int8",
        "crs": CRS,
        "transform": Affine(PIXEL_M, 0, LEFT, 0, PIXEL_M, TOP - PIXEL_M * side),
        "nodata": -128,
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "deflate",
        "zlevel": 1,
        "interleave": interleave,
        "BIGTIFF": "YES",
        "num_threads": 2,
    }


def make_scene(path: Path, side: int, interleave: str) -> Path:
    """
    Write 64 bands of int8 as AlphaEarth stores them: a smooth mix of six fields and noise, rows
    from south to north, deflate, blocks of 512 px. Of a wide scene 3 x 3 blocks are made, and named
    by the file over and over: they are decoded as often as it names them.
    """
    import rasterio
    from rasterio.windows import Window
    from scipy.ndimage import zoom

    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    if side > 2048:
        few = make_scene(path.with_name(f"few_{interleave}.tiff"), 3 * 512, interleave)
        repeat_blocks(few, path, profile(side, interleave))
        return path
    rng = np.random.default_rng(0)
    coarse = rng.standard_normal((6, side // 64 + 2, side // 64 + 2)).astype(np.float32)
    mix = rng.standard_normal((BANDS, 6)).astype(np.float32)
    partial = path.with_suffix(".partial.tiff")
    with rasterio.open(partial, "w", **profile(side, interleave)) as out:
        for top in range(0, side, 512):
            for left in range(0, side, 512):
                place = slice(top // 64, top // 64 + 9), slice(left // 64, left // 64 + 9)
                fields = np.stack([zoom(field[place], 64, order=1)[:512, :512] for field in coarse])
                values = 0.25 * np.tanh(np.tensordot(mix, fields, axes=1))
                values += 0.02 * rng.standard_normal(values.shape, dtype=np.float32)
                stored = np.rint(np.sqrt(np.abs(values)) * 127.5) * np.sign(values)
                window = Window(left, top, min(512, side - left), min(512, side - top))
                cut = stored[:, : int(window.height), : int(window.width)]
                out.write(np.clip(cut, -127, 127).astype(np.int8), window=window)
    partial.rename(path)
    return path


def places(side: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    ground = side * PIXEL_M
    return LEFT + rng.uniform(0, ground, count), TOP - rng.uniform(0, ground, count)


def floor(path: Path, x: np.ndarray, y: np.ndarray) -> None:
    """Decode every needed block once, and do nothing with it."""
    import rasterio
    from rasterio.windows import Window

    blocks = set()
    half = max(SIDES_M) / 2
    with rasterio.Env(GDAL_CACHEMAX=64 << 20), rasterio.open(path) as source:
        tall, wide = source.block_shapes[0]
        edges = ~source.transform
        for east, north in zip(x, y, strict=True):
            c0, r0 = edges * (east - half, north - half)
            c1, r1 = edges * (east + half, north + half)
            rows, columns = sorted((r0, r1)), sorted((c0, c1))
            for row in range(int(max(0, rows[0]) // tall), int(rows[1] // tall) + 1):
                for column in range(int(max(0, columns[0]) // wide), int(columns[1] // wide) + 1):
                    if row * tall < source.height and column * wide < source.width:
                        blocks.add((row, column))
        for row, column in sorted(blocks):
            height = min(tall, source.height - row * tall)
            width = min(wide, source.width - column * wide)
            source.read(window=Window(column * wide, row * tall, width, height))


def ours(path: Path, x: np.ndarray, y: np.ndarray) -> None:
    from butterfly_sdm.imagery.embeddings.collection import open_embeddings
    from butterfly_sdm.imagery.embeddings.options import EmbeddingReading
    from butterfly_sdm.imagery.embeddings.squares import square_statistics

    embeddings = open_embeddings(path, EmbeddingReading(preset="alphaearth"))
    mean, spread = square_statistics(embeddings, x, y, CRS, sides_m=SIDES_M)
    assert np.isfinite(mean).all() and np.isfinite(spread).all()


def per_band(path: Path, x: np.ndarray, y: np.ndarray) -> None:
    """What was there before: means alone, one band after the other."""
    from butterfly_sdm.imagery.squares import square_means

    for band in range(1, BANDS + 1):
        for side in SIDES_M:
            square_means(path, x, y, CRS, side_m=side, band=band)


WAYS = {"floor": floor, "ours": ours, "per band": per_band}


def alone(way: str, path: Path, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Run one way in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "places.npz", x=x, y=y)
        command = [sys.executable, __file__, "one", way, str(path), f"{folder}/places.npz"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, float] = json.loads(told.splitlines()[-1])
    return found


def one(way: str, path: str, where: str) -> None:
    # imports are no part of what is measured
    import butterfly_sdm.imagery.embeddings.squares  # noqa: F401

    at = np.load(where)
    print(json.dumps(measured(lambda: WAYS[way](Path(path), at["x"], at["y"]))))


def beside(ways: tuple[str, ...], path: Path, x: np.ndarray, y: np.ndarray, rounds: int) -> None:
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            found[way].append(alone(way, path, x, y))
    base = statistics.median(run["cpu_s"] for run in found[ways[0]])
    for way, runs in found.items():
        cpu, above = (statistics.median(run[key] for run in runs) for key in ("cpu_s", "peak_mb"))
        print(f"{way:9s} {cpu:7.2f} CPU s  {cpu / base:5.2f} x  {above:6.0f} MB above imports")


def cost(arguments: argparse.Namespace) -> None:
    for interleave in arguments.interleave:
        path = make_scene(
            arguments.folder / f"{interleave}_{arguments.side}.tiff", arguments.side, interleave
        )
        made = arguments.side if arguments.side <= 2048 else 3 * 512  # others are named again
        share = path.stat().st_size / (BANDS * made**2)
        print(
            f"{arguments.sites} sites, {arguments.side} px, {interleave}-interleaved, "
            f"{share:.2f} of its bytes after compression"
        )
        x, y = places(arguments.side, arguments.sites)
        beside(("floor", "ours"), path, x, y, arguments.rounds)


def of_map(arguments: argparse.Namespace) -> None:
    path = make_scene(arguments.folder / f"pixel_{arguments.side}.tiff", arguments.side, "pixel")
    step = arguments.stride * PIXEL_M
    count = arguments.side // arguments.stride
    rows, columns = np.mgrid[:count, :count]
    x, y = LEFT + step * (columns.ravel() + 0.5), TOP - step * (rows.ravel() + 0.5)
    print(f"{len(x)} positions every {step} m of {arguments.side} px, at once")
    beside(("floor", "ours"), path, x, y, arguments.rounds)
    few = np.random.default_rng(0).choice(len(x), min(len(x), 272), replace=False)
    print(f"{len(few)} of them, and the way of before, one band after the other")
    beside(("floor", "ours", "per band"), path, x[few], y[few], 1)


CONFIG = {
    "embeddings": {"path": "aef", "preset": "alphaearth", "bands": 32, "year": 2023},
    "table": "covariates.csv",
}
TREES = {"position": False, "trees": 200, "min_samples_leaf": 3, "max_features": 0.35}
LADDER = [
    {"kind": "trees", "name": "bands", "options": {**TREES, "covariates": False, "bands": True}},
    {
        "kind": "linear",
        "name": "bands, linear",
        "options": {"covariates": False, "bands": True, "position": False, "quadratic": False},
    },
    {"kind": "trees", "name": "climate", "options": {**TREES, "only": "$CLIMATE"}},
    {"kind": "trees", "name": "embeddings", "options": {**TREES, "only": "alphaearth"}},
    {
        "kind": "linear",
        "name": "components",
        "options": {
            "only": "alphaearth",
            "position": False,
            "embedding": "alphaearth",
            "components": 24,
            "quadratic": False,
        },
    },
    {
        "kind": "network",
        "name": "network of components",
        "network": {
            "image": False,
            "covariates": True,
            "only": "alphaearth",
            "components": {"alphaearth": 24},
        },
    },
    {
        "kind": "network",
        "name": "network of columns",
        "network": {"image": False, "covariates": True, "only": "alphaearth"},
    },
    {"kind": "network", "name": "image"},
    {"kind": "blend", "name": "image + components", "of": ["image", "components"]},
    {"kind": "blend", "name": "all", "of": ["climate", "embeddings", "components", "image"]},
]


def worth(arguments: argparse.Namespace) -> None:
    import pandas as pd
    import yaml

    import butterfly_sdm as bs
    from butterfly_sdm.config import load_config
    from butterfly_sdm.simulate import simulate_region
    from butterfly_sdm.simulate.embeddings import write_embeddings

    begin = cpu_seconds()
    for seed in range(arguments.seeds):
        folder = arguments.folder / f"region_{seed}_{arguments.sites}"
        region = simulate_region(folder, seed=seed, size_px=3072, n_sites=arguments.sites)
        if not (folder / "aef").exists():
            write_embeddings(region, folder / "aef", bands=32, noise=arguments.noise, seed=seed)
        climate = [name for name in pd.read_csv(region.covariates).columns if name != "site_id"]
        given = yaml.safe_load(region.config.read_text())
        given["build"]["covariates"] = CONFIG
        text = json.dumps(LADDER).replace("$CLIMATE", ", ".join(climate))
        steps = [step for step in json.loads(text) if step["name"] not in arguments.without]
        given["build"]["split"]["fractions"] = [0.6, 0.4, 0.0]
        for step in steps:
            if step["name"] == "image":  # that of the demo
                step |= {"network": given["train"]["model"], "fit": given["train"]["fit"]}
        given = {key: given[key] for key in ("name", "seed", "build")}
        given["evaluate"] = {"ladder": steps, "folds": 0}
        config = folder / "worth.yaml"
        config.write_text(yaml.safe_dump(given))
        settings = load_config(config)
        dataset = bs.build(settings, folder / "dataset")
        ladder = bs.ladder(settings, dataset=dataset, out=folder / "ladder")
        print(f"{cpu_seconds() - begin:.0f} CPU s so far")
        split = dataset.needed_split()
        print(
            f"seed {seed}: {len(split.train)} sites to learn from, {len(split.validation)} held out"
        )
        for name, row in ladder.table.iterrows():
            print(
                f"  {name:20s} mse {100 * row['mse']:.3f}e-2 "
                f"[{100 * row['mse_low']:.3f}, {100 * row['mse_high']:.3f}] {row['note']}"
            )
        for row in ladder.pairs.itertuples():
            print(
                f"  {row.first} - {row.second}: {1e4 * row.difference:.1f}e-4 "
                f"[{1e4 * row.low:.1f}, {1e4 * row.high:.1f}]"
            )
    print(f"{cpu_seconds() - begin:.0f} CPU s")


def main() -> None:
    if sys.argv[1:2] == ["one"]:
        one(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["cost", "map", "worth"])
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--sites", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stride", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--noise", type=float, default=0.1)
    parser.add_argument("--without", nargs="*", default=[], help="steps of worth left out")
    parser.add_argument("--interleave", nargs="+", default=["pixel", "band"])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "embeddings"))
    arguments = parser.parse_args()
    if arguments.sites is None:
        arguments.sites = 500 if arguments.what == "worth" else 1329
    {"cost": cost, "map": of_map, "worth": worth}[arguments.what](arguments)


if __name__ == "__main__":
    main()
