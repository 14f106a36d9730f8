"""
Products: which files hold which bands, where they lie, and what their numbers mean.

A product is a raster with several bands, a folder of band files, a Sentinel-2 SAFE folder or a STAC
item.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from pyproj import CRS as ProjCRS
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import (
    CRSError,
    RasterioError,
    RasterioIOError,
)
from rasterio.windows import Window

from butterfly_sdm.core.addresses import log_discreetly
from butterfly_sdm.errors import RasterError
from butterfly_sdm.imagery.raster_formats import anywhere, check_file, check_opened

Grid = tuple[CRS, Affine, int, int]

METRES_PER_DEGREE = 111_320.0  # of latitude; of longitude at the equator

#: More bands without names than satellites have are taken for embeddings.
MOST_UNNAMED = 15
AS_EMBEDDINGS = (
    " If it holds embeddings, state scenes.embeddings, such as {preset: alphaearth}, or take them "
    "as covariates.embeddings."
)
RESAMPLING = {
    "nearest": Resampling.nearest,
    "bilinear": Resampling.bilinear,
    "cubic": Resampling.cubic,
}

# Names of the STAC "eo" extension for the bands of Sentinel-2.
SENTINEL2 = {
    "B01": "coastal",
    "B02": "blue",
    "B03": "green",
    "B04": "red",
    "B05": "rededge1",
    "B06": "rededge2",
    "B07": "rededge3",
    "B08": "nir",
    "B8A": "nir08",
    "B09": "nir09",
    "B10": "cirrus",
    "B11": "swir16",
    "B12": "swir22",
}


def is_remote(path: str) -> bool:
    """Return whether a path is an address on the network, or one of GDAL's virtual file systems."""
    return "://" in path or path.startswith("/vsi")


@dataclass(frozen=True)
class Layer:
    """
    One file of a product and the bands taken from it.

    Attributes
    ----------
    bands, indexes
        Names, and their numbers in the file (from 1).
    nodata
        Value without a measurement; None if the file has none.
    block
        Height and width of the blocks in which the file is stored.
    supposed
        Whether its nodata, 0, is not stated but what whole numbers commonly have.
    upside_down
        Whether its first row lies in the south; rows are counted from the north all the same.
    """

    path: str
    bands: tuple[str, ...]
    indexes: tuple[int, ...]
    crs: CRS
    transform: Affine
    width: int
    height: int
    nodata: float | None
    dtype: str
    block: tuple[int, int]
    has_mask: bool = False
    supposed: bool = False
    upside_down: bool = False

    @property
    def border(self) -> bool:
        """
        Whether zero in every band is no measurement: outside the swath, files of fractions or of
        several bands that state no nodata hold it, where zero in one band may be measured.
        """
        return self.nodata is None

    @property
    def warp_nodata(self) -> float | None:
        """What is left out of averages: beside a border, zero."""
        return 0.0 if self.border else self.nodata

    @property
    def grid(self) -> Grid:
        """CRS, transform, width and height."""
        return self.crs, self.transform, self.width, self.height

    @property
    def stored_transform(self) -> Affine:
        """The transform of the rows as they are stored."""
        if not self.upside_down:
            return self.transform
        return self.transform * Affine.translation(0, self.height) * Affine.scale(1, -1)

    def times_larger(self, grid: Grid) -> int:
        """
        Return how many pixels of a grid a pixel of this file is wide, if both cover the same ground
        and it is a whole number; else 0.
        """
        crs, transform, width, height = grid
        if self.crs != crs or not transform.a:
            return 0
        factor = round(self.transform.a / transform.a)
        if factor < 1 or (self.width * factor, self.height * factor) != (width, height):
            return 0
        own, scaled = self.transform[:6], (transform * Affine.scale(factor))[:6]
        alike = (abs(a - b) <= 1e-9 + 1e-12 * abs(b) for a, b in zip(own, scaled, strict=True))
        return factor if all(alike) else 0  # numpy would take a hundred times as long

    def slots(self, bands: Sequence[str]) -> dict[int, int]:
        """Return the places among ``bands`` of those in this file, and their numbers in it."""
        return {
            slot: self.indexes[self.bands.index(band)]
            for slot, band in enumerate(bands)
            if band in self.bands
        }

    def measured(self, raw: np.ndarray) -> np.ndarray:
        """Return where every band of (bands, h, w) stored values is a measurement: (h, w)."""
        present = np.ones(raw.shape[1:], dtype=bool)
        if self.nodata is not None and not np.isnan(self.nodata):
            present &= (raw != self.nodata).all(axis=0)
        if raw.dtype.kind == "f":
            present &= np.isfinite(raw).all(axis=0)
        return present


class TurnedOver:
    """
    An open raster whose first row lies in the south, read with rows counted from the north.

    Attributes
    ----------
    source
        The raster as it is stored.
    """

    def __init__(self, source: Any) -> None:
        self.source = source

    def _stored(self, window: Window) -> Window:
        top = self.source.height - window.row_off - window.height
        return Window(window.col_off, top, window.width, window.height)

    def read(
        self, indexes: Any = None, *, window: Window, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Read bands of a window, as rasterio does."""
        into = None if out is None else out[..., ::-1, :]
        found: np.ndarray = self.source.read(indexes, window=self._stored(window), out=into)
        return found[..., ::-1, :]

    @property
    def interleaving(self) -> Any:
        """How bands are stored, as rasterio says it."""
        return self.source.interleaving

    def dataset_mask(self, *, window: Window) -> np.ndarray:
        """Return the mask of a window, as rasterio does."""
        mask: np.ndarray = self.source.dataset_mask(window=self._stored(window))[::-1]
        return mask

    def close(self) -> None:
        """Close the raster."""
        self.source.close()


@dataclass(frozen=True)
class Place:
    """
    Where a raster lies according to its metadata: the CRS, and the transform of a raster of a
    certain shape.
    """

    crs: CRS
    transform: Affine
    height: int
    width: int

    def on(self, height: int, width: int) -> Affine:
        """Return the transform of the same ground in another number of pixels."""
        return self.transform * Affine.scale(self.width / width, self.height / height)


@dataclass(frozen=True)
class Piece:
    """
    One product: its files on one ground, taken at one time.

    Attributes
    ----------
    name
        File or product name.
    date
        Day of the picture as YYYY-MM-DD; empty if unknown.
    scale, offset
        ``reflectance = (value - offset) * scale``.
    baseline
        Processing baseline such as ``05.09``; empty if unknown.
    mask
        Scene classification (SCL) of the product, for cloud masks.
    licence
        Where the metadata state one.
    assumed
        Whether it is of Sentinel-2 and its offset was taken as 0 because nothing states it.
    unscaled
        Whether nothing states its scale, which was taken as that of Sentinel-2.
    """

    name: str
    layers: tuple[Layer, ...]
    nodata: float | None
    scale: float
    offset: float
    date: str = ""
    baseline: str = ""
    mask: Layer | None = None
    licence: str | None = None
    assumed: bool = False
    unscaled: bool = False

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of all bands."""
        return tuple(band for layer in self.layers for band in layer.bands)

    @property
    def products(self) -> tuple[Piece, ...]:
        """What its pixels are made of: itself."""
        return (self,)

    @property
    def files(self) -> tuple[Layer, ...]:
        """All files that its pixels depend on."""
        own = (*self.layers, *((self.mask,) if self.mask is not None else ()))
        return own

    @property
    def order(self) -> tuple[str, str]:
        """
        What pieces are sorted by: the name first, so that it does not matter in which folder they
        lie.
        """
        return self.name, self.layers[0].path


def canonical_band(name: str) -> str:
    """
    Return the common name of a band.

    >>> [canonical_band(name) for name in ("B8", "b02", "Red", "elevation")]
    ['nir', 'blue', 'red', 'elevation']
    """
    code = name.strip().upper()
    match = re.fullmatch(r"B0?(\d{1,2})", code)
    if match:
        code = f"B{int(match[1]):02d}"
    if code in SENTINEL2:
        return SENTINEL2[code]
    return name.strip().lower() if name.strip().lower() in SENTINEL2.values() else name.strip()


def describe_layers(
    path: str, *, bands: Sequence[str] | None, nodata: float | None, place: Place | None = None
) -> list[tuple[Layer, float | None, float | None]]:
    """
    Describe a raster file whose bands may differ: a layer for those of one type, nodata value,
    scale and offset each. Arguments as of :func:`describe_layer`.

    Raises
    ------
    RasterError
        The file is damaged, or no raster that can be used.
    """
    source = open_raster(path)
    try:
        with source:
            return _describe(source, path, bands, nodata, place)
    except CPLE_BaseError as error:
        raise RasterError(f"{path} is damaged: {error}. Fetch or make it again.") from error


def describe_layer(
    path: str, *, bands: Sequence[str] | None, nodata: float | None, place: Place | None = None
) -> tuple[Layer, float | None, float | None]:
    """
    Describe a raster file; also return the scale and offset its bands state, if they do.

    Parameters
    ----------
    path
        File or URL.
    bands
        Names of the bands in file order; None to take them from the file.
    nodata
        Value without a measurement; None to take it from the file, else 0 for whole
        numbers of one band; of fractions, and of several bands, zero in every band.
    place
        Where the raster lies if it does not say so itself.

    Raises
    ------
    RasterError
        It is no raster, has other bands than named, no band names, no CRS with units, or bands
        whose nodata values, scales or offsets differ.
    """
    first, *others = describe_layers(path, bands=bands, nodata=nodata, place=place)
    if others:
        raise RasterError(
            f"{path} has bands of different types, nodata values, scales or offsets. Convert them "
            "to one first."
        )
    return first


def whole_pixels(window: Window) -> tuple[int, int, int, int]:
    """Return column, row, width and height of a window in whole pixels."""
    return round(window.col_off), round(window.row_off), round(window.width), round(window.height)


def open_raster(path: str | Path, **options: Any) -> Any:
    """
    Open a raster file for reading: the one door through which all of them come in.

    Parameters
    ----------
    options
        Of :func:`rasterio.open`, such as ``overview_level``.

    Raises
    ------
    RasterError
        It is no raster, damaged, of another format, or a virtual one that leads elsewhere.
    """
    path = str(path)
    named = re.match(r"/vsi|[A-Za-z][A-Za-z0-9+.-]*://", path) is not None
    driver = None if named else check_file(path)
    if named:
        log_discreetly("rasterio")
    try:
        with anywhere():
            source = rasterio.open(path, driver=driver, **options)
        check_opened(source, path, folder=None if named else Path(path).parent)
        return source
    except (RasterioIOError, OSError, UnicodeError) as error:  # names of files that are no text
        raise RasterError(
            f"{path} cannot be opened as a raster: {str(error).rstrip('.')}. Is it whole? Give a "
            "GeoTIFF, JPEG 2000 or VRT."
        ) from error


@contextmanager
def reading_pixels(path: str) -> Iterator[None]:
    """
    Name the file in the error of a broken block.

    Raises
    ------
    RasterError
        What is read in the block is damaged.
    """
    try:
        yield
    except (RasterioError, OSError) as error:
        reason = str(error.__cause__ or error).rstrip(".")
        raise RasterError(
            f"{path} cannot be read: {reason}. The file is damaged; fetch or make it again."
        ) from error


def _describe(
    source: Any, path: str, bands: Sequence[str] | None, nodata: float | None, place: Place | None
) -> list[tuple[Layer, float | None, float | None]]:
    if not source.count:
        raise RasterError(
            f"{path} has no bands of its own, only sub-datasets. Name one of them, or convert it "
            "to GeoTIFF."
        )
    indexes, alpha = _indexes(source, bands)
    described = [source.descriptions[index - 1] for index in indexes]
    names = _band_names(path, described, bands, alpha)
    crs, transform = source.crs, source.transform
    if crs is None and place is not None:
        crs, transform = place.crs, place.on(source.height, source.width)
    if not np.isfinite(transform).all() or transform.is_degenerate:
        raise RasterError(
            f"{path} is damaged: its pixels have no size ({tuple(transform)[:6]}). Fetch or make "
            "it again."
        )
    metres_per_unit(crs, path)
    layer = Layer(
        path=path,
        bands=names,
        indexes=indexes,
        crs=crs,
        transform=transform,
        width=source.width,
        height=source.height,
        nodata=None,
        dtype=source.dtypes[0],
        block=source.block_shapes[0],
        has_mask=_has_mask(source, alpha),
    )
    alike: dict[tuple[str, float, float, str], list[int]] = {}
    supposed: set[int] = set()
    for index in indexes:
        own = source.nodatavals[index - 1] if nodata is None else nodata
        if own is None and np.dtype(source.dtypes[index - 1]).kind in "ui" and len(indexes) == 1:
            own = 0  # files of one band: Sentinel-2 and Landsat fill with it
            supposed.add(index)
        # as text, in which NaN equals itself
        key = (
            "" if own is None else repr(float(own)),
            source.scales[index - 1],
            source.offsets[index - 1],
            source.dtypes[index - 1],
        )
        alike.setdefault(key, []).append(index)
    found = []
    for (missing, scale, offset, dtype), numbers in alike.items():
        stated = (scale, offset) != (1.0, 0.0)
        part = replace(
            layer,
            bands=tuple(names[indexes.index(number)] for number in numbers),
            indexes=tuple(numbers),
            nodata=float(missing) if missing else None,
            dtype=dtype,
            supposed=supposed >= set(numbers),
        )
        found.append((part, scale if stated else None, -offset / scale if stated else None))
    return found


def _has_mask(source: Any, alpha: int | None) -> bool:
    """Return whether a file has a mask; an alpha band that is taken as a band is none."""
    return any(
        MaskFlags.alpha not in flags or alpha is not None
        for flags in source.mask_flag_enums
        if MaskFlags.per_dataset in flags
    )


def _indexes(source: Any, named: Sequence[str] | None) -> tuple[tuple[int, ...], int | None]:
    """
    Return the numbers of the bands of a file, and of the one left out as alpha.

    GDAL calls the fourth band of many files of red, green, blue and near infrared alpha; it is a
    band if it is named as one.
    """
    marked = [
        index
        for index, use in zip(source.indexes, source.colorinterp, strict=True)
        if use == ColorInterp.alpha
    ]
    if not marked:
        return source.indexes, None
    is_band = (
        all(canonical_band(source.descriptions[i - 1] or "") in SENTINEL2.values() for i in marked)
        if named is None
        else len(named) == source.count
    )
    if is_band:
        return source.indexes, None
    return tuple(index for index in source.indexes if index not in marked), marked[0]


def _band_names(
    path: str,
    described: Sequence[str | None],
    named: Sequence[str] | None,
    alpha: int | None,
) -> tuple[str, ...]:
    more = f" Band {alpha} is marked as alpha; name it too if it is a band." if alpha else ""
    if named is not None and len(named) != len(described):
        found = f"{len(described)} band" + ("s" if len(described) > 1 else "")
        raise RasterError(
            f"{path} has {found}, but {len(named)} are named ({', '.join(named)}). Name every band "
            f"of the file, in order.{more}"
        )
    if named is None:
        named = [canonical_band(name) for name in described if name]
        if len(named) < len(described):
            if len(described) > MOST_UNNAMED:
                more += AS_EMBEDDINGS
            raise RasterError(
                f"{path} does not say what its {len(described)} bands are. Name them in file order "
                f"under scenes.bands, such as [red, green, blue, nir].{more}"
            )
    if len(set(named)) < len(named):
        raise RasterError(
            f"{path}: two bands have the same name ({', '.join(named)}). Every band needs its own."
        )
    return tuple(named)


def metres_per_unit(crs: CRS | None, name: str) -> float:
    """
    Return how many metres a unit of a CRS is (for degrees: of latitude).

    Raises
    ------
    RasterError
        There is no CRS, or it has no units on the ground.
    """
    if crs is None:
        raise RasterError(
            f"{name} has no CRS, so nobody knows where it lies. Assign one, for example with rio "
            "edit-info."
        )
    try:
        known = ProjCRS.from_wkt(crs.to_wkt())
    except (CRSError, RuntimeError) as error:
        raise RasterError(
            f"{name} has a CRS that cannot be understood: {error}. Assign another."
        ) from error
    if known.is_geographic:
        return METRES_PER_DEGREE
    factor = known.axis_info[0].unit_conversion_factor if known.axis_info else 0.0
    if not known.is_projected or not factor:
        raise RasterError(
            f"{name} has the CRS {known.name!r}, which has no units on the ground. "
            "Assign a projected CRS such as EPSG:27700, for example with rio edit-info --crs."
        )
    return float(factor)
