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
        # used again for every chunk: fresh pages cost more than what is done in them
        room = [torch.empty(bands, pool, wide, device=device) for _ in range(2)]
        whole = bool(valid.all())
        for top in range(0, height, pool):
            for left in range(0, width, wide):
                rows, cols = slice(top, top + pool), slice(left, min(left + wide, width))
                there = None if whole else valid[rows, cols]
                part = torch.from_numpy(values[:, rows, cols])
                found = self._chunk(part, there, [one[..., : part.shape[2]] for one in room])
                out[0, :, top // pool, left // pool : cols.stop // pool] = found
        return out

    def _chunk(self, stored: Tensor, valid: np.ndarray | None, room: list[Tensor]) -> Tensor:
        """Return (channels, width / pool) of ``pool`` rows of stored numbers."""
        image, spare = room
        image.copy_(stored)
        if self.root is not None:
            image.mul_(torch.abs(image, out=spare))  # the root is in the weights
        flat = image.reshape(len(image), -1)
        seen = torch.addmm(self.bias[:, None], self.weight, flat)
        if valid is not None and not valid.all():
            gone = torch.from_numpy(np.flatnonzero(~valid)).to(seen.device)
            seen[:, gone] = self.blank[:, None]
        rows = seen.relu_().view(len(seen), self.pool, -1).sum(dim=1)
        return rows.view(len(seen), -1, self.pool).sum(dim=-1).div_(self.pool**2)
