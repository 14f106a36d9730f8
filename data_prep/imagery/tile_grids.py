"""Where tiles lie: one square of ground per centre, in one CRS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from affine import Affine
from pyproj import Transformer
from pyproj.exceptions import ProjError
from rasterio.crs import CRS
from rasterio.errors import CRSError

from butterfly_sdm.errors import RasterError
from butterfly_sdm.imagery.grids import OnGround, crs_of_scene, on_ground
from butterfly_sdm.imagery.products import metres_per_unit
from butterfly_sdm.imagery.scene import Scene
from data_prep.imagery.options import TileOptions


@dataclass(frozen=True)
class TileGrid:
    """
    The ground of n tiles of equal size.

    Attributes
    ----------
    crs
        CRS of all tiles.
    resolution
        Side of a pixel in units of ``crs``.
    resolution_m
        Side of a pixel in metres.
    size_px
        Side of a tile in pixels.
    left, top
        (n,) coordinates of the upper left corners.
    """

    crs: CRS
    resolution: float
    resolution_m: float
    size_px: int
    left: np.ndarray
    top: np.ndarray

    def __len__(self) -> int:
        return len(self.left)

    def transform(self, tile: int) -> Affine:
        """Return the affine transform of one tile."""
        return Affine(
            self.resolution, 0, float(self.left[tile]), 0, -self.resolution, float(self.top[tile])
        )

    def on_ground(self) -> OnGround:
        """Return what the squares measure on the ground."""
        half = self.size_px * self.resolution / 2
        side_m = self.size_px * self.resolution_m
        return on_ground(self.crs, self.left + half, self.top - half, side_m)

    def take(self, tiles: Sequence[int] | np.ndarray) -> TileGrid:
        """Return the grid of some of the tiles."""
        index = np.asarray(tiles)
        return replace(self, left=self.left[index], top=self.top[index])

    def bounds_in(self, crs: CRS) -> np.ndarray:
        """
        Return (n, 4) left, bottom, right, top of the tiles in another CRS (by 21 points on each
        edge).
        """
        side = self.size_px * self.resolution
        if crs == self.crs:
            return np.stack([self.left, self.top - side, self.left + side, self.top], axis=1)
        t = np.linspace(0, 1, 21)
        none, one = np.zeros(21), np.ones(21)
        edge = np.stack(
            [np.concatenate([t, t, none, one]), np.concatenate([none, one, t, t])], axis=1
        )
        x = self.left[:, None] + edge[:, 0] * side
        y = self.top[:, None] - edge[:, 1] * side
        there_x, there_y = transformer(self.crs, crs).transform(x, y)
        return np.stack([there_x.min(1), there_y.min(1), there_x.max(1), there_y.max(1)], axis=1)


def transformer(source: CRS, target: CRS) -> Transformer:
    """Return a transformer between two CRSs, coordinates always as easting (or longitude) first."""
    return _transformer(source.to_wkt(), target.to_wkt())


@lru_cache(maxsize=64)  # making one takes as long as transforming ten thousand points
def _transformer(source: str, target: str) -> Transformer:
    return Transformer.from_crs(source, target, always_xy=True)


def tile_grid(lon: np.ndarray, lat: np.ndarray, scene: Scene, options: TileOptions) -> TileGrid:
    """
    Place a tile around each centre.

    A tile in the scene's own CRS and resolution starts on a whole pixel of the scene, so that
    cutting it changes no value; its centre is then off by at most half a pixel. Any other tile is
    centred exactly, or on the squares of the lattice that the options ask for, which starts at the
    origin of the CRS (in EPSG:27700: the squares of the British National Grid).

    Parameters
    ----------
    lon, lat
        (n,) centres in degrees (EPSG:4326).
    scene
        Gives the pixels to align with, and the CRS if the options name none.

    Raises
    ------
    RasterError
        The CRS is unknown or in degrees, or a centre has no place in it.
    """
    target = tile_crs(scene, options.crs)
    unit = metres_per_unit(target, "The CRS of the tiles")
    resolution = options.resolution_m / unit
    try:
        x, y = transformer(CRS.from_epsg(4326), target).transform(
            np.asarray(lon, float), np.asarray(lat, float)
        )
    except ProjError as error:
        raise RasterError(
            f"The sites have no coordinates in {target.to_string()}: {error}."
        ) from error
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        wrong = int(np.flatnonzero(~(np.isfinite(x) & np.isfinite(y)))[0])
        raise RasterError(
            f"The centre {lon[wrong]:.4f}, {lat[wrong]:.4f} has no place in {target.to_string()}."
        )
    if options.lattice_m is not None:
        spacing = options.lattice_m / unit
        x, y = (np.floor(x / spacing) + 0.5) * spacing, (np.floor(y / spacing) + 0.5) * spacing
    side = options.size_px * resolution
    left, top = x - side / 2, y + side / 2
    if on_scene_pixels(scene, target, resolution):
        origin_x, origin_y = scene.transform.c, scene.transform.f
        left = origin_x + np.round((left - origin_x) / resolution) * resolution
        top = origin_y - np.round((origin_y - top) / resolution) * resolution
    return TileGrid(target, resolution, options.resolution_m, options.size_px, left, top)


def tile_crs(scene: Scene, crs: str | None) -> CRS:
    """
    Return the CRS of tiles: the one named, or else the scene's.

    Raises
    ------
    RasterError
        It is unknown or in degrees.
    """
    try:
        target = scene.crs if crs is None else CRS.from_user_input(crs)
    except CRSError as error:
        raise RasterError(
            f"tiles.crs = {crs!r} is no known CRS ({error}). Give one such as "
            f"{crs_of_scene(scene)}."
        ) from error
    if target.is_geographic:
        raise RasterError(
            f"Tiles in {target.to_string()} would be measured in degrees. Set tiles.crs to a "
            f"projected CRS of the region such as {crs_of_scene(scene)}."
        )
    return target


def on_scene_pixels(scene: Scene, crs: CRS, resolution: float) -> bool:
    """Return whether tiles of that CRS and resolution are made of whole pixels of the scene."""
    own = scene.transform
    return (
        crs == scene.crs
        and np.allclose((own.a, -own.e), resolution, rtol=1e-9, atol=0)
        and own.b == own.d == 0
    )
