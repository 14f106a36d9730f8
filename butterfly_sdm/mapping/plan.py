"""Decide all about a map, and refuse what cannot be mapped, before any work is done."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import geopandas as gpd
import numpy as np

from butterfly_sdm.data.predictor import UNKNOWN_CRS, Members, Predictor
from butterfly_sdm.errors import (
    DataError,
    MissingFileError,
    ModelError,
    RasterError,
    did_you_mean,
)
from butterfly_sdm.imagery.grids import at_resolution, crs_of_scene, on_grid, on_ground
from butterfly_sdm.imagery.products import is_remote
from butterfly_sdm.imagery.scene import Scene
from butterfly_sdm.mapping.area import wanted_positions
from butterfly_sdm.mapping.layers import Layer, layers_of
from butterfly_sdm.mapping.options import CovariateRaster, MapOptions
from butterfly_sdm.mapping.quantity import asked
from butterfly_sdm.mapping.surfaces.dense import check_engine, dense_surfaces, why_not_dense
from butterfly_sdm.mapping.surfaces.exact import WindowSurface
from butterfly_sdm.mapping.surfaces.filled import Surface
from butterfly_sdm.mapping.surfaces.lattice import Lattice
from butterfly_sdm.mapping.surfaces.networks import embed
from butterfly_sdm.mapping.surfaces.positions import Positions
from butterfly_sdm.predictors import Handle

log = logging.getLogger("butterfly_sdm.mapping")

# Positions that are looked at, and of those with imagery measured, before a map is made.
MOST_LOOKED_AT, MOST_MEASURED = 20_000, 2000


@dataclass(frozen=True, eq=False)
class MapPlan:
    """
    All that is decided about a map before any work is done.

    Attributes
    ----------
    species
        Those that get a band, in order.
    layers
        Bands after them.
    dense
        Whether the dense way is tried.
    """

    positions: Positions
    species: tuple[str, ...]
    layers: tuple[Layer, ...]
    options: MapOptions
    dense: bool

    @cached_property
    def surfaces(self) -> Sequence[Surface]:
        """What is to be filled: one surface, or one per member of an ensemble."""
        if not self.dense:
            return [WindowSurface(self.positions)]
        options = self.options
        return dense_surfaces(self.positions, block_px=options.block_px, engine=options.engine)


def plan_map(
    predictor: Predictor,
    scene: Scene,
    options: MapOptions,
    *,
    area: gpd.GeoDataFrame | None = None,
    layers: Sequence[Layer] = (),
) -> MapPlan:
    """
    Plan a map; arguments as of :func:`butterfly_sdm.mapping.map.write_map`.

    One position is predicted, so that a predictor that needs what no position of a map has says so
    now.

    Raises
    ------
    RasterError
        The scene lacks a band, or fits the predictor in no other way.
    ModelError
        The predictor is not fitted, or cannot be mapped in this mode or with this layer.
    DataError, MissingFileError
        A species is unknown, or covariates or files are missing.
    """
    predictor = asked(predictor, options)
    species = _chosen_species(predictor, options)
    _check_known(predictor, options)
    chosen = layers_of(options, layers, predictor)
    scene, lattice = _fitting(predictor, scene, options)
    covariates = _covariates(predictor, options)
    why = why_not_dense(predictor, lattice)
    if options.mode == "dense" and why:
        raise ModelError(f"This predictor cannot be mapped densely: {why}. Use mode auto or exact.")
    if options.mode == "auto" and why and predictor.sees.bands:
        log.warning("Mapping window by window, which takes far longer: %s.", why)
    needed = {layer.needs for layer in chosen}
    polygons = area if area is not None else options.area
    lattice, wanted = wanted_positions(lattice, scene.crs, polygons, options.masks, options.land)
    positions = Positions(
        Handle(predictor),
        scene,
        lattice,
        wanted,
        options.min_valid_fraction,
        _position_crs(predictor, scene, covariates, options),
        covariates,
        spread="spread" in needed,
    )
    _tell_ground(positions)
    dense = options.mode != "exact" and not why
    if dense:
        check_engine(predictor, options.engine)
    length = _try_one(positions, embeds="embedding" in needed)
    return MapPlan(replace(positions, embedding=length), species, chosen, options, dense)


def _chosen_species(predictor: Predictor, options: MapOptions) -> tuple[str, ...]:
    if not predictor.species:
        raise ModelError(
            "The predictor was not fitted, so there is nothing to map. Train it, or load a run."
        )
    species = tuple(predictor.species) if options.species is None else options.species
    if not species:
        raise DataError(
            "The list of species to map is empty. Name at least one, or leave it out to map all."
        )
    for name in species:
        if name not in predictor.species:
            raise DataError(
                f"The predictor does not know the species {name!r}; it knows "
                f"{len(predictor.species)} others." + did_you_mean(name, predictor.species)
            )
    shown = tuple(name for name in species if name not in options.withhold)
    if not shown:
        raise DataError(
            "The policy for sensitive species withholds every species of the map; nothing is left "
            "to show."
        )
    return shown


def _check_known(predictor: Predictor, options: MapOptions) -> None:
    """Refuse a model of version 0.1.0 that does not say what a map has to know."""
    sees = predictor.sees
    if options.position_crs and sees.position_crs == UNKNOWN_CRS:
        sees = replace(sees, position_crs=options.position_crs)
    if sees.unknown:
        only_crs = not replace(sees, position_crs=None).unknown
        raise ModelError(
            "This model was trained by an older version and does not say "
            f"{' and '.join(sees.unknown)}. Train it again"
            + (", or name it: map.position_crs=EPSG:NUMBER." if only_crs else ".")
        )


def _fitting(predictor: Predictor, scene: Scene, options: MapOptions) -> tuple[Scene, Lattice]:
    """Return the scene as a predictor sees it, and the positions of its map."""
    if options.grid is not None:
        scene = on_grid(scene, options.grid, wanted_m=predictor.sees.resolution_m)
    sees = predictor.sees
    if sees.bands and scene.crs.is_geographic:
        raise RasterError(
            "The scene is in degrees, where a window is narrower than it is tall, unlike the "
            "tiles of the run in metres. Name a CRS in metres, best that of the tiles: map.grid, "
            f"such as {crs_of_scene(scene)}."
        )
    if sees.bands:
        missing = [band for band in sees.bands if band not in scene.bands]
        if missing:
            raise RasterError(
                f"The run was trained on the bands {', '.join(sees.bands)}; the scene has "
                f"{', '.join(scene.bands)} and lacks {', '.join(missing)}. Name the bands of the "
                "scene in file order under bands, or map another scene."
            )
        scene = scene.select(sees.bands)
        trained = sees.resolution_m
        if trained and scene.resolution_m > 1.01 * trained:
            raise RasterError(
                f"The run was trained on pixels of {trained:g} m; the scene has "
                f"{scene.resolution_m:g} m. Map a scene of that resolution or a finer one, or "
                "build tiles of this one (tiles.resolution_m) and train on them."
            )
        if trained and scene.resolution_m < 0.99 * trained:
            scene = at_resolution(scene, trained)  # as tiles are cut from a finer scene
    return scene, Lattice.of(
        scene, stride_px=options.stride_px, window_px=sees.window_px, margin_px=sees.margin_px
    )


def _tell_ground(positions: Positions) -> None:
    """Warn of windows that show more, less or otherwise turned ground than they are called."""
    sees, scene = positions.predictor.sees, positions.scene
    rows, cols = np.nonzero(positions.wanted)
    if not sees.bands or not len(rows):
        return
    some = np.unique(np.linspace(0, len(rows) - 1, MOST_LOOKED_AT).astype(int))
    tops, lefts = positions.lattice.window_starts()
    side = np.full(len(some), sees.window_px)
    windows = np.stack([lefts[cols[some]], tops[rows[some]], side, side], axis=1)
    some = some[scene.shown(windows)]
    some = some[:: 1 + len(some) // MOST_MEASURED]
    if not len(some):
        return
    x, y = positions.lattice.coordinates(rows[some], cols[some])
    ground = on_ground(scene.crs, x, y, sees.window_px * scene.resolution_m)
    if ground.doubtful.any():
        log.warning(
            "In %s the windows of the map are not the ground they are called: squares of %s m are "
            "%s, at %.0f %% of its positions. Name a grid that suits the region, such as "
            "map.grid=%s, or map parts of it.",
            scene.crs.to_string(),
            f"{ground.side_m:,.0f}",
            ground.words(),
            100 * ground.doubtful.mean(),
            crs_of_scene(scene),
        )


def _covariates(predictor: Predictor, options: MapOptions) -> dict[str, CovariateRaster]:
    """Return the raster of each covariate that the predictor sees."""
    needed = predictor.sees.covariates
    missing = [name for name in needed if name not in options.covariates]
    if missing:
        raise DataError(
            f"The run was trained with {len(needed)} covariates; no raster is given for "
            f"{missing[0]!r}{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}. "
            f"Name one raster per covariate: map.covariates: {{{missing[0]}: FILE.tif}}."
        )
    found = {}
    for name in needed:
        given = options.covariates[name]
        raster = given if isinstance(given, CovariateRaster) else CovariateRaster(path=given)
        there = raster.path.is_file()
        if raster.embedding is not None:
            there = raster.path.exists() or is_remote(str(raster.embedding.paths[0]))
        if not there:
            raise MissingFileError(
                f"There is no raster {raster.path} of the covariate {name!r}. Check covariates."
            )
        found[name] = raster
    return found


def _position_crs(
    predictor: Predictor,
    scene: Scene,
    covariates: dict[str, CovariateRaster],
    options: MapOptions,
) -> str:
    known = predictor.sees.position_crs or options.position_crs
    if known:
        return known
    # It does not know where it is: any CRS tells where its covariates are read.
    if not scene.crs.is_projected and any(raster.side_m for raster in covariates.values()):
        raise DataError(
            "Covariates are read in squares of metres, and the scene is in degrees. Name the CRS "
            "of easting and northing in the data set: map.position_crs."
        )
    return str(scene.crs.to_string())


def _try_one(positions: Positions, *, embeds: bool) -> int:
    """Predict one position, and return the length of its embedding if it is asked for, else 0."""
    predictor = positions.predictor
    rows, cols = np.nonzero(positions.wanted)
    middle = slice(len(rows) // 2, len(rows) // 2 + 1)
    sites = positions.sites(rows[middle], cols[middle], tiles=bool(predictor.sees.bands))
    ids = sites.site_ids
    try:
        if not positions.spread or not isinstance(predictor, Members):
            predictor.predict(sites, ids)
        elif len(predictor.predict_members(sites, ids)) < 2:
            raise ModelError("One member alone has no spread. Leave the layer spread out.")
        return embed(predictor, sites, ids).shape[1] if embeds else 0
    except DataError as error:
        raise DataError(f"This model cannot be mapped: of a place of the map, {error}") from error
