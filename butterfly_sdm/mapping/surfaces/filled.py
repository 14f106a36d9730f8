"""Fill the surfaces of a map, block by block, and read them row by row."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from butterfly_sdm.core.arrays import part_bytes
from butterfly_sdm.core.block_store import Store
from butterfly_sdm.core.executor import open_executor, run_units
from butterfly_sdm.errors import RasterError
from butterfly_sdm.imagery.composites.stacks import Stack
from butterfly_sdm.mapping.options import MapOptions
from butterfly_sdm.mapping.surfaces.dense import DenseSurface
from butterfly_sdm.mapping.surfaces.exact import WindowSurface
from butterfly_sdm.mapping.surfaces.positions import Positions
from butterfly_sdm.mapping.surfaces.rows import Strip, mean_strip
from butterfly_sdm.mapping.surfaces.streaming import Stream, by_ground
from butterfly_sdm.progress import Progress

log = logging.getLogger("butterfly_sdm.mapping")

Surface = DenseSurface | WindowSurface


@dataclass(frozen=True, eq=False)
class FilledSurface:
    """
    What is predicted at all positions: one surface, or one per member of an ensemble.

    Attributes
    ----------
    parts
        Surfaces with what they are filled with.
    """

    parts: Sequence[tuple[Surface, Store]]

    @property
    def positions(self) -> Positions:
        """The positions of the map."""
        return self.parts[0][0].positions

    def strip(self, rows: slice) -> Strip:
        """Return the probabilities of some rows of positions."""
        strips = [surface.strip(store, rows) for surface, store in self.parts]
        return mean_strip(strips, spread=self.positions.spread)

    def fractions(self) -> np.ndarray:
        """Return (height, width) the share of measured pixels in the window of each position."""
        surface, store = self.parts[0]
        return surface.fractions(store)


def _check_space(units: Mapping[Surface, Sequence[Any]], folder: Path) -> None:
    """Say what a map needs of the disk, and refuse what does not fit, before any work."""
    needed = 0
    for number, surface in enumerate(units):
        if not (folder / str(number)).is_dir():  # of an interrupted map it is taken already
            arrays = surface.arrays
            needed += sum(
                part_bytes(*arrays[name], part)
                for name, parts in surface.parts(units[surface]).items()
                for part in parts
            )
    free = shutil.disk_usage(folder.parent).free
    log.info(
        "While it is made, the map needs %.2f GB of space in %s; %.1f GB are free.",
        needed / 1e9,
        folder.parent,
        free / 1e9,
    )
    if needed > free:
        raise RasterError(
            f"The map needs {needed / 1e9:.2f} GB of space in {folder.parent} while it is made, "
            f"and {free / 1e9:.2f} GB are free. Make space, name another --out, or a smaller "
            "map.area."
        )


def fill(
    surfaces: Sequence[Surface],
    folder: Path,
    options: MapOptions,
    *,
    task: str,
    progress: Progress,
) -> FilledSurface:
    """
    Fill surfaces with what is not yet in ``folder``; ``task`` is what ``progress`` is told.

    Raises
    ------
    RasterError
        The disk has too little space for what is kept while a map is made.
    """
    all_units: dict[Surface, Sequence[Any]] = {surface: surface.units() for surface in surfaces}
    _check_space(all_units, folder)
    stores = {
        surface: surface.open(folder / str(number), all_units[surface])
        for number, surface in enumerate(surfaces)
    }
    units = [
        unit
        for surface, store in stores.items()
        for unit in all_units[surface]
        if unit.key not in store.done
    ]
    scene = surfaces[0].positions.scene
    if scene.supply is not None or any(isinstance(piece, Stack) for piece in scene.pieces):
        units = by_ground(units, options.block_px)
    stream = Stream(scene, units, folder)
    done = sum(len(store.done) for store in stores.values())
    total = done + len(units)
    progress(task, done, total)

    def keep(unit: Any, result: Any) -> None:
        nonlocal done
        unit.surface.keep(stores[unit.surface], unit, result)
        stream.done(unit)
        done += 1
        progress(task, done, total)

    if units:
        with open_executor(options.workers, options.dask) as (executor, slots):
            on_gpu = any(isinstance(s, DenseSurface) and s.engine.device != "cpu" for s in surfaces)
            # a GPU is faster than one thread reads
            readers = max(1, min(4, (os.cpu_count() or 1) // 2)) if on_gpu else 1
            try:
                run_units(units, keep, executor=executor, in_flight=2 * slots, readers=readers)
            finally:
                stream.close()
    return FilledSurface(list(stores.items()))
