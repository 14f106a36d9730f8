"""Stages train what they say, leave the rest bit for bit, and continue as if never interrupted."""

from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from butterfly_sdm.errors import ModelError
from butterfly_sdm.plugins import stages
from butterfly_sdm.plugins.options import PluginConfig
from butterfly_sdm.plugins.stages import Limits, Stage, seed_of, train_stages

CONFIG = PluginConfig(accelerator="cpu")


def _model():
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "trunk": nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)),
            "head": nn.Linear(8, 1),
        }
    )


def _batches(model, rng):
    for _ in range(3):
        yield {"x": torch.from_numpy(rng.normal(size=(8, 3)).astype(np.float32))}


def _loss(model, batch):
    noisy = batch["x"] + torch.randn_like(batch["x"])
    return (
        (model["head"](model["trunk"](noisy)) - batch["x"].sum(dim=1, keepdim=True)).square().mean()
    )


ADAM = partial(torch.optim.Adam, lr=0.01)


def _stages(optimizer=ADAM, **last):
    return [
        Stage("both", _batches, _loss, optimizer, 3, rate=lambda epoch: 0.5**epoch),
        Stage("head", _batches, _loss, optimizer, 3, ("head",), **last),
    ]


class _Stop(Exception):
    pass


@pytest.mark.parametrize(
    "optimizer",
    [partial(torch.optim.Adam, lr=0.01), partial(torch.optim.SGD, lr=0.01, momentum=0.9)],
)
@pytest.mark.parametrize("after", [1, 3, 4, 6])
@pytest.mark.parametrize(
    "share", [float("inf"), 1e-9]
)  # a checkpoint after every epoch, or as seldom as may be
def test_training_interrupted_anywhere_continues_to_the_same_weights(
    optimizer, after, share, tmp_path, monkeypatch
):
    monkeypatch.setattr(stages, "_WRITING_SHARE", share)
    whole = _model()
    rows = train_stages(whole, _stages(optimizer), CONFIG)
    calls = []

    def stop(task, done, total):
        calls.append(task)
        if len(calls) == after:
            raise _Stop

    checkpoint = tmp_path / "c.safetensors"
    with pytest.raises(_Stop):
        train_stages(_model(), _stages(optimizer), CONFIG, checkpoint=checkpoint, progress=stop)
    torch.manual_seed(999)  # what was drawn in between does not matter
    resumed = _model()
    assert train_stages(resumed, _stages(optimizer), CONFIG, checkpoint=checkpoint) == rows
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_what_does_not_train_stays_bit_for_bit():
    model = _model()
    before = {}

    def remember(model):
        before.update({name: value.clone() for name, value in model["trunk"].state_dict().items()})

    train_stages(model, _stages(start=remember), CONFIG)
    assert all(
        torch.equal(before[name], value) for name, value in model["trunk"].state_dict().items()
    )


def test_the_best_epoch_is_kept_also_across_an_interruption(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "_WRITING_SHARE", float("inf"))
    seen = []

    def measure(model):
        seen.append(model["head"].weight.detach().clone())
        return {"score": [0.1, 0.9, 0.2][(len(seen) - 1) % 3]}

    model = _model()
    train_stages(model, _stages(measure=measure, select="score"), CONFIG)
    assert torch.equal(model["head"].weight.detach(), seen[1])

    def stop(task, done, total):
        if task.endswith("head") and done == 2:
            raise _Stop

    with pytest.raises(_Stop):
        train_stages(
            _model(),
            _stages(measure=measure, select="score"),
            CONFIG,
            checkpoint=tmp_path / "c",
            progress=stop,
        )
    resumed = _model()
    train_stages(
        resumed, _stages(measure=measure, select="score"), CONFIG, checkpoint=tmp_path / "c"
    )
    assert torch.equal(resumed["head"].weight.detach(), seen[1])


def test_a_checkpoint_is_plain_safetensors(tmp_path):
    path = tmp_path / "c.safetensors"
    train_stages(_model(), _stages(), CONFIG, checkpoint=path, limits=Limits(epochs=1, steps=1))
    assert any(name.startswith("model.") for name in load_file(path))


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(
    "harm",
    [
        lambda content: b"no checkpoint",
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        *(
            lambda content, back=back: (
                content[:-back] + bytes([content[-back] ^ 1]) + content[len(content) - back + 1 :]
            )
            for back in (1, 2, 40)
        ),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    tmp_path, monkeypatch, harm, both, caplog
):
    monkeypatch.setattr(stages, "_WRITING_SHARE", float("inf"))
    whole, path = _model(), tmp_path / "c.safetensors"
    rows = train_stages(whole, _stages(), CONFIG)
    told = []

    def stop(task, done, total):
        told.append(task)
        if len(told) == 3:
            raise _Stop

    with pytest.raises(_Stop):
        train_stages(_model(), _stages(), CONFIG, checkpoint=path, progress=stop)
    for file in (path, stages.previous(path))[: 1 + both]:
        file.write_bytes(harm(file.read_bytes()))
    resumed, told = _model(), []
    again = train_stages(
        resumed, _stages(), CONFIG, checkpoint=path, progress=lambda *at: told.append(at)
    )
    assert again == rows and len(told) == len(rows) - (0 if both else 2)
    assert caplog.text.count("was damaged since it was written") == 1 + both
    for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_loss_that_is_not_finite_stops_with_advice():
    stage = Stage(
        "wild",
        _batches,
        lambda model, batch: _loss(model, batch) * float("inf"),
        partial(torch.optim.SGD, lr=1.0),
        1,
    )
    with pytest.raises(
        ModelError, match=r"stage 'wild' became inf in step 1\. Lower the learning rate"
    ):
        train_stages(_model(), [stage], CONFIG)


def test_a_stage_without_batches_is_an_error():
    stage = Stage("empty", lambda model, rng: [], _loss, partial(torch.optim.SGD, lr=1.0), 1)
    with pytest.raises(ModelError, match="'empty' had no batch"):
        train_stages(_model(), [stage], CONFIG)


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_stages(_model().eval(), _stages(), CONFIG, limits=Limits(epochs=1))
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), expected)
    assert seed_of(1, "a") != seed_of(1, "b")
