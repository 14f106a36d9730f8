"""A server of files on this machine that gives parts, is busy, breaks off, and counts."""

import functools
import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class RangeServer(http.server.ThreadingHTTPServer):
    """
    Attributes
    ----------
    busy, broken
        Every so manieth request of a raster is answered by 503, or breaks off half-way; 0: none.
    ranges
        Whether parts are given.
    answered
        Command and path of every request, those for heads included.
    """

    daemon_threads = True
    busy = broken = 0
    ranges = True
    weak = False

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.asked: list[tuple[str, int, int]] = []
        self.queries: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.answered: list[tuple[str, str]] = []
        self.count, self.lock = 0, threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sent(self, suffix: str = ".tif") -> int:
        return sum(end - first for name, first, end in self.asked if name.endswith(suffix))


class Handler(http.server.SimpleHTTPRequestHandler):
    server: RangeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def log_request(self, *_: object) -> None:
        self.server.answered.append((self.command, self.path))

    def do_GET(self) -> None:
        server, (path, _, query) = self.server, self.path.partition("?")
        file = Path(self.translate_path(path))
        if not file.is_file():
            self.send_error(404)
            return
        content, first, end = file.read_bytes(), 0, file.stat().st_size
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part is not None and server.ranges:
            first, end = int(part[1]), min(int(part[2]) + 1 if part[2] else end, end)
        with server.lock:
            server.queries.append(query)
            server.headers.append(dict(self.headers))
            number = server.count = server.count + path.endswith(".tif")
            counted = path.endswith(".tif")
        if counted and server.busy and number % server.busy == 0:
            self.send_response(503)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if part is not None and server.ranges else 200)
        if part is not None and server.ranges:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(content)}")
        tag = f'"{len(content):x}-{hash(content) & 0xFFFFFF:x}"'
        self.send_header("ETag", f"W/{tag}" if server.weak else tag)
        self.send_header("Content-Length", str(end - first))
        self.end_headers()
        if counted and server.broken and number % server.broken == 0:
            end = first + (end - first) // 2
            self.close_connection = True
        self.wfile.write(content[first:end])
        with server.lock:
            server.asked.append((path.lstrip("/"), first, end))


@contextmanager
def serving(folder: Path) -> Iterator[RangeServer]:
    """Serve a folder while the block lasts."""
    server = RangeServer(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
