"""What can be said about rasters of embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from butterfly_sdm.core.settings import InputSource, Section, unset

Rule = Literal["none", "linear", "signed_square", "pixel_scale"]

#: What is known of a published layout, by the name of its preset.
PRESETS: dict[str, dict[str, Any]] = {
    "alphaearth": {"rule": "signed_square", "nodata": -128.0, "bands": 64},
    "tessera": {"rule": "pixel_scale", "bands": 128},
}


class EmbeddingReading(Section):
    """How the numbers of embeddings are stored; null where the preset or the files are to tell."""

    preset: Literal["alphaearth", "tessera"] | None = Field(
        None,
        description="a published layout: alphaearth (int8 of the signed square root) or tessera "
        "(int8 with a scale per pixel, or its GeoTIFF of fractions)",
    )
    rule: Rule | None = Field(
        None,
        description="none; linear: stored * scale + offset; signed_square: (stored / scale)^2 with "
        "the sign of stored; pixel_scale: stored * the scale of its pixel. Null: of the preset, "
        "else linear where the file states a scale or offset, else none",
    )
    scale: float | None = Field(
        None,
        gt=0,
        description="linear: null from the file, else 1; signed_square: null 127.5",
    )
    offset: float | None = Field(None, description="linear: null from the file, else 0")
    nodata: float | None = Field(
        None, description="stored number of pixels without a value; null: from the preset or file"
    )
    bands: int | None = Field(
        None, ge=1, description="how many bands there are to be; null: as many as the files have"
    )
    year: int | None = Field(
        None,
        ge=1980,
        le=2100,
        description="only files of this year, by the names of their folders and files, the dates "
        "of STAC items or the times of Zarr stores; null: all, which then have to be of one year",
    )

    layer: str | None = Field(
        None,
        description="which asset of STAC items, or array of Zarr stores; null: the only one",
        exclude_if=unset,
    )

    @property
    def known(self) -> dict[str, Any]:
        """What is stated, with the preset where nothing is."""
        stated = {
            name: getattr(self, name) for name in ("rule", "scale", "offset", "nodata", "bands")
        }
        preset = PRESETS[self.preset] if self.preset is not None else {}
        return {**preset, **{name: value for name, value in stated.items() if value is not None}}


class EmbeddingOptions(EmbeddingReading):
    """Embeddings as covariates: the mean and spread of every band around a site."""

    path: InputSource | tuple[InputSource, ...] = Field(
        description="files, folders of them, STAC items or collections, or Zarr stores, such as "
        "alphaearth/2023; rasters and STAC also by their addresses"
    )
    url: str | None = Field(
        None,
        pattern=r"^https?://",
        description="tessera: address of a version of the tiles; those around the sites are "
        "fetched into path",
        exclude_if=unset,
    )
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z]\w*$",
        description="how the columns begin, and what models call the group; null: the preset, else "
        "embedding",
    )
    side_m: tuple[float, ...] = Field(
        (100.0, 1000.0, 5000.0),
        min_length=1,
        description="sides of the squares around the site",
    )
    spread: bool = Field(True, description="the standard deviation in each square as well")

    @model_validator(mode="after")
    def _fetched(self) -> EmbeddingOptions:
        if self.url is not None and (
            self.preset != "tessera" or self.year is None or isinstance(self.path, tuple)
        ):
            raise ValueError("url is of preset tessera, with one path (a folder) and a year")
        return self

    @model_validator(mode="after")
    def _sides(self) -> EmbeddingOptions:
        if min(self.side_m) <= 0 or len(set(self.side_m)) < len(self.side_m):
            raise ValueError(f"side_m = {list(self.side_m)}; give each side once, above 0")
        return self

    @property
    def paths(self) -> tuple[Path | str, ...]:
        """All files and folders, and addresses as text."""
        return self.path if isinstance(self.path, tuple) else (self.path,)

    @property
    def group(self) -> str:
        """How the columns begin."""
        return self.name or self.preset or "embedding"
