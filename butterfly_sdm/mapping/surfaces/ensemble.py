"""
An ensemble of networks, mapped densely: one run of each trunk, then the mean and the spread of the
members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from butterfly_sdm.core.block_store import Store
from butterfly_sdm.core.executor import Unit
from butterfly_sdm.mapping.surfaces.dense import DenseSurface, dense_surface
from butterfly_sdm.mapping.surfaces.exact import BesideExact, WindowSurface
from butterfly_sdm.mapping.surfaces.rows import Strip
from butterfly_sdm.predictors import Handle


class MemberStores:
    """One store per member."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = list(stores)

    @property
    def done(self) -> set[str]:
        """Keys of the units that are done."""
        return {f"{number}/{key}" for number, store in enumerate(self.stores) for key in store.done}


@dataclass(frozen=True, eq=False)
class MemberUnit:
    """A unit of one member."""

    member: int
    unit: Any

    @property
    def key(self) -> str:
        """Name in the journal."""
        return f"{self.member}/{self.unit.key}"

    def read(self) -> Any:
        """Read what the member needs."""
        return self.unit.read()

    def compute(self, data: Any) -> Any:
        """Compute as the member does."""
        return self.unit.compute(data)


@dataclass(frozen=True, eq=False)
class EnsembleSurface(BesideExact):
    """Mean and spread of the probabilities of networks that share window and margin."""

    exact: WindowSurface
    parts: tuple[DenseSurface, ...]

    @property
    def engine(self) -> Any:
        """What runs the trunks."""
        return self.parts[0].engine

    def all_units(self) -> list[Any]:
        """Return all that has to be done, done or not."""
        return [
            MemberUnit(number, unit)
            for number, part in enumerate(self.parts)
            for unit in part.all_units()
        ]

    def engine_difference(self, unit: Any) -> np.ndarray | None:
        """
        Return the differences in probability between the engine and PyTorch in the windows of a
        member's block.
        """
        return self.parts[unit.member].engine_difference(unit.unit)

    def open(self, folder: Path) -> MemberStores:
        """Make or continue the arrays of all members in ``folder``."""
        return MemberStores(
            [part.open(folder / str(number)) for number, part in enumerate(self.parts)]
        )

    def units(self, store: MemberStores) -> list[Unit]:
        """Return what is still to be done."""
        return [
            MemberUnit(number, unit)
            for number, (part, own) in enumerate(zip(self.parts, store.stores, strict=True))
            for unit in part.units(own)
        ]

    def keep(self, store: MemberStores, unit: Any, result: Any) -> None:
        """Write the result of one unit."""
        self.parts[unit.member].keep(store.stores[unit.member], unit.unit, result)

    def strip(self, store: MemberStores, rows: slice) -> Strip:
        """Return the mean and the spread of the members in some rows of positions."""
        strips = [part.strip(own, rows) for part, own in zip(self.parts, store.stores, strict=True)]
        tables = np.stack([strip.probability for strip in strips]).astype(np.float64)
        spread = tables.std(axis=0, ddof=1).astype(np.float32) if len(strips) > 1 else None
        return replace(
            strips[0],
            probability=tables.mean(axis=0).astype(np.float32),
            spread=spread,
            embedding=None,
        )

    def fractions(self, store: MemberStores) -> np.ndarray:
        """Return (height, width) the share of measured pixels in the window of each position."""
        return self.parts[0].fractions(store.stores[0])


def ensemble_surface(
    exact: WindowSurface, *, block_px: int, engine: str, folder: Path
) -> EnsembleSurface:
    """
    Return the surface that gives densely what ``exact`` gives window by window; engines keep their
    files in ``folder``.
    """
    parts = []
    for number, member in enumerate(exact.handle.predictor.members):
        saved = exact.handle.folder
        handle = Handle(member, None if saved is None else saved / "members" / str(number))
        own = replace(exact, handle=handle, scene=exact.scene.select(member.network.bands))
        parts.append(
            dense_surface(own, block_px=block_px, engine=engine, folder=folder / str(number))
        )
    return EnsembleSurface(exact, tuple(parts))
