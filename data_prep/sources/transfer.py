"""Fetch a file over HTTP: continued where it broke off, checked, and whole or absent."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from butterfly_sdm.errors import MissingPackageError, SourceError, how_to_install
from butterfly_sdm.progress import Progress, silent

if TYPE_CHECKING:
    import requests

LOG = logging.getLogger("butterfly_sdm.sources")
PIECE = 1 << 16  # what is lost when a transfer breaks off


def _requests() -> Any:
    try:
        import requests
    except ImportError as error:
        raise MissingPackageError(
            f"Fetching data needs requests. Install it with: {how_to_install('sources')}"
        ) from error
    return requests


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
    poll_s
        Seconds between two questions whether it is ready, where the service does not say.
    sleep
        Waits; tests replace it.
    """

    attempts: int = 5
    pause_s: float = 1.0
    timeout_s: float = 60.0
    wait_s: float = 3 * 3600.0
    poll_s: float = 20.0
    sleep: Callable[[float], None] = field(default=time.sleep)

    def ask(self, method: str, url: str, **options: Any) -> requests.Response:
        """
        Return an answer; a busy service and a broken connection are asked again.

        Raises
        ------
        SourceError
            There is none, or the service refuses.
        """
        library = _requests()
        problem = ""
        for attempt in range(self.attempts):
            self._pause(attempt)
            try:
                answer: requests.Response = library.request(
                    method, url, timeout=self.timeout_s, **options
                )
            except library.RequestException as error:
                problem = f"{type(error).__name__}"
                continue
            if answer.status_code in (429, 500, 502, 503, 504):
                problem = f"status {answer.status_code}"
                answer.close()
                continue
            if answer.status_code in (401, 403):
                raise SourceError(
                    f"{_host(url)} refuses the credentials (status {answer.status_code}). Check "
                    "user name and password."
                )
            if answer.status_code >= 400:
                raise SourceError(
                    f"{url} was not answered (status {answer.status_code}: "
                    f"{answer.text[:200].strip()}). "
                    "Check the key or address."
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
        waited, failures, problem = 0.0, 0, ""
        while failures < self.attempts:
            self._pause(failures)
            try:
                done, wait = self._continue(url, part, mark, size, name, progress)
            except _requests().RequestException as error:
                failures, problem = failures + 1, type(error).__name__
                continue
            if done:
                return
            if wait is None:
                failures, problem = failures + 1, "the transfer broke off"
                continue
            if waited + wait > self.wait_s:
                raise SourceError(
                    f"{url} was not ready after {waited:.0f} s. Run the same command later: it "
                    "goes on from there."
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
        self, url: str, part: Path, mark: Path, size: int | None, name: str, progress: Progress
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
        with _requests().get(url, headers=headers, stream=True, timeout=self.timeout_s) as answer:
            status = answer.status_code
            if status == 202:
                return False, _retry_after(answer.headers.get("Retry-After"), self.poll_s)
            if status in (429, 500, 502, 503, 504):
                answer.close()
                raise _requests().ConnectionError(f"status {status}")
            if status == 416:  # what is held is longer than the file: start anew
                part.unlink(missing_ok=True)
                return False, None
            if status >= 400:
                raise SourceError(
                    f"{url} was not answered (status {status}). Check the key or address."
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
            with part.open("ab" if goes_on else "wb") as file:
                for piece in answer.iter_content(PIECE):
                    file.write(piece)
                    held += len(piece)
                    progress(f"fetching {name}", held, total or 0)
            whole = total is None or held == total
            return whole and size in (None, held), None


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


def _retry_after(value: str | None, otherwise: float) -> float:
    try:
        return max(float(value or ""), 0.0)
    except ValueError:
        return otherwise


def _host(url: str) -> str:
    from urllib.parse import urlsplit

    return urlsplit(url).hostname or url
