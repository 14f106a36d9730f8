"""Prithvi and TerraMind, as TerraTorch has them: a feature vector per patch of Sentinel-2 bands."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from butterfly_sdm.errors import MissingPackageError, ModelError, did_you_mean, how_to_install

PREFIX = "terratorch:"
# TerraTorch's names of our bands.
NAMES = {
    "coastal": "COASTAL_AEROSOL",
    "blue": "BLUE",
    "green": "GREEN",
    "red": "RED",
    "rededge1": "RED_EDGE_1",
    "rededge2": "RED_EDGE_2",
    "rededge3": "RED_EDGE_3",
    "nir": "NIR_BROAD",
    "nir08": "NIR_NARROW",
    "nir09": "WATER_VAPOR",
    "swir16": "SWIR_1",
    "swir22": "SWIR_2",
}
MODALITY, OWN_MODALITY = "S2L2A", "untok_sen2l2a@224"


class TerraTorchBody(nn.Module):
    """
    A network of TerraTorch.

    Attributes
    ----------
    net
        As TerraTorch builds it for the bands.
    patch, skip
        Pixels per token, and the tokens before those of the image.
    """

    def __init__(self, name: str, bands: Sequence[str]) -> None:
        super().__init__()
        self.name, self.bands = name.removeprefix(PREFIX), tuple(bands)
        known = trained_bands(name)
        unknown = [band for band in bands if band not in known]
        if unknown:
            raise ModelError(
                f"{name} was trained with {', '.join(known)}, not with {unknown[0]!r}: its filters "
                "would be random. Name bands it knows in build.tiles.bands."
            )
        self.net = _build(self.name, self.bands)
        self.patch, self.skip = (16, 0) if _is_terramind(self.name) else (_patch(self.net), 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return the tokens (n, skip + patches, channels) of the last layer."""
        net: Any = self.net
        read = net if _is_terramind(self.name) else net.forward_features
        found: Tensor = read(image.contiguous())[-1]
        return found

    def load(self, state: Mapping[str, Tensor], source: str) -> None:
        """
        Replace the random start by weights, those of the bands in use.

        Raises
        ------
        ModelError
            They are of another network, or lack a part of it.
        """
        own = [name for name, _ in self.net.named_parameters() if "pos_emb" not in name]
        state = {name.replace("_timm_module.", ""): value for name, value in state.items()}
        prefix = next(
            (name.removesuffix(own[-1]) for name in state if name.endswith(own[-1])), None
        )
        bare = {n.removeprefix(prefix or ""): v for n, v in state.items()}
        lost = [name for name in own if name not in bare]
        if prefix is None or lost:
            raise ModelError(
                f"The weights {source!r} lack {len(lost) or len(own)} parts of {self.name}, such "
                f"as {(lost or own)[0]}. Choose the backbone they were trained for."
            )
        try:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "weights.pt"
                torch.save(bare, file)
                net = _build(self.name, self.bands, file)
        except (RuntimeError, KeyError, IndexError, ValueError) as error:
            raise ModelError(
                f"The weights {source!r} do not fit {self.name}: {str(error).splitlines()[0]}. "
                "Choose the backbone they were trained for."
            ) from error
        self.net.load_state_dict(net.state_dict())


def trained_statistics(name: str) -> tuple[dict[str, float], dict[str, float]]:
    """
    Return mean and standard deviation of the bands, in counts of reflectance × 10,000, that a
    network of TerraTorch was trained with.

    Raises
    ------
    MissingPackageError, ModelError
        There is no TerraTorch, or no such network.
    """
    name = name.removeprefix(PREFIX)
    ours = {theirs: own for own, theirs in NAMES.items()}
    _registry(name)
    if _is_terramind(name):
        from terratorch.models.backbones.terramind.model import terramind_register as known

        version = "v01" if "_v01_" in name else "v1"
        names = known.PRETRAINED_BANDS[OWN_MODALITY]
        mean = getattr(known, f"{version}_pretraining_mean")[OWN_MODALITY]
        std = getattr(known, f"{version}_pretraining_std")[OWN_MODALITY]
    else:
        from terratorch.models.backbones.prithvi_vit import prithvi_cfgs

        config = prithvi_cfgs[name]
        names, mean, std = config["bands"], config["mean"], config["std"]
    bands = [ours[str(getattr(band, "value", band))] for band in names]
    return dict(zip(bands, mean, strict=True)), dict(zip(bands, std, strict=True))


def trained_bands(name: str) -> tuple[str, ...]:
    """Return the bands that a network was trained with, by our names; raises as the statistics."""
    return tuple(trained_statistics(name)[0])


def _is_terramind(name: str) -> bool:
    return name.startswith("terramind_")


def _patch(net: Any) -> int:
    return int(net.patch_embed.patch_size[-1])


def _registry(name: str) -> Any:
    """Return TerraTorch's register of backbones, if it has one of that name that is run here."""
    try:
        from terratorch.registry import TERRATORCH_BACKBONE_REGISTRY as registry
    except ImportError as error:
        raise MissingPackageError(
            f"The backbone {name!r} comes with TerraTorch: {how_to_install('terratorch')}."
        ) from error
    known = [
        each
        for each in registry
        if each.startswith(("prithvi_eo_", "terramind_v"))
        and "tokenizer" not in each
        and not each.endswith("_tim")
    ]
    if name not in known:
        raise ModelError(
            f"There is no backbone {PREFIX}{name}; of TerraTorch {', '.join(known)} are run. "
            "Others it has are torchgeo's: give their weights by torchgeo's names."
            f"{did_you_mean(name, known)}"
        )
    return registry


def _build(name: str, bands: Sequence[str], weights: Path | None = None) -> nn.Module:
    registry, theirs = _registry(name), [NAMES[band] for band in bands]
    given: dict[str, Any] = {"pretrained": False}
    if weights is not None:
        given = {"pretrained": not _is_terramind(name), "ckpt_path": str(weights)}
    if _is_terramind(name):
        given |= {"modalities": [MODALITY], "bands": {MODALITY: theirs}}
    else:
        given |= {"bands": theirs}
    wanted = torch.get_default_device()
    with torch.device("cpu"):  # its plans are numbers, which the device meta has none of
        net: nn.Module = registry.build(name, **given)
    net = net.to(wanted)
    net.__dict__.pop("forward", None)  # a closure over this copy, which others would call too
    return net
