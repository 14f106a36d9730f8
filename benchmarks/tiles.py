"""
Cutting tiles beside what a user would use instead, and beside GDAL merely decoding each needed
block once.

python benchmarks/tiles.py [--size small|full] [--layout deflate|striped|bands] [--rounds N]
[--tiles N] [--px N]

The script makes its scene. Every way gives the same tiles (checked before anything is printed;
another CRS: beside GDAL's). Each way runs in a process of its own, ways interleaved in every round;
printed are the medians of wall time, CPU time, peak memory apart from the mapped output, and the
ratios to the floor.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

BANDS = ["red", "green", "blue", "nir"]


def make_scene(path: Path, side: int, layout: str) -> Path:
    """Write a scene of soft noise that compresses like land, 4 bands of 16 bits, EPSG:32630."""
    import rasterio
    from rasterio.transform import from_origin
    from rasterio.windows import Window

    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (
        {"tiled": True, "blockxsize": 512, "blockysize": 512}
        if layout != "striped"
        else {"tiled": False, "blockysize": 1}
    )
    profile = {
        "driver": "GTiff",
        "count": 4,
        "height": side,
        "width": side,
        "dtype": "uint16",
        "crs": "EPSG:32630",
        "nodata": 0,
        "transform": from_origin(500_000, 5_700_000, 10, 10),
        "compress": "deflate",
        "predictor": 2,
        "zlevel": 1,
        "interleave": "band" if layout == "bands" else "pixel",
        "num_threads": 2,
    } | shape
    partial = path.with_suffix(".partial.tif")
    with rasterio.open(partial, "w", **profile) as out:
        out.descriptions = tuple(BANDS)
        for row in range(0, side, 512):
            random = np.random.default_rng([row])
            height = min(512, side - row)
            values = np.empty((4, height, side), np.uint16)
            for band, level in enumerate((600, 800, 500, 3000)):
                coarse = (
                    random.normal(level, level / 4, (height // 16 + 2, side // 16 + 2))
                    .repeat(16, 0)
                    .repeat(16, 1)
                )
                values[band] = (coarse[:height, :side] + random.normal(0, 25, (height, side))).clip(
                    1, 12_000
                )
            out.write(values, window=Window(0, row, side, height))
    partial.rename(path)
    return path


def places(side: int, sites: int) -> tuple[np.ndarray, np.ndarray]:
    """Return eastings and northings (EPSG:32630), half clustered, half uniform."""
    random = np.random.default_rng(0)
    uniform = random.uniform(0, side * 10, (sites // 2, 2))
    towns = random.uniform(0, side * 10, (20, 2))
    clustered = towns[random.integers(0, 20, sites - sites // 2)] + random.normal(
        0, 4000, (sites - sites // 2, 2)
    )
    both = np.concatenate([uniform, clustered]).clip(1500, side * 10 - 1500)
    return 500_000 + both[:, 0], 5_700_000 - both[:, 1]


def grid_of(scene_path: Path, sites: int, size: int, crs: str | None):
    from pyproj import Transformer

    from butterfly_sdm.imagery.scene import open_scene
    from data_prep.imagery.options import TileOptions
    from data_prep.imagery.tile_grids import tile_grid

    scene = open_scene(scene_path)
    lon, lat = Transformer.from_crs(32630, 4326, always_xy=True).transform(
        *places(scene.width, sites)
    )
    return scene, tile_grid(lon, lat, scene, TileOptions(size_px=size, crs=crs))


def run_floor(scene_path: Path, sites: int, size: int, out: Path) -> None:
    """Decode every block that is needed once, in two threads, and throw it away."""
    from concurrent.futures import ThreadPoolExecutor

    import rasterio
    from rasterio.windows import Window

    from data_prep.imagery.blocks import plan_reads, units

    scene, grid = grid_of(scene_path, sites, size, None)
    layer = scene.pieces[0].layers[0]
    columns = np.round((grid.left - layer.transform.c) / 10).astype(int)
    rows = np.round((layer.transform.f - grid.top) / 10).astype(int)

    def decode(reads) -> None:
        buffer = None
        with rasterio.open(scene_path) as source:
            for read in reads:
                shape = (4, read.height, read.width)
                buffer = (
                    buffer
                    if buffer is not None and buffer.shape == shape
                    else np.empty(shape, np.uint16)
                )
                source.read(
                    window=Window(read.column, read.row, read.width, read.height), out=buffer
                )

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(decode, units(plan_reads(layer, rows, columns, size, size), 8)))


def run_package(scene_path: Path, sites: int, size: int, out: Path, crs: str | None = None) -> None:
    """Cut with data_prep.imagery.cutting.cut_tiles."""
    from concurrent.futures import ThreadPoolExecutor

    from data_prep.imagery.blocks import plan_reads
    from data_prep.imagery.cutting import CutReport, cut_tiles

    scene, grid = grid_of(scene_path, sites, size, crs)
    report = CutReport()
    with ThreadPoolExecutor(2) as pool:
        cut_tiles(scene, grid, out, executor=pool, report=report)
    if crs is None:
        layer = scene.pieces[0].layers[0]
        columns = np.round((grid.left - layer.transform.c) / 10).astype(int)
        rows = np.round((layer.transform.f - grid.top) / 10).astype(int)
        assert report.blocks == len(plan_reads(layer, rows, columns, size, size)), (
            "a block was decoded twice"
        )


def run_windows(scene_path: Path, sites: int, size: int, out: Path) -> None:
    """Keep one dataset open and read a window per tile with rasterio."""
    import rasterio
    from rasterio.windows import Window

    _, grid = grid_of(scene_path, sites, size, None)
    array = np.lib.format.open_memmap(out, mode="w+", dtype=np.uint16, shape=(sites, 4, size, size))
    with rasterio.open(scene_path) as source:
        for number in range(sites):
            column, row = (
                round(v)
                for v in ((grid.left[number] - 500_000) / 10, (5_700_000 - grid.top[number]) / 10)
            )
            array[number] = source.read(window=Window(column, row, size, size), boundless=False)


def run_geotiffs(scene_path: Path, sites: int, size: int, out: Path) -> None:
    """Open the scene, read a window and write a GeoTIFF, for each tile: the usual script."""
    import rasterio
    from rasterio.windows import Window

    _, grid = grid_of(scene_path, sites, size, None)
    folder = out.with_suffix(".tiles")
    folder.mkdir(exist_ok=True)
    for number in range(sites):
        column, row = (
            round(v)
            for v in ((grid.left[number] - 500_000) / 10, (5_700_000 - grid.top[number]) / 10)
        )
        with rasterio.open(scene_path) as source:
            values = source.read(window=Window(column, row, size, size))
        with rasterio.open(
            folder / f"{number}.tif",
            "w",
            driver="GTiff",
            count=4,
            height=size,
            width=size,
            dtype="uint16",
            crs="EPSG:32630",
            transform=grid.transform(number),
            nodata=0,
            compress="deflate",
        ) as target:
            target.write(values)


def run_torchgeo(scene_path: Path, sites: int, size: int, out: Path) -> None:
    """Ask torchgeo's RasterDataset for the bounds of each tile."""
    from torchgeo.datasets import RasterDataset

    _, grid = grid_of(scene_path, sites, size, None)

    class Scenes(RasterDataset):
        filename_glob = scene_path.name

    data = Scenes(str(scene_path.parent))
    array = np.lib.format.open_memmap(out, mode="w+", dtype=np.uint16, shape=(sites, 4, size, size))
    for number in range(sites):
        left, top = grid.left[number], grid.top[number]
        sample = data[left : left + size * 10, top - size * 10 : top]
        array[number] = sample["image"].numpy().astype(np.uint16)


def run_rioxarray(scene_path: Path, sites: int, size: int, out: Path) -> None:
    """Clip the bounds of each tile with rioxarray."""
    import rioxarray

    _, grid = grid_of(scene_path, sites, size, None)
    array = np.lib.format.open_memmap(out, mode="w+", dtype=np.uint16, shape=(sites, 4, size, size))
    with rioxarray.open_rasterio(scene_path) as scene:
        for number in range(sites):
            left, top = grid.left[number] + 1, grid.top[number] - 1  # within the outermost pixels
            side = size * 10 - 2
            array[number] = scene.rio.clip_box(left, top - side, left + side, top).values


def run_gdal_warps(scene_path: Path, sites: int, size: int, out: Path) -> None:
    """Warp each tile into EPSG:27700 with rasterio.warp.reproject."""
    import rasterio
    from rasterio.warp import Resampling, reproject

    _, grid = grid_of(scene_path, sites, size, "EPSG:27700")
    array = np.lib.format.open_memmap(out, mode="w+", dtype=np.uint16, shape=(sites, 4, size, size))
    with rasterio.open(scene_path) as source:
        for number in range(sites):
            reproject(
                rasterio.band(source, [1, 2, 3, 4]),
                array[number],
                dst_crs="EPSG:27700",
                dst_transform=grid.transform(number),
                resampling=Resampling.bilinear,
                src_nodata=0,
                dst_nodata=0,
            )


def run_lattice(scene_path: Path, sites: int, size: int, out: Path) -> None:
    """Cut into EPSG:27700 with data_prep.imagery.cutting.cut_tiles."""
    run_package(scene_path, sites, size, out, "EPSG:27700")


WAYS = {
    "floor": run_floor,
    "package": run_package,
    "windows": run_windows,
    "geotiffs": run_geotiffs,
    "torchgeo": run_torchgeo,
    "rioxarray": run_rioxarray,
    "lattice": run_lattice,
    "gdal_warps": run_gdal_warps,
}
SAME = ("package", "windows", "torchgeo", "rioxarray")
RIVALS = {"torchgeo": "torchgeo.datasets", "rioxarray": "rioxarray"}


def one(way: str, scene: Path, sites: int, size: int, out: Path) -> None:
    """Run one way in this process and print its figures; importing is not counted."""
    import rasterio
    import torch

    import data_prep.imagery.cutting

    assert data_prep.imagery.cutting and rasterio and torch
    if way in RIVALS:
        importlib.import_module(RIVALS[way])
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    watch = Memory()
    watch.start()
    start, cpu = time.perf_counter(), time.process_time()
    WAYS[way](scene, sites, size, out)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    watch.ended.set()
    watch.join()
    peak = (watch.peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024
    print(json.dumps({"wall": wall, "cpu": cpu, "peak_mb": peak, "base_mb": base / 1024}))


class Memory(threading.Thread):
    """
    Watch the memory that is not mapped from files, in kB above that at the start, where the system
    tells it.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended, self.start_kb, self.peak = threading.Event(), self.now(), 0

    @staticmethod
    def now() -> int:
        try:
            text = Path("/proc/self/status").read_text()
        except OSError:
            return 0
        return next(
            (int(line.split()[1]) for line in text.splitlines() if line.startswith("RssAnon")), 0
        )

    def run(self) -> None:
        while not self.ended.wait(0.005):
            self.peak = max(self.peak, self.now() - self.start_kb)


def checksum(out: Path) -> str:
    array = np.load(out, mmap_mode="r")
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=["small", "full"], default="small")
    parser.add_argument("--layout", choices=["deflate", "striped", "bands"], default="deflate")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiles", type=int, help="how many; default 200, of size full 1,329")
    parser.add_argument("--px", type=int, default=256, help="side of a tile")
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "butterfly_sdm_benchmarks"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    side, sites = (10980, 1329) if options.size == "full" else (3072, 200)
    sites, size = options.tiles or sites, options.px
    scene = make_scene(options.folder / f"scene_{options.layout}_{side}.tif", side, options.layout)
    if options.one:
        one(options.one, scene, sites, size, options.out)
        return
    for way in [
        way for way in options.ways if way in RIVALS and importlib.util.find_spec(way) is None
    ]:
        print(f"{way} is not installed; left out")
        options.ways.remove(way)
    figures: dict[str, list[dict[str, float]]] = {way: [] for way in options.ways}
    sums: dict[str, str] = {}
    here = str(Path(__file__).resolve().parents[1])
    for _ in range(options.rounds):
        for way in options.ways:
            out = options.folder / f"{way}.npy"
            # making room for the new file would count, and not for all ways alike
            out.unlink(missing_ok=True)
            shutil.rmtree(out.with_suffix(".tiles"), ignore_errors=True)
            command = [sys.executable, __file__, "--size", options.size, "--layout", options.layout]
            command += ["--tiles", str(sites), "--px", str(size), "--folder", str(options.folder)]
            command += ["--one", way, "--out", str(out)]
            path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
            environment = os.environ | {"PYTHONPATH": path}
            answer = subprocess.run(command, capture_output=True, text=True, env=environment)
            if answer.returncode:
                print(f"{way}: {answer.stderr.strip().splitlines()[-1]}")
                continue
            figures[way].append(json.loads(answer.stdout.strip().splitlines()[-1]))
            if way in SAME:
                sums[way] = checksum(out)
    if len({sums[way] for way in SAME[:2] if way in sums}) > 1:
        sys.exit(f"The tiles differ: {sums}. No time is printed.")
    compare = [options.folder / f"{way}.npy" for way in ("lattice", "gdal_warps")]
    if all(path.exists() for path in compare) and {"lattice", "gdal_warps"} <= set(options.ways):
        ours, theirs = (np.load(path, mmap_mode="r")[:40].astype(int) for path in compare)
        difference = np.abs(ours - theirs)
        print(
            f"another CRS beside GDAL: mean {difference.mean():.3f} counts, 99th percentile "
            f"{np.percentile(difference, 99):.0f}"
        )
        if difference.mean() > 0.2 or np.percentile(difference, 99) > 1:
            sys.exit("The warped tiles differ from GDAL's. No time is printed.")
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(f"{sites} tiles of {size} px from {side} x {side} x 4 ({options.layout}); {load}")
    print(
        f"{'way':12} {'wall s':>8} {'cpu s':>8} {'peak MB':>8} {'x floor wall':>13} "
        f"{'x floor cpu':>12}"
    )
    for way, runs in figures.items():
        if not runs:
            continue
        wall, cpu, peak = (
            statistics.median(run[key] for run in runs) for key in ("wall", "cpu", "peak_mb")
        )
        pairs = list(zip(runs, figures.get("floor") or [], strict=False))
        ratio = [
            statistics.median(run[key] / floor[key] for run, floor in pairs)
            if pairs
            else float("nan")
            for key in ("wall", "cpu")
        ]
        same = "" if way not in sums or sums[way] == sums.get("package") else "  (own pixel grid)"
        print(
            f"{way:12} {wall:8.2f} {cpu:8.2f} {peak:8.0f} {ratio[0]:13.2f} {ratio[1]:12.2f}{same}"
        )


if __name__ == "__main__":
    main()
