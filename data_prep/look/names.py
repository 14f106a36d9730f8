"""Which species records name, in which spellings, and which table of names would explain more."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from data_prep.records.names import Synonyms, read_name, read_synonyms
from data_prep.records.nomenclature import tidy
from data_prep.records.occurrences import Occurrences

_MOST_LISTED = 40  # names in a line of YAML


def rows_of(occurrences: Occurrences, group: str) -> dict[int, int]:
    """Count the records of each text of a group."""
    found: dict[int, int] = {}
    for part in occurrences.parts([group, "is_event"]):
        counts = part.filter(~part["is_event"])[group].value_counts()
        for code, rows in counts.iter_rows():
            found[code] = found.get(code, 0) + rows
    return found


def species_seen(occurrences: Occurrences, synonyms: Mapping[str, str]) -> pd.DataFrame:
    """Return ``species``, ``rows`` and ``spellings``: how each species is written."""
    rows = rows_of(occurrences, "name")
    entries = []
    for entry in occurrences.dictionaries["name"].iter_rows(named=True):
        name = read_name(entry["scientificName"], entry["species"], entry["taxonRank"], synonyms)
        text = (entry["scientificName"] or entry["species"]).strip()
        entries.append((name.accepted, text, rows.get(entry["code"], 0)))
    told = pd.DataFrame(entries, columns=["species", "text", "rows"])
    told = told[(told["species"] != "") & (told["rows"] > 0)]
    grouped = told.sort_values("rows", ascending=False).groupby("species", sort=False)
    found = grouped.agg(rows=("rows", "sum"), spellings=("text", lambda t: tuple(dict.fromkeys(t))))
    return found.sort_values("rows", ascending=False, kind="stable").reset_index()


def helpful_synonyms(occurrences: Occurrences) -> tuple[str | dict[str, str] | None, str]:
    """
    Return the setting ``synonyms`` that explains names which are not understood, and the reason.

    The table that comes with the package knows the butterflies of Britain by their English and old
    names; where it does not know all, those it knows are listed, for the others to be added.
    """
    table = read_synonyms("s2bms")
    unread, old = _unread(occurrences, table)
    known = {text: table.whole(text) for text in unread if table.whole(text)}
    unknown = [text for text in unread if text not in known]
    if not known:
        return ("s2bms", f"old names, such as {old[0]}") if old else (None, "")
    if unknown and len(known) <= _MOST_LISTED:
        more = ", ".join(unknown[:6]) + (", ..." if len(unknown) > 6 else "")
        return known, f"add what these are, if they are species: {more}"
    return "s2bms", f"English and old names, such as {next(iter(known))}"


def _unread(occurrences: Occurrences, table: Synonyms) -> tuple[list[str], list[str]]:
    """Return texts that are not understood, and the old names of species, the commonest first."""
    rows = rows_of(occurrences, "name")
    unread: dict[str, int] = {}
    old: dict[str, int] = {}
    for entry in occurrences.dictionaries["name"].iter_rows(named=True):
        name = read_name(entry["scientificName"], entry["species"], entry["taxonRank"])
        number = rows.get(entry["code"], 0)
        if name.kind == "unread" and number:
            text = tidy(entry["scientificName"] or entry["species"])
            unread[text] = unread.get(text, 0) + number
        elif name.kind == "species" and table.get(name.accepted, name.accepted) != name.accepted:
            old[name.accepted] = old.get(name.accepted, 0) + number
    return sorted(unread, key=lambda t: -unread[t]), sorted(old, key=lambda t: -old[t])
