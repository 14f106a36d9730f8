"""
Look at a map in a browser: one page that holds everything, as a file or from a server on this
machine alone.
"""

from __future__ import annotations

import base64
import json
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.warp import transform

from butterfly_sdm.core.files import write_text
from butterfly_sdm.errors import DataError
from butterfly_sdm.mapping.map_reader import MapReader
from butterfly_sdm.mapping.quantity import is_of_species
from butterfly_sdm.mapping.sidecars import RAMP, read_reduced

CLIENTS = 64  # answered at a time
LEVELS = 250  # steps of a value in the page; 255 stands for nothing


def viewer_page(
    path: str | Path, *, most_px: int = 1024, overlay: str | None = None, limit: float | None = None
) -> str:
    """
    Return an HTML page that shows a map, without anything from outside.

    Parameters
    ----------
    path
        A map.
    most_px
        Larger maps are reduced to so many pixels a side.
    overlay, limit
        Band, such as a dissimilarity, that is drawn as hatching where it exceeds ``limit``. None:
        as the metadata of the map says.

    Raises
    ------
    DataError
        The band of the overlay is not in the map, or no limit is given for it.
    """
    source = MapReader(path)
    limits = source.tags.get("limits") or {}
    if overlay is None:
        overlay = next((name for name in limits if name in source.names), None)
    if overlay is not None:
        source.indexes([overlay])
        limit = limits.get(overlay) if limit is None else limit
        if limit is None:
            raise DataError(
                f"The overlay {overlay!r} needs a limit: the largest value that counts as "
                "applicable."
            )
    values = read_reduced(source.path, None, most_px)
    bands = [
        _pack(name, unit, band)
        for name, unit, band in zip(source.names, source.units, values, strict=True)
    ]
    grid, (rows, cols) = source.transform, source.shape
    corners = [
        (grid.c + grid.a * i * cols, grid.f + grid.e * j * rows) for j in (0, 1) for i in (0, 1)
    ]
    lon, lat = transform(source.crs, "EPSG:4326", *zip(*corners, strict=True))
    audit = source.tags.get("audit") or {}
    data: dict[str, Any] = {
        "title": source.path.stem,
        "bands": bands,
        "rows": values.shape[1],
        "cols": values.shape[2],
        "levels": LEVELS,
        "ramp": RAMP,
        "left": grid.c,
        "top": grid.f,
        "dx": grid.a * cols / values.shape[2],
        "dy": grid.e * rows / values.shape[1],
        "crs": source.crs.to_string() if len(source.crs.to_string()) < 40 else "own CRS",
        "lon": [round(v, 6) for v in lon],
        "lat": [round(v, 6) for v in lat],
        "overlay": overlay,
        "limit": limit,
        "note": f"dense against window by window: mean {audit['mean_abs']:.4f}, largest "
        f"{audit['max_abs']:.4f}"
        if audit
        else "",
    }
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    # A band name cannot end the script element or begin a comment in it.
    text = (
        text.replace("&", "\\u0026")
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("\u2028", "\\u2028")
    )
    template = files("butterfly_sdm.mapping").joinpath("viewer.html").read_text(encoding="utf-8")
    return template.replace("__DATA__", text.replace("\u2029", "\\u2029"))


def _pack(name: str, unit: str, values: np.ndarray) -> dict[str, Any]:
    known = np.isfinite(values)
    probability = is_of_species(unit) or unit.startswith("presence")
    low = 0.0 if probability or not known.any() else min(0.0, float(values[known].min()))
    high = 1.0 if probability or not known.any() else float(values[known].max())
    step = (high - low) / LEVELS or 1.0
    stored = np.where(
        known, np.clip(np.rint((np.where(known, values, 0) - low) / step), 0, LEVELS), 255
    ).astype(np.uint8)
    packed = base64.b64encode(zlib.compress(stored.tobytes(), 9)).decode()
    return {"name": name, "unit": unit, "low": low, "high": high, "data": packed}


def export_page(path: str | Path, out: str | Path | None = None, **options: Any) -> Path:
    """
    Write the page of :func:`viewer_page` as one file that needs nothing from outside.

    Parameters
    ----------
    path
        The map.
    out
        The page; None: ``MAP.html`` beside the map.
    options
        Of :func:`viewer_page`.

    Returns
    -------
    Path
        Where the page lies.
    """
    target = Path(out) if out is not None else Path(path).with_suffix(".html")
    write_text(target, viewer_page(path, **options))
    return target


def make_server(path: str | Path, *, port: int = 0, **options: Any) -> ThreadingHTTPServer:
    """
    Return a server that shows a map at ``http://127.0.0.1:PORT/`` to this machine alone; call its
    ``serve_forever``.

    Parameters
    ----------
    path
        The map.
    port
        0: any that is free; ``server_address`` tells which.
    options
        Of :func:`viewer_page`.
    """
    page = viewer_page(path, **options).encode()

    class Handler(BaseHTTPRequestHandler):
        timeout = 30  # seconds that a silent client may hold a thread

        def do_GET(self) -> None:
            # A page elsewhere cannot read the map by a name that it lets point here.
            host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
            if host not in ("127.0.0.1", "localhost"):
                self.send_error(403)
            elif self.path != "/":
                self.send_error(404)
            else:
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(page)))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(page)

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the terminal quiet."""

    return _Server(("127.0.0.1", port), Handler)


class _Server(ThreadingHTTPServer):
    """Answers at most :data:`CLIENTS` clients at a time; the others wait."""

    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        self._places = threading.BoundedSemaphore(CLIENTS)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._places.acquire()
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()
