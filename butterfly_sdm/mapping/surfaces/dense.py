"""
Dense prediction: the trunk runs once over large blocks, and the mean over a window becomes a
sliding mean of its cells.

A window of 192 px every 32 px shares 97 % of its pixels with the next, so predicting window by
window repeats nearly all of the work. The feature map of a large block holds the features of every
window at once, as long as the trunk has a fixed stride and sees only a neighbourhood. Positions
between the cells are reached by running the trunk again, shifted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rasterio.windows import Window
from torch import nn

from butterfly_sdm.core.block_store import Store
from butterfly_sdm.errors import RasterError
from butterfly_sdm.imagery.scene import Scene
from butterfly_sdm.mapping.surfaces.engines import CALIBRATION_PX, Engine, choose_engine
from butterfly_sdm.mapping.surfaces.exact import BesideExact, WindowSurface
from butterfly_sdm.mapping.surfaces.lattice import Lattice
from butterfly_sdm.mapping.surfaces.reach import cell_reach_px
from butterfly_sdm.mapping.surfaces.rows import Strip
from butterfly_sdm.models.inputs import site_tensors

READ_PX = 512  # rows of a block read at a time
MAX_SHIFTS = 4  # per axis; more repeats the trunk so often that windows one by one are no slower


@dataclass(frozen=True)
class Phase:
    """
    The positions that share one placement of the trunk's cells.

    Attributes
    ----------
    name
        Unique among the phases of a lattice.
    rows, cols
        Rows and columns of the map that belong to it.
    row0, col0
        Pixel of the scene at the upper left corner of cell (0, 0).
    step
        Cells between neighbouring positions.
    height, width
        Cells down and across.
    """

    name: str
    rows: range
    cols: range
    row0: int
    col0: int
    step: int
    height: int
    width: int


def phases(lattice: Lattice, cell_px: int) -> list[Phase]:
    """
    Return the placements of cells of ``cell_px`` pixels that reach all positions of ``lattice``.
    """
    period = math.lcm(lattice.stride_px, cell_px)
    every = period // lattice.stride_px
    row_starts, col_starts = lattice.window_starts()
    window = lattice.window_px // cell_px
    found = []
    for i in range(min(every, lattice.height)):
        for j in range(min(every, lattice.width)):
            rows, cols = range(i, lattice.height, every), range(j, lattice.width, every)
            step = period // cell_px
            height, width = (len(rows) - 1) * step + window, (len(cols) - 1) * step + window
            found.append(
                Phase(
                    f"{i}_{j}",
                    rows,
                    cols,
                    int(row_starts[i]),
                    int(col_starts[j]),
                    step,
                    height,
                    width,
                )
            )
    return found


@dataclass(frozen=True)
class Block:
    """A rectangle of cells of one phase."""

    phase: Phase
    rows: slice
    cols: slice

    @property
    def key(self) -> str:
        """Name in the journal."""
        return f"{self.phase.name}:{self.rows.start}:{self.cols.start}"

    def pixels(self, cell_px: int, halo_px: int) -> Window:
        """Return the pixels of the scene under the block, with ``halo_px`` around it."""
        return Window(
            self.phase.col0 + self.cols.start * cell_px - halo_px,
            self.phase.row0 + self.rows.start * cell_px - halo_px,
            (self.cols.stop - self.cols.start) * cell_px + 2 * halo_px,
            (self.rows.stop - self.rows.start) * cell_px + 2 * halo_px,
        )


def blocks(phase: Phase, cells: int) -> Iterator[Block]:
    """Cut a phase into blocks of at most ``cells`` x ``cells``, of nearly equal size."""
    for top, bottom in _spans(phase.height, cells):
        for left, right in _spans(phase.width, cells):
            yield Block(phase, slice(top, bottom), slice(left, right))


def _spans(length: int, most: int) -> list[tuple[int, int]]:
    parts = math.ceil(length / most)
    edges = [round(k * length / parts) for k in range(parts + 1)]
    return list(pairwise(edges))


def normalised(
    values: np.ndarray,
    valid: np.ndarray,
    network: Any,
    scene: Scene,
    *,
    device: str | torch.device = "cpu",
    memory_format: torch.memory_format = torch.contiguous_format,
) -> torch.Tensor:
    """
    Turn counts into the input of a network: standardised reflectance, 0 (the mean) where nothing
    was measured.

    The same as :meth:`PresenceNet.standardise` of the reflectance, made where the trunk runs:
    counts travel in half the bytes.

    Parameters
    ----------
    values : (bands, height, width) uint16
    valid : (height, width) bool

    Returns
    -------
    Tensor of shape (1, bands, height, width), float32
    """
    mean, std = (buffer.detach().cpu().double() for buffer in (network.mean, network.std))
    gain = (scene.scale / std).float().to(device)
    shift = ((-scene.offset * scene.scale - mean) / std).float().to(device)
    image = torch.from_numpy(values)[None].to(device).to(torch.float32, memory_format=memory_format)
    image.mul_(gain[:, None, None]).add_(shift[:, None, None])
    if not valid.all():
        image.masked_fill_(~torch.from_numpy(valid).to(device), 0.0)
    return image


@dataclass(frozen=True, eq=False)
class DenseUnit:
    """One block of cells, to be filled by one run of the trunk."""

    job: DenseSurface
    block: Block

    @property
    def key(self) -> str:
        """Name in the journal."""
        return self.block.key

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the counts of the block with its halo, and where they are valid."""
        window = self.block.pixels(self.job.cell_px, self.job.halo_px)
        values = np.empty((len(self.job.scene.bands), window.height, window.width), dtype=np.uint16)
        valid = np.empty((window.height, window.width), dtype=bool)
        for top in range(
            0, window.height, READ_PX
        ):  # reading makes copies: some rows at a time they are small
            rows = slice(top, min(top + READ_PX, window.height))
            part = Window(window.col_off, window.row_off + top, window.width, rows.stop - top)
            values[:, rows], valid[rows] = self.job.scene.read(part)
        return values, valid

    def compute(self, data: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        """
        Return the valid pixels per cell (rows, cols), and the cells (rows, cols, length) if any
        pixel is valid.
        """
        values, valid = data
        job, halo = self.job, self.job.halo_px
        inner = valid[halo : valid.shape[0] - halo, halo : valid.shape[1] - halo]
        rows, cols = inner.shape[0] // job.cell_px, inner.shape[1] // job.cell_px
        counts = inner.reshape(rows, job.cell_px, cols, job.cell_px).sum(
            axis=(1, 3), dtype=np.int32
        )
        if not valid.any():
            return counts, None
        network = job.handle.predictor.network
        engine = job.engine

        def image(rows: slice) -> torch.Tensor:
            part = np.ascontiguousarray(values[:, rows])
            return normalised(
                part,
                valid[rows],
                network,
                job.scene,
                device=engine.device,
                memory_format=engine.memory_format,
            )

        cells = engine.run_rows(network, image, values.shape[1])
        skip = halo // job.cell_px
        return counts, cells[skip : skip + rows, skip : skip + cols]


@dataclass(frozen=True, eq=False)
class DenseSurface(BesideExact):
    """
    Probabilities of a network whose trunk sees all windows at once.

    Attributes
    ----------
    exact
        The same, window by window.
    length
        Length of an embedding.
    block_px
        Side of the ground of one block, without its halo.
    halo_px
        Ground around a block that the trunk sees and whose cells are dropped; the farther, the less
        the edge is felt.
    """

    exact: WindowSurface
    length: int
    engine: Engine
    block_px: int
    halo_px: int

    @property
    def cell_px(self) -> int:
        """Pixels of the scene per cell of the trunk."""
        return int(self.handle.predictor.network.stride)

    @property
    def phases(self) -> list[Phase]:
        """The placements of the cells."""
        return phases(self.lattice, self.cell_px)

    def open(self, folder: Path) -> Store:
        """Make or continue the arrays of this surface in ``folder``."""
        arrays: dict[str, tuple[tuple[int, ...], str]] = {}
        for phase in self.phases:
            arrays[f"cells_{phase.name}"] = ((phase.height, phase.width, self.length), "float32")
            arrays[f"valid_{phase.name}"] = ((phase.height, phase.width), "int32")
        return Store(folder, arrays)

    def units(self, store: Store) -> list[DenseUnit]:
        """Return what is still to be done; blocks that no wanted window touches are left out."""
        return [unit for unit in self.all_units() if unit.key not in store.done]

    def all_units(self) -> list[DenseUnit]:
        """Return all that has to be done, done or not."""
        most = max(1, self.block_px // self.cell_px)
        units = []
        for phase in self.phases:
            needed = self._needed_cells(phase)
            units += [
                DenseUnit(self, block)
                for block in blocks(phase, most)
                if needed[block.rows, block.cols].any()
            ]
        return units

    def engine_difference(self, unit: DenseUnit) -> np.ndarray | None:
        """
        Return the differences in probability between the engine and PyTorch in the windows inside a
        block, if it has any.
        """
        side = self.lattice.window_px // self.cell_px
        exact = replace(self, engine=Engine("torch", device=self.engine.device))
        data = unit.read()
        parts = [DenseUnit(surface, unit.block).compute(data)[1] for surface in (self, exact)]
        if any(part is None or min(part.shape[:2]) < side for part in parts):
            return None
        network = self.handle.predictor.network
        found = []
        for part in parts:
            cells = torch.from_numpy(np.ascontiguousarray(part)).permute(2, 0, 1)
            pooled = nn.functional.avg_pool2d(cells, side, 1).flatten(1).T
            with torch.inference_mode():
                z = nn.functional.normalize(pooled, dim=-1).to(next(network.parameters()).device)
                found.append(torch.sigmoid(network.head(z)).cpu().numpy())
        return np.abs(found[0] - found[1]).ravel()

    def _needed_cells(self, phase: Phase) -> np.ndarray:
        if self.wanted.all():
            return np.ones((phase.height, phase.width), dtype=bool)
        needed = np.zeros((phase.height, phase.width), dtype=bool)
        side = self.lattice.window_px // self.cell_px
        for row, col in np.argwhere(
            self.wanted[phase.rows.start :: phase.rows.step, phase.cols.start :: phase.cols.step]
        ):
            needed[
                row * phase.step : row * phase.step + side,
                col * phase.step : col * phase.step + side,
            ] = True
        return needed

    def keep(self, store: Store, unit: Any, result: tuple[np.ndarray, np.ndarray | None]) -> None:
        """Write the result of one unit."""
        counts, cells = result
        name, where = unit.block.phase.name, (unit.block.rows, unit.block.cols)
        parts = {f"valid_{name}": (where, counts)}
        if cells is not None:
            parts[f"cells_{name}"] = (where, cells)
        store.keep(unit.key, parts)

    def strip(self, store: Store, rows: slice) -> Strip:
        """Return the probabilities of some rows of positions."""
        count, width = rows.stop - rows.start, self.lattice.width
        probability = np.full((len(self.species), count, width), np.nan, dtype=np.float32)
        fraction = np.zeros((count, width), dtype=np.float32)
        embedding: np.ndarray | None = None
        network = self.handle.predictor.network
        device = next(network.parameters()).device
        for phase in self.phases:
            inside = [k for k, row in enumerate(phase.rows) if rows.start <= row < rows.stop]
            if not inside:
                continue
            pooled, seen = self._pooled(store, phase, inside)  # (rows, cols, length), (rows, cols)
            take = np.ix_([phase.rows[k] - rows.start for k in inside], list(phase.cols))
            fraction[take] = seen
            wanted = self.wanted[np.ix_([phase.rows[k] for k in inside], list(phase.cols))]
            good = wanted & (seen > 0) & (seen >= self.min_valid_fraction)
            if not good.any():
                continue
            r, c = np.nonzero(good)
            r, c = np.array([phase.rows[k] for k in inside])[r], np.array(phase.cols)[c]
            with torch.inference_mode():
                z = nn.functional.normalize(torch.from_numpy(pooled[good]), dim=-1)  # (n, length)
                joined = network.fuse(z.to(device), *self._beside(r, c, device))
                found = torch.sigmoid(network.classify(joined)).cpu().numpy()  # (n, species)
            if embedding is None:
                embedding = np.full((count, width, joined.shape[1]), np.nan, dtype=np.float32)
            r -= rows.start
            probability[:, r, c] = found.T
            embedding[r, c] = joined.cpu().numpy()
        return Strip(rows, self.species, probability, fraction, self.exact.places, embedding)

    def _beside(
        self, rows: np.ndarray, cols: np.ndarray, device: Any
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """
        Return the covariates and the positions that the network sees beside the image at positions
        of the map.
        """
        predictor = self.handle.predictor
        names, position = predictor.sees.covariates, predictor.sees.position_crs is not None
        if not names and not position:
            return None, None
        sites = self.exact.places(rows, cols)
        inputs = site_tensors(
            sites, sites.site_ids, image=False, covariates=names, position=position
        )
        return tuple(
            None if value is None else value.to(device)
            for value in (inputs.covariates, inputs.position)
        )  # type: ignore[return-value]

    def _pooled(
        self, store: Store, phase: Phase, inside: list[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Return the mean of the cells of each window, and the share of its pixels that are valid.
        """
        side = self.lattice.window_px // self.cell_px
        part = slice(inside[0] * phase.step, inside[-1] * phase.step + side)
        cells = torch.from_numpy(np.array(store[f"cells_{phase.name}"][part])).permute(2, 0, 1)
        valid = torch.from_numpy(np.array(store[f"valid_{phase.name}"][part], dtype=np.float64))[
            None
        ]
        store.release()
        pooled = nn.functional.avg_pool2d(cells, side, phase.step).permute(1, 2, 0)
        seen = (
            nn.functional.avg_pool2d(valid, side, phase.step, divisor_override=1)[0]
            / self.lattice.window_px**2
        )
        return pooled.numpy(), seen.numpy()

    def fractions(self, store: Store) -> np.ndarray:
        """Return (height, width) the share of measured pixels in the window of each position."""
        side = self.lattice.window_px // self.cell_px
        fraction = np.zeros(self.lattice.shape)
        for phase in self.phases:
            valid = torch.from_numpy(np.array(store[f"valid_{phase.name}"], dtype=np.float64))[None]
            seen = (
                nn.functional.avg_pool2d(valid, side, phase.step, divisor_override=1)[0]
                / self.lattice.window_px**2
            )
            fraction[np.ix_(list(phase.rows), list(phase.cols))] = seen.numpy()
        return fraction


def dense_surface(
    exact: WindowSurface, *, block_px: int, engine: str, folder: Path
) -> DenseSurface:
    """
    Return the surface that gives densely what ``exact`` gives window by window; the engine keeps
    its files in ``folder``.
    """
    predictor, scene = exact.handle.predictor, exact.scene
    network = predictor.network
    if torch.cuda.is_available() and getattr(predictor, "accelerator", "auto") != "cpu":
        network.cuda()
    network.eval()
    chosen = choose_engine(
        network, engine, folder, lambda: [image.numpy() for image in _samples(network, scene)]
    )
    length = network.projection.out_features
    return DenseSurface(exact, length, chosen, block_px, halo_px=reach_px(network))


def reach_px(network: Any) -> int:
    """
    Return how far beyond its own ground a cell of the trunk sees, in whole cells of pixels: 224 px
    for a ResNet-18.
    """
    training = network.training
    network.eval()
    device = next(network.parameters()).device
    try:
        return cell_reach_px(network.features, len(network.bands), int(network.stride), device)
    finally:
        network.train(training)


def _samples(network: Any, scene: Scene, count: int = 8) -> list[torch.Tensor]:
    """Return standardised crops from all over the scene, the same each time."""
    cell_px = int(network.stride)
    side = max(
        cell_px,
        min(CALIBRATION_PX, scene.width // cell_px * cell_px, scene.height // cell_px * cell_px),
    )
    generator = np.random.default_rng(0)
    crops = []
    for _ in range(20 * count):
        col, row = (
            int(generator.integers(0, max(1, length - side)))
            for length in (scene.width, scene.height)
        )
        values, valid = scene.read(Window(col, row, side, side))
        if valid.mean() > 0.5:
            crops.append(normalised(values, valid, network, scene))
        if len(crops) == count:
            break
    if not crops:
        raise RasterError(
            "Nowhere is half of the scene covered well enough to set the ranges of int8. Use "
            "engine auto."
        )
    return crops


def why_not_dense(network: Any, lattice: Lattice) -> str:
    """
    Return why ``network`` cannot be mapped densely at the positions of ``lattice``, or nothing.
    """
    cell_px = int(network.stride)
    if network.trunk is None:
        return "it sees no imagery"
    if not network.dense:
        return (
            f"its trunk {network.trunk.name} sees more of an image than a neighbourhood of fixed "
            "size"
        )
    if network.window_px % cell_px:
        return (
            f"its window of {network.window_px} px is no multiple of the trunk's stride of "
            f"{cell_px} px"
        )
    shifts = math.lcm(lattice.stride_px, cell_px) // lattice.stride_px
    if shifts > MAX_SHIFTS:
        near = cell_px // MAX_SHIFTS
        return (
            f"a stride of {lattice.stride_px} px would run the trunk {shifts**2} times over; "
            f"multiples of {near} px need at most {MAX_SHIFTS**2}"
        )
    return ""
