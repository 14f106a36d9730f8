"""How far a cell of a feature map sees."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def cell_reach_px(
    features: Callable[[Tensor], Tensor],
    bands: int,
    cell_px: int,
    device: torch.device | str = "cpu",
) -> int:
    """
    Return how far beyond its own ground a cell sees, in whole cells of pixels: 224 px for a
    ResNet-18.

    With a halo this wide around a block, its cells are what they would be in a block of any size.
    Found by asking which pixels the gradient of one cell reaches, up and down: layers are taken to
    see as far to the sides.

    Parameters
    ----------
    features
        From an image (1, bands, h, w) to a feature map (1, channels, h / cell_px, w / cell_px); a
        network in evaluation mode.
    """
    for cells in (17, 35):
        with torch.inference_mode(False), torch.enable_grad():
            image = torch.randn(
                1, bands, cells * cell_px, 3 * cell_px, generator=torch.Generator().manual_seed(0)
            )
            image = image.to(device).requires_grad_(True)
            middle = features(image)[0, :, cells // 2, 1]
            (seen,) = torch.autograd.grad(middle.sum(), image)
        rows = seen.abs().amax(dim=(0, 1, 3)).nonzero().flatten()
        reach = max(
            cells // 2 * cell_px - int(rows[0]), int(rows[-1]) - (cells // 2 + 1) * cell_px + 1
        )
        if reach < cells // 2 * cell_px:
            break
    return math.ceil(reach / cell_px) * cell_px
