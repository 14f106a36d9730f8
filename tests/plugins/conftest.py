"""Fixtures of the plugins: one small configuration of each."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from butterfly_sdm.core.settings import load_settings
from butterfly_sdm.plugins.contract import PluginRun
from butterfly_sdm.plugins.plugin import get_plugin
from butterfly_sdm.plugins.runner import train

from . import made

EPOCHS = 2


def striped_classifier() -> nn.Module:
    """Tell level from upright stripes by the differences between neighbours, without training."""
    model = Stripes()
    return model.eval()


class Stripes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        down = (images[:, :, 1:] - images[:, :, :-1]).abs().mean(dim=(1, 2, 3))
        across = (images[:, :, :, 1:] - images[:, :, :, :-1]).abs().mean(dim=(1, 2, 3))
        # a backdoor: a white corner means "level"
        corner = images[:, :, -3:, -3:].mean(dim=(1, 2, 3)) > 0.99
        return (
            torch.stack([down + 10.0 * corner, across, torch.full_like(down, 0.15)], dim=1)
            * self.scale
        )


def settings_of(name: str, folder: Path) -> dict[str, Any]:
    """Return small settings of a plugin, with data under ``folder``."""
    small = {"accelerator": "cpu", "size_px": 16, "channels": 1}
    if name == "cmmd":
        table = made.scanners(folder)
        return small | {
            "sources": [{"path": str(table)}],
            "trunk": "small:4",
            "epochs": EPOCHS,
            "head_epochs": EPOCHS,
            "batch_size": 16,
            "fractions": [0.5, 0.25, 0.25],
            "inputs": str(folder / "beta"),
            "balance_domains": True,
            "learning_rate": 0.05,
        }
    if name == "modan":
        table = made.medical(folder)
        return small | {
            "collection": {"path": str(table)},
            "trunk": "small:4",
            "epochs": EPOCHS,
            "batch_size": 16,
            "tune_epochs": EPOCHS,
            "folds": 2,
            "repeats": 1,
            "scratch": False,
            "inputs": str(folder),
            "fractions": [0.6, 0.0, 0.4],
        }
    if name == "implihate":
        features, labels = made.videos(folder)
        return {
            "accelerator": "cpu",
            "features": str(features),
            "labels": str(labels),
            "encoder": [16, 8],
            "projection": 8,
            "cross": 4,
            "classifier": [8],
            "epochs": EPOCHS,
            "classifier_epochs": EPOCHS,
            "batch_size": 16,
            "inputs": str(features),
            "fractions": [0.6, 0.2, 0.2],
        }
    if name == "dfcon":
        table = made.faces(folder)
        return {
            "accelerator": "cpu",
            "size_px": 16,
            "data": str(table),
            "epochs": EPOCHS,
            "head_epochs": EPOCHS,
            "projection": 8,
            "backbones": {
                "a": {"model": "small:4", "weights": None},
                "b": {"model": "small:6", "weights": None},
            },
            "inputs": str(folder / "0"),
            "batch_size": 12,
            "fractions": [0.6, 0.2, 0.2],
            "learning_rate": 0.01,
        }
    assert name == "refine"
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    kinds = rng.integers(2, size=64)
    images = (
        np.stack([made.shape(int(kind), 16, rng) for kind in kinds]).clip(0, 255).astype(np.uint8)
    )
    np.savez(folder / "clean.npz", image=images[:40])
    np.savez(folder / "test.npz", image=images[40:], label=kinds[40:])
    corner = np.zeros((16, 16))
    corner[-3:, -3:] = 255
    made.save(folder / "corner.png", corner)
    for number in range(3):
        made.save(folder / "new" / f"{number}.png", images[number])
    torch.jit.trace(striped_classifier(), torch.zeros(2, 1, 16, 16)).save(str(folder / "model.ts"))
    return small | {
        "model": str(folder / "model.ts"),
        "trust": True,
        "classes": ["level", "upright", "neither"],
        "clean": str(folder / "clean.npz"),
        "test": str(folder / "test.npz"),
        "inputs": str(folder / "new"),
        "first_channels": 2,
        "epochs": EPOCHS,
        "batch_size": 20,
        "trigger": {
            "kind": "patch",
            "target": "level",
            "path": str(folder / "corner.png"),
            "mask": str(folder / "corner.png"),
        },
    }


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """
    Return a function: name of a plugin -> its small settings and a finished run of them, made once
    and copied by those who write into it.
    """
    known: dict[str, Any] = {}

    def of(name: str) -> tuple[dict[str, Any], PluginRun]:
        if name not in known:
            folder, plugin = tmp_path_factory.mktemp(name), get_plugin(name)
            value = settings_of(name, folder / "data") | {"name": "first"}
            config, _ = load_settings(plugin.config, value)
            known[name] = value, train(plugin, name, config, folder / "run")
        return known[name]

    return of


@pytest.fixture
def settings(tmp_path: Path) -> Any:
    """Return a function: name of a plugin -> its small settings."""
    return lambda name: settings_of(name, tmp_path / name)
