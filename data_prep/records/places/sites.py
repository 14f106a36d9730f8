"""
Turn the places of records (footprints, grid references, points with an uncertainty) into sites with
a footprint.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import polars as pl
import pyproj
import shapely

from butterfly_sdm.errors import MissingFileError, RecordsError
from butterfly_sdm.imagery.products import METRES_PER_DEGREE
from data_prep.records.dates import present
from data_prep.records.files.geometry import PLACES
from data_prep.records.files.stored import open_tables, suffix
from data_prep.records.files.vector import is_map
from data_prep.records.files.workbook import is_workbook
from data_prep.records.options import RecordsOptions
from data_prep.records.places.doubts import contradicted, strangers
from data_prep.records.places.grid_references import (
    GridSquare,
    MetricSquare,
    footprints,
    metric_squares,
    squares_of,
)
from data_prep.records.places.positions import Positions, numbers, transformer

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
    "position 0, 0",
    "easting and northing outside their grid",
    "latitude and longitude exchanged",
    "sign of a coordinate lost",
    "footprint contradicts its point",
)
"""Why a place is no site; the place in the tuple is the code."""

_SITE_IDS = (
    "site_id siteid site_no siteno site_number sitenumber site_code sitecode location_id "
    "locationid site"
).split()
_DIGITS = 6  # of a degree: 0.1 m
_POINT = r"(?i)^(?:SRID=4326;)?\s*POINT\s*[ZM]*\s*\(\s*(-?[\d.]+)\s+(-?[\d.]+)[^,)]*\)$"
_FAR_DEGREES = 0.5
_DEGREES = {"", "EPSG:4326", "WGS84", "WGS 84", "CRS84", "OGC:CRS84", "4326", "UNKNOWN"}


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
    notes
        What was understood of the places, and what looks wrong, in sentences.
    """

    codes: pl.DataFrame
    footprints: np.ndarray
    references: tuple[str, ...]
    listed: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_sites(path: Path) -> gpd.GeoDataFrame:
    """
    Read a table of sites: ``site_id`` and ``footprint_wkt``, or a grid reference, or ``lon`` and
    ``lat``; or a map of them, whose areas are the footprints.

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
    table = _site_table(path)
    by_name = {re.sub(r"[\W_]+", "_", c.lower()).strip("_"): c for c in table.columns}
    called = (*_SITE_IDS, "name") if is_map(path) else _SITE_IDS
    named = next((by_name[name] for name in called if name in by_name), None)
    if named is None:
        raise RecordsError(
            f"{path} needs the column site_id; it has {', '.join(table.columns[:20])}."
        )
    ids = table[named].astype(str).str.strip()
    if (ids == "").any():
        raise RecordsError(f"{path} has a row without {named}. A site needs an id: complete it.")
    if ids.duplicated().any():
        raise RecordsError(
            f"{path} names the site {ids[ids.duplicated()].iloc[0]!r} twice. A site has one row."
        )

    def texts(*names: str) -> pd.Series | None:
        column = next((by_name[name] for name in names if name in by_name), None)
        return None if column is None else table[column].fillna("").astype(str)

    wkt = texts("footprint_wkt", "footprintwkt", "wkt")
    reference = texts("grid_reference", "gridreference", "gridref", "grid_ref")
    lon, lat = texts("lon"), texts("lat")
    geometry: Sequence[shapely.Geometry | None]
    if wkt is not None:
        given = (wkt.str.strip() != "").to_numpy()
        geometry = shapely.from_wkt(wkt.where(given, None).to_list(), on_invalid="ignore")
        bad = pd.isna(geometry) & given
        if bad.any():
            raise RecordsError(
                f"{path}: the footprint of {ids[bad].iloc[0]} is no WKT polygon. Correct it."
            )
    elif reference is not None:
        geometry = [GridSquare.parse(text).footprint() for text in reference]
    elif lon is not None and lat is not None:
        x, y = numbers(lon)[0], numbers(lat)[0]
        known = np.isfinite(x + y)
        squares = _point_squares(x, y, 0.0)
        squares[~known] = None
        geometry = squares.tolist()
    else:
        raise RecordsError(
            f"{path} does not say where its sites are: it needs footprint_wkt, grid_reference, or "
            "lon and lat."
        )
    return gpd.GeoDataFrame(
        index=pd.Index(ids, name="site_id"), geometry=list(geometry), crs="EPSG:4326"
    )


def _site_table(path: Path) -> pd.DataFrame:
    """Return a table of sites as texts, with the areas of a map as ``footprint_wkt``."""
    if not path.exists():
        raise MissingFileError(f"There is no table of sites at {path}. Correct records.sites.")
    try:
        if is_map(path) or is_workbook(path) or suffix(path) in (".parquet", ".geoparquet"):
            return _of_stored(path)
        table = pd.read_csv(
            path,
            sep=None,
            engine="python",
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
        )
    except RecordsError:
        raise
    except (ValueError, OSError, csv.Error, pd.errors.ParserError) as error:
        raise RecordsError(
            f"{path} cannot be read as a table of sites ({error}). Save it as CSV with commas."
        ) from error
    return table.rename(columns=lambda column: str(column).strip())


def _of_stored(path: Path) -> pd.DataFrame:
    """Return the first table of a map, a workbook or a Parquet file."""
    rows = open_tables(path)[0]
    names = [name for name in rows.columns if name]
    blocks = [block.rows for block, _ in rows.blocks({name: name for name in names})]
    table = pl.concat(blocks).to_pandas()
    meant = {PLACES["decimalLongitude"]: "lon", PLACES["decimalLatitude"]: "lat"}
    if PLACES["footprintWKT"] in names and (table[PLACES["footprintWKT"]] != "").any():
        meant = {PLACES["footprintWKT"]: "footprint_wkt"}
    if rows.known:
        of_shape = [name for name in rows.known.values() if name not in meant]
        table = table.drop(columns=[*of_shape, *(set(meant.values()) & set(table.columns))])
        if (lost := next((note for note in rows.notes if "metres" in note), None)) is not None:
            raise RecordsError(f"{lost} Set the CRS of the sites and save them again.")
    return table.rename(columns=lambda column: meant.get(column, str(column).strip()))


def resolve_places(
    places: pl.DataFrame, rules: RecordsOptions, sites: gpd.GeoDataFrame | None = None
) -> Places:
    """
    Find the site of every distinct place.

    A record needs coordinates, a grid reference or a listed site id; a footprint beside them says
    how large the place is.

    Parameters
    ----------
    places
        Text columns of the group ``place`` of :data:`data_prep.records.occurrences.GROUPS`, and
        ``code``.
    rules
        What counts as a site: ``place``, ``grid_m``, ``max_uncertainty_m``, ``out_of_range``.
    sites
        Listed sites, see :func:`read_sites`.

    Raises
    ------
    RecordsError
        Coordinates are out of range and ``rules.out_of_range`` is ``refuse``.
    """
    table = places.with_columns(
        present(pl.col(term)).alias(term)
        for term in places.columns
        if term not in ("code", "locationID")
    ).to_pandas()
    _take_points(table)
    at = Positions(table, rules.crs)
    if rules.out_of_range == "refuse":
        at.refuse_impossible()
    found = _Found(len(table), rules.grid_crs)
    found.notes += at.notes()
    found.refuse(at.impossible, "coordinates out of range")
    listed = found.take_listed(table["locationID"].str.strip(), sites, ~at.impossible)
    references = table["gridReference"].to_numpy(dtype=object)
    todo = ~at.impossible & ~listed
    nowhere = ~at.in_degrees & ~at.in_metres & (references == "")
    if nowhere.all():  # records of areas alone
        nowhere &= (table["footprintWKT"] == "").to_numpy()
    nowhere &= todo
    found.refuse(nowhere, "no coordinates")
    found.refuse(nowhere & at.zero, "position 0, 0")
    found.refuse(nowhere & at.unreadable, "unreadable coordinates")
    todo &= ~nowhere
    if rules.place in ("auto", "footprint"):
        todo &= ~found.take_footprints(table["footprintWKT"], table["footprintSRS"], todo, at)
    if rules.place == "footprint":
        found.refuse(todo, "unreadable footprint")
        todo[:] = False
    if rules.place in ("auto", "grid_reference"):
        todo &= ~found.take_references(references, todo)
        readable = at.in_degrees if rules.place == "auto" else np.zeros(len(table), dtype=bool)
        bad = todo & ~readable & ((references != "") | (rules.place != "auto"))
        found.refuse(bad, "unreadable grid reference")
        todo &= ~bad
    points = todo & (at.in_degrees | at.in_metres)
    found.refuse(todo & ~points, "no coordinates")
    points &= ~found.refuse_doubtful(points, at, table["countryCode"])
    if rules.max_uncertainty_m is not None:
        vague = (at.uncertainty_m > rules.max_uncertainty_m) | at.vague
        vague &= ~listed & (found.reason == 0)
        found.refuse(vague, "place too uncertain")
        points &= ~vague
    rows = np.flatnonzero(points)
    if rules.grid_m is None:
        found.take_points(rows, at.lon[rows], at.lat[rows], at.uncertainty_m[rows])
    else:
        found.snap(rules.grid_m)
        found.take_squares(rows, found.squares_of(at.lon[rows], at.lat[rows], rules.grid_m))
        large = (at.uncertainty_m > rules.grid_m) | at.vague
        found.refuse(
            points & (found.reason == 0) & large,
            "place larger than the grid square",
        )
    found.close()
    return _number(places["code"], found, sites)


def _take_points(table: pd.DataFrame) -> None:
    """Read a footprint that is a point as the position, where there is none beside it."""
    found = table["footprintWKT"].str.extract(_POINT)
    here = found[0].notna() & (table["decimalLatitude"] == "") & (table["decimalLongitude"] == "")
    table.loc[here, "decimalLongitude"] = found.loc[here, 0]
    table.loc[here, "decimalLatitude"] = found.loc[here, 1]
    table.loc[here, "footprintWKT"] = ""


Key = tuple[Any, ...]
"""How a site was found, and what tells it from others found in that way."""


class _Found:
    """The sites of distinct places, taken one way after the other; a key stands for a site."""

    def __init__(self, count: int, grid_crs: str | None = None) -> None:
        self.grid_crs = grid_crs
        self.notes: list[str] = []
        self.reason = np.zeros(count, dtype=np.uint8)
        self.keys = np.full(count, None, dtype=object)
        self.shapes: dict[Key, shapely.Geometry] = {}
        self.squares: dict[int, GridSquare | MetricSquare] = {}

    def refuse(self, places: np.ndarray, reason: str) -> None:
        """Give places no site, for a reason."""
        self.reason[places] = REASONS.index(reason)
        self.keys[places] = None
        self.squares = {row: s for row, s in self.squares.items() if not self.reason[row]}

    def squares_of(
        self, lon: np.ndarray, lat: np.ndarray, grid_m: int
    ) -> Sequence[GridSquare | MetricSquare | None]:
        """Return the squares of the wanted grid around places."""
        if self.grid_crs is None:
            return squares_of(lon, lat, grid_m)
        x, y = transformer(self.grid_crs, inverse=True).transform(lon, lat)
        return metric_squares(self.grid_crs, np.asarray(x), np.asarray(y), grid_m)

    def refuse_doubtful(self, points: np.ndarray, at: Positions, country: pd.Series) -> np.ndarray:
        """
        Give points no site that their grid or country contradicts; tell of those that lie far off.
        """
        self.refuse(points & at.astray, "easting and northing outside their grid")
        rows = np.flatnonzero(points & ~at.astray)
        lon, lat = at.lon[rows], at.lat[rows]
        exchanged, sign, abroad = contradicted(lon, lat, country.to_numpy(dtype=object)[rows])
        refused = points & at.astray
        for bad, reason in (
            (exchanged, "latitude and longitude exchanged"),
            (sign, "sign of a coordinate lost"),
        ):
            if bad.any():
                first = np.flatnonzero(bad)[0]
                self.refuse(rows[bad], reason)
                refused[rows[bad]] = True
                self.notes.append(
                    f"{int(bad.sum()):,} places do not lie in the country they name, such as "
                    f"latitude {lat[first]:g}, longitude {lon[first]:g} for "
                    f"{country.iat[rows[first]]}: {reason}. They are left out."
                )
        if abroad.any():
            first = np.flatnonzero(abroad)[0]
            self.notes.append(
                f"{int(abroad.sum()):,} places do not lie in the country they name, such as "
                f"latitude {lat[first]:g}, longitude {lon[first]:g} for "
                f"{country.iat[rows[first]]}. They count where they lie."
            )
        kept = ~(exchanged | sign | abroad)
        self.notes += strangers(lon[kept], lat[kept])
        marked: np.ndarray = refused
        return marked

    def take_listed(
        self, ids: pd.Series, sites: gpd.GeoDataFrame | None, todo: np.ndarray
    ) -> np.ndarray:
        """Take places with the id of a listed site; return which ids are listed."""
        if sites is None:
            return np.zeros(len(ids), dtype=bool)
        listed: np.ndarray = ids.isin(sites.index).to_numpy()
        for row in np.flatnonzero(listed & todo).tolist():
            self.keys[row] = key = ("listed", ids.iat[row])
            if key not in self.shapes:
                self.shapes[key] = sites.geometry[ids.iat[row]]
        return listed

    def take_footprints(
        self, wkt: pd.Series, srs: pd.Series, todo: np.ndarray, at: Positions
    ) -> np.ndarray:
        """Take readable footprints, unless the point beside contradicts; return where one is."""
        taken = np.zeros(len(wkt), dtype=bool)
        rows = np.flatnonzero(todo & (wkt != "").to_numpy())
        if not len(rows):
            return taken
        pairs = pd.MultiIndex.from_arrays([wkt.to_numpy()[rows], srs.to_numpy()[rows]])
        codes, unique = pairs.factorize()
        shapes = shapely.from_wkt([text for text, _ in unique], on_invalid="ignore")
        normal = _normal_footprints(shapes, [str(system) for _, system in unique])
        of_row = normal[codes]
        readable = ~shapely.is_missing(of_row)
        far = np.zeros(len(rows), dtype=bool)
        beside = readable & at.in_degrees[rows]
        far[beside] = _far(of_row[beside], at, rows[beside])
        if far.any():
            turned = _normal_footprints(
                shapely.transform(of_row[far], lambda xy: xy[:, ::-1]), [""] * int(far.sum())
            )
            mended = ~shapely.is_missing(turned)
            mended[mended] = ~_far(turned[mended], at, rows[far][mended])
            of_row[np.flatnonzero(far)[mended]] = turned[mended]
            far[np.flatnonzero(far)[mended]] = False
            self._tell_footprints(int(mended.sum()), int(far.sum()))
        self.refuse(rows[far], "footprint contradicts its point")
        taken[rows[readable]] = True
        good = readable & ~far
        for row, shape, code in zip(
            rows[good].tolist(), of_row[good], shapely.to_wkb(of_row[good]), strict=True
        ):
            self.keys[row] = key = ("footprint", code)
            self.shapes.setdefault(key, shape)
        return taken

    def _tell_footprints(self, mended: int, left_out: int) -> None:
        if mended:
            self.notes.append(
                f"{mended:,} footprints are written latitude first: exchanged, they lie at the "
                "point beside them, and were read so."
            )
        if left_out:
            self.notes.append(
                f"{left_out:,} footprints lie far from the point beside them. They are left out; "
                "records.place: point counts their points."
            )

    def take_references(self, references: np.ndarray, todo: np.ndarray) -> np.ndarray:
        """Take readable grid references; return where there is one."""
        rows = np.flatnonzero(todo & (references != "")).tolist()
        read = {text: _parse_or_none(text) for text in {references[row] for row in rows}}
        self.take_squares(rows, [read[references[row]] for row in rows], outside="")
        taken = np.zeros(len(references), dtype=bool)
        taken[list(self.squares)] = True
        return taken

    def take_squares(
        self,
        rows: Sequence[int] | np.ndarray,
        squares: Sequence[GridSquare | MetricSquare | None],
        outside: str = "outside the grid",
    ) -> None:
        """Take squares; places without one are ``outside``."""
        for row, square in zip(rows, squares, strict=True):
            if square is None:
                self.reason[row] = REASONS.index(outside)
            else:
                self.squares[int(row)] = square

    def snap(self, grid_m: int) -> None:
        """
        Bring grid squares and footprints to squares of one size, or say why that is impossible.
        """
        too_large = REASONS.index("place larger than the grid square")
        if self.grid_crs is not None:
            self._snap_references(grid_m, too_large)
        for row, square in list(self.squares.items()):
            if isinstance(square, MetricSquare):
                continue
            try:
                self.squares[row] = square.coarsen(grid_m)
            except RecordsError:
                self.reason[row] = too_large
                del self.squares[row]
        keys = [key for key in self.shapes if key[0] == "footprint"]
        if not keys:
            return
        centres = shapely.centroid([self.shapes[key] for key in keys])
        found = self.squares_of(shapely.get_x(centres), shapely.get_y(centres), grid_m)
        of_key = dict(zip(keys, found, strict=True))
        for row, key in enumerate(self.keys):
            if key not in of_key:
                continue
            self.keys[row] = None
            if of_key[key] is not None and _extent_m(self.shapes[key]) > 1.1 * grid_m:
                self.reason[row] = too_large  # squares are not quite upright in degrees, hence 1.1
            else:
                self.take_squares([row], [of_key[key]])
        for key in keys:
            del self.shapes[key]

    def _snap_references(self, grid_m: int, too_large: int) -> None:
        """Bring British and Irish squares to the wanted grid, by their centres."""
        rows = list(self.squares)
        small = [row for row in rows if self.squares[row].size_m <= grid_m]
        self.reason[[row for row in rows if self.squares[row].size_m > grid_m]] = too_large
        squares = [self.squares[row] for row in small]
        self.squares = {}
        if not squares:
            return
        centres = shapely.centroid(footprints(squares))
        found = self.squares_of(shapely.get_x(centres), shapely.get_y(centres), grid_m)
        self.take_squares(small, found)

    def take_points(
        self, rows: np.ndarray, lon: np.ndarray, lat: np.ndarray, uncertainty_m: np.ndarray
    ) -> None:
        """
        Take every distinct point as the square whose corners lie at its largest uncertainty (10 m
        for none).
        """
        if not len(rows):
            return
        x, y = np.round(lon, _DIGITS) + 0.0, np.round(lat, _DIGITS) + 0.0
        largest = pd.DataFrame({"x": x, "y": y, "u": uncertainty_m}).groupby(["x", "y"])["u"].max()
        px, py = (largest.index.get_level_values(axis).to_numpy() for axis in ("x", "y"))
        keys = [("point", *place) for place in largest.index]
        self.shapes.update(zip(keys, _point_squares(px, py, largest.to_numpy()), strict=True))
        for row, place in zip(rows.tolist(), zip(x.tolist(), y.tolist(), strict=True), strict=True):
            self.keys[row] = ("point", *place)

    def close(self) -> None:
        """Turn the squares into sites as well."""
        different = list(dict.fromkeys(self.squares.values()))
        key_of = {square: ("square", square.reference) for square in different}
        self.shapes.update(zip(key_of.values(), footprints(different), strict=True))
        for row, square in self.squares.items():
            self.keys[row] = key_of[square]


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
    for name in set(names) - _DEGREES:
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
    normal: np.ndarray = shapely.normalize(rounded)
    return normal


def _project(transformer: pyproj.Transformer, xy: np.ndarray) -> np.ndarray:
    return np.column_stack(transformer.transform(xy[:, 0], xy[:, 1]))


def _far(shapes: np.ndarray, at: Positions, rows: np.ndarray) -> np.ndarray:
    """Tell which footprints lie away from their points by more than anybody rounds."""
    gap = shapely.distance(shapes, shapely.points(at.lon[rows], at.lat[rows]))
    found: np.ndarray = gap > _FAR_DEGREES + 2 * at.uncertainty_m[rows] / METRES_PER_DEGREE
    return found


def _parse_or_none(text: str) -> GridSquare | None:
    if not any(letter.isdigit() for letter in text):
        return None  # NA, no and U are words here: nobody records a square of 100 km
    try:
        return GridSquare.parse(text)
    except RecordsError:
        return None


def _extent_m(shape: shapely.Geometry) -> float:
    """Return the larger of width and height."""
    left, low, right, high = shape.bounds
    width = (right - left) * METRES_PER_DEGREE * float(np.cos(np.radians((low + high) / 2)))
    return float(max(width, (high - low) * METRES_PER_DEGREE))


def _point_squares(
    lon: np.ndarray, lat: np.ndarray, uncertainty_m: np.ndarray | float
) -> np.ndarray:
    half = np.maximum(uncertainty_m / np.sqrt(2), 5.0)
    dy = half / METRES_PER_DEGREE
    dx = dy / np.maximum(np.cos(np.radians(lat)), 1e-3)
    squares: np.ndarray = shapely.box(lon - dx, lat - dy, lon + dx, lat + dy)
    return squares


def _number(code: pl.Series, found: _Found, sites: gpd.GeoDataFrame | None) -> Places:
    """Number the sites and give listed ones their id, by id or by footprint."""
    listed = {} if sites is None else _listed_footprints(sites)
    by_key: dict[Key, str] = {}
    if listed:
        shapes = np.array([*found.shapes.values(), None])[:-1]
        codes = shapely.to_wkb(_normal_footprints(shapes, [""] * len(shapes)))
        by_key = {key: listed.get(code, "") for key, code in zip(found.shapes, codes, strict=True)}
    numbers: dict[Key, int] = {}
    footprints: list[shapely.Geometry] = []
    names: list[str] = []
    references: list[str] = []
    rows: list[int | None] = []
    for key in found.keys:
        if key is None:
            rows.append(None)
            continue
        name = key[1] if key[0] == "listed" else by_key.get(key, "")
        identity = ("listed", name) if name else key
        if identity not in numbers:
            numbers[identity] = len(footprints)
            footprints.append(found.shapes[key])
            names.append(name)
            references.append(key[1] if key[0] == "square" else "")
        rows.append(numbers[identity])
    frame = pl.DataFrame(
        {
            "code": code,
            "site": pl.Series(rows, dtype=pl.UInt32),
            "place_reason": pl.Series(found.reason, dtype=pl.UInt8),
        }
    )
    held = np.empty(len(footprints), dtype=object)
    held[:] = footprints
    return Places(frame, held, tuple(references), tuple(names), tuple(found.notes))


def _listed_footprints(sites: gpd.GeoDataFrame) -> dict[bytes, str]:
    """Return the id of each listed footprint, by its normal form."""
    listed: dict[bytes, str] = {}
    normal = _normal_footprints(sites.geometry.to_numpy(), [""] * len(sites))
    for name, shape in zip(sites.index, normal, strict=True):
        if shape is None:
            continue
        other = listed.setdefault(shapely.to_wkb(shape), str(name))
        if other != name:
            raise RecordsError(
                f"The table of sites gives {other} and {name} the same footprint. A site is one "
                "footprint."
            )
    return listed


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
