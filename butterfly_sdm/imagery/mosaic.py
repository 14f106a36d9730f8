"""A mosaic: the bands, grid and numbers that pieces share as one scene."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import calculate_default_transform, transform_bounds
from rasterio.windows import Window

from butterfly_sdm.errors import RasterError
from butterfly_sdm.imagery.options import Reading
from butterfly_sdm.imagery.pixels import (
    UNSIGNED,
    PixelType,
    fits,
    smallest_type,
    without_value,
)
from butterfly_sdm.imagery.products import (
    SENTINEL2,
    Grid,
    Layer,
    Piece,
    open_raster,
    reading_pixels,
)

# Fractions, such as reflectance itself, are read as whole numbers of this step if their scale would
# leave fewer.
REFLECTANCE, COARSEST = 1e-4, 1e-3


@dataclass(frozen=True)
class Mosaic:
    """
    What pieces share as one scene.

    Attributes
    ----------
    pieces
        As they are read: of other types than whole numbers of reflectance, as files hold them.
    dtype, nodata, scale, offset
        Of the numbers in which they are read.
    """

    pieces: tuple[Piece, ...]
    bands: tuple[str, ...]
    grid: Grid
    dtype: PixelType
    nodata: float
    scale: float
    offset: float


def mosaic_of(pieces: Sequence[Piece], reading: Reading) -> Mosaic:
    """
    Return the bands, grid and numbers that pieces share.

    Raises
    ------
    RasterError
        They do not fit together.
    """
    bands = _common_bands(pieces)
    dtype = _pixel_type(pieces, bands, reading)
    if dtype != "uint16":
        pieces = tuple(_as_they_are(piece, bands) for piece in pieces)
    scale, offset = _common_scale(pieces, reading, dtype)
    nodata = _common_nodata(pieces, dtype)
    return Mosaic(tuple(pieces), bands, mosaic_grid(pieces), dtype, nodata, scale, offset)


def _common_bands(pieces: Sequence[Piece]) -> tuple[str, ...]:
    first, last = pieces[0], pieces[-1]
    common = tuple(band for band in first.bands if all(band in piece.bands for piece in pieces))
    if not common:
        raise RasterError(
            f"{first.name} has the bands {', '.join(first.bands)}, {last.name} has "
            f"{', '.join(last.bands)}: they share none. Give scenes with the same bands."
        )
    return common


def _is_reflectance(bands: Sequence[str]) -> bool:
    """Return whether any band is one of an optical sensor, by its name."""
    return any(band in SENTINEL2.values() for band in bands)


def _pixel_type(pieces: Sequence[Piece], bands: Sequence[str], reading: Reading) -> PixelType:
    """
    Return the type in which a scene is read: the one that is stated; else whole numbers of
    reflectance, or, of signed and fractional bands that are none, the smallest that holds them.

    Raises
    ------
    RasterError
        No type holds them, or the one that is stated does not hold fractions.
    """
    layers = [layer for p in pieces for layer in p.layers if layer.slots(bands)]
    dtypes = {layer.dtype for layer in layers}
    if reading.dtype is None:
        if dtypes <= set(UNSIGNED) or _is_reflectance(bands):
            return "uint16"
        return smallest_type(dtypes, layers[0].path if len(dtypes) == 1 else "The mosaic")
    broken = next((layer for layer in layers if np.dtype(layer.dtype).kind == "f"), None)
    if broken is not None and reading.dtype not in ("uint16", "float32"):
        raise RasterError(
            f"{broken.path} holds fractions ({broken.dtype}), which scenes.dtype: {reading.dtype} "
            "cannot hold. Leave scenes.dtype out, or set it to float32."
        )
    return reading.dtype


def _as_they_are(piece: Piece, bands: Sequence[str]) -> Piece:
    """
    Return a piece whose numbers are read as they are: where its files state nothing, 0 is a value
    of signed numbers and of fractions, and numbers that are no reflectance are their own values.
    """
    layers = tuple(
        replace(layer, nodata=float(without_value(layer.dtype)))
        if layer.nodata is None or (layer.supposed and layer.dtype not in UNSIGNED)
        else layer
        for layer in piece.layers
    )
    plain = piece.unscaled and not _is_reflectance(bands)
    return replace(piece, layers=layers, scale=1.0 if plain else piece.scale)


def _common_scale(
    pieces: Sequence[Piece], reading: Reading, dtype: PixelType
) -> tuple[float, float]:
    """Return the scale and offset of the numbers in which the pieces are read."""
    scales, offsets = {piece.scale for piece in pieces}, {piece.offset for piece in pieces}
    if len(scales) > 1:
        raise RasterError(
            "The scenes have different scales "
            f"({', '.join(f'{value:g}' for value in sorted(scales))}). Convert them to one first."
        )
    if len(offsets) > 1 and not reading.harmonise:
        low, high = (
            next(piece.name for piece in pieces if piece.offset == value)
            for value in (min(offsets), max(offsets))
        )
        raise RasterError(
            f"The scenes mix processing baselines: zero reflectance is {min(offsets):g} in {low} "
            f"and {max(offsets):g} in "
            f"{high}. Set harmonise: true to bring them to one offset, or use products of one "
            "baseline."
        )
    scale = scales.pop()
    if dtype != "uint16":
        return scale, min(offsets)
    fractions = all(np.dtype(layer.dtype).kind == "f" for piece in pieces for layer in piece.layers)
    for piece in pieces:
        # fractions beside counts are not read with the scale of these
        if np.dtype(piece.layers[0].dtype).kind == "f" and (not fractions or reading.scale is None):
            _check_scale(piece)
    return (REFLECTANCE, 0.0) if fractions and scale > COARSEST else (scale, min(offsets))


def _common_nodata(pieces: Sequence[Piece], dtype: PixelType) -> float:
    if dtype == "float32":
        return float("nan")
    layers = [layer for piece in pieces for layer in piece.layers]
    values = Counter(
        layer.nodata
        for layer in layers
        if layer.nodata is not None
        and (0 <= layer.nodata <= 65535 if dtype == "uint16" else fits(layer.nodata, dtype))
    )
    value = min(values, key=lambda number: (-values[number], number)) if values else None
    if value is None or not float(value).is_integer():
        return int(without_value(dtype))
    return int(value)


def _check_scale(piece: Piece) -> None:
    """
    Look at the middle of a file of fractions: with a scale for counts, reflectance would become
    zero everywhere.
    """
    layer = piece.layers[0]
    window = Window(max(0, layer.width // 2 - 128), max(0, layer.height // 2 - 128), 256, 256)
    window = window.intersection(Window(0, 0, layer.width, layer.height))
    with open_raster(layer.path) as source, reading_pixels(layer.path):
        raw = source.read(list(layer.indexes), window=window)
    seen = raw[:, layer.measured(raw)]
    if seen.size and 0 < np.abs(seen).max() * piece.scale < 0.001:
        raise RasterError(
            f"{piece.name} holds fractions of up to {np.abs(seen).max():.3g}; with the scale "
            f"{piece.scale:g} all reflectance "
            "would be zero. If they are reflectance already, set scenes.scale: 1.0."
        )


def mosaic_grid(pieces: Sequence[Piece]) -> Grid:
    """
    Choose CRS and pixels of the mosaic (the most frequent CRS, the finest pixels in it) and cover
    all pieces.
    """
    layers = [piece.layers[0] for piece in pieces]
    frequency = Counter(layer.crs.to_wkt() for layer in layers)
    own = [layer for layer in layers if frequency[layer.crs.to_wkt()] == max(frequency.values())]
    own = [layer for layer in own if layer.crs == own[0].crs]
    finest = min(own, key=lambda layer: abs(layer.transform.a))
    crs, transform = finest.crs, finest.transform
    if transform.b or transform.d or transform.a < 0 or transform.e > 0:  # rotated or upside down
        transform, _, _ = calculate_default_transform(
            crs, crs, finest.width, finest.height, *bounds_in(finest, crs)
        )
    boxes = np.array([bounds_in(layer, crs) for layer in layers])
    (left, bottom), (right, top) = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    c0, r0 = ~transform * (float(left), float(top))
    c1, r1 = ~transform * (float(right), float(bottom))
    column, row = int(np.floor(c0 + 1e-3)), int(np.floor(r0 + 1e-3))
    shape = int(np.ceil(c1 - 1e-3)) - column, int(np.ceil(r1 - 1e-3)) - row
    return crs, transform * Affine.translation(column, row), *shape


def bounds_in(layer: Layer, crs: CRS) -> tuple[float, float, float, float]:
    """Return left, bottom, right and top of a file in a CRS."""
    corners = [layer.transform * (x, y) for x in (0, layer.width) for y in (0, layer.height)]
    xs, ys = zip(*corners, strict=True)
    box = min(xs), min(ys), max(xs), max(ys)
    return box if layer.crs == crs else transform_bounds(layer.crs, crs, *box)
