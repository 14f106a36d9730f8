"""
Records to visits and detections: time and peak memory beside what a user would do instead.

    python benchmarks/records.py [--size small|full] [--folder DIR] [--rounds N]

Makes an archive with the columns of a GBIF download (full: 5 million rows, about 2 GB unpacked;
small: 100,000 rows), then runs every candidate in a process of its own, one after the other in each
round, checks that all give the same tables, and prints medians and ratios of one run. Imports are
not timed. On a busy machine only the ratios of processor time mean something.

    ours         archive -> k of n, first run
    again        the same from the compact table that the first run left
    scan         merely decompressing the archive and counting line ends
    pandas       the same rules in plain pandas, reading only the needed columns of the archive
    text         ours from the unpacked archive, a folder
    pyarrow      merely reading six columns of the unpacked text, with pyarrow's defaults
    wc           counting line ends of the unpacked text
    published    the same rules in the way of the published S2BMS code, from the unpacked text (only
                 where it is asked for: at 500,000 rows it takes a minute)

Ratios are to ours from the same input: from the archive, or from the unpacked text where a
candidate reads that.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

COLUMNS = """
gbifID accessRights bibliographicCitation language license modified publisher references
rightsHolder type institutionID collectionID datasetID institutionCode collectionCode datasetName
ownerInstitutionCode basisOfRecord informationWithheld dataGeneralizations dynamicProperties
occurrenceID catalogNumber recordNumber recordedBy recordedByID individualCount organismQuantity
organismQuantityType sex lifeStage reproductiveCondition caste behavior vitality establishmentMeans
degreeOfEstablishment pathway georeferenceVerificationStatus occurrenceStatus preparations
disposition associatedOccurrences associatedReferences associatedSequences associatedTaxa
otherCatalogNumbers occurrenceRemarks organismID organismName organismScope associatedOrganisms
previousIdentifications organismRemarks materialEntityID materialEntityRemarks verbatimLabel
materialSampleID eventID parentEventID eventType fieldNumber eventDate eventTime startDayOfYear
endDayOfYear year month day verbatimEventDate habitat samplingProtocol sampleSizeValue
sampleSizeUnit samplingEffort fieldNotes eventRemarks locationID higherGeographyID higherGeography
continent waterBody islandGroup island countryCode stateProvince county municipality locality
verbatimLocality verbatimElevation verticalDatum verbatimDepth minimumDistanceAboveSurfaceInMeters
maximumDistanceAboveSurfaceInMeters locationAccordingTo locationRemarks decimalLatitude
decimalLongitude coordinateUncertaintyInMeters coordinatePrecision pointRadiusSpatialFit
verbatimCoordinateSystem verbatimSRS footprintWKT footprintSRS footprintSpatialFit georeferencedBy
georeferencedDate georeferenceProtocol georeferenceSources georeferenceRemarks geologicalContextID
earliestEonOrLowestEonothem latestEonOrHighestEonothem earliestEraOrLowestErathem
latestEraOrHighestErathem earliestPeriodOrLowestSystem latestPeriodOrHighestSystem
earliestEpochOrLowestSeries latestEpochOrHighestSeries earliestAgeOrLowestStage
latestAgeOrHighestStage lowestBiostratigraphicZone highestBiostratigraphicZone
lithostratigraphicTerms group formation member bed identificationID verbatimIdentification
identificationQualifier typeStatus identifiedBy identifiedByID dateIdentified
identificationReferences identificationVerificationStatus identificationRemarks taxonID
scientificNameID acceptedNameUsageID parentNameUsageID originalNameUsageID nameAccordingToID
namePublishedInID taxonConceptID scientificName acceptedNameUsage parentNameUsage originalNameUsage
nameAccordingTo namePublishedIn namePublishedInYear higherClassification kingdom phylum class order
superfamily family subfamily tribe subtribe genus genericName subgenus infragenericEpithet
specificEpithet infraspecificEpithet cultivarEpithet taxonRank verbatimTaxonRank vernacularName
nomenclaturalCode taxonomicStatus nomenclaturalStatus taxonRemarks datasetKey publishingCountry
lastInterpreted elevation elevationAccuracy depth depthAccuracy distanceFromCentroidInMeters issue
mediaType hasCoordinate hasGeospatialIssues taxonKey acceptedTaxonKey kingdomKey phylumKey classKey
orderKey familyKey genusKey subgenusKey speciesKey species acceptedScientificName
verbatimScientificName typifiedName protocol lastParsed lastCrawled repatriated
relativeOrganismQuantity projectId isSequenced gbifRegion publishedByGbifRegion level0Gid level0Name
level1Gid level1Name level2Gid level2Name level3Gid level3Name iucnRedListCategory
""".split()
USED = [
    "institutionCode",
    "occurrenceStatus",
    "eventDate",
    "footprintWKT",
    "species",
    "decimalLatitude",
]
ROWS = {"small": 100_000, "full": 5_000_000}
RULES: dict[str, Any] = {
    "institutions": ("UKBMS",),
    "years": (2016, 2019),
    "min_records": 200,
    "max_footprint_deg2": 0.0002,
}


def make_archive(
    folder: Path, rows: int, *, seed: int = 0, sites: int = 2_800, species: int = 60
) -> Path:
    """
    Write ``records.zip``: transect walks at ``sites``, some rows absent, of another institution or
    without coordinates.
    """
    path = folder / f"records_{rows}.zip"
    if path.is_file():
        return path
    rng = np.random.default_rng(seed)
    sites = max(min(sites, rows // 400), 5)
    lon, lat = np.round(rng.uniform(-5, 1, sites), 5), np.round(rng.uniform(50.5, 58, sites), 5)
    wkt = np.array([_square(x, y) for x, y in zip(lon, lat, strict=True)])
    names = np.array(
        [f"Genus{chr(97 + i // 10)} species{chr(97 + i % 10)}" for i in range(species)]
    )
    days = np.arange(np.datetime64("2015-04-01"), np.datetime64("2020-01-01"))
    days = days[
        (days.astype("datetime64[M]").astype(int) % 12 >= 3)
        & (days.astype("datetime64[M]").astype(int) % 12 <= 8)
    ]
    weights = 1 / np.arange(1, species + 1)
    temporary = path.with_suffix(".partial")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        archive.writestr("meta.xml", _meta())
        with archive.open("occurrence.txt", "w", force_zip64=True) as file:
            file.write(("\t".join(COLUMNS) + "\n").encode())
            for start in range(0, rows, 100_000):
                n = min(100_000, rows - start)
                site, day = (
                    rng.integers(0, sites, n),
                    days[rng.integers(0, len(days), n)].astype(str),
                )
                kind = rng.choice(species, n, p=weights / weights.sum())
                nowhere = rng.random(n) < 0.01
                ident = (np.arange(start, start + n) + 4_000_000_000).astype(str)
                genus = np.char.partition(names[kind], " ")[:, 0]
                values = {
                    "gbifID": ident,
                    "license": "CC_BY_4_0",
                    "publisher": "UK Centre for Ecology & Hydrology",
                    "institutionCode": np.where(rng.random(n) < 0.02, "BTO", "UKBMS"),
                    "collectionCode": "UKBMS",
                    "datasetName": "UK Butterfly Monitoring Scheme (UKBMS)",
                    "basisOfRecord": "HUMAN_OBSERVATION",
                    "occurrenceID": np.char.add("UKBMS:", ident),
                    "individualCount": rng.integers(1, 20, n).astype(str),
                    "occurrenceStatus": np.where(rng.random(n) < 0.02, "ABSENT", "PRESENT"),
                    "eventDate": np.where(rng.random(n) < 0.25, np.char.add(day, "T00:00:00"), day),
                    "countryCode": "GB",
                    "decimalLatitude": np.where(nowhere, "", lat[site].astype(str)),
                    "decimalLongitude": np.where(nowhere, "", lon[site].astype(str)),
                    "coordinateUncertaintyInMeters": "707.1",
                    "footprintWKT": np.where(nowhere, "", wkt[site]),
                    "footprintSRS": "EPSG:4326",
                    "scientificName": np.char.add(names[kind], " (Linnaeus, 1758)"),
                    "genus": genus,
                    "species": names[kind],
                    "taxonRank": "SPECIES",
                    "datasetKey": "1e266c3d-92ef-4d5a-8e4a-c04742c772c3",
                    "hasCoordinate": np.where(nowhere, "false", "true"),
                    "iucnRedListCategory": "LC",
                }
                frame = pl.DataFrame({"_": np.arange(n)}).select(
                    (
                        pl.Series(column, values[column])
                        if isinstance(values.get(column), np.ndarray)
                        else pl.lit(values.get(column, ""))
                    ).alias(column)
                    for column in COLUMNS
                )
                file.write(
                    frame.write_csv(
                        separator="\t", quote_style="never", include_header=False
                    ).encode()
                )
                print(f"\rmaking {path.name}: {start + n:,} rows", end="", file=sys.stderr)
    print(file=sys.stderr)
    temporary.replace(path)
    return path


def _square(x: float, y: float) -> str:
    corners = [(x, y), (x, y + 0.009), (x + 0.0145, y + 0.009), (x + 0.0145, y), (x, y)]
    return "POLYGON((" + ",".join(f"{a:.5f} {b:.5f}" for a, b in corners) + "))"


def _meta() -> str:
    space = {"gbifID": "http://rs.gbif.org/terms/1.0/", "species": "http://rs.gbif.org/terms/1.0/"}
    fields = "".join(
        f'<field index="{i}" term="{space.get(c, "http://rs.tdwg.org/dwc/terms/")}{c}"/>'
        for i, c in enumerate(COLUMNS)
    )
    return (
        '<archive xmlns="http://rs.tdwg.org/dwc/text/">'
        '<core encoding="utf-8" rowType="http://rs.tdwg.org/dwc/terms/Occurrence" '
        'fieldsTerminatedBy="\\t" linesTerminatedBy="\\n" fieldsEnclosedBy="" '
        'ignoreHeaderLines="1">'
        "<files><location>occurrence.txt</location></files><id "
        f'index="0"/>{fields}</core></archive>'
    )


def run_ours(archive: Path, scratch: Path) -> dict[str, float]:
    from data_prep.records.count import read_survey
    from data_prep.records.options import RecordsOptions

    table = read_survey(RecordsOptions(path=archive, **RULES), scratch=scratch)
    return _sums(table.rates.to_numpy(), table.visits.to_numpy(), table.detections.to_numpy())


def run_text(archive: Path, scratch: Path) -> dict[str, float]:
    return run_ours(_unpacked(archive), scratch)


def run_pandas(archive: Path, scratch: Path) -> dict[str, float]:
    """Apply the rules as most scripts do: read the columns, filter, group."""
    import geopandas as gpd
    import pandas as pd

    with zipfile.ZipFile(archive) as held, held.open("occurrence.txt") as file:
        columns = [*USED, "decimalLongitude", "taxonRank"]
        rows = pd.read_csv(file, sep="\t", usecols=columns, quoting=3, low_memory=False)
    rows["date"] = pd.to_datetime(rows["eventDate"], format="ISO8601").dt.normalize()
    rows = rows[
        (rows["institutionCode"] == "UKBMS")
        & rows["decimalLatitude"].notna()
        & rows["decimalLongitude"].notna()
    ]
    rows = rows[rows["date"].dt.year.between(2016, 2019)]
    areas = gpd.GeoSeries.from_wkt(rows["footprintWKT"].drop_duplicates())
    small = rows["footprintWKT"].drop_duplicates()[(areas.area <= 0.0002).to_numpy()]
    rows = rows[rows["footprintWKT"].isin(small)]
    rows = rows[rows.groupby("footprintWKT")["species"].transform("size") >= 200]
    rows = rows[rows["taxonRank"] == "SPECIES"]
    visits = rows.groupby("footprintWKT")["date"].nunique()
    seen = (
        rows[rows["occurrenceStatus"] == "PRESENT"]
        .groupby(["footprintWKT", "species"])["date"]
        .nunique()
    )
    k = seen.unstack(fill_value=0).reindex(visits.index, fill_value=0)
    return _sums(k.div(visits, axis=0).to_numpy(), visits.to_numpy(), k.to_numpy())


def run_published(archive: Path, scratch: Path) -> dict[str, float]:
    """
    Read all columns, make objects for each record and a column for each species, and match places
    pair by pair.
    """
    import pandas as pd
    import shapely

    rows = pd.read_csv(_unpacked(archive) / "occurrence.txt", sep="\t", quoting=3, low_memory=False)
    rows["place"] = list(zip(rows["decimalLongitude"], rows["decimalLatitude"], strict=True))
    known = rows[["place", "footprintWKT"]].value_counts().index.get_level_values("place")
    rows["date"] = pd.to_datetime(rows["eventDate"], format="ISO8601").dt.normalize()
    rows = rows[(rows["institutionCode"] == "UKBMS") & rows["date"].dt.year.between(2016, 2019)]
    counts = rows.groupby("footprintWKT").size()
    rows = rows[rows["footprintWKT"].isin(counts[counts >= 200].index)].dropna(
        subset=["decimalLatitude", "decimalLongitude"]
    )
    rows["point"] = [shapely.Point(place) for place in rows["place"]]
    rows["polygon"] = [shapely.from_wkt(text) for text in rows["footprintWKT"]]
    rows = rows[[polygon.area <= 0.0002 for polygon in rows["polygon"]]]
    species = rows["species"].unique().tolist()
    held_columns = rows[["place", "date"]].copy()
    for name in species:
        held_columns[name] = (
            (rows["species"] == name) & (rows["occurrenceStatus"] == "PRESENT")
        ).astype(int)
    on_visit = (
        held_columns.groupby(["place", "date"]).sum().map(lambda count: 1 if count > 0 else 0)
    )
    k = on_visit.groupby("place").sum()
    visits = on_visit.groupby("place").size()
    rates = k.astype(float)
    for row in range(len(rates)):
        rates.iloc[row] = k.iloc[row] / visits.iloc[row]
    distance = np.zeros((len(k), len(known)))
    for row, place in enumerate(k.index):
        for column, other in enumerate(known):
            distance[row, column] = np.linalg.norm(np.array(place) - np.array(other))
    assert len(set(distance.argmin(axis=1))) == len(k)
    return _sums(rates.to_numpy(), visits.to_numpy(), k.to_numpy())


def _sums(rates: np.ndarray, visits: np.ndarray, detections: np.ndarray) -> dict[str, float]:
    return {
        "sites": len(visits),
        "visits": int(visits.sum()),
        "detections": int(detections.sum()),
        "rates": float(rates.sum()),
    }


def run_scan(archive: Path, scratch: Path) -> dict[str, float]:
    lines = 0
    with zipfile.ZipFile(archive) as held, held.open("occurrence.txt") as file:
        while piece := file.read(1 << 20):
            lines += piece.count(b"\n")
    return {"lines": lines}


def run_wc(archive: Path, scratch: Path) -> dict[str, float]:
    counted = subprocess.run(
        ["wc", "-l", str(_unpacked(archive) / "occurrence.txt")], capture_output=True, check=True
    )
    return {"lines": int(counted.stdout.split()[0])}


def run_pyarrow(archive: Path, scratch: Path) -> dict[str, float]:
    from pyarrow import csv

    table = csv.read_csv(
        _unpacked(archive) / "occurrence.txt",
        parse_options=csv.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=csv.ConvertOptions(include_columns=USED),
    )
    return {"lines": table.num_rows + 1}


def _unpacked(archive: Path) -> Path:
    """Return the folder with the unpacked archive."""
    folder = archive.with_suffix("")
    if not folder.is_dir():
        partial = archive.with_suffix(".unpacking")
        with zipfile.ZipFile(archive) as held:
            held.extractall(partial)
        partial.rename(folder)
    return folder


def peak_mb() -> float:
    """
    Return the largest memory this process has had in use, MB (not what it inherited from its
    parent).
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(name: str, archive: Path, scratch: Path) -> dict[str, Any]:
    """
    Run a candidate in a process of its own; return seconds, processor seconds, peak memory and
    result.
    """
    command = [
        sys.executable,
        "-W",
        "ignore",
        __file__,
        "--candidate",
        name,
        "--archive",
        str(archive),
        "--scratch",
        str(scratch),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


CANDIDATES = {
    "ours": run_ours,
    "again": run_ours,
    "scan": run_scan,
    "pandas": run_pandas,
    "text": run_text,
    "pyarrow": run_pyarrow,
    "wc": run_wc,
    "published": run_published,
}
OF_TEXT = ("text", "pyarrow", "wc", "published")
TABLES = ("ours", "again", "pandas", "text", "published")  # what must come out the same

_OURS = (
    "data_prep.records.count",
    "data_prep.records.readers.archive",
    "data_prep.records.readers.tables",
)
NEEDS = {
    "ours": _OURS,
    "again": _OURS,
    "text": _OURS,
    "pandas": ("pandas", "geopandas", "pyarrow"),
    "published": ("pandas", "shapely", "pyarrow"),
    "pyarrow": ("pyarrow.csv",),
}


def _processor_seconds() -> float:
    return sum(os.times()[:4])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=sorted(ROWS), default="small")
    parser.add_argument("--rows", type=int, help="another number of rows")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "butterfly_sdm_bench"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--candidates", nargs="+", default=list(CANDIDATES)[:-1], choices=list(CANDIDATES)
    )
    parser.add_argument("--candidate", help=argparse.SUPPRESS)
    parser.add_argument("--archive", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.candidate:
        for module in NEEDS.get(arguments.candidate, ()):
            importlib.import_module(module)
        wall, cpu = time.perf_counter(), _processor_seconds()
        result = CANDIDATES[arguments.candidate](arguments.archive, arguments.scratch)
        wall, cpu = time.perf_counter() - wall, _processor_seconds() - cpu
        print(json.dumps({"wall": wall, "cpu": cpu, "peak_mb": peak_mb(), "result": result}))
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    archive = make_archive(arguments.folder, arguments.rows or ROWS[arguments.size])
    if set(OF_TEXT) & set(arguments.candidates):
        _unpacked(archive)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.candidates}
    for number in range(arguments.rounds):
        scratch = Path(tempfile.mkdtemp(prefix="scratch-", dir=arguments.folder))
        for name in arguments.candidates:
            runs[name].append(measure(name, archive, scratch))
            print(f"\rround {number + 1}: {name}          ", end="", file=sys.stderr)
        shutil.rmtree(scratch, ignore_errors=True)
    print(file=sys.stderr)
    tables = {name: done[0]["result"] for name, done in runs.items() if name in TABLES}
    for name, result in tables.items():
        reference = tables.get("ours", result)
        same = all(
            abs(result[key] - reference[key]) <= 1e-6 * max(abs(reference[key]), 1)
            for key in reference
        )
        if not same:
            raise SystemExit(
                f"{name} gives {result}, ours {reference}: times of unequal results mean nothing"
            )
    print(
        f"{archive.name}: {archive.stat().st_size / 1e6:.0f} MB; load {os.getloadavg()[0]:.1f}, "
        f"{os.cpu_count()} processors"
    )
    print(f"equal tables: {tables.get('ours')}")
    print(
        f"{'':10}{'wall s':>9}{'cpu s':>9}{'peak MB':>9}"
        f"{'wall / ours':>13}{'cpu / ours':>12}{'peak / ours':>13}"
    )
    for name, done in runs.items():
        wall, cpu, peak = (
            statistics.median(run[key] for run in done) for key in ("wall", "cpu", "peak_mb")
        )
        pairs = list(zip(done, runs.get("text" if name in OF_TEXT else "ours", done), strict=True))
        ratios = [
            statistics.median(run[key] / own[key] for run, own in pairs)
            for key in ("wall", "cpu", "peak_mb")
        ]
        print(
            f"{name:10}{wall:9.2f}{cpu:9.2f}{peak:9.0f}{ratios[0]:13.2f}{ratios[1]:12.2f}{ratios[2]:13.2f}"
        )


if __name__ == "__main__":
    main()
