"""
Training in stages: which weights move, on which batches, by which loss; checkpointed after epochs,
as often as it costs little.

All randomness of an epoch comes from a seed made of (seed, part, stage, epoch), so that training
that was interrupted and continued gives the same weights as training that was not. A checkpoint is
one safetensors file, never a pickle.
"""

import hashlib
import itertools
import json
import logging
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from butterfly_sdm.core.files import atomic_path
from butterfly_sdm.errors import ArtefactError, ModelError
from butterfly_sdm.plugins.networks import checksum
from butterfly_sdm.plugins.options import PluginConfig
from butterfly_sdm.progress import Progress, silent

logger = logging.getLogger("butterfly_sdm.plugins")

Batch = Mapping[str, Tensor]
# of the time, at most, for checkpoints: those of a large network take longer than an epoch on few
# rows
_WRITING_SHARE = 0.1
# a loss that lies no further below that of equal embeddings has told no pair from another
_COLLAPSED = 0.01


@dataclass(frozen=True)
class Stage:
    """
    One stage of training.

    Attributes
    ----------
    name
        Unique within the part.
    batches
        (network, generator) -> the batches of one epoch: mappings of names to tensors.
    loss
        (network, batch) -> scalar loss. The batch lies on the network's device.
    optimizer
        Makes the optimiser of the parameters that train.
    epochs
        Passes over ``batches``.
    trains
        Submodules whose weights move; empty: all. Everything else is in evaluation mode, bit for
        bit unchanged.
    rate
        Factor on the learning rate in an epoch, counted from 0.
    start
        Called once with the network before the first epoch, such as to copy weights; it adds no
        parameters.
    measure
        Called with the network in evaluation mode after each epoch; its numbers go to
        ``history.csv``.
    select
        Name of a measure: the weights of the epoch where it was largest are kept, instead of the
        last ones.
    collapsed
        Batch -> what the loss would be if all embeddings were the same, ln(N - 1) of a supervised
        contrastive loss over N. ``history.csv`` tells the loss less this one as
        ``loss_over_collapsed``; while it stays at 0, nothing is learned, and a warning says so.
    solve
        Fits what trains at once and returns the loss, instead of batches and steps; see
        :meth:`solved`.
    """

    name: str
    batches: Callable[[Any, np.random.Generator], Iterable[Batch]]
    loss: Callable[[Any, Batch], Tensor]
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    epochs: int
    trains: tuple[str, ...] = ()
    rate: Callable[[int], float] = lambda epoch: 1.0
    start: Callable[[Any], None] | None = None
    measure: Callable[[Any], dict[str, float]] | None = None
    select: str | None = None
    collapsed: Callable[[Batch], Tensor] | None = None
    solve: Callable[[Any], float] | None = None

    @classmethod
    def solved(
        cls, name: str, solve: Callable[[Any], float], trains: tuple[str, ...], **others: Any
    ) -> "Stage":
        """Return a stage of one epoch in which ``solve`` sets the weights of ``trains``."""
        still = partial(torch.optim.SGD, lr=0.0)
        nothing: Any = tuple  # of batches and losses a stage that is solved has none
        return cls(name, nothing, nothing, still, 1, trains, solve=solve, **others)


@dataclass(frozen=True)
class Limits:
    """Bounds below what the stages ask for; the conformance check uses them."""

    epochs: int | None = None
    steps: int | None = None


def seed_of(*parts: object) -> int:
    """Return a seed in [0, 2**31) that depends on all of ``parts``."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16) >> 1


def train_stages(
    module: nn.Module,
    stages: Sequence[Stage],
    config: PluginConfig,
    *,
    part: str = "model",
    checkpoint: Path | None = None,
    progress: Progress = silent,
    limits: Limits | None = None,
) -> list[dict[str, Any]]:
    """
    Train a network through all stages, continuing from a checkpoint if there is one.

    Parameters
    ----------
    module
        Trained in place; ends on the CPU in evaluation mode.
    stages
        In order.
    config
        Gives seed, accelerator and precision.
    part
        Name of the network, part of the seed.
    checkpoint
        File to continue from, and to write after the first and last epoch of a stage and in between
        as often as writing takes at most a tenth of the time; None: none. Instead of a damaged one
        the one before it, ``.NAME.previous``, is continued from, else training starts anew, with a
        warning.
    progress
        Told the epochs done of each stage.
    limits
        For a trial run: at most so many epochs and steps.

    Returns
    -------
    list of dict
        One row per epoch: part, stage, epoch, loss, and the measures of the stage.

    Raises
    ------
    ModelError
        The loss is not finite, or a stage gives no batch.
    """
    training = _Training(module, config, part, checkpoint, progress, limits or Limits())
    module.to(training.device)
    devices = range(torch.cuda.device_count()) if training.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        if checkpoint is not None:
            training.read_newest(checkpoint)
        for position, stage in enumerate(stages):
            if position >= training.stage:
                training.run(position, stage)
        training.restore()  # of a checkpoint written at the end of the last stage
    module.eval().cpu().requires_grad_(True)
    return training.rows


def sgd(config: Any) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """Return what makes the optimiser of settings with learning_rate, momentum and weight_decay."""
    return partial(
        torch.optim.SGD,
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )


def device_of_config(config: PluginConfig) -> torch.device:
    """Return the device the settings ask for; ``auto`` takes a GPU if there is one."""
    if config.accelerator != "auto":
        return torch.device(config.accelerator)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass
class _Training:
    """One network on its way through its stages: where it stands, and how it goes on."""

    module: nn.Module
    config: PluginConfig
    part: str
    checkpoint: Path | None
    progress: Progress
    limits: Limits
    stage: int = 0
    epoch: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    # Of a checkpoint, until they are put in their places.
    tensors: dict[str, Tensor] = field(default_factory=dict)
    steps: dict[str, Any] = field(default_factory=dict)
    due: float = field(default_factory=time.monotonic)

    @cached_property
    def device(self) -> torch.device:
        return device_of_config(self.config)

    def run(self, position: int, stage: Stage) -> None:
        """Train one stage, from where it was left."""
        optimizer = self._begin(position, stage)
        rates = [group["lr"] for group in optimizer.param_groups]
        epochs = min(stage.epochs, self.limits.epochs or stage.epochs)
        for epoch in range(self.epoch, epochs):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * stage.rate(epoch)
            row: dict[str, Any] = {"part": self.part, "stage": stage.name, "epoch": epoch + 1}
            row |= self._epoch(stage, optimizer, epoch)
            _warn_of_collapse(row, epochs)
            if stage.measure is not None:
                self.module.eval()
                with torch.no_grad():
                    row |= stage.measure(self.module)
                _set_trainable(self.module, stage)
            if stage.select is not None:
                earlier = [row[stage.select] for row in self.rows if row["stage"] == stage.name]
                if row[stage.select] >= max(earlier, default=-np.inf):
                    state = self.module.state_dict()
                    self.best = {name: tensor.cpu().clone() for name, tensor in state.items()}
            self.rows.append(row)
            self.epoch = epoch + 1
            if self.epoch == epochs and self.best:
                self.module.load_state_dict(self.best)
            self._save(optimizer, last=self.epoch == epochs)
            self.progress(f"{self.part}: {stage.name}", self.epoch, epochs)
        self.epoch = 0

    def _begin(self, position: int, stage: Stage) -> Optimizer:
        saved = self.restore()
        if self.epoch == 0:
            self.stage, self.best = position, {}
            if stage.start is not None:
                torch.manual_seed(seed_of(self.config.seed, self.part, stage.name))
                stage.start(self.module)
        _set_trainable(self.module, stage)
        optimizer = stage.optimizer([p for p in self.module.parameters() if p.requires_grad])
        if self.epoch > 0:
            _restore_optimizer(optimizer, _unprefixed(saved, "optimizer."), self.steps)
            self.best = _unprefixed(saved, "best.")
        return optimizer

    def restore(self) -> dict[str, Tensor]:
        """Put the weights of a checkpoint in their places; return all its tensors."""
        saved, self.tensors = self.tensors, {}
        if saved:
            self.module.load_state_dict(_unprefixed(saved, "model."))
        return saved

    def _epoch(self, stage: Stage, optimizer: Optimizer, epoch: int) -> dict[str, float]:
        if stage.solve is not None:
            return {"loss": stage.solve(self.module)}
        seed = seed_of(self.config.seed, self.part, stage.name, epoch)
        torch.manual_seed(seed)
        losses: list[Tensor] = []
        collapsed: list[Tensor] = []
        half = self.config.precision == "bf16-mixed"
        batches = stage.batches(self.module, np.random.default_rng(seed))
        for batch in itertools.islice(batches, self.limits.steps):
            batch = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                loss = stage.loss(self.module, batch)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(loss.detach())
            if stage.collapsed is not None:
                with torch.no_grad():
                    collapsed.append(stage.collapsed(batch))
        if not losses:
            raise ModelError(
                f"Stage {stage.name!r} had no batch to train on. Give more rows, or a smaller "
                "batch_size."
            )
        # Once per epoch: each look at a value makes a GPU wait.
        values = torch.stack(losses).double().cpu()
        wrong = (~torch.isfinite(values)).nonzero()
        if len(wrong):
            step = int(wrong[0])
            raise ModelError(
                f"The loss of stage {stage.name!r} became {float(values[step])} in step {step + 1}."
                " Lower the learning rate, or look for values that are not finite in the data."
            )
        found = {"loss": float(values.mean())}
        if collapsed:
            alike = float(torch.stack(collapsed).double().mean())
            found["loss_over_collapsed"] = found["loss"] - alike
        return found

    def _save(self, optimizer: Optimizer, *, last: bool) -> None:
        if self.checkpoint is None or not (last or time.monotonic() >= self.due):
            return
        began = time.monotonic()
        tensors = {f"model.{name}": value for name, value in self.module.state_dict().items()}
        steps: dict[str, Any] = {}
        if not last:
            tensors |= {f"best.{name}": value for name, value in self.best.items()}
            for index, values in optimizer.state_dict()["state"].items():
                moved = {key for key, value in values.items() if isinstance(value, Tensor)}
                tensors |= {f"optimizer.{index}.{key}": values[key] for key in moved}
                steps |= {f"{index}.{key}": values[key] for key in values if key not in moved}
        position = {"stage": self.stage + last, "epoch": 0 if last else self.epoch}
        text = json.dumps(position | {"rows": self.rows, "steps": steps})
        whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        with atomic_path(self.checkpoint) as temporary:
            metadata = {"position": text, "checksum": _checksum(whole, text)}
            save_file(whole, temporary, metadata=metadata)
            if self.checkpoint.is_file():
                self.checkpoint.replace(previous(self.checkpoint))
        ended = time.monotonic()
        self.due = ended + (ended - began) * (1 / _WRITING_SHARE - 1)

    def read_newest(self, checkpoint: Path) -> None:
        """Continue from the newest checkpoint that is whole; warn of one that is not."""
        for path in (checkpoint, previous(checkpoint)):
            if path.is_file():
                try:
                    self.read(path)
                    return
                except ArtefactError as error:
                    logger.warning("%s Training goes on from what is whole.", error)

    def read(self, path: Path) -> None:
        """
        Continue from a checkpoint.

        Raises
        ------
        ArtefactError
            It is damaged.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                position = json.loads(metadata["position"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata["checksum"] != _checksum(tensors, metadata["position"]):
                raise ValueError("its checksum is another")
            held = [position[name] for name in ("stage", "epoch", "rows", "steps")]
        except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
            raise ArtefactError(
                f"The checkpoint {path} was damaged since it was written ({error})."
            ) from error
        self.tensors = tensors
        self.stage, self.epoch, self.rows, self.steps = held
        logger.info("continuing from %s: stage %d, epoch %d", path.name, self.stage + 1, self.epoch)


def _warn_of_collapse(row: Mapping[str, Any], epochs: int) -> None:
    """Warn of an embedding that tells nothing apart, after 2, 4, 8, ... epochs and the last."""
    epoch, over = row["epoch"], row.get("loss_over_collapsed", -np.inf)
    doubled = epoch & (epoch - 1) == 0
    message = (
        "%s: after %d of %d epochs of %s the loss is not clearly below that of embeddings which "
        "are all the same (%+.3f): nothing has been learned yet. Larger batches, more epochs, "
        "warm-up or another learning rate help."
    )
    if over > -_COLLAPSED and epoch > 1 and (doubled or epoch == epochs):
        logger.warning(message, row["part"], epoch, epochs, row["stage"], over)


def previous(checkpoint: Path) -> Path:
    """Return where the checkpoint before the last one lies."""
    return checkpoint.with_name(f".{checkpoint.name}.previous")


def _checksum(tensors: Mapping[str, Tensor], position: str) -> str:
    return checksum(tensors, zlib.crc32(position.encode()))


def _set_trainable(module: nn.Module, stage: Stage) -> None:
    module.eval().requires_grad_(False)
    for name in stage.trains or ("",):  # all
        module.get_submodule(name).train().requires_grad_(True)


def _unprefixed(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n[len(prefix) :]: tensor for n, tensor in tensors.items() if n.startswith(prefix)}


def _restore_optimizer(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], steps: Mapping[str, Any]
) -> None:
    values: dict[int, dict[str, Any]] = {}
    for name, value in (*tensors.items(), *steps.items()):
        index, _, key = name.partition(".")
        values.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": values})
