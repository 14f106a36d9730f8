"""
Loads far above the usual: time and memory of each, in a process of its own.

    python benchmarks/loads.py [--share S] [--folder DIR] [--only NAME ...]

records    20 million records of 1,000 species at 50,000 squares of 1 km, made by a generator block
           by block, become a data set (the verb build)
train      the rates of that data set become a run (kind mean_rate)
evaluate   that run is scored on the held-out squares
scene      a sparse scene of 200,000 x 200,000 pixels and 4 bands is written, block by block
cut        2,000 tiles of 128 pixels are cut out of that scene
map        1,000 species are mapped over the whole of that scene, a cell each 2,000 pixels

Printed are wall and CPU seconds, peak memory of the process above what imports take (of pages that
no file holds), and the bound that the documentation promises. ``--share`` makes everything smaller.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SQUARES = ("SU", "SP", "TQ", "TL", "SK")  # 10,000 squares of 1 km each
SPECIES, PER_VISIT, BLOCK = 1_000, 20, 25_000
SIDE_PX, BANDS = 200_000, ("red", "green", "blue", "nir")
# Most MB above the imports, for the whole load: what docs/measured/promises.md states.
BOUNDS_MB = {
    "records": 4_000,
    "train": 2_500,
    "evaluate": 4_000,
    "scene": 500,
    "cut": 1_000,
    "map": 2_500,
}


@dataclass(frozen=True)
class Load:
    """How much of the whole load is tried, and where."""

    folder: Path
    share: float

    @property
    def sites(self) -> int:
        """Squares with records."""
        return max(500, int(50_000 * self.share))

    @property
    def records(self) -> int:
        """Rows of the file."""
        return 20 * PER_VISIT * self.sites

    @property
    def side_px(self) -> int:
        """Pixels along a side of the scene."""
        return max(20_000, int(SIDE_PX * self.share**0.5))


def write_records(load: Load) -> Path:
    """Write visits with lists of species, a block at a time."""
    import polars as pl

    path = load.folder / "records.csv"
    rng = np.random.default_rng(0)
    names = np.array(
        [f"Genus{i // 26:03d} {'abcdefghijklmnopqrstuvwxyz'[i % 26]}ensis" for i in range(SPECIES)]
    )
    sites = np.array([f"{square}{n:04d}" for square in SQUARES for n in range(10_000)])
    sites = sites[:: len(sites) // load.sites][: load.sites]
    days = np.arange(np.datetime64("2018-04-01"), np.datetime64("2018-10-01")).astype(str)
    common = rng.dirichlet(np.full(SPECIES, 3.0))
    with path.open("wb") as file:
        for first in range(0, 20 * load.sites, BLOCK):
            visits = np.arange(first, min(first + BLOCK, 20 * load.sites))
            drawn = rng.choice(SPECIES, size=(len(visits), PER_VISIT), p=common)
            pl.DataFrame(
                {
                    "species": names[drawn.ravel()],
                    "date": np.repeat(days[rng.integers(len(days), size=len(visits))], PER_VISIT),
                    "grid_reference": np.repeat(sites[visits % len(sites)], PER_VISIT),
                }
            ).write_csv(file, include_header=first == 0)
    return path


def _config(load: Load) -> dict[str, object]:
    return {
        "name": "load",
        "build": {
            "records": {
                "path": str(load.folder / "records.csv"),
                "min_records": 20,
                "grid_m": 1000,
            },
            "split": {"method": "blocks", "distance_m": 20_000.0},
        },
        "train": {"model": {"kind": "mean_rate"}},
        "evaluate": {"part": "test", "bootstrap": 200},
        "map": {"stride_px": 2_000, "beside": []},
    }


def run_records(load: Load) -> str:
    """Build."""
    from butterfly_sdm import pipeline

    made = pipeline.build(_config(load), load.folder / "dataset")
    return f"{load.records:,} records, {len(made.species):,} species, {len(made.site_ids):,} sites"


def run_train(load: Load) -> str:
    """Train."""
    from butterfly_sdm import pipeline

    made = pipeline.train(_config(load), load.folder / "run", dataset=load.folder / "dataset")
    return f"{len(made.split.train):,} sites, {len(made.predictor.species):,} species"


def run_evaluate(load: Load) -> str:
    """Evaluate."""
    from butterfly_sdm import pipeline

    scores = pipeline.evaluate(
        load.folder / "run", load.folder / "scores", dataset=load.folder / "dataset"
    )
    return f"{len(scores.overall):,} rows of scores"


def run_scene(load: Load) -> str:
    """Write a scene of which a few hundred blocks hold pixels."""
    import rasterio
    from rasterio.transform import from_origin
    from rasterio.windows import Window

    profile = {"driver": "GTiff", "count": 4, "height": load.side_px, "width": load.side_px}
    profile |= {"dtype": "uint16", "crs": "EPSG:27700", "nodata": 0, "compress": "deflate"}
    profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512, "interleave": "pixel"}
    profile |= {"transform": from_origin(0, 2_000_000, 10, 10), "BIGTIFF": "YES", "SPARSE_OK": True}
    rng = np.random.default_rng(0)
    corners = _corners(load)
    with rasterio.open(load.folder / "scene.tif", "w", **profile) as out:
        out.descriptions = BANDS
        for column, row in corners:
            level = np.array([600, 800, 500, 3000])[:, None, None]
            pixels = (level + rng.integers(0, 200, (4, 512, 512))).astype(np.uint16)
            out.write(pixels, window=Window(column, row, 512, 512))
    return f"{load.side_px:,} x {load.side_px:,} px, {len(corners)} blocks with pixels"


def _corners(load: Load) -> np.ndarray:
    blocks = (load.side_px - 1) // 512
    return np.random.default_rng(1).integers(0, blocks, (400, 2)) * 512


def run_cut(load: Load) -> str:
    """Cut tiles, most of them where pixels are."""
    from pyproj import Transformer

    from butterfly_sdm.imagery.scene import open_scene
    from data_prep.imagery.cutting import CutReport, cut_tiles
    from data_prep.imagery.options import TileOptions
    from data_prep.imagery.tile_grids import tile_grid

    scene = open_scene(load.folder / "scene.tif")
    rng = np.random.default_rng(2)
    corners = _corners(load)
    held = corners[rng.integers(len(corners), size=1_600)] + rng.integers(64, 448, (1_600, 2))
    free = rng.integers(200, load.side_px - 200, (400, 2))
    at = np.concatenate([held, free]) * 10
    to_degrees = Transformer.from_crs(27700, 4326, always_xy=True)
    lon, lat = to_degrees.transform(at[:, 0], 2_000_000 - at[:, 1])
    grid = tile_grid(lon, lat, scene, TileOptions(size_px=128))
    report = CutReport()
    valid = cut_tiles(scene, grid, load.folder / "tiles.npy", report=report)
    return f"{len(grid):,} tiles, {report.blocks:,} blocks read, {(valid > 0.99).sum():,} whole"


def run_map(load: Load) -> str:
    """Map all species over the whole scene."""
    from butterfly_sdm import pipeline

    made = pipeline.predict_map(
        load.folder / "run",
        [load.folder / "scene.tif"],
        load.folder / "map.tif",
        overrides=["map.min_valid_fraction=0"],
    )
    seen, size = made.counts["predicted"], made.path.stat().st_size / 1e6
    return (
        f"{load.side_px:,} x {load.side_px:,} px, {len(made.species):,} species, {seen:,} of "
        f"{made.counts['positions']:,} cells with pixels, {size:.0f} MB"
    )


LOADS = {
    "records": run_records,
    "train": run_train,
    "evaluate": run_evaluate,
    "scene": run_scene,
    "cut": run_cut,
    "map": run_map,
}


def measure(name: str, load: Load) -> dict[str, object]:
    """Run one load in this process, imports not counted."""
    import torch

    import butterfly_sdm.pipeline
    import data_prep.build
    from benchmarks.tiles import Memory

    assert butterfly_sdm.pipeline and data_prep.build and torch
    watch = Memory()
    watch.start()
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    told = LOADS[name](load)
    after, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - began
    watch.ended.set()
    watch.join()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"load": name, "told": told, "wall_s": wall, "cpu_s": cpu, "peak_mb": watch.peak / 1024}


def run_all(load: Load, names: Sequence[str]) -> Iterator[dict[str, object]]:
    """Run loads one after the other, each in a process of its own, and yield their figures."""
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    for name in names:
        if name == "records" and not (load.folder / "records.csv").is_file():
            write_records(load)
        command = [sys.executable, __file__, "--one", name]
        command += ["--share", str(load.share), "--folder", str(load.folder)]
        answer = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
        )
        if answer.returncode:
            raise RuntimeError(f"{name}: {answer.stderr.strip()[-3000:]}")
        yield json.loads(answer.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", nargs="*", default=list(LOADS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="butterfly_sdm_loads_"))
    folder.mkdir(parents=True, exist_ok=True)
    load = Load(folder, options.share)
    if options.one:
        print(json.dumps(measure(options.one, load)))
        return
    header = "| load | what | wall s | CPU s | peak MB | bound MB |\n|---|---|---|---|---|---|"
    print(header, flush=True)
    for row in run_all(load, options.only):
        print(
            f"| {row['load']} | {row['told']} | {row['wall_s']:.0f} | {row['cpu_s']:.0f} | "
            f"{row['peak_mb']:.0f} | {BOUNDS_MB[str(row['load'])]:,} |",
            flush=True,
        )
    if options.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
