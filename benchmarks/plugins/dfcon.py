"""
Tell real faces from self-blended fakes: three small backbones, their votes, and cross-entropy
beside.

python benchmarks/plugins/dfcon.py [--seeds 5] [--only dfcon_faces|dfcon_unbalanced]
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from experiment import Experiment, Measures, Target, main, shared, write_images

from butterfly_sdm.core.settings import load_settings
from butterfly_sdm.plugins.contract import PluginRun
from butterfly_sdm.plugins.dfcon.blending import self_blend
from butterfly_sdm.plugins.dfcon.method import Dfcon, face_scores
from butterfly_sdm.plugins.dfcon.votes import hard_vote, soft_vote
from butterfly_sdm.plugins.runner import evaluate, train
from butterfly_sdm.plugins.stages import Limits

# Two small networks of different kinds, from random weights, at a size that a CPU can pay for.
# Kinds, rate, temperature and that the loss acts on the features were chosen on the split of seed
# 100, which is not reported.
BACKBONES: dict[str, dict[str, Any]] = {
    "efficient": {"model": "test_efficientnet", "weights": None},
    "plain": {"model": "test_byobnet", "weights": None},
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
        "size_px": 48,
        "channels": 1,
        "backbones": BACKBONES,
        "views": 1,
        "projection": 0,
        "temperature": 0.2,
        "epochs": 24,
        "batch_size": 64,
        "learning_rate": 3e-3,
        "warmup_epochs": 2,
        "decay": "cosine",
        "seed": seed,
        "accelerator": "cpu",
    }


@dataclass
class Timed:
    """CPU seconds of one epoch of the first stage, and of all stages together."""

    epoch: float
    whole: float


def fit(value: dict[str, Any], folder: Path, epochs: int | None = None) -> tuple[PluginRun, Timed]:
    """Train one member and time it, in seconds of this process: others may use the machine too."""
    config, _ = load_settings(Dfcon.config, value)
    ends: list[float] = []

    def note(*position: object) -> None:
        ends.append(time.process_time())

    limits = None if epochs is None else Limits(epochs=epochs)
    run = train(Dfcon(), "dfcon", config, folder, limits=limits, progress=note)
    steps = epochs or value["epochs"]
    each = (ends[steps - 1] - ends[0]) / (steps - 1)
    return run, Timed(each, ends[-1] - ends[0] + each)


def members(folder: Path, seed: int) -> Iterator[Measures]:
    """
    Train each member by the contrastive loss with a frozen head, and by cross-entropy for as many
    epochs as fit into the same time; then the votes of both.
    """
    base = settings(faces(folder / "faces", seed), seed)
    scores: dict[str, dict[str, np.ndarray]] = {"": {}, "ce_": {}}
    label = np.zeros(0)
    for name, member in BACKBONES.items():
        value = base | {"backbones": {name: member}}
        run, contrastive = fit(value, folder / name)
        value |= {"objective": "cross_entropy"}
        _, trial = fit(value, folder / f"{name}_trial", epochs=3)
        value |= {"epochs": max(2, round(contrastive.whole / trial.epoch))}
        beside, entropy = fit(value, folder / f"{name}_ce")
        history = pd.read_csv(run.folder / "history.csv")
        over = history["loss_over_collapsed"].dropna()
        found = {
            f"{name}_seconds": contrastive.whole,
            f"ce_{name}_seconds": entropy.whole,
            f"ce_{name}_epochs": value["epochs"],
            f"{name}_over_collapsed": over.iloc[-1],
        }
        for prefix, made in (("", run), ("ce_", beside)):
            report = evaluate(made)
            found |= {
                f"{prefix}{name}_{key}": report.metrics[f"{name}_{key}"]
                for key in ("accuracy", "auc", "equal_error_rate")
            }
            table = report.tables["predictions"]
            scores[prefix][name] = table[f"score_{name}"].to_numpy()
            label = (table["label"] == "real").to_numpy(dtype=int)
        yield found
        yield {f"gain_{name}": found[f"{name}_accuracy"] - found[f"ce_{name}_accuracy"]}
    for prefix, given in scores.items():
        stacked = np.stack(list(given.values()))
        single = [face_scores(label, value) for value in given.values()]
        votes = {
            "soft_vote": face_scores(label, soft_vote(stacked)),
            "hard_vote": face_scores(label, soft_vote(stacked), decided=hard_vote(stacked)),
        }
        yield {
            f"{prefix}{vote}_{key}": found[key]
            for vote, found in votes.items()
            for key in ("accuracy", "auc")
        } | {
            f"{prefix}mean_accuracy": float(np.mean([value["accuracy"] for value in single])),
            f"{prefix}mean_auc": float(np.mean([value["auc"] for value in single])),
            f"{prefix}least_auc": min(value["auc"] for value in single),
            f"{prefix}best_accuracy": max(value["accuracy"] for value in single),
            f"{prefix}median_accuracy": float(np.median([value["accuracy"] for value in single])),
        }


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
        value["backbones"] = {"plain": BACKBONES["plain"]}
        # The features know the real faces of training by heart (recall 0.99, of unseen people
        # 0.42): a weaker head, chosen on seeds 101 and 102, leaves the threshold where it holds.
        value["head_inverse_penalty"] = 1e-3
        run, _ = fit(value, folder / f"run_{name}")
        yield {name: evaluate(run).metrics["plain_balanced_accuracy"]}


EXPERIMENTS = {
    "dfcon_faces": Experiment(
        "Self-blended faces of unseen people",
        members,
        (
            Target("AUC of the weakest member", "least_auc", ">=", 0.75, every=True),
            Target(
                "accuracy, mean of the members: contrastive and frozen head - cross-entropy in "
                "the same time",
                "mean_accuracy - ce_mean_accuracy",
                ">=",
                0,
            ),
            Target("the same of AUC", "mean_auc - ce_mean_auc", ">=", 0),
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
        ),
        seconds=67,
    ),
    "dfcon_unbalanced": Experiment(
        "Five fakes per real face, balanced accuracy",
        unbalanced,
        (Target("balanced batches: five to one - equal", "five_to_one - equal", ">=", -0.03),),
        seconds=45,
    ),
}

if __name__ == "__main__":
    main(EXPERIMENTS, __doc__)
