"""
Adapt from one scanner to another: MNIST to USPS digits, and mammograms by breast density.

python benchmarks/plugins/cmmd.py [--seeds 5] [--only cmmd_digits|cmmd_mammograms]
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from experiment import Experiment, Measures, Target, main, shared, write_images, write_mammograms

from butterfly_sdm.core.settings import load_settings
from butterfly_sdm.plugins.cmmd.method import Cmmd
from butterfly_sdm.plugins.runner import evaluate, train

DIGITS = {
    "size_px": 16,
    "trunk": "small:16",
    "balance_domains": True,
    "flip": False,
    "batch_size": 128,
    "learning_rate": 0.05,
    "weight_decay": 5e-4,
    "epochs": 30,
    "head_epochs": 20,
    "head_learning_rate": 0.01,
}
MAMMOGRAMS = DIGITS | {
    "size_px": 32,  # what five seeds can be paid for
    "flip": True,
    "batch_size": 64,
    "learning_rate": 0.02,
    "epochs": 20,
    "fractions": (0.6, 0.2, 0.2),
}
METHODS = {
    "supcon": {},
    "joint_ce": {"objective": "cross_entropy"},
    "source_only": {"objective": "cross_entropy", "use_target": False, "balance_domains": False},
}


def digits(folder: Path, seed: int) -> Path:
    """
    Write 1,500 labelled source digits, 5 labelled target digits per class, and the rest to hold
    out.
    """
    data = np.load(shared() / "mnist_usps_16px.npz", allow_pickle=False)
    rng = np.random.default_rng(seed)
    rows = []
    for domain in ("mnist", "usps"):
        images, labels = data[domain], data[f"{domain}_label"]
        names = [f"{domain}/{row:04d}.png" for row in range(len(images))]
        write_images(folder, images, names)
        order = rng.permutation(len(images))
        if domain == "mnist":
            split = np.empty(len(images), dtype=object)
            split[order[:1500]], split[order[1500:1600]], split[order[1600:]] = (
                "train",
                "validation",
                "test",
            )
        else:
            split = np.full(len(images), "test", dtype=object)
            for digit in range(10):
                own = order[labels[order] == digit]
                split[own[:5]], split[own[5:20]] = "train", "validation"
        rows.append(
            pd.DataFrame({"path": names, "label": labels, "domain": domain, "split": split})
        )
    table = folder / "table.csv"
    pd.concat(rows).to_csv(table, index=False)
    return table


def mammograms(folder: Path, seed: int) -> Path:
    """Write mammograms, normal or with a finding; dense breasts are the target."""
    known = write_mammograms(folder)
    table = pd.DataFrame(
        {
            "path": known["path"],
            "label": np.where(known["finding"] == 1, "finding", "normal"),
            "domain": np.where(known["tissue"] == "D", "dense", "fatty or glandular"),
            "patient": known["woman"],
        }
    )
    path = folder / "mammograms.csv"
    table.to_csv(path, index=False)
    return path


def compare(
    folder: Path, seed: int, *, write: Callable[[Path, int], Path], settings: dict
) -> Iterator[Measures]:
    """Train and score every method on one table."""
    table = write(folder, seed)
    for method, changes in METHODS.items():
        config, _ = load_settings(
            Cmmd.config, settings | changes | {"seed": seed, "sources": [{"path": str(table)}]}
        )
        metrics = evaluate(train(Cmmd(), "cmmd", config, folder / method)).metrics
        keys = ("target_accuracy", "target_auc", "source_accuracy", "cmmd", "dcmmd", "cmmd_ratio")
        yield {f"{method}_{key}": metrics[key] for key in keys}


def ratio(other: str, power: int) -> str:
    return f"(supcon_cmmd_ratio / {other}_cmmd_ratio) ** {power}"


EXPERIMENTS = {
    "cmmd_digits": Experiment(
        "MNIST to USPS, 5 labelled target digits per class",
        partial(compare, write=digits, settings=DIGITS),
        (
            Target(
                "target accuracy: SupCon - joint cross-entropy",
                "supcon_target_accuracy - joint_ce_target_accuracy",
                ">=",
                0.01,
            ),
            Target(
                "target accuracy: SupCon - source only",
                "supcon_target_accuracy - source_only_target_accuracy",
                ">=",
                0.3,
            ),
            Target("CMMD/DCMMD: SupCon / joint cross-entropy", ratio("joint_ce", 1), "<=", 0.5),
            Target("CMMD/DCMMD: SupCon / source only", ratio("source_only", 1), "<=", 0.1),
            Target(
                "the same of the squares: SupCon / joint cross-entropy",
                ratio("joint_ce", 2),
                "<=",
                0.5,
            ),
            Target(
                "the same of the squares: SupCon / source only", ratio("source_only", 2), "<=", 0.1
            ),
        ),
        seconds=100,
        gpu=True,
    ),
    "cmmd_mammograms": Experiment(
        "Mammograms: normal or finding, dense breasts as target",
        partial(compare, write=mammograms, settings=MAMMOGRAMS),
        seconds=20,
        gpu=True,
    ),
}

if __name__ == "__main__":
    main(EXPERIMENTS, __doc__)
