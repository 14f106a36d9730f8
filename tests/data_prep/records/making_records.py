"""Make small archives and tables of records whose counts are known."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data_prep.records.count import SurveyTable, survey
from data_prep.records.occurrences import read_occurrences
from data_prep.records.options import RecordsOptions

DWC = "http://rs.tdwg.org/dwc/terms/"
COLUMNS = (
    "gbifID",
    "institutionCode",
    "individualCount",
    "occurrenceStatus",
    "eventDate",
    "decimalLatitude",
    "decimalLongitude",
    "footprintWKT",
    "scientificName",
    "species",
    "taxonRank",
)


def counting(**settings: object) -> RecordsOptions:
    """Return which records count: all sites, unless a setting says otherwise."""
    return RecordsOptions(**{"path": Path("records"), "min_records": 0, **settings})  # type: ignore[arg-type]


LAX = counting()


def square(east: float = 0.0, north: float = 52.0, side: float = 0.01) -> str:
    """Return a footprint as the published archive writes it."""
    corners = [(0, 0), (0, 1), (1, 1), (1, 0), (0, 0)]
    return (
        "POLYGON(("
        + ",".join(f"{east + x * side:.5f} {north + y * side:.5f}" for x, y in corners)
        + "))"
    )


def row(
    site: int = 0,
    date: str = "2018-06-03",
    species: str = "Pieris napi",
    *,
    status: str = "PRESENT",
    ident: object = None,
    **more: str,
) -> dict[str, str]:
    """Return one record at the square number ``site``."""
    east = round(site * 0.02, 5)
    made = {
        "institutionCode": "UKBMS",
        "individualCount": "1",
        "occurrenceStatus": status,
        "eventDate": date,
        "decimalLatitude": "52.005",
        "decimalLongitude": f"{east + 0.005:.5f}",
        "footprintWKT": square(east),
        "scientificName": f"{species} (Linnaeus, 1758)" if species else "",
        "species": species,
        "taxonRank": "SPECIES" if species else "GENUS",
        "gbifID": "" if ident is None else str(ident),
    }
    return {**made, **more}


def text(
    rows: Iterable[Mapping[str, str]],
    columns: Sequence[str] = COLUMNS,
    *,
    separator: str = "\t",
    end: str = "\n",
) -> str:
    """Return a table as delimited text with a header."""
    lines = [
        separator.join(columns),
        *(separator.join(r.get(c, "") for c in columns) for r in rows),
    ]
    return end.join(lines) + end


def core(
    columns: Sequence[str] = COLUMNS,
    *,
    tag: str = "core",
    kind: str = "Occurrence",
    files: Sequence[str] = ("occurrence.txt",),
    encoding: str = "UTF-8",
    separator: str = "\\t",
    quote: str = "",
    header: int = 1,
    ids: str = "id",
    end: str = "\\n",
    extra: str = "",
) -> str:
    """Return a core or extension of meta.xml; the first column is the id."""
    fields = "".join(
        f'<field index="{i}" term="{DWC}{name}"/>' for i, name in enumerate(columns) if i
    )
    places = "".join(f"<location>{name}</location>" for name in files)
    return (
        f'<{tag} encoding="{encoding}" rowType="{DWC}{kind}" fieldsTerminatedBy="{separator}" '
        f'linesTerminatedBy="{end}" '
        f'fieldsEnclosedBy="{quote}" ignoreHeaderLines="{header}"><files>{places}</files><{ids} '
        'index="0"/>'
        f"{fields}{extra}</{tag}>"
    )


def meta(*tables: str) -> str:
    """Return a meta.xml."""
    return f'<?xml version="1.0"?><archive xmlns="http://rs.tdwg.org/dwc/text/">{"".join(tables)}</archive>'


def zipped(path: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write a zip archive."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def archive(path: Path, rows: Iterable[Mapping[str, str]], **layout: str) -> Path:
    """Write a Darwin Core Archive with an occurrence core."""
    return zipped(path, {"meta.xml": meta(core(**layout)), "occurrence.txt": text(rows)})  # type: ignore[arg-type]


def counted(
    *paths: Path, scratch: Path, rules: RecordsOptions = LAX, **reading: object
) -> SurveyTable:
    """Read files and count them."""
    return survey(read_occurrences(paths, scratch=scratch, **reading), rules)  # type: ignore[arg-type]
