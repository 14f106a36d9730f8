"""
Backdoor defence by model reprogramming: settings, the training of the rewriting network, and its
measures [1]_.

.. [1] REFINE: Inversion-free backdoor defense via model reprogramming. ICLR 2025, arXiv 2502.18508.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn

from butterfly_sdm.core.files import read_json
from butterfly_sdm.core.settings import load_settings
from butterfly_sdm.errors import ConfigError, DataError, MissingFileError, ModelError
from butterfly_sdm.losses.contrastive import ContrastiveLoss
from butterfly_sdm.losses.pairs import same_class
from butterfly_sdm.plugins.batches import shuffled
from butterfly_sdm.plugins.images import SUFFIXES, Images, find_images, read_image, read_table
from butterfly_sdm.plugins.networks import device_of, over_images, unit
from butterfly_sdm.plugins.plugin import Plugin, Report
from butterfly_sdm.plugins.refine.network import (
    DefendedClassifier,
    FixedClassifier,
    UNet,
    check_classifier,
    derangement,
    load_classifier,
)
from butterfly_sdm.plugins.refine.triggers import backdoor_rates, stamp_blend, stamp_patch
from butterfly_sdm.plugins.runner import PluginRun
from butterfly_sdm.plugins.settings import InputPath, PluginConfig, Section
from butterfly_sdm.plugins.stages import Batch, Stage
from butterfly_sdm.plugins.views import random_view


class TriggerConfig(Section):
    """A known trigger, to measure the defence."""

    kind: Literal["patch", "blend", "folder"]
    target: str = Field(description="name of the class the attacker wants")
    path: InputPath = Field(
        description="patch or blend: an image; folder: images CLASS/*.png with the trigger on them"
    )
    mask: InputPath | None = Field(None, description="patch: an image, white where the patch is")
    alpha: float = Field(0.2, gt=0, lt=1, description="blend: share of the pattern")


class RefineConfig(PluginConfig):
    """Settings; the defaults are the paper's for CIFAR-10."""

    model: str = Field(description="TorchScript file, exported program, or module:function")
    weights: InputPath | None = Field(None, description="state dict for module:function")
    classes: tuple[str, ...] = Field(
        min_length=2, description="names, in the order of the classifier's output"
    )
    size_px: int = Field(32, ge=16, multiple_of=16)
    channels: Literal[1, 3] = 3
    mean: tuple[float, ...] = Field(
        (0.0,), description="what the classifier subtracts from images in [0, 1]"
    )
    spread: tuple[float, ...] = Field((1.0,), description="and divides by")
    clean: InputPath = Field(
        description="unlabelled clean images: folder, table, or npz with image"
    )
    test: InputPath | None = Field(
        None, description="labelled: folders CLASS/*.png, table of path and label, or npz"
    )
    trigger: TriggerConfig | None = None
    first_channels: int = Field(64, ge=1, description="of the U-Net; 32 for ImageNet")
    remap: bool = Field(True, description="permute the output; false only for comparison")
    contrast: float = Field(0.1, ge=0, description="weight of the contrastive term")
    temperature: float = Field(0.07, gt=0)
    epochs: int = Field(150, ge=1)
    batch_size: int = Field(256, ge=4)
    learning_rate: float = Field(0.01, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    milestones: tuple[int, ...] = Field(
        (100, 130), description="epochs after which the rate falls to 0.8 of itself"
    )
    crop: float = Field(0.8, gt=0, le=1, description="augmentation: least share of the area")
    flip: bool = True
    validation_share: float = Field(
        0.1, ge=0, lt=0.5, description="of the clean images, to watch the agreement"
    )


@dataclass(frozen=True)
class RefineData:
    """Clean images; labelled test images and the triggered ones, where given."""

    clean: Images
    test: (
        tuple[np.ndarray, np.ndarray, list[str]] | None
    )  # images (n, c, h, w) uint8, labels, names
    triggered: tuple[np.ndarray, np.ndarray] | None
    facts: dict[str, Any]


class Refine(Plugin[RefineConfig, RefineData]):
    """
    A U-Net rewrites the image so that the classifier is right under a permutation of its classes.
    """

    config = RefineConfig

    def load(self, config: RefineConfig) -> RefineData:
        """Read the images; the trigger is stamped on the test images."""
        classes = list(config.classes)
        if len(set(classes)) < len(classes):
            raise ConfigError("classes names one class twice.")
        for name in ("mean", "spread"):
            if len(getattr(config, name)) not in (1, config.channels):
                given = len(getattr(config, name))
                raise ConfigError(
                    f"{name} has {given} numbers; give 1, or {config.channels} for "
                    f"{config.channels} channels."
                )
        permutation = (
            derangement(len(classes), config.seed) if config.remap else list(range(len(classes)))
        )
        clean, _, _ = _images(config.clean, config, labelled=False)
        if len(clean) < 4:
            raise DataError(
                f"{config.clean} holds {len(clean)} clean images; a network needs at least 4 to "
                "learn, better thousands."
            )
        test = triggered = None
        if config.test is not None:
            pixels, label, names = _images(config.test, config, labelled=True)
            test = (pixels, label, names)
        if config.trigger is not None:
            triggered = _triggered(config, config.trigger, test)
            if (triggered[1] == classes.index(config.trigger.target)).all():
                raise DataError(
                    f"All triggered images are of the target class {config.trigger.target!r}; an "
                    "attack is counted on others."
                )
        return RefineData(
            Images(clean, config.size_px, config.channels),
            test,
            triggered,
            {"permutation": permutation},
        )

    def build(self, config: RefineConfig, facts: dict[str, Any], part: str) -> nn.Module:
        """Load the classifier and put an untrained U-Net before it."""
        inner = load_classifier(config.model, config.weights)
        fixed = FixedClassifier(inner, config.mean, config.spread).requires_grad_(False)
        check_classifier(fixed, config.channels, config.size_px, len(config.classes))
        return DefendedClassifier(
            UNet(config.channels, config.first_channels), fixed, facts["permutation"]
        )

    def stages(
        self, config: RefineConfig, data: RefineData, model: nn.Module, part: str
    ) -> Sequence[Stage]:
        """Train the U-Net alone."""
        order = np.random.default_rng(config.seed).permutation(len(data.clean))
        held_out, rows = np.split(order, [int(config.validation_share * len(order))])
        criterion = ContrastiveLoss(config.temperature, without_positives="zero")
        pseudo: list[Tensor] = []

        def batches(model: DefendedClassifier, rng: np.random.Generator) -> Iterable[Batch]:
            if not pseudo:  # the classifier never changes, nor do its answers
                pseudo.append(
                    over_images(
                        model.classifier, data.clean, np.arange(len(data.clean)), device_of(model)
                    ).argmax(1)
                )
            for chosen in shuffled(rows, config.batch_size, rng):
                yield {"image": data.clean.batch(chosen), "pseudo": pseudo[0][chosen]}

        def loss(model: DefendedClassifier, batch: Batch) -> Tensor:
            rewritten = model.unet(
                random_view(batch["image"], scale=(config.crop, 1.0), flip=config.flip, jitter=0.0)
            )
            q = model.remapped(rewritten)
            wanted = nn.functional.one_hot(batch["pseudo"], q.shape[1]).float()
            with torch.autocast(q.device.type, enabled=False):
                value = nn.functional.binary_cross_entropy(q.float().clamp(0, 1), wanted)
            if config.contrast:
                value = value + config.contrast * criterion(
                    unit(rewritten.flatten(1)), same_class(batch["pseudo"])
                )
            return value

        def measure(model: DefendedClassifier) -> dict[str, float]:
            device = device_of(model)
            bare = over_images(model.classifier, data.clean, held_out, device).argmax(dim=1)
            return {
                "agreement": float(
                    (over_images(model, data.clean, held_out, device).argmax(dim=1) == bare)
                    .float()
                    .mean()
                )
            }

        sgd = partial(
            torch.optim.SGD,
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        return [
            Stage(
                "rewriting",
                batches,
                loss,
                sgd,
                config.epochs,
                ("unet",),
                rate=lambda epoch: (
                    0.8 ** sum(epoch >= milestone for milestone in config.milestones)
                ),
                measure=measure if len(held_out) else None,
            )
        ]

    def evaluate(self, config: RefineConfig, data: RefineData, run: PluginRun) -> Report:
        """Compare the bare with the defended classifier on clean and on triggered images."""
        model = run.model()
        everything = np.arange(len(data.clean))
        bare = (
            over_images(model.classifier, data.clean, everything, run.device).argmax(dim=1).numpy()
        )
        defended = over_images(model, data.clean, everything, run.device).argmax(dim=1).numpy()
        metrics = {"agreement": float((bare == defended).mean())}
        tables = {}
        if data.test is not None:
            pixels, label, names = data.test
            before, after = (
                _apply(network, pixels, config, run.device) for network in (model.classifier, model)
            )
            metrics |= {
                "benign_accuracy_before": float((before.argmax(axis=1) == label).mean()),
                "benign_accuracy_after": float((after.argmax(axis=1) == label).mean()),
            }
            tables["predictions"] = _table(names, after, config.classes).assign(
                label=[config.classes[number] for number in label],
                before=[config.classes[number] for number in before.argmax(axis=1)],
            )
        if data.triggered is not None and config.trigger is not None:
            pixels, label = data.triggered
            target = config.classes.index(config.trigger.target)
            permutation = run.facts["permutation"]
            before, after = (
                _apply(network, pixels, config, run.device) for network in (model.classifier, model)
            )
            rates = {"before": backdoor_rates(before.argmax(axis=1), label, target)}
            rates["after"] = backdoor_rates(after.argmax(axis=1), label, target, permutation)
            metrics |= {
                f"{name}_{when}": value
                for when, found in rates.items()
                for name, value in found.items()
            }
        return Report(metrics, tables)

    def predict(self, config: RefineConfig, run: PluginRun, inputs: Path) -> pd.DataFrame:
        """Return the defended class probabilities of unseen images."""
        paths = find_images(inputs)
        images = Images(paths, config.size_px, config.channels)
        probability = over_images(run.model(), images, np.arange(len(paths)), run.device).numpy()
        return _table([str(path) for path in paths], probability, config.classes)


def load_defended(folder: str | Path) -> DefendedClassifier:
    """
    Read the drop-in defended classifier of a finished run.

    Parameters
    ----------
    folder
        Run folder of the plugin ``refine``.

    Returns
    -------
    DefendedClassifier
        Images (n, channels, size_px, size_px) in [0, 1] to class probabilities, on the CPU.

    Raises
    ------
    ModelError
        The folder holds no defended classifier.
    """
    config, _ = load_settings(
        RefineConfig, read_json(Path(folder) / "model.json")["settings"], ["accelerator=cpu"]
    )
    model = PluginRun.open(Refine(), "refine", Path(folder), config).model()
    if not isinstance(model, DefendedClassifier):
        raise ModelError(f"{folder} holds no defended classifier.")
    return model


def _images(
    path: Path, config: RefineConfig, *, labelled: bool
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Read images (n, c, h, w) uint8, class numbers (zeros if not asked for) and names."""
    if not path.exists():
        raise MissingFileError(f"There are no images at {path}.")
    if path.suffix == ".npz":
        return _stacked(path, config, labelled)
    labels: list[str] | None = None
    if path.is_dir():
        paths = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        labels = [file.relative_to(path).parts[0] for file in paths]
    else:
        table = read_table(path, ("label",) if labelled else ())
        paths = [Path(name) for name in table["path"]]
        labels = table["label"].astype(str).tolist() if labelled else None
    if not paths:
        raise DataError(f"{path} holds no image; known endings are {', '.join(SUFFIXES)}.")
    pixels = np.stack([read_image(file, config.size_px, config.channels) for file in paths])
    return (
        pixels,
        _numbers(labels, config, path) if labelled else np.zeros(len(paths), int),
        [str(file) for file in paths],
    )


def _stacked(
    path: Path, config: RefineConfig, labelled: bool
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
    except (
        OSError,
        ValueError,
        BadZipFile,
    ) as error:  # NumPy's own words would recommend to unpickle the file
        raise DataError(
            f"{path} is no readable .npz of plain arrays. Write it again with numpy.savez."
        ) from error
    missing = [name for name in ("image", *(["label"] if labelled else [])) if name not in held]
    if missing:
        raise DataError(f"{path} lacks the array {missing[0]!r}; it has {', '.join(held)}.")
    image = held["image"]
    image = (
        image[:, None]
        if image.ndim == 3
        else image.transpose(0, 3, 1, 2)
        if image.shape[-1] == 3
        else image
    )
    shape = (config.channels, config.size_px, config.size_px)
    if image.dtype != np.uint8 or image.shape[1:] != shape:
        raise DataError(
            f"The images of {path} are {image.dtype} {image.shape[1:]}; uint8 of {shape} are "
            "needed."
        )
    names = [f"{path.name}:{row}" for row in range(len(image))]
    if not labelled:
        return image, np.zeros(len(image), int), names
    given = held["label"]
    if given.shape != (len(image),):
        raise DataError(
            f"{path} holds {len(image)} images, but labels of shape {given.shape}; one per image "
            "is needed."
        )
    if given.dtype.kind not in "iu":
        return image, _numbers(given.astype(str).tolist(), config, path), names
    if ((given < 0) | (given >= len(config.classes))).any():
        last = len(config.classes) - 1
        raise DataError(
            f"{path} has labels from {given.min()} to {given.max()}; classes are numbered from 0 "
            f"to {last}."
        )
    return image, given.astype(int), names


def _numbers(labels: list[str] | None, config: RefineConfig, path: Path) -> np.ndarray:
    number = {name: place for place, name in enumerate(config.classes)}
    unknown = [label for label in labels or () if label not in number]
    if unknown:
        raise DataError(
            f"{path} has the label {unknown[0]!r}; the classes are {', '.join(config.classes)}."
        )
    return np.array([number[label] for label in labels or ()])


def _triggered(
    config: RefineConfig,
    trigger: TriggerConfig,
    test: tuple[np.ndarray, np.ndarray, list[str]] | None,
) -> tuple[np.ndarray, np.ndarray]:
    if trigger.target not in config.classes:
        raise ConfigError(
            f"trigger.target = {trigger.target!r} is no class; the classes are "
            f"{', '.join(config.classes)}."
        )
    if trigger.kind == "folder":
        pixels, label, _ = _images(trigger.path, config, labelled=True)
        return pixels, label
    if test is None:
        raise ConfigError(
            f"A {trigger.kind} trigger is stamped on labelled test images; give test."
        )
    pattern = read_image(trigger.path, config.size_px, config.channels)
    if trigger.kind == "blend":
        return stamp_blend(test[0], pattern, trigger.alpha), test[1]
    if trigger.mask is None:
        raise ConfigError(
            "A patch trigger needs its mask: an image that is white where the patch is."
        )
    return stamp_patch(
        test[0], pattern, read_image(trigger.mask, config.size_px, 1)[0] > 127
    ), test[1]


def _apply(
    network: nn.Module, pixels: np.ndarray, config: RefineConfig, device: torch.device
) -> np.ndarray:
    images = Images(pixels, config.size_px, config.channels)
    return over_images(network, images, np.arange(len(pixels)), device).numpy()


def _table(names: list[str], probability: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    table = pd.DataFrame(
        {"path": names, "predicted": [classes[number] for number in probability.argmax(axis=1)]}
    )
    return table.assign(
        **{f"p_{name}": probability[:, number] for number, name in enumerate(classes)}
    )
