"""
Galileo, as rslearn has it: a feature vector per patch of one Sentinel-2 picture.

Galileo [1]_ reads series of many sensors; here it is given the bands of one picture, as of the
middle of a year, and all else is hidden from it, which it was trained to bear.

References
----------
.. [1] G. Tseng et al. (2025), Galileo: Learning Global & Local Features of Many Remote Sensing
   Modalities. arXiv:2502.09356.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from butterfly_sdm.errors import MissingPackageError, ModelError, how_to_install
from butterfly_sdm.imagery.products import canonical_band

# Length, layers and heads of the published sizes.
SIZES = {"galileo_nano": (128, 4, 8), "galileo_tiny": (192, 12, 3), "galileo_base": (768, 12, 12)}
MLP_RATIO, LONGEST, PATCH = 4, 24, 8
MONTH = 5  # counted from 0


class GalileoBody(nn.Module):
    """
    The encoder of Galileo.

    Attributes
    ----------
    net
        As rslearn has it.
    groups
        The numbers of its groups of bands that the image has.
    """

    def __init__(self, name: str, bands: Sequence[str]) -> None:
        super().__init__()
        library = _library(name)
        self.name = name
        ours = [canonical_band(band) for band in library.SPACE_TIME_BANDS]
        groups = {
            key: [ours[at] for at in found]
            for key, found in library.SPACE_TIME_BANDS_GROUPS_IDX.items()
            if key.startswith("S2_")
        }
        whole = {key: held for key, held in groups.items() if set(held) <= set(bands)}
        rest = [band for band in bands if not any(band in held for held in whole.values())]
        if rest:
            told = "; ".join(", ".join(held) for held in groups.values())
            raise ModelError(
                f"{name} takes groups of bands as a whole ({told}), so that it cannot see "
                f"{rest[0]!r} beside {', '.join(band for band in bands if band != rest[0])}. Give "
                "whole groups."
            )
        keys = list(library.SPACE_TIME_BANDS_GROUPS_IDX)
        self.groups = tuple(keys.index(key) for key in whole)
        self.places = tuple(ours.index(band) for band in bands)
        length, layers, heads = SIZES[name]
        wanted = torch.get_default_device()
        with torch.device("cpu"):  # its plans are numbers, which the device meta has none of
            net: nn.Module = library.Encoder(
                max_patch_size=PATCH,
                embedding_size=length,
                depth=layers,
                mlp_ratio=MLP_RATIO,
                num_heads=heads,
                max_sequence_length=LONGEST,
            )
        self.net = net.to(wanted)
        self.sizes = tuple(
            (len(own), len(held))
            for own, held in (
                (library.SPACE_TIME_BANDS, library.SPACE_TIME_BANDS_GROUPS_IDX),
                (library.SPACE_BANDS, library.SPACE_BAND_GROUPS_IDX),
                (library.TIME_BANDS, library.TIME_BAND_GROUPS_IDX),
                (library.STATIC_BANDS, library.STATIC_BAND_GROUPS_IDX),
            )
        )

    def forward(self, image: Tensor) -> Tensor:
        """
        Return the features (n, channels, side / 8, side / 8) of square images.

        Raises
        ------
        ModelError
            They are not square.
        """
        n, _, height, width = image.shape
        if height != width:
            raise ModelError(
                f"{self.name} sees square images only, these have {height} x {width} pixels. Set "
                "map.mode: exact."
            )
        extent = ((n, height, width, 1), (n, height, width), (n, 1), (n,))
        values = [
            image.new_zeros(*shape, bands)
            for shape, (bands, _) in zip(extent, self.sizes, strict=True)
        ]
        hidden = [
            image.new_ones(*shape, groups)
            for shape, (_, groups) in zip(extent, self.sizes, strict=True)
        ]
        # two standard deviations below the mean are 0, two above are 1
        values[0][..., list(self.places)] = image.permute(0, 2, 3, 1)[:, :, :, None] / 4 + 0.5
        hidden[0][..., list(self.groups)] = 0
        months = torch.full((n, 1), MONTH, device=image.device, dtype=torch.long)
        net: Any = self.net
        tokens = net(*values, *hidden, months=months, patch_size=PATCH)[0]  # (n, h, w, 1, g, d)
        found: Tensor = tokens[:, :, :, 0, list(self.groups)].mean(dim=3).permute(0, 3, 1, 2)
        return found

    def load(self, state: Mapping[str, Tensor], source: str) -> None:
        """
        Replace the random start by weights.

        Raises
        ------
        ModelError
            They are of another network.
        """
        bare = {name.replace(".backbone", ""): value for name, value in state.items()}
        own = self.net.state_dict()
        wrong = [k for k, value in own.items() if k not in bare or bare[k].shape != value.shape]
        if wrong:
            raise ModelError(
                f"The weights {source!r} lack {len(wrong)} parts of {self.name}, such as "
                f"{wrong[0]}, or have them in another size. Give encoder.pt of that size."
            )
        self.net.load_state_dict({name: bare[name] for name in own})


def trained_statistics(name: str) -> tuple[dict[str, float], dict[str, float]]:
    """
    Return mean and standard deviation of the bands of Sentinel-2, in counts, that Galileo was
    trained with.

    Raises
    ------
    MissingPackageError
        There is no rslearn.
    """
    library = _library(name)
    known = library.Normalizer().shift_div_dict[len(library.SPACE_TIME_BANDS)]
    mean, std = {}, {}
    for at, band in enumerate(library.SPACE_TIME_BANDS):
        if band in library.S2_BANDS:
            low, width = float(known["shift"][at]), float(known["div"][at])
            mean[canonical_band(band)], std[canonical_band(band)] = low + width / 2, width / 4
    return mean, std


def _library(name: str) -> Any:
    try:
        from rslearn.models.galileo import single_file_galileo
    except ImportError as error:
        raise MissingPackageError(
            f"The backbone {name!r} comes with rslearn: {how_to_install('galileo')}."
        ) from error
    return single_file_galileo
