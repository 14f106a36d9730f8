"""What can be said about the numbers that a pretrained trunk is given."""

from __future__ import annotations

from pydantic import Field

from butterfly_sdm.core.settings import Fraction, Section


class InputOptions(Section):
    """How bands are standardised for a pretrained trunk."""

    like: str | None = Field(
        None,
        description="data: by the training tiles; or as torchgeo's weights of this name, such as "
        "SENTINEL2_ALL_DINO, were trained; null: as those in weights, else by the training tiles",
    )
    counts: float | None = Field(
        None,
        gt=0,
        description="number the weights were given for a value of 1, such as 10000 for reflectance "
        "in counts; null: as of Sentinel-2 and Sentinel-1 of torchgeo",
    )
    mean: dict[str, float] | None = Field(
        None, description="of each band while the weights were trained, in counts; with std"
    )
    std: dict[str, float] | None = Field(None, description="of each band, in counts; with mean")


class EmbedOptions(Section):
    """Which foundation model embeds a scene, and what it sees at once."""

    backbone: str = Field(
        "vit_small_patch16_224", description="transformer or other trunk of timm or torchgeo"
    )
    weights: str = Field(description="local file, or the name of torchgeo's weights")
    inputs: InputOptions | None = Field(
        None, description="null: of torchgeo's weights as they were trained"
    )
    bands: tuple[str, ...] | None = Field(
        None, description="of the scene; null: those the weights were trained with"
    )
    image_px: int = Field(224, ge=16, description="side of the images it sees")
    margin_px: int = Field(
        0, ge=0, description="of each image that the next ones tell as well, and that is left out"
    )
    batch_size: int = Field(8, ge=1, description="images at a time")
    min_valid_fraction: Fraction = Field(
        0.5, description="patches with fewer measured pixels have no value"
    )
