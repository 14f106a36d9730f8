"""Assets of STAC items that hold embeddings: where they lie, of which year, and what is said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

from butterfly_sdm.errors import MissingFileError, RasterError
from butterfly_sdm.imagery.discovery import (
    described_by_item,
    place_of_asset,
    reading_stac,
    resolve_link,
    stac_items,
)
from butterfly_sdm.imagery.embeddings.pixels import Stated

SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2", ".npy")
# Roles and keys of assets that are no pixels of embeddings.
ASIDE = ("thumbnail", "overview", "metadata", "visual")


@dataclass(frozen=True)
class Asset:
    """
    One asset of embeddings.

    Attributes
    ----------
    path
        File or address.
    year
        In which the time of its item begins; None if it states none.
    stated
        What the item says of its numbers and its place.
    """

    path: str
    year: int | None
    stated: Stated


def embedding_assets(value: Mapping[str, Any], place: str, layer: str | None) -> Iterator[Asset]:
    """
    Yield the embeddings of a STAC item, item collection, or collection.

    Parameters
    ----------
    value, place
        As of :func:`butterfly_sdm.imagery.discovery.stac_items`.
    layer
        Key of the asset; None: the only raster of each item, or the only one with the role data.

    Raises
    ------
    RasterError, MissingFileError, SourceError
        It is not STAC, or an item has no such asset, or several, or its file is not there.
    """
    with reading_stac(place):
        for item, where in stac_items(value, place):
            key, asset = chosen_asset(item, layer)
            yield _asset(item, where, key, asset)


def chosen_asset(item: Mapping[str, Any], layer: str | None) -> tuple[str, Mapping[str, Any]]:
    """
    Return the key and the asset of an item that holds embeddings.

    Raises
    ------
    RasterError
        There is none, or more than one.
    """
    assets: Mapping[str, Any] = item.get("assets", {})
    name = str(item.get("id", "without an id"))
    if layer is not None and layer in assets:
        return layer, assets[layer]
    fit = {key: asset for key, asset in assets.items() if _is_pixels(key, asset)}
    data = {key: asset for key, asset in fit.items() if "data" in (asset.get("roles") or ())}
    fit = data or fit
    if layer is None and len(fit) == 1:
        return next(iter(fit.items()))
    known = ", ".join(sorted(assets)[:8]) or "none"
    many = "several assets" if fit and layer is None else "no asset"
    called = f" called {layer!r}" if layer is not None else ""
    raise RasterError(
        f"The STAC item {name} has {many} of embeddings{called}; it has {known}. Name the one in "
        "embeddings.layer. An asset for each band is not read: put the bands into one raster."
    )


def _is_pixels(key: str, asset: Mapping[str, Any]) -> bool:
    roles = {*(asset.get("roles") or ()), key.lower()}
    kind = str(asset.get("type", ""))
    suffix = PurePosixPath(urlparse(str(asset.get("href", ""))).path.rstrip("/")).suffix.lower()
    known = suffix in (*SUFFIXES, ".zarr") or "tiff" in kind or "zarr" in kind
    return known and not roles & set(ASIDE)


def _asset(item: Mapping[str, Any], where: str, key: str, asset: Mapping[str, Any]) -> Asset:
    properties = item.get("properties") or {}
    target = resolve_link(str(asset.get("href", "")), where)
    if "://" not in target and not Path(target).exists():
        raise MissingFileError(
            f"The STAC item {where} names {target}, which does not exist. Fetch the asset {key}."
        )
    described = {name: float(value) for name, value in described_by_item(asset).items()}
    stated = Stated(**described, place=place_of_asset(asset, properties))
    return Asset(target, year_of_item(item), stated)


def year_of_item(item: Mapping[str, Any]) -> int | None:
    """Return the year in which the time of an item begins; None if it states none."""
    properties = item.get("properties") or {}
    day = str(properties.get("datetime") or properties.get("start_datetime") or "")[:4]
    return int(day) if day else None
