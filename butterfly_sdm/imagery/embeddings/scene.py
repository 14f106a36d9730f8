"""Embeddings of a region as a scene, so that tiles and maps are made of them as of reflectance."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rasterio.windows import Window

from butterfly_sdm.errors import RasterError
from butterfly_sdm.imagery.composites.stacks import Stack
from butterfly_sdm.imagery.embeddings.collection import open_embeddings
from butterfly_sdm.imagery.embeddings.options import EmbeddingReading
from butterfly_sdm.imagery.embeddings.pixels import EmbeddingFile, scales_of
from butterfly_sdm.imagery.mosaic import mosaic_grid
from butterfly_sdm.imagery.pixels import PixelType, fits, smallest_type, without_value
from butterfly_sdm.imagery.products import Layer, Piece, metres_per_unit
from butterfly_sdm.imagery.reader import Reader
from butterfly_sdm.imagery.scene import Scene


@dataclass(frozen=True, kw_only=True)
class DecodedFile(Stack):
    """
    A file that GDAL does not read: an array of a store as it is stored, or, where pixels have a
    scale each, decoded to fractions.

    Attributes
    ----------
    source
        Reads it.
    """

    source: EmbeddingFile

    @property
    def products(self) -> tuple[Piece, ...]:
        """The file itself."""
        return (self,)

    @property
    def files(self) -> tuple[Layer, ...]:
        """The file of numbers, and that of their scales; or the store."""
        (layer,) = self.layers
        if self.source.array is not None:
            return (layer,)
        return layer, replace(layer, path=str(scales_of(Path(layer.path))))

    def fill(self, scene: Reader, window: Window, out: np.ndarray) -> np.ndarray:
        """Fill a window with numbers in the bands of the scene; return where there are any."""
        (layer,) = self.layers
        if layer.dtype == "float32":
            values, valid = self.source.read(window)
        else:
            values, _ = self.source.stored(window)
            valid = layer.measured(values)
            values = np.where(valid, values, values.dtype.type(scene.nodata))
        np.copyto(out, values[[layer.bands.index(band) for band in scene.bands]])
        return valid


def open_embedding_scene(
    paths: str | Path | Iterable[str | Path], reading: EmbeddingReading | None = None
) -> Scene:
    """
    Describe files of embeddings as one mosaic, without reading pixels.

    The numbers of the scene are those of the files, in their own type, with the rule that decodes
    them; files with a scale for each pixel are read as the values themselves (float32).

    Parameters
    ----------
    paths, reading
        As of :func:`butterfly_sdm.imagery.embeddings.collection.open_embeddings`.

    Returns
    -------
    Scene
        With the bands ``e00``, ``e01`` ... Where the rule is not linear, pixels on another grid are
        the nearest ones: a mean of square roots is not the root of a mean.

    Raises
    ------
    MissingFileError, RasterError
        There are no such files, or they do not fit together.
    """
    found = open_embeddings(paths, reading)
    rule = found.files[0].decoding
    dtype: PixelType = "float32"
    if rule.rule != "pixel_scale":
        dtype = smallest_type([rule.dtype], found.files[0].path)
    nodata = rule.nodata if rule.nodata is not None and fits(rule.nodata, dtype) else None
    own = without_value(dtype) if nodata is None or dtype == "float32" else int(nodata)
    root = rule.scale if rule.rule == "signed_square" else None
    linear = rule.rule == "linear"
    pieces = tuple(
        sorted((_piece(file, linear) for file in found.files), key=lambda piece: piece.order)
    )
    crs, transform, width, height = mosaic_grid(pieces)
    return Scene(
        bands=found.bands,
        crs=crs,
        transform=transform,
        width=width,
        height=height,
        nodata=own,
        scale=pieces[0].scale,
        offset=pieces[0].offset,
        resolution_m=abs(transform.e) * metres_per_unit(crs, "the embeddings"),
        pieces=pieces,
        resampling="bilinear" if root is None else "nearest",
        dtype=dtype,
        signed_square=root,
    )


def _piece(file: EmbeddingFile, linear: bool) -> Piece:
    rule = file.decoding
    paired = rule.rule == "pixel_scale"
    alone = paired or file.array is not None  # of GDAL
    missing = rule.nodata if rule.nodata is not None else without_value(rule.dtype)
    missing = float("nan") if paired else float(missing)
    layer = Layer(
        path=file.path,
        bands=file.bands,
        indexes=tuple(range(1, len(file.bands) + 1)),
        crs=file.crs,
        transform=file.transform,
        width=file.width,
        height=file.height,
        nodata=missing,
        dtype="float32" if paired else rule.dtype,
        block=file.block,
        has_mask=alone,
        upside_down=file.upside_down and not alone,
    )
    scale = rule.scale if linear else 1.0
    offset = -rule.offset / rule.scale if linear else 0.0
    name = Path(file.path).name
    if file.array is not None:
        name = f"{name}/{file.array.numbers.name}"
    date = "" if file.year is None else f"{file.year}-01-01"
    if not alone:
        return Piece(name, (layer,), missing, scale, offset, date=date)
    return DecodedFile(name, (layer,), missing, scale, offset, date=date, source=file)


def check_bands(scene: Scene, bands: Iterable[str]) -> None:
    """
    Refuse bands that are stated and no band of embeddings.

    Raises
    ------
    RasterError
        One is not.
    """
    for band in bands:
        if band not in scene.bands:
            raise RasterError(
                f"Embeddings have no band {band!r}; theirs are {scene.bands[0]} to "
                f"{scene.bands[-1]}. Leave tiles.bands out to take all of them."
            )
