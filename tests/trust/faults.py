"""Run a verb in a process of its own, and let things happen to it."""

import hashlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from butterfly_sdm import pipeline
from butterfly_sdm.errors import ButterflySDMError
from butterfly_sdm.plugins.plugin import run_plugin

# The parent imports torch once; each try is a fork of it, so that a try costs the work and not the
# imports.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.trust.warm"])

#: Small enough that a verb takes a fraction of a second.
QUICK = (
    "train.model.backbone=test_resnet",
    "train.model.width=null",
    "train.fit.epochs=3",
    "train.fit.patience=null",
    "train.fit.batch_size=8",
    "map.block_px=128",
    "map.stride_px=64",
    "map.audit=10",
)
#: What a Python process does to a folder: each is a moment between two states of the disk.
DEEDS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "shutil.rmtree"}


def build(config: Path, work: Path, *more: str) -> None:
    pipeline.build(config, work / "dataset", overrides=[*QUICK, *more])


def train(config: Path, work: Path, *more: str) -> None:
    pipeline.train(config, work / "run", dataset=work / "dataset", overrides=[*QUICK, *more])


def evaluate(config: Path, work: Path, *more: str) -> None:
    pipeline.evaluate(
        work / "run", work / "scores", dataset=work / "dataset", overrides=[*QUICK, *more]
    )


def map_(config: Path, work: Path, *more: str) -> None:
    pipeline.predict_map(work / "run", out=work / "map.tif", overrides=[*QUICK, *more])


def plugin_train(config: Path, work: Path, *more: str) -> None:
    run_plugin("dfcon", "train", config.with_name("plugin.yaml"), work / "plugin_run", more)


VERBS: dict[str, Callable[..., None]] = {
    "build": build,
    "train": train,
    "evaluate": evaluate,
    "map": map_,
}
PLUGIN = {"plugin train": plugin_train}
RESULTS = {
    "build": "dataset",
    "train": "run",
    "evaluate": "scores",
    "map": "map.tif",
    "plugin train": "plugin_run",
}


def _answer(
    verb: str,
    config: Path,
    work: Path,
    answer: Path,
    more: tuple[str, ...],
    before: Callable[[], Any] | None,
) -> None:
    os.setpgrp()
    import torch

    torch.set_num_threads(1)
    if before is not None:
        before()
    try:
        (VERBS | PLUGIN)[verb](config, work, *more)
    except ButterflySDMError as error:
        answer.write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        raise SystemExit(2) from None
    except OSError as error:
        answer.write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        raise SystemExit(3) from None


def start(
    verb: str,
    config: Path,
    work: Path,
    answer: Path,
    *more: str,
    before: Callable[[], Any] | None = None,
) -> multiprocessing.process.BaseProcess:
    """
    Start a verb in a process of its own.

    Parameters
    ----------
    answer
        File to which its error message, if any, is written.
    more
        Overrides of the config.
    before
        Called in that process first; must be picklable.
    """
    process = processes.Process(target=_answer, args=(verb, config, work, answer, more, before))
    process.start()
    return process


def run(
    verb: str,
    config: Path,
    work: Path,
    answer: Path | None = None,
    *more: str,
    before: Callable[[], Any] | None = None,
) -> tuple[int, str, float]:
    """Run a verb to its end: exit code, message (told through the file ``answer``), seconds."""
    answer = answer or work / "answer.txt"
    answer.unlink(missing_ok=True)
    began = time.monotonic()
    process = start(verb, config, work, answer, *more, before=before)
    process.join()
    text = answer.read_text(encoding="utf-8") if answer.is_file() else ""
    answer.unlink(missing_ok=True)
    return process.exitcode or 0, text, time.monotonic() - began


def kill_after(verb: str, config: Path, work: Path, seconds: float) -> bool:
    """
    Start a verb and kill it with its children after some seconds; False if it had ended by then.
    """
    process = start(verb, config, work, work / "answer.txt")
    process.join(seconds)
    if process.exitcode is not None:
        return False
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it had not made its group yet
        process.kill()
    process.join()
    return True


class Deeds:
    """
    Watches what a process does to a folder.

    Parameters
    ----------
    folder
        Whose files count; opening one for reading does not.
    last
        The process kills itself with SIGKILL right before its deed of this number, counted from 1;
        None: never.
    log
        File that tells in the end how many deeds there were.
    """

    def __init__(self, folder: Path, *, last: int | None = None, log: Path | None = None) -> None:
        self.folder, self.last, self.log, self.count = os.fspath(folder), last, log, 0

    def __call__(self) -> None:
        sys.addaudithook(self._see)
        if self.log is not None:
            from multiprocessing.util import Finalize

            Finalize(None, self._tell, exitpriority=0)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in DEEDS or not arguments or not isinstance(arguments[0], str | os.PathLike):
            return
        if event == "open" and not (
            isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        ):
            return
        if not os.fspath(arguments[0]).startswith(self.folder):
            return
        self.count += 1
        if self.count == self.last:
            os.killpg(0, signal.SIGKILL)

    def _tell(self) -> None:
        assert self.log is not None
        self.log.write_text(str(self.count))


def count_deeds(verb: str, config: Path, work: Path, log: Path) -> int:
    """Return how many things a verb does to its folder."""
    code, message, _ = run(verb, config, work, before=Deeds(work, log=log))
    if code:
        raise RuntimeError(f"{verb}: {message}")
    return int(log.read_text())


def kill_before_deed(verb: str, config: Path, work: Path, number: int) -> bool:
    """
    Run a verb that kills itself right before its deed of that number; False if it ended before.
    """
    process = start(verb, config, work, work / "answer.txt", before=Deeds(work, last=number))
    process.join()
    return process.exitcode == -signal.SIGKILL


def digest(path: Path, *, leave_out: tuple[str, ...] = ()) -> dict[str, str]:
    """SHA-256 of every file of an artefact, or of the one file it is."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {
        str(file.relative_to(path.parent)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if not any(part in leave_out for part in file.parts)
    }


def flip_bit(path: Path, rng: np.random.Generator) -> tuple[int, int]:
    """Change one random bit of a file; return its byte and bit."""
    data = bytearray(path.read_bytes())
    byte, bit = int(rng.integers(len(data))), int(rng.integers(8))
    data[byte] ^= 1 << bit
    path.write_bytes(bytes(data))
    return byte, bit


def harm(path: Path, rng: np.random.Generator) -> str:
    """Damage a file as disks, cables and power cuts do; return how."""
    data = path.read_bytes()
    kind = str(rng.choice(["bit", "cut", "empty", "zeros", "garbage"]))
    at = int(rng.integers(max(1, len(data))))
    if kind == "bit" and data:
        flip_bit(path, rng)
    elif kind == "cut":
        path.write_bytes(data[:at])
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        piece = bytes(512) if kind == "zeros" else rng.bytes(512)
        path.write_bytes((data[:at] + piece + data[at + 512 :])[: len(data)])
    return kind


class Vanish(Deeds):
    """
    Watches a folder, and removes a file that lies elsewhere right before a deed of this number.
    """

    def __init__(self, folder: Path, victim: Path, before: int) -> None:
        super().__init__(folder)
        self.victim, self.before = victim, before

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        super()._see(event, arguments)
        if self.count == self.before:
            self.before = -1  # removing is a deed as well
            self.victim.unlink()


class JumpingClock:
    """A clock that jumps by up to ten years, forwards or backwards, whenever Python looks at it."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def __call__(self) -> None:
        rng, real = Random(self.seed), time.time
        time.time = lambda: real() + rng.uniform(-3e8, 3e8)  # type: ignore[assignment]
        time.time_ns = lambda: int(time.time() * 1e9)  # type: ignore[assignment]


def scramble_times(folder: Path, rng: np.random.Generator) -> None:
    """Give all files of a folder times between 1971 and 2100, in no order."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            second = float(rng.uniform(3e7, 4.1e9))
            os.utime(path, (second, second))
