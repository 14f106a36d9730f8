"""
Adapt from one scanner to another: MNIST to USPS digits, and mammograms by breast density.

python benchmarks/plugins/cmmd.py [--seeds 5] [--only digits|mammograms]
"""

from pathlib import Path

import numpy as np
import pandas as pd
from experiment import arguments, repeat, report, shared, write_images

from butterfly_sdm.plugins.cmmd.method import Cmmd
from butterfly_sdm.plugins.runner import evaluate, train
from butterfly_sdm.settings import load_settings

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
METHODS = {
    "supcon": {},
    "joint_ce": {"objective": "cross_entropy"},
    "source_only": {"objective": "cross_entropy", "use_target": False, "balance_domains": False},
}


def digits(folder: Path, seed: int) -> Path:
    """Write 1,500 labelled source digits, 5 labelled target digits per class, and the rest to hold out."""
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
            split[order[:1500]], split[order[1500:1600]], split[order[1600:]] = "train", "validation", "test"
        else:
            split = np.full(len(images), "test", dtype=object)
            for digit in range(10):
                own = order[labels[order] == digit]
                split[own[:5]], split[own[5:20]] = "train", "validation"
        rows.append(pd.DataFrame({"path": names, "label": labels, "domain": domain, "split": split}))
    table = folder / f"table_{seed}.csv"
    pd.concat(rows).to_csv(table, index=False)
    return table


def mammograms(folder: Path, seed: int) -> Path:
    """Write mammograms, normal or with a finding; dense breasts are the target."""
    data = np.load(shared() / "mias_mammograms_256px.npz", allow_pickle=False)
    lines = [line.split() for line in (shared() / "mias_labels.txt").read_text().splitlines() if line.startswith("mdb")]
    seen = {line[0]: (line[1], "normal" if line[2] == "NORM" else "finding") for line in reversed(lines)}
    names = [f"{name}.png" for name in data["name"]]
    write_images(folder, data["image"], names)
    table = pd.DataFrame(
        {
            "path": names,
            "label": [seen[str(name)][1] for name in data["name"]],
            "domain": [{"D": "dense"}.get(seen[str(name)][0], "fatty or glandular") for name in data["name"]],
            # The two breasts of a woman have neighbouring numbers.
            "patient": [str((int(str(name)[3:]) - 1) // 2) for name in data["name"]],
        }
    )
    path = folder / "mammograms.csv"
    table.to_csv(path, index=False)
    return path


def once(table: Path, settings: dict, out: Path, seed: int) -> dict[str, float]:
    """Train and score every method on one table."""
    found: dict[str, float] = {}
    for method, changes in METHODS.items():
        value = settings | changes | {"seed": seed, "sources": [{"path": str(table.resolve())}]}
        config, _ = load_settings(Cmmd.config, value)
        run = train(Cmmd(), "cmmd", config, out / f"{method}_{seed}")
        metrics = evaluate(run).metrics
        for key in ("target_accuracy", "target_auc", "source_accuracy", "cmmd", "dcmmd", "cmmd_ratio"):
            found[f"{method}_{key}"] = metrics[key]
        found[f"{method}_squared_ratio"] = metrics["cmmd_ratio"] ** 2
    return found


if __name__ == "__main__":
    options = arguments(__doc__)
    if options.only in (None, "digits"):
        folder = options.out / "cmmd_digits"
        table = repeat("cmmd_digits", options.seeds, lambda s: once(digits(folder, s), DIGITS, folder, s), options.out)
        report(
            "MNIST to USPS, 5 labelled target digits per class",
            table,
            {
                "target accuracy: SupCon - joint cross-entropy >= 0.01": (
                    "supcon_target_accuracy - joint_ce_target_accuracy",
                    lambda t: (t.supcon_target_accuracy - t.joint_ce_target_accuracy).mean() >= 0.01,
                ),
                "target accuracy: SupCon - source only >= 0.3": (
                    "supcon_target_accuracy - source_only_target_accuracy",
                    lambda t: (t.supcon_target_accuracy - t.source_only_target_accuracy).mean() >= 0.3,
                ),
                "CMMD/DCMMD: SupCon / joint cross-entropy <= 0.5": (
                    "supcon_cmmd_ratio / joint_ce_cmmd_ratio",
                    lambda t: (t.supcon_cmmd_ratio / t.joint_ce_cmmd_ratio).mean() <= 0.5,
                ),
                "CMMD2/DCMMD2: SupCon / joint cross-entropy <= 0.5": (
                    "supcon_squared_ratio / joint_ce_squared_ratio",
                    lambda t: (t.supcon_squared_ratio / t.joint_ce_squared_ratio).mean() <= 0.5,
                ),
                "CMMD2/DCMMD2: SupCon / source only <= 0.1": (
                    "supcon_squared_ratio / source_only_squared_ratio",
                    lambda t: (t.supcon_squared_ratio / t.source_only_squared_ratio).mean() <= 0.1,
                ),
                "CMMD/DCMMD: SupCon / source only <= 0.1": (
                    "supcon_cmmd_ratio / source_only_cmmd_ratio",
                    lambda t: (t.supcon_cmmd_ratio / t.source_only_cmmd_ratio).mean() <= 0.1,
                ),
            },
        )
    if options.only in (None, "mammograms"):
        folder = options.out / "cmmd_mammograms"
        settings = DIGITS | {"size_px": 64, "flip": True, "batch_size": 64, "learning_rate": 0.02, "epochs": 20}
        settings["fractions"] = (0.6, 0.2, 0.2)
        table = repeat(
            "cmmd_mammograms", options.seeds, lambda s: once(mammograms(folder, s), settings, folder, s), options.out
        )
        report("Mammograms: normal or finding, dense breasts as target", table, {})
