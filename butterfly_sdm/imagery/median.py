"""The median of a few pictures of one ground, pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CHUNK_BYTES = 1 << 20  # what is sorted at once stays in the cache of a core
MISSING = np.uint16(65535)


def median_of(
    planes: Sequence[np.ndarray], valid: Sequence[np.ndarray], out: np.ndarray, nodata: int
) -> np.ndarray:
    """
    Write the median over the valid pictures of every pixel and band; halves are rounded to even.

    Planes are sorted by a network of minima and maxima, which handles sixteen pixels at an
    instruction, where sorting an axis handles one.

    Parameters
    ----------
    planes
        (bands, h, w) uint16 each; overwritten.
    valid
        (h, w) bool each: where the picture is clear and measured in every band.
    out
        (bands, h, w) uint16; ``nodata`` where no picture is valid, never where one is.

    Returns
    -------
    ndarray of bool, shape (h, w)
        Where any picture is valid.
    """
    measured = np.zeros(out.shape[1:], dtype=bool)
    if not planes:
        out[:] = nodata
        return measured
    rows = max(1, CHUNK_BYTES // (len(planes) * 2 * out.shape[2]))
    for top in range(0, out.shape[1], rows):
        part = slice(top, top + rows)
        seen = [one[part] for one in valid]
        count = np.zeros(seen[0].shape, np.uint16)
        for one in seen:
            count += one
        measured[part] = count > 0
        gaps = [None if one.all() else one.astype(np.uint16) - 1 for one in seen]  # missing: 65535
        for band in range(out.shape[0]):
            stack = [plane[band, part] for plane in planes]
            for plane, gap in zip(stack, gaps, strict=True):
                if gap is not None:
                    np.maximum(plane, gap, out=plane)
            _sort(stack)
            out[band, part] = _middle(stack, count, nodata)
    return measured


def _sort(stack: list[np.ndarray]) -> None:
    """Sort planes pixel by pixel, in place; what is missing comes last."""
    spare = np.empty_like(stack[0])
    for last in range(len(stack) - 1, 0, -1):
        for i in range(last):
            np.minimum(stack[i], stack[i + 1], out=spare)
            np.maximum(stack[i], stack[i + 1], out=stack[i + 1])
            stack[i], spare = spare, stack[i]


def _middle(stack: list[np.ndarray], count: np.ndarray, nodata: int) -> np.ndarray:
    """Return the median of sorted planes, of which the first ``count`` are valid."""
    lower = (np.maximum(count, 1) - 1) // 2
    upper = count // 2
    low, high = _taken(stack, lower), _taken(stack, upper)
    gap = high - low
    half: np.ndarray = low + (gap >> 1)
    half += gap & half & 1
    half[half == nodata] = nodata + 1 if nodata < MISSING else nodata - 1
    half[count == 0] = nodata
    return half


def _taken(stack: list[np.ndarray], which: np.ndarray) -> np.ndarray:
    """Return for every pixel the plane of that number."""
    first = int(which.flat[0])
    if (which == first).all():
        return stack[first]
    found = stack[0].copy()
    for number in range(1, len(stack)):
        np.copyto(found, stack[number], where=which == number)
    return found
