"""
Arrays of embeddings in Zarr stores: which there are, where they lie, and windows of them.

Stores of version 2 and 3 are read by the library of that name. Where an array lies is told by the
conventions of GeoZarr (``spatial:transform`` and ``proj:code``, of the array, its group or the
store) [1]_, or by those of CF: a grid mapping, and coordinates of evenly spaced pixels.

References
----------
.. [1] Zarr conventions ``spatial`` and ``proj``, https://github.com/zarr-conventions
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from pyproj import CRS as ProjCRS
from pyproj.exceptions import ProjError
from rasterio.crs import CRS
from rasterio.errors import CRSError

from butterfly_sdm.errors import MissingPackageError, RasterError, how_to_install

ROWS = ("y", "lat", "latitude", "northing", "row", "rows")
COLUMNS = ("x", "lon", "longitude", "easting", "column", "columns", "col")
TIMES = ("time", "year", "years", "date")
SCALES = ("scales", "scale")
# Others, such as pickle, would run what is in the store.
CODECS = (
    *("bytes", "transpose", "sharding_indexed", "crc32c", "gzip", "zlib", "zstd", "blosc"),
    *("lz4", "bz2", "lzma", "shuffle", "delta", "fixedscaleoffset", "crc32", "vlen-utf8"),
)
MOST_CHUNK_BYTES = 1 << 30
DEEPEST = 3  # groups below one another


@dataclass(frozen=True)
class ArrayPart:
    """
    Bands of an array at one time.

    Attributes
    ----------
    name
        Path of the array in its store.
    axes
        What each of its dimensions is: ``band``, ``row`` or ``column``, or the number at which
        another one is read.
    """

    name: str
    axes: tuple[str | int, ...]

    def read(self, path: str, array: Any, rows: slice, columns: slice) -> np.ndarray:
        """
        Return stored numbers (bands, rows, columns), or (rows, columns) of one without bands.

        Raises
        ------
        RasterError
            The store is damaged.
        """
        spans: dict[str | int, slice] = {"row": rows, "column": columns, "band": slice(None)}
        where = tuple(spans.get(axis, axis) for axis in self.axes)
        try:
            found = np.asarray(array[where])
        except Exception as error:  # of zarr and of each codec
            raise RasterError(
                f"{path} cannot be read: {self.name}: {_first(error)}. The store is damaged; fetch "
                "or make it again."
            ) from error
        left = [axis for axis in self.axes if isinstance(axis, str)]
        order = [left.index(axis) for axis in ("band", "row", "column") if axis in left]
        return found.transpose(order)


@dataclass(frozen=True)
class StoredArray:
    """
    One array of embeddings of one time, on its grid.

    Attributes
    ----------
    numbers, scales
        The numbers, and the scales of the pixels if there are any.
    year
        As its coordinate of time or its metadata say; None if they do not.
    crs, transform, width, height
        Its grid; the first row may lie in the south.
    bands
        How many.
    dtype, nodata, scale, offset
        What its numbers mean, as far as it says so.
    block
        Height and width of its chunks.
    """

    numbers: ArrayPart
    scales: ArrayPart | None
    year: int | None
    crs: CRS
    transform: Affine
    width: int
    height: int
    bands: int
    dtype: str
    nodata: float | None
    scale: float
    offset: float
    block: tuple[int, int]


def is_store(path: Path) -> bool:
    """Return whether a path is a Zarr store of either version."""
    marks = ("zarr.json", ".zgroup", ".zarray", ".zmetadata")
    return path.is_dir() and (
        path.suffix == ".zarr" or any((path / mark).is_file() for mark in marks)
    )


def open_store(path: str, name: str = "") -> Any:
    """
    Open a store, or an array of one, for reading.

    Raises
    ------
    MissingPackageError
        ``zarr`` is not installed.
    RasterError
        It is no store.
    """
    try:
        import zarr
    except ImportError as error:
        raise MissingPackageError(
            f"{path} is a Zarr store, which needs zarr: {how_to_install('zarr')}."
        ) from error
    try:
        return zarr.open(path, mode="r", path=name)
    except Exception as error:  # of zarr, of codecs and of JSON
        raise RasterError(f"{path} cannot be opened as a Zarr store: {_first(error)}.") from error


def arrays_of(path: str, layer: str | None) -> list[StoredArray]:
    """
    Return the arrays of embeddings of a store, one for each time.

    Parameters
    ----------
    layer
        Name of the array; None: the only one with bands, rows and columns of each group.

    Raises
    ------
    RasterError
        There is none or more than one, or nothing says where it lies.
    """
    top = open_store(path)
    if hasattr(top, "members"):
        groups = list(_groups(top))
    else:
        groups = [_Group({}, "", {top.basename or Path(path).name: top})]
    found: list[StoredArray] = []
    for group in groups:
        chosen = _chosen(path, group, layer)
        if chosen is not None:
            found += _described(path, group, chosen)
    if not found:
        known = [name for group in groups for name in group.paths()]
        raise RasterError(
            f"{path} has no array {layer or 'of bands, rows and columns'}; it has "
            f"{', '.join(known[:8]) or 'none'}. Name it in embeddings.layer; its dimensions have "
            "to be named as band, y and x."
        )
    return found


@dataclass(frozen=True)
class _Group:
    """A group of arrays, and the attributes that it inherits or has."""

    attributes: Mapping[str, Any]
    path: str
    arrays: Mapping[str, Any]

    def full(self, name: str) -> str:
        return f"{self.path}/{name}".strip("/") if self.path else name

    def paths(self) -> list[str]:
        return [self.full(name) for name in self.arrays]


def _groups(group: Any, above: Mapping[str, Any] | None = None, depth: int = 0) -> Iterator[_Group]:
    """Yield a group and those below it, of several resolutions only the finest."""
    own = dict(group.attrs)
    attributes = {**(above or {}), **own}
    coarser = {
        str(level.get("asset"))
        for level in (own.get("multiscales") or {}).get("layout", ())
        if level.get("derived_from") is not None
    }
    members = {name: member for name, member in sorted(group.members()) if name not in coarser}
    arrays = {name: member for name, member in members.items() if not hasattr(member, "members")}
    yield _Group(attributes, group.path, arrays)
    if depth < DEEPEST:
        for name, member in members.items():
            if name not in arrays:
                yield from _groups(member, attributes, depth + 1)


def _dimensions(array: Any) -> tuple[str, ...]:
    named = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    return tuple(str(name) for name in named or ())


def _axes(group: _Group, array: Any) -> dict[str, int] | None:
    """Return the numbers of the dimensions by what they are; None: it has no rows and columns."""
    names = _dimensions(array)
    if len(names) != array.ndim or array.dtype.kind not in "iuf":
        return None
    spatial = array.attrs.get("spatial:dimensions", group.attributes.get("spatial:dimensions"))
    known = {}
    for kind, usual in (("row", ROWS), ("column", COLUMNS), ("time", TIMES)):
        stated = spatial[kind == "column"] if spatial and kind != "time" else None
        at = [i for i, name in enumerate(names) if name == stated or name.lower() in usual]
        if len(at) == 1:
            known[kind] = at[0]
    if not {"row", "column"} <= set(known):
        return None
    rest = [i for i in range(array.ndim) if i not in known.values()]
    wide = [i for i in rest if array.shape[i] > 1] or rest[:1]
    if len(wide) > 1:
        return None
    return known | ({"band": wide[0]} if wide else {})


def _chosen(path: str, group: _Group, layer: str | None) -> str | None:
    """Return the array of embeddings of a group; None: it has none."""
    fit = [name for name, array in group.arrays.items() if "band" in (_axes(group, array) or {})]
    if layer is not None:
        fit = [name for name in fit if layer in (name, group.full(name))]
    others = [name for name in fit if name.lower() not in SCALES]
    fit = others or fit
    if len(fit) > 1:
        raise RasterError(
            f"{path} has several arrays of bands, rows and columns: "
            f"{', '.join(group.full(name) for name in fit[:8])}. Name one in embeddings.layer."
        )
    return fit[0] if fit else None


def _described(path: str, group: _Group, name: str) -> list[StoredArray]:
    array = group.arrays[name]
    axes = _axes(group, array)
    assert axes is not None
    _check(path, group.full(name), array)
    attributes = {**group.attributes, **array.attrs}
    crs, transform = _place(path, group, name, axes)
    beside = next((other for other in group.arrays if other.lower() in SCALES), None)
    chunks = array.chunks
    years = _years(path, group, name, axes)
    found = []
    for at, year in enumerate(years):
        scales = None
        if beside is not None and array.dtype.kind == "i":
            scales = _part(group, beside, at)
            _check(path, group.full(beside), group.arrays[beside])
        found.append(
            StoredArray(
                numbers=_part(group, name, at),
                scales=scales,
                year=year,
                crs=crs,
                transform=transform,
                width=int(array.shape[axes["column"]]),
                height=int(array.shape[axes["row"]]),
                bands=int(array.shape[axes["band"]]),
                dtype=str(array.dtype),
                nodata=_nodata(array),
                scale=float(attributes.get("scale_factor", 1.0)),
                offset=float(attributes.get("add_offset", 0.0)),
                block=(int(chunks[axes["row"]]), int(chunks[axes["column"]])),
            )
        )
    return found


def _part(group: _Group, name: str, time: int) -> ArrayPart:
    axes = _axes(group, group.arrays[name])
    if axes is None:
        raise RasterError(
            f"The scales {group.full(name)} have no rows and columns (y, x). Name their dimensions."
        )
    kinds: list[str | int] = [0] * group.arrays[name].ndim
    for kind, at in axes.items():
        kinds[at] = time if kind == "time" else kind
    return ArrayPart(group.full(name), tuple(kinds))


def _check(path: str, name: str, array: Any) -> None:
    """Refuse arrays whose reading would run code or fill the memory."""
    told = array.metadata.to_dict()
    codecs = [*(told.get("codecs") or ()), *(told.get("filters") or ()), told.get("compressor")]
    for codec in filter(None, codecs):
        kind = str(codec.get("name") or codec.get("id")).removeprefix("numcodecs.")
        if kind not in CODECS or array.dtype.kind == "O":
            raise RasterError(
                f"{path}: the array {name} is stored by {kind!r}, which is not read. Write the "
                "store again with a usual compression such as zstd."
            )
    if math.prod(array.chunks) * array.dtype.itemsize > MOST_CHUNK_BYTES:
        raise RasterError(
            f"{path}: a chunk of the array {name} ({' x '.join(map(str, array.chunks))}) is more "
            "than 1 GiB. Write the store again in smaller chunks."
        )


def _nodata(array: Any) -> float | None:
    """Return the stored number of pixels without a value; 0 is a value unless it is stated."""
    for name in ("_FillValue", "missing_value", "nodata"):
        stated = array.attrs.get(name)
        if isinstance(stated, int | float):
            return float(stated)
    filled = array.metadata.fill_value
    return None if filled is None or not float(filled) else float(filled)


def _years(path: str, group: _Group, name: str, axes: Mapping[str, int]) -> list[int | None]:
    """Return the year of every time of an array; of one without times the one it states."""
    array = group.arrays[name]
    if "time" not in axes:
        stated = {**group.attributes, **array.attrs}
        told = next((stated[key] for key in ("year", "TESSERA_YEAR") if key in stated), None)
        return [int(told) if told is not None else None]
    count = int(array.shape[axes["time"]])
    times = group.arrays.get(_dimensions(array)[axes["time"]])
    if times is None:
        if count == 1:
            return [None]
        raise RasterError(
            f"{path}: nothing says of which years the {count} times of {group.full(name)} are. Add "
            "their coordinate to the store."
        )
    values = _small(path, group.full(name), times)
    if values.dtype.kind != "M" and "since" in (units := str(times.attrs.get("units", ""))):
        step, _, start = units.partition(" since ")
        unit = f"timedelta64[{_UNITS.get(step.strip().lower().rstrip('s'), 'D')}]"
        values = np.datetime64(start.split()[0], "us") + values.astype("i8").astype(unit)
    if values.dtype.kind == "M":
        values = values.astype("datetime64[Y]").astype(int) + 1970
    return [int(value) for value in values.tolist()]


_UNITS = {
    "day": "D",
    "hour": "h",
    "minute": "m",
    "second": "s",
    "millisecond": "ms",
    "microsecond": "us",
    "nanosecond": "ns",
}


def _small(path: str, name: str, array: Any) -> np.ndarray:
    """Read a coordinate as a whole."""
    _check(path, name, array)
    if array.ndim != 1 or array.dtype.kind not in "iufM":
        raise RasterError(f"{path}: a coordinate of {name} is no row of numbers.")
    return np.asarray(array[:])


def _place(path: str, group: _Group, name: str, axes: Mapping[str, int]) -> tuple[CRS, Affine]:
    """Return the CRS and transform of an array."""
    array = group.arrays[name]
    attributes = {**group.attributes, **array.attrs}
    mapping = _grid_mapping(group, array)
    crs = _crs(path, attributes, mapping)
    given = attributes.get("spatial:transform")
    if given is not None and attributes.get("spatial:transform_type", "affine") == "affine":
        transform = Affine(*_numbers(path, given))
        if attributes.get("spatial:registration", "pixel") == "node":
            transform = transform * Affine.translation(-0.5, -0.5)
        return crs, transform
    if "GeoTransform" in mapping:
        return crs, Affine.from_gdal(*_numbers(path, str(mapping["GeoTransform"]).split()))
    names = _dimensions(array)
    starts, steps = [], []
    for kind in ("column", "row"):
        along = group.arrays.get(names[axes[kind]])
        if along is None or along.shape[0] < 2:
            raise RasterError(
                f"{path}: nothing says where {group.full(name)} lies. Add spatial:transform and "
                "proj:code to its attributes, or coordinates and a grid mapping."
            )
        values = _small(path, group.full(name), along).astype(float)
        step = (values[-1] - values[0]) / (len(values) - 1)
        if not step or np.abs(np.diff(values) - step).max() > 1e-3 * abs(step):
            raise RasterError(f"{path}: the pixels of {group.full(name)} are not evenly spaced.")
        starts.append(values[0] - step / 2)
        steps.append(step)
    return crs, Affine(steps[0], 0, starts[0], 0, steps[1], starts[1])


def _grid_mapping(group: _Group, array: Any) -> dict[str, Any]:
    named = str(array.attrs.get("grid_mapping", "spatial_ref")).partition(":")[0]
    other = group.arrays.get(named, group.arrays.get("crs"))
    return {} if other is None else dict(other.attrs)


def _crs(path: str, attributes: Mapping[str, Any], mapping: Mapping[str, Any]) -> CRS:
    own = attributes.get("_CRS")
    texts = [
        *(attributes.get(f"proj:{key}") for key in ("code", "epsg", "wkt2", "projjson")),
        *(mapping.get(key) for key in ("crs_wkt", "spatial_ref")),
        own.get("wkt") if isinstance(own, Mapping) else own,
    ]
    stated = next((text for text in texts if text is not None), None)
    if stated is None:
        raise RasterError(
            f"{path} does not state its CRS. Add proj:code, such as EPSG:32630, to its attributes."
        )
    try:
        if isinstance(stated, Mapping):
            return CRS.from_wkt(ProjCRS.from_json_dict(dict(stated)).to_wkt())
        return CRS.from_epsg(stated) if isinstance(stated, int) else CRS.from_user_input(stated)
    except (CRSError, ProjError, TypeError, ValueError) as error:
        raise RasterError(
            f"{path} states the CRS {str(stated)[:60]!r}, which is unknown: {_first(error)}."
        ) from error


def _numbers(path: str, given: Sequence[Any]) -> list[float]:
    try:
        values = [float(value) for value in given]
    except (TypeError, ValueError):
        values = []
    if len(values) != 6 or not all(map(math.isfinite, values)):
        raise RasterError(
            f"{path} states the transform {str(given)[:80]}, which is no six numbers."
        )
    return values


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
