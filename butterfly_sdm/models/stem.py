"""Fit the first convolution of a trunk to the named bands in use."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from butterfly_sdm.errors import ModelError
from butterfly_sdm.imagery.products import canonical_band
from butterfly_sdm.models.options import StemRule

log = logging.getLogger("butterfly_sdm.models.stem")

RGB = ("red", "green", "blue")
# Order of the bands in weights trained on all 13 bands of Sentinel-2 level 1C (SSL4EO-S12); level
# 2A lacks the cirrus band.
SENTINEL2_L1C = tuple(
    canonical_band(f"B{number}")
    for number in ("01", "02", "03", "04", "05", "06", "07", "08", "8A", "09", "10", "11", "12")
)
SENTINEL2_L2A = tuple(band for band in SENTINEL2_L1C if band != canonical_band("B10"))


def fit_stem(
    weight: Tensor,
    source: Sequence[str],
    bands: Sequence[str],
    *,
    rule: StemRule = "inflate",
    seed: int = 0,
) -> Tensor:
    """
    Return filters for ``bands`` made from filters trained on the bands ``source``, matched by name.

    Parameters
    ----------
    weight
        (filters, len(source), height, width).
    source, bands
        Names of the bands of ``weight`` and of the tiles, in their orders.
    rule
        What a band gets that ``source`` lacks. ``inflate``: the mean of all source filters.
        ``random``: normal numbers of the same spread. Both then scale all filters by len(source) /
        len(bands), so that an image with equal bands gives the response it gave before [1]_.
        ``published``: nir becomes a copy of red and nothing is scaled [2]_.

    Returns
    -------
    Tensor of shape (filters, len(bands), height, width)

    Raises
    ------
    ModelError
        No band has filters, or ``published`` meets a band it says nothing about.

    References
    ----------
    .. [1] Carreira & Zisserman (2017). Quo vadis, action recognition? (inflation). CVPR.
    .. [2] van der Plas, Law & Pocock (2025). arXiv 2505.09306.
    """
    if weight.shape[1] != len(source):
        raise ModelError(
            f"The stem has filters for {weight.shape[1]} bands, but {len(source)} names: "
            f"{', '.join(source)}."
        )
    place = {name: number for number, name in enumerate(source)}
    absent = [band for band in bands if band not in place]
    if len(absent) == len(bands):
        raise ModelError(
            f"The pretrained stem knows {', '.join(source)}; the tiles have {', '.join(bands)}: no "
            "band in common."
        )
    generator = torch.Generator().manual_seed(seed)
    filters: list[Tensor] = []
    for band in bands:
        if band in place:
            filters.append(weight[:, place[band]])
        elif rule == "published":
            if band != "nir" or "red" not in place:
                raise ModelError(
                    f"The published stem copies red to nir; it has no filters for {band}. Use the "
                    "rule 'inflate'."
                )
            filters.append(weight[:, place["red"]])
        elif rule == "random":
            filters.append(
                torch.randn(weight[:, 0].shape, generator=generator) * weight.std() + weight.mean()
            )
        else:
            filters.append(weight.mean(dim=1))
    if absent:
        what = {
            "inflate": "the mean of the known ones",
            "published": "a copy of red",
            "random": "random numbers",
        }[rule]
        log.info("No pretrained filters for %s: its filters are %s.", ", ".join(absent), what)
    scale = 1.0 if rule == "published" else len(source) / len(bands)
    return torch.stack(filters, dim=1) * scale


def find_stem(trunk: nn.Module) -> tuple[str, nn.Conv2d]:
    """
    Return the name and the module of the first convolution of a trunk.

    Raises
    ------
    ModelError
        The trunk has none.
    """
    for name, module in trunk.named_modules():
        if isinstance(module, nn.Conv2d):
            return name, module
    raise ModelError(f"{type(trunk).__name__} has no convolution that could serve as a stem.")


def names_of_bands(count: int, bands: Sequence[str]) -> tuple[str, ...]:
    """
    Return the names of the bands of a stem that only says how many it has.

    Raises
    ------
    ModelError
        No convention fits the number.
    """
    if count == len(bands):
        return tuple(bands)
    known = {3: RGB, 12: SENTINEL2_L2A, 13: SENTINEL2_L1C}
    if count not in known:
        raise ModelError(
            f"The stem of these weights has {count} bands and the tiles have {len(bands)} "
            f"({', '.join(bands)}). "
            "Weights need the same bands, red green blue, or the 12 or 13 bands of Sentinel-2."
        )
    return known[count]
