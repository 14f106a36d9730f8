"""
Run every experiment of the plugins, each seed in a process of its own, and print the tables.

python benchmarks/plugins/all.py --out DIR [--seeds 5] [--jobs 14] [--budget-s 360]
python benchmarks/plugins/all.py --out DIR --tables

Longest first. What is finished is not run again; when the budget is spent, the rest is stopped and
keeps what it has found.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from experiment import Experiment, finished, report, summary

SCRIPTS = ("modan", "implihate", "refine", "cmmd", "dfcon")


@dataclass
class Unit:
    """One seed of one experiment, and its process once started."""

    script: str
    name: str
    seed: int
    experiment: Experiment
    process: subprocess.Popen[bytes] | None = None
    log: IO[bytes] | None = None


def units_of(out: Path, seeds: int, only: list[str]) -> list[Unit]:
    """Return what is left to run, longest first."""
    units = []
    for script in SCRIPTS:
        for name, experiment in importlib.import_module(script).EXPERIMENTS.items():
            if only and name not in only:
                continue
            units += [
                Unit(script, name, seed, experiment)
                for seed in range(seeds)
                if not finished(out, name, seed)
            ]
    return sorted(units, key=lambda unit: (-unit.experiment.seconds, unit.seed))


def start(unit: Unit, options: argparse.Namespace, deadline: float) -> None:
    """Start the process of a unit; those that do not want the GPU do not see it."""
    environment = os.environ | dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"
    )
    environment["EXPERIMENT_SECONDS_LEFT"] = f"{max(0.0, deadline - time.monotonic()):.0f}"
    if not unit.experiment.gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    log = options.out / "logs" / f"{unit.name}_{unit.seed}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    unit.log = log.open("wb")
    command = [
        sys.executable,
        str(Path(__file__).with_name(f"{unit.script}.py")),
        "--only",
        unit.name,
    ]
    command += [
        "--seed",
        str(unit.seed),
        "--out",
        str(options.out),
        "--work",
        str(options.work or options.out / "work"),
    ]
    unit.process = subprocess.Popen(
        command, stdout=unit.log, stderr=subprocess.STDOUT, env=environment
    )


def run_all(options: argparse.Namespace) -> None:
    """Run all units, at most ``jobs`` at a time, until none is left or the budget is spent."""
    began = time.monotonic()
    deadline = began + options.budget_s
    waiting, running, failed = units_of(options.out, options.seeds, options.only), [], []
    print(f"{len(waiting)} units, {options.jobs} at a time", flush=True)
    while waiting or running:
        for unit in [unit for unit in running if unit.process.poll() is not None]:
            running.remove(unit)
            unit.log.close()
            well = unit.process.returncode == 0
            if not well:
                failed.append(unit)
            passed = time.monotonic() - began
            print(
                f"{passed:5.0f} s  {unit.name} {unit.seed} "
                f"{'done' if well else 'FAILED, see logs'}",
                flush=True,
            )
        if time.monotonic() > deadline:
            break
        for unit in list(waiting):
            on_gpu = sum(other.experiment.gpu for other in running)
            if len(running) < options.jobs and (
                not unit.experiment.gpu or on_gpu < options.gpu_jobs
            ):
                waiting.remove(unit)
                start(unit, options, deadline)
                running.append(unit)
        time.sleep(0.2)
    for unit in running:
        unit.process.terminate()
    for unit in running:
        unit.process.wait()
        unit.log.close()
    names = {"failed": failed, "stopped": running, "never begun": waiting}
    for what, units in names.items():
        if units:
            print(f"{what}: " + ", ".join(f"{unit.name} {unit.seed}" for unit in units), flush=True)


def print_tables(out: Path) -> None:
    """Print the tables of all experiments as Markdown, and one table over all of them."""
    print("| experiment | seeds | targets met | missed |\n|---|---|---|---|")
    for script in SCRIPTS:
        for name, experiment in importlib.import_module(script).EXPERIMENTS.items():
            print(summary(out, name, experiment))
    for script in SCRIPTS:
        print(f"\n## {script}")
        for name, experiment in importlib.import_module(script).EXPERIMENTS.items():
            print(report(out, name, experiment))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/plugins"), help="folder of the results"
    )
    parser.add_argument(
        "--work", type=Path, help="folder for files on the way; OUT/work if not given"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="processes at a time"
    )
    parser.add_argument("--gpu-jobs", type=int, default=10, help="of which may use the GPU")
    parser.add_argument(
        "--budget-s",
        type=float,
        default=float("inf"),
        help="stop what still runs after so many seconds",
    )
    parser.add_argument("--only", nargs="*", default=[], help="names of experiments")
    parser.add_argument(
        "--tables", action="store_true", help="print the tables of what has run, and run nothing"
    )
    options = parser.parse_args()
    if not options.tables:
        run_all(options)
    print_tables(options.out)
