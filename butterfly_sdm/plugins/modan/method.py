"""
Pretraining by shared attributes, then fine-tuning: settings, stages and measures of the method
[1]_.

.. [1] ModAn-MulSupCon. arXiv 2508.18613 (2025).
"""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor, nn

from butterfly_sdm.core.settings import FileOrName
from butterfly_sdm.errors import ConfigError, DataError
from butterfly_sdm.losses.contrastive import ContrastiveLoss
from butterfly_sdm.losses.pairs import jaccard, same_class
from butterfly_sdm.plugins.classifier_scores import (
    by_group,
    classification_scores,
    interval_metrics,
    paired_p_value,
    prediction_table,
)
from butterfly_sdm.plugins.collection import (
    LabelledImages,
    class_numbers,
    own_groups,
    unseen_images,
    with_split,
    without_unreadable,
)
from butterfly_sdm.plugins.contract import Plugin, PluginRun, Report
from butterfly_sdm.plugins.heads import fit_linear
from butterfly_sdm.plugins.images import Images
from butterfly_sdm.plugins.modan.collections import CollectionConfig, read_layout
from butterfly_sdm.plugins.networks import (
    TrunkAndHead,
    class_probabilities,
    device_of,
    make_trunk,
    over_images,
    unit,
)
from butterfly_sdm.plugins.options import PluginConfig, new_setting
from butterfly_sdm.plugins.row_batches import shuffled
from butterfly_sdm.plugins.stages import Batch, Stage, train_stages
from butterfly_sdm.plugins.views import random_view

_FIRST_RATE, _RISE_EPOCHS = 0.01, 3
_FALLS = (0.7, 0.8, 0.9)


class ModanConfig(PluginConfig):
    """Settings; the defaults are the paper's."""

    collection: CollectionConfig = Field(description="images to pretrain on")
    task: CollectionConfig | None = Field(None, description="labelled; None: the collection itself")
    attributes: tuple[str, ...] = Field(
        ("modality", "anatomy"), min_length=1, description="columns; any number"
    )
    fractions: tuple[float, float, float] = (0.8, 0.0, 0.2)
    size_px: int = Field(224, ge=8)
    channels: Literal[1, 3] = 1
    trunk: str = Field("resnet18", description="small:WIDTH or a model of timm")
    weights: FileOrName | None = None
    objective: Literal["jaccard", "simclr"] = Field(
        "jaccard", description="simclr: views of one image only, for comparison"
    )
    temperature: float = Field(0.07, gt=0)
    threshold: float = Field(0.3, ge=0, le=1, description="least similarity of a positive pair")
    epochs: int = Field(1000, ge=1)
    batch_size: int = Field(256, ge=4)
    learning_rate: float = Field(0.05, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    schedule: Literal["steps", "constant"] = new_setting(
        "constant",
        "of the rate. steps: as in the authors' code, a rise over three epochs, then a tenth after "
        "70, 80 and 90 % of the epochs",
    )
    crop: float = Field(0.2, gt=0, le=1, description="least share of the area of a view")
    flip: bool = True
    jitter: float = Field(0.4, ge=0, lt=1)
    tune_epochs: int = Field(10, ge=1)
    tune_learning_rate: float = Field(1e-4, gt=0)
    tune_step: int = Field(5, ge=1, description="epochs after which the rate falls to a tenth")
    tune_batch_size: int = Field(32, ge=2)
    folds: int = Field(5, ge=0, description="0: the split of the task")
    repeats: int = Field(10, ge=1)
    test: Literal["folds", "means"] = new_setting(
        "folds",
        "what is paired and has an interval. means: as in the paper, the same folds in every "
        "repeat, and the mean of the folds of each repeat",
    )
    validation_share: float = Field(
        0.1, ge=0, lt=0.5, description="of the rows of a fold, to choose the epoch; 0: the last"
    )
    scratch: bool = Field(True, description="also fine-tune random weights, for the paired test")


@dataclass(frozen=True)
class Task(LabelledImages):
    """
    Labelled images.

    Attributes
    ----------
    group
        (n,) patient of each, or a name of its own.
    """

    group: np.ndarray


@dataclass(frozen=True)
class ModanData(LabelledImages):
    """
    Images to pretrain on, and the labelled task if there is one.

    Attributes
    ----------
    attributes
        (n, attribute values) multi-hot.
    task
        Images to fine-tune on.
    """

    attributes: Tensor
    task: Task | None


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
        table, dropped = read_layout(config.collection, config.attributes)
        table = with_split(
            table, config.fractions, config.seed, group="patient", label=config.attributes[0]
        )
        columns = [
            (name, value)
            for name in config.attributes
            for value in sorted(set(table[name].dropna().astype(str)))
        ]
        # A missing value is no value, also where a value is spelled "None".
        hot = [table[name].notna() & (table[name].astype(str) == value) for name, value in columns]
        attributes = np.array(hot, dtype=bool).reshape(len(columns), len(table)).T
        if (attributes == attributes[0]).all():
            names = " and ".join(config.attributes)
            raise DataError(
                f"All images have the same {names}; pretraining needs attributes that differ."
            )
        images = Images(table["path"].tolist(), config.size_px, config.channels)
        task = _task(config, table)
        facts = {
            "attributes": [list(column) for column in columns],
            "dropped": dropped,
            "classes": [] if task is None else task.facts["classes"],
        }
        unknown = np.full(len(table), -1)
        hot_rows = torch.from_numpy(attributes).float()
        return ModanData(images, table, unknown, facts, hot_rows, task)

    def build(self, config: ModanConfig, facts: dict[str, Any], part: str) -> nn.Module:
        """Make the encoder, and the classifier if there is a task."""
        classes = len(facts["classes"])
        trunks = [
            make_trunk(
                config.trunk, config.channels, size_px=config.size_px, weights=config.weights
            )
            for _ in range(2 if classes else 1)
        ]
        published = config.weights == "pretrained"
        networks = [TrunkAndHead(trunk, max(1, classes), published=published) for trunk in trunks]
        return ModanNet(networks[0], networks[1] if classes else None)

    def stages(
        self, config: ModanConfig, data: ModanData, model: nn.Module, part: str
    ) -> Sequence[Stage]:
        """Pretrain the encoder; fine-tune its copy on all training rows of the task."""
        rows = data.rows("train")

        def batches(model: ModanNet, rng: np.random.Generator) -> Iterable[Batch]:
            for chosen in shuffled(rows, config.batch_size, rng):
                yield data.batch(chosen) | {"labels": data.attributes[torch.from_numpy(chosen)]}

        sgd = partial(
            torch.optim.SGD,
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        loss = partial(_pretraining_loss, config)
        stages = [
            Stage(
                "pretraining",
                batches,
                loss,
                sgd,
                config.epochs,
                ("encoder.trunk",),
                rate=partial(pretraining_rate, config),
                collapsed=partial(_collapsed, config),
            )
        ]
        if data.task is not None:
            split = "split" in data.task.table.columns
            every = data.task.images
            train = data.task.rows("train") if split else every.readable(every.rows)
            stages.append(_tuning(config, data.task, train, "task", start=_copy_encoder))
        return stages

    def evaluate(self, config: ModanConfig, data: ModanData, run: PluginRun) -> Report:
        """
        Measure the embedding on held-out images and, by folds of patients, what pretraining is
        worth.
        """
        encoder = run.model().encoder
        held_out = np.setdiff1d(data.images.rows, data.listed("train"))
        held_out = data.images.readable(held_out)
        z = unit(over_images(encoder.features, data.images, held_out, run.device))
        metrics = shared_cosines(z, data.attributes[torch.from_numpy(held_out)])
        tables = {"embedded": pd.DataFrame({"path": data.names(held_out)})}
        if data.task is not None:
            folds, tables["predictions"] = self._folds(config, data.task, run, encoder)
            tables["folds"] = folds
            if config.test == "means":
                folds = folds.groupby("repeat").mean()
            for kind in ("fine_tuned", "fine_tuned_patient", "probe", "scratch"):
                if kind in folds and folds[kind].notna().all():
                    metrics |= interval_metrics(f"auc_{kind}", folds[kind].tolist())
            if config.scratch:
                metrics["p_fine_tuned_against_scratch"] = paired_p_value(
                    folds["fine_tuned"].tolist(), folds["scratch"].tolist()
                )
        return Report(metrics, tables, {"embeddings": z.numpy().astype(np.float32)})

    def _folds(
        self, config: ModanConfig, task: Task, run: PluginRun, encoder: TrunkAndHead
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        divisions = list(_divisions(config, task))
        asked = np.unique(np.concatenate([np.append(*division[2:]) for division in divisions]))

        @cache
        def embedded() -> np.ndarray:  # once for all folds, unless none is left to make
            return over_images(encoder.features, task.images, asked, device_of(encoder)).numpy()

        def make(number: int) -> dict[str, Any]:
            repeat, fold, train, test = divisions[number]
            network = self.network(config, run.facts, f"fold {repeat} {fold}")
            fresh = cast(ModanNet, network).task
            if fresh is None:
                raise DataError(
                    "The run was trained without labels; give the task and train again."
                )
            part, start = f"{repeat} {fold}", {"fine_tuned": encoder, "scratch": None}
            guesses = {
                kind: fine_tune(config, task, train, test, fresh, start[kind], part=part)
                for kind in ("fine_tuned", *(["scratch"] if config.scratch else []))
            }
            sides = [embedded()[np.searchsorted(asked, rows)] for rows in (train, test)]
            guesses["probe"] = _probe(task, train, *sides)
            label = task.label[test]
            areas = {k: classification_scores(label, p)["auc"] for k, p in guesses.items()}
            whole = by_group(label, guesses["fine_tuned"], task.group[test])
            if whole is not None:
                areas["fine_tuned_patient"] = classification_scores(*whole)["auc"]
            shown = guesses["fine_tuned"].tolist() if repeat == 0 else []
            return {"areas": areas, "probability": shown}

        found, predicted = [], []
        made = run.each("folds", len(divisions), make)
        for (repeat, fold, _, test), piece in zip(divisions, made, strict=True):
            found.append({"repeat": repeat + 1, "fold": fold + 1} | piece["areas"])
            if repeat == 0:
                probability = np.array(piece["probability"], dtype=np.float32)
                table = prediction_table(task.names(test), probability, run.facts["classes"])
                predicted.append(table.assign(label=task.label[test], fold=fold + 1))
        return pd.DataFrame(found), pd.concat(predicted, ignore_index=True)

    def predict(self, config: ModanConfig, run: PluginRun, inputs: Path) -> pd.DataFrame:
        """Return class probabilities of unseen images; without a task their embeddings."""
        images, paths = unseen_images(inputs, config.size_px, config.channels)
        model, classes = run.model(), run.facts["classes"]
        if classes:
            probability = class_probabilities(model.task, images, images.rows)
            return without_unreadable(prediction_table(paths, probability, classes), images)
        z = unit(over_images(model.encoder.features, images, images.rows, run.device)).numpy()
        table = pd.DataFrame(z, columns=[f"z_{number}" for number in range(z.shape[1])])
        return without_unreadable(table.assign(path=list(map(str, paths))), images)


def pretraining_rate(config: ModanConfig, epoch: int) -> float:
    """
    Return the factor of the rate in an epoch, counted from 0.

    The authors' code starts at 0.01, reaches the rate after three epochs, and takes a tenth of it
    after 700, 800 and 900 of 1,000 epochs; other numbers of epochs keep these shares.
    """
    if config.schedule == "constant":
        return 1.0
    first = min(1.0, _FIRST_RATE / config.learning_rate)
    rise = first + (1 - first) * min(1.0, epoch / _RISE_EPOCHS)
    return rise * 0.1 ** sum(epoch >= share * config.epochs for share in _FALLS)


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
    model = deepcopy(fresh)
    if encoder is not None:
        model.trunk.load_state_dict(encoder.trunk.state_dict())
    train_stages(model, [_tuning(config, task, train)], config, part=part)
    return class_probabilities(model, task.images, test)


def linear_probe(
    task: Task, train: np.ndarray, test: np.ndarray, encoder: TrunkAndHead
) -> np.ndarray:
    """Return (test, classes) probabilities of a logistic regression on the frozen encoder."""
    rows, place = np.concatenate([train, test]), device_of(encoder)
    features = over_images(encoder.features, task.images, rows, place).numpy()
    return _probe(task, train, features[: len(train)], features[len(train) :])


def _probe(task: Task, train: np.ndarray, known: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return (m, classes) probabilities of ``asked`` (m, d), given those of the rows ``train``."""
    weight, bias, _ = fit_linear(known, task.label[train], int(task.label.max()) + 1)
    return torch.from_numpy(asked @ weight.T + bias).softmax(dim=1).numpy()


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
        for number in sorted(set(shared[other].tolist()))
    }


def _task(config: ModanConfig, table: pd.DataFrame) -> Task | None:
    """Return the labelled images: of the task, or those of the collection if they have labels."""
    if config.task is not None:
        table, _ = read_layout(config.task)
    if "label" not in table.columns or table["label"].isna().all():
        if config.task is not None:
            raise DataError(f"The task {config.task.path} has no label.")
        return None
    table = table[table["label"].notna()].reset_index(drop=True)
    classes, label = class_numbers(table["label"].astype(str))
    if len(classes) < 2:
        path = (config.task or config.collection).path
        raise DataError(f"All labels of {path} are {classes[0]!r}; a task needs two classes.")
    group = own_groups(table, "patient").to_numpy()
    images = Images(table["path"].tolist(), config.size_px, config.channels)
    task = Task(images, table, label, {"classes": classes}, group)
    for number, name in enumerate(classes):
        patients = len(set(group[label == number]))
        if patients < config.folds:
            raise DataError(
                f"The class {name!r} has {patients} patients (or images without one); "
                f"{config.folds} folds need one each. Lower folds, or join classes."
            )
    return task


def _pretraining_loss(config: ModanConfig, model: ModanNet, batch: Batch) -> Tensor:
    view = partial(random_view, scale=(config.crop, 1.0), flip=config.flip, jitter=config.jitter)
    z = unit(model.encoder.features(torch.cat([view(batch["image"]), view(batch["image"])])))
    return cast(Tensor, ContrastiveLoss(config.temperature)(z, _attracted(config, batch)))


def _collapsed(config: ModanConfig, batch: Batch) -> Tensor:
    return ContrastiveLoss(config.temperature).collapsed(_attracted(config, batch))


def _attracted(config: ModanConfig, batch: Batch) -> Tensor:
    if config.objective == "simclr":
        return same_class(batch["row"].repeat(2))
    return jaccard(batch["labels"].repeat(2, 1), threshold=config.threshold)


def _tuning(
    config: ModanConfig,
    task: Task,
    train: np.ndarray,
    name: str = "",
    start: Callable[[Any], None] | None = None,
) -> Stage:
    """Return the fine-tuning stage of a classifier, or of the part ``name`` of a network."""
    held_out = _validation(config, task, train)
    rows = np.setdiff1d(train, held_out)
    prefix = f"{name}." if name else ""

    def batches(model: nn.Module, rng: np.random.Generator) -> Iterable[Batch]:
        return map(task.batch, shuffled(rows, config.tune_batch_size, rng))

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        logits: Tensor = model.get_submodule(name)(batch["image"])
        return nn.functional.cross_entropy(logits, batch["label"])

    def measure(model: nn.Module) -> dict[str, float]:
        probability = class_probabilities(model.get_submodule(name), task.images, held_out)
        return {"validation_auc": classification_scores(task.label[held_out], probability)["auc"]}

    def rate(epoch: int) -> float:
        return 0.1 ** (epoch // config.tune_step)

    choose: dict[str, Any] = {"start": start}
    if len(held_out):
        choose |= {"measure": measure, "select": "validation_auc"}
    adam = partial(torch.optim.Adam, lr=config.tune_learning_rate)
    trains = (f"{prefix}trunk", f"{prefix}head")
    return Stage("fine_tuning", batches, loss, adam, config.tune_epochs, trains, rate, **choose)


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
        train, test = task.rows("train"), task.rows("test")
        for repeat in range(config.repeats):
            yield repeat, 0, train, test
        return
    rows = task.images.readable(task.images.rows)
    label, group = task.label[rows], task.group[rows]
    for repeat in range(config.repeats):
        drawn = config.seed + (0 if config.test == "means" else repeat)
        folds = StratifiedGroupKFold(config.folds, shuffle=True, random_state=drawn)
        for fold, (train, test) in enumerate(folds.split(label, label, group)):
            yield repeat, fold, rows[train], rows[test]


def _copy_encoder(model: ModanNet) -> None:
    if model.task is not None:
        model.task.trunk.load_state_dict(model.encoder.trunk.state_dict())
