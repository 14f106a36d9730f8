"""Read layers of maps: GeoPackage, shapefile, GeoJSON, KML and other files that GDAL knows."""

from __future__ import annotations

import glob
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyogrio

from butterfly_sdm.errors import RecordsError
from data_prep.records.files.cells import as_text, unique_names
from data_prep.records.files.containers import is_zip, open_container
from data_prep.records.files.geometry import PLACES, places_of
from data_prep.records.readers.reader import TERMS, Block

SUFFIXES = (".gpkg", ".shp", ".geojson", ".kml", ".kmz", ".fgb", ".gml", ".gpx", ".sqlite")
_IN_ZIP = (".shp", ".gpkg", ".geojson")
_ROWS = 50_000
_SHORTEST = 10  # letters that a shapefile keeps of a name
_OTHERS = ("occurrenceID", "identificationVerificationStatus")
_NO_RECORDS = ("layer_styles", "qgis_projects")


@dataclass
class LayerRows:
    """A layer of a map; see :class:`data_prep.records.files.stored.Rows`."""

    path: Path
    layer: str
    where: str
    names: dict[str, str]  # name that is told: name in the file
    crs: str | None
    placed: bool
    features: int
    bytes: int
    known: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, those that stand for the geometry last."""
        return (*self.names, *(PLACES.values() if self.placed else ()))

    def blocks(self, wanted: Mapping[str, str]) -> Iterator[tuple[Block, int]]:
        """
        Yield the wanted columns.

        Raises
        ------
        RecordsError
            The file is damaged.
        """
        done = 0
        stored = [name for name in wanted if name in self.names]
        try:
            with (
                warnings.catch_warnings(),
                pyogrio.raw.open_arrow(
                    _address(self.path),
                    layer=self.layer,
                    columns=[self.names[name] for name in stored],
                    read_geometry=self.placed,
                    batch_size=_ROWS,
                    use_pyarrow=True,
                ) as (meta, batches),
            ):
                warnings.simplefilter("ignore")
                for batch in batches:
                    rows = self._texts(batch, stored, wanted, meta.get("geometry_name"))
                    numbers = np.arange(done + 1, done + 1 + batch.num_rows)
                    done += batch.num_rows
                    block = Block(rows, pl.Series("row", numbers, dtype=pl.UInt32))
                    yield block, self.bytes * done // max(self.features, done, 1)
        except (pyogrio.errors.DataSourceError, pa.ArrowException) as error:
            raise RecordsError(
                f"{self.where} cannot be read to its end ({error}). Save it again."
            ) from error

    def _texts(
        self, batch: pa.RecordBatch, stored: list[str], wanted: Mapping[str, str], shape: str | None
    ) -> pl.DataFrame:
        table = pa.Table.from_batches([batch])
        held = [self.names[name] for name in stored]
        texts = cast(pl.DataFrame, pl.from_arrow(table.select(held)))
        columns = {
            wanted[name]: texts.select(
                as_text(batch.schema.field(own).type, own).alias("text")
            ).to_series()
            for name, own in zip(stored, held, strict=True)
        }
        if self.placed and set(PLACES.values()) & set(wanted):
            name = shape if shape in table.column_names else table.column_names[-1]
            of_shape = places_of(
                table[name].to_numpy(zero_copy_only=False), self.crs, self.where, self.notes
            )
            columns |= {wanted[n]: of_shape[n] for n in of_shape.columns if n in wanted}
        return pl.DataFrame(columns)


def is_map(path: Path) -> bool:
    """Tell whether a path is a file of layers that is read, by its name and first bytes."""
    name = path.name.lower()
    if path.is_dir():
        return name.endswith(".gdb")
    if not path.is_file():
        return False
    if path.suffix.lower() == ".tab":
        with path.open("rb") as file:
            return file.read(6).lower() == b"!table"
    if path.suffix.lower() == ".json":
        with path.open("rb") as file:
            return b'"FeatureCollection"' in file.read(1 << 12)
    if name.endswith(SUFFIXES):
        return True
    if not is_zip(path):
        return False
    return any(
        n.lower().endswith((".shp", ".gpkg", ".geojson")) for n in open_container(path).names
    )


def files_of(path: Path) -> list[Path]:
    """Return the files that a path stands for: those in a folder, all parts of a shapefile."""
    if path.is_dir():
        return sorted(held for held in path.rglob("*") if held.is_file())
    if path.suffix.lower() == ".shp":
        return sorted(path.parent.glob(f"{glob.escape(path.stem)}.*"))
    return [path]


def open_map(path: Path) -> list[LayerRows]:
    """
    Open the layers of a map.

    Raises
    ------
    RecordsError
        It is damaged, or has no layer.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layers = [str(name) for name, _ in pyogrio.list_layers(_address(path))]
            found = [_layer(path, name, len(layers)) for name in layers if name not in _NO_RECORDS]
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, ValueError) as error:
        lacking = ""
        if path.suffix.lower() == ".shp" and not path.with_suffix(".shx").exists():
            lacking = " A shapefile is several files: keep .shp, .shx, .dbf and .prj together."
        raise RecordsError(
            f"{path} cannot be read as a map ({str(error)[:200]}).{lacking} Save it again, as a "
            "GeoPackage say."
        ) from error
    held = [layer for layer in found if layer.features]
    if not held:
        raise RecordsError(f"{path} holds no features. Save the layer of records again.")
    return held


def _layer(path: Path, name: str, layers: int) -> LayerRows:
    about = pyogrio.read_info(_address(path), layer=name, force_feature_count=True)
    where = path.name if layers == 1 else f"layer {name} of {path.name}"
    fields = [str(field) for field in about["fields"]]
    names = dict(zip(unique_names(fields), fields, strict=True))
    if "shapefile" in str(about.get("driver", "")).lower():
        names = _unshortened(names, path, name)
    placed = about["geometry_type"] is not None
    size = path.stat().st_size if path.is_file() else about["features"]
    known = PLACES if placed else {}
    crs = None if about["crs"] is None else str(about["crs"])
    return LayerRows(path, name, where, names, crs, placed, about["features"], size, known)


def _unshortened(names: dict[str, str], path: Path, layer: str) -> dict[str, str]:
    """Return the terms that names of ten letters, as shapefiles keep them, mean."""
    found: dict[str, str] = {}
    for name, own in names.items():
        start = re.sub(r"_\d$", "", name.lower())
        terms = [
            term
            for term in (*TERMS, *_OTHERS)
            if len(term) > _SHORTEST and term.lower().startswith(start) and len(name) >= _SHORTEST
        ]
        if "occurrenceStatus" in terms:  # or occurrenceID: the values tell
            told = pyogrio.read_dataframe(
                _address(path), layer=layer, columns=[own], max_features=500, read_geometry=False
            )[own]
            says = told.dropna().astype(str).str.lower().isin(["present", "absent"]).any()
            terms = ["occurrenceStatus" if says else "occurrenceID"]
        told_as = terms[0] if len(terms) == 1 and terms[0] not in (*names, *found) else name
        found[told_as] = own
    return found


def _address(path: Path) -> str:
    """Return how GDAL names a file, within a zip archive if need be."""
    if path.suffix.lower() == ".zip" and is_zip(path):
        names = open_container(path).names
        inner = [n for n in names if re.search(r"\.(shp|gpkg|geojson)$", n.lower())]
        if len(inner) != 1:
            raise RecordsError(
                f"{path} holds several maps: {', '.join(inner[:5])}. Unpack it and name them in "
                "records.path."
            )
        return f"/vsizip/{path.resolve()}/{inner[0]}"
    return str(path)
