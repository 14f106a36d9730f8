"""
Prediction position by position, through ``predict`` of any predictor: the exact way, and the only
one for most models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np
from rasterio.windows import Window

from butterfly_sdm.core.block_store import Store
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import Members
from butterfly_sdm.imagery.scene import Scene
from butterfly_sdm.mapping.surfaces.lattice import Lattice
from butterfly_sdm.mapping.surfaces.networks import embed
from butterfly_sdm.mapping.surfaces.positions import Positions
from butterfly_sdm.mapping.surfaces.rows import Strip

# Positions down and across a unit: a tile of 256 px and 4 bands holds half a MB.
WITH_TILES, WITHOUT_TILES = 8, 64

Places = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class WindowUnit:
    """Some rows and columns of positions, to be predicted one by one."""

    surface: WindowSurface
    rows: slice
    cols: slice

    @property
    def key(self) -> str:
        """Name in the journal."""
        return f"{self.rows.start}:{self.cols.start}"

    @property
    def pixels(self) -> Window:
        """Pixels of the scene that are read."""
        lattice = self.surface.positions.lattice
        side = max(lattice.tile_px, lattice.stride_px)
        tops, lefts = (starts - lattice.margin_px for starts in lattice.window_starts())
        top, left = int(tops[self.rows.start]), int(lefts[self.cols.start])
        tall, wide = (
            (part.stop - 1 - part.start) * lattice.stride_px + side
            for part in (self.rows, self.cols)
        )
        return Window(left, top, wide, tall)

    @property
    def scene(self) -> Scene:
        """What is read, in the bands of the predictor."""
        return self.surface.positions.scene

    def read(self) -> tuple[np.ndarray, Places, Dataset | None]:
        """
        Return the valid fraction of each position, and those that get a value: their rows and
        columns within the unit, and what the predictor is shown of them.
        """
        positions = self.surface.positions
        fraction = valid_fractions(positions.scene, positions.lattice, self.rows, self.cols)
        rows, cols = np.nonzero(positions.predictable(fraction, self.rows, self.cols))
        sites = None
        if len(rows):
            sites = positions.sites(
                rows + self.rows.start, cols + self.cols.start, tiles=self.surface.tiles
            )
        self.scene.passed(self.pixels)
        return fraction, (rows, cols), sites

    def compute(self, data: tuple[np.ndarray, Places, Dataset | None]) -> dict[str, np.ndarray]:
        """
        Return the valid fractions (rows, cols), and probabilities and spread (rows, cols, species),
        NaN where none.
        """
        fraction, where, sites = data
        positions = self.surface.positions
        result = {"fraction": fraction}
        for name, length in self.surface.numbers.items():
            result[name] = np.full((*fraction.shape, length), np.nan, np.float32)
        if sites is None:
            return result
        predictor = positions.predictor
        if positions.embedding:
            result["embedding"][where] = embed(predictor, sites, sites.site_ids).to_numpy()
        if positions.spread and isinstance(predictor, Members):
            tables = np.stack(
                [table.to_numpy() for table in predictor.predict_members(sites, sites.site_ids)]
            )
            result["probability"][where] = tables.mean(axis=0)
            result["spread"][where] = tables.std(axis=0, ddof=1)
        else:
            result["probability"][where] = predictor.predict(sites, sites.site_ids).to_numpy()
        return result


MOST_PIXELS = 2**24  # read at a time to count those that are measured
MOST_APART = 2**22  # the same of squares that do not overlap: nothing would be read twice


def valid_fractions(scene: Scene, lattice: Lattice, rows: slice, cols: slice) -> np.ndarray:
    """
    Return the share of pixels with a measurement in the window of each position; of its map pixel
    if it has no window.
    """
    side = lattice.window_px or lattice.stride_px
    shift = 0 if lattice.window_px else -(lattice.stride_px // 2)
    tops, lefts = (
        starts[part] + shift
        for starts, part in zip(lattice.window_starts(), (rows, cols), strict=True)
    )
    share: np.ndarray = _count_valid(scene, tops, lefts, side) / side**2
    return share


def _count_valid(scene: Scene, tops: np.ndarray, lefts: np.ndarray, side: int) -> np.ndarray:
    """Return (tops, lefts) how many pixels of squares are measured, reading so many at a time."""
    height, width = (int(starts[-1] - starts[0]) + side for starts in (tops, lefts))
    ground = Window(int(lefts[0]), int(tops[0]), width, height)
    if not scene.shown([ground])[0]:
        return np.zeros((len(tops), len(lefts)), dtype=np.int64)
    apart = all(len(starts) < 2 or starts[1] - starts[0] >= side for starts in (tops, lefts))
    most = min(MOST_PIXELS, MOST_APART) if apart else MOST_PIXELS
    if height * width > most and max(len(tops), len(lefts)) > 1:
        axis = 0 if len(lefts) == 1 or (height >= width and len(tops) > 1) else 1
        middle = len((tops, lefts)[axis]) // 2
        parts = [
            _count_valid(scene, tops if axis else tops[half], lefts[half] if axis else lefts, side)
            for half in (slice(None, middle), slice(middle, None))
        ]
        return np.concatenate(parts, axis=axis)
    if height * width > MOST_PIXELS:  # one square, strip by strip
        strip = max(1, MOST_PIXELS // side)
        windows = (
            Window(int(lefts[0]), int(tops[0]) + at, side, min(strip, side - at))
            for at in range(0, side, strip)
        )
        return np.array([[sum(int(scene.read(window)[1].sum()) for window in windows)]])
    _, valid = scene.read(ground)
    if len(tops) == len(lefts) == 1:
        return np.array([[int(valid.sum())]])
    # sums from the corner
    total = np.zeros((height + 1, width + 1), dtype=np.int64)
    total[1:, 1:] = valid.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    r, c = (tops - tops[0])[:, None], (lefts - lefts[0])[None, :]
    count: np.ndarray = (
        total[r + side, c + side] - total[r, c + side] - total[r + side, c] + total[r, c]
    )
    return count


@dataclass(frozen=True, eq=False)
class WindowSurface:
    """Probabilities of any predictor, position by position."""

    positions: Positions

    @property
    def tiles(self) -> bool:
        """Whether the predictor looks at images."""
        return bool(self.positions.predictor.sees.bands)

    @property
    def numbers(self) -> dict[str, int]:
        """Numbers per position, by what they are."""
        species = len(self.positions.predictor.species)
        kept = {"probability": species}
        if self.positions.spread:
            kept["spread"] = species
        if self.positions.embedding:
            kept["embedding"] = self.positions.embedding
        return kept

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of what is kept on the disk while the map is made."""
        shape = self.positions.lattice.shape
        arrays: dict[str, tuple[tuple[int, ...], str]] = {"fraction": (shape, "float32")}
        arrays |= {name: ((*shape, length), "float32") for name, length in self.numbers.items()}
        return arrays

    def open(self, folder: Path, units: Sequence[WindowUnit]) -> Store:
        """Make or continue the arrays of this surface in ``folder``, which ``units`` fill."""
        return Store(folder, self.arrays, self.parts(units))

    def parts(self, units: Sequence[WindowUnit]) -> dict[str, list[tuple[slice, ...]]]:
        """Return the rows and columns of the arrays that units fill."""
        places: list[tuple[slice, ...]] = [(unit.rows, unit.cols) for unit in units]
        return dict.fromkeys(self.arrays, places)

    def units(self) -> list[WindowUnit]:
        """
        Return what is to be done; positions that nobody wants, or that the scene does not show, are
        left out.
        """
        side = WITH_TILES if self.tiles else WITHOUT_TILES
        height, width = self.positions.lattice.shape
        units = [
            WindowUnit(
                self, slice(row, min(row + side, height)), slice(col, min(col + side, width))
            )
            for row in range(0, height, side)
            for col in range(0, width, side)
        ]
        units = [unit for unit in units if self.positions.wanted[unit.rows, unit.cols].any()]
        return list(compress(units, self.positions.scene.shown([unit.pixels for unit in units])))

    def keep(self, store: Store, unit: WindowUnit, result: dict[str, np.ndarray]) -> None:
        """Write the result of one unit."""
        store.keep(
            unit.key, {name: ((unit.rows, unit.cols), values) for name, values in result.items()}
        )

    def strip(self, store: Store, rows: slice) -> Strip:
        """Return the probabilities of some rows of positions."""
        found = {name: np.array(store[name][rows]).transpose(2, 0, 1) for name in self.numbers}
        unseen = ~self.positions.wanted[rows] | (np.array(store["fraction"][rows]) == 0)
        for values in found.values():
            values[:, unseen] = np.nan
        store.release()
        return Strip(
            rows,
            self.positions.predictor.species,
            found["probability"],
            self.positions,
            found.get("embedding"),
            found.get("spread"),
        )

    def fractions(self, store: Store) -> np.ndarray:
        """Return (height, width) the share of measured pixels in the window of each position."""
        return np.asarray(store["fraction"])
