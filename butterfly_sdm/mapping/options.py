"""What can be said about a map."""

from __future__ import annotations

import logging
from functools import cache
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from butterfly_sdm.core.settings import Fraction, InputPath, Section, empty, unset
from butterfly_sdm.data.options import WeekOption
from butterfly_sdm.data.quantities import Bound, QuantityName
from butterfly_sdm.imagery.embeddings.options import EmbeddingOptions
from butterfly_sdm.imagery.options import SceneOptions

log = logging.getLogger("butterfly_sdm.mapping")

EngineName = Literal["torch", "torch-fp16"]
LayerName = Literal[
    "richness",
    "richness_interval",
    "richness_variance",
    "spread",
    "applicability",
    "lower",
    "upper",
    "width",
]
Encoded = Literal["float32", "uint16", "uint8"]


class CovariateRaster(Section):
    """The raster of a covariate in a map, and how a number is taken from it."""

    path: InputPath = Field(description="the raster, in any CRS")
    side_m: float | None = Field(
        None, gt=0, description="side of the square whose mean counts; null: the nearest pixel"
    )
    value: int | None = Field(
        None, description="class whose share of the square counts, instead of the mean"
    )
    band: int = Field(1, ge=1, description="band of the file, counted from 1")
    embedding: EmbeddingOptions | None = Field(
        None,
        description="the covariate is a column of these embeddings, by its name",
        exclude_if=unset,
    )

    @model_validator(mode="after")
    def _shares_have_a_square(self) -> Self:
        if self.value is not None and self.side_m is None:
            raise ValueError(
                "the share of a class needs side_m, the side of the square it is a share of"
            )
        return self


class IntervalOptions(Section):
    """The layers lower, upper and width of a map."""

    level: float = Field(
        0.9, gt=0, lt=1, description="share of places whose rate lies in the interval"
    )
    visits: int | None = Field(
        None, ge=1, description="on which the rate would be seen; null: as at the median site"
    )
    species: tuple[str, ...] | None = Field(None, description="that get the layers; null: all")


class MapOptions(Section):
    """map: run + scene -> map."""

    scenes: SceneOptions | None = Field(None, description="null: those of build")
    stride_px: int = Field(
        32, ge=1, description="pixels of the scene from one position of the map to the next"
    )
    mode: Literal["auto", "dense", "exact"] = Field(
        "auto",
        description="dense: the trunk runs once over large blocks; exact: once per window; auto: "
        "dense if the audit agrees",
    )
    block_px: int = Field(
        2304,
        ge=64,
        description="ground the trunk sees at once: more is faster and needs more memory",
    )
    species: tuple[str, ...] | None = Field(None, description="null: all")
    min_valid_fraction: Fraction = Field(
        0.5, description="windows with fewer measured pixels have no value"
    )
    dtype: Encoded = Field(
        "float32", description="uint16 and uint8 hold scaled probabilities and make smaller files"
    )
    grid: str | None = Field(
        None,
        description="CRS of the map such as EPSG:27700; null: that of the scene, or of the tiles "
        "where pixels of the scene are not what they are called (degrees, Web Mercator)",
    )
    area: InputPath | None = Field(
        None, description="vector file; nothing is predicted outside its polygons"
    )
    masks: dict[InputPath, tuple[int, ...]] = Field(
        default_factory=dict, description="raster: values left out, such as sea"
    )
    covariates: dict[str, InputPath | CovariateRaster] = Field(
        default_factory=dict,
        description="raster of each covariate, read as build reads it; left out: the rasters of "
        "build",
    )
    land: Literal["natural_earth"] | InputPath | None = Field(
        None,
        description="nothing is predicted off land: polygons of a file, or natural_earth, which "
        "comes with the package (1:10 million); null: as the scene has it",
    )
    layers: tuple[LayerName, ...] = Field(
        (),
        description="bands after the species; applicability: how unlike the training sites a place "
        "is; lower, upper, width: of an interval for each species; richness_interval: needs a "
        "community",
    )
    interval: IntervalOptions = Field(
        default_factory=IntervalOptions, description="what lower, upper and width mean"
    )
    leave_out: Literal["worse", "unsure"] | None = Field(
        None,
        description="species without a band; worse: no better than their mean rate on held-out "
        "sites; unsure: nor shown to be better",
    )
    position_crs: str | None = Field(
        None,
        description="CRS of easting and northing in the data set, for a model of version 0.1.0 "
        "that does not say it",
    )
    presence_above: Fraction | None = Field(
        None,
        description="also a band per species of presence (1) where its probability is at least "
        "this, else absence (0)",
    )
    quantity: QuantityName | None = Field(
        None,
        description="what the map shows, of a model that tells several; null: what the model "
        "predicts",
        exclude_if=unset,
    )
    week: WeekOption = None
    dates: tuple[str, ...] = Field(
        (),
        description="of raw_rate, such as 2020-07-01",
        exclude_if=empty,
    )
    bound: Bound = Field(
        "mean",
        description="lower or upper: that end of the 90 % interval instead",
        exclude_if=lambda bound: bound == "mean",
    )
    only_applicable: bool = Field(
        False, description="no prediction outside the area of applicability"
    )
    withhold: tuple[str, ...] = Field((), description="sensitive species that get no band")
    coarsen_m: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="sensitive species: side of squares told only"
    )
    beside: tuple[Literal["stac", "styles", "picture"], ...] = Field(
        ("stac", "styles", "picture"), description="files written beside the map"
    )
    audit: int = Field(500, ge=0, description="random positions predicted again window by window")
    engine: EngineName = Field("torch", description="torch-fp16: numbers of 16 bits, on a GPU")
    workers: int = Field(1, ge=1, description="processes")
    dask: str | None = Field(None, description="address of a Dask scheduler")

    @field_validator("engine", mode="before")
    @classmethod
    def _engines_that_are_gone(cls, value: object) -> object:
        if value in ("auto", "onnx", "onnx-int8"):
            _warn_of_engine(str(value))
            return "torch"
        return value


@cache  # a config is read several times in one command
def _warn_of_engine(name: str) -> None:
    log.warning(
        "map.engine: %s is taken as torch: ONNX Runtime was hardly faster and has gone.", name
    )
