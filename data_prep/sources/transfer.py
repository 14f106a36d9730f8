"""
Fetch a file over HTTP: continued where it broke off, checked, and whole or absent.

No transfer is without bounds, in bytes, in time and in waiting, and none leaves https once it began
there. Nothing but what a caller hands over is sent: no ``.netrc``, and no credentials to the host
of a redirect.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from butterfly_sdm.core.addresses import shown
from butterfly_sdm.errors import MissingPackageError, SourceError, how_to_install
from butterfly_sdm.progress import Progress, silent

if TYPE_CHECKING:
    import requests

LOG = logging.getLogger("butterfly_sdm.sources")
PIECE = 1 << 16  # what is lost when a transfer breaks off
BUSY = (429, 500, 502, 503, 504)
LEAST_RATE = 1000  # bytes a second, below which a connection counts as broken
MOST_BYTES = 1 << 40  # of a file whose size nobody promised
WAITS_S = (1.0, 3600.0)  # what is believed of a service that says how long to wait
MOST_REDIRECTS = 5


class AbsentError(SourceError):
    """A service answers that what was asked for is not there (status 404)."""


def _requests() -> Any:
    try:
        import requests
    except ImportError as error:
        raise MissingPackageError(
            f"Fetching data needs requests. Install it with: {how_to_install('sources')}"
        ) from error
    return requests


@cache
def _session_class() -> Any:
    library = _requests()

    class Session(library.Session):  # type: ignore[misc, name-defined]
        """Sends no credentials that nobody handed over, and does not go from https to http."""

        def rebuild_auth(self, prepared_request: Any, response: Any) -> None:
            """Called for every redirect."""
            before, after = response.request.url, prepared_request.url
            schemes = urlsplit(before).scheme, urlsplit(after).scheme
            if schemes[1] not in ("http", "https") or schemes == ("https", "http"):
                raise SourceError(
                    f"{shown(before)} leads to {shown(after)}, away from https. It is not followed."
                )
            if self.should_strip_auth(before, after):
                prepared_request.headers.pop("Authorization", None)

    return Session


def _as_it_is(request: Any) -> Any:
    return request


def open_session(connections: int = 10) -> Any:
    """
    Return a session of ``requests`` that keeps its connections, with the rules of this module.

    Raises
    ------
    MissingPackageError
        ``requests`` is not installed.
    """
    from requests.adapters import HTTPAdapter

    session = _session_class()()
    session.auth = _as_it_is  # instead of what .netrc says
    session.max_redirects = MOST_REDIRECTS
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_connections=4, pool_maxsize=connections))
    return session


def broken_off() -> tuple[type[Exception], ...]:
    """Return the errors of a connection that may be tried again."""
    from urllib3.exceptions import HTTPError

    return (_requests().RequestException, HTTPError, ConnectionError, TimeoutError)


def pieces_of(answer: Any, timeout_s: float) -> Iterator[bytes]:
    """
    Yield the bytes of an answer as they arrive.

    Raises
    ------
    ConnectionError
        It trickles: fewer bytes than :data:`LEAST_RATE` in ``timeout_s``.
    SourceError
        It is packed, though that was not asked for.
    """
    if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise SourceError(f"{shown(answer.url)} was sent packed, which was not asked for.")
    read = getattr(answer.raw, "read1", answer.raw.read)  # what is there, not all that is asked for
    since, arrived = time.monotonic(), 0
    while piece := read(PIECE):
        yield piece
        arrived += len(piece)
        if (spent := time.monotonic() - since) >= timeout_s:
            if arrived < LEAST_RATE * spent:
                raise ConnectionError("it trickles")
            since, arrived = time.monotonic(), 0


@dataclass(frozen=True)
class Service:
    """
    How a service on the network is asked.

    Attributes
    ----------
    attempts
        How often a broken connection or a busy service is asked again.
    pause_s
        Seconds before the second attempt, doubled each time up to a minute.
    timeout_s
        Seconds without an answer after which a connection counts as broken.
    wait_s
        Seconds to wait in all for something that is being prepared.
    total_s
        Seconds after which a transfer ends unfinished; the next call goes on from there.
    poll_s
        Seconds between two questions whether it is ready, where the service does not say.
    sleep
        Waits; tests replace it.
    sign
        Turns the address of a file into the one that is asked, anew for every request.
    """

    attempts: int = 5
    pause_s: float = 1.0
    timeout_s: float = 60.0
    wait_s: float = 3 * 3600.0
    total_s: float = 24 * 3600.0
    poll_s: float = 20.0
    sleep: Callable[[float], None] = field(default=time.sleep)
    sign: Callable[[str], str] | None = None

    def ask(self, method: str, url: str, **options: Any) -> requests.Response:
        """
        Return an answer; a busy service and a broken connection are asked again.

        Raises
        ------
        AbsentError
            The service does not have it.
        SourceError
            There is no answer, or the service refuses.
        """
        library = _requests()
        problem = ""
        session = open_session()
        for attempt in range(self.attempts):
            self._pause(attempt)
            try:
                answer: requests.Response = session.request(
                    method, url, timeout=self.timeout_s, **options
                )
            except library.RequestException as error:
                problem = f"{type(error).__name__}"
                continue
            if answer.status_code in BUSY:
                problem = f"status {answer.status_code}"
                answer.close()
                continue
            if answer.status_code in (401, 403):
                raise SourceError(
                    f"{_host(url)} refuses the credentials (status {answer.status_code}). Check "
                    "user name and password."
                )
            if answer.status_code >= 400:
                told = re.sub(r"\?\S+", "?...", answer.text[:200].strip())
                kind = AbsentError if answer.status_code == 404 else SourceError
                raise kind(
                    f"{shown(url)} was not answered (status {answer.status_code}: {told}). Check "
                    "the key or address."
                )
            return answer
        raise SourceError(
            f"{_host(url)} did not answer after {self.attempts} attempts ({problem}). Try again "
            "later."
        )

    def fetch(
        self,
        url: str,
        path: Path,
        *,
        checksum: str | None = None,
        size: int | None = None,
        progress: Progress = silent,
    ) -> Path:
        """
        Fetch a file.

        What has arrived lies in ``NAME.part``; a later call goes on from there if the service still
        has the same file.

        Parameters
        ----------
        url
            Where it is; redirects are followed.
        path
            Where it shall be. If it is there already and agrees with ``checksum`` (or, without one,
            with ``size``) nothing is fetched.
        checksum
            ``md5:…`` or ``sha256:…``.
        size
            Bytes.

        Raises
        ------
        SourceError
            It could not be fetched whole, or is not the file that was promised.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and (checksum or size is not None):
            if (not checksum or digest(path, checksum) == checksum) and size in (
                None,
                path.stat().st_size,
            ):
                return path
            LOG.warning("%s is not the file that is wanted and is fetched again", path)
        part = path.with_name(path.name + ".part")
        mark = path.with_name(path.name + ".part.version")
        self._fetch_whole(url, part, mark, size, path.name, progress)
        if checksum and digest(part, checksum) != checksum:
            got = digest(part, checksum)
            part.unlink()
            mark.unlink(missing_ok=True)
            raise SourceError(
                f"{path.name} from {_host(url)} is not the file that was promised: {checksum} was "
                f"expected, {got} arrived. It was removed. Try again; if it happens again the file "
                "has changed at its source."
            )
        part.replace(path)
        mark.unlink(missing_ok=True)
        return path

    def _pause(self, failures: int) -> None:
        if failures:
            self.sleep(min(self.pause_s * 2 ** (failures - 1), 60.0))

    def _fetch_whole(
        self, url: str, part: Path, mark: Path, size: int | None, name: str, progress: Progress
    ) -> None:
        """Ask for the rest of a file until it is whole."""
        waited, failures, problem, began = 0.0, 0, "", time.monotonic()
        session, again = open_session(), broken_off()
        while failures < self.attempts and time.monotonic() - began < self.total_s:
            self._pause(failures)
            end = began + self.total_s
            try:
                done, wait = self._continue(session, url, part, mark, size, name, end, progress)
            except again as error:
                failures, problem = failures + 1, type(error).__name__
                continue
            if done:
                return
            if wait is None:
                failures, problem = failures + 1, "the transfer broke off"
                continue
            if waited + wait > self.wait_s:
                raise SourceError(
                    f"{shown(url)} was not ready after {waited:.0f} s. Run the same command later: "
                    "it goes on from there."
                )
            self.sleep(wait)
            waited += wait
        arrived = part.stat().st_size if part.is_file() else 0
        raise SourceError(
            f"{name} could not be fetched from {_host(url)} in {self.attempts} attempts "
            f"({problem}). "
            f"Run the same command again: it goes on after the {arrived:,} bytes that arrived."
        )

    def _continue(
        self,
        session: Any,
        url: str,
        part: Path,
        mark: Path,
        size: int | None,
        name: str,
        end: float,
        progress: Progress,
    ) -> tuple[bool, float | None]:
        """
        Ask for the rest of a file. Return whether it is whole, and how long to wait where it is not
        ready.
        """
        held = part.stat().st_size if part.is_file() else 0
        version = mark.read_text(encoding="utf-8") if mark.is_file() else ""
        headers = {"Accept-Encoding": "identity"}
        if held and version:
            headers |= {"Range": f"bytes={held}-", "If-Range": version}
        elif held:
            held = 0  # nothing says that it is still the same file
        asked = url if self.sign is None else self.sign(url)
        with session.get(asked, headers=headers, stream=True, timeout=self.timeout_s) as answer:
            status = answer.status_code
            if status == 202:
                return False, retry_after(answer.headers.get("Retry-After"), self.poll_s)
            if status in BUSY:
                answer.close()
                raise _requests().ConnectionError(f"status {status}")
            if status == 416:  # what is held is longer than the file: start anew
                part.unlink(missing_ok=True)
                return False, None
            if status >= 400:
                raise SourceError(
                    f"{shown(url)} was not answered (status {status}). Check the key or address."
                )
            goes_on = status == 206 and answer.headers.get("Content-Range", "").startswith(
                f"bytes {held}-"
            )
            if not goes_on:
                held = 0
            length = answer.headers.get("Content-Length", "")
            total = held + int(length) if length.isdigit() else size
            weak = answer.headers.get("ETag", "").startswith("W/")
            mark.write_text(
                ""
                if weak
                else answer.headers.get("ETag") or answer.headers.get("Last-Modified", ""),
                encoding="utf-8",
            )
            most = next(promise for promise in (size, total, MOST_BYTES) if promise is not None)
            with part.open("ab" if goes_on else "wb") as file:
                for piece in self._promised(answer, shown(url), most - held, end):
                    file.write(piece)
                    held += len(piece)
                    progress(f"fetching {name}", held, total or 0)
            whole = total is None or held == total
            return whole and size in (None, held), None

    def _promised(self, answer: Any, url: str, most: int, end: float) -> Iterator[bytes]:
        """Yield the bytes of an answer until the time is up, and refuse more than ``most``."""
        for piece in pieces_of(answer, self.timeout_s):
            most -= len(piece)
            if most < 0:
                raise SourceError(
                    f"{url} sends more bytes than were promised. Do not trust this source."
                )
            if time.monotonic() > end:
                return
            yield piece


def digest(path: Path, like: str) -> str:
    """
    Return a checksum of a file, of the kind of another.

    Raises
    ------
    SourceError
        The kind is unknown.
    """
    kind = like.partition(":")[0].lower()
    if kind not in ("md5", "sha256", "sha512"):
        raise SourceError(
            f"The checksum {like!r} is of an unknown kind; md5, sha256 and sha512 are known."
        )
    with path.open("rb") as file:
        return f"{kind}:{hashlib.file_digest(file, kind).hexdigest()}"


def retry_after(value: str | None, otherwise: float) -> float:
    """
    Return how many seconds to wait: what a service says, if that makes sense.

    >>> [retry_after(value, 20.0) for value in ("7", "0", "-5", "nan", "inf", "soon", None)]
    [7.0, 1.0, 1.0, 20.0, 3600.0, 20.0, 20.0]
    """
    try:
        seconds = float(value or "")
    except ValueError:
        return otherwise
    return otherwise if math.isnan(seconds) else min(max(seconds, WAITS_S[0]), WAITS_S[1])


def _host(url: str) -> str:
    return urlsplit(url).hostname or shown(url)
