"""Which rows form the batches of an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from butterfly_sdm.errors import DataError


def shuffled(
    rows: np.ndarray, batch_size: int, rng: np.random.Generator, *, at_least: int = 2
) -> Iterator[np.ndarray]:
    """
    Yield every row once in random order; a last batch of fewer than ``at_least`` rows is left out
    unless alone.
    """
    order = rng.permutation(rows)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        if len(batch) >= at_least or start == 0:
            yield batch


def balanced(
    rows: np.ndarray, classes: np.ndarray, batch_size: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """
    Yield batches in which every class has the same share; rows of small classes come several times.

    Parameters
    ----------
    rows, classes
        (n,) rows and the class of each.
    batch_size
        Rounded down to a multiple of the number of classes, but not below two rows of each.
    """
    groups = [rows[classes == value] for value in np.unique(classes)]
    share = max(2, batch_size // len(groups))
    streams = [_endless(group, rng) for group in groups]
    for _ in range(max(1, len(rows) // (share * len(groups)))):
        yield np.concatenate([[next(stream) for _ in range(share)] for stream in streams])


def _endless(rows: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from rng.permutation(rows).tolist()


def split_by_group(
    groups: Sequence[object],
    fractions: tuple[float, float, float],
    seed: int,
    labels: Sequence[object] | None = None,
) -> np.ndarray:
    """
    Divide rows into training, validation and test so that no group is in two parts.

    Parameters
    ----------
    groups
        (n,) patient, person or video of each row; rows without a group of their own are each a
        group.
    fractions
        Of the groups, per part.
    seed
        Of the draw.
    labels
        (n,) class of each row; the draw is made among groups of the same first label, so that
        classes keep their share.

    Returns
    -------
    ndarray of shape (n,)
        ``train``, ``validation`` or ``test``.

    Raises
    ------
    DataError
        The fractions do not sum to 1.
    """
    if abs(sum(fractions) - 1) > 1e-6:
        raise DataError(
            f"The fractions of a split sum to 1; {fractions} sum to {sum(fractions):g}."
        )
    names, codes = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    strata = np.zeros(len(names), dtype=int)
    if labels is not None:
        strata[codes[::-1]] = np.unique(np.asarray(labels, dtype=str), return_inverse=True)[1][::-1]
    rng = np.random.default_rng(seed)
    part_of = np.empty(len(names), dtype="<U10")
    for stratum in np.unique(strata):
        members = rng.permutation(np.flatnonzero(strata == stratum))
        ends = np.round(np.cumsum(fractions) * len(members)).astype(int)
        for part, start, end in zip(
            ("train", "validation", "test"), (0, *ends[:-1]), ends, strict=True
        ):
            part_of[members[start:end]] = part
    return part_of[codes]


def check_groups(groups: Sequence[object], parts: Sequence[str], what: str) -> None:
    """
    Refuse a split in which one group is in two parts.

    Raises
    ------
    DataError
        Names the group.
    """
    seen: dict[object, str] = {}
    for group, part in zip(groups, parts, strict=True):
        if seen.setdefault(group, part) != part:
            raise DataError(
                f"The {what} {group} is in {seen[group]} and in {part}. Keep each {what} in one "
                "part of the split."
            )
