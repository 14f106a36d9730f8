"""Windows of one file of embeddings, rows from north to south, and the values in them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.windows import Window

from butterfly_sdm.errors import RasterError
from butterfly_sdm.imagery.embeddings.decoding import Decoding, band_names, decoding_of
from butterfly_sdm.imagery.embeddings.options import EmbeddingReading
from butterfly_sdm.imagery.embeddings.zarr_store import ArrayPart, StoredArray, open_store
from butterfly_sdm.imagery.products import (
    Place,
    TurnedOver,
    is_remote,
    metres_per_unit,
    open_raster,
    reading_pixels,
    whole_pixels,
)

MOST_OPEN = 8  # files a thread keeps open
MASKS = ("global_0.1_degree_tiff_all", "landmasks")  # where TESSERA says where its tiles lie

_open = threading.local()

Stored = tuple[np.ndarray, np.ndarray | None]  # (bands, h, w), and scales (h, w) or (bands, h, w)


@dataclass(frozen=True)
class EmbeddingFile:
    """
    One file of embeddings on its own grid, the first row in the north.

    Attributes
    ----------
    path
        A raster, here or at an address; the ``.npy`` of numbers with its scales beside it; or a
        Zarr store.
    crs, transform, width, height
        Its grid; a raster stored from south to north is turned over while it is read.
    bands
        Their names, in order: ``e00``, ``e01`` ...
    decoding
        What its numbers mean.
    block
        Height and width of the blocks in which it is stored.
    upside_down
        Whether its first row lies in the south.
    year
        Of the embeddings, by the names of folders and file; None if they do not say.
    array
        Which array of a store it is.
    """

    path: str
    crs: CRS
    transform: Affine
    width: int
    height: int
    bands: tuple[str, ...]
    decoding: Decoding
    block: tuple[int, int]
    upside_down: bool = False
    year: int | None = None
    array: StoredArray | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file, and the one with its scales; none where it lies at an address."""
        if is_remote(self.path):
            return ()
        own = Path(self.path)
        return (own, scales_of(own)) if own.suffix == ".npy" else (own,)

    @property
    def resolution_m(self) -> float:
        """Side of a pixel in metres (in a CRS of degrees: northwards, approximately)."""
        return abs(self.transform.e) * metres_per_unit(self.crs, self.path)

    def stored(self, window: Window) -> Stored:
        """
        Read numbers as they are stored.

        Parameters
        ----------
        window
            Whole pixels within the file, counted from its north-western corner.

        Returns
        -------
        stored : ndarray, shape (bands, height, width)
        scales : ndarray of float32 or None
            Of the pixels, (height, width) or (bands, height, width).

        Raises
        ------
        RasterError
            The file is damaged.
        """
        column, row, width, height = whole_pixels(window)
        if self.array is not None:
            top = self.height - row - height if self.upside_down else row
            rows, columns = slice(top, top + height), slice(column, column + width)
            numbers, scales = _of_store(self.path, self.array, rows, columns)
            if self.upside_down:
                numbers = numbers[:, ::-1]
                scales = None if scales is None else scales[..., ::-1, :]
            return numbers, scales
        if self.path.endswith(".npy"):
            rows, columns = slice(row, row + height), slice(column, column + width)
            numbers, scales = _arrays(self.path)
            cut = np.moveaxis(np.asarray(numbers[rows, columns]), -1, 0)
            per_pixel = np.asarray(scales[rows, columns])
            if per_pixel.ndim == 3:
                per_pixel = np.moveaxis(per_pixel, -1, 0)
                per_pixel = per_pixel[0] if len(per_pixel) == 1 else per_pixel
            return cut, per_pixel
        source = _raster(self.path)
        with reading_pixels(self.path):
            found = (TurnedOver(source) if self.upside_down else source).read(
                window=Window(column, row, width, height)
            )
        return found, None

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """
        Read the values of a window within the file.

        Returns
        -------
        values : ndarray of float32, shape (bands, height, width)
            NaN in every band of a pixel without a value.
        valid : ndarray of bool, shape (height, width)

        Raises
        ------
        RasterError
            The file is damaged.
        """
        stored, scales = self.stored(window)
        valid = self.decoding.measured(stored, scales)
        values = self.decoding.decode(stored, scales)
        if not valid.all():
            values = np.where(valid, values, np.float32(np.nan))
        return values, valid


@dataclass(frozen=True)
class Stated:
    """
    What the metadata of a catalogue say of a file.

    Attributes
    ----------
    nodata, scale, offset
        Of its numbers; None: nothing.
    place
        Where it lies if it does not say so itself.
    """

    nodata: float | None = None
    scale: float | None = None
    offset: float | None = None
    place: Place | None = None


def describe_file(
    path: str | Path, reading: EmbeddingReading, stated: Stated | None = None
) -> EmbeddingFile:
    """
    Describe a file of embeddings without reading its pixels.

    Parameters
    ----------
    path
        A file, or the address of a raster.
    stated
        What a catalogue says of it.

    Raises
    ------
    RasterError
        It is damaged, rotated, has no CRS, or does not fit what is stated.
    """
    if str(path).endswith(".npy"):
        return _as_read(_describe_pair(Path(path), reading), reading)
    return _as_read(_describe(str(path), reading, stated or Stated()), reading)


def describe_array(path: str, array: StoredArray, reading: EmbeddingReading) -> EmbeddingFile:
    """
    Describe an array of a Zarr store as a file of embeddings.

    Raises
    ------
    RasterError
        As :func:`describe_file`.
    """
    metres_per_unit(array.crs, path)
    decoding = decoding_of(
        reading,
        array.dtype,
        scale=array.scale,
        offset=array.offset,
        nodata=array.nodata,
        scaled_pixels=array.scales is not None,
    )
    found = EmbeddingFile(
        path=path,
        crs=array.crs,
        transform=array.transform,
        width=array.width,
        height=array.height,
        bands=band_names(array.bands),
        decoding=decoding,
        block=array.block,
        array=array,
    )
    return _as_read(found, reading)


def _as_read(found: EmbeddingFile, reading: EmbeddingReading) -> EmbeddingFile:
    """Return a file with its rows counted from the north, if it is as it is stated to be."""
    wanted = reading.known.get("bands", len(found.bands))
    if len(found.bands) != wanted:
        of = f"{reading.preset} has" if reading.bands is None else "embeddings.bands says"
        raise RasterError(
            f"{found.path} has {len(found.bands)} bands, and {of} {wanted}. If only some were "
            "exported, state how many in bands; if it is another raster, leave it out of the "
            "folder."
        )
    if found.transform.e > 0:
        # the same pixels, counted from the north
        turned = found.transform * Affine.translation(0, found.height) * Affine.scale(1, -1)
        found = replace(found, transform=turned, upside_down=True)
    if found.transform.b or found.transform.d or found.transform.a <= 0:
        raise RasterError(
            f"{found.path} is rotated or mirrored. Bring it to a grid that runs north and east "
            "first: gdalwarp."
        )
    return found


def _describe(path: str, reading: EmbeddingReading, stated: Stated) -> EmbeddingFile:
    with open_raster(path) as source:
        if not source.count:
            raise RasterError(f"{path} has no bands of its own. Name one of its sub-datasets.")
        meanings = {
            (source.scales[at], source.offsets[at], repr(source.nodatavals[at]), source.dtypes[at])
            for at in range(source.count)
        }
        if len(meanings) > 1:
            raise RasterError(
                f"{path} has bands of different types, nodata values, scales or offsets. Convert "
                "them to one first."
            )
        crs, transform = source.crs, source.transform
        if crs is None and stated.place is not None:
            crs, transform = stated.place.crs, stated.place.on(source.height, source.width)
        metres_per_unit(crs, path)
        return EmbeddingFile(
            path=path,
            crs=crs,
            transform=transform,
            width=source.width,
            height=source.height,
            bands=band_names(source.count),
            decoding=decoding_of(
                reading,
                source.dtypes[0],
                scale=source.scales[0] if stated.scale is None else stated.scale,
                offset=source.offsets[0] if stated.offset is None else stated.offset,
                nodata=source.nodatavals[0] if stated.nodata is None else stated.nodata,
            ),
            block=source.block_shapes[0],
        )


def _of_store(path: str, array: StoredArray, rows: slice, columns: slice) -> Stored:
    """Read a window of an array of a store as it lies there, and the scales of its pixels."""

    def read(part: ArrayPart) -> np.ndarray:
        opened = _kept((path, part.name), lambda: open_store(path, part.name))
        return part.read(path, opened, rows, columns)

    return read(array.numbers), None if array.scales is None else read(array.scales)


def _describe_pair(path: Path, reading: EmbeddingReading) -> EmbeddingFile:
    numbers, scales = _arrays(str(path))
    mask = next(filter(Path.is_file, _masks(path)), None)
    if mask is None:
        raise RasterError(
            f"Nothing says where {path} lies. Put the landmask of its tile, {path.stem}.tiff, "
            f"beside it or into a folder {MASKS[0]} above it, as geotessera does."
        )
    with open_raster(str(mask)) as source:
        crs, transform, shape = source.crs, source.transform, (source.height, source.width)
    if shape != numbers.shape[:2]:
        raise RasterError(
            f"{path} has {numbers.shape[0]} x {numbers.shape[1]} pixels, and {mask}, which says "
            f"where it lies, {shape[0]} x {shape[1]}: they are of different tiles or versions."
        )
    metres_per_unit(crs, str(mask))
    height, width, count = numbers.shape
    if scales.shape not in ((height, width), (height, width, 1), numbers.shape):
        raise RasterError(
            f"{scales_of(path)} has the shape {scales.shape}; it needs one scale per pixel, "
            f"({height}, {width})."
        )
    decoding = decoding_of(reading, str(numbers.dtype), scaled_pixels=True)
    return EmbeddingFile(
        str(path), crs, transform, width, height, band_names(count), decoding, (64, width)
    )


def _masks(path: Path) -> list[Path]:
    folders = [path.parent, *(above / name for above in path.parents for name in MASKS)]
    return [folder / f"{path.stem}{suffix}" for folder in folders for suffix in (".tiff", ".tif")]


def scales_of(path: Path) -> Path:
    """Return the file with the scales of the pixels of a ``.npy``."""
    return path.with_name(f"{path.stem}_scales.npy")


def _arrays(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Return this thread's view of the numbers (h, w, bands) and their scales, on the disk."""

    def view() -> tuple[np.ndarray, np.ndarray]:
        arrays = []
        for file in (Path(path), scales_of(Path(path))):
            try:
                arrays.append(np.load(file, mmap_mode="r", allow_pickle=False))
            except FileNotFoundError as error:
                raise RasterError(
                    f"There is no file {file}: embeddings of TESSERA are pairs, NAME.npy and "
                    "NAME_scales.npy. Fetch both."
                ) from error
            except (ValueError, OSError, EOFError) as error:
                raise RasterError(
                    f"{file} cannot be read as an array: {error}. Fetch it again."
                ) from error
        if arrays[0].ndim != 3:
            raise RasterError(
                f"{path} has the shape {arrays[0].shape}; it needs (height, width, bands)."
            )
        return arrays[0], arrays[1]

    found: tuple[np.ndarray, np.ndarray] = _kept((path,), view)
    return found


def _raster(path: str) -> Any:
    return _kept((path,), lambda: open_raster(path))


def _kept(key: tuple[str, ...], make: Any) -> Any:
    """Return what a thread has open, those used last; the first of the key is its path."""
    held: OrderedDict[Any, Any] = _open.__dict__.setdefault("held", OrderedDict())
    file = Path(key[0])
    stamp = file.stat().st_mtime_ns if not is_remote(key[0]) and file.exists() else 0
    stamped = *key, stamp
    if stamped not in held:
        held[stamped] = make()
        while len(held) > MOST_OPEN:
            _, old = held.popitem(last=False)
            if hasattr(old, "close"):
                old.close()
    held.move_to_end(stamped)
    return held[stamped]
