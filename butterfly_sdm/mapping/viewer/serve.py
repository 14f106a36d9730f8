"""A server that shows a map to this machine alone, block by block."""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from butterfly_sdm.errors import DataError, RasterError
from butterfly_sdm.mapping.viewer.blocks import MapBlocks
from butterfly_sdm.mapping.viewer.page import page_content, page_html

CLIENTS = 64  # answered at a time
PATIENCE_S = 2.0  # one of this machine takes a hundredth of that
NUMBERS = re.compile(r"/(block|place)((?:/[0-9]{1,7}){2,4})")


def make_server(path: str | Path, *, port: int = 0, **options: Any) -> ThreadingHTTPServer:
    """
    Return a server that shows a map at ``http://127.0.0.1:PORT/`` to this machine alone; call its
    ``serve_forever``.

    The page asks for blocks of the map and of its overviews when they come into view, so that a map
    of any size opens at once and is sharp at every zoom.

    Parameters
    ----------
    path
        The map.
    port
        0: any that is free; ``server_address`` tells which.
    options
        Of :func:`~butterfly_sdm.mapping.viewer.page.viewer_page`.

    Raises
    ------
    DataError, MissingFileError, RasterError
        As :func:`~butterfly_sdm.mapping.viewer.page.viewer_page`.
    """
    blocks = MapBlocks(path)
    page = page_html(page_content(blocks, **options)).encode()

    class Handler(BaseHTTPRequestHandler):
        timeout = 30  # seconds that a silent client may hold a thread

        def do_GET(self) -> None:
            # A page elsewhere cannot read the map by a name that it lets point here.
            host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
            if host not in ("127.0.0.1", "localhost"):
                self.send_error(403)
            elif self.path == "/":
                self._answer("text/html; charset=utf-8", page)
            elif (found := _asked(blocks, self.path)) is not None:
                self._answer(*found)
            else:
                self.send_error(404)

        def _answer(self, kind: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the terminal quiet."""

    return _Server(("127.0.0.1", port), Handler)


def _asked(blocks: MapBlocks, path: str) -> tuple[str, bytes] | None:
    """
    Return type and bytes of ``/block/BAND/ZOOM/ACROSS/DOWN`` (rows, cols, then the numbers) or
    ``/place/ROW/COL`` (one number per band); None: there is no such thing.
    """
    if not (match := NUMBERS.fullmatch(path)):
        return None
    numbers = [int(part) for part in match[2].split("/")[1:]]
    try:
        if match[1] == "block" and len(numbers) == 4:
            values = blocks.block(*numbers)
            shape = np.array(values.shape, dtype="<u4").tobytes()
            return "application/octet-stream", shape + values.astype("<f4").tobytes()
        if match[1] == "place" and len(numbers) == 2:
            found = [float(v) if np.isfinite(v) else None for v in blocks.place(*numbers)]
            return "application/json", json.dumps(found).encode()
    except (DataError, RasterError):  # no such place, or a damaged block
        pass
    return None


class _Server(ThreadingHTTPServer):
    """
    Answers at most :data:`CLIENTS` clients at a time. Where all places are taken, whoever has held
    one longer than :data:`PATIENCE_S`, by asking slowly or not taking the answer, loses it.
    """

    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        self._places = threading.BoundedSemaphore(CLIENTS)
        self._since: dict[Any, float] = {}
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        while not self._places.acquire(timeout=0.1):
            self._drop_slow()
        self._since[request] = time.monotonic()
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._leave(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._leave(request)

    def _leave(self, request: Any) -> None:
        if self._since.pop(request, None) is not None:
            self._places.release()

    def _drop_slow(self) -> None:
        for request, since in list(self._since.items()):
            if time.monotonic() - since > PATIENCE_S:
                with suppress(OSError):  # it has gone by itself
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep the terminal quiet of clients that go before they are answered."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)
