"""
Batches of packed tiles for training: whole numbers, cropped, one step ahead of the computing.

Tiles lie in one memory map; a batch is a copy of crops, 16 bits per value, so that half as much crosses to the device as with
floats. Turning, flipping and normalising a batch is the device's work. One thread reads ahead: worker processes would spend
more on handing batches over than reading costs.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from time import perf_counter
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from butterfly_sdm.errors import DataError

T = TypeVar("T")


class TileBatches:
    """
    One part of a split as batches of crops; how they are drawn is fixed here.

    Iterating gives ``(places, counts)``: (n,) int64 positions in ``rows`` and (n, bands, crop_px, crop_px) uint16. Two
    iterations of one epoch are equal; :meth:`set_epoch` chooses the next.

    Parameters
    ----------
    tiles
        (rows, bands, height, width) uint16, usually memory-mapped.
    rows
        (n,) rows of ``tiles`` that belong to the part.
    batch_size
        Tiles of a batch; the last one may be smaller.
    crop_px
        Side of the crop; None for the whole tile.
    bands
        Places of the bands to take; None for all.
    shuffle
        Whether order and position of the crops are drawn at random; else stored order, and the middle.
    seed
        With the epoch, what order and crops depend on.
    pin
        Whether batches lie in page-locked memory, from which a GPU fetches them while it computes.
    recycle
        Batches that may be in use at once; the memory of older ones is written over, which spares fresh pages (they cost more
        than the copy). 0: every batch has its own memory, so batches can be kept.

    Raises
    ------
    DataError
        The crop is larger than the tiles, or a row is not there.
    """

    def __init__(
        self,
        tiles: np.ndarray,
        rows: Sequence[int] | np.ndarray,
        *,
        batch_size: int = 64,
        crop_px: int | None = None,
        bands: Sequence[int] | None = None,
        shuffle: bool = True,
        seed: int = 0,
        pin: bool = False,
        recycle: int = 0,
    ) -> None:
        self.recycle = recycle
        self._used: list[Tensor] = []
        self.tiles, self.rows = tiles, np.asarray(rows, dtype=np.int64)
        if len(self.rows) and not (self.rows.min() >= 0 and self.rows.max() < len(tiles)):
            raise DataError(f"Rows {self.rows.min()} to {self.rows.max()} are asked for; there are {len(tiles)} tiles.")
        self.crop_px = crop_px or min(tiles.shape[-2:])
        if self.crop_px > min(tiles.shape[-2:]):
            raise DataError(f"Crops of {self.crop_px} px are larger than the tiles of {min(tiles.shape[-2:])} px.")
        self.bands = None if bands is None or list(bands) == list(range(tiles.shape[1])) else list(bands)
        self.batch_size, self.shuffle, self.seed, self.pin = batch_size, shuffle, seed, pin
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose order and crops of this epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(len(self.rows)) if self.shuffle else np.arange(len(self.rows))
        slack = np.array(self.tiles.shape[-2:]) - self.crop_px
        corners = (
            random.integers(0, slack + 1, (len(order), 2)) if self.shuffle else np.broadcast_to(slack // 2, (len(order), 2))
        )
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            yield torch.from_numpy(places), self.read(places, corners[start : start + self.batch_size])

    def read(self, places: np.ndarray, corners: np.ndarray) -> Tensor:
        """
        Copy crops into a new batch.

        Parameters
        ----------
        places
            (n,) positions in ``rows``.
        corners
            (n, 2) top and left of each crop within its tile.
        """
        bands = self.tiles.shape[1] if self.bands is None else len(self.bands)
        size = self.crop_px
        shape = (self.batch_size if self.recycle else len(places), bands, size, size)
        if len(self._used) < self.recycle or not self.recycle:
            batch = torch.empty(shape, dtype=torch.uint16, pin_memory=self.pin)
        else:
            batch = self._used.pop(0)
        if self.recycle:
            self._used.append(batch)
            batch = batch[: len(places)]
        out = batch.numpy()
        for number, (row, (top, left)) in enumerate(zip(self.rows[places].tolist(), corners.tolist(), strict=True)):
            crop = self.tiles[row, :, top : top + size, left : left + size]
            np.copyto(out[number], crop if self.bands is None else crop[self.bands])
        return batch


class ReadAhead(Generic[T]):
    """
    Iterate over something in one thread of its own, a few items ahead of the loop.

    Parameters
    ----------
    source
        Gives a fresh iterator each time, such as :class:`TileBatches`. Errors in it are raised in the loop.
    ahead
        Items that may wait.

    Attributes
    ----------
    waited_s
        Seconds the loop waited for items in the last iteration.
    """

    def __init__(self, source: Iterable[T], ahead: int = 2) -> None:
        self.source, self.ahead = source, ahead
        self.waited_s = 0.0

    def __len__(self) -> int:
        return len(self.source)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[T]:
        items: queue.Queue[tuple[str, object]] = queue.Queue(self.ahead)
        stop = threading.Event()
        reader = threading.Thread(target=_fill, args=(iter(self.source), items, stop), daemon=True, name="read-ahead")
        self.waited_s = 0.0
        reader.start()
        try:
            while True:
                start = perf_counter()
                kind, item = items.get()
                self.waited_s += perf_counter() - start
                if kind == "error":
                    raise item  # type: ignore[misc]
                if kind == "end":
                    return
                yield item  # type: ignore[misc]
        finally:
            stop.set()
            while reader.is_alive():
                _drain(items)
                reader.join(0.05)


def _fill(source: Iterator[T], items: queue.Queue[tuple[str, object]], stop: threading.Event) -> None:
    put: Callable[[tuple[str, object]], None] = items.put
    try:
        for item in source:
            put(("item", item))
            if stop.is_set():
                return
        put(("end", None))
    except BaseException as error:
        put(("error", error))


def _drain(items: queue.Queue[tuple[str, object]]) -> None:
    while True:
        try:
            items.get_nowait()
        except queue.Empty:
            return
