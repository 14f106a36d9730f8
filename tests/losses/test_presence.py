"""Losses of presence know how many visits stand behind a rate."""

import math

import pytest
import torch
from scipy import stats

from butterfly_sdm.errors import DataError
from butterfly_sdm.losses.presence import PresenceLoss, beta_binomial, binomial

K = torch.tensor([[3.0, 0.0], [7.0, 20.0]])
N = torch.tensor([10.0, 20.0])
LOGITS = torch.tensor([[0.3, -1.0], [-0.5, 2.0]])


def test_the_binomial_loss_is_the_likelihood_up_to_its_constant() -> None:
    p = LOGITS.sigmoid().numpy()
    expected = -stats.binom.logpmf(K.numpy(), N.numpy()[:, None], p)
    constant = [
        [math.log(math.comb(int(n), int(k))) for k in row]
        for row, n in zip(K.tolist(), N.tolist(), strict=True)
    ]
    torch.testing.assert_close(
        binomial(LOGITS, K, N[:, None]) - torch.tensor(constant),
        torch.tensor(expected, dtype=torch.float32),
    )


def test_the_beta_binomial_loss_is_the_likelihood_up_to_its_constant() -> None:
    concentration = torch.tensor([4.0, 30.0])
    p, c = LOGITS.sigmoid().double().numpy(), concentration.double().numpy()
    expected = torch.tensor(
        -stats.betabinom.logpmf(K.numpy(), N.numpy()[:, None], p * c, (1 - p) * c)
    )
    constant = [
        [math.log(math.comb(int(n), int(k))) for k in row]
        for row, n in zip(K.tolist(), N.tolist(), strict=True)
    ]
    got = beta_binomial(LOGITS, K, N[:, None], concentration) - torch.tensor(constant)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_likelihood_pulls_towards_sites_with_many_visits_and_cross_entropy_does_not() -> None:
    k, n = torch.tensor([[3.0], [0.0]]), torch.tensor([3.0, 97.0])  # rates 1 and 0; 3 of 100 in all

    def best(name: str) -> float:
        logit = torch.zeros(1, 1, requires_grad=True)
        loss = PresenceLoss(name, species=1, mean_visits=50)  # type: ignore[arg-type]
        optimiser = torch.optim.LBFGS([logit], max_iter=200)

        def closure() -> torch.Tensor:
            optimiser.zero_grad()
            value = loss(logit.expand(2, 1), k, n)
            value.backward()
            return value

        optimiser.step(closure)
        return float(logit.detach().sigmoid())

    assert best("binomial") == pytest.approx(0.03, abs=1e-3)
    assert best("bce") == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    "name", ["binomial", "beta_binomial", "bce", "mse", "mae", "focal", "asymmetric"]
)
def test_every_loss_ignores_missing_labels_and_stays_finite(name) -> None:
    loss = PresenceLoss(name, species=2, mean_visits=10)
    whole = loss(LOGITS[:1], K[:1], N[:1])
    logits = torch.cat([LOGITS[:1], torch.tensor([[80.0, -80.0], [1.0, 1.0]])]).requires_grad_()
    k = torch.cat([K[:1], torch.tensor([[-1.0, torch.nan], [0.0, 0.0]])])
    n = torch.tensor([10.0, 5.0, 0.0])
    value = loss(logits, k, n)
    torch.testing.assert_close(value, whole)
    value.backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[1:].abs().sum() == 0


@pytest.mark.parametrize("name", ["binomial", "bce", "mse", "mae", "focal"])
def test_a_claim_equal_to_the_rate_cannot_be_bettered(name) -> None:
    loss = PresenceLoss(name, species=2, mean_visits=15)
    k, n = torch.tensor([[3.0, 6.0]]), torch.tensor([10.0])
    best = (k / n[:, None]).logit()
    assert loss(best, k, n) < min(loss(best + 0.2, k, n), loss(best - 0.2, k, n))


def test_weights_of_species_and_sites_are_weights_of_a_mean() -> None:
    loss = PresenceLoss("mse", species=2, species_weights=torch.tensor([1.0, 0.0]))
    plain = PresenceLoss("mse", species=2)
    elements, _ = plain.elements(LOGITS, K, N)
    torch.testing.assert_close(loss(LOGITS, K, N), elements[:, 0].mean())
    torch.testing.assert_close(
        plain(LOGITS, K, N, site_weights=torch.tensor([0.0, 2.0])), elements[1].mean()
    )


def test_the_loss_is_float32_under_autocast() -> None:
    loss = PresenceLoss("binomial", species=2, mean_visits=15)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(LOGITS, K, N)
    torch.testing.assert_close(value, loss(LOGITS, K, N))


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(DataError, match="loss is one of binomial, beta_binomial"):
        PresenceLoss("hinge", species=2)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="visits must be above 0"):
        PresenceLoss("binomial", species=2, mean_visits=0)
    with pytest.raises(DataError, match="2 numbers of at least 0"):
        PresenceLoss("mse", species=2, species_weights=torch.ones(3))
    with pytest.raises(DataError, match="do not fit"):
        PresenceLoss("mse", species=2)(LOGITS, K[:1], N)
