"""Read the numbers of places: degrees, metres in their CRS, and how certain they are."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pandas as pd
import pyproj

from butterfly_sdm.errors import RecordsError
from butterfly_sdm.imagery.products import METRES_PER_DEGREE
from data_prep.records.places.grid_references import CRS, to_degrees

_DECIMAL_COMMA = (
    r"^\s*([+-]?\d{1,3}),(\d+)\s*$"  # of degrees, there are no thousands to mistake it for
)
_THOUSANDS = r"^[+-]?\d{1,3}([, '’]\d{3})+(\.\d+)?$"
_DOTTED = r"^[+-]?\d{1,3}(\.\d{3})+$"  # 412.345: thousands, or less than a kilometre?
_UNCERTAIN = re.compile(
    r"(?P<least>>=?|≥|at least|more than|over)?"
    r"(?:<=?|≤|~|±|\+/-|c\.?a?\.?|circa|about|approx\.?|approximately|up to|within)?"
    r"\s*(?P<number>\d+(?:[.,]\d+)*)\s*(?P<unit>[a-z]*)\.?"
)
_UNIT_M = {
    **dict.fromkeys(("", "m", "mtr", "metre", "metres", "meter", "meters"), 1.0),
    **dict.fromkeys(("km", "kms", "kilometre", "kilometres", "kilometer", "kilometers"), 1000.0),
    **dict.fromkeys(("ft", "feet", "foot"), 0.3048),
    **dict.fromkeys(("mi", "mile", "miles"), 1609.344),
}
_NAMED = {
    **dict.fromkeys(("osgb", "osgb36", "osgb1936", "bng", "britishnationalgrid"), CRS["GB"]),
    **dict.fromkeys(("irishgrid", "tm75", "tm65", "irishnationalgrid"), CRS["IE"]),
    **dict.fromkeys(("itm", "irishtransversemercator"), "EPSG:2157"),
}
_LAND = frozenset(
    """
    HP HT HU HW HX HY HZ NA NB NC ND NF NG NH NJ NK NL NM NN NO NR NS NT NU NW NX NY NZ OV SC SD
    SE SH SJ SK SM SN SO SP SR SS ST SU SV SW SX SY SZ TA TF TG TL TM TQ TR TV
    """.split()
)
"""Squares of 100 km in which Great Britain, the Isle of Man or their islands have land."""
_LETTERS = "ABCDEFGHJKLMNOPQRSTUVWXYZ"
_CELL = 0.2  # degrees: the cell in which iNaturalist hides a position


class Positions:
    """
    Coordinates of places, as far as their texts are numbers.

    ``uncertainty_m`` is 0 for none, ``vague`` where nobody knows how large it is; ``unreadable``
    where a text stands for a coordinate, but no number; ``impossible`` where degrees lie outside of
    the earth; ``zero`` where there is nothing but 0, 0; ``astray`` where metres lie outside of
    their grid; ``lon`` and ``lat`` are those of metres, too.
    """

    def __init__(self, table: pd.DataFrame, crs: str | None = None) -> None:
        def degrees(term: str) -> tuple[np.ndarray, np.ndarray]:
            return numbers(table[term].str.replace(_DECIMAL_COMMA, r"\1.\2", regex=True))

        self.lat, no_lat = degrees("decimalLatitude")
        self.lon, no_lon = degrees("decimalLongitude")
        self.east, no_east = _metres(table["easting"])
        self.north, no_north = _metres(table["northing"])
        self.uncertainty_m, self.vague = uncertainties(table["coordinateUncertaintyInMeters"])
        self.unreadable = no_lat | no_lon | no_east | no_north
        self.in_degrees: np.ndarray = np.isfinite(self.lat) & np.isfinite(self.lon)
        self.in_metres: np.ndarray = np.isfinite(self.east) & np.isfinite(self.north)
        outside = (np.abs(self.lat) > 90) | (np.abs(self.lon) > 180)
        self.impossible: np.ndarray = self.in_degrees & outside
        no_degrees = self.in_degrees & (self.lat == 0) & (self.lon == 0)
        no_metres = self.in_metres & (self.east == 0) & (self.north == 0)
        self.zero: np.ndarray = no_degrees | no_metres
        self.in_degrees &= ~no_degrees
        self.in_metres &= ~no_metres
        self.astray: np.ndarray = np.zeros(len(table), dtype=bool)
        self._place_metres(table["coordinateSRS"], crs)
        self.blurred: np.ndarray = _blurred(table["coordinatesObscured"]) & self.in_degrees
        size = _CELL * METRES_PER_DEGREE * np.hypot(1, np.cos(np.radians(np.nan_to_num(self.lat))))
        self.uncertainty_m = np.where(
            self.blurred, np.maximum(self.uncertainty_m, np.round(size)), self.uncertainty_m
        )

    def refuse_impossible(self) -> None:
        """
        Raise where degrees lie outside of the earth.

        Raises
        ------
        RecordsError
            There is such a place.
        """
        rows = np.flatnonzero(self.impossible)
        if len(rows):
            raise RecordsError(
                f"Coordinates out of range: latitude {self.lat[rows[0]]:g}, longitude "
                f"{self.lon[rows[0]]:g}, and {len(rows) - 1} other such places. Latitudes lie in "
                "-90 to 90, longitudes in -180 to 180 degrees. Correct the table (are they metres, "
                "or exchanged?), or set records.out_of_range: drop."
            )

    def notes(self) -> list[str]:
        """Say what was understood of the numbers, and what was not."""
        notes = []
        rows = np.flatnonzero(self.astray)
        if len(rows):
            notes.append(
                f"{len(rows):,} places have an easting and northing outside their grid, such as "
                f"{self.east[rows[0]]:.0f}, {self.north[rows[0]]:.0f}: without a CRS they are "
                "metres of the British grid. Say in records.crs which they are, such as "
                f"{_likely(self.east[rows[0]], self.north[rows[0]])}."
            )
        if self.blurred.any():
            notes.append(
                f"{int(self.blurred.sum()):,} positions are obscured: they lie anywhere in a cell "
                f"of {_CELL:g} degrees, and count as uncertain by its size. "
                "records.max_uncertainty_m leaves them out."
            )
        whole = self.in_degrees & (self.lat % 1 == 0) & (self.lon % 1 == 0)
        whole &= (self.uncertainty_m == 0) & ~self.vague
        if whole.any():
            notes.append(
                f"{int(whole.sum()):,} places are given to whole degrees without an uncertainty: "
                "they count as exact, but lie anywhere within some 100 km. Leave them out, or fill "
                "in coordinateUncertaintyInMeters."
            )
        if self.vague.any():
            notes.append(
                f"{int(self.vague.sum()):,} places have an uncertainty without an upper bound, or "
                "that is no number: records.max_uncertainty_m and grid_m leave them out."
            )
        return notes

    def _place_metres(self, systems: pd.Series, crs: str | None) -> None:
        """Turn metres into degrees, by the CRS of the place, else ``crs``, else the British one."""
        rows = np.flatnonzero(self.in_metres & ~self.in_degrees)
        said = np.array([_projected(text) or crs or "" for text in systems.iloc[rows]], dtype=str)
        for name in sorted(set(said.tolist())):
            here = rows[said == name]
            east, north = self.east[here], self.north[here]
            if name:
                self.lon[here], self.lat[here] = transformer(name).transform(east, north)
                inside = _in_use(name, self.lon[here], self.lat[here])
            else:
                self.lon[here], self.lat[here] = to_degrees("GB", east, north)
                inside = _on_land(east, north)
            self.astray[here[~inside]] = True


def numbers(text: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers, NaN where there is none, and where a text is present that is no number."""
    stripped = text.str.strip()
    values = pd.to_numeric(stripped.where(stripped != "", None), errors="coerce").to_numpy(
        dtype=np.float64, na_value=np.nan, copy=True
    )
    values[~np.isfinite(values)] = np.nan
    return values, np.isnan(values) & (stripped != "").to_numpy()


def uncertainties(text: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """
    Return metres, 0 for none, and where nobody can say how many.

    >>> uncertainties(pd.Series(["50", "10 km", "> 5000", "c. 2,000 m", "a field", ""]))[0].tolist()
    [50.0, 10000.0, 5000.0, 2000.0, 0.0, 0.0]
    """
    values, unread = numbers(text)
    vague = values < 0
    values[vague] = 0
    for row in np.flatnonzero(unread).tolist():
        values[row], vague[row] = _uncertainty(text.iat[row])
    metres: np.ndarray = np.nan_to_num(values)
    return metres, vague


@cache
def _uncertainty(text: str) -> tuple[float, bool]:
    found = _UNCERTAIN.fullmatch(" ".join(text.lower().split()))
    if found is None or found["unit"] not in _UNIT_M:
        return 0.0, True
    number = found["number"]
    if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", number):
        number = number.replace(",", "")
    try:
        metres = float(number.replace(",", ".")) * _UNIT_M[found["unit"]]
    except ValueError:
        return 0.0, True
    return metres, found["least"] is not None


def _metres(text: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return metres: 412,345 is one number, 412.345 is none that can be trusted."""
    stripped = text.str.strip()
    many = stripped.str.match(_THOUSANDS)
    values, unread = numbers(stripped.where(~many, stripped.str.replace(r"[, '’]", "", regex=True)))
    dotted = stripped.str.match(_DOTTED).to_numpy(dtype=bool)
    values[dotted] = np.nan
    return values, unread | dotted


def _blurred(text: pd.Series) -> np.ndarray:
    said = text.str.strip().str.lower().isin(["true", "t", "yes", "1", "obscured", "private"])
    blurred: np.ndarray = said.to_numpy(dtype=bool)
    return blurred


@cache
def _projected(text: str) -> str:
    """Return the CRS that a text names for metres, ``""`` for none."""
    plain = re.sub(r"[^a-z0-9]", "", text.lower())
    if plain in _NAMED:
        return _NAMED[plain]
    code = re.fullmatch(r"(?:urnogcdefcrs|httpwwwopengisnetdefcrs)?(?:epsg0?)?(\d{4,6})", plain)
    zone = re.search(r"utm(?:zone)?(\d{1,2})([ns]?)", plain)
    if code:
        name = f"EPSG:{code[1]}"
    elif zone:
        name = f"EPSG:{327 if zone[2] == 's' else 326}{int(zone[1]):02}"
    else:
        return ""
    try:
        return name if pyproj.CRS.from_user_input(name).is_projected else ""
    except pyproj.exceptions.CRSError:
        return ""


@cache
def transformer(crs: str, inverse: bool = False) -> pyproj.Transformer:
    """Return what turns metres of a CRS into degrees, or back."""
    ends = ("EPSG:4326", crs) if inverse else (crs, "EPSG:4326")
    return pyproj.Transformer.from_crs(*ends, always_xy=True)


def _in_use(crs: str, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Tell which places lie where a CRS is meant to be used, or within five degrees of it."""
    found: np.ndarray = np.isfinite(lon) & np.isfinite(lat) & (np.abs(lat) <= 90)
    area = pyproj.CRS.from_user_input(crs).area_of_use
    if area is None or area.west > area.east:
        return found
    found &= (lon >= area.west - 5) & (lon <= area.east + 5)
    found &= (lat >= area.south - 5) & (lat <= area.north + 5)
    return found


def _on_land(east: np.ndarray, north: np.ndarray) -> np.ndarray:
    """Tell which metres of the British grid lie in a square of 100 km that has land."""
    land = np.zeros((13, 7), dtype=bool)
    for name in _LAND:
        row, column = divmod(_LETTERS.index(name[0]), 5)
        inner_row, inner_column = divmod(_LETTERS.index(name[1]), 5)
        x, y = (column - 2) * 5 + inner_column, (3 - row) * 5 + 4 - inner_row
        if 0 <= x < 7 and 0 <= y < 13:
            land[y, x] = True
    inside = (east >= 0) & (east < 700_000) & (north >= 0) & (north < 1_300_000)
    columns = np.where(inside, east // 100_000, 0).astype(int)
    rows = np.where(inside, north // 100_000, 0).astype(int)
    found: np.ndarray = inside & land[rows, columns]
    return found


def _likely(east: float, north: float) -> str:
    """Name the CRS in use in Europe that metres of this size often have."""
    if 400_000 <= east < 800_000 and 500_000 <= north < 1_000_000:
        return "EPSG:2157 (Irish Transverse Mercator)"
    if 2_400_000 <= east < 2_900_000 and 1_000_000 <= north < 1_400_000:
        return "EPSG:2056 (Switzerland)"
    if 2_400_000 <= east < 7_500_000 and 1_300_000 <= north < 5_600_000:
        return "EPSG:3035 (Europe, equal area)"
    return "EPSG:25832 (UTM zone 32 N)"
