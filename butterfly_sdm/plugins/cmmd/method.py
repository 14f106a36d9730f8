"""Contrastive learning as domain adaptation: settings, stages and measures of the method [1]_.

.. [1] arXiv 2502.00052 (2025).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn

from butterfly_sdm import figures
from butterfly_sdm.errors import ConfigError, DataError
from butterfly_sdm.losses.contrastive import ContrastiveLoss
from butterfly_sdm.losses.pairs import same_class
from butterfly_sdm.plugins.batches import balanced, shuffled
from butterfly_sdm.plugins.cmmd.separation import separation
from butterfly_sdm.plugins.cmmd.sources import read_sources
from butterfly_sdm.plugins.images import Images, find_images, with_split
from butterfly_sdm.plugins.networks import TrunkAndHead, device_of, make_trunk, over_images, unit
from butterfly_sdm.plugins.plugin import Plugin, Report
from butterfly_sdm.plugins.runner import PluginRun
from butterfly_sdm.plugins.scores import class_scores, classification_scores
from butterfly_sdm.plugins.settings import InputPath, PluginConfig, Section
from butterfly_sdm.plugins.stages import Batch, Stage, fixed_features
from butterfly_sdm.plugins.views import random_view


class SourceConfig(Section):
    """One collection of images."""

    layout: Literal["table", "vindr", "cbis", "synthetic"] = "table"
    path: InputPath | None = Field(None, description="the table; of vindr and cbis the root folder")
    images: InputPath | None = Field(
        None, description="folder the paths of the table are relative to; None: its own"
    )
    domain: str | None = Field(
        None, description="domain of all its rows, instead of the column domain"
    )
    count: int = Field(100, ge=4, description="synthetic: images per class and domain")


class CmmdConfig(PluginConfig):
    """Settings of the domain adaptation; the defaults are the paper's where it gives them."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    labels: dict[str, str] = Field(
        default_factory=dict, description="our name of a label: its name in the data; others stay"
    )
    target: str | None = Field(
        None, description="the domain to adapt to; None: the second of two, by name"
    )
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    size_px: int = Field(256, ge=8)
    channels: Literal[1, 3] = 1
    trunk: str = Field("densenet121", description="small:WIDTH or a model of timm")
    weights: str | None = Field(None, description="None: random; pretrained; or a local file")
    objective: Literal["contrastive", "cross_entropy"] = Field(
        "contrastive", description="cross_entropy: for comparison"
    )
    use_target: bool = Field(
        True, description="train on target rows; false: source only, for comparison"
    )
    temperature: float = Field(0.1, gt=0)
    views: Literal[1, 2] = Field(
        1,
        description="2: also attract two views of one image, as NT-Xent; forced by missing labels",
    )
    balance_domains: bool = Field(False, description="half of each batch from the target")
    epochs: int = Field(20, ge=1)
    batch_size: int = Field(64, ge=4)
    learning_rate: float = Field(1e-3, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="not given by the paper")
    weight_decay: float = Field(0.0, ge=0)
    augment: bool = Field(
        False, description="small shifts and jitter of every view; on with two views"
    )
    crop: float = Field(0.8, gt=0, le=1, description="of the views: least share of the area")
    shift: float = Field(
        0.1, ge=0, lt=1, description="of the views: greatest shift, share of the side"
    )
    jitter: float = Field(
        0.2, ge=0, lt=1, description="of the views: change of brightness and contrast"
    )
    flip: bool = Field(True, description="of the views: mirror half of them")
    head_epochs: int = Field(5, ge=1)
    head_learning_rate: float = Field(1e-3, gt=0)


@dataclass(frozen=True)
class CmmdData:
    """Images with class (-1: unknown), domain (0 source, 1 target) and part of the split."""

    images: Images
    table: pd.DataFrame
    label: np.ndarray
    domain: np.ndarray
    facts: dict[str, Any]

    def rows(self, part: str, *, labelled: bool = False, domain: int | None = None) -> np.ndarray:
        """Return the rows of one part of the split."""
        chosen = (self.table["split"] == part).to_numpy()
        if labelled:
            chosen = chosen & (self.label >= 0)
        if domain is not None:
            chosen = chosen & (self.domain == domain)
        return np.flatnonzero(chosen)


class Cmmd(Plugin[CmmdConfig, CmmdData]):
    """
    Classes brought together across two domains by the supervised contrastive loss, then a linear
    classifier.
    """

    config = CmmdConfig

    def load(self, config: CmmdConfig) -> CmmdData:
        """Read all sources; classes and domains are checked to be complete."""
        table, pixels = read_sources(config.sources, config.size_px, config.seed)
        table["label"] = table["label"].replace(config.labels)
        table["stratum"] = table["domain"].astype(str) + "/" + table["label"].astype(str)
        table = with_split(
            table, config.fractions, config.seed, group="patient", label="stratum"
        ).drop(columns="stratum")
        without = table["domain"].isna()
        if without.any():
            raise DataError(
                f"{table['path'][without].iloc[0]} has no domain. Fill in the column, or remove "
                "such rows."
            )
        domains = sorted(set(table["domain"]))
        if len(domains) < 2 or (config.target is None and len(domains) > 2):
            found = ", ".join(domains) or "none"
            raise ConfigError(
                f"Adaptation needs a source and a target; the data have the domains {found}. Name "
                "one as target."
            )
        target = config.target or domains[1]
        if target not in domains:
            raise ConfigError(
                f"target = {target!r} is no domain of the data; they have {', '.join(domains)}."
            )
        classes = sorted(set(table["label"].dropna()))
        if len(classes) < 2:
            raise DataError(
                f"The labels are all {classes[0] if classes else 'missing'}; two classes are "
                "needed to tell apart."
            )
        label = (
            table["label"]
            .map({name: number for number, name in enumerate(classes)})
            .fillna(-1)
            .to_numpy(dtype=np.int64)
        )
        domain = (table["domain"] == target).to_numpy(dtype=np.int64)
        images = Images(
            pixels if pixels is not None else [Path(path) for path in table["path"]],
            config.size_px,
            config.channels,
        )
        facts = {"classes": classes, "domains": domains, "target": target}
        data = CmmdData(images, table, label, domain, facts)
        for part in ("train", "validation", "test"):
            for number, name in enumerate(("source", "target")):
                present = set(label[data.rows(part, labelled=True, domain=number)])
                lacking = [
                    title for position, title in enumerate(classes) if position not in present
                ]
                # In training the target may go without labels; where it is measured it may not.
                if lacking and not (part == "train" and number == 1):
                    raise DataError(
                        f"The {part} part of the {name} domain has no image of class "
                        f"{lacking[0]!r}. Add some, or leave that "
                        "class out of the table."
                    )
        return data

    def build(self, config: CmmdConfig, facts: dict[str, Any], part: str) -> nn.Module:
        """Make the trunk and the linear classifier."""
        trunk = make_trunk(
            config.trunk, config.channels, size_px=config.size_px, weights=config.weights
        )
        return TrunkAndHead(trunk, len(facts["classes"]), published=config.weights == "pretrained")

    def stages(
        self, config: CmmdConfig, data: CmmdData, model: nn.Module, part: str
    ) -> Sequence[Stage]:
        """First the trunk by the contrastive loss, then the classifier alone."""
        rows = data.rows("train") if config.use_target else data.rows("train", domain=0)
        contrastive = config.objective == "contrastive"
        views = (
            2
            if contrastive and (data.label[rows] < 0).any()
            else config.views
            if contrastive
            else 1
        )
        if not contrastive:
            rows = rows[data.label[rows] >= 0]
        criterion = ContrastiveLoss(config.temperature, without_positives="zero")

        def batches(model: TrunkAndHead, rng: np.random.Generator) -> Iterable[Batch]:
            drawn = (
                balanced(rows, data.domain[rows], config.batch_size, rng)
                if config.balance_domains and config.use_target
                else shuffled(rows, config.batch_size, rng)
            )
            for chosen in drawn:
                yield {
                    "image": data.images.batch(chosen),
                    "label": torch.from_numpy(data.label[chosen]),
                    "row": torch.from_numpy(chosen),
                }

        def view(images: Tensor) -> Tensor:
            if views == 1 and not config.augment:
                return images
            return random_view(
                images,
                scale=(config.crop, 1.0),
                flip=config.flip,
                jitter=config.jitter,
                shift=config.shift,
            )

        def loss(model: TrunkAndHead, batch: Batch) -> Tensor:
            if not contrastive:
                return nn.functional.cross_entropy(model(view(batch["image"])), batch["label"])
            z = unit(model.features(torch.cat([view(batch["image"]) for _ in range(views)])))
            label, row = batch["label"].repeat(views), batch["row"].repeat(views)
            return criterion(z, torch.maximum(same_class(label), same_class(row)))

        held_out = data.rows("validation")

        def measure(model: TrunkAndHead) -> dict[str, float]:
            z = unit(over_images(model.features, data.images, held_out, device_of(model)))
            found = separation(
                z,
                torch.from_numpy(data.label[held_out]),
                torch.from_numpy(data.domain[held_out]),
                len(data.facts["classes"]),
            )
            return {
                "cmmd": found.cmmd2**0.5,
                "dcmmd": found.dcmmd2**0.5,
                "cmmd_ratio": min(found.ratio, 1e9),
            }

        labelled = rows[data.label[rows] >= 0]

        def train_features(model: TrunkAndHead) -> Tensor:
            return over_images(
                lambda images: unit(model.features(images)), data.images, labelled, device_of(model)
            )

        def head_loss(model: TrunkAndHead, batch: Batch) -> Tensor:
            return nn.functional.cross_entropy(
                model.head(batch["features"] * _SCALE), batch["label"]
            )

        sgd = partial(
            torch.optim.SGD,
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        first = Stage(
            "representation",
            batches,
            loss,
            sgd,
            config.epochs,
            ("trunk",) if contrastive else (),
            measure=measure,
        )
        if not contrastive:
            return [first]
        adam = partial(torch.optim.Adam, lr=config.head_learning_rate)
        labels = torch.from_numpy(data.label[labelled])
        head = fixed_features(train_features, labels, config.batch_size)
        return [first, Stage("classifier", head, head_loss, adam, config.head_epochs, ("head",))]

    def evaluate(self, config: CmmdConfig, data: CmmdData, run: PluginRun) -> Report:
        """
        Score both domains of the test part and measure the discrepancy of its embedding; draw it
        over the epochs.
        """
        model = run.model()
        rows = data.rows("test", labelled=True)
        z, probability = _apply(config, model, data.images, rows, run.device)
        label, domain = data.label[rows], data.domain[rows]
        found = separation(
            z, torch.from_numpy(label), torch.from_numpy(domain), len(data.facts["classes"])
        )
        metrics = {
            "cmmd": found.cmmd2**0.5,
            "dcmmd": found.dcmmd2**0.5,
            "cmmd_ratio": min(found.ratio, 1e9),
        }
        for number, name in enumerate(("source", "target")):
            inside = domain == number
            metrics |= {
                f"{name}_{key}": value
                for key, value in classification_scores(label[inside], probability[inside]).items()
            }
        classes = data.facts["classes"]
        predictions = _table(data.table["path"].iloc[rows].tolist(), probability, classes)
        predictions.insert(1, "label", [classes[number] for number in label])
        predictions.insert(2, "domain", data.table["domain"].iloc[rows].to_numpy())
        _curve(run.folder)
        target = domain == 1
        return Report(
            metrics,
            {
                "predictions": predictions,
                "classes_target": class_scores(label[target], probability[target], classes),
            },
            {"embeddings": z.numpy().astype(np.float32)},
        )

    def predict(self, config: CmmdConfig, run: PluginRun, inputs: Path) -> pd.DataFrame:
        """Return the probability of every class for unseen images."""
        paths = find_images(inputs)
        images = Images(paths, config.size_px, config.channels)
        _, probability = _apply(config, run.model(), images, np.arange(len(paths)), run.device)
        return _table([str(path) for path in paths], probability, run.facts["classes"])


_SCALE = 10.0  # unit vectors would hold the logits of a classifier near 0


def _apply(
    config: CmmdConfig, model: TrunkAndHead, images: Images, rows: np.ndarray, device: torch.device
) -> tuple[Tensor, np.ndarray]:
    """Return unit embeddings and class probabilities."""
    features = over_images(model.features, images, rows, device)
    z = unit(features)
    with torch.no_grad():
        logits = model.head.cpu()(z * _SCALE if config.objective == "contrastive" else features)
    return z, logits.softmax(dim=1).numpy()


def _table(paths: list[str], probability: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    table = pd.DataFrame(
        {"path": paths, "predicted": [classes[number] for number in probability.argmax(axis=1)]}
    )
    return table.assign(
        **{f"p_{name}": probability[:, number] for number, name in enumerate(classes)}
    )


def _curve(folder: Path) -> None:
    history = pd.read_csv(folder / "history.csv")
    history = history[history["stage"] == "representation"]
    picture = figures.Picture(6, 3.5)
    axes = picture.subplots()
    for column, name in (
        ("cmmd", "CMMD: domains apart"),
        ("dcmmd", "DCMMD: classes apart"),
        ("cmmd_ratio", "CMMD / DCMMD"),
    ):
        axes.plot(history["epoch"], history[column], label=name)
    axes.set(xlabel="epoch", yscale="log", title="Held-out embeddings")
    axes.legend()
    picture.save(folder / "discrepancy.png", dpi=120)
