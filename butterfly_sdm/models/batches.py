"""Sites in batches: what is read, in which order, and what the network makes of a batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from butterfly_sdm.models.augment import Augmentation, dihedral
from butterfly_sdm.models.inputs import SiteInputs, TileReader
from butterfly_sdm.models.presence_net import PresenceNet

Batch = dict[str, Tensor]


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
    crop
        Whether the cut may lie anywhere in a larger tile; else in its middle.
    """

    def __init__(
        self, inputs: SiteInputs, reader: TileReader | None, *, pooled: Tensor | None = None, crop: bool = False
    ) -> None:
        self.inputs, self.reader, self.pooled, self.crop = inputs, reader, pooled, crop

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, draw: Any) -> Batch:
        """Return the batch of ``(places, seed)``; crops follow from the seed, whenever the batch is fetched."""
        places, generator = torch.as_tensor(draw[0], dtype=torch.int64), torch.Generator().manual_seed(draw[1])
        inputs = self.inputs
        batch = {"place": places, "detections": inputs.detections[places], "visits": inputs.visits[places]}
        if inputs.covariates is not None:
            batch["covariates"] = inputs.covariates[places]
        if inputs.position is not None:
            batch["position"] = inputs.position[places]
        if inputs.tile_rows is None:
            return batch
        rows = inputs.tile_rows[places]
        batch["has_image"] = rows >= 0
        rows = rows[rows >= 0]
        if self.pooled is not None:
            views = (
                torch.randint(len(self.pooled), (len(rows),), generator=generator)
                if self.crop
                else torch.zeros(len(rows), dtype=torch.int64)
            )
            batch["pooled"] = self.pooled[views, places[batch["has_image"]]]
        elif self.reader is not None:
            corners = None
            if self.crop and max(self.reader.slack) > 0:
                most = torch.tensor(self.reader.slack)
                corners = (torch.rand(len(rows), 2, generator=generator) * (most + 1)).long()
            batch["counts"] = self.reader.read(rows, corners)
        return batch


class Shuffled(Sampler[tuple[list[int], int]]):
    """
    Batches of one process in an order that follows from the seed and the epoch alone, so that a resumed fit sees the same.

    A last batch of a single site joins the one before it: batch statistics need two.
    """

    def __init__(
        self, count: int, batch_size: int, *, seed: int, rank: int = 0, processes: int = 1, shuffle: bool = True
    ) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.processes, self.shuffle = rank, processes, shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch

    def _edges(self) -> list[int]:
        own = math.ceil(self.count / self.processes) if self.shuffle else len(range(self.rank, self.count, self.processes))
        edges = [*range(0, own, self.batch_size), own]
        if self.shuffle and len(edges) > 2 and edges[-1] - edges[-2] == 1:
            del edges[-2]
        return edges

    def __len__(self) -> int:
        return len(self._edges()) - 1

    def __iter__(self) -> Iterator[tuple[list[int], int]]:
        order = torch.arange(self.count)
        if self.shuffle:
            order = torch.randperm(self.count, generator=torch.Generator().manual_seed(self.seed * 100_003 + self.epoch))
            lacking = -self.count % self.processes  # every process takes equally many steps
            order = torch.cat([order, order[:lacking]])
        own = order[self.rank :: self.processes].tolist()
        edges = self._edges()
        first = (self.seed * 100_003 + self.epoch) * 1_009 + self.rank
        return iter([(own[start:end], first + 7_919 * start) for start, end in pairwise(edges)])


def predict_batch(
    net: PresenceNet, batch: Batch, reader: TileReader | None, augmentation: Augmentation | None = None
) -> tuple[Tensor, Tensor]:
    """Return logits and embeddings of one batch of :class:`SiteBatches`, on the device of the batch."""
    image = None
    if "counts" in batch and reader is not None:
        values, valid = reader.reflectance(batch["counts"])
        if augmentation is not None:
            values = augmentation.light(values)
        image = net.standardise(values, valid)
        if augmentation is not None:
            image = augmentation.turned(image)
        image = image.contiguous(memory_format=torch.channels_last)
    position = batch.get("position")
    return net(
        image, batch.get("covariates"), position, pooled=batch.get("pooled"), has_image=_unless_all(batch.get("has_image"))
    )


def _unless_all(mask: Tensor | None) -> Tensor | None:
    return None if mask is None or bool(mask.all()) else mask


def drop_modalities(batch: Batch, share: float) -> Batch:
    """Hide each modality of a random share of the sites, so that the network learns to do without."""
    out = dict(batch)
    for name in ("covariates", "position"):
        if name in batch:
            hidden = torch.rand(len(batch[name])) < share
            out[name] = batch[name].masked_fill(hidden.to(batch[name].device)[:, None], torch.nan)
    if "has_image" in batch and ("covariates" in batch or "position" in batch):
        hidden = (torch.rand(len(batch["has_image"])) < share).to(batch["has_image"].device)
        kept = batch["has_image"] & ~hidden
        for name in ("counts", "pooled"):
            if name in batch:
                out[name] = batch[name][kept[batch["has_image"]]]
        out["has_image"] = kept
    return out


def trunk_features(
    net: PresenceNet, inputs: SiteInputs, reader: TileReader, *, views: int, device: torch.device | str = "cpu"
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
        for places in (inputs.tile_rows >= 0).nonzero().flatten().split(32):
            values, valid = reader.reflectance(reader.read(inputs.tile_rows[places]).to(device))
            image = net.standardise(values, valid)
            for way in range(views):
                turned = dihedral(image, way).contiguous(memory_format=torch.channels_last)
                out[way, places] = net.pool(net.features(turned)).float().cpu()
    return out
