"""
Results of blocks, kept on disk until all are there, so that an interrupted map continues where it
stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from butterfly_sdm.core.arrays import new_array, release_pages
from butterfly_sdm.core.work import Journal
from butterfly_sdm.errors import ArtefactError

Shape = tuple[int, ...]


class Store:
    """
    Arrays in a folder, filled block by block, with a journal of the blocks that are done.

    A block is entered in the journal only after its arrays are written; a process that is killed in
    between computes that block again, to the same values.

    Parameters
    ----------
    folder
        Where the arrays lie.
    arrays
        Shape and type of each array, by name.
    """

    def __init__(self, folder: Path, arrays: Mapping[str, tuple[Shape, str]]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._arrays = {
            name: self._open(name, shape, dtype) for name, (shape, dtype) in arrays.items()
        }
        self._journal = Journal(self.folder / "done.txt")
        self.done = self._journal.done

    def _open(self, name: str, shape: Shape, dtype: str) -> np.memmap:
        path = self.folder / f"{name}.npy"
        if path.is_file():
            array = np.lib.format.open_memmap(path, mode="r+")
            if array.shape == shape and array.dtype == np.dtype(dtype):
                return array
            raise ArtefactError(
                f"{path} is not what this map needs; delete {self.folder} and start again."
            )
        # Under another name first: a file of that name is always whole.
        fresh = path.with_suffix(".new")
        new_array(fresh, shape, dtype).flush()
        fresh.replace(path)
        return np.lib.format.open_memmap(path, mode="r+")

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def release(self) -> None:
        """
        Take the arrays out of the memory of this process: a map of any size then needs what its
        blocks need.
        """
        for array in self._arrays.values():
            release_pages(array)

    def keep(self, key: str, parts: Mapping[str, tuple[tuple[slice, ...], np.ndarray]]) -> None:
        """Write the parts of one block (array name: where, values) and enter it in the journal."""
        for name, (where, values) in parts.items():
            self._arrays[name][where] = values
        self.release()
        self._journal.add(key)
