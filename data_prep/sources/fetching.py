"""
Fetch the records a config names by their source, once: later builds use the files that are there.
"""

from __future__ import annotations

from pathlib import Path

from butterfly_sdm.core.cards import fingerprint
from butterfly_sdm.core.files import read_json, write_json
from butterfly_sdm.progress import Progress, silent
from data_prep.records.options import GbifOptions, RecordsOptions, S2bmsOptions
from data_prep.sources import gbif, s2bms
from data_prep.sources.provenance import read_provenance
from data_prep.sources.transfer import Service


def fetch_records(
    config: RecordsOptions,
    folder: Path,
    *,
    progress: Progress = silent,
    service: Service | None = None,
) -> RecordsOptions:
    """
    Fetch what ``config.gbif`` and ``config.s2bms`` ask for.

    Parameters
    ----------
    config
        The section ``build.records``.
    folder
        Where files are put unless ``config.downloads`` says so. A file that is there with its
        provenance is not asked for again, and a query that GBIF was asked before keeps its key: the
        same config gives the same records.

    Returns
    -------
    RecordsOptions
        The same, with the files among its paths.

    Raises
    ------
    SourceError
        A source refuses, or a transfer failed; the next call goes on where it was.
    MissingPackageError
        ``requests`` is not installed.
    """
    folder = config.downloads or Path(folder)
    fetched: list[Path] = []
    if config.gbif is not None:
        fetched.append(_from_gbif(config.gbif, folder, progress, service))
    if config.s2bms is not None:
        fetched += _from_s2bms(config.s2bms, folder, progress, service)
    if not fetched:
        return config
    return config.model_copy(update={"path": (*config.paths, *fetched)})


def _from_gbif(
    config: GbifOptions, folder: Path, progress: Progress, service: Service | None
) -> Path:
    key = config.key or _key_of_query(config, folder, service)
    held = folder / f"{key}.zip"
    if held.is_file() and read_provenance(held) is not None:
        return held
    return gbif.download(key, folder, api=config.api, service=service, progress=progress)


def _key_of_query(config: GbifOptions, folder: Path, service: Service | None) -> str:
    asked = gbif.query(config)
    note = folder / f"gbif-{fingerprint(asked)}.json"
    if note.is_file():
        return str(read_json(note)["key"])
    key = gbif.request_download(asked, api=config.api, service=service)
    # GBIF may need hours: the next call waits for this one
    write_json(note, {"key": key, "query": asked})
    return key


def _from_s2bms(
    config: S2bmsOptions, folder: Path, progress: Progress, service: Service | None
) -> list[Path]:
    doi = config.doi or s2bms.DOI
    note = folder / f"s2bms-{fingerprint({'doi': doi, 'files': config.files})}.json"
    if note.is_file():
        held = [folder / str(name) for name in read_json(note)["files"]]
        if all(path.is_file() and read_provenance(path) is not None for path in held):
            return held
    paths = s2bms.download_s2bms(
        folder, files=config.files, doi=doi, api=config.api, service=service, progress=progress
    )
    write_json(note, {"doi": doi, "files": [path.name for path in paths]})
    return paths
