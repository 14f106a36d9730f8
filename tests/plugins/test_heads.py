"""A head on frozen features is the logistic regression it says it is, on the features as given."""

import logging

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from butterfly_sdm.errors import ModelError
from butterfly_sdm.losses.contrastive import ContrastiveLoss
from butterfly_sdm.losses.pairs import same_class
from butterfly_sdm.plugins.heads import fit_linear, frozen_head
from butterfly_sdm.plugins.options import PluginConfig, later
from butterfly_sdm.plugins.stages import Stage, train_stages

CONFIG = PluginConfig(accelerator="cpu")


def _features(classes, rng):
    label = rng.integers(classes, size=120)
    spread = np.array([1e-3, 1.0, 50.0, 1.0, 0.0])  # as features are: of any size, some constant
    return (rng.normal(size=(120, 5)) + 0.8 * label[:, None]) * spread + 7, label


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("balanced", [False, True])
def test_the_head_is_the_logistic_regression_of_scikit_learn(classes, balanced):
    features, label = _features(classes, np.random.default_rng(0))
    weight, bias, _ = fit_linear(features, label, classes, balanced=balanced)
    beside = make_pipeline(
        StandardScaler(),
        LogisticRegression(class_weight="balanced" if balanced else None, tol=1e-8, max_iter=9999),
    ).fit(features, label)
    found = softmax(features @ weight.T + bias, axis=1)
    np.testing.assert_allclose(found, beside.predict_proba(features), atol=1e-4)


def test_the_head_has_converged():
    features, label = _features(3, np.random.default_rng(1))
    weight, bias, loss = fit_linear(features, label, 3, inverse_penalty=0.5)
    spread = np.where(features.std(axis=0) > 0, features.std(axis=0), 1)
    standard = (features - features.mean(axis=0)) / spread
    logits = features @ weight.T + bias
    # the gradient of 0.5 * sum of losses + |w|^2 / 2, by hand, with w of standardised features
    residual = softmax(logits, axis=1) - np.eye(3)[label]
    gradient = 0.5 * residual.T @ standard + weight * spread
    assert np.abs(gradient).max() < 1e-3
    assert loss == pytest.approx(-log_softmax(logits, axis=1)[range(120), label].mean(), rel=1e-6)


def test_a_class_without_rows_is_never_predicted_and_one_class_is_refused():
    features, label = _features(2, np.random.default_rng(2))
    weight, bias, _ = fit_linear(features, label * 2, 4)
    assert softmax(features @ weight.T + bias, axis=1)[:, [1, 3]].max() == 0
    with pytest.raises(ModelError, match="All 120 labelled training rows are of class 1; a head"):
        fit_linear(features, np.ones(120, int), 2)


class _Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.head = nn.Linear(5, 5), nn.Linear(5, 2)


class _Config(PluginConfig):
    head: str = later("converged", "")
    head_inverse_penalty: float = later(1.0, "")
    head_learning_rate: float = 0.05
    head_epochs: int = 60
    batch_size: int = 40


@pytest.mark.parametrize(("head", "epochs"), [("converged", 1), ("adam", 60)])
def test_a_frozen_head_moves_nothing_but_the_head(head, epochs):
    features, label = _features(2, np.random.default_rng(3))
    torch.manual_seed(0)
    model = _Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = torch.from_numpy((features - features.mean(axis=0)) / (features.std(axis=0) + 1e-9))
    stage = frozen_head(
        "head", lambda net: net.trunk(inputs.float()), label, _Config(head=head), scale=3.0
    )
    rows = train_stages(model, [stage], CONFIG)
    assert len(rows) == epochs and rows[-1]["loss"] < 0.55
    moved = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert moved == {"head.weight", "head.bias"}
    with torch.no_grad():
        decided = model.head(model.trunk(inputs.float()) * 3.0).argmax(dim=1).numpy()
    assert (decided == label).mean() > 0.7


def test_a_setting_that_is_new_leaves_the_key_alone_while_unset():
    assert "head" not in _Config().model_dump() and _Config(head="adam").model_dump()["head"]


@pytest.mark.parametrize("moves", [False, True])
def test_an_embedding_that_collapsed_is_told(moves, caplog):
    label = torch.arange(6) % 2
    criterion, weights = ContrastiveLoss(0.1), same_class(label)
    learned = nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    learned = learned + 3 * nn.functional.one_hot(label, 4)

    def loss(module, batch):
        z = learned if moves else torch.ones(6, 4)
        return criterion(nn.functional.normalize(z), weights) + 0 * module.head.weight.sum()

    stage = Stage(
        "representation",
        lambda module, rng: [{"label": label}],
        loss,
        lambda weights: torch.optim.SGD(weights, lr=0.1),
        5,
        collapsed=lambda batch: criterion.collapsed(same_class(batch["label"])),
    )
    with caplog.at_level(logging.WARNING, "butterfly_sdm.plugins"):
        rows = train_stages(_Net(), [stage], CONFIG)
    over = [row["loss_over_collapsed"] for row in rows]
    if moves:
        assert max(over) < -0.5 and not caplog.records
    else:
        assert rows[0]["loss"] == pytest.approx(np.log(5)) and np.allclose(over, 0, atol=1e-5)
        told = [record.getMessage() for record in caplog.records]
        assert [text.split()[2] for text in told] == ["2", "4", "5"]
        assert "nothing has been learned yet. Larger batches" in told[0]
