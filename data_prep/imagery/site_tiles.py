"""The tiles of a data set: cut from scenes or read ready, one row for every site that has one."""

from __future__ import annotations

from concurrent.futures import Executor
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import rasterio.warp

from butterfly_sdm.core.arrays import new_array
from butterfly_sdm.core.files import read_json, write_json
from butterfly_sdm.data.dataset import TileCard
from butterfly_sdm.errors import RasterError
from butterfly_sdm.imagery.scene import Scene
from butterfly_sdm.imagery.spectral_check import implausible, sample_pixels
from butterfly_sdm.progress import Progress
from data_prep.imagery.cutting import cut_tiles, tiles_on
from data_prep.imagery.options import ReadyTileOptions
from data_prep.imagery.ready_tiles import find_ready_tiles, pack_tiles, tile_places
from data_prep.imagery.scenes import files_of, scene_of
from data_prep.imagery.tile_grids import TileGrid, tile_grid
from data_prep.notes import Findings
from data_prep.options import BuildOptions


def fill_tiles(
    config: BuildOptions,
    sites: gpd.GeoDataFrame,
    partial: Path,
    scratch: Path,
    *,
    opened: Scene | None = None,
    executor: Executor,
    findings: Findings,
    progress: Progress,
) -> tuple[gpd.GeoDataFrame, TileCard | None]:
    """
    Make ``tiles.npy`` of the scenes or ready tiles a config names.

    Parameters
    ----------
    sites
        Index ``site_id``; columns ``lon`` and ``lat``.
    partial
        The unfinished data set folder.
    scratch
        Folder in it for what is needed on the way, so that an interrupted build goes on where it
        was.
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
    if config.scenes is None and config.ready_tiles is None:
        return sites, None
    if config.scenes is not None:
        margin = 0.05
        west, south, east, north = sites.total_bounds
        scene, composite = scene_of(
            config.scenes,
            bands=config.tiles.bands,
            scratch=scratch,
            opened=opened,
            executor=executor,
            progress=progress,
            bbox=(west - margin, south - margin, east + margin, north + margin),
        )
        findings.imagery |= files_of(scene) if composite is None else composite.files
        if composite is not None:
            clouds = ", ".join(
                f"{day} ({share:.0%} cloudy)"
                for day, share in zip(composite.dates, composite.cloudiness, strict=True)
            )
            findings.notes.append(f"Tiles are cut from the {composite.method} of {clouds}.")
        columns, card = _cut(config, scene, sites, scratch, executor, findings, progress)
    else:
        assert config.ready_tiles is not None
        columns, card = _import(
            config, config.ready_tiles, sites, scratch, executor, findings, progress
        )
    keep = columns["tile_row"] >= 0
    dropped = keep & (columns["valid_fraction"] < config.tiles.min_valid_fraction)
    kept = np.flatnonzero(keep & ~dropped)
    if not len(kept):
        raise RasterError(
            f"No tile has {config.tiles.min_valid_fraction:.0%} valid pixels; the best has "
            f"{columns['valid_fraction'].max():.0%}. Lower tiles.min_valid_fraction, or give "
            "scenes with fewer gaps."
        )
    if dropped.any():
        findings.notes.append(
            f"{int(dropped.sum())} sites have no tile because fewer than "
            f"{config.tiles.min_valid_fraction:.0%} of its pixels "
            "are valid."
        )
    if (~keep).any():
        lost = int((~keep).sum())
        text = f"{lost:,} of {len(keep):,} sites have no tile because no scene or file shows them."
        if 2 * lost > len(keep):
            findings.warn(text)
        else:
            findings.notes.append(text)
    _keep_rows(scratch / "cut.npy", partial / "tiles.npy", columns["tile_row"].to_numpy()[kept])
    columns["tile_row"] = -1
    columns.iloc[kept, columns.columns.get_loc("tile_row")] = np.arange(len(kept))
    tiles = np.load(partial / "tiles.npy", mmap_mode="r", allow_pickle=False)
    for message in implausible(
        sample_pixels(
            tiles, bands=card.bands, nodata=card.nodata, scale=card.scale, offset=card.offset
        )
    ):
        findings.warn(f"Tiles: {message}")
    return gpd.GeoDataFrame(sites.join(columns), geometry="geometry", crs=sites.crs), card


def _cut(
    config: BuildOptions,
    scene: Scene,
    sites: gpd.GeoDataFrame,
    scratch: Path,
    executor: Executor,
    findings: Findings,
    progress: Progress,
) -> tuple[pd.DataFrame, TileCard]:
    options = config.tiles
    grid = tile_grid(
        sites["lon"].to_numpy(),
        sites["lat"].to_numpy(),
        scene=scene,
        size_px=options.size_px,
        resolution_m=options.resolution_m,
        crs=options.crs,
        lattice_m=options.lattice_m,
    )
    touched = np.unique(np.concatenate([tiles_on(grid, piece) for piece in scene.pieces]))
    if not len(touched):
        raise RasterError(_nowhere(scene, grid, sites))
    columns = pd.DataFrame(
        {
            "tile_row": np.full(len(sites), -1),
            "valid_fraction": 0.0,
            "tile_crs": None,
            "tile_left": np.nan,
            "tile_top": np.nan,
        },
        index=sites.index,
    )
    columns["tile_crs"] = columns["tile_crs"].astype("str")
    part = grid.take(touched)
    done = scratch / "cut.json"
    if done.is_file() and (scratch / "cut.npy").is_file():
        valid = np.array(read_json(done))
    else:
        valid = cut_tiles(
            scene,
            part,
            scratch / "cut.npy",
            resampling=options.resampling,
            executor=executor,
            progress=progress,
        )
        write_json(done, valid.tolist())
    at = columns.columns.get_indexer(["tile_row", "valid_fraction", "tile_left", "tile_top"])
    columns.iloc[touched, at[0]] = np.arange(len(touched))
    columns.iloc[touched, at[1]] = valid
    columns.iloc[touched, at[2]] = part.left
    columns.iloc[touched, at[3]] = part.top
    columns["tile_crs"] = grid.crs.to_string()
    card = TileCard(
        bands=scene.bands,
        size_px=grid.size_px,
        resolution_m=grid.resolution_m,
        scale=scene.scale,
        offset=scene.offset,
        nodata=scene.nodata,
    )
    return columns, card


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


def _import(
    config: BuildOptions,
    ready_config: ReadyTileOptions,
    sites: gpd.GeoDataFrame,
    scratch: Path,
    executor: Executor,
    findings: Findings,
    progress: Progress,
) -> tuple[pd.DataFrame, TileCard]:
    stated = "size_px" in config.tiles.model_fields_set
    ready = find_ready_tiles(
        ready_config.folders,
        tuple(sites.index),
        bands=ready_config.bands,
        wanted=config.tiles.bands,
        pattern=ready_config.pattern,
        nodata=ready_config.nodata,
        size_px=config.tiles.size_px if stated else None,
    )
    findings.imagery |= dict.fromkeys(layer.path for layer in ready.layers)
    valid = pack_tiles(ready, scratch / "cut.npy", executor=executor, progress=progress)
    columns = pd.DataFrame(
        {"tile_row": np.arange(len(ready.sites)), "valid_fraction": valid, **tile_places(ready)},
        index=list(ready.sites),
    )
    _check_places(columns, sites, ready.size_px * ready.resolution_m, findings)
    columns = columns.reindex(sites.index)
    columns["tile_row"] = columns["tile_row"].fillna(-1).astype("int64")
    columns["valid_fraction"] = columns["valid_fraction"].fillna(0.0)
    card = TileCard(
        bands=ready.bands,
        size_px=ready.size_px,
        resolution_m=ready.resolution_m,
        scale=ready_config.scale,
        offset=ready_config.offset,
        nodata=ready.nodata,
    )
    return columns, card


def _check_places(
    columns: pd.DataFrame, sites: gpd.GeoDataFrame, side: float, findings: Findings
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
        findings.warn(
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
    out = new_array(target, (len(rows), *array.shape[1:]), np.uint16)
    for number, row in enumerate(rows):
        out[number] = array[row]
    out.flush()
