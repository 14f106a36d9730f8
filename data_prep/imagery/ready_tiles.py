"""Read a folder of ready tiles, one GeoTIFF per site as published, into one packed array."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from butterfly_sdm.core.arrays import PackedArray, new_array
from butterfly_sdm.core.executor import in_order
from butterfly_sdm.errors import DataError, MissingFileError, RasterError
from butterfly_sdm.imagery.pixels import (
    UNSIGNED,
    PixelType,
    fits,
    measured,
    smallest_type,
    without_value,
)
from butterfly_sdm.imagery.products import (
    Layer,
    canonical_band,
    describe_layer,
    metres_per_unit,
    open_raster,
    reading_pixels,
)
from butterfly_sdm.progress import Progress, silent
from data_prep.imagery.export import SIGNED_SQUARE_TAG
from data_prep.imagery.options import ReadyTileOptions, TileOptions

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
    signed_square
        As of :class:`~butterfly_sdm.data.dataset.TileCard`.
    """

    sites: tuple[str, ...]
    layers: tuple[Layer, ...]
    bands: tuple[str, ...]
    size_px: int
    resolution_m: float
    nodata: float
    dtype: PixelType
    signed_square: float | None = None


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
    known = "|".join(map(re.escape, sorted(set(site_ids), key=len, reverse=True)))
    named = re.compile(rf"{before}(?<![0-9A-Za-z])({known})(?![0-9A-Za-z]){after}")
    found: dict[str, Path] = {}
    for file in sorted(files, key=lambda file: (file.name, str(file))):
        match = named.fullmatch(file.name)
        if match is None or not match[1]:
            continue
        if match[1] in found:
            raise DataError(
                f"Two ready tiles fit site {match[1]}: {found[match[1]].name} and {file.name}. "
                "Make ready_tiles.pattern narrower, such as *{site_id}*_y-2019_*.tif"
            )
        found[match[1]] = file
    return found


def find_ready_tiles(
    options: ReadyTileOptions, site_ids: Sequence[str], tiles: TileOptions
) -> ReadyTiles:
    """
    Find the ready tiles of sites and check that they fit together.

    Parameters
    ----------
    tiles
        Its ``bands`` are stored, in its order; if it states none and the files lack the usual ones,
        all are. If it states ``size_px``, that is the side of the
        stored tiles, else all files have to have the same size.

    Raises
    ------
    MissingFileError
        A folder does not exist.
    RasterError
        A file is no raster, or has other bands, another resolution or a smaller size.
    DataError
        No file belongs to a site, or two to one.
    """
    check_folders(options)
    names = [canonical_band(band) for band in options.bands]
    chosen = tuple(canonical_band(band) for band in tiles.bands)
    lacking = [band for band in chosen if band not in names]
    if lacking and "bands" in tiles.model_fields_set:
        raise RasterError(
            f"The ready tiles have no band {lacking[0]!r}; they have {', '.join(names[:16])}"
            f"{' ...' if len(names) > 16 else ''}. Change tiles.bands."
        )
    chosen = tuple(names) if lacking else chosen
    files = (file for folder in options.folders for file in folder.iterdir())
    found = match_files(files, site_ids, options.pattern)
    sites = tuple(site for site in site_ids if site in found)
    if not sites:
        raise DataError(
            f"No file in {', '.join(map(str, options.folders))} fits {options.pattern!r} for any "
            f"of the {len(site_ids)} sites "
            f"(such as {site_ids[0] if len(site_ids) else '-'}). Check ready_tiles.pattern and the "
            "site ids."
        )
    stated = options.nodata if "nodata" in options.model_fields_set else None
    layers = tuple(
        describe_layer(str(found[site]), bands=names, nodata=stated)[0] for site in sites
    )
    size = _common_size(sites, layers, tiles)
    dtypes = {layer.dtype for layer in layers}
    nodata: float
    dtype: PixelType
    if dtypes <= set(UNSIGNED):
        nodata, dtype = float(options.nodata), "uint16"
    else:
        dtype = smallest_type(dtypes, layers[0].path if len(dtypes) == 1 else "The folder")
        nodata = _common_nodata(layers, stated, dtype)
    root = _common_root(layers) if np.dtype(dtype).kind == "i" else None
    resolution_m = _common_resolution(layers)
    return ReadyTiles(sites, layers, chosen, size, resolution_m, nodata, dtype, root)


def _common_root(layers: Sequence[Layer]) -> float | None:
    """Return what files that were exported say of numbers kept as signed square roots."""
    found = set()
    for layer in layers:
        with open_raster(layer.path) as file:
            found.add(file.tags().get(SIGNED_SQUARE_TAG))
    if len(found) > 1:
        raise RasterError(
            f"Some ready tiles have the tag {SIGNED_SQUARE_TAG}, by which embeddings are exported, "
            "and others have not, or another number. Put tiles of one kind into a folder."
        )
    told = found.pop()
    try:
        return None if told is None else float(told)
    except ValueError:
        raise RasterError(
            f"{layers[0].path}: the tag {SIGNED_SQUARE_TAG} is {told!r}, which is no number. "
            "Export the tiles again."
        ) from None


def _common_nodata(layers: Sequence[Layer], stated: float | None, dtype: PixelType) -> float:
    """
    Return what stands for no measurement in tiles of a type that is not unsigned.

    Raises
    ------
    RasterError
        The files differ in it.
    """
    if dtype == "float32":
        return float("nan")
    if stated is not None:
        return stated
    found = {None if layer.supposed else layer.nodata for layer in layers}
    if len(found) > 1:
        raise RasterError(
            "The ready tiles differ in the number that means no measurement "
            f"({', '.join(sorted(map(str, found)))}). State ready_tiles.nodata."
        )
    own = found.pop()
    return own if own is not None and fits(own, dtype) else without_value(dtype)


def check_folders(options: ReadyTileOptions) -> None:
    """
    Look whether the folders of ready tiles are there.

    Raises
    ------
    MissingFileError
        One does not exist.
    """
    for folder in options.folders:
        if not folder.is_dir():
            raise MissingFileError(
                f"There is no folder of ready tiles {folder}. Check ready_tiles.folder."
            )


def _common_size(sites: Sequence[str], layers: Sequence[Layer], tiles: TileOptions) -> int:
    sizes = {(layer.height, layer.width) for layer in layers}
    smallest = min(map(min, sizes))
    stated = "size_px" in tiles.model_fields_set
    if not stated and (len(sizes) > 1 or any(height != width for height, width in sizes)):
        raise RasterError(
            f"The ready tiles differ in size, from {smallest} to {max(map(max, sizes))} pixels. "
            "State tiles.size_px: larger files are then cut down around their centre."
        )
    size = tiles.size_px if stated else smallest
    for site, layer in zip(sites, layers, strict=True):
        if min(layer.height, layer.width) < size:
            raise RasterError(
                f"{layer.path} of site {site} has {layer.height} x {layer.width} pixels, and "
                f"tiles.size_px is {size}. Lower it."
            )
    return size


def _common_resolution(layers: Sequence[Layer]) -> float:
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
    return next(iter(resolution))


def pack_tiles(
    ready: ReadyTiles, out: str | Path, *, executor: Executor | None, progress: Progress = silent
) -> np.ndarray:
    """
    Copy ready tiles into one ``.npy`` file of shape (tiles, bands, size, size), of their type.

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
    new_array(out, shape, ready.dtype).flush()
    packed = PackedArray(out)
    parts = range(0, len(ready.sites), FILES_PER_UNIT)
    work = [(at, ready.layers[at : at + FILES_PER_UNIT]) for at in parts]
    pack = partial(_pack_unit, packed, ready.bands, ready.nodata)
    valid: list[float] = []
    progress("reading ready tiles", 0, len(ready.sites))
    for shares in in_order(pack, work, executor):
        valid += shares
        progress("reading ready tiles", len(valid), len(ready.sites))
    packed.open().flush()
    return np.array(valid)


def _pack_unit(
    out: PackedArray, bands: Sequence[str], nodata: float, work: tuple[int, Sequence[Layer]]
) -> list[float]:
    array = out.open()
    start, layers = work
    size = array.shape[-1]
    shares = []
    for row, layer in enumerate(layers, start):
        left, top = _corner_px(layer, size)
        with reading_pixels(layer.path), open_raster(layer.path) as source:
            tile = source.read(list(layer.slots(bands).values()))
        tile = tile[:, top : top + size, left : left + size]
        if array.dtype.kind == "f":  # every band alone, as in scenes
            own = np.nan if layer.nodata is None or layer.supposed else layer.nodata
            tile = np.where(np.isfinite(tile) & measured(tile, own), tile, np.nan)
        array[row] = tile
        shares.append(float(measured(array[row], nodata).all(axis=0).mean()))
    out.written()
    return shares


def _corner_px(layer: Layer, size: int) -> tuple[int, int]:
    return (layer.width - size) // 2, (layer.height - size) // 2


def tile_places(ready: ReadyTiles) -> dict[str, list[Any]]:
    """
    Return ``tile_crs``, ``tile_left`` and ``tile_top`` of every tile, as columns of the table of
    sites.
    """
    corners = [layer.transform * _corner_px(layer, ready.size_px) for layer in ready.layers]
    return {
        "tile_crs": [layer.crs.to_string() for layer in ready.layers],
        "tile_left": [float(left) for left, _ in corners],
        "tile_top": [float(top) for _, top in corners],
    }
