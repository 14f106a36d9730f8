"""The lattice of positions that a map predicts, laid on the pixels of a scene."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from affine import Affine

from butterfly_sdm.errors import RasterError
from butterfly_sdm.imagery.scene import Scene


@dataclass(frozen=True)
class Lattice:
    """
    Positions every ``stride_px`` pixels of a scene; each is the centre of one pixel of the map.

    Attributes
    ----------
    scene_transform
        From (column, row) of the scene to its coordinates; north up.
    stride_px
        Side of a pixel of the map, in pixels of the scene.
    window_px
        Side of the ground a prediction speaks of, centred on the position; 0 for a point.
    margin_px
        Surroundings of the window that the trunk sees besides.
    row0, col0
        Pixel of the scene at the upper left corner of the map; may be negative.
    height, width
        Positions down and across.
    """

    scene_transform: Affine
    stride_px: int
    window_px: int
    margin_px: int
    row0: int
    col0: int
    height: int
    width: int

    @classmethod
    def of(cls, scene: Scene, *, stride_px: int, window_px: int, margin_px: int = 0) -> Lattice:
        """
        Lay a lattice over ``scene`` so that the map covers all of it.

        The edges of map pixels lie on whole multiples of their size in the CRS of the scene, so
        that maps of neighbouring scenes fit together without a seam. Where the pixels of the scene
        do not allow that (its corner is not a whole multiple of its resolution), the map begins at
        the corner of the scene.

        Raises
        ------
        RasterError
            The scene is rotated or has no square pixels.
        """
        transform = scene.transform
        if (
            transform.b
            or transform.d
            or transform.e >= 0
            or not math.isclose(transform.a, -transform.e, rel_tol=1e-6)
        ):
            raise RasterError(
                f"The scene is rotated or its pixels are not square ({tuple(transform)[:6]}). Warp "
                "it to a north-up grid first."
            )
        size = transform.a
        left, top = transform.c / size, transform.f / size
        row0 = col0 = 0
        if math.isclose(left, round(left), abs_tol=1e-3) and math.isclose(
            top, round(top), abs_tol=1e-3
        ):
            col0 = -(round(left) % stride_px)
            row0 = -(-round(top) % stride_px)
        height = math.ceil((scene.height - row0) / stride_px)
        width = math.ceil((scene.width - col0) / stride_px)
        return cls(transform, stride_px, window_px, margin_px, row0, col0, height, width)

    def part(self, rows: slice, cols: slice) -> Lattice:
        """Return the lattice of some rows and columns of positions, at the same places."""
        row0, col0 = (
            first + part.start * self.stride_px
            for first, part in ((self.row0, rows), (self.col0, cols))
        )
        height, width = rows.stop - rows.start, cols.stop - cols.start
        return replace(self, row0=row0, col0=col0, height=height, width=width)

    def around(self, bounds: tuple[float, float, float, float]) -> Lattice:
        """
        Return the lattice of the positions in a box of left, bottom, right and top; it may be
        empty.
        """
        left, bottom, right, top = bounds
        c0, r0 = ~self.transform * (left, top)
        c1, r1 = ~self.transform * (right, bottom)
        rows = _inside(r0, r1, self.height)
        return self.part(rows, _inside(c0, c1, self.width))

    @property
    def shape(self) -> tuple[int, int]:
        """Positions down and across."""
        return self.height, self.width

    @property
    def tile_px(self) -> int:
        """Side of the window with its margin."""
        return self.window_px + 2 * self.margin_px

    @property
    def transform(self) -> Affine:
        """From (column, row) of the map to coordinates."""
        grid, side = self.scene_transform, self.stride_px
        left, top = grid.c + grid.a * self.col0, grid.f + grid.e * self.row0
        return Affine(grid.a * side, 0.0, left, 0.0, grid.e * side, top)

    def window_starts(self) -> tuple[np.ndarray, np.ndarray]:
        """
        Return the first scene row of each row of windows, and the first column of each column of
        windows.
        """
        shift = (self.stride_px - self.window_px) // 2
        rows = self.row0 + np.arange(self.height) * self.stride_px + shift
        cols = self.col0 + np.arange(self.width) * self.stride_px + shift
        return rows, cols

    def coordinates(self, rows: Any, cols: Any) -> tuple[np.ndarray, np.ndarray]:
        """
        Return x and y of the centres of the map pixels ``(rows, cols)``, in the CRS of the scene.
        """
        grid = self.transform
        return grid.c + grid.a * (np.asarray(cols) + 0.5), grid.f + grid.e * (
            np.asarray(rows) + 0.5
        )


def _inside(first: float, last: float, length: int) -> slice:
    """Return the whole positions from one place to another, of those there are."""
    start = min(max(math.floor(first), 0), length)
    return slice(start, max(min(math.ceil(last), length), start))
