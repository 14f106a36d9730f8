"""Read wide tables, in which each row is a survey and each species has a column of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import polars as pl

from data_prep.records.columns import MISSING
from data_prep.records.names import Synonyms, read_synonyms
from data_prep.records.nomenclature import binomial, looks_latin, read_text, tidy
from data_prep.records.readers.reader import TERMS, Block

if TYPE_CHECKING:
    from data_prep.records.files.stored import Rows

FEWEST_SPECIES = 2
_NOT_OF_A_VISIT = (
    "individualCount organismQuantity organismQuantityType occurrenceStatus status zeroAbundance "
    "taxonRank captive basisOfRecord recordID genus qualityGrade"
).split()
_NO_SPECIES = re.compile(
    r"\b(?:total|sum|count|number|individuals|temp(?:erature)?|wind|sun(?:shine)?|cloud|weather|rain|"
    r"time|duration|minutes|hours|length|distance|effort|notes?|comments?|remarks?|recorder|"
    r"observer|surveyor|name|species|richness|habitat|section|week|visit|year|month|day|date|"
    r"postcode|email|photo|url|id|code|grid|ref|reference|site|place|location|locality|route|"
    r"transect|square|method|altitude|height|latitude|longitude|lat|long?|sample|survey|walk|"
    r"county|country|region|area|type|status|stage|sex|quality|accuracy|precision|no)\b",
    re.IGNORECASE,
)
_AROUND = re.compile(
    r"^(?:(?:count|number|no|num|abundance|total|how many|sp|spp?\.?)[\s:.-]+(?:of\s+)?)|"
    r"[\s:.-]+(?:count|number|abundance|total|seen|n|no)\.?$|\s*\([^)]*\)$|\?$",
    re.IGNORECASE,
)
_PRESENT = ("x", "+", "✓", "✔", "√", "*", "pres", "p", "y", "yes", "true", "t", "present", "seen")
_ABSENT = ("-", "–", ".", "o", "n", "no", "false", "f", "absent", "none", "nil", "zero", "not seen")
_AMOUNT = r"^(?:c|ca|circa|about|approx|<|>|~|≥|≤|>=|<=)?\.?\s*\d[\d,. ]*(?:\s*[-–+]\s*\d*)?\s*\+?$"


@dataclass
class Spread:
    """
    A wide table.

    Attributes
    ----------
    rows
        The table.
    visit
        Name of a column: term, of what is said of the survey.
    species
        Name of a column: the species it counts.
    """

    rows: Rows
    visit: Mapping[str, str]
    species: Mapping[str, str]
    notes: list[str] = field(default_factory=list)

    def surveys(self) -> Iterator[tuple[Block, int]]:
        """Yield each row as a survey, whatever was seen."""
        for block, position in self.rows.blocks(dict(self.visit)):
            yield Block(self._named(block), block.numbers, block.malformed), position

    def sightings(self) -> Iterator[tuple[Block, int]]:
        """Yield a row for each cell that tells of individuals, numbered on."""
        own = {name: f"species {place}" for place, name in enumerate(self.species)}
        number = 0
        for block, position in self.rows.blocks({**self.visit, **own}):
            surveys = self._named(block)
            about = [name for name in surveys.columns if name not in own.values()]
            long = surveys.unpivot(
                on=list(own.values()), index=about, variable_name="column", value_name="cell"
            )
            cell = pl.col("cell").str.strip_chars()
            low = cell.str.to_lowercase()
            amount = low.str.contains(_AMOUNT)
            nothing = low.is_in(["", *_ABSENT, *MISSING]) | (amount & ~low.str.contains("[1-9]"))
            names = {own[name]: species for name, species in self.species.items()}
            seen = long.filter(~nothing).select(
                *about,
                pl.col("column")
                .replace_strict(names, return_dtype=pl.String)
                .alias("scientificName"),
                pl.when(amount).then(cell).otherwise(pl.lit("")).alias("individualCount"),
                pl.when(amount | low.is_in(_PRESENT))
                .then(pl.lit("present"))
                .otherwise(cell)
                .alias("occurrenceStatus"),
            )
            numbers = pl.Series("row", range(number + 1, number + 1 + len(seen)), dtype=pl.UInt32)
            number += len(seen)
            yield Block(seen, numbers, block.malformed), position

    def _named(self, block: Block) -> pl.DataFrame:
        """Return the rows with an id of each; one that the table gives joins rows to a visit."""
        rows = block.rows
        if "eventID" in rows.columns:
            rows = rows.rename({"eventID": "groupID"}).drop("parentEventID", strict=False)
        ids = pl.format("{}, row {}", pl.lit(self.rows.where), pl.lit(block.numbers))
        return rows.with_columns(ids.alias("eventID"))


def spread_over(rows: Rows, used: Mapping[str, str]) -> Spread | None:
    """
    Return the table as a wide one, None if fewer than two columns are named after species.

    Between the first and the last of these, other columns are species as well, unless their names
    say that they are something else.
    """
    header = [name for name in rows.columns if name]
    known = {name: told for name in header if (told := species_of(name))}
    visit = {
        name: term
        for name, term in used.items()
        if name not in known and term in TERMS and term not in _NOT_OF_A_VISIT
    }
    if len(known) < FEWEST_SPECIES:
        return None
    places = [header.index(name) for name in known]
    between = header[min(places) : max(places) + 1]
    others = {
        name: _bare(name)
        for name in between
        if name not in known and name not in visit and not _NO_SPECIES.search(_bare(name))
    }
    species = {name: (known | others)[name] for name in header if name in known or name in others}
    notes = [_note(rows.where, header, species, visit)]
    return Spread(rows, visit, species, notes)


def _note(
    where: str, header: Sequence[str], species: Mapping[str, str], visit: Mapping[str, str]
) -> str:
    first = ", ".join(list(species)[:4]) + (", ..." if len(species) > 4 else "")
    passed = [name for name in header if name not in species and name not in visit]
    rest = f" Other columns were passed over: {', '.join(passed[:8])}." if passed else ""
    return (
        f"{where} has a column for each of {len(species)} species ({first}): each row is a survey, "
        f"and a species with a blank or 0 was not seen.{rest}"
    )


def species_of(name: str) -> str:
    """
    Return the species a column is named after, ``""`` if it is not.

    >>> species_of("Pieris.rapae"), species_of("Count of Small White"), species_of("Wind speed")
    ('Pieris rapae', 'Small White', '')
    """
    text = _bare(name)
    if _english().whole(text):
        return text
    if _NO_SPECIES.search(text) or read_text(text).form != "species":
        return ""
    return text if all(map(looks_latin, binomial(text).split())) else ""


def _bare(name: str) -> str:
    text = tidy(re.sub(r"(?<=[a-z])\.(?=[A-Za-z])", " ", name))
    bare = tidy(_AROUND.sub("", _AROUND.sub("", text)))
    return bare or text


@cache
def _english() -> Synonyms:
    return read_synonyms("s2bms")
