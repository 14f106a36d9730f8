"""
Results of blocks, kept on disk until all are there, so that an interrupted map continues where it
stopped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from butterfly_sdm.core.arrays import new_array, release_pages
from butterfly_sdm.core.files import write_text
from butterfly_sdm.core.work import exclusive
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
        self._journal = self.folder / "done.txt"
        self.done = self._read_journal()

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

    def _read_journal(self) -> set[str]:
        if not self._journal.is_file():
            return set()
        text = self._journal.read_text(encoding="utf-8")
        # The last line may have been cut short by the interruption.
        return set(text[: text.rfind("\n") + 1].split())

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
        line = key + "\n"
        if self._journal.is_file() and self._torn():
            line = "\n" + line
        with self._journal.open("a", encoding="utf-8") as file:
            file.write(line)
        self.done.add(key)

    def _torn(self) -> bool:
        with self._journal.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"


@contextmanager
def work_folder(out: Path, key: str) -> Iterator[Path]:
    """
    Yield ``OUT.partial``, with what an interrupted run with the same ``key`` left in it; removed
    once the block ends well.

    Raises
    ------
    ArtefactError
        Another process is writing ``out``.
    """
    work = out.with_name(out.name + ".partial")
    with exclusive(out):
        mark = work / "key"
        if work.exists() and (not mark.is_file() or mark.read_text(encoding="utf-8") != key):
            shutil.rmtree(work)
        if not mark.is_file():
            work.mkdir(parents=True, exist_ok=True)
            write_text(mark, key)
        try:
            yield work
        except BaseException:
            if {entry.name for entry in work.iterdir()} == {"key"}:  # nothing worth continuing
                shutil.rmtree(work)
            raise
        shutil.rmtree(work)
