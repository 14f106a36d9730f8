"""Cards of artefacts: their format version, their fingerprint, and the seal that tells damage."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from butterfly_sdm.core.files import read_json, sha256, write_json
from butterfly_sdm.errors import ArtefactError, MissingFileError

log = logging.getLogger("butterfly_sdm")


def check_version(found: Any, known: int, what: str, remake: str) -> None:
    """
    Refuse what another release wrote in a format this one does not read.

    Parameters
    ----------
    found
        The format version that is stated.
    known
        The one this release reads; older ones it still reads are to be brought to it before.
    what
        The artefact, such as ``"the run runs/a"``.
    remake
        How it is made again.

    Raises
    ------
    ArtefactError
        They differ.
    """
    if isinstance(found, int) and not isinstance(found, bool) and found == known:
        return
    newer = isinstance(found, int) and found > known
    way = (
        "A newer release made it: update butterfly-sdm (git pull, or pip install --upgrade), or "
        "make it again"
        if newer
        else "Make it again"
    )
    raise ArtefactError(
        f"{what} has format version {found!r}; this release reads {known}. {way}: {remake}"
    )


def software_versions(names: Iterable[str], absent: str = "not installed") -> dict[str, str]:
    """Return the versions of distributions by name; ``absent`` for one that is not installed."""
    found = dict.fromkeys(names, absent)
    for name in found:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def fingerprint(value: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that change whenever ``value`` (JSON-like) does."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return ``value`` with its own SHA-256 under the key ``seal``, so that :func:`damage` can tell
    whether it was changed.

    >>> sealed({"a": 1})["seal"][:8]
    'f9d86028'
    """
    content = {key: item for key, item in value.items() if key != "seal"}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    # JSON may hold halves of pairs of characters, which UTF-8 has no place for
    return content | {"seal": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()}


@contextmanager
def listed(card: Path, kind: str) -> Iterator[list[Path]]:
    """
    Yield a list that takes the results as they are written, and end with a sealed card of them.

    While results are written there is no card: what an interruption leaves is not finished.

    Parameters
    ----------
    card
        The JSON file, in the folder of the results.
    kind
        What they are, such as ``"scores"``.
    """
    card.unlink(missing_ok=True)
    files: list[Path] = []
    yield files
    content = {"format": f"butterfly_sdm {kind}", "format_version": 1}
    write_json(card, sealed(content | {"files": checksums(files, card.parent)}))


def checksums(files: Iterable[Path], folder: Path) -> dict[str, str]:
    """Return the SHA-256 of files by their names below ``folder``."""
    return {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(files)}


def is_whole(card: Path, what: str) -> bool:
    """
    Return whether an artefact is as it was written, and warn that it is made again if not: the way
    out of a damaged one is the command that made it.
    """
    problems = damage(card)
    if problems:
        log.warning("%s was damaged since it was made and is made again: %s", what, problems[0])
    return not problems


def damage(card: Path) -> list[str]:
    """
    Compare a sealed card and the files it lists (under ``files``: name to SHA-256) with what was
    written.

    Returns
    -------
    list of str
        One sentence per problem; empty if every byte is as it was.
    """
    try:
        value = read_json(card)
    except (ArtefactError, MissingFileError) as error:
        return [str(error)]
    if not isinstance(value, dict) or not isinstance(value.get("files"), dict):
        return [f"{card} lists no files. Make the artefact again."]
    problems = []
    if sealed(value)["seal"] != value.get("seal"):
        problems.append(
            f"{card} was changed after it was written: its content does not fit its seal."
        )
    for name, expected in value["files"].items():
        path = card.parent / str(name)
        try:
            if not path.is_file():
                problems.append(f"{path} is missing.")
            elif sha256(path) != expected:
                problems.append(
                    f"{path} was changed after it was written: its SHA-256 is not "
                    f"{str(expected)[:12]}..."
                )
        except (OSError, ValueError) as error:  # no name that a file can have
            problems.append(f"{card} lists a file that cannot be read: {str(error)[:200]}")
    return problems
