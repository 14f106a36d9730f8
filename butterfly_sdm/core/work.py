"""
Work that survives interruption: a folder is filled as ``NAME.partial``, then renamed.

A lock file keeps two processes from filling one folder; a journal says which pieces are done.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic

import filelock

from butterfly_sdm.core.files import discard_unfinished, sync, sync_folder, write_text
from butterfly_sdm.errors import ArtefactError, ButterflySDMError, SourceError, WorkerError


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """
    Hold ``folder`` (which need not exist yet) for this process alone.

    Raises
    ------
    ArtefactError
        Another process is writing there.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(_lock_file(folder))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise ArtefactError(
            f"Another process is writing {folder}. Wait until it has ended, or choose another "
            "--out."
        ) from error
    try:
        for written in (folder, _finished_mark(folder)):
            discard_unfinished(written.parent, written.stem)
        discard_unfinished(folder)
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _finished_mark(folder: Path) -> Path:
    # Beside the folder, not in it: the key speaks of this machine's files, the artefact must not.
    return folder.with_name(f".{folder.name}.key")


def is_finished(folder: Path, key: str) -> bool:
    """Return whether :func:`resumable_folder` has filled ``folder`` with this ``key`` here."""
    mark = _finished_mark(Path(folder))
    finished = Path(folder).is_dir() and _says(mark, key)
    if finished:
        tidy(folder)
    return finished


def _says(mark: Path, key: str) -> bool:
    # bytes: a damaged mark need not be text
    return mark.is_file() and mark.read_bytes() == key.encode()


def tidy(folder: Path) -> None:
    """
    Remove what a process that was killed at its very end left beside a finished folder: lock,
    marks, the one it replaced.
    """
    folder = Path(folder)
    discard_unfinished(folder.parent, f".{folder.name}")
    replaced = folder.with_name(f".{folder.name}.replaced")
    if _lock_file(folder).exists() or replaced.exists():
        with suppress(ArtefactError, OSError), exclusive(folder):
            shutil.rmtree(replaced, ignore_errors=True)


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


@contextmanager
def work_folder(out: Path, key: str) -> Iterator[Path]:
    """
    Hold ``out`` and yield ``OUT.partial``, with what an interrupted run with the same ``key`` left
    in it; removed once the block ends well.

    Parameters
    ----------
    key
        Fingerprint of everything the content depends on. Leftovers of another key are removed.

    Raises
    ------
    ArtefactError
        Another process is writing ``out``.
    """
    out = Path(out)
    partial = out.with_name(out.name + ".partial")
    mark = partial / ".key"
    with exclusive(out):
        if partial.exists() and not _says(mark, key):
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        discard_unfinished(partial)
        write_text(mark, key)
        try:
            yield partial
        except BaseException:
            if partial.exists() and [entry.name for entry in partial.iterdir()] == [".key"]:
                shutil.rmtree(partial)  # nothing worth continuing
            raise
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def resumable_folder(
    folder: Path, key: str, *, worth: Callable[[Path], bool] | None = None
) -> Iterator[Path]:
    """
    Fill ``folder`` in a way that survives interruption.

    Yields ``NAME.partial`` as :func:`work_folder`. When the block ends without an error the partial
    folder takes the place of ``folder``; when it is interrupted the folder stays, to be continued
    by the next call; after a user's mistake it is removed, unless ``worth`` says that it holds work
    to go on from.
    """
    folder = Path(folder)
    with work_folder(folder, key) as partial:
        try:
            yield partial
        except ButterflySDMError as error:
            # Mending the mistake changes the key, so there is nothing to continue; a source that
            # fails may answer next time.
            if not isinstance(error, SourceError | WorkerError) and not (worth and worth(partial)):
                shutil.rmtree(partial)
            raise
        replaced = folder.with_name(f".{folder.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        finished = _finished_mark(folder)
        finished.unlink(missing_ok=True)
        if folder.exists():
            folder.replace(replaced)
        (partial / ".key").unlink()
        sync_folder(partial)
        partial.replace(folder)
        sync(folder.parent)
        write_text(finished, key)
        shutil.rmtree(replaced, ignore_errors=True)


class Journal:
    """
    Keys of finished pieces of work, one a line, in a file that is only appended to.

    A last line that was cut short by an interruption does not count, and is removed.

    Parameters
    ----------
    path
        The file; made by the first key.
    flush
        Called before keys are written: what they stand for has to be safe by then.
    every_s
        Seconds between two writes, for a flush that takes long; what was not written is lost when
        the process is killed.

    Attributes
    ----------
    done
        The keys; without white space.
    lines
        Those found in the file, in its order.
    """

    def __init__(
        self, path: Path, *, flush: Callable[[], object] | None = None, every_s: float = 0.0
    ) -> None:
        self.path, self._flush, self._every_s = Path(path), flush, every_s
        text = self.path.read_bytes() if self.path.is_file() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            os.truncate(self.path, len(whole))
        self.lines = tuple(whole.decode("utf-8", errors="replace").split())
        self.done = set(self.lines)
        self._unsaved: list[str] = []
        self._saved = monotonic()

    def add(self, key: str) -> None:
        """Note that a piece is done; write it down now or within ``every_s``."""
        self.done.add(key)
        self._unsaved.append(key)
        if monotonic() - self._saved >= self._every_s:
            self.save()

    def save(self) -> None:
        """Write down what is done."""
        if self._flush is not None:
            self._flush()
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(f"{key}\n" for key in self._unsaved)
        self._unsaved = []
        self._saved = monotonic()
