"""What the experiments share: arguments, seeds, files of images, and the table of targets."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/plugins"), help="folder of the runs and results")
    parser.add_argument("--size", choices=("small", "full"), default="full", help="small: one seed, to see that it runs")
    parser.add_argument("--only", default=None, help="one part of the experiment")
    options = parser.parse_args()
    if options.size == "small":
        options.seeds = 1
    return options


def shared() -> Path:
    """Return the folder of the real data."""
    folder = os.environ.get("BUTTERFLY_SDM_SHARED")
    if not folder:
        sys.exit("Set BUTTERFLY_SDM_SHARED to the folder of the real data.")
    return Path(folder) / "data" / "domains"


def write_images(folder: Path, images: np.ndarray, names: Sequence[str]) -> None:
    """Write (n, h, w[, 3]) images in [0, 1] or uint8 as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = images if images.dtype == np.uint8 else (np.clip(images, 0, 1) * 255).round().astype(np.uint8)
    for image, name in zip(pixels, names, strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            Image.fromarray(image).save(path)


def repeat(title: str, seeds: int, once: Callable[[int], dict[str, float]], out: Path) -> pd.DataFrame:
    """Run ``once`` for every seed, keeping each result, and print mean and spread."""
    path = out / f"{title}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for seed in range(len(rows), seeds):
        began = time.monotonic()
        rows.append({"seed": seed} | once(seed) | {"seconds": round(time.monotonic() - began)})
        with path.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(title, rows[-1], flush=True)
    return pd.DataFrame(rows[:seeds])


def report(title: str, table: pd.DataFrame, targets: dict[str, tuple[str, Callable[[pd.DataFrame], bool]]]) -> None:
    """Print mean and spread of every measure, then every target with met or not."""
    print(f"\n### {title} ({len(table)} seeds)\n\n| measure | mean | sd | least | greatest |\n|---|---|---|---|---|")
    for column in table.columns.drop(["seed", "seconds"], errors="ignore"):
        values = table[column]
        sd = values.std() if len(values) > 1 else float("nan")
        print(f"| {column} | {values.mean():.3f} | {sd:.3f} | {values.min():.3f} | {values.max():.3f} |")
    print("\n| target | found | met |\n|---|---|---|")
    for name, (expression, test) in targets.items():
        print(f"| {name} | {table.eval(expression).mean():.3f} | {'yes' if test(table) else 'NO'} |")
