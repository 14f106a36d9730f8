"""
Find products: what lies at a path, from a single raster to a SAFE folder or a STAC collection.
"""

from __future__ import annotations

import json
import logging
import math
import re
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urljoin, urlparse

from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError

from butterfly_sdm.core.addresses import shown
from butterfly_sdm.errors import ButterflySDMError, MissingFileError, RasterError, SourceError
from butterfly_sdm.imagery.options import Reading
from butterfly_sdm.imagery.products import (
    AS_EMBEDDINGS,
    SENTINEL2,
    Layer,
    Piece,
    Place,
    canonical_band,
    describe_layer,
    describe_layers,
    is_remote,
)

log = logging.getLogger("butterfly_sdm.raster")

RASTER_SUFFIXES = (".tif", ".tiff", ".jp2", ".vrt", ".img")
PACKED = (".zip", ".tar", ".gz", ".tgz", ".7z")
OFFSET_BASELINE = (4, 0)  # from 04.00 on, Sentinel-2 counts are 1,000 higher
SENTINEL2_OFFSET = 1000.0
OFFSET_SINCE = "2022-01-25"  # the day that baseline 04.00 began
BAND_FILE = re.compile(r"(.*_)?(B\d[\dA]?|band\d\d?|SCL)(?:_\d\dm)?(?:_\(Raw\))?", re.IGNORECASE)
# Names of files of Landsat with the number of the satellite, and what its bands are: those of the
# Thematic Mapper (4, 5, 7) and of the Operational Land Imager (8, 9).
LANDSAT = re.compile(r"L[COTE]0?([45789])(?:_|\d{13})", re.IGNORECASE)
TM = {1: "blue", 2: "green", 3: "red", 4: "nir", 5: "swir16", 7: "swir22"}
OLI = {1: "coastal", 2: "blue", 3: "green", 4: "red", 5: "nir", 6: "swir16", 7: "swir22"}
# Names of files of HLS: the sensor, year and day of the year, and the band by that sensor.
HLS = re.compile(
    r"(HLS\.([SL])30\.T\d\d[A-Z]{3}\.(\d{4})(\d{3})T\d{6}\.v\d+\.\d+)\.(\w+)", re.IGNORECASE
)
# Surface reflectance of Collection 2: 0.0000275 * count - 0.2.
LANDSAT_SCALE, LANDSAT_OFFSET = 2.75e-5, 0.2 / 2.75e-5
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
    documents = stac_documents(folder)
    if documents:
        for value, place in documents:
            yield from stac_pieces(value, place, stated)
        return
    files = [
        entry for entry in entries if entry.is_file() and entry.suffix.lower() in RASTER_SUFFIXES
    ]
    products = _band_files(files)
    for name, by_band in products.items():
        whole = f"{folder.name}/{name}" if len(products) > 1 else folder.name
        yield _band_files_piece(folder, whole, by_band, stated)
    for file in files if not products else ():
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


def _band_files(files: Sequence[Path]) -> dict[str, dict[str, Path]]:
    """
    Return the band files among rasters, by product and band: those that differ in nothing but the
    band in their names are one product; one product has each band once. None if others lie there
    that are no part of a product.
    """
    bands = {file: name for file in files if (name := _band_of_file(file)) is not None}
    rest = [file for file in files if file not in bands and not _part_of_product(file)]
    if not bands or rest:
        return {}
    if len(set(bands.values())) == len(bands):
        return {"": {name: file for file, name in bands.items()}}
    products: dict[str, dict[str, Path]] = {}
    for file, name in bands.items():
        match = HLS.fullmatch(file.stem) or BAND_FILE.fullmatch(file.stem)
        product = (match[1] or "").rstrip("_") if match else ""
        other = products.setdefault(product, {}).setdefault(name, file)
        if other != file:
            raise RasterError(
                f"{other} and {file.name} are both the band {name}. Keep one of them, or name the "
                "files one by one."
            )
    return products


def _part_of_product(file: Path) -> bool:
    """
    Return whether a raster is no band but comes with the bands of a product: a picture to look at,
    or numbers about its pixels.
    """
    found = HLS.fullmatch(file.stem) or re.search(
        r"(thumb|preview|quicklook|browse|true_color|TCI|PVI|_AOT|_WVP|_CLD|_SNW|_QA_|_ST_|"
        r"_SR_(AEROSOL|CLOUD|ATMOS)|\.Fmask$|\.[SV][AZ]A$)",
        file.stem,
        re.IGNORECASE,
    )
    if found:
        log.warning("%s is left out: it holds no band of its product.", file)
    return found is not None


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
    found = describe_layers(path, bands=stated.bands, nodata=stated.nodata)
    scale, offset = _one_scale(found, stated, path)
    layers = [layer for layer, _, _ in found]
    told = stated.scale is not None or any(own is not None for _, own, _ in found)
    return _piece(
        name, layers, stated, scale=scale, offset=offset, date=_date(name), unscaled=not told
    )


def _one_scale(
    found: Sequence[tuple[Layer, float | None, float | None]], stated: Reading, name: str
) -> tuple[float, float]:
    """Return the scale and offset that all bands of a product state, else 0.0001 and 0."""
    scales = {1e-4 if scale is None else scale for _, scale, _ in found}
    offsets = {0.0 if offset is None else round(offset, 6) for _, _, offset in found}
    for what, values in (("scale", scales), ("offset", offsets)):
        if len(values) > 1 and getattr(stated, what) is None:
            each = "; ".join(
                f"{', '.join(layer.bands)}: {scale or 1e-4:g}, {offset or 0:g}"
                for layer, scale, offset in found
            )
            raise RasterError(
                f"The bands of {name} have different {what}s (scale and count of zero reflectance "
                f"of {each}). Convert them to one first, or state scenes.{what} if the files are "
                "wrong."
            )
    _, scale, offset = found[0]
    return scale or 1e-4, offset or 0.0


def _band_files_piece(
    folder: Path, name: str, by_band: Mapping[str, Path], stated: Reading
) -> Piece:
    wanted = _wanted(by_band, stated, str(folder))
    found = [
        describe_layer(str(by_band[band]), bands=[band], nodata=stated.nodata) for band in wanted
    ]
    scale, offset = _one_scale(found, stated, str(folder))
    first = by_band[wanted[0]]
    landsat = LANDSAT.match(first.stem)
    told = any(scale is not None for _, scale, _ in found)
    if landsat and not told:
        scale, offset = _landsat_scale(first, stated)
    return _piece(
        name,
        [layer for layer, _, _ in found],
        stated,
        scale=scale,
        offset=offset,
        date=_date(name) or _date(first.name),
        mask=_classification(by_band.get("scl")),
        unscaled=not told and not landsat and stated.scale is None,
        assumed=not told
        and not landsat
        and stated.offset is None
        and BAND_FILE.fullmatch(first.stem) is not None,
    )


def _landsat_scale(file: Path, stated: Reading) -> tuple[float, float]:
    """Return scale and offset of a band file of Landsat, by its name."""
    if re.search(r"_02_(T1|T2|RT)_SR_B\d+$", file.stem, re.IGNORECASE):
        return LANDSAT_SCALE, LANDSAT_OFFSET
    if re.search(r"_01_(T1|T2|RT)_sr_band\d+$", file.stem, re.IGNORECASE):
        return 1e-4, 0.0
    if stated.scale is None:
        raise RasterError(
            f"{file} is of Landsat, and its name does not say that it is surface reflectance "
            "(..._SR_B4.TIF), so nobody knows its scale. State scenes.scale and scenes.offset "
            "(of Collection 2 level 2: 2.75e-05 and 7272.727)."
        )
    return 1e-4, 0.0


def assumed_offsets(pieces: Sequence[Piece]) -> list[str]:
    """
    Say which products of Sentinel-2 were taken since its counts are 1,000 higher and do not state
    whether theirs are.
    """
    doubtful = [piece for piece in pieces if piece.assumed]
    late = [piece for piece in doubtful if not piece.date or piece.date >= OFFSET_SINCE]
    if not late:
        return []
    early = len(doubtful) - len(late)
    mixed = (
        f" {early} others are older: if the counts of both were not brought to one offset, they do "
        "not fit together."
        if early
        else ""
    )
    return [
        f"{len(late)} products of Sentinel-2, such as {late[0].name} ({late[0].date or 'no date'}),"
        " do not say whether their counts are 1,000 higher, as they are as ESA delivers them from "
        f"processing baseline 04.00 ({OFFSET_SINCE}) on; they were read with the offset 0.{mixed} "
        "Give them with their metadata (SAFE or STAC), or state scenes.offset."
    ]


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


# How reading ends where a document has other kinds of values than it should.
MALFORMED = (TypeError, AttributeError, KeyError, IndexError, ValueError, ArithmeticError)


def stac_pieces(value: Mapping[str, Any], place: str, stated: Reading) -> Iterator[Piece]:
    """
    Yield the products of a STAC item, item collection, or collection (its item links are followed).

    Parameters
    ----------
    value
        The parsed JSON.
    place
        Its path or URL, from which relative links start.

    Raises
    ------
    RasterError
        It is not STAC, links in a circle, or an item lacks bands, a place on earth or a file.
    """
    with reading_stac(place):
        for item, where in stac_items(value, place):
            yield _item_piece(item, where, stated)


@contextmanager
def reading_stac(place: str) -> Iterator[None]:
    """
    Name the document in the error of one that is not as STAC specifies it.

    Raises
    ------
    RasterError
        It is not.
    """
    try:
        yield
    except ButterflySDMError:
        raise
    except (OSError, *MALFORMED) as error:  # a name too long for a file is an OSError
        raise RasterError(
            f"{place} is not STAC as it is specified ({type(error).__name__}: {str(error)[:200]}). "
            "Fetch it again, or name the rasters themselves."
        ) from error


def stac_items(
    value: Mapping[str, Any], place: str, above: frozenset[str] = frozenset()
) -> Iterator[tuple[Mapping[str, Any], str]]:
    """
    Yield the items of a STAC item, item collection, or collection (its item links are followed),
    and the path or URL from which the links of each start.

    Parameters
    ----------
    value, place
        As of :func:`stac_pieces`.
    above
        The collections that led here.

    Raises
    ------
    RasterError, MissingFileError, SourceError
        It is not STAC, links in a circle or to nothing.
    """
    kind = value.get("type")
    if kind == "Feature":
        yield value, place
    elif kind == "FeatureCollection":
        for item in value.get("features", ()):
            yield item, place
    elif kind in ("Collection", "Catalog"):
        links = [
            link["href"]
            for link in value.get("links", ())
            if link.get("rel") in ("item", "child") and "href" in link
        ]
        if not links:
            raise RasterError(f"The STAC collection {place} links to no items.")
        for link in links:
            target = resolve_link(link, place)
            if target in above or target == place:
                raise RasterError(
                    f"The STAC collection {target} links to itself. Correct its links, or name its "
                    "items."
                )
            yield from stac_items(read_metadata(target), target, above | {place})
    else:
        raise RasterError(
            f"{place} is no STAC item or collection: its type is {kind!r}. Name a STAC JSON, a "
            "raster or a folder."
        )


def stac_documents(folder: Path) -> list[tuple[dict[str, Any], str]]:
    """
    Return the STAC documents of a folder, not of those below it, and their paths: its items, else
    its collections.
    """
    files = (entry for entry in sorted(folder.glob("*.json")) if not entry.name.startswith("."))
    found = [pair for pair in map(_stac, files) if pair is not None]
    return [pair for pair in found if pair[0].get("type") == "Feature"] or found


def _item_piece(item: Mapping[str, Any], place: str, stated: Reading) -> Piece:
    properties = item.get("properties", {})
    name = str(item.get("id", PurePosixPath(place).stem))
    assets = _assets(item, place)
    if not set(assets) - {"scl"}:
        raise RasterError(
            f"The STAC item {name} has no asset that is a band (blue, B02, ...) of which the file "
            f"is here.{AS_EMBEDDINGS}"
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
        mask=_classification(classes, place_of_asset(described, properties)),
        licence=properties.get("license") or next(licences, None),
    )


def _assets(item: Mapping[str, Any], place: str) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Return where each band of an item lies, and what the item says of it."""
    targets = {
        key: (resolve_link(str(asset.get("href", "")), place), asset)
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
    described = described_by_item(asset)
    nodata = stated.nodata if stated.nodata is not None else described.get("nodata")
    layer, own_scale, own_offset = describe_layer(
        target,
        bands=[band],
        nodata=None if isinstance(nodata, str) else nodata,
        place=place_of_asset(asset, properties),
    )
    scale = float(described.get("scale", own_scale or 1e-4))
    stated_offset = described.get("offset")
    offset = own_offset if stated_offset is None else -float(stated_offset) / scale
    if not (math.isfinite(scale) and scale and (offset is None or math.isfinite(offset))):
        raise RasterError(
            f"The STAC asset {target} states scale {scale!r} and offset {stated_offset!r}, which "
            "are no finite numbers, or 0. State scenes.scale and scenes.offset."
        )
    return layer, scale, offset


def described_by_item(asset: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return nodata, scale and offset that an item states of an asset of one band: in the band or in
    the asset, as the raster extension of STAC 1.1 or as that of 1.0 spells them.
    """
    places = [(asset.get("raster:bands") or [{}])[0], (asset.get("bands") or [{}])[0], asset]
    found = {}
    for what in ("nodata", "scale", "offset"):
        for place in places:
            value = place.get(what, place.get(f"raster:{what}"))
            if value is not None and what not in found:
                found[what] = value
    return found


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


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Does not go from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str):  # type: ignore[no-untyped-def]
        """Refuse a redirect that leaves https."""
        if urlparse(req.full_url).scheme == "https" and urlparse(newurl).scheme != "https":
            raise OSError("it leads away from https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(address: str) -> str:
    if urlparse(address).scheme not in ("http", "https"):
        raise SourceError(
            f"{shown(address)} is not read: metadata is read by http and https only. Copy it, or "
            "use another address."
        )
    try:
        with urllib.request.build_opener(_Redirects).open(address, timeout=TIMEOUT_S) as answer:
            content: bytes = answer.read(MOST_METADATA_BYTES + 1)
    except OSError as error:
        raise SourceError(
            f"{shown(address)} was not read: {error}. Is the address right?"
        ) from error
    if len(content) > MOST_METADATA_BYTES:
        raise RasterError(
            f"{shown(address)} is too large for metadata. Name a raster or a STAC item."
        )
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
    harmonised = HLS.fullmatch(file.stem)
    if harmonised:
        band = canonical_band(harmonised[5])
        if harmonised[2].upper() == "L":
            return OLI.get(int(re.sub(r"\D", "", harmonised[5]) or 0))
        return band if band in SENTINEL2.values() else None
    match = BAND_FILE.fullmatch(file.stem)
    if match is None:
        return (
            canonical_band(file.stem) if canonical_band(file.stem) in SENTINEL2.values() else None
        )
    landsat = LANDSAT.match(file.stem)
    if landsat:
        numbers = OLI if int(landsat[1]) >= 8 else TM
        number = re.sub(r"\D", "", match[2])
        return numbers.get(int(number)) if "_ST_" not in file.stem.upper() else None
    if match[2].lower().startswith("band"):
        return None
    return "scl" if match[2].upper() == "SCL" else canonical_band(match[2])


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
    names = [
        band.get("eo:common_name") or band.get("common_name") or band.get("name", "")
        for band in described
    ]
    # a number of one digit is one of Landsat as well, where B4 may be near infrared
    single = re.fullmatch(r"(SR_)?B\d", key, re.IGNORECASE)
    for name in (*names, key) if single else (key, *names):
        if canonical_band(name) in SENTINEL2.values():
            return canonical_band(name)
    return None


def resolve_link(href: str, place: str) -> str:
    """Return where a link of a STAC document leads, relative ones from its path or URL."""
    if urlparse(href).scheme in ("http", "https", "s3", "gs", "file"):
        return href.removeprefix("file://")
    if "://" in place:
        return urljoin(place, href)
    return str((Path(place).parent / href).resolve())


def place_of_asset(asset: Mapping[str, Any], properties: Mapping[str, Any]) -> Place | None:
    """
    Return where a STAC asset lies by the projection extension, if it says so.

    Raises
    ------
    RasterError
        The CRS it states is unknown.
    """
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
    harmonised = HLS.match(name)
    if harmonised:
        try:
            day = datetime.strptime(harmonised[3] + harmonised[4], "%Y%j")
        except ValueError:
            return ""
        return day.date().isoformat()
    match = re.search(
        r"(?<!\d)(19|20)(\d\d)[-_]?(0[1-9]|1[0-2])[-_]?(0[1-9]|[12]\d|3[01])(?!\d)", name
    )
    return f"{match[1]}{match[2]}-{match[3]}-{match[4]}" if match else ""
