"""
The first layer of the trunk for embeddings on stored numbers, a few of them at a time.

It sees single pixels and then takes the mean of 4 x 4 of them, so that a map of many bands need
never hold them all as fractions: they are decoded, multiplied and summed while they lie in the
cache of a core. What standardises them is taken into the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from butterfly_sdm.imagery.scene import Scene

CHUNK_VALUES = 1 << 18  # stored numbers decoded at a time; on a GPU 64 times as many


@dataclass(frozen=True, eq=False)
class PixelStage:
    """
    Decoding, standardising and the first stage of the trunk as one.

    Attributes
    ----------
    weight, bias
        (channels, bands) and (channels,) for decoded numbers.
    blank
        (channels,) what a pixel without a measurement gives, which is shown as the mean.
    pool
        Pixels along the side of what the mean is taken over.
    root
        Of numbers kept as signed square roots, see
        :attr:`butterfly_sdm.imagery.scene.Scene.signed_square`.
    """

    weight: Tensor
    bias: Tensor
    blank: Tensor
    pool: int
    root: float | None

    @classmethod
    def of(cls, stage: nn.Module, mean: Tensor, std: Tensor, scene: Scene) -> PixelStage:
        """
        Return the stage for the numbers of a scene.

        Parameters
        ----------
        stage
            Convolution of 1 x 1 with the batch normalisation folded into it, and a mean.
        mean, std
            (bands,) with which values are standardised.
        """
        convolution = next(m for m in stage.modules() if isinstance(m, nn.Conv2d))
        pool = next(m for m in stage.modules() if isinstance(m, nn.AvgPool2d))
        weight = convolution.weight.detach()[:, :, 0, 0].double()
        assert convolution.bias is not None  # of the normalisation
        blank = convolution.bias.detach().double()
        mean, std = (value.detach().double().to(weight.device) for value in (mean, std))
        root = scene.signed_square
        scale, offset = (scene.scale, scene.offset) if root is None else (1.0, 0.0)
        level = blank + weight @ ((-offset * scale - mean) / std)
        size = pool.kernel_size if isinstance(pool.kernel_size, int) else pool.kernel_size[0]
        weight = weight * (scale / std if root is None else root**-2 / std)
        return cls(weight.float(), level.float(), blank.float(), int(size), root)

    def run(self, values: np.ndarray, valid: np.ndarray) -> Tensor:
        """
        Return the stage (1, channels, height / pool, width / pool) of stored numbers.

        Parameters
        ----------
        values : (bands, height, width)
        valid : (height, width) bool
        """
        bands, height, width = values.shape
        pool, device = self.pool, self.weight.device
        most = CHUNK_VALUES if device.type == "cpu" else 64 * CHUNK_VALUES
        wide = min(width, max(pool, most // (bands * pool) // pool * pool))
        out = torch.empty(
            (1, len(self.weight), height // pool, width // pool),
            device=device,
            memory_format=torch.channels_last,
        )
        whole = bool(valid.all())
        for left in range(0, width, wide):
            cols = slice(left, min(left + wide, width))
            room = Room.of(bands, len(self.weight), pool, cols.stop - left, device)
            for top in range(0, height, pool):
                rows = slice(top, top + pool)
                found = out[0, :, top // pool, left // pool : cols.stop // pool]
                there = None if whole else valid[rows, cols]
                if there is not None and not there.any():
                    found.copy_(self.blank.relu()[:, None].expand_as(found))
                    continue
                self._chunk(torch.from_numpy(values[:, rows, cols]), there, room, found)
        return out

    def _chunk(self, stored: Tensor, valid: np.ndarray | None, room: Room, found: Tensor) -> None:
        """Fill (channels, width / pool) from ``pool`` rows of stored numbers."""
        image, spare, seen, rows = room.image, room.spare, room.seen, room.rows
        image.copy_(stored)
        if self.root is not None:
            torch.abs(image, out=spare)
            image.mul_(spare)  # the root is in the weights
        flat = seen.view(len(seen), -1)
        torch.addmm(self.bias[:, None], self.weight, image.view(len(image), -1), out=flat)
        if valid is not None and not valid.all():
            gone = torch.from_numpy(~valid).to(seen.device)
            torch.where(gone, self.blank[:, None, None], seen, out=seen)
        torch.sum(seen.relu_(), dim=1, out=rows)
        torch.sum(rows.view(len(rows), -1, self.pool), dim=-1, out=room.cells)
        torch.mul(room.cells, self.pool**-2, out=found)


@dataclass(frozen=True, eq=False)
class Room:
    """
    What chunks are made in, one after the other: fresh pages cost more than what is done in them.

    Attributes
    ----------
    image, spare
        (bands, pool, width).
    seen, rows, cells
        (channels, pool, width), their sums over rows (channels, width), and over squares.
    """

    image: Tensor
    spare: Tensor
    seen: Tensor
    rows: Tensor
    cells: Tensor

    @classmethod
    def of(cls, bands: int, channels: int, pool: int, width: int, device: torch.device) -> Room:
        """Return room for chunks of one width."""
        shapes: list[tuple[int, ...]] = [(bands, pool, width)] * 2
        shapes += [(channels, pool, width), (channels, width), (channels, width // pool)]
        return cls(*(torch.empty(shape, device=device) for shape in shapes))
