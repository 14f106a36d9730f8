"""
Tell real faces from self-blended fakes: three small backbones, their votes, and cross-entropy
beside.

python benchmarks/plugins/dfcon.py [--seeds 5] [--only
dfcon_faces|dfcon_cross_entropy|dfcon_unbalanced]
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from experiment import Experiment, Measures, Target, main, shared, write_images

from butterfly_sdm.core.settings import load_settings
from butterfly_sdm.plugins.dfcon.blending import self_blend
from butterfly_sdm.plugins.dfcon.method import Dfcon
from butterfly_sdm.plugins.runner import evaluate, train

# The transformer learns more slowly: its rate was chosen among 1e-3, 3e-4 and 1e-4, its patches
# among 4 and 8 px, by the AUC on people taken out of the training part (two draws).
BACKBONES: dict[str, dict[str, Any]] = {
    "maxvit": {"model": "maxvit_rmlp_pico_rw_256", "weights": None},
    "coatnet": {"model": "coatnet_pico_rw_224", "weights": None},
    "eva02": {
        "model": "eva02_tiny_patch14_224",
        "weights": None,
        "patch_px": 8,
        "epochs": 80,
        "learning_rate": 1e-4,
    },
}


def faces(folder: Path, seed: int, ratio: int = 1) -> Path:
    """
    Write real faces and self-blended fakes, split by person; ``ratio`` fakes per real face in
    training.
    """
    data = np.load(shared() / "orl_faces_92x112.npz", allow_pickle=False)
    rng = np.random.default_rng(seed)
    people = rng.permutation(np.unique(data["person"]))
    part_of = {person: "train" if place < 28 else "test" for place, person in enumerate(people)}
    rows, pixels = [], []
    for row, (image, person) in enumerate(zip(data["image"], data["person"], strict=True)):
        part = part_of[person]
        fakes = ratio if part == "train" else 1
        pixels += [image, *(self_blend(image, rng) for _ in range(fakes))]
        rows += [
            {"path": f"{row:03d}_{number}.png", "label": label, "group": str(person), "split": part}
            for number, label in enumerate(["real"] + ["fake"] * fakes)
        ]
    table = pd.DataFrame(rows)
    write_images(folder, np.stack(pixels), table["path"].tolist())
    table.to_csv(folder / "faces.csv", index=False)
    return folder / "faces.csv"


def settings(table: Path, seed: int) -> dict[str, Any]:
    return {
        "data": str(table),
        "size_px": 64,
        "channels": 1,
        "backbones": BACKBONES,
        "views": 1,
        "epochs": 12,
        "batch_size": 16,  # on few images many small steps, which a CPU can pay for
        "learning_rate": 3e-4,
        "seed": seed,
    }


def score(value: dict[str, Any], folder: Path) -> Measures:
    """Train and measure."""
    config, _ = load_settings(Dfcon.config, value)
    return evaluate(train(Dfcon(), "dfcon", config, folder)).metrics


def members(folder: Path, seed: int) -> Iterator[Measures]:
    """Train the members by the contrastive loss; compare them with their votes."""
    metrics = score(settings(faces(folder / "faces", seed), seed), folder / "run")
    accuracy = [metrics[f"{member}_accuracy"] for member in BACKBONES]
    found = {
        key: number for key, number in metrics.items() if key.endswith(("accuracy", "auc", "rate"))
    }
    least = min(metrics[f"{member}_auc"] for member in BACKBONES)
    yield found | {
        "best_accuracy": max(accuracy),
        "median_accuracy": float(np.median(accuracy)),
        "least_auc": least,
    }


def cross_entropy(folder: Path, seed: int) -> Iterator[Measures]:
    """Train the same members for as many epochs by cross-entropy."""
    value = settings(faces(folder / "faces", seed), seed) | {"objective": "cross_entropy"}
    metrics = score(value, folder / "run")
    yield {
        f"ce_{key}": number for key, number in metrics.items() if key.endswith(("_accuracy", "auc"))
    }


def mean_accuracy(prefix: str) -> str:
    return (
        "("
        + " + ".join(f"{prefix}{member}_accuracy" for member in BACKBONES)
        + f") / {len(BACKBONES)}"
    )


def unbalanced(folder: Path, seed: int) -> Iterator[Measures]:
    """
    Train one backbone with as many fakes as real faces, then with five times as many, with and
    without balance.
    """
    for name, ratio, balance in (
        ("equal", 1, True),
        ("five_to_one", 5, True),
        ("five_to_one_as_drawn", 5, False),
    ):
        value = settings(faces(folder / name, seed, ratio), seed)
        # Three times the rows: a third of the epochs are as many steps.
        value |= {"epochs": value["epochs"] // (3 if ratio == 5 else 1), "balance": balance}
        value["backbones"] = {"coatnet": BACKBONES["coatnet"]}
        yield {name: score(value, folder / f"run_{name}")["coatnet_balanced_accuracy"]}


EXPERIMENTS = {
    "dfcon_faces": Experiment(
        "Self-blended faces of unseen people",
        members,
        (
            Target("AUC of the weakest backbone", "least_auc", ">=", 0.8, every=True),
            Target(
                "accuracy: mean probability - best single",
                "soft_vote_accuracy - best_accuracy",
                ">=",
                -0.01,
            ),
            Target(
                "accuracy: mean probability - median single",
                "soft_vote_accuracy - median_accuracy",
                ">=",
                0,
            ),
            Target(
                "accuracy, mean of the members: contrastive and frozen head - cross-entropy",
                f"{mean_accuracy('')} - {mean_accuracy('ce_')}",
                ">=",
                -0.01,
            ),
        ),
        seconds=300,
        gpu=True,
        beside="dfcon_cross_entropy",
    ),
    "dfcon_cross_entropy": Experiment(
        "The same faces and members by cross-entropy", cross_entropy, seconds=150, gpu=True
    ),
    "dfcon_unbalanced": Experiment(
        "Five fakes per real face, balanced accuracy",
        unbalanced,
        (Target("balanced batches: five to one - equal", "five_to_one - equal", ">=", -0.03),),
        seconds=120,
        gpu=True,
    ),
}

if __name__ == "__main__":
    main(EXPERIMENTS, __doc__)
