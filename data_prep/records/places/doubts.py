"""Positions that the country of their record, or all the other positions, contradict."""

from __future__ import annotations

import numpy as np

BOXES = {
    "AT": (9.4, 46.3, 17.2, 49.1),
    "AU": (112.8, -55.2, 159.3, -9.0),
    "BE": (2.5, 49.4, 6.5, 51.6),
    "BG": (22.3, 41.2, 28.7, 44.3),
    "BR": (-74.1, -33.9, -28.8, 5.4),
    "CA": (-141.1, 41.6, -52.5, 83.2),
    "CH": (5.9, 45.8, 10.6, 47.9),
    "CZ": (12.0, 48.5, 18.9, 51.1),
    "DE": (5.8, 47.2, 15.1, 55.1),
    "DK": (7.9, 54.5, 15.3, 57.9),
    "EE": (21.7, 57.4, 28.3, 59.8),
    "ES": (-18.3, 27.5, 4.4, 43.9),
    "FI": (19.0, 59.6, 31.7, 70.2),
    "FR": (-5.3, 41.2, 9.7, 51.2),
    "GB": (-8.7, 49.8, 1.8, 60.9),
    "GR": (19.3, 34.7, 29.7, 41.8),
    "HR": (13.4, 42.3, 19.5, 46.6),
    "HU": (16.0, 45.7, 23.0, 48.7),
    "IE": (-10.7, 51.3, -5.3, 55.5),
    "IT": (6.5, 35.4, 18.6, 47.2),
    "LT": (20.9, 53.8, 26.9, 56.5),
    "LU": (5.7, 49.4, 6.6, 50.2),
    "LV": (20.8, 55.6, 28.3, 58.1),
    "NL": (3.2, 50.7, 7.3, 53.7),
    "NO": (4.0, 57.8, 31.3, 71.4),
    "PL": (14.0, 48.9, 24.3, 55.0),
    "PT": (-31.4, 32.2, -6.1, 42.2),
    "RO": (20.2, 43.5, 29.8, 48.4),
    "SE": (10.5, 55.2, 24.2, 69.2),
    "SI": (13.3, 45.4, 16.7, 46.9),
    "SK": (16.8, 47.7, 22.6, 49.7),
    "ZA": (16.3, -47.1, 38.1, -22.0),
}
"""West, south, east and north of countries, in degrees; islands overseas are not in all."""

_MARGIN = 0.5  # degrees
_FEWEST = 5  # places, among which one may be a stranger


def contradicted(
    lon: np.ndarray, lat: np.ndarray, country: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Tell which positions lie outside the country that their record names, and why.

    Returns
    -------
    tuple of ndarray
        Where latitude and longitude exchanged lie in it; where another sign does; where neither.
    """
    box = np.array([BOXES.get(code.strip().upper(), (np.nan,) * 4) for code in country])
    box = box.reshape(-1, 4).T
    known = np.isfinite(box[0]) & np.isfinite(lon) & np.isfinite(lat)
    outside = known & ~_inside(lon, lat, box)
    exchanged = outside & _inside(lat, lon, box)
    signs = _inside(-lon, lat, box) | _inside(lon, -lat, box) | _inside(-lon, -lat, box)
    sign = outside & ~exchanged & signs
    return exchanged, sign, outside & ~exchanged & ~sign


def strangers(lon: np.ndarray, lat: np.ndarray) -> list[str]:
    """Say which positions lie far from nearly all others, but would not if written otherwise."""
    if len(lon) < _FEWEST:
        return []
    low, high = np.quantile(np.stack([lon, lat]), (0.1, 0.9), axis=1)
    reach = np.maximum(high - low, 1.0)
    box = np.concatenate([low - reach, high + reach])
    far = ~_inside(lon, lat, box)
    causes = {
        "latitude and longitude are exchanged": _inside(lat, lon, box),
        "a minus sign is lost or one too many": _inside(-lon, lat, box) | _inside(lon, -lat, box),
    }
    notes = []
    for cause, home in causes.items():
        rows = np.flatnonzero(far & home)
        if len(rows):
            notes.append(
                f"{len(rows):,} places lie far from the others, such as latitude "
                f"{lat[rows[0]]:g}, longitude {lon[rows[0]]:g}, but would lie among them if "
                f"{cause}. They count as they are written: correct them if that is so."
            )
    return notes


def _inside(lon: np.ndarray, lat: np.ndarray, box: np.ndarray) -> np.ndarray:
    west, south, east, north = box
    found: np.ndarray = (lon >= west - _MARGIN) & (lon <= east + _MARGIN)
    found &= (lat >= south - _MARGIN) & (lat <= north + _MARGIN)
    return found
