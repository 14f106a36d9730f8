"""The map: a predictor and a scene in, a cloud-optimised GeoTIFF of presence probabilities out."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio

from butterfly_sdm.core.block_store import Store, work_folder
from butterfly_sdm.core.cards import fingerprint
from butterfly_sdm.core.executor import open_executor, run_units
from butterfly_sdm.core.files import read_json, sha256, write_json
from butterfly_sdm.core.html import facts_html
from butterfly_sdm.data.predictor import UNKNOWN_CRS, Embedding, Predictor
from butterfly_sdm.errors import DataError, ModelError, RasterError, did_you_mean
from butterfly_sdm.imagery.grids import on_grid
from butterfly_sdm.imagery.scene import Scene
from butterfly_sdm.mapping.area import Area
from butterfly_sdm.mapping.layers import Derived, Layer, named_layers
from butterfly_sdm.mapping.map_file import Band, open_map
from butterfly_sdm.mapping.sensitive import Coarse, SensitivePolicy
from butterfly_sdm.mapping.surfaces.audit import audit_engine, audit_positions
from butterfly_sdm.mapping.surfaces.exact import WindowSurface
from butterfly_sdm.mapping.surfaces.lattice import Lattice
from butterfly_sdm.mapping.surfaces.positions import CovariateRaster, CovariateRasters
from butterfly_sdm.mapping.surfaces.sight import Sight, members_of, sight_of
from butterfly_sdm.predictors import Handle
from butterfly_sdm.progress import Progress, silent

log = logging.getLogger("butterfly_sdm.mapping")

Mode = Literal["auto", "dense", "exact"]

CACHE_BYTES = 64 * 2**20  # of decoded imagery: rows read one after the other share its blocks
#: Mean difference in probability between the dense way and window by window above which ``auto``
#: gives the dense map up.
FAR = 0.03
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
        ``positions`` in all, ``predicted``, ``without_imagery`` and ``outside_area``.
    audit
        Difference between the dense way and window by window at random positions; see
        :func:`~butterfly_sdm.mapping.surfaces.audit.audit_positions`. Empty where no dense map was tried.
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

    def _repr_html_(self) -> str:
        from butterfly_sdm.figures import MapView

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


def predict_map(
    predictor: Predictor,
    scene: Scene,
    out: str | Path,
    *,
    stride_px: int = 32,
    mode: Mode = "auto",
    block_px: int = 2304,
    species: Sequence[str] | None = None,
    min_valid_fraction: float = 0.5,
    dtype: Literal["float32", "uint16", "uint8"] = "float32",
    covariates: Mapping[str, Path | CovariateRaster] | None = None,
    position_crs: str | None = None,
    audit: int = 500,
    seed: int = 0,
    engine: str = "auto",
    area: Area | None = None,
    grid: str | None = None,
    layers: Sequence[str | Layer] = (),
    sensitive: SensitivePolicy | None = None,
    beside: Sequence[str] = ("stac", "styles", "picture"),
    tile_px: int = 256,
    workers: int = 1,
    dask: str | None = None,
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
    mode
        ``dense``, ``exact`` (window by window), or ``auto``: dense where the predictor allows it
        and the audit finds a mean difference of at most 0.03, otherwise exact.
    block_px
        Side of the ground the trunk sees at once, its surroundings apart; more is faster and needs
        more memory (about 100 bytes per pixel).
    species
        Species to map; None for all.
    min_valid_fraction
        Positions with a smaller share of measured pixels in their window have no value.
    dtype
        float32, or whole numbers with a scale: uint16 in steps of 0.0001, uint8 of 0.004.
    covariates
        Raster per covariate, for predictors fitted with covariates: a path (its nearest pixel
        counts), or a :class:`~butterfly_sdm.mapping.surfaces.positions.CovariateRaster`.
    position_crs
        CRS of easting and northing in the data set the predictor was fitted to; None: as the
        predictor remembers, else EPSG:27700.
    audit, seed
        How many random positions are predicted again window by window, and the seed that draws
        them.
    engine
        What runs the trunk: torch, onnx, or auto, the faster of the two. Only when named, with
        their own difference reported: torch-fp16 (on a GPU) and onnx-int8.
    area
        Where a map is wanted; None: wherever the scene reaches.
    grid
        CRS of the map, such as ``EPSG:27700``: the scene is resampled to it while it is read. None:
        that of the scene. Either way map pixels lie on whole multiples of their size.
    layers
        ``richness``, ``richness_variance``, ``spread``, or objects of
        :mod:`butterfly_sdm.mapping.layers`: bands after the species.
    sensitive
        Species to withhold or to tell coarsely.
    beside
        Files written beside the map: ``stac``, ``styles`` (QGIS), ``picture``.
    tile_px
        Side of the tile cut around a position for predictors that look at tiles and are no
        networks.
    workers, dask
        Processes on this machine, or the address of a Dask scheduler.

    Returns
    -------
    MapResult
        Where the map lies and what it holds.

    Raises
    ------
    RasterError
        The scene lacks a band, or fits the predictor in no other way.
    ModelError
        The predictor is not fitted, or cannot be mapped in this mode.
    DataError
        A species is unknown, or covariates are missing.
    ArtefactError
        Another process is writing the same map.
    """
    out = Path(out)
    policy = sensitive or SensitivePolicy()
    chosen = policy.shown(_choose_species(predictor, species))
    extra = named_layers(layers)
    unknown = set(beside) - {"stac", "styles", "picture"}
    if unknown:
        raise DataError(
            f"Beside a map there is no {sorted(unknown)[0]!r}; there are stac, styles and picture."
        )
    rasters = {
        name: raster if isinstance(raster, CovariateRaster) else CovariateRaster(Path(raster))
        for name, raster in (covariates or {}).items()
    }
    _check_covariates(predictor, rasters)
    scene, lattice, sight = fit_scene(
        predictor, scene, stride_px=stride_px, grid=grid, tile_px=tile_px
    )
    wanted = (area or Area()).wanted(lattice, scene.crs)
    why = _why_not_dense(predictor, lattice)
    if mode == "dense" and why:
        raise ModelError(f"This predictor cannot be mapped densely: {why}. Use mode auto or exact.")
    if mode == "auto" and why and sight is not None:
        log.warning("Mapping window by window, which takes far longer: %s.", why)
    dense = mode != "exact" and not why

    with tempfile.TemporaryDirectory() as scratch:
        model_key = _save(predictor, Path(scratch))
    exact = WindowSurface(
        Handle(predictor),
        tuple(predictor.species),
        scene,
        lattice,
        wanted,
        min_valid_fraction,
        position_crs or _known_crs(predictor, scene),
        tiles=sight is not None,
        covariates=CovariateRasters(rasters) if rasters else None,
        embeds=isinstance(predictor, Embedding)
        and any(getattr(layer, "of", "") == "embedding" for layer in extra),
    )
    key = fingerprint(
        {
            "model": model_key,
            "scene": scene_key(scene),
            "lattice": repr(lattice),
            "wanted": hashlib.sha256(np.packbits(wanted).tobytes()).hexdigest(),
            "dense": (block_px, engine) if dense else None,
            "min_valid_fraction": min_valid_fraction,
            "covariates": {name: repr(raster) for name, raster in rasters.items()},
            "position_crs": exact.position_crs,
            "embeds": exact.embeds,
        }
    )
    if (workers > 1 or dask) and not hasattr(predictor, "save"):
        raise ModelError(
            "This predictor cannot be saved, so it cannot be sent to other processes. Use "
            "workers=1."
        )
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), work_folder(out, key) as work:
        if workers > 1 or dask:
            if not (work / "model").is_dir():
                _save(predictor, work / "model.new")
                (work / "model.new").rename(work / "model")
            exact = replace(exact, handle=Handle(predictor, work / "model"))
        surface: Any = exact
        store: Any = None
        found: dict[str, float] = {}
        far = work / "far.json"  # the audit of a dense map that was given up
        if dense and far.is_file():
            found, dense = read_json(far), False
        if dense:
            from butterfly_sdm.mapping.surfaces.dense import dense_surface
            from butterfly_sdm.mapping.surfaces.ensemble import ensemble_surface

            make = ensemble_surface if members_of(predictor) else dense_surface
            surface = make(exact, block_px=block_px, engine=engine, folder=work / "engine")
            store = surface.open(work / "surface")
            _fill(surface, store, workers, dask, progress)
            if audit:
                found = audit_positions(
                    surface, exact, store, count=audit, seed=seed, progress=progress
                )
                if surface.engine.rounds:
                    found |= audit_engine(surface, seed=seed)
            if found and (found["mean_abs"] > NEAR[0] or found["p99_abs"] > NEAR[1]):
                give_up = mode == "auto" and found["mean_abs"] > FAR
                log.warning(
                    "The dense map differs from window by window by %.4f on average (99th "
                    "percentile %.3f, largest %.3f): this "
                    "network relies on the edges of its tiles. Networks trained with margin_px: 64 "
                    "and padding: replicate do "
                    "not.%s",
                    found["mean_abs"],
                    found["p99_abs"],
                    found["max_abs"],
                    " Mapping window by window instead, which takes longer; mode: dense keeps the "
                    "dense map."
                    if give_up
                    else "",
                )
                if give_up:
                    write_json(far, found)
                    surface, dense = exact, False
        if not dense:
            store = surface.open(work / "windows")
            _fill(surface, store, workers, dask, progress, task="windows" if found else "map")
        how = "dense" if dense else "exact"
        tags = {
            "audit": found,
            "mode": how,
            "model": model_key,
            "stride_px": stride_px,
            "window_px": lattice.window_px,
            "margin_px": lattice.margin_px,
            "min_valid_fraction": min_valid_fraction,
            "sensitive": policy.record(),
            "limits": {
                layer.name: layer.limit
                for layer in extra
                if isinstance(layer, Derived) and layer.limit is not None
            },
            "version": package_version(),
        } | ({"engine": surface.engine.name} if dense else {})
        counts = _write(surface, store, out, chosen, extra, policy, dtype, work, tags, progress)
        del store
        files = _write_beside(out, beside)
    return MapResult(out, chosen, scene.crs.to_string(), counts, found, how, files)


def fit_scene(
    predictor: Predictor,
    scene: Scene,
    *,
    stride_px: int = 32,
    grid: str | None = None,
    tile_px: int = 256,
) -> tuple[Scene, Lattice, Sight | None]:
    """
    Return the scene as a predictor sees it, the positions of its map, and what the predictor looks
    at; arguments as of a map.

    Raises
    ------
    RasterError
        The scene lacks a band, has pixels of another size than those trained on, or lies on no grid
        that can be mapped.
    """
    if grid is not None:
        scene = on_grid(scene, grid)
    sight = sight_of(predictor, tile_px)
    if sight is not None:
        scene = select_bands(scene, sight.bands)
        _check_resolution(predictor, scene)
    window_px, margin_px = (sight.window_px, sight.margin_px) if sight is not None else (0, 0)
    return (
        scene,
        Lattice.of(scene, stride_px=stride_px, window_px=window_px, margin_px=margin_px),
        sight,
    )


def _write(
    surface: Any,
    store: Store,
    out: Path,
    chosen: tuple[str, ...],
    layers: tuple[Layer, ...],
    policy: SensitivePolicy,
    dtype: str,
    work: Path,
    tags: dict[str, Any],
    progress: Progress,
) -> dict[str, int]:
    """Write the map strip by strip and count its positions."""
    lattice: Lattice = surface.lattice
    counts = {
        "positions": lattice.height * lattice.width,
        "predicted": 0,
        "without_imagery": 0,
        "outside_area": 0,
    }
    bands = [Band(name) for name in chosen]
    bands += [
        Band(name, layer.unit, layer.largest(chosen))
        for layer in layers
        for name in layer.names(chosen)
    ]
    parts = list(strips(lattice, len(surface.species)))
    coarse = Coarse(
        lattice, {name: side for name, side in policy.coarsen.items() if name in chosen}
    )
    if coarse.species:
        for rows in parts:
            coarse.add(surface.strip(store, rows))
    with open_map(
        out, lattice.shape, lattice.transform, surface.scene.crs, bands, dtype=dtype, scratch=work
    ) as writer:
        for rows in parts:
            strip = coarse.apply(surface.strip(store, rows).take(chosen))
            known = strip.known
            derived: dict[int, np.ndarray] = {}
            shown = strip
            for number, layer in enumerate(layers):
                if isinstance(layer, Derived) and layer.limit is not None and layer.masks:
                    derived[number] = layer.values(strip)
                    shown = shown.without(derived[number][0] > layer.limit)
            derived |= {
                number: layer.values(shown)
                for number, layer in enumerate(layers)
                if number not in derived
            }
            writer.write(
                rows,
                np.concatenate(
                    [shown.probability, *(derived[number] for number in range(len(layers)))]
                ),
            )
            counts["predicted"] += int(known.sum())
            counts["outside_area"] += int((~surface.wanted[rows]).sum())
            counts["without_imagery"] += int((~known & surface.wanted[rows]).sum())
            progress("write", rows.stop, lattice.height)
        writer.tag(**tags, counts=counts)
    return counts


def _write_beside(out: Path, beside: Sequence[str]) -> dict[str, Path]:
    from butterfly_sdm.mapping.sidecars import write_quicklook, write_stac, write_styles

    writers = {"stac": write_stac, "styles": write_styles, "picture": write_quicklook}
    return {name: writers[name](out) for name in beside}


def _fill(
    surface: Any,
    store: Store,
    workers: int,
    dask: str | None,
    progress: Progress,
    *,
    task: str = "map",
) -> None:
    units = surface.units(store)
    already = len(store.done)
    total = already + len(units)
    done = already
    progress(task, done, total)

    def keep(unit: Any, result: Any) -> None:
        nonlocal done
        surface.keep(store, unit, result)
        done += 1
        progress(task, done, total)

    if units:
        with open_executor(workers, dask) as (executor, slots):
            # a GPU is faster than one thread reads
            on_gpu = getattr(getattr(surface, "engine", None), "device", "cpu") != "cpu"
            readers = max(1, min(4, (os.cpu_count() or 1) // 2)) if on_gpu else 1
            run_units(units, keep, executor=executor, in_flight=2 * slots, readers=readers)


def package_version() -> str:
    """Return the version of this package."""
    try:
        return version("butterfly-sdm")
    except PackageNotFoundError:
        return "unknown"


def strips(lattice: Lattice, bands: int) -> Iterator[slice]:
    """Cut the rows of a map into strips of at most about 32 MB."""
    most = max(1, min(64, 8_000_000 // (lattice.width * max(bands, 256))))
    for row in range(0, lattice.height, most):
        yield slice(row, min(row + most, lattice.height))


def select_bands(scene: Scene, bands: Sequence[str]) -> Scene:
    """
    Return the scene with only the bands a network was trained on, in its order.

    Raises
    ------
    RasterError
        The scene lacks some of them.
    """
    missing = [band for band in bands if band not in scene.bands]
    if missing:
        raise RasterError(
            f"The run was trained on the bands {', '.join(bands)}; the scene has "
            f"{', '.join(scene.bands)} and lacks "
            f"{', '.join(missing)}. Name the bands of the scene in file order under bands, or map "
            "another scene."
        )
    return scene.select(bands)


def scene_key(scene: Scene) -> dict[str, Any]:
    """
    Return what identifies the pixels of a scene: its grid, and name, size and time of its files.
    """
    files = {}
    for path in scene.paths:
        stat = Path(path).stat() if Path(path).exists() else None
        files[str(path)] = None if stat is None else (stat.st_size, stat.st_mtime_ns)
    return {
        "grid": repr(
            (scene.bands, scene.crs.to_wkt(), tuple(scene.transform), scene.width, scene.height)
        ),
        "files": files,
        "counts": (scene.nodata, scene.scale, scene.offset),
    }


def _choose_species(predictor: Predictor, species: Sequence[str] | None) -> tuple[str, ...]:
    if not predictor.species:
        raise ModelError(
            "The predictor was not fitted, so there is nothing to map. Train it, or load a run."
        )
    if species is None:
        return tuple(predictor.species)
    for name in species:
        if name not in predictor.species:
            raise DataError(
                f"The predictor does not know the species {name!r}; it knows "
                f"{len(predictor.species)} others." + did_you_mean(name, predictor.species)
            )
    if not species:
        raise DataError(
            "The list of species to map is empty. Name at least one, or leave it out to map all."
        )
    return tuple(species)


def _known_crs(predictor: Predictor, scene: Scene) -> str:
    known = predictor.sees.position_crs
    return known or ("EPSG:27700" if known == UNKNOWN_CRS else scene.crs.to_string())


def _check_resolution(predictor: Any, scene: Scene) -> None:
    trained = predictor.sees.resolution_m
    if trained and abs(scene.resolution_m - trained) > 0.01 * trained:
        raise RasterError(
            f"The run was trained on pixels of {trained:g} m; the scene has {scene.resolution_m:g} "
            "m. "
            "Map a scene of that resolution, or train on tiles of this one."
        )


def _check_covariates(predictor: Any, covariates: Mapping[str, CovariateRaster]) -> None:
    needed = predictor.sees.covariates
    missing = [name for name in needed if name not in covariates]
    if missing:
        raise DataError(
            f"The run was trained with {len(needed)} covariates; no raster is given for "
            f"{missing[0]!r}"
            f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}. "
            f"Name one raster per covariate: map.covariates: {{{missing[0]}: FILE.tif}}."
        )


def _why_not_dense(predictor: Any, lattice: Lattice) -> str:
    from butterfly_sdm.mapping.surfaces.dense import why_not_dense

    members = members_of(predictor)
    if members and getattr(predictor, "kind", "") == "ensemble":
        for member in members:
            network = getattr(member, "network", None)
            if network is None:
                return "a member of the ensemble is not a network"
            if network.bands and (network.window_px, network.margin_px) != (
                lattice.window_px,
                lattice.margin_px,
            ):
                return "the members of the ensemble have different windows"
            if why := why_not_dense(network, lattice):
                return f"of a member of the ensemble: {why}"
        return ""
    network = getattr(predictor, "network", None)
    return "it is not a network" if network is None else why_not_dense(network, lattice)


def _save(predictor: Predictor, folder: Path) -> str:
    """
    Save the predictor and return what identifies it; a predictor that cannot be saved is never the
    same twice.
    """
    if not hasattr(predictor, "save"):
        return f"unsaved {id(predictor)}"
    predictor.save(folder)
    return fingerprint(
        {
            str(path.relative_to(folder)): sha256(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
    )
