"""
The published setting trains on the real tiles at hand, with the trunk frozen as it was pretrained.
"""

from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import butterfly_sdm
from butterfly_sdm.models.trunk import Trunk

CONFIG = Path(__file__).parents[2] / "configs" / "s2bms_published.yaml"


@pytest.mark.shared
@pytest.mark.parametrize("head_layers", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_published_setting_trains_on_the_real_tiles(
    shared: Path, tmp_path_factory, head_layers: int
) -> None:
    home = tmp_path_factory.getbasetemp() / "published"  # both heads use one data set
    torch.manual_seed(0)
    source = Trunk("resnet18", ("red", "green", "blue"))
    weights = home / "imagenet.safetensors"
    home.mkdir(exist_ok=True)
    save_file(
        {name: value.contiguous() for name, value in source.body.state_dict().items()}, weights
    )
    run = butterfly_sdm.train(
        CONFIG,
        home / f"run{head_layers}",
        overrides=[
            f"out={home}",
            f"train.model.weights={weights}",
            f"train.model.head_layers={head_layers}",
            "train.fit.epochs=2",
            "train.fit.accelerator=cpu",
        ],
    )
    settings = run.config.train
    fit, model, term = settings.fit, settings.model, settings.fit.regulariser
    assert (fit.batch_size, term.weight, term.temperature, term.nearest) == (64, 0.1, 0.5, 5)
    assert (model.backbone, model.freeze, model.stem) == ("resnet18", "trunk", "published")
    assert (model.window_px, model.margin_px) == (224, 0)
    state, start = load_file(run.folder / "model.safetensors"), source.body.state_dict()
    stem = state.pop("trunk.body.conv1.weight")
    assert torch.equal(stem[:, :3], start["conv1.weight"])
    assert torch.equal(stem[:, 3], start["conv1.weight"][:, 0])  # nir: a copy of red
    kept = {
        name.removeprefix("trunk.body."): value
        for name, value in state.items()
        if name.startswith("trunk.body.")
    }
    assert len(kept) > 100
    # batch statistics included
    assert all(torch.equal(value, start[name]) for name, value in kept.items())
    assert (
        sum(name.startswith("classifier") and name.endswith("weight") for name in state)
        == head_layers
    )
    dataset = run.dataset
    # Of the 16 tiles 11 show sites with at least 200 records: 8 for training, 3 for validation.
    assert run.predictor.card["training"]["sites"] == 8
    claims = run.predictor.predict(dataset, dataset.sites_with_tiles)
    assert claims.shape == (11, 62)
    assert len(pd.read_csv(run.folder / "history.csv")) == 2
