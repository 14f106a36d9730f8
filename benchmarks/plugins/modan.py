"""
Pretrain by shared attributes: digits of three scanners, six labels per task; chest X-rays and breast ultrasound.

python benchmarks/plugins/modan.py [--seeds 5] [--only digits|medical]
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from experiment import arguments, repeat, report, shared, write_images
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from butterfly_sdm.plugins.images import Images
from butterfly_sdm.plugins.modan.method import Modan, Task, fine_tune, linear_probe, shared_cosines
from butterfly_sdm.plugins.networks import over_images, unit
from butterfly_sdm.plugins.runner import build, train
from butterfly_sdm.settings import load_settings

SETTINGS = {
    "size_px": 16,
    "trunk": "small:8",
    "epochs": 20,
    "flip": False,
    "crop": 0.5,
    "tune_epochs": 20,
    "tune_step": 15,
    "tune_learning_rate": 1e-3,
    "validation_share": 0.0,
}


def scanners(folder: Path) -> tuple[list[str], pd.DataFrame]:
    """Write digits of MNIST, USPS and optdigits; the scanner is the modality, the pair of digits the anatomy."""
    data = np.load(shared() / "mnist_usps_16px.npz", allow_pickle=False)
    small = load_digits()
    optdigits = np.kron(small.images / 16.0, np.ones((2, 2)))
    rows = []
    for modality, images, digits in (
        ("mnist", data["mnist"], data["mnist_label"]),
        ("usps", data["usps"], data["usps_label"]),
        ("optdigits", optdigits, small.target),
    ):
        names = [f"{modality}/{row:04d}.png" for row in range(len(images))]
        write_images(folder, np.asarray(images), names)
        table = pd.DataFrame({"path": names, "modality": modality, "anatomy": np.asarray(digits) // 2})
        rows.append(table.assign(which=np.asarray(digits) % 2))
    table = pd.concat(rows, ignore_index=True)
    return table["path"].tolist(), table


def pretrained(table: pd.DataFrame, folder: Path, objective: str, seed: int, settings: dict) -> tuple:
    path = folder / f"table_{seed}.csv"
    table.drop(columns="which").to_csv(path, index=False)
    value = settings | {"collection": {"path": str(path.resolve())}, "objective": objective, "seed": seed}
    config, _ = load_settings(Modan.config, value)
    run = train(Modan(), "modan", config, folder / f"{objective}_{seed}")
    return config, run


def digits(folder: Path, seed: int) -> dict[str, float]:
    """Fine-tune 15 tasks from six labelled images each: from scratch, after SimCLR, after Jaccard pretraining."""
    names, table = scanners(folder)
    rng = np.random.default_rng(seed)
    split = np.where(rng.random(len(table)) < 0.6, "train", "test")
    table["split"] = split
    runs = {objective: pretrained(table, folder, objective, seed, SETTINGS) for objective in ("jaccard", "simclr")}
    config = runs["jaccard"][0]
    images = Images([folder / name for name in names], 16, 1)
    encoders = {name: run.model().encoder for name, (_, run) in runs.items()}
    scores: dict[str, list[float]] = {}
    for (modality, anatomy), rows in table.groupby(["modality", "anatomy"]).groups.items():
        rows = np.asarray(rows)
        which = table["which"].to_numpy()
        inside = rows[split[rows] == "train"]
        chosen = np.concatenate([rng.permutation(inside[which[inside] == value])[:3] for value in (0, 1)])
        test = rows[split[rows] == "test"]
        task = Task(images, table, which.astype(np.int64), np.arange(len(table)).astype(str))
        fresh = build(Modan(), config, {"classes": ["0", "1"]}, f"task {modality} {anatomy}").task
        for kind, encoder in (("scratch", None), *encoders.items()):
            probability = fine_tune(config, task, chosen, test, fresh, encoder, part=f"{modality} {anatomy}")
            scores.setdefault(f"{kind}_tuned", []).append(roc_auc_score(which[test], probability[:, 1]))
            if encoder is not None:
                probe = linear_probe(task, chosen, test, encoder)
                scores.setdefault(f"{kind}_probe", []).append(roc_auc_score(which[test], probe[:, 1]))
    task = Task(images, table, which.astype(np.int64), np.arange(len(table)).astype(str))
    held_out = np.flatnonzero(split == "test")
    z = unit(over_images(encoders["jaccard"].features, images, held_out, torch.device("cpu")))
    columns = [*pd.get_dummies(table["modality"]).to_numpy().T, *pd.get_dummies(table["anatomy"]).to_numpy().T]
    labels = torch.from_numpy(np.stack(columns, axis=1)[held_out].astype(np.float32))
    return {name: float(np.mean(values)) for name, values in scores.items()} | shared_cosines(z, labels)


def medical(folder: Path, seed: int) -> dict[str, float]:
    """Pretrain on chest X-rays and breast ultrasound together; fine-tune each from 20 labelled images per class."""
    xray = np.load(shared() / "pneumonia_xray_28px.npz", allow_pickle=False)
    sound = np.load(shared() / "breast_ultrasound_128px.npz", allow_pickle=False)
    keep = sound["label"] != "normal"
    rng = np.random.default_rng(0)
    first = rng.permutation(len(xray["train_images"]))[:1200]
    sets = {
        "XR": (xray["train_images"][first], xray["train_labels"][first, 0] > 0, "chest"),
        "US": (sound["image"][keep], sound["label"][keep] == "malignant", "breast"),
    }
    rows = []
    for modality, (images, positive, anatomy) in sets.items():
        names = [f"{modality}/{row:04d}.png" for row in range(len(images))]
        write_images(folder, images, names)
        table = pd.DataFrame({"path": names, "modality": modality, "anatomy": anatomy, "which": positive.astype(int)})
        rows.append(table)
    table = pd.concat(rows, ignore_index=True)
    rng = np.random.default_rng(seed)
    split = np.where(rng.random(len(table)) < 0.6, "train", "test")
    table["split"] = split
    settings = SETTINGS | {"size_px": 32, "flip": True, "epochs": 15}
    config, run = pretrained(table, folder, "jaccard", seed, settings)
    encoder = run.model().encoder
    images = Images([folder / name for name in table["path"]], 32, 1)
    which = table["which"].to_numpy(dtype=np.int64)
    task = Task(images, table, which, np.arange(len(table)).astype(str))
    found = {}
    for modality in ("XR", "US"):
        rows = np.flatnonzero(table["modality"] == modality)
        inside, test = rows[split[rows] == "train"], rows[split[rows] == "test"]
        chosen = np.concatenate([rng.permutation(inside[which[inside] == value])[:20] for value in (0, 1)])
        fresh = build(Modan(), config, {"classes": ["0", "1"]}, f"task {modality}").task
        for kind, start in (("scratch", None), ("jaccard", encoder)):
            probability = fine_tune(config, task, chosen, test, fresh, start, part=modality)
            found[f"{modality}_{kind}"] = float(roc_auc_score(which[test], probability[:, 1]))
    return found


if __name__ == "__main__":
    options = arguments(__doc__)
    if options.only in (None, "digits"):
        folder = options.out / "modan_digits"
        report(
            "Digits of three scanners, 15 tasks of six labels (AUC)",
            repeat("modan_digits", options.seeds, lambda s: digits(folder, s), options.out),
            {
                "fine-tuned: Jaccard - scratch >= 0.02": (
                    "jaccard_tuned - scratch_tuned",
                    lambda t: (t.jaccard_tuned - t.scratch_tuned).mean() >= 0.02,
                ),
                "fine-tuned: Jaccard - SimCLR > 0": (
                    "jaccard_tuned - simclr_tuned",
                    lambda t: (t.jaccard_tuned - t.simclr_tuned).mean() > 0,
                ),
                "cosine: both shared - one >= 0.1": (
                    "cosine_shared_2 - cosine_shared_1",
                    lambda t: (t.cosine_shared_2 - t.cosine_shared_1).mean() >= 0.1,
                ),
                "cosine: one shared - none >= 0.1": (
                    "cosine_shared_1 - cosine_shared_0",
                    lambda t: (t.cosine_shared_1 - t.cosine_shared_0).mean() >= 0.1,
                ),
            },
        )
    if options.only in (None, "medical"):
        folder = options.out / "modan_medical"
        report(
            "Chest X-rays (pneumonia) and breast ultrasound (malignant), 20 labels per class (AUC)",
            repeat("modan_medical", options.seeds, lambda s: medical(folder, s), options.out),
            {},
        )
