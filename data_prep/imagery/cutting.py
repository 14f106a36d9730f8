"""Cut tiles out of scenes: each stored block is decoded once, whatever the CRS of the tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import rasterio

from butterfly_sdm.core.arrays import PackedArray, new_array, open_array
from butterfly_sdm.core.files import read_json, write_json
from butterfly_sdm.errors import ArtefactError, MissingFileError
from butterfly_sdm.imagery.products import Piece, metres_per_unit
from butterfly_sdm.imagery.scene import Scene
from butterfly_sdm.progress import Progress, silent
from data_prep.imagery.blocks import BlockRead, copy_blocks, merge, plan_reads, units
from data_prep.imagery.tile_grids import TileGrid, on_scene_pixels
from data_prep.imagery.warping import source_coordinates, warp_patch, warp_with_gdal

SCRATCH_BYTES = 1_000_000_000
UNIT_PIXELS = 20_000_000
CACHE_BYTES = 64_000_000
WARP_TILES = 100  # tiles of one unit of warping: about 0.3 s


@dataclass
class CutReport:
    """What a cut did: blocks decoded, and units of work done now or found done."""

    blocks: int = 0
    units_done: int = 0
    units_found: int = 0


@dataclass
class Journal:
    """
    Remember finished units of work on disk, so that a cut that was killed goes on where it was.
    """

    path: Path | None
    array: np.ndarray
    every_s: float = 5.0
    done: set[str] = field(default_factory=set)
    _saved: float = field(default_factory=monotonic)

    def __post_init__(self) -> None:
        if self.path is not None and self.path.is_file():
            try:
                self.done = set(read_json(self.path))
            except (ArtefactError, MissingFileError, TypeError):
                self.done = set()

    def add(self, unit: str) -> None:
        """Note that a unit is done; now and then, write it down."""
        self.done.add(unit)
        if monotonic() - self._saved > self.every_s:
            self.save()

    def save(self) -> None:
        """Write down what is done."""
        if self.path is not None:
            if isinstance(self.array, np.memmap):
                self.array.flush()  # a unit counts as done only when its pixels are safe
            write_json(self.path, sorted(self.done))
            self._saved = monotonic()


def cut_tiles(
    scene: Scene,
    grid: TileGrid,
    out: str | Path,
    *,
    resampling: str = "bilinear",
    executor: Executor | None = None,
    workers: int = 2,
    progress: Progress = silent,
    report: CutReport | None = None,
) -> np.ndarray:
    """
    Cut a tile for every place of a grid into one packed array on disk.

    Where pieces of a mosaic overlap, the first (by name) with a measurement counts. Tiles made of
    whole pixels of the scene are copied bit by bit. An interrupted cut goes on where it was when it
    is called again with the same arguments.

    Parameters
    ----------
    scene
        Source; its bands, in its order, become the bands of the tiles.
    grid
        Where the tiles lie, see :func:`data_prep.imagery.tile_grids.tile_grid`.
    out
        ``.npy`` file of shape (tiles, bands, size, size), uint16; written in place, beside it
        ``NAME.journal`` while it grows.
    resampling
        nearest, bilinear or cubic; for tiles that are not made of whole pixels of the scene.
    executor
        Runs the units of work (each at least about 0.2 s, and repeatable); None for ``workers``
        threads. Workers of another machine need to see ``out`` under the same path.
    report
        Filled with counts of what was done.

    Returns
    -------
    ndarray of float, shape (tiles,)
        Share of the pixels of each tile that are measured in every band.

    Raises
    ------
    RasterError
        A file cannot be read.
    """
    out, report = Path(out), report or CutReport()
    shape = (len(grid), len(scene.bands), grid.size_px, grid.size_px)
    journal_path = out.with_name(out.name + ".journal")
    array = reopen(out, shape) if journal_path.is_file() else None
    if array is None:
        journal_path.unlink(missing_ok=True)
        array = new_array(out, shape, np.uint16)
        if scene.nodata:
            array[:] = scene.nodata
    journal = Journal(journal_path, array)
    journal.save()
    packed = PackedArray(out)
    try:
        with threads(workers, executor) as pool:
            _cut(scene, grid, packed, journal, resampling, pool, progress, report)
            valid = _valid_fractions(packed, shape, scene.nodata, pool)
    finally:
        journal.save()
    journal_path.unlink()
    return valid


@contextmanager
def threads(workers: int, executor: Executor | None = None) -> Iterator[Executor]:
    """
    Yield ``executor``, or else a pool of threads; when the block ends early, work not yet begun is
    dropped.
    """
    if executor is not None:
        yield executor
        return
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _cut(
    scene: Scene,
    grid: TileGrid,
    out: PackedArray,
    journal: Journal,
    resampling: str,
    executor: Executor,
    progress: Progress,
    report: CutReport,
) -> None:
    exact = on_scene_pixels(scene, grid.crs, grid.resolution)
    stages: list[Iterator[Stage]] = []
    for number, piece in reversed(
        list(enumerate(scene.pieces))
    ):  # the first piece last, over the others
        tiles = tiles_on(grid, piece)
        if not len(tiles):
            continue
        if exact and _one_grid(piece) and scene.offset_of(piece.layers[0]) is not None:
            stages.append(_copy_stages(scene, piece, number, grid, tiles, out, not stages))
        elif _similar(grid, piece):
            stages.append(
                _warp_stages(
                    scene, piece, number, grid, tiles, out, resampling, journal.done, not stages
                )
            )
        else:
            stages.append(_gdal_stages(scene, piece, number, grid, tiles, out, resampling))
    for index, stage in enumerate(stage for piece_stages in stages for stage in piece_stages):
        todo = [unit for unit in stage.work if not stage.lasting or unit[0] not in journal.done]
        finished = len(stage.work) - len(todo)
        report.units_found += finished
        label = stage.label if len(scene.pieces) == 1 else f"{stage.label}, step {index + 1}"
        progress(label, finished, len(stage.work))
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES) if stage.once else nullcontext():
            for name, blocks in run_units(executor, todo):
                report.blocks += blocks
                report.units_done += 1
                if stage.lasting:
                    journal.add(name)
                finished += 1
                progress(label, finished, len(stage.work))


Unit = tuple[str, Callable[..., Any], tuple[Any, ...]]


@dataclass(frozen=True)
class Stage:
    """
    Units of work that may run in any order.

    Attributes
    ----------
    lasting
        Their result stays when the process is killed.
    once
        They decode every block once, so GDAL need not keep decoded blocks (by default it fills 5 %
        of the memory with them).
    """

    label: str
    work: list[Unit]
    lasting: bool = True
    once: bool = True


def run_units(
    executor: Executor, work: Iterable[Unit], ahead: int = 8
) -> Iterator[tuple[str, Any]]:
    """
    Run units of work and yield name and result as they end, few at a time so that interrupting
    stops soon.

    Results come in any order. The first error is raised after the units already begun have ended.
    """
    waiting = iter(work)
    running: dict[Future[Any], str] = {}
    try:
        for name, call, arguments in waiting:
            running[executor.submit(call, *arguments)] = name
            if len(running) >= ahead:
                break
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                name = running.pop(future)
                result = future.result()
                following = next(waiting, None)
                if following is not None:
                    running[executor.submit(following[1], *following[2])] = following[0]
                yield name, result
    finally:
        for future in running:
            future.cancel()
        wait(running)


def tiles_on(grid: TileGrid, piece: Piece) -> np.ndarray:
    """Return the numbers of the tiles that touch a piece."""
    layer = piece.layers[0]
    boxes = grid.bounds_in(layer.crs)
    corners = np.array(
        [layer.transform * (x, y) for x in (0, layer.width) for y in (0, layer.height)]
    )
    (left, bottom), (right, top) = corners.min(axis=0), corners.max(axis=0)
    touches = (
        (boxes[:, 0] < right) & (boxes[:, 2] > left) & (boxes[:, 1] < top) & (boxes[:, 3] > bottom)
    )
    return np.flatnonzero(touches & np.isfinite(boxes).all(axis=1))


def _one_grid(piece: Piece) -> bool:
    first = piece.layers[0]
    return all(
        (layer.crs, layer.transform, layer.width, layer.height)
        == (first.crs, first.transform, first.width, first.height)
        for layer in piece.layers
    )


def _similar(grid: TileGrid, piece: Piece) -> bool:
    """
    Return whether the lattice warp serves: one grid for all layers, and pixels not much finer than
    the tile's.
    """
    first = piece.layers[0]
    own = np.sqrt(abs(first.transform.determinant)) * metres_per_unit(first.crs, piece.name)
    return _one_grid(piece) and own >= 0.95 * grid.resolution_m and not first.crs.is_geographic


def _copy_stages(
    scene: Scene,
    piece: Piece,
    number: int,
    grid: TileGrid,
    tiles: np.ndarray,
    out: PackedArray,
    fresh: bool,
) -> Iterator[Stage]:
    origin = scene.offset_of(piece.layers[0])
    assert origin is not None
    columns = (
        np.round((grid.left[tiles] - scene.transform.c) / grid.resolution).astype(np.int64)
        - origin[0]
    )
    rows = (
        np.round((scene.transform.f - grid.top[tiles]) / grid.resolution).astype(np.int64)
        - origin[1]
    )
    yield Stage(
        "cutting tiles",
        _copies(
            scene, piece, str(number), rows, columns, grid.size_px, grid.size_px, tiles, out, fresh
        ),
    )


def _copies(
    scene: Scene,
    piece: Piece,
    prefix: str,
    rows: np.ndarray,
    columns: np.ndarray,
    height: int,
    width: int,
    targets: np.ndarray,
    out: PackedArray,
    fresh: bool,
) -> list[Unit]:
    reads = plan_reads(piece.layers[0], rows, columns, height, width)
    return [
        (
            f"{prefix}/{index}",
            _copy_unit,
            (scene, piece, *_local(unit, rows, columns, targets), out, fresh),
        )
        for index, unit in enumerate(units(reads, 2 * len(scene.bands)))
    ]


def _local(
    unit: Sequence[BlockRead], rows: np.ndarray, columns: np.ndarray, targets: np.ndarray
) -> tuple[list[BlockRead], np.ndarray, np.ndarray, np.ndarray]:
    """
    Reduce the arrays of a unit to the windows it serves, so that it can travel to another machine.
    """
    used = np.unique(np.concatenate([read.windows for read in unit]))
    reads = [
        BlockRead(
            read.row, read.column, read.height, read.width, np.searchsorted(used, read.windows)
        )
        for read in unit
    ]
    return reads, rows[used], columns[used], targets[used]


def _copy_unit(
    scene: Scene,
    piece: Piece,
    reads: list[BlockRead],
    rows: np.ndarray,
    columns: np.ndarray,
    targets: np.ndarray,
    out: PackedArray,
    fresh: bool,
) -> int:
    array = out.open()
    blocks = copy_blocks(scene, piece, reads, rows, columns, array, targets, fresh=fresh)
    out.written()
    return blocks


def _warp_stages(
    scene: Scene,
    piece: Piece,
    number: int,
    grid: TileGrid,
    tiles: np.ndarray,
    out: PackedArray,
    resampling: str,
    done: set[str],
    fresh: bool,
) -> Iterator[Stage]:
    """
    Cut the source pixels of each tile into a scratch array, block by block, then warp them tile by
    tile.
    """
    layer = piece.layers[0]
    node_columns, node_rows = source_coordinates(grid.take(tiles), layer)
    margin = 3  # cubic reaches two pixels beyond
    first_column = np.floor(node_columns.min(axis=(1, 2))).astype(np.int64) - margin
    first_row = np.floor(node_rows.min(axis=(1, 2))).astype(np.int64) - margin
    width = int((np.ceil(node_columns.max(axis=(1, 2))) - first_column).max()) + margin
    height = int((np.ceil(node_rows.max(axis=(1, 2))) - first_row).max()) + margin
    order = np.lexsort((first_column, first_row // layer.block[0]))
    batch = max(1, SCRATCH_BYTES // (2 * len(scene.bands) * width * height))
    path = out.path.with_name(f".{out.path.stem}.patches.npy")
    scratch = PackedArray(path)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        warps: list[Unit] = []
        for at in range(0, len(chosen), WARP_TILES):
            some = chosen[at : at + WARP_TILES]
            across = node_columns[some] - first_column[some, None, None]
            down = node_rows[some] - first_row[some, None, None]
            slots = np.arange(at, at + len(some))
            arguments = (
                scratch,
                slots,
                out,
                tiles[some],
                across,
                down,
                scene.nodata,
                resampling,
                fresh,
            )
            warps.append((f"{number}/{start + at}", _warp_unit, arguments))
        if all(name in done for name, _, _ in warps):
            continue
        shape = (len(chosen), len(scene.bands), height, width)
        array = new_array(path, shape, np.uint16)
        if scene.nodata:
            array[:] = scene.nodata
        del array
        scratch.close()
        rows, columns = first_row[chosen], first_column[chosen]
        slots = np.arange(len(chosen))
        copies = _copies(
            scene, piece, "scratch", rows, columns, height, width, slots, scratch, True
        )
        yield Stage("reading blocks", copies, lasting=False)
        yield Stage("warping tiles", warps)
    scratch.close()
    path.unlink(missing_ok=True)


def _warp_unit(
    scratch: PackedArray,
    slots: np.ndarray,
    out: PackedArray,
    targets: np.ndarray,
    node_columns: np.ndarray,
    node_rows: np.ndarray,
    nodata: int,
    resampling: str,
    fresh: bool,
) -> int:
    patches = scratch.open()
    array = out.open()
    size = array.shape[-1]
    with out.path.open("r+b", buffering=0) as file:
        for slot, target, across, down in zip(slots, targets, node_columns, node_rows, strict=True):
            values, measured = warp_patch(
                patches[slot], across, down, size, nodata=nodata, resampling=resampling
            )
            if (
                fresh or measured is None
            ):  # a whole tile: written at once it costs less than through the mapped pages
                file.seek(array.offset + int(target) * values.nbytes)
                file.write(np.ascontiguousarray(values).data)
            else:
                merge(array[target], values, measured, nodata)
    out.written()
    return 0


def _gdal_stages(
    scene: Scene,
    piece: Piece,
    number: int,
    grid: TileGrid,
    tiles: np.ndarray,
    out: PackedArray,
    resampling: str,
) -> Iterator[Stage]:
    parts = [(at, tiles[at : at + 20]) for at in range(0, len(tiles), 20)]
    work: list[Unit] = [
        (f"{number}/{at}", _gdal_unit, (scene, piece, grid.take(some), out, some, resampling))
        for at, some in parts
    ]
    yield Stage("warping tiles", work, once=False)


def _gdal_unit(
    scene: Scene,
    piece: Piece,
    grid: TileGrid,
    out: PackedArray,
    targets: np.ndarray,
    resampling: str,
) -> int:
    array = out.open()
    for tile, target in enumerate(targets):
        values, measured = warp_with_gdal(scene, piece, grid, tile, resampling=resampling)
        merge(array[target], values, measured, scene.nodata)
    out.written()
    return 0


def _valid_fractions(
    out: PackedArray, shape: tuple[int, ...], nodata: int, executor: Executor
) -> np.ndarray:
    step = max(1, UNIT_PIXELS // (shape[2] * shape[3]))
    work = [
        (str(at), _count_valid, (out, at, min(at + step, shape[0]), nodata))
        for at in range(0, shape[0], step)
    ]
    valid = np.zeros(shape[0])
    for at, counts in run_units(executor, work):
        valid[int(at) : int(at) + len(counts)] = counts
    return valid / (shape[2] * shape[3])


def _count_valid(out: PackedArray, start: int, stop: int, nodata: int) -> np.ndarray:
    array = out.open()
    return np.array([np.count_nonzero((tile != nodata).all(axis=0)) for tile in array[start:stop]])


def reopen(out: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Open the array of an interrupted cut, or None if it is not the one meant."""
    try:
        array = open_array(out)
    except (OSError, ValueError):
        return None
    return array if array.shape == shape and array.dtype == np.uint16 else None
