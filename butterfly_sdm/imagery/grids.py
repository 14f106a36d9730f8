"""The grid of a map: that of its scene, or one in another CRS."""

from __future__ import annotations

import math
from dataclasses import replace

from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.warp import transform_bounds

from butterfly_sdm.errors import RasterError
from butterfly_sdm.imagery.scene import Scene


def on_grid(scene: Scene, crs: str) -> Scene:
    """
    Return the scene resampled, while it is read, to north-up pixels of the same size in metres in
    another CRS.

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
            f"There is no CRS {crs!r}: {error}. Use a code such as EPSG:27700."
        ) from error
    if not target.is_projected:
        raise RasterError(
            f"The grid of a map needs a CRS in metres; {crs} is in degrees. Use one such as "
            "EPSG:27700."
        )
    if target == scene.crs:
        return scene
    size = float(round(scene.resolution_m)) or scene.resolution_m
    left, bottom, right, top = transform_bounds(scene.crs, target, *scene.bounds, densify_pts=101)
    col, row = math.floor(left / size), math.ceil(top / size)
    width, height = math.ceil(right / size) - col, row - math.floor(bottom / size)
    transform = Affine(size, 0.0, col * size, 0.0, -size, row * size)
    return replace(
        scene, crs=target, transform=transform, width=width, height=height, resolution_m=size
    )
