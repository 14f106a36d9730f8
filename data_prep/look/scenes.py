"""Look at a scene as it is understood, before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import rasterio.warp
from rasterio.windows import Window

from butterfly_sdm.errors import ButterflySDMError, MissingFileError, RasterError
from butterfly_sdm.imagery.embeddings.zarr_store import is_store
from butterfly_sdm.imagery.grids import pixel_m
from butterfly_sdm.imagery.pixels import measured
from butterfly_sdm.imagery.products import AS_EMBEDDINGS, open_raster
from butterfly_sdm.imagery.scene import Scene, open_scene
from butterfly_sdm.imagery.spectral_check import implausible, sample_pixels
from data_prep.imagery.options import TileOptions

USUAL_M: float = TileOptions.model_fields["resolution_m"].default
_USUAL = {3: ("red", "green", "blue"), 4: ("red", "green", "blue", "nir")}
_PIECES, _PIECE_PX = 5, 256


@dataclass(frozen=True)
class BandSeen:
    """
    A band of a scene.

    Attributes
    ----------
    name
        As it was understood, or as the file has it where it was not.
    low, median, high
        Reflectance that 2, 50 and 98 % of the pixels looked at stay below; stored values where the
        scene was not understood.
    """

    name: str
    low: float
    median: float
    high: float


@dataclass(frozen=True)
class SceneSeen:
    """
    What rasters hold, as they were understood.

    Attributes
    ----------
    paths
        Files and folders, together one mosaic.
    facts
        CRS, resolution, size, nodata, scale and extent, in words.
    bands
        In order.
    suggested
        Names to state, where the files have none.
    missing
        Why the scene cannot be used; ``""`` if it can.
    doubts
        What looks wrong with the pixels.
    bounds
        West, south, east and north in degrees.
    picture
        (height, width, 3) preview, 0 to 1; None where there are no three bands.
    """

    paths: tuple[Path, ...]
    facts: dict[str, str]
    bands: tuple[BandSeen, ...] = ()
    suggested: tuple[str, ...] = ()
    missing: str = ""
    doubts: tuple[str, ...] = ()
    bounds: tuple[float, float, float, float] | None = None
    picture: np.ndarray | None = field(default=None, repr=False)

    def settings(self) -> dict[str, tuple[object, str]]:
        """Return the settings of ``build.scenes`` that fit, each with the reason."""
        found: dict[str, tuple[object, str]] = {"paths": ([str(path) for path in self.paths], "")}
        if self.suggested:
            found["bands"] = (
                list(self.suggested),
                "the usual order for so many bands, which no file confirms: check it",
            )
        return found


def look_at_scene(paths: Sequence[Path]) -> SceneSeen:
    """
    Look at rasters, folders of them or products, whether they are understood or not.

    Raises
    ------
    MissingFileError
        A path does not exist.
    """
    paths = tuple(Path(path) for path in paths)
    for path in paths:
        if is_store(path):
            why = f"{path} is a Zarr store, which is read as embeddings alone.{AS_EMBEDDINGS}"
            return SceneSeen(paths, {}, missing=why)
    try:
        return _of_scene(open_scene(paths), paths)
    except MissingFileError:
        raise
    except ButterflySDMError as error:
        told = _of_file(paths, str(error))
    if not told.suggested:
        return told
    try:
        named = _of_scene(open_scene(paths, bands=told.suggested), paths)
    except ButterflySDMError:
        return replace(told, suggested=())
    return replace(
        named, facts={**told.facts, **named.facts}, suggested=told.suggested, missing=told.missing
    )


def _of_scene(scene: Scene, paths: tuple[Path, ...]) -> SceneSeen:
    bounds = rasterio.warp.transform_bounds(scene.crs, "EPSG:4326", *scene.bounds)
    pixels = _pixels(scene)
    sample = sample_pixels(
        pixels, bands=scene.bands, nodata=scene.nodata, scale=scene.scale, offset=scene.offset
    )
    share = measured(pixels, scene.nodata).all(axis=1).mean()
    unlike = abs(pixel_m(scene) / USUAL_M - 1) > 0.1
    facts = {
        "files": ", ".join(Path(path).name for path in scene.paths[:4])
        + (f" and {len(scene.paths) - 4} more" if len(scene.paths) > 4 else ""),
        "CRS": f"{scene.crs.to_string()}",
        "resolution": f"{scene.resolution_m:g} m"
        + (f"; tiles have {USUAL_M:g} m unless tiles.resolution_m says otherwise" * unlike),
        "size": f"{scene.width:,} x {scene.height:,} pixels, "
        f"{scene.width * scene.resolution_m / 1000:,.1f} x "
        f"{scene.height * scene.resolution_m / 1000:,.1f} km",
        "extent": _degrees(bounds),
        "nodata": f"{scene.nodata}; {share:.0%} of the pixels looked at are measured",
        "reflectance": f"(value - {scene.offset:g}) * {scene.scale:g}",
    }
    reflectance = sample.reflectance
    bands = tuple(BandSeen(name, *_percentiles(reflectance[name])) for name in scene.bands)
    doubts = list(implausible(sample))
    if not doubts and not {"red", "nir"} <= set(scene.bands):
        doubts.append("Without a red and a nir band nobody can check the order of the bands.")
    return SceneSeen(
        paths, facts, bands, doubts=tuple(doubts), bounds=bounds, picture=_preview(scene, pixels)
    )


def _pixels(scene: Scene) -> np.ndarray:
    """Read a lattice of small windows: (windows, bands, height, width)."""
    side = min(_PIECE_PX, scene.width, scene.height)
    rows = np.linspace(0, scene.height - side, _PIECES).astype(int)
    columns = np.linspace(0, scene.width - side, _PIECES).astype(int)
    starts = sorted({(int(row), int(column)) for row in rows for column in columns})
    return np.stack([scene.read(Window(column, row, side, side))[0] for row, column in starts])


def _preview(scene: Scene, pixels: np.ndarray) -> np.ndarray | None:
    """Return the middle window as red, green and blue, stretched to what it holds."""
    chosen: list[str] = [band for band in ("red", "green", "blue") if band in scene.bands]
    if len(chosen) < 3:
        chosen = list(scene.bands[:3])
    if len(chosen) < 3:
        return None
    middle = pixels[len(pixels) // 2][[scene.bands.index(band) for band in chosen]]
    values = middle.astype(np.float32)
    values[:, ~measured(middle, scene.nodata).all(axis=0)] = np.nan
    if not np.isfinite(values).any():
        return None
    low, high = np.nanpercentile(values, (2, 98))
    scaled = np.clip((values - low) / max(high - low, 1.0), 0, 1)
    picture: np.ndarray = np.nan_to_num(scaled, nan=1.0).transpose(1, 2, 0)
    return picture


def _of_file(paths: tuple[Path, ...], missing: str) -> SceneSeen:
    """Tell what the first raster says of itself where the scene is not understood."""
    try:
        with open_raster(str(paths[0])) as file:
            descriptions = [
                text or f"band {number}" for number, text in enumerate(file.descriptions, start=1)
            ]
            side = min(512, file.width, file.height)
            values = file.read(
                window=Window((file.width - side) // 2, (file.height - side) // 2, side, side)
            )
            facts = {
                "CRS": file.crs.to_string() if file.crs else "none",
                "size": f"{file.width:,} x {file.height:,} pixels, {file.count} bands",
                "values": f"{values.dtype}, nodata {file.nodata}",
            }
            nodata = np.nan if file.nodata is None else file.nodata
            there = np.isfinite(values) & measured(values, nodata)
            bands = tuple(
                BandSeen(name, *_percentiles(band[known].astype(np.float64)))
                for name, band, known in zip(descriptions, values, there, strict=True)
            )
            unnamed = file.crs is not None and not any(file.descriptions)
            return SceneSeen(
                paths,
                facts,
                bands,
                suggested=_USUAL.get(file.count, ()) if unnamed else (),
                missing=missing,
            )
    except (RasterError, OSError):
        return SceneSeen(paths, {}, missing=missing)


def _percentiles(values: np.ndarray) -> tuple[float, float, float]:
    if not values.size:
        return (float("nan"),) * 3
    low, median, high = np.percentile(values, (2, 50, 98)).tolist()
    return low, median, high


def _degrees(bounds: tuple[float, float, float, float]) -> str:
    west, south, east, north = bounds
    return f"{west:.4f} to {east:.4f} E, {south:.4f} to {north:.4f} N"
