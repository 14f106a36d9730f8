"""What is known of places as plain arrays, cell by cell, for the two models of a community."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

#: Visits beyond this many say nothing more: their noise is far below what the models leave open.
MOST_VISITS = 600.0
#: Bounds of the share of what there was that a partial list tells.
TOLD = (0.05, 1.0)


@dataclass(frozen=True, eq=False)
class Thinned:
    """
    One partial list per place.

    Attributes
    ----------
    listed
        (places, species) bool: told. What is not told was seen, or not, and is thinned alike.
    told
        (places,) share of the species present that a list of this length tells; 0: there is no
        list at this place.
    """

    listed: np.ndarray
    told: np.ndarray


@dataclass(frozen=True, eq=False)
class Evidence:
    """
    What is known at places, per species.

    Attributes
    ----------
    k, n
        (places, species) visits on which it was seen, of visits on which it was looked for; n is 0
        where nothing is known.
    thinned
        Partial lists: the first of every place, then the second of those with two, and so on.
    effort
        (places, species) visits of which at least one saw it, though nobody knows how many; 0: none
        known of.
    """

    k: np.ndarray
    n: np.ndarray
    thinned: Sequence[Thinned] = ()
    effort: np.ndarray | None = field(default=None)

    @property
    def known(self) -> np.ndarray:
        """(places,) bool: whether anything is known there."""
        known: np.ndarray = np.asarray((self.n > 0).any(axis=1))
        for one in self.thinned:
            known = known | (one.told > 0)
        if self.effort is not None:
            known = known | (self.effort > 0).any(axis=1)
        return known

    @property
    def cells(self) -> np.ndarray:
        """(places, species) bool: where something is known of this very species."""
        cells: np.ndarray = np.asarray(self.n > 0)
        for one in self.thinned:
            cells = np.asarray(cells | (one.told > 0)[:, None])
        return cells if self.effort is None else np.asarray(cells | (self.effort > 0))

    def take(self, rows: slice | np.ndarray) -> Evidence:
        """Return what is known of some places."""
        return Evidence(
            self.k[rows],
            self.n[rows],
            [Thinned(one.listed[rows], one.told[rows]) for one in self.thinned],
            None if self.effort is None else self.effort[rows],
        )

    def limited(self) -> Evidence:
        """Return it with at most :data:`MOST_VISITS` visits a cell, at the same rates."""
        if not self.n.size or self.n.max() <= MOST_VISITS:
            return self
        share = np.minimum(1, MOST_VISITS / np.maximum(self.n, 1))
        return replace(self, k=self.k * share, n=self.n * share)


def share_told(listed: np.ndarray, q: np.ndarray) -> np.ndarray:
    """
    Return (places,) the share of the species of a visit that a list of this length tells, judged by
    how many were expected.

    Parameters
    ----------
    listed
        (places, species) bool.
    q
        (places, species) prediction: its sum is the number expected on a visit.
    """
    length, expected = listed.sum(axis=1), q.sum(axis=1)
    return np.where(length > 0, np.clip(length / np.maximum(expected, 1e-9), *TOLD), 0.0)
