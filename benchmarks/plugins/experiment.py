"""
What the experiments share: seeds and their result files, targets, tables, and files of images.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy import stats

from butterfly_sdm.plugins.classifier_scores import student_interval

Measures = dict[str, float]


@dataclass(frozen=True)
class Target:
    """
    What an experiment shall show: an expression of its measures against a bound.

    Attributes
    ----------
    name
        In words.
    expression
        Of measures, evaluated per seed.
    relation, bound
        ``>=``, ``<=`` or ``>``, and the number.
    every
        Each seed must meet it; else their mean.
    surely
        The lower end of the interval must meet it.
    """

    name: str
    expression: str
    relation: str
    bound: float
    every: bool = False
    surely: bool = False

    def row(self, table: pd.DataFrame) -> str:
        """
        Return the line of a Markdown table: target, mean, 95 % Student interval over seeds (paired,
        where the expression is a difference of one seed's measures), met or not. A target missed
        tells its power.
        """
        values = self.values(table)
        how = " (every seed)" if self.every else " (interval)" if self.surely else ""
        wanted = f"{self.name} {self.relation} {self.bound:g}{how}"
        if values.empty:
            return f"| {wanted} | not run | | |"
        low, high = self._interval(values)
        interval = f"{low:.3f} to {high:.3f}" if len(values) > 1 else "-"
        met = self.met(table)
        verdict = "yes" if met else "**no**"
        if not met and not self.every and len(values) > 1:
            beyond = "" if self.surely else " beyond it"
            verdict += f"; {detectable(values):.3f}{beyond} would be found four times in five"
        seeds = "" if len(values) == len(table) else f", {len(values)} seeds"
        return f"| {wanted} | {values.mean():.3f} | {interval} | {verdict}{seeds} |"

    def values(self, table: pd.DataFrame) -> pd.Series:
        """Return the expression of every seed that has its measures."""
        try:
            return cast(pd.Series, table.eval(self.expression)).dropna()
        except (pd.errors.UndefinedVariableError, KeyError):
            return pd.Series(dtype=float)

    def met(self, table: pd.DataFrame) -> bool | None:
        """Say whether the seeds meet it; None: not run."""
        values = self.values(table)
        if values.empty:
            return None
        if not self.every:
            values = pd.Series([self._interval(values)[0] if self.surely else values.mean()])
        met = {
            ">=": values >= self.bound,
            "<=": values <= self.bound,
            ">": values > self.bound,
        }
        return bool(met[self.relation].all())

    def _interval(self, values: pd.Series) -> tuple[float, float]:
        _, low, high = student_interval(values.tolist())
        if self.expression.isidentifier() and values.between(0, 1).all():  # a share, no difference
            return max(low, 0.0), min(high, 1.0)
        return low, high


def detectable(values: pd.Series) -> float:
    """
    Return the mean that a two-sided t-test at 5 % finds with a power of 80 %, given the spread of
    (n,) values.
    """
    freedom = len(values) - 1
    ends = stats.t.ppf(0.975, freedom) + stats.t.ppf(0.8, freedom)
    return float(ends * values.std() / len(values) ** 0.5)


@dataclass(frozen=True)
class Experiment:
    """
    One experiment, run once per seed.

    Attributes
    ----------
    title
        Of its table.
    once
        (folder for files, seed) -> measures, yielded as they are found, so that a run that is cut
        short loses little.
    targets
        What it shall show.
    seconds
        One seed takes about so many CPU seconds; the longest are started first. Results hold CPU
        seconds, too: they do not depend on what else the machine does.
    gpu
        Wants a GPU where there is one; without it runs on the CPU.
    beside
        Another experiment whose measures of the same seed the targets compare with.
    """

    title: str
    once: Callable[[Path, int], Iterator[Measures]]
    targets: tuple[Target, ...] = ()
    seconds: float = 60.0
    gpu: bool = False
    beside: str | None = None


def main(experiments: Mapping[str, Experiment], description: str | None) -> None:
    """
    Run the experiments of a script for all seeds, one after the other, and print their tables.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=sorted(experiments), help="one experiment")
    parser.add_argument("--seeds", type=int, default=5, help="run the seeds 0 to SEEDS - 1")
    parser.add_argument("--seed", type=int, help="run this seed only")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/plugins"), help="folder of the results"
    )
    parser.add_argument(
        "--work", type=Path, help="folder for files on the way; OUT/work if not given"
    )
    options = parser.parse_args()
    chosen = [options.only] if options.only else list(experiments)
    for name in chosen:
        for seed in range(options.seeds) if options.seed is None else [options.seed]:
            if not finished(options.out, name, seed):
                run(
                    name, experiments[name], seed, options.out, options.work or options.out / "work"
                )
        if options.seed is None:
            print(report(options.out, name, experiments[name]), flush=True)


def run(name: str, experiment: Experiment, seed: int, out: Path, work: Path) -> None:
    """Run one seed; its result file is rewritten whenever measures are found."""
    folder = work.resolve() / name / f"seed_{seed}"
    began = time.process_time()
    torch.set_float32_matmul_precision("high")  # on a GPU; convolutions do so anyway
    result: dict[str, object] = {
        "experiment": name,
        "seed": seed,
        "finished": False,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "torch": torch.__version__,
        "measures": {},
    }
    measures: Measures = {}
    for found in experiment.once(folder, seed):
        measures |= {key: float(value) for key, value in found.items()}
        _write(
            out,
            name,
            seed,
            result | {"measures": measures, "seconds": round(time.process_time() - began, 1)},
        )
    result |= {
        "measures": measures,
        "finished": True,
        "seconds": round(time.process_time() - began, 1),
    }
    _write(out, name, seed, result)
    shutil.rmtree(folder, ignore_errors=True)
    print(f"{name} seed {seed}: {result['seconds']} s", flush=True)


def finished(out: Path, name: str, seed: int) -> bool:
    """Say whether a seed has run to its end."""
    path = _place(out, name, seed)
    return path.is_file() and bool(json.loads(path.read_text())["finished"])


def results(out: Path, name: str) -> pd.DataFrame:
    """Return the measures of all seeds that have any, one row each, with ``seconds``."""
    read = [
        json.loads(path.read_text())
        for path in sorted(_place(out, name, 0).parent.glob(f"{name}_seed_*.json"))
    ]
    rows = [
        value["measures"] | {"seconds": value["seconds"]} for value in read if value["measures"]
    ]
    return pd.DataFrame(rows, index=[value["seed"] for value in read if value["measures"]])


def report(out: Path, name: str, experiment: Experiment) -> str:
    """Return mean and spread of every measure and every target, met or not, as Markdown."""
    table, beside = _measured(out, name, experiment)
    if table.empty:
        return f"\n### {experiment.title}\n\nNot run.\n"
    lines = [
        f"\n### {experiment.title} ({len(table)} seeds)\n",
        "| target | mean | 95 % interval | met |",
        "|---|---|---|---|",
    ]
    lines += [target.row(beside) for target in experiment.targets]
    if not experiment.targets:
        lines = lines[:1]
    lines += ["", "| measure | mean | sd | least | greatest |", "|---|---|---|---|---|"]
    for column in table.columns:
        values = table[column].dropna()
        digits = 0 if column == "seconds" or values.abs().max() >= 100 else 3
        numbers = (values.mean(), values.std(), values.min(), values.max())
        lines.append(
            f"| {column} | "
            + " | ".join("-" if np.isnan(x) else f"{x:.{digits}f}" for x in numbers)
            + " |"
        )
    return "\n".join(lines) + "\n"


def summary(out: Path, name: str, experiment: Experiment) -> str:
    """Return one line of a Markdown table: experiment, seeds, how many targets are met, missed."""
    table, beside = _measured(out, name, experiment)
    met = {target.name: target.met(beside) for target in experiment.targets}
    missed = "; ".join(target for target, well in met.items() if well is False)
    shown = f"{sum(well is True for well in met.values())} of {len(met)}" if met else "none set"
    return f"| {experiment.title} | {len(table)} | {shown} | {missed} |"


def shared() -> Path:
    """Return the folder of the real data."""
    folder = os.environ.get("BUTTERFLY_SDM_SHARED")
    if not folder:
        sys.exit("Set BUTTERFLY_SDM_SHARED to the folder of the real data.")
    return Path(folder) / "data" / "domains"


def write_images(folder: Path, images: np.ndarray, names: Sequence[str]) -> None:
    """Write (n, h, w[, 3]) images in [0, 1] or uint8 as PNG files."""
    pixels = (
        images
        if images.dtype == np.uint8
        else (np.clip(images, 0, 1) * 255).round().astype(np.uint8)
    )
    for parent in {(folder / name).parent for name in names}:
        parent.mkdir(parents=True, exist_ok=True)
    for image, name in zip(pixels, names, strict=True):
        Image.fromarray(image).save(folder / name)


def write_mammograms(folder: Path) -> pd.DataFrame:
    """
    Write the mini-MIAS mammograms; return path, number of the woman, tissue (F, G or D) and whether
    there is a finding (1 or 0) of each.
    """
    data = np.load(shared() / "mias_mammograms_256px.npz", allow_pickle=False)
    names = [str(name) for name in data["name"]]
    paths = [f"{name}.png" for name in names]
    write_images(folder, data["image"], paths)
    lines = (shared() / "mias_labels.txt").read_text().splitlines()
    said = {line[:6]: line.split() for line in reversed(lines) if line.startswith("mdb")}
    return pd.DataFrame(
        {
            "path": paths,
            # the two breasts of a woman have neighbouring numbers
            "woman": [(int(name[3:]) - 1) // 2 for name in names],
            "tissue": [said[name][1] for name in names],
            "finding": [int(said[name][2] != "NORM") for name in names],
        }
    )


def _measured(out: Path, name: str, experiment: Experiment) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the measures of the seeds, and those with the measures to compare them with."""
    table = results(out, name)
    if experiment.beside is None:
        return table, table
    return table, table.join(results(out, experiment.beside), rsuffix="_beside")


def _place(out: Path, name: str, seed: int) -> Path:
    return out / "results" / f"{name}_seed_{seed}.json"


def _write(out: Path, name: str, seed: int, value: object) -> None:
    path = _place(out, name, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(value, indent=1))
    temporary.replace(path)
