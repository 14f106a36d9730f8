"""
Real or fake faces by a supervised contrastive ensemble: settings, stages and measures of the method
[1]_.

.. [1] DFCon. arXiv 2501.16704 (2025).
"""

import math
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from butterfly_sdm.core.settings import FileOrName, InputPath, Section
from butterfly_sdm.errors import ConfigError, DataError
from butterfly_sdm.losses.contrastive import ContrastiveLoss
from butterfly_sdm.losses.pairs import same_class
from butterfly_sdm.plugins.classifier_scores import by_group, equal_error_rate
from butterfly_sdm.plugins.collection import (
    LabelledImages,
    blanked,
    read_collection,
    unseen_images,
    with_split,
)
from butterfly_sdm.plugins.contract import Plugin, PluginRun, Report
from butterfly_sdm.plugins.dfcon.votes import hard_vote, soft_vote
from butterfly_sdm.plugins.heads import HeadConfig, frozen_head
from butterfly_sdm.plugins.images import Images
from butterfly_sdm.plugins.networks import TrunkAndHead, class_probabilities, layers, make_trunk
from butterfly_sdm.plugins.options import later, setting
from butterfly_sdm.plugins.stages import Batch, Stage
from butterfly_sdm.plugins.views import ContrastOfViews, classify_views, views_of

REAL = 1  # the convention of the task: a higher score means real


class BackboneConfig(Section):
    """One member of the ensemble."""

    model: str = setting(..., "of timm, or small:WIDTH")
    weights: FileOrName | None = setting("pretrained", "pretrained, a file, or null")
    patch_px: int | None = setting(None, "side of a transformer's patches, for small images", ge=1)
    epochs: int | None = setting(None, "its own, if it needs more; null: as the ensemble", ge=1)
    learning_rate: float | None = setting(None, "its own; null: as the ensemble", gt=0)


class DfconConfig(HeadConfig):
    """
    Settings; the backbones are the paper's, which does not publish its other hyper-parameters.
    """

    data: InputPath = setting(
        ..., "root with {train,valid}_{real,fake} or {train,valid,test}/{real,fake}, or a csv"
    )
    images: InputPath | None = setting(None, "root of its paths; None: its own folder")
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    backbones: dict[str, BackboneConfig] = setting(
        {
            "maxvit": BackboneConfig(model="maxvit_tiny_tf_224"),
            "coatnet": BackboneConfig(model="coatnet_0_rw_224"),
            "eva02": BackboneConfig(model="eva02_tiny_patch14_224"),
        },
        "by our name; names of letters, digits and _",
        min_length=1,
    )
    size_px: int = Field(224, ge=16)
    channels: Literal[1, 3] = 3
    objective: Literal["contrastive", "cross_entropy"] = setting(
        "contrastive", "cross_entropy: for comparison"
    )
    temperature: float = Field(0.1, gt=0)
    projection: int = setting(128, "length the loss acts on; 0: on the features", ge=0)
    views: Literal[1, 2] = 2
    epochs: int = Field(10, ge=1)
    learning_rate: float = setting(5e-5, "1e-5 to 1e-4 for published weights", gt=0)
    warmup_epochs: int = setting(0, "in which the rate rises; for untrained transformers", ge=0)
    decay: Literal["none", "cosine"] = later(
        "none", "cosine: the rate falls to nothing over the epochs, after the warm-up"
    )
    weight_decay: float = Field(0.01, ge=0)
    balance: bool = setting(True, "as many real as fake in each batch")
    crop: float = Field(0.8, gt=0, le=1)
    jitter: float = Field(0.1, ge=0, lt=1)


class FaceNet(TrunkAndHead):
    """A backbone with a projection for the loss and a head for the decision."""

    def __init__(self, trunk: nn.Module, projection: int, *, published: bool) -> None:
        super().__init__(trunk, 2, published=published)
        length = self.head.in_features
        self.projection = layers((length, length, projection)) if projection else nn.Identity()

    def projected(self, images: Tensor) -> Tensor:
        """Return (n, projection) of images, which the loss acts on."""
        found: Tensor = self.projection(self.features(images))
        return found


class Dfcon(Plugin[DfconConfig, LabelledImages]):
    """
    Each backbone learns by the contrastive loss, is frozen and given a head; the members vote.
    """

    config = DfconConfig

    def parts(self, config: DfconConfig) -> tuple[str, ...]:
        """Return the names of the backbones."""
        wrong = [name for name in config.backbones if not name.isidentifier()]
        if wrong:
            raise ConfigError(f"A backbone is called {wrong[0]!r}; use letters, digits and _.")
        return tuple(config.backbones)

    def load(self, config: DfconConfig) -> LabelledImages:
        """Read the folders or the table; faces are labelled 1 real, 0 fake."""
        table = read_collection(config.data, ("label",), root=config.images)
        table["label"] = table["label"].astype(str).str.lower().replace({"1": "real", "0": "fake"})
        unknown = sorted(set(table["label"]) - {"real", "fake"})
        if unknown:
            raise DataError(f"The label {unknown[0]!r} is unknown; faces are real (1) or fake (0).")
        # Without groups every face is its own, and the labels keep their share.
        grouped = "group" in table.columns
        group, stratum = ("group", None) if grouped else ("path", "label")
        table = with_split(table, config.fractions, config.seed, group=group, label=stratum)
        if not (table["split"] == "test").any():
            # Folders of the challenge have no test part: its validation part is scored, and nothing
            # is chosen on it.
            table.loc[table["split"] == "validation", "split"] = "test"
        label = (table["label"] == "real").to_numpy(dtype=np.int64)
        images = Images(table["path"].tolist(), config.size_px, config.channels)
        data = LabelledImages(images, table, label, {"classes": ["fake", "real"]})
        for part in ("train", "test"):
            present = set(label[data.listed(part)])
            if len(present) < 2:
                only = "only real faces" if REAL in present else "only fake faces"
                has = only if present else "no face"
                raise DataError(f"The {part} part has {has}; it needs real and fake ones.")
        return data

    def build(self, config: DfconConfig, facts: dict[str, Any], part: str) -> nn.Module:
        """Make one backbone with its projection and head."""
        member = config.backbones[part]
        given = member.model_dump(include={"weights", "patch_px"})
        trunk = make_trunk(member.model, config.channels, config.size_px, **given)
        return FaceNet(trunk, config.projection, published=member.weights == "pretrained")

    def stages(
        self, config: DfconConfig, data: LabelledImages, model: Any, part: str
    ) -> list[Stage]:
        """
        First backbone and projection by the contrastive loss, then the head alone on the frozen
        features.
        """
        rows, held_out = data.rows("train"), data.rows("validation")
        label, member = data.label[rows], config.backbones[part]
        epochs = member.epochs or config.epochs
        adamw = partial(
            torch.optim.AdamW,
            lr=member.learning_rate or config.learning_rate,
            weight_decay=config.weight_decay,
        )
        batches = data.batches(rows, config.batch_size, label if config.balance else None)
        rate = partial(_rate, config, epochs)

        def measure(model: FaceNet) -> dict[str, float]:
            scores = _scores(model, data.images, held_out)
            return {"validation_auc": float(roc_auc_score(data.label[held_out], scores))}

        choose: dict[str, Any] = {}
        if len(set(data.label[held_out])) == 2:
            choose = {"measure": measure, "select": "validation_auc"}
        view = views_of(config)
        if config.objective == "cross_entropy":
            loss = partial(classify_views, view)
            return [Stage("cross_entropy", batches, loss, adamw, epochs, rate=rate, **choose)]
        criterion = ContrastiveLoss(config.temperature)
        contrast = ContrastOfViews(view, config.views, FaceNet.projected, _attracted, criterion)
        trains = ("trunk", "projection") if config.projection else ("trunk",)
        way = {"trains": trains, "rate": rate}
        first = contrast.stage("representation", batches, adamw, epochs, **way)
        extract = partial(FaceNet.features_of, images=data.images, rows=rows)
        head = frozen_head("head", extract, label, config, balanced=config.balance, **choose)
        return [first, head]

    def evaluate(self, config: DfconConfig, data: LabelledImages, run: PluginRun) -> Report:
        """Score every backbone and both votes on the test part."""
        rows = data.rows("test")
        label = data.label[rows]
        if len(set(label)) < 2:
            kind = data.facts["classes"][label[0]]
            raise DataError(
                f"Of the test part only {kind} faces can be read; it needs real and fake ones."
            )
        scores = {part: _scores(run.model(part), data.images, rows) for part in self.parts(config)}
        stacked = np.stack(list(scores.values()))
        soft = soft_vote(stacked)
        found = {part: face_scores(label, value) for part, value in scores.items()}
        found["soft_vote"] = face_scores(label, soft)
        found["hard_vote"] = face_scores(label, soft, decided=hard_vote(stacked))
        group = data.table["group"].iloc[rows] if "group" in data.table.columns else None
        whole = by_group(label, soft[:, None], group)
        if whole is not None:  # faces of one video are judged together
            found["soft_vote_group"] = face_scores(whole[0], whole[1][:, 0])
        table = pd.DataFrame([{"model": name} | value for name, value in found.items()])
        metrics = {f"{name}_{key}": found[name][key] for name in found for key in found[name]}
        predictions = _votes(data.names(rows), scores)
        predictions.insert(1, "label", np.where(label == REAL, "real", "fake"))
        return Report(metrics, {"scores": table, "predictions": predictions})

    def predict(self, config: DfconConfig, run: PluginRun, inputs: Path) -> pd.DataFrame:
        """Return the probability of real for unseen faces: of each backbone, and both votes."""
        images, paths = unseen_images(inputs, config.size_px, config.channels)
        parts = self.parts(config)
        scores = {part: _scores(run.model(part), images, images.rows) for part in parts}
        return blanked(_votes(list(map(str, paths)), scores), images.unreadable)


def face_scores(
    label: np.ndarray, score: np.ndarray, *, decided: np.ndarray | None = None
) -> dict[str, float]:
    """
    Return accuracy, balanced accuracy, AUC and equal error rate.

    Parameters
    ----------
    label
        (n,) 1 real, 0 fake.
    score
        (n,) higher means real.
    decided
        (n,) true for real; None: a score of at least 0.5.
    """
    right = (score >= 0.5 if decided is None else decided) == (label == REAL)
    return {
        "accuracy": float(right.mean()),
        "balanced_accuracy": float(np.mean([right[label == value].mean() for value in (0, 1)])),
        "auc": float(roc_auc_score(label, score)),
        "equal_error_rate": equal_error_rate(label, score),
    }


def _rate(config: DfconConfig, epochs: int, epoch: int) -> float:
    """Return the factor of the rate in an epoch, counted from 0, of all ``epochs``."""
    rise = min(1.0, (epoch + 1) / (config.warmup_epochs + 1))
    fall = 0.5 * (1 + math.cos(math.pi * epoch / epochs)) if config.decay == "cosine" else 1.0
    return rise * fall


def _attracted(batch: Batch) -> Tensor:
    return same_class(batch["label"])


def _scores(model: FaceNet, images: Images, rows: np.ndarray) -> np.ndarray:
    return class_probabilities(model, images, rows)[:, REAL].astype(float)


def _votes(names: list[str], scores: dict[str, np.ndarray]) -> pd.DataFrame:
    stacked = np.stack(list(scores.values()))
    vote = np.where(hard_vote(stacked), "real", "fake")
    table = pd.DataFrame({"path": names, "score": soft_vote(stacked), "vote": vote})
    return table.assign(**{f"score_{name}": value for name, value in scores.items()})
