"""A map over remote products streams: what was fetched goes when no unit needs it any more."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from butterfly_sdm.imagery.products import Piece
from butterfly_sdm.imagery.scene import Scene

# Copies of ground that is done are kept up to this size: the positions that are predicted again
# window by window lie on it.
KEPT_BYTES = 4_000_000_000


def by_ground(units: list[Any], side_px: int) -> list[Any]:
    """Return units so that those of the same ground follow each other, whatever surface fills."""

    def place(unit: Any) -> tuple[int, int]:
        window = unit.pixels
        return round(window.row_off / side_px), round(window.col_off / side_px)

    return sorted(units, key=place)


class Stream:
    """
    Gives the space of copies back while units are done.

    Parameters
    ----------
    scene
        With a supply, or all files are here and nothing is done.
    units
        What is still to be done.
    """

    def __init__(self, scene: Scene, units: Sequence[Any]) -> None:
        self._scene, self._left = scene, {}
        self._done: deque[Piece] = deque()
        if scene.supply is not None:
            for number, piece in enumerate(scene.pieces):
                self._left[number] = sum(scene.shows(piece, unit.pixels) for unit in units)

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
        while supply is not None and self._done and self._held() > KEPT_BYTES:
            supply.forget(layer.path for layer in self._done.popleft().files)

    def _held(self) -> int:
        """Return the bytes on the disk of what is done."""
        files = {Path(layer.path) for piece in self._done for layer in piece.files}
        return sum(file.stat().st_blocks * 512 for file in files if file.exists())
