"""
The stage build: scenes and records become a data set folder.

Every step leaves its result in the unfinished folder, so that a build that was interrupted goes on where it was; the finished
folder depends on the inputs and the config alone, byte for byte.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import shapely
from pydantic import ValidationError

from butterfly_sdm.config import BuildConfig, ReadyTilesConfig
from butterfly_sdm.data.artefact import (
    damage,
    fingerprint,
    is_finished,
    new_array,
    read_json,
    resumable_folder,
    sealed,
    sha256,
    write_json,
)
from butterfly_sdm.data.dataset import Dataset, DatasetCard, Source, TileCard
from butterfly_sdm.data.leakage import report_leakage
from butterfly_sdm.data.raster import Scene
from butterfly_sdm.data.spectral import implausible, sample_pixels
from butterfly_sdm.data.splits import Split
from butterfly_sdm.data.splitting import (
    group_sites,
    leave_out_near,
    make_folds,
    make_split,
    read_regions,
    read_split,
    split_by_region,
)
from butterfly_sdm.errors import ButterflySDMError, ConfigError, DataError, MissingPackageError, RasterError
from butterfly_sdm.progress import Progress, silent
from data_prep.covariates import raster_covariates, read_covariates
from data_prep.grids import TileGrid, tile_grid
from data_prep.ready_tiles import find_ready_tiles, pack_tiles, tile_places
from data_prep.scenes import scene_of
from data_prep.tiles import cut_tiles, run_units, threads, tiles_on

if TYPE_CHECKING:
    from data_prep.visits import SurveyTable

log = logging.getLogger("data_prep.build")


@dataclass
class _Findings:
    """What goes into the card while the folder is filled."""

    sources: list[Source] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def warn(self, message: str) -> None:
        log.warning(message)
        self.warnings.append(message)


def build_dataset(
    config: BuildConfig,
    folder: Path,
    *,
    name: str,
    seed: int,
    progress: Progress = silent,
    executor: Executor | None = None,
    survey: SurveyTable | None = None,
) -> Path:
    """
    Turn records, scenes and covariates into a data set folder.

    Interrupted at any moment and called again with the same arguments, it goes on where it was and ends with the same bytes.

    Parameters
    ----------
    config
        Section ``build``.
    folder
        Where the data set shall lie; replaced if it exists.
    name, seed
        Of the experiment; the seed deals groups of sites to the parts of the split.
    executor
        Runs units of work, such as a Dask client's; None for ``config.workers`` threads or the cluster at ``config.dask``.
    survey
        Detections and visits made elsewhere, instead of ``config.records``.

    Returns
    -------
    Path
        ``folder``.

    Raises
    ------
    MissingFileError, RecordsError, RasterError, DataError, ConfigError
        An input is missing, damaged or does not fit; nothing half-finished takes the place of an older data set.
    """
    folder = Path(folder)
    if config.scenes is not None and config.ready_tiles is not None:
        raise ConfigError("build.scenes and build.ready_tiles are both given. Tiles come from one of them: remove the other.")
    key = _key(config, name, seed, survey)
    if is_finished(folder, key):
        log.info("%s is there already, made from the same settings and files.", folder)
        return folder
    with resumable_folder(folder, key) as partial:
        scratch = partial / ".scratch"
        scratch.mkdir(exist_ok=True)
        findings = _Findings()
        table = survey if survey is not None else _survey(config, scratch, progress, findings)
        sites, detections, rows, years = _labels(table, config)
        with _executor(config, executor) as pool:
            sites, tiles = _tiles(config, sites, partial, scratch, pool, findings, progress)
            covariates, units = _covariates(config, sites, pool, findings)
            _sources(config, findings, pool, progress)
        split, block = _split(config, sites, seed, tiles, findings)
        if block is not None:
            sites["block"] = block
        card = DatasetCard(
            name=name,
            species=tuple(detections.columns),
            years=tuple(int(year) for year in years),
            position_crs=config.position_crs,
            tiles=tiles,
            covariates=units,
            rows={key: int(value) for key, value in rows.items()},
            sources=tuple(sorted(findings.sources, key=lambda source: (source.role, source.name, source.sha256 or ""))),
            warnings=tuple(findings.warnings),
            notes=tuple(findings.notes),
            software=_software(),
        )
        # Says now, not when it is opened, that the parts do not fit together.
        Dataset(card, sites.set_geometry("geometry"), detections, None, covariates, split)
        progress("writing the data set", 0, 1)
        _write(partial, card, sites, detections, covariates, split)
        shutil.rmtree(scratch)
        progress("writing the data set", 1, 1)
    return folder


def check_dataset(folder: str | Path) -> list[str]:
    """
    Verify a data set: every byte against the card, and that the tables, tiles and split fit together.

    Returns
    -------
    list of str
        One sentence per problem; empty if all is well.
    """
    folder = Path(folder)
    problems = damage(folder / "dataset.json")
    if problems:
        return problems
    try:
        dataset = Dataset.open(folder)
    except ButterflySDMError as error:
        return [str(error)]
    listed = {"dataset.json", *dataset.card.files}
    problems += [f"{path} is not part of the data set." for path in sorted(folder.iterdir()) if path.name not in listed]
    if dataset.split is not None:
        known = set(dataset.site_ids)
        problems += [
            f"The split names site {site}, which is not there." for site in dataset.split.part_of() if site not in known
        ]
    card = dataset.card.tiles
    if card is not None and dataset.tiles is None:
        problems.append(f"{folder / 'tiles.npy'} is missing, but the card describes tiles.")
    if card is not None and dataset.tiles is not None:
        rows = dataset.sites["tile_row"].to_numpy()
        held = np.sort(rows[rows >= 0])
        if dataset.tiles.shape[1:] != (len(card.bands), card.size_px, card.size_px):
            problems.append(
                f"The tiles have the shape {dataset.tiles.shape[1:]}; the card says {len(card.bands)} bands, {card.size_px} px."
            )
        elif not np.array_equal(held, np.arange(len(dataset.tiles))):
            problems.append(
                f"{len(dataset.tiles)} tiles are stored, but the sites point to {len(held)} of them, or to one twice."
            )
        else:
            for site, row, share in zip(dataset.site_ids, rows, dataset.sites["valid_fraction"], strict=True):
                if row >= 0 and abs(float((dataset.tiles[row] != card.nodata).all(axis=0).mean()) - share) > 1e-9:
                    problems.append(f"The share of valid pixels of site {site} is not the one that is stated, {share:.4f}.")
    return problems


def _key(config: BuildConfig, name: str, seed: int, survey: SurveyTable | None) -> str:
    """Return a fingerprint of all that the data set depends on, files by size and time of change."""
    stamps = {}
    for path in _input_files(config):
        stat = path.stat() if path.exists() else None
        stamps[str(path)] = None if stat is None else [stat.st_size, stat.st_mtime_ns]
    given = None
    if survey is not None:
        given = [
            pd.util.hash_pandas_object(part, index=True).to_numpy().tolist() for part in (survey.detections, survey.visits)
        ]
    settings = config.model_dump(mode="json", exclude={"workers", "dask"})
    return fingerprint(
        {"config": settings, "name": name, "seed": seed, "files": stamps, "survey": given, "software": _software()}
    )


def _input_files(config: BuildConfig) -> Iterable[Path]:
    paths: list[Path] = []
    for path in (config.records.path, config.records.sites, config.records.species, config.records.synonyms):
        paths += [path] if isinstance(path, Path) else [part for part in path or () if isinstance(part, Path)]
    if config.scenes is not None:
        paths += config.scenes.paths
    if config.ready_tiles is not None:
        paths += _folders(config.ready_tiles)
    if config.covariates is not None:
        paths += [path for path in (config.covariates.table, *(raster.path for raster in config.covariates.rasters)) if path]
    paths += [path for path in (config.split.path, config.split.regions) if path]
    for path in paths:
        yield path
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.is_file())


def _folders(ready: ReadyTilesConfig) -> tuple[Path, ...]:
    return (ready.folder,) if isinstance(ready.folder, Path) else tuple(ready.folder)


def _executor(config: BuildConfig, executor: Executor | None) -> AbstractContextManager[Executor]:
    if executor is not None:
        return nullcontext(executor)
    if config.dask is None:
        return threads(config.workers)
    try:
        from distributed import Client
    except ImportError as error:
        raise MissingPackageError(
            "build.dask needs the package distributed. Install it with: pip install butterfly-sdm[distributed]"
        ) from error
    try:
        client = Client(config.dask, timeout=20)
    except (OSError, ValueError) as error:
        raise ConfigError(f"build.dask = {config.dask!r}: no Dask scheduler answers there ({error}).") from error
    return client.get_executor()


def _survey(config: BuildConfig, scratch: Path, progress: Progress, findings: _Findings) -> SurveyTable:
    from data_prep.visits import read_survey, record_sources

    survey = read_survey(config.records, scratch=scratch, progress=progress)
    findings.sources.extend(record_sources(config.records))
    findings.notes.extend(survey.notes)
    return survey


def _labels(
    survey: SurveyTable, config: BuildConfig
) -> tuple[gpd.GeoDataFrame, pd.DataFrame, Mapping[str, int], Sequence[int]]:
    """Return the tables of sites and detections, sorted alike, with positions."""
    if not len(survey.sites):
        raise DataError("No site is left. Lower records.min_records or widen the years.")
    detections = survey.detections.copy()
    detections.index = detections.index.astype(str).rename("site_id")
    sites = survey.sites.copy()
    sites.index = sites.index.astype(str).rename("site_id")
    sites = sites.loc[detections.index, [column for column in ("geometry", "lon", "lat") if column in sites.columns]]
    visits = survey.visits.copy()
    visits.index = visits.index.astype(str)
    shapes = sites.geometry if sites.crs is None or sites.crs == "EPSG:4326" else sites.geometry.to_crs(4326)
    centre = shapely.centroid(shapes.to_numpy())  # in degrees: right to centimetres for a square of a kilometre
    for axis, values in (("lon", shapely.get_x(centre)), ("lat", shapely.get_y(centre))):
        if axis not in sites.columns:
            sites[axis] = values
    try:
        position = gpd.GeoSeries(gpd.points_from_xy(sites["lon"], sites["lat"]), crs=4326).to_crs(config.position_crs)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"build.position_crs = {config.position_crs!r}: {error}. Give a projected CRS such as EPSG:27700."
        ) from error
    if not position.crs.is_projected:
        raise ConfigError(
            f"build.position_crs = {config.position_crs!r} is in degrees. Give a projected CRS such as EPSG:27700."
        )
    factor = position.crs.axis_info[0].unit_conversion_factor
    sites["easting"], sites["northing"] = position.x.to_numpy() * factor, position.y.to_numpy() * factor
    outside = ~np.isfinite(sites[["easting", "northing"]]).all(axis=1)
    if outside.any():
        raise DataError(
            f"Site {sites.index[outside][0]} has no position in {config.position_crs}. Choose another build.position_crs."
        )
    sites["visits"] = visits.loc[detections.index].astype("int64")
    detections = detections.astype("int64")
    detections.columns = detections.columns.astype(str).rename(None)
    order = ["easting", "northing", "lon", "lat", "visits", "geometry"]
    return gpd.GeoDataFrame(sites[order], geometry="geometry", crs=sites.crs or 4326), detections, survey.rows, survey.years


def _tiles(
    config: BuildConfig,
    sites: gpd.GeoDataFrame,
    partial: Path,
    scratch: Path,
    pool: Executor,
    findings: _Findings,
    progress: Progress,
) -> tuple[gpd.GeoDataFrame, TileCard | None]:
    """Fill ``tiles.npy`` and return the sites with the columns of their tiles."""
    if config.scenes is None and config.ready_tiles is None:
        return sites, None
    if config.scenes is not None:
        margin = 0.05
        west, south, east, north = sites.total_bounds
        scene, composite = scene_of(
            config.scenes, bands=config.tiles.bands, scratch=scratch, executor=pool, progress=progress,
            bbox=(west - margin, south - margin, east + margin, north + margin),
        )  # fmt: skip
        if composite is not None:
            clouds = ", ".join(
                f"{day} ({share:.0%} cloudy)" for day, share in zip(composite.dates, composite.cloudiness, strict=True)
            )
            findings.notes.append(f"Tiles are cut from the {composite.method} of {clouds}.")
        columns, card = _cut(config, scene, sites, scratch, pool, findings, progress)
    else:
        assert config.ready_tiles is not None
        columns, card = _import(config, config.ready_tiles, sites, scratch, pool, findings, progress)
    keep = columns["tile_row"] >= 0
    dropped = keep & (columns["valid_fraction"] < config.tiles.min_valid_fraction)
    kept = np.flatnonzero(keep & ~dropped)
    if not len(kept):
        raise RasterError(
            f"No tile has {config.tiles.min_valid_fraction:.0%} valid pixels; the best has "
            f"{columns['valid_fraction'].max():.0%}. Lower tiles.min_valid_fraction, or give scenes with fewer gaps."
        )
    if dropped.any():
        findings.notes.append(
            f"{int(dropped.sum())} sites have no tile because fewer than {config.tiles.min_valid_fraction:.0%} of its pixels "
            "are valid."
        )
    if (~keep).any():
        findings.notes.append(f"{int((~keep).sum())} sites have no tile because no scene or file shows them.")
    _keep_rows(scratch / "cut.npy", partial / "tiles.npy", columns["tile_row"].to_numpy()[kept])
    columns["tile_row"] = -1
    columns.iloc[kept, columns.columns.get_loc("tile_row")] = np.arange(len(kept))
    tiles = np.load(partial / "tiles.npy", mmap_mode="r", allow_pickle=False)
    for message in implausible(
        sample_pixels(tiles, bands=card.bands, nodata=card.nodata, scale=card.scale, offset=card.offset)
    ):
        findings.warn(f"Tiles: {message}")
    return gpd.GeoDataFrame(sites.join(columns), geometry="geometry", crs=sites.crs), card


def _cut(
    config: BuildConfig,
    scene: Scene,
    sites: gpd.GeoDataFrame,
    scratch: Path,
    pool: Executor,
    findings: _Findings,
    progress: Progress,
) -> tuple[pd.DataFrame, TileCard]:
    options = config.tiles
    grid = tile_grid(
        sites["lon"].to_numpy(), sites["lat"].to_numpy(), scene=scene, size_px=options.size_px,
        resolution_m=options.resolution_m, crs=options.crs, lattice_m=options.lattice_m,
    )  # fmt: skip
    touched = np.unique(np.concatenate([tiles_on(grid, piece) for piece in scene.pieces]))
    if not len(touched):
        raise RasterError(_nowhere(scene, grid, sites))
    columns = pd.DataFrame(
        {"tile_row": np.full(len(sites), -1), "valid_fraction": 0.0, "tile_crs": None, "tile_left": np.nan, "tile_top": np.nan},
        index=sites.index,
    )
    columns["tile_crs"] = columns["tile_crs"].astype("str")
    part = grid.take(touched)
    done = scratch / "cut.json"
    if done.is_file() and (scratch / "cut.npy").is_file():
        valid = np.array(read_json(done))
    else:
        valid = cut_tiles(scene, part, scratch / "cut.npy", resampling=options.resampling, executor=pool, progress=progress)
        write_json(done, valid.tolist())
    at = columns.columns.get_indexer(["tile_row", "valid_fraction", "tile_left", "tile_top"])
    columns.iloc[touched, at[0]] = np.arange(len(touched))
    columns.iloc[touched, at[1]] = valid
    columns.iloc[touched, at[2]] = part.left
    columns.iloc[touched, at[3]] = part.top
    columns["tile_crs"] = scene_crs_name(grid)
    card = TileCard(
        bands=scene.bands,
        size_px=grid.size_px,
        resolution_m=grid.resolution_m,
        scale=scene.scale,
        offset=scene.offset,
        nodata=scene.nodata,
    )
    return columns, card


def scene_crs_name(grid: TileGrid) -> str:
    """Return the CRS of tiles as EPSG code, or as WKT if it has none."""
    return str(grid.crs.to_string())


def _nowhere(scene: Scene, grid: TileGrid, sites: gpd.GeoDataFrame) -> str:
    left, bottom, right, top = rasterio.warp.transform_bounds(scene.crs, "EPSG:4326", *scene.bounds)
    return (
        f"The scenes cover none of the {len(sites)} sites. The scenes ({scene.pieces[0].name}"
        + (f" and {len(scene.pieces) - 1} more" if len(scene.pieces) > 1 else "")
        + f") lie at {left:.2f} to {right:.2f} E, {bottom:.2f} to {top:.2f} N; the sites at {sites['lon'].min():.2f} to "
        f"{sites['lon'].max():.2f} E, {sites['lat'].min():.2f} to {sites['lat'].max():.2f} N. Give scenes of the sites."
    )


def _import(
    config: BuildConfig,
    ready_config: ReadyTilesConfig,
    sites: gpd.GeoDataFrame,
    scratch: Path,
    pool: Executor,
    findings: _Findings,
    progress: Progress,
) -> tuple[pd.DataFrame, TileCard]:
    stated = "size_px" in config.tiles.model_fields_set
    ready = find_ready_tiles(
        _folders(ready_config), tuple(sites.index), bands=ready_config.bands, wanted=config.tiles.bands,
        pattern=ready_config.pattern, nodata=ready_config.nodata, size_px=config.tiles.size_px if stated else None,
    )  # fmt: skip
    valid = pack_tiles(ready, scratch / "cut.npy", executor=pool, progress=progress)
    columns = pd.DataFrame(
        {"tile_row": np.arange(len(ready.sites)), "valid_fraction": valid, **tile_places(ready)}, index=list(ready.sites)
    )
    _check_places(columns, sites, ready.size_px * ready.resolution_m, findings)
    columns = columns.reindex(sites.index)
    columns["tile_row"] = columns["tile_row"].fillna(-1).astype("int64")
    columns["valid_fraction"] = columns["valid_fraction"].fillna(0.0)
    card = TileCard(
        bands=ready.bands, size_px=ready.size_px, resolution_m=ready.resolution_m, scale=ready_config.scale,
        offset=ready_config.offset, nodata=ready.nodata,
    )  # fmt: skip
    return columns, card


def _check_places(columns: pd.DataFrame, sites: gpd.GeoDataFrame, side: float, findings: _Findings) -> None:
    """Warn of ready tiles that do not show their site."""
    wrong = []
    for crs, part in columns.groupby("tile_crs"):
        points = gpd.GeoSeries(gpd.points_from_xy(sites.loc[part.index, "lon"], sites.loc[part.index, "lat"]), crs=4326).to_crs(
            crs
        )
        x, y = points.x.to_numpy() - part["tile_left"].to_numpy(), part["tile_top"].to_numpy() - points.y.to_numpy()
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


def _sources(config: BuildConfig, findings: _Findings, pool: Executor, progress: Progress) -> None:
    """Record every input file with its SHA-256."""
    wanted: list[tuple[str, Path]] = []
    if config.scenes is not None:
        wanted += [("scene", path) for path in _files(config.scenes.paths)]
    if config.ready_tiles is not None:
        wanted += [("scene", path) for path in _files(_folders(config.ready_tiles))]
    if config.covariates is not None:
        covariates = (config.covariates.table, *(raster.path for raster in config.covariates.rasters))
        wanted += [("covariates", path) for path in covariates if path]
    chosen = {"file": config.split.path, "regions": config.split.regions}.get(config.split.method)
    if chosen is not None:
        wanted.append(("split", chosen))
    wanted = [(role, path) for role, path in wanted if path.is_file()]
    digests: dict[str, str] = {}
    for path, digest in run_units(pool, [(str(path), sha256, (path,)) for _, path in wanted]):
        digests[path] = digest
        progress("checksums of the sources", len(digests), len(wanted))
    findings.sources.extend(
        Source(role=role, name=path.name, sha256=digests[str(path)], bytes=path.stat().st_size)  # type: ignore[arg-type]
        for role, path in wanted
    )


def _files(paths: Iterable[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        found += sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    return found


def _covariates(
    config: BuildConfig, sites: gpd.GeoDataFrame, pool: Executor, findings: _Findings
) -> tuple[pd.DataFrame | None, dict[str, str]]:
    options = config.covariates
    if options is None or (options.table is None and not options.rasters):
        return None, {}
    parts: list[pd.DataFrame] = []
    units: dict[str, str] = {}
    if options.table is not None:
        values, units = read_covariates(options.table, sites.index, units=options.units)
        empty = int(values.isna().all(axis=1).sum())
        if empty:
            findings.notes.append(f"{empty} sites have no covariates: the table does not name them.")
        parts.append(values)
    for raster in options.rasters:
        values = raster_covariates(
            raster.path, sites, name=raster.name, kind=raster.kind, side_m=raster.side_m, classes=raster.classes,
            band=raster.band, position_crs=config.position_crs, executor=pool,
        )  # fmt: skip
        units |= dict.fromkeys(values.columns, raster.unit if raster.kind == "mean" else "share")
        parts.append(values)
    table = pd.concat(parts, axis=1)
    twice = table.columns[table.columns.duplicated()]
    if len(twice):
        raise DataError(f"The covariate {twice[0]} comes from two sources. Give one of covariates.rasters another name.")
    return table, units


def _split(
    config: BuildConfig, sites: gpd.GeoDataFrame, seed: int, tiles: TileCard | None, findings: _Findings
) -> tuple[Split, np.ndarray | None]:
    options = config.split
    block: np.ndarray | None = None
    if options.method == "file":
        if options.path is None:
            raise ConfigError("split.method is file, but split.path does not say which file.")
        split, ignored = read_split(options.path, tuple(sites.index))
        if ignored:
            findings.notes.append(f"{ignored} sites of {options.path.name} are not in the data set.")
        without = len(sites) - len(split.part_of())
        if without:
            findings.notes.append(f"{without} sites are in no part of the split.")
    elif options.method == "regions":
        if options.regions is None or not options.validation_regions:
            raise ConfigError("split.method is regions: state split.regions (polygons) and split.validation_regions (names).")
        regions = read_regions(options.regions, sites)
        split = split_by_region(regions, validation=options.validation_regions, test=options.test_regions)
        block, _ = group_sites(sites, method="regions", regions=regions.fillna(""))
    elif options.folds is not None:
        folds, block = make_folds(sites, method=options.method, distance_m=options.distance_m, folds=options.folds, seed=seed)
        if options.fold > options.folds:
            raise ConfigError(f"split.fold = {options.fold}: there are {options.folds} folds, counted from 1.")
        split = folds[options.fold - 1]
    else:
        split, block = make_split(
            sites, method=options.method, distance_m=options.distance_m, fractions=options.fractions, seed=seed
        )
    split = leave_out_near(split, sites, buffer_m=options.buffer_m)
    if split.train and tiles is not None:
        report = report_leakage(sites, split, tile_m=tiles.size_px * tiles.resolution_m)
        for message in report.warnings():
            findings.warn(message)
    return split, block


def _software() -> dict[str, str]:
    names = ("butterfly-sdm", "numpy", "pandas", "geopandas", "pyarrow", "pyproj", "rasterio")
    return {name: version(name) for name in names} | {"gdal": rasterio.__gdal_version__}


def _write(
    partial: Path,
    card: DatasetCard,
    sites: gpd.GeoDataFrame,
    detections: pd.DataFrame,
    covariates: pd.DataFrame | None,
    split: Split,
) -> None:
    sites.reset_index().to_parquet(partial / "sites.parquet", index=False)
    detections.reset_index().to_parquet(partial / "detections.parquet", index=False)
    if covariates is not None:
        covariates.rename_axis("site_id").reset_index().to_parquet(partial / "covariates.parquet", index=False)
    split.to_json(partial / "split.json")
    files = {path.name: sha256(path) for path in sorted(partial.iterdir()) if path.is_file() and not path.name.startswith(".")}
    files.pop("dataset.json", None)
    try:
        card = card.model_copy(update={"files": files})
        write_json(partial / "dataset.json", sealed(card.model_dump(mode="json", exclude={"seal"})))
    except ValidationError as error:
        raise DataError(f"The card cannot be written: {error}") from error
