"""Fit a network through Lightning: batches, losses, schedule, journal of epochs, checkpoints."""

import logging
import math
import signal
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch import Tensor, nn

from butterfly_sdm.core.files import sync, write_table
from butterfly_sdm.data.tiles import ReadAhead
from butterfly_sdm.errors import ArtefactError, MissingPackageError, ModelError, how_to_install
from butterfly_sdm.losses.detection import DetectionLoss
from butterfly_sdm.losses.gathering import gather_rows
from butterfly_sdm.losses.presence import PresenceLoss
from butterfly_sdm.losses.regulariser import Regulariser
from butterfly_sdm.models.batches import (
    Batch,
    Feed,
    Shuffled,
    SiteBatches,
    predict_batch,
    see_batch,
)
from butterfly_sdm.models.options import FitOptions
from butterfly_sdm.models.presence_net import PresenceNet
from butterfly_sdm.progress import Progress, silent

log = logging.getLogger("butterfly_sdm.models.fit")

AHEAD = 2  # batches of tiles that wait for the step
# Of a regulariser, in the order of its Term: columns of history.csv.
TERM = ("train_regulariser", "regulariser_above_collapse", "cosine_alike", "cosine_unlike")
PROJECTION = 64  # length of the projection that only the regulariser sees
COLLAPSED = -0.01  # a term that gains no more than this over sites at one point tells none apart


class Fitting(lightning.LightningModule):
    """The network with its losses as Lightning sees it."""

    def __init__(
        self,
        net: PresenceNet,
        loss: PresenceLoss | DetectionLoss,
        options: FitOptions,
        train: SiteBatches,
        validation: SiteBatches | None,
        *,
        unfreeze_after: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.net, self.loss, self.options = net, loss, options
        self.parts = (train, validation)
        self.unfreeze_after, self.seed = unfreeze_after, seed
        self.regulariser: Regulariser | None = None
        self.projection: nn.Linear | None = None
        if options.regulariser.weight > 0:
            length = net.architecture.embedding
            if options.regulariser.layer == "projection":
                # Beside the network and no part of it: what predicts and maps never has it.
                inputs = length if net.trunk is None else net.trunk.channels
                self.projection, length = nn.Linear(inputs, PROJECTION), PROJECTION
            known = train.inputs
            self.regulariser = Regulariser(
                options.regulariser, known.detections, known.visits, length=length
            )
        self.sums: dict[str, float] = {}
        self.held: list[tuple[Tensor, ...]] = []
        self.scores: dict[str, float] = {}
        self.first_epoch = 0

    def setup(self, stage: str) -> None:
        """Learn which share of the sites this process sees."""
        s = self.options
        self.order = Shuffled(
            len(self.parts[0]),
            s.batch_size,
            seed=self.seed,
            rank=self.trainer.global_rank,
            processes=self.trainer.world_size,
        )
        # Lightning draws the order of the first epoch before it says which one that is.
        self.order.set_epoch(self.first_epoch)

    def train_dataloader(self) -> Feed | ReadAhead[Batch]:
        """Batches of the training part, of this process."""
        self.feed = self._feed(self.parts[0], self.order)
        return self.feed

    def val_dataloader(self) -> Feed | ReadAhead[Batch] | list[Any]:
        """Batches of the validation part, of this process."""
        if self.parts[1] is None:
            return []
        order = Shuffled(
            len(self.parts[1]),
            2 * self.options.batch_size,
            seed=0,
            rank=self.trainer.global_rank,
            processes=self.trainer.world_size,
            shuffle=False,
        )
        return self._feed(self.parts[1], order)

    def _feed(self, part: SiteBatches, order: Shuffled) -> Feed | ReadAhead[Batch]:
        # One batch with the reader, AHEAD waiting, one in the step, one that the loop has not let
        # go of.
        feed = Feed(
            part, order, pin=self.trainer.strategy.root_device.type == "cuda", keep=AHEAD + 3
        )
        return ReadAhead(feed, AHEAD) if part.reads_tiles else feed

    def configure_optimizers(self) -> Any:
        """AdamW without decay on biases and norms, with a learning rate that warms up and falls."""
        s = self.options
        will_learn = self.unfreeze_after is not None
        decayed: list[Tensor] = []
        plain: list[Tensor] = []
        for parameter in self.parameters():
            if parameter.requires_grad or will_learn:
                (decayed if parameter.ndim > 1 else plain).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": s.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        # One pass over the weights; but 16-mixed scales gradients, and the fused step would undo
        # that too late to clip them.
        optimiser = torch.optim.AdamW(groups, lr=s.learning_rate, fused=s.precision != "16-mixed")
        if s.schedule == "constant":
            return optimiser
        steps = max(1, math.ceil(len(self.order) / s.accumulate) * s.epochs)
        warm = min(steps // 10, 200)

        def factor(step: int) -> float:
            if step < warm:
                return (step + 1) / (warm + 1)
            return (
                0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))
                + 1e-3
            )

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """
        Shorten long gradients. Lightning itself refuses a fused optimiser under bf16, though
        nothing is scaled there.
        """
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def on_train_epoch_start(self) -> None:
        """Order the sites for this epoch, and unfreeze when it is time."""
        self.order.set_epoch(self.current_epoch)
        if (
            self.unfreeze_after is not None
            and self.current_epoch >= self.unfreeze_after
            and self.net.frozen != "nothing"
        ):
            log.info("Epoch %d: the whole trunk learns from here on.", self.current_epoch)
            self.net.freeze("nothing")
        self.sums = dict.fromkeys(("loss", *TERM, "sites"), 0.0)
        self.started = time.perf_counter()

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """
        Return logits of a batch and the embeddings that the regulariser acts on: of its own
        projection those of the sites with an image alone.
        """
        if self.projection is None:
            return predict_batch(self.net, batch, self.parts[0].reader)
        seen = see_batch(self.net, batch, self.parts[0].reader)
        inputs = seen.joined if self.net.trunk is None else seen.pooled
        if inputs is None:
            inputs = seen.joined.new_zeros(0, self.projection.in_features)
        return self.net.classify(seen.joined), nn.functional.normalize(self.projection(inputs))

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """
        Return presence loss plus the weighted regulariser; what is drawn follows from seed, epoch,
        step and process.
        """
        epoch = self.seed * 100_003 + self.current_epoch
        torch.manual_seed((epoch * 1_009 + self.global_rank) * 100_019 + batch_index)
        logits, z = self.forward(batch)
        total: Tensor
        total = loss = self.loss(logits, *_labels(batch))
        self._add("loss", loss, len(logits))
        if self.regulariser is not None:
            places = batch["place"]
            if len(z) != len(places):
                places = places[batch["has_image"]] if len(z) else places[:0]
            term = self.regulariser(z, places)
            for name, value in zip(TERM, term, strict=True):
                self._add(name, value, len(logits))
            total = loss + self.options.regulariser.weight * term.loss
        self.sums["sites"] += len(logits)
        return total

    def _add(self, name: str, value: Tensor, rows: int) -> None:
        # Kept on the device: reading it would make the device wait in every step.
        self.sums[name] = self.sums[name] + value.detach() * rows  # type: ignore[assignment]

    def on_validation_epoch_start(self) -> None:
        """Start the scores anew."""
        self.held = []

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Keep the predictions: scores are taken over the whole part, not per batch."""
        logits, _ = self.forward(batch)
        self.held.append((logits.float(), *_labels(batch)))

    def on_validation_epoch_end(self) -> None:
        """Score the whole validation part."""
        if not self.held:
            return
        parts = [gather_rows(torch.cat(part))[0] for part in zip(*self.held, strict=True)]
        elements, known = self.loss.elements(*parts)
        logits, k, n = parts[:3]
        square = ((logits.sigmoid() - k.clamp(min=0) / n.clamp(min=1)[:, None]) ** 2)[known]
        self.scores = {
            "validation_loss": float(elements.sum() / known.sum().clamp(min=1)),
            "validation_mse": float(square.mean()),
        }


def _labels(batch: Batch) -> list[Tensor]:
    """Return what a loss compares logits with: k, n and, if it is kept, what dated visits say."""
    return [batch[name] for name in ("detections", "visits", "evidence") if name in batch]


class Journal(Callback):
    """
    Keep the rows of ``history.csv``, the best weights and how long nothing got better; all of it
    lies in the checkpoint.
    """

    def __init__(self, options: FitOptions, folder: Path | None, progress: Progress) -> None:
        self.options, self.folder, self.progress = options, folder, progress
        self.rows: list[dict[str, float]] = []
        self.best: float | None = None
        self.best_epoch = -1
        self.waited = 0
        self.weights: dict[str, Tensor] = {}
        self.finished = False

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"progress": silent}  # a listener cannot follow into another process

    def state_dict(self) -> dict[str, Any]:
        """Return what the checkpoint keeps."""
        return {
            name: getattr(self, name)
            for name in ("rows", "best", "best_epoch", "waited", "weights", "finished")
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        for name, value in state_dict.items():
            setattr(self, name, value)

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Write the row of this epoch and keep the weights if they are the best so far."""
        assert isinstance(pl_module, Fitting)
        sites = max(pl_module.sums["sites"], 1.0)
        # waits for the device
        loss, *terms = (float(pl_module.sums[name]) / sites for name in ("loss", *TERM))
        # Without a regulariser there is nothing to say beside its 0.
        told = TERM if pl_module.regulariser is not None else TERM[:1]
        seconds = max(time.perf_counter() - pl_module.started, 1e-9)
        row = {
            "epoch": float(trainer.current_epoch),
            "learning_rate": float(trainer.optimizers[0].param_groups[0]["lr"]),
            "train_loss": loss,
            **dict(zip(told, terms, strict=False)),
            **pl_module.scores,
            "seconds": seconds,
            "sites_per_second": sites * trainer.world_size / seconds,
            "waiting": getattr(pl_module.feed, "waited_s", 0.0)
            / seconds,  # share of the epoch that waited for tiles
        }
        if not math.isfinite(row["train_loss"]):
            raise ModelError(
                f"The training loss became {row['train_loss']} in epoch {trainer.current_epoch}. "
                "Lower train.fit.learning_rate, or use precision 32-true."
            )
        self.rows.append(row)
        if trainer.logger is not None:
            trainer.logger.log_metrics(
                {name: value for name, value in row.items() if name != "epoch"},
                trainer.current_epoch,
            )
        score = pl_module.scores.get(f"validation_{self.options.score}")
        better = score is None or self.best is None or score < self.best
        if better:
            self.best, self.best_epoch, self.waited = score, trainer.current_epoch, 0
        else:
            self.waited += 1
        if better or self.options.keep == "last":
            self.weights = {
                name: value.detach().cpu().clone()
                for name, value in pl_module.net.state_dict().items()
            }
        if (
            self.options.patience is not None
            and score is not None
            and self.waited >= self.options.patience
        ):
            trainer.should_stop = True
        self.finished = trainer.should_stop or trainer.current_epoch + 1 >= self.options.epochs
        if trainer.is_global_zero:
            if self.folder is not None:
                write_table(self.folder / "history.csv", self.table(), index=False)
            self.progress(
                "fit",
                self.options.epochs if self.finished else len(self.rows),
                self.options.epochs,
            )

    def table(self) -> pd.DataFrame:
        """Return one row per epoch."""
        table = pd.DataFrame(self.rows)
        return table.astype({"epoch": int}) if len(table) else table


class Checkpoints(Checkpoint):
    """
    Keep the state after the last epoch, ``last.ckpt``, and that before it, ``previous.ckpt``.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.before = folder / "last.ckpt", folder / "previous.ckpt"

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Write the state of this epoch."""
        if trainer.is_global_zero and self.path.is_file():
            self.path.replace(self.before)
        trainer.save_checkpoint(self.path)
        if trainer.is_global_zero:
            sync(self.path)

    def newest_whole(self) -> tuple[Path, Mapping[str, Any]] | tuple[None, None]:
        """Return the newest state that is as it was written; warn of one that is not."""
        for path in (self.path, self.before):
            if path.is_file():
                try:
                    return path, _read_checkpoint(path)
                except ArtefactError as error:
                    log.warning("%s Training goes on from what is whole.", error)
        return None, None


def run_fit(
    fitting: Fitting, *, folder: Path | None = None, progress: Progress = silent
) -> Journal:
    """
    Fit, or continue an interrupted fit, and leave the best weights in the network.

    Parameters
    ----------
    folder
        Checkpoints go to ``folder/checkpoints`` after every epoch, the history to
        ``folder/history.csv``. None: nothing is kept. Instead of a damaged checkpoint the one
        before it is continued from, else the fit starts anew, with a warning.

    Raises
    ------
    ModelError
        The loss became infinite or not a number, or the device cannot be used.
    MissingPackageError
        Logs for TensorBoard are wanted, and it is not installed.
    """
    s = fitting.options
    processes = _processes(s)
    if processes > 1 and folder is None:
        with (
            tempfile.TemporaryDirectory() as temporary
        ):  # the result comes back from the other processes in a file
            return run_fit(fitting, folder=Path(temporary), progress=progress)
    journal = Journal(s, folder, progress)
    callbacks: list[Callback] = [journal]
    last = None
    if folder is not None:
        last = Checkpoints(Path(folder) / "checkpoints")
        callbacks.append(last)
    path, state = (None, None) if last is None else last.newest_whole()
    if state is not None:
        journal.load_state_dict(state["callbacks"]["Journal"])
        fitting.first_epoch = len(journal.rows)
        log.info("Continuing after epoch %d.", len(journal.rows))
    if not journal.finished:
        with _quiet(), _interruptible():
            trainer = _trainer(s, folder, processes, callbacks)
            trainer.fit(fitting, ckpt_path=None if path is None else str(path), weights_only=True)
        if processes > 1 and last is not None:
            journal.load_state_dict(_read_checkpoint(last.path)["callbacks"]["Journal"])
    _warn_if_collapsed(journal)
    fitting.net.load_state_dict(journal.weights)
    fitting.net.cpu().eval()
    return journal


def _warn_if_collapsed(journal: Journal) -> None:
    """Say so where the last epoch still has all sites at one point, as far as the term can tell."""
    last = journal.rows[-1] if journal.rows else {}
    above = last.get(TERM[1])
    if above is None or above < COLLAPSED:
        return
    log.warning(
        "The embedding that the regulariser acts on stayed collapsed: after %d epochs the term is "
        "%.3f above its value with all sites at one point (cosine of alike sites %.2f, of unlike "
        "ones %.2f). It did not shape the network: fit for longer or raise "
        "train.fit.regulariser.weight, or switch it off (0).",
        len(journal.rows),
        above,
        last[TERM[2]],
        last[TERM[3]],
    )


def _trainer(
    options: FitOptions, folder: Path | None, processes: int, callbacks: list[Callback]
) -> lightning.Trainer:
    try:
        return lightning.Trainer(
            accelerator=options.accelerator,
            devices=processes,
            # Spawned, so that only this process writes the run; a relaunched program would write it
            # once per device. What a batch lacks (a modality, say) leaves parameters without
            # gradient, in one process or in all.
            strategy="ddp_spawn_find_unused_parameters_true" if processes > 1 else "auto",
            precision=options.precision,
            max_epochs=options.epochs,
            accumulate_grad_batches=options.accumulate,
            gradient_clip_val=5.0,
            callbacks=callbacks,
            logger=_logger(options, folder),
            enable_checkpointing=folder is not None,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            deterministic="warn" if options.deterministic else False,
            default_root_dir=folder,
        )
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise ModelError(
            f"accelerator {options.accelerator!r}, devices {options.devices!r}, precision "
            f"{options.precision!r} cannot be used: {error}"
        ) from error


def _processes(options: FitOptions) -> int:
    if options.devices != "auto":
        return options.devices
    return (
        max(1, torch.cuda.device_count()) if options.accelerator in ("auto", "gpu", "cuda") else 1
    )


def _read_checkpoint(path: Path) -> Mapping[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums
            if (damaged := archive.testzip()) is not None:
                raise ValueError(damaged)
        value = torch.load(path, map_location="cpu", weights_only=True)
        value["callbacks"]["Journal"]
    except Exception as error:
        raise ArtefactError(
            f"The checkpoint {path} was damaged since it was written ({type(error).__name__})."
        ) from error
    return value  # type: ignore[no-any-return]


def _logger(options: FitOptions, folder: Path | None) -> Any:
    if not options.tensorboard or folder is None:
        return False
    from lightning.pytorch.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(folder, name="tensorboard", version="")
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"train.fit.tensorboard needs TensorBoard: {how_to_install('tensorboard')}. Without it "
            "history.csv says the same."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """
    Keep Lightning's tips, banners and warnings about settings chosen on purpose away from the
    terminal.
    """
    loggers = [
        logging.getLogger(name)
        for name in (
            "lightning",
            "lightning.pytorch",
            "lightning.fabric",
            "lightning.pytorch.utilities.rank_zero",
        )
    ]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings(
                "ignore", category=FutureWarning, message=".*(treespec|LeafSpec).*"
            )
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Give Ctrl-C back its meaning: Lightning turns it into an exit and leaves it switched off."""
    try:
        before = signal.getsignal(signal.SIGINT)
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, before)
            raise KeyboardInterrupt from None
        raise
