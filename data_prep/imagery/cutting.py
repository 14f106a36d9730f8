"""Cut tiles out of scenes: each stored block is decoded once, whatever the CRS of the tiles."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio

from butterfly_sdm.core.arrays import PackedArray, new_array, open_array
from butterfly_sdm.core.executor import in_order
from butterfly_sdm.errors import ArtefactError
from butterfly_sdm.imagery.composites.stacks import Stack
from butterfly_sdm.imagery.pixels import measured
from butterfly_sdm.imagery.products import Piece, metres_per_unit
from butterfly_sdm.imagery.scene import Scene
from butterfly_sdm.progress import Progress, silent
from data_prep.imagery.blocks import (
    BlockRead,
    Windows,
    bring_reads,
    copy_blocks,
    merge,
    plan_reads,
    shown_part,
    units,
)
from data_prep.imagery.ledger import AGAIN, Ledger, checksum_of
from data_prep.imagery.tile_grids import TileGrid, on_scene_pixels
from data_prep.imagery.warping import source_coordinates, warp_patch, warp_with_gdal

log = logging.getLogger("data_prep.build")

SCRATCH_BYTES = 1_000_000_000
UNIT_PIXELS = 20_000_000
CACHE_BYTES = 64_000_000
IN_FLIGHT = 8
WARP_TILES = 100  # tiles of one unit of warping: about 0.3 s


@dataclass
class CutReport:
    """What a cut did: blocks decoded, and units of work done now or found done."""

    blocks: int = 0
    units_done: int = 0
    units_found: int = 0


def cut_tiles(
    scene: Scene,
    grid: TileGrid,
    out: str | Path,
    *,
    resampling: str = "bilinear",
    executor: Executor | None = None,
    progress: Progress = silent,
    report: CutReport | None = None,
    keep_journal: bool = False,
) -> np.ndarray:
    """
    Cut a tile for every place of a grid into one packed array on disk.

    Its numbers are those of the scene, in the type of the scene.

    Where pieces of a mosaic overlap, the first (by name) with a measurement counts. Tiles made of
    whole pixels of the scene are copied bit by bit. An interrupted cut goes on where it was when it
    is called again with the same arguments; tiles that were damaged meanwhile are cut again, with a
    warning.

    Parameters
    ----------
    scene
        Source; its bands, in its order, become the bands of the tiles.
    grid
        Where the tiles lie, see :func:`data_prep.imagery.tile_grids.tile_grid`.
    out
        ``.npy`` file of shape (tiles, bands, size, size), of the type of the scene; written in
        place, beside it ``NAME.done`` while it grows.
    resampling
        nearest, bilinear or cubic; for tiles that are not made of whole pixels of the scene.
    executor
        Runs the units of work (each at least about 0.2 s, and repeatable); None: this thread.
        Workers of another machine need to see ``out`` under the same path.
    report
        Filled with counts of what was done.
    keep_journal
        Leave ``NAME.done`` there, so that a later call finds all done and looks for damage.

    Returns
    -------
    ndarray of float, shape (tiles,)
        Share of the pixels of each tile that are measured in every band.

    Raises
    ------
    RasterError
        A file cannot be read.
    """
    report = report or CutReport()
    shape = (len(grid), len(scene.bands), grid.size_px, grid.size_px)
    try:
        with growing_array(Path(out), shape, scene.dtype, scene.nodata) as ledger:
            cut = _Cut(scene, grid, PackedArray(Path(out)), resampling)
            unlike = _unlike(ledger, scene.nodata)
            # the pages that units have just filled: in a mapping of its own each would be looked up
            ledger.array = cut.out.open()
            _cut_pieces(cut, ledger, unlike, executor, progress, report)
            _cut_again(cut, ledger, executor)
            valid = _valid_fractions(cut.out, shape, scene.nodata, executor)
    finally:
        if scene.supply is not None:
            scene.supply.close()
    if not keep_journal:
        ledger.journal.path.unlink()
    return valid


def _cut_pieces(
    cut: _Cut,
    ledger: Ledger,
    unlike: set[int],
    executor: Executor | None,
    progress: Progress,
    report: CutReport,
) -> None:
    """
    Do all units that are not done yet.

    Parameters
    ----------
    unlike
        Tiles that are not as an earlier process left them.
    """
    scene = cut.scene
    for step, jobs in enumerate(_all_jobs(cut, ledger.done), start=1):
        if jobs.lasting and jobs.todo(ledger.done):
            # an earlier process was killed among these: no unit of a later piece was begun
            _go_on(cut, jobs, ledger, unlike)
            unlike = set()  # from here on every tile is what this process writes
        label = jobs.label if len(scene.pieces) == 1 else f"{jobs.label}, step {step}"
        _run(jobs, label, ledger, executor, progress, report)
        if jobs.last is not None and scene.supply is not None:
            ledger.save()  # before what it would be made from again goes
            scene.supply.forget(layer.path for layer in jobs.last.files)
    _doubt(ledger, unlike, damaged=len(unlike))


def _cut_again(cut: _Cut, ledger: Ledger, executor: Executor | None) -> None:
    """Cut tiles anew, of all pieces, that nobody vouches for."""
    if not ledger.doubted:
        return
    tiles = np.array(sorted(map(int, ledger.doubted)))
    for tile in tiles:
        ledger.array[tile] = cut.scene.nodata
    for jobs in _all_jobs(replace(cut, only=tiles), set()):
        for _ in _results(jobs, jobs.work, executor):
            pass
        if jobs.last is not None and cut.scene.supply is not None:
            cut.scene.supply.forget(layer.path for layer in jobs.last.files)
    ledger.add(AGAIN, map(str, tiles.tolist()))


def _unlike(ledger: Ledger, nodata: float) -> set[int]:
    """Return the tiles that are not as the journal tells: none has been written if it is empty."""
    if not ledger.done:
        return set()
    untouched = checksum_of(np.full(ledger.array.shape[1:], nodata, ledger.array.dtype))
    unsummed = set(map(str, range(len(ledger.array)))) - ledger.sums.keys()
    written = {place for place in unsummed if ledger.checksum(place) != untouched}
    return {int(place) for place in (ledger.unlike() | written) - ledger.doubted}


def _go_on(cut: _Cut, jobs: Jobs, ledger: Ledger, unlike: set[int]) -> None:
    """
    Tell, where an earlier process was killed, what it was about to write from what was damaged.

    A tile on which some units are done and others not has no checksum: it is cut again in the end.
    So is one that was damaged. One that the killed process had begun to write first is emptied.
    """
    todo = jobs.todo(ledger.done)
    ahead = _tiles(todo)
    shared = ahead & _tiles(job for job in jobs.work if job.name in ledger.done)
    begun = (unlike & ahead) - shared
    empty = {tile for tile in begun if str(tile) not in ledger.sums}
    for tile in sorted(empty):
        ledger.array[tile] = cut.scene.nodata
    _doubt(ledger, (unlike | shared) - empty, damaged=len(unlike - ahead))


def _doubt(ledger: Ledger, tiles: set[int], *, damaged: int) -> None:
    if damaged:
        log.warning(
            "%d of %d tiles in %s were damaged since they were cut; they are cut again.",
            damaged,
            len(ledger.array),
            ledger.journal.path.with_suffix(""),
        )
    ledger.doubt(str(tile) for tile in tiles)


def _tiles(jobs: Iterable[Job]) -> set[int]:
    return {tile for job in jobs for tile in job.tiles.tolist()}


@contextmanager
def growing_array(
    path: Path, shape: tuple[int, ...], dtype: str, nodata: float
) -> Iterator[Ledger]:
    """
    Yield the ledger of what is done in a packed array on disk, ``NAME.done`` beside it.

    Those of an interrupted run are continued; otherwise the array is new, with nodata everywhere.
    """
    done = path.with_name(path.name + ".done")
    ledger = _reopen(path, done, shape, dtype) if done.is_file() else None
    if ledger is None:
        done.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        array = new_array(path, shape, dtype)
        if nodata:
            array[:] = nodata
        ledger = Ledger(done, array)
    ledger.save()
    try:
        yield ledger
    finally:
        ledger.save()


def _reopen(path: Path, done: Path, shape: tuple[int, ...], dtype: str) -> Ledger | None:
    """
    Open what an interrupted run has left; None if it is not the array that is meant, nothing is
    done in it, or the journal was changed.
    """
    try:
        array = open_array(path)
    except (OSError, ValueError):
        return None
    if array.shape != shape or array.dtype != dtype:
        return None
    try:
        ledger = Ledger(done, array)
    except ArtefactError as error:
        log.warning("%s What it speaks of is made again.", error)
        return None
    return ledger if ledger.done else None


@dataclass(frozen=True)
class _Cut:
    """
    What is cut, out of what, into what; of the tiles only some, if they are named: those of the
    others decide how large the patches of a warp are, down to its last bit.
    """

    scene: Scene
    grid: TileGrid
    out: PackedArray
    resampling: str
    only: np.ndarray | None = None

    def wanted(self, tiles: np.ndarray) -> np.ndarray:
        """Return which of some tiles are to be cut."""
        whole = np.ones(len(tiles), dtype=bool)
        return whole if self.only is None else np.isin(tiles, self.only)


class Job(NamedTuple):
    """
    A unit of work: its key, what does it and returns the number of blocks decoded, and the tiles it
    writes to.
    """

    name: str
    work: partial[int]
    tiles: np.ndarray


@dataclass(frozen=True)
class Jobs:
    """
    Units of work that may run in any order.

    Attributes
    ----------
    lasting
        Their result stays when the process is killed.
    once
        They decode every block once, so GDAL need not keep decoded blocks (by default it fills 5 %
        of the memory with them).
    last
        A piece that is not read any more after them.
    ahead
        Brings what a unit needs of remote files; the units after one are begun while it runs.
    """

    label: str
    work: list[Job]
    lasting: bool = True
    once: bool = True
    last: Piece | None = None
    ahead: Callable[[Job], object] | None = None

    def todo(self, done: set[str]) -> list[Job]:
        """Return the units that have to be done, given the keys of those that are."""
        return [job for job in self.work if not self.lasting or job.name not in done]


def _all_jobs(cut: _Cut, done: set[str]) -> Iterator[Jobs]:
    scene, grid = cut.scene, cut.grid
    exact = on_scene_pixels(scene, grid.crs, grid.resolution)
    fresh = True
    # the first piece last, over the others
    for number, piece in reversed(list(enumerate(scene.pieces))):
        tiles = tiles_on(grid, piece)
        if not len(tiles):
            continue
        wanted = tiles[cut.wanted(tiles)]
        if exact and _one_grid(piece) and scene.offset_of(piece.layers[0]) is not None:
            yield _copy_jobs(cut, piece, number, wanted, fresh)
        elif _similar(grid, piece):
            yield from _warp_jobs(cut, piece, number, tiles, fresh, done)
        else:
            yield _gdal_jobs(cut, piece, number, wanted)
        fresh = False


def _run(
    jobs: Jobs,
    label: str,
    ledger: Ledger,
    executor: Executor | None,
    progress: Progress,
    report: CutReport,
) -> None:
    todo = jobs.todo(ledger.done)
    finished = len(jobs.work) - len(todo)
    report.units_found += finished
    progress(label, finished, len(jobs.work))
    writers = Counter(tile for job in todo for tile in job.tiles.tolist())
    for job, blocks in zip(todo, _results(jobs, todo, executor), strict=True):
        report.blocks += blocks
        report.units_done += 1
        if jobs.lasting:
            tiles = job.tiles.tolist()
            writers.subtract(tiles)
            # whole, as far as this piece goes: nobody else is writing to it
            ledger.add(job.name, (str(tile) for tile in tiles if not writers[tile]))
        finished += 1
        progress(label, finished, len(jobs.work))


def _results(jobs: Jobs, todo: Sequence[Job], executor: Executor | None) -> Iterator[int]:
    """Do units; yield the number of blocks that each decoded, in their order."""
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES) if jobs.once else nullcontext():
        yield from in_order(_do, _ahead(todo, jobs), executor, in_flight=IN_FLIGHT)


def _ahead(todo: Sequence[Job], jobs: Jobs) -> Iterator[Job]:
    """Yield units as they are handed out, and have those after them brought meanwhile."""
    for unit in todo:
        if jobs.ahead is not None:
            jobs.ahead(unit)
        yield unit


def _do(unit: Job) -> int:
    return unit.work()


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
    return all(layer.grid == piece.layers[0].grid for layer in piece.layers)


def _similar(grid: TileGrid, piece: Piece) -> bool:
    """
    Return whether the lattice warp serves: one grid for all layers, and pixels not much finer than
    the tile's.
    """
    first = piece.layers[0]
    own = np.sqrt(abs(first.transform.determinant)) * metres_per_unit(first.crs, piece.name)
    return _one_grid(piece) and own >= 0.95 * grid.resolution_m and not first.crs.is_geographic


def _copy_jobs(cut: _Cut, piece: Piece, number: int, tiles: np.ndarray, fresh: bool) -> Jobs:
    scene, grid = cut.scene, cut.grid
    origin = scene.offset_of(piece.layers[0])
    assert origin is not None
    column = np.round((grid.left[tiles] - scene.transform.c) / grid.resolution)
    row = np.round((scene.transform.f - grid.top[tiles]) / grid.resolution)
    windows = Windows(row.astype(np.int64) - origin[1], column.astype(np.int64) - origin[0], tiles)
    shape = (grid.size_px, grid.size_px)
    work = _copies(scene, piece, str(number), windows, shape, cut.out, fresh)
    return Jobs("cutting tiles", work, last=piece, ahead=_bringing(scene))


def _bringing(scene: Scene) -> Callable[[Job], object] | None:
    """Return what begins to bring the blocks that a unit of copying reads; None: all are here."""
    supply = scene.supply
    if supply is None:
        return None

    def begin(unit: Job) -> None:
        supply.ahead(partial(bring_reads, *unit.work.args[:3]))

    return begin


def _copies(
    scene: Scene,
    piece: Piece,
    prefix: str,
    windows: Windows,
    shape: tuple[int, int],
    out: PackedArray,
    fresh: bool,
) -> list[Job]:
    reads = plan_reads(piece.layers[0], windows.rows, windows.columns, *shape)
    if isinstance(piece, Stack):
        reads = [shown_part(read, windows, shape) for read in reads]
    parts = [windows.of(unit) for unit in units(reads, _pixel_bytes(scene))]
    return [
        Job(
            f"{prefix}/{index}",
            partial(_copy_unit, scene, piece, unit, own, out, fresh),
            own.targets,
        )
        for index, (unit, own) in enumerate(parts)
    ]


def _pixel_bytes(scene: Scene) -> int:
    return int(np.dtype(scene.dtype).itemsize) * len(scene.bands)


def _copy_unit(
    scene: Scene,
    piece: Piece,
    reads: Sequence[BlockRead],
    windows: Windows,
    out: PackedArray,
    fresh: bool,
) -> int:
    blocks = copy_blocks(scene, piece, reads, windows, out.open(), fresh=fresh)
    out.written()
    return blocks


def _warp_jobs(
    cut: _Cut, piece: Piece, number: int, tiles: np.ndarray, fresh: bool, done: set[str]
) -> Iterator[Jobs]:
    """
    Cut the source pixels of each tile into a scratch array, block by block, then warp them tile by
    tile.
    """
    scene, layer = cut.scene, piece.layers[0]
    node_columns, node_rows = source_coordinates(cut.grid.take(tiles), layer)
    margin = 3  # cubic reaches two pixels beyond
    first_column = np.floor(node_columns.min(axis=(1, 2))).astype(np.int64) - margin
    first_row = np.floor(node_rows.min(axis=(1, 2))).astype(np.int64) - margin
    width = int((np.ceil(node_columns.max(axis=(1, 2))) - first_column).max()) + margin
    height = int((np.ceil(node_rows.max(axis=(1, 2))) - first_row).max()) + margin
    order = np.lexsort((first_column, first_row // layer.block[0]))
    order = order[cut.wanted(tiles[order])]
    batch = max(1, SCRATCH_BYTES // (_pixel_bytes(scene) * width * height))
    scratch = PackedArray(cut.out.path.with_name(f".{cut.out.path.stem}.patches.npy"))
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        warps: list[Job] = []
        for at in range(0, len(chosen), WARP_TILES):
            some = chosen[at : at + WARP_TILES]
            across = node_columns[some] - first_column[some, None, None]
            down = node_rows[some] - first_row[some, None, None]
            unit = partial(
                _warp_unit,
                scratch,
                at,
                cut.out,
                tiles[some],
                (across, down),
                nodata=scene.nodata,
                resampling=cut.resampling,
                fresh=fresh,
            )
            warps.append(Job(f"{number}/{start + at}", unit, tiles[some]))
        if all(job.name in done for job in warps):
            continue
        shape = (len(chosen), len(scene.bands), height, width)
        array = new_array(scratch.path, shape, scene.dtype)
        if scene.nodata:
            array[:] = scene.nodata
        del array
        scratch.close()
        windows = Windows(first_row[chosen], first_column[chosen], np.arange(len(chosen)))
        copies = _copies(scene, piece, "scratch", windows, (height, width), scratch, True)
        yield Jobs("reading blocks", copies, lasting=False, ahead=_bringing(scene))
        last = piece if start + batch >= len(order) else None
        yield Jobs("warping tiles", warps, last=last)
    scratch.close()
    scratch.path.unlink(missing_ok=True)


def _warp_unit(
    scratch: PackedArray,
    first: int,
    out: PackedArray,
    targets: np.ndarray,
    nodes: tuple[np.ndarray, np.ndarray],
    *,
    nodata: float,
    resampling: str,
    fresh: bool,
) -> int:
    patches = scratch.open()
    array = out.open()
    size = array.shape[-1]
    with out.path.open("r+b", buffering=0) as file:
        for slot, (target, across, down) in enumerate(zip(targets, *nodes, strict=True), first):
            values, measured = warp_patch(
                patches[slot], across, down, size, nodata=nodata, resampling=resampling
            )
            # a whole tile: written at once it costs less than through the mapped pages
            if fresh or measured is None:
                file.seek(array.offset + int(target) * values.nbytes)
                file.write(np.ascontiguousarray(values).data)
            else:
                merge(array[target], values, measured, nodata)
    out.written()
    return 0


def _gdal_jobs(cut: _Cut, piece: Piece, number: int, tiles: np.ndarray) -> Jobs:
    parts = [(at, tiles[at : at + 20]) for at in range(0, len(tiles), 20)]
    work: list[Job] = [
        Job(
            f"{number}/{at}",
            partial(_gdal_unit, replace(cut, grid=cut.grid.take(some)), piece, some),
            some,
        )
        for at, some in parts
    ]
    return Jobs("warping tiles", work, once=False, last=piece)


def _gdal_unit(cut: _Cut, piece: Piece, targets: np.ndarray) -> int:
    array = cut.out.open()
    for tile, target in enumerate(targets):
        values, measured = warp_with_gdal(
            cut.scene, piece, cut.grid, tile, resampling=cut.resampling
        )
        merge(array[target], values, measured, cut.scene.nodata)
    cut.out.written()
    return 0


def _valid_fractions(
    out: PackedArray, shape: tuple[int, ...], nodata: float, executor: Executor | None
) -> np.ndarray:
    step = max(1, UNIT_PIXELS // (shape[2] * shape[3]))
    parts = [slice(at, at + step) for at in range(0, shape[0], step)]
    counts = list(in_order(partial(_count_valid, out, nodata), parts, executor))
    return np.concatenate([np.zeros(0), *counts]) / (shape[2] * shape[3])


def _count_valid(out: PackedArray, nodata: float, part: slice) -> np.ndarray:
    tiles = out.open()[part]
    return np.array([np.count_nonzero(measured(tile, nodata).all(axis=0)) for tile in tiles])
