"""
Pretrain by shared attributes: digits of three scanners, six labels per task; mammograms.

python benchmarks/plugins/modan.py [--seeds 5] [--only modan_digits|modan_dense|modan_finding]
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from experiment import Experiment, Measures, Target, main, shared, write_images, write_mammograms
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from butterfly_sdm.core.settings import load_settings
from butterfly_sdm.plugins.contract import PluginRun
from butterfly_sdm.plugins.images import Images
from butterfly_sdm.plugins.modan.method import (
    Modan,
    ModanConfig,
    Task,
    fine_tune,
    linear_probe,
    shared_cosines,
)
from butterfly_sdm.plugins.networks import TrunkAndHead, device_of, over_images, unit
from butterfly_sdm.plugins.runner import train

SETTINGS = {
    "size_px": 16,
    "trunk": "small:8",
    "epochs": 20,  # what five seeds can be paid for
    "flip": False,
    "crop": 0.5,
    "tune_epochs": 20,
    "tune_step": 15,
    "tune_learning_rate": 1e-3,
    "validation_share": 0.0,
}


def scanners(folder: Path) -> tuple[list[str], pd.DataFrame]:
    """
    Write digits of MNIST, USPS and optdigits; the scanner is the modality, the pair of digits the
    anatomy.
    """
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
        table = pd.DataFrame(
            {"path": names, "modality": modality, "anatomy": np.asarray(digits) // 2}
        )
        rows.append(table.assign(which=np.asarray(digits) % 2))
    table = pd.concat(rows, ignore_index=True)
    return table["path"].tolist(), table


def pretrained(
    table: pd.DataFrame,
    folder: Path,
    objective: str,
    seed: int,
    settings: dict,
) -> tuple[ModanConfig, PluginRun]:
    """Pretrain by one objective."""
    path = folder / f"table_{seed}.csv"
    table.drop(columns="which").to_csv(path, index=False)
    value = settings | {
        "collection": {"path": str(path.resolve())},
        "objective": objective,
        "seed": seed,
    }
    config, _ = load_settings(Modan.config, value)
    run = train(Modan(), "modan", config, folder / f"{objective}_{seed}")
    return config, run


def compare(
    table: pd.DataFrame,
    rows: np.ndarray,
    per_class: int,
    images: Images,
    encoders: dict[str, TrunkAndHead],
    config: ModanConfig,
    part: str,
    rng: np.random.Generator,
) -> Measures:
    """
    Return the AUC of one task from ``per_class`` labels per class: fine-tuned and probed, of every
    encoder and of none.
    """
    which, train = table["which"].to_numpy(dtype=np.int64), (table["split"] == "train").to_numpy()
    chosen = np.concatenate(
        [
            rng.permutation(rows[train[rows] & (which[rows] == value)])[:per_class]
            for value in (0, 1)
        ]
    )
    test = rows[~train[rows]]
    task = Task(images, table, which, {}, np.arange(len(table)).astype(str))
    config = config.model_copy(update={"accelerator": "cpu"})  # six images at a time
    fresh = Modan().network(config, {"classes": ["0", "1"]}, f"task {part}").task
    found = {}
    for kind, encoder in {"scratch": None, **encoders}.items():
        tuned = fine_tune(config, task, chosen, test, fresh, encoder, part=part)
        probe = linear_probe(task, chosen, test, fresh.eval() if encoder is None else encoder)
        found[f"{kind}_tuned"] = float(roc_auc_score(which[test], tuned[:, 1]))
        found[f"{kind}_probe"] = float(roc_auc_score(which[test], probe[:, 1]))
    return found


def digits(folder: Path, seed: int) -> Iterator[Measures]:
    """
    Fine-tune 15 tasks from six labelled images each: from scratch, after SimCLR, after Jaccard
    pretraining.
    """
    names, table = scanners(folder)
    rng = np.random.default_rng(seed)
    table["split"] = np.where(rng.random(len(table)) < 0.6, "train", "test")
    runs = {
        objective: pretrained(table, folder, objective, seed, SETTINGS)
        for objective in ("jaccard", "simclr")
    }
    images = Images([folder / name for name in names], 16, 1)
    encoders = {name: run.model().encoder for name, (_, run) in runs.items()}
    held_out = np.flatnonzero(table["split"] == "test")
    columns = [
        *pd.get_dummies(table["modality"]).to_numpy().T,
        *pd.get_dummies(table["anatomy"]).to_numpy().T,
    ]
    labels = torch.from_numpy(np.stack(columns, axis=1)[held_out].astype(np.float32))
    z = unit(
        over_images(encoders["jaccard"].features, images, held_out, device_of(encoders["jaccard"]))
    )
    yield shared_cosines(z, labels)
    tasks = [
        compare(
            table,
            np.asarray(rows),
            3,
            images,
            encoders,
            runs["jaccard"][0],
            f"{modality} {anatomy}",
            rng,
        )
        for (modality, anatomy), rows in table.groupby(["modality", "anatomy"]).groups.items()
    ]
    yield pd.DataFrame(tasks).mean().to_dict()


# Of each target what is asked, and the attributes that pretraining is told. They vary within the
# target set; the side was tried on seed 100 and led away from tissue (AUC 0.57 beside 0.71 from
# scratch), for it is told by where the breast lies.
TARGETS = {
    "dense": (lambda table: table["tissue"] == "D", ("woman",)),
    "finding": (lambda table: table["finding"] == 1, ("woman", "tissue")),
}
MEDICAL = SETTINGS | {
    "size_px": 32,
    "batch_size": 64,
    "epochs": 40,
    "crop": 0.6,
    "jitter": 0.2,
    "flip": True,  # or the two breasts of a woman would never look alike
    "temperature": 0.2,
    "learning_rate": 0.05,
}
DRAWS = 4  # of labels, per seed: fine-tuning costs little beside pretraining


def medical(folder: Path, seed: int, *, name: str) -> Iterator[Measures]:
    """
    Pretrain on mammograms by attributes that vary within the target set; fine-tune from ten labels
    per class, on women whom neither step has seen.
    """
    positive, attributes = TARGETS[name]
    table = write_mammograms(folder)  # woman and tissue are known without any diagnosis
    table["woman"] = [f"woman {number}" for number in table["woman"]]
    table["which"] = positive(table).astype(int)
    rng = np.random.default_rng(seed)
    women = table["woman"].unique()
    train = set(rng.permutation(women)[: round(0.6 * len(women))])
    table["split"] = np.where(table["woman"].isin(train), "train", "test")
    settings = MEDICAL | {"attributes": attributes}
    config, run = pretrained(table, folder, "jaccard", seed, settings)
    encoders = {"jaccard": run.model().encoder}
    images = Images([folder / path for path in table["path"]], MEDICAL["size_px"], 1)
    rows = np.arange(len(table))
    found = [
        compare(table, rows, 10, images, encoders, config, f"{name} {draw}", rng)
        for draw in range(DRAWS)
    ]
    yield pd.DataFrame(found).mean().to_dict()


def gain(told: str, how: str) -> Target:
    expression = f"jaccard_{how} - scratch_{how}"
    return Target(f"{told}: Jaccard - scratch", expression, ">", 0, surely=True)


EXPERIMENTS = {
    "modan_digits": Experiment(
        "Digits of three scanners, 15 tasks of six labels (AUC)",
        digits,
        (
            Target("fine-tuned: Jaccard - scratch", "jaccard_tuned - scratch_tuned", ">=", 0.02),
            Target("fine-tuned: Jaccard - SimCLR", "jaccard_tuned - simclr_tuned", ">", 0),
            Target(
                "mean cosine: both shared - one", "cosine_shared_2 - cosine_shared_1", ">=", 0.1
            ),
            Target(
                "mean cosine: one shared - none", "cosine_shared_1 - cosine_shared_0", ">=", 0.1
            ),
        ),
        seconds=75,
        gpu=True,
    ),
    **{
        f"modan_{name}": Experiment(
            f"Mammograms of unseen women, {asked}, ten labels per class (AUC)",
            partial(medical, name=name),
            (gain("fine-tuned", "tuned"), gain("probe", "probe")),
            seconds=25,
        )
        for name, asked in (("dense", "dense tissue or not"), ("finding", "a finding or none"))
    },
}

if __name__ == "__main__":
    main(EXPERIMENTS, __doc__)
