"""Read images of any usual kind into one shape, and tables that name them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from butterfly_sdm.errors import DataError, MissingFileError, MissingPackageError, how_to_install
from butterfly_sdm.plugins.batches import check_groups, split_by_group

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".dcm", ".dicom", ".npy")
PARTS = ("train", "validation", "test")
CACHE_BYTES = 2 << 30


def read_image(path: Path, size_px: int, channels: int) -> np.ndarray:
    """
    Read one image.

    Parameters
    ----------
    path
        PNG, JPEG, BMP, TIFF, DICOM (window applied, MONOCHROME1 inverted, middle frame) or ``.npy``
        (of a stack the middle).
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
    """
    from PIL import Image

    path = Path(path)
    if not path.is_file():
        raise MissingFileError(
            f"There is no image {path}. Paths in the table are relative to the image root."
        )
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            image = Image.fromarray(_eight_bit(_plane(np.load(path, allow_pickle=False))))
        elif suffix in (".dcm", ".dicom") or (not suffix and is_dicom(path)):
            image = Image.fromarray(_dicom_pixels(path))
        else:
            with Image.open(path) as opened:
                opened.load()
                sixteen = opened.mode.startswith(("I", "F"))
                image = (
                    Image.fromarray(_eight_bit(np.asarray(opened, dtype=np.float32)))
                    if sixteen
                    else opened.copy()
                )
    except MissingPackageError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(
            f"{path} is no readable image ({reason}). Remove its row, or repair the file."
        ) from error
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size_px, size_px):
        image = image.resize((size_px, size_px), Image.Resampling.BILINEAR)
    array = np.asarray(image)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


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
    try:
        import pydicom
    except ImportError as error:
        raise MissingPackageError(
            f"DICOM files need pydicom: {how_to_install('medical')}"
        ) from error
    return pydicom.dcmread(path, stop_before_pixels=not pixels)


def _dicom_pixels(path: Path) -> np.ndarray:
    dataset = read_dicom(path)
    from pydicom.pixels import apply_modality_lut, apply_voi_lut, convert_color_space

    values = dataset.pixel_array
    interpretation = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    if frames > 1:
        values = values[frames // 2]
    if int(dataset.get("SamplesPerPixel", 1)) == 3:
        if interpretation.startswith("YBR"):
            values = convert_color_space(values, interpretation, "RGB")
        return values.astype(np.uint8)
    if interpretation == "PALETTE COLOR":
        return _eight_bit(values.astype(np.float32))
    values = apply_voi_lut(apply_modality_lut(values, dataset), dataset)
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
    """

    def __init__(self, sources: Sequence[Path] | np.ndarray, size_px: int, channels: int) -> None:
        if isinstance(sources, np.ndarray) and (sources.dtype != np.uint8 or sources.ndim != 4):
            raise DataError(
                f"Images in memory are uint8 (rows, channels, h, w); these are {sources.dtype} "
                f"{sources.shape}."
            )
        if isinstance(sources, np.ndarray):
            # images[:, None] of grey images has a channel stride of 1 pixel; torch takes that for
            # another memory format, in which the gradient of a convolution was seen to crash.
            sources = sources.reshape(-1).reshape(sources.shape)
        self.sources = sources
        self.size_px = size_px
        self.channels = channels
        self._cache: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.sources)

    def batch(self, rows: np.ndarray) -> Tensor:
        """Return (rows, channels, size_px, size_px) in [0, 1]."""
        if isinstance(self.sources, np.ndarray):
            return torch.from_numpy(self.sources[rows]).float().div_(255)
        wanted = [int(row) for row in rows]
        missing = [row for row in dict.fromkeys(wanted) if row not in self._cache]
        sources = self.sources
        with ThreadPoolExecutor(4) as pool:
            read = dict(
                zip(
                    missing,
                    pool.map(
                        lambda row: read_image(sources[row], self.size_px, self.channels), missing
                    ),
                    strict=True,
                )
            )
        room = CACHE_BYTES // (self.channels * self.size_px**2) - len(self._cache)
        self._cache |= dict(list(read.items())[: max(0, room)])
        stack = np.stack([self._cache[row] if row in self._cache else read[row] for row in wanted])
        return torch.from_numpy(stack).float().div_(255)

    def all(self, rows: np.ndarray, batch_size: int = 256) -> list[np.ndarray]:
        """Cut rows into consecutive batches, for prediction."""
        return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


def read_table(path: Path, columns: Sequence[str], root: Path | None = None) -> pd.DataFrame:
    """
    Read a CSV or Parquet table that names images in the column ``path``.

    Parameters
    ----------
    path
        The table; every value is read as text, an empty one is missing.
    columns
        That must be there, beside ``path``.
    root
        Folder that the paths are relative to; None: that of the table.

    Returns
    -------
    DataFrame
        ``path`` made absolute by ``root``.

    Raises
    ------
    MissingFileError, DataError
        The table is absent, empty, lacks a column or names a file twice.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"There is no table {path}.")
    try:
        table = (
            pd.read_parquet(path)
            if path.suffix == ".parquet"
            else pd.read_csv(path, dtype=str, encoding="utf-8")
        )
    except (ValueError, OSError) as error:
        raise DataError(f"{path} is no readable table: {error}") from error
    missing = [column for column in ("path", *columns) if column not in table.columns]
    if missing:
        raise DataError(
            f"{path} lacks the column {missing[0]!r}; it has "
            f"{', '.join(map(str, table.columns)) or 'none'}."
        )
    if table.empty:
        raise DataError(f"{path} has no row.")
    if table["path"].duplicated().any():
        raise DataError(
            f"{path} names {table['path'][table['path'].duplicated()].iloc[0]} twice. Keep one row "
            "per image."
        )
    base = path.parent if root is None else Path(root)
    return table.assign(path=[str(base / str(name)) for name in table["path"]])


def with_split(
    table: pd.DataFrame,
    fractions: tuple[float, float, float],
    seed: int,
    *,
    group: str,
    label: str | None = None,
) -> pd.DataFrame:
    """
    Give a table the column ``split``: its own, checked, or one drawn by group.

    Raises
    ------
    DataError
        A value of ``split`` is unknown, or a group is in two parts.
    """
    groups = (
        table[group]
        if group in table.columns
        else pd.Series(table.index.astype(str), index=table.index)
    )
    if "split" in table.columns:
        split = table["split"].replace(
            {"valid": "validation", "val": "validation", "training": "train"}
        )
        unknown = set(split) - set(PARTS)
        if unknown:
            raise DataError(
                f"The split {sorted(map(str, unknown))[0]!r} is unknown; the parts are "
                f"{', '.join(PARTS)}."
            )
        check_groups(groups.tolist(), split.tolist(), group)
        return table.assign(split=split)
    labels = (
        None if label is None or label not in table.columns else table[label].astype(str).tolist()
    )
    return table.assign(split=split_by_group(groups.tolist(), fractions, seed, labels))


def find_images(inputs: Path) -> list[Path]:
    """
    List the images that ``inputs`` names: one file, a table with the column ``path``, or all images
    of a folder.

    Raises
    ------
    DataError
        There are none.
    """
    inputs = Path(inputs)
    if inputs.is_dir():
        found = sorted(path for path in inputs.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not found:
            raise DataError(f"{inputs} holds no image; known endings are {', '.join(SUFFIXES)}.")
        return found
    if inputs.suffix.lower() in (".csv", ".parquet"):
        return [Path(path) for path in read_table(inputs, ())["path"]]
    return [inputs]
