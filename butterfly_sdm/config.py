"""
One YAML file per experiment: a section per verb, checked strictly.

Every wrong key, type or value is one :class:`~butterfly_sdm.errors.ConfigError` that names the key,
the value and the rule. Relative paths are relative to the YAML file; ``${NAME}`` in a path stands
for an environment variable.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Discriminator, Field, Tag, model_validator

from butterfly_sdm.settings import (
    Fraction,
    InputPath,
    InputSource,
    Options,
    Section,
    commented,
    load_settings,
)

Month = Annotated[int, Field(ge=1, le=12)]


class GbifConfig(Section):
    """
    Records from GBIF: a download by its key, or a query (account in GBIF_USER, GBIF_PWD,
    GBIF_EMAIL).
    """

    key: str | None = Field(
        None,
        description="of a download that exists, such as 0001234-240101000000000; else a query:",
    )
    taxon_keys: tuple[int, ...] = Field(
        (), description="taxa of GBIF's backbone, with all below them; 797: Lepidoptera"
    )
    dataset_keys: tuple[str, ...] = Field((), description="data sets of GBIF, by their keys")
    countries: tuple[str, ...] = Field((), description="ISO codes of two letters")
    years: tuple[int, int] | None = Field(None, description="first and last year")
    geometry_wkt: str | None = Field(None, description="area in degrees, corners anticlockwise")
    api: str = Field("https://api.gbif.org/v1", description="address of GBIF")

    @model_validator(mode="after")
    def _key_or_query(self) -> Self:
        query = (
            self.taxon_keys
            or self.dataset_keys
            or self.countries
            or self.years
            or self.geometry_wkt
        )
        if (self.key is None) == (not query):
            raise ValueError(
                "state either the key of a download, or a query (taxon_keys, countries, years, ...)"
            )
        return self


class S2bmsConfig(Section):
    """Records from the published S2BMS release, by its DOI."""

    files: tuple[str, ...] = Field(
        min_length=1, description="names of the files with records, * for any text"
    )
    doi: str | None = Field(None, description="null: the published release")
    api: str = Field("https://zenodo.org/api", description="address of Zenodo")


class LimitsConfig(Section):
    """Bounds beyond which a file of records is taken for damaged or hostile."""

    ratio: int = Field(
        200, ge=1, description="largest unpacked size of a file in an archive, in packed sizes"
    )
    row_mib: int = Field(16, ge=1, description="longest row, MiB")
    columns: int = Field(10_000, ge=1, description="most columns")
    description_mib: int = Field(16, ge=1, description="largest meta.xml, MiB")


class RecordsConfig(Section):
    """Which records count, and what a visit is."""

    path: InputPath | tuple[InputPath, ...] = Field(
        (), description="archive or table of records, or several"
    )
    gbif: GbifConfig | None = Field(
        None, description="fetch records from GBIF as well: {key: ...} or a query"
    )
    s2bms: S2bmsConfig | None = Field(
        None, description="fetch records of the published release as well: {files: [...]}"
    )
    downloads: InputPath | None = Field(
        None, description="folder of fetched records; null: downloads beside the data set"
    )
    format: str = Field(
        "auto", description="auto, dwca, gbif, nbn, ukbms, table or a registered reader"
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="our name of a column: its name in the file"
    )
    sites: InputPath | None = Field(
        None, description="table of site_id and footprint_wkt that names the sites"
    )
    unrecorded: Literal["drop", "keep"] = Field(
        "drop",
        description="listed sites without a counted record; keep: with 0 visits, to predict but "
        "not to learn from",
    )
    species: InputPath | tuple[str, ...] | None = Field(
        None, description="species to keep, in order; null: all"
    )
    institutions: tuple[str, ...] = Field(
        (), description="institution codes to keep, such as [UKBMS]; empty: all"
    )
    years: tuple[int, int] | None = Field(None, description="first and last year")
    min_records: int = Field(200, ge=0, description="fewest record rows of a site")
    min_visits: int = Field(1, ge=1, description="fewest visits of a site")
    max_footprint_deg2: float | None = Field(
        None, gt=0, description="largest footprint, square degrees"
    )
    day_first: bool | None = Field(
        None, description="whether 3/6/2018 is in June; null: as the other dates tell"
    )
    synonyms: Literal["s2bms"] | InputPath | None = Field(
        None,
        description="table of recorded and accepted names; s2bms: the one that comes with the "
        "package",
    )
    scheme: str = Field(
        "ukbms", description="what a visit is: ukbms, complete, list_length or event"
    )
    visit: Literal["site_date", "event"] | None = Field(
        None, description="null: as the scheme says"
    )
    absent: Literal["effort", "drop"] | None = Field(
        None, description="records of absence; null: as the scheme says"
    )
    zero_count: Literal["absent", "present", "drop"] | None = Field(
        None, description="null: as the scheme says"
    )
    aggregates: Literal["effort", "detect", "drop"] | None = Field(
        None, description="null: as the scheme says"
    )
    min_list_length: int | None = Field(
        None, ge=1, description="fewest species of a visit; null: as the scheme says"
    )
    months: tuple[int, int] | None = Field(
        None, description="first and last month of the season; null: all the year"
    )
    place: Literal["auto", "footprint", "grid_reference", "point"] = Field(
        "auto", description="what says where a record is"
    )
    grid_m: Literal[10_000, 5_000, 2_000, 1_000, 100, 10] | None = Field(
        None,
        description="sites are squares of the British or Irish grid of this size; null: places as "
        "they are recorded",
    )
    max_uncertainty_m: float | None = Field(
        None, gt=0, description="less certain records are left out"
    )
    out_of_range: Literal["refuse", "drop"] = Field(
        "refuse", description="when a coordinate is impossible"
    )
    double_recording: Literal["drop", "keep"] = Field(
        "drop", description="visits that a second scheme tells as well"
    )
    sensitive: dict[str, Literal["withhold", "1km", "2km", "10km"]] = Field(
        default_factory=dict,
        description="species: in no table, or only as sums over squares of that size",
    )
    limits: LimitsConfig = LimitsConfig()

    @model_validator(mode="after")
    def _some_records(self) -> Self:
        if self.path == () and self.gbif is None and self.s2bms is None:
            raise ValueError("there are no records: state path (archives or tables), gbif or s2bms")
        return self


class CompositeConfig(Section):
    """One cloud-free picture out of many dates."""

    method: Literal["median", "least_cloudy"] = Field(
        "median", description="median of the clear dates, or the least cloudy date"
    )
    years: tuple[int, int] | None = Field(None, description="first and last year of the pictures")
    months: tuple[Month, Month] | None = Field(
        None, description="first and last month, such as [6, 9]"
    )


class StacConfig(Section):
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


class ScenesConfig(Section):
    """The source rasters: files, folders, SAFE products, STAC items."""

    paths: tuple[InputSource, ...] = Field(
        (), description="rasters or products, or their addresses; together one mosaic"
    )
    stac: StacConfig | None = Field(None, description="fetch products from a STAC API as well")
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
    harmonise: bool = Field(
        False, description="bring products of different processing baselines to one offset"
    )
    cloudy: tuple[int, ...] | None = Field(
        None,
        description="SCL classes left out; null: no data, defective, cloud, shadow and cirrus with "
        "a composite, else none",
    )
    composite: CompositeConfig | None = Field(
        None, description="null: the first piece by name with a measurement counts"
    )


class TilesConfig(Section):
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


class ReadyTilesConfig(Section):
    """A folder with one GeoTIFF per site, as published."""

    folder: InputPath | tuple[InputPath, ...] = Field(description="folder of the files, or several")
    bands: tuple[str, ...] = Field(min_length=1, description="names of the bands in file order")
    pattern: str = Field("*{site_id}*.tif", description="file name of the tile of a site")
    nodata: int = Field(0, description="count that means no measurement")
    scale: float = Field(1e-4, gt=0, description="reflectance per count")
    offset: float = Field(0.0, description="count of zero reflectance")

    @property
    def folders(self) -> tuple[Path, ...]:
        """All folders."""
        return (self.folder,) if isinstance(self.folder, Path) else self.folder


class CovariateRasterConfig(Section):
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


class CovariatesConfig(Section):
    """Numbers per site."""

    table: InputPath | tuple[InputPath, ...] | None = Field(
        None,
        description="CSV or Parquet with site_id and one column per covariate, NPZ with site_id "
        "and an array, or several",
    )
    rasters: tuple[CovariateRasterConfig, ...] = Field(
        (),
        description="rasters to take numbers from, such as {path: dem.tif, name: height, unit: m}",
    )
    units: dict[str, str] = Field(
        default_factory=dict, description="unit of each column of a table, such as {rain: mm}"
    )

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


class SplitConfig(Section):
    """How sites are divided into training, validation and test."""

    method: Literal["clusters", "blocks", "regions", "file", "random"] = Field(
        "clusters", description="what stays together in one part; see the page on the split"
    )
    distance_m: float = Field(
        4000.0, gt=0, description="clusters: sites nearer than this stay together; blocks: side"
    )
    fractions: tuple[Fraction, Fraction, Fraction] = Field(
        (0.7, 0.15, 0.15), description="shares of training, validation and test"
    )
    path: InputPath | None = Field(
        None, description="method file: split.json, or a table of site_id and split"
    )
    buffer_m: float = Field(
        0.0, ge=0, description="training sites nearer than this to one of another part are left out"
    )
    folds: int | None = Field(
        None, ge=2, description="cut into this many folds instead of by fractions; see fold"
    )
    fold: int = Field(1, ge=1, description="which fold is validated")
    regions: InputPath | None = Field(
        None, description="method regions: polygons with a column name"
    )
    validation_regions: tuple[str, ...] = Field(
        (), description="method regions: names of the regions for validation"
    )
    test_regions: tuple[str, ...] = Field(
        (), description="method regions: names of the regions for the test"
    )


class BuildConfig(Section):
    """build: scenes + records -> data set."""

    records: RecordsConfig
    scenes: ScenesConfig | None = Field(None, description="null: no imagery")
    tiles: TilesConfig = TilesConfig()
    ready_tiles: ReadyTilesConfig | None = Field(
        None, description="instead of scenes: tiles somebody else has cut"
    )
    covariates: CovariatesConfig | None = Field(None, description="numbers per site")
    split: SplitConfig = SplitConfig()
    position_crs: str | None = Field(
        None,
        description="projected CRS of easting and northing; null: the British grid, outside it the "
        "UTM zone of the sites",
    )
    workers: int = Field(2, ge=1, description="threads")
    dask: str | None = Field(
        None, description="address of a Dask scheduler that runs the work instead of local threads"
    )


class ModelConfig(Section):
    """The predictor."""

    kind: str = Field("network", description="network, or the name of a baseline such as mean_rate")
    backbone: str = Field(
        "resnet18", description="trunk of torchvision or timm, such as resnet18 or resnet50"
    )
    weights: str | None = Field(
        None, description="null: from scratch; a name (see docs), or a local file"
    )
    stem: Literal["inflate", "published", "random"] = Field(
        "inflate", description="filters of bands the weights lack"
    )
    freeze: Literal["nothing", "trunk", "all_but_stem"] = Field(
        "nothing", description="what keeps its weights"
    )
    unfreeze_after: int | None = Field(
        None, ge=1, description="epochs after which the whole trunk learns; null: never"
    )
    embedding: int = Field(256, ge=2, description="length of the projection")
    head_layers: int = Field(2, ge=1, le=4, description="layers from the embedding to the species")
    head_width: int = Field(256, ge=1, description="of the hidden layers of the head")
    dropout: Fraction = Field(
        0.0,
        description="share of the inputs of each layer of the head that is hidden while training",
    )
    window_px: int = Field(
        128, ge=32, description="ground the prediction speaks of; a multiple of 32"
    )
    margin_px: int = Field(
        64, ge=0, description="surroundings the trunk sees and pooling leaves out"
    )
    padding: Literal["replicate", "zeros"] = Field(
        "replicate", description="what the trunk sees beyond the edge of a tile"
    )
    image: bool = Field(True, description="whether the network sees the tile")
    covariates: bool = Field(False, description="whether it sees the covariates")
    position: bool = Field(False, description="whether it sees easting and northing")
    fusion: Literal["concatenate", "gate"] = Field(
        "concatenate", description="how image, covariates and position are joined"
    )
    modality_dropout: Fraction = Field(
        0.0, description="share of sites from which each modality is hidden while training"
    )
    waves: int = Field(32, ge=1, description="Fourier features of the position")
    wave_scale: float = Field(
        0.5, gt=0, description="their spread, cycles per standard deviation of the positions"
    )
    members: int = Field(
        1, ge=1, description="networks with seeds seed, seed + 1, ...; more than one: an ensemble"
    )
    options: Options = Field(default_factory=dict, description="of a baseline")


class RegulariserConfig(Section):
    """The soft supervised contrastive term (van der Plas et al. 2025)."""

    weight: float = Field(0.1, ge=0, description="0 switches it off")
    temperature: float = Field(0.5, gt=0, description="of the similarities of embeddings")
    nearest: int = Field(
        5, ge=1, description="sites of a batch, most alike by species, that attract each one"
    )
    bottom: int = Field(32, ge=1, description="sites of a batch, least alike, that are pushed away")


class FitConfig(Section):
    """How a network is fitted."""

    loss: Literal["binomial", "beta_binomial", "bce", "mse", "mae", "focal", "asymmetric"] = Field(
        "binomial", description="binomial: a site with more visits says more"
    )
    regulariser: RegulariserConfig = RegulariserConfig()
    epochs: int = Field(50, ge=1, description="most passes over the training sites")
    batch_size: int = Field(64, ge=1, description="sites of one step")
    learning_rate: float = Field(1e-3, gt=0, description="of AdamW, at its highest")
    weight_decay: float = Field(1e-4, ge=0, description="of AdamW")
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="how the learning rate falls"
    )
    accumulate: int = Field(1, ge=1, description="batches whose gradients make one step")
    patience: int | None = Field(
        10, ge=1, description="epochs without a better validation score; null: no early stop"
    )
    score: Literal["loss", "mse"] = Field(
        "loss", description="validation score that stops and chooses"
    )
    keep: Literal["best", "last"] = Field(
        "best", description="epoch whose weights are kept; last: validation decides nothing"
    )
    augment: bool = Field(
        True, description="turn, shift and light training tiles, blur the numbers of training sites"
    )
    covariate_noise: float = Field(
        0.1, ge=0, description="on covariates while training, in standard deviations of each"
    )
    position_blur: int = Field(
        10,
        ge=0,
        description="blur positions while training by the distance to the so many-th nearest site; "
        "0: not",
    )
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field(
        "32-true", description="16 bit is faster on a GPU"
    )
    devices: int | Literal["auto"] = Field("auto", description="how many GPUs or processes")
    accelerator: str = Field("auto", description="auto, cpu, gpu or mps")
    deterministic: bool = Field(False, description="the same bits again on a GPU, at some cost")
    tensorboard: bool = Field(False, description="also write logs for TensorBoard into the run")


class TrainConfig(Section):
    """train: data set -> run."""

    dataset: InputPath | None = Field(None, description="null: the one that build makes")
    model: ModelConfig = ModelConfig()
    fit: FitConfig = FitConfig()


class BoundsConfig(Section):
    """From where to where a setting is drawn."""

    low: int | float = Field(description="least value")
    high: int | float = Field(description="greatest value")
    log: bool = Field(False, description="draw orders of magnitude evenly; above 0 only")
    step: int | float | None = Field(
        None, description="draw multiples of this from low on; null: any number"
    )


Choices = tuple[int | float | bool | str | None, ...]
Draw = Annotated[
    Annotated[BoundsConfig, Tag("bounds")] | Annotated[Choices, Tag("choices")],
    Discriminator(lambda value: "bounds" if isinstance(value, dict | BoundsConfig) else "choices"),
]


class SearchConfig(Section):
    """search: hyper-parameters of a network, judged on the validation part."""

    space: dict[str, Draw] = Field(
        default_factory=dict,
        description="a setting such as train.fit.learning_rate: a list of choices, or low and high",
    )
    trials: int = Field(20, ge=1, description="settings tried in all")
    method: Literal["tpe", "random"] = Field("tpe", description="tpe learns from earlier trials")


class LadderStepConfig(Section):
    """One predictor of a ladder."""

    kind: str = Field(description="name of a baseline, such as nearest_sites")
    name: str | None = Field(None, description="what tables call it; null: its kind")
    options: Options = Field(default_factory=dict, description="of that baseline")


class EvaluateConfig(Section):
    """evaluate: run -> scores beside the baselines."""

    part: Literal["train", "validation", "test"] = Field(
        "validation", description="look at the test part once, at the end"
    )
    baselines: tuple[str, ...] = Field(
        ("mean_rate",), description="simple predictors fitted beside the model"
    )
    ladder: tuple[LadderStepConfig, ...] = Field(
        (), description="predictors that evaluate --ladder compares"
    )
    folds: int = Field(5, ge=0, description="of the ladder's spatial cross-validation; 0: none")
    fold_distance_m: float = Field(
        4000.0,
        gt=0,
        description="sites nearer than this stay in one fold; where they are dense: side of "
        "squares",
    )
    block_m: float = Field(
        20_000.0, gt=0, description="side of the squares that the bootstrap draws"
    )
    bootstrap: int = Field(2000, ge=100, description="repetitions of the bootstrap")


class MapCovariateConfig(Section):
    """
    The raster of a covariate in a map, where building the data set does not say how it is read.
    """

    path: InputPath = Field(description="the raster, in any CRS")
    side_m: float | None = Field(
        None, gt=0, description="side of the square whose mean counts; null: the nearest pixel"
    )
    value: int | None = Field(
        None, description="class whose share of the square counts, instead of the mean"
    )
    band: int = Field(1, ge=1, description="band of the file, counted from 1")

    @model_validator(mode="after")
    def _shares_have_a_square(self) -> Self:
        if self.value is not None and self.side_m is None:
            raise ValueError(
                "the share of a class needs side_m, the side of the square it is a share of"
            )
        return self


class MapConfig(Section):
    """map: run + scene -> map."""

    scenes: ScenesConfig | None = Field(None, description="null: those of build")
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
    dtype: Literal["float32", "uint16", "uint8"] = Field(
        "float32", description="uint16 and uint8 hold scaled probabilities and make smaller files"
    )
    grid: str | None = Field(
        None, description="CRS of the map such as EPSG:27700; null: that of the scene"
    )
    area: InputPath | None = Field(
        None, description="vector file; nothing is predicted outside its polygons"
    )
    masks: dict[InputPath, tuple[int, ...]] = Field(
        default_factory=dict, description="raster: values left out, such as sea"
    )
    covariates: dict[str, InputPath | MapCovariateConfig] = Field(
        default_factory=dict,
        description="raster of each covariate, read as build reads it; left out: the rasters of "
        "build",
    )
    layers: tuple[Literal["richness", "richness_variance", "spread", "applicability"], ...] = Field(
        (),
        description="bands after the species; applicability: how unlike the training sites a place "
        "is",
    )
    presence_above: Fraction | None = Field(
        None,
        description="also a band per species of presence (1) where its probability is at least "
        "this, else absence (0)",
    )
    only_applicable: bool = Field(
        False, description="no prediction outside the area of applicability"
    )
    withhold: tuple[str, ...] = Field((), description="sensitive species that get no band")
    coarsen_m: dict[str, float] = Field(
        default_factory=dict, description="sensitive species: side of squares told only"
    )
    beside: tuple[Literal["stac", "styles", "picture"], ...] = Field(
        ("stac", "styles", "picture"), description="files written beside the map"
    )
    audit: int = Field(500, ge=0, description="random positions predicted again window by window")
    engine: Literal["auto", "torch", "torch-fp16", "onnx", "onnx-int8"] = Field(
        "torch",
        description="auto: the fastest here, found by a probe; the last digits then depend on the "
        "machine",
    )
    workers: int = Field(1, ge=1, description="processes")
    dask: str | None = Field(None, description="address of a Dask scheduler")


class Config(Section):
    """One experiment."""

    name: str = Field(
        "experiment", pattern=r"^[\w.-]+$", description="letters, digits, dot, dash, underscore"
    )
    seed: int = Field(
        0,
        ge=0,
        description="deals blocks to parts, starts networks: the same seed gives the same result",
    )
    out: InputPath | None = Field(
        None, description="folder of the artefacts; null: runs/NAME beside the YAML"
    )
    build: BuildConfig | None = Field(
        None, description="null: the data set is there already (train.dataset)"
    )
    train: TrainConfig = TrainConfig()
    search: SearchConfig = SearchConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    map: MapConfig = MapConfig()


def load_config(
    source: str | Path | Mapping[str, Any] | Config, overrides: Iterable[str] = ()
) -> Config:
    """
    Read and check a config.

    Parameters
    ----------
    source
        YAML file, or its content as a mapping (paths then relative to the working directory).
    overrides
        ``key=value`` pairs with dotted keys, values as YAML: ``train.fit.epochs=3``.

    Returns
    -------
    Config
        Checked; ``out`` is filled in.

    Raises
    ------
    MissingFileError
        The file does not exist.
    ConfigError
        It is not YAML, or a key, type or value is wrong.

    Examples
    --------
    >>> load_config({"name": "trial"}, ["train.fit.epochs=3"]).train.fit.epochs
    3
    """
    value = (
        source.model_dump(mode="json", exclude_unset=True) if isinstance(source, Config) else source
    )
    config, base = load_settings(Config, value, overrides, example="train.fit.epochs=3")
    return (
        config
        if config.out is not None
        else config.model_copy(update={"out": Path(base or ".", "runs", config.name)})
    )


def dump_config(config: Config) -> str:
    """
    Return the resolved config as YAML: all defaults spelled out, all paths absolute or as given.
    """
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


STARTER = """\
# From your records and satellite scenes to a map. What you must change is marked with <--; the rest is a good start.
# Paths are relative to this file; ${{VARIABLE}} in a path stands for an environment variable.
# All settings with their defaults: butterfly-sdm init --all

name: {name}

build:
  records:
    path: records.zip         # <-- Darwin Core Archive as GBIF and NBN Atlas give it, or a table: CSV, TSV, Parquet
    # Columns of a table are recognised by their names. If build does not know yours, say which is which (ours: yours):
    # columns: {{species: Taxon, date: Survey date, grid_reference: Grid ref}}
    # columns: {{species: Taxon, date: Survey date, latitude: Lat, longitude: Lon}}
    years: [2018, 2019]       # <-- first and last year: those that the scenes show
    min_records: 0            # fewest rows of a site
    min_visits: 5             # fewest visits of a site: on few visits chance decides
    # If places are points, make sites of the squares of the British or Irish grid that hold them:
    # grid_m: 1000

  scenes:
    paths: [scene.tif]        # <-- GeoTIFFs of the same ground; several form one mosaic
    # If the files do not name their bands, name them in the order of the file (build says if it needs this):
    # bands: [red, green, blue, nir]

  tiles:
    size_px: 224              # ground around each site: 224 pixels of 10 m; at least window_px + 2 * margin_px

  # Numbers per site that the image does not show, from rasters in any CRS:
  # covariates:
  #   rasters:
  #     - {{path: elevation.tif, name: elevation, unit: m}}

  split:
    method: blocks            # squares of ground: neighbours fall into the same part
    distance_m: 5000          # their side; with less than some ten squares, take smaller ones
    buffer_m: 2300            # training sites nearer than this to held-out ones are left out: tiles share hardly any ground

train:
  model:
    kind: network             # or trees, nearest_sites, linear, ...: the baselines are models too
    window_px: 96             # ground the prediction speaks of: about the square of a kilometre that people survey
    margin_px: 64             # surroundings it sees beside; with less, the quick way of mapping differs more
    covariates: false         # true: the network sees the covariates as well
  fit:
    epochs: 20                # times that it sees every site; train says if more may help
    batch_size: 32
    regulariser:
      weight: 0.1             # 0 switches the contrastive term off
      bottom: 16              # sites of a batch that push each one away

evaluate:
  part: validation            # look at test once, at the end
  baselines: [mean_rate, nearest_sites]

map:
  stride_px: 32               # a prediction every 32 pixels: 320 m
  # area: region.gpkg         # polygons outside which nothing is mapped: cut the sea away, a network has an answer there too
  # layers: [richness, applicability]   # more bands: expected species per visit; how unlike the training sites a place is
"""


def starter_yaml(name: str = "my_region", *, everything: bool = False) -> str:
    """
    Return a commented starter YAML for own data.

    Parameters
    ----------
    name
        Name of the experiment; letters a name cannot have become underscores.
    everything
        Every setting with its default and meaning, instead of those that most people change.

    Returns
    -------
    str
        YAML that :func:`load_config` accepts.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", name) or "my_region"
    if not everything:
        return STARTER.format(name=name)
    lines = [
        "# All settings of an experiment: scenes + records -> data set -> run -> scores -> map.",
        "# Lines that begin with '# ' followed by a key are settings at their default: uncomment "
        "one to change it.",
        "# Paths are relative to this file; ${VARIABLE} in a path stands for an environment "
        "variable.",
        "",
        f"name: {name}",
        *commented(Config, 0, skip={"name", "build"}),
        "",
        "build:",
        "  records:",
        "    path: records.zip    # archive or table of records, or several",
        *commented(RecordsConfig, 4, skip={"path"}),
        "  scenes:",
        "    paths: [scene.tif]    # rasters or products; together they form one mosaic",
        *commented(ScenesConfig, 4, skip={"paths"}),
    ]
    for key, section in (
        ("tiles", TilesConfig),
        ("covariates", CovariatesConfig),
        ("split", SplitConfig),
    ):
        lines += [f"  # {key}:", *commented(section, 4)]
    lines += commented(
        BuildConfig, 2, skip={"records", "scenes", "tiles", "ready_tiles", "covariates", "split"}
    )
    lines += [
        "",
        "train:",
        *commented(TrainConfig, 2),
        "  model:",
        "    kind: network",
        *commented(ModelConfig, 4, skip={"kind"}),
    ]
    lines += ["  fit:", "    epochs: 50", *commented(FitConfig, 4, skip={"epochs", "regulariser"})]
    lines += ["    # regulariser:", *commented(RegulariserConfig, 6)]
    lines += ["", "evaluate:", "  part: validation", *commented(EvaluateConfig, 2, skip={"part"})]
    lines += ["", "map:", "  stride_px: 32", *commented(MapConfig, 2, skip={"stride_px", "scenes"})]
    return "\n".join(lines) + "\n"
