"""The type in which pixels are kept, and which of its numbers stands for none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypeVar

import numpy as np

from butterfly_sdm.errors import RasterError
from butterfly_sdm.imagery.blocks import by_pixel

PixelType = Literal["uint8", "int8", "uint16", "int16", "float32"]
TYPES: tuple[PixelType, ...] = ("uint8", "int8", "uint16", "int16", "float32")  # small ones first
UNSIGNED = ("uint8", "uint16")
ROWS, CHUNK_BYTES = 64, 1 << 18  # looked at in one go
T = TypeVar("T")


def smallest_type(dtypes: Iterable[str], what: str) -> PixelType:
    """
    Return the smallest type that holds every number of several types exactly.

    Raises
    ------
    RasterError
        None of them does.

    Examples
    --------
    >>> smallest_type(["uint8", "int8"], "two files")
    'int16'
    >>> smallest_type(["uint16", "int16"], "two files")
    'float32'
    """
    held = sorted(set(dtypes))
    for name in TYPES:
        if all(np.can_cast(np.dtype(dtype), np.dtype(name), "safe") for dtype in held):
            return name
    raise RasterError(
        f"{what} holds {' and '.join(held)}; tiles are kept as {', '.join(TYPES)}, and none of "
        "them holds every such number exactly. State scenes.dtype (float32 rounds to 7 digits), or "
        "convert the files."
    )


def without_value(dtype: str) -> float:
    """
    Return what stands for no measurement where files do not say it: NaN of fractions, the lowest
    number of signed types, 0 of the others.

    >>> [without_value(dtype) for dtype in ("uint16", "int8", "float32")]
    [0, -128, nan]
    """
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return float("nan")
    return int(np.iinfo(kind).min)


def fits(value: float | None, dtype: str | np.dtype[Any]) -> bool:
    """Return whether a value can stand for no measurement in a type."""
    if value is None:
        return False
    if np.dtype(dtype).kind == "f":
        return True
    limits = np.iinfo(np.dtype(dtype))
    return float(value).is_integer() and limits.min <= value <= limits.max


def measured(values: Any, nodata: float) -> Any:
    """
    Return where numbers, an array or a tensor of any shape, are measured.

    Parameters
    ----------
    nodata
        The number that is not; NaN: every NaN.
    """
    return values == values if nodata != nodata else values != nodata


def measured_in_all(values: np.ndarray, nodata: float) -> np.ndarray:
    """Return where every band of (bands, height, width) numbers is measured: (height, width)."""
    found = np.ones(values.shape[1:], dtype=bool)
    # one look at all numbers, where it tells that none is missing
    lowest = values.dtype.kind in "iu" and nodata == np.iinfo(values.dtype).min
    if by_pixel(values):
        several = max(1, CHUNK_BYTES // max(1, values[:, :1].nbytes))
        for top in range(0, values.shape[1], several):
            rows = slice(top, top + several)
            part = np.moveaxis(values[:, rows], 0, -1)
            if lowest and part.min(initial=1) != nodata:
                continue
            first = measured(part[..., 0], nodata)  # mostly all bands are missing, or none
            if lowest and part[first].min(initial=1) != nodata:
                found[rows] = first
                continue
            there = measured(part, nodata)
            if not there.all():
                found[rows] = there.all(axis=-1)
        return found
    for top in range(0, values.shape[1], ROWS):  # which stay in the cache of a core
        rows = slice(top, top + ROWS)
        if lowest and values[:, rows].min(initial=1) != nodata:
            continue
        for band in values[:, rows]:
            found[rows] &= measured(band, nodata)
    return found


def same(one: float | None, other: float | None) -> bool:
    """Return whether two numbers that stand for no measurement are one; NaN is NaN."""
    return one == other or (one is not None and other is not None and one != one and other != other)


def rounded(values: np.ndarray, dtype: str | np.dtype[Any], nodata: float) -> np.ndarray:
    """
    Return resampled numbers in the type they are kept in; none of them becomes nodata.

    Whole numbers are rounded and kept within their type.
    """
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return values.astype(kind, copy=False)
    limits = np.iinfo(kind)
    whole: np.ndarray = np.rint(values).clip(limits.min, limits.max).astype(kind)
    return apart(whole, nodata)


def apart(values: np.ndarray, nodata: float) -> np.ndarray:
    """Move measured whole numbers that equal nodata to the number beside it, in place."""
    if values.dtype.kind != "f":
        beside = nodata + 1 if nodata < np.iinfo(values.dtype).max else nodata - 1
        values[values == nodata] = beside
    return values
