"""The difference of two maps: another year, another model, another way of predicting."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from butterfly_sdm.errors import DataError
from butterfly_sdm.imagery.products import open_raster
from butterfly_sdm.mapping.map_file import Band, open_map
from butterfly_sdm.mapping.map_reader import MapReader

ROWS = 64


def map_difference(later: str | Path, earlier: str | Path, out: str | Path) -> dict[str, float]:
    """
    Write ``later - earlier`` for every band both maps have, on the grid of ``later``.

    ``earlier`` is resampled (bilinear) if it lies on another grid. NaN where either has no value.

    Parameters
    ----------
    later, earlier
        Maps of this package, or GeoTIFFs with named bands.
    out
        GeoTIFF to write.

    Returns
    -------
    dict
        ``bands``, ``positions`` compared, and over all of them ``mean``, ``mean_abs`` and
        ``max_abs`` difference.

    Raises
    ------
    DataError
        The maps share no band, or no place.
    """
    one, two = MapReader(later), MapReader(earlier)
    names = [name for name in one.names if name in two.names]
    if not names:
        raise DataError(
            f"{later} and {earlier} share no band: nothing to compare. Map the same species."
        )
    total = absolute = largest = 0.0
    count = positions = 0
    with ExitStack() as stack:
        stack.enter_context(rasterio.Env(GDAL_CACHEMAX=64 * 2**20))
        first, second = (
            stack.enter_context(open_raster(later)),
            stack.enter_context(open_raster(earlier)),
        )
        if (two.crs, two.transform, two.shape) != (one.crs, one.transform, one.shape):
            second = stack.enter_context(
                WarpedVRT(
                    second,
                    crs=one.crs,
                    transform=one.transform,
                    height=one.shape[0],
                    width=one.shape[1],
                    resampling=Resampling.bilinear,
                )
            )
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bands = [Band(name, "difference") for name in names]
        with open_map(
            Path(out), one.shape, one.transform, one.crs, bands, dtype="float32", scratch=scratch
        ) as writer:
            for row in range(0, one.shape[0], ROWS):
                rows = slice(row, min(row + ROWS, one.shape[0]))
                window = Window(0, row, one.shape[1], rows.stop - row)
                apart = _values(first, one, names, window) - _values(second, two, names, window)
                writer.write(rows, apart)
                known = apart[np.isfinite(apart)]
                positions += int(np.isfinite(apart).all(axis=0).sum())
                count += known.size
                total += float(known.sum())
                absolute += float(np.abs(known).sum())
                largest = max(largest, float(np.abs(known).max())) if known.size else largest
            if not count:
                raise DataError(f"{later} and {earlier} share no place: nothing to compare.")
            found = {
                "bands": len(names),
                "positions": positions,
                "mean": total / count,
                "mean_abs": absolute / count,
                "max_abs": largest,
            }
            writer.tag(difference=found, later=one.tags["sha256"], earlier=two.tags["sha256"])
    return found


def _values(source: Any, reader: MapReader, names: list[str], window: Window) -> np.ndarray:
    indexes = reader.indexes(names)
    stored = source.read(indexes, window=window)
    scales = reader.scales[np.array(indexes) - 1][:, None, None]
    return np.where(stored == reader.nodata, np.nan, stored.astype(np.float64) * scales)
