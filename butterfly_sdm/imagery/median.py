"""The median of a few pictures of one ground, pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from butterfly_sdm.imagery.pixels import rounded

CHUNK_BYTES = 1 << 20  # what is sorted at once stays in the cache of a core
MISSING = np.uint16(65535)


def median_of(
    planes: Sequence[np.ndarray], valid: Sequence[np.ndarray], out: np.ndarray, nodata: float
) -> np.ndarray:
    """
    Write the median over the valid pictures of every pixel and band; halves are rounded to even.

    Planes are sorted by a network of minima and maxima, which handles sixteen pixels at an
    instruction, where sorting an axis handles one; of other types than uint16 NumPy finds it.

    Parameters
    ----------
    planes
        (bands, h, w) of one type each; overwritten.
    valid
        (h, w) bool each: where the picture is clear and measured in every band.
    out
        (bands, h, w) of that type; ``nodata`` where no picture is valid, never where one is.

    Returns
    -------
    ndarray of bool, shape (h, w)
        Where any picture is valid.
    """
    measured = np.zeros(out.shape[1:], dtype=bool)
    if not planes:
        out[:] = nodata
        return measured
    if out.dtype != np.uint16:
        return _median_of_any(planes, valid, out, nodata)
    rows = max(1, CHUNK_BYTES // (len(planes) * 2 * out.shape[2]))
    for top in range(0, out.shape[1], rows):
        part = slice(top, top + rows)
        seen = [one[part] for one in valid]
        count = np.zeros(seen[0].shape, np.uint16)
        for one in seen:
            count += one
        measured[part] = count > 0
        empty = count == 0
        low, high = _picks((np.maximum(count, 1) - 1) // 2), _picks(count // 2)
        missing = empty if empty.any() else None
        gaps = [None if one.all() else one.astype(np.uint16) - 1 for one in seen]  # missing: 65535
        for band in range(out.shape[0]):
            stack = [plane[band, part] for plane in planes]
            for plane, gap in zip(stack, gaps, strict=True):
                if gap is not None:
                    np.maximum(plane, gap, out=plane)
            _sort(stack)
            half = _between(_taken(stack, low), _taken(stack, high))
            half[half == nodata] = nodata + 1 if nodata < MISSING else nodata - 1
            if missing is not None:
                half[missing] = nodata
            out[band, part] = half
    return measured


def _median_of_any(
    planes: Sequence[np.ndarray], valid: Sequence[np.ndarray], out: np.ndarray, nodata: float
) -> np.ndarray:
    seen = np.stack(list(valid))  # (pictures, h, w)
    measured: np.ndarray = np.asarray(seen.any(axis=0))
    count = seen.sum(axis=0)[None]
    for band in range(out.shape[0]):
        stack = np.stack([plane[band].astype(np.float64) for plane in planes])
        stack = np.sort(np.where(seen, stack, np.inf), axis=0)  # what is missing comes last
        low = np.take_along_axis(stack, np.maximum(count - 1, 0) // 2, axis=0)[0]
        high = np.take_along_axis(stack, np.minimum(count // 2, len(stack) - 1), axis=0)[0]
        middle = np.where(measured, (low + high) / 2, 0.0)
        out[band] = np.where(measured, rounded(middle, out.dtype, nodata), nodata)
    return measured


def _sort(stack: list[np.ndarray]) -> None:
    """Sort planes pixel by pixel, in place; what is missing comes last."""
    spare = np.empty_like(stack[0])
    for last in range(len(stack) - 1, 0, -1):
        for i in range(last):
            np.minimum(stack[i], stack[i + 1], out=spare)
            np.maximum(stack[i], stack[i + 1], out=stack[i + 1])
            stack[i], spare = spare, stack[i]


def _between(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return the middle of two planes, halves to even."""
    gap = high - low
    half: np.ndarray = low + (gap >> 1)
    gap &= half
    gap &= 1
    half += gap
    return half


# Of a plane of numbers: where each of them stands; None: everywhere.
Picks = list[tuple[int, np.ndarray | None]]


def _picks(which: np.ndarray) -> Picks:
    numbers = np.flatnonzero(np.bincount(which.ravel()))
    if len(numbers) == 1:
        return [(int(numbers[0]), None)]
    return [(int(number), which == number) for number in numbers]


def _taken(stack: list[np.ndarray], picks: Picks) -> np.ndarray:
    """Return for every pixel the plane of its number."""
    (first, _), *others = picks
    if not others:
        return stack[min(first, len(stack) - 1)]
    found = stack[first].copy()
    for number, where in others:
        np.copyto(found, stack[min(number, len(stack) - 1)], where=where)
    return found
