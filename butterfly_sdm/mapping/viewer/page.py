"""The page of a map: what it says, and the values it holds or asks a server for."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from butterfly_sdm.core.files import write_text
from butterfly_sdm.errors import DataError
from butterfly_sdm.imagery.products import metres_per_unit
from butterfly_sdm.mapping.map_file import TILE_PX
from butterfly_sdm.mapping.quantity import is_of_species
from butterfly_sdm.mapping.sidecars import known_words, ramp_of
from butterfly_sdm.mapping.viewer.blocks import MapBlocks
from butterfly_sdm.mapping.viewer.overlay import overlay_of
from butterfly_sdm.mapping.viewer.sites import SitesSeen

LEVELS = 250  # steps of a value in a page that holds its values; 255 stands for nothing
MOST_BYTES = 15_000_000
MOST_CELLS = 64_000_000  # of all bands in a page: a phone holds them in memory


def viewer_page(
    path: str | Path,
    *,
    overlay: str | None = None,
    limit: float | None = None,
    sites: SitesSeen | None = None,
    shapes: Path | None = None,
    most_bytes: int = MOST_BYTES,
) -> str:
    """
    Return an HTML page that holds a map, without anything from outside.

    A map too large for it is averaged over squares of 2, 4, 8 ... pixels, which the page says.

    Parameters
    ----------
    path
        A map.
    overlay, limit
        Band, such as a dissimilarity, that is hatched where it exceeds ``limit``. None: as the
        metadata of the map says.
    sites
        Drawn on the map, with what was seen there.
    shapes
        Vector file, such as a plan of visits, drawn above the map.
    most_bytes
        The page is not larger.

    Raises
    ------
    DataError
        The band of the overlay is not in the map, or no limit is given for it; the page cannot be
        as small as asked for; the shapes have no CRS.
    MissingFileError, RasterError
        There is no such file, or it is no map of this package.
    """
    blocks = MapBlocks(path)
    content = page_content(blocks, overlay=overlay, limit=limit, sites=sites, shapes=shapes)
    room = most_bytes - len(page_html(content).encode())
    factor, packed = _packed(blocks, content["bands"], room)
    content |= {"factor": factor, "packed": packed, "levels": LEVELS}
    return page_html(content)


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


def page_content(
    blocks: MapBlocks,
    *,
    overlay: str | None = None,
    limit: float | None = None,
    sites: SitesSeen | None = None,
    shapes: Path | None = None,
) -> dict[str, Any]:
    """Return what a page says of a map, but its values; arguments as of :func:`viewer_page`."""
    source = blocks.map
    grid, (rows, cols) = source.transform, source.shape
    text = source.crs.to_string()
    return {
        "title": source.path.stem,
        "crs": text if len(text) < 40 else "own CRS",
        "geographic": bool(source.crs.is_geographic),
        "unit_m": 1.0
        if source.crs.is_geographic
        else metres_per_unit(source.crs, str(source.path)),
        "left": grid.c,
        "top": grid.f,
        "dx": grid.a,
        "dy": -grid.e,
        "rows": rows,
        "cols": cols,
        "tile": TILE_PX,
        "zooms": blocks.zooms,
        "bands": list(_bands(blocks)),
        "limits": _limits(blocks, overlay, limit),
        "sites": [] if sites is None else sites.rows(source.species, source.crs),
        "shapes": None if shapes is None else overlay_of(shapes, source.crs),
        "notes": _notes(source.tags),
        "attribution": "made with butterfly_sdm",
    }


def page_html(content: Mapping[str, Any]) -> str:
    """Return the page that shows ``content``."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A band name cannot end the script element or begin a comment in it.
    for letter in "&<>\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    room = files("butterfly_sdm.mapping.viewer")
    template, *parts = (
        room.joinpath(name).read_text(encoding="utf-8")
        for name in (
            "viewer.html",
            "leaflet/LICENSE",
            "leaflet/leaflet.css",
            "viewer.css",
            "leaflet/leaflet.js",
            "viewer.js",
        )
    )
    places = ("__LICENCE__", "__LEAFLET_CSS__", "__CSS__", "__LEAFLET__", "__VIEWER__")
    for place, part in zip(places, parts, strict=True):
        template = template.replace(place, part, 1)
    template = template.replace("__CONNECT__", "'none'" if "packed" in content else "'self'", 1)
    return template.replace("__DATA__", text, 1)


def _bands(blocks: MapBlocks) -> Iterator[dict[str, Any]]:
    """Yield what a page says of each band: its scale, fixed and stretched, skill and interval."""
    source = blocks.map
    skill = (source.tags.get("skill") or {}).get("species") or {}
    bounds = source.tags.get("interval") or {}
    places = {name: number for number, name in enumerate(source.names)}
    for number, (name, unit) in enumerate(zip(source.names, source.units, strict=True)):
        values = blocks.read(number, 0)
        known = values[np.isfinite(values)]
        share = (
            is_of_species(unit)
            or unit.startswith("presence")
            or unit in ("lower bound", "upper bound")
        )
        edges = (
            [float(edge) for edge in np.percentile(known, (1, 99))] if known.size else [0.0, 1.0]
        )
        low, high = min(0.0, float(known.min(initial=0.0))), float(known.max(initial=0.0))
        if unit == "difference":  # as much to either side of nothing
            low, high = (side * max(-low, high, 1e-6) for side in (-1, 1))
            edges = [side * max(map(abs, edges)) for side in (-1, 1)]
        elif share:
            low, high = 0.0, 1.0
        if edges[1] - edges[0] <= 1e-6:
            edges = [low, high]
        yield {
            "name": name,
            "unit": unit,
            "species": name in source.species,
            "fixed": [low, high if high > low else low + 1.0],
            "stretched": edges if edges[1] > edges[0] else [low, low + 1.0],
            "ramp": ramp_of(unit),
            "skill": skill.get(name),
            "interval": [places.get(f"{name} lower"), places.get(f"{name} upper")]
            if bounds
            else None,
        }


def _limits(blocks: MapBlocks, overlay: str | None, limit: float | None) -> dict[int, float]:
    """Return the limits that hatch, by the number of the band."""
    source = blocks.map
    limits = {n: v for n, v in (source.tags.get("limits") or {}).items() if n in source.names}
    if overlay is None and limit is not None:
        overlay = next((n for n in source.names if n.startswith("dissimilarity")), None)
        if overlay is None:
            raise DataError(
                f"{source.path} has no band that tells how unlike the training sites a place is, "
                "so a limit has nothing to hatch. Map with map.layers=[applicability], or leave "
                "the limit out."
            )
    if overlay is not None:
        source.indexes([overlay])
        if (limit := limits.get(overlay) if limit is None else limit) is None:
            raise DataError(
                f"The overlay {overlay!r} needs a limit: the largest value that counts as "
                "applicable."
            )
        limits = {overlay: limit}
    return {source.names.index(name): value for name, value in limits.items()}


def _notes(tags: Mapping[str, Any]) -> list[str]:
    """Return what is known of the whole map, one sentence each."""
    notes, audit = known_words(tags), tags.get("audit") or {}
    if not tags.get("skill") and "mode" in tags:
        notes.insert(0, "How good this map is was not measured.")
    if "mean_abs" in audit:
        notes.append(
            f"Dense against window by window: mean {audit['mean_abs']:.4f}, largest "
            f"{audit['max_abs']:.4f}."
        )
    return notes


def _packed(
    blocks: MapBlocks, bands: list[dict[str, Any]], room: int
) -> tuple[int, list[dict[str, Any]]]:
    """
    Return how many pixels of the map a cell of the page is wide, and the values of every band:
    packed bytes and what they mean.
    """
    rows, cols = blocks.map.shape
    for zoom in range(blocks.zooms, -1, -1):
        factor = blocks.factors[zoom]
        if zoom and rows * cols * len(bands) / factor**2 > MOST_CELLS:
            continue
        tried = sorted({0, len(bands) // 2, len(bands) - 1})  # before all are packed
        share = sum(len(_pack(blocks, zoom, number)["data"]) for number in tried) / len(tried)
        if share * len(bands) > 1.5 * room:
            continue
        packed = []
        left = room
        for number in range(len(bands)):
            packed.append(_pack(blocks, zoom, number))
            left -= len(packed[-1]["data"]) + 80
            if left < 0:
                break
        else:
            return factor, packed
    raise DataError(
        f"A page of the map cannot be as small as asked for: {len(bands)} bands at "
        f"{blocks.factors[0]} pixels a cell need more. Map fewer species, or serve the page."
    )


def _pack(blocks: MapBlocks, zoom: int, band: int) -> dict[str, Any]:
    values = blocks.read(band, zoom)
    known = np.isfinite(values)
    low, high = (float(values[known].min()), float(values[known].max())) if known.any() else (0, 0)
    step = (high - low) / LEVELS or 1.0
    stored = np.full(values.shape, 255, dtype=np.uint8)
    stored[known] = np.clip(np.rint((values[known] - low) / step), 0, LEVELS)
    packed = base64.b64encode(zlib.compress(stored.tobytes(), 6)).decode()
    return {"low": low, "step": step, "rows": len(values), "cols": values.shape[1], "data": packed}
