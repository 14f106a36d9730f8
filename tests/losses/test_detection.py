"""Losses of dated visits are likelihoods of single visits, summed in plain loops."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit

from butterfly_sdm.errors import DataError
from butterfly_sdm.losses.detection import DetectionLoss, occupancy_loss, season_loss

NODES = np.linspace(-4, 4, 17)
TAU = np.array([0.8, 1.5])
CURVE = np.array([[-0.5, 0.2, -2.0], [0.1, -1.0, 0.4]])  # (species, weeks)
SEEN = np.array([[[1, 0, 0], [0, 0, 0]], [[0, 1, 0], [1, 1, 0]]])  # (sites, species, weeks)
CLAIM = np.array([[0.3, -0.7], [1.2, 0.1]])


def evidence() -> np.ndarray:
    out = np.zeros((2, 2, len(NODES)))
    for site in range(2):
        for species in range(2):
            for node, effect in enumerate(NODES):
                for week, seen in enumerate(SEEN[site, species]):
                    p = expit(effect + CURVE[species, week])
                    out[site, species, node] += math.log(p if seen else 1 - p)
    return out


def weights(middle: float, tau: float) -> np.ndarray:
    weight = np.exp(-0.5 * ((NODES - middle) / tau) ** 2)
    return weight / weight.sum()


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.asarray(values), dtype=torch.float64)


def test_the_season_loss_sums_over_the_effects_a_site_may_have() -> None:
    like = np.exp(evidence())
    expected = [
        [-math.log(weights(CLAIM[i, j], TAU[j]) @ like[i, j]) for j in range(2)] for i in range(2)
    ]
    found = season_loss(tensor(CLAIM), tensor(evidence()), tensor(NODES), tensor(TAU))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


def test_the_occupancy_loss_sums_over_presence_and_absence() -> None:
    like, expected = np.exp(evidence()), np.empty((2, 2))
    for i in range(2):
        for j in range(2):
            psi = expit(CLAIM[i, j])
            here = psi * (weights(0, TAU[j]) @ like[i, j])
            expected[i, j] = -math.log(here if SEEN[i, j].any() else here + 1 - psi)
    log_weight = tensor(np.log([weights(0, tau) for tau in TAU]))
    seen = torch.tensor(SEEN.any(axis=2))
    found = occupancy_loss(tensor(CLAIM), tensor(evidence()), log_weight, seen)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("name", ["season", "occupancy"])
def test_the_mean_leaves_out_sites_without_visits(name) -> None:
    loss = DetectionLoss(name, nodes=tensor(NODES), tau=tensor(TAU), mean_visits=3.0)
    k, n = torch.tensor(SEEN.sum(axis=2)), torch.tensor([3.0, 0.0])
    elements, known = loss.elements(tensor(CLAIM), k, n, tensor(evidence()))
    assert known[0].all() and not known[1].any() and (elements[1] == 0).all()
    mean = loss(tensor(CLAIM), k, n, tensor(evidence()))
    torch.testing.assert_close(mean, elements[0].mean())
    weighted = DetectionLoss(
        name,
        nodes=tensor(NODES),
        tau=tensor(TAU),
        mean_visits=3.0,
        species_weights=torch.tensor([1.0, 0.0]),
    )
    torch.testing.assert_close(weighted(tensor(CLAIM), k, n, tensor(evidence())), elements[0, 0])
    with pytest.raises(DataError, match="dated visits"):
        loss(tensor(CLAIM), k, n)
