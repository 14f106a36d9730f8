"""
Pretraining by shared attributes, then fine-tuning: settings, stages and measures of the method
[1]_.

.. [1] ModAn-MulSupCon. arXiv 2508.18613 (2025).
"""

from collections.abc import Iterable
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
    classification_scores,
    interval_metrics,
    paired_p_value,
    prediction_table,
    scores_with_groups,
)
from butterfly_sdm.plugins.collection import (
    LabelledImages,
    blanked,
    check_folds,
    class_numbers,
    own_groups,
    unseen_images,
    with_split,
)
from butterfly_sdm.plugins.contract import Plugin, PluginRun, Report
from butterfly_sdm.plugins.heads import fit_linear
from butterfly_sdm.plugins.images import Images
from butterfly_sdm.plugins.modan.collections import CollectionConfig, read_layout
from butterfly_sdm.plugins.networks import (
    TrunkAndHead,
    class_probabilities,
    make_trunk,
    unit,
)
from butterfly_sdm.plugins.options import PluginConfig, later, setting
from butterfly_sdm.plugins.stages import Batch, Stage, sgd, train_stages
from butterfly_sdm.plugins.views import ContrastOfViews, views_of

_FIRST_RATE, _RISE_EPOCHS = 0.01, 3
_FALLS = (0.7, 0.8, 0.9)


class ModanConfig(PluginConfig):
    """Settings; the defaults are the paper's."""

    collection: CollectionConfig = setting(..., "images to pretrain on")
    task: CollectionConfig | None = setting(None, "labelled; None: the collection itself")
    attributes: tuple[str, ...] = setting(("modality", "anatomy"), "any columns", min_length=1)
    fractions: tuple[float, float, float] = (0.8, 0.0, 0.2)
    size_px: int = Field(224, ge=8)
    channels: Literal[1, 3] = 1
    trunk: str = setting("resnet18", "small:WIDTH or a model of timm")
    weights: FileOrName | None = None
    objective: Literal["jaccard", "simclr"] = setting("jaccard", "simclr: views of one image only")
    temperature: float = Field(0.07, gt=0)
    threshold: float = setting(0.3, "least similarity of a positive pair", ge=0, le=1)
    epochs: int = Field(1000, ge=1)
    batch_size: int = Field(256, ge=4)
    learning_rate: float = Field(0.05, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    schedule: Literal["steps", "constant"] = later(
        "constant",
        "of the rate. steps: as in the authors' code, a rise over three epochs, then a tenth after "
        "70, 80 and 90 % of the epochs",
    )
    crop: float = setting(0.2, "least share of the area of a view", gt=0, le=1)
    flip: bool = True
    jitter: float = Field(0.4, ge=0, lt=1)
    tune_epochs: int = Field(10, ge=1)
    tune_learning_rate: float = Field(1e-4, gt=0)
    tune_step: int = setting(5, "epochs after which the rate falls to a tenth", ge=1)
    tune_batch_size: int = Field(32, ge=2)
    folds: int = setting(5, "0: the split of the task", ge=0)
    repeats: int = Field(10, ge=1)
    test: Literal["folds", "means"] = later(
        "folds",
        "what is paired and has an interval. means: as in the paper, the same folds in every "
        "repeat, and the mean of the folds of each repeat",
    )
    validation_share: float = setting(0.1, "of a fold, to choose the epoch; 0: last", ge=0, lt=0.5)
    scratch: bool = setting(True, "also fine-tune random weights, for the paired test")


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

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Return also ``attributes`` (m, attribute values) of (m,) rows."""
        return super().batch(rows) | {"attributes": self.attributes[torch.from_numpy(rows)]}


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
        names = list(config.attributes)
        table = with_split(table, config.fractions, config.seed, group="patient", label=names[0])
        given = table[names]
        text = given.astype(str).where(given.notna())
        columns = [(name, value) for name in text for value in sorted(set(text[name].dropna()))]
        hot = [text[name] == value for name, value in columns]
        attributes = np.array(hot, dtype=bool).reshape(len(columns), len(table)).T
        if (attributes == attributes[0]).all():
            raise DataError(
                f"All images have the same {' and '.join(names)}; pretraining needs attributes "
                "that differ."
            )
        images = Images(table["path"].tolist(), config.size_px, config.channels)
        task = _task(config, table)
        facts = {
            "attributes": [list(column) for column in columns],
            "dropped": dropped,
            "classes": [] if task is None else task.facts["classes"],
        }
        unknown, hot_rows = np.full(len(table), -1), torch.from_numpy(attributes).float()
        return ModanData(images, table, unknown, facts, hot_rows, task)

    def build(self, config: ModanConfig, facts: dict[str, Any], part: str) -> nn.Module:
        """Make the encoder, and the classifier if there is a task."""
        classes, published = len(facts["classes"]), config.weights == "pretrained"
        make = partial(make_trunk, config.trunk, config.channels, config.size_px)
        trunks = [make(weights=config.weights) for _ in range(2 if classes else 1)]
        networks = [TrunkAndHead(trunk, max(1, classes), published=published) for trunk in trunks]
        return ModanNet(networks[0], networks[1] if classes else None)

    def stages(self, config: ModanConfig, data: ModanData, model: Any, part: str) -> list[Stage]:
        """Pretrain the encoder; fine-tune its copy on all training rows of the task."""
        batches = data.batches(data.rows("train"), config.batch_size)
        attracted, criterion = partial(_attracted, config), ContrastiveLoss(config.temperature)
        contrast = ContrastOfViews(views_of(config), 2, _encoded, attracted, criterion)
        way = {"rate": partial(pretraining_rate, config), "trains": ("encoder.trunk",)}
        pretraining = contrast.stage("pretraining", batches, sgd(config), config.epochs, **way)
        if data.task is None:
            return [pretraining]
        train = data.task.usable("train" if "split" in data.task.table.columns else None)
        return [pretraining, _tuning(config, data.task, train, "task", start=_copy_encoder)]

    def evaluate(self, config: ModanConfig, data: ModanData, run: PluginRun) -> Report:
        """
        Measure the embedding on held-out images and, by folds of patients, what pretraining is
        worth.
        """
        encoder = run.model().encoder
        held_out = np.setdiff1d(data.images.rows, data.listed("train"))
        held_out = data.images.readable(held_out)
        metrics: dict[str, float] = {}
        tables: dict[str, pd.DataFrame] = {}
        arrays: dict[str, np.ndarray] = {}
        if len(held_out):
            z = unit(encoder.features_of(data.images, held_out))
            metrics = shared_cosines(z, data.attributes[torch.from_numpy(held_out)])
            tables["embedded"] = pd.DataFrame({"path": data.names(held_out)})
            arrays["embeddings"] = z.numpy().astype(np.float32)
        elif data.task is None:
            raise DataError(
                f"All {len(data.images)} images were trained on, so none is left to measure the "
                "embedding on. Raise the last of fractions or add images, and train again."
            )
        if data.task is not None:
            folds, tables["predictions"] = self._folds(config, data.task, run, encoder)
            tables["folds"] = folds
            if config.test == "means":
                folds = folds.groupby("repeat").mean()
            for kind in ("fine_tuned", "fine_tuned_patient", "probe", "scratch"):
                if kind in folds and folds[kind].notna().all():
                    metrics |= interval_metrics(f"auc_{kind}", folds[kind].tolist())
            if config.scratch and len(folds) > 1:
                p = paired_p_value(folds["fine_tuned"].tolist(), folds["scratch"].tolist())
                metrics["p_fine_tuned_against_scratch"] = p
        return Report(metrics, tables, arrays)

    def _folds(
        self, config: ModanConfig, task: Task, run: PluginRun, encoder: TrunkAndHead
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        divisions = list(_divisions(config, task))
        asked = np.unique(np.concatenate([np.append(*division[2:]) for division in divisions]))

        @cache
        def embedded() -> np.ndarray:  # once for all folds, unless none is left to make
            return encoder.features_of(task.images, asked).numpy()

        def make(number: int) -> dict[str, Any]:
            repeat, fold, train, test = divisions[number]
            network = self.network(config, run.facts, f"fold {repeat} {fold}")
            fresh = cast(ModanNet, network).task
            if fresh is None:
                raise DataError("The run was trained without labels; give a task and train again.")
            tune = partial(fine_tune, config, task, train, test, fresh, part=f"{repeat} {fold}")
            guesses = {"fine_tuned": tune(encoder)}
            if config.scratch:
                guesses["scratch"] = tune(None)
            sides = [embedded()[np.searchsorted(asked, rows)] for rows in (train, test)]
            guesses["probe"] = _probe(task, train, *sides)
            label = task.label[test]
            areas = {k: classification_scores(label, p)["auc"] for k, p in guesses.items()}
            tuned = scores_with_groups(label, guesses["fine_tuned"], task.group[test], "patient")
            if "patient_auc" in tuned:
                areas["fine_tuned_patient"] = tuned["patient_auc"]
            shown = guesses["fine_tuned"].tolist() if repeat == 0 else []
            return {"areas": areas, "probability": shown}

        found, predicted = [], []
        made = run.each("folds", len(divisions), make)
        for (repeat, fold, _, test), piece in zip(divisions, made, strict=True):
            found.append({"repeat": repeat + 1, "fold": fold + 1} | piece["areas"])
            if repeat == 0:
                probability = np.array(piece["probability"], dtype=np.float32)
                given = (task.names(test), probability, run.facts["classes"])
                table = prediction_table(*given, label=task.label[test])
                predicted.append(table.assign(fold=fold + 1))
        return pd.DataFrame(found), pd.concat(predicted, ignore_index=True)

    def predict(self, config: ModanConfig, run: PluginRun, inputs: Path) -> pd.DataFrame:
        """Return class probabilities of unseen images; without a task their embeddings."""
        images, paths = unseen_images(inputs, config.size_px, config.channels)
        model, classes = run.model(), run.facts["classes"]
        if classes:
            probability = class_probabilities(model.task, images, images.rows)
            return blanked(prediction_table(paths, probability, classes), images.unreadable)
        z = unit(model.encoder.features_of(images, images.rows)).numpy()
        table = pd.DataFrame(z, columns=[f"z_{number}" for number in range(z.shape[1])])
        table.insert(0, "path", list(map(str, paths)))
        return blanked(table, images.unreadable)


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
    features = encoder.features_of(task.images, np.concatenate([train, test])).numpy()
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
    what = f"The labels of {(config.task or config.collection).path}"
    classes, label = class_numbers(table["label"].astype(str), what)
    group = own_groups(table, "patient").to_numpy()
    images = Images(table["path"].tolist(), config.size_px, config.channels)
    task = Task(images, table, label, {"classes": classes}, group)
    check_folds(label, group, classes, config.folds, "patients (or images without one)")
    return task


def _encoded(model: ModanNet, images: Tensor) -> Tensor:
    return model.encoder.features(images)


def _attracted(config: ModanConfig, batch: Batch) -> Tensor:
    if config.objective == "simclr":
        return same_class(batch["row"])
    return jaccard(batch["attributes"], threshold=config.threshold)


def _tuning(
    config: ModanConfig, task: Task, train: np.ndarray, name: str = "", start: Any = None
) -> Stage:
    """Return the fine-tuning stage of a classifier, or of the part ``name`` of a network."""
    held_out = _validation(config, task, train)
    batches = task.batches(np.setdiff1d(train, held_out), config.tune_batch_size)
    prefix = f"{name}." if name else ""

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
    both = [set(task.label[train[rows]]) for rows in (inside, outside)]
    complete = both == [set(task.label[train])] * 2
    return train[outside] if complete else np.array([], dtype=int)


def _divisions(
    config: ModanConfig, task: Task
) -> Iterable[tuple[int, int, np.ndarray, np.ndarray]]:
    if config.folds < 2:
        if "split" not in task.table.columns:
            raise ConfigError("folds = 0 evaluates on the split of the task; its table has none.")
        train, test = task.rows("train"), task.rows("test")
        for repeat in range(config.repeats):
            yield repeat, 0, train, test
        return
    rows = task.usable()
    label, group = task.label[rows], task.group[rows]
    for repeat in range(config.repeats):
        drawn = config.seed + (0 if config.test == "means" else repeat)
        folds = StratifiedGroupKFold(config.folds, shuffle=True, random_state=drawn)
        for fold, (train, test) in enumerate(folds.split(label, label, group)):
            yield repeat, fold, rows[train], rows[test]


def _copy_encoder(model: ModanNet) -> None:
    if model.task is not None:
        model.task.trunk.load_state_dict(model.encoder.trunk.state_dict())
