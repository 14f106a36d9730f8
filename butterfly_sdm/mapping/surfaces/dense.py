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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress, pairwise
from pathlib import Path

import numpy as np
import torch
from rasterio.windows import Window
from torch import nn

from butterfly_sdm.core.block_store import Store
from butterfly_sdm.data.predictor import Predictor
from butterfly_sdm.data.tiles import squared
from butterfly_sdm.errors import ModelError
from butterfly_sdm.imagery.scene import Scene
from butterfly_sdm.mapping.options import EngineName
from butterfly_sdm.mapping.surfaces.engine import Engine, cell_reach_px
from butterfly_sdm.mapping.surfaces.lattice import Lattice
from butterfly_sdm.mapping.surfaces.networks import networks_of
from butterfly_sdm.mapping.surfaces.parts import Part, Parts
from butterfly_sdm.mapping.surfaces.positions import Positions
from butterfly_sdm.mapping.surfaces.rows import Strip
from butterfly_sdm.models.embedding_trunk import MEAN_PX
from butterfly_sdm.models.inputs import site_tensors
from butterfly_sdm.models.network_predictor import NetworkPredictor
from butterfly_sdm.models.presence_net import PresenceNet

# Valid pixels per cell (rows, cols), and the cells (rows, cols, length) if any pixel is valid.
Filled = tuple[np.ndarray, np.ndarray | None]

Read = tuple[np.ndarray, np.ndarray] | None  # counts (bands, h, w) and where they are valid (h, w)

# Of a trunk that looks little beyond its pixels: the output of its first stage at once, and decoded
# blocks kept where files do not share their blocks.
STAGE_BYTES, MOST_CACHE_BYTES, ROWS_KEPT = 256 * 2**20, 420 * 2**20, 2.1
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

    def around(self, needed: np.ndarray) -> Block:
        """Return as much of the block as holds all cells that are needed (rows, cols)."""
        rows, cols = (np.flatnonzero(needed.any(axis=axis)) for axis in (1, 0))
        top, left = self.rows.start, self.cols.start
        return Block(
            self.phase,
            slice(top + int(rows[0]), top + int(rows[-1]) + 1),
            slice(left + int(cols[0]), left + int(cols[-1]) + 1),
        )

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


def column_blocks(phase: Phase, tall: int, wide: int, edges: Sequence[int]) -> Iterator[Block]:
    """
    Cut a phase into blocks of at most ``tall`` x ``wide`` cells, one below the other, at rows of
    ``edges`` as far as there are any.
    """
    cuts = [0]
    while cuts[-1] < phase.height:
        most = cuts[-1] + tall
        fit = [edge for edge in edges if cuts[-1] < edge <= most]
        cuts.append(phase.height if phase.height <= most else max(fit, default=most))
    for left, right in _spans(phase.width, wide):
        for top, bottom in pairwise(cuts):
            yield Block(phase, slice(top, bottom), slice(left, right))


def _row_bytes(scene: Scene) -> float:
    """Return what a row of blocks of the first file takes when decoded, per column of pixels."""
    layer = scene.pieces[0].layers[0]
    return float(layer.block[0] * len(layer.bands) * np.dtype(layer.dtype).itemsize)


def most_columns(scene: Scene) -> int:
    """
    Return how many columns of a scene may be read at once so that its blocks stay decoded, where
    they have to.
    """
    return max(512, int(MOST_CACHE_BYTES / (ROWS_KEPT * _row_bytes(scene))))


def cache_bytes(surfaces: Sequence[object], least: int) -> int:
    """
    Return how many bytes of decoded blocks are kept: those of two rows of blocks of a scene whose
    trunk looks little beyond its pixels and whose files do not share their blocks, so that each is
    decoded once.
    """
    scenes = [s.scene for s in surfaces if isinstance(s, DenseSurface) and s.by_pixel]
    wanted = [
        ROWS_KEPT * _row_bytes(s) * min(s.pieces[0].layers[0].width + 512, most_columns(s))
        for s in scenes
        if s.block_grid() is None
    ]
    return max(least, min(MOST_CACHE_BYTES, int(max(wanted, default=0.0))))


def _spans(length: int, most: int) -> list[tuple[int, int]]:
    parts = math.ceil(length / most)
    edges = [round(k * length / parts) for k in range(parts + 1)]
    return list(pairwise(edges))


def normalised(
    values: np.ndarray,
    valid: np.ndarray,
    network: PresenceNet,
    scene: Scene,
    *,
    device: str | torch.device = "cpu",
) -> torch.Tensor:
    """
    Turn counts into the input of a network: standardised reflectance, 0 (the mean) where nothing
    was measured.

    The same as :meth:`PresenceNet.standardise` of the reflectance, made where the trunk runs:
    counts travel in half the bytes.

    Parameters
    ----------
    values : (bands, height, width) of the type of the scene
    valid : (height, width) bool

    Returns
    -------
    Tensor of shape (1, bands, height, width), float32
    """
    mean, std = (buffer.detach().cpu().double() for buffer in (network.mean, network.std))
    root = scene.signed_square
    scale, offset = (scene.scale, scene.offset) if root is None else (1.0, 0.0)
    gain = (scale / std).float().to(device)
    shift = ((-offset * scale - mean) / std).float().to(device)
    image = torch.from_numpy(values)[None].to(device)
    # as the trunk wants it: numbers are not copied once more
    image = image.to(torch.float32, memory_format=torch.channels_last, copy=True)
    image = image if root is None else squared(image, root)
    image.mul_(gain[:, None, None]).add_(shift[:, None, None])
    if not valid.all():
        image.masked_fill_(~torch.from_numpy(valid).to(device), 0.0)
    return image


@dataclass(frozen=True, eq=False)
class DenseUnit:
    """One block of cells, to be filled by one run of the trunk."""

    surface: DenseSurface
    block: Block

    @property
    def key(self) -> str:
        """Name in the journal."""
        key, block = self.block.key, self.block
        return f"{key}:{block.rows.stop}:{block.cols.stop}" if self.surface.by_pixel else key

    @property
    def pixels(self) -> Window:
        """Pixels of the scene that are read."""
        return self.block.pixels(self.surface.cell_px, self.surface.halo_px)

    @property
    def scene(self) -> Scene:
        """What is read, in the bands of the network."""
        return self.surface.scene

    def read(self) -> Read:
        """
        Return the counts of the block with its halo, and where they are valid; None: they are read
        some at a time while they are computed.
        """
        return None if self.surface.by_pixel else self.scene.read_in_strips(self.pixels)

    def compute(self, data: Read) -> Filled:
        """
        Return the valid pixels per cell (rows, cols), and the cells (rows, cols, length) if any
        pixel is valid.
        """
        valid, cells = self._in_parts() if data is None else self._at_once(*data)
        halo, cell_px = self.surface.halo_px, self.surface.cell_px
        inner = valid[halo : valid.shape[0] - halo, halo : valid.shape[1] - halo]
        rows, cols = inner.shape[0] // cell_px, inner.shape[1] // cell_px
        counts = inner.reshape(rows, cell_px, cols, cell_px).sum(axis=(1, 3), dtype=np.int32)
        skip = halo // cell_px
        return counts, None if cells is None else cells[skip : skip + rows, skip : skip + cols]

    def _at_once(self, values: np.ndarray, valid: np.ndarray) -> Filled:
        """Return where pixels are valid, and the cells of the block with its halo."""
        network, engine = self.surface.network, self.surface.engine
        if not valid.any():
            return valid, None

        def image(rows: slice) -> torch.Tensor:
            part = np.ascontiguousarray(values[:, rows])
            return normalised(part, valid[rows], network, self.scene, device=engine.device)

        return valid, engine.run_rows(network, image, values.shape[1])

    def _in_parts(self) -> Filled:
        """Return the same, of pixels that are read and looked at some at a time."""
        window = self.pixels
        valid = np.zeros((int(window.height), int(window.width)), dtype=bool)

        def noted() -> Iterator[Part]:
            for part in self.surface.pixel_parts.of(window):
                height, width = part.valid.shape
                valid[part.row : part.row + height, part.column : part.column + width] = part.valid
                yield part

        network, engine = self.surface.network, self.surface.engine
        return valid, engine.run_stored(network, self.scene, noted(), valid.shape)


@dataclass(frozen=True, eq=False)
class DenseSurface:
    """
    Probabilities of a network whose trunk sees all windows at once.

    Attributes
    ----------
    number
        Which of the networks that the predictor consists of.
    scene
        In the bands of the network.
    block_px
        Side of the ground of one block, without its halo.
    halo_px
        Ground around a block that the trunk sees and whose cells are dropped; the farther, the less
        the edge is felt.
    """

    positions: Positions
    number: int
    scene: Scene
    engine: Engine
    block_px: int
    halo_px: int

    @cached_property
    def pixel_parts(self) -> Parts:
        """Reads the scene some pixels at a time."""
        return Parts(self.scene, 2 * self.halo_px)

    @property
    def member(self) -> NetworkPredictor:
        """The network as a predictor."""
        return networks_of(self.positions.predictor)[self.number]

    @property
    def network(self) -> PresenceNet:
        """The network."""
        network = self.member.network
        assert network is not None
        return network

    @property
    def cell_px(self) -> int:
        """Pixels of the scene per cell of the trunk."""
        return int(self.network.stride)

    @property
    def phases(self) -> list[Phase]:
        """The placements of the cells."""
        return phases(self.positions.lattice, self.cell_px)

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of what is kept on the disk while the map is made."""
        length = self.network.projection.out_features
        arrays: dict[str, tuple[tuple[int, ...], str]] = {}
        for phase in self.phases:
            arrays[f"cells_{phase.name}"] = ((phase.height, phase.width, length), "float32")
            arrays[f"valid_{phase.name}"] = ((phase.height, phase.width), "int32")
        return arrays

    def open(self, folder: Path, units: Sequence[DenseUnit]) -> Store:
        """Make or continue the arrays of this surface in ``folder``, which ``units`` fill."""
        return Store(folder, self.arrays, self.parts(units))

    def parts(self, units: Sequence[DenseUnit]) -> dict[str, list[tuple[slice, ...]]]:
        """Return the rows and columns of the arrays that units fill."""
        found: dict[str, list[tuple[slice, ...]]] = {name: [] for name in self.arrays}
        for unit in units:
            for kind in ("cells", "valid"):
                found[f"{kind}_{unit.block.phase.name}"].append((unit.block.rows, unit.block.cols))
        return found

    def units(self) -> list[DenseUnit]:
        """
        Return what is to be done; blocks that no wanted window touches, or that the scene does not
        show, are left out.
        """
        units = []
        for phase in self.phases:
            needed = self._needed_cells(phase)
            for block in self._blocks(phase):
                part = needed[block.rows, block.cols]
                if part.any():
                    units.append(DenseUnit(self, block.around(part) if self.by_pixel else block))
        shown = self.scene.shown([unit.pixels for unit in units])
        return list(compress(units, shown))

    def _blocks(self, phase: Phase) -> Iterator[Block]:
        most = max(1, self.block_px // self.cell_px)
        if not self.by_pixel:
            return blocks(phase, most)
        stage = 4 * self.network.stem.out_channels * (self.cell_px // MEAN_PX) ** 2  # of a cell
        wide, grid = STAGE_BYTES // (most * stage), self.scene.block_grid()
        edges: list[int] = []
        if grid is None:
            wide = min(wide, most_columns(self.scene) // self.cell_px)
        else:  # the last row of blocks that a block of cells sees is all that it needs
            ends = grid.rows(phase.row0, phase.row0 + phase.height * self.cell_px)
            edges = [(end - self.halo_px - phase.row0) // self.cell_px for _, end in ends]
        return column_blocks(phase, most, max(1, wide), edges)

    @property
    def by_pixel(self) -> bool:
        """Whether the trunk begins with single pixels and looks little beyond them."""
        return self.network.trunk is not None and self.network.trunk.by_pixel

    def _needed_cells(self, phase: Phase) -> np.ndarray:
        wanted = self.positions.wanted
        needed = np.full((phase.height, phase.width), wanted.all())
        if needed.all():
            return needed
        side = self.positions.lattice.window_px // self.cell_px
        for row, col in np.argwhere(
            wanted[phase.rows.start :: phase.rows.step, phase.cols.start :: phase.cols.step]
        ):
            top, left = row * phase.step, col * phase.step
            needed[top : top + side, left : left + side] = True
        return needed

    def keep(self, store: Store, unit: DenseUnit, result: Filled) -> None:
        """Write the result of one unit."""
        counts, cells = result
        name, where = unit.block.phase.name, (unit.block.rows, unit.block.cols)
        parts = {f"valid_{name}": (where, counts)}
        if cells is not None:
            parts[f"cells_{name}"] = (where, cells)
        store.keep(unit.key, parts)

    def strip(self, store: Store, rows: slice) -> Strip:
        """Return the probabilities of some rows of positions."""
        positions = self.positions
        species = positions.predictor.species
        shape = rows.stop - rows.start, positions.lattice.width
        probability = np.full((len(species), *shape), np.nan, dtype=np.float32)
        embedding: np.ndarray | None = None
        for phase in self.phases:
            inside = [k for k, row in enumerate(phase.rows) if rows.start <= row < rows.stop]
            if not inside:
                continue
            pooled, seen = self._pooled(store, phase, inside)  # (rows, cols, length), (rows, cols)
            here = np.ix_([phase.rows[k] for k in inside], list(phase.cols))
            good = positions.predictable(seen, *here)
            if not good.any():
                continue
            r, c = np.nonzero(good)
            r, c = here[0].ravel()[r], here[1].ravel()[c]
            found, joined = self._classified(pooled[good], r, c)
            if embedding is None:
                embedding = np.full((joined.shape[1], *shape), np.nan, dtype=np.float32)
            r -= rows.start
            probability[:, r, c] = found.T
            embedding[:, r, c] = joined.T
        return Strip(rows, species, probability, positions, embedding)

    def _classified(
        self, pooled: np.ndarray, rows: np.ndarray, cols: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Return probabilities (n, species) and embeddings of windows at positions of the map, with
        the covariates and the position that the network sees beside the image.
        """
        member, network = self.member, self.network
        device = next(network.parameters()).device
        names, position = member.sees.covariates, member.sees.position_crs is not None
        beside: tuple[torch.Tensor | None, ...] = (None, None)
        sites = None
        if names or position or member.quantities:
            sites = self.positions.sites(rows, cols, tiles=False)
        if sites is not None and (names or position):
            inputs = site_tensors(
                sites, sites.site_ids, image=False, covariates=names, position=position
            )
            beside = tuple(
                None if value is None else value.to(device)
                for value in (inputs.covariates, inputs.position)
            )
        with torch.inference_mode():
            z = nn.functional.normalize(torch.from_numpy(pooled), dim=-1)  # (n, length)
            joined = network.fuse(z.to(device), *beside)
            logits = network.classify(joined)  # (n, species)
            if sites is None or not member.quantities:
                return torch.sigmoid(logits).cpu().numpy(), joined.cpu().numpy()
        found = logits.double().cpu().numpy()
        found = member.claims(found, sites, sites.site_ids)
        return found.astype(np.float32), joined.cpu().numpy()

    def _pooled(
        self, store: Store, phase: Phase, inside: list[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Return the mean of the cells of each window, and the share of its pixels that are valid.
        """
        side = self.positions.lattice.window_px // self.cell_px
        part = slice(inside[0] * phase.step, inside[-1] * phase.step + side)
        cells = torch.from_numpy(np.array(store[f"cells_{phase.name}"][part])).permute(2, 0, 1)
        seen = self._seen(store, phase, part)
        store.release()
        pooled = nn.functional.avg_pool2d(cells, side, phase.step).permute(1, 2, 0)
        return pooled.numpy(), seen

    def _seen(self, store: Store, phase: Phase, part: slice) -> np.ndarray:
        """Return the share of valid pixels of the windows in some rows of cells."""
        window_px = self.positions.lattice.window_px
        valid = torch.from_numpy(np.array(store[f"valid_{phase.name}"][part], dtype=np.float64))
        total = nn.functional.avg_pool2d(
            valid[None], window_px // self.cell_px, phase.step, divisor_override=1
        )
        seen: np.ndarray = (total[0] / window_px**2).numpy()
        return seen

    def fractions(self, store: Store) -> np.ndarray:
        """Return (height, width) the share of measured pixels in the window of each position."""
        fraction = np.zeros(self.positions.lattice.shape)
        for phase in self.phases:
            where = np.ix_(list(phase.rows), list(phase.cols))
            fraction[where] = self._seen(store, phase, slice(None))
        return fraction


def check_engine(predictor: Predictor, engine: EngineName) -> None:
    """
    Refuse numbers of 16 bits on a CPU.

    Raises
    ------
    ModelError
        A network of the predictor runs on a CPU.
    """
    if engine == "torch-fp16" and any(
        member.device.type == "cpu" for member in networks_of(predictor)
    ):
        raise ModelError(
            "Numbers of 16 bits are slower on a CPU. Use torch-fp16 on a GPU, or engine torch."
        )


def dense_surfaces(
    positions: Positions, *, block_px: int, engine: EngineName
) -> list[DenseSurface]:
    """Return one surface per network of the predictor."""
    surfaces = []
    for number, member in enumerate(networks_of(positions.predictor)):
        assert member.network is not None
        network = member.network.to(member.device).eval()
        scene = positions.scene.select(network.bands)
        running = Engine(engine, member.device.type)
        surfaces.append(
            DenseSurface(positions, number, scene, running, block_px, reach_px(network))
        )
    return surfaces


def reach_px(network: PresenceNet) -> int:
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


def why_not_dense(predictor: Predictor, lattice: Lattice) -> str:
    """
    Return why a predictor cannot be mapped densely at the positions of ``lattice``, or nothing.
    """
    members = networks_of(predictor)
    for member in members:
        window = member.sees.window_px, member.sees.margin_px
        if member.sees.bands and window != (lattice.window_px, lattice.margin_px):
            return "the members of the ensemble have different windows"
        assert member.network is not None
        if why := _why_not_dense(member.network, lattice):
            return f"of a member of the ensemble: {why}" if len(members) > 1 else why
    return "" if members else "it is not a network, or one of its members is none"


def _why_not_dense(network: PresenceNet, lattice: Lattice) -> str:
    cell_px = int(network.stride)
    if network.trunk is None:
        return "it sees no imagery"
    if not network.dense:
        return (
            f"its trunk {network.trunk.name} sees more of an image than a neighbourhood of fixed "
            "size"
        )
    shifts = math.lcm(lattice.stride_px, cell_px) // lattice.stride_px
    if shifts > MAX_SHIFTS:
        near = cell_px // MAX_SHIFTS
        return (
            f"a stride of {lattice.stride_px} px would run the trunk {shifts**2} times over; "
            f"multiples of {near} px need at most {MAX_SHIFTS**2}"
        )
    return ""
