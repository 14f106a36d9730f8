"""What the stored numbers of scenes and tiles mean."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from butterfly_sdm.imagery.embeddings.decoding import Decoding


class Meaning(Protocol):
    """What says what stored numbers mean: a scene, or the card of tiles."""

    @property
    def scale(self) -> float: ...  # noqa: D102
    @property
    def offset(self) -> float: ...  # noqa: D102
    @property
    def signed_square(self) -> float | None: ...  # noqa: D102


def values_of(stored: np.ndarray, of: Meaning) -> np.ndarray:
    """
    Return what stored numbers mean, in their shape, as float64.

    >>> from types import SimpleNamespace
    >>> counts = SimpleNamespace(scale=0.5, offset=1.0, signed_square=None)
    >>> values_of(np.array([1, 3]), counts)
    array([0., 1.])
    """
    if of.signed_square is not None:
        rule = Decoding("signed_square", of.signed_square, dtype=str(stored.dtype))
        return rule.decode(stored).astype(np.float64)
    return (stored.astype(np.float64) - of.offset) * of.scale
