"""Augmentations that are true of images taken from straight above."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """
    Flips and quarter turns of the ground, and small changes of the light.

    Attributes
    ----------
    turn
        Whether an image may be turned and flipped: one of eight ways, each as likely.
    gain
        Standard deviation of the factor on all bands (haze, sun).
    band_gain
        Standard deviation of the factor on each band (correction for the atmosphere).
    """

    turn: bool = True
    gain: float = 0.05
    band_gain: float = 0.02

    def draw(self, count: int, bands: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """
        Draw what happens to ``count`` images.

        Returns
        -------
        ways : Tensor of shape (count,), int64
            How each image is turned, see :func:`dihedral`.
        light : Tensor of shape (count, bands)
            Factors on the reflectance.
        """
        haze = self.gain * torch.randn(count, 1, generator=generator)
        light = 1 + haze + self.band_gain * torch.randn(count, bands, generator=generator)
        ways = torch.randint(8, (count,), generator=generator) if self.turn else torch.zeros(count, dtype=torch.int64)
        return ways, light


def turned(images: Tensor, counts: Sequence[int]) -> Tensor:
    """
    Return images (n, bands, side, side) turned: the first ``counts[0]`` in way 0 of :func:`dihedral`, the next in way 1.

    Images of one way lie together, so that turning a batch is one copy and a GPU is never waited for.
    """
    if counts[0] == len(images):
        return images
    # Turning moves bytes: not every device turns unsigned numbers.
    bytes_of = images.view(torch.int16) if images.dtype == torch.uint16 else images
    parts = bytes_of.split(list(counts))
    return torch.cat([dihedral(part, way) for way, part in enumerate(parts) if len(part)]).view(images.dtype)


def dihedral(image: Tensor, way: int) -> Tensor:
    """Return images turned by ``way % 4`` quarters, and flipped from 4 on."""
    turned = torch.rot90(image, way % 4, dims=(-2, -1))
    return turned.flip(-1) if way >= 4 else turned
