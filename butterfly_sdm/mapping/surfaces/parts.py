"""
The pixels of a large window, some whole blocks of a file at a time, the next read meanwhile.

A trunk that begins with single pixels need never see all of a window at once. Every block is
decoded once, also at the edge of a window: the rows that the next one below needs of it are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from rasterio.windows import Window

from butterfly_sdm.core.executor import in_order
from butterfly_sdm.imagery.blocks import BlockGrid, Room, past_the_cache
from butterfly_sdm.imagery.products import whole_pixels
from butterfly_sdm.imagery.scene import Scene

PART_BYTES = 32 * 2**20  # of stored numbers read at a time
TAIL_BYTES = 64 * 2**20
TAIL_PX = 64  # rows below a window that are read with it, to the end of their blocks


class Part(NamedTuple):
    """
    Some of the pixels of a window.

    Attributes
    ----------
    row, column
        Of its upper left pixel, counted from the corner of the window.
    values
        (bands, height, width) stored numbers, until the next part but one is asked for.
    valid
        (height, width) where they are measured.
    """

    row: int
    column: int
    values: np.ndarray
    valid: np.ndarray


@dataclass
class Tail:
    """The last rows that were read of a window."""

    window: Window
    values: np.ndarray
    valid: np.ndarray
    number: int


@dataclass(frozen=True, eq=False)
class Parts:
    """
    Reads windows of a scene in parts.

    Attributes
    ----------
    scene
        In the bands of a network.
    keep_px
        Rows at the end of a window that the next one below begins with.
    """

    scene: Scene
    keep_px: int
    _room: Room = field(default_factory=Room, repr=False)
    _tails: list[Tail] = field(default_factory=list, repr=False)

    def __reduce__(self) -> tuple[type[Parts], tuple[Scene, int]]:
        return Parts, (self.scene, self.keep_px)

    def of(self, window: Window) -> Iterator[Part]:
        """Yield the parts of a window, from the top down."""
        column, row, width, height = whole_pixels(window)
        grid = self.scene.block_grid()
        tail = self._tails.pop() if self._tails else None
        if grid is None or tail is None or not _begins(window, tail.window):
            tail = None
        top = row if tail is None else int(tail.window.row_off + tail.window.height)
        windows = self._windows(grid, top, row + height, column, width)
        bottom = max((int(part.row_off + part.height) for part in windows), default=top)
        read = _Reading(self, grid, window, bottom, 1 - tail.number if tail is not None else 0)
        if tail is not None:
            rows = slice(row - int(tail.window.row_off), None)
            part = Part(0, 0, tail.values[:, rows], tail.valid[rows])
            read.keep(Window(column, row, width, top - row), part.values, part.valid)
            yield part
        with ThreadPoolExecutor(1, thread_name_prefix="parts") as pool:
            yield from in_order(read, list(enumerate(windows)), pool, in_flight=1)
        if grid is None:
            self.scene.passed(window)

    def _windows(
        self, grid: BlockGrid | None, top: int, bottom: int, column: int, width: int
    ) -> list[Window]:
        scene = self.scene
        share = len(scene.bands) * np.dtype(scene.dtype).itemsize
        if grid is None:
            tall = max(1, PART_BYTES // (share * width))
            rows = BlockGrid(top, column, tall, width).rows(top, bottom)
            return [Window(column, first, width, last - first) for first, last in rows]
        several = grid.times((grid.height, scene.width), share, PART_BYTES)
        if 0 < bottom < scene.height:  # to the end of the last row of blocks, if that is near
            end = min(grid.rows(bottom - 1, bottom + grid.height)[0][1], scene.height)
            bottom = end if end - bottom <= TAIL_PX else bottom
        right = column + width
        rows = several.rows(max(top, 0), min(bottom, scene.height))
        columns = _wide(several.columns(max(column, 0), min(right, scene.width)))
        rows, columns = _around(rows, top, bottom), _around(columns, column, right)
        return [
            Window(left, first, end - left, last - first)
            for first, last in rows
            for left, end in columns
        ]


def _around(inside: list[tuple[int, int]], start: int, stop: int) -> list[tuple[int, int]]:
    """Add what lies beyond the edges of a scene to the rows or columns inside."""
    first, last = (inside[0][0], inside[-1][1]) if inside else (stop, stop)
    return [edge for edge in ((start, first), *inside, (last, stop)) if edge[1] > edge[0]]


def _wide(edges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Put the last columns to those before, if they are fewer: one block alone takes longer."""
    if len(edges) > 1 and edges[-1][1] - edges[-1][0] < edges[-2][1] - edges[-2][0]:
        edges[-2:] = [(edges[-2][0], edges[-1][1])]
    return edges


@dataclass(frozen=True)
class _Reading:
    """Reads the parts of one window, in a thread of its own."""

    parts: Parts
    grid: BlockGrid | None
    window: Window
    bottom: int  # of all parts
    number: int  # of the memory that the next tail takes

    def __call__(self, numbered: tuple[int, Window]) -> Part:
        number, part = numbered
        scene, room = self.parts.scene, self.parts._room
        column, row, width, height = whole_pixels(part)
        left, top, _, tall = whole_pixels(self.window)
        shape = len(scene.bands), height, width
        with nullcontext() if self.grid is None else past_the_cache():
            pixels = self.grid is not None and self.grid.count(part) > 1 and scene.by_pixel()
            values = room.take(f"part {number % 2}", shape, scene.dtype, pixels=pixels)
            valid = scene.read_into(part, values)
        if self.grid is not None:
            self.keep(part, values, valid)
        inside = min(height, top + tall - row)
        return Part(row - top, column - left, values[:, :inside], valid[:inside])

    def keep(self, part: Window, values: np.ndarray, valid: np.ndarray) -> None:
        """Copy what the next window needs into the tail."""
        column, row, width, height = whole_pixels(part)
        left, top, wide, tall = whole_pixels(self.window)
        begin = max(top, top + tall - self.parts.keep_px)
        first = max(begin, row)
        if first >= row + height:
            return
        tails = self.parts._tails
        if not tails:
            rows = self.bottom - begin
            shape = len(values), rows, wide
            if math.prod(shape) * values.itemsize > TAIL_BYTES:
                return
            into = self.parts._room.take(f"tail {self.number}", shape, values.dtype, pixels=True)
            there = np.zeros(shape[1:], bool)
            tails.append(Tail(Window(left, begin, wide, rows), into, there, self.number))
        tail = tails[0]
        where = slice(first - begin, row + height - begin)
        columns = slice(column - left, column - left + width)
        tail.values[:, where, columns] = values[:, first - row :]
        tail.valid[where, columns] = valid[first - row :]


def _begins(window: Window, kept: Window) -> bool:
    """Return whether a window begins with some of the rows that were kept."""
    same = (window.col_off, window.width) == (kept.col_off, kept.width)
    bottom = kept.row_off + kept.height
    return bool(same and kept.row_off <= window.row_off < bottom <= window.row_off + window.height)
