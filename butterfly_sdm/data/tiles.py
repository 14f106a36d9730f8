"""
Read packed tiles in batches: as stored, bands by name, cropped, ahead of the computing.

Tiles lie in one memory map; a batch is a copy of crops in the type they are stored in, 16 bits per
value of reflectance, so that half as much crosses to the device as with floats. Turning, lighting
and normalising a batch is the device's work. One thread reads ahead: worker processes would spend
more on handing batches over than reading costs.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from time import perf_counter
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from butterfly_sdm.core.executor import in_order
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import DataError, ModelError
from butterfly_sdm.imagery.embeddings.meaning import Meaning
from butterfly_sdm.imagery.pixels import measured

T = TypeVar("T")


class TileReader:
    """
    Cut the image a network sees out of the packed tiles, bands by name.

    Parameters
    ----------
    dataset
        Has tiles.
    bands
        Names of the bands, in the order of the network.
    tile_px
        Side of the image; the middle of the tile is cut unless told otherwise.

    Attributes
    ----------
    slack
        Rows and columns by which a tile is larger than the image.

    Raises
    ------
    DataError, ModelError
        There are no tiles, they lack a band or are too small.
    """

    def __init__(self, dataset: Dataset, bands: Sequence[str], tile_px: int) -> None:
        if dataset.tiles is None or dataset.card.tiles is None:
            raise DataError(
                f"The data set {dataset.card.name!r} has no tiles. Name scenes or a folder of "
                "tiles in build."
            )
        card = dataset.card.tiles
        absent = [band for band in bands if band not in card.bands]
        if absent:
            raise ModelError(
                f"The network needs the band {absent[0]}; the tiles have {', '.join(card.bands)}."
            )
        side = min(dataset.tiles.shape[-2:])
        if side < tile_px:
            raise ModelError(
                f"The tiles are {side} px wide; the network looks at {tile_px} px (window_px + 2 * "
                "margin_px). Build larger tiles (build.tiles.size_px), or choose a smaller "
                "window_px or margin_px."
            )
        self.card, self.tile_px = card, tile_px
        self.places = [card.bands.index(band) for band in bands]
        self.slack = (dataset.tiles.shape[-2] - tile_px, dataset.tiles.shape[-1] - tile_px)
        self.tiles: np.ndarray = dataset.tiles

    @property
    def at_once(self) -> int:
        """Tiles to look at together: of many bands fewer, 64 bands of 256 px are 17 MB a tile."""
        return max(1, min(32, 512 // len(self.places)))

    def memory(self, count: int, *, pin: bool = False) -> Tensor:
        """
        Return room for ``count`` images, to read into.

        Parameters
        ----------
        pin
            Whether it is page-locked: a GPU fetches from there while it computes.
        """
        shape = (count, len(self.places), self.tile_px, self.tile_px)
        return torch.empty(shape, dtype=getattr(torch, self.card.dtype), pin_memory=pin)

    def read(
        self, rows: Tensor, corners: Tensor | None = None, *, into: Tensor | None = None
    ) -> Tensor:
        """
        Return stored numbers (n, bands, tile_px, tile_px), of the type of the tiles.

        Parameters
        ----------
        rows
            (n,) rows of the packed tiles.
        corners
            (n, 2) top and left of the cut within the tile; None: the middle.
        into
            Room for at least n images (:meth:`memory`), which is written over: fresh pages cost
            more than the copy. None: new.

        Raises
        ------
        DataError
            A row is not there.
        """
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self.tiles):
            raise DataError(
                f"Tiles {int(rows.min())} to {int(rows.max())} are asked for; there are "
                f"{len(self.tiles)}. Build the data set again."
            )
        batch = (self.memory(len(rows)) if into is None else into)[: len(rows)]
        out, size = batch.numpy(), self.tile_px
        middle = (self.slack[0] // 2, self.slack[1] // 2)
        cuts = [middle] * len(rows) if corners is None else corners.tolist()
        tiles = np.asarray(self.tiles)  # slices of a memory map are slow to make
        if (
            self.places != list(range(tiles.shape[1]))
            or tiles.strides[-1] != tiles.itemsize
            or tiles.dtype != out.dtype
        ):
            for number, (row, (top, left)) in enumerate(zip(rows.tolist(), cuts, strict=True)):
                out[number] = tiles[row, self.places, top : top + size, left : left + size]
            return batch
        # a line of a cut as one item: half the time of line by line
        line = np.dtype((np.void, size * tiles.itemsize))
        lines = out.view(line)
        for number, (row, (top, left)) in enumerate(zip(rows.tolist(), cuts, strict=True)):
            np.copyto(lines[number], tiles[row, :, top : top + size, left : left + size].view(line))
        return batch

    def reflectance(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """
        Return float32 reflectance of counts, and where (n, 1, height, width) every band was
        measured.
        """
        values = counts.to(torch.float32, copy=True)
        valid = measured(values, self.card.missing).all(dim=1, keepdim=True)
        return meant(values, self.card), valid

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if isinstance(self.tiles, np.memmap) and self.tiles.filename is not None:
            # A mapped file is opened again where the reader is unpickled instead of being copied
            # there.
            state["tiles"] = Path(self.tiles.filename)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.tiles, Path):
            self.tiles = np.load(self.tiles, mmap_mode="r", allow_pickle=False)


def meant(stored: Tensor, of: Meaning) -> Tensor:
    """
    Return what stored numbers, as floats of any shape, mean; made where they are, in place.
    """
    if of.signed_square is not None:
        return squared(stored, of.signed_square)
    return stored.sub_(of.offset).mul_(of.scale)


def squared(stored: Tensor, root: float) -> Tensor:
    """
    Return the values of floats (of any shape) kept as signed square roots, see
    :class:`butterfly_sdm.imagery.embeddings.decoding.Decoding`; made where they are, in place.
    """
    return stored.mul_(stored.abs()).mul_(root**-2)


class ReadAhead(Generic[T]):
    """
    Iterate over something in one thread of its own, a few items ahead of the loop.

    Parameters
    ----------
    source
        Gives a fresh iterator each time. Errors in it are raised in the loop.
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
        source, end = iter(self.source), object()
        self.waited_s = 0.0
        with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
            steps = repeat((source, end))
            items = in_order(_step, steps, pool, in_flight=self.ahead + 1)
            while True:
                start = perf_counter()
                item = next(items)
                self.waited_s += perf_counter() - start
                if item is end:
                    return
                yield item


def _step(state: tuple[Iterator[Any], object]) -> Any:
    source, end = state
    return next(source, end)
