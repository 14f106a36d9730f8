"""
Find products: what lies at a path, from a single raster to a SAFE folder or a STAC collection.
"""

from __future__ import annotations

import json
import re
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urljoin, urlparse

from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError

from butterfly_sdm.errors import MissingFileError, RasterError, SourceError
from butterfly_sdm.imagery.options import Reading
from butterfly_sdm.imagery.products import (
    SENTINEL2,
    Layer,
    Piece,
    Place,
    canonical_band,
    describe_layer,
    is_remote,
)

RASTER_SUFFIXES = (".tif", ".tiff", ".jp2", ".vrt", ".img")
PACKED = (".zip", ".tar", ".gz", ".tgz", ".7z")
OFFSET_BASELINE = (4, 0)  # from 04.00 on, Sentinel-2 counts are 1,000 higher
SENTINEL2_OFFSET = 1000.0
MOST_METADATA_BYTES = 64_000_000
TIMEOUT_S = 60


def find_pieces(path: str | Path, stated: Reading) -> Iterator[Piece]:
    """
    Yield the products at a path: a raster, a folder of rasters, of band files or of products, SAFE,
    or STAC.

    Parameters
    ----------
    stated
        Its bands, by their canonical names, are those of a raster in file order; of a product that
        names its bands, those to take.

    Raises
    ------
    MissingFileError
        There is nothing at the path.
    RasterError
        A file is no raster, or a product lacks what is needed.
    """
    text = str(path)
    remote = is_remote(text)
    if not remote and not Path(path).exists():
        raise MissingFileError(
            f"There is no scene {path}. Check scenes.paths; relative paths start at the YAML file."
        )
    if PurePosixPath(urlparse(text).path).suffix.lower() in (".json", ".geojson"):
        place = text if remote else str(Path(path).resolve())
        yield from stac_pieces(read_metadata(place), place, stated)
    elif remote:
        yield _raster_piece(text, stated)
    elif Path(path).suffix.lower() in PACKED:
        raise RasterError(
            f"{path} is a packed archive. Unpack it and name the folder, of Sentinel-2 the one "
            "that ends in .SAFE."
        )
    elif Path(path).is_dir():
        yield from _folder(Path(path), stated)
    elif re.fullmatch(r"MTD_MSIL(1C|2A)\.xml", Path(path).name):
        yield _safe_piece(Path(path).parent, stated)
    else:
        yield _raster_piece(text, stated)


def _folder(folder: Path, stated: Reading, depth: int = 0) -> Iterator[Piece]:
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    if any(re.fullmatch(r"MTD_MSIL(1C|2A)\.xml", entry.name) for entry in entries):
        yield _safe_piece(folder, stated)
        return
    found_stac = [_stac(entry) for entry in entries if entry.suffix == ".json"]
    described = [pair for pair in found_stac if pair is not None]
    items = [pair for pair in described if pair[0].get("type") == "Feature"]
    if described:
        for value, place in items or described:
            yield from stac_pieces(value, place, stated)
        return
    files = [
        entry for entry in entries if entry.is_file() and entry.suffix.lower() in RASTER_SUFFIXES
    ]
    by_band = {name: file for file in files if (name := _band_of_file(file)) is not None}
    if files and len(by_band) == len(files):
        yield _band_files_piece(folder, by_band, stated)
        return
    for file in files:
        yield _raster_piece(str(file), stated)
    found = bool(files)
    for entry in entries:
        if entry.is_dir() and depth < 2:
            try:
                yield from _folder(entry, stated, depth + 1)
                found = True
            except EmptyFolderError:
                continue
    if not found:
        raise EmptyFolderError(
            f"The folder {folder} holds no raster ({', '.join(RASTER_SUFFIXES)}), SAFE or STAC "
            "product."
        )


class EmptyFolderError(RasterError):
    """A folder without a product."""


def _piece(
    name: str,
    layers: Sequence[Layer],
    stated: Reading,
    *,
    scale: float,
    offset: float,
    **known: Any,
) -> Piece:
    """Return a piece of layers, with the scale and offset found unless others are stated."""
    return Piece(
        name=name,
        # the finest pixels first: their grid is that of the product
        layers=tuple(sorted(layers, key=lambda layer: abs(layer.transform.a))),
        nodata=layers[0].nodata,
        scale=scale if stated.scale is None else stated.scale,
        offset=offset if stated.offset is None else stated.offset,
        **known,
    )


def _classification(path: object, place: Place | None = None) -> Layer | None:
    if path is None:
        return None
    return describe_layer(str(path), bands=["scl"], nodata=None, place=place)[0]


def _raster_piece(path: str, stated: Reading) -> Piece:
    name = PurePosixPath(path).name
    layer, scale, offset = describe_layer(path, bands=stated.bands, nodata=stated.nodata)
    return _piece(
        name, [layer], stated, scale=scale or 1e-4, offset=offset or 0.0, date=_date(name)
    )


def _band_files_piece(folder: Path, by_band: Mapping[str, Path], stated: Reading) -> Piece:
    wanted = _wanted(by_band, stated, str(folder))
    found = [
        describe_layer(str(by_band[band]), bands=[band], nodata=stated.nodata) for band in wanted
    ]
    scale, offset = next(((scale, off) for _, scale, off in found if scale), (None, None))
    return _piece(
        folder.name,
        [layer for layer, _, _ in found],
        stated,
        scale=scale or 1e-4,
        offset=offset or 0.0,
        date=_date(folder.name) or _date(by_band[wanted[0]].name),
        mask=_classification(by_band.get("scl")),
    )


def _safe_piece(folder: Path, stated: Reading) -> Piece:
    """Read a Sentinel-2 product as ESA distributes it, unpacked."""
    metadata = next(path for path in sorted(folder.glob("MTD_MSIL*.xml")))
    root = _read_xml(metadata)
    texts: dict[str, str] = {}
    offsets: list[float] = []
    for element in root.iter():
        tag = element.tag.rsplit("}", 1)[-1]
        text = (element.text or "").strip()
        if tag in ("BOA_ADD_OFFSET", "RADIO_ADD_OFFSET"):
            offsets.append(float(text))
        elif text and tag in (
            "PROCESSING_BASELINE",
            "PRODUCT_START_TIME",
            "BOA_QUANTIFICATION_VALUE",
            "QUANTIFICATION_VALUE",
        ):
            texts.setdefault(tag, text)
    if len(set(offsets)) > 1:
        raise RasterError(
            f"{metadata} states different offsets for its bands: {sorted(set(offsets))}. State "
            "scenes.offset."
        )
    files: dict[str, Path] = {}
    for file in sorted(folder.rglob("IMG_DATA/**/*")):
        match = re.search(r"_(B\d[\dA]|SCL)(?:_(\d\d)m)?\.(jp2|tif)$", file.name)
        if match is None:
            continue
        name = "scl" if match[1] == "SCL" else canonical_band(match[1])
        # The finest of the resolutions in which a band is delivered: R10m before R20m before R60m.
        if name not in files or file.parent.name < files[name].parent.name:
            files[name] = file
    if not files:
        raise RasterError(
            f"{folder} is a SAFE product without band files in IMG_DATA. Is it unpacked as a whole?"
        )
    baseline = texts.get("PROCESSING_BASELINE", "")
    offset = -offsets[0] if offsets else _offset_of_baseline(baseline)
    quantification = float(
        texts.get("BOA_QUANTIFICATION_VALUE", texts.get("QUANTIFICATION_VALUE", "10000"))
    )
    layers = [
        describe_layer(str(files[band]), bands=[band], nodata=stated.nodata)[0]
        for band in _wanted(files, stated, str(folder))
    ]
    return _piece(
        folder.name,
        layers,
        stated,
        scale=1 / quantification,
        offset=offset,
        date=texts.get("PRODUCT_START_TIME", "")[:10] or _date(folder.name),
        baseline=baseline,
        mask=_classification(files.get("scl")),
    )


def stac_pieces(
    value: Mapping[str, Any], place: str, stated: Reading, above: frozenset[str] = frozenset()
) -> Iterator[Piece]:
    """
    Yield the products of a STAC item, item collection, or collection (its item links are followed).

    Parameters
    ----------
    value
        The parsed JSON.
    place
        Its path or URL, from which relative links start.
    above
        Collections that led here.

    Raises
    ------
    RasterError
        It is not STAC, links in a circle, or an item lacks bands, a place on earth or a file.
    """
    kind = value.get("type")
    if kind == "Feature":
        yield _item_piece(value, place, stated)
    elif kind == "FeatureCollection":
        for item in value.get("features", ()):
            yield _item_piece(item, place, stated)
    elif kind in ("Collection", "Catalog"):
        links = [
            link["href"]
            for link in value.get("links", ())
            if link.get("rel") in ("item", "child") and "href" in link
        ]
        if not links:
            raise RasterError(f"The STAC collection {place} links to no items.")
        for link in links:
            target = _resolve(link, place)
            if target in above or target == place:
                raise RasterError(
                    f"The STAC collection {target} links to itself. Correct its links, or name its "
                    "items."
                )
            yield from stac_pieces(read_metadata(target), target, stated, above | {place})
    else:
        raise RasterError(
            f"{place} is no STAC item or collection: its type is {kind!r}. Name a STAC JSON, a "
            "raster or a folder."
        )


def _item_piece(item: Mapping[str, Any], place: str, stated: Reading) -> Piece:
    properties = item.get("properties", {})
    name = str(item.get("id", PurePosixPath(place).stem))
    assets = _assets(item, place)
    if not set(assets) - {"scl"}:
        raise RasterError(
            f"The STAC item {name} has no asset that is a band (blue, B02, ...) of which the file "
            "is here."
        )
    found = [
        _asset_layer(*assets[band], band, properties, stated)
        for band in _wanted(assets, stated, name)
    ]
    scales = {scale for _, scale, _ in found}
    offsets = {round(offset, 6) for _, _, offset in found if offset is not None}
    if properties.get("earthsearch:boa_offset_applied"):
        offsets = {0.0}  # subtracted when the item was made, whatever its bands state
    for what, values in (("scale", scales), ("offset", offsets)):
        if len(values) > 1 and getattr(stated, what) is None:
            raise RasterError(
                f"The bands of the STAC item {name} have different {what}s ({sorted(values)}). "
                f"State scenes.{what}."
            )
    baseline = str(
        properties.get("s2:processing_baseline", properties.get("processing:version", ""))
    )
    classes, described = assets.get("scl", (None, {}))
    licences = (link["href"] for link in item.get("links", ()) if link.get("rel") == "license")
    return _piece(
        name,
        [layer for layer, _, _ in found],
        stated,
        scale=scales.pop(),
        offset=offsets.pop() if offsets else _offset_of_baseline(baseline),
        date=str(properties.get("datetime") or properties.get("start_datetime") or "")[:10],
        baseline=baseline,
        mask=_classification(classes, _place(described, properties)),
        licence=properties.get("license") or next(licences, None),
    )


def _assets(item: Mapping[str, Any], place: str) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Return where each band of an item lies, and what the item says of it."""
    targets = {
        key: (_resolve(str(asset.get("href", "")), place), asset)
        for key, asset in item.get("assets", {}).items()
    }
    copied = "://" not in place and any("://" not in target for target, _ in targets.values())
    assets: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for key, (target, asset) in targets.items():
        name = band_of_asset(key, asset)
        if name is None or (copied and "://" in target):
            continue  # a copy of an item keeps links to the assets that were not copied
        if "://" not in target and not Path(target).is_file():
            raise MissingFileError(
                f"The STAC item {place} names {target}, which does not exist. Fetch the asset "
                f"{key}."
            )
        assets.setdefault(name, (target, asset))
    return assets


def _asset_layer(
    target: str,
    asset: Mapping[str, Any],
    band: str,
    properties: Mapping[str, Any],
    stated: Reading,
) -> tuple[Layer, float, float | None]:
    """Return the layer of an asset, its scale, and its offset if that is known."""
    described = (asset.get("raster:bands") or [{}])[0]
    nodata = stated.nodata if stated.nodata is not None else described.get("nodata")
    layer, own_scale, own_offset = describe_layer(
        target,
        bands=[band],
        nodata=None if isinstance(nodata, str) else nodata,
        place=_place(asset, properties),
    )
    scale = float(described.get("scale", asset.get("raster:scale", own_scale or 1e-4)))
    offset = described.get("offset", asset.get("raster:offset"))
    return layer, scale, own_offset if offset is None else -float(offset) / scale


def read_metadata(path: str | Path) -> Any:
    """
    Read a JSON file of metadata, here or on the network (http, https).

    Raises
    ------
    MissingFileError, SourceError, RasterError
        It does not exist, does not answer, is too large or is not JSON.
    """
    remote = "://" in str(path)
    if not remote and not Path(path).is_file():
        raise MissingFileError(f"There is no STAC file {path}. Was it copied with the others?")
    try:
        text = _fetch(str(path)) if remote else _read_text(Path(path))
        value = json.loads(text)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise RasterError(f"{path} is not JSON: {error}. Name a raster or a STAC item.") from error
    if not isinstance(value, dict):
        raise RasterError(f"{path} is not a STAC item: it holds a {type(value).__name__}.")
    return value


def _read_text(path: Path) -> str:
    if path.stat().st_size > MOST_METADATA_BYTES:
        raise RasterError(
            f"{path} has {path.stat().st_size / 1e6:.0f} MB, too much for metadata. Name a "
            "product, a raster or a STAC item."
        )
    return path.read_text(encoding="utf-8")


def _fetch(address: str) -> str:
    if urlparse(address).scheme not in ("http", "https"):
        raise SourceError(
            f"{address} is not read: metadata is read by http and https only. Copy it, or use "
            "another address."
        )
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:
            content: bytes = answer.read(MOST_METADATA_BYTES + 1)
    except OSError as error:
        raise SourceError(f"{address} was not read: {error}. Is the address right?") from error
    if len(content) > MOST_METADATA_BYTES:
        raise RasterError(f"{address} is too large for metadata. Name a raster or a STAC item.")
    return content.decode("utf-8")


def _stac(path: Path) -> tuple[dict[str, Any], str] | None:
    try:
        value = read_metadata(path)
    except RasterError:
        return None
    return (value, str(path.resolve())) if "stac_version" in value else None


def _read_xml(path: Path) -> ET.Element:
    try:
        text = _read_text(path)
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise RasterError(
                f"{path} defines XML entities, which product metadata never does. Do not trust it."
            )
        return ET.fromstring(text)
    except (UnicodeDecodeError, ET.ParseError) as error:
        raise RasterError(f"{path} is not XML: {error}. Unpack the product again.") from error


def _band_of_file(file: Path) -> str | None:
    match = re.fullmatch(r"(?:.*_)?(B\d[\dA]?|SCL)(?:_\d\dm)?", file.stem, re.IGNORECASE)
    if match is None:
        return (
            canonical_band(file.stem) if canonical_band(file.stem) in SENTINEL2.values() else None
        )
    return "scl" if match[1].upper() == "SCL" else canonical_band(match[1])


def band_of_asset(key: str, asset: Mapping[str, Any]) -> str | None:
    """
    Return the band a STAC asset holds (``scl`` for the scene classification), or None if it is
    something else.
    """
    described = [*(asset.get("eo:bands") or ()), *(asset.get("bands") or ())]
    if len(described) > 1 or key.endswith("-jp2") or "thumbnail" in (asset.get("roles") or ()):
        return None
    if key.lower() == "scl":
        return "scl"
    for name in (
        key,
        *(
            band.get("eo:common_name") or band.get("common_name") or band.get("name", "")
            for band in described
        ),
    ):
        if canonical_band(name) in SENTINEL2.values():
            return canonical_band(name)
    return None


def _resolve(href: str, place: str) -> str:
    if urlparse(href).scheme in ("http", "https", "s3", "gs", "file"):
        return href.removeprefix("file://")
    if "://" in place:
        return urljoin(place, href)
    return str((Path(place).parent / href).resolve())


def _place(asset: Mapping[str, Any], properties: Mapping[str, Any]) -> Place | None:
    """Return where a STAC asset lies by the projection extension, if it says so."""
    merged = {**properties, **asset}
    shape, transform = merged.get("proj:shape"), merged.get("proj:transform")
    code = merged.get("proj:code") or merged.get("proj:epsg") or merged.get("proj:wkt2")
    if not shape or not transform or not code:
        return None
    try:
        crs = CRS.from_epsg(code) if isinstance(code, int) else CRS.from_user_input(code)
    except CRSError as error:
        raise RasterError(
            f"A STAC item states the CRS {str(code)[:60]!r}, which is unknown: {error}."
        ) from error
    return Place(crs, Affine(*transform[:6]), int(shape[0]), int(shape[1]))


def _wanted(available: Mapping[str, Any], stated: Reading, name: str) -> list[str]:
    bands = [band for band in available if band != "scl"]
    if stated.bands is None:
        return bands
    missing = [band for band in stated.bands if band not in bands]
    if missing:
        raise RasterError(
            f"{name} has no band {missing[0]!r}; it has {', '.join(bands)}. Change scenes.bands."
        )
    return list(stated.bands)


def _offset_of_baseline(baseline: str) -> float:
    match = re.fullmatch(r"(\d+)\.(\d+)", baseline)
    return SENTINEL2_OFFSET if match and (int(match[1]), int(match[2])) >= OFFSET_BASELINE else 0.0


def _date(name: str) -> str:
    match = re.search(
        r"(?<!\d)(19|20)(\d\d)[-_]?(0[1-9]|1[0-2])[-_]?(0[1-9]|[12]\d|3[01])(?!\d)", name
    )
    return f"{match[1]}{match[2]}-{match[3]}-{match[4]}" if match else ""
