"""Pixels of one piece on its own grid, read without moving any."""

from __future__ import annotations

import numpy as np
from rasterio.windows import Window

from butterfly_sdm.imagery.pixels import same
from butterfly_sdm.imagery.products import Piece, reading_pixels
from butterfly_sdm.imagery.reader import Reader


def is_plain(scene: Reader, piece: Piece) -> bool:
    """Return whether the files of a piece hold the numbers of the scene as they are."""
    return (piece.offset, piece.scale) == (scene.offset, scene.scale) and all(
        layer.dtype == scene.dtype and same(layer.nodata, scene.nodata) and not layer.has_mask
        for layer in piece.layers
    )


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
    measured = np.ones(out.shape[1:], dtype=bool)
    blank = np.ones(out.shape[1:], dtype=bool)
    if clear is None:
        clear = scene.clear(piece, piece.layers[0].grid, window)
    for layer in piece.layers:
        slots = layer.slots(scene.bands)
        if not slots:
            continue
        source = scene.handle(layer)
        with reading_pixels(layer.path):
            # together: bands that are stored pixel by pixel would be decoded for each of them
            every = source.read(list(slots.values()), window=window)
            own = source.dataset_mask(window=window) > 0 if layer.has_mask else None
        for slot, raw in zip(slots, every, strict=True):
            present = layer.measured(raw[None])
            blank &= (raw == 0) if layer.border else False
            for mask in (own, clear):
                if mask is not None:
                    present &= mask
            counts = scene.counts(raw, piece, layer, present)
            out[slot] = np.where(present, counts, out.dtype.type(scene.nodata))
            measured &= present
    if blank.any():
        out[:, blank] = scene.nodata
        measured &= ~blank
    return measured
