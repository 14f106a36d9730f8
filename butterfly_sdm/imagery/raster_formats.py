"""Which raster files are opened: known formats, and virtual rasters that lead to such files."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

from butterfly_sdm.errors import RasterError

# GDAL knows 140 more: some ask the network, some run programs, some read any file as pixels.
DRIVERS = ("GTiff", "JP2OpenJPEG", "JP2KAK", "JP2ECW", "JP2MrSID", "HFA", "VRT")

_MAGIC = (
    *(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    *(b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51", b"EHFA_HEADER_TAG"),
)
_BESIDE = (".ovr", ".OVR", ".msk", ".MSK")
_FIRST_BYTES = 512
_LARGEST_VRT = 64 << 20
_DEEPEST = 8
_QUIETLY = threading.Lock()  # threads that silence warnings at once would let them through


def check_file(path: str) -> str | None:
    """
    Refuse a local path that is no plain file, or a virtual raster that leads elsewhere than to
    raster files.

    Returns
    -------
    str or None
        The driver that reads it; None: one of those of JPEG 2000, whichever is there.

    Raises
    ------
    RasterError
        It says what leads where.
    """
    return _check(Path(path), path, _DEEPEST)


def check_opened(source: Any, path: str, *, folder: Path | None) -> None:
    """
    Refuse, and close, an opened raster of another format, or one whose metadata names overviews
    elsewhere: their pixels would be read in place of its own.

    Parameters
    ----------
    folder
        Where it lies; None: on the network.

    Raises
    ------
    RasterError
        As :func:`check_file`.
    """
    try:
        if source.driver not in DRIVERS:
            raise RasterError(
                f"{path} cannot be opened as a raster: it is {source.driver}, which is not read. "
                "Give a GeoTIFF, JPEG 2000 or VRT."
            )
        if source.driver == "VRT" and folder is None:
            check_virtual(source.tags(ns="xml:VRT")["xml:VRT"], path, folder=None)
        _check_overviews(source, path, folder)
    except BaseException:
        source.close()
        raise


def check_virtual(text: str, path: str, *, folder: Path | None, deeper: int = _DEEPEST) -> None:
    """
    Refuse a virtual raster whose bands or sources are no raster files.

    Parameters
    ----------
    text
        Its XML.
    path
        What to call it.
    folder
        Where it lies; None: on the network, where its sources have to lie too.

    Raises
    ------
    RasterError
        It has a raw band, runs Python, asks the network or names another file than a raster.
    """
    if re.search(r"<!(DOCTYPE|ENTITY)", text):
        raise RasterError(f"{path} defines entities of XML, which no virtual raster needs.")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise RasterError(f"{path} is no VRT: {error}. Make it again.") from error
    for element in root.iter():
        tag = element.tag.rpartition("}")[2]
        if element.get("subClass") == "VRTRawRasterBand":
            raise RasterError(
                f"{path} has a raw band, which shows the bytes of any file as pixels. Convert it "
                "to GeoTIFF if you trust it: gdal_translate."
            )
        if tag == "PixelFunctionLanguage" and (element.text or "").strip().lower() == "python":
            raise RasterError(f"{path} holds Python code, which is not run. Convert it to GeoTIFF.")
        held = [element.text or "", *map(str, element.attrib.values())]
        if folder is not None and any(value.strip().startswith("/vsi") for value in held):
            raise RasterError(_elsewhere(path, next(v for v in held if "/vsi" in v).strip()))
        if re.search(r"(Filename|Dataset|File)$", tag) and tag != "VRTDataset":
            named = (element.text or "").strip()
            if named:
                relative = element.get("relativeToVRT", element.get("relativetoVRT")) == "1"
                _check_source(named, path, folder, relative, deeper)


def _check_overviews(source: Any, path: str, folder: Path | None) -> None:
    """Refuse overviews that the metadata, in the file or beside it, looks for in other places."""
    named = source.tags(ns="OVERVIEWS").get("OVERVIEW_FILE", "").removeprefix(":::BASE:::").strip()
    if not named:
        return
    plain = "://" not in named and not named.startswith(("/vsi", "<"))
    if folder is None or not plain or Path(named).parent != Path():
        raise RasterError(
            f"{path} has its overviews in {named[:200]}, another place than beside it. Make it "
            "again without them: gdal_translate."
        )
    _check(folder / named, f"{named}, the overviews of {path},", _DEEPEST - 1)


def _elsewhere(path: str, named: str) -> str:
    return (
        f"{path} leads to {named[:200]}, which is no file of this machine. Name that address among "
        "the scenes yourself if you trust it, or fetch the file first."
    )


def _check_source(named: str, path: str, folder: Path | None, relative: bool, deeper: int) -> None:
    if folder is None:
        if not relative and "://" not in named and not named.startswith("/vsi"):
            raise RasterError(
                f"{path} comes from the network and names the file {named} of this machine."
            )
        return
    if "://" in named or "/vsi" in named or named.startswith("<"):
        raise RasterError(_elsewhere(path, named))
    _check(folder / named if relative else Path(named), f"{named}, which {path} names,", deeper - 1)


def _check(file: Path, called: str, deeper: int) -> str | None:
    """Refuse a file that leads elsewhere; return the driver that reads it, as check_file does."""
    if not file.exists():
        raise RasterError(
            f"{called} cannot be opened as a raster: there is no such file. Give a GeoTIFF, "
            "JPEG 2000 or VRT."
        )
    if not file.is_file():
        kind = "a folder" if file.is_dir() else "a named pipe or device"
        raise RasterError(f"{called} is {kind}, no raster file. Give a GeoTIFF, JPEG 2000 or VRT.")
    with file.open("rb") as stream:
        first = stream.read(_FIRST_BYTES)
    if deeper > 0:  # what GDAL opens unasked: overviews and masks of a raster, of any format
        for ending in _BESIDE:
            beside = file.with_name(file.name + ending)
            if beside.exists():
                _check(beside, f"{beside.name}, which lies beside {called},", deeper - 1)
    if first.startswith(_MAGIC):
        driver = "GTiff" if first[:2] in (b"II", b"MM") else "HFA" if first[:1] == b"E" else None
        if deeper < _DEEPEST:
            state = file.stat()
            _check_source_file(str(file), driver, state.st_size, state.st_mtime_ns)
        return driver
    if b"<VRTDataset" not in first:
        raise RasterError(
            f"{called} cannot be opened as a raster: it is none of the formats that are read. "
            "Is it whole? Give a GeoTIFF, JPEG 2000 or VRT."
        )
    if deeper <= 0 or file.stat().st_size > _LARGEST_VRT:
        raise RasterError(f"{called} is a VRT that is nested too deeply or too large to look at.")
    text = file.read_text(encoding="utf-8", errors="replace")
    check_virtual(text, str(file), folder=file.parent, deeper=deeper)
    return "VRT"


@contextmanager
def anywhere() -> Iterator[None]:
    """Open rasters that do not say where they lie without a warning: it may stand elsewhere."""
    with _QUIETLY, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


@lru_cache(maxsize=10_000)  # every thread opens a mosaic anew
def _check_source_file(path: str, driver: str | None, size: int, time_ns: int) -> None:
    """Look at the metadata of a raster that another leads to: GDAL opens it unasked."""
    del size, time_ns
    try:
        with anywhere():
            source = rasterio.open(path, driver=driver)
        with source:
            _check_overviews(source, path, Path(path).parent)
    except (RasterioIOError, UnicodeError) as error:
        raise RasterError(
            f"{path} cannot be opened as a raster: {str(error).rstrip('.')}. Is it whole?"
        ) from error
