"""British and Irish grid references as squares of the ground."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import pyproj
import shapely

from butterfly_sdm.errors import RecordsError

Grid = Literal["GB", "IE"]
SIZES_M = (100_000, 10_000, 5_000, 2_000, 1_000, 100, 10, 1)
CRS: dict[str, str] = {"GB": "EPSG:27700", "IE": "EPSG:29903"}
"""The projected CRS of each grid: British National Grid, Irish Grid (TM75)."""

_LETTERS = "ABCDEFGHJKLMNOPQRSTUVWXYZ"  # without I, rows from north to south
_TETRADS = "ABCDEFGHIJKLMNPQRSTUVWXYZ"  # without O, columns from south to north
_QUADRANTS = {"SW": (0, 0), "SE": (1, 0), "NW": (0, 1), "NE": (1, 1)}
_PATTERN = re.compile(r"([A-Z]{1,2})(\d*)(NE|NW|SE|SW|[A-NP-Z])?")
_BROKEN = re.compile(r"\d\s*[.,:;/&+-]+\s*\d")
_EVENLY_BROKEN = re.compile(r"[A-Za-z]{1,2}([.,:/-])\d+\1\d+")
_LARGEST = {"GB": (700_000, 1_300_000), "IE": (500_000, 500_000)}


@dataclass(frozen=True)
class GridSquare:
    """
    A square of a national grid.

    Attributes
    ----------
    grid
        ``GB`` (Great Britain and the Isle of Man) or ``IE`` (all Ireland).
    easting, northing
        South-west corner, metres, multiples of ``size_m``.
    size_m
        Side: 100 km, 10 km, 5 km, 2 km (tetrad), 1 km, 100 m, 10 m or 1 m.

    Examples
    --------
    >>> square = GridSquare.parse("SU12A")
    >>> square.easting, square.northing, square.size_m
    (410000, 120000, 2000)
    >>> square.coarsen(10_000).reference
    'SU12'
    """

    grid: Grid
    easting: int
    northing: int
    size_m: int

    def __post_init__(self) -> None:
        if self.grid not in CRS or self.size_m not in SIZES_M:
            raise RecordsError(
                f"There is no {self.grid} grid square of {self.size_m} m; sizes are "
                f"{', '.join(map(str, SIZES_M))}."
            )
        if self.easting % self.size_m or self.northing % self.size_m:
            raise RecordsError(
                f"{self.easting}, {self.northing} is no corner of a {self.size_m} m square. Round "
                "it down."
            )
        width, height = _LARGEST[self.grid]
        if not (0 <= self.easting < width and 0 <= self.northing < height):
            raise RecordsError(
                f"{self.easting}, {self.northing} lies outside the {self.grid} grid ({width} by "
                f"{height} m)."
            )

    @classmethod
    def parse(cls, text: str) -> GridSquare:
        """
        Read a reference, with or without spaces, in capitals or not.

        Raises
        ------
        RecordsError
            It is no reference, or lies outside the grid.
        """
        # SU/1234 and SU-12-34 are one square, NH5132/5133 are two.
        two = _BROKEN.search(text) and not _EVENLY_BROKEN.fullmatch(text.strip())
        compact = re.sub(r"[\s.,:/-]", "", text).upper()
        found = _PATTERN.fullmatch(compact)
        if found is None or two:
            raise _unreadable(text)
        letters, digits, suffix = found.groups()
        if len(letters) == 2 and letters[0] == "I" and letters[1] in _LETTERS:
            letters = letters[1]  # Irish squares are sometimes written with an I before the letter
        if (
            any(letter not in _LETTERS for letter in letters)
            or len(digits) % 2
            or len(digits) > 10
            or (suffix and len(digits) != 2)
        ):
            raise _unreadable(text)
        half = len(digits) // 2
        size = 100_000 // 10**half
        east = int(digits[:half] or 0) * size
        north = int(digits[half:] or 0) * size
        if suffix in _QUADRANTS:
            size = 5_000
            column, row = _QUADRANTS[suffix]
            east, north = east + column * size, north + row * size
        elif suffix:
            size = 2_000
            column, row = divmod(_TETRADS.index(suffix), 5)
            east, north = east + column * size, north + row * size
        corner = _corner(letters)
        try:
            return cls(
                "GB" if len(letters) == 2 else "IE", corner[0] + east, corner[1] + north, size
            )
        except RecordsError:
            raise _unreadable(text) from None

    @property
    def reference(self) -> str:
        """The reference as it is usually written, without spaces."""
        letters = _letters(self.grid, self.easting // 100_000, self.northing // 100_000)
        east, north = self.easting % 100_000, self.northing % 100_000
        if self.size_m == 100_000:
            return letters
        if self.size_m in (5_000, 2_000):
            hectad = f"{letters}{east // 10_000}{north // 10_000}"
            column, row = east % 10_000 // self.size_m, north % 10_000 // self.size_m
            if self.size_m == 2_000:
                return hectad + _TETRADS[column * 5 + row]
            return hectad + next(
                name for name, place in _QUADRANTS.items() if place == (column, row)
            )
        width = len(str(100_000 // self.size_m)) - 1
        return f"{letters}{east // self.size_m:0{width}d}{north // self.size_m:0{width}d}"

    def coarsen(self, size_m: int) -> GridSquare:
        """
        Return the larger square of ``size_m`` that holds this one.

        Raises
        ------
        RecordsError
            The square is larger than that, or lies in several (a 5 km square holds no whole number
            of tetrads).
        """
        if size_m < self.size_m or size_m % self.size_m:
            raise RecordsError(
                f"{self.reference} is a square of {self.size_m} m: it cannot be placed in one of "
                f"{size_m} m."
            )
        return GridSquare(
            self.grid, self.easting // size_m * size_m, self.northing // size_m * size_m, size_m
        )

    @property
    def crs(self) -> str:
        """Projected CRS of ``easting`` and ``northing``."""
        return CRS[self.grid]

    def footprint(self) -> shapely.Polygon:
        """
        Return the square as a polygon of longitudes and latitudes (EPSG:4326), its corners being
        exact.
        """
        return footprints([self])[0]


@dataclass(frozen=True)
class MetricSquare:
    """
    A square on whole multiples of its side, in metres of any projected CRS.

    >>> MetricSquare("EPSG:25832", 691_000, 5_335_000, 1_000).reference
    '1000mE691000N5335000'
    """

    crs: str
    easting: int
    northing: int
    size_m: int

    @property
    def reference(self) -> str:
        """Side and south-west corner in metres."""
        return f"{self.size_m}mE{self.easting}N{self.northing}"


def metric_squares(
    crs: str, x: np.ndarray, y: np.ndarray, size_m: int
) -> list[MetricSquare | None]:
    """Return the square of ``size_m`` around each place in metres of a CRS, None for no place."""
    return [
        MetricSquare(crs, int(east // size_m) * size_m, int(north // size_m) * size_m, size_m)
        if np.isfinite(east) and np.isfinite(north)
        else None
        for east, north in zip(x.tolist(), y.tolist(), strict=True)
    ]


def footprints(squares: Sequence[GridSquare | MetricSquare]) -> list[shapely.Polygon]:
    """
    Return squares as polygons of longitudes and latitudes (EPSG:4326), their corners being exact.
    """
    found = np.empty(len(squares), dtype=object)
    corners = np.array(
        [(square.easting, square.northing, square.size_m) for square in squares]
    ).reshape(-1, 3)
    systems = np.array([square.crs for square in squares], dtype=str)
    for crs in dict.fromkeys(systems.tolist()):
        here = systems == crs
        e, n, s = corners[here].T
        x, y = _to_degrees(crs).transform(
            np.stack([e, e + s, e + s, e], axis=1), np.stack([n, n, n + s, n + s], axis=1)
        )
        found[here] = shapely.polygons(np.stack([x, y], axis=2))
    return found.tolist()


def _unreadable(text: str) -> RecordsError:
    return RecordsError(
        f"{text!r} is no British or Irish grid reference. Write letters and an even number of "
        "digits, such as SU1234, "
        "SU12A (tetrad), SU12NE (5 km) or J1234."
    )


def _corner(letters: str) -> tuple[int, int]:
    """
    Return the south-west corner of a 100 km square, metres; outside of the grid for letters that
    are not used.
    """
    if len(letters) == 1:
        row, column = divmod(_LETTERS.index(letters), 5)
        return column * 100_000, (4 - row) * 100_000
    row, column = divmod(_LETTERS.index(letters[0]), 5)
    inner_row, inner_column = divmod(_LETTERS.index(letters[1]), 5)
    # S, the square of 500 km at the false origin, is in row 3 and column 2 of the letters.
    return ((column - 2) * 5 + inner_column) * 100_000, ((3 - row) * 5 + 4 - inner_row) * 100_000


def _letters(grid: str, column: int, row: int) -> str:
    if grid == "IE":
        return _LETTERS[(4 - row) * 5 + column]
    outer = (3 - row // 5) * 5 + column // 5 + 2
    return _LETTERS[outer] + _LETTERS[(4 - row % 5) * 5 + column % 5]


@cache
def _transformer(grid: str, inverse: bool) -> pyproj.Transformer:
    ends = (CRS[grid], "EPSG:4326")
    return pyproj.Transformer.from_crs(*(ends[::-1] if inverse else ends), always_xy=True)


@cache
def _to_degrees(crs: str) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)


def to_degrees(
    grid: str, easting: np.ndarray, northing: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return longitudes and latitudes of metres in a grid."""
    x, y = _transformer(grid, False).transform(easting, northing)
    return np.asarray(x), np.asarray(y)


def to_metres(grid: str, lon: np.ndarray, lat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return eastings and northings of longitudes and latitudes."""
    x, y = _transformer(grid, True).transform(lon, lat)
    return np.asarray(x), np.asarray(y)


_IRELAND = shapely.Polygon(
    [
        (-11, 51),
        (-5.9, 51),
        (-5.9, 53.3),
        (-5.3, 54.2),
        (-5.3, 54.8),
        (-5.93, 55.15),
        (-6.05, 55.45),
        (-7, 55.6),
        (-11, 55.6),
    ]
)


def grid_of(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """
    Return ``IE`` for places in Ireland and ``GB`` elsewhere; the line runs through the sea between
    the islands.
    """
    return np.where(shapely.contains_xy(_IRELAND, lon, lat), "IE", "GB")


def squares_of(lon: np.ndarray, lat: np.ndarray, size_m: int) -> list[GridSquare | None]:
    """Return the square of ``size_m`` around each place, None outside of both grids."""
    squares: list[GridSquare | None] = [None] * len(lon)
    grids = grid_of(lon, lat)
    for grid in ("GB", "IE"):
        places = np.flatnonzero(grids == grid)
        if not len(places):
            continue
        x, y = to_metres(grid, np.asarray(lon)[places], np.asarray(lat)[places])
        width, height = _LARGEST[grid]
        inside = np.isfinite(x) & np.isfinite(y) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        corners = (np.stack([x[inside], y[inside]]) // size_m).astype(np.int64) * size_m
        different, which = np.unique(corners, axis=1, return_inverse=True)
        made = [GridSquare(grid, east, north, size_m) for east, north in different.T.tolist()]
        for place, number in zip(places[inside].tolist(), which.ravel().tolist(), strict=True):
            squares[place] = made[number]
    return squares


def square_names(lon: np.ndarray, lat: np.ndarray, size_m: int) -> list[str]:
    """
    Name the square of ``size_m`` around each place: of the British or Irish grid, elsewhere of the
    UTM zone, ``""`` near the poles.

    >>> square_names(np.array([-1.8, 11.57]), np.array([51.1, 48.14]), 1000)
    ['SU1433', 'EPSG:32632 1000mE691000N5335000']
    """
    lon, lat = np.asarray(lon, dtype=np.float64), np.asarray(lat, dtype=np.float64)
    national = squares_of(lon, lat, size_m)
    names = ["" if square is None else square.reference for square in national]
    far = np.array([square is None for square in national], dtype=bool) & (np.abs(lat) <= 84)
    zone = np.clip((lon + 180) // 6 + 1, 1, 60)
    for number, north in sorted({*zip(zone[far].tolist(), (lat[far] >= 0).tolist(), strict=True)}):
        crs = f"EPSG:{326 if north else 327}{int(number):02}"
        rows = np.flatnonzero(far & (zone == number) & ((lat >= 0) == north))
        there = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
        x, y = there.transform(lon[rows], lat[rows])
        squares = metric_squares(crs, np.asarray(x), np.asarray(y), size_m)
        for row, square in zip(rows.tolist(), squares, strict=True):
            names[row] = "" if square is None else f"{crs} {square.reference}"
    return names


def accuracy_note() -> str | None:
    """
    Return a sentence when PROJ lacks the grid files of OSTN15, so that British positions are right
    to some metres only.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it says what is said below
        group = pyproj.transformer.TransformerGroup(CRS["GB"], "EPSG:4326", always_xy=True)
    used = group.transformers[0] if group.transformers else None
    if used is not None and group.best_available:
        return None
    accuracy = (
        f"about {used.accuracy:g} m" if used is not None and used.accuracy > 0 else "a few metres"
    )
    return (
        f"British grid references were placed to {accuracy}: PROJ has no OSTN15 grid here. "
        "Install it with: projsync --file uk_os_OSTN15_NTv2_OSGBtoETRS.tif"
    )
