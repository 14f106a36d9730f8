"""
Tell real faces from self-blended fakes: three small backbones, their votes, and cross-entropy beside.

python benchmarks/plugins/dfcon.py [--seeds 5] [--only faces|unbalanced]
"""

from pathlib import Path

import numpy as np
import pandas as pd
from experiment import arguments, repeat, report, shared, write_images

from butterfly_sdm.plugins.dfcon.blending import self_blend
from butterfly_sdm.plugins.dfcon.method import Dfcon
from butterfly_sdm.plugins.runner import evaluate, train
from butterfly_sdm.settings import load_settings

BACKBONES = {
    "maxvit": "maxvit_rmlp_pico_rw_256",
    "coatnet": "coatnet_pico_rw_224",
    "eva02": "eva02_tiny_patch14_224",
}


def faces(folder: Path, seed: int, ratio: int = 1) -> Path:
    """Write real faces and self-blended fakes, split by person; ``ratio`` fakes per real face in training."""
    data = np.load(shared() / "orl_faces_92x112.npz", allow_pickle=False)
    rng = np.random.default_rng(seed)
    people = rng.permutation(np.unique(data["person"]))
    part_of = {person: "train" if place < 28 else "test" for place, person in enumerate(people)}
    rows = []
    for row, (image, person) in enumerate(zip(data["image"], data["person"], strict=True)):
        part = part_of[person]
        made = [("real", image)] + [("fake", self_blend(image, rng)) for _ in range(ratio if part == "train" else 1)]
        for number, (label, pixels) in enumerate(made):
            name = f"{seed}_{ratio}/{row:03d}_{number}.png"
            write_images(folder, pixels[None], [name])
            rows.append({"path": name, "label": label, "group": str(person), "split": part})
    path = folder / f"faces_{seed}_{ratio}.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def settings(table: Path, seed: int) -> dict:
    backbones = {name: {"model": model, "weights": None} for name, model in BACKBONES.items()}
    return {
        "data": str(table.resolve()),
        "size_px": 64,
        "channels": 1,
        "backbones": backbones,
        "epochs": 40,
        "batch_size": 64,
        "learning_rate": 3e-4,
        "seed": seed,
    }


def once(folder: Path, seed: int) -> dict[str, float]:
    """Compare the members, the votes and cross-entropy."""
    found = {}
    for name, changes in {"": {}, "ce_": {"objective": "cross_entropy"}}.items():
        config, _ = load_settings(Dfcon.config, settings(faces(folder, seed), seed) | changes)
        metrics = evaluate(train(Dfcon(), "dfcon", config, folder / f"run_{name}{seed}")).metrics
        found |= {f"{name}{key}": value for key, value in metrics.items() if key.endswith(("accuracy", "auc"))}
    accuracy = [found[f"{name}_accuracy"] for name in BACKBONES]
    found |= {"best_accuracy": max(accuracy), "median_accuracy": float(np.median(accuracy))}
    found["least_auc"] = min(found[f"{name}_auc"] for name in BACKBONES)
    found["contrastive_gain"] = float(np.mean([found[f"{n}_accuracy"] - found[f"ce_{n}_accuracy"] for n in BACKBONES]))
    return found


def unbalanced(folder: Path, seed: int) -> dict[str, float]:
    """Train one backbone with 5 fakes per real face, with and without balanced batches."""
    found = {}
    for name, ratio in (("balanced", 1), ("five_to_one", 5)):
        value = settings(faces(folder, seed, ratio), seed) | {"epochs": 40 if ratio == 1 else 13}  # as many steps
        value["backbones"] = {"coatnet": value["backbones"]["coatnet"]}
        config, _ = load_settings(Dfcon.config, value)
        metrics = evaluate(train(Dfcon(), "dfcon", config, folder / f"ratio_{ratio}_{seed}")).metrics
        found[name] = metrics["coatnet_balanced_accuracy"]
    return found


if __name__ == "__main__":
    options = arguments(__doc__)
    folder = options.out / "dfcon"
    if options.only in (None, "faces"):
        report(
            "Self-blended faces of unseen people",
            repeat("dfcon_faces", options.seeds, lambda seed: once(folder, seed), options.out),
            {
                "AUC of every backbone >= 0.80": ("least_auc", lambda t: (t.least_auc >= 0.8).all()),
                "mean probability - best single >= -0.01": (
                    "soft_vote_accuracy - best_accuracy",
                    lambda t: (t.soft_vote_accuracy - t.best_accuracy).mean() >= -0.01,
                ),
                "mean probability - median single >= 0": (
                    "soft_vote_accuracy - median_accuracy",
                    lambda t: (t.soft_vote_accuracy - t.median_accuracy).mean() >= 0,
                ),
                "contrastive and frozen head - cross-entropy >= -0.01": (
                    "contrastive_gain",
                    lambda t: t.contrastive_gain.mean() >= -0.01,
                ),
            },
        )
    if options.only in (None, "unbalanced"):
        report(
            "Five fakes per real face",
            repeat("dfcon_unbalanced", options.seeds, lambda seed: unbalanced(folder, seed), options.out),
            {
                "balanced accuracy within 0.03": (
                    "five_to_one - balanced",
                    lambda t: (t.five_to_one - t.balanced).mean() >= -0.03,
                )
            },
        )
