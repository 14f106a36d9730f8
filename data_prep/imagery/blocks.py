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

from butterfly_sdm.imagery.products import Layer, Piece, reading_pixels
from butterfly_sdm.imagery.scene import Scene

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
        (m, bands, height, width) uint16, filled in place; bands as ``scene.bands``.
    fresh
        Nothing but nodata has been written to ``out`` before, so nothing need be compared.

    Returns
    -------
    int
        Blocks decoded.
    """
    plain = fresh and piece.offset == scene.offset and piece.scale == scene.scale
    plain = plain and all(
        layer.dtype == "uint16" and layer.nodata == scene.nodata and not layer.has_mask
        for layer in piece.layers
    )
    plain = plain and not (scene.cloudy and piece.mask)
    out = np.asarray(out)  # slices of a memory map are slow to make
    height, width = out.shape[2:]
    buffer: np.ndarray | None = None
    for read in reads:
        shape = (len(scene.bands), read.height, read.width)
        if buffer is None or buffer.shape != shape:
            # one for all blocks: fresh pages cost as much as decoding
            buffer = np.empty(shape, np.uint16)
        window = Window(read.column, read.row, read.width, read.height)
        if plain:
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
            if measured is None:
                target[:] = buffer[:, r0:r1, c0:c1]
            else:
                merge(target, buffer[:, r0:r1, c0:c1], measured[r0:r1, c0:c1], scene.nodata)
    return len(reads)


def merge(target: np.ndarray, values: np.ndarray, measured: np.ndarray, nodata: int) -> None:
    """
    Write the pixels of a piece over those of pieces of lower priority.

    A pixel measured in every band wins; one measured in some bands only takes the place of pixels
    that are not whole either.
    """
    some = (values != nodata).any(axis=0)
    whole = (target != nodata).all(axis=0)
    np.copyto(target, values, where=measured | (some & ~whole))


def read_plain(scene: Scene, piece: Piece, window: Window, out: np.ndarray) -> None:
    """Read stored values of all bands of the scene into (bands, h, w)."""
    for layer in piece.layers:
        slots = layer.slots(scene.bands)
        if not slots:
            continue
        source = scene.handle(layer)
        with reading_pixels(layer.path):
            if list(slots) == list(range(out.shape[0])):
                source.read(list(slots.values()), window=window, out=out)
            else:
                for slot, index in slots.items():
                    source.read(index, window=window, out=out[slot])


def read_counts(scene: Scene, piece: Piece, window: Window, out: np.ndarray) -> np.ndarray:
    """
    Read counts of all bands into (bands, h, w), nodata as the scene's; return where every band is
    measured.
    """
    measured = np.ones(out.shape[1:], dtype=bool)
    blank = np.ones(out.shape[1:], dtype=bool)
    first = piece.layers[0]
    clear = scene.clear(piece, first.grid, window)
    for layer in piece.layers:
        for slot, index in layer.slots(scene.bands).items():
            source = scene.handle(layer)
            with reading_pixels(layer.path):
                raw = source.read([index], window=window)
                own = source.dataset_mask(window=window) > 0 if layer.has_mask else None
            present = layer.measured(raw)
            blank &= (raw[0] == 0) if layer.border else False
            for mask in (own, clear):
                if mask is not None:
                    present &= mask
            counts = scene.counts(raw[0], piece, layer, present)
            out[slot] = np.where(present, counts, np.uint16(scene.nodata))
            measured &= present
    if blank.any():
        out[:, blank] = scene.nodata
        measured &= ~blank
    return measured


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
