"""
Standardise bands as pretrained weights were trained.

Weights of torchgeo carry the transform of the images they were trained on. All it does to the
values of a band is one straight line, which is found by asking it for images that hold one value.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from butterfly_sdm.errors import MissingPackageError, ModelError, how_to_install
from butterfly_sdm.imagery.products import canonical_band
from butterfly_sdm.models.foundation import galileo, terratorch
from butterfly_sdm.models.foundation.options import InputOptions
from butterfly_sdm.models.foundation.terratorch import PREFIX
from butterfly_sdm.models.stem import RGB

log = logging.getLogger("butterfly_sdm.models.foundation")

SENTINEL2_COUNTS = 10_000.0  # of a reflectance of 1
# SatlasPretrain takes red, green and blue from the true-colour image of Sentinel-2 (level 1C): it
# holds 255 at a reflectance of 0.3558.
TRUE_COLOUR_COUNTS = 255 / 0.3558
SIDE_PX = 64  # of the images that a transform is asked about


@dataclass(frozen=True)
class TrainedInputs:
    """
    Mean and standard deviation of bands, in their own values, that weights were trained with.

    Attributes
    ----------
    mean, std
        By the name of the band.
    source
        Where they are from, in words.
    """

    mean: dict[str, float]
    std: dict[str, float]
    source: str

    def apply(self, bands: Sequence[str], mean: Tensor, std: Tensor) -> None:
        """Overwrite the statistics (bands,) of the bands that are known; tell of the others."""
        known = [band for band in bands if band in self.mean]
        for place, band in enumerate(bands):
            if band in self.mean:
                mean[place], std[place] = self.mean[band], self.std[band]
        other = [band for band in bands if band not in self.mean]
        told = f"; {', '.join(other)} by the training tiles" if other else ""
        log.info("%s standardised as %s%s.", ", ".join(known), self.source, told)


def trained_inputs(
    options: InputOptions | None, weights: str | None, backbone: str
) -> TrainedInputs | None:
    """
    Return the statistics that weights were trained with; None: bands are standardised by the
    training tiles.

    Parameters
    ----------
    options
        What is stated; None: nothing.
    weights
        Name or file of the weights of the trunk.

    Raises
    ------
    ModelError, MissingPackageError
        What is stated does not fit together, is unknown, or its unit is.
    """
    options = options or InputOptions()
    if options.mean is not None or options.std is not None:
        return _stated(options)
    if options.like == "data":
        return None
    if options.like is not None:
        return _of_transform(torchgeo_weights(options.like, backbone), options)
    if weights is not None and (backbone.startswith(PREFIX) or backbone in galileo.SIZES):
        of = terratorch if backbone.startswith(PREFIX) else galileo
        mean, std = of.trained_statistics(backbone)
        counts = options.counts or SENTINEL2_COUNTS
        return TrainedInputs(
            {band: value / counts for band, value in mean.items()},
            {band: value / counts for band, value in std.items()},
            f"{backbone} was trained",
        )
    if weights is None or weights == "imagenet" or not _is_name(weights):
        return None
    return _of_transform(torchgeo_weights(weights, backbone), options)


def _is_name(weights: str) -> bool:
    return "/" not in weights and weights.split(".")[-1].isupper()


def torchgeo_weights(name: str, backbone: str) -> Any:
    """
    Return an entry of torchgeo's weights by its name, or by the name of its family and its own.

    Raises
    ------
    MissingPackageError, ModelError
        There is no torchgeo, or no such weights for this backbone.
    """
    try:
        from torchgeo import models
    except ImportError as error:
        raise MissingPackageError(
            f"The weights {name!r} come with torchgeo: {how_to_install('torchgeo')}."
        ) from error
    family: Any = None
    bare = backbone.removeprefix("timm:")
    if "." in name:
        family = getattr(models, name.split(".")[0], None)
    elif bare in models.list_models():
        try:
            family = models.get_model_weights(bare)
        except KeyError:  # a model without weights
            family = None
    own = name.split(".")[-1]
    if family is None or own not in family.__members__:
        known = ", ".join(family.__members__) if family is not None else "none"
        raise ModelError(
            f"There are no weights {name!r} for {backbone}. Known: imagenet, a local file, and "
            f"from torchgeo: {known}."
        )
    return family[own]


def bands_of(entry: Any) -> tuple[str, ...] | None:
    """Return the canonical names of the bands of torchgeo's weights; None if they do not say."""
    return tuple(canonical_band(str(band)) for band in entry.meta.get("bands") or ()) or None


def _stated(options: InputOptions) -> TrainedInputs:
    mean, std = (
        {canonical_band(band): value for band, value in (given or {}).items()}
        for given in (options.mean, options.std)
    )
    if set(mean) != set(std) or not mean or min(std.values()) <= 0 or options.like is not None:
        raise ModelError(
            "train.model.inputs needs mean and std of the same bands, std above 0, and then no "
            "like. Give both, or only like."
        )
    counts = options.counts or 1.0
    return TrainedInputs(
        {band: value / counts for band, value in mean.items()},
        {band: value / counts for band, value in std.items()},
        "stated in train.model.inputs",
    )


def _of_transform(entry: Any, options: InputOptions) -> TrainedInputs:
    names = bands_of(entry)
    if names is None:
        raise ModelError(
            f"The weights {entry} do not say what their bands are. State train.model.inputs: mean "
            "and std of each band, or like: data."
        )
    slope, level = pixel_line(entry.transforms, len(names), str(entry))
    counts = _counts(entry, names, options)
    std = 1 / (slope.double() * counts)
    mean = -level.double() * std
    return TrainedInputs(
        dict(zip(names, mean.tolist(), strict=True)),
        dict(zip(names, std.tolist(), strict=True)),
        f"{entry} were trained",
    )


def pixel_line(transform: Any, bands: int, name: str) -> tuple[Tensor, Tensor]:
    """
    Return slope and level (bands,) of the line that a transform of images makes of the values of
    each band.

    Raises
    ------
    ModelError
        It is no line, or mixes bands.
    """
    levels = torch.tensor([0.0, 1.0, 1000.0])
    answers = []
    for value in levels:
        image = torch.full((1, bands, SIDE_PX, SIDE_PX), float(value))
        answers.append(_middle(transform(image)))
    level, slope = answers[0], (answers[2] - answers[0]) / 1000
    lone = torch.zeros(1, bands, SIDE_PX, SIDE_PX)
    lone[:, 0] = 1000.0
    alone = _middle(transform(lone))
    expected = torch.cat([answers[2][:1], answers[0][1:]])
    straight = torch.allclose(answers[1], level + slope, rtol=1e-3, atol=1e-5)
    if len(level) != bands or not straight or not torch.allclose(alone, expected, atol=1e-4):
        raise ModelError(
            f"The transform of {name} does more to a band than subtract and divide. State "
            "train.model.inputs: mean and std of each band, or like: data."
        )
    return slope, level


def _middle(image: Tensor) -> Tensor:
    """Return the values in the middle (bands,): around a small image transforms put zeros."""
    return image[0, :, image.shape[-2] // 2, image.shape[-1] // 2].clone()


def _counts(entry: Any, names: Sequence[str], options: InputOptions) -> Tensor:
    """Return (bands,) the number that the weights were given for a value of 1."""
    name = entry.name
    if options.counts is not None:
        return torch.full((len(names),), options.counts, dtype=torch.float64)
    if name.startswith("SENTINEL1"):  # decibels, as they are
        return torch.ones(len(names), dtype=torch.float64)
    if not name.startswith("SENTINEL2"):
        raise ModelError(
            f"Nobody says in which unit {entry} were given their bands. State "
            "train.model.inputs.counts, the number that stood for a reflectance of 1, or like: "
            "data."
        )
    satlas = "SATLAS" in name
    return torch.tensor(
        [TRUE_COLOUR_COUNTS if satlas and band in RGB else SENTINEL2_COUNTS for band in names],
        dtype=torch.float64,
    )
