"""The files a config names: what a data set depends on, and what its card lists with checksums."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from pathlib import Path

from butterfly_sdm.config import BuildConfig
from butterfly_sdm.data.artefact import sha256
from butterfly_sdm.data.dataset import Source
from butterfly_sdm.errors import MissingFileError
from butterfly_sdm.progress import Progress
from data_prep.tiles import run_units


def input_files(config: BuildConfig) -> Iterator[Path]:
    """Return every file and folder a data set depends on, and all files in the folders."""
    records = config.records
    for given in (records.path, records.sites, records.species, records.synonyms):
        paths = given if isinstance(given, tuple) else (given,)
        yield from _deep(path for path in paths if isinstance(path, Path))
    yield from _deep(path for _, path in _named(config))


def file_sources(config: BuildConfig, executor: Executor, progress: Progress) -> list[Source]:
    """
    Return the files of imagery, covariates and the split a config names, each with its SHA-256.

    Raises
    ------
    MissingFileError
        One has vanished.
    """
    wanted = [(role, path) for role, named in _named(config) for path in _shallow(named)]
    for path in (path for _, path in _named(config)):
        if not path.exists():
            raise MissingFileError(f"{path} has vanished while it was used. Put it back and build again.")
    digests: dict[str, str] = {}
    for path, digest in run_units(executor, [(str(path), sha256, (path,)) for _, path in wanted]):
        digests[path] = digest
        progress("checksums of the sources", len(digests), len(wanted))
    return [
        Source(role=role, name=path.name, sha256=digests[str(path)], bytes=path.stat().st_size)  # type: ignore[arg-type]
        for role, path in wanted
    ]


def _named(config: BuildConfig) -> list[tuple[str, Path]]:
    """Return role and path of all inputs but the records, of which the reader of records tells."""
    named: list[tuple[str, Path]] = []
    if config.scenes is not None:
        named += [("scene", path) for path in config.scenes.paths]
    if config.ready_tiles is not None:
        named += [("scene", path) for path in config.ready_tiles.folders]
    if config.covariates is not None:
        named += [("covariates", path) for path in config.covariates.tables]
        named += [("covariates", raster.path) for raster in config.covariates.rasters]
    used = {"file": config.split.path, "regions": config.split.regions}.get(config.split.method)
    return named if used is None else [*named, ("split", used)]


def _deep(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        yield path
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.is_file())


def _shallow(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path] if path.is_file() else []
