"""The map: a predictor and a scene in, a cloud-optimised GeoTIFF of presence probabilities out."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import rasterio

from butterfly_sdm.core.cards import fingerprint, software_versions
from butterfly_sdm.core.files import files_below, read_json, sha256, write_json
from butterfly_sdm.core.html import facts_html
from butterfly_sdm.core.work import work_folder
from butterfly_sdm.data.predictor import Predictor
from butterfly_sdm.errors import ArtefactError, RasterError
from butterfly_sdm.imagery.composites.stacks import Stack
from butterfly_sdm.imagery.scene import Scene
from butterfly_sdm.mapping.community import NewRecords, Pull
from butterfly_sdm.mapping.layers import Derived, Layer
from butterfly_sdm.mapping.map_file import Band, open_map, read_tags
from butterfly_sdm.mapping.map_reader import MapReader, map_arrays
from butterfly_sdm.mapping.options import MapOptions
from butterfly_sdm.mapping.plan import MapPlan, plan_map
from butterfly_sdm.mapping.quantity import asked, unit_of
from butterfly_sdm.mapping.sensitive import Coarse
from butterfly_sdm.mapping.surfaces.audit import audit_positions
from butterfly_sdm.mapping.surfaces.dense import cache_bytes
from butterfly_sdm.mapping.surfaces.exact import WindowSurface
from butterfly_sdm.mapping.surfaces.filled import FilledSurface, Surface, fill
from butterfly_sdm.mapping.surfaces.rows import Strip
from butterfly_sdm.mapping.zonal import polygons_table, squares_table
from butterfly_sdm.predictors import Handle
from butterfly_sdm.progress import Progress, silent

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("butterfly_sdm.mapping")

CACHE_BYTES = 64 * 2**20  # of decoded imagery: rows read one after the other share its blocks
#: Mean and 99th percentile of the difference in probability between the dense way and window by
#: window above which ``auto`` gives the dense map up.
FAR = (0.03, 0.1)
#: Mean and 99th percentile of that difference above which a map says that its network was not
#: trained for it.
NEAR = (0.005, 0.03)


@dataclass(frozen=True)
class MapResult:
    """
    A finished map.

    Attributes
    ----------
    path
        The GeoTIFF.
    species
        Names of its bands, in order; bands of layers follow.
    crs
        Its CRS, as text.
    counts
        ``positions`` in all, ``predicted``, ``without_imagery`` and ``outside_area``; where the
        predictor sees covariates, ``without_covariates``, counted apart from ``without_imagery``.
    audit
        Difference between the dense way and window by window at random positions; see
        :func:`~butterfly_sdm.mapping.surfaces.audit.audit_positions`. Empty where no dense map was
        tried.
    mode
        ``dense`` or ``exact``.
    files
        Files written beside the map, by what they are.
    """

    path: Path
    species: tuple[str, ...]
    crs: str
    counts: Mapping[str, int]
    audit: Mapping[str, float]
    mode: str
    files: Mapping[str, Path] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Map {self.path}: {len(self.species)} species, {self.crs}>"

    @classmethod
    def open(cls, path: str | Path) -> MapResult:
        """
        Return a finished map from its file.

        Parameters
        ----------
        path
            The GeoTIFF.

        Raises
        ------
        MissingFileError, RasterError
            There is no such file, or it is no map of this package.
        """
        made = MapReader(path)
        told = {key: made.tags.get(key) or {} for key in ("counts", "audit")}
        return cls(
            made.path, made.species, made.crs.to_string(), **told, mode=made.tags.get("mode", "")
        )

    def to_xarray(self, species: Sequence[str] | None = None) -> xr.Dataset:
        """
        Return the map as an xarray data set.

        Parameters
        ----------
        species
            Names; None: all.

        Returns
        -------
        xarray.Dataset
            ``probability`` (species, y, x), and where the map has them ``lower``, ``upper``,
            ``width``, ``present`` in the same shape and layers (y, x) by their names; NaN where
            nothing is predicted. ``crs`` and what the map knows of itself are attributes.

        Raises
        ------
        MissingPackageError
            xarray is not installed.
        DataError
            There is no species of that name.
        """
        return map_arrays(MapReader(self.path), species)

    def to_geodataframe(
        self,
        side_m: float = 1000.0,
        polygons: str | Path | gpd.GeoDataFrame | None = None,
        *,
        name: str | None = None,
    ) -> gpd.GeoDataFrame:
        """
        Return the means of every band over squares or polygons.

        Parameters
        ----------
        side_m
            Side of the squares.
        polygons
            Vector file, or one row per polygon, in place of squares; None: squares.
        name
            Column that names the polygons; None: their number.

        Returns
        -------
        GeoDataFrame
            One row per square or polygon: ``zone``, ``positions``, one column per band.

        Raises
        ------
        DataError, MissingFileError
            As :mod:`butterfly_sdm.mapping.zonal`.
        """
        if polygons is None:
            return squares_table(self.path, side_m)
        given = polygons if isinstance(polygons, gpd.GeoDataFrame) else Path(polygons)
        return polygons_table(self.path, given, name=name)

    def _repr_html_(self) -> str:
        from butterfly_sdm.mapping.viewer import MapView

        facts: dict[str, object] = {
            "file": self.path,
            "bands": f"{len(self.species)} species, {self.crs}",
            "positions": f"{self.counts['predicted']:,} of {self.counts['positions']:,} predicted",
        }
        if "mean_abs" in self.audit:
            facts["audit"] = (
                f"{self.audit['mean_abs']:.4f} from window by window on average, "
                f"{self.audit['max_abs']:.4f} at most"
            )
        return facts_html("Map", facts) + MapView(self.path)._repr_html_()


def write_map(
    predictor: Predictor,
    scene: Scene,
    out: str | Path,
    options: MapOptions | None = None,
    *,
    area: gpd.GeoDataFrame | None = None,
    layers: Sequence[Layer] = (),
    records: NewRecords | None = None,
    about: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    seed: int = 0,
    progress: Progress = silent,
) -> MapResult:
    """
    Predict every species at every position of a scene and write the map.

    A pixel of the map is ``stride_px`` pixels of the scene wide; its value is the prediction for
    the window centred on it. Interrupted at any moment, the same call continues and ends with the
    same file.

    Parameters
    ----------
    predictor
        Anything fitted that predicts. Networks with a trunk of fixed stride are mapped densely (see
        :mod:`butterfly_sdm.mapping.surfaces.dense`), all others position by position.
    scene
        Where to predict. Bands are taken by name.
    out
        The GeoTIFF to write.
    options
        Stride, layers, area and all else that can be said about a map; None: the defaults.
    area
        (n,) polygons in any CRS, in place of the file that ``options.area`` names.
    layers
        Objects of :mod:`butterfly_sdm.mapping.layers`: bands after those that ``options`` names.
    records
        What was seen at places the predictor was not trained on: it moves the map around them.
    about
        More metadata, by lower-case name: ``skill`` (of what is in its ``species``, only what the
        map shows), ``interval``, ``run``. None: nothing is known.
    overwrite
        Whether a finished map of other settings, or another file, is replaced.
    seed
        Draws the positions that are predicted again window by window.

    Returns
    -------
    MapResult
        Where the map lies and what it holds.

    Raises
    ------
    RasterError
        The scene lacks a band, or fits the predictor in no other way.
    ModelError
        The predictor is not fitted, or cannot be mapped in this mode or with this layer.
    DataError, MissingFileError
        A species is unknown, or covariates or files are missing.
    ArtefactError
        Another process is writing the same map, or one of other settings is there.
    """
    out, options = Path(out), options or MapOptions()
    predictor = asked(predictor, options)
    plan = plan_map(predictor, scene, options, area=area, layers=layers)
    with tempfile.TemporaryDirectory() as scratch:
        model = _save(predictor, Path(scratch))
    known = _known_of(plan, about or {})
    key = _key(plan, model)
    settings = _settings(plan, key, known, seed, records)
    done = _finished(out, settings) if out.exists() and not overwrite else None
    with (
        rasterio.Env(GDAL_CACHEMAX=cache_bytes(plan.surfaces, CACHE_BYTES)),
        work_folder(out, key) as work,
    ):
        if done is None:
            if options.workers > 1 or options.dask:
                plan = _shared(plan, predictor, work)
            filled, audit = _filled(plan, work, seed, progress)
            tags = _tags(plan, filled.parts[0][0], model, audit) | known | {"settings": settings}
            pull = None if records is None else records.on(filled, options)
            if pull is not None:
                tags["records"] = {"places": pull.used}
            strips = _Strips(filled, pull)
            done = tags | {"counts": _write(plan, strips, out, work, tags, progress)}
            del filled, strips
        files = _write_beside(out, options.beside)
    return _result(plan, out, done, files)


def _shared(plan: MapPlan, predictor: Predictor, work: Path) -> MapPlan:
    """Return the plan with the predictor in a folder that other processes see."""
    if not (work / "model").is_dir():
        _save(predictor, work / "model.new")
        (work / "model.new").rename(work / "model")
    handle = Handle(predictor, work / "model")
    return replace(plan, positions=replace(plan.positions, handle=handle))


def _result(
    plan: MapPlan, out: Path, tags: Mapping[str, Any], files: Mapping[str, Path]
) -> MapResult:
    crs = plan.positions.scene.crs.to_string()
    return MapResult(out, plan.species, crs, tags["counts"], tags["audit"], tags["mode"], files)


def _known_of(plan: MapPlan, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata that was handed over, of no other species than those of the map."""
    known = dict(about)
    if known.get("skill"):
        told = known["skill"]["species"]
        shown = {name: told[name] for name in plan.species if name in told}
        known["skill"] = {**known["skill"], "species": shown}
    return known


def _settings(
    plan: MapPlan, key: str, known: Mapping[str, Any], seed: int, records: NewRecords | None
) -> str:
    """Return what identifies a finished map."""
    options = plan.options
    return fingerprint(
        {
            "work": key,
            "species": plan.species,
            "layers": [(layer.names(plan.species), layer.unit) for layer in plan.layers],
            "limits": [
                (layer.limit, layer.masks) for layer in plan.layers if isinstance(layer, Derived)
            ],
            "options": (options.dtype, options.mode, options.audit, options.presence_above),
            "coarsened": dict(options.coarsen_m),
            "known": dict(known),
            "quantity": (options.quantity, options.week, options.dates, options.bound),
            "records": None if records is None else records.key,
            "seed": seed,
        }
    )


def _finished(out: Path, settings: str) -> dict[str, Any] | None:
    """
    Return the metadata of a map that is there already.

    Raises
    ------
    ArtefactError
        It is of other settings, or no map.
    """
    try:
        tags = read_tags(out)
    except RasterError:
        tags = {}
    if tags.get("settings") == settings:
        return tags
    what = "a finished map of other settings" if tags else "there already and no map"
    raise ArtefactError(
        f"{out} is {what}. Name another file with --out, or replace it with --force (in Python: "
        "overwrite=True)."
    )


def _filled(
    plan: MapPlan, work: Path, seed: int, progress: Progress
) -> tuple[FilledSurface, dict[str, float]]:
    """
    Predict all positions, densely where that can be done and the audit agrees; also return the
    audit.
    """
    options, found = plan.options, {}
    far = work / "far.json"  # the audit of a dense map that was given up
    if plan.dense and far.is_file():
        found = read_json(far)
    elif plan.dense:
        filled = fill(plan.surfaces, work / "surface", options, task="map", progress=progress)
        if options.audit:
            found = audit_positions(filled, count=options.audit, seed=seed, progress=progress)
        if not _given_up(found, options.mode):
            return filled, found
        write_json(far, found)
        del filled
    surfaces = [WindowSurface(plan.positions)]
    task = "windows" if found else "map"
    return fill(surfaces, work / "windows", options, task=task, progress=progress), found


def _given_up(found: Mapping[str, float], mode: str) -> bool:
    """Return whether a dense map is so far from window by window that it is not kept."""
    if not found or (found["mean_abs"] <= NEAR[0] and found["p99_abs"] <= NEAR[1]):
        return False
    far = found["mean_abs"] > FAR[0] or found["p99_abs"] > FAR[1]
    give_up = mode == "auto" and far
    log.warning(
        "The dense map differs from window by window by %.4f on average (99th percentile %.3f, "
        "largest %.3f): this network relies on the edges of its tiles. Networks trained with "
        "margin_px: 64 and padding: replicate do not.%s",
        found["mean_abs"],
        found["p99_abs"],
        found["max_abs"],
        " Mapping window by window instead, which takes longer; mode: dense keeps the dense map."
        if give_up
        else "",
    )
    return give_up


def _key(plan: MapPlan, model: str) -> str:
    """Return what identifies the unfinished work of a map."""
    positions, options = plan.positions, plan.options
    return fingerprint(
        {
            "model": model,
            "scene": scene_key(positions.scene),
            "lattice": repr(positions.lattice),
            "wanted": hashlib.sha256(np.packbits(positions.wanted).tobytes()).hexdigest(),
            "dense": (options.block_px, options.engine) if plan.dense else None,
            "min_valid_fraction": options.min_valid_fraction,
            "covariates": {n: repr(raster) for n, raster in positions.covariates.items()},
            "position_crs": positions.position_crs,
            "kept": (positions.spread, positions.embedding),
        }
    )


def _tags(
    plan: MapPlan, surface: Surface, model: str, audit: Mapping[str, float]
) -> dict[str, Any]:
    """Return the metadata of a map but its counts."""
    options, lattice = plan.options, plan.positions.lattice
    dense = not isinstance(surface, WindowSurface)
    return {
        "audit": audit,
        "mode": "dense" if dense else "exact",
        "model": model,
        "stride_px": lattice.stride_px,
        "window_px": lattice.window_px,
        "margin_px": lattice.margin_px,
        "min_valid_fraction": options.min_valid_fraction,
        # withheld species are counted, not named
        "sensitive": {"withheld": len(options.withhold), "coarsened_m": options.coarsen_m},
        "limits": {
            layer.name: layer.limit
            for layer in plan.layers
            if isinstance(layer, Derived) and layer.limit is not None
        },
        "version": software_versions(["butterfly-sdm"], absent="unknown")["butterfly-sdm"],
    } | ({"engine": options.engine} if dense else {})


@dataclass(frozen=True, eq=False)
class _Strips:
    """Rows of what is predicted, as new records move them."""

    filled: FilledSurface
    pull: Pull | None

    def strip(self, rows: slice) -> Strip:
        strip = self.filled.strip(rows)
        return strip if self.pull is None else self.pull.apply(strip)

    def fractions(self) -> np.ndarray:
        return self.filled.fractions()


def _write(
    plan: MapPlan,
    filled: _Strips,
    out: Path,
    work: Path,
    tags: dict[str, Any],
    progress: Progress,
) -> dict[str, int]:
    """Write the map strip by strip and count its positions."""
    positions = plan.positions
    lattice, wanted = positions.lattice, positions.wanted
    counts = {
        "positions": lattice.height * lattice.width,
        "predicted": 0,
        "without_imagery": 0,
        "outside_area": 0,
    } | ({"without_covariates": 0} if positions.covariates else {})
    bands = [Band(name, unit_of(positions.predictor)) for name in plan.species]
    for layer in plan.layers:
        largest = layer.largest(plan.species)
        bands += [Band(name, layer.unit, largest) for name in layer.names(plan.species)]
    parts = list(_row_slices(lattice.height, lattice.width, len(positions.predictor.species)))
    sides = plan.options.coarsen_m
    coarse = Coarse(lattice, {name: sides[name] for name in sides if name in plan.species})
    if coarse.species:
        for rows in parts:
            coarse.add(filled.strip(rows))
    imagery = filled.fractions() if positions.covariates else None
    with open_map(
        out,
        lattice.shape,
        lattice.transform,
        positions.scene.crs,
        bands,
        dtype=plan.options.dtype,
        scratch=work,
    ) as writer:
        for rows in parts:
            strip = coarse.apply(filled.strip(rows).take(plan.species))
            known = strip.known
            if imagery is not None:
                seen = positions.measured(imagery[rows], rows, slice(None))
                lacking = int((seen & ~known).sum())
                counts["without_covariates"] += lacking
                counts["without_imagery"] -= lacking
            writer.write(rows, _bands(strip, plan.layers))
            counts["predicted"] += int(known.sum())
            counts["outside_area"] += int((~wanted[rows]).sum())
            counts["without_imagery"] += int((~known & wanted[rows]).sum())
            progress("write", rows.stop, lattice.height)
        _tell_missing(counts)
        writer.tag(**tags, counts=counts)
    return counts


def _tell_missing(counts: Mapping[str, int]) -> None:
    """
    Say how many positions have no value because they lack a covariate.

    Raises
    ------
    RasterError
        No position has a value.
    """
    lacking = counts.get("without_covariates", 0)
    if not counts["predicted"]:
        raise RasterError(
            f"No position of the map has a value: of {counts['positions']:,}, "
            f"{counts['outside_area']:,} lie outside the area, {counts['without_imagery']:,} have "
            f"too few measured pixels and {lacking:,} lack a covariate. Check the scene and the "
            "area, or lower map.min_valid_fraction."
        )
    if lacking:
        log.warning(
            "%s positions of the map have no value because a covariate has none there. Give "
            "rasters that cover the area.",
            f"{lacking:,}",
        )


def _bands(strip: Strip, layers: Sequence[Layer]) -> np.ndarray:
    """
    Return the values (bands, rows, cols) of species and layers; where a layer exceeds its limit and
    masks, only that layer has one.
    """
    derived: dict[int, np.ndarray] = {}
    shown = strip
    for number, layer in enumerate(layers):
        if isinstance(layer, Derived) and layer.limit is not None and layer.masks:
            derived[number] = layer.values(strip)
            shown = shown.without(derived[number][0] > layer.limit)
    for number, layer in enumerate(layers):
        if number not in derived:
            derived[number] = layer.values(shown)
    return np.concatenate([shown.probability, *(derived[n] for n in range(len(layers)))])


def _write_beside(out: Path, beside: Sequence[str]) -> dict[str, Path]:
    from butterfly_sdm.mapping.sidecars import write_quicklook, write_stac, write_styles

    writers: dict[str, Callable[[Path], Path]] = {
        "stac": write_stac,
        "styles": write_styles,
        "picture": write_quicklook,
    }
    return {name: writers[name](out) for name in beside}


def _row_slices(height: int, width: int, bands: int) -> Iterator[slice]:
    """Cut the rows of a map into strips of at most about 32 MB."""
    most = max(1, min(64, 8_000_000 // (width * max(bands, 256))))
    for row in range(0, height, most):
        yield slice(row, min(row + most, height))


def scene_key(scene: Scene) -> dict[str, Any]:
    """
    Return what identifies the pixels of a scene: its grid, and name, size and time of its files.
    """
    files = {path: _stamp(scene, path) for path in scene.paths}
    composed = {}
    for piece in scene.pieces:
        if isinstance(piece, Stack):
            masks = [product.mask.path for product in piece.products if product.mask is not None]
            stamps = {path: _stamp(scene, path) for path in masks}
            composed[piece.name] = (piece.method, scene.cloudy, stamps)
    return {
        "grid": repr(
            (scene.bands, scene.crs.to_wkt(), tuple(scene.transform), scene.width, scene.height)
        ),
        "files": files,
        "counts": (scene.nodata, scene.scale, scene.offset)
        if scene.dtype == "uint16"
        else (scene.dtype, repr(scene.nodata), scene.scale, scene.offset, scene.signed_square),
    } | ({"composed": composed} if composed else {})


def _stamp(scene: Scene, path: str) -> Any:
    """Return what changes when a file does; of a partial copy, what its original had then."""
    held = scene.supply.stamp(path) if scene.supply is not None else None
    if held is not None or not Path(path).exists():
        return held
    if Path(path).is_dir():  # a store of arrays: any of its files may change
        stats = [file.stat() for file in files_below(Path(path))]
        return sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)
    stat = Path(path).stat()
    return stat.st_size, stat.st_mtime_ns


def _save(predictor: Predictor, folder: Path) -> str:
    """Save the predictor and return what identifies it."""
    predictor.save(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return fingerprint({str(path.relative_to(folder)): sha256(path) for path in files})
