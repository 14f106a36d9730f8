"""The bands of a finished map, read by name and block by block."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from rasterio.windows import Window

from butterfly_sdm.errors import DataError, MissingPackageError, did_you_mean, how_to_install
from butterfly_sdm.imagery.products import open_raster, reading_pixels
from butterfly_sdm.mapping.map_file import TILE_PX, read_tags
from butterfly_sdm.mapping.quantity import is_of_species

if TYPE_CHECKING:
    import xarray as xr


class MapReader:
    """
    A finished map.

    Parameters
    ----------
    path
        The GeoTIFF.

    Attributes
    ----------
    names, units
        Of the bands, in order.
    tags
        Metadata by lower-case name.

    Raises
    ------
    MissingFileError, RasterError
        There is no such file, or it is no map of this package.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.tags = read_tags(self.path)
        with open_raster(self.path) as source:
            self.names: tuple[str, ...] = source.descriptions
            self.units: tuple[str, ...] = tuple(unit or "" for unit in source.units)
            self.scales = np.array(source.scales)
            self.crs: Any = source.crs
            self.transform: Any = source.transform
            self.shape: tuple[int, int] = source.shape
            self.nodata = source.nodata

    @property
    def species(self) -> tuple[str, ...]:
        """Bands that are probabilities of a species."""
        layers = {"ensemble spread"}
        return tuple(
            name
            for name, unit in zip(self.names, self.units, strict=True)
            if is_of_species(unit) and name not in layers
        )

    def indexes(self, names: Sequence[str] | None) -> list[int]:
        """
        Return the numbers (from 1) of bands.

        Raises
        ------
        DataError
            There is no band of that name.
        """
        wanted = self.names if names is None else tuple(names)
        for name in wanted:
            if name not in self.names:
                raise DataError(
                    f"{self.path} has no band {name!r}; it has {len(self.names)}: "
                    f"{', '.join(self.names[:5])} ..."
                )
        return [self.names.index(name) + 1 for name in wanted]

    def blocks(self, names: Sequence[str] | None = None) -> Iterator[tuple[Window, np.ndarray]]:
        """Yield windows and their (bands, rows, cols) numbers, NaN where nothing is predicted."""
        indexes = self.indexes(names)
        scales = self.scales[np.array(indexes) - 1]
        with rasterio.Env(GDAL_CACHEMAX=64 * 2**20), open_raster(self.path) as source:
            for row in range(0, self.shape[0], TILE_PX):
                for col in range(0, self.shape[1], TILE_PX):
                    window = Window(
                        col,
                        row,
                        min(TILE_PX, self.shape[1] - col),
                        min(TILE_PX, self.shape[0] - row),
                    )
                    with reading_pixels(str(self.path)):
                        stored = source.read(indexes, window=window)
                    values = stored.astype(np.float64) * scales[:, None, None]
                    yield window, np.where(stored == self.nodata, np.nan, values)

    def centres(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Return x (cols,) and y (rows,) of the centres of the pixels of a window."""
        grid = self.transform
        x = grid.c + grid.a * (window.col_off + np.arange(window.width) + 0.5)
        y = grid.f + grid.e * (window.row_off + np.arange(window.height) + 0.5)
        return x, y


BESIDE = ("lower", "upper", "width", "present")  # bands "SPECIES lower" ...


def map_arrays(source: MapReader, species: Sequence[str] | None = None) -> xr.Dataset:
    """
    Return a map as an xarray data set; see :meth:`butterfly_sdm.mapping.MapResult.to_xarray`.

    Raises
    ------
    MissingPackageError
        xarray is not installed.
    DataError
        There is no species of that name.
    """
    try:
        import xarray as xr
    except ImportError as error:
        raise MissingPackageError(
            f"A map as an xarray data set needs xarray: {how_to_install('xarray')}"
        ) from error
    chosen = list(source.species if species is None else species)
    if unknown := [name for name in chosen if name not in source.species]:
        raise DataError(
            f"{source.path} has no species {unknown[0]!r}."
            + did_you_mean(unknown[0], source.species)
        )
    of_species = {
        "probability": {name: name for name in chosen},
        **{what: {name: f"{name} {what}" for name in chosen} for what in BESIDE},
    }
    taken = {*source.species, *(f"{name} {what}" for name in source.species for what in BESIDE)}
    layers = [name for name in source.names if name not in taken]
    wanted = [name for names in of_species.values() for name in names.values()]
    read = [name for name in (*wanted, *layers) if name in source.names]
    values = np.full((len(read), *source.shape), np.nan, dtype=np.float32)
    for window, block in source.blocks(read):
        values[:, *window.toslices()] = block
    found = dict(zip(read, values, strict=True))
    x, y = source.centres(Window(0, 0, source.shape[1], source.shape[0]))
    data: dict[str, Any] = {}
    for what, names in of_species.items():
        if known := {name: found[band] for name, band in names.items() if band in found}:
            part = xr.DataArray(
                np.stack(list(known.values())),
                coords={"species": list(known), "y": y, "x": x},
                dims=("species", "y", "x"),
            )
            data[what] = part.reindex(species=chosen)
    data |= {name: (("y", "x"), found[name]) for name in layers}
    about = {key: json.dumps(value) for key, value in source.tags.items()}
    return xr.Dataset(
        data,
        coords={"species": chosen, "y": y, "x": x},
        attrs={"crs": source.crs.to_wkt(), "transform": list(source.transform)[:6], **about},
    )
