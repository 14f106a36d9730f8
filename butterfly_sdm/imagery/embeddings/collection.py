"""Embeddings of a region: all files of one kind and one year, whatever UTM zone they lie in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from butterfly_sdm.errors import MissingFileError, RasterError
from butterfly_sdm.imagery.discovery import read_metadata, stac_documents
from butterfly_sdm.imagery.embeddings.options import EmbeddingReading
from butterfly_sdm.imagery.embeddings.pixels import (
    MASKS,
    EmbeddingFile,
    Stated,
    describe_array,
    describe_file,
)
from butterfly_sdm.imagery.embeddings.stac_assets import SUFFIXES, embedding_assets
from butterfly_sdm.imagery.embeddings.zarr_store import StoredArray, arrays_of, is_store
from butterfly_sdm.imagery.products import is_remote


@dataclass(frozen=True)
class Embeddings:
    """
    Embeddings of a region: files that share bands, each on its own grid.

    Attributes
    ----------
    files
        In the order of their names.
    bands
        ``e00``, ``e01`` ...
    """

    files: tuple[EmbeddingFile, ...]
    bands: tuple[str, ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files that values depend on."""
        return tuple(path for file in self.files for path in file.paths)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Those that lie on the network."""
        return tuple(file.path for file in self.files if is_remote(file.path))

    @property
    def years(self) -> tuple[int, ...]:
        """Of the files, as far as their names say."""
        return tuple(sorted({file.year for file in self.files if file.year is not None}))

    def told(self) -> str:
        """Return what was understood, in one sentence."""
        zones = sorted({str(file.crs.to_string()) for file in self.files})
        turned = sum(file.upside_down for file in self.files)
        first = self.files[0].decoding
        rule = {
            "none": "numbers as they are",
            "linear": f"stored * {first.scale:g} + {first.offset:g}",
            "signed_square": f"the signed square of stored / {first.scale:g}",
            "pixel_scale": "stored times the scale of the pixel",
        }[first.rule]
        parts = [
            f"{len(self.files)} file{'s' * (len(self.files) > 1)} of {len(self.bands)} bands",
            f"{first.dtype}, {rule}",
            f"of {', '.join(map(str, self.years))}" if self.years else "no year in their names",
            f"in {', '.join(zones[:6])}{' ...' * (len(zones) > 6)}",
        ]
        if turned:
            parts.append(f"{turned} stored from south to north")
        return "; ".join(parts)


def open_embeddings(
    paths: str | Path | Iterable[str | Path], reading: EmbeddingReading | None = None
) -> Embeddings:
    """
    Describe files of embeddings, without reading pixels.

    Parameters
    ----------
    paths
        Rasters, ``.npy`` files of TESSERA, Zarr stores, STAC items or collections, or folders of
        them at any depth, such as ``annual/2023/30N`` of AlphaEarth or what ``geotessera download``
        has written; rasters and STAC also by their addresses.
    reading
        What is stated about them.

    Returns
    -------
    Embeddings

    Raises
    ------
    MissingFileError
        A path does not exist, or no file is of the year asked for.
    RasterError
        A file is damaged or of another kind than the first, or they are of several years.

    Notes
    -----
    The year of a file is the last number from 1980 to 2100 in its name, else in the name of the
    nearest folder; that of an asset is told by its STAC item, that of an array by its coordinate of
    time. Where a GeoTIFF and a VRT of the same name lie in a folder the GeoTIFF is taken:
    AlphaEarth adds such a VRT to turn over files stored from south to north, which are read as they
    are.
    """
    reading = reading or EmbeddingReading()
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    found = dict.fromkeys(one for path in given for one in found_at(path, reading.layer))
    chosen = _of_year(list(found), reading.year)
    files = tuple(one.described(reading) for one in sorted(chosen, key=lambda one: one.order))
    first = files[0]
    for file in files[1:]:
        if len(file.bands) != len(first.bands) or file.decoding != first.decoding:
            raise RasterError(
                f"{file.path} ({len(file.bands)} bands, {_rule(file)}) is not of the same kind as "
                f"{first.path} ({len(first.bands)} bands, {_rule(first)}). Give files of one kind; "
                "others as embeddings of their own."
            )
    return Embeddings(files, first.bands)


@dataclass(frozen=True)
class Found:
    """
    What lies at a path, before it is described.

    Attributes
    ----------
    path
        File, store or address.
    year
        None if nothing says it.
    stated
        What a catalogue says of it.
    array
        Which array of a store.
    """

    path: str
    year: int | None
    stated: Stated | None = None
    array: StoredArray | None = None

    @property
    def order(self) -> tuple[str, str, str]:
        """What files are sorted by: the name first, wherever they lie."""
        array = "" if self.array is None else self.array.numbers.name
        return Path(self.path).name, self.path, array

    def described(self, reading: EmbeddingReading) -> EmbeddingFile:
        """Return the file as it is read."""
        if self.array is not None:
            file = describe_array(self.path, self.array, reading)
        else:
            file = describe_file(self.path, reading, self.stated)
        return replace(file, year=self.year)


def found_at(path: str | Path, layer: str | None = None) -> list[Found]:
    """
    Return the embeddings that a path means.

    Parameters
    ----------
    layer
        Which asset of STAC items, or array of stores.

    Raises
    ------
    MissingFileError
        It does not exist, or is a folder without any.
    RasterError, SourceError, MissingPackageError
        A STAC document or a store in it is damaged or cannot be read.
    """
    if is_remote(str(path)):
        return _at_address(str(path), layer)
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"There are no embeddings {path}. Check embeddings.path.")
    if path.is_file() and path.suffix.lower() in (".json", ".geojson"):
        return _of_stac(read_metadata(path), str(path.resolve()), layer)
    if path.is_file():
        return [Found(str(path), year_of(path))]
    found = _in_folder(path, layer)
    if not found:
        raise MissingFileError(
            f"{path} holds no GeoTIFF and no .npy of embeddings, no Zarr store and no STAC. Check "
            "embeddings.path."
        )
    return found


def _in_folder(folder: Path, layer: str | None) -> list[Found]:
    if is_store(folder):
        return _of_store(folder, layer)
    documents = stac_documents(folder)
    if documents:
        return [one for value, place in documents for one in _of_stac(value, place, layer)]
    entries = sorted(folder.iterdir())
    files = [
        file
        for file in entries
        if file.suffix.lower() in SUFFIXES and file.is_file() and _is_pixels(file)
    ]
    rasters = {file.with_suffix("") for file in files if file.suffix.lower() != ".vrt"}
    files = [
        file for file in files if file.suffix.lower() != ".vrt" or _raster_name(file) not in rasters
    ]
    found = [Found(str(file), year_of(file)) for file in files]
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            found += _in_folder(entry, layer)
    return found


def _at_address(address: str, layer: str | None) -> list[Found]:
    bare = address.partition("?")[0].rstrip("/")
    if bare.endswith((".json", ".geojson")):
        return _of_stac(read_metadata(address), address, layer)
    if bare.endswith((".zarr", ".npy")):
        raise RasterError(
            f"{address} is not read where it lies: only rasters and STAC are. Copy the part of it "
            "that is needed to this machine."
        )
    return [Found(address, year_of(Path(bare)))]


def _of_stac(value: Any, place: str, layer: str | None) -> list[Found]:
    found: list[Found] = []
    for asset in embedding_assets(value, place, layer):
        path = Path(asset.path)
        if not is_remote(asset.path) and is_store(path):
            found += [replace(one, year=one.year or asset.year) for one in _of_store(path, None)]
        elif asset.path.rstrip("/").endswith(".zarr"):
            found += _at_address(asset.path, layer)  # which says that it is not read
        else:
            year = asset.year if asset.year is not None else year_of(path)
            found.append(Found(asset.path, year, asset.stated))
    return found


def _of_store(path: Path, layer: str | None) -> list[Found]:
    return [
        Found(str(path), year_of(path) if array.year is None else array.year, array=array)
        for array in arrays_of(str(path), layer)
    ]


def _is_pixels(file: Path) -> bool:
    if file.suffix == ".npy":
        return not file.stem.endswith("_scales")
    beside = file.with_suffix(".npy").exists()  # the landmask of a tile of TESSERA
    return not beside and not set(MASKS) & set(file.parent.parts)


def _raster_name(vrt: Path) -> Path:
    """Return a VRT's name without its suffix, or both where it is called NAME.tiff.vrt."""
    bare = vrt.with_suffix("")
    return bare.with_suffix("") if bare.suffix.lower() in SUFFIXES else bare


def year_of(file: Path) -> int | None:
    """
    Return the year that the name of a file or of the nearest folder states.

    >>> year_of(Path("annual/2023/30N/x8qqw-0000008192-0000000000.tiff"))
    2023
    >>> year_of(Path("2019/grid_0.05_51.35/grid_0.05_51.35_2024.tiff"))
    2024
    """
    for name in (file.stem, *reversed(file.parent.parts)):
        found = re.findall(r"(?<![\d.])((?:19[89]|20\d)\d)(?![\d]|\.\d)", name)
        if found:
            return int(found[-1])
    return None


def _of_year(found: Sequence[Found], year: int | None) -> list[Found]:
    known = sorted({one.year for one in found if one.year is not None})
    told = "by the names of their folders and files, or as their metadata say"
    if year is None:
        if len(known) > 1:
            raise RasterError(
                f"The embeddings are of {', '.join(map(str, known))}, {told}. State which year: "
                "embeddings.year."
            )
        return list(found)
    if not known:
        return list(found)
    chosen = [one for one in found if one.year == year]
    if not chosen:
        raise MissingFileError(
            f"No embeddings are of {year}; there are those of {', '.join(map(str, known))}, {told}."
            " Check embeddings.year."
        )
    return chosen


def _rule(file: EmbeddingFile) -> str:
    return f"{file.decoding.dtype}, {file.decoding.rule}, nodata {file.decoding.nodata}"
