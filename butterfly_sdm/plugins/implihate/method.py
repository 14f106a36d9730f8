"""Hateful video in two contrastive stages: settings, stages and measures of the method [1]_.

.. [1] ImpliHateVid. ACL 2025, arXiv 2508.06570.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from torch import Tensor, nn

from butterfly_sdm.errors import ConfigError, DataError
from butterfly_sdm.losses.contrastive import ContrastiveLoss
from butterfly_sdm.losses.pairs import same_class
from butterfly_sdm.plugins.classifier_scores import (
    class_scores,
    classification_scores,
    interval_metrics,
    prediction_table,
)
from butterfly_sdm.plugins.collection import blanked, check_folds, class_numbers, with_split
from butterfly_sdm.plugins.contract import Plugin, PluginRun, Report
from butterfly_sdm.plugins.images import check_some_readable
from butterfly_sdm.plugins.implihate.extractors import extract, extract_all, make_extractors
from butterfly_sdm.plugins.implihate.features import (
    MODALITIES,
    Features,
    check_same,
    read_features,
    read_labels,
    stack_features,
)
from butterfly_sdm.plugins.implihate.media import find_videos, is_media
from butterfly_sdm.plugins.implihate.network import VideoNet
from butterfly_sdm.plugins.implihate.options import ImplihateConfig
from butterfly_sdm.plugins.networks import device_of
from butterfly_sdm.plugins.row_batches import shuffled
from butterfly_sdm.plugins.stages import Batch, Stage, train_stages
from butterfly_sdm.progress import Progress, silent

logger = logging.getLogger("butterfly_sdm.plugins")

_RANGE_FLOOR = 1e-8  # as in the authors' code
Rows = np.ndarray


@dataclass(frozen=True)
class VideoData:
    """Features, labels and groups (None: each video its own) of the same videos, in one order."""

    features: Features
    label: np.ndarray
    split: np.ndarray
    facts: dict[str, Any]
    group: np.ndarray | None = None

    def rows(self, part: str) -> np.ndarray:
        """Return the rows of one part of the split."""
        return np.flatnonzero(self.split == part)


class Implihate(Plugin[ImplihateConfig, VideoData]):
    """
    Stage 1 joins all modalities of a video, stage 2 works across each pair of them, then a
    classifier is trained.
    """

    config = ImplihateConfig
    keeps = ("frames.weights", "text_encoder", "sound_encoder")

    def load(self, config: ImplihateConfig) -> VideoData:
        """Read labels and features."""
        table = read_labels(config.labels)
        features = _used(read_features(config.features), config)
        group = "group" if "group" in table.columns else "video_id"
        table = with_split(table, config.fractions, config.seed, group=group, label="label")
        classes, label = class_numbers(table["label"])
        split = table["split"].to_numpy(dtype=str)
        lacking = set(range(len(classes))) - set(label[split == "train"])
        if lacking:
            raise DataError(f"The training part has no video of class {classes[min(lacking)]!r}.")
        used = features.of(table["video_id"].astype(str).tolist())
        facts: dict[str, Any] = {"classes": classes, "lengths": used.lengths}
        if used.extractors:
            facts["extractors"] = used.extractors
        whose = table["group"].to_numpy(dtype=str) if group == "group" else None
        data = VideoData(used, label, split, facts, whose)
        if config.folds >= 2:
            _divisions(config, data)
        return data

    def extract(
        self, config: ImplihateConfig, progress: Progress = silent
    ) -> dict[str, object] | None:
        """Extract the features that are missing, if media are given."""
        if config.media is None:
            return None
        if not config.extract:
            raise ConfigError(
                "media are given, but extract names nothing to make of them, such as "
                "extract: [frames, log_mel, hashed_text]."
            )
        extractors = make_extractors(config.extract, config)
        counts = extract_all(find_videos(config.media), config.features, extractors, progress)
        return {"features": config.features, **counts}

    def build(self, config: ImplihateConfig, facts: dict[str, Any], part: str) -> nn.Module:
        """Make the network for the modalities of the data."""
        return VideoNet(facts["lengths"], len(facts["classes"]), config)

    def stages(
        self, config: ImplihateConfig, data: VideoData, model: Any, part: str
    ) -> list[Stage]:
        """Return up to two contrastive stages and the classifier."""
        return self.stages_of(config, data, model, data.rows("train"), data.rows("validation"))

    def stages_of(
        self, config: ImplihateConfig, data: VideoData, model: VideoNet, rows: Rows, held_out: Rows
    ) -> list[Stage]:
        """
        Return the stages that train on ``rows`` and choose the epoch of the classifier on
        ``held_out``.
        """
        batches = partial(_batches, config, data, rows)
        adamw = partial(torch.optim.AdamW, weight_decay=config.weight_decay)
        fast = partial(adamw, lr=config.classifier_learning_rate)

        def standardise(model: VideoNet) -> None:
            train = data.features.batch(rows)
            model.standardise(train, {key: train[f"{key}_present"] for key in model.keys})

        def measure(model: VideoNet) -> dict[str, float]:
            probability = _probability(model, data.features, held_out)
            scores = classification_scores(data.label[held_out], probability)
            return {"validation_macro_f1": scores["macro_f1"]}

        def classify(model: VideoNet, batch: Batch) -> Tensor:
            return nn.functional.cross_entropy(model(batch), batch["label"])

        chosen = _contrastive_stages(config, model, batches, standardise)
        moved: tuple[str, ...] = ("classifier",)
        if config.tune or not chosen:
            moved = ("encoders", *(["cross"] if model.pairs else []), "classifier")
        choose: dict[str, Any] = {"start": None if chosen else standardise}
        if len(set(data.label[held_out])) > 1:
            choose |= {"measure": measure, "select": "validation_macro_f1"}
        epochs = config.classifier_epochs
        last = Stage("classifier", batches, classify, fast, epochs, moved, **choose)
        return [*chosen, last]

    def evaluate(self, config: ImplihateConfig, data: VideoData, run: PluginRun) -> Report:
        """
        Score the test part, what each modality adds, retrieval across modalities, and the folds.
        """
        model, rows, classes = run.model(), data.rows("test"), data.facts["classes"]
        label = data.label[rows]
        probability = _probability(model, data.features, rows)
        metrics = classification_scores(label, probability)
        without = {"nothing": metrics} | {
            key: classification_scores(label, _probability(model, data.features, rows, without=key))
            for key in data.features.values
        }
        adds = pd.DataFrame(without).T[["macro_f1", "accuracy"]].rename_axis("without")
        if model.pairs:
            metrics = metrics | retrieval(model, data, rows)
        videos = [data.features.videos[row] for row in rows]
        tables = {
            "predictions": prediction_table(videos, probability, classes, "video_id", label),
            "classes": class_scores(label, probability, classes),
            "modalities": adds.reset_index(),
        }
        if config.folds >= 2:
            tables["folds"] = self._folds(config, data, run)
            for key in ("macro_f1", "auc"):
                metrics |= interval_metrics(f"folds_{key}", tables["folds"][key].tolist())
        return Report(metrics, tables)

    def _folds(self, config: ImplihateConfig, data: VideoData, run: PluginRun) -> pd.DataFrame:
        divisions = _divisions(config, data)

        def scores(number: int) -> dict[str, float]:
            (inside, outside), part = divisions[number], f"fold {number}"
            model = cast(VideoNet, self.network(config, data.facts, part))
            stages = self.stages_of(config, data, model, inside, np.array([], dtype=int))
            train_stages(model, stages, config, part=part)
            probability = _probability(model, data.features, outside)
            return classification_scores(data.label[outside], probability)

        found = run.each("folds", config.folds, scores)
        return pd.DataFrame([{"fold": number + 1} | row for number, row in enumerate(found)])

    def predict(self, config: ImplihateConfig, run: PluginRun, inputs: Path) -> pd.DataFrame:
        """
        Return the probability of every class for new videos, or the files of their features;
        modalities may be missing.
        """
        features, unreadable = self._new(config, run, inputs)
        features = features.shaped(run.facts["lengths"])
        probability = _probability(run.model(), features, np.arange(len(features.videos)))
        classes = run.facts["classes"]
        table = prediction_table(features.videos, probability, classes, "video_id")
        return blanked(table, unreadable, "videos")

    def _new(
        self, config: ImplihateConfig, run: PluginRun, inputs: Path
    ) -> tuple[Features, dict[int, str]]:
        """Return features of new videos by the extractors of the run; why rows have none."""
        recorded: dict[str, Any] = run.facts.get("extractors", {})
        if not is_media(inputs):
            features = read_features(inputs)
            for name in features.extractors.keys() & recorded.keys():
                facts = features.extractors[name]
                check_same(name, recorded[name], facts, f"{run.folder} was trained on features")
            return features, {}
        if not recorded:
            raise DataError(
                f"{run.folder} was trained on features that were not extracted here; give those of "
                "new videos, made in the same way."
            )
        extractors, rows, unreadable = make_extractors(list(recorded), config), {}, {}
        for name, extractor in extractors.items():
            lead = f"{run.folder} was trained on features made"
            check_same(name, recorded[name], extractor.facts, lead)
        for number, video in enumerate(find_videos(inputs)):
            rows[video.name], _, failed = extract(video, extractors)
            if not rows[video.name].keys() & run.facts["lengths"].keys() & set(MODALITIES):
                reason = f"{video.name} holds nothing that {', '.join(extractors)} read."
                unreadable[number] = next(iter(failed.values()), reason)
            elif failed:
                logger.warning("something of %s is left out: %s", video.name, failed)
        check_some_readable(unreadable.values(), len(rows), "videos")
        return stack_features(rows, inputs, recorded), unreadable


def _divisions(config: ImplihateConfig, data: VideoData) -> list[tuple[np.ndarray, np.ndarray]]:
    """
    Return the rows to train on and those to score of every fold; a group is on one side of it.

    Raises
    ------
    DataError
        A class has fewer groups than there are folds.
    """
    if data.group is None:
        plain = StratifiedKFold(config.folds, shuffle=True, random_state=config.seed)
        return list(plain.split(data.label, data.label))
    check_folds(data.label, data.group, data.facts["classes"], config.folds, "groups")
    whole = StratifiedGroupKFold(config.folds, shuffle=True, random_state=config.seed)
    return list(whole.split(data.label, data.label, data.group))


def _contrastive_stages(
    config: ImplihateConfig, model: VideoNet, batches: Any, standardise: Any
) -> list[Stage]:
    """Return the stages before the classifier; the first sets the statistics of the inputs."""
    adamw = partial(torch.optim.AdamW, lr=config.learning_rate, weight_decay=config.weight_decay)
    settings = {"temperature": config.temperature, "released": config.loss == "released"}

    def stage(name: str, loss: Callable[..., Tensor], *trains: str, **others: Any) -> Stage:
        loss = partial(loss, **settings)
        others["collapsed"] = partial(loss, _Collapsed(model))
        return Stage(name, batches, loss, adamw, config.epochs, trains, **others)

    chosen = []
    if config.contrastive != "none":
        chosen.append(stage("joint", joint_loss, "encoders", "joint", "side", start=standardise))
    if config.contrastive == "two_stages" and model.pairs:
        chosen.append(stage("cross", cross_loss, "cross"))
    return chosen


class _Collapsed:
    """A network whose embeddings are all the same: what a loss is before anything is learned."""

    def __init__(self, model: VideoNet) -> None:
        self.side, self.modalities, self.cross = model.side, model.modalities, model.cross

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Return nothing but how many there are, and where."""
        return {"": torch.zeros_like(batch["label"], dtype=torch.float32)[:, None]}

    def joint_embedding(self, encoded: Mapping[str, Tensor], *which: object) -> Tensor:
        """Return (n, 1) equal embeddings."""
        return encoded[""]

    side_embedding = cross_embedding = joint_embedding


def joint_loss(
    model: VideoNet | _Collapsed, batch: Batch, *, temperature: float, released: bool = False
) -> Tensor:
    """
    Return the loss of stage 1: same class attracts in the joint embedding, and in those of caption
    and affect.
    """
    encoded, weights = model.encode(batch), same_class(batch["label"])
    embeddings = [model.joint_embedding(encoded)]
    embeddings += [model.side_embedding(encoded, key) for key in model.side]
    return cast(Tensor, sum(_contrast(z, weights, None, temperature, released) for z in embeddings))


def cross_loss(
    model: VideoNet | _Collapsed, batch: Batch, *, temperature: float, released: bool = False
) -> Tensor:
    """
    Return the loss of stage 2: rows of one modality against columns of another, both ways, over all
    pairs.

    Videos of the same class attract across modalities, the same video included. A missing modality
    is neither row nor column.
    """
    encoded = model.encode(batch)
    total = batch["label"].new_zeros((), dtype=torch.float32)
    for a, b in combinations(model.modalities, 2):
        rows, columns = batch[f"{a}_present"].bool(), batch[f"{b}_present"].bool()
        z_a = model.cross_embedding(encoded, (a, b))[rows]
        z_b = model.cross_embedding(encoded, (b, a))[columns]
        if not len(z_a) or not len(z_b):
            continue
        weights = same_class(batch["label"][rows], batch["label"][columns])
        total = total + _contrast(z_a, weights, z_b, temperature, released)
        total = total + _contrast(z_b, weights.T, z_a, temperature, released)
    # A batch without a pair of modalities still has a gradient: zero.
    return total + 0 * sum(parameter.sum() for parameter in model.cross.parameters())


def _contrast(
    z: Tensor, weights: Tensor, references: Tensor | None, temperature: float, released: bool
) -> Tensor:
    exclude = None
    if released:
        # Rescaling similarities to [0, 1] over the batch shifts both logarithms alike. What stays
        # is a division by their range, which has a gradient of its own.
        similarity = z @ (z if references is None else references).T
        root = (similarity.max() - similarity.min() + _RANGE_FLOOR).sqrt()
        references = None if references is None else references / root
        z = z / root
        exclude = torch.zeros_like(weights, dtype=torch.bool)  # a sample is its own positive
    criterion = ContrastiveLoss(
        temperature, denominator="negatives", positives="inside", without_positives="zero"
    )
    return cast(Tensor, criterion(z, weights, references, exclude=exclude))


def retrieval(model: VideoNet, data: VideoData, rows: np.ndarray) -> dict[str, float]:
    """
    Return how often the nearest video across modalities is of the same class, and the same video
    among the ten nearest.

    Means over the ordered pairs of modalities, over the videos that have both.
    """
    batch = data.features.batch(rows, device=device_of(model))
    same_label, same_video = [], []
    with torch.no_grad():
        encoded = model.encode(batch)
        for a, b in model.pairs:
            both = (batch[f"{a}_present"] * batch[f"{b}_present"]).bool().cpu()
            if both.sum() < 2:
                continue
            z_a, z_b = (model.cross_embedding(encoded, pair) for pair in ((a, b), (b, a)))
            similarity = (z_a @ z_b.T).cpu()[both][:, both]
            label = torch.from_numpy(data.label[rows])[both]
            same_label.append(float((label[similarity.argmax(dim=1)] == label).float().mean()))
            nearest = similarity.topk(min(10, len(label)), dim=1).indices
            own = torch.arange(len(label))[:, None]
            same_video.append(float((nearest == own).any(dim=1).float().mean()))
    if not same_label:
        return {}
    found = {"retrieval_class": same_label, "retrieval_video_at_10": same_video}
    return {name: float(np.mean(values)) for name, values in found.items()}


def _used(features: Features, config: ImplihateConfig) -> Features:
    chosen = [key for key in features.values if key not in MODALITIES or key in config.modalities]
    if not any(key in config.modalities for key in chosen):
        raise DataError(
            f"The features have {', '.join(features.values)}; none of the modalities "
            f"{', '.join(config.modalities)}."
        )
    values, present = ({k: held[k] for k in chosen} for held in (features.values, features.present))
    return replace(features, values=values, present=present)


def _batches(
    config: ImplihateConfig, data: VideoData, rows: Rows, model: VideoNet, rng: np.random.Generator
) -> Iterable[Batch]:
    """Yield the batches of an epoch, in some of which a modality is lost."""
    for chosen in shuffled(rows, config.batch_size, rng):
        batch = data.features.batch(chosen)
        if config.modality_dropout and len(model.modalities) > 1:
            lost = rng.integers(len(model.modalities), size=len(chosen))
            lost[rng.random(len(chosen)) >= config.modality_dropout] = -1
            for number, key in enumerate(model.modalities):
                keep = torch.from_numpy((lost != number).astype(np.float32))
                batch[f"{key}_present"] = batch[f"{key}_present"] * keep
        yield batch | {"label": torch.from_numpy(data.label[chosen])}


def _probability(
    model: VideoNet, features: Features, rows: Rows, without: str | None = None
) -> np.ndarray:
    device, training = device_of(model), model.training
    model.eval()
    with torch.no_grad():
        parts = [
            model(features.batch(part, without, device)).softmax(dim=1).cpu()
            for part in np.array_split(rows, max(1, len(rows) // 1024))
        ]
    model.train(training)
    return torch.cat(parts).numpy()
