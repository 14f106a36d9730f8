"""Read scientific names: which species a record names, and under which accepted name it counts."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from butterfly_sdm.errors import MissingFileError, RecordsError

Kind = Literal["species", "aggregate", "higher", "unnamed"]
KINDS: tuple[Kind, ...] = ("species", "aggregate", "higher", "unnamed")

_BELOW = frozenset(
    "SPECIES SUBSPECIES VARIETY SUBVARIETY FORM SUBFORM INFRASPECIFIC_NAME INFRASUBSPECIFIC_NAME "
    "RACE ABERRATION CULTIVAR NOTHOSPECIES SPECIES_HYBRID HYBRID".split()
)
_AGGREGATES = frozenset(
    "SPECIES_AGGREGATE AGGREGATE SPECIESAGGREGATE SPECIES_GROUP COMPLEX SPECIES_COMPLEX".split()
)
_UNKNOWN = {"", "UNRANKED", "UNKNOWN", "OTHER"}
_BINOMIAL = re.compile(
    r"([A-Z][\w-]*[a-z][\w-]*)\s+(?:\([A-Z][\w-]+\)\s+)?(?:×\s*|x\s+)?([a-z][\w-]*[a-z])(?=$|[\s,])"
)
_AGGREGATE_NAME = re.compile(
    r"\bagg\b|\baggregate\b|\bs\.?\s?l(?:at)?\b\.?|\b(?:group|complex)$|\S/\S|\s/\s", re.IGNORECASE
)
_NOT_EPITHETS = frozenset("sp spp indet cf aff agg nr ssp subsp var ex in de von van".split())


@dataclass(frozen=True)
class Name:
    """
    What a record names.

    Attributes
    ----------
    recorded
        Species name as recorded, without its author; empty for a name above the rank of species.
    accepted
        The name under which it counts.
    kind
        ``species`` (or below), ``aggregate`` of several species, ``higher`` (genus and above),
        ``unnamed``.
    """

    recorded: str
    accepted: str
    kind: Kind


def read_name(
    scientific: str, species: str = "", rank: str = "", synonyms: Mapping[str, str] | None = None
) -> Name:
    """
    Read the name of a record.

    Parameters
    ----------
    scientific
        Name as given, with or without author.
    species
        Name of the species where the source has worked it out (GBIF does).
    rank
        Taxonomic rank; where it is blank the form of the name decides.
    synonyms
        Recorded name: accepted name.

    Examples
    --------
    >>> synonyms = {"Ladoga camilla": "Limenitis camilla"}
    >>> read_name("Ladoga camilla (Linnaeus, 1764)", synonyms=synonyms).accepted
    'Limenitis camilla'
    >>> read_name("Pieris sp.").kind
    'higher'
    """
    scientific, species = " ".join(scientific.split()), " ".join(species.split())
    level = rank.strip().upper().replace(" ", "_")
    found = binomial(species) or binomial(scientific)
    if not scientific and not species:
        # A rank without a name still tells that somebody looked.
        return Name("", "", "unnamed" if level in _BELOW | _UNKNOWN | _AGGREGATES else "higher")
    if level and level not in _BELOW | _UNKNOWN | _AGGREGATES:
        return Name("", "", "higher")
    if not species and (level in _AGGREGATES or _AGGREGATE_NAME.search(scientific)):
        name = found or scientific
        return Name(name, name, "aggregate")
    if not found:
        return Name("", "", "unnamed" if level in _BELOW else "higher")
    return Name(found, (synonyms or {}).get(found, found), "species")


def binomial(text: str) -> str:
    """
    Return genus and species of a name, ``""`` if it has no species.

    >>> binomial("Polyommatus (Lysandra) bellargus (Rottemburg, 1775)")
    'Polyommatus bellargus'
    """
    found = _BINOMIAL.match(text)
    if found is None or found[2] in _NOT_EPITHETS:
        return ""
    return f"{found[1]} {found[2]}"


def read_synonyms(source: str | Path | Mapping[str, str] | None) -> dict[str, str]:
    """
    Read a table of synonyms.

    Parameters
    ----------
    source
        ``s2bms`` for the accepted names of the 62 species of S2BMS that come with the package, a
        CSV file with the columns ``recorded`` and ``accepted``, the names themselves, or None.

    Returns
    -------
    dict
        Recorded name: accepted name.

    Raises
    ------
    MissingFileError
        The file does not exist.
    RecordsError
        It lacks a column, gives one name two accepted names, or leads in a circle.
    """
    if source is None or isinstance(source, Mapping):
        given, where = dict(source or {}), "records.synonyms"
    else:
        given, where = _read_table(source)
    return {recorded: _end(recorded, given, where) for recorded in given}


def _read_table(source: str | Path) -> tuple[dict[str, str], str]:
    """Return the synonyms of a file as they stand there, and its name."""
    if str(source) == "s2bms":
        where = "synonyms_s2bms.csv"
        text = files("data_prep").joinpath(where).read_text(encoding="utf-8")
    else:
        path = Path(source)
        if not path.is_file():
            raise MissingFileError(
                f"There is no table of synonyms at {path}. Correct records.synonyms, or say s2bms."
            )
        text, where = path.read_text(encoding="utf-8-sig", errors="replace"), path.name
    table = csv.DictReader(
        line for line in text.splitlines() if line.strip() and not line.startswith("#")
    )
    if not {"recorded", "accepted"} <= set(table.fieldnames or ()):
        raise RecordsError(
            f"{where} needs the columns recorded and accepted; it has "
            f"{', '.join(table.fieldnames or ()) or 'none'}."
        )
    synonyms: dict[str, str] = {}
    for row in table:
        recorded, accepted = (
            " ".join((row[column] or "").split()) for column in ("recorded", "accepted")
        )
        if not recorded or not accepted:
            raise RecordsError(
                f"{where} has a row without a recorded or an accepted name. Complete or remove it."
            )
        if synonyms.setdefault(recorded, accepted) != accepted:
            raise RecordsError(
                f"{where} gives {recorded!r} two accepted names: {synonyms[recorded]!r} and "
                f"{accepted!r}."
            )
    return synonyms, where


def _end(recorded: str, synonyms: Mapping[str, str], where: str) -> str:
    """Follow synonyms of synonyms to the last name."""
    seen = [recorded]
    while synonyms.get(seen[-1], seen[-1]) != seen[-1]:
        seen.append(synonyms[seen[-1]])
        if seen[-1] in seen[:-1]:
            raise RecordsError(
                f"{where} leads from {recorded!r} in a circle: {', '.join(seen)}. Correct it."
            )
    return seen[-1]


def read_species(source: Path | tuple[str, ...] | None) -> tuple[str, ...] | None:
    """
    Read a list of species: one name a row, or a table with the column ``species``.

    Parameters
    ----------
    source
        The file, or the names themselves; None: all species.

    Raises
    ------
    MissingFileError, RecordsError
        The file does not exist, is empty, or names a species twice.
    """
    if not isinstance(source, Path):
        return source
    if not source.is_file():
        raise MissingFileError(f"There is no list of species at {source}. Correct records.species.")
    lines = [
        line.strip()
        for line in source.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        if line.strip()
    ]
    rows = list(csv.reader(lines))
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if "species" in header:
        place = header.index("species")
        names = [row[place].strip() for row in rows[1:] if len(row) > place]
    else:
        names = [row[0].strip() for row in rows]
    if not names:
        raise RecordsError(f"{source} names no species. Write one name a row.")
    for name in names:
        if names.count(name) > 1:
            raise RecordsError(f"{source} names {name!r} twice. Remove one.")
    return tuple(names)
