"""What the recognition of hateful video can be told."""

from typing import Literal

from pydantic import Field

from butterfly_sdm.core.settings import FileOrName, Fraction, InputPath, Section
from butterfly_sdm.plugins.options import PluginConfig, later, setting


class FrameOptions(Section):
    """How frames become a vector."""

    trunk: str = setting("vit_base_patch16_224", "a model of timm")
    weights: FileOrName = setting("pretrained", "a local file; pretrained: fetched")
    size_px: int = setting(224, "side the frames are resized to", ge=8)
    count: int = setting(16, "frames of a film, evenly spread", ge=1)


class ImplihateConfig(PluginConfig):
    """Settings; the defaults are the paper's."""

    features: InputPath = setting(
        ..., "folder of VIDEO.npz, which extract fills; or one stacked .npz, or a table"
    )
    labels: InputPath = setting(
        ..., "table of video_id (or path), label[, split, group]; or folders CLASS/VIDEO"
    )
    media: InputPath | None = setting(None, "videos: a folder, or a table of path[, transcript]")
    extract: tuple[str, ...] = setting(
        (),
        "any of frames, hashed_text or text_encoder, log_mel or sound_encoder, sentiment, emotion",
    )
    frames: FrameOptions = later(FrameOptions(), "the encoder of frames")
    text_encoder: InputPath | None = later(None, "folder of a language model of Transformers")
    sound_encoder: InputPath | None = later(None, "folder of a sound model of Transformers")
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    folds: int = setting(0, "also train and score so many, of all labelled videos", ge=0)
    modalities: tuple[Literal["image", "text", "audio"], ...] = Field(
        ("image", "text", "audio"), min_length=1
    )
    contrastive: Literal["two_stages", "one_stage", "none"] = setting(
        "two_stages", "which stages come first"
    )
    loss: Literal["sound", "released"] = setting("sound", "released: authors' code, see the page")
    temperature: float = Field(0.05, gt=0)
    encoder: tuple[int, ...] = Field((1024, 512, 256), min_length=1)
    projection: int = Field(1024, ge=2)
    cross: int = Field(128, ge=2)
    classifier: tuple[int, ...] = (1024, 512, 256)
    dropout: Fraction = 0.2
    classifier_dropout: Fraction = 0.3
    modality_dropout: Fraction = setting(0.0, "share of videos that lose a modality in a batch")
    batch_size: int = Field(64, ge=4)
    epochs: int = setting(20, "of each contrastive stage", ge=1)
    classifier_epochs: int = Field(50, ge=1)
    learning_rate: float = setting(1e-4, "of the contrastive stages; not in our source", gt=0)
    classifier_learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    tune: bool = setting(False, "the last stage also moves what the contrastive stages trained")
