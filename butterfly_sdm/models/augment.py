"""
Changes of training sites that leave true what is said of them: images seen from above, numbers
known roughly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import KDTree
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

    def draw(
        self, count: int, bands: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
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
        ways = (
            torch.randint(8, (count,), generator=generator)
            if self.turn
            else torch.zeros(count, dtype=torch.int64)
        )
        return ways, light


def turned(images: Tensor, counts: Sequence[int]) -> Tensor:
    """
    Return images (n, bands, side, side) turned: the first ``counts[0]`` in way 0 of
    :func:`dihedral`, the next in way 1.

    Images of one way lie together, so that turning a batch is one copy and a GPU is never waited
    for.
    """
    if counts[0] == len(images):
        return images
    # Turning moves bytes: not every device turns unsigned numbers.
    bytes_of = images.view(torch.int16) if images.dtype == torch.uint16 else images
    parts = torch.split(bytes_of, list(counts))
    return torch.cat([dihedral(part, way) for way, part in enumerate(parts) if len(part)]).view(
        images.dtype
    )


def dihedral(image: Tensor, way: int) -> Tensor:
    """Return images turned by ``way % 4`` quarters, and flipped from 4 on."""
    turned = torch.rot90(image, way % 4, dims=(-2, -1))
    return turned.flip(-1) if way >= 4 else turned


@dataclass(frozen=True)
class Blur:
    """
    Noise on the numbers of training sites, so that no site can be told from its neighbours and
    learned by heart.

    Attributes
    ----------
    covariates
        (covariates,) standard deviations in their own units; None: exact.
    position
        (n,) standard deviation in metres for each site; None: exact.
    """

    covariates: Tensor | None = None
    position: Tensor | None = None

    def of(
        self, name: str, values: Tensor, places: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the ``covariates`` or the ``position`` of the sites at ``places`` with noise."""
        if name == "covariates" and self.covariates is not None:
            return values + self.covariates * torch.randn(values.shape, generator=generator)
        if name == "position" and self.position is not None:
            return values + self.position[places, None] * torch.randn(
                values.shape, generator=generator
            )
        return values


def distance_to_neighbour(position: Tensor, which: int) -> Tensor:
    """
    Return how far from each position (n, 2) the ``which``-th nearest of the others lies, in metres;
    0 where none is known.

    Where sites lie thick a position says more than where they lie thin.
    """
    places = position.double().numpy()
    known = np.isfinite(places).all(axis=1)
    out = torch.zeros(len(places))
    count = min(which, int(known.sum()) - 1)
    if count > 0:
        distance, _ = KDTree(places[known]).query(places[known], k=[count + 1])
        out[torch.from_numpy(known)] = torch.from_numpy(distance[:, 0]).float()
    return out
