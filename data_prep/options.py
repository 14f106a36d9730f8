"""What can be said about building a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from butterfly_sdm.core.settings import InputPath, Section, unset
from butterfly_sdm.data.options import SplitOptions
from butterfly_sdm.imagery.embeddings.options import EmbeddingOptions
from butterfly_sdm.imagery.options import SceneOptions
from data_prep.imagery.options import ReadyTileOptions, TileOptions
from data_prep.records.options import RecordsOptions


class CovariateRasterOptions(Section):
    """A raster that gives numbers per site: its mean, or the share of each class."""

    path: InputPath = Field(description="the raster, in any CRS")
    name: str = Field(pattern=r"^\w+$", description="how its columns begin")
    kind: Literal["mean", "fractions"] = Field(
        "mean", description="fractions: share of each class around the site"
    )
    side_m: tuple[float, ...] = Field(
        (1000.0,), min_length=1, description="side of the square around the site, or several"
    )
    classes: dict[int, str] | None = Field(
        None, description="fractions: value and name of the classes; null: all that occur"
    )
    band: int = Field(1, ge=1, description="band of the file, counted from 1")
    unit: str = Field("", description="such as m or degC")


class CovariateOptions(Section):
    """Numbers per site."""

    table: InputPath | tuple[InputPath, ...] | None = Field(
        None,
        description="CSV or Parquet with site_id and one column per covariate, NPZ with site_id "
        "and an array, or several",
    )
    rasters: tuple[CovariateRasterOptions, ...] = Field(
        (),
        description="rasters to take numbers from, such as {path: dem.tif, name: height, unit: m}",
    )
    units: dict[str, str] = Field(
        default_factory=dict, description="unit of each column of a table, such as {rain: mm}"
    )

    embeddings: EmbeddingOptions | tuple[EmbeddingOptions, ...] | None = Field(
        None,
        description="rasters of many unnamed bands, such as {path: alphaearth, preset: alphaearth, "
        "year: 2023}, or several",
        exclude_if=unset,
    )

    @property
    def embedded(self) -> tuple[EmbeddingOptions, ...]:
        """All embeddings."""
        found = self.embeddings
        return () if found is None else found if isinstance(found, tuple) else (found,)

    @property
    def tables(self) -> tuple[Path, ...]:
        """All tables."""
        return (
            self.table
            if isinstance(self.table, tuple)
            else ()
            if self.table is None
            else (self.table,)
        )


class BuildOptions(Section):
    """build: scenes + records -> data set."""

    records: RecordsOptions
    scenes: SceneOptions | None = Field(None, description="null: no imagery")
    tiles: TileOptions = TileOptions()
    ready_tiles: ReadyTileOptions | None = Field(
        None, description="instead of scenes: tiles somebody else has cut"
    )
    covariates: CovariateOptions | None = Field(None, description="numbers per site")
    split: SplitOptions = SplitOptions()
    position_crs: str | None = Field(
        None,
        description="projected CRS of easting and northing; null: the British grid, outside it the "
        "UTM zone of the sites",
    )
    workers: int = Field(2, ge=1, description="threads")
    dask: str | None = Field(
        None, description="address of a Dask scheduler that runs the work instead of local threads"
    )

    @property
    def embedded(self) -> tuple[EmbeddingOptions, ...]:
        """All embeddings that become covariates."""
        return () if self.covariates is None else self.covariates.embedded

    @property
    def tile_bands(self) -> tuple[str, ...] | None:
        """The bands of tiles; None: all of the scenes, as of embeddings unless some are named."""
        # Runs of 0.2.0 state the usual bands of images, which embeddings never have.
        unnamed = self.tiles.bands == TileOptions.model_fields["bands"].default
        return None if self._embedded and unnamed else self.tiles.bands

    @property
    def _embedded(self) -> bool:
        return self.scenes is not None and self.scenes.embeddings is not None

    @property
    def left_to_files(self) -> list[tuple[str, str]]:
        """Section and name of the settings that are not stated and that the imagery tells then."""
        asked = []
        if self._embedded or self.ready_tiles is not None:
            asked += [("tiles", "bands")]
        if self.ready_tiles is not None:
            asked += [("tiles", "size_px"), ("ready_tiles", "nodata")]
        return [(at, name) for at, name in asked if name not in getattr(self, at).model_fields_set]
