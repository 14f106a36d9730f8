"""
Download the published S2BMS data set by its DOI, every file checked against the published checksum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from butterfly_sdm.errors import SourceError
from butterfly_sdm.progress import Progress, silent
from data_prep.records.files.containers import escapes
from data_prep.sources.provenance import write_provenance
from data_prep.sources.transfer import Service

DOI = "10.5281/zenodo.15198884"


@dataclass(frozen=True)
class Release:
    """
    What a repository says of a published record.

    Attributes
    ----------
    doi, title, citation, licence
        As published.
    files
        ``(name, url, size in bytes, checksum)`` of every file.
    """

    doi: str
    title: str
    citation: str
    licence: str | None
    files: tuple[tuple[str, str, int, str], ...]


def read_release(doi: str = DOI, *, api: str, service: Service | None = None) -> Release:
    """
    Ask Zenodo for the files of a record.

    Raises
    ------
    SourceError
        The DOI is none of Zenodo's, or its answer is not understood.
    """
    number = doi.rpartition("zenodo.")[2]
    if not number.isdigit():
        raise SourceError(f"{doi!r} is no DOI of Zenodo; it looks like {DOI}.")
    answer = (service or Service()).ask("GET", f"{api}/records/{number}")
    try:
        about: dict[str, Any] = answer.json()
        files = tuple(
            (str(f["key"]), str(f["links"]["self"]), int(f["size"]), str(f["checksum"]))
            for f in about["files"]
        )
        meta = about["metadata"]
        people = [str(person["name"]) for person in meta.get("creators", ())]
        title = str(meta["title"])
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"Zenodo's answer about {doi} is not understood ({type(error).__name__}: {error})."
        ) from error
    for name, *_ in files:
        if escapes(name):
            raise SourceError(
                f"Zenodo names the file {name!r}, which would escape its folder. It is not fetched."
            )
    held = about.get("doi") or doi
    year = str(meta.get("publication_date", ""))[:4] or "no date"
    licence = meta.get("license")
    return Release(
        doi=str(held),
        title=title,
        citation=f"{'; '.join(people) or 'Unknown'} ({year}). {title}. Zenodo. "
        f"https://doi.org/{held}",
        licence=str(licence.get("id"))
        if isinstance(licence, dict)
        else (str(licence) if licence else None),
        files=files,
    )


def download_s2bms(
    folder: Path,
    *,
    files: Sequence[str] = ("*",),
    doi: str = DOI,
    api: str,
    service: Service | None = None,
    progress: Progress = silent,
) -> list[Path]:
    """
    Fetch files of the published data set; what is there already and agrees with its checksum is not
    fetched again.

    Parameters
    ----------
    folder
        Where the files are put, each with its provenance.
    files
        Names, with ``*`` for any text.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    SourceError
        No file has such a name, or one could not be fetched as published.
    """
    service = service or Service()
    release = read_release(doi, api=api, service=service)
    wanted = [file for file in release.files if any(fnmatch(file[0], pattern) for pattern in files)]
    if not wanted:
        held = ", ".join(name for name, *_ in release.files[:10])
        raise SourceError(f"{release.doi} has no file named {', '.join(files)}; it has {held}.")
    paths = []
    for name, url, size, checksum in wanted:
        path = service.fetch(
            url, Path(folder) / name, checksum=checksum, size=size, progress=progress
        )
        write_provenance(
            path,
            url=url,
            doi=release.doi,
            citation=release.citation,
            licence=release.licence,
            fetched=date.today().isoformat(),
        )
        paths.append(path)
    return paths
