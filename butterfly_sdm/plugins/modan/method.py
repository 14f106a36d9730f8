"""
Pretraining by shared attributes, then fine-tuning: settings, stages and measures of the method
[1]_.

.. [1] ModAn-MulSupCon. arXiv 2508.18613 (2025).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from butterfly_sdm.errors import ConfigError, DataError
from butterfly_sdm.losses.contrastive import ContrastiveLoss
from butterfly_sdm.losses.pairs import jaccard, same_class
from butterfly_sdm.plugins.batches import shuffled
from butterfly_sdm.plugins.images import Images, find_images, with_split
from butterfly_sdm.plugins.modan.collections import dicom_folder, mrnet, radimagenet, table_of
from butterfly_sdm.plugins.networks import TrunkAndHead, device_of, make_trunk, over_images, unit
from butterfly_sdm.plugins.plugin import Plugin, Report
from butterfly_sdm.plugins.runner import PluginRun, build
from butterfly_sdm.plugins.scores import classification_scores, mean_interval, paired_p_value
from butterfly_sdm.plugins.settings import InputPath, PluginConfig, Section
from butterfly_sdm.plugins.stages import Batch, Stage, train_stages
from butterfly_sdm.plugins.views import random_view


class CollectionConfig(Section):
    """Where images come from."""

    layout: Literal["table", "radimagenet", "dicom", "mrnet"] = "table"
    path: InputPath = Field(description="the table, or the root folder")
    images: InputPath | None = Field(
        None, description="folder the paths of the table are relative to; None: its own"
    )
    cap: int | None = Field(None, ge=1, description="radimagenet: images per class")
    spellings: dict[str, str] = Field(
        default_factory=dict, description="dicom: what a tag says: our name of it"
    )
    require_all: bool = Field(
        True, description="dicom: leave out files without modality or body part"
    )
    plane: Literal["axial", "coronal", "sagittal"] = Field("sagittal", description="mrnet")
    finding: Literal["acl", "meniscus", "abnormal"] = Field("acl", description="mrnet: the label")


class ModanConfig(PluginConfig):
    """Settings; the defaults are the paper's."""

    collection: CollectionConfig = Field(description="images to pretrain on")
    task: CollectionConfig | None = Field(
        None, description="labelled images to fine-tune on; None: those of the collection"
    )
    attributes: tuple[str, ...] = Field(
        ("modality", "anatomy"), min_length=1, description="columns; any number"
    )
    fractions: tuple[float, float, float] = (0.8, 0.0, 0.2)
    size_px: int = Field(224, ge=8)
    channels: Literal[1, 3] = 1
    trunk: str = Field("resnet18", description="small:WIDTH or a model of timm")
    weights: str | None = None
    objective: Literal["jaccard", "simclr"] = Field(
        "jaccard", description="simclr: views of one image only, for comparison"
    )
    temperature: float = Field(0.07, gt=0)
    threshold: float = Field(
        0.3, ge=0, le=1, description="least Jaccard similarity of a positive pair"
    )
    epochs: int = Field(1000, ge=1)
    batch_size: int = Field(256, ge=4)
    learning_rate: float = Field(0.05, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    crop: float = Field(0.2, gt=0, le=1, description="least share of the area of a view")
    flip: bool = True
    jitter: float = Field(0.4, ge=0, lt=1)
    tune_epochs: int = Field(10, ge=1)
    tune_learning_rate: float = Field(1e-4, gt=0)
    tune_step: int = Field(
        5, ge=1, description="epochs after which the learning rate falls to a tenth"
    )
    tune_batch_size: int = Field(32, ge=2)
    folds: int = Field(5, ge=0, description="0: the split of the task")
    repeats: int = Field(10, ge=1)
    validation_share: float = Field(
        0.1, ge=0, lt=0.5, description="of the rows of a fold, to choose the epoch; 0: the last"
    )
    scratch: bool = Field(True, description="also fine-tune random weights, for the paired test")


@dataclass(frozen=True)
class Task:
    """Labelled images."""

    images: Images
    table: pd.DataFrame
    label: np.ndarray
    group: np.ndarray


@dataclass(frozen=True)
class ModanData:
    """Images with multi-hot attributes, and the labelled task if there is one."""

    images: Images
    table: pd.DataFrame
    labels: Tensor  # (n, attribute values)
    task: Task | None
    facts: dict[str, Any]


class ModanNet(nn.Module):
    """The pretrained encoder, and the classifier that begins as its copy."""

    def __init__(self, encoder: TrunkAndHead, task: TrunkAndHead | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.task = task


class Modan(Plugin[ModanConfig, ModanData]):
    """
    Images attract by the share of attributes they have in common; the encoder is then fine-tuned on
    few labels.
    """

    config = ModanConfig

    def load(self, config: ModanConfig) -> ModanData:
        """Read the collection and the task."""
        table, dropped = _read(config.collection, config)
        table = with_split(
            table, config.fractions, config.seed, group="patient", label=config.attributes[0]
        )
        columns = [
            (name, value)
            for name in config.attributes
            for value in sorted(set(table[name].dropna().astype(str)))
        ]
        labels = np.zeros((len(table), len(columns)), dtype=bool)
        for number, (name, value) in enumerate(columns):
            labels[:, number] = (
                table[name].notna() & (table[name].astype(str) == value)
            ).to_numpy()
        if (labels == labels[0]).all():
            names = " and ".join(config.attributes)
            raise DataError(
                f"All images have the same {names}; pretraining needs attributes that differ."
            )
        images = Images([Path(path) for path in table["path"]], config.size_px, config.channels)
        task_table, task = (
            (table, config.collection)
            if config.task is None
            else (_read(config.task, config)[0], config.task)
        )
        facts: dict[str, Any] = {
            "attributes": [list(column) for column in columns],
            "dropped": dropped,
            "classes": [],
        }
        found = None
        if "label" in task_table.columns and task_table["label"].notna().any():
            task_table = task_table[task_table["label"].notna()].reset_index(drop=True)
            classes = sorted(set(task_table["label"].astype(str)))
            if len(classes) < 2:
                raise DataError(
                    f"All labels of {task.path} are {classes[0]!r}; a task needs two classes."
                )
            numbers = (
                task_table["label"]
                .astype(str)
                .map({name: number for number, name in enumerate(classes)})
            )
            group = (
                task_table["patient"]
                if "patient" in task_table.columns
                else pd.Series(task_table.index.astype(str))
            )
            paths = [Path(path) for path in task_table["path"]]
            task_images = Images(paths, config.size_px, config.channels)
            found = Task(
                task_images,
                task_table,
                numbers.to_numpy(dtype=np.int64),
                group.astype(str).to_numpy(),
            )
            _check_folds(found, classes, config.folds)
            facts["classes"] = classes
        elif config.task is not None:
            raise DataError(f"The task {config.task.path} has no label.")
        return ModanData(images, table, torch.from_numpy(labels).float(), found, facts)

    def build(self, config: ModanConfig, facts: dict[str, Any], part: str) -> nn.Module:
        """Make the encoder, and the classifier if there is a task."""
        trunks = [
            make_trunk(
                config.trunk, config.channels, size_px=config.size_px, weights=config.weights
            )
            for _ in range(2 if facts["classes"] else 1)
        ]
        published = config.weights == "pretrained"
        networks = [
            TrunkAndHead(trunk, max(1, len(facts["classes"])), published=published)
            for trunk in trunks
        ]
        return ModanNet(networks[0], networks[1] if len(networks) == 2 else None)

    def stages(
        self, config: ModanConfig, data: ModanData, model: nn.Module, part: str
    ) -> Sequence[Stage]:
        """Pretrain the encoder; fine-tune its copy on all training rows of the task."""
        rows = np.flatnonzero((data.table["split"] == "train").to_numpy())
        criterion = ContrastiveLoss(config.temperature)
        view = partial(
            random_view, scale=(config.crop, 1.0), flip=config.flip, jitter=config.jitter
        )

        def batches(model: ModanNet, rng: np.random.Generator) -> Iterable[Batch]:
            for chosen in shuffled(rows, config.batch_size, rng):
                images, labels = data.images.batch(chosen), data.labels[torch.from_numpy(chosen)]
                yield {"image": images, "labels": labels, "row": torch.from_numpy(chosen)}

        def loss(model: ModanNet, batch: Batch) -> Tensor:
            z = unit(
                model.encoder.features(torch.cat([view(batch["image"]), view(batch["image"])]))
            )
            if config.objective == "simclr":
                return criterion(z, same_class(batch["row"].repeat(2)))
            return criterion(z, jaccard(batch["labels"].repeat(2, 1), threshold=config.threshold))

        sgd = partial(
            torch.optim.SGD,
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        stages = [Stage("pretraining", batches, loss, sgd, config.epochs, ("encoder.trunk",))]
        if data.task is not None:
            train = np.arange(len(data.task.label))
            if "split" in data.task.table.columns:
                train = np.flatnonzero((data.task.table["split"] == "train").to_numpy())
            stages.append(_tuning(config, data.task, train, "task.", start=_copy_encoder))
        return stages

    def evaluate(self, config: ModanConfig, data: ModanData, run: PluginRun) -> Report:
        """
        Measure the embedding on held-out images and, by folds of patients, what pretraining is
        worth.
        """
        model = run.model()
        held_out = np.flatnonzero((data.table["split"] != "train").to_numpy())
        z = unit(over_images(model.encoder.features, data.images, held_out, run.device))
        metrics = shared_cosines(z, data.labels[torch.from_numpy(held_out)])
        paths = pd.DataFrame({"path": data.table["path"].iloc[held_out].to_numpy()})
        tables, arrays = {"embedded": paths}, {"embeddings": z.numpy().astype(np.float32)}
        if data.task is not None:
            folds, predictions = self._folds(config, data.task, run.facts, model.encoder)
            tables |= {"folds": folds, "predictions": predictions}
            for kind in ("fine_tuned", "probe", *(["scratch"] if config.scratch else [])):
                mean, low, high = mean_interval(folds[kind].tolist())
                metrics |= {f"auc_{kind}": mean, f"auc_{kind}_low": low, f"auc_{kind}_high": high}
            if config.scratch:
                metrics["p_fine_tuned_against_scratch"] = paired_p_value(
                    folds["fine_tuned"].tolist(), folds["scratch"].tolist()
                )
        return Report(metrics, tables, arrays)

    def _folds(
        self, config: ModanConfig, task: Task, facts: dict[str, Any], encoder: TrunkAndHead
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        found, predicted = [], []
        for repeat, fold, train, test in _divisions(config, task):
            scores: dict[str, Any] = {"repeat": repeat + 1, "fold": fold + 1}
            fresh = cast(ModanNet, build(self, config, facts, f"fold {repeat} {fold}")).task
            if fresh is None:
                raise DataError(
                    "The run was trained without labels; give the task and train again."
                )
            for kind, start in (
                ("fine_tuned", encoder),
                *([("scratch", None)] if config.scratch else []),
            ):
                probability = fine_tune(
                    config, task, train, test, fresh, start, part=f"{repeat} {fold}"
                )
                scores[kind] = classification_scores(task.label[test], probability)["auc"]
                if kind == "fine_tuned" and repeat == 0:
                    paths = task.table["path"].iloc[test].tolist()
                    predicted.append(
                        _table(paths, probability, facts["classes"]).assign(
                            label=task.label[test], fold=fold + 1
                        )
                    )
            scores["probe"] = classification_scores(
                task.label[test], linear_probe(task, train, test, encoder)
            )["auc"]
            found.append(scores)
        return pd.DataFrame(found), pd.concat(predicted, ignore_index=True)

    def predict(self, config: ModanConfig, run: PluginRun, inputs: Path) -> pd.DataFrame:
        """Return class probabilities of unseen images; without a task their embeddings."""
        paths = find_images(inputs)
        images, rows = Images(paths, config.size_px, config.channels), np.arange(len(paths))
        model = run.model()
        names = [str(path) for path in paths]
        if run.facts["classes"]:
            probability = over_images(model.task, images, rows, run.device).softmax(dim=1).numpy()
            return _table(names, probability, run.facts["classes"])
        z = unit(over_images(model.encoder.features, images, rows, run.device)).numpy()
        return pd.DataFrame(z, columns=[f"z_{number}" for number in range(z.shape[1])]).assign(
            path=names
        )


def fine_tune(
    config: ModanConfig,
    task: Task,
    train: np.ndarray,
    test: np.ndarray,
    fresh: TrunkAndHead,
    encoder: TrunkAndHead | None,
    *,
    part: str,
) -> np.ndarray:
    """
    Fine-tune a copy and predict.

    Parameters
    ----------
    config
        The settings that begin with ``tune_``.
    task, train, test
        Labelled images, the rows to learn from and those to predict.
    fresh
        A classifier with random weights; stays as it is.
    encoder
        Gives the trunk; None: from scratch.
    part
        Of the seed.

    Returns
    -------
    ndarray of shape (test, classes)
        Probabilities.
    """
    model = TrunkAndHead(
        make_trunk(config.trunk, config.channels, size_px=config.size_px), fresh.head.out_features
    )
    model.load_state_dict(fresh.state_dict())
    if encoder is not None:
        model.trunk.load_state_dict(encoder.trunk.state_dict())
    train_stages(model, [_tuning(config, task, train, "")], config, part=part)
    return over_images(model, task.images, test, torch.device("cpu")).softmax(dim=1).numpy()


def linear_probe(
    task: Task, train: np.ndarray, test: np.ndarray, encoder: TrunkAndHead
) -> np.ndarray:
    """Return (test, classes) probabilities of a logistic regression on the frozen encoder."""
    features = over_images(
        encoder.features, task.images, np.concatenate([train, test]), device_of(encoder)
    ).numpy()
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(features[: len(train)], task.label[train])
    probability = np.zeros((len(test), int(task.label.max()) + 1))
    probability[:, probe.classes_] = probe.predict_proba(features[len(train) :])
    return probability


def shared_cosines(z: Tensor, labels: Tensor) -> dict[str, float]:
    """
    Return the mean cosine of pairs that share 0, 1, ... attributes, as ``cosine_shared_N``; None of
    a kind: left out.
    """
    shared = (labels @ labels.T).round().long()
    cosine = z @ z.T
    other = ~torch.eye(len(z), dtype=torch.bool)
    return {
        f"cosine_shared_{number}": float(cosine[other & (shared == number)].mean())
        for number in shared[other].unique().tolist()
    }


def _tuning(
    config: ModanConfig, task: Task, train: np.ndarray, prefix: str, start: Any = None
) -> Stage:
    """
    Return the fine-tuning stage of a classifier (``prefix`` "") or of the part ``task`` of the
    whole network.
    """
    held_out = _validation(config, task, train)
    rows = np.setdiff1d(train, held_out)
    choose = len(held_out) > 0

    def classifier(model: Any) -> TrunkAndHead:
        found: TrunkAndHead = model.task if prefix else model
        return found

    def batches(model: Any, rng: np.random.Generator) -> Iterable[Batch]:
        for chosen in shuffled(rows, config.tune_batch_size, rng):
            yield {
                "image": task.images.batch(chosen),
                "label": torch.from_numpy(task.label[chosen]),
            }

    def measure(model: Any) -> dict[str, float]:
        network = classifier(model)
        probability = (
            over_images(network, task.images, held_out, device_of(network)).softmax(dim=1).numpy()
        )
        return {"validation_auc": classification_scores(task.label[held_out], probability)["auc"]}

    return Stage(
        "fine_tuning",
        batches,
        lambda model, batch: nn.functional.cross_entropy(
            classifier(model)(batch["image"]), batch["label"]
        ),
        partial(torch.optim.Adam, lr=config.tune_learning_rate),
        config.tune_epochs,
        (f"{prefix}trunk", f"{prefix}head"),
        rate=lambda epoch: 0.1 ** (epoch // config.tune_step),
        start=start,
        measure=measure if choose else None,
        select="validation_auc" if choose else None,
    )


def _validation(config: ModanConfig, task: Task, train: np.ndarray) -> np.ndarray:
    """Return rows to choose the epoch on: whole patients, all classes on both sides; else none."""
    count = round(1 / config.validation_share) if config.validation_share else 0
    least = np.bincount(task.label[train], minlength=int(task.label.max()) + 1).min()
    if not count or least < 2 * count:
        return np.array([], dtype=int)
    folds = StratifiedGroupKFold(count, shuffle=True, random_state=config.seed)
    inside, outside = next(iter(folds.split(train, task.label[train], task.group[train])))
    classes = set(task.label[train])
    complete = (
        set(task.label[train[inside]]) == classes and set(task.label[train[outside]]) == classes
    )
    return train[outside] if complete else np.array([], dtype=int)


def _divisions(
    config: ModanConfig, task: Task
) -> Iterable[tuple[int, int, np.ndarray, np.ndarray]]:
    if config.folds < 2:
        if "split" not in task.table.columns:
            raise ConfigError(
                "folds = 0 evaluates on the split of the task, but its table has no column split."
            )
        part = task.table["split"].to_numpy(dtype=str)
        for repeat in range(config.repeats):
            yield repeat, 0, np.flatnonzero(part == "train"), np.flatnonzero(part == "test")
        return
    for repeat in range(config.repeats):
        folds = StratifiedGroupKFold(config.folds, shuffle=True, random_state=config.seed + repeat)
        for fold, (train, test) in enumerate(folds.split(task.label, task.label, task.group)):
            yield repeat, fold, train, test


def _check_folds(task: Task, classes: Sequence[str], folds: int) -> None:
    for number, name in enumerate(classes):
        patients = len(set(task.group[task.label == number]))
        if patients < folds:
            raise DataError(
                f"The class {name!r} has {patients} patients (or images without one); {folds} "
                "folds need one each. "
                "Lower folds, or join classes."
            )


def _copy_encoder(model: ModanNet) -> None:
    if model.task is not None:
        model.task.trunk.load_state_dict(model.encoder.trunk.state_dict())


def _read(collection: CollectionConfig, config: ModanConfig) -> tuple[pd.DataFrame, dict[str, int]]:
    if collection.layout == "radimagenet":
        return radimagenet(collection.path, collection.cap), {}
    if collection.layout == "dicom":
        return dicom_folder(
            collection.path, collection.spellings, require_all=collection.require_all
        )
    if collection.layout == "mrnet":
        return mrnet(collection.path, collection.plane, collection.finding), {}
    needed = () if collection is config.task else config.attributes
    return table_of(collection.path, needed, collection.images), {}


def _table(paths: list[str], probability: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    table = pd.DataFrame(
        {"path": paths, "predicted": [classes[number] for number in probability.argmax(axis=1)]}
    )
    return table.assign(
        **{f"p_{name}": probability[:, number] for number, name in enumerate(classes)}
    )
