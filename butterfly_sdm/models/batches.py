"""Sites in batches: what is read, in which order, and what the network makes of a batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from butterfly_sdm.data.tiles import TileReader, squared
from butterfly_sdm.imagery.pixels import measured
from butterfly_sdm.models.augment import Augmentation, Blur, dihedral, turned
from butterfly_sdm.models.inputs import SiteInputs
from butterfly_sdm.models.presence_net import PresenceNet, Seen

# Tensors by name, and under ``turns`` how many of the images are turned in each way.
Batch = dict[str, Any]


class SiteBatches(TorchDataset[Batch]):
    """
    One part of a split as batches; whether it is augmented is fixed here and never toggled.

    Parameters
    ----------
    inputs
        The sites.
    reader
        Cuts tiles; None without imagery.
    pooled
        (views, n, channels) features of a frozen trunk, computed once; then no tile is read.
    augmentation
        What is done to images: beside its turns and lights the cut may lie anywhere in a larger
        tile. None: nothing, the cut is the middle.
    blur
        Noise on covariates and positions. None: they are exact.
    hide
        Share of sites from which each modality is hidden, so that the network learns to do without.
    """

    def __init__(
        self,
        inputs: SiteInputs,
        reader: TileReader | None,
        *,
        pooled: Tensor | None = None,
        augmentation: Augmentation | None = None,
        blur: Blur | None = None,
        hide: float = 0.0,
    ) -> None:
        self.inputs, self.reader, self.pooled = inputs, reader, pooled
        self.augmentation, self.blur, self.hide = augmentation, blur, hide

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def reads_tiles(self) -> bool:
        """Whether a batch holds pixels."""
        return self.inputs.tile_rows is not None and self.pooled is None and self.reader is not None

    def __getitem__(self, draw: tuple[Sequence[int], int]) -> Batch:
        """
        Return the batch of some places; what is drawn at random follows from the number beside
        them.
        """
        return self.load(draw)

    def load(self, draw: tuple[Sequence[int], int], *, into: Tensor | None = None) -> Batch:
        """
        Return the batch of some places; what is drawn at random follows from the number beside
        them, whenever it is loaded.

        Parameters
        ----------
        into
            Memory for the tiles, see :meth:`butterfly_sdm.data.tiles.TileReader.read`.
        """
        places, generator = (
            torch.as_tensor(draw[0], dtype=torch.int64),
            torch.Generator().manual_seed(draw[1]),
        )
        inputs, reader, augmentation = self.inputs, self.reader, self.augmentation
        ways = light = None
        if reader is not None and self.reads_tiles and augmentation is not None:
            ways, light = augmentation.draw(len(places), len(reader.places), generator)
            order = ways.argsort(stable=True)  # images turned alike lie together
            places, ways, light = places[order], ways[order], light[order]

        def hidden() -> Tensor:
            return torch.rand(len(places), generator=generator) < self.hide

        batch: Batch = {
            "place": places,
            "detections": inputs.detections[places],
            "visits": inputs.visits[places],
        }
        if inputs.evidence is not None:
            batch["evidence"] = inputs.evidence[places]
        for name, table in (("covariates", inputs.covariates), ("position", inputs.position)):
            if table is not None:
                batch[name] = table[places]
                if self.blur is not None:
                    batch[name] = self.blur.of(name, batch[name], places, generator)
                if self.hide > 0:
                    batch[name] = batch[name].masked_fill(hidden()[:, None], torch.nan)
        if inputs.tile_rows is None:
            return batch
        rows = inputs.tile_rows[places]
        seen = rows >= 0
        if self.hide > 0 and ("covariates" in batch or "position" in batch):
            seen = seen & ~hidden()
        if not bool(seen.all()):
            batch["has_image"] = seen
        rows = rows[seen]
        if self.pooled is not None:
            views = torch.zeros(len(rows), dtype=torch.int64)
            if augmentation is not None:
                views = torch.randint(len(self.pooled), (len(rows),), generator=generator)
            batch["pooled"] = self.pooled[views, places[seen]]
        elif reader is not None:
            corners = None
            if augmentation is not None and max(reader.slack) > 0:
                corners = (
                    torch.rand(len(rows), 2, generator=generator) * (torch.tensor(reader.slack) + 1)
                ).long()
            batch["counts"] = reader.read(rows, corners, into=into)
            if ways is not None and light is not None:
                batch["light"] = light[seen]
                batch["turns"] = torch.bincount(ways[seen], minlength=8).tolist()
        return batch


class Feed:
    """
    The batches of one part, epoch after epoch in the order of a sampler.

    Parameters
    ----------
    part, order
        What is read, and in which order.
    pin
        Whether batches lie in page-locked memory, from which a GPU fetches them while it computes.
    keep
        Batches that may be in use at once; the tiles of older ones are written over.
    """

    def __init__(
        self, part: SiteBatches, order: Shuffled, *, pin: bool = False, keep: int = 1
    ) -> None:
        self.part, self.order, self.pin, self.keep = part, order, pin, keep

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        reader = self.part.reader if self.part.reads_tiles else None
        if self.pin:
            # Each batch has memory of its own: PyTorch gives it out again only after the device has
            # fetched it.
            for draw in self.order:
                batch = self.part.load(
                    draw, into=None if reader is None else reader.memory(len(draw[0]), pin=True)
                )
                yield {
                    name: value.pin_memory()
                    if isinstance(value, Tensor) and not value.is_pinned()
                    else value
                    for name, value in batch.items()
                }
            return
        memory = (
            [reader.memory(self.order.largest) for _ in range(self.keep)]
            if reader is not None
            else [None]
        )
        for number, draw in enumerate(self.order):
            yield self.part.load(draw, into=memory[number % len(memory)])


class Shuffled(Sampler[tuple[list[int], int]]):
    """
    Batches of one process in an order that follows from the seed and the epoch alone, so that a
    resumed fit sees the same.

    A last batch of a single site joins the one before it: batch statistics need two.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        shuffle: bool = True,
    ) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.processes, self.shuffle = rank, processes, shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch

    def _edges(self) -> list[int]:
        own = (
            math.ceil(self.count / self.processes)
            if self.shuffle
            else len(range(self.rank, self.count, self.processes))
        )
        edges = [*range(0, own, self.batch_size), own]
        if self.shuffle and len(edges) > 2 and edges[-1] - edges[-2] == 1:
            del edges[-2]
        return edges

    @property
    def largest(self) -> int:
        """Sites of the largest batch."""
        return max((end - start for start, end in pairwise(self._edges())), default=0)

    def __len__(self) -> int:
        return len(self._edges()) - 1

    def __iter__(self) -> Iterator[tuple[list[int], int]]:
        order = torch.arange(self.count)
        if self.shuffle:
            order = torch.randperm(
                self.count,
                generator=torch.Generator().manual_seed(self.seed * 100_003 + self.epoch),
            )
            lacking = -self.count % self.processes  # every process takes equally many steps
            order = torch.cat([order, order[:lacking]])
        own = order[self.rank :: self.processes].tolist()
        edges = self._edges()
        first = (self.seed * 100_003 + self.epoch) * 1_009 + self.rank
        return iter([(own[start:end], first + 7_919 * start) for start, end in pairwise(edges)])


def see_batch(net: PresenceNet, batch: Batch, reader: TileReader | None) -> Seen:
    """
    Return features and embeddings of one batch of :class:`SiteBatches`, on the device of the batch.
    """
    image = None
    if "counts" in batch and reader is not None:
        image = image_of(
            net, batch["counts"], reader, light=batch.get("light"), turns=batch.get("turns")
        )
    return net.see(
        image,
        batch.get("covariates"),
        batch.get("position"),
        pooled=batch.get("pooled"),
        has_image=batch.get("has_image"),
    )


def predict_batch(
    net: PresenceNet, batch: Batch, reader: TileReader | None
) -> tuple[Tensor, Tensor]:
    """
    Return logits and embeddings of one batch of :class:`SiteBatches`, on the device of the batch.
    """
    joined = see_batch(net, batch, reader).joined
    return net.classify(joined), joined


def image_of(
    net: PresenceNet,
    counts: Tensor,
    reader: TileReader,
    *,
    light: Tensor | None = None,
    turns: Sequence[int] | None = None,
) -> Tensor:
    """
    Return the input of the trunk for counts, in few passes over the pixels.

    Parameters
    ----------
    counts
        (n, bands, side, side) stored numbers.
    light
        (n, bands) factors on the reflectance; None: 1.
    turns
        How many images are turned in each way, see :func:`butterfly_sdm.models.augment.turned`;
        None: none.

    Returns
    -------
    Tensor of shape (n, bands, side, side), float32, channels last
        What :meth:`PresenceNet.standardise` makes of the reflectance.
    """
    if turns is not None:
        counts = turned(counts, turns)
    image = counts.to(torch.float32, memory_format=torch.channels_last, copy=True)
    valid = measured(image, reader.card.missing).all(dim=1, keepdim=True)
    scale, offset = reader.card.scale, reader.card.offset
    if reader.card.signed_square is not None:
        image, scale, offset = squared(image, reader.card.signed_square), 1.0, 0.0
    # (bands,) or (n, bands)
    factor = scale / net.std if light is None else scale / net.std * light
    shift = -offset * factor - net.mean / net.std
    return (
        image.mul_(factor[..., None, None]).add_(shift[..., None, None]).masked_fill_(~valid, 0.0)
    )


def trunk_features(
    net: PresenceNet,
    inputs: SiteInputs,
    reader: TileReader,
    *,
    views: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """
    Run a frozen trunk once over all tiles.

    Returns
    -------
    Tensor of shape (views, n, channels)
        Pooled features of each tile turned in ``views`` ways; 0 for a site without a tile.
    """
    assert net.trunk is not None and inputs.tile_rows is not None
    net.to(device).eval()
    out = torch.zeros(views, len(inputs), net.trunk.channels)
    with torch.inference_mode():
        seen = (inputs.tile_rows >= 0).nonzero().flatten()
        for places in torch.split(seen, reader.at_once):
            image = image_of(net, reader.read(inputs.tile_rows[places]).to(device), reader)
            for way in range(views):
                turned = dihedral(image, way).contiguous(memory_format=torch.channels_last)
                out[way, places] = net.pool(net.features(turned)).float().cpu()
    return out
