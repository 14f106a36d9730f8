"""
Scenes: rasters with named bands, read window by window as one mosaic.

A :class:`Scene` is an immutable description; files are opened when a window is read, once per
thread, and again in every worker it is sent to.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Interleaving
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from butterfly_sdm.errors import RasterError, did_you_mean
from butterfly_sdm.imagery.blocks import BlockGrid
from butterfly_sdm.imagery.composites.kept import KeptBlocks
from butterfly_sdm.imagery.composites.stacks import Stack, blocks_of, bring_stack, read_stack
from butterfly_sdm.imagery.discovery import find_pieces
from butterfly_sdm.imagery.mosaic import bounds_in, mosaic_of
from butterfly_sdm.imagery.options import Reading
from butterfly_sdm.imagery.piece_pixels import (
    Stored,
    fill_counts,
    held_blocks,
    held_part,
    is_plain,
    read_plain,
)
from butterfly_sdm.imagery.pixels import (
    PixelType,
    apart,
    measured,
    measured_in_all,
    rounded,
    same,
)
from butterfly_sdm.imagery.products import (
    RESAMPLING,
    Grid,
    Layer,
    Piece,
    TurnedOver,
    canonical_band,
    metres_per_unit,
    open_raster,
    reading_pixels,
    whole_pixels,
)
from butterfly_sdm.imagery.reader import Supply
from butterfly_sdm.imagery.supply import bring

# Of the Sentinel-2 scene classification: no data, defective, cloud shadow, cloud (medium, high
# probability), thin cirrus.
CLOUDY = (0, 1, 3, 8, 9, 10)
# Reflectance is below zero by the noise of its correction, not by more: the lowest value that
# products of Landsat and HLS allow. What lies between is read as the lowest count.
DARKEST = 0.2
STRIP_PX = 512  # rows read at a time
MOST_OPEN = 160  # files a thread keeps open: those of a composite of many dates


@dataclass(frozen=True)
class Scene:
    """
    One raster or a mosaic of several, on one north-up grid, with bands by name.

    ``reflectance = (value - offset) * scale``, in whole numbers: files of reflectance as fractions
    are read in steps of 0.0001. Signed and fractional bands that are no reflectance are read in
    their own type, and any bands in the type that is stated. Where pieces overlap, the first with a
    measurement counts; pieces are ordered by name, so the order in which files were given makes no
    difference. Files on another grid, in another CRS or at another resolution are resampled while
    they are read.

    Attributes
    ----------
    bands
        Names, in the order in which :meth:`read` returns them.
    crs, transform, width, height
        The grid of the mosaic.
    nodata
        The value of pixels without a measurement; NaN where they are fractions.
    scale, offset
        Reflectance per count, and the count of zero reflectance.
    resolution_m
        Side of a pixel in metres (in a CRS of degrees: northwards, approximately).
    pieces
        The products the mosaic consists of.
    resampling
        How files on another grid are resampled: nearest, bilinear or cubic.
    cloudy
        Classes of the scene classification (SCL) whose pixels count as not measured, where a piece
        has one; see :data:`CLOUDY`.
    dtype
        Type of the values: uint8, int8, uint16, int16 or float32.
    signed_square
        Of embeddings kept as signed square roots: ``(value / signed_square)**2`` with the sign of
        the value is what it means, whatever scale and offset.
    supply
        Brings the pixels of remote files of which only a part is here; None: all are.
    """

    bands: tuple[str, ...]
    crs: CRS
    transform: Affine
    width: int
    height: int
    nodata: float
    scale: float
    offset: float
    resolution_m: float
    pieces: tuple[Piece, ...]
    resampling: str = "bilinear"
    cloudy: tuple[int, ...] = ()
    dtype: PixelType = "uint16"
    signed_square: float | None = None
    supply: Supply | None = field(default=None, repr=False, compare=False)
    kept: KeptBlocks = field(default_factory=KeptBlocks, repr=False, compare=False)
    _handles: threading.local = field(default_factory=threading.local, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {key: v for key, v in self.__dict__.items() if key not in ("_handles", "kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _handles=threading.local(), kept=KeptBlocks())

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right and top in the units of ``crs``."""
        left, top = self.transform.c, self.transform.f
        return left, top + self.height * self.transform.e, left + self.width * self.transform.a, top

    @property
    def paths(self) -> tuple[str, ...]:
        """All files of the scene that hold bands, each once."""
        products = [product for piece in self.pieces for product in piece.products]
        return tuple(dict.fromkeys(layer.path for p in products for layer in p.layers))

    def select(self, bands: Sequence[str]) -> Scene:
        """
        Return the same scene with only ``bands``, in that order.

        Raises
        ------
        RasterError
            The scene lacks one of them.
        """
        return replace(self, bands=self._check(bands))

    def alone(self, piece: Piece) -> Scene:
        """Return the scene of one piece, on its own grid."""
        crs, transform, width, height = piece.layers[0].grid
        return replace(
            self, pieces=(piece,), crs=crs, transform=transform, width=width, height=height
        )

    def read(
        self, window: Window, bands: Sequence[str] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Read a window of the grid; it may reach beyond the scene.

        Parameters
        ----------
        window
            Whole pixels; offsets may be negative.
        bands
            Names; None for all of the scene.

        Returns
        -------
        values : ndarray of ``dtype``, shape (bands, height, width)
            Counts; ``nodata`` where there is no measurement.
        valid : ndarray of bool, shape (height, width)
            True where every band asked for has a measurement.

        Raises
        ------
        RasterError
            A band is unknown, or a file cannot be read.
        """
        wanted = self.bands if bands is None else self._check(bands)
        _, _, width, height = whole_pixels(window)
        values = np.full((len(wanted), height, width), self.nodata, dtype=self.dtype)
        valid = np.zeros((height, width), dtype=bool)
        self._fill(window, wanted, values, valid)
        return values, valid

    def read_into(self, window: Window, values: np.ndarray) -> np.ndarray:
        """
        Read a window as :meth:`read` does into an array of any layout in memory, whatever it holds.

        Parameters
        ----------
        values
            (bands, height, width) of ``dtype``.

        Returns
        -------
        ndarray of bool, shape (height, width)
            Where every band has a measurement.
        """
        whole = Window(*whole_pixels(window))
        shown = [piece for piece in self.pieces if self.shows(piece, whole)]
        first = shown[0] if shown and not isinstance(shown[0], Stack) else None
        own = None if first is None else self._as_stored(first, whole)
        if first is not None and own is not None:
            read_plain(self, first, own, values)
            valid = measured_in_all(values, self.nodata)
            if valid.all() or len(shown) == 1:
                return valid
        values[:] = self.nodata
        valid = np.zeros(values.shape[1:], dtype=bool)
        self._fill(whole, self.bands, values, valid)
        return valid

    def block_grid(self) -> BlockGrid | None:
        """
        Return the blocks in which all files are stored; None where they differ, or where pixels of
        the scene are made of stored ones (other grids, clouds, composites, remote files).
        """
        found = set()
        for piece in self.pieces:
            origin = None if isinstance(piece, Stack) else self._plain_origin(piece)
            if origin is None:
                return None
            for layer in piece.layers:
                tall, wide = layer.block
                top = origin[1] + (layer.height if layer.upside_down else 0)
                found.add((top % tall, origin[0] % wide, tall, wide))
        return BlockGrid(*found.pop()) if len(found) == 1 else None

    def by_pixel(self) -> bool:
        """Return whether the first file holds all bands of a pixel side by side, as they are."""
        layer = self.pieces[0].layers[0]
        if list(layer.slots(self.bands).values()) != list(range(1, len(layer.bands) + 1)):
            return False
        return bool(self.handle(layer).interleaving == Interleaving.pixel)

    def _fill(
        self, window: Window, bands: Sequence[str], values: np.ndarray, valid: np.ndarray
    ) -> None:
        """Read a window into nodata and false."""
        for piece in self.pieces:
            self.read_piece(piece, Window(*whole_pixels(window)), bands, values, valid)
            if valid.all():
                break

    def read_in_strips(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """
        Read a large window as :meth:`read` does, some rows at a time, so that the copies made on
        the way are small; of remote files the next rows are fetched meanwhile.
        """
        _, row, width, height = whole_pixels(window)
        values = np.full((len(self.bands), height, width), self.nodata, dtype=self.dtype)
        valid = np.zeros((height, width), dtype=bool)
        strips = self._strips(window)
        for number, strip in enumerate(strips):
            if self.supply is not None and number + 1 < len(strips):
                self.supply.ahead(partial(self.bring, strips[number + 1]))
            top = int(strip.row_off) - row
            rows = slice(top, top + int(strip.height))
            self._fill(strip, self.bands, values[:, rows], valid[rows])
            self.kept.passed(self._blocks(strip))
        return values, valid

    def expected(self, windows: Iterable[Window]) -> list[dict[Any, int]]:
        """
        Return, of every strip of windows as :meth:`read_in_strips` reads them, the composed blocks
        it needs and their bytes.
        """
        if not any(isinstance(piece, Stack) for piece in self.pieces):
            return []
        return [self._blocks(strip) for window in windows for strip in self._strips(window)]

    def passed(self, window: Window) -> None:
        """Note that a window was read otherwise than in strips, though expected."""
        for strip in self.expected([window]):
            self.kept.passed(strip)

    def _blocks(self, window: Window) -> dict[Any, int]:
        found: dict[Any, int] = {}
        for piece in self.pieces:
            if isinstance(piece, Stack) and (place := self._overlap(piece, window)) is not None:
                found |= blocks_of(self, piece, place[2])
        return found

    def _strips(self, window: Window) -> list[Window]:
        column, row, width, height = whole_pixels(window)
        edges = [row, *self._block_rows(row, row + height), row + height]
        return [Window(column, top, width, bottom - top) for top, bottom in pairwise(edges)]

    def _block_rows(self, top: int, bottom: int) -> range:
        """
        Return the rows between ``top`` and ``bottom`` at which strips begin: where blocks of the
        first file do, if there are such, so that no strip needs half of them.
        """
        first = self.pieces[0].layers[0]
        origin = self.offset_of(first)
        tall = first.block[0]
        if origin is None or not 1 <= tall <= STRIP_PX or first.upside_down:
            return range(top + STRIP_PX, bottom, STRIP_PX)
        step = STRIP_PX // tall * tall
        return range(top + 1 + (origin[1] - top - 1) % step, bottom, step)

    def bring(self, window: Window) -> None:
        """
        Fetch what a window needs of remote files, without reading it.

        Raises
        ------
        SourceError
            It could not be fetched.
        """
        for piece in self.pieces if self.supply is not None else ():
            place = self._overlap(piece, window)
            if place is not None and isinstance(piece, Stack):
                bring_stack(self, piece, place[2])
            elif place is not None:
                bring(self, [(piece, self.grid, place[2])])

    def shows(self, piece: Piece, window: Window) -> bool:
        """Return whether a piece shows some of a window."""
        return self._overlap(piece, window) is not None

    def shown(self, windows: Sequence[Window] | np.ndarray) -> np.ndarray:
        """
        Return (n,) whether any piece shows some of each window, as far as can be told unread; of
        many windows rather an array (n, 4) of columns, rows, widths and heights in whole pixels.
        """
        if not len(windows):
            return np.zeros(0, dtype=bool)
        if not isinstance(windows, np.ndarray):
            windows = np.array([whole_pixels(window) for window in windows])
        left, top, width, height = windows.T
        found = np.zeros(len(windows), dtype=bool)
        for piece in self.pieces:
            box = self._box(piece)
            right, bottom = box.col_off + box.width, box.row_off + box.height
            across = (left < min(right, self.width)) & (left + width > max(box.col_off, 0))
            down = (top < min(bottom, self.height)) & (top + height > max(box.row_off, 0))
            new = across & down & ~found
            if new.any() and self._held(piece) is not None:
                new[new] = [self.shows(piece, Window(*window)) for window in windows[new].tolist()]
            found |= new
        return found

    def read_piece(
        self,
        piece: Piece,
        window: Window,
        bands: Sequence[str],
        values: np.ndarray,
        valid: np.ndarray,
    ) -> None:
        """
        Fill the pixels of ``values`` that are not ``valid`` yet from one piece, and mark them.
        """
        place = self._overlap(piece, window)
        if place is None:
            return
        rows, columns, part = place
        todo = ~valid[rows, columns]
        if not todo.any():
            return
        wanted = self if bands == self.bands else self.select(bands)
        if isinstance(piece, Stack):
            read_stack(wanted, piece, part, values[:, rows, columns], valid[rows, columns])
            return
        target = values[:, rows, columns]
        if todo.all() and (own := self._as_stored(piece, part)) is not None:
            read_plain(wanted, piece, own, target)
            valid[rows, columns] = measured_in_all(target, self.nodata)
            return
        fresh, whole, some = wanted._measured(piece, part)
        if todo.all() and whole.all():
            target[:] = fresh
        else:
            # A pixel measured in some bands only is shown, though not valid, until a piece has all
            # of it.
            untouched = ~measured(target, self.nodata).any(axis=0)
            np.copyto(target, fresh, where=todo & (whole | (some & untouched)))
        valid[rows, columns] |= whole

    def _as_stored(self, piece: Piece, part: Window) -> Window | None:
        """
        Return a window of the grid in the pixels of a piece whose numbers are those of the scene as
        they are stored; None if they have to be made.
        """
        first, origin = piece.layers[0], self._plain_origin(piece)
        if origin is None:
            return None
        left, top = int(part.col_off) - origin[0], int(part.row_off) - origin[1]
        inside = left >= 0 and top >= 0
        inside = inside and left + part.width <= first.width and top + part.height <= first.height
        return Window(left, top, part.width, part.height) if inside else None

    def _plain_origin(self, piece: Piece) -> tuple[int, int] | None:
        """
        Return column and row of the first pixel of a piece whose numbers are those of the scene as
        they are stored; None if they have to be made.
        """
        first = piece.layers[0]
        masked = bool(self.cloudy) and piece.mask is not None
        if masked or self.supply is not None or not is_plain(self, piece):
            return None
        if any(layer.grid != first.grid for layer in piece.layers):
            return None
        return self.offset_of(first)

    def _measured(self, piece: Piece, part: Window) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Read a window of the scene's grid from one piece: counts (bands, h, w), and where all bands,
        and any, are measured (h, w).
        """
        first = piece.layers[0]
        origin = self.offset_of(first)
        grid, own = self.grid, part
        if origin is not None:
            grid = first.grid
            own = Window(
                part.col_off - origin[0], part.row_off - origin[1], part.width, part.height
            )
        if self.supply is not None:
            bring(self, [(piece, grid, own)])
        clear = self.clear(piece, grid, own)
        fresh = np.empty((len(self.bands), int(part.height), int(part.width)), dtype=self.dtype)
        whole, some = fill_counts(
            self, piece, lambda layer, at: self._read_layer(layer, part, at), clear, fresh
        )
        return fresh, whole, some

    def counts(
        self, raw: np.ndarray, piece: Piece, layer: Layer, present: np.ndarray
    ) -> np.ndarray:
        """
        Turn stored values of a layer of a piece into the numbers of the scene (its type and offset,
        no measured value equal to nodata).

        Raises
        ------
        RasterError
            A value that is ``present`` does not fit into the type, or, of whole numbers of
            reflectance, is too far below zero.
        """
        shift = piece.offset - self.offset
        if self.dtype != "uint16":
            return self._kept(raw, shift, layer, present)
        if piece.scale != self.scale:
            raw, shift = (
                (raw.astype(np.float64) - piece.offset) * (piece.scale / self.scale),
                -self.offset,
            )
        if raw.dtype == np.uint16 and shift == 0 and layer.nodata == self.nodata:
            return raw
        if raw.dtype == np.uint16 and shift == 0 and layer.border:
            return apart(raw.copy(), self.nodata)
        if raw.dtype.kind in "if" or raw.dtype.itemsize > 2:
            self._check_range(raw, shift, layer, present)
        if raw.dtype.kind == "f":
            raw = np.nan_to_num(raw, nan=0.0, posinf=65535, neginf=0)
        elif raw.dtype.itemsize < 8:
            raw = raw.astype(np.int64)
        counts = np.clip(
            np.rint(raw - shift) if raw.dtype.kind == "f" or shift % 1 else raw - int(shift),
            0,
            65535,
        )
        return apart(counts.astype(np.uint16), self.nodata)

    def _check_range(
        self, raw: np.ndarray, shift: float, layer: Layer, present: np.ndarray
    ) -> None:
        """Refuse measured values that would be changed, not rounded, in the whole numbers."""
        measured = raw[present]
        if not measured.size:
            return
        low, high = float(measured.min()), float(measured.max())
        if (low - shift) * self.scale >= -DARKEST and high - shift < 65535.5:
            return
        value = low if (low - shift) * self.scale < -DARKEST else high
        reflectance = (value - shift - self.offset) * self.scale
        raise RasterError(
            f"{layer.path} holds a value that is no reflectance: {reflectance:g}, with the scale "
            f"{self.scale:g} and the offset {self.offset:g}. Tiles hold whole numbers from 0 to "
            "65535. If it stands for missing pixels, state it under scenes.nodata; otherwise state "
            "scenes.scale or scenes.offset, or scenes.dtype (such as int16 or float32) to keep the "
            "numbers as they are."
        )

    def _kept(self, raw: np.ndarray, shift: float, layer: Layer, present: np.ndarray) -> np.ndarray:
        """Return stored values in the type of the scene, none of those ``present`` changed."""
        kind = np.dtype(self.dtype)
        if raw.dtype == kind and shift == 0 and same(layer.nodata, self.nodata):
            return raw
        if kind.kind == "f":
            return (raw - shift).astype(kind) if shift else raw.astype(kind, copy=False)
        if raw.dtype.kind == "f":  # resampled on the way
            return rounded(np.nan_to_num(raw - shift), kind, self.nodata)
        whole = raw.astype(np.int64) - int(shift)
        limits, found = np.iinfo(kind), whole[present]
        for value in (found.min(), found.max()) if found.size else ():
            if not limits.min <= value <= limits.max:
                raise RasterError(
                    f"{layer.path} holds {value}; {self.dtype} holds whole numbers from "
                    f"{limits.min} to {limits.max}. State a larger type in scenes.dtype, or "
                    "scenes.nodata if it stands for missing pixels."
                )
        if (found == self.nodata).any():
            raise RasterError(
                f"{layer.path} holds {self.nodata:g} as a measured value, which stands for missing "
                "pixels in the other files or in tiles. State a larger type in scenes.dtype, or "
                "scenes.nodata."
            )
        return whole.astype(kind)

    def window(self, left: float, bottom: float, right: float, top: float) -> Window:
        """Return the smallest window of whole pixels that covers bounds given in ``crs``."""
        c0, r0 = ~self.transform * (left, top)
        c1, r1 = ~self.transform * (right, bottom)
        column, row = int(np.floor(c0 + 1e-6)), int(np.floor(r0 + 1e-6))
        return Window(column, row, int(np.ceil(c1 - 1e-6)) - column, int(np.ceil(r1 - 1e-6)) - row)

    def offset_of(self, layer: Layer) -> tuple[int, int] | None:
        """
        Return column and row of a layer's first pixel if its pixels are those of the scene, else
        None.

        Pixels of the same size that are shifted are moved to the nearest of the scene, by up to
        half a pixel: averaging neighbours instead would blur one part of a mosaic and not the
        other.
        """
        if layer.crs != self.crs:
            return None
        own, grid = layer.transform, self.transform
        sides = ((own.a, grid.a), (own.b, grid.b), (own.d, grid.d), (own.e, grid.e))
        if any(abs(a - b) > 1e-9 * abs(b) for a, b in sides):
            return None
        column, row = ~grid * (own.c, own.f)
        return int(np.floor(column + 0.5 + 1e-6)), int(np.floor(row + 0.5 + 1e-6))

    def _box(self, piece: Piece) -> Window:
        """Return where a piece lies on the grid."""
        first = piece.layers[0]
        origin = self.offset_of(first)
        if origin is not None:
            return Window(*origin, first.width, first.height)
        return self.window(*bounds_in(first, self.crs))

    def _overlap(self, piece: Piece, window: Window) -> tuple[slice, slice, Window] | None:
        """
        Return where a piece lies in the arrays of a window, and the same as a window of the grid.
        """
        column, row, width, height = whole_pixels(window)
        box = self._box(piece)
        left, top = max(column, int(box.col_off), 0), max(row, int(box.row_off), 0)
        right = min(column + width, int(box.col_off + box.width), self.width)
        bottom = min(row + height, int(box.row_off + box.height), self.height)
        if right <= left or bottom <= top:
            return None
        part = self._held_part(piece, Window(left, top, right - left, bottom - top))
        if part is None:
            return None
        left, top, wide, tall = whole_pixels(part)
        return slice(top - row, top - row + tall), slice(left - column, left - column + wide), part

    def _held(self, piece: Piece) -> np.ndarray | None:
        """Return which blocks the files of a piece hold; None where that is not known or all."""
        known: dict[str, Any] = self._handles.__dict__.setdefault("held", {})
        if isinstance(piece, Stack) or self.offset_of(first := piece.layers[0]) is None:
            return None
        if first.path not in known:
            known[first.path] = held_blocks(self, piece)
        found: np.ndarray | None = known[first.path]
        return found

    def _held_part(self, piece: Piece, part: Window) -> Window | None:
        """Return the part of a window of the grid beyond which a piece holds no pixels."""
        held = self._held(piece)
        if held is None:
            return part
        first = piece.layers[0]
        origin = self.offset_of(first)
        assert origin is not None
        column, row, width, height = whole_pixels(part)
        own = Window(column - origin[0], row - origin[1], width, height)
        found = held_part(held, first.block, own)
        if found is None:
            return None
        column, row, width, height = whole_pixels(found)
        return Window(column + origin[0], row + origin[1], width, height)

    def _read_layer(self, layer: Layer, window: Window, indexes: list[int]) -> Stored:
        """
        Read a window of the scene's grid from one file: (bands, h, w) as stored, and its own mask
        (h, w) if any.
        """
        place = self.offset_of(layer)
        if place is None:
            source = self.handle(layer, self.grid, self.resampling)
            with reading_pixels(layer.path):
                return source.read(indexes, window=window), source.dataset_mask(window=window) > 0
        source = self.handle(layer)
        column, row, width, height = whole_pixels(window)
        column, row = column - place[0], row - place[1]
        # A band file may cover less ground than the others of its product.
        left, top = min(max(column, 0), layer.width), min(max(row, 0), layer.height)
        right = max(min(column + width, layer.width), left)
        bottom = max(min(row + height, layer.height), top)
        part = Window(left, top, right - left, bottom - top)
        with reading_pixels(layer.path):
            if (part.width, part.height) == (width, height):
                raw = source.read(indexes, window=part)
                return raw, source.dataset_mask(window=part) > 0 if layer.has_mask else None
            raw = np.zeros((len(indexes), height, width), layer.dtype)
            masked = np.zeros((height, width), dtype=bool)
            if part.width and part.height:
                at = slice(top - row, bottom - row), slice(left - column, right - column)
                raw[:, *at] = source.read(indexes, window=part)
                masked[at] = source.dataset_mask(window=part) > 0 if layer.has_mask else True
        return raw, masked

    @property
    def grid(self) -> Grid:
        """CRS, transform, width and height."""
        return self.crs, self.transform, self.width, self.height

    def clear(self, piece: Piece, grid: Grid, window: Window) -> np.ndarray | None:
        """
        Return where a window of a grid is free of the classes ``cloudy`` in a piece; None if that
        is not asked or known.
        """
        if not self.cloudy or piece.mask is None:
            return None
        mask = piece.mask
        factor = mask.times_larger(grid)
        if not factor:
            source, rows, columns = self.handle(mask, grid, "nearest"), slice(None), slice(None)
            part = window
        else:  # repeated where GDAL would warp, to the same pixels
            source = self.handle(mask)
            column, row, width, height = whole_pixels(window)
            left, top = column // factor, row // factor
            right, bottom = -(-(column + width) // factor), -(-(row + height) // factor)
            part = Window(left, top, right - left, bottom - top)
            rows = slice(row - top * factor, row - top * factor + height)
            columns = slice(column - left * factor, column - left * factor + width)
        with reading_pixels(mask.path):
            classes = source.read(mask.indexes[0], window=part)
        if classes.dtype == np.uint8:
            clear = np.ones(256, dtype=bool)
            clear[[number for number in self.cloudy if 0 <= number < 256]] = False
            found = clear.take(classes)
        else:
            found = ~np.isin(classes, self.cloudy)
        if factor > 1:
            found = found.repeat(factor, axis=1).repeat(factor, axis=0)
        cut: np.ndarray = found[rows, columns]
        return cut

    def handle(self, layer: Layer, grid: Grid | None = None, resampling: str = "nearest") -> Any:
        """Return this thread's open file, or a view of it resampled onto a grid."""
        opened: dict[Any, Any] = self._handles.__dict__.setdefault("opened", {})
        key = (layer.path, grid, (resampling, repr(layer.nodata)) if grid else None)
        generation = 0 if self.supply is None else self.supply.generation(layer.path)
        if key in opened and opened[key][0] != generation:
            opened.pop(key)[1].close()  # GDAL still holds what was no pixels then
        if key not in opened:
            if len(opened) >= MOST_OPEN:
                opened.pop(next(iter(opened)))[1].close()
            source = open_raster(layer.path)
            if grid is not None:
                crs, transform, width, height = grid
                source = WarpedVRT(
                    source,
                    src_crs=layer.crs,
                    src_transform=layer.stored_transform,
                    crs=crs,
                    transform=transform,
                    width=width,
                    height=height,
                    resampling=RESAMPLING[resampling],
                    src_nodata=layer.warp_nodata,
                    nodata=layer.warp_nodata,
                )
            elif layer.upside_down:
                source = TurnedOver(source)
            opened[key] = generation, source
        return opened[key][1]

    def _check(self, bands: Sequence[str]) -> tuple[str, ...]:
        names = tuple(canonical_band(band) for band in bands)
        for name, given in zip(names, bands, strict=True):
            if name not in self.bands:
                raise RasterError(
                    f"The scene has no band {given!r}; it has {', '.join(self.bands)}. "
                    "Name the bands of the file in order under bands, or ask for "
                    f"others.{did_you_mean(given, self.bands)}"
                )
        return names


def open_scene(
    paths: str | Path | Iterable[str | Path],
    reading: Reading | None = None,
    *,
    resampling: str = "bilinear",
    **stated: Any,
) -> Scene:
    """
    Describe one raster, or several as one mosaic, without reading pixels.

    Parameters
    ----------
    paths
        Files (GeoTIFF, JPEG 2000, VRT, anything GDAL reads), folders of them, SAFE products or STAC
        items.
    reading
        What is stated about them, such as their bands or offset.
    resampling
        For files on another grid than the scene's: nearest, bilinear or cubic.
    **stated
        Fields of a reading, such as ``bands=["B02", "nir"]`` or ``offset=1000``, instead of one.

    Returns
    -------
    Scene
        Named bands of one mosaic; nothing is read yet.

    Raises
    ------
    MissingFileError
        A path does not exist.
    RasterError
        A file is no raster, lacks band names or a CRS with units, or the files do not fit together.
    """
    reading = reading or Reading.model_validate(stated, strict=False)
    if isinstance(paths, str | Path):
        paths = [paths]
    if reading.bands is not None:
        names = tuple(canonical_band(band) for band in reading.bands)
        reading = reading.model_copy(update={"bands": names})
    found = [piece for path in paths for piece in find_pieces(path, reading)]
    if not found:
        raise RasterError(
            "No raster was named. Give at least one file or folder under scenes.paths."
        )
    different = {(piece.name, piece.layers): piece for piece in found}
    shared = mosaic_of(sorted(different.values(), key=lambda piece: piece.order), reading)
    crs, transform, width, height = shared.grid
    return Scene(
        bands=shared.bands,
        crs=crs,
        transform=transform,
        width=width,
        height=height,
        nodata=shared.nodata,
        scale=shared.scale,
        offset=shared.offset,
        resolution_m=abs(transform.e) * metres_per_unit(crs, "the scene"),
        pieces=shared.pieces,
        resampling=resampling,
        cloudy=reading.cloudy or (),
        dtype=shared.dtype,
    )
