"""
Write artefacts so that they are either whole or absent.

A file is written under a temporary name in its own folder and renamed; a folder is filled as
``NAME.partial`` and renamed when it is complete, so that interrupted work can be found and
continued. A lock file keeps two processes from filling one folder.
"""

import glob
import hashlib
import json
import mmap
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from butterfly_sdm.errors import ArtefactError, ButterflySDMError, MissingFileError, SourceError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """
    Yield a temporary path beside ``path``; on success it takes its place, on failure it is removed.

    >>> with atomic_path(Path("scores.csv")) as temporary:  # doctest: +SKIP
    ...     table.to_csv(temporary)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        prefix=f".{path.stem}.{_writer()}{os.getpid()}-", suffix=path.suffix, dir=path.parent
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp makes it private
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _writer() -> str:
    """
    Return what the temporary files of this machine are called by, before the number of the process.
    """
    return f"unfinished-{hashlib.sha256(platform.node().encode()).hexdigest()[:8]}-"


def discard_unfinished(folder: Path, stem: str | None = None) -> None:
    """
    Remove the temporary files that writers left in a folder when they were killed.

    Those of living processes and of other machines stay.

    Parameters
    ----------
    folder
        Searched with all that lies below it; without it nothing is done.
    stem
        Only files that were to have this name, less the suffix, directly in the folder; None: all.
    """
    if os.name != "posix":  # elsewhere there is no harmless signal to ask a process with
        return
    pattern = f".{'*' if stem is None else glob.escape(stem)}.{_writer()}*"
    found = Path(folder).rglob(pattern) if stem is None else Path(folder).glob(pattern)
    for path in list(found):
        number = path.name.rpartition(_writer())[2].partition("-")[0]
        if number.isdigit() and not _alive(int(number)):
            path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """
    Read a JSON file of an artefact.

    Raises
    ------
    MissingFileError
        The file does not exist.
    ArtefactError
        The file is not JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(
            f"{path} does not exist. Is {path.parent} the folder you mean, and was it finished?"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ArtefactError(
            f"{path} is damaged: it is not JSON ({error}). Make the artefact again."
        ) from error


def check_version(found: Any, known: int, what: str, remake: str) -> None:
    """
    Refuse what another release wrote in a format this one does not read.

    Parameters
    ----------
    found
        The format version that is stated.
    known
        The one this release reads; older ones it still reads are to be brought to it before.
    what
        The artefact, such as ``"the run runs/a"``.
    remake
        How it is made again.

    Raises
    ------
    ArtefactError
        They differ.
    """
    if isinstance(found, int) and not isinstance(found, bool) and found == known:
        return
    newer = isinstance(found, int) and found > known
    way = (
        "A newer release made it: update butterfly-sdm (git pull, or pip install --upgrade), or "
        "make it again"
        if newer
        else "Make it again"
    )
    raise ArtefactError(
        f"{what} has format version {found!r}; this release reads {known}. {way}: {remake}"
    )


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that change whenever ``value`` (JSON-like) does."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return ``value`` with its own SHA-256 under the key ``seal``, so that :func:`damage` can tell
    whether it was changed.

    >>> sealed({"a": 1})["seal"][:8]
    'f9d86028'
    """
    content = {key: item for key, item in value.items() if key != "seal"}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return content | {"seal": hashlib.sha256(text.encode()).hexdigest()}


def damage(card: Path) -> list[str]:
    """
    Compare a sealed card and the files it lists (under ``files``: name to SHA-256) with what was
    written.

    Returns
    -------
    list of str
        One sentence per problem; empty if every byte is as it was.
    """
    try:
        value = read_json(card)
    except (ArtefactError, MissingFileError) as error:
        return [str(error)]
    if not isinstance(value, dict) or not isinstance(value.get("files"), dict):
        return [f"{card} lists no files. Make the artefact again."]
    problems = []
    if sealed(value)["seal"] != value.get("seal"):
        problems.append(
            f"{card} was changed after it was written: its content does not fit its seal."
        )
    for name, expected in value["files"].items():
        path = card.parent / str(name)
        if not path.is_file():
            problems.append(f"{path} is missing.")
        elif sha256(path) != expected:
            problems.append(
                f"{path} was changed after it was written: its SHA-256 is not "
                f"{str(expected)[:12]}..."
            )
    return problems


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


def new_array(path: Path, shape: tuple[int, ...], dtype: Any) -> np.memmap:
    """
    Make a ``.npy`` file of zeros, memory-mapped for writing, with its space on the disk reserved.

    Without the reservation a full disk ends the process (SIGBUS) when a page is written, with no
    error to catch.

    Raises
    ------
    OSError
        The disk is full.
    """
    path = Path(path)
    array: np.memmap = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.dtype(dtype), shape=shape
    )
    if hasattr(os, "posix_fallocate"):
        try:
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            del array
            path.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from None
    return _in_large_pages(array)


def open_array(path: Path) -> np.memmap:
    """Open a ``.npy`` file made by :func:`new_array`, memory-mapped for writing."""
    array: np.memmap = np.load(path, mmap_mode="r+", allow_pickle=False)
    return _in_large_pages(array)


class PackedArray:
    """
    A ``.npy`` file made by :func:`new_array`, for units of work that write to it: mapped once for
    all units in this process.

    Each new mapping would have to be told of every page again, which costs more than filling it.
    Sent to another process, it is mapped there, and :meth:`written` sees to it that other machines
    see what was written.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._array: np.memmap | None = None
        self._sent = False

    def open(self) -> np.memmap:
        """Return the array, mapped for writing."""
        if self._array is None:
            self._array = open_array(self.path)
        return self._array

    def written(self) -> None:
        """
        End a unit of work: what another process than the first has written is flushed, for no one
        else there will.
        """
        if self._sent and self._array is not None:
            self._array.flush()

    def close(self) -> None:
        """Let go of the mapping."""
        self._array = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_array": None, "_sent": True}


def release_pages(array: np.memmap) -> None:
    """
    Take a mapped array out of the memory of this process; what was written is in its file, or on
    its way there.
    """
    if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        with suppress(OSError):
            array.base.madvise(mmap.MADV_DONTNEED)


def _in_large_pages(array: np.memmap) -> np.memmap:
    # Touching a new page of 4 kB costs more than filling it; where the system can, it then maps 2
    # MB at once.
    if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            array.base.madvise(mmap.MADV_HUGEPAGE)
    return array


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
