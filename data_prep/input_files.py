"""The files a config names: what a data set depends on, and what its card lists with checksums."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from butterfly_sdm.core.addresses import shown
from butterfly_sdm.core.executor import in_order
from butterfly_sdm.core.files import files_below, sha256
from butterfly_sdm.data.dataset import Source
from butterfly_sdm.errors import MissingFileError, without_secrets
from butterfly_sdm.imagery.embeddings.collection import found_at
from butterfly_sdm.imagery.embeddings.columns import Described
from butterfly_sdm.imagery.embeddings.options import EmbeddingReading
from butterfly_sdm.imagery.products import is_remote
from butterfly_sdm.imagery.scene import Scene
from data_prep.imagery.ready_tiles import check_folders
from data_prep.imagery.scenes import open_named
from data_prep.imagery.tile_grids import tile_crs
from data_prep.options import BuildOptions
from data_prep.records.files.vector import files_of
from data_prep.records.sensitive import refuse_left_out
from data_prep.workbench import Workbench


def input_files(config: BuildOptions) -> Iterator[Path]:
    """Return every local file and folder a data set depends on, and all files in the folders."""
    records = config.records
    given = [records.path, records.sites, records.species, records.synonyms, *_imagery(config)]
    given += [path for _, path in _others(config)]
    for path in given:
        yield from _deep(path if isinstance(path, tuple) else (path,))
    yield from _deep(_assets(config))


def check_paths(config: BuildOptions) -> None:
    """
    Look whether all that a config names is there, so that everything missing is told at once.

    Raises
    ------
    ConfigError
        A name of a withheld species was left out of the settings.
    MissingFileError
        More than one file or folder is missing. A single one is told in its own words by whoever
        opens it.
    """
    records = config.records
    refuse_left_out(records)
    named: list[tuple[str, object]] = [("records.path", path) for path in records.paths]
    named += [(f"records.{key}", getattr(records, key)) for key in ("sites", "species", "synonyms")]
    kind = "scenes.paths" if config.scenes is not None else "ready_tiles.folders"
    named += [(kind, path) for path in _imagery(config)]
    named += _others(config)
    missing = [
        f"build.{key}: {path}"
        for key, path in named
        if isinstance(path, Path) and not path.exists()
    ]
    if len(missing) > 1:
        raise MissingFileError(
            f"{len(missing)} of the files and folders named do not exist: {'; '.join(missing)}. "
            "Check the paths; relative ones start at the YAML file."
        )


def check_inputs(config: BuildOptions, described: Described) -> Scene | None:
    """
    Look at scenes, covariates and the split before the records are read, which can take long.

    Parameters
    ----------
    described
        Gives the files of embeddings that options name.

    Returns
    -------
    Scene or None
        The scene; None where the config names none, or one that has to be fetched first.

    Raises
    ------
    ConfigError, MissingFileError, RasterError
        Something does not exist, or a scene lacks a band.
    """
    for role, path in _others(config):
        if isinstance(path, Path) and not path.exists():
            raise MissingFileError(f"There is no file {path} for the {role}. Check build.{role}.")
    for embeddings in config.embedded:
        if embeddings.url is None:
            described(embeddings)
    if config.ready_tiles is not None:
        check_folders(config.ready_tiles)
    options = config.scenes
    if options is None or options.stac is not None:
        return None
    scene = open_named(options, options.paths, bands=config.tile_bands)
    tile_crs(scene, config.tiles.crs)
    return scene


def file_sources(config: BuildOptions, bench: Workbench) -> list[Source]:
    """
    Return the files of imagery, covariates and the split with their SHA-256; the reader of records
    tells of the others.

    Files on the network have no checksum.

    Raises
    ------
    MissingFileError
        A file has vanished.
    """
    imagery = bench.notes.imagery
    fetched = bench.scratch / "stac"
    roots = [*(path for path in _imagery(config) if isinstance(path, Path)), fetched]
    local = {path: Path(path).resolve() for path in imagery if not is_remote(path)}
    found = [
        Source(role="scene", name=without_secrets(path), licence=licence)
        for path, licence in imagery.items()
        if path not in local
    ]
    wanted = [("scene", _name(file, roots), file, imagery[path]) for path, file in local.items()]
    others = [(role, path) for role, path in _others(config) if isinstance(path, Path)]
    wanted += [(role, path.name, path, None) for role, path in others if path.is_file()]
    for embeddings in config.embedded:
        files = bench.described(embeddings)
        named = [path for path in embeddings.paths if isinstance(path, Path)]
        wanted += [
            ("covariates.embeddings", _name(file.resolve(), named), file, None)
            for file in dict.fromkeys(files.paths)
            if file not in named or file.is_dir()
        ]
        found += [
            Source(role="covariates", name=shown(address))
            for address in dict.fromkeys(files.addresses)
        ]
    for path in [*local.values(), *(path for _, path in others)]:
        if not path.exists():
            raise MissingFileError(
                f"{path} has vanished while it was used. Put it back and build again."
            )
    remote = len(found)
    digests = in_order(sha256, [file for _, _, file, _ in wanted], bench.executor)
    for (role, name, file, licence), digest in zip(wanted, digests, strict=True):
        parts = files_below(file) if file.is_dir() else [file]
        size = sum(part.stat().st_size for part in parts)
        role = role.partition(".")[0]
        found.append(Source(role=role, name=name, sha256=digest, bytes=size, licence=licence))
        bench.progress("checksums of the sources", len(found) - remote, len(wanted))
    return found


def _name(file: Path, roots: Iterable[Path]) -> str:
    """
    Return how a file is called below the folder that the config names, so that no place on this
    machine is told.
    """
    for root in (root.resolve() for root in roots):
        if file != root and file.is_relative_to(root):
            return f"{root.name}/{file.relative_to(root).as_posix()}"
    return file.name


def _imagery(config: BuildOptions) -> list[Path | str]:
    ready = config.ready_tiles.folders if config.ready_tiles is not None else ()
    return [*(config.scenes.paths if config.scenes is not None else ()), *ready]


def _assets(config: BuildOptions) -> Iterator[Path]:
    """Return the files of embeddings that STAC documents of the config name."""
    readings: list[tuple[Iterable[Path | str], EmbeddingReading]] = [
        (one.paths, one) for one in config.embedded
    ]
    if config.scenes is not None and config.scenes.embeddings is not None:
        readings.append((config.scenes.paths, config.scenes.embeddings))
    for paths, reading in readings:
        for path in paths:
            if isinstance(path, Path) and path.suffix == ".json" and path.is_file():
                found = found_at(path, reading.layer)
                yield from (Path(one.path) for one in found if not is_remote(one.path))


def _others(config: BuildOptions) -> list[tuple[str, Path | str]]:
    named: list[tuple[str, Path | str]] = []
    if config.covariates is not None:
        named += [("covariates", path) for path in config.covariates.tables]
        named += [("covariates", raster.path) for raster in config.covariates.rasters]
    named += [
        ("covariates.embeddings", path)
        for embeddings in config.embedded
        for path in embeddings.paths
        if embeddings.url is None
    ]
    used = {"file": config.split.path, "regions": config.split.regions}.get(config.split.method)
    return named if used is None else [*named, ("split", used)]


def _deep(paths: Iterable[object]) -> Iterator[Path]:
    for path in paths:
        if not isinstance(path, Path):
            continue
        yield path
        yield from (file for file in files_of(path) if file != path)
