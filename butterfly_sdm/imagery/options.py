"""What can be said about scenes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from butterfly_sdm.core.settings import InputSource, Section, empty, unset
from butterfly_sdm.imagery.embeddings.options import EmbeddingReading
from butterfly_sdm.imagery.pixels import PixelType

Month = Annotated[int, Field(ge=1, le=12)]


class CompositeOptions(Section):
    """One cloud-free picture out of many dates."""

    method: Literal["median", "least_cloudy"] = Field(
        "median", description="median of the clear dates, or the least cloudy date"
    )
    years: tuple[int, int] | None = Field(None, description="first and last year of the pictures")
    months: tuple[Month, Month] | None = Field(
        None, description="first and last month, such as [6, 9]"
    )
    mosaic: bool = Field(
        False,
        description="write the whole composite as one raster first, instead of composing what is "
        "read",
        exclude_if=empty,
    )


class StacOptions(Section):
    """Products from a STAC API."""

    url: str = Field(description="address of the API, or of a static catalogue or collection")
    collection: str = Field("sentinel-2-l2a", description="name of the collection at that address")
    start: str = Field(pattern=r"^\d{4}-\d\d-\d\d$", description="first day, YYYY-MM-DD")
    end: str = Field(pattern=r"^\d{4}-\d\d-\d\d$", description="last day")
    bbox: tuple[float, float, float, float] | None = Field(
        None, description="west, south, east, north; null: around the sites"
    )
    max_cloud: float = Field(60.0, ge=0, le=100, description="per cent of a product")
    most_items: int = Field(
        500, ge=1, description="more products than this are an error: narrow the search"
    )
    sign: str | None = Field(
        None,
        description="who signs the addresses of files, anew for every request: planetary_computer, "
        "or a signer of another package",
        exclude_if=empty,
    )


class Reading(Section):
    """What is stated about rasters; null where their files are to tell."""

    bands: tuple[str, ...] | None = Field(
        None, description="names of the bands in file order; null: from the file"
    )
    nodata: float | None = Field(None, description="null: from the file, else 0")
    scale: float | None = Field(
        None, gt=0, description="reflectance per count; null: from the file, else 0.0001"
    )
    offset: float | None = Field(
        None,
        description="count of zero reflectance; null: from the metadata (1000 from processing "
        "baseline 04.00 on), else 0",
    )
    dtype: PixelType | None = Field(
        None,
        description="numbers that are kept of each pixel; null: whole numbers of reflectance "
        "(uint16), of signed and fractional bands that are no reflectance their own type",
        exclude_if=unset,
    )
    harmonise: bool = Field(
        False, description="bring products of different processing baselines to one offset"
    )
    cloudy: tuple[int, ...] | None = Field(
        None,
        description="SCL classes left out; null: no data, defective, cloud, shadow and cirrus with "
        "a composite, else none",
    )


class SceneOptions(Reading):
    """The source rasters: files, folders, SAFE products, STAC items."""

    paths: tuple[InputSource, ...] = Field(
        (), description="rasters or products, or their addresses; together one mosaic"
    )
    embeddings: EmbeddingReading | None = Field(
        None,
        description="the paths are embeddings, kept and decoded by this rule; null: they are not",
        exclude_if=unset,
    )
    stac: StacOptions | None = Field(None, description="fetch products from a STAC API as well")
    composite: CompositeOptions | None = Field(
        None, description="null: the first piece by name with a measurement counts"
    )
