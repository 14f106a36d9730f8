"""
Windows out of a product, each stored block decoded once.

Windows around sites overlap and share blocks of the file; reading them one by one decodes a block
as often as it is needed. Here the blocks are walked instead: each is decoded once and its pixels
are copied into every window that shows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from rasterio.windows import Window

from butterfly_sdm.imagery.composites.stacks import Stack
from butterfly_sdm.imagery.piece_pixels import is_plain, read_counts, read_plain
from butterfly_sdm.imagery.pixels import measured as measured_in
from butterfly_sdm.imagery.products import Layer, Piece
from butterfly_sdm.imagery.scene import Scene
from butterfly_sdm.imagery.supply import bring

STRIP_ROWS = 256
# about 0.2 s of decoding: small against the whole, large against the cost of handing it out
UNIT_BYTES = 40_000_000


@dataclass(frozen=True)
class BlockRead:
    """A stretch of whole blocks of a file, and the windows that show some of it."""

    row: int
    column: int
    height: int
    width: int
    windows: np.ndarray


@dataclass(frozen=True)
class Windows:
    """
    Windows of a file: the first pixel of each in it (may be negative), and its row in an array.
    """

    rows: np.ndarray
    columns: np.ndarray
    targets: np.ndarray

    def of(self, unit: Sequence[BlockRead]) -> tuple[list[BlockRead], Windows]:
        """Return a unit and the windows it serves alone, so that it can travel elsewhere."""
        used = np.unique(np.concatenate([read.windows for read in unit]))
        reads = [replace(read, windows=np.searchsorted(used, read.windows)) for read in unit]
        return reads, Windows(self.rows[used], self.columns[used], self.targets[used])


def plan_reads(
    layer: Layer, rows: np.ndarray, columns: np.ndarray, height: int, width: int
) -> list[BlockRead]:
    """
    List the blocks that windows need, each once, in file order.

    Parameters
    ----------
    layer
        The file: its size and how it is stored.
    rows, columns
        (n,) first pixel of each window in the file; may be negative.
    height, width
        Size of the windows in pixels.
    """
    block_h, block_w = layer.block
    top, bottom = np.maximum(rows, 0), np.minimum(rows + height, layer.height)
    left, right = np.maximum(columns, 0), np.minimum(columns + width, layer.width)
    inside = np.flatnonzero((bottom > top) & (right > left))
    if not len(inside):
        return []
    first_row, last_row = top[inside] // block_h, (bottom[inside] - 1) // block_h
    first_column, last_column = left[inside] // block_w, (right[inside] - 1) // block_w
    starts = np.arange(0, layer.height, block_h)
    ends = np.minimum(starts + block_h, layer.height)
    if block_h < STRIP_ROWS and block_w >= layer.width:
        # Thin strips one by one cost more in calls than in decoding: join neighbours that are all
        # needed.
        group, first_strip, last_strip = _join(
            first_row, last_row, len(starts), max(1, STRIP_ROWS // block_h)
        )
        starts, ends = starts[first_strip], ends[last_strip]
        first_row, last_row = group[first_row], group[last_row]
    tall, wide = last_row - first_row + 1, last_column - first_column + 1
    window = np.repeat(np.arange(len(inside)), tall * wide)
    number = np.arange(len(window)) - np.repeat(np.cumsum(tall * wide) - tall * wide, tall * wide)
    row = first_row[window] + number // wide[window]
    column = first_column[window] + number % wide[window]
    order = np.lexsort((inside[window], column, row))
    row, column, window = row[order], column[order], inside[window[order]]
    edges = np.flatnonzero(np.r_[True, (np.diff(row) != 0) | (np.diff(column) != 0)])
    return [
        BlockRead(
            row=int(starts[row[edge]]),
            column=int(column[edge] * block_w),
            height=int(ends[row[edge]] - starts[row[edge]]),
            width=int(min((column[edge] + 1) * block_w, layer.width) - column[edge] * block_w),
            windows=windows,
        )
        for edge, windows in zip(edges, np.split(window, edges[1:]), strict=True)
    ]


def units(reads: Sequence[BlockRead], bytes_per_pixel: int) -> Iterator[list[BlockRead]]:
    """Group reads, in order, into units of work of about :data:`UNIT_BYTES`."""
    unit: list[BlockRead] = []
    size = 0
    for read in reads:
        unit.append(read)
        size += read.height * read.width * bytes_per_pixel
        if size >= UNIT_BYTES:
            yield unit
            unit, size = [], 0
    if unit:
        yield unit


def copy_blocks(
    scene: Scene,
    piece: Piece,
    reads: Sequence[BlockRead],
    windows: Windows,
    out: np.ndarray,
    *,
    fresh: bool,
) -> int:
    """
    Decode blocks and copy them into the windows that show them.

    Parameters
    ----------
    scene, piece
        What to read; all layers of the piece share one grid.
    reads
        Blocks, from :func:`plan_reads`.
    windows
        Of the files of the piece, with their rows in ``out``.
    out
        (m, bands, height, width) of the type of the scene, filled in place; its bands.
    fresh
        Nothing but nodata has been written to ``out`` before, so nothing need be compared.

    Returns
    -------
    int
        Blocks decoded.
    """
    plain = fresh and is_plain(scene, piece) and not (scene.cloudy and piece.mask)
    stack = piece if isinstance(piece, Stack) else None
    bring_reads(scene, piece, reads)
    out = np.asarray(out)  # slices of a memory map are slow to make
    height, width = out.shape[2:]
    flat = np.empty(0, scene.dtype)
    for read in reads:
        shape = (len(scene.bands), read.height, read.width)
        if flat.size < np.prod(shape):
            # one for all blocks: fresh pages cost as much as decoding
            flat = np.empty(np.prod(shape), scene.dtype)
        buffer = flat[: np.prod(shape)].reshape(shape)
        window = Window(read.column, read.row, read.width, read.height)
        if stack is not None:
            measured = stack.fill(scene, window, buffer)
        elif plain:
            read_plain(scene, piece, window, buffer)
            measured = None
        else:
            measured = read_counts(scene, piece, window, buffer)
        for number in read.windows:
            # the window's corner in the block
            r, c = windows.rows[number] - read.row, windows.columns[number] - read.column
            r0, r1 = max(r, 0), min(r + height, read.height)
            c0, c1 = max(c, 0), min(c + width, read.width)
            target = out[windows.targets[number], :, r0 - r : r1 - r, c0 - c : c1 - c]
            if measured is None or fresh:
                target[:] = buffer[:, r0:r1, c0:c1]
            else:
                merge(target, buffer[:, r0:r1, c0:c1], measured[r0:r1, c0:c1], scene.nodata)
    return len(reads)


def shown_part(read: BlockRead, windows: Windows, shape: tuple[int, int]) -> BlockRead:
    """
    Cut a read to the box that windows of a shape show: what nobody sees need not be composed.
    """
    rows, columns = windows.rows[read.windows], windows.columns[read.windows]
    top, left = max(read.row, int(rows.min())), max(read.column, int(columns.min()))
    bottom = min(read.row + read.height, int(rows.max()) + shape[0])
    right = min(read.column + read.width, int(columns.max()) + shape[1])
    return replace(read, row=top, column=left, height=bottom - top, width=right - left)


def bring_reads(scene: Scene, piece: Piece, reads: Sequence[BlockRead]) -> None:
    """
    Bring what reads of a piece need of remote files, all at once.

    Raises
    ------
    SourceError
        It could not be fetched.
    """
    if scene.supply is not None:
        grid = piece.layers[0].grid
        windows = [Window(read.column, read.row, read.width, read.height) for read in reads]
        bring(scene, [(piece, grid, window) for window in windows])


def merge(target: np.ndarray, values: np.ndarray, whole: np.ndarray, nodata: float) -> None:
    """
    Write the pixels of a piece over those of pieces of lower priority.

    A pixel measured in every band (``whole``) wins; one measured in some bands only takes the place
    of pixels that are not whole either.
    """
    some = measured_in(values, nodata).any(axis=0)
    before = measured_in(target, nodata).all(axis=0)
    np.copyto(target, values, where=whole | (some & ~before))


def _join(
    first: np.ndarray, last: np.ndarray, count: int, longest: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Join needed strips into runs of at most ``longest``: the run of each strip, and the first and
    last strip of each run.
    """
    change = np.zeros(count + 1, dtype=np.int64)
    np.add.at(change, first, 1)
    np.add.at(change, last + 1, -1)
    needed = np.cumsum(change[:-1]) > 0
    run_start = np.flatnonzero(needed & ~np.r_[False, needed[:-1]])
    run_end = np.flatnonzero(needed & ~np.r_[needed[1:], False])
    firsts = np.concatenate(
        [np.arange(a, b + 1, longest) for a, b in zip(run_start, run_end, strict=True)]
    )
    lasts = np.concatenate(
        [
            np.minimum(np.arange(a, b + 1, longest) + longest - 1, b)
            for a, b in zip(run_start, run_end, strict=True)
        ]
    )
    group = np.searchsorted(firsts, np.arange(count), side="right") - 1
    return group, firsts, lasts
