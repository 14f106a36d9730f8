"""Read images of any usual kind into one shape."""

import logging
import warnings
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from butterfly_sdm.errors import DataError, MissingFileError, MissingPackageError, how_to_install

logger = logging.getLogger("butterfly_sdm.plugins")

INSIDE = "::"  # between a file, an array in it and a row
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".dcm", ".dicom", ".npy")
CACHE_BYTES = 2 << 30
# How pydicom says that it lacks a decoder, or that those it has do not know this compression.
_UNDECODED = ("missing dependencies", "raised by all available plugins")
Sources = Sequence[str | Path] | np.ndarray


def read_image(path: Path, size_px: int, channels: int) -> np.ndarray:
    """
    Read one image.

    Parameters
    ----------
    path
        PNG, JPEG, BMP, TIFF, DICOM (window applied, MONOCHROME1 inverted, colours as red, green
        and blue however they are stored, middle frame), ``.npy`` (of a stack the middle) or
        ``FILE.npz::ARRAY::ROW``.
    size_px
        Side of the square it is resized to.
    channels
        1 (grey) or 3 (red, green, blue).

    Returns
    -------
    ndarray of shape (channels, size_px, size_px), uint8

    Raises
    ------
    MissingFileError, DataError
        The file is absent, or no readable image.
    MissingPackageError
        What reads it is not installed: pydicom, or a decoder of its pixels.
    """
    from PIL import Image, ImageOps

    path = Path(path)
    place, inside, member = str(path).partition(INSIDE)
    if not Path(place).is_file():
        raise MissingFileError(
            f"There is no image {path}. Paths in the table are relative to the image root."
        )
    suffix = path.suffix.lower()
    try:
        if inside:
            name, _, row = member.partition(INSIDE)
            pixels = _array(place, name)[int(row)].squeeze()
            if pixels.ndim == 3 and pixels.shape[-1] != 3:  # channels first
                pixels = pixels.transpose(1, 2, 0)
            image = Image.fromarray(_eight_bit(pixels))
        elif suffix == ".npy":
            image = Image.fromarray(_eight_bit(_plane(np.load(path, allow_pickle=False))))
        elif suffix in (".dcm", ".dicom") or (not suffix and is_dicom(path)):
            image = Image.fromarray(_dicom_pixels(path))
        else:
            with Image.open(path) as opened:
                image = ImageOps.exif_transpose(opened)  # upright, as viewers show it
            if image.mode.startswith(("I", "F")):
                image = Image.fromarray(_eight_bit(np.asarray(image, dtype=np.float32)))
    except MissingPackageError:
        raise
    except Exception as error:
        if any(words in str(error) for words in _UNDECODED) and find_spec("libjpeg") is None:
            raise MissingPackageError(
                f"The pixels of {path} are compressed, and no decoder for them is installed. "
                "Install one: pip install pylibjpeg pylibjpeg-openjpeg pylibjpeg-libjpeg"
            ) from error
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(
            f"{path} is no readable image ({reason}). Remove it, or repair the file."
        ) from error
    return fit_image(image, size_px, channels)


def check_some_readable(reasons: Collection[str], count: int, what: str = "images") -> str:
    """
    Refuse ``count`` files if there is a reason for each of them why it cannot be read; return the
    first.

    Raises
    ------
    DataError
        Tells the first.
    """
    first = next(iter(reasons), "")
    if reasons and len(reasons) == count:
        raise DataError(f"None of the {count} {what} can be read. The first: {first}")
    return first


def fit_image(image: Any, size_px: int, channels: int) -> np.ndarray:
    """Return an image of Pillow as (channels, size_px, size_px), uint8."""
    from PIL import Image

    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size_px, size_px):
        image = image.resize((size_px, size_px), Image.Resampling.BILINEAR)
    array = np.asarray(image)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """
    Read the arrays of an ``.npz`` file by name.

    Raises
    ------
    DataError
        It is no such file, or holds pickled objects.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, BadZipFile) as error:
        # NumPy's own words would recommend to unpickle the file.
        raise DataError(
            f"{path} is no readable .npz of plain arrays. Write it again with numpy.savez."
        ) from error


@lru_cache(maxsize=4)
def _array(path: str, name: str) -> np.ndarray:
    values = read_arrays(Path(path))[name]
    if values.dtype.kind in "iu" and values.size and values.min() >= 0 and values.max() <= 255:
        return values.astype(np.uint8)  # bytes in wider integers keep their brightness
    return values


def is_dicom(path: Path) -> bool:
    """Say whether a file has the DICOM mark after its preamble."""
    with Path(path).open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_dicom(path: Path, *, pixels: bool = True) -> Any:
    """
    Read a DICOM file with pydicom.

    Raises
    ------
    MissingPackageError
        pydicom is not installed.
    """
    pydicom = optional_package("pydicom", "DICOM files need pydicom", "medical")
    # It would tell each oddity of a file twice, and with its traceback each decoder that failed
    # before it raises the reason.
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="pydicom")
    return pydicom.dcmread(path, stop_before_pixels=not pixels)


def optional_package(module: str, need: str, extra: str) -> Any:
    """
    Import a module that comes with an extra of the package.

    Raises
    ------
    MissingPackageError
        It is not installed; begins with ``need``.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingPackageError(f"{need}: {how_to_install(extra)}") from error


def _dicom_pixels(path: Path) -> np.ndarray:
    dataset = read_dicom(path)
    from pydicom.pixels import processing

    values: np.ndarray = dataset.pixel_array  # of colours red, green, blue, however stored
    interpretation = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    if frames > 1:
        values = values[frames // 2]
    if int(dataset.get("SamplesPerPixel", 1)) == 3:
        return (values >> max(0, int(dataset.get("BitsStored", 8)) - 8)).astype(np.uint8)
    if interpretation == "PALETTE COLOR":
        colours: np.ndarray = processing.apply_color_lut(values, dataset)[..., :3]
        return (colours >> 8 * (colours.itemsize - 1)).astype(np.uint8)
    values = processing.apply_voi_lut(processing.apply_modality_lut(values, dataset), dataset)
    values = _eight_bit(np.asarray(values, dtype=np.float32))
    return 255 - values if interpretation == "MONOCHROME1" else values


def _plane(values: np.ndarray) -> np.ndarray:
    if values.ndim == 3 and values.shape[-1] != 3:
        values = values[len(values) // 2]
    if values.ndim not in (2, 3) or not values.size:
        raise ValueError(f"an array of shape {values.shape} is no image")
    return values if values.dtype == np.uint8 else values.astype(np.float32)


def _eight_bit(values: np.ndarray) -> np.ndarray:
    """Stretch the finite values over 0..255; bytes stay as they are."""
    if values.dtype == np.uint8:
        return values
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError("it holds no finite value")
    low, high = float(values[finite].min()), float(values[finite].max())
    scaled = (np.where(finite, values, low) - low) * (255 / (high - low) if high > low else 0)
    return scaled.round().astype(np.uint8)


class Images:
    """
    Images by row, read when first asked for and kept while memory allows.

    Parameters
    ----------
    sources
        One path per row, or an array (rows, channels, h, w) of uint8.
    size_px, channels
        See :func:`read_image`.
    tolerant
        What cannot be read is black and noted in ``unreadable``, instead of an error.

    Attributes
    ----------
    unreadable
        Why an image could not be read, by its row.
    """

    def __init__(
        self, sources: Sources, size_px: int, channels: int, *, tolerant: bool = False
    ) -> None:
        if isinstance(sources, np.ndarray):
            if sources.dtype != np.uint8 or sources.ndim != 4:
                has = f"{sources.dtype} {sources.shape}"
                raise DataError(
                    f"Images in memory are uint8 (rows, channels, h, w); these are {has}."
                )
            # images[:, None] of grey images has a channel stride of 1 pixel; torch takes that for
            # another memory format, in which the gradient of a convolution was seen to crash.
            sources = sources.reshape(-1).reshape(sources.shape)
        self.sources, self.size_px, self.channels = sources, size_px, channels
        self.tolerant = tolerant
        self.unreadable: dict[int, str] = {}
        self._cache: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def rows(self) -> np.ndarray:
        """All rows (n,)."""
        return np.arange(len(self.sources))

    def batch(self, rows: np.ndarray) -> Tensor:
        """Return (rows, channels, size_px, size_px) in [0, 1]."""
        return torch.from_numpy(self.array(rows)).float().div_(255)

    def array(self, rows: np.ndarray) -> np.ndarray:
        """Return (rows, channels, size_px, size_px), uint8."""
        if isinstance(self.sources, np.ndarray):
            return np.asarray(self.sources[rows])
        wanted = rows.tolist()
        missing = [row for row in dict.fromkeys(wanted) if row not in self._cache]
        with ThreadPoolExecutor(4) as pool:
            read = dict(zip(missing, pool.map(self._read, missing), strict=True))
        found = self._cache | read
        room = CACHE_BYTES // (self.channels * self.size_px**2) - len(self._cache)
        self._cache |= dict(list(read.items())[: max(0, room)])
        return np.stack([found[row] for row in wanted])

    def readable(self, rows: np.ndarray) -> np.ndarray:
        """
        Return those of ``rows`` whose images can be read; the log says which cannot.

        Raises
        ------
        DataError
            None can.
        """
        if isinstance(self.sources, np.ndarray) or not len(rows):
            return rows
        self.tolerant = True
        for start in range(0, len(rows), 256):
            self.array(rows[start : start + 256])
        bad = {row: self.unreadable[row] for row in rows.tolist() if row in self.unreadable}
        if not bad:
            return rows
        first = check_some_readable(bad.values(), len(rows))
        message = "%d of %d images cannot be read and are left out. The first: %s"
        logger.warning(message, len(bad), len(rows), first)
        return np.setdiff1d(rows, list(bad))

    def _read(self, row: int) -> np.ndarray:
        try:
            return read_image(Path(self.sources[row]), self.size_px, self.channels)
        except (DataError, MissingFileError, MissingPackageError) as error:
            if not self.tolerant:
                raise
            self.unreadable[row] = str(error)
            return np.zeros((self.channels, self.size_px, self.size_px), np.uint8)
