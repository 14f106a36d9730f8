"""Which rows form the batches of an epoch."""

from collections.abc import Iterator

import numpy as np


def shuffled(rows: np.ndarray, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield every row once in random order; a last batch of one row is left out unless alone."""
    order = rng.permutation(rows)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        if len(batch) > 1 or start == 0:
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


def paired(
    rows: np.ndarray, classes: np.ndarray, batch_size: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """
    Yield batches in which every row has another one of its class, as contrastive losses need it.

    Rows of a class come two by two, in random order, each once; where a class has an odd number,
    one of its rows comes twice, the second time as a partner. A class of a single row is alone.

    Parameters
    ----------
    rows, classes
        (n,) rows and the class of each.
    batch_size
        Rounded down to an even number.
    """
    couples: list[np.ndarray] = []
    for value in np.unique(classes):
        order = rng.permutation(rows[classes == value])
        if len(order) % 2 and len(order) > 1:
            order = np.append(order, rng.choice(order[:-1]))
        couples += np.array_split(order, (len(order) + 1) // 2)
    places = rng.permutation(len(couples))
    for start in range(0, len(places), max(1, batch_size // 2)):
        yield np.concatenate([couples[n] for n in places[start : start + batch_size // 2]])


def _endless(rows: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from rng.permutation(rows).tolist()
