"""Grids: how their pixels lie on the ground, which CRS suits places, a scene on another grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from affine import Affine
from pyproj import CRS as ProjCRS
from pyproj import Geod, Transformer
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.warp import transform_bounds

from butterfly_sdm.errors import RasterError
from butterfly_sdm.imagery.products import metres_per_unit
from butterfly_sdm.imagery.scene import Scene

BRITISH_GRID = "EPSG:27700"
#: Size and rotation from which pixels are not what they are called: those of UTM and of the British
#: grid stay below within the area they are made for.
FAR_OFF, TURNED_DEG = 0.02, 6.0


@dataclass(frozen=True)
class OnGround:
    """
    How squares of a CRS lie on the ground.

    Attributes
    ----------
    side_m
        What the side of a square is called.
    east, north
        (n,) what it measures along the columns and rows of the grid, in metres; NaN where the CRS
        has no such place.
    turned
        (n,) degrees by which the grid is turned against north.
    """

    side_m: float
    east: np.ndarray
    north: np.ndarray
    turned: np.ndarray

    @property
    def off(self) -> np.ndarray:
        """(n,) the share by which a side is longer or shorter than it is called, the worse one."""
        sides = np.stack([self.east, self.north]) / self.side_m - 1
        return np.asarray(np.nan_to_num(np.abs(sides).max(axis=0)))

    @property
    def doubtful(self) -> np.ndarray:
        """(n,) whether a square is not what it is called, or turned."""
        return np.asarray((self.off > FAR_OFF) | (np.nan_to_num(np.abs(self.turned)) > TURNED_DEG))

    def words(self) -> str:
        """Say it of the worst squares, such as ``161 x 161 m and turned by 3 degrees``."""
        worst = int(self.off.argmax())
        east, north = self.east[worst], self.north[worst]
        found = f"{east:,.0f} x {north:,.0f} m" if self.off[worst] > FAR_OFF else ""
        turned = float(np.nanmax(np.abs(self.turned)))
        if turned <= TURNED_DEG:
            return found
        return f"{found} and " * bool(found) + f"turned by up to {turned:.0f} degrees"


def on_ground(crs: CRS, x: np.ndarray, y: np.ndarray, side_m: float) -> OnGround:
    """
    Measure squares of ``side_m`` nominal metres around places of a CRS by geodesics.

    Parameters
    ----------
    x, y
        (n,) coordinates in ``crs``.
    side_m
        Side; a degree counts as what it is northwards.
    """
    half = side_m / metres_per_unit(crs, "The grid") / 2
    x, y = np.asarray(x, float), np.asarray(y, float)
    to_degrees = Transformer.from_crs(crs, 4326, always_xy=True)
    geod = Geod(ellps="WGS84")

    def line(dx: float, dy: float) -> tuple[np.ndarray, np.ndarray]:
        start, end = (to_degrees.transform(x + k * dx, y + k * dy) for k in (-1, 1))
        ends = np.array([*start, *end])
        ends[:, ~np.isfinite(ends).all(axis=0)] = np.nan
        azimuth, _, length = geod.inv(*ends)
        return np.asarray(azimuth), np.asarray(length)

    east_azimuth, east = line(half, 0.0)
    _, north = line(0.0, half)
    return OnGround(side_m, east, north, (east_azimuth - 90 + 180) % 360 - 180)


def usual_crs(lon: Sequence[float] | np.ndarray, lat: Sequence[float] | np.ndarray) -> str:
    """
    Return the projected CRS people would choose for places: the British National Grid in its area,
    else their UTM zone.

    Parameters
    ----------
    lon, lat
        Degrees (WGS 84).

    Returns
    -------
    str
        Such as ``"EPSG:32633"``: the zone of the middle of the places.

    Examples
    --------
    >>> usual_crs([14.1, 16.2], [46.0, 46.9])
    'EPSG:32633'
    """
    lon, lat = np.asarray(lon, float), np.asarray(lat, float)
    area = ProjCRS.from_user_input(BRITISH_GRID).area_of_use
    if (
        area is not None
        and ((area.west <= lon) & (lon <= area.east)).all()
        and ((area.south <= lat) & (lat <= area.north)).all()
    ):
        return BRITISH_GRID
    east, north = (lon.min() + lon.max()) / 2, (lat.min() + lat.max()) / 2
    zone = min(int((east + 180) // 6) + 1, 60)
    return f"EPSG:{(32600 if north >= 0 else 32700) + zone}"


def crs_of_scene(scene: Scene) -> str:
    """Return the projected CRS people would choose for a scene: that of its middle."""
    lon, lat = _middle(scene, CRS.from_epsg(4326))
    if not np.isfinite([lon, lat]).all():
        return BRITISH_GRID
    return usual_crs((lon + 180) % 360 - 180, lat)


def grid_on_ground(scene: Scene, named: str | None) -> str | None:
    """
    Return the CRS in which to map a scene whose pixels are not what they are called (in degrees,
    in Web Mercator): the one ``named``, that of the tiles a model was trained on, if pixels are
    true there; of a scene in degrees else its UTM zone. None: the scene's own.
    """
    middle = _middle(scene, scene.crs)
    if (
        not scene.crs.is_geographic
        and not on_ground(scene.crs, *middle, 1000.0).off.max() > FAR_OFF
    ):
        return None
    if named is not None:
        target = CRS.from_user_input(named)
        if target == scene.crs:
            return None
        if target.is_projected:
            there = on_ground(target, *_middle(scene, target), 1000.0)
            if np.isfinite(there.east).all() and not there.off.max() > FAR_OFF:
                return named
    return crs_of_scene(scene) if scene.crs.is_geographic else None


def _middle(scene: Scene, crs: CRS) -> tuple[np.ndarray, np.ndarray]:
    left, bottom, right, top = scene.bounds
    x, y = np.array([(left + right) / 2]), np.array([(bottom + top) / 2])
    east, north = Transformer.from_crs(scene.crs, crs, always_xy=True).transform(x, y)
    return np.asarray(east), np.asarray(north)


def on_grid(scene: Scene, crs: str, *, wanted_m: float | None = None) -> Scene:
    """
    Return the scene resampled, while it is read, to north-up pixels of the same size in metres in
    another CRS; of ``wanted_m`` where pixels are not what they are called (Web Mercator, degrees)
    and show about as much ground.

    The pixels lie on whole multiples of their size, so that scenes brought to one grid fit
    together.

    Raises
    ------
    RasterError
        The CRS is unknown or not in metres.
    """
    try:
        target = CRS.from_user_input(crs)
    except CRSError as error:
        raise RasterError(
            f"There is no CRS {crs!r}: {error}. Use a code such as {crs_of_scene(scene)}."
        ) from error
    if not target.is_projected:
        raise RasterError(
            f"The grid of a map needs a CRS in metres; {crs} is in degrees. Use one such as "
            f"{crs_of_scene(scene)}."
        )
    if target == scene.crs:
        return scene
    size = float(round(scene.resolution_m)) or scene.resolution_m
    if wanted_m is not None:
        real = pixel_m(scene)
        if abs(real / scene.resolution_m - 1) > FAR_OFF and abs(real / wanted_m - 1) < 0.1:
            size = wanted_m
    bounds = transform_bounds(scene.crs, target, *scene.bounds, densify_pts=101)
    return _covering(scene, target, bounds, size, size)


def at_resolution(scene: Scene, size_m: float) -> Scene:
    """
    Return the scene resampled, while it is read, to pixels of another size in its own CRS.

    Parameters
    ----------
    size_m
        Side of a pixel, in metres as the CRS counts them.
    """
    size = scene.transform.a * size_m / scene.resolution_m
    return _covering(scene, scene.crs, scene.bounds, size, size_m)


def pixel_m(scene: Scene) -> float:
    """Return the side of a pixel on the ground at the middle of a scene, in metres."""
    shown = on_ground(scene.crs, *_middle(scene, scene.crs), scene.resolution_m)
    return math.sqrt(float(shown.east[0] * shown.north[0]))


def _covering(
    scene: Scene,
    crs: CRS,
    bounds: tuple[float, float, float, float],
    size: float,
    size_m: float,
) -> Scene:
    """Return the scene on pixels of ``size`` units of a CRS whose edges are multiples of it."""
    left, bottom, right, top = bounds
    col, row = math.floor(left / size), math.ceil(top / size)
    width, height = math.ceil(right / size) - col, row - math.floor(bottom / size)
    transform = Affine(size, 0.0, col * size, 0.0, -size, row * size)
    return replace(
        scene, crs=crs, transform=transform, width=width, height=height, resolution_m=size_m
    )
