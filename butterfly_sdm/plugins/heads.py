"""A linear head on a frozen representation: fitted to convergence on standardised features."""

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from butterfly_sdm.errors import ModelError
from butterfly_sdm.plugins.options import PluginConfig, later, setting
from butterfly_sdm.plugins.row_batches import shuffled
from butterfly_sdm.plugins.stages import Batch, Stage

logger = logging.getLogger("butterfly_sdm.plugins")

_NEVER = -1e4  # logit of a class that no training row has
_ITERATIONS = 5000


class HeadConfig(PluginConfig):
    """Settings of a plugin with a head on frozen features."""

    batch_size: int = Field(32, ge=4)
    head: Literal["converged", "adam"] = later(
        "converged",
        "converged: logistic regression on standardised features; adam: steps on them as they are",
    )
    head_inverse_penalty: float = later(
        1.0, "converged: C of the logistic regression; less on few rows", gt=0
    )
    head_epochs: int = setting(20, "adam: passes over the rows", ge=1)
    head_learning_rate: float = setting(1e-3, "adam: its rate", gt=0)


def fit_linear(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    balanced: bool = False,
    inverse_penalty: float = 1.0,
) -> tuple[np.ndarray, np.ndarray, float]:
    """
    Fit a logistic regression on standardised features, and return it for the features as they are.

    Mean and spread come from ``features`` alone, the training rows, and are folded into weights and
    bias: the head needs no other statistics.

    Parameters
    ----------
    features
        (n, d) of the training rows.
    labels
        (n,) class numbers below ``classes``; a class without a row gets a probability of 0.
    classes
        Length of the output.
    balanced
        Weight rows so that every class counts the same.
    inverse_penalty
        C of scikit-learn: the sum of the losses counts this much beside half the squared norm of
        the weights of standardised features.

    Returns
    -------
    weight (classes, d), bias (classes,), loss
        Logits are ``features @ weight.T + bias``; the loss is the mean over the rows, weighted as
        they were.

    Raises
    ------
    ModelError
        All rows are of one class.
    """
    present = np.unique(labels)
    if len(present) < 2:
        raise ModelError(
            f"All {len(labels)} labelled training rows are of class {present[0]}; a head needs two "
            "classes to tell apart."
        )
    scaler = StandardScaler()
    standard = scaler.fit_transform(features.astype(np.float64))
    weighting = "balanced" if balanced else None
    fitted = LogisticRegression(
        C=inverse_penalty, class_weight=weighting, tol=1e-6, max_iter=_ITERATIONS
    ).fit(standard, labels)
    if fitted.n_iter_.max() >= _ITERATIONS:
        logger.warning("the head has not converged in %d iterations", _ITERATIONS)
    coefficients, intercept = fitted.coef_, fitted.intercept_
    if len(present) == 2:  # scikit-learn gives the difference of the two logits
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercept = np.concatenate([-intercept, intercept]) / 2
    weight = np.zeros((classes, features.shape[1]))
    bias = np.full(classes, _NEVER)
    weight[present] = coefficients / scaler.scale_
    bias[present] = intercept - weight[present] @ scaler.mean_
    share = {value: (labels == value).mean() for value in present}
    rows = [1 / share[label] for label in labels] if balanced else None
    loss = log_loss(labels, fitted.predict_proba(standard), sample_weight=rows, labels=present)
    return weight, bias, float(loss)


def frozen_head(
    name: str,
    extract: Callable[[Any], Tensor],
    labels: np.ndarray,
    config: HeadConfig,
    *,
    scale: float = 1.0,
    balanced: bool = False,
    **measured: Any,
) -> Stage:
    """
    Make the stage that trains the submodule ``head`` on the output of frozen layers, computed once.

    Parameters
    ----------
    name
        Of the stage.
    extract
        Network -> (rows, features), from its frozen layers.
    labels
        (rows,) class numbers.
    config
        Its ``head``: ``converged`` is :func:`fit_linear`, ``adam`` takes steps of Adam on
        the features as they are, by ``head_learning_rate``, ``head_epochs`` and ``batch_size``.
    scale
        Factor of the features, wherever the head is used.
    balanced
        Every class counts the same.
    measured
        ``measure`` of the stage, and ``select``, which only steps have a use for.
    """
    computed: list[Tensor] = []
    known = torch.from_numpy(labels)

    def compute(module: Any) -> None:
        with torch.no_grad():
            computed[:] = [extract(module) * scale]

    def solve(module: Any) -> float:
        compute(module)
        features, classes = computed[0].cpu().numpy(), module.head.out_features
        options: Any = {"balanced": balanced, "inverse_penalty": config.head_inverse_penalty}
        weight, bias, loss = fit_linear(features, labels, classes, **options)
        fitted = {"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)}
        module.head.load_state_dict(fitted)
        return loss

    if config.head == "converged":
        measured.pop("select", None)
        return Stage.solved(name, solve, ("head",), **measured)

    def batches(module: Any, rng: np.random.Generator) -> Iterable[Batch]:
        if not computed:
            compute(module)
        for rows in shuffled(np.arange(len(labels)), config.batch_size, rng):
            yield {"features": computed[0][rows], "label": known[rows]}

    def loss(module: Any, batch: Batch) -> Tensor:
        logits = module.head(batch["features"])
        weight = None
        if balanced:
            counts = torch.bincount(known, minlength=logits.shape[1]).float().clamp(min=1)
            weight = (len(known) / (len(counts) * counts)).to(logits.device)
        return nn.functional.cross_entropy(logits, batch["label"], weight=weight)

    adam = partial(torch.optim.Adam, lr=config.head_learning_rate)
    return Stage(name, batches, loss, adam, config.head_epochs, ("head",), **measured)
