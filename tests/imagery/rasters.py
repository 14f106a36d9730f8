"""Small rasters with known pixels, for tests."""

from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

BANDS = ("red", "green", "blue", "nir")


def counts(height: int = 60, width: int = 80, bands: int = 4, seed: int = 0) -> np.ndarray:
    """Return random counts, none of them nodata."""
    return np.random.default_rng(seed).integers(1, 5000, (bands, height, width)).astype(np.uint16)


def write_raster(
    path: Path,
    values: np.ndarray,
    *,
    left: float = 400_000,
    top: float = 200_000,
    pixel: float = 10,
    crs: str | None = "EPSG:27700",
    names: tuple[str, ...] | None = BANDS,
    nodata: float | None = 0,
    **profile,
) -> Path:
    """Write (bands, height, width) values as a GeoTIFF, tiled unless told otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    layout = {"tiled": True, "blockxsize": 16, "blockysize": 16} | profile
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=len(values),
        height=values.shape[1],
        width=values.shape[2],
        dtype=values.dtype,
        crs=crs,
        transform=from_origin(left, top, pixel, pixel),
        nodata=nodata,
        **layout,
    ) as out:
        out.write(values)
        if names is not None:
            out.descriptions = names[: len(values)]
    return path
