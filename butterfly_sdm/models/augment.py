"""Augmentations that are true of images taken from straight above."""

from __future__ import annotations

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

    def light(self, reflectance: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return reflectance (n, bands, height, width) under slightly other light."""
        n, bands = reflectance.shape[:2]
        factor = (
            1 + self.gain * torch.randn(n, 1, generator=generator) + self.band_gain * torch.randn(n, bands, generator=generator)
        )
        return reflectance * factor.to(reflectance.device)[:, :, None, None]

    def turned(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return each image (n, bands, side, side) turned in one of eight ways."""
        if not self.turn:
            return image
        ways = torch.randint(8, (len(image),), generator=generator)
        out = torch.empty_like(image)
        for way in ways.unique().tolist():
            rows = (ways == way).nonzero().flatten().to(image.device)
            out[rows] = dihedral(image[rows], way)
        return out


def dihedral(image: Tensor, way: int) -> Tensor:
    """Return images turned by ``way % 4`` quarters, and flipped from 4 on."""
    turned = torch.rot90(image, way % 4, dims=(-2, -1))
    return turned.flip(-1) if way >= 4 else turned
