"""
The first stage of the trunk for embeddings on stored numbers, a few of them at a time.

It sees single pixels and then takes the mean of 4 x 4 of them, so that a map of many bands need
never hold them all as fractions: they are decoded, multiplied and summed while they lie in the
cache of a core. What standardises them is taken into the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from butterfly_sdm.imagery.blocks import BlockGrid, by_pixel
from butterfly_sdm.imagery.scene import Scene
from butterfly_sdm.mapping.surfaces.parts import Part

CHUNK_VALUES = 1 << 17  # stored numbers decoded at a time; on a GPU 128 times as many


@dataclass(frozen=True, eq=False)
class PixelStage:
    """
    Decoding, standardising and the first stage of the trunk as one.

    Attributes
    ----------
    weight, bias
        (bands, channels) and (channels,) for decoded numbers.
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
        return cls(weight.float().t().contiguous(), level.float(), blank.float(), int(size), root)

    def run(self, parts: Iterable[Part], height: int, width: int) -> tuple[Tensor, bool]:
        """
        Return the stage (1, channels, height / pool, width / pool) of the parts of a window, each
        pixel of it in one, and whether any of them is measured.
        """
        pool, channels = self.pool, len(self.bias)
        out = torch.zeros(height // pool, width // pool, channels, device=self.weight.device)
        room, seen = Room(), False
        for part in parts:
            seen |= bool(part.valid.any())
            self._add(part, out, room)
        return out.permute(2, 0, 1)[None], seen

    def _add(self, part: Part, out: Tensor, room: Room) -> None:
        """Add a part to the means (rows, columns, channels)."""
        pool, (bands, height, width) = self.pool, part.values.shape
        most = CHUNK_VALUES if self.weight.device.type == "cpu" else 128 * CHUNK_VALUES
        wide = max(1, most // (bands * pool * pool)) * pool
        chunks = BlockGrid(0, part.column // pool * pool, pool, wide)
        columns = chunks.columns(part.column, part.column + width)
        pixels = by_pixel(part.values)  # as they lie in memory, so that copies are fast
        stored = torch.from_numpy(np.moveaxis(part.values, 0, -1) if pixels else part.values)
        whole, none = bool(part.valid.all()), not part.valid.any()
        for top, bottom in chunks.rows(part.row, part.row + height):
            rows = slice(top - part.row, bottom - part.row)
            for left, right in columns:
                inner = rows, slice(left - part.column, right - part.column)
                valid = None if whole else part.valid[inner]
                if none or (valid is not None and not valid.any()):
                    seen = self.blank.relu().repeat((bottom - top) * (right - left), 1)
                else:
                    seen = self._pixels(stored[inner if pixels else (..., *inner)], pixels, room)
                    if valid is not None and not valid.all():
                        missing = torch.from_numpy(~valid.ravel()).to(seen.device)
                        seen[missing] = self.blank.relu()
                self._pool(seen, (top, bottom, left, right), out, room)

    def _pixels(self, stored: Tensor, pixels: bool, room: Room) -> Tensor:
        """
        Return (pixels, channels), row by row, of stored numbers (bands, rows, columns), or (rows,
        columns, bands) where ``pixels`` says so.
        """
        bands, channels = self.weight.shape
        size, like = stored.numel(), self.weight
        image = room.take("image", tuple(stored.shape), like).copy_(stored)
        if self.root is not None:  # which is in the weights
            image.mul_(torch.abs(image, out=room.take("spare", tuple(stored.shape), like)))
        if pixels:
            each = room.take("image", (size // bands, bands), like)
        else:
            each = room.take("image", (bands, size // bands), like).t()
        seen = room.take("seen", (size // bands, channels), like)
        return torch.addmm(self.bias, each, self.weight, out=seen).relu_()

    def _pool(
        self, seen: Tensor, where: tuple[int, int, int, int], out: Tensor, room: Room
    ) -> None:
        """Add pixels between rows and columns of the window to the means that they belong to."""
        (top, bottom, left, right), pool = where, self.pool
        first, cells = left // pool, -(-right // pool) - left // pool
        shape, channels = (bottom - top, right - left), seen.shape[1]
        whole = shape == (pool, cells * pool)
        image = seen.view(*shape, channels)
        if not whole:  # the others are in other parts
            padded = room.take("padded", (pool, cells * pool, channels), self.weight).zero_()
            columns = slice(left - first * pool, right - first * pool)
            padded[: shape[0], columns] = image
            image = padded
        # laid out as its kernel for channels side by side wants it
        laid = image.view(1, pool, cells * pool, channels).permute(0, 3, 1, 2)
        mean = nn.functional.avg_pool2d(laid, pool).permute(0, 2, 3, 1)[0, 0]
        into = out[top // pool, first : first + cells]
        into.copy_(mean) if whole else into.add_(mean)


class Room:
    """What chunks are made in, one after the other: fresh pages cost more than what fills them."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}
        self._shaped: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return numbers whose content means nothing, the same memory for one name."""
        shaped = self._shaped.get((name, shape))
        if shaped is None:
            held, size = self._held.get(name), math.prod(shape)
            if held is None or held.numel() < size:
                held = self._held[name] = torch.empty(size, device=like.device)
                self._shaped = {key: old for key, old in self._shaped.items() if key[0] != name}
            shaped = self._shaped[name, shape] = held[:size].view(shape)
        return shaped
