"""Pixels of one piece on its own grid, read without moving any."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
from rasterio.enums import Interleaving
from rasterio.windows import Window

from butterfly_sdm.imagery.pixels import same
from butterfly_sdm.imagery.products import Layer, Piece, reading_pixels, whole_pixels
from butterfly_sdm.imagery.reader import Reader

# Blocks of a file from which on those it does not hold are asked for, some of them first: it takes
# microseconds for each, and smaller files are read whole in seconds.
MANY_BLOCKS, SOME_BLOCKS, MOST_BLOCKS = 64**2, 32**2, 1024**2
Stored = tuple[np.ndarray, np.ndarray | None]  # (bands, h, w), and the file's mask (h, w) if any


def is_plain(scene: Reader, piece: Piece) -> bool:
    """Return whether the files of a piece hold the numbers of the scene as they are."""
    return (piece.offset, piece.scale) == (scene.offset, scene.scale) and all(
        layer.dtype == scene.dtype and same(layer.nodata, scene.nodata) and not layer.has_mask
        for layer in piece.layers
    )


def held_blocks(scene: Reader, piece: Piece) -> np.ndarray | None:
    """
    Return (down, across) which blocks the files of a piece hold: a sparse GeoTIFF leaves out what
    is not measured. None where all have to be read to be known.
    """
    first = piece.layers[0]
    shape = -(-first.height // first.block[0]), -(-first.width // first.block[1])
    if scene.supply is not None or not MANY_BLOCKS <= shape[0] * shape[1] <= MOST_BLOCKS:
        return None
    if any((layer.grid, layer.block) != (first.grid, first.block) for layer in piece.layers):
        return None
    held = np.zeros(shape, dtype=bool)
    for layer in piece.layers:
        source = scene.handle(layer)
        if layer.upside_down or source.driver != "GTiff":
            return None
        empty = np.full((1, 1, 1), source.nodata or 0).astype(layer.dtype)  # what GDAL fills in
        if layer.measured(empty).any():
            return None

        def holds(row: int, col: int, band: int = 1, source: Any = source) -> bool:
            offset = source.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=band)
            return offset is not None

        some = np.linspace(0, held.size - 1, SOME_BLOCKS).astype(int)
        if all(holds(*divmod(int(number), shape[1])) for number in some):
            return None  # as good as all
        apart = 1 if source.interleaving == Interleaving.pixel else source.count
        for band, (row, col) in product(range(1, apart + 1), np.ndindex(shape)):
            held[row, col] = held[row, col] or holds(row, col, band)
    return None if held.all() else held


def held_part(held: np.ndarray, block: tuple[int, int], part: Window) -> Window | None:
    """Return the smallest part of a window with all its blocks that are held; None if none is."""
    (down, across), (left, top, width, height) = block, whole_pixels(part)
    row, col = top // down, left // across
    inside = held[row : -(-(top + height) // down), col : -(-(left + width) // across)]
    rows, cols = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    first = max(top, (row + rows[0]) * down), max(left, (col + cols[0]) * across)
    end = (
        min(top + height, (row + rows[-1] + 1) * down),
        min(left + width, (col + cols[-1] + 1) * across),
    )
    return Window(int(first[1]), int(first[0]), int(end[1] - first[1]), int(end[0] - first[0]))


def read_plain(scene: Reader, piece: Piece, window: Window, out: np.ndarray) -> None:
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
    if out.dtype.kind == "f":
        out[np.isinf(out)] = np.nan


def read_counts(
    scene: Reader,
    piece: Piece,
    window: Window,
    out: np.ndarray,
    clear: np.ndarray | None = None,
) -> np.ndarray:
    """
    Read counts of all bands into (bands, h, w), nodata as the scene's; return where every band is
    measured.

    Parameters
    ----------
    clear
        (h, w) where the window is free of clouds; None: the scene classification is read.
    """

    def stored(layer: Layer, indexes: list[int]) -> Stored:
        source = scene.handle(layer)
        with reading_pixels(layer.path):
            raw = source.read(indexes, window=window)
            return raw, source.dataset_mask(window=window) > 0 if layer.has_mask else None

    if clear is None:
        clear = scene.clear(piece, piece.layers[0].grid, window)
    return fill_counts(scene, piece, stored, clear, out)[0]


def fill_counts(
    scene: Reader,
    piece: Piece,
    stored: Callable[[Layer, list[int]], Stored],
    clear: np.ndarray | None,
    out: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Fill (bands, h, w) with counts of all bands of the scene, nodata where they are not measured;
    return where all bands, and any, are (h, w).

    Parameters
    ----------
    stored
        Reads bands of a layer, by their numbers in it: together, as those that are stored pixel by
        pixel would be decoded for each of them.
    clear
        (h, w) where it is free of clouds; None: everywhere.
    """
    whole, some = np.ones(out.shape[1:], dtype=bool), np.zeros(out.shape[1:], dtype=bool)
    blank = np.ones(out.shape[1:], dtype=bool)
    for layer in piece.layers:
        slots = layer.slots(scene.bands)
        if not slots:
            continue
        every, own = stored(layer, list(slots.values()))
        for slot, raw in zip(slots, every, strict=True):
            present = layer.measured(raw[None])
            blank &= (raw == 0) if layer.border else False
            for mask in (own, clear):
                if mask is not None:
                    present &= mask
            out[slot] = scene.counts(raw, piece, layer, present)
            if not present.all():
                out[slot][~present] = scene.nodata
            whole &= present
            some |= present
    if blank.any():
        out[:, blank] = scene.nodata
        whole &= ~blank
        some &= ~blank
    return whole, some
