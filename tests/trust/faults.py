"""Run a verb in a process of its own, and let things happen to it."""

import hashlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from butterfly_sdm import pipeline
from butterfly_sdm.errors import ButterflySDMError

# The parent loads torch once; each try is a fork of it, so that a try costs the work and not the imports.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    ["butterfly_sdm.pipeline", "butterfly_sdm.models.training", "butterfly_sdm.mapping", "data_prep.build"]
)

#: Small enough that one verb takes seconds.
QUICK = (
    "train.fit.epochs=3",
    "train.fit.patience=null",
    "train.fit.batch_size=16",
    "map.block_px=256",
)


def build(config: Path, work: Path) -> None:
    pipeline.build(config, work / "dataset", overrides=QUICK)


def train(config: Path, work: Path) -> None:
    pipeline.train(config, work / "run", dataset=work / "dataset", overrides=QUICK)


def evaluate(config: Path, work: Path) -> None:
    pipeline.evaluate(work / "run", work / "scores", dataset=work / "dataset", overrides=QUICK)


def map_(config: Path, work: Path) -> None:
    pipeline.predict_map(work / "run", out=work / "map.tif", overrides=QUICK)


VERBS: dict[str, Callable[[Path, Path], None]] = {"build": build, "train": train, "evaluate": evaluate, "map": map_}
RESULTS = {"build": "dataset", "train": "run", "evaluate": "scores", "map": "map.tif"}


def _answer(verb: str, config: Path, work: Path, answer: Path) -> None:
    os.setpgrp()
    try:
        VERBS[verb](config, work)
    except ButterflySDMError as error:
        answer.write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        raise SystemExit(2) from None
    except OSError as error:
        answer.write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        raise SystemExit(3) from None


def start(verb: str, config: Path, work: Path, answer: Path) -> multiprocessing.process.BaseProcess:
    """Start a verb; its error message, if any, is written to ``answer``."""
    process = processes.Process(target=_answer, args=(verb, config, work, answer))
    process.start()
    return process


def run(verb: str, config: Path, work: Path, answer: Path | None = None) -> tuple[int, str, float]:
    """Run a verb to its end: exit code, message (told through the file ``answer``), seconds."""
    answer = answer or work / "answer.txt"
    answer.unlink(missing_ok=True)
    began = time.monotonic()
    process = start(verb, config, work, answer)
    process.join()
    text = answer.read_text(encoding="utf-8") if answer.is_file() else ""
    answer.unlink(missing_ok=True)
    return process.exitcode or 0, text, time.monotonic() - began


def kill_after(verb: str, config: Path, work: Path, seconds: float) -> bool:
    """Start a verb and kill it with its children after some seconds; False if it had ended by then."""
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
