"""What can be said about a model, its fit and a search of settings."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from butterfly_sdm.core.settings import Fraction, InputPath, Options, Section, empty, unset
from butterfly_sdm.losses.options import DetectionName, PresenceName, RegulariserOptions
from butterfly_sdm.models.foundation.options import InputOptions
from butterfly_sdm.season.options import SeasonOptions

Padding = Literal["replicate", "zeros"]
FusionRule = Literal["concatenate", "gate"]
StemRule = Literal["inflate", "published", "random"]
Freeze = Literal["nothing", "trunk", "all_but_stem"]
MOST = 1 << 20  # of any size: a damaged file must not ask for all memory


class KindOptions(Section):
    """Which predictor."""

    kind: str = Field("network", description="network, or the name of a baseline such as mean_rate")


class ShapeOptions(Section):
    """What a network is built from."""

    backbone: str = Field(
        "resnet18",
        description="trunk of torchvision or timm, such as resnet18 or resnet50; embedding: for "
        "tiles of embeddings",
    )
    width: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="channels of the first stage of a ResNet, each stage has twice those before "
        "it; null: 64, as published (of embedding: 32)",
        exclude_if=empty,
    )
    embedding: int = Field(256, ge=2, le=MOST, description="length of the projection")
    head_layers: int = Field(2, ge=1, le=4, description="layers from the embedding to the species")
    head_width: int = Field(256, ge=1, le=MOST, description="of the hidden layers of the head")
    dropout: Fraction = Field(
        0.0,
        description="share of the inputs of each layer of the head that is hidden while training",
    )
    window_px: int = Field(
        128, ge=32, le=MOST, description="ground the prediction speaks of; a multiple of 32"
    )
    margin_px: int = Field(
        64, ge=0, description="surroundings the trunk sees and pooling leaves out"
    )
    neighbours: Fraction = Field(
        0.0,
        description="share of a claim that is the mean of the training sites nearest in the "
        "embedding",
        exclude_if=empty,
    )
    padding: Padding = Field(
        "replicate", description="what the trunk sees beyond the edge of a tile"
    )
    fusion: FusionRule = Field(
        "concatenate", description="how image, covariates and position are joined"
    )
    waves: int = Field(32, ge=1, le=MOST, description="Fourier features of the position")
    wave_scale: float = Field(
        0.5,
        gt=0,
        allow_inf_nan=False,
        description="their spread, cycles per standard deviation of the positions",
    )


class NetworkOptions(ShapeOptions):
    """A network: what it is built from, what it starts from and what it sees."""

    weights: str | None = Field(
        None, description="null: from scratch; a name (see docs), or a local file"
    )
    inputs: InputOptions | None = Field(
        None,
        description="null: of torchgeo's weights as they were trained, else by the training tiles",
        exclude_if=unset,
    )
    stem: StemRule = Field("inflate", description="filters of bands the weights lack")
    freeze: Freeze = Field("nothing", description="what keeps its weights")
    unfreeze_after: int | None = Field(
        None, ge=1, description="epochs after which the whole trunk learns; null: never"
    )
    image: bool = Field(True, description="whether the network sees the tile")
    covariates: bool = Field(False, description="whether it sees the covariates")
    only: str = Field(
        "",
        description="which covariates: names, groups such as alphaearth, or beginnings with *, "
        "separated by commas; empty: all",
        exclude_if=empty,
    )
    components: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict,
        description="groups of covariates, such as alphaearth, and how many of their principal "
        "components at the training sites take their place; empty: none",
        exclude_if=empty,
    )
    position: bool = Field(False, description="whether it sees easting and northing")
    modality_dropout: Fraction = Field(
        0.0, description="share of sites from which each modality is hidden while training"
    )


class ModelOptions(NetworkOptions, KindOptions):
    """The predictor."""

    members: int = Field(
        1, ge=1, description="networks with seeds seed, seed + 1, ...; more than one: an ensemble"
    )
    options: Options = Field(default_factory=dict, description="of a baseline")


class FitOptions(Section):
    """How a network is fitted."""

    loss: PresenceName | DetectionName = Field(
        "binomial",
        description="binomial: a site with more visits says more; season and occupancy: dated "
        "visits",
    )
    regulariser: RegulariserOptions = RegulariserOptions()
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


class TrainOptions(Section):
    """train: data set -> run."""

    dataset: InputPath | None = Field(None, description="null: the one that build makes")
    model: ModelOptions = ModelOptions()
    fit: FitOptions = FitOptions()
    season: SeasonOptions | None = Field(
        None,
        description="auto, on or off, or settings: learn when species are seen, and rates over a "
        "schedule of visits; null: off",
        exclude_if=unset,
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="of fitting, scoring and mapping: with the same number the same seed gives the "
        "same bits on every machine of one kind; null: as many as PyTorch takes, told in run.json",
        exclude_if=unset,
    )


class BoundOptions(Section):
    """From where to where a setting is drawn."""

    low: int | float = Field(description="least value")
    high: int | float = Field(description="greatest value")
    log: bool = Field(False, description="draw orders of magnitude evenly; above 0 only")
    step: int | float | None = Field(
        None, description="draw multiples of this from low on; null: any number"
    )


Choices = Annotated[tuple[int | float | bool | str | None, ...], Field(min_length=1)]
Draw = Annotated[
    Annotated[BoundOptions, Tag("bounds")] | Annotated[Choices, Tag("choices")],
    Discriminator(lambda value: "bounds" if isinstance(value, dict | BoundOptions) else "choices"),
]


class SearchOptions(Section):
    """search: hyper-parameters of a network, judged on the validation part."""

    space: dict[str, Draw] = Field(
        default_factory=dict,
        description="a setting such as train.fit.learning_rate: a list of choices, or low and high",
    )
    trials: int = Field(20, ge=1, description="settings tried in all")
    method: Literal["tpe", "random"] = Field("tpe", description="tpe learns from earlier trials")
    workers: int = Field(1, ge=1, description="processes that fit trials side by side")
    dask: str | None = Field(None, description="address of a Dask scheduler that does so instead")
