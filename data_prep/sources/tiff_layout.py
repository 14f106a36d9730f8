"""Where the blocks of a tiled TIFF lie, read from its first bytes."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

MOST_HEADER = 8 << 20  # bytes; a file whose directories lie farther in is no COG
MOST_DIRECTORIES = 64
KINDS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
WORDS = {3: "u2", 4: "u4", 16: "u8"}
WIDTH, HEIGHT, SAMPLES, PLANES, BLOCK_WIDTH, BLOCK_HEIGHT = 256, 257, 277, 284, 322, 323
OFFSETS, COUNTS, FORMAT, SUBFILE, OLD_SUBFILE = 324, 325, 339, 254, 255


class TooShortError(Exception):
    """The directories reach further: ``end`` bytes are needed."""

    def __init__(self, end: int) -> None:
        super().__init__(f"{end} bytes are needed")
        self.end = end


class UnsuitableError(Exception):
    """The file is not laid out so that its blocks can be fetched alone."""


@dataclass(frozen=True)
class Layout:
    """
    Where the blocks of the full resolution of a file lie.

    Attributes
    ----------
    height, width
        Of the file, in pixels.
    block
        Height and width of a block.
    offsets, counts
        (n,) first byte and length of each block, row by row, of bands that lie apart one band after
        the other; a length of 0: it was never written.
    planes
        How many bands lie apart; 1: those of a pixel lie together.
    """

    height: int
    width: int
    block: tuple[int, int]
    offsets: np.ndarray
    counts: np.ndarray
    planes: int = 1

    def blocks(self, row: int, column: int, height: int, width: int) -> np.ndarray:
        """Return the numbers of the blocks that a window touches, in all bands."""
        top, bottom = max(row, 0), min(row + height, self.height)
        left, right = max(column, 0), min(column + width, self.width)
        if bottom <= top or right <= left:
            return np.empty(0, np.int64)
        across = -(-self.width // self.block[1])
        rows = np.arange(top // self.block[0], (bottom - 1) // self.block[0] + 1)
        columns = np.arange(left // self.block[1], (right - 1) // self.block[1] + 1)
        plane = (rows[:, None] * across + columns).ravel()
        each = len(self.offsets) // self.planes
        return (np.arange(self.planes)[:, None] * each + plane).ravel()


def read_layout(data: bytes, size: int) -> Layout:
    """
    Read all directories of a TIFF or BigTIFF of ``size`` bytes from its first bytes.

    Raises
    ------
    TooShortError
        The directories reach beyond ``data``.
    UnsuitableError
        It is no TIFF, has strips, a mask or fractions, or is damaged.
    """
    try:
        return _read(data, size)
    except (struct.error, KeyError, IndexError, ValueError, OverflowError) as error:
        raise UnsuitableError(f"its directories are damaged ({type(error).__name__})") from error


def _read(data: bytes, size: int) -> Layout:
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 16:
        raise UnsuitableError("it is no TIFF")
    kind = struct.unpack_from(order + "H", data, 2)[0]
    if kind not in (42, 43):
        raise UnsuitableError("it is no TIFF")
    big = kind == 43
    at = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    directories: list[dict[int, np.ndarray]] = []
    while at:
        if len(directories) >= MOST_DIRECTORIES:
            raise UnsuitableError("its directories have no end")
        tags, at = _directory(data, at, order, big, size)
        directories.append(tags)
    if not directories or not {WIDTH, HEIGHT, OFFSETS, COUNTS} <= set(directories[0]):
        raise UnsuitableError("it has strips")
    if any(int(_first(tags, SUBFILE)) & 4 for tags in directories):
        raise UnsuitableError("it has a mask of its own")
    return _layout(directories[0], size)


def _layout(tags: dict[int, np.ndarray], size: int) -> Layout:
    if _first(tags, FORMAT, 1) == 3:
        raise UnsuitableError("it holds fractions")
    layout = Layout(
        int(tags[HEIGHT][0]),
        int(tags[WIDTH][0]),
        (int(tags[BLOCK_HEIGHT][0]), int(tags[BLOCK_WIDTH][0])),
        tags[OFFSETS],
        tags[COUNTS],
        _first(tags, SAMPLES, 1) if _first(tags, PLANES, 1) == 2 else 1,
    )
    tall, wide = layout.block
    if min(layout.height, layout.width, tall, wide, layout.planes) < 1:
        raise UnsuitableError("it has no pixels")
    expected = layout.planes * -(-layout.height // tall) * -(-layout.width // wide)
    ends = layout.offsets + layout.counts
    if len(layout.offsets) != expected or len(layout.counts) != expected:
        raise UnsuitableError("it does not list its blocks")
    if (layout.offsets < 0).any() or (layout.counts < 0).any() or (ends > size).any():
        raise UnsuitableError("its blocks lie outside the file")
    return layout


def _first(tags: dict[int, np.ndarray], tag: int, otherwise: int = 0) -> int:
    return int(tags[tag][0]) if tag in tags and len(tags[tag]) else otherwise


def _directory(
    data: bytes, at: int, order: str, big: bool, size: int
) -> tuple[dict[int, np.ndarray], int]:
    """Return the tags of a directory that matter, and where the next begins (0: nowhere)."""

    def need(end: int) -> None:
        if end > min(size, MOST_HEADER):
            raise UnsuitableError("its directories do not lie at its beginning")
        if end > len(data):
            raise TooShortError(end)

    word, pointer, step = (8, "Q", 20) if big else (4, "I", 12)
    first = at + (8 if big else 2)
    need(first)
    entries = struct.unpack_from(order + ("Q" if big else "H"), data, at)[0]
    last = first + entries * step
    need(last + word)
    tags: dict[int, np.ndarray] = {}
    for place in range(first, last, step):
        tag, kind = struct.unpack_from(order + "HH", data, place)
        count = struct.unpack_from(order + pointer, data, place + 4)[0]
        where = place + 4 + word
        length = KINDS[kind] * count
        if length > word:
            where = struct.unpack_from(order + pointer, data, where)[0]
            need(where + length)  # GDAL will read it
        if kind in WORDS:
            dtype = np.dtype(order + WORDS[kind])
            tags[tag] = np.frombuffer(data, dtype, count, where).astype(np.int64)
    return tags, struct.unpack_from(order + pointer, data, last)[0]
