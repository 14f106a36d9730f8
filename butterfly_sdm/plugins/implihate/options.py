"""What the recognition of hateful video can be told."""

from typing import Literal

from pydantic import Field

from butterfly_sdm.core.settings import FileOrName, Fraction, InputPath, Section
from butterfly_sdm.plugins.options import PluginConfig, new_setting


class FrameOptions(Section):
    """How frames become a vector."""

    trunk: str = Field("vit_base_patch16_224", description="a model of timm")
    weights: FileOrName = Field("pretrained", description="a local file; pretrained: fetched")
    size_px: int = Field(224, ge=8, description="side the frames are resized to")
    count: int = Field(16, ge=1, description="frames of a film, evenly spread")


class ImplihateConfig(PluginConfig):
    """Settings; the defaults are the paper's."""

    features: InputPath = Field(
        description="folder of VIDEO.npz, which extract fills; or one stacked .npz, or a table"
    )
    labels: InputPath = Field(
        description="table of video_id (or path), label[, split, group]; or folders CLASS/VIDEO"
    )
    media: InputPath | None = Field(
        None, description="videos to extract from: a folder, or a table of path[, transcript]"
    )
    extract: tuple[str, ...] = Field(
        (),
        description="any of frames, hashed_text or text_encoder, log_mel or sound_encoder, "
        "sentiment, emotion",
    )
    frames: FrameOptions = new_setting(FrameOptions(), "the encoder of frames")
    text_encoder: InputPath | None = new_setting(None, "folder of a language model of Transformers")
    sound_encoder: InputPath | None = new_setting(None, "folder of a sound model of Transformers")
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    folds: int = Field(0, ge=0, description="also train and score so many, of all labelled videos")
    modalities: tuple[Literal["image", "text", "audio"], ...] = Field(
        ("image", "text", "audio"), min_length=1
    )
    contrastive: Literal["two_stages", "one_stage", "none"] = Field(
        "two_stages", description="which stages come first"
    )
    loss: Literal["sound", "released"] = Field(
        "sound", description="released: as in the authors' code, see the page"
    )
    temperature: float = Field(0.05, gt=0)
    encoder: tuple[int, ...] = Field((1024, 512, 256), min_length=1)
    projection: int = Field(1024, ge=2)
    cross: int = Field(128, ge=2)
    classifier: tuple[int, ...] = (1024, 512, 256)
    dropout: Fraction = 0.2
    classifier_dropout: Fraction = 0.3
    modality_dropout: Fraction = Field(
        0.0, description="share of videos that lose one modality in a training batch"
    )
    batch_size: int = Field(64, ge=4)
    epochs: int = Field(20, ge=1, description="of each contrastive stage")
    classifier_epochs: int = Field(50, ge=1)
    learning_rate: float = Field(
        1e-4, gt=0, description="of the contrastive stages; not given by our source of the paper"
    )
    classifier_learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    tune: bool = Field(
        False, description="the last stage also moves what the contrastive stages trained"
    )
