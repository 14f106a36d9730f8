"""Contrastive learning as domain adaptation: settings, stages and measures of the method [1]_.

.. [1] arXiv 2502.00052 (2025).
"""

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
from butterfly_sdm.core.settings import FileOrName
from butterfly_sdm.errors import ConfigError, DataError
from butterfly_sdm.losses.contrastive import ContrastiveLoss
from butterfly_sdm.losses.pairs import same_class
from butterfly_sdm.plugins.classifier_scores import (
    class_scores,
    prediction_table,
    scores_with_groups,
)
from butterfly_sdm.plugins.cmmd.separation import separation
from butterfly_sdm.plugins.cmmd.sources import SourceConfig, read_sources
from butterfly_sdm.plugins.collection import (
    LabelledImages,
    blanked,
    class_numbers,
    unseen_images,
    with_split,
)
from butterfly_sdm.plugins.contract import Plugin, PluginRun, Report
from butterfly_sdm.plugins.heads import HeadConfig, frozen_head
from butterfly_sdm.plugins.images import Images
from butterfly_sdm.plugins.networks import TrunkAndHead, make_trunk, unit
from butterfly_sdm.plugins.options import later, setting
from butterfly_sdm.plugins.stages import Batch, Stage, sgd
from butterfly_sdm.plugins.views import ContrastOfViews, classify_views, views_of

_SCALE = 10.0  # unit vectors would hold the logits of a classifier near 0


class CmmdConfig(HeadConfig):
    """Settings of the domain adaptation; the defaults are the paper's where it gives them."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    labels: dict[str, str] = setting({}, "our name of a label: its name in the data; others stay")
    target: str | None = setting(None, "domain to adapt to; None: the second of two")
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    size_px: int = Field(256, ge=8)
    channels: Literal[1, 3] = 1
    trunk: str = setting("densenet121", "small:WIDTH or a model of timm")
    weights: FileOrName | None = setting(None, "null: random; pretrained; a local file")
    objective: Literal["contrastive", "cross_entropy"] = setting(
        "contrastive", "cross_entropy: for comparison"
    )
    use_target: bool = setting(True, "false: source only, for comparison")
    temperature: float = Field(0.1, gt=0)
    views: Literal[1, 2] = setting(
        1, "2: also attract two views of one image, as NT-Xent; forced by missing labels"
    )
    balance_domains: bool = setting(False, "half of each batch from the target")
    epochs: int = Field(20, ge=1)
    batch_size: int = Field(64, ge=4)
    learning_rate: float = Field(1e-3, gt=0)
    momentum: float = setting(0.9, "not given by the paper", ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    augment: bool = setting(False, "shift and jitter every view; on with two views")
    crop: float = setting(0.8, "of the views: least share of the area", gt=0, le=1)
    shift: float = setting(0.1, "of the views: greatest shift, share of the side", ge=0, lt=1)
    jitter: float = setting(0.2, "of the views: change of brightness and contrast", ge=0, lt=1)
    flip: bool = setting(True, "of the views: mirror half of them")
    head: Literal["converged", "adam"] = later(
        "adam",
        "adam: steps as in the paper; converged: logistic regression on standardised features",
    )
    head_epochs: int = setting(5, "adam: passes over the rows", ge=1)


@dataclass(frozen=True)
class CmmdData(LabelledImages):
    """
    Images of two domains.

    Attributes
    ----------
    domain
        (n,) 0 source, 1 target.
    """

    domain: np.ndarray

    def labelled(self, part: str) -> np.ndarray:
        """Return the rows (m,) of one part of the split whose class is known."""
        return np.intersect1d(self.rows(part), np.flatnonzero(self.label >= 0))

    def separation(self, z: Tensor, rows: np.ndarray) -> dict[str, float]:
        """Measure embeddings (m, d) of (m,) rows."""
        label, domain = torch.from_numpy(self.label[rows]), torch.from_numpy(self.domain[rows])
        return separation(z, label, domain, len(self.facts["classes"])).metrics


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
        table = with_split(table, config.fractions, config.seed, group="patient", label="stratum")
        table = _with_validation(table, config).drop(columns="stratum")
        domains, target = _domains(config, table)
        classes, label = class_numbers(table["label"])
        domain = (table["domain"] == target).to_numpy(dtype=np.int64)
        sources = table["path"].tolist() if pixels is None else pixels
        images = Images(sources, config.size_px, config.channels)
        facts = {"classes": classes, "domains": domains, "target": target}
        data = CmmdData(images, table, label, facts, domain)
        for part in ("train", "validation", "test"):
            rows = np.intersect1d(data.listed(part), np.flatnonzero(label >= 0))
            for number, name in enumerate(("source", "target")):
                present = set(label[rows[domain[rows] == number]])
                lacking = [title for place, title in enumerate(classes) if place not in present]
                # In training the target may go without labels; where it is measured it may not.
                if lacking and not (part == "train" and number == 1):
                    raise DataError(
                        f"The {part} part of the {name} domain has no image of class "
                        f"{lacking[0]!r}. Add some, give that part more by fractions, or leave "
                        "the class out."
                    )
        return data

    def build(self, config: CmmdConfig, facts: dict[str, Any], part: str) -> nn.Module:
        """Make the trunk and the linear classifier."""
        trunk = make_trunk(config.trunk, config.channels, config.size_px, weights=config.weights)
        return TrunkAndHead(trunk, len(facts["classes"]), published=config.weights == "pretrained")

    def stages(self, config: CmmdConfig, data: CmmdData, model: Any, part: str) -> list[Stage]:
        """First the trunk by the contrastive loss, then the classifier alone."""
        rows = data.rows("train")
        if not config.use_target:
            rows = rows[data.domain[rows] == 0]
        labelled = rows[data.label[rows] >= 0]
        held_out = data.rows("validation")

        optimizer, epochs = sgd(config), config.epochs

        def batches_of(rows: np.ndarray) -> Any:
            alike = config.balance_domains and config.use_target
            return data.batches(rows, config.batch_size, data.domain[rows] if alike else None)

        def measure(model: TrunkAndHead) -> dict[str, float]:
            return data.separation(unit(model.features_of(data.images, held_out)), held_out)

        def extract(model: TrunkAndHead) -> Tensor:
            return unit(model.features_of(data.images, labelled))

        view = views_of(config) if config.augment else _as_it_is
        if config.objective == "cross_entropy":
            batches, loss = batches_of(labelled), partial(classify_views, view)
            return [Stage("representation", batches, loss, optimizer, epochs, measure=measure)]
        views = max(config.views, 1 + (len(labelled) < len(rows)))
        view = view if views == 1 else views_of(config)
        criterion = ContrastiveLoss(config.temperature, without_positives="zero")
        contrast = ContrastOfViews(view, views, TrunkAndHead.features, _attracted, criterion)
        head = frozen_head("classifier", extract, data.label[labelled], config, scale=_SCALE)
        way = {"trains": ("trunk",), "measure": measure}
        return [contrast.stage("representation", batches_of(rows), optimizer, epochs, **way), head]

    def evaluate(self, config: CmmdConfig, data: CmmdData, run: PluginRun) -> Report:
        """
        Score both domains of the test part and measure the discrepancy of its embedding; draw it
        over the epochs.
        """
        rows = data.labelled("test")
        z, probability = _apply(config, run.model(), data.images, rows)
        label, target = data.label[rows], data.domain[rows] == 1
        metrics = data.separation(z, rows)
        for name, inside in (("source", ~target), ("target", target)):
            patients = data.table.get("patient", data.table["path"]).iloc[rows][inside]
            scores = scores_with_groups(label[inside], probability[inside], patients, "patient")
            metrics |= {f"{name}_{key}": value for key, value in scores.items()}
        classes = data.facts["classes"]
        predictions = prediction_table(data.names(rows), probability, classes, label=label)
        predictions.insert(2, "domain", data.table["domain"].iloc[rows].to_numpy())
        of_target = class_scores(label[target], probability[target], classes)
        tables = {"predictions": predictions, "classes_target": of_target}
        _curve(run.folder)
        return Report(metrics, tables, {"embeddings": z.numpy().astype(np.float32)})

    def predict(self, config: CmmdConfig, run: PluginRun, inputs: Path) -> pd.DataFrame:
        """Return the probability of every class for unseen images."""
        images, paths = unseen_images(inputs, config.size_px, config.channels)
        _, probability = _apply(config, run.model(), images, images.rows)
        table = prediction_table(paths, probability, run.facts["classes"])
        return blanked(table, images.unreadable)


def _with_validation(table: pd.DataFrame, config: CmmdConfig) -> pd.DataFrame:
    """Draw a validation part from the training patients where an official split has none."""
    share = config.fractions[1] / max(sum(config.fractions[:2]), 1e-9)
    if (table["split"] == "validation").any() or not share:
        return table
    train = table[table["split"] == "train"].drop(columns="split")
    parts = (1 - share, share, 0.0)
    drawn = with_split(train, parts, config.seed, group="patient", label="stratum")["split"]
    return table.assign(split=drawn.reindex(table.index).fillna(table["split"]))


def _domains(config: CmmdConfig, table: pd.DataFrame) -> tuple[list[str], str]:
    """Return the domains of the data, and the one to adapt to."""
    without = table["path"][table["domain"].isna()]
    if len(without):
        raise DataError(f"{without.iloc[0]} has no domain. Fill in the column, or remove the rows.")
    domains = sorted(set(table["domain"]))
    if len(domains) < 2 or (config.target is None and len(domains) > 2):
        raise ConfigError(
            "Adaptation needs a source and a target; the data have the domains "
            f"{', '.join(domains) or 'none'}. Name one as target."
        )
    target = config.target or domains[1]
    if target not in domains:
        raise ConfigError(
            f"target = {target!r} is no domain of the data; they have {', '.join(domains)}."
        )
    return domains, target


def _as_it_is(images: Tensor) -> Tensor:
    return images


def _attracted(batch: Batch) -> Tensor:
    return torch.maximum(same_class(batch["label"]), same_class(batch["row"]))


def _apply(
    config: CmmdConfig, model: TrunkAndHead, images: Images, rows: np.ndarray
) -> tuple[Tensor, np.ndarray]:
    """Return unit embeddings and class probabilities."""
    features = model.features_of(images, rows)
    z = unit(features)
    with torch.no_grad():
        logits = model.head.cpu()(z * _SCALE if config.objective == "contrastive" else features)
    return z, logits.softmax(dim=1).numpy()


def _curve(folder: Path) -> None:
    history = pd.read_csv(folder / "history.csv")
    history = history[history["stage"] == "representation"]
    picture = figures.Picture(6, 3.5)
    axes = picture.subplots()
    names = {"cmmd": "CMMD: domains apart", "dcmmd": "DCMMD: classes apart"}
    for column, name in (names | {"cmmd_ratio": "CMMD / DCMMD"}).items():
        axes.plot(history["epoch"], history[column], label=name)
    axes.set(xlabel="epoch", yscale="log", title="Held-out embeddings")
    axes.legend()
    picture.save(folder / "discrepancy.png", dpi=120)
