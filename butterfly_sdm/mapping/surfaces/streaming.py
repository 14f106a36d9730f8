"""A map streams: what was fetched and composed goes when no unit needs it any more."""

from __future__ import annotations

import logging
import shutil
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from butterfly_sdm.imagery.composites.kept import KEPT_BYTES
from butterfly_sdm.imagery.products import Piece
from butterfly_sdm.imagery.scene import Scene

log = logging.getLogger("butterfly_sdm.mapping")

# Copies of ground that is done are kept up to this size: the positions that are predicted again
# window by window lie on it.
COPIES_BYTES = 4_000_000_000


def by_ground(units: list[Any], side_px: int) -> list[Any]:
    """Return units so that those of the same ground follow each other, whatever surface fills."""

    def place(unit: Any) -> tuple[int, int]:
        window = unit.pixels
        return round(window.row_off / side_px), round(window.col_off / side_px)

    return sorted(units, key=place)


class Stream:
    """
    Keeps what units need again, and gives the space of the rest back while they are done.

    Parameters
    ----------
    scene
        Whose remote products are looked after.
    units
        What is still to be done, in this order.
    folder
        Where composed blocks lie that units to come need again and that do not fit into the memory.
    """

    def __init__(self, scene: Scene, units: Sequence[Any], folder: Path) -> None:
        self._scene, self._left = scene, {}
        self._done: deque[Piece] = deque()
        self._expect(units, folder)
        if scene.supply is not None:
            for number, piece in enumerate(scene.pieces):
                self._left[number] = sum(scene.shows(piece, unit.pixels) for unit in units)

    def _expect(self, units: Sequence[Any], folder: Path) -> None:
        strips = [strip for unit in units for strip in unit.scene.expected([unit.pixels])]
        asked = Counter(key for strip in strips for key in strip)
        most = _most_at_once(strips) - KEPT_BYTES
        free = shutil.disk_usage(folder).free
        if most > 0:
            log.info(
                "Composed imagery that is needed again takes up to %.2f GB there besides.",
                min(most, free // 4) / 1e9,
            )
        self._scene.kept.expect(asked, folder, min(max(most, 0), free // 4))

    def close(self) -> None:
        """End: nothing is needed again."""
        self._scene.kept.forget()

    def done(self, unit: Any) -> None:
        """Note that a unit is done."""
        for number, left in self._left.items():
            piece = self._scene.pieces[number]
            if left and self._scene.shows(piece, unit.pixels):
                self._left[number] -= 1
                if not self._left[number]:
                    self._done.append(piece)
                    self._give_back()

    def _give_back(self) -> None:
        supply = self._scene.supply
        while supply is not None and self._done and self._held() > COPIES_BYTES:
            supply.forget(layer.path for layer in self._done.popleft().files)

    def _held(self) -> int:
        """Return the bytes on the disk of what is done."""
        files = {Path(layer.path) for piece in self._done for layer in piece.files}
        return sum(file.stat().st_blocks * 512 for file in files if file.exists())


def _most_at_once(strips: Sequence[dict[Any, int]]) -> int:
    """Return the most bytes of blocks that were asked for and will be again."""
    last = {key: number for number, strip in enumerate(strips) for key in strip}
    seen: set[Any] = set()
    held = most = 0
    for number, strip in enumerate(strips):
        held += sum(size for key, size in strip.items() if key not in seen)
        seen |= strip.keys()
        most = max(most, held)
        held -= sum(size for key, size in strip.items() if last[key] == number)
    return most
