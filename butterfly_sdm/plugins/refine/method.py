"""
Backdoor defence by model reprogramming: settings, the training of the rewriting network, and its
measures [1]_.

.. [1] REFINE: Inversion-free backdoor defense via model reprogramming. ICLR 2025, arXiv 2502.18508.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn

from butterfly_sdm.core.files import read_json
from butterfly_sdm.core.settings import FileOrName, InputPath, Section, load_settings
from butterfly_sdm.errors import ConfigError, DataError, ModelError
from butterfly_sdm.losses.contrastive import ContrastiveLoss
from butterfly_sdm.losses.pairs import same_class
from butterfly_sdm.plugins.classifier_scores import prediction_table
from butterfly_sdm.plugins.collection import blanked, read_collection, unseen_images
from butterfly_sdm.plugins.contract import Plugin, PluginRun, Report
from butterfly_sdm.plugins.images import Images, read_image
from butterfly_sdm.plugins.networks import device_of, over_images, unit
from butterfly_sdm.plugins.options import PluginConfig, later, setting
from butterfly_sdm.plugins.refine.network import (
    DefendedClassifier,
    FixedClassifier,
    UNet,
    check_classifier,
    derangement,
    load_classifier,
)
from butterfly_sdm.plugins.refine.triggers import backdoor_rates, stamp_blend, stamp_patch
from butterfly_sdm.plugins.row_batches import paired, shuffled
from butterfly_sdm.plugins.stages import Batch, Stage, sgd
from butterfly_sdm.plugins.views import random_view

_GREY = 0.2  # share of the views without colour, in the authors' code


class TriggerConfig(Section):
    """A known trigger, to measure the defence."""

    kind: Literal["patch", "blend", "folder"]
    target: str = setting(..., "name of the class the attacker wants")
    path: InputPath = setting(
        ..., "patch or blend: an image; folder: images CLASS/*.png with the trigger on them"
    )
    mask: InputPath | None = setting(None, "patch: an image, white where the patch is")
    alpha: float = setting(0.2, "blend: share of the pattern", gt=0, lt=1)


class RefineConfig(PluginConfig):
    """Settings; the defaults are the paper's for CIFAR-10."""

    model: FileOrName = setting(..., "TorchScript file, exported program, or module:function")
    weights: InputPath | None = setting(None, "state dict for module:function")
    trust: bool = later(False, "model may run: a file of a network is a program")
    classes: tuple[str, ...] = setting(..., "in the order of the classifier's output", min_length=2)
    size_px: int = Field(32, ge=16, multiple_of=16)
    channels: Literal[1, 3] = 3
    mean: tuple[float, ...] = setting((0.0,), "what the classifier subtracts from images in [0, 1]")
    spread: tuple[float, ...] = setting((1.0,), "and divides by")
    clean: InputPath = setting(..., "unlabelled clean images: folder, table, npz with image")
    test: InputPath | None = setting(None, "labelled: CLASS/*.png, table of path and label, or npz")
    trigger: TriggerConfig | None = None
    first_channels: int = setting(64, "of the U-Net; 32 for ImageNet", ge=1)
    remap: bool = setting(True, "permute the output; false only for comparison")
    contrast: float = setting(0.1, "weight of the contrastive term", ge=0)
    temperature: float = Field(0.07, gt=0)
    epochs: int = Field(150, ge=1)
    batch_size: int = Field(256, ge=4)
    learning_rate: float = Field(0.01, gt=0)
    optimizer: Literal["sgd", "adam"] = later(
        "sgd", "sgd: as in the paper; adam: without momentum and weight_decay, surer on few images"
    )
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    milestones: tuple[int, ...] = setting(
        (100, 130), "epochs after which the rate falls to 0.8 of itself"
    )
    crop: float = setting(0.8, "augmentation: least share of the area", gt=0, le=1)
    flip: bool = True
    jitter: float = later(
        0.0, "augmentation: change of brightness and contrast; 0 as in the paper", ge=0, lt=1
    )
    form: Literal["sound", "released"] = later("sound", "released: authors' code, see the page")
    pairs: bool = later(False, "each image with one of its pseudo-class, for small batches")
    validation_share: float = setting(0.1, "of clean images, to watch the agreement", ge=0, lt=0.5)


@dataclass(frozen=True)
class Pictures:
    """Images (n, c, h, w) uint8 in memory, their class numbers (n,) (0 if not asked for), names."""

    pixels: np.ndarray
    label: np.ndarray
    names: Sequence[object]


@dataclass(frozen=True)
class RefineData:
    """Clean images; labelled test images and the triggered ones, where given."""

    clean: Images
    test: Pictures | None
    triggered: Pictures | None
    facts: dict[str, Any]


class Refine(Plugin[RefineConfig, RefineData]):
    """
    A U-Net rewrites the image so that the classifier is right under a permutation of its classes.
    """

    config = RefineConfig
    keeps = ("model",)

    def load(self, config: RefineConfig) -> RefineData:
        """Read the images; the trigger is stamped on the test images."""
        classes = list(config.classes)
        if len(set(classes)) < len(classes):
            raise ConfigError("classes names one class twice.")
        for name, given in (("mean", config.mean), ("spread", config.spread)):
            if len(given) not in (1, config.channels):
                raise ConfigError(
                    f"{name} has {len(given)} numbers; give 1, or {config.channels} for "
                    f"{config.channels} channels."
                )
        clean = _pictures(config.clean, config, labelled=False).pixels
        if len(clean) < 4:
            raise DataError(
                f"{config.clean} holds {len(clean)} clean images; a network needs at least 4 to "
                "learn, better thousands."
            )
        test = triggered = None
        if config.test is not None:
            test = _pictures(config.test, config, labelled=True)
        if config.trigger is not None:
            triggered = _triggered(config, config.trigger, test)
            if (triggered.label == classes.index(config.trigger.target)).all():
                raise DataError(
                    f"All triggered images are of the target class {config.trigger.target!r}; an "
                    "attack is counted on others."
                )
        count = len(classes)
        permutation = derangement(count, config.seed) if config.remap else list(range(count))
        images = Images(clean, config.size_px, config.channels)
        return RefineData(images, test, triggered, {"permutation": permutation})

    def build(self, config: RefineConfig, facts: dict[str, Any], part: str) -> nn.Module:
        """Load the classifier and put an untrained U-Net before it."""
        inner = load_classifier(config.model, config.weights, trust=config.trust)
        fixed = FixedClassifier(inner, config.mean, config.spread).requires_grad_(False)
        check_classifier(fixed, config.channels, config.size_px, len(config.classes))
        bilinear = config.form == "released"
        unet = UNet(config.channels, config.first_channels, bilinear=bilinear)
        return DefendedClassifier(unet, fixed, facts["permutation"])

    def stages(self, config: RefineConfig, data: RefineData, model: Any, part: str) -> list[Stage]:
        """Train the U-Net alone."""
        order = np.random.default_rng(config.seed).permutation(len(data.clean))
        held_out, rows = np.split(order, [int(config.validation_share * len(order))])
        pseudo: list[Tensor] = []

        def batches(model: DefendedClassifier, rng: np.random.Generator) -> Iterable[Batch]:
            if not pseudo:  # the classifier never changes, nor do its answers
                pseudo.append(_decided(model, model.classifier, data.clean, data.clean.rows))
            drawn = shuffled(rows, config.batch_size, rng)
            if config.pairs:
                drawn = paired(rows, pseudo[0][rows].numpy(), config.batch_size, rng)
            for chosen in drawn:
                yield {"image": data.clean.batch(chosen), "pseudo": pseudo[0][chosen]}

        def measure(model: DefendedClassifier) -> dict[str, float]:
            return {"agreement": float(_agreeing(model, data.clean, held_out).float().mean())}

        def rate(epoch: int) -> float:
            return 0.8 ** sum(epoch >= milestone for milestone in config.milestones)

        adam = partial(torch.optim.Adam, lr=config.learning_rate)
        made = adam if config.optimizer == "adam" else sgd(config)
        loss = partial(_rewriting_loss, config)
        choose: dict[str, Any] = {"measure": measure} if len(held_out) else {}
        return [Stage("rewriting", batches, loss, made, config.epochs, ("unet",), rate, **choose)]

    def evaluate(self, config: RefineConfig, data: RefineData, run: PluginRun) -> Report:
        """Compare the bare with the defended classifier on clean and on triggered images."""
        model = run.model()
        agreeing = _agreeing(model, data.clean, data.clean.rows)
        metrics = {"agreement": float(agreeing.double().mean())}
        tables, permutation = {}, run.facts["permutation"]

        def before_and_after(given: Pictures) -> tuple[np.ndarray, np.ndarray]:
            images = Images(given.pixels, config.size_px, config.channels)
            bare = over_images(model.classifier, images, images.rows, run.device).numpy()
            return bare.argmax(axis=1), over_images(model, images, images.rows, run.device).numpy()

        if data.test is not None:
            label = data.test.label
            before, probability = before_and_after(data.test)
            metrics["benign_accuracy_before"] = float((before == label).mean())
            metrics["benign_accuracy_after"] = float((probability.argmax(axis=1) == label).mean())
            table = prediction_table(data.test.names, probability, config.classes)
            named = np.array(config.classes, dtype=object)
            tables["predictions"] = table.assign(label=named[label], before=named[before])
        if data.triggered is not None and config.trigger is not None:
            label, target = data.triggered.label, config.classes.index(config.trigger.target)
            before, probability = before_and_after(data.triggered)
            after = probability.argmax(axis=1)
            for when, said, order in (("before", before, None), ("after", after, permutation)):
                found = backdoor_rates(said, label, target, order)
                metrics |= {f"{name}_{when}": value for name, value in found.items()}
        return Report(metrics, tables)

    def predict(self, config: RefineConfig, run: PluginRun, inputs: Path) -> pd.DataFrame:
        """Return the defended class probabilities of unseen images."""
        images, paths = unseen_images(inputs, config.size_px, config.channels)
        probability = over_images(run.model(), images, images.rows, run.device).numpy()
        return blanked(prediction_table(paths, probability, config.classes), images.unreadable)


def load_defended(folder: str | Path, *, trust: bool = False) -> DefendedClassifier:
    """
    Read the drop-in defended classifier of a finished run.

    Parameters
    ----------
    folder
        Run folder of the plugin ``refine``.
    trust
        The classifier that the run names may run. What a folder says of itself does not count.

    Returns
    -------
    DefendedClassifier
        Images (n, channels, size_px, size_px) in [0, 1] to class probabilities, on the CPU.

    Raises
    ------
    ModelError
        The folder holds no defended classifier, or it is not trusted.
    """
    settings = read_json(Path(folder) / "model.json")["settings"]
    config, _ = load_settings(RefineConfig, settings, ["accelerator=cpu"])
    if not trust:
        raise ModelError(
            f"{folder} names the classifier {config.model}, a program that runs when it is loaded. "
            "If you trust who made the run, give trust=True."
        )
    trusted = config.model_copy(update={"trust": True})
    model = PluginRun.open(Refine(), "refine", Path(folder), trusted).model()
    if not isinstance(model, DefendedClassifier):
        raise ModelError(f"{folder} holds no defended classifier.")
    return model


def _rewriting_loss(config: RefineConfig, model: DefendedClassifier, batch: Batch) -> Tensor:
    released = config.form == "released"
    crop, grey = (config.crop, 1.0), _GREY if released else 0.0
    view = random_view(
        batch["image"], scale=crop, flip=config.flip, jitter=config.jitter, grey=grey
    )
    pseudo = batch["pseudo"]
    if released:  # what the classifier says of the very view that is rewritten
        with torch.no_grad():
            pseudo = model.classifier(view).argmax(dim=1)
    rewritten = model.unet(view)
    q = model.remapped(rewritten)
    wanted = nn.functional.one_hot(pseudo, q.shape[1]).float()
    with torch.autocast(q.device.type, enabled=False):
        value = nn.functional.binary_cross_entropy(q.float().clamp(0, 1), wanted)
    if config.contrast:
        value = value + config.contrast * _contrast(config, rewritten, pseudo)
    return value


def _contrast(config: RefineConfig, rewritten: Tensor, pseudo: Tensor) -> Tensor:
    z = unit(rewritten.flatten(1))
    if config.form == "released":  # the same image again, a positive of itself
        z, pseudo = z.repeat(2, 1), pseudo.repeat(2)
    criterion = ContrastiveLoss(config.temperature, without_positives="zero")
    return cast(Tensor, criterion(z, same_class(pseudo)))


def _decided(model: nn.Module, network: nn.Module, images: Images, rows: np.ndarray) -> Tensor:
    return over_images(network, images, rows, device_of(model)).argmax(dim=1)


def _agreeing(model: DefendedClassifier, images: Images, rows: np.ndarray) -> Tensor:
    """Return of which (rows,) the defended classifier decides as the bare one."""
    bare = _decided(model, model.classifier, images, rows)
    return bare == _decided(model, model, images, rows)


def _pictures(path: Path, config: RefineConfig, *, labelled: bool) -> Pictures:
    """Read images into memory, with their labels if asked for: those of its test part if it has."""
    table = read_collection(path, ("label",) if labelled else ())
    if labelled and "split" in table.columns and (table["split"] == "test").any():
        table = table[table["split"] == "test"]
    images = Images(list(table["path"]), config.size_px, config.channels)
    rows = images.readable(images.rows)
    table = table.iloc[rows]
    label = _class_places(table["label"], config, path) if labelled else np.zeros(len(table), int)
    return Pictures(images.array(rows), label, list(table["path"]))


def _class_places(labels: pd.Series, config: RefineConfig, path: Path) -> np.ndarray:
    """Return class numbers of labels that are names, or, of an ``.npz``, numbers."""
    place = {name: number for number, name in enumerate(config.classes)}
    if path.suffix == ".npz" and not set(labels) & set(place):
        place = {str(number): number for number in range(len(config.classes))}
    unknown = sorted(set(labels.astype(str)) - set(place))
    if unknown:
        raise DataError(
            f"{path} has the label {unknown[0]!r}; the classes are {', '.join(config.classes)}, "
            "or in an npz their numbers from 0."
        )
    return np.array([place[label] for label in labels.astype(str)], dtype=int)


def _triggered(config: RefineConfig, trigger: TriggerConfig, test: Pictures | None) -> Pictures:
    if trigger.target not in config.classes:
        raise ConfigError(
            f"trigger.target = {trigger.target!r} is no class; the classes are "
            f"{', '.join(config.classes)}."
        )
    if trigger.kind == "folder":
        return _pictures(trigger.path, config, labelled=True)
    if test is None:
        raise ConfigError(
            f"A {trigger.kind} trigger is stamped on labelled test images; give test."
        )
    pattern = read_image(trigger.path, config.size_px, config.channels)
    if trigger.kind == "blend":
        return replace(test, pixels=stamp_blend(test.pixels, pattern, trigger.alpha))
    if trigger.mask is None:
        raise ConfigError("A patch trigger needs its mask: an image, white where the patch is.")
    mask = read_image(trigger.mask, config.size_px, 1)[0] > 127
    return replace(test, pixels=stamp_patch(test.pixels, pattern, mask))
