"""Pictures of maps: species side by side, and one species of several maps."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from rasterio.enums import Resampling
from rasterio.errors import RasterioIOError

from butterfly_sdm.errors import MissingFileError, RasterError
from butterfly_sdm.figures.picture import SEQUENTIAL, Picture, scale_bar
from butterfly_sdm.imagery.products import open_raster


@dataclass(frozen=True)
class MapBand:
    """
    One band of a map, made small enough to look at: (rows, columns) numbers, NaN for nodata, metres
    per pixel, the unit.
    """

    name: str
    values: np.ndarray
    pixel_m: float
    unit: str = ""


def read_bands(
    path: str | Path, names: Sequence[str] | None = None, *, most_px: int = 512
) -> list[MapBand]:
    """
    Read bands of a map by name, thinned to at most ``most_px`` pixels a side.

    Raises
    ------
    MissingFileError
        There is no such file.
    RasterError
        The map has no band of that name, or cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(
            f"There is no map at {path}. Make one with: butterfly-sdm map RUN SCENE.tif --out "
            "MAP.tif"
        )
    try:
        with open_raster(path) as raster:
            known = [
                name or f"band {number}" for number, name in enumerate(raster.descriptions, start=1)
            ]
            wanted = list(names) if names is not None else known
            unknown = [name for name in wanted if name not in known]
            if unknown:
                raise RasterError(
                    f"{path.name} has no band {unknown[0]!r}. It has {', '.join(known[:8])} ..."
                )
            thin = max(1.0, max(raster.height, raster.width) / most_px)
            shape = (max(1, round(raster.height / thin)), max(1, round(raster.width / thin)))
            bands = []
            for name in wanted:
                index = known.index(name) + 1
                values = raster.read(
                    index, out_shape=shape, masked=True, resampling=Resampling.average
                ).astype(np.float32)
                values = values * raster.scales[index - 1] + raster.offsets[index - 1]
                bands.append(
                    MapBand(
                        name,
                        values.filled(np.nan),
                        abs(raster.transform.a) * thin,
                        raster.units[index - 1] or "",
                    )
                )
            return bands
    except RasterioIOError as error:
        raise RasterError(f"{path} cannot be read as a raster: {error}.") from error


def show_maps(
    maps: Mapping[str, str | Path] | str | Path,
    species: Sequence[str] | None = None,
    *,
    columns: int = 4,
    same_scale: bool = False,
) -> Picture:
    """
    Show species of one map side by side, or the same species of several maps one above the other.

    Parameters
    ----------
    maps
        A map, or several by title (say, a prediction and the truth): one row of panels per map.
    species
        Names of bands; by default the first eight of a single map, the first four of several.
    columns
        Panels in a row, for a single map.
    same_scale
        One colour scale, from 0 to 1, for all panels; otherwise one per species, shared by the maps
        that are compared.

    Returns
    -------
    Picture
        Shows itself at the end of a cell; ``save`` writes it.

    Raises
    ------
    MissingFileError, RasterError
        A map is missing or has no such band.
    """
    several = isinstance(maps, Mapping)
    named = dict(maps) if isinstance(maps, Mapping) else {"": maps}
    first = next(iter(named.values()))
    if species is None:
        species = [band.name for band in read_bands(first, most_px=2)][: 4 if several else 8]
    rows_of = [read_bands(path, species) for path in named.values()]
    across = len(species) if several else min(columns, len(species))
    down = len(named) if several else -(-len(species) // across)
    picture = Picture(2.9 * across, 2.7 * down)
    picture.get_layout_engine().set(wspace=0.03)  # type: ignore[union-attr, call-arg]
    for column in range(len(species)):
        top = (
            1.0
            if same_scale
            else max(float(np.nanmax(row[column].values, initial=1e-6)) for row in rows_of)
        )
        for row, (title, bands) in enumerate(zip(named, rows_of, strict=True)):
            band = bands[column]
            axes = picture.add_subplot(down, across, row * across + column + 1)
            _hatch(axes)
            shown = axes.imshow(
                band.values, cmap=SEQUENTIAL, vmin=0, vmax=top, interpolation="nearest"
            )
            axes.set_title(f"{title}\n{band.name}".strip(), fontsize=8)
            bar = picture.colorbar(shown, ax=axes, shrink=0.75, pad=0.02)
            bar.ax.tick_params(labelsize=6)
            if column == across - 1 or not several:
                bar.set_label(band.unit, fontsize=6)
            if row == 0 and column == 0:
                scale_bar(axes, band.pixel_m)
            axes.set_xticks([])
            axes.set_yticks([])
    return picture


def _hatch(axes: Axes) -> None:
    """Hatch where nothing is drawn, so that it cannot be taken for a low number."""
    axes.set_facecolor("white")
    axes.patch.set(hatch="////", edgecolor="#8d9892", linewidth=0)


def show_trust(path: str | Path, species: str, limits: Mapping[str, float]) -> Picture:
    """
    Show a species of a map, and beside it where the map should not be trusted.

    Parameters
    ----------
    path
        A map.
    species
        Name of its band.
    limits
        Bands of dissimilarity to the training sites, and the largest number of each that is like
        them; empty: the map does not tell.

    Returns
    -------
    Picture
        Shows itself at the end of a cell; ``save`` writes it.

    Raises
    ------
    MissingFileError, RasterError
        The map is missing or has no such band.
    """
    band, *unlike = read_bands(path, [species, *limits])
    picture = Picture(8.4 if unlike else 4.4, 4.0)
    most = [part.values / limits[part.name] for part in unlike]
    outside = np.any([part > 1 for part in most], axis=0) if unlike else None
    panels: list[tuple[str, np.ndarray, str, float | None]] = [
        (band.name, band.values, band.unit, None)
    ]
    if unlike:
        panels.append(("how unlike the training sites", np.fmax.reduce(most), "of the limit", 2))
    for place, (title, values, unit, top) in enumerate(panels, start=1):
        axes = picture.add_subplot(1, len(panels), place)
        _hatch(axes)
        shown = axes.imshow(values, cmap=SEQUENTIAL, vmin=0, vmax=top, interpolation="nearest")
        if outside is not None and outside.any():
            cells = np.where(outside, 1.0, 0.0)
            for colour, width in (("white", 2.2), ("#5b0b4a", 0.9)):  # seen on pale and on dark
                with rc_context({"hatch.color": colour, "hatch.linewidth": width}):
                    axes.contourf(cells, levels=[0.5, 1.5], colors="none", hatches=["\\\\\\\\"])
        axes.set_title(title, fontsize=9)
        bar = picture.colorbar(shown, ax=axes, shrink=0.8)
        bar.ax.tick_params(labelsize=6)
        bar.set_label(unit, fontsize=7)
        scale_bar(axes, band.pixel_m)
        axes.set_xticks([])
        axes.set_yticks([])
    return picture


def show_bands(
    values: np.ndarray,
    units: Mapping[str, str | None],
    *,
    extent: tuple[float, float, float, float],
    axis_unit: str,
    notes: Mapping[str, str] | None = None,
) -> Picture:
    """
    Show bands of one map side by side, each with its own scale, in coordinates.

    Parameters
    ----------
    values
        (bands, rows, columns) numbers, NaN for nodata.
    units
        Of the numbers, by the name of the band.
    extent
        West, east, south and north, in ``axis_unit``.
    axis_unit
        Of the coordinates.
    notes
        Said below the name of a band, such as how good it is; None: nothing.

    Returns
    -------
    Picture
        Shows itself at the end of a cell; ``save`` writes it.
    """
    west, east, south, north = extent
    columns = min(3, len(values))
    rows = -(-len(values) // columns)
    height = 0.3 + 3.2 * max(0.4, min(2.0, (north - south) / (east - west)))
    picture = Picture(4.2 * columns, height * rows)
    for place, ((name, unit), band) in enumerate(zip(units.items(), values, strict=True), start=1):
        axes = picture.add_subplot(rows, columns, place)
        _hatch(axes)
        image = axes.imshow(band, cmap=SEQUENTIAL, vmin=0, extent=extent, interpolation="nearest")
        note = textwrap.fill((notes or {}).get(name) or "", 52)
        axes.set_title(f"{name}\n{note}".strip(), fontsize=9 if not note else 8)
        axes.tick_params(labelsize=6)
        axes.ticklabel_format(useOffset=False, style="plain")
        axes.set_xlabel(axis_unit, fontsize=6)
        bar = picture.colorbar(image, ax=axes)
        bar.ax.tick_params(labelsize=6)
        bar.set_label(unit or "", fontsize=7)
    return picture
