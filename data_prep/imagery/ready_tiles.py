"""Read a folder of ready tiles, one GeoTIFF per site as published, into one packed array."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import RasterioError

from butterfly_sdm.core.arrays import PackedArray, new_array
from butterfly_sdm.errors import DataError, MissingFileError, RasterError
from butterfly_sdm.imagery.products import Layer, canonical_band, describe_layer, metres_per_unit
from butterfly_sdm.progress import Progress, silent
from data_prep.imagery.cutting import run_units

FILES_PER_UNIT = 100


@dataclass(frozen=True)
class ReadyTiles:
    """
    Ready tiles of sites, before their pixels are copied.

    Attributes
    ----------
    sites
        Ids of the sites that have a tile.
    layers
        The file of each, in the same order.
    bands
        Names of the bands to take, in the order to store them.
    size_px, resolution_m
        Of all tiles alike; larger files are cut down around their centre.
    nodata
        Value without a measurement.
    """

    sites: tuple[str, ...]
    layers: tuple[Layer, ...]
    bands: tuple[str, ...]
    size_px: int
    resolution_m: float
    nodata: int

    def corner(self, number: int) -> tuple[float, float]:
        """Return left and top of the part that is taken of a file, in the file's CRS."""
        layer = self.layers[number]
        column, row = (layer.width - self.size_px) // 2, (layer.height - self.size_px) // 2
        left, top = layer.transform * (column, row)
        return float(left), float(top)


def match_files(files: Iterable[Path], site_ids: Sequence[str], pattern: str) -> dict[str, Path]:
    """
    Return the file of each site, where there is one.

    Parameters
    ----------
    files
        Candidates.
    site_ids
        Sites to look for.
    pattern
        File name with ``{site_id}`` and, anywhere, ``*``. The id in a name ends where letters and
        digits end, so that site ``A1`` does not take the file of ``A10``.

    Raises
    ------
    DataError
        Two files fit one site, or the pattern lacks ``{site_id}``.

    Examples
    --------
    >>> files = [Path("s2_A1_2019.tif"), Path("s2_A10_2019.tif")]
    >>> match_files(files, ["A1"], "*{site_id}*.tif")["A1"].name
    's2_A1_2019.tif'
    """
    if "{site_id}" not in pattern:
        raise DataError(
            f"ready_tiles.pattern = {pattern!r} does not say where the site stands. Write for "
            f"example *{{site_id}}*.tif"
        )
    before, after = (
        ".*".join(map(re.escape, part.split("*"))) for part in pattern.split("{site_id}", 1)
    )
    known = set(site_ids)
    any_id = (
        re.compile(
            before
            + r"(?<![0-9A-Za-z])("
            + "|".join(map(re.escape, sorted(known, key=len, reverse=True)))
            + ")"
            r"(?![0-9A-Za-z])" + after
        )
        if known
        else None
    )
    found: dict[str, Path] = {}
    for file in sorted(files, key=lambda file: (file.name, str(file))):
        match = any_id.fullmatch(file.name) if any_id else None
        if match is None:
            continue
        if match[1] in found:
            raise DataError(
                f"Two ready tiles fit site {match[1]}: {found[match[1]].name} and {file.name}. "
                "Make ready_tiles.pattern narrower, such as *{site_id}*_y-2019_*.tif"
            )
        found[match[1]] = file
    return found


def find_ready_tiles(
    folders: Path | Sequence[Path],
    site_ids: Sequence[str],
    *,
    bands: Sequence[str],
    wanted: Sequence[str],
    pattern: str = "*{site_id}*.tif",
    nodata: int = 0,
    size_px: int | None = None,
) -> ReadyTiles:
    """
    Find the ready tiles of sites and check that they fit together.

    Parameters
    ----------
    folders
        One folder or several.
    bands
        Names of the bands in the files, in order.
    wanted
        Names of the bands to store, in order.
    size_px
        Side of the stored tiles; None if all files have the same size.

    Raises
    ------
    MissingFileError
        A folder does not exist.
    RasterError
        A file is no raster, or has other bands, another resolution or a smaller size.
    DataError
        No file belongs to a site, or two to one.
    """
    folders = (
        [Path(folders)] if isinstance(folders, str | Path) else [Path(folder) for folder in folders]
    )
    for folder in folders:
        if not folder.is_dir():
            raise MissingFileError(
                f"There is no folder of ready tiles {folder}. Check ready_tiles.folder."
            )
    names = [canonical_band(band) for band in bands]
    chosen = tuple(canonical_band(band) for band in wanted)
    for band in chosen:
        if band not in names:
            raise RasterError(
                f"The ready tiles have no band {band!r}; they have {', '.join(names)}. Change "
                "tiles.bands."
            )
    found = match_files(
        (file for folder in folders for file in folder.iterdir()), site_ids, pattern
    )
    sites = tuple(site for site in site_ids if site in found)
    if not sites:
        raise DataError(
            f"No file in {', '.join(map(str, folders))} fits {pattern!r} for any of the "
            f"{len(site_ids)} sites "
            f"(such as {site_ids[0] if len(site_ids) else '-'}). Check ready_tiles.pattern and the "
            "site ids."
        )
    layers = tuple(
        describe_layer(str(found[site]), bands=names, nodata=nodata)[0] for site in sites
    )
    sizes = {(layer.height, layer.width) for layer in layers}
    smallest = min(min(size) for size in sizes)
    if size_px is None and (
        len(sizes) > 1 or len(next(iter(sizes))) != 2 or any(h != w for h, w in sizes)
    ):
        raise RasterError(
            f"The ready tiles differ in size, from {smallest} to "
            f"{max(max(size) for size in sizes)} pixels. "
            "State tiles.size_px: larger files are then cut down around their centre."
        )
    size = smallest if size_px is None else size_px
    for site, layer in zip(sites, layers, strict=True):
        if min(layer.height, layer.width) < size:
            raise RasterError(
                f"{layer.path} of site {site} has {layer.height} x {layer.width} pixels, and "
                f"tiles.size_px is {size}. Lower it."
            )
        if layer.dtype not in ("uint8", "uint16"):
            raise RasterError(
                f"{layer.path} holds {layer.dtype} values; ready tiles hold whole numbers "
                "(uint16). Convert them."
            )
    resolution = {
        round(abs(layer.transform.e) * metres_per_unit(layer.crs, layer.path), 6): layer
        for layer in layers
    }
    if len(resolution) > 1:
        raise RasterError(
            "The ready tiles differ in resolution: "
            + " and ".join(
                f"{metres:g} m in {Path(layer.path).name}"
                for metres, layer in sorted(resolution.items())[:2]
            )
            + ". Bring them to one first."
        )
    return ReadyTiles(sites, layers, chosen, size, next(iter(resolution)), nodata)


def pack_tiles(
    ready: ReadyTiles, out: str | Path, *, executor: Executor, progress: Progress = silent
) -> np.ndarray:
    """
    Copy ready tiles into one ``.npy`` file of shape (tiles, bands, size, size), uint16.

    Returns
    -------
    ndarray of float, shape (tiles,)
        Share of the pixels of each tile that are measured in every band.

    Raises
    ------
    RasterError
        A file cannot be read.
    """
    out = Path(out)
    shape = (len(ready.sites), len(ready.bands), ready.size_px, ready.size_px)
    new_array(out, shape, np.uint16).flush()
    packed = PackedArray(out)
    work = [
        (
            str(at),
            _pack_unit,
            (
                ready.layers[at : at + FILES_PER_UNIT],
                at,
                ready.bands,
                ready.size_px,
                ready.nodata,
                packed,
            ),
        )
        for at in range(0, len(ready.sites), FILES_PER_UNIT)
    ]
    valid = np.zeros(len(ready.sites))
    done = 0
    progress("reading ready tiles", 0, len(valid))
    for at, shares in run_units(executor, work):
        valid[int(at) : int(at) + len(shares)] = shares
        done += len(shares)
        progress("reading ready tiles", done, len(valid))
    packed.open().flush()
    return valid


def _pack_unit(
    layers: Sequence[Layer],
    start: int,
    bands: Sequence[str],
    size: int,
    nodata: int,
    out: PackedArray,
) -> np.ndarray:
    array = out.open()
    shares = np.zeros(len(layers))
    for number, layer in enumerate(layers):
        column, row = (layer.width - size) // 2, (layer.height - size) // 2
        try:
            with rasterio.open(layer.path) as source:
                tile = source.read([layer.indexes[layer.bands.index(band)] for band in bands])
        except (RasterioError, OSError) as error:
            raise RasterError(
                f"{layer.path} cannot be read: {error}. The file is damaged; fetch it again."
            ) from error
        tile = tile[:, row : row + size, column : column + size]
        array[start + number] = tile
        shares[number] = (tile != nodata).all(axis=0).mean()
    out.written()
    return shares


def tile_places(ready: ReadyTiles) -> Mapping[str, list]:
    """
    Return ``tile_crs``, ``tile_left`` and ``tile_top`` of every tile, as columns of the table of
    sites.
    """
    corners = [ready.corner(number) for number in range(len(ready.sites))]
    return {
        "tile_crs": [layer.crs.to_string() for layer in ready.layers],
        "tile_left": [left for left, _ in corners],
        "tile_top": [top for _, top in corners],
    }
