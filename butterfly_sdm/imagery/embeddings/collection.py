"""Embeddings of a region: all files of one kind and one year, whatever UTM zone they lie in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from butterfly_sdm.errors import MissingFileError, RasterError
from butterfly_sdm.imagery.embeddings.options import EmbeddingReading
from butterfly_sdm.imagery.embeddings.pixels import MASKS, EmbeddingFile, describe_file

SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2", ".npy")


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
        Rasters, ``.npy`` files of TESSERA, or folders of them at any depth, such as
        ``annual/2023/30N`` of AlphaEarth or what ``geotessera download`` has written.
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
    nearest folder. Where a GeoTIFF and a VRT of the same name lie in a folder the GeoTIFF is taken:
    AlphaEarth adds such a VRT to turn over files stored from south to north, which are read as they
    are.
    """
    reading = reading or EmbeddingReading()
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    named = list(dict.fromkeys(file for path in given for file in files_in(Path(path))))
    chosen = _of_year(named, reading.year)
    files = tuple(
        replace(describe_file(file, reading), year=year_of(file))
        for file in sorted(chosen, key=lambda file: (file.name, str(file)))
    )
    first = files[0]
    for file in files[1:]:
        if len(file.bands) != len(first.bands) or file.decoding != first.decoding:
            raise RasterError(
                f"{file.path} ({len(file.bands)} bands, {_rule(file)}) is not of the same kind as "
                f"{first.path} ({len(first.bands)} bands, {_rule(first)}). Give files of one kind; "
                "others as embeddings of their own."
            )
    return Embeddings(files, first.bands)


def files_in(path: Path) -> list[Path]:
    """
    Return the files of embeddings that a path means.

    Raises
    ------
    MissingFileError
        It does not exist, or is a folder without any.
    RasterError
        It is a Zarr store.
    """
    if not path.exists():
        raise MissingFileError(f"There are no embeddings {path}. Check embeddings.path.")
    if path.suffix == ".zarr" or (path / "zarr.json").exists() or (path / ".zgroup").exists():
        raise RasterError(
            f"{path} is a Zarr store, which is not read. Export the region as GeoTIFF, as "
            "geotessera download does."
        )
    if path.is_file():
        return [path]
    found = [
        file
        for file in sorted(path.rglob("*"))
        if file.suffix.lower() in SUFFIXES and file.is_file() and _is_pixels(file)
    ]
    rasters = {file.with_suffix("") for file in found if file.suffix.lower() != ".vrt"}
    found = [
        file for file in found if file.suffix.lower() != ".vrt" or _raster_name(file) not in rasters
    ]
    if not found:
        raise MissingFileError(
            f"{path} holds no GeoTIFF and no .npy of embeddings. Check embeddings.path."
        )
    return found


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


def _of_year(files: Sequence[Path], year: int | None) -> list[Path]:
    years = {file: year_of(file) for file in files}
    known = sorted({found for found in years.values() if found is not None})
    if year is None:
        if len(known) > 1:
            raise RasterError(
                f"The embeddings are of {', '.join(map(str, known))}, by the names of their "
                "folders and files. State which year: embeddings.year."
            )
        return list(files)
    if not known:
        return list(files)
    chosen = [file for file in files if years[file] == year]
    if not chosen:
        raise MissingFileError(
            f"No embeddings are of {year}; there are those of {', '.join(map(str, known))}, by the "
            "names of their folders and files. Check embeddings.year."
        )
    return chosen


def _rule(file: EmbeddingFile) -> str:
    return f"{file.decoding.dtype}, {file.decoding.rule}, nodata {file.decoding.nodata}"
