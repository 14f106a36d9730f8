"""Write a map as a tiled, compressed, cloud-optimised GeoTIFF with one named band per species."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.shutil import copy as copy_raster
from rasterio.windows import Window

from butterfly_sdm.data.artefact import atomic_path
from butterfly_sdm.errors import RasterError
from butterfly_sdm.mapping.lattice import Lattice

TILE_PX = 256
CACHE_MB = 64
TAG = "BUTTERFLY_SDM"


@dataclass(frozen=True)
class Encoding:
    """
    How numbers are stored: ``number = stored * scale``, and which stored value means nothing is predicted.

    Whole numbers keep probabilities to half of ``scale`` and make files two to six times smaller.
    """

    dtype: str
    scale: float
    nodata: float

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Return what is stored for ``values``; NaN becomes nodata."""
        known = np.isfinite(values)
        if self.dtype == "float32":
            return np.where(known, values, self.nodata).astype(np.float32)
        stored = np.clip(np.rint(np.where(known, values, 0.0) / self.scale), 0, self.nodata - 1)
        return np.where(known, stored, self.nodata).astype(self.dtype)


ENCODINGS = {
    "float32": Encoding("float32", 1.0, -9999.0),
    "uint16": Encoding("uint16", 1e-4, 65535.0),
    "uint8": Encoding("uint8", 0.004, 255.0),
}


class MapWriter:
    """Takes a map row by row; made by :func:`open_map`."""

    def __init__(self, target: Any, encoding: Encoding) -> None:
        self._target = target
        self._encoding = encoding

    def write(self, rows: slice, values: np.ndarray) -> None:
        """Write (bands, rows, cols) numbers, NaN where nothing is predicted."""
        window = Window(0, rows.start, values.shape[2], rows.stop - rows.start)
        self._target.write(self._encoding.encode(values), window=window)

    def tag(self, **tags: Any) -> None:
        """Add metadata: JSON under the key ``BUTTERFLY_SDM_NAME``."""
        self._target.update_tags(**{f"{TAG}_{name.upper()}": json.dumps(value, sort_keys=True) for name, value in tags.items()})


@contextmanager
def open_map(
    out: Path,
    lattice: Lattice,
    crs: Any,
    bands: Sequence[str],
    *,
    dtype: str,
    scratch: Path,
    units: Mapping[str, str] | None = None,
    compress: str = "deflate",
) -> Iterator[MapWriter]:
    """
    Yield a writer; when the block ends well, ``out`` is there, whole and cloud-optimised.

    Parameters
    ----------
    scratch
        Folder for the file that takes the rows before overviews and final order are made.
    dtype
        float32, or uint16 (steps of 0.0001) or uint8 (steps of 0.004).

    Raises
    ------
    RasterError
        The type is unknown.
    """
    if dtype not in ENCODINGS:
        raise RasterError(f"A map cannot be stored as {dtype!r}. Use {', '.join(ENCODINGS)}.")
    encoding = ENCODINGS[dtype]
    height, width = lattice.shape
    # small maps in one tile: a GeoTIFF tile is a multiple of 16 px
    layout = {"tiled": True, "blockxsize": TILE_PX, "blockysize": TILE_PX, "interleave": "band", "BIGTIFF": "IF_SAFER"}
    rows_file = scratch / "rows.tif"
    rows_file.unlink(missing_ok=True)
    with rasterio.Env(GDAL_CACHEMAX=CACHE_MB, GDAL_TIFF_INTERNAL_MASK=True):
        with rasterio.open(
            rows_file,
            "w",
            driver="GTiff",
            height=height,
            width=width,
            count=len(bands),
            dtype=encoding.dtype,
            crs=crs,
            transform=lattice.transform,
            nodata=encoding.nodata,
            **layout,
        ) as target:
            for number, name in enumerate(bands, start=1):
                target.set_band_description(number, name)
                target.set_band_unit(number, (units or {}).get(name, "presence probability"))
            if encoding.scale != 1.0:
                target.scales = [encoding.scale] * len(bands)
            target.update_tags(AREA_OR_POINT="Area", TIFFTAG_SOFTWARE="butterfly_sdm")
            yield MapWriter(target, encoding)
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
                COMPRESS=compress.upper(),
                PREDICTOR=3 if encoding.dtype == "float32" else 2,
                NUM_THREADS=str(os.cpu_count() or 1),
                **{key: str(value).upper() for key, value in layout.items()},
            )
    rows_file.unlink()


def _overviews(height: int, width: int) -> list[int]:
    factors, factor = [], 2
    while max(height, width) > TILE_PX * factor // 2:
        factors.append(factor)
        factor *= 2
    return factors


def read_tags(path: Path) -> dict[str, Any]:
    """Return the metadata of a map, by lower-case name."""
    with rasterio.open(path) as source:
        tags = source.tags()
    return {key[len(TAG) + 1 :].lower(): json.loads(value) for key, value in tags.items() if key.startswith(f"{TAG}_")}
