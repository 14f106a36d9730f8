"""
How threads wait for one another: training with waiting threads that spin, as OpenMP does unasked,
beside threads that sleep, as this package asks for; alone on the machine, and while other work
keeps every core busy twice.

    python benchmarks/waiting.py [--epochs 4] [--rounds 3]

Both train the same network on the region of the demo with as many threads as there are cores,
each in a process of its own, one after the other within a round.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import butterfly_sdm as bs

TRAIN = """
import sys, butterfly_sdm as bs
bs.train(*sys.argv[1:3], dataset=sys.argv[3], overrides=sys.argv[4:])
"""
BUSY = "while True: pass"
# OpenMP asks how to wait when PyTorch loads it
WAYS = {"spinning": "import torch" + TRAIN, "asleep": TRAIN}


@contextmanager
def others(number: int) -> Iterator[None]:
    """Keep so many processes busy."""
    started = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(number)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def seconds_of(code: str, *arguments: str) -> tuple[float, float]:
    """Return seconds and CPU seconds of a training."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, env=kept)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, cpu


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        region = bs.simulate_region(f"{folder}/region")
        bs.build(region.config, f"{folder}/dataset")
        print(f"{cores} cores, {arguments.epochs} epochs; medians of {arguments.rounds} rounds")
        for beside in (0, 2 * cores):
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
            with others(beside):
                for turn in range(arguments.rounds):
                    for name, code in WAYS.items():
                        run = f"{folder}/{beside}_{turn}_{name}"
                        words = (str(region.config), run, f"{folder}/dataset")
                        epochs = f"train.fit.epochs={arguments.epochs}"
                        found[name].append(seconds_of(code, *words, epochs))
            wall, cpu = (
                {name: statistics.median(pair[k] for pair in found[name]) for name in WAYS}
                for k in (0, 1)
            )
            print(
                f"{beside} busy processes beside: "
                + ", ".join(f"{name} {wall[name]:.1f} s ({cpu[name]:.1f} CPU s)" for name in WAYS)
                + f"; asleep takes {wall['asleep'] / wall['spinning']:.2f} of the time"
            )


if __name__ == "__main__":
    main()
