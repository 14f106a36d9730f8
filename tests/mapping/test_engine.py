"""The engine gives what the network gives, whoever else is at work in the process."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch
from torch import nn

from butterfly_sdm.mapping.surfaces import engine
from butterfly_sdm.mapping.surfaces.engine import Cells, Engine, _fused, cell_reach_px
from butterfly_sdm.models.presence_net import Architecture, PresenceNet

BANDS = ("red", "green", "blue", "nir")


def lived_in_network(seed: int = 0) -> PresenceNet:
    """Return a network whose batch normalisations do something."""
    torch.manual_seed(seed)
    network = PresenceNet(
        Architecture(species=3, bands=BANDS, window_px=64, margin_px=32, padding="zeros")
    ).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return network


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(1, 4, 160, 160, generator=torch.Generator().manual_seed(1))


def test_batch_normalisation_is_folded_without_a_change(image):
    cells = Cells(lived_in_network()).eval()
    folded = _fused(cells)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.inference_mode():
        torch.testing.assert_close(folded(image), cells(image), rtol=1e-4, atol=1e-5)


def test_a_trunk_that_uses_its_parts_in_another_order_is_left_as_it_is(image):
    class Backwards(nn.Module):
        bands, stride = BANDS, 1

        def __init__(self) -> None:
            super().__init__()
            self.mix, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
            self.norm.running_mean.fill_(1.0)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.mix(torch.relu(self.norm(image)))

        def stages(self) -> tuple[list[nn.Module], nn.Module]:
            return [], self

    network = nn.Module()
    network.trunk, network.projection = Backwards(), nn.Linear(4, 2)
    cells = Cells(network).eval()
    with torch.inference_mode():
        torch.testing.assert_close(_fused(cells)(image), cells(image))


def test_early_layers_in_strips_give_what_the_whole_image_gives(image, monkeypatch):
    network = lived_in_network()
    monkeypatch.setattr(engine, "STRIP_PX", 64)
    cells = Engine().run(network, image)
    with torch.inference_mode():
        np.testing.assert_allclose(
            cells, Cells(network).eval()(image).numpy(), rtol=1e-3, atol=1e-5
        )


def test_threads_that_begin_at_once_do_not_disturb_each_other(image):
    networks = [lived_in_network(seed) for seed in range(4)]
    start = Barrier(len(networks))

    def run(network: PresenceNet) -> np.ndarray:
        start.wait()
        return Engine().run(network, image)

    with ThreadPoolExecutor(len(networks)) as pool:
        found = list(pool.map(run, networks))
    for network, cells in zip(networks, found, strict=True):
        with torch.inference_mode():
            np.testing.assert_allclose(
                cells, Cells(network).eval()(image).numpy(), rtol=1e-3, atol=1e-4
            )


def test_a_trunk_that_has_died_still_says_how_far_it_sees():
    def dead(image):
        return torch.nn.functional.avg_pool2d(image, 32) * 0

    assert cell_reach_px(dead, 4, 32) == 32
