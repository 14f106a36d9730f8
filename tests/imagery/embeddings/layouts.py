"""Files of embeddings in the published layouts, with known values."""

from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

from tests.imagery.rasters import write_raster

ZONE_30, ZONE_31 = "EPSG:32630", "EPSG:32631"


def stored_bytes(bands: int = 64, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """Return random signed bytes, none of them nodata."""
    return np.random.default_rng(seed).integers(-127, 128, (bands, height, width)).astype(np.int8)


def alphaearth_value(stored: np.ndarray) -> np.ndarray:
    """The formula of the documentation."""
    return ((stored / 127.5) ** 2) * np.sign(stored)


def write_alphaearth(
    folder: Path,
    stored: np.ndarray,
    *,
    left: float = 500_000,
    top: float = 5_700_000,
    crs: str = ZONE_30,
    year: int = 2023,
    bottom_up: bool = True,
    name: str = "x8qqwcsisbgygl2ry-0000008192-0000000000",
    **profile,
) -> Path:
    """
    Write (bands, height, width) bytes, rows from the north, as Source Cooperative stores them: from
    south to north, with names A00 ... and nodata -128.
    """
    zone = f"{crs[-2:]}N"
    path = folder / "annual" / str(year) / zone / f"{name}.tiff"
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = stored.shape[1:]
    transform = Affine(10, 0, left, 0, -10, top)
    if bottom_up:
        transform = Affine(10, 0, left, 0, 10, top - 10 * height)
        stored = stored[:, ::-1]
    layout = {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=len(stored),
        height=height,
        width=width,
        dtype="int8",
        crs=crs,
        transform=transform,
        nodata=-128,
        **(layout | profile),
    ) as out:
        out.write(stored)
        out.descriptions = tuple(f"A{number:02d}" for number in range(len(stored)))
    return path


def write_tessera(
    folder: Path,
    stored: np.ndarray,
    scales: np.ndarray,
    *,
    lon: float = 0.15,
    lat: float = 52.05,
    left: float = 300_007.4,
    top: float = 5_770_003.1,
    crs: str = ZONE_31,
    year: int = 2024,
) -> Path:
    """Write (bands, height, width) bytes and (height, width) scales as geotessera stores them."""
    grid = f"grid_{lon:.2f}_{lat:.2f}"
    tile = folder / "global_0.1_degree_representation" / str(year) / grid / f"{grid}.npy"
    mask = folder / "global_0.1_degree_tiff_all" / f"{grid}.tiff"
    return write_tessera_as(tile, mask, stored, scales, left=left, top=top, crs=crs)


def write_tessera_as(
    tile: Path,
    mask: Path,
    stored: np.ndarray,
    scales: np.ndarray,
    *,
    left: float,
    top: float,
    crs: str = ZONE_31,
) -> Path:
    """Write a tile, its scales beside it and the landmask that says where it lies."""
    tile.parent.mkdir(parents=True, exist_ok=True)
    np.save(tile, np.moveaxis(stored, 0, -1))
    np.save(tile.with_name(f"{tile.stem}_scales.npy"), scales)
    land = np.ones((1, *stored.shape[1:]), np.uint8)
    write_raster(mask, land, left=left, top=top, crs=crs, names=None, nodata=None)
    return tile
