"""The median of a few pictures of one ground, pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from butterfly_sdm.imagery.pixels import apart, rounded

CHUNK_BYTES = 1 << 20  # what is sorted at once stays in the cache of a core


def median_of(
    planes: Sequence[np.ndarray], valid: Sequence[np.ndarray], out: np.ndarray, nodata: float
) -> np.ndarray:
    """
    Write the median over the valid pictures of every pixel and band; halves are rounded to even.

    Planes are sorted by a network of minima and maxima, which handles sixteen pixels at an
    instruction, where sorting an axis handles one; of other types than uint16 NumPy finds it. What
    is missing at a pixel becomes the highest and the lowest number in turn, so that the middle
    stays where it is, but for one place where an odd number is missing.

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
        fills, odd = _fills(seen)
        some = seen[0].copy()
        for one in seen[1:]:
            some |= one
        measured[part] = some
        missing = None if some.all() else ~some
        for band in range(out.shape[0]):
            stack = [plane[band, part] for plane in planes]
            for plane, (high, low) in zip(stack, fills, strict=True):
                if high is not None:
                    plane |= high
                if low is not None:
                    plane &= low
            half = _middle(stack, odd)
            if nodata == 0:
                np.maximum(half, 1, out=half)
            else:
                apart(half, nodata)
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


# Bits that are set where a plane is to be the highest number, and that stay where it is not to be
# the lowest; None: nowhere.
Fill = tuple[np.ndarray | None, np.ndarray | None]


def _fills(valid: Sequence[np.ndarray]) -> tuple[list[Fill], np.ndarray | None]:
    """
    Return what makes each plane the highest or the lowest number in turn where it is missing, and
    bits that are set where an odd number of planes is missing; None: nowhere.
    """
    fills: list[Fill] = []
    odd: np.ndarray | None = None
    for one in valid:
        if one.all():
            fills.append((None, None))
            continue
        missing = ~one
        if odd is None:
            fills.append((_bits(missing), None))
            odd = missing
            continue
        low = missing & odd
        fills.append((_bits(missing & ~odd), None if not low.any() else ~_bits(low)))
        odd = odd ^ missing
    return fills, None if odd is None or not odd.any() else _bits(odd)


def _bits(where: np.ndarray) -> np.ndarray:
    """Return 65535 where true, else 0."""
    return np.asarray(np.negative(where.view(np.uint8), dtype=np.int8).astype(np.int16)).view(
        np.uint16
    )


def _middle(stack: list[np.ndarray], odd: np.ndarray | None) -> np.ndarray:
    """
    Return the middle of planes, pixel by pixel; they are overwritten.

    Parameters
    ----------
    odd
        Bits that are set where an odd number of planes is missing, one more of them the highest
        number than the lowest: there the middle lies half a place lower.
    """
    count = len(stack)
    low, high = (count - 1) // 2, count // 2
    if odd is not None and count > 1:
        low = (count - 2) // 2
    spare = np.empty_like(stack[0])
    for i, j, least, most in _network(count, tuple({low, high})):
        one, other = stack[i], stack[j]
        if least and most:
            np.minimum(one, other, out=spare)
            np.maximum(one, other, out=other)
            stack[i], spare = spare, one
        elif least:
            np.minimum(one, other, out=one)
        else:
            np.maximum(one, other, out=other)
    if low == high:
        return stack[low]
    gap = stack[high] - stack[low]
    if odd is not None:
        gap &= odd if count % 2 else ~odd
    half: np.ndarray = stack[high] - gap if count % 2 else stack[low].copy()
    half += gap >> 1
    gap &= half  # of an odd gap, one more if that is even
    gap &= 1
    half += gap
    return half


@lru_cache
def _network(count: int, wanted: tuple[int, ...]) -> tuple[tuple[int, int, bool, bool], ...]:
    """
    Return what puts the numbers that are ``wanted`` in their place in a sorted list: pairs of
    places to be put in order, and whether the smaller and the larger is needed afterwards.

    Batcher's merge exchange (Knuth, The Art of Computer Programming 3, algorithm 5.2.2M), without
    what no wanted place depends on.
    """
    pairs = []
    top = 1 << max(count - 1, 1).bit_length() - 1
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while d > 0:
            pairs += [(i, i + d) for i in range(count - d) if i & p == r]
            d, q, r = q - p, q >> 1, p
        p >>= 1
    needed, kept = set(wanted), []
    for i, j in reversed(pairs):
        if i in needed or j in needed:
            kept.append((i, j, i in needed, j in needed))
            needed |= {i, j}
    return tuple(reversed(kept))
