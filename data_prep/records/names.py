"""Read names: which species a record names, and under which accepted name it counts."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from butterfly_sdm.errors import MissingFileError, RecordsError
from data_prep.records.nomenclature import Text, binomial, looks_latin, read_text, tidy

Kind = Literal[
    "species", "aggregate", "hybrid", "uncertain", "higher", "nothing", "unread", "unnamed"
]

_BELOW = frozenset(
    "SPECIES SUBSPECIES VARIETY SUBVARIETY FORM SUBFORM INFRASPECIFIC_NAME INFRASUBSPECIFIC_NAME "
    "RACE ABERRATION CULTIVAR NOTHOSPECIES SPECIES_HYBRID SP SSP SUBSP VAR MICROSPECIES MORPH "
    "FORMA SUBFORMA INFRASPECIES STRAIN ART UNTERART SOORT ONDERSOORT ESPECE ESPÈCE ESPECIE".split()
)
_AGGREGATES = frozenset(
    "SPECIES_AGGREGATE AGGREGATE SPECIESAGGREGATE SPECIES_GROUP COMPLEX SPECIES_COMPLEX AGG "
    "SPECIES_SENSU_LATO SENSU_LATO SPECIES_AGG".split()
)
_ABOVE = frozenset(
    """
    GENUS SUBGENUS SECTION SUBSECTION SERIES SUBSERIES INFRAGENERIC_NAME INFRAGENUS
    SUPRAGENERIC SUPRAGENERIC_NAME TRIBE SUBTRIBE SUPERTRIBE INFRATRIBE FAMILY SUBFAMILY
    SUPERFAMILY INFRAFAMILY EPIFAMILY ORDER SUBORDER INFRAORDER SUPERORDER PARVORDER CLASS
    SUBCLASS INFRACLASS SUPERCLASS PARVCLASS PHYLUM SUBPHYLUM INFRAPHYLUM SUPERPHYLUM
    DIVISION SUBDIVISION KINGDOM SUBKINGDOM SUPERKINGDOM INFRAKINGDOM DOMAIN REALM COHORT
    LEGION CLADE ZOOSECTION ZOOSUBSECTION GENUSHYBRID GENUS_HYBRID NOTHOGENUS
    GENUS_AGGREGATE FAMILY_GROUP GATTUNG FAMILIE ORDNUNG GENRE FAMILLE GESLACHT
    """.split()
)
_THIRD = _BELOW - {"SPECIES", "SP", "ART", "SOORT", "ESPECE", "ESPÈCE", "ESPECIE", "MICROSPECIES"}


@dataclass(frozen=True)
class Name:
    """
    What a record names.

    Attributes
    ----------
    recorded
        Species name as recorded, without its author; empty where no species is named.
    accepted
        The name under which it counts.
    kind
        ``species`` (or below), ``aggregate`` of several species, ``hybrid``, ``uncertain`` (cf.,
        aff., ?), ``higher`` (genus and above), ``nothing`` (nobody was seen), ``unread`` (a text
        that is not understood), ``unnamed`` (no text).
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
        Name as given, in any case, with or without author.
    species
        Name of the species where the source has worked it out (GBIF does); or a common name.
    rank
        Taxonomic rank; where it is blank or no known word the form of the name decides.
    synonyms
        Recorded name (the whole text, an English name or a code, or genus and species): accepted
        name. See :class:`Synonyms` for one that is read in any case.

    Examples
    --------
    >>> synonyms = {"Ladoga camilla": "Limenitis camilla", "Small White": "Pieris rapae"}
    >>> read_name("Ladoga camilla (Linnaeus, 1764)", synonyms=synonyms).accepted
    'Limenitis camilla'
    >>> read_name("small white", synonyms=synonyms).accepted
    'Pieris rapae'
    >>> read_name("Pieris sp.").kind
    'higher'
    """
    known = synonyms if isinstance(synonyms, Synonyms) else Synonyms(synonyms or {})
    scientific, species = tidy(scientific), tidy(species)
    if species.lower() == "none" and scientific:
        species = ""
    if scientific.lower() == "none" and species:
        scientific = ""
    level = _level(rank)
    if not scientific and not species:
        # A rank without a name still tells that somebody looked.
        return Name("", "", "higher" if level in _ABOVE else "unnamed")
    below = level in _THIRD
    first = read_text(scientific, below=below)
    if first.form in ("hybrid", "uncertain", "nothing") and not known.whole(scientific):
        return Name("", "", first.form)
    if level in _ABOVE:
        return Name("", "", "higher")
    recorded, meant = _species_of(scientific, species, first, known, below)
    if level in _AGGREGATES and not (scientific and species):
        name = meant.name or scientific or species
        return Name(name, name, "aggregate")
    if level == "HYBRID" and meant.form == "species":
        return Name("", "", "hybrid")
    if meant.form == "aggregate":
        return Name(meant.name, meant.name, "aggregate")
    if meant.form == "species":
        return Name(recorded, known.whole(recorded) or meant.name, "species")
    if meant.form == "higher":
        return Name("", "", "unnamed" if level in _BELOW else "higher")
    return Name("", "", "unread" if meant.form == "empty" else meant.form)


def _species_of(
    scientific: str, species: str, first: Text, known: Synonyms, below: bool
) -> tuple[str, Text]:
    """
    Return the name as recorded and what it is: the whole text if it is a synonym, else the species
    the source worked out, else the scientific name, and a common name last.
    """
    if accepted := known.whole(scientific):
        own = binomial(scientific) == scientific
        return scientific, Text("species", scientific if own else accepted)
    second = read_text(species, below=below)
    if second.form in ("species", "aggregate") and not _doubtful(second.name, first):
        return second.name, second
    if first.form in ("species", "aggregate"):
        return first.name, first
    if accepted := known.whole(species):
        return species, Text("species", accepted)
    if second.form == "species":
        return second.name, second
    return "", second if first.form == "empty" else first


def _doubtful(species: str, first: Text) -> bool:
    """Tell whether the species beside a scientific name may be a common name in its form."""
    return first.form == "species" and not all(map(looks_latin, species.split()))


def _level(rank: str) -> str:
    return "_".join(re.sub(r"[.\s_-]+", " ", rank.upper()).split())


class Synonyms(dict[str, str]):
    """
    Recorded name: accepted name, found in any case and with any spaces.

    >>> Synonyms({"Small White": "Pieris rapae"}).whole("SMALL_WHITE")
    'Pieris rapae'
    """

    def __init__(
        self, names: Mapping[str, str], *, english: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(names)
        self._folded: dict[str, str] = {}
        for recorded, accepted in (*names.items(), *(english or {}).items()):
            self._folded.setdefault(tidy(recorded).casefold(), accepted)

    def whole(self, text: str) -> str:
        """Return the accepted name of a whole text, ``""`` if it is none of the recorded names."""
        return self.get(text) or self._folded.get(tidy(text).casefold(), "")


def accepted_name(name: str, synonyms: Mapping[str, str]) -> str:
    """
    Return the name under which a name that a user gives counts, in any case and spelling.

    >>> accepted_name("LADOGA CAMILLA", {"Ladoga camilla": "Limenitis camilla"})
    'Limenitis camilla'
    """
    known = synonyms if isinstance(synonyms, Synonyms) else Synonyms(synonyms)
    own = binomial(name) if read_text(name).form == "species" else ""
    return known.whole(name) or known.whole(own) or own or name


def read_synonyms(source: str | Path | Mapping[str, str] | None) -> Synonyms:
    """
    Read a table of synonyms.

    Parameters
    ----------
    source
        ``s2bms`` for the accepted names of the 62 species of S2BMS that come with the package, a
        CSV file with the columns ``recorded`` and ``accepted`` (and, if wanted, ``english``), the
        names themselves, or None.

    Returns
    -------
    Synonyms
        Recorded name: accepted name; English names are found as well.

    Raises
    ------
    MissingFileError
        The file does not exist.
    RecordsError
        It lacks a column, gives one name two accepted names, or leads in a circle.
    """
    english: dict[str, str] = {}
    if source is None or isinstance(source, Mapping):
        given, where = dict(source or {}), "records.synonyms"
    else:
        given, english, where = _read_table(source)
    ends = {recorded: _end(recorded, given, where) for recorded in given}
    common = {name: ends.get(accepted, accepted) for name, accepted in english.items()}
    return Synonyms(ends, english=common)


def _read_table(source: str | Path) -> tuple[dict[str, str], dict[str, str], str]:
    """Return the synonyms of a file as they stand there, its English names, and its name."""
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
    english: dict[str, str] = {}
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
        if common := tidy(row.get("english") or ""):
            english.setdefault(common, accepted)
    return synonyms, english, where


def _end(recorded: str, synonyms: Mapping[str, str], where: str) -> str:
    """Follow synonyms of synonyms to the last name."""
    seen = [recorded]
    while synonyms.get(seen[-1], seen[-1]) != seen[-1]:
        seen.append(synonyms[seen[-1]])
        if seen[-1] in seen[:-1]:
            raise RecordsError(
                f"{where} leads from {recorded!r} in a circle: {', '.join(seen)}. Correct it."
            )
    own = binomial(seen[-1])
    return own if own.lower() == tidy(seen[-1]).lower() else seen[-1]


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
