"""Keep beside a fetched file where it came from, so that the card of a data set can say so."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from butterfly_sdm.core.files import read_json, sha256, write_json
from butterfly_sdm.errors import ArtefactError


@dataclass(frozen=True)
class Provenance:
    """
    Where a file came from.

    Attributes
    ----------
    url, doi
        Its address and its lasting identifier.
    citation, licence
        As the source asks to be cited, and what it allows.
    fetched
        Date, ISO.
    sha256
        Checksum of the file.
    """

    url: str
    doi: str | None
    citation: str | None
    licence: str | None
    fetched: str
    sha256: str


def side_file(path: Path) -> Path:
    """Return where the provenance of a file is kept: ``NAME.source.json``."""
    return path.with_name(path.name + ".source.json")


def write_provenance(
    path: Path,
    *,
    url: str,
    doi: str | None,
    citation: str | None,
    licence: str | None,
    fetched: str,
) -> Provenance:
    """Write the provenance of a fetched file beside it."""
    made = Provenance(url, doi, citation, licence, fetched, sha256(path))
    write_json(side_file(path), asdict(made))
    return made


def read_provenance(path: Path) -> Provenance | None:
    """
    Return the provenance of a file, None if nothing is known of it.

    Raises
    ------
    ArtefactError
        What is written beside it speaks of another file.
    """
    beside = side_file(path)
    if not beside.is_file():
        return None
    try:
        held = Provenance(**read_json(beside))
    except TypeError as error:
        raise ArtefactError(
            f"{beside} is not a provenance of the package ({error}). Remove it or fetch the file "
            "again."
        ) from error
    if held.sha256 != sha256(path):
        raise ArtefactError(
            f"{beside} speaks of another file than {path.name}. Remove it, or fetch the file again."
        )
    return held
