"""
The stage build: scenes and records become a data set folder.

Every step leaves its result in the unfinished folder, so that a build that was interrupted goes on
where it was; the finished folder depends on the inputs and the config alone, byte for byte.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from concurrent.futures import Executor
from pathlib import Path

import geopandas as gpd
import pandas as pd
import rasterio
from pydantic import ValidationError

from butterfly_sdm.core.cards import fingerprint, is_whole, sealed, software_versions
from butterfly_sdm.core.files import sha256, write_json
from butterfly_sdm.core.work import is_finished, resumable_folder
from butterfly_sdm.data.dataset import (
    FORMAT_VERSION,
    TYPED_VERSION,
    Dataset,
    DatasetCard,
    Source,
    TileCard,
)
from butterfly_sdm.data.division import leave_out_near, make_split, read_split
from butterfly_sdm.data.leakage import report_leakage
from butterfly_sdm.data.splits import Split
from butterfly_sdm.errors import ConfigError, DataError, counted
from butterfly_sdm.imagery.embeddings.columns import Described
from butterfly_sdm.imagery.scene import Scene
from butterfly_sdm.progress import Progress, silent
from data_prep.covariates import site_covariates
from data_prep.imagery.site_tiles import fill_tiles
from data_prep.input_files import check_inputs, check_paths, file_sources, input_files
from data_prep.look.left_out import values_left_out
from data_prep.notes import (
    BuildNotes,
    covariate_doubts,
    dates_apart,
    misleading_dates,
    survey_doubts,
    thin_data,
    unwanted_losses,
)
from data_prep.options import BuildOptions, CovariateOptions
from data_prep.records.count import SurveyTable, read_survey, record_sources
from data_prep.records.places.sites import read_sites
from data_prep.site_table import site_table, stretched, with_unrecorded
from data_prep.sources.fetching import fetch_records
from data_prep.workbench import Workbench, open_workbench

log = logging.getLogger("data_prep.build")

WRONG_DISTANCES = 0.05
MOST_LOOKED_AT = 1_000_000  # rows left out; more would take minutes and gigabytes to tell of


def build_dataset(
    config: BuildOptions,
    folder: Path,
    *,
    name: str,
    seed: int,
    progress: Progress = silent,
    executor: Executor | None = None,
    survey: SurveyTable | None = None,
    explain: Path | None = None,
) -> Path:
    """
    Turn records, scenes and covariates into a data set folder.

    Interrupted at any moment and called again with the same arguments, it goes on where it was and
    ends with the same bytes.

    Parameters
    ----------
    config
        Section ``build``.
    folder
        Where the data set shall lie; replaced if it exists.
    name, seed
        Of the experiment; the seed deals groups of sites to the parts of the split.
    executor
        Runs units of work, such as a Dask client's; None for ``config.workers`` threads or the
        cluster at ``config.dask``.
    survey
        Detections and visits made elsewhere, instead of ``config.records``.
    explain
        A ``.parquet`` or ``.csv`` file in which to write every record that was left out, with its
        reason.

    Returns
    -------
    Path
        ``folder``.

    Raises
    ------
    MissingFileError, RecordsError, RasterError, DataError, ConfigError
        An input is missing, damaged or does not fit; nothing half-finished takes the place of an
        older data set.
    """
    folder = Path(folder)
    if config.scenes is not None and config.ready_tiles is not None:
        raise ConfigError(
            "build.scenes and build.ready_tiles are both given. Tiles come from one of them: "
            "remove the other."
        )
    key = _key(config, name, seed, survey)
    finished = is_finished(folder, key) and is_whole(folder / "dataset.json", str(folder))
    if not finished and survey is None:
        check_paths(config)
    described = Described()
    scene = None if finished else check_inputs(config, described)
    if survey is None and (explain is not None or not finished):
        records = fetch_records(config.records, folder.parent / "downloads", progress=progress)
        config = config.model_copy(update={"records": records})
    if finished:
        log.info("%s is there already, made from the same settings and files.", folder)
        if explain is not None and survey is None:
            with tempfile.TemporaryDirectory() as place:
                read_survey(config.records, scratch=Path(place), progress=progress, explain=explain)
        return folder
    with (
        resumable_folder(folder, key) as partial,
        open_workbench(config, partial, progress, executor, described=described) as bench,
    ):
        table = survey if survey is not None else _survey(config, bench, explain)
        _fill(config, table, scene, bench, name=name, seed=seed)
        shutil.rmtree(bench.scratch)
    return folder


def _fill(
    config: BuildOptions,
    table: SurveyTable,
    scene: Scene | None,
    bench: Workbench,
    *,
    name: str,
    seed: int,
) -> None:
    """Make all parts of a data set in its unfinished folder: tables, tiles, split and card."""
    notes = bench.notes
    sites, detections, position_crs = site_table(table, position_crs=config.position_crs)
    if (wrong := stretched(sites, position_crs)) > WRONG_DISTANCES:
        notes.warn(
            f"In {position_crs} distances are wrong by up to {wrong:.0%} where the sites lie, and "
            "blocks, buffers and overlaps with them. Remove build.position_crs, or give a "
            "projected CRS of the region, such as its UTM zone."
        )
    sites, tiles = fill_tiles(config, sites, bench, opened=scene)
    covariates, units, lacking = site_covariates(
        config.covariates or CovariateOptions(),
        sites,
        position_crs=position_crs,
        executor=bench.executor,
        described=bench.described,
    )
    notes.notes += lacking
    doubts, gaps = covariate_doubts(covariates)
    notes.notes += gaps
    for message in doubts:
        notes.warn(message)
    notes.sources += file_sources(config, bench)
    split, block = _split(config, sites, seed, tiles, notes, position_crs)
    if block is not None:
        sites["block"] = block
    shown = detections if tiles is None else detections[sites["tile_row"] >= 0]
    for message in thin_data(table.rows, shown, split):
        notes.warn(message)
    share = dates_apart(table.visit_table, len(detections.columns))
    for message in misleading_dates(share):
        notes.warn(message)
    typed = tiles is not None and tiles.dtype != "uint16"
    card = DatasetCard(
        format_version=TYPED_VERSION if typed else FORMAT_VERSION,
        name=name,
        species=tuple(detections.columns),
        years=tuple(int(year) for year in table.years),
        position_crs=position_crs,
        tiles=tiles,
        covariates=units,
        embeddings={one.group: bench.described(one).told() for one in config.embedded},
        rows={key: int(value) for key, value in table.rows.items()},
        sources=tuple(sorted(notes.sources, key=_order)),
        warnings=tuple(notes.warnings),
        notes=tuple(notes.notes),
        names=table.spellings,
        dates_share=share,
        software=_software(),
    )
    # Says now, not when it is opened, that the parts do not fit together.
    located = sites.set_geometry("geometry")
    dataset = Dataset(
        card,
        located,
        detections,
        None,
        covariates,
        split,
        coarse=table.coarse,
        visit_table=table.visit_table,
    )
    bench.progress("writing the data set", 0, 1)
    _write(bench.folder, dataset)
    bench.progress("writing the data set", 1, 1)


def _order(source: Source) -> tuple[str, str, str]:
    return source.role, source.name, source.sha256 or ""


def _key(config: BuildOptions, name: str, seed: int, survey: SurveyTable | None) -> str:
    """
    Return a fingerprint of all that the data set depends on, files by size and time of change.
    """
    stamps = {}
    for path in input_files(config):
        stat = path.stat() if path.exists() else None
        stamps[str(path)] = None if stat is None else [stat.st_size, stat.st_mtime_ns]
    given = None
    if survey is not None:
        given = [
            pd.util.hash_pandas_object(part, index=True).to_numpy().tolist()
            for part in (survey.detections, survey.visits)
        ]
        if survey.visit_table is not None:
            given.append([survey.visit_table.fingerprint])
    settings = config.model_dump(mode="json", exclude={"workers", "dask"})
    return fingerprint(
        {
            "config": settings,
            "name": name,
            "seed": seed,
            "files": stamps,
            "survey": given,
            "software": _software(),
        }
    )


def _survey(config: BuildOptions, bench: Workbench, explain: Path | None) -> SurveyTable:
    survey = read_survey(
        config.records, scratch=bench.scratch, progress=bench.progress, explain=explain
    )
    losses = sum(n for key, n in survey.rows.items() if key.startswith("dropped: "))
    looked = unwanted_losses(survey.rows) and losses <= MOST_LOOKED_AT
    values = values_left_out(config.records, scratch=bench.scratch, told=explain) if looked else {}
    for message in survey_doubts(survey, values):
        bench.notes.warn(message)
    if config.records.unrecorded == "keep":
        if config.records.sites is None:
            raise ConfigError(
                "records.unrecorded is keep, but records.sites does not list the sites. State the "
                "table of sites."
            )
        survey = with_unrecorded(survey, read_sites(config.records.sites))
    bench.notes.sources.extend(record_sources(config.records))
    bench.notes.notes.extend(survey.notes)
    return survey


def _split(
    config: BuildOptions,
    sites: gpd.GeoDataFrame,
    seed: int,
    tiles: TileCard | None,
    notes: BuildNotes,
    position_crs: str,
) -> tuple[Split, pd.Series | None]:
    """
    Return the split and the block of each site.

    Sites without a visit, or without a tile where tiles are cut, are in a part only where a file
    says so: a part of sites that no network can learn from would leave the others smaller than they
    were asked to be.
    """
    visited = sites[(sites["visits"] > 0) & (sites["tile_row"] >= 0 if tiles is not None else True)]
    block: pd.Series | None = None
    options = config.split
    if options.path is not None and options.method == "file":
        split, ignored = read_split(options.path, tuple(sites.index))
        if ignored:
            notes.notes.append(
                f"Not in the data set: {counted(ignored, 'site', 'sites')} of {options.path.name}."
            )
    else:
        try:
            split, block = make_split(visited, options, seed=seed)
        except DataError as error:
            if len(visited) == len(sites):
                raise
            raise DataError(
                f"Only {len(visited):,} of {len(sites):,} sites have visits and a tile. {error}"
            ) from error
    without = len(sites) - len(split.part_of())
    if without:
        notes.notes.append(f"{counted(without, 'site is', 'sites are')} in no part of the split.")
    split = leave_out_near(split, sites, buffer_m=options.buffer_m)
    if split.train and tiles is not None:
        report = report_leakage(
            sites, split, tile_m=tiles.size_px * tiles.resolution_m, position_crs=position_crs
        )
        for message in report.warnings():
            notes.warn(message)
    return split, None if block is None else block.reindex(sites.index, fill_value=-1)


def _software() -> dict[str, str]:
    names = ("butterfly-sdm", "numpy", "pandas", "geopandas", "pyarrow", "pyproj", "rasterio")
    return software_versions(names) | {"gdal": rasterio.__gdal_version__}


def _write(partial: Path, dataset: Dataset) -> None:
    tables = {
        "sites": dataset.sites.reset_index(),
        "detections": dataset.detections.reset_index(),
        "coarse": dataset.coarse,
    }
    if dataset.visit_table is not None:
        tables |= {
            "visits": dataset.visit_table.visits,
            "sightings": dataset.visit_table.sightings,
        }
    if dataset.covariates is not None:
        tables["covariates"] = dataset.covariates.rename_axis("site_id").reset_index()
    for name, table in tables.items():
        if table is not None:
            table.to_parquet(partial / f"{name}.parquet", index=False)
    assert dataset.split is not None
    dataset.split.to_json(partial / "split.json")
    files = {
        path.name: sha256(path)
        for path in sorted(partial.iterdir())
        if path.is_file() and not path.name.startswith(".") and path.name != "dataset.json"
    }
    try:
        card = dataset.card.model_copy(update={"files": files})
        write_json(partial / "dataset.json", sealed(card.model_dump(mode="json", exclude={"seal"})))
    except ValidationError as error:
        raise DataError(f"The card cannot be written: {error}") from error
