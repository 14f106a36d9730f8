"""What can be said about tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from butterfly_sdm.core.settings import Fraction, InputPath, Section


class TileOptions(Section):
    """What is cut out around each site."""

    bands: tuple[str, ...] = Field(
        ("red", "green", "blue", "nir"), min_length=1, description="stored, in this order"
    )
    size_px: int = Field(
        256,
        ge=8,
        le=4096,
        description="side of a tile; a network needs at least window_px + 2 * margin_px",
    )
    resolution_m: float = Field(10.0, gt=0, description="side of a pixel")
    crs: str | None = Field(None, description="null: the scene's own")
    resampling: Literal["nearest", "bilinear", "cubic"] = Field(
        "bilinear", description="where tiles are not made of whole pixels of the scene"
    )
    lattice_m: float | None = Field(
        None,
        gt=0,
        description="centre tiles on the squares of a lattice in crs (EPSG:27700: National Grid), "
        "not on sites",
    )
    min_valid_fraction: Fraction = Field(
        0.5, description="tiles with fewer valid pixels are left out"
    )


class ReadyTileOptions(Section):
    """A folder with one GeoTIFF per site, as published."""

    folder: InputPath | tuple[InputPath, ...] = Field(description="folder of the files, or several")
    bands: tuple[str, ...] = Field(min_length=1, description="names of the bands in file order")
    pattern: str = Field("*{site_id}*.tif", description="file name of the tile of a site")
    nodata: int | float = Field(
        0,
        description="number that means no measurement; left out, of signed and fractional tiles "
        "that of the files",
    )
    scale: float = Field(1e-4, gt=0, description="reflectance per count")
    offset: float = Field(0.0, description="count of zero reflectance")

    @property
    def folders(self) -> tuple[Path, ...]:
        """All folders."""
        return (self.folder,) if isinstance(self.folder, Path) else self.folder
