"""
Training in stages: which weights move, on which batches, by which loss; checkpointed after epochs,
as often as it costs little.

All randomness of an epoch comes from a seed made of (seed, part, stage, epoch), so that training
that was interrupted and continued gives the same weights as training that was not. A checkpoint is
one safetensors file, never a pickle.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
from butterfly_sdm.plugins.batches import shuffled
from butterfly_sdm.plugins.settings import PluginConfig
from butterfly_sdm.progress import Progress, silent

logger = logging.getLogger("butterfly_sdm.plugins")

Batch = Mapping[str, Tensor]
# of the time, at most, for checkpoints: those of a large network take longer than an epoch on few
# rows
_WRITING_SHARE = 0.1


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


@dataclass(frozen=True)
class Limits:
    """Bounds below what the stages ask for; the conformance check uses them."""

    epochs: int | None = None
    steps: int | None = None


def fixed_features(
    extract: Callable[[Any], Tensor], labels: Tensor, batch_size: int
) -> Callable[[Any, np.random.Generator], Iterable[Batch]]:
    """
    Make the batches of a stage that trains on the output of frozen layers, computed once.

    Parameters
    ----------
    extract
        Network -> (rows, features), from its frozen layers.
    labels
        (rows,) class numbers.
    batch_size
        Rows per batch.

    Returns
    -------
    Callable
        For :attr:`Stage.batches`; batches have ``features`` and ``label``.
    """
    computed: list[Tensor] = []

    def batches(module: Any, rng: np.random.Generator) -> Iterable[Batch]:
        if not computed:
            with torch.no_grad():
                computed.append(extract(module))
        for rows in shuffled(np.arange(len(labels)), batch_size, rng):
            yield {"features": computed[0][rows], "label": labels[rows]}

    return batches


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
        as often as writing takes at most a tenth of the time; None: none.
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
    ArtefactError
        The checkpoint is damaged.
    """
    limits = limits or Limits()
    device = device_of_config(config)
    module.to(device)
    with torch.random.fork_rng(
        devices=range(torch.cuda.device_count()) if device.type == "cuda" else []
    ):
        state = _read(checkpoint) if checkpoint is not None and checkpoint.is_file() else _State()
        due = time.monotonic()
        for position, stage in enumerate(stages):
            if position < state.stage:
                continue
            epochs = stage.epochs if limits.epochs is None else min(stage.epochs, limits.epochs)
            if state.epoch == 0:
                state.stage, state.best = position, {}
                if state.tensors:  # written at the end of the stage before
                    module.load_state_dict(_unprefixed(state.tensors, "model."))
                    state.tensors = {}
                if stage.start is not None:
                    torch.manual_seed(seed_of(config.seed, part, stage.name))
                    stage.start(module)
            _set_trainable(module, stage)
            optimizer = stage.optimizer(
                [parameter for parameter in module.parameters() if parameter.requires_grad]
            )
            rates = [group["lr"] for group in optimizer.param_groups]
            if state.tensors:
                module.load_state_dict(_unprefixed(state.tensors, "model."))
                _restore_optimizer(optimizer, _unprefixed(state.tensors, "optimizer."), state.steps)
                state.best = _unprefixed(state.tensors, "best.")
                state.tensors = {}
            for epoch in range(state.epoch, epochs):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * stage.rate(epoch)
                row: dict[str, Any] = {"part": part, "stage": stage.name, "epoch": epoch + 1}
                row["loss"] = _epoch(
                    module,
                    stage,
                    optimizer,
                    device,
                    config,
                    seed_of(config.seed, part, stage.name, epoch),
                    limits,
                )
                if stage.measure is not None:
                    module.eval()
                    with torch.no_grad():
                        row |= stage.measure(module)
                    _set_trainable(module, stage)
                state.rows.append(row)
                state.epoch = epoch + 1
                if stage.select is not None and row[stage.select] >= state.best_value(stage):
                    state.best = {
                        name: tensor.detach().cpu().clone()
                        for name, tensor in module.state_dict().items()
                    }
                last = state.epoch == epochs
                if last and state.best:
                    module.load_state_dict(state.best)
                if checkpoint is not None and (last or time.monotonic() >= due):
                    began = time.monotonic()
                    _write(checkpoint, module, None if last else optimizer, state, advance=last)
                    ended = time.monotonic()
                    due = ended + (ended - began) * (1 / _WRITING_SHARE - 1)
                progress(f"{part}: {stage.name}", state.epoch, epochs)
            state.epoch = 0
        if state.tensors:  # written at the end of the last stage
            module.load_state_dict(_unprefixed(state.tensors, "model."))
    module.eval().cpu().requires_grad_(True)
    return state.rows


class _State:
    """Where training stands."""

    def __init__(self) -> None:
        self.stage = 0
        self.epoch = 0
        self.rows: list[dict[str, Any]] = []
        self.tensors: dict[str, Tensor] = {}
        self.steps: dict[str, Any] = {}
        self.best: dict[str, Tensor] = {}

    def best_value(self, stage: Stage) -> float:
        earlier = [row[str(stage.select)] for row in self.rows[:-1] if row["stage"] == stage.name]
        return max(earlier, default=-np.inf)


def device_of_config(config: PluginConfig) -> torch.device:
    """Return the device the settings ask for; ``auto`` takes a GPU if there is one."""
    if config.accelerator != "auto":
        return torch.device(config.accelerator)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _set_trainable(module: nn.Module, stage: Stage) -> None:
    if not stage.trains:
        module.train().requires_grad_(True)
        return
    module.eval().requires_grad_(False)
    for name in stage.trains:
        module.get_submodule(name).train().requires_grad_(True)


def _epoch(
    module: nn.Module,
    stage: Stage,
    optimizer: Optimizer,
    device: torch.device,
    config: PluginConfig,
    seed: int,
    limits: Limits,
) -> float:
    torch.manual_seed(seed)
    losses: list[Tensor] = []
    for batch in stage.batches(module, np.random.default_rng(seed)):
        if limits.steps is not None and len(losses) >= limits.steps:
            break
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16-mixed"):
            loss = stage.loss(module, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    if not losses:
        raise ModelError(
            f"Stage {stage.name!r} had no batch to train on. Give more rows, or a smaller "
            "batch_size."
        )
    values = (
        torch.stack(losses).double().cpu()
    )  # once per epoch: each look at a value makes a GPU wait
    wrong = (~torch.isfinite(values)).nonzero()
    if len(wrong):
        step = int(wrong[0])
        raise ModelError(
            f"The loss of stage {stage.name!r} became {float(values[step])} in step {step + 1}. "
            "Lower the learning rate, "
            "or look for values that are not finite in the data."
        )
    return float(values.mean())


def _write(path: Path, module: nn.Module, optimizer: Any, state: _State, *, advance: bool) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in module.state_dict().items()}
    steps: dict[str, Any] = {}
    if not advance:
        tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
        for index, values in optimizer.state_dict()["state"].items():
            for key, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{key}"] = value
                else:
                    steps[f"{index}.{key}"] = value
    position = {
        "stage": state.stage + advance,
        "epoch": 0 if advance else state.epoch,
        "rows": state.rows,
        "steps": steps,
    }
    contiguous = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()
    }
    with atomic_path(path) as temporary:
        save_file(contiguous, temporary, metadata={"position": json.dumps(position)})


def _read(path: Path) -> _State:
    state = _State()
    try:
        with safe_open(path, framework="pt") as file:
            position = json.loads((file.metadata() or {})["position"])
            state.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state.stage, state.epoch, state.rows = (
            position["stage"],
            position["epoch"],
            position["rows"],
        )
        state.steps = position["steps"]
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ArtefactError(
            f"The checkpoint {path} is damaged ({error}). Remove it to train from the start."
        ) from error
    logger.info("continuing from %s: stage %d, epoch %d", path.name, state.stage + 1, state.epoch)
    return state


def _unprefixed(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _restore_optimizer(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], steps: Mapping[str, Any]
) -> None:
    state = optimizer.state_dict()
    values: dict[int, dict[str, Any]] = {}
    for name, value in (*tensors.items(), *steps.items()):
        index, _, key = name.partition(".")
        values.setdefault(int(index), {})[key] = value
    state["state"] = values
    optimizer.load_state_dict(state)
