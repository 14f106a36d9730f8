"""
Cloud-free composites: many dates of a scene become one picture, composed where it is read or
written as one raster.

Products of one date are put together first, so that the overlap of two products of one day counts
once; then every pixel is the median over the dates on which it was clear, or that of the least
cloudy date.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.windows import Window

from butterfly_sdm.core.arrays import PackedArray
from butterfly_sdm.core.executor import in_order
from butterfly_sdm.core.files import atomic_path
from butterfly_sdm.errors import RasterError
from butterfly_sdm.imagery.composites.median import median_of
from butterfly_sdm.imagery.composites.stacks import Stack
from butterfly_sdm.imagery.mosaic import bounds_in, mosaic_grid
from butterfly_sdm.imagery.options import CompositeOptions
from butterfly_sdm.imagery.products import Piece, reading_pixels
from butterfly_sdm.imagery.scene import Scene
from butterfly_sdm.progress import Progress, silent
from data_prep.imagery.cutting import growing_array
from data_prep.imagery.ledger import Ledger, place_of

log = logging.getLogger("data_prep.build")

BLOCK_PX = 512
MOST_PX = 1024
ROWS = 512  # of a scene classification, read at a time
SAME_GROUND = 0.2  # neighbouring products of Sentinel-2 share 9 % of their ground


@dataclass(frozen=True)
class Composite:
    """
    What a composite is made of.

    Attributes
    ----------
    path
        Tiled GeoTIFF with band names, nodata, scale and offset; None: it is composed where it is
        read.
    method
        median or least_cloudy.
    dates
        Days of which pictures went in, sorted.
    cloudiness
        Share of each date's pixels that is cloudy, in the order of ``dates``; empty where nothing
        asked for it, because every scene classification would be read as a whole.
    files
        What it was made of: files, each with the licence its product states, if any.
    """

    path: Path | None
    method: str
    dates: tuple[str, ...]
    cloudiness: tuple[float, ...] = ()
    files: Mapping[str, str | None] = field(default_factory=dict)


def select_dates(scene: Scene, options: CompositeOptions) -> Scene:
    """
    Keep the pieces of some years and of a season.

    Parameters
    ----------
    options
        First and last year and month, both included; months may pass the end of the year, such as
        (11, 2).

    Raises
    ------
    RasterError
        No piece is left, or one that has no date.
    """
    years, months = options.years, options.months
    if years is None and months is None:
        return scene
    kept = []
    for piece in scene.pieces:
        if not piece.date:
            raise RasterError(
                f"{piece.name} has no date, so no season can be chosen. Give products with dates "
                "in their names."
            )
        year, month = int(piece.date[:4]), int(piece.date[5:7])
        in_years = years is None or years[0] <= year <= years[1]
        if months is None:
            in_months = True
        elif months[0] <= months[1]:
            in_months = months[0] <= month <= months[1]
        else:
            in_months = month >= months[0] or month <= months[1]
        if in_years and in_months:
            kept.append(piece)
    if not kept:
        dates = sorted(piece.date for piece in scene.pieces)
        raise RasterError(
            f"No scene is of the years and months asked for; they are of {dates[0]} to {dates[-1]}."
        )
    return replace(scene, pieces=tuple(kept))


def compose_lazily(
    scene: Scene,
    options: CompositeOptions | None = None,
    *,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> tuple[Scene, Composite]:
    """
    Put the dates of a scene together without reading a pixel: its pieces become stacks, composed
    block by block where they are read.

    Products of one ground become one stack, so that products of neighbouring grids are composed
    each alone: where these overlap, the first with a value counts, as in any mosaic.

    Parameters
    ----------
    scene
        With several dates; pieces without a date count as one date each. Its classes ``cloudy`` are
        left out.
    options
        The method: the median of the clear dates per pixel and band, or the clear date with the
        smallest cloudy share, for which every scene classification is read.

    Raises
    ------
    RasterError, SourceError
        A file cannot be read or fetched.
    """
    method = (options or CompositeOptions()).method
    shares: dict[str, float] = {}
    days = _days(scene)
    if method == "least_cloudy":
        shares = _cloudiness(scene, days, executor, progress)
    stacks = [
        _stack(scene, [piece for group in ground for piece in group], len(ground), method, shares)
        for ground in _grounds(scene.pieces)
    ]
    order = sorted(stacks, key=lambda stack: stack.order)
    told = tuple(round(shares[day], 6) for day in sorted(days)) if shares else ()
    return replace(scene, pieces=tuple(order)), Composite(None, method, tuple(sorted(days)), told)


def _grounds(pieces: Sequence[Piece]) -> list[list[list[Piece]]]:
    """
    Group pieces by grid, and the groups by ground: those that mostly overlap and differ in days, or
    in nothing but where their pixels begin, show the same ground.
    """
    by_grid: dict[Any, list[Piece]] = {}
    for piece in pieces:
        crs, transform, width, height = piece.layers[0].grid
        by_grid.setdefault((crs.to_wkt(), tuple(transform), width, height), []).append(piece)
    groups = list(by_grid.values())
    if len(groups) < 2:
        return [groups]
    crs = pieces[0].layers[0].crs
    boxes = np.array([bounds_in(group[0].layers[0], crs) for group in groups])
    days = [{piece.date or piece.name for piece in group} for group in groups]
    ground = list(range(len(groups)))
    for i, j in combinations(range(len(groups)), 2):
        same_crs = groups[i][0].layers[0].crs == groups[j][0].layers[0].crs
        if _overlap(boxes[i], boxes[j]) > SAME_GROUND and (same_crs or not days[i] & days[j]):
            ground = [ground[i] if one == ground[j] else one for one in ground]
    return [
        [group for group, one in zip(groups, ground, strict=True) if one == number]
        for number in dict.fromkeys(ground)
    ]


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Return the share of the smaller of two boxes that lies in the other."""
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    areas = [np.prod(box[2:] - box[:2]) for box in (one, other)]
    return float(np.prod(np.maximum(high - low, 0)) / min(areas))


def _stack(
    scene: Scene, pieces: list[Piece], grids: int, method: str, shares: Mapping[str, float]
) -> Stack:
    first = min(pieces, key=lambda piece: piece.order)
    crs, transform, width, height = first.layers[0].grid
    turned = transform.b or transform.d or transform.a < 0 or transform.e > 0
    if grids > 1 or turned:
        crs, transform, width, height = mosaic_grid(pieces)
    blocks = Counter(layer.block for piece in pieces for layer in piece.layers)
    layer = replace(
        first.layers[0],
        path=f"the {method} of {first.name}",
        bands=scene.bands,
        indexes=tuple(range(1, len(scene.bands) + 1)),
        crs=crs,
        transform=transform,
        width=width,
        height=height,
        nodata=float(scene.nodata),
        dtype=scene.dtype,
        block=min(blocks, key=lambda block: (-blocks[block], block)),
        has_mask=True,
    )
    days = _days(replace(scene, pieces=tuple(pieces)))
    ordered = sorted(days, key=lambda day: (shares.get(day, 0.0), day))
    return Stack(
        name=first.name,
        layers=(layer,),
        nodata=float(scene.nodata),
        scale=scene.scale,
        offset=scene.offset,
        days=tuple(days[day] for day in ordered),
        method=method,
    )


def make_composite(
    scene: Scene,
    out: str | Path,
    options: CompositeOptions | None = None,
    *,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> Composite:
    """
    Make one raster of all dates of a scene; interrupted, it goes on where it was.

    Parameters
    ----------
    scene
        With several dates; pieces without a date count as one date each. Its classes ``cloudy`` are
        left out.
    out
        The GeoTIFF.
    options
        The method: the median of the clear dates per pixel and band, or the clear date with the
        smallest cloudy share.
    executor
        Runs the blocks; None: this thread.

    Raises
    ------
    RasterError
        A file cannot be read.
    """
    out = Path(out)
    method = (options or CompositeOptions()).method
    days = _days(scene)
    dates = sorted(days)
    shape = (len(scene.bands), scene.height, scene.width)
    work = out.with_name(f".{out.stem}.work.npy")
    with growing_array(work, shape, scene.dtype, scene.nodata) as ledger:
        shares = _cloudiness(scene, days, executor, progress)
        if method == "least_cloudy":
            days = {day: days[day] for day in sorted(days, key=lambda day: (shares[day], day))}
        parts = [replace(scene, pieces=pieces) for pieces in days.values()]
        windows = {f"{method}/{w.height}/{w.row_off}/{w.col_off}": w for w in _windows(scene)}
        done = ledger.done - _damaged(ledger)
        todo = [name for name in windows if name not in done]
        progress("composing dates", len(windows) - len(todo), len(windows))
        compose = partial(_compose, parts, method, PackedArray(work))
        results = in_order(compose, [windows[name] for name in todo], executor)
        finished = len(windows) - len(todo)
        for step, (name, _) in enumerate(zip(todo, results, strict=True), start=finished + 1):
            where = (slice(0, len(scene.bands)), *windows[name].toslices())
            ledger.add(name, [place_of(where)])
            progress("composing dates", step, len(windows))
    _write(scene, ledger.array, out, method, dates)
    work.unlink()
    ledger.journal.path.unlink()
    return Composite(out, method, tuple(dates), tuple(round(shares[day], 6) for day in dates))


def _damaged(ledger: Ledger) -> set[str]:
    """Return the units whose blocks are not as they were written, and warn of them."""
    units = {ledger.sums[place][1] for place in ledger.unlike()}
    if units:
        log.warning(
            "%d of %d blocks in %s were damaged since they were composed; they are made again.",
            len(units),
            len(ledger.done),
            ledger.journal.path.with_suffix(""),
        )
    return units


def _windows(scene: Scene) -> Iterator[Window]:
    tall, wide = window_shape(scene)
    for row in range(0, scene.height, tall):
        for column in range(0, scene.width, wide):
            yield Window(
                column, row, min(wide, scene.width - column), min(tall, scene.height - row)
            )


def window_shape(scene: Scene) -> tuple[int, int]:
    """
    Return height and width of the windows that are composed one by one, in pixels.

    They are as large as the blocks of most files, or strips of the whole width where the files are
    stored so: of a window that cuts through blocks, every block would be decoded again for its
    neighbours, of many dates at once.
    """
    layers = [layer for piece in scene.pieces for layer in piece.layers]
    blocks = Counter(
        (min(layer.block[0], layer.height), min(layer.block[1], layer.width), layer.width)
        for layer in layers
    )
    tall, wide, width = min(blocks, key=lambda block: (-blocks[block], block))
    if wide >= width and tall < BLOCK_PX:
        rows = max(1, BLOCK_PX * BLOCK_PX // scene.width)
        return max(tall, rows // tall * tall), scene.width
    return max(tall, BLOCK_PX) if tall <= MOST_PX else BLOCK_PX, max(
        wide, BLOCK_PX
    ) if wide <= MOST_PX else BLOCK_PX


def _days(scene: Scene) -> dict[str, tuple[Piece, ...]]:
    days: dict[str, list[Piece]] = {}
    for piece in scene.pieces:
        days.setdefault(piece.date or piece.name, []).append(piece)
    return {day: tuple(days[day]) for day in sorted(days)}


def _cloudiness(
    scene: Scene,
    days: dict[str, tuple[Piece, ...]],
    executor: Executor | None,
    progress: Progress,
) -> dict[str, float]:
    """
    Return the cloudy share of the pixels of each date, by its scene classification; 0 where it has
    none.
    """
    masked = [piece for piece in scene.pieces if piece.mask is not None]
    counts: dict[str, np.ndarray] = {}
    classes = in_order(partial(_class_counts, scene), masked, executor)
    for number, (piece, found) in enumerate(zip(masked, classes, strict=True), start=1):
        counts[piece.name] = found
        progress("looking for clouds", number, len(masked))
    cloudy = [number for number in scene.cloudy if number]
    shares = {}
    for day, pieces in days.items():
        total = sum((counts[piece.name] for piece in pieces if piece.name in counts), np.zeros(256))
        seen = total[1:].sum()  # class 0 is outside the swath
        shares[day] = float(total[cloudy].sum() / seen) if seen else 0.0
    return shares


def _class_counts(scene: Scene, piece: Piece) -> np.ndarray:
    mask = piece.mask
    assert mask is not None
    source, total = scene.handle(mask), np.zeros(256, np.int64)
    for row in range(0, mask.height, ROWS):  # all of them: a smaller picture would need overviews
        window = Window(0, row, mask.width, min(ROWS, mask.height - row))
        if scene.supply is not None:
            scene.supply.bring([(mask.path, window)])
            source = scene.handle(mask)
        with reading_pixels(mask.path):
            classes = source.read(mask.indexes[0], window=window)
        total += np.bincount(classes.ravel(), minlength=256)[:256]
    return total


def _compose(parts: Sequence[Scene], method: str, out: PackedArray, window: Window) -> None:
    target = out.open()[(slice(None), *window.toslices())]
    nodata = parts[0].nodata
    if method == "least_cloudy":
        best = np.full(target.shape, nodata, target.dtype)
        missing = np.ones(target.shape[1:], dtype=bool)
        for part in parts:
            values, valid = part.read(window)
            np.copyto(best, values, where=missing & valid)
            missing &= ~valid
            if not missing.any():
                break
        target[:] = best
    else:
        shown = [part.read(window) for part in parts]
        median_of([values for values, _ in shown], [valid for _, valid in shown], target, nodata)
    out.written()


def _write(scene: Scene, array: np.ndarray, out: Path, method: str, dates: Sequence[str]) -> None:
    profile = {
        "driver": "GTiff",
        "count": len(scene.bands),
        "height": scene.height,
        "width": scene.width,
        "dtype": scene.dtype,
        "crs": scene.crs,
        "transform": scene.transform,
        "nodata": scene.nodata,
        "tiled": True,
        "blockxsize": BLOCK_PX,
        "blockysize": BLOCK_PX,
        "compress": "deflate",
        "predictor": 3 if scene.dtype == "float32" else 2,
        "BIGTIFF": "IF_SAFER",
    }
    with atomic_path(out) as temporary, rasterio.open(temporary, "w", **profile) as target:
        target.descriptions = scene.bands
        target.scales = (scene.scale,) * len(scene.bands)
        target.offsets = (-scene.offset * scene.scale,) * len(scene.bands)
        target.update_tags(
            method=method, dates=" ".join(dates), cloudy_classes=" ".join(map(str, scene.cloudy))
        )
        for _, window in target.block_windows(1):
            target.write(array[(slice(None), *window.toslices())], window=window)
