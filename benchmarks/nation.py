"""
From a catalogue of remote products to tiles and a map: only what is needed, beside fetching all.

python benchmarks/nation.py [--scale 1] [--block 512] [--only tiles,map,kill,uk] [--folder DIR]

The script makes a STAC catalogue of two MGRS tiles x five dates (10,980 px at scale 1, deflate
COGs with a scene classification, content from the real tiles in $BUTTERFLY_SDM_SHARED) and serves
it from a process of its own with range requests, 30 ms latency, 1 % answers 503 and 1 % broken
connections. Both tiles show the same ground: only the place of the second differs, put into its
bytes as they are served, so that half the disk is enough. Every way runs in a process of its own.
At scale 1 it needs 15 GB of disk and some 12 minutes of CPU.

The last table says of every target whether it was met.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

BANDS = ("red", "green", "blue", "nir")
PLACE_OF = {"blue": 0, "green": 1, "red": 2, "nir": 3}  # in the files of the shared tiles
DAYS = ("2023-06-03", "2023-06-18", "2023-07-06", "2023-07-25", "2023-08-12")
CLOUDS = (0.05, 0.55, 0.25, 0.75, 0.35)
NAMES = ("30UXX", "30UYX")
LEFT, TOP, FULL = 399_960.0, 5_700_000.0, 10_980
SEARCH = {"bbox": (-12, 45, 8, 60), "start": "2023-01-01", "end": "2023-12-31", "max_cloud": 100}
SITES, TILE_PX, AREA_PX, HALO_PX = 140, 256, 3000, 224
LATENCY_S, BUSY, BROKEN, PIECE = 0.03, 0.01, 0.01, 1 << 18


# The catalogue


def ground() -> np.ndarray:
    """Return all real tiles, turned and flipped: (n, bands, 256, 256)."""
    import rasterio

    folder = Path(os.environ["BUTTERFLY_SDM_SHARED"]) / "data" / "s2bms" / "tiles"
    tiles = []
    for file in sorted(folder.glob("*.tif")):
        with rasterio.open(file) as source:
            tiles.append(source.read())
    found = np.stack(tiles)
    turned = [np.rot90(found, k, (2, 3)) for k in range(4)]
    return np.concatenate([*turned, *(t[..., ::-1] for t in turned)])


def smooth(seed: list[int], side: int, scale: int) -> np.ndarray:
    """Return a soft random field."""
    import scipy.ndimage as ndi

    coarse = np.random.default_rng(seed).normal(size=(side // scale + 4,) * 2).astype(np.float32)
    return ndi.zoom(coarse, scale, order=1)[:side, :side]


def classes(day: int, side: int) -> np.ndarray:
    """Return the scene classification of a date: land, clouds in fields, their shadows."""
    field = smooth([7, day, 0], side, 400) + 0.5 * smooth([7, day, 1], side, 90)
    field += 0.2 * smooth([7, day, 2], side, 15)
    edge = np.quantile(field[::8, ::8], 1 - CLOUDS[day])
    scl = np.where(smooth([7, day, 3], side, 60) > 0.6, 5, 4).astype(np.uint8)
    cloud = field > edge
    scl[np.roll(cloud, (12, 9), (0, 1)) & ~cloud] = 3
    scl[cloud] = 8
    scl[field > edge + 0.25] = 9
    if day == 2:  # the edge of a swath
        y, x = np.ogrid[:side, :side]
        scl[x + 0.3 * y > 0.75 * side] = 0
    return scl


def make_catalogue(folder: Path, side: int, block: int) -> Path:
    """Write the files of one tile on five dates, and the items of two tiles."""
    from pyproj import Transformer

    library = ground()
    cells = np.random.default_rng(1).integers(0, len(library), (side // 256 + 1,) * 2)
    pool = np.random.default_rng(2).normal(0, 6, (2048, 2048)).astype(np.int16)
    back = Transformer.from_crs(32630, 4326, always_xy=True)
    links = []
    for day, date in enumerate(DAYS):
        scl = classes(day, side // 2)
        sources = {key: folder / f"{date}_{key}.tif" for key in (*BANDS, "scl")}
        write_date(sources, scl, day, library, cells, pool, block)
        for number, name in enumerate(NAMES):
            left, right = (LEFT + (number * pitch(side) + k * side) * 10 for k in (0, 1))
            xs, ys = [left, right, right, left], [TOP - side * 10] * 2 + [TOP] * 2
            lon, lat = back.transform(xs, ys)
            item = item_of(f"S2A_{name}_{date.replace('-', '')}_0_L2A", date, sources)
            item |= {"bbox": [min(lon), min(lat), max(lon), max(lat)]}
            (folder / f"{item['id']}.json").write_text(json.dumps(item))
            links.append({"rel": "item", "href": f"{item['id']}.json"})
    about = {"type": "Catalog", "stac_version": "1.0.0", "id": "nation", "links": links}
    (folder / "catalog.json").write_text(json.dumps(about))
    return folder


def pitch(side: int) -> int:
    """Return the pixels from one tile to the next: neighbours overlap by 9 %."""
    return side * 10_000 // FULL // 2 * 2


def item_of(name: str, date: str, sources: dict[str, Path]) -> dict[str, Any]:
    """Return the STAC item of a product; bands carry the 1,000 of baseline 05.09."""
    assets: dict[str, Any] = {}
    for key, file in sources.items():
        assets[key] = {"href": f"{name}/{key}.tif", "file:size": file.stat().st_size}
        if key != "scl":
            assets[key]["eo:bands"] = [{"name": key, "common_name": key}]
            assets[key]["raster:bands"] = [{"nodata": 0, "scale": 1e-4, "offset": -0.1}]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": "sentinel-2-l2a",
        "properties": {"datetime": f"{date}T11:00:00Z", "s2:processing_baseline": "05.09"},
        "links": [],
        "assets": assets,
    }


def write_date(
    files: dict[str, Path],
    scl: np.ndarray,
    day: int,
    library: np.ndarray,
    cells: np.ndarray,
    pool: np.ndarray,
    block: int,
) -> None:
    """Write the bands of one date: the real ground, its own gains, noise and clouds."""
    side = 2 * len(scl)
    gains = np.random.default_rng([3, day]).uniform(0.9, 1.12, 4)
    bright = (3500 + 1500 * smooth([4, day], side, 64)).clip(1800, 9000)
    write_cog(files["scl"], scl, 20, block)

    def band(key: str) -> None:
        number = PLACE_OF[key]
        shift = np.random.default_rng([5, day, number]).integers(0, 2048, 2)
        noise = np.roll(pool, shift, (0, 1))
        values = np.empty((side, side), np.uint16)
        for top in range(0, side, 256):
            rows = slice(top, min(top + 256, side))
            row = np.concatenate([library[cell, number] for cell in cells[top // 256]], 1)
            part = row[: rows.stop - top, :side] * gains[number] + 1000
            part += np.tile(noise[top % 2048 : top % 2048 + 256], side // 2048 + 1)[
                : rows.stop - top, :side
            ]
            seen = scl[top // 2 : rows.stop // 2].repeat(2, 0).repeat(2, 1)
            part = np.where(np.isin(seen, (8, 9)), part * 0.3 + bright[rows], part).clip(1, 65535)
            values[rows] = np.where(seen == 0, 0, part)
        write_cog(files[key], values, 10, block)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(band, BANDS))


def write_cog(path: Path, values: np.ndarray, pixel: int, block: int) -> None:
    """Write one band as the archives do."""
    import rasterio
    from rasterio.transform import from_origin

    with rasterio.open(
        path,
        "w",
        driver="COG",
        count=1,
        height=values.shape[0],
        width=values.shape[1],
        dtype=values.dtype,
        crs="EPSG:32630",
        transform=from_origin(LEFT, TOP, pixel, pixel),
        nodata=0,
        compress="deflate",
        predictor=2,
        level=6,
        blocksize=block,
        overview_resampling="nearest",
    ) as out:
        out.write(values, 1)


# The server


class Server:
    """One folder over HTTP/1.1: kept connections, single ranges, latency and faults."""

    def __init__(self, folder: Path, side: int, faults: bool) -> None:
        self.folder, self.side, self.random = folder, side, random.Random(0)
        self.busy, self.broken = (BUSY, BROKEN) if faults else (0.0, 0.0)
        self.sent = self.requests = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer all requests of one connection."""
        try:
            while await self.one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            pass
        finally:
            writer.close()

    async def one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection goes on."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        target = head.split(" ", 2)[1].partition("?")[0].lstrip("/")
        if target == "stats":
            body = json.dumps({"sent": self.sent, "requests": self.requests}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
            return True
        await asyncio.sleep(LATENCY_S)
        self.requests += 1
        file, moved = self.file_of(target)
        chance = self.random.random() if target.endswith(".tif") else 0.5
        if not file.is_file() or chance < self.busy:
            status = b"503 Service Unavailable" if file.is_file() else b"404 Not Found"
            writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            return True
        size = file.stat().st_size
        part = re.search(r"\r\nrange: *bytes=(\d+)-(\d*)", head, re.IGNORECASE)
        a, b = (int(part[1]), min(size, int(part[2] or size) + 1)) if part else (0, size)
        about = f"Content-Range: bytes {a}-{b - 1}/{size}\r\n" if part else ""
        status = "206 Partial Content" if part else "200 OK"
        told = f'Content-Length: {b - a}\r\nETag: "{target}"\r\n{about}\r\n'
        writer.write(f"HTTP/1.1 {status}\r\n{told}".encode())
        stop = a + (b - a) // 2 if chance > 1 - self.broken else b
        await self.send(writer, file, a, stop, moved)
        if stop < b:
            writer.transport.abort()
        return stop == b

    async def send(
        self, writer: asyncio.StreamWriter, file: Path, at: int, stop: int, moved: bool
    ) -> None:
        """Send bytes of a file; of the second tile with its place."""
        with file.open("rb") as source:
            while at < stop:
                source.seek(at)
                piece = source.read(min(PIECE, stop - at))
                if moved and at == 0:
                    there = LEFT + pitch(self.side) * 10
                    piece = piece.replace(struct.pack("<d", LEFT), struct.pack("<d", there))
                writer.write(piece)
                at += len(piece)
                self.sent += len(piece)
                await writer.drain()

    def file_of(self, target: str) -> tuple[Path, bool]:
        """Return the file behind an address, and whether it is of the second tile."""
        name, _, key = target.rpartition("/")
        day = re.search(r"_(\d{4})(\d\d)(\d\d)_", name)
        if day is None:
            return self.folder / target, False
        return self.folder / f"{'-'.join(day.groups())}_{key}", NAMES[1] in name


def serve(folder: Path, side: int, port: int, faults: bool) -> None:
    """Serve until this process is ended, or its parent is."""

    async def run() -> None:
        server = Server(folder, side, faults)
        async with await asyncio.start_server(server.serve, "127.0.0.1", port, backlog=256):
            parent = os.getppid()
            while os.getppid() == parent:
                await asyncio.sleep(1)

    asyncio.run(run())


# The ways; each is a process


def places(scene: Any, sites: int) -> tuple[np.ndarray, np.ndarray]:
    """Return lon and lat of sites in towns of five."""
    from pyproj import Transformer

    rng = np.random.default_rng(11)
    left, bottom, right, top = scene.bounds
    towns = rng.uniform((left + 4000, bottom + 4000), (right - 4000, top - 4000), (sites // 5, 2))
    xy = np.repeat(towns, 5, 0) + rng.normal(0, 1500, (sites // 5 * 5, 2))
    xy = xy.clip((left + 1500, bottom + 1500), (right - 1500, top - 1500))
    return Transformer.from_crs(scene.crs, 4326, always_xy=True).transform(*xy.T)


def way_fetch(args: argparse.Namespace) -> None:
    """Fetch whole products."""
    from butterfly_sdm.imagery.options import StacOptions
    from data_prep.sources.stac import fetch_products

    fetch_products(StacOptions(url=args.url, **SEARCH), args.out / "stac", bands=BANDS)


def opened(args: argparse.Namespace, **composite: Any) -> Any:
    """Return the composite of the catalogue, or of the local copies of it."""
    from butterfly_sdm.imagery.options import SceneOptions
    from data_prep.imagery.scenes import scene_of

    if args.local:
        options = SceneOptions(paths=(Path(args.local),), composite=composite)
    else:
        options = SceneOptions(stac={"url": args.url, **SEARCH}, composite=composite)
    return scene_of(options, bands=BANDS, scratch=args.out)[0]


def way_compose(args: argparse.Namespace) -> None:
    """Compose the whole mosaic on disk."""
    opened(args, mosaic=True)


def way_cut_mosaic(args: argparse.Namespace) -> None:
    """Cut tiles out of the mosaic on disk."""
    from butterfly_sdm.imagery.scene import open_scene

    cut(open_scene(args.out / "composite.tif").select(BANDS), args)


def way_area_mosaic(args: argparse.Namespace) -> None:
    """Read the ground of a map from the mosaic on disk."""
    from butterfly_sdm.imagery.scene import open_scene

    area(open_scene(args.out / "composite.tif").select(BANDS), args)


def way_tiles(args: argparse.Namespace) -> None:
    """Cut tiles out of the composite that is read lazily."""
    cut(opened(args), args)


def way_area(args: argparse.Namespace) -> None:
    """Read the ground of a map from the composite that is read lazily."""
    area(opened(args), args)


def cut(scene: Any, args: argparse.Namespace) -> None:
    """Cut the tiles of all sites, as a build does."""
    from data_prep.imagery.cutting import cut_tiles
    from data_prep.imagery.options import TileOptions
    from data_prep.imagery.tile_grids import tile_grid

    if args.keep and scene.supply is not None:
        scene.supply.forget = lambda paths: None
        # blocks of one date, of all bands
        blocks = needed(scene, args, "tiles")
        args.more["block_dates"] = sum(len(stack.products) for stack, _ in blocks)
    grid = tile_grid(*places(scene, args.sites), scene, TileOptions(size_px=TILE_PX))
    with ThreadPoolExecutor(2) as pool:
        cut_tiles(scene, grid, args.out / "tiles.npy", executor=pool)


def area_windows(side: int) -> list[Any]:
    """Return the windows of the blocks of a map of a square, with their halo."""
    from rasterio.windows import Window

    half, first = -(-side // 2), 500
    return [
        Window(c - HALO_PX, r - HALO_PX, half + 2 * HALO_PX, half + 2 * HALO_PX)
        for r in (first, first + half)
        for c in (first, first + half)
    ]


def area(scene: Any, args: argparse.Namespace) -> None:
    """Read the blocks of a map as it does, and keep a checksum."""
    import rasterio

    from butterfly_sdm.core.executor import in_order
    from butterfly_sdm.mapping.surfaces.streaming import Stream

    found = hashlib.sha256()
    units = [SimpleNamespace(scene=scene, pixels=window) for window in area_windows(args.area)]
    stream, digest = Stream(scene, units, args.out), 0.0

    def read(unit: Any) -> Any:
        return unit, *scene.read_in_strips(unit.pixels)

    with rasterio.Env(GDAL_CACHEMAX=64 << 20), ThreadPoolExecutor(1) as reader:
        for unit, values, valid in in_order(read, units, reader, in_flight=1):
            before = time.thread_time()
            found.update(values.data)
            found.update(valid.data)
            digest += time.thread_time() - before
            stream.done(unit)
    stream.close()
    args.more["digest_cpu"] = round(digest, 2)  # no map computes one
    (args.out / "area.sha").write_text(found.hexdigest())


def needed(scene: Any, args: argparse.Namespace, what: str) -> list[tuple[Any, Any]]:
    """Return the stacks and the blocks of them that tiles or the area need."""
    from rasterio.windows import Window

    from data_prep.imagery.blocks import plan_reads
    from data_prep.imagery.options import TileOptions
    from data_prep.imagery.tile_grids import tile_grid

    found = []
    for stack in scene.pieces:
        layer, (column, row) = stack.layers[0], scene.offset_of(stack.layers[0])
        if what == "tiles":
            grid = tile_grid(*places(scene, args.sites), scene, TileOptions(size_px=TILE_PX))
            columns = np.round((grid.left - scene.transform.c) / 10).astype(int) - column
            rows = np.round((scene.transform.f - grid.top) / 10).astype(int) - row
            reads = plan_reads(layer, rows, columns, TILE_PX, TILE_PX)
        else:
            windows = area_windows(args.area)
            size = windows[0].width
            columns = np.array([w.col_off for w in windows]) - column
            rows = np.array([w.row_off for w in windows]) - row
            reads = plan_reads(layer, rows, columns, size, size)
        found += [(stack, Window(r.column, r.row, r.width, r.height)) for r in reads]
    return found


def way_floor(args: argparse.Namespace) -> None:
    """Decode every needed block once per date, in two threads, and nothing else."""
    import rasterio
    from rasterio.windows import Window

    from butterfly_sdm.imagery.supply import window_in

    scene = opened(args)
    work: dict[str, dict[tuple[int, int], Any]] = {}
    for stack, window in needed(scene, args, "tiles" if args.sites else "area"):
        for product in stack.products:
            for layer in product.files:
                part = window_in(layer, stack.layers[0].grid, window, 0)
                tall, wide = layer.block
                for r in range(part.row_off // tall, -(-(part.row_off + part.height) // tall)):
                    for c in range(part.col_off // wide, -(-(part.col_off + part.width) // wide)):
                        block = Window(c * wide, r * tall, wide, tall)
                        whole = Window(0, 0, layer.width, layer.height)
                        work.setdefault(layer.path, {})[r, c] = block.intersection(whole)

    def decode(job: tuple[str, dict[tuple[int, int], Any]]) -> None:
        with rasterio.open(job[0]) as source:
            for window in job[1].values():
                source.read(1, window=window)

    before = time.process_time()
    with rasterio.Env(GDAL_CACHEMAX=64 << 20), ThreadPoolExecutor(2) as pool:
        list(pool.map(decode, work.items()))
    args.more["decode_cpu"] = round(time.process_time() - before, 2)


WAYS = {name.removeprefix("way_"): way for name, way in globals().items() if "way_" in name}


def one_way(args: argparse.Namespace) -> None:
    """Run one way in this process and print what it took."""
    import rasterio.warp  # noqa: F401  imported before the clock starts

    import data_prep.imagery.scenes
    import data_prep.sources.stac  # noqa: F401

    args.out.mkdir(parents=True, exist_ok=True)
    args.more = {}
    base = resource.getrusage(resource.RUSAGE_SELF)
    wall = time.perf_counter()
    WAYS[args.way](args)
    use = resource.getrusage(resource.RUSAGE_SELF)
    held = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    peak_mb = int(held[1]) // 1024 if held else 0  # ru_maxrss would be that of the parent too
    cpu = use.ru_utime + use.ru_stime - base.ru_utime - base.ru_stime
    told = {"wall": round(time.perf_counter() - wall, 1), "cpu": round(cpu, 2)}
    told |= {"peak_mb": peak_mb, **args.more}
    print(json.dumps(told))


# The comparison


class Bench:
    """Where everything lies, and what was measured."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.side = args, round(FULL * args.scale) // 4 * 4
        self.sites = SITES
        self.area = min(AREA_PX, self.side // 2)
        self.folder = Path(args.folder or tempfile.mkdtemp(prefix="nation-"))
        self.found: dict[str, dict[str, Any]] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self.targets: list[tuple[str, bool]] = []
        self.rates: dict[str, float] = {}

    def start(self) -> None:
        """Start the server."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.root = f"http://127.0.0.1:{port}"
        command = [sys.executable, __file__, "--serve", str(port), "--scale", str(self.args.scale)]
        self.process = subprocess.Popen([*command, "--folder", str(self.folder / "catalogue")])
        for _ in range(200):
            time.sleep(0.1)
            try:
                self.stats()
                return
            except OSError:
                continue
        raise SystemExit("The server does not answer.")

    def stats(self) -> dict[str, int]:
        """Return what the server has sent so far."""
        with urllib.request.urlopen(f"{self.root}/stats") as answer:
            told: dict[str, int] = json.load(answer)
        return told

    def command(self, way: str, out: str, *more: str) -> list[str]:
        """Return the command of a way."""
        given = {
            "--way": way,
            "--out": str(self.folder / out),
            "--url": f"{self.root}/catalog.json",
        }
        given |= {"--sites": str(self.sites), "--area": str(self.area)}
        return [sys.executable, __file__, *[part for pair in given.items() for part in pair], *more]

    def run(self, way: str, out: str, *more: str, name: str = "") -> dict[str, Any]:
        """Run a way and keep what it took."""
        before = self.stats()
        done = subprocess.run(self.command(way, out, *more), stdout=subprocess.PIPE, check=True)
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        after = self.stats()
        told |= {"mb": round((after["sent"] - before["sent"]) / 1e6, 1)}
        told |= {"requests": after["requests"] - before["requests"]}
        self.found[name or way] = told
        print(f"{name or way:22} {json.dumps(told)}", flush=True)
        return told

    def digest(self, out: str, file: str) -> str:
        """Return a checksum of a result."""
        with (self.folder / out / file).open("rb") as source:
            return hashlib.file_digest(source, "sha256").hexdigest()

    def need_mb(self, out: str, block_dates: int) -> float:
        """Return the megabytes of the blocks and headers that the copies of a way hold."""
        from data_prep.sources.sparse import Copy

        total = bands = held = 0
        for mark in (self.folder / out).rglob("*.remote"):
            copy = Copy(mark.with_suffix(""))
            have = np.fromfile(mark.with_suffix(".have"), np.uint8) > 0
            counts = int(copy.layout.counts[have].sum())
            total += counts + copy.header
            if mark.name != "scl.tif.remote":
                bands, held = bands + counts, held + int(have.sum())
        if block_dates:
            kept = held / (block_dates * len(BANDS))
            self.rates = {"block_mb": bands / held / 1e6, "kept": kept}
        return round(total / 1e6, 1)

    def target(self, what: str, met: bool) -> None:
        """Note whether a target is met."""
        self.targets.append((what, met))


def compare(bench: Bench) -> None:
    """Run all ways and say which targets are met."""
    only = bench.args.only.split(",")
    fetched = str(bench.folder / "today" / "stac")
    today = {"fetch": 0.0, "compose": 0.0}
    if bench.args.today:
        for way, more in (("fetch", ()), ("compose", ("--local", fetched))):
            today[way] = bench.run(way, "today", *more)["wall"]
    kinds = (("tiles", "cut_mosaic", "tiles.npy"), ("area", "area_mosaic", "area.sha"))
    for what, mosaic, file in kinds:
        if what not in only:
            continue
        held = bench.run(what, f"lazy_{what}", "--keep", name=f"{what} needed")
        block_dates = held.get("block_dates", 0)
        least = bench.need_mb(f"lazy_{what}", block_dates)
        if block_dates:
            bench.rates["cpu_s"] = held["cpu"] / block_dates
        label = f"{what} ({bench.args.block} px blocks)"
        ratio = held["mb"] / least
        bench.target(
            f"{label}: bytes {ratio:.3f} of those needed ({least} MB), at most 1.05", ratio <= 1.05
        )
        mapped = SITES * len(BANDS) * TILE_PX**2 * 2 / 1e6 if what == "tiles" else 0
        peak = held["peak_mb"] - mapped
        bench.target(f"{label}: peak {peak:.0f} MB besides mapped tiles, at most 400", peak <= 400)
        shutil.rmtree(bench.folder / f"lazy_{what}" / "stac")
        streamed = bench.run(what, f"stream_{what}", name=f"{what} streamed")
        same = bench.digest(f"lazy_{what}", file) == bench.digest(f"stream_{what}", file)
        bench.target(f"{label}: the same bytes with copies deleted grid by grid", same)
        shutil.rmtree(bench.folder / f"stream_{what}")
        if bench.args.today:
            last = bench.run(mosaic, "today")["wall"]
            whole = today["fetch"] + today["compose"] + last
            share = streamed["wall"] / whole
            bench.target(
                f"{label}: {share:.3f} of the time of today's way, at most 0.125", share <= 0.125
            )
            floors(bench, what, file, fetched, label)
        if "kill" in only:
            killed(bench, what, file, held, label)
    shutil.rmtree(bench.folder / "today", ignore_errors=True)


def floors(bench: Bench, what: str, file: str, fetched: str, label: str) -> None:
    """Compare with local files: the same bytes, and the cost beside decoding alone."""
    pairs = []
    for number in range(bench.args.rounds):
        sites = "0" if what == "area" else str(bench.sites)
        floor = bench.run(
            "floor", "floor", "--local", fetched, "--sites", sites, name=f"{what} floor"
        )
        out = f"local_{what}_{number}"
        local = bench.run(what, out, "--local", fetched, name=f"{what} local")
        pairs.append((local["cpu"] - local.get("digest_cpu", 0)) / floor["cpu"])
        same = bench.digest(f"lazy_{what}", file) == bench.digest(out, file)
        shutil.rmtree(bench.folder / out)
    bench.target(f"{label}: byte-identical to local copies", same)
    ratio = float(np.median(pairs))
    bench.target(f"{label}: local files at {ratio:.2f} of the floor, at most 1.15", ratio <= 1.15)


def killed(bench: Bench, what: str, file: str, held: dict[str, Any], label: str) -> None:
    """Kill a way three times, let it end, and count what was fetched in all."""
    before, out = bench.stats()["sent"], f"killed_{what}"
    for share in (0.3, 0.35, 0.4):
        process = subprocess.Popen(bench.command(what, out), stdout=subprocess.DEVNULL)
        try:
            process.wait(timeout=2.0 + share * held["wall"])
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    bench.run(what, out, name=f"{what} after kills")
    total = (bench.stats()["sent"] - before) / 1e6
    more = total / held["mb"] - 1
    bench.target(f"{label}: {more:.1%} fetched again after three kills, at most 10 %", more <= 0.1)
    same = bench.digest(f"lazy_{what}", file) == bench.digest(out, file)
    bench.target(f"{label}: the same bytes after three kills", same)
    shutil.rmtree(bench.folder / out)


# The United Kingdom on paper


def united_kingdom(block: int, rates: dict[str, float]) -> None:
    """
    Print bytes, hours and disk of the 1,329 real sites and of a national map.

    Parameters
    ----------
    block
        Side of the blocks in pixels.
    rates
        As measured: megabytes of a block of one band on one date, the share of blocks that are not
        wholly cloudy, seconds of CPU for a block of all bands on one date.
    """
    land_km2, coast, overlap, grids = 244_000, 1.15, 1.2056, 80
    told = ", ".join(f"{name} {value:.4f}" for name, value in rates.items())
    print(f"The United Kingdom in blocks of {block} px, from {told}:")
    land = int(land_km2 / (block * block / 1e4) * coast * overlap)
    for what, blocks, over in (("1,329 sites", *site_blocks(block)), ("national map", land, grids)):
        for dates in (5, 8):
            gb = blocks * len(BANDS) * dates * rates["block_mb"] * rates["kept"] / 1e3
            print(
                f"{what:14} {blocks:6} blocks, {dates} dates: {gb:6.1f} GB, "
                f"{gb * 8e3 / 100 / 3600:5.2f} h at 100 Mbit/s, "
                f"CPU {blocks * dates * rates['cpu_s'] / 60:5.1f} min, disk {gb / over:5.2f} GB "
                "(one grid)"
            )


def site_blocks(block: int) -> tuple[int, int]:
    """
    Return the blocks that the real sites need on the grids of Sentinel-2, of every product that
    shows some of a tile, and the number of those grids.
    """
    import pandas as pd
    from pyproj import Transformer

    file = Path(os.environ["BUTTERFLY_SDM_SHARED"]) / "data" / "s2bms" / "sites.csv"
    sites = pd.read_csv(file)
    blocks: dict[tuple[int, int, int], set[tuple[int, int]]] = {}
    last = FULL - 1
    for zone in (29, 30, 31):
        to_zone = Transformer.from_crs(4326, 32600 + zone, always_xy=True)
        x, y = to_zone.transform(sites.lon, sites.lat)
        own = np.abs(sites.lon - (zone * 6 - 183)) < 3.6  # products reach into the next zone
        for n in np.flatnonzero(own):
            for i in {int(x[n] // 1e5), int((x[n] - 9800) // 1e5)}:
                for j in {int(y[n] // 1e5), int((y[n] + 9800) // 1e5)}:
                    c = round((x[n] - i * 1e5) / 10) - TILE_PX // 2
                    r = round(((j + 1) * 1e5 - y[n]) / 10) - TILE_PX // 2
                    rows = range(max(r, 0) // block, min(r + TILE_PX - 1, last) // block + 1)
                    columns = range(max(c, 0) // block, min(c + TILE_PX - 1, last) // block + 1)
                    found = blocks.setdefault((zone, i, j), set())
                    found |= {(a, b) for a in rows for b in columns}
    return sum(map(len, blocks.values())), sum(map(bool, blocks.values()))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--scale", type=float, default=1.0, help="side of a tile: 1 is 10,980 px")
    parser.add_argument("--block", type=int, default=512, help="side of the blocks of the files")
    parser.add_argument("--only", default="tiles,area,kill,uk")
    parser.add_argument(
        "--no-today", dest="today", action="store_false", help="without whole products"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", default="")
    for hidden in ("--way", "--url", "--local"):
        parser.add_argument(hidden, default="", help=argparse.SUPPRESS)
    for hidden in ("--serve", "--sites", "--area"):
        parser.add_argument(hidden, type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        one_way(args)
        return
    if args.serve:
        serve(Path(args.folder), round(FULL * args.scale) // 4 * 4, args.serve, True)
        return
    bench = Bench(args)
    try:
        catalogue = bench.folder / "catalogue"
        if not (catalogue / "catalog.json").is_file():
            catalogue.mkdir(parents=True, exist_ok=True)
            made = time.process_time()
            make_catalogue(catalogue, bench.side, args.block)
            print(f"catalogue of {bench.side} px made in {time.process_time() - made:.0f} s of CPU")
        bench.start()
        compare(bench)
        if "uk" in args.only.split(",") and bench.rates:
            united_kingdom(args.block, bench.rates)
    finally:
        if bench.process is not None:
            bench.process.terminate()
        if not args.folder:
            shutil.rmtree(bench.folder, ignore_errors=True)
    for what, met in bench.targets:
        print(f"{'met   ' if met else 'MISSED'} {what}")


if __name__ == "__main__":
    main()
