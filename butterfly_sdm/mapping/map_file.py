"""Write a map as a tiled, compressed, cloud-optimised GeoTIFF with one named band per species."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.shutil import copy as copy_raster
from rasterio.windows import Window

from butterfly_sdm.core.files import atomic_path, read_json, sha256
from butterfly_sdm.errors import MissingFileError, RasterError
from butterfly_sdm.imagery.products import open_raster
from butterfly_sdm.mapping.options import Encoded

TILE_PX = 256
CACHE_BYTES = 64 * 2**20  # rasterio takes a number as bytes
TAG = "BUTTERFLY_SDM"
LAYOUT = {
    "tiled": True,
    "blockxsize": TILE_PX,
    "blockysize": TILE_PX,
    "interleave": "band",
    "BIGTIFF": "IF_SAFER",
}


@dataclass(frozen=True)
class Encoding:
    """
    How numbers are stored: ``number = stored * scale``, and which stored value means nothing is
    predicted.

    Whole numbers keep probabilities to half of ``scale`` and make files two to six times smaller.
    """

    dtype: str
    scale: float
    nodata: float

    def scales(self, largest: Sequence[float]) -> list[float]:
        """Return the scale of each band whose values go up to ``largest``."""
        return (
            [self.scale * max(1.0, value) for value in largest]
            if self.dtype != "float32"
            else [1.0] * len(largest)
        )

    def encode(self, values: np.ndarray, scales: Sequence[float]) -> np.ndarray:
        """Return what is stored for (bands, rows, cols) ``values``; NaN becomes nodata."""
        known = np.isfinite(values)
        if self.dtype == "float32":
            return np.where(known, values, self.nodata).astype(np.float32)
        whole = np.rint(np.where(known, values, 0.0) / np.asarray(scales)[:, None, None])
        return np.where(known, np.clip(whole, 0, self.nodata - 1), self.nodata).astype(self.dtype)


ENCODINGS: dict[Encoded, Encoding] = {
    "float32": Encoding("float32", 1.0, -9999.0),
    "uint16": Encoding("uint16", 1e-4, 65535.0),
    "uint8": Encoding("uint8", 0.004, 255.0),
}


@dataclass(frozen=True)
class Band:
    """A band of a map: its name, what its numbers are and a number none exceeds."""

    name: str
    unit: str = "presence probability"
    largest: float = 1.0


class MapWriter:
    """Takes a map row by row, from the first to the last; made by :func:`open_map`."""

    def __init__(self, target: Any, encoding: Encoding, scales: Sequence[float]) -> None:
        self._target = target
        self._encoding = encoding
        self._scales = scales
        self._digest = hashlib.sha256()

    def write(self, rows: slice, values: np.ndarray) -> None:
        """Write (bands, rows, cols) numbers, NaN where nothing is predicted."""
        stored = self._encoding.encode(values, self._scales)
        _digest(self._digest, stored)
        self._target.write(
            stored, window=Window(0, rows.start, values.shape[2], rows.stop - rows.start)
        )

    def tag(self, **tags: Any) -> None:
        """
        Add metadata: JSON under the key ``BUTTERFLY_SDM_NAME``; to be called when all rows are
        written.
        """
        tags = {**tags, "sha256": self._digest.hexdigest()}
        self._target.update_tags(
            **{
                f"{TAG}_{name.upper()}": json.dumps(value, sort_keys=True)
                for name, value in tags.items()
            }
        )


def _digest(digest: Any, stored: np.ndarray) -> None:
    # row by row: the order does not depend on how many rows come at a time
    little = stored.astype(stored.dtype.newbyteorder("<"), copy=False)
    for row in range(little.shape[1]):
        digest.update(np.ascontiguousarray(little[:, row]))


@contextmanager
def open_map(
    out: Path,
    shape: tuple[int, int],
    transform: Affine,
    crs: Any,
    bands: Sequence[Band],
    *,
    dtype: Encoded,
    scratch: Path,
) -> Iterator[MapWriter]:
    """
    Yield a writer; when the block ends well, ``out`` is there, whole and cloud-optimised.

    Parameters
    ----------
    scratch
        Folder for the file that takes the rows before overviews and final order are made.
    dtype
        float32, or uint16 (steps of 0.0001) or uint8 (steps of 0.004).
    """
    encoding = ENCODINGS[dtype]
    height, width = shape
    rows_file = scratch / "rows.tif"
    rows_file.unlink(missing_ok=True)
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES, GDAL_TIFF_INTERNAL_MASK=True):
        with rasterio.open(
            rows_file,
            "w",
            driver="GTiff",
            height=height,
            width=width,
            count=len(bands),
            dtype=encoding.dtype,
            crs=crs,
            transform=transform,
            nodata=encoding.nodata,
            **LAYOUT,
        ) as target:
            for number, band in enumerate(bands, start=1):
                target.set_band_description(number, band.name)
                target.set_band_unit(number, band.unit)
            scales = encoding.scales([band.largest for band in bands])
            if encoding.dtype != "float32":
                target.scales = scales
            target.update_tags(AREA_OR_POINT="Area", TIFFTAG_SOFTWARE="butterfly_sdm")
            yield MapWriter(target, encoding, scales)
        factors = _overviews(height, width)
        if factors:
            with rasterio.open(rows_file, "r+") as target:
                target.build_overviews(factors, Resampling.average)
        with atomic_path(out) as temporary:
            temporary.unlink()
            copy_raster(
                rows_file,
                temporary,
                driver="GTiff",
                COPY_SRC_OVERVIEWS="YES",
                COMPRESS="DEFLATE",
                PREDICTOR=3 if encoding.dtype == "float32" else 2,
                NUM_THREADS=str(os.cpu_count() or 1),
                **{key: str(value).upper() for key, value in LAYOUT.items()},
            )
    rows_file.unlink()


def _overviews(height: int, width: int) -> list[int]:
    factors, factor = [], 2
    while max(height, width) > TILE_PX * factor // 2:
        factors.append(factor)
        factor *= 2
    return factors


def read_tags(path: Path) -> dict[str, Any]:
    """
    Return the metadata of a map, by lower-case name.

    Raises
    ------
    MissingFileError, RasterError
        There is no such file, or it is no map of this package.
    """
    if not Path(path).is_file():
        raise MissingFileError(
            f"There is no map {path}. Make one with: butterfly-sdm map RUN SCENE --out MAP.tif"
        )
    try:
        with open_raster(path) as source:
            tags = source.tags()
    except (RasterioError, RasterError) as error:
        raise RasterError(
            f"{path} is not a map: it cannot be read as a GeoTIFF. Name a map that butterfly-sdm "
            "map wrote."
        ) from error
    try:
        found = {
            key[len(TAG) + 1 :].lower(): json.loads(value)
            for key, value in tags.items()
            if key.startswith(f"{TAG}_")
        }
    except ValueError as error:
        raise RasterError(
            f"{path} is damaged: its metadata cannot be read ({error}). Make the map again."
        ) from error
    if "sha256" not in found:
        raise RasterError(
            f"{path} is not a map of butterfly_sdm: its metadata lacks {TAG}_SHA256. Name another "
            "file."
        )
    return found


def check_map(path: Path) -> list[str]:
    """
    Compare a map with what was written.

    Returns
    -------
    list of str
        One sentence per problem; empty if all is well.

    Raises
    ------
    MissingFileError, RasterError
        There is no such file, or it is no map of this package.
    """
    from rio_cogeo.cogeo import cog_validate

    stated = _stated_checksum(path)
    if stated is not None and stated != "1220" + sha256(
        path
    ):  # 1220: the multihash of 32 bytes of SHA-256
        return [
            f"{path} was changed after it was written: its bytes no longer have the checksum in "
            "its STAC item."
        ]
    expected = read_tags(path)["sha256"]
    digest = hashlib.sha256()
    problems = []
    try:
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), open_raster(path) as source:
            for row in range(0, source.height, TILE_PX):
                rows = min(TILE_PX, source.height - row)
                _digest(digest, source.read(window=Window(0, row, source.width, rows)))
    except (RasterioError, RasterError) as error:
        return [f"{path} is damaged: {error}. Make the map again."]
    if digest.hexdigest() != expected:
        problems.append(
            f"{path} was changed after it was written: its values no longer have the checksum in "
            "its metadata."
        )
    _, errors, _ = cog_validate(path)
    problems += [f"{path} is no longer cloud-optimised: {error}" for error in errors]
    return problems


def _stated_checksum(path: Path) -> str | None:
    """Return the checksum of the whole file in the STAC item beside a map, if there is one."""
    item = path.with_suffix(".json")
    if not item.is_file():
        return None
    value = read_json(item)
    assets = value.get("assets") if isinstance(value, dict) else None
    for asset in assets.values() if isinstance(assets, dict) else ():
        if (
            isinstance(asset, dict)
            and Path(str(asset.get("href"))).name == path.name
            and "file:checksum" in asset
        ):
            return str(asset["file:checksum"])
    return None
