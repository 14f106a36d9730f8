"""Write tiles as GeoTIFFs, one per site, to look at them in a GIS or to hand them on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS

from butterfly_sdm.core.executor import in_order
from butterfly_sdm.core.files import atomic_path
from butterfly_sdm.data.dataset import Dataset, TileCard
from butterfly_sdm.errors import DataError
from butterfly_sdm.progress import Progress, silent

#: Of a GeoTIFF whose numbers mean ``(stored / tag)**2`` with the sign of ``stored``.
SIGNED_SQUARE_TAG = "BUTTERFLY_SDM_SIGNED_SQUARE"


def export_tiles(
    dataset: Dataset,
    folder: str | Path,
    sites: Sequence[str] | None = None,
    *,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> list[Path]:
    """
    Write the tile of each site as ``SITE.tif``, with band names, nodata, scale, offset and its
    place on earth; of embeddings kept as signed square roots a tag says so, which
    ``build.ready_tiles`` reads.

    Parameters
    ----------
    sites
        By default all that have a tile.

    Returns
    -------
    list of Path
        In the order of ``sites``.

    Raises
    ------
    DataError
        The data set has no tiles, a site has none, or its id is no file name.
    """
    card = dataset.card.tiles
    if card is None or dataset.tiles is None:
        raise DataError(f"The data set {dataset.card.name!r} has no tiles to export.")
    chosen = dataset.sites_with_tiles if sites is None else tuple(sites)
    rows = dataset.tile_rows(chosen)
    places = dataset.sites.loc[list(chosen), ["tile_crs", "tile_left", "tile_top"]]
    names = {site: re.sub(r"[^\w.-]", "_", site) for site in chosen}
    if len(set(names.values())) < len(names):
        raise DataError("Two site ids become the same file name. Export them one by one.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{names[site]}.tif" for site in chosen]
    tiles = (np.asarray(dataset.tiles[row]) for row in rows)
    work = zip(paths, tiles, places.itertuples(index=False, name=None), strict=True)
    for done, _ in enumerate(in_order(partial(_write, card), work, executor), start=1):
        progress("exporting tiles", done, len(paths))
    return paths


def _write(card: TileCard, tile: tuple[Path, np.ndarray, tuple[str, float, float]]) -> None:
    path, values, (crs, left, top) = tile
    metres = CRS.from_user_input(crs).linear_units_factor[1]
    side = card.resolution_m / metres
    profile = {
        "driver": "GTiff",
        "count": len(card.bands),
        "height": card.size_px,
        "width": card.size_px,
        "dtype": card.dtype,
        "crs": crs,
        "transform": Affine(side, 0, left, 0, -side, top),
        "nodata": card.missing,
        "compress": "deflate",
        "predictor": 3 if card.dtype == "float32" else 2,
    }
    with atomic_path(path) as temporary, rasterio.open(temporary, "w", **profile) as target:
        target.write(values)
        target.descriptions = card.bands
        target.scales = (card.scale,) * len(card.bands)
        target.offsets = (-card.offset * card.scale,) * len(card.bands)
        if card.signed_square is not None:
            target.update_tags(**{SIGNED_SQUARE_TAG: card.signed_square})
