"""
Download records from GBIF, by the key of a download or by a query.

Needs the extra ``sources``. A query needs an account at GBIF, read from the environment variables
``GBIF_USER``, ``GBIF_PWD`` and ``GBIF_EMAIL``; a key does not. DOI, citation and licence are kept
beside the file and appear in the card of the data set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from butterfly_sdm.core.addresses import shown
from butterfly_sdm.errors import SourceError
from butterfly_sdm.progress import Progress, silent
from data_prep.records.dates import MONTHS
from data_prep.records.options import GbifOptions
from data_prep.sources.provenance import write_provenance
from data_prep.sources.transfer import Service

GBIF_HOSTS = ("api.gbif.org", "api.gbif-uat.org")
_FAILED = {"FAILED", "KILLED", "CANCELLED", "SUSPENDED", "FILE_ERASED"}
_LICENCES = {"cc0": "CC0 1.0", "by-nc": "CC BY-NC 4.0", "by": "CC BY 4.0"}


def query(asked: GbifOptions) -> dict[str, Any]:
    """
    Return a query in GBIF's terms; several values of one kind are alternatives, the kinds must all
    hold.

    Examples
    --------
    >>> query(GbifOptions(countries=("GB",), years=(2018, 2019)))["predicates"][0]
    {'type': 'equals', 'key': 'COUNTRY', 'value': 'GB'}
    """
    parts: list[dict[str, Any]] = []
    for key, values in (
        ("TAXON_KEY", asked.taxon_keys),
        ("DATASET_KEY", asked.dataset_keys),
        ("COUNTRY", asked.countries),
    ):
        texts = [str(value) for value in values]
        if len(texts) == 1:
            parts.append({"type": "equals", "key": key, "value": texts[0]})
        elif texts:
            parts.append({"type": "in", "key": key, "values": texts})
    if asked.years is not None:
        first, last = asked.years
        parts.append({"type": "greaterThanOrEquals", "key": "YEAR", "value": str(first)})
        parts.append({"type": "lessThanOrEquals", "key": "YEAR", "value": str(last)})
    if asked.geometry_wkt:
        parts.append({"type": "within", "geometry": asked.geometry_wkt})
    parts.append({"type": "equals", "key": "HAS_COORDINATE", "value": "true"})
    return {"type": "and", "predicates": parts}


def request_download(
    predicate: Mapping[str, Any],
    *,
    format: Literal["DWCA", "SIMPLE_CSV"] = "DWCA",
    environment: Mapping[str, str] | None = None,
    api: str,
    service: Service | None = None,
) -> str:
    """
    Ask GBIF to prepare a download and return its key.

    Raises
    ------
    SourceError
        The credentials are missing or refused, or would go elsewhere than to GBIF, or GBIF does not
        accept the query.
    """
    environment = os.environ if environment is None else environment
    missing = [
        name for name in ("GBIF_USER", "GBIF_PWD", "GBIF_EMAIL") if not environment.get(name)
    ]
    if missing:
        raise SourceError(
            f"GBIF prepares downloads for its users only: set {', '.join(missing)} in the "
            "environment (an account is free), "
            "or download by hand and give the key."
        )
    _check_host(api, environment.get("GBIF_HOST", ""))
    answer = (service or Service()).ask(
        "POST",
        f"{api}/occurrence/download/request",
        json={
            "creator": environment["GBIF_USER"],
            "notificationAddresses": [environment["GBIF_EMAIL"]],
            "sendNotification": False,
            "format": format,
            "predicate": dict(predicate),
        },
        auth=(environment["GBIF_USER"], environment["GBIF_PWD"]),
    )
    return _checked(answer.text.strip().strip('"'))


def download(
    key: str,
    folder: Path,
    *,
    api: str,
    service: Service | None = None,
    progress: Progress = silent,
) -> Path:
    """
    Fetch a download by its key, waiting until GBIF has prepared it.

    Parameters
    ----------
    key
        Such as ``0001234-240101000000000``, from GBIF's web page or :func:`request_download`.
    folder
        The archive ``KEY.zip`` and its provenance are put there.

    Raises
    ------
    SourceError
        GBIF has no such download, could not prepare it, or the transfer failed.
    """
    service = service or Service()
    key = _checked(key)
    about = _wait(key, api, service, progress)
    link = about.get("downloadLink") or f"{api}/occurrence/download/request/{key}.zip"
    size = about.get("size")
    path = service.fetch(
        link,
        Path(folder) / f"{key}.zip",
        size=size if isinstance(size, int) else None,
        progress=progress,
    )
    doi = about.get("doi")
    made = str(about.get("created", ""))[:10]
    write_provenance(
        path,
        url=shown(link),
        doi=doi,
        citation=citation(doi, made),
        licence=_licence(str(about.get("license", ""))),
        fetched=date.today().isoformat(),
    )
    return path


def citation(doi: str | None, created: str) -> str:
    """
    Return how GBIF asks a download to be cited.

    >>> citation("10.15468/dl.abc", "2024-03-05")
    'GBIF.org (5 March 2024) GBIF Occurrence Download https://doi.org/10.15468/dl.abc'
    """
    try:
        day = date.fromisoformat(created)
        when = f"{day.day} {MONTHS[day.month - 1]} {day.year}"
    except ValueError:
        when = "no date"
    return f"GBIF.org ({when}) GBIF Occurrence Download" + (
        f" https://doi.org/{doi}" if doi else ""
    )


def _check_host(api: str, confirmed: str) -> None:
    """Refuse to send a password elsewhere than to GBIF, or unencrypted."""
    parts = urlsplit(api)
    host = parts.hostname or ""
    if host in ("127.0.0.1", "::1", "localhost") or (confirmed and host == confirmed):
        return
    if parts.scheme != "https" or host not in GBIF_HOSTS:
        raise SourceError(
            f"records.gbif.api is {shown(api)}, and the password of GBIF is sent to "
            f"https://{GBIF_HOSTS[0]} only. If that host may have it, set GBIF_HOST={host} in the "
            "environment."
        )


def _checked(key: str) -> str:
    if not re.fullmatch(r"[0-9A-Za-z-]{5,60}", key):
        raise SourceError(
            f"{key!r} is no key of a GBIF download; it looks like 0001234-240101000000000."
        )
    return key


def _wait(key: str, api: str, service: Service, progress: Progress) -> dict[str, Any]:
    """Return what GBIF says of a download once it is ready."""
    waited = 0.0
    while True:
        answer = service.ask("GET", f"{api}/occurrence/download/{key}")
        try:
            about = answer.json() if answer.status_code == 200 else {"status": "PREPARING"}
        except ValueError as error:
            raise SourceError(
                f"GBIF's answer about {key} is not understood ({error}). Try again later."
            ) from error
        status = str(about.get("status", ""))
        if status == "SUCCEEDED":
            return about
        if status in _FAILED:
            raise SourceError(
                f"GBIF's download {key} is {status.lower().replace('_', ' ')}. Request it anew."
            )
        if waited >= service.wait_s:
            raise SourceError(
                f"GBIF is still preparing {key} after {waited:.0f} s. Run the same command later, "
                "with this key."
            )
        progress("waiting for GBIF", int(waited), 0)
        service.sleep(service.poll_s)
        waited += service.poll_s


def _licence(text: str) -> str | None:
    lower = text.lower().replace("_", "-")
    if "publicdomain" in lower or "cc0" in lower:
        return _LICENCES["cc0"]
    if "by-nc" in lower:
        return _LICENCES["by-nc"]
    return _LICENCES["by"] if "by" in lower else (text or None)
