"""Tell classes of points apart: the smallest plugin that uses the contrastive loss."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from butterfly_sdm.core.settings import InputPath
from butterfly_sdm.losses.contrastive import ContrastiveLoss
from butterfly_sdm.losses.pairs import same_class
from butterfly_sdm.plugins.networks import unit
from butterfly_sdm.plugins.plugin import Plugin, PluginConfig, Report
from butterfly_sdm.plugins.row_batches import shuffled
from butterfly_sdm.plugins.stages import Stage


class ExampleConfig(PluginConfig):
    """Settings."""

    table: InputPath
    epochs: int = 3


@dataclass(frozen=True)
class Points:
    """Points (n, 2) and their class."""

    xy: torch.Tensor
    label: torch.Tensor
    facts: dict[str, Any]


class Example(Plugin[ExampleConfig, Points]):
    """A linear embedding, then the nearest class mean."""

    config = ExampleConfig

    def load(self, config: ExampleConfig) -> Points:
        """Read a table of x, y, label."""
        table = pd.read_csv(config.table)
        xy = torch.tensor(table[["x", "y"]].to_numpy(), dtype=torch.float32)
        return Points(
            xy, torch.tensor(table["label"].to_numpy()), {"classes": int(table["label"].max()) + 1}
        )

    def build(self, config: ExampleConfig, facts: dict[str, Any], part: str) -> nn.Module:
        """Make an embedding and a classifier."""
        return nn.ModuleDict({"embed": nn.Linear(2, 4), "head": nn.Linear(4, facts["classes"])})

    def stages(
        self, config: ExampleConfig, data: Points, model: nn.Module, part: str
    ) -> list[Stage]:
        """Contrast, then classify."""
        criterion = ContrastiveLoss(0.5, without_positives="zero")

        def batches(model: Any, rng: Any) -> Any:
            for rows in shuffled(torch.arange(len(data.xy)).numpy(), 16, rng):
                yield {"xy": data.xy[rows], "label": data.label[rows]}

        def contrast(model: Any, batch: Any) -> torch.Tensor:
            noisy = batch["xy"] + 0.01 * torch.randn_like(batch["xy"])
            return criterion(unit(model["embed"](noisy)), same_class(batch["label"]))

        def classify(model: Any, batch: Any) -> torch.Tensor:
            return nn.functional.cross_entropy(
                model["head"](unit(model["embed"](batch["xy"]))), batch["label"]
            )

        adam = partial(torch.optim.Adam, lr=0.05)
        return [
            Stage("contrast", batches, contrast, adam, config.epochs, ("embed",)),
            Stage("classify", batches, classify, adam, config.epochs, ("head",)),
        ]

    def evaluate(self, config: ExampleConfig, data: Points, run: Any) -> Report:
        """Return the accuracy."""
        return Report(
            {
                "accuracy": float(
                    (self._logits(run, data.xy).argmax(dim=1) == data.label).float().mean()
                )
            }
        )

    def predict(self, config: ExampleConfig, run: Any, inputs: Path) -> pd.DataFrame:
        """Predict a table of x and y."""
        table = pd.read_csv(inputs)
        xy = torch.tensor(table[["x", "y"]].to_numpy(), dtype=torch.float32)
        return table.assign(predicted=self._logits(run, xy).argmax(dim=1).numpy())

    def _logits(self, run: Any, xy: torch.Tensor) -> torch.Tensor:
        model = run.model().cpu()
        with torch.no_grad():
            return model["head"](unit(model["embed"](xy)))
