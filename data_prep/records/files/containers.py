"""Open the files inside a zip archive or a folder, refusing what is damaged or dangerous."""

from __future__ import annotations

import re
import stat
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from butterfly_sdm.errors import MissingFileError, RecordsError
from data_prep.records.files.inflate import fast_member
from data_prep.records.files.limits import current_limits, raise_limit

SMALL_BYTES = 100 << 20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


@dataclass(frozen=True)
class Container:
    """
    A zip archive or a folder of files.

    Attributes
    ----------
    path
        The archive or folder.
    names
        The files within, with ``/`` between folders.
    """

    path: Path
    names: tuple[str, ...]

    def open(self, name: str) -> BinaryIO:
        """
        Open a file within; damage shows as :class:`RecordsError` while reading.

        Raises
        ------
        RecordsError
            The entry is damaged or cannot be trusted.
        """
        if self.path.is_dir():
            return (self.path / name).open("rb")
        try:
            archive = zipfile.ZipFile(self.path)
            info = archive.getinfo(name)
            if info.flag_bits & 1:
                raise RecordsError(
                    f"{name} in {self.path.name} is encrypted. Unpack the archive with its "
                    "password first."
                )
            ratio = info.file_size / max(info.compress_size, 1)
            if info.file_size > SMALL_BYTES and ratio > current_limits().ratio:
                raise RecordsError(
                    f"{name} in {self.path.name} unpacks from {info.compress_size:,} to "
                    f"{info.file_size:,} bytes, "
                    f"{ratio:,.0f} times as much: this is no table of records. "
                    f"{raise_limit('ratio')}"
                )
            stream = fast_member(self.path, info) or archive.open(info)
        except (zipfile.BadZipFile, OSError, NotImplementedError, EOFError) as error:
            raise _damaged(self.path, error) from error
        return cast(BinaryIO, _Guarded(stream, archive, self.path))

    def size(self, name: str) -> int:
        """Return the unpacked size of a file in bytes."""
        if self.path.is_dir():
            return (self.path / name).stat().st_size
        with zipfile.ZipFile(self.path) as archive:
            return archive.getinfo(name).file_size

    def read(self, name: str) -> bytes:
        """
        Return a small file, such as a description of the others, whole.

        Raises
        ------
        RecordsError
            The entry is too large or damaged.
        """
        limit = current_limits().description_mib << 20
        with self.open(name) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise RecordsError(
                f"{name} in {self.path.name} is larger than {limit >> 20} MiB: it describes "
                "nothing. "
                f"{raise_limit('description_mib')}"
            )
        return data


class _Guarded:
    """A member of a zip archive whose damage is reported in a sentence."""

    def __init__(self, stream: Any, archive: zipfile.ZipFile, path: Path) -> None:
        self._stream, self._archive, self._path = stream, archive, path

    def read(self, size: int = -1) -> bytes:
        try:
            data: bytes = self._stream.read(size)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise _damaged(self._path, error) from error
        return data

    def __enter__(self) -> _Guarded:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._archive.close()


def _damaged(path: Path, error: Exception) -> RecordsError:
    return RecordsError(f"{path} is truncated or damaged ({error}). Download or copy it again.")


def open_container(path: Path) -> Container:
    """
    List the files of a zip archive or a folder.

    Raises
    ------
    MissingFileError
        It does not exist.
    RecordsError
        It is damaged, an entry would escape its folder, or is a link.
    """
    if not path.exists():
        raise MissingFileError(f"There are no records at {path}. Correct records.path.")
    if path.is_dir():
        files = sorted(held for held in path.rglob("*") if held.is_file())
        for held in files:
            if not held.resolve().is_relative_to(path.resolve()):
                raise RecordsError(
                    f"{held} is a link that leads out of {path}. Put the file itself there if you "
                    "trust it."
                )
        return Container(path, tuple(held.relative_to(path).as_posix() for held in files))
    try:
        with zipfile.ZipFile(path) as archive:
            names = tuple(info.filename for info in archive.infolist() if not info.is_dir())
            every = archive.namelist()
            links = [
                info.filename
                for info in archive.infolist()
                if stat.S_ISLNK(info.external_attr >> 16)
            ]
            packed = [
                (info.filename, info.compress_type)
                for info in archive.infolist()
                if info.compress_type not in _METHODS
                and info.filename.lower().endswith((".txt", ".csv", ".tsv", ".tab", ".xml"))
            ]
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError, EOFError) as error:
        raise _damaged(path, error) from error
    if packed:
        method = "Deflate64" if packed[0][1] == 9 else f"method {packed[0][1]}"
        raise RecordsError(
            f"{packed[0][0]} in {path.name} is packed with the compression {method}, which cannot "
            "be read here (Windows Explorer uses Deflate64 above 2 GB). Unpack the archive and "
            "name the table or folder in records.path."
        )
    for name in every:
        if escapes(name):
            raise RecordsError(
                f"{path} has the entry {name!r}, which would escape its folder. The archive is not "
                "to be trusted."
            )
    twice = [name for name, count in Counter(every).items() if count > 1]
    if twice:
        raise RecordsError(
            f"{path} has the entry {twice[0]!r} more than once; only one of them would be "
            "read. Archive it again with one of each name."
        )
    if links:
        raise RecordsError(
            f"{path} has the entry {links[0]!r}, which is a link to another file. Archive it with "
            "the file itself."
        )
    return Container(path, names)


def escapes(name: str) -> bool:
    """Tell whether a name within an archive points outside of it."""
    parts = PurePosixPath(name.replace("\\", "/"))
    return (
        parts.is_absolute()
        or ".." in parts.parts
        or bool(re.match(r"[A-Za-z]:", name))
        or "\0" in name
    )


def is_zip(path: Path) -> bool:
    """Tell from its first bytes or name whether a file is meant to be a zip archive."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4)[:2] == b"PK" or path.suffix.lower() == ".zip"
