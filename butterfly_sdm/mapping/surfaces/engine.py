"""Run the trunk of a network over a block, in PyTorch on a CPU or a GPU."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from butterfly_sdm.imagery.scene import Scene
from butterfly_sdm.mapping.options import EngineName
from butterfly_sdm.mapping.surfaces.parts import Part
from butterfly_sdm.mapping.surfaces.pixel_stage import PixelStage
from butterfly_sdm.models.presence_net import PresenceNet

log = logging.getLogger("butterfly_sdm.mapping.surfaces.engine")

# Rows of an image that the early layers see at once: their maps are the largest of all.
STRIP_PX = 256

Rows = Callable[[slice], Tensor]
# Rows of an image, its height, and how many of the early stages the rows have gone through.
Run = Callable[[Rows, int, int], np.ndarray]


class Cells(nn.Module):
    """
    Trunk and projection: image (1, bands, h, w) to cells (h / stride, w / stride, length), before
    the mean over a window.
    """

    def __init__(self, network: PresenceNet) -> None:
        super().__init__()
        assert network.trunk is not None
        self.stride, self.bands = int(network.trunk.stride), tuple(network.trunk.bands)
        early, late = network.trunk.stages()
        self.early, self.late = nn.ModuleList(early), Late(late, network.projection)

    def forward(self, image: Tensor) -> Tensor:
        """Return the cells."""
        for stage in self.early:
            image = stage(image)
        cells: Tensor = self.late(image)
        return cells


class Late(nn.Module):
    """
    The later layers of a trunk, and the projection, which is linear and so may go before the mean
    over a window.
    """

    def __init__(self, layers: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.layers, self.projection = layers, projection

    def forward(self, features: Tensor) -> Tensor:
        """Return the cells (rows, cols, length)."""
        cells: Tensor = self.projection(self.layers(features)[0].permute(1, 2, 0))
        return cells


@dataclass(frozen=True)
class Engine:
    """
    How the trunk is run, in a form that travels to workers.

    Attributes
    ----------
    name
        torch, or torch-fp16 with numbers of 16 bits.
    device
        Where the image is wanted: cpu, or cuda for the current GPU of the process.
    """

    name: EngineName = "torch"
    device: str = "cpu"

    def run(self, network: PresenceNet, image: Tensor) -> np.ndarray:
        """
        Return the cells (rows, cols, length) of a standardised image (1, bands, h, w), both
        float32.
        """
        return self.run_rows(network, lambda rows: image[:, :, rows], image.shape[2])

    def run_rows(self, network: PresenceNet, rows: Rows, height: int) -> np.ndarray:
        """
        Return the same of an image of ``height`` rows that is made some rows at a time:
        ``rows(slice)`` gives them.
        """
        ready = self._ready(network)
        with torch.inference_mode():
            return ready.run(rows, height, 0)

    def run_stored(
        self,
        network: PresenceNet,
        scene: Scene,
        parts: Iterable[Part],
        shape: tuple[int, int],
    ) -> np.ndarray | None:
        """
        Return the same of stored numbers of a window of a scene, of ``shape`` (h, w), for a trunk
        whose first stage sees single pixels: they become fractions a few at a time. None: no pixel
        is measured.
        """
        ready = self._ready(network)
        with torch.inference_mode():
            stage = PixelStage.of(ready.cells.early[0], network.mean, network.std, scene)
            seen, some = stage.run(parts, *shape)

            def rows(part: slice) -> Tensor:
                return seen[:, :, part.start // stage.pool : part.stop // stage.pool]

            return ready.run(rows, shape[0], 1) if some else None

    def _ready(self, network: PresenceNet) -> Ready:
        made = _ready.setdefault(network, {})
        if self not in made:
            made[self] = _runner(network, self)
        return made[self]


@dataclass(frozen=True, eq=False)
class Ready:
    """A network that is ready to run: its layers, and how rows go through them."""

    cells: Cells
    run: Run


_ready: WeakKeyDictionary[PresenceNet, dict[Engine, Ready]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Stage:
    """
    Layers that are run some rows at a time: a cell takes ``step`` rows of input and sees ``reach``
    more to each side.
    """

    run: Callable[[Tensor], Tensor]
    step: int
    reach: int

    def stream(self, parts: Iterable[Tensor], height: int) -> Iterator[Tensor]:
        """
        Yield the output (1, channels, rows, w) from the top down, for consecutive rows of an input
        of ``height`` rows.
        """
        held: list[Tensor] = []
        # rows of the input: the first held, those that came, those whose output went out
        first = arrived = done = 0
        for part in parts:
            held.append(part)
            arrived += part.shape[2]
            until = height if arrived == height else (arrived - self.reach) // self.step * self.step
            if until <= done:
                continue
            rows = torch.cat(held, dim=2)
            top, bottom = max(0, done - self.reach), min(height, until + self.reach)
            found = self.run(rows[:, :, top - first : bottom - first])
            # a view would keep all of them
            held = [rows[:, :, max(0, until - self.reach) - first :].clone()]
            del rows, part
            yield found[:, :, (done - top) // self.step : (until - top) // self.step]
            first, done = max(0, until - self.reach), until


def _runner(network: PresenceNet, engine: Engine) -> Ready:
    """
    Return what runs ``network``: its early stages on strips of rows, the other layers on
    all of their output.

    Each strip sees as far around itself as its cells do, so that the result is that of the whole
    image.
    """
    dtype = torch.float16 if engine.name == "torch-fp16" else torch.float32
    cells = _fused(Cells(network).eval()).to(engine.device, dtype)
    cells = cells.to(memory_format=torch.channels_last)
    assert network.trunk is not None
    stages = [
        Stage(run, *_step_and_reach(layers))
        for run, layers in zip(cells.early, network.trunk.stages()[0], strict=True)
    ]

    def given(image: Tensor) -> Tensor:
        return image.to(engine.device, dtype, memory_format=torch.channels_last)

    def late(features: Tensor) -> np.ndarray:
        found: np.ndarray = cells.late(features).float().cpu().numpy()
        return found

    def run(rows: Rows, height: int, begun: int) -> np.ndarray:
        if not stages:
            return late(given(rows(slice(0, height))))
        parts: Iterable[Tensor] = (
            given(rows(slice(top, min(top + STRIP_PX, height))))
            for top in range(0, height, STRIP_PX)
        )
        left = height
        for stage in stages[:begun]:
            left //= stage.step
        for stage in stages[begun:]:
            parts = stage.stream(parts, left)
            left //= stage.step
        features, done = None, 0
        for part in parts:
            if features is None:
                features = torch.empty(
                    (1, part.shape[1], left, part.shape[3]),
                    dtype=part.dtype,
                    device=part.device,
                    memory_format=torch.channels_last,
                )
            features[:, :, done : done + part.shape[2]] = part
            done += part.shape[2]
        assert features is not None
        return late(features)

    return Ready(cells, run)


def _step_and_reach(layers: nn.Module) -> tuple[int, int]:
    layers = copy.deepcopy(layers).float().cpu().eval()
    channels = next(
        module.in_channels for module in layers.modules() if isinstance(module, nn.Conv2d)
    )
    with torch.inference_mode():
        step = 32 // layers(torch.zeros(1, channels, 32, 32)).shape[2]
    return step, cell_reach_px(layers, channels, step)


def _fused(cells: Cells) -> Cells:
    """
    Fold each batch normalisation into the convolution before it, where the result is the same.

    The pairs are found by the order in which a module lists its parts: torch.fx finds them by
    tracing, but while it traces it changes nn.Module for all threads of the process.
    """
    plain, folded = copy.deepcopy(cells), copy.deepcopy(cells)
    for parent in list(folded.modules()):
        for (first, convolution), (second, norm) in pairwise(list(parent.named_children())):
            # exactly these: what is derived from them may do more
            if (
                type(convolution) is nn.Conv2d
                and type(norm) is nn.BatchNorm2d
                and convolution.out_channels == norm.num_features
            ):
                setattr(parent, first, fuse_conv_bn_eval(convolution, norm))
                setattr(parent, second, nn.Identity())
    side = 4 * plain.stride
    image = torch.randn(1, len(plain.bands), side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        image = image.to(next(plain.parameters()).device)
        before, after = plain(image), folded(image)
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max())):
        log.info(
            "Batch normalisation was not folded: this trunk uses its parts in another order than "
            "it lists them."
        )
        folded = plain
    for module in folded.modules():
        if isinstance(module, nn.Conv2d):
            # zeros are the fastest, and no cell that counts sees the edge of a block
            module.padding_mode = "zeros"
    return folded


def cell_reach_px(
    features: Callable[[Tensor], Tensor],
    bands: int,
    cell_px: int,
    device: torch.device | str = "cpu",
) -> int:
    """
    Return how far beyond its own ground a cell sees, in whole cells of pixels: 224 px for a
    ResNet-18.

    With a halo this wide around a block, its cells are what they would be in a block of any size.
    Found by asking which pixels the gradient of one cell reaches, up and down: layers are taken to
    see as far to the sides.

    Parameters
    ----------
    features
        From an image (1, bands, h, w) to a feature map (1, channels, h / cell_px, w / cell_px); a
        network in evaluation mode.
    """
    for cells in (17, 35):
        with torch.inference_mode(False), torch.enable_grad():
            image = torch.randn(
                1, bands, cells * cell_px, 3 * cell_px, generator=torch.Generator().manual_seed(0)
            )
            image = image.to(device).requires_grad_(True)
            middle = features(image)[0, :, cells // 2, 1]
            (seen,) = torch.autograd.grad(middle.sum(), image)
        rows = seen.abs().amax(dim=(0, 1, 3)).nonzero().flatten()
        if not len(rows):
            return cell_px  # a trunk that has died sees nothing: its cells are alike anywhere
        reach = max(
            cells // 2 * cell_px - int(rows[0]), int(rows[-1]) - (cells // 2 + 1) * cell_px + 1
        )
        if reach < cells // 2 * cell_px:
            break
    return math.ceil(reach / cell_px) * cell_px
