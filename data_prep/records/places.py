"""
Turn the places of records (footprints, grid references, points with an uncertainty) into sites with
a footprint.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import geopandas as gpd
import numpy as np
import pandas as pd
import polars as pl
import pyproj
import shapely

from butterfly_sdm.errors import MissingFileError, RecordsError
from data_prep.records.grid_references import GridSquare, footprints, squares_of, to_degrees

REASONS = (
    "",
    "no coordinates",
    "unreadable coordinates",
    "coordinates out of range",
    "unreadable footprint",
    "unreadable grid reference",
    "place too uncertain",
    "place larger than the grid square",
    "outside the grid",
)
"""Why a place is no site; the place in the tuple is the code."""

_DIGITS = 6  # of a degree: 0.1 m
_DEGREE_M = 111_320.0
_DECIMAL_COMMA = (
    r"^\s*([+-]?\d{1,3}),(\d+)\s*$"  # of degrees, there are no thousands to mistake it for
)


@dataclass(frozen=True)
class PlaceRules:
    """
    What counts as a site.

    Attributes
    ----------
    kind
        ``footprint``, ``grid_reference`` or ``point`` to use that alone; ``auto`` for the first of
        these that a record has.
    grid_m
        Sites are the squares of this size of the British or Irish grid; None: the footprints,
        squares and points as they are.
    max_uncertainty_m
        Records of points less certain are left out.
    out_of_range
        ``refuse`` the records when a latitude or longitude is impossible, or ``drop`` such rows and
        count them.
    """

    kind: Literal["auto", "footprint", "grid_reference", "point"] = "auto"
    grid_m: int | None = None
    max_uncertainty_m: float | None = None
    out_of_range: Literal["refuse", "drop"] = "refuse"


@dataclass(frozen=True)
class Places:
    """
    Sites, and which place of the records belongs to which.

    Attributes
    ----------
    codes
        ``code`` (hash of the place), ``site`` (row in ``footprints``, null for none),
        ``place_reason`` (place in :data:`REASONS`).
    footprints
        Footprints in EPSG:4326.
    references
        Grid reference of each site that is a grid square, else ``""``.
    listed
        Id of each site that the table of sites lists, else ``""``.
    """

    codes: pl.DataFrame
    footprints: np.ndarray
    references: tuple[str, ...]
    listed: tuple[str, ...]


def read_sites(path: Path) -> gpd.GeoDataFrame:
    """
    Read a table of sites: ``site_id`` and ``footprint_wkt``, or a grid reference, or ``lon`` and
    ``lat``.

    Returns
    -------
    GeoDataFrame
        Index ``site_id``; footprints in EPSG:4326, empty where the table gives none.

    Raises
    ------
    MissingFileError, RecordsError
        The table does not exist, lacks ``site_id``, names a site twice or has an unreadable
        footprint.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"There is no table of sites at {path}. Correct records.sites.")
    try:
        table = (
            pd.read_parquet(path)
            if path.suffix == ".parquet"
            else pd.read_csv(
                path,
                sep=None,
                engine="python",
                dtype=str,
                keep_default_na=False,
                encoding="utf-8-sig",
            )
        )
    except (ValueError, OSError, csv.Error, pd.errors.ParserError) as error:
        raise RecordsError(
            f"{path} cannot be read as a table of sites ({error}). Save it as CSV with commas."
        ) from error
    table.columns = [str(column).strip() for column in table.columns]
    by_name = {column.lower().replace(" ", "_"): column for column in table.columns}
    if "site_id" not in by_name:
        raise RecordsError(
            f"{path} needs the column site_id; it has {', '.join(table.columns[:20])}."
        )
    ids = table[by_name["site_id"]].astype(str).str.strip()
    if ids.duplicated().any():
        raise RecordsError(
            f"{path} names the site {ids[ids.duplicated()].iloc[0]!r} twice. A site has one row."
        )
    geometry: Sequence[shapely.Geometry | None] = [None] * len(ids)
    wkt = next(
        (by_name[name] for name in ("footprint_wkt", "footprintwkt", "wkt") if name in by_name),
        None,
    )
    reference = next(
        (
            by_name[name]
            for name in ("grid_reference", "gridreference", "gridref", "grid_ref")
            if name in by_name
        ),
        None,
    )
    if wkt is not None:
        texts = [text if text.strip() else None for text in table[wkt].fillna("").astype(str)]
        geometry = shapely.from_wkt(texts, on_invalid="ignore")
        bad = pd.isna(geometry) & np.array([text is not None for text in texts])
        if bad.any():
            raise RecordsError(
                f"{path}: the footprint of {ids[bad].iloc[0]} is no WKT polygon. Correct it."
            )
    elif reference is not None:
        geometry = [
            GridSquare.parse(text).footprint() for text in table[reference].fillna("").astype(str)
        ]
    elif {"lon", "lat"} <= set(by_name):
        lon, _ = _numbers(table[by_name["lon"]].astype(str))
        lat, _ = _numbers(table[by_name["lat"]].astype(str))
        geometry = [
            s if known else None
            for s, known in zip(_point_squares(lon, lat, 0.0), np.isfinite(lon + lat), strict=True)
        ]
    else:
        raise RecordsError(
            f"{path} does not say where its sites are: it needs footprint_wkt, grid_reference, or "
            "lon and lat."
        )
    return gpd.GeoDataFrame(
        index=pd.Index(ids, name="site_id"), geometry=list(geometry), crs="EPSG:4326"
    )


def resolve_places(
    places: pl.DataFrame, rules: PlaceRules, sites: gpd.GeoDataFrame | None = None
) -> Places:
    """
    Find the site of every distinct place.

    A record needs coordinates, a grid reference or a listed site id; a footprint beside them says
    how large the place is.

    Parameters
    ----------
    places
        Text columns of the group ``place`` of :data:`data_prep.records.occurrences.GROUPS`, and ``code``.
    rules
        What counts as a site.
    sites
        Listed sites, see :func:`read_sites`.

    Raises
    ------
    RecordsError
        Coordinates are out of range and ``rules.out_of_range`` is ``refuse``.
    """
    table = places.to_pandas()
    count = len(table)
    reason = np.zeros(count, dtype=np.uint8)
    keys = np.full(count, None, dtype=object)
    shapes: dict[object, shapely.Geometry] = {}
    references: dict[object, str] = {}

    lat, lat_text = _numbers(
        table["decimalLatitude"].str.replace(_DECIMAL_COMMA, r"\1.\2", regex=True)
    )
    lon, lon_text = _numbers(
        table["decimalLongitude"].str.replace(_DECIMAL_COMMA, r"\1.\2", regex=True)
    )
    uncertainty, _ = _numbers(table["coordinateUncertaintyInMeters"])
    position = np.isfinite(lat) & np.isfinite(lon)
    out = position & (
        (np.abs(np.where(position, lat, 0)) > 90) | (np.abs(np.where(position, lon, 0)) > 180)
    )
    if out.any() and rules.out_of_range == "refuse":
        first = int(np.flatnonzero(out)[0])
        raise RecordsError(
            f"Coordinates out of range: latitude {lat[first]:g}, longitude {lon[first]:g}, and "
            f"{int(out.sum()) - 1} other "
            "such places. Latitudes lie in -90 to 90, longitudes in -180 to 180 degrees. Correct "
            "the table (are they metres, "
            "or exchanged?), or set records.out_of_range: drop."
        )
    open_places = ~out
    reason[out] = REASONS.index("coordinates out of range")

    wkt = table["footprintWKT"].to_numpy(dtype=object)
    reference_text = table["gridReference"].str.strip().to_numpy(dtype=object)
    east, _ = _numbers(table["easting"])
    north, _ = _numbers(table["northing"])
    metres = np.isfinite(east) & np.isfinite(north)
    has_reference = reference_text != ""
    listed = np.zeros(count, dtype=bool)
    if sites is not None:
        listed = table["locationID"].str.strip().isin(sites.index).to_numpy()
        for row in np.flatnonzero(listed & open_places).tolist():
            keys[row] = ("listed", table["locationID"].iat[row].strip())
    todo = open_places & ~listed
    nowhere = todo & ~position & ~has_reference & ~metres
    reason[nowhere] = REASONS.index("no coordinates")
    reason[nowhere & (lat_text | lon_text)] = REASONS.index("unreadable coordinates")
    todo &= ~nowhere

    if rules.kind in ("auto", "footprint"):
        given = todo & (wkt != "")
        polygons, bad = _footprints(wkt, table["footprintSRS"].to_numpy(dtype=object), given)
        reason[bad & (rules.kind == "footprint")] = REASONS.index("unreadable footprint")
        todo &= ~(bad & (rules.kind == "footprint"))
        for (row, polygon), code in zip(
            polygons.items(), shapely.to_wkb(list(polygons.values())), strict=True
        ):
            key = ("footprint", code)
            keys[row] = key
            shapes[key] = polygon
        done = np.zeros(count, dtype=bool)
        done[list(polygons)] = True
        todo &= ~done
        if rules.kind == "footprint":
            reason[todo] = REASONS.index("unreadable footprint")
            todo[:] = False
    squares: dict[int, GridSquare] = {}
    if rules.kind in ("auto", "grid_reference"):
        cache: dict[str, GridSquare | None] = {}
        for row in np.flatnonzero(todo & has_reference).tolist():
            text = reference_text[row]
            if text not in cache:
                cache[text] = _parse_or_none(text)
            square = cache[text]
            if square is not None:
                squares[int(row)] = square
            elif not position[row] or rules.kind == "grid_reference":
                reason[row] = REASONS.index("unreadable grid reference")
                todo[row] = False
        if rules.kind == "grid_reference":
            lacking = todo & ~has_reference
            reason[lacking] = REASONS.index("unreadable grid reference")
            todo &= ~lacking
        for row in squares:
            todo[row] = False
    points = todo & (position | metres)
    only_metres = points & ~position
    if only_metres.any():
        lon[only_metres], lat[only_metres] = to_degrees("GB", east[only_metres], north[only_metres])
    if rules.max_uncertainty_m is not None:
        vague = (open_places & ~listed & (reason == 0)) & (
            np.nan_to_num(uncertainty, nan=0.0) > rules.max_uncertainty_m
        )
        reason[vague] = REASONS.index("place too uncertain")
        keys[vague] = None
        points &= ~vague
        squares = {row: square for row, square in squares.items() if not vague[row]}
    if rules.grid_m is not None:
        _snap(keys, shapes, squares, reason, rules.grid_m)
        rows = np.flatnonzero(points)
        too_large = np.nan_to_num(uncertainty[rows]) > rules.grid_m
        for row, found, large in zip(
            rows.tolist(), squares_of(lon[rows], lat[rows], rules.grid_m), too_large, strict=True
        ):
            if found is None:
                reason[row] = REASONS.index("outside the grid")
            elif large:
                reason[row] = REASONS.index("place larger than the grid square")
            else:
                squares[row] = found
        points[:] = False
    different = list(dict.fromkeys(squares.values()))
    key_of = {square: ("square", square.reference) for square in different}
    references |= {key: key[1] for key in key_of.values()}
    shapes.update(zip(key_of.values(), footprints(different), strict=True))
    for row, square in squares.items():
        keys[row] = key_of[square]
    _add_points(keys, shapes, np.flatnonzero(points), lon, lat, uncertainty)
    return _number(places["code"], keys, shapes, references, reason, sites)


def _numbers(text: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers, NaN where there is none, and where a text is present that is no number."""
    stripped = text.str.strip()
    values = pd.to_numeric(stripped.where(stripped != "", None), errors="coerce").to_numpy(
        dtype=np.float64, na_value=np.nan, copy=True
    )
    values[~np.isfinite(values)] = np.nan
    return values, np.isnan(values) & (stripped != "").to_numpy()


def _footprints(
    wkt: np.ndarray, srs: np.ndarray, given: np.ndarray
) -> tuple[dict[int, shapely.Geometry], np.ndarray]:
    """
    Return the normal form of readable footprints by row, and which rows have an unreadable one.
    """
    bad = np.zeros(len(wkt), dtype=bool)
    rows = np.flatnonzero(given)
    if not len(rows):
        return {}, bad
    pairs = pd.MultiIndex.from_arrays([wkt[rows], srs[rows]])
    codes, unique = pairs.factorize()
    shapes = shapely.from_wkt([text for text, _ in unique], on_invalid="ignore")
    found = _normal_footprints(shapes, [str(system) for _, system in unique])[codes]
    bad[rows] = shapely.is_missing(found)
    return {
        int(row): shape for row, shape in zip(rows, found, strict=True) if shape is not None
    }, bad


def _normal_footprints(shapes: np.ndarray, systems: Sequence[str]) -> np.ndarray:
    """
    Return polygons in EPSG:4326 in their normal form, None for each that is no polygon, has no area
    or lies nowhere.
    """
    shapes = shapes.copy()
    shapes[~(np.isin(shapely.get_type_id(shapes), (3, 6)) & (shapely.area(shapes) > 0))] = None
    names = np.array(
        [s.strip().upper().replace("URN:OGC:DEF:CRS:", "").replace("::", ":") for s in systems],
        dtype=object,
    )
    for name in set(names) - {
        "",
        "EPSG:4326",
        "WGS84",
        "WGS 84",
        "CRS84",
        "OGC:CRS84",
        "4326",
        "UNKNOWN",
    }:
        here = names == name
        try:
            transformer = pyproj.Transformer.from_crs(name, "EPSG:4326", always_xy=True)
        except pyproj.exceptions.CRSError:
            shapes[here] = None
            continue
        shapes[here] = shapely.transform(shapes[here], partial(_project, transformer))
    bounds = shapely.bounds(shapes)
    shapes[
        ~(np.isfinite(bounds) & (np.abs(np.nan_to_num(bounds)) <= (180, 90, 180, 90))).all(axis=1)
    ] = None
    single = (shapely.get_type_id(shapes) == 6) & (shapely.get_num_geometries(shapes) == 1)
    shapes[single] = shapely.get_geometry(shapes[single], 0)
    rounded = shapely.transform(shapely.force_2d(shapes), lambda xy: np.round(xy, _DIGITS) + 0.0)
    rounded[~(shapely.area(rounded) > 0)] = None
    return shapely.normalize(rounded)


def _project(transformer: pyproj.Transformer, xy: np.ndarray) -> np.ndarray:
    return np.column_stack(transformer.transform(xy[:, 0], xy[:, 1]))


def _parse_or_none(text: str) -> GridSquare | None:
    try:
        return GridSquare.parse(text)
    except RecordsError:
        return None


def _snap(
    keys: np.ndarray,
    shapes: dict[object, shapely.Geometry],
    squares: dict[int, GridSquare],
    reason: np.ndarray,
    grid_m: int,
) -> None:
    """
    Bring grid squares and footprints to the squares of one size, or say why that is impossible.
    """
    too_large = REASONS.index("place larger than the grid square")
    for row, square in list(squares.items()):
        try:
            squares[row] = square.coarsen(grid_m)
        except RecordsError:
            reason[row] = too_large
            del squares[row]
    rows = [row for row, key in enumerate(keys) if key is not None and key[0] == "footprint"]
    if not rows:
        return
    unique = {keys[row] for row in rows}
    ordered = list(unique)
    centres = shapely.centroid([shapes[key] for key in ordered])
    found = dict(
        zip(
            ordered, squares_of(shapely.get_x(centres), shapely.get_y(centres), grid_m), strict=True
        )
    )
    for row in rows:
        key = keys[row]
        place = found[key]
        keys[row] = None
        width, height = _extent_m(shapes[key])
        if place is None:
            reason[row] = REASONS.index("outside the grid")
        elif (
            max(width, height) > 1.1 * grid_m
        ):  # squares of the ground are not quite upright in degrees
            reason[row] = too_large
        else:
            squares[row] = place
    for key in unique:
        del shapes[key]


def _extent_m(shape: shapely.Geometry) -> tuple[float, float]:
    left, low, right, high = shape.bounds
    return (right - left) * _DEGREE_M * float(np.cos(np.radians((low + high) / 2))), (
        high - low
    ) * _DEGREE_M


def _add_points(
    keys: np.ndarray,
    shapes: dict[object, shapely.Geometry],
    rows: np.ndarray,
    lon: np.ndarray,
    lat: np.ndarray,
    uncertainty: np.ndarray,
) -> None:
    """
    Make a site of every distinct point: the square whose corners lie at its largest uncertainty (10
    m for none).
    """
    if not len(rows):
        return
    x, y = np.round(lon[rows], _DIGITS) + 0.0, np.round(lat[rows], _DIGITS) + 0.0
    largest = (
        pd.DataFrame({"x": x, "y": y, "u": np.nan_to_num(uncertainty[rows])})
        .groupby(["x", "y"])["u"]
        .max()
    )
    px, py = (largest.index.get_level_values(axis).to_numpy() for axis in ("x", "y"))
    squares = _point_squares(px, py, largest.to_numpy())
    shapes.update(
        zip(
            (("point", *place) for place in zip(px.tolist(), py.tolist(), strict=True)),
            squares,
            strict=True,
        )
    )
    for row, place in zip(rows.tolist(), zip(x.tolist(), y.tolist(), strict=True), strict=True):
        keys[row] = ("point", *place)


def _point_squares(
    lon: np.ndarray, lat: np.ndarray, uncertainty_m: np.ndarray | float
) -> np.ndarray:
    half = np.maximum(uncertainty_m / np.sqrt(2), 5.0)
    dy = half / _DEGREE_M
    dx = dy / np.maximum(np.cos(np.radians(lat)), 1e-3)
    return shapely.box(lon - dx, lat - dy, lon + dx, lat + dy)


def _number(
    code: pl.Series,
    keys: np.ndarray,
    shapes: dict[object, shapely.Geometry],
    references: dict[object, str],
    reason: np.ndarray,
    sites: gpd.GeoDataFrame | None,
) -> Places:
    """Number the sites and give listed ones their id, by id or by footprint."""
    by_shape: dict[bytes, str] = {}
    if sites is not None:
        normal_sites = _normal_footprints(sites.geometry.to_numpy(), [""] * len(sites))
        for name, normal in zip(sites.index, normal_sites, strict=True):
            if normal is None:
                continue
            other = by_shape.setdefault(shapely.to_wkb(normal), str(name))
            if other != name:
                raise RecordsError(
                    f"The table of sites gives {other} and {name} the same footprint. A site is "
                    "one footprint."
                )
    by_key: dict[object, str] = {}
    if by_shape:
        normal_shapes = _normal_footprints(
            np.array([*shapes.values(), None])[:-1], [""] * len(shapes)
        )
        by_key = {
            key: by_shape.get(code, "")
            for key, code in zip(shapes, shapely.to_wkb(normal_shapes), strict=True)
        }
    numbers: dict[object, int] = {}
    footprints: list[shapely.Geometry] = []
    names: list[str] = []
    refs: list[str] = []
    rows: list[int | None] = []
    for key in keys:
        if key is None:
            rows.append(None)
            continue
        if key[0] == "listed":
            name = key[1]
            shape = sites.geometry[name] if sites is not None else None
        else:
            shape = shapes[key]
            name = by_key.get(key, "")
        identity = ("listed", name) if name else key
        if identity not in numbers:
            numbers[identity] = len(footprints)
            footprints.append(shape)
            names.append(name)
            refs.append(references.get(key, ""))
        rows.append(numbers[identity])
    frame = pl.DataFrame(
        {
            "code": code,
            "site": pl.Series(rows, dtype=pl.UInt32),
            "place_reason": pl.Series(reason, dtype=pl.UInt8),
        }
    )
    held = np.empty(len(footprints), dtype=object)
    held[:] = footprints
    return Places(frame, held, tuple(refs), tuple(names))


def site_ids(places: Places, rows: Sequence[int]) -> list[str]:
    """
    Name sites: the listed id, the grid reference, or the centre in degrees; the same place always
    has the same name.

    Two footprints around one centre get some digits of their geometry's hash as well.
    """
    names = []
    shapes = places.footprints[list(rows)]
    normal = _normal_footprints(shapes, [""] * len(shapes))
    codes = shapely.to_wkb(np.where(shapely.is_missing(normal), shapes, normal))
    centres = shapely.get_coordinates(shapely.centroid(shapes)).tolist()
    for row, code, (lon, lat) in zip(rows, codes, centres, strict=True):
        digest = hashlib.sha256(code).hexdigest()[:6]
        centre = f"{abs(lat):.5f}{'NS'[int(lat < 0)]}_{abs(lon):.5f}{'EW'[int(lon < 0)]}_{digest}"
        names.append(places.listed[row] or places.references[row] or centre)
    return names
