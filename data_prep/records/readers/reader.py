"""
What a reader of record files is: it opens a file and hands over blocks of rows under Darwin Core
terms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import polars as pl

TERMS = tuple(
    """
    recordID scientificName species taxonRank occurrenceStatus individualCount eventID parentEventID
    eventDate eventDateEnd year month day startDayOfYear endDayOfYear decimalLatitude
    decimalLongitude coordinateUncertaintyInMeters footprintWKT footprintSRS gridReference easting
    northing coordinateSRS countryCode coordinatesObscured locationID institutionCode
    collectionCode datasetName license completeness groupID status organismQuantity
    organismQuantityType zeroAbundance verification basisOfRecord captive genus qualityGrade
    qualifier duration durationUnit samplingEffort
    """.split()
)
"""
The columns the package understands: Darwin Core terms, and ``recordID``, ``gridReference``,
``easting``, ``northing`` (metres), ``coordinateSRS`` (their CRS), ``coordinatesObscured``,
``completeness`` (whether a list names every species seen), ``groupID`` (of lists that several
people kept of one visit), ``status`` (a column of that bare name), ``zeroAbundance``,
``verification`` (whether the identification was accepted), ``captive``, ``qualityGrade`` (of
iNaturalist), and ``duration`` of the visit with its ``durationUnit`` (minutes where there is none),
for which it has no exact term. ``genus`` is read where ``species`` has but the second name,
``qualifier`` where an identification is in doubt.
"""

MALFORMED: dict[str, type[pl.DataType]] = {"row": pl.UInt32, "text": pl.String}


@dataclass(frozen=True)
class Block:
    """
    Some rows of a file, in the order of the file.

    Attributes
    ----------
    rows
        Text columns named by a subset of :data:`TERMS`; an empty cell is ``""``.
    numbers
        (rows,) number of each row in its file, the first row of data being 1.
    malformed
        Columns ``row`` and ``text``: rows that could not be cut into columns.
    same
        Columns that are known to hold one text in every row, and that text.
    """

    rows: pl.DataFrame
    numbers: pl.Series
    malformed: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=MALFORMED))
    same: Mapping[str, str] = field(default_factory=dict)

    @property
    def blank(self) -> frozenset[str]:
        """Columns that are known to be blank in every row."""
        return frozenset(term for term, text in self.same.items() if not text)

    def after(self, number: int) -> Block:
        """Return the block with its rows numbered on after ``number``."""
        if not number:
            return self
        shift = pl.lit(number, dtype=pl.UInt32)
        malformed = self.malformed.with_columns(pl.col("row") + shift)
        return Block(self.rows, self.numbers + number, malformed, self.same)


class RecordFile(Protocol):
    """
    An opened file of records.

    Attributes
    ----------
    path
        The file or folder.
    bytes
        Size of all that will be read, for the progress; 0 when unknown.
    notes
        What a user should know of the file, in sentences.
    licence, citation
        As the file's own metadata give them, else None.
    day_first
        True where the layout is known to write 3/6/2018 for the third of June; None where it is
        unknown.
    """

    path: Path
    bytes: int
    notes: tuple[str, ...]
    licence: str | None
    citation: str | None
    day_first: bool | None

    def blocks(self) -> Iterator[tuple[Block, int]]:
        """Yield blocks of occurrence rows, each with the bytes read so far."""
        ...

    def events(self) -> Iterator[tuple[Block, int]] | None:
        """
        Yield blocks of survey events (with or without sightings); None where the file has no table
        of events.
        """
        ...


class Reader(Protocol):
    """One layout of record files; registered in the entry-point group ``butterfly_sdm.readers``."""

    name: str
    summary: str

    def recognises(self, path: Path) -> bool:
        """Tell from the name or the first bytes whether ``path`` has this layout."""
        ...

    def open(self, path: Path, columns: Mapping[str, str]) -> RecordFile:
        """
        Open a file.

        Parameters
        ----------
        path
            File or folder.
        columns
            A term of :data:`TERMS`: its name in the file, where that differs from what the layout
            says.
        """
        ...
