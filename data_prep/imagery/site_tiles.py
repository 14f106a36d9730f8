"""The tiles of a data set: cut from scenes or read ready, one row for every site that has one."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import rasterio.warp
from rasterio.crs import CRS

from butterfly_sdm.core.arrays import new_array
from butterfly_sdm.data.dataset import TileCard
from butterfly_sdm.errors import RasterError, counted
from butterfly_sdm.imagery.discovery import assumed_offsets
from butterfly_sdm.imagery.grids import on_ground, pixel_m, usual_crs
from butterfly_sdm.imagery.scene import Scene
from butterfly_sdm.imagery.spectral_check import implausible, sample_pixels
from data_prep.imagery.cutting import cut_tiles, tiles_on
from data_prep.imagery.options import TileOptions
from data_prep.imagery.ready_tiles import ReadyTiles, find_ready_tiles, pack_tiles, tile_places
from data_prep.imagery.scenes import files_of, scene_of
from data_prep.imagery.tile_grids import TileGrid, tile_grid, transformer
from data_prep.notes import BuildNotes
from data_prep.options import BuildOptions
from data_prep.workbench import Workbench

MARGIN = 0.05  # degrees around the sites in which products are searched


def fill_tiles(
    config: BuildOptions,
    sites: gpd.GeoDataFrame,
    bench: Workbench,
    *,
    opened: Scene | None = None,
) -> tuple[gpd.GeoDataFrame, TileCard | None]:
    """
    Make ``tiles.npy`` of the scenes or ready tiles a config names.

    Parameters
    ----------
    sites
        Index ``site_id``; columns ``lon`` and ``lat``.
    opened
        The scene, if :func:`data_prep.input_files.check_inputs` has opened it.

    Returns
    -------
    sites : GeoDataFrame
        With the columns ``tile_row`` (-1: no tile), ``valid_fraction``, ``tile_crs``,
        ``tile_left``, ``tile_top``.
    card : TileCard or None
        What the tiles have in common; None where the config names no imagery.

    Raises
    ------
    RasterError
        No scene shows a site, or no tile has enough valid pixels.
    """
    if config.scenes is not None:
        scene = _scene(config, sites, opened, bench)
        columns, card = _cut(config.tiles, scene, sites, bench)
    elif config.ready_tiles is not None:
        ready = find_ready_tiles(config.ready_tiles, tuple(sites.index), config.tiles)
        bench.notes.imagery |= dict.fromkeys(layer.path for layer in ready.layers)
        columns = _import(ready, sites, bench)
        card = TileCard(
            bands=ready.bands,
            size_px=ready.size_px,
            resolution_m=ready.resolution_m,
            scale=config.ready_tiles.scale,
            offset=config.ready_tiles.offset,
            nodata=None if ready.dtype == "float32" else int(ready.nodata),
            dtype=ready.dtype,
            signed_square=ready.signed_square,
        )
    else:
        return sites, None
    kept = np.flatnonzero(_kept(columns, config.tiles.min_valid_fraction, bench.notes))
    path = bench.folder / "tiles.npy"
    _keep_rows(bench.scratch / "cut.npy", path, columns["tile_row"].to_numpy()[kept])
    columns["tile_row"] = -1
    columns.iloc[kept, columns.columns.get_loc("tile_row")] = np.arange(len(kept))
    tiles = np.load(path, mmap_mode="r", allow_pickle=False)
    sample = sample_pixels(
        tiles, bands=card.bands, nodata=card.missing, scale=card.scale, offset=card.offset
    )
    for message in implausible(sample):
        bench.notes.warn(f"Tiles: {message}")
    return gpd.GeoDataFrame(sites.join(columns), geometry="geometry", crs=sites.crs), card


def _scene(
    config: BuildOptions, sites: gpd.GeoDataFrame, opened: Scene | None, bench: Workbench
) -> Scene:
    assert config.scenes is not None
    west, south, east, north = sites.total_bounds

    def tell(found: Scene) -> None:
        for message in assumed_offsets(found.pieces):
            bench.notes.warn(message)

    scene, composite = scene_of(
        config.scenes,
        bands=config.tile_bands,
        scratch=bench.scratch,
        opened=opened,
        check=tell,
        executor=bench.executor,
        progress=bench.progress,
        bbox=(west - MARGIN, south - MARGIN, east + MARGIN, north + MARGIN),
    )
    bench.notes.imagery |= files_of(scene) if composite is None else composite.files
    if composite is not None:
        days = list(composite.dates)
        if composite.cloudiness:
            shares = zip(composite.dates, composite.cloudiness, strict=True)
            days = [f"{day} ({share:.0%} cloudy)" for day, share in shares]
        bench.notes.notes.append(f"Tiles are cut from the {composite.method} of {', '.join(days)}.")
    return scene


def _kept(columns: pd.DataFrame, min_valid_fraction: float, notes: BuildNotes) -> np.ndarray:
    """Return which sites keep their tile, and note why others have none."""
    shown: np.ndarray = columns["tile_row"].to_numpy() >= 0
    kept: np.ndarray = shown & (columns["valid_fraction"].to_numpy() >= min_valid_fraction)
    if not kept.any():
        raise RasterError(
            f"No tile has {min_valid_fraction:.0%} valid pixels; the best has "
            f"{columns['valid_fraction'].max():.0%}. Lower tiles.min_valid_fraction, or give "
            "scenes with fewer gaps."
        )
    dropped, lost = int((shown & ~kept).sum()), int((~shown).sum())
    if dropped:
        notes.notes.append(
            f"{counted(dropped, 'site has', 'sites have')} no tile because fewer than "
            f"{min_valid_fraction:.0%} of its pixels are valid."
        )
    if lost:
        text = f"{lost:,} of {len(shown):,} sites have no tile because no scene or file shows them."
        if 2 * lost > len(shown):
            notes.warn(text)
        else:
            notes.notes.append(text)
    return kept


def _cut(
    options: TileOptions, scene: Scene, sites: gpd.GeoDataFrame, bench: Workbench
) -> tuple[pd.DataFrame, TileCard]:
    grid = tile_grid(sites["lon"].to_numpy(), sites["lat"].to_numpy(), scene, options)
    touched = np.unique(np.concatenate([tiles_on(grid, piece) for piece in scene.pieces]))
    if not len(touched):
        raise RasterError(_nowhere(scene, grid, sites))
    part = grid.take(touched)
    _tell_ground(part, sites.iloc[touched], bench.notes)
    _tell_coarse(grid, scene, bench.notes)
    valid = cut_tiles(
        scene,
        part,
        bench.scratch / "cut.npy",
        resampling=options.resampling,
        executor=bench.executor,
        progress=bench.progress,
        keep_journal=True,  # a build that goes on from here finds what was damaged meanwhile
    )
    cut = pd.DataFrame(
        {
            "tile_row": np.arange(len(touched)),
            "valid_fraction": valid,
            "tile_crs": grid.crs.to_string(),
            "tile_left": part.left,
            "tile_top": part.top,
        },
        index=sites.index[touched],
    )
    card = TileCard.of_scene(scene, size_px=grid.size_px, resolution_m=grid.resolution_m)
    return _for_all(cut, sites).assign(tile_crs=grid.crs.to_string()), card


def _tell_ground(grid: TileGrid, sites: gpd.GeoDataFrame, notes: BuildNotes) -> None:
    """Warn of tiles that show more, less or otherwise turned ground than they are called."""
    ground = grid.on_ground()
    wrong = int(ground.doubtful.sum())
    if not wrong:
        return
    usual = usual_crs(sites["lon"], sites["lat"])
    x, y = transformer(CRS.from_epsg(4326), CRS.from_user_input(usual)).transform(
        sites["lon"].to_numpy(), sites["lat"].to_numpy()
    )
    better = not on_ground(CRS.from_user_input(usual), x, y, ground.side_m).doubtful.any()
    notes.warn(
        f"{wrong:,} of {len(grid):,} tiles in {grid.crs.to_string()} do not show the ground they "
        f"are called: squares of {ground.side_m:,.0f} m are {ground.words()}. "
        + (
            f"Set tiles.crs: {usual}."
            if better
            else "The sites lie too far apart for one grid: build a data set for each UTM zone, or "
            "let a model take it as it is."
        )
    )


def _tell_coarse(grid: TileGrid, scene: Scene, notes: BuildNotes) -> None:
    """Warn of tiles with smaller pixels than the scene has."""
    known_m = scene.resolution_m if grid.crs == scene.crs else pixel_m(scene)
    if known_m > 1.1 * grid.resolution_m:
        notes.warn(
            f"The pixels of the scene are {known_m:.3g} m, those of tiles {grid.resolution_m:g} m: "
            f"a tile of {grid.size_px} x {grid.size_px} pixels shows only "
            f"{(grid.size_px * grid.resolution_m / known_m) ** 2:,.0f} of the scene. Set "
            f"tiles.resolution_m: {known_m:.3g}."
        )


def _for_all(columns: pd.DataFrame, sites: gpd.GeoDataFrame) -> pd.DataFrame:
    """Return the columns of all sites, of which some have no tile."""
    columns = columns.reindex(sites.index)
    columns["tile_row"] = columns["tile_row"].fillna(-1).astype("int64")
    columns["valid_fraction"] = columns["valid_fraction"].fillna(0.0)
    return columns


def _nowhere(scene: Scene, grid: TileGrid, sites: gpd.GeoDataFrame) -> str:
    left, bottom, right, top = rasterio.warp.transform_bounds(scene.crs, "EPSG:4326", *scene.bounds)
    return (
        f"The scenes cover none of the {len(sites)} sites. The scenes ({scene.pieces[0].name}"
        + (f" and {len(scene.pieces) - 1} more" if len(scene.pieces) > 1 else "")
        + f") lie at {left:.2f} to {right:.2f} E, {bottom:.2f} to {top:.2f} N; the sites at "
        f"{sites['lon'].min():.2f} to "
        f"{sites['lon'].max():.2f} E, {sites['lat'].min():.2f} to {sites['lat'].max():.2f} N. Give "
        "scenes of the sites."
    )


def _import(ready: ReadyTiles, sites: gpd.GeoDataFrame, bench: Workbench) -> pd.DataFrame:
    out = bench.scratch / "cut.npy"
    valid = pack_tiles(ready, out, executor=bench.executor, progress=bench.progress)
    columns = pd.DataFrame(
        {"tile_row": np.arange(len(ready.sites)), "valid_fraction": valid, **tile_places(ready)},
        index=list(ready.sites),
    )
    _check_places(columns, sites, ready.size_px * ready.resolution_m, bench.notes)
    return _for_all(columns, sites)


def _check_places(
    columns: pd.DataFrame, sites: gpd.GeoDataFrame, side: float, notes: BuildNotes
) -> None:
    """Warn of ready tiles that do not show their site."""
    wrong = []
    for crs, part in columns.groupby("tile_crs"):
        points = gpd.GeoSeries(
            gpd.points_from_xy(sites.loc[part.index, "lon"], sites.loc[part.index, "lat"]), crs=4326
        ).to_crs(crs)
        x, y = (
            points.x.to_numpy() - part["tile_left"].to_numpy(),
            part["tile_top"].to_numpy() - points.y.to_numpy(),
        )
        wrong += list(part.index[(x < 0) | (x > side) | (y < 0) | (y > side)])
    if wrong:
        notes.warn(
            f"{len(wrong)} ready tiles do not show their site, such as that of {wrong[0]}. "
            "Do the ids in the file names fit the sites?"
        )


def _keep_rows(source: Path, target: Path, rows: np.ndarray) -> None:
    """Make ``target`` of some rows of ``source``; all of them cost nothing."""
    array = np.load(source, mmap_mode="r", allow_pickle=False)
    if target.is_file():
        target.unlink()
    if len(rows) == len(array) and (np.diff(rows) == 1).all():
        del array
        target.hardlink_to(source)
        return
    out = new_array(target, (len(rows), *array.shape[1:]), array.dtype)
    for number, row in enumerate(rows):
        out[number] = array[row]
    out.flush()
