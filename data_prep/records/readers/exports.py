"""The exports of recording programs: iRecord, MapMate, iNaturalist, eBird and BirdTrack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from data_prep.records.columns import key
from data_prep.records.readers.tables import Part, TableReader, keys


class ExportReader(TableReader):
    """
    A table with the header of a program.

    Attributes
    ----------
    marks
        Names of columns, simplified, of which the header holds all of one set.
    prefers
        Term: names of its column, simplified, the best first.
    """

    marks: ClassVar[tuple[frozenset[str], ...]] = ()
    prefers: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})

    def recognises(self, path: Path) -> bool:
        """Tell whether the header is that of the program."""
        if not super().recognises(path):
            return False
        held = keys(path)
        return any(marks <= held for marks in self.marks)

    def known(self, header: tuple[str, ...]) -> dict[str, str]:
        """Return the columns that the program is known to write."""
        by_key = {key(name): name for name in reversed(header) if name}
        found = {}
        for term, names in self.prefers.items():
            held = next((by_key[name] for name in names if name in by_key), None)
            if held is not None:
                found[term] = held
        return found


def _marks(*headers: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(header.split()) for header in headers)


class IRecordReader(ExportReader):
    """iRecord's download in the layout of the Biological Records Centre, and those near it."""

    name = "irecord"
    summary = "iRecord download (CSV or Excel)"
    day_first = True
    marks = _marks(
        "recordkey outputmapref taxon datefrom",
        "recordkey originalmapref taxon dateinterpreted",
        "taxonversionkey outputmapref taxon",
    )
    prefers = MappingProxyType(
        {
            "recordID": ("recordkey", "id"),
            "scientificName": ("taxon",),
            "eventDate": ("datefrom", "dateinterpreted"),
            "eventDateEnd": ("dateto",),
            "gridReference": ("outputmapref", "originalmapref"),
            "individualCount": ("countofsexorstage",),
            "datasetName": ("source",),
        }
    )


class MapMateReader(ExportReader):
    """
    MapMate's export; its Status is one of breeding, and where unknown says 'Not recorded'. Its
    quantity is 0 of a species that was seen and not counted, -1 (dominant) to -6 (very rare) of one
    whose numbers were put into words, and -7 of one that was not there.
    """

    name = "mapmate"
    summary = "MapMate export (text or Excel)"
    day_first = True
    marks = _marks(
        "taxon vernacular gridref vc", "taxon gridref vc quantity", "taxon gridref quantity stage"
    )
    prefers = MappingProxyType(
        {
            "scientificName": ("taxon",),
            "eventDate": ("date",),
            "eventDateEnd": ("dateto",),
            "gridReference": ("gridref",),
            "individualCount": ("quantity",),
        }
    )
    ignored = frozenset({"status"})
    words = MappingProxyType(
        {"individualCount": {str(-code): "" for code in range(7)} | {"-7": "0"}}
    )

    def told(self, parts: Sequence[Part]) -> list[str]:
        """Say how quantities are taken, which are not what they seem."""
        return [
            "MapMate: a quantity of 0 is a species that was seen and not counted, -1 to -6 are "
            "words for how common it was, and -7 is one that was not there. If 0 is nothing seen "
            "in this file, say so in records.format: table."
        ]


class INaturalistReader(ExportReader):
    """iNaturalist's export; casual observations are told by ``quality_grade``."""

    name = "inaturalist"
    summary = "iNaturalist export (CSV)"
    marks = _marks("observedon qualitygrade scientificname", "qualitygrade taxonid latitude")
    prefers = MappingProxyType(
        {
            "scientificName": ("scientificname",),
            "eventDate": ("observedon", "observedonstring"),
            "qualityGrade": ("qualitygrade",),
        }
    )


class EbirdReader(ExportReader):
    """eBird: the Basic Dataset (EBD), and what My eBird lets one download."""

    name = "ebird"
    summary = "eBird Basic Dataset (EBD) or My eBird download"
    day_first = False  # older ones of My eBird: 06-03-2018 is the third of June
    marks = _marks(
        "samplingeventidentifier scientificname observationdate",
        "submissionid scientificname alltaxareported",
        "submissionid scientificname allobsreported",
        "submissionid scientificname locationid",
    )
    prefers = MappingProxyType(
        {
            "recordID": ("globaluniqueidentifier",),
            "scientificName": ("scientificname",),
            "eventDate": ("observationdate", "date"),
            "eventID": ("samplingeventidentifier", "submissionid"),
            "groupID": ("groupidentifier",),
            "individualCount": ("observationcount", "count"),
            "completeness": ("allspeciesreported", "allobsreported"),
            "locationID": ("localityid", "locationid"),
        }
    )


class BirdTrackReader(ExportReader):
    """BirdTrack's export of one's own records."""

    name = "birdtrack"
    summary = "BirdTrack export (Excel or CSV)"
    day_first = True
    marks = _marks(
        "btospeciescode date",
        "species scientificname place gridreference breedingstatus",
        "scientificname count place pinpoint",
    )
    prefers = MappingProxyType(
        {
            "scientificName": ("scientificname",),
            "eventDate": ("date",),
            "gridReference": ("gridreference", "osgridref", "gridref", "pinpoint"),
            "individualCount": ("count",),
            "decimalLatitude": ("lat", "latitude"),
            "decimalLongitude": ("long", "lon", "longitude"),
        }
    )
