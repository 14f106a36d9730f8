"""Say in texts where the shapes of a map lie, as records do: points by degrees, areas by WKT."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pyproj
import shapely

from butterfly_sdm.errors import RecordsError

PLACES = {
    "decimalLatitude": "latitude of the shape",
    "decimalLongitude": "longitude of the shape",
    "footprintWKT": "area of the shape",
    "easting": "easting of the shape",
    "northing": "northing of the shape",
}
"""Term: name of a column that stands for a geometry."""

STRIP_M = 5.0
"""A line is the strip that reaches so far to either side of it."""

_DIGITS = 7
_POINTS, _LINES = (0, 4), (1, 2, 5)


def places_of(wkb: np.ndarray, crs: str | None, where: str, notes: list[str]) -> pl.DataFrame:
    """
    Turn geometries into texts.

    Parameters
    ----------
    wkb
        Well-known binary, None for no geometry.
    crs
        Of the geometries; None: the file names none. Then numbers within the range of degrees are
        degrees, and points beyond it metres of ``records.crs``.
    notes
        Grows by what had to be assumed.

    Returns
    -------
    DataFrame
        The columns named by :data:`PLACES`: centre in degrees, polygon in degrees, or metres.

    Raises
    ------
    RecordsError
        Areas have no CRS and lie beyond the range of degrees.
    """
    shapes = shapely.force_2d(shapely.from_wkb(wkb, on_invalid="ignore"))
    shapes[shapely.is_empty(shapes)] = None
    metres = crs is None and not _in_degrees(shapes)
    if crs is None:
        _tell(notes, where, metres)
    kind = shapely.get_type_id(shapes)
    if metres and not np.isin(kind[~shapely.is_missing(shapes)], _POINTS).all():
        raise RecordsError(
            f"{where} does not say in which CRS its areas are (a shapefile has a .prj file beside "
            "it), and they are not in degrees. Set the CRS of the layer and save it again."
        )
    shapes = _areas(shapes, crs if crs is not None and not metres else None, where, notes)
    if crs is not None:
        shapes = _degrees(shapes, crs)
    centre = shapely.centroid(shapes)
    x, y = _texts(shapely.get_x(centre)), _texts(shapely.get_y(centre))
    blank = pl.Series([""] * len(shapes))
    area = np.isin(shapely.get_type_id(shapes), (3, 6))
    wkt = np.full(len(shapes), "", dtype=object)
    wkt[area] = shapely.to_wkt(shapes[area], rounding_precision=_DIGITS)
    return pl.DataFrame(
        {
            PLACES["decimalLatitude"]: blank if metres else y,
            PLACES["decimalLongitude"]: blank if metres else x,
            PLACES["footprintWKT"]: pl.Series(wkt.tolist(), dtype=pl.String),
            PLACES["easting"]: x if metres else blank,
            PLACES["northing"]: y if metres else blank,
        }
    )


def _texts(numbers: np.ndarray) -> pl.Series:
    rounded = np.round(numbers, _DIGITS).tolist()
    texts = ["" if value != value else f"{value:.{_DIGITS}f}" for value in rounded]
    return pl.Series(texts, dtype=pl.String)


def _in_degrees(shapes: np.ndarray) -> bool:
    bounds = shapely.total_bounds(shapes)
    return bool(np.isnan(bounds).all() or (np.abs(bounds) <= (180, 90, 180, 90)).all())


def _areas(shapes: np.ndarray, crs: str | None, where: str, notes: list[str]) -> np.ndarray:
    """Return the shapes with a strip for each line."""
    lines = np.isin(shapely.get_type_id(shapes), _LINES)
    if not lines.any():
        return shapes
    _add(notes, f"{where} has lines: each was read as a strip of {STRIP_M:g} m to either side.")
    here = pyproj.CRS.from_user_input(crs or "EPSG:4326")
    x, y = shapely.get_coordinates(shapely.centroid(shapes[lines])).mean(axis=0)
    lon, lat = pyproj.Transformer.from_crs(here, 4326, always_xy=True).transform(x, y)
    local = f"+proj=aeqd +lat_0={lat} +lon_0={lon} +datum=WGS84 +units=m"
    there = pyproj.Transformer.from_crs(here, local, always_xy=True)
    back = pyproj.Transformer.from_crs(local, here, always_xy=True)
    shapes = shapes.copy()
    strips = shapely.buffer(_moved(shapes[lines], there), STRIP_M, quad_segs=2)
    shapes[lines] = _moved(strips, back)
    return shapes


def _degrees(shapes: np.ndarray, crs: str) -> np.ndarray:
    return _moved(shapes, pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True))


def _moved(shapes: np.ndarray, by: pyproj.Transformer) -> np.ndarray:
    def project(xy: np.ndarray) -> np.ndarray:
        return np.column_stack(by.transform(xy[:, 0], xy[:, 1]))

    moved: Any = shapely.transform(shapes, project)
    found: np.ndarray = moved
    return found


def _tell(notes: list[str], where: str, metres: bool) -> None:
    read = "metres of records.crs, else of the British grid" if metres else "degrees (WGS 84)"
    _add(notes, f"{where} does not say in which CRS its shapes are: they were read as {read}.")


def _add(notes: list[str], note: str) -> None:
    if note not in notes:
        notes.append(note)
