"""
Fetch tiles of TESSERA embeddings in the layout that geotessera reads and writes.

Its own package asks a register of all tiles first; the name of a tile follows from the place alone,
so that the tiles around sites can be fetched by name.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from butterfly_sdm.errors import SourceError
from butterfly_sdm.imagery.products import METRES_PER_DEGREE
from butterfly_sdm.progress import Progress, silent
from data_prep.sources.transfer import AbsentError, Service

log = logging.getLogger("data_prep.sources")

TILES, MASKS = "global_0.1_degree_representation", "global_0.1_degree_tiff_all"


def tiles_around(lon: np.ndarray, lat: np.ndarray, reach_m: float) -> list[tuple[float, float]]:
    """
    Return the middles (degrees east and north) of the tiles of 0.1 degrees that squares around
    places touch.

    >>> tiles_around(np.array([0.17]), np.array([52.23]), 50.0)
    [(0.15, 52.25)]
    """
    found = set()
    for east, north in zip(np.asarray(lon, float), np.asarray(lat, float), strict=True):
        tall = reach_m / METRES_PER_DEGREE
        wide = tall / max(math.cos(math.radians(min(abs(north) + tall, 89.9))), 1e-6)
        columns = range(math.floor((east - wide) * 10), math.floor((east + wide) * 10) + 1)
        rows = range(math.floor((north - tall) * 10), math.floor((north + tall) * 10) + 1)
        found |= {
            (round((column + 1800) % 3600 / 10 - 180 + 0.05, 2), round(row / 10 + 0.05, 2))
            for column in columns
            for row in rows
        }
    return sorted(found)


def _files(lon: float, lat: float, year: int) -> Iterator[str]:
    """Give the files of a tile: the one without which there is no tile first."""
    name = f"grid_{lon:.2f}_{lat:.2f}"
    yield f"{TILES}/{year}/{name}/{name}.npy"
    yield f"{TILES}/{year}/{name}/{name}_scales.npy"
    yield f"{MASKS}/{name}.tiff"


def fetch_tiles(
    url: str,
    folder: Path,
    lon: np.ndarray,
    lat: np.ndarray,
    *,
    year: int,
    reach_m: float,
    service: Service | None = None,
    progress: Progress = silent,
) -> list[str]:
    """
    Fetch the tiles that squares around places touch; those that are there are not asked for again.

    Parameters
    ----------
    url
        Address of a version, below which the folders of the layout lie.
    folder
        Where the files are put, in the same layout.
    lon, lat
        (n,) places in degrees.
    reach_m
        Half the side of the largest square.

    Returns
    -------
    list of str
        Tiles that the source does not have, such as those of the sea.

    Raises
    ------
    SourceError
        A file could not be fetched, or no tile is there.
    MissingPackageError
        ``requests`` is not installed.
    """
    service = service or Service()
    tiles = tiles_around(lon, lat, reach_m)
    lacking = []
    for done, tile in enumerate(tiles):
        progress("tiles of TESSERA", done, len(tiles))
        for number, name in enumerate(_files(*tile, year)):
            path = Path(folder) / name
            if path.is_file():
                continue
            address = f"{url.rstrip('/')}/{name}"
            if number == 0 and not _is_there(service, address):
                lacking.append(path.stem)
                break
            service.fetch(address, path, progress=progress)
    progress("tiles of TESSERA", len(tiles), len(tiles))
    if len(lacking) == len(tiles):
        raise SourceError(
            f"{url} has none of the {len(tiles)} tiles around the sites for {year}, such as "
            f"{lacking[0]}. Check embeddings.url and year."
        )
    if lacking:
        log.warning(
            "%d of %d tiles of TESSERA are not at the source, such as %s.",
            len(lacking),
            len(tiles),
            lacking[0],
        )
    return lacking


def _is_there(service: Service, address: str) -> bool:
    try:
        service.ask("HEAD", address, allow_redirects=True).close()
    except AbsentError:
        return False
    return True
