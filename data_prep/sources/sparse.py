"""
Partial copies of remote files: the directories and the blocks that were needed so far.

A copy is a local file with holes in which each block lies where it does in the original, so that
GDAL reads it as any other file. Beside ``NAME`` lie ``NAME.remote`` (address, size, version),
``NAME.have``, a byte for each block, set once its bytes are on the disk, and ``NAME.sums``, the
CRC-32 of each: a process may be killed at any moment, and nothing that is marked is fetched again,
unless it has changed since.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window

from butterfly_sdm.core.addresses import shown
from butterfly_sdm.core.files import read_json, write_json
from butterfly_sdm.errors import ButterflySDMError, SourceError
from data_prep.sources.signing import Signer, signer_of
from data_prep.sources.tiff_layout import Layout, TooShortError, UnsuitableError, read_layout
from data_prep.sources.transfer import (
    BUSY,
    Service,
    broken_off,
    open_session,
    pieces_of,
    retry_after,
)

HEADER = 16_384
GAP, MOST_RANGE = 4096, 1 << 20  # blocks so near are fetched at once, up to so many bytes
BESIDE = 4  # a COG repeats the length of a block before it and its end after it
IN_FLIGHT = 16  # requests: 8 take half as long again, 32 are hardly faster
RANGE_S = 1800.0  # for one range in all
LONGEST_WAIT_S = 60.0
ENDINGS = (".tif", ".tiff")
UNLIKE = (AttributeError, KeyError, TypeError, ValueError)  # a mark of other things
UNKNOWN = 0  # the sum of a block that was fetched before sums were kept

log = logging.getLogger("data_prep")


def remote_mark(path: Path) -> Path:
    """Return the file beside a copy that says what it is a copy of."""
    return path.with_name(path.name + ".remote")


def have_mark(path: Path) -> Path:
    """Return the file beside a copy that says which blocks it has."""
    return path.with_name(path.name + ".have")


def sums_mark(path: Path) -> Path:
    """Return the file beside a copy that holds the CRC-32 of its blocks."""
    return path.with_name(path.name + ".sums")


@dataclass(frozen=True)
class Range:
    """Bytes ``first`` to ``end`` of a file, and the blocks in them."""

    first: int
    end: int
    blocks: np.ndarray


class Copy:
    """
    One copy, as this process sees it.

    Attributes
    ----------
    url, size, version, sha256
        Of the original; the last of its directories.
    generation
        How often it has grown.
    """

    def __init__(self, path: Path) -> None:
        told = read_json(remote_mark(path))
        self.path, self.url = path, str(told["url"])
        self.size, self.version, self.header = told["size"], str(told["version"]), told["header"]
        self.sha256 = told.get("sha256")
        with path.open("rb") as file:
            self.layout: Layout = read_layout(file.read(self.header), self.size)
        shape = (len(self.layout.offsets),)
        self._have: np.ndarray = np.memmap(have_mark(path), np.uint8, "r+", shape=shape)
        if not sums_mark(path).is_file():  # begun by an earlier release
            sums_mark(path).write_bytes(bytes(4 * shape[0]))
        self._sums: np.ndarray = np.memmap(sums_mark(path), np.uint32, "r+", shape=shape)
        ends = self.layout.offsets + self.layout.counts
        self._always: np.ndarray = (ends <= self.header) | (self.layout.counts == 0)
        self._seen = self.held()
        self.generation = 0
        self.pending: dict[int, Future[None]] = {}
        self.lock = threading.RLock()  # what has ended at once is told of while it is held

    def held(self) -> np.ndarray:
        """Return which blocks are here."""
        found = self._always.copy()
        found[np.flatnonzero(self._have)] = True
        return found

    def missing(self, blocks: Iterable[int]) -> np.ndarray:
        """Return those of some blocks that are not here, in the order in which they lie."""
        numbers = np.unique(np.fromiter(blocks, np.int64))
        numbers = numbers[~self.held()[numbers]]
        found: np.ndarray = numbers[np.argsort(self.layout.offsets[numbers], kind="stable")]
        return found

    def ranges(self, blocks: np.ndarray) -> list[Range]:
        """Return the ranges of bytes of blocks that are ordered as they lie, neighbours merged."""
        merged: list[tuple[int, int, list[int]]] = []
        for block in blocks:
            first = max(int(self.layout.offsets[block]) - BESIDE, 0)
            end = min(first + int(self.layout.counts[block]) + 2 * BESIDE, self.size)
            if merged and first - merged[-1][1] <= GAP and end - merged[-1][0] <= MOST_RANGE:
                begin, until, numbers = merged[-1]
                merged[-1] = (begin, max(end, until), [*numbers, int(block)])
            else:
                merged.append((first, end, [int(block)]))
        return [Range(first, end, np.array(numbers)) for first, end, numbers in merged]

    def mark(self, blocks: np.ndarray) -> None:
        """Note that blocks are on the disk, and what they are."""
        self._sums[blocks] = self._sums_of(blocks)
        self._have[blocks] = 1

    def _sums_of(self, blocks: np.ndarray) -> list[int]:
        offsets, counts = self.layout.offsets, self.layout.counts
        with self.path.open("rb", buffering=0) as file:
            return [
                zlib.crc32(os.pread(file.fileno(), int(counts[n]), int(offsets[n]))) for n in blocks
            ]

    def sha256_of_directories(self) -> str:
        """Return the checksum of what lies before the blocks."""
        with self.path.open("rb") as file:
            return hashlib.sha256(file.read(self.header)).hexdigest()

    def doubt(self) -> int:
        """Give up the blocks that have changed since they came; return how many."""
        blocks = np.flatnonzero(self._have)
        known = self._sums[blocks]
        changed = known != np.array(self._sums_of(blocks), np.uint32)
        if self.sha256 is None:  # begun by an earlier release, which kept no sums
            changed &= known != UNKNOWN
        changed = blocks[changed]
        self._have[changed] = 0
        self._seen = self.held()
        return len(changed)

    def grown(self, blocks: Iterable[int]) -> None:
        """Note that blocks are about to be read: files opened before they came are stale."""
        numbers = np.fromiter(blocks, np.int64)
        with self.lock:
            if not self._seen[numbers].all():
                self._seen = self.held()
                self.generation += 1

    def _flush(self) -> None:
        assert isinstance(self._have, np.memmap)
        self._have.flush()

    def forget(self) -> None:
        """Keep the directories alone."""
        with self.lock:
            self._have[:] = 0
            self._flush()
            with self.path.open("r+b") as file:
                file.truncate(self.header)
                file.truncate(self.size)
            self._seen = self.held()
            self.generation += 1


@dataclass
class SparseCopies:
    """
    The partial copies of remote files that a scene reads; its supply.

    Attributes
    ----------
    sign
        Name of who signs addresses, see :mod:`data_prep.sources.signing`.
    service
        How often, and how patiently, a server is asked.
    in_flight
        Requests at a time.
    """

    sign: str | None = None
    service: Service = field(default_factory=lambda: Service(attempts=6, pause_s=0.25))
    in_flight: int = IN_FLIGHT

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._copies: dict[str, Copy | None] = {}
        self._tools: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"sign": self.sign, "service": self.service, "in_flight": self.in_flight}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    def _tool(self, name: str, make: Callable[[], Any]) -> Any:
        with self._lock:
            if name not in self._tools:
                self._tools[name] = make()
            return self._tools[name]

    @property
    def _session(self) -> Any:
        return self._tool("session", lambda: open_session(self.in_flight + 4))

    @property
    def _signer(self) -> Signer:
        signer: Signer = self._tool("signer", lambda: signer_of(self.sign))
        return signer

    @property
    def _pool(self) -> ThreadPoolExecutor:
        pool: ThreadPoolExecutor = self._tool("pool", lambda: ThreadPoolExecutor(self.in_flight))
        return pool

    def copy(self, path: str) -> Copy | None:
        """Return the copy at a path; None for any other file."""
        with self._lock:
            if path not in self._copies:
                here = remote_mark(Path(path)).is_file()
                self._copies[path] = Copy(Path(path)) if here else None
            return self._copies[path]

    def hold(self, url: str, path: Path, size: int | None = None) -> Path:
        """
        Make a partial copy of a remote file, or a whole one where a part cannot be had or used.

        Parameters
        ----------
        size
            Bytes that the original is said to have.

        Raises
        ------
        SourceError
            The server does not answer, or refuses.
        """
        path = Path(path)
        if path.is_file():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        remote_mark(path).unlink(missing_ok=True)
        if Path(shown(url)).suffix.lower() in ENDINGS and self._begin(url, path):
            return path
        return replace(self.service, sign=self._signer).fetch(url, path, size=size)

    def look_over(self, folder: Path) -> bool:
        """
        Give up what has changed since it was fetched, with a warning; return whether all copies in
        a folder are still there, if perhaps with fewer blocks.
        """
        lost = [mark for mark in sorted(folder.glob("*.remote")) if not self._usable(mark)]
        for mark in lost:
            mark.with_suffix("").unlink(missing_ok=True)
        return not lost

    def _usable(self, mark: Path) -> bool:
        path = mark.with_suffix("")
        copy: Copy | None = None
        with suppress(ButterflySDMError, TooShortError, UnsuitableError, OSError, *UNLIKE):
            copy = Copy(path)
        if copy is None or copy.sha256 not in (None, copy.sha256_of_directories()):
            log.warning("%s was damaged since it was fetched, and is fetched again.", path)
            return False
        changed = copy.doubt()
        if changed:
            log.warning(
                "Blocks of %s were damaged since they were fetched (%d), and are fetched again.",
                path,
                changed,
            )
        return True

    def _begin(self, url: str, path: Path) -> bool:
        """Fetch the directories of a file; return False where it has to be fetched whole."""
        parts, end, size, version = [b""], HEADER, -1, ""
        while True:
            held = sum(map(len, parts))
            try:
                size, version = self._get(
                    url, held, end, lambda _, piece: parts.append(piece), version
                )
                data = b"".join(parts)
                layout = read_layout(data, size)
                break
            except TooShortError as more:
                end = max(more.end, 2 * end)
            except (UnsuitableError, WholeError):
                return False
        fresh = path.with_name(path.name + ".new")
        with fresh.open("wb") as file:
            file.write(data)
            file.truncate(size)
            file.flush()
            os.fsync(file.fileno())
        have_mark(path).write_bytes(bytes(len(layout.offsets)))
        sums_mark(path).write_bytes(bytes(4 * len(layout.offsets)))
        told = {"url": url, "size": size, "version": version, "header": len(data)}
        told["sha256"] = hashlib.sha256(data).hexdigest()
        write_json(remote_mark(path), told)
        fresh.replace(path)  # last: a file of that name has all that belongs to it
        return True

    def bring(self, wanted: Sequence[tuple[str, Window]]) -> None:
        """
        Return once all pixels of windows of files are in their copies.

        Raises
        ------
        SourceError
            A server does not answer, or a file has changed there.
        """
        needed: dict[str, set[int]] = {}
        for path, window in wanted:
            copy = self.copy(path)
            if copy is not None:
                box = (window.row_off, window.col_off, window.height, window.width)
                numbers = copy.layout.blocks(*map(int, box))
                needed.setdefault(path, set()).update(numbers.tolist())
        futures: list[Future[None]] = []
        for path, blocks in needed.items():
            copy = self.copy(path)
            assert copy is not None
            futures += self._ask(copy, blocks)
        try:
            wait(futures)
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        for future in futures:
            future.result()
        for path, blocks in needed.items():
            copy = self.copy(path)
            assert copy is not None
            copy.grown(blocks)

    def _ask(self, copy: Copy, blocks: set[int]) -> list[Future[None]]:
        """Begin to fetch what is missing of blocks; return what is to be waited for."""
        with copy.lock:
            missing = copy.missing(blocks)
            coming = [copy.pending[int(n)] for n in missing if int(n) in copy.pending]
            rest = np.array([n for n in missing if int(n) not in copy.pending], dtype=np.int64)
            for part in copy.ranges(rest):
                future = self._pool.submit(self._fetch, copy, part)
                copy.pending |= dict.fromkeys(map(int, part.blocks), future)
                coming.append(future)
                future.add_done_callback(lambda _, part=part: self._ended(copy, part))  # type: ignore[misc]
        return list(dict.fromkeys(coming))

    def _ended(self, copy: Copy, part: Range) -> None:
        with copy.lock:
            for block in part.blocks:
                copy.pending.pop(int(block), None)

    def _fetch(self, copy: Copy, part: Range) -> None:
        with copy.path.open("r+b", buffering=0) as file:

            def arrived(at: int, piece: bytes) -> None:
                os.pwrite(file.fileno(), piece, at)

            try:
                size, _ = self._get(copy.url, part.first, part.end, arrived, copy.version)
            except WholeError:
                size = -1
            if size != copy.size:
                raise SourceError(self._changed(copy.url))
            os.fdatasync(file.fileno())
        copy.mark(part.blocks)

    @staticmethod
    def _changed(url: str) -> str:
        return (
            f"{shown(url)} has changed since its copy was begun. Run the same command once more "
            "after removing what was fetched, or narrow the search to products that stay."
        )

    def _get(
        self, url: str, first: int, end: int, arrived: Callable[[int, bytes], object], version: str
    ) -> tuple[int, str]:
        """
        Call ``arrived(offset, bytes)`` for all bytes of a range; return the size and the version of
        the file. After a break it goes on at the byte reached.
        """
        at, size, problem, pause = first, -1, "", 0.0
        again, deadline = broken_off(), time.monotonic() + RANGE_S
        for attempt in range(self.service.attempts):
            if attempt:
                longer = min(self.service.pause_s * 2 ** (attempt - 1), LONGEST_WAIT_S)
                self.service.sleep(max(longer, pause))
            pause = 0.0
            headers = {"Range": f"bytes={at}-{end - 1}", "Accept-Encoding": "identity"}
            try:
                with self._session.get(
                    self._signer(url), headers=headers, stream=True, timeout=self.service.timeout_s
                ) as answer:
                    if answer.status_code in BUSY:
                        told = answer.headers.get("Retry-After")
                        pause = min(retry_after(told, 0.0), LONGEST_WAIT_S)
                        problem = f"status {answer.status_code}"
                        continue
                    size, end = _promised(answer, url, at, end)
                    version = _same_version(answer, version, self._changed(url))
                    for piece in pieces_of(answer, self.service.timeout_s):
                        if at + len(piece) > end:
                            raise SourceError(
                                f"{shown(url)} sends more than was asked for. Do not trust it."
                            )
                        arrived(at, piece)
                        at += len(piece)
                        if time.monotonic() > deadline:
                            break
            except again as error:
                problem = type(error).__name__
            if at >= end:
                return size, version
            problem = problem or "the transfer broke off"
            if time.monotonic() > deadline:
                break
        raise SourceError(
            f"{shown(url)} could not be fetched in {self.service.attempts} attempts ({problem}). "
            "Run the same command again: it goes on from there."
        )

    def generation(self, path: str) -> int:
        """Return how often a copy has grown."""
        copy = self.copy(path)
        return 0 if copy is None else copy.generation

    def address(self, path: str) -> str | None:
        """Return where the original of a copy lies, without what may be secret in it."""
        copy = self.copy(path)
        return None if copy is None else shown(copy.url)

    def stamp(self, path: str) -> tuple[int, str] | None:
        """Return size and version of the original of a copy."""
        copy = self.copy(path)
        return None if copy is None else (copy.size, copy.version)

    def forget(self, paths: Iterable[str]) -> None:
        """Give the space of copies back; they are filled again when they are read again."""
        for path in paths:
            copy = self.copy(path)
            if copy is not None:
                copy.forget()

    def ahead(self, work: Callable[[], object]) -> None:
        """Bring something in the background; an error is told to whoever needs it."""

        def quietly() -> None:
            with suppress(Exception):  # asked again, and told, where it is needed
                work()

        self._tool("ahead", lambda: ThreadPoolExecutor(2)).submit(quietly)

    def close(self) -> None:
        """Drop what was to be brought and is not asked for any more."""
        with self._lock:
            pools = [self._tools.pop(name, None) for name in ("ahead", "pool")]
        for pool in pools:
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)


class WholeError(Exception):
    """The server gives no parts of this file."""


def _promised(answer: Any, url: str, first: int, end: int) -> tuple[int, int]:
    """Return the size of the file an answer is a part of, and where the part ends."""
    status = answer.status_code
    if status in (200, 416):
        raise WholeError
    if status != 206:
        raise SourceError(
            f"{shown(url)} was not answered (status {status}). Are its files open to everyone? "
            "Otherwise name who signs addresses: scenes.stac.sign."
        )
    told = str(answer.headers.get("Content-Range", ""))
    span, _, total = told.removeprefix("bytes ").partition("/")
    if not span.startswith(f"{first}-") or not total.isdigit():
        raise WholeError
    return int(total), min(end, int(total))


def _same_version(answer: Any, known: str, message: str) -> str:
    """Return the version of a file; a weak tag stands for the same bytes too."""
    found = answer.headers.get("ETag") or answer.headers.get("Last-Modified", "")
    found = found.removeprefix("W/")
    if known and found and found != known:
        raise SourceError(message)
    return known or found
