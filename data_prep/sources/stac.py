"""
Sentinel-2 products from any STAC API: search, fetch the bands that are needed, keep them as local
items.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlparse

from butterfly_sdm.core.addresses import shown
from butterfly_sdm.core.files import write_json
from butterfly_sdm.errors import MissingPackageError, SourceError, how_to_install
from butterfly_sdm.imagery.discovery import band_of_asset, read_metadata
from butterfly_sdm.imagery.embeddings.options import EmbeddingReading
from butterfly_sdm.imagery.embeddings.stac_assets import chosen_asset, year_of_item
from butterfly_sdm.imagery.options import StacOptions
from butterfly_sdm.imagery.products import canonical_band
from butterfly_sdm.progress import Progress, silent
from data_prep.sources.sparse import SparseCopies
from data_prep.sources.transfer import Service, open_session

TIMEOUT_S = 60
ITEMS_AT_ONCE = 4  # each asks for its files one after the other
WORLD = (-180.0, -90.0, 180.0, 90.0)


def search_items(stac: StacOptions) -> list[dict[str, Any]]:
    """
    Search a STAC API, or read a static catalogue or collection as a whole.

    Returns
    -------
    list of dict
        Items, sorted by id, asset links absolute.

    Raises
    ------
    SourceError
        The API does not answer, or has no such product, or more than ``most_items``.
    MissingPackageError
        ``pystac_client`` is not installed.
    """
    items, seen = [], 0
    for item in _walk(stac.url, stac) if stac.url.endswith(".json") else _search(stac):
        seen += 1
        if float(item.get("properties", {}).get("eo:cloud_cover") or 0) <= stac.max_cloud:
            items.append(item)
        if len(items) > stac.most_items:
            raise SourceError(
                f"{shown(stac.url)} has more than {stac.most_items} products of {stac.collection} "
                f"from {stac.start} to {stac.end}. Narrow the dates, scenes.stac.bbox or "
                "scenes.stac.max_cloud, or raise scenes.stac.most_items."
            )
    if not items:
        raise SourceError(
            f"{shown(stac.url)} has {seen} products of {stac.collection} in "
            f"{list(stac.bbox or WORLD)} from {stac.start} to {stac.end}, none of them with at "
            f"most {stac.max_cloud:g} % clouds. Widen the dates, or raise scenes.stac.max_cloud."
        )
    return sorted(items, key=lambda item: str(item["id"]))


def _search(stac: StacOptions) -> Iterator[dict[str, Any]]:
    try:
        from pystac_client import Client
        from pystac_client.errors import ClientTypeError
        from pystac_client.exceptions import APIError
        from pystac_client.stac_api_io import StacApiIO
    except ImportError as error:
        raise MissingPackageError(
            f"A STAC search needs pystac-client. Install it with: {how_to_install('sources')}"
        ) from error
    try:
        search = Client.open(stac.url, stac_io=_asking(StacApiIO(timeout=TIMEOUT_S))).search(
            collections=[stac.collection],
            bbox=list(stac.bbox or WORLD),
            datetime=f"{stac.start}/{stac.end}",
        )
        yield from (item.to_dict() for item in search.items())
    except (APIError, ClientTypeError, OSError, ValueError, KeyError, NotImplementedError) as error:
        raise SourceError(
            f"The STAC API {shown(stac.url)} did not answer a search of {stac.collection}: "
            f"{error}. Is the address right?"
        ) from error


def _asking(asker: Any) -> Any:
    """Let pystac-client ask by the rules of transfers: next pages may lie on other hosts."""
    session = open_session()
    for start, adapter in asker.session.adapters.items():
        session.mount(start, adapter)
    asker.session = session
    return asker


def _walk(
    url: str, stac: StacOptions, above: frozenset[str] = frozenset()
) -> Iterator[dict[str, Any]]:
    """Yield the items of a static catalogue that a search would find."""
    if url in above:
        raise SourceError(f"The STAC catalogue {shown(url)} links to itself.")
    value = read_metadata(url)
    if value.get("type") != "Feature":
        for link in value.get("links", ()):
            if link.get("rel") in ("item", "child"):
                target = urljoin(url, str(link.get("href", "")))
                yield from _walk(target, stac, above | {url})
        return
    properties = value.get("properties", {})
    day = str(properties.get("datetime") or properties.get("start_datetime") or "")[:10]
    box, (west, south, east, north) = stac.bbox or WORLD, _box(value)
    near = _meet((west, east), (box[0], box[2])) and south <= box[3] and north >= box[1]
    same = value.get("collection", stac.collection) == stac.collection
    if near and same and stac.start <= day <= stac.end:
        assets = {
            key: {**asset, "href": urljoin(url, str(asset["href"]))}
            for key, asset in value.get("assets", {}).items()
        }
        yield {**value, "assets": assets}


def _meet(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """
    Return whether two ranges of longitude, west to east, share some; from west to a smaller east
    they run across 180 degrees.
    """

    def parts(west: float, east: float) -> list[tuple[float, float]]:
        return [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]

    return any(w <= e2 and e >= w2 for w, e in parts(*one) for w2, e2 in parts(*other))


def _box(item: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """Return west, south, east and north of an item."""
    box = item.get("bbox") or WORLD
    half = len(box) // 2  # six numbers where heights are told
    return box[0], box[1], box[half], box[half + 1]


def fetch_products(
    stac: StacOptions,
    folder: str | Path,
    *,
    bands: Sequence[str] = ("red", "green", "blue", "nir"),
    progress: Progress = silent,
    service: Service | None = None,
) -> list[Path]:
    """
    Fetch the bands and the scene classification of all products of a search; what is there already
    is not fetched again.

    A transfer that breaks off is tried again and goes on where it was, in a later call too.

    Returns
    -------
    list of Path
        One STAC item per product, with links to the local files, for
        :func:`butterfly_sdm.imagery.mosaic.open_scene`.

    Raises
    ------
    SourceError
        The API or a file does not answer, or a product lacks a band.
    MissingPackageError
        ``requests`` or ``pystac_client`` is not installed.
    """
    folder = Path(folder)
    items = search_items(stac)
    wanted = {canonical_band(band) for band in bands}
    paths = []
    for number, item in enumerate(items):
        progress("fetching products", number, len(items))
        paths.append(_fetch_item(item, folder, wanted, service or Service()))
    progress("fetching products", len(items), len(items))
    return paths


def begin_products(
    stac: StacOptions,
    folder: str | Path,
    copies: SparseCopies,
    *,
    bands: Sequence[str] = ("red", "green", "blue", "nir"),
    embeddings: EmbeddingReading | None = None,
    progress: Progress = silent,
) -> list[Path]:
    """
    Make partial copies of the bands and the scene classification of all products of a search: of
    tiled GeoTIFFs on servers that give parts of files only their directories are fetched, of others
    all.

    Parameters
    ----------
    embeddings
        The products are embeddings, read so: the one asset of each is taken, whatever ``bands``.

    Returns
    -------
    list of Path
        As :func:`fetch_products`; a scene of them needs ``copies`` as its supply.

    Raises
    ------
    SourceError, MissingPackageError
        As :func:`fetch_products`.
    """
    folder, wanted = Path(folder), {canonical_band(band) for band in bands}
    items = search_items(stac)
    done = 0
    choose = partial(_bands_of, wanted=wanted)
    if embeddings is not None:
        items = [item for item in items if _is_of_year(item, embeddings.year)]
        choose = partial(_embedding_of, layer=embeddings.layer)
        if not items:
            raise SourceError(
                f"{shown(stac.url)} has no product of {embeddings.year} from {stac.start} to "
                f"{stac.end}. Check embeddings.year and the dates."
            )

    def begin(item: Mapping[str, Any]) -> Path:
        nonlocal done
        target = _keep_item(item, folder, choose, copies.hold, copies.look_over)
        done += 1
        progress("reading the products", done, len(items))
        return target

    progress("reading the products", 0, len(items))
    with ThreadPoolExecutor(ITEMS_AT_ONCE) as pool:
        futures = [pool.submit(begin, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            pool.shutdown(cancel_futures=True)


def _fetch_item(item: Mapping[str, Any], folder: Path, wanted: set[str], service: Service) -> Path:
    def fetch(url: str, file: Path, size: int | None) -> None:
        service.fetch(url, file, size=size)

    return _keep_item(item, folder, partial(_bands_of, wanted=wanted), fetch)


Asset = tuple[str, Mapping[str, Any]]  # its key, and what the item says of it


def _bands_of(item: Mapping[str, Any], wanted: set[str]) -> list[Asset]:
    """Return the assets of the bands wanted, and the scene classification."""
    chosen: dict[str, Asset] = {}
    for key, asset in item.get("assets", {}).items():
        band = band_of_asset(key, asset)
        if band in wanted or band == "scl":
            chosen.setdefault(str(band), (key, asset))
    missing = sorted(wanted - set(chosen))
    if missing:
        raise SourceError(
            f"The product {item['id']} has no band {missing[0]}; it has "
            f"{', '.join(sorted(item.get('assets', {})))[:200]}."
        )
    return list(chosen.values())


def _embedding_of(item: Mapping[str, Any], layer: str | None) -> list[Asset]:
    return [chosen_asset(item, layer)]


def _is_of_year(item: Mapping[str, Any], year: int | None) -> bool:
    own = year_of_item(item)
    return year is None or own is None or own == year


def _keep_item(
    item: Mapping[str, Any],
    folder: Path,
    choose: Callable[[Mapping[str, Any]], list[Asset]],
    fetch: Callable[[str, Path, int | None], object],
    look_over: Callable[[Path], bool] = lambda _: True,
) -> Path:
    """
    Fetch the files of an item, and write it with links to them; ``look_over`` tells whether those
    in a folder are still there.
    """
    name = str(item["id"])
    if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
        raise SourceError(
            f"A product is called {name!r}, which is no file name. Do not trust this source."
        )
    target = folder / name / f"{name}.json"
    if target.is_file() and look_over(target.parent):
        return target  # written last, so the rest is there
    assets = {}
    for key, asset in choose(item):
        href, size = str(asset["href"]), asset.get("file:size")
        if urlparse(href).scheme not in ("http", "https"):
            raise SourceError(
                f"{shown(href)} is not fetched: only http and https are. Use a STAC API with such "
                "links."
            )
        ending = Path(urlparse(href).path).suffix or ".tif"
        file = folder / name / f"{re.sub(r'[^A-Za-z0-9_-]', '_', key)}{ending}"
        if not file.is_file():
            fetch(href, file, size if isinstance(size, int) else None)
        assets[key] = {**asset, "href": file.name}
    links = [link for link in item.get("links", ()) if link.get("rel") == "license"]
    write_json(target, {**item, "assets": assets, "links": links})
    return target
