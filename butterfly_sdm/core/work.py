"""
Work that survives interruption: a folder is filled as ``NAME.partial``, then renamed.

A lock file keeps two processes from filling one folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from butterfly_sdm.core.files import discard_unfinished, write_text
from butterfly_sdm.errors import ArtefactError, ButterflySDMError, SourceError


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
    finished = Path(folder).is_dir() and mark.is_file() and mark.read_text(encoding="utf-8") == key
    if finished:
        tidy(folder)
    return finished


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
def resumable_folder(folder: Path, key: str) -> Iterator[Path]:
    """
    Fill ``folder`` in a way that survives interruption.

    Yields ``NAME.partial``, with whatever an earlier, interrupted attempt with the same ``key``
    left in it. When the block ends without an error the partial folder takes the place of
    ``folder``; when it is interrupted the folder stays, to be continued by the next call; after a
    user's mistake it is removed.

    Parameters
    ----------
    folder
        Where the finished artefact shall lie.
    key
        Fingerprint of everything the content depends on. Leftovers of another key are removed.
    """
    folder = Path(folder)
    partial = folder.with_name(folder.name + ".partial")
    with exclusive(folder):
        mark = partial / ".key"
        if partial.exists() and (not mark.is_file() or mark.read_text(encoding="utf-8") != key):
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        discard_unfinished(partial)
        write_text(mark, key)
        try:
            yield partial
        except ButterflySDMError as error:
            # Mending the mistake changes the key, so there is nothing to continue; a source that
            # fails may answer next time.
            if not isinstance(error, SourceError):
                shutil.rmtree(partial)
            raise
        except BaseException:
            if {entry.name for entry in partial.iterdir()} == {".key"}:
                shutil.rmtree(partial)
            raise
        replaced = folder.with_name(f".{folder.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        finished = _finished_mark(folder)
        finished.unlink(missing_ok=True)
        if folder.exists():
            folder.replace(replaced)
        mark.unlink()
        partial.replace(folder)
        write_text(finished, key)
        shutil.rmtree(replaced, ignore_errors=True)
