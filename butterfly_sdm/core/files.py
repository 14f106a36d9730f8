"""Write files so that they are either whole or absent, and read them back."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from butterfly_sdm.errors import ArtefactError, MissingFileError

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """
    Yield a temporary path beside ``path``; on success it takes its place, on failure it is removed.

    >>> with atomic_path(Path("scores.csv")) as temporary:  # doctest: +SKIP
    ...     table.to_csv(temporary)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = f"{_writer()}{os.getpid()}-{secrets.token_hex(4)}"
    temporary = path.with_name(f".{path.stem}.{writer}{path.suffix}")
    # readable by whom the umask of the user says, as any file
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """
    Wait until a file, or the list of names of a folder, is on the disk: what was only written is
    lost when the power goes.
    """
    if path.is_dir():
        if os.name != "posix":  # elsewhere a folder cannot be opened
            return
        number = os.open(path, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems cannot
                os.fsync(number)
        finally:
            os.close(number)
        return
    with path.open("r+b" if os.access(path, os.W_OK) else "rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until a folder and all that lies below it is on the disk, see :func:`sync`."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if not path.is_symlink():
            sync(path)
    sync(folder)


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


def write_table(path: Path, table: pd.DataFrame, **csv: Any) -> None:
    """
    Write a table as Parquet, or as CSV with the options of pandas, whole or not at all; in a CSV
    nothing is a formula, see :func:`inert`.
    """
    with atomic_path(path) as temporary:
        if path.suffix == ".parquet":
            table.to_parquet(temporary)
        else:
            inert_table(table).to_csv(temporary, **csv)


# What a spreadsheet takes for the beginning of a formula.
FORMULA = re.compile(r"[=+\-@\t\r]")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")


def inert(value: Any) -> Any:
    """
    Return a text that no spreadsheet takes for a formula: one that begins like it gets an
    apostrophe before it; numbers and everything else stay as they are.

    Examples
    --------
    >>> inert("=1+1"), inert("-0.5"), inert("Pieris rapae")
    ("'=1+1", '-0.5', 'Pieris rapae')
    """
    if isinstance(value, str) and FORMULA.match(value) and not NUMBER.match(value):
        return f"'{value}"
    return value


def inert_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose texts, names of rows and of columns are :func:`inert`."""
    import pandas as pd

    texts = {
        place: column.map(inert)
        for place, (_, column) in enumerate(table.items())
        if not pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    }
    changed = table.copy(deep=False)
    for place, column in texts.items():
        changed.isetitem(place, column)
    if not isinstance(changed.columns, pd.MultiIndex):
        changed.columns = changed.columns.map(inert)
    if not isinstance(changed.index, pd.MultiIndex | pd.RangeIndex):
        changed.index = changed.index.map(inert)
    return changed


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


def sha256(path: Path) -> str:
    """
    Return the SHA-256 of a file as 64 hexadecimal digits; of a folder, that of the names and
    digests of all files in it.
    """
    path = Path(path)
    if path.is_dir():
        whole = hashlib.sha256()
        for file in files_below(path):
            whole.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\n".encode())
        return whole.hexdigest()
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def files_below(folder: Path) -> list[Path]:
    """Return all files of a folder and of those below it, in the order of their names."""
    return sorted(file for file in Path(folder).rglob("*") if file.is_file())
