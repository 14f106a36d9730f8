"""Simulated surveys: where people walk, what they see, and the archive their records end in."""

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from pyproj import Transformer

from butterfly_sdm.core.files import atomic_path
from butterfly_sdm.errors import DataError
from butterfly_sdm.simulate.landscape import LEFT, PIXEL_M, SCENE_CRS, TOP, Landscape, sample
from butterfly_sdm.simulate.looking import SEASON, USUAL_MINUTES, Detection

POSITION_CRS = "EPSG:27700"
INSTITUTION = "SIMULATED"
_DATASET = "Simulated butterfly survey (butterfly_sdm)"


def choose_sites(
    land: Landscape, rng: np.random.Generator, n_sites: int, window_px: int
) -> pd.DataFrame:
    """
    Choose squares of the national grid, more of them near towns and near each other.

    Raises
    ------
    DataError
        The landscape has no room for so many.
    """
    squares = _squares(land.size_px, (window_px // 2 + 2) * PIXEL_M)
    if len(squares) < n_sites or n_sites < 1:
        raise DataError(
            f"{n_sites} sites were asked for; a landscape of {land.size_px} px has room for "
            f"{len(squares)} squares of 1 km. Ask for fewer sites, or a larger size_px."
        )
    homes = squares.iloc[rng.choice(len(squares), max(1, n_sites // 8), replace=False)]
    steps = squares[["x", "y"]].to_numpy()[:, None] - homes[["x", "y"]].to_numpy()[None]
    near = np.exp(-((np.hypot(steps[..., 0], steps[..., 1]).min(1) / 250) ** 2))
    town = sample(land.town, squares["y"].to_numpy(), squares["x"].to_numpy())
    weight = (near + 0.12) * np.exp(0.35 * town)
    chosen = np.sort(rng.choice(len(squares), n_sites, replace=False, p=weight / weight.sum()))
    places = squares.iloc[chosen].reset_index(drop=True)
    places.insert(0, "site_id", [f"SIM-{number:04d}" for number in range(n_sites)])
    places["footprint_wkt"] = [
        _box(*row) for row in places[["west", "south", "east", "north"]].itertuples(index=False)
    ]
    return places


def _squares(size: int, margin_m: float) -> pd.DataFrame:
    """Return the squares of 1 km whose middle lies at least ``margin_m`` within the landscape."""
    right, bottom = LEFT + size * PIXEL_M, TOP - size * PIXEL_M
    to_grid = Transformer.from_crs(SCENE_CRS, POSITION_CRS, always_xy=True)
    to_degrees = Transformer.from_crs(POSITION_CRS, "EPSG:4326", always_xy=True)
    corners = np.array(to_grid.transform([LEFT, right, LEFT, right], [TOP, TOP, bottom, bottom]))
    low, high = np.floor(corners.min(1) / 1000).astype(int), np.ceil(corners.max(1) / 1000)
    lattice = np.meshgrid(*(np.arange(*ends) for ends in zip(low, high.astype(int), strict=True)))
    east, north = (axis.ravel() * 1000 for axis in lattice)
    sides = [
        to_degrees.transform(east + dx, north + dy)
        for dx, dy in ((0, 0), (1000, 0), (0, 1000), (1000, 1000))
    ]
    lons, lats = np.array(sides).transpose(1, 0, 2)
    west, south, lon_e, lat_n = (
        np.round(a, 5) for a in (lons.min(0), lats.min(0), lons.max(0), lats.max(0))
    )
    lon, lat = (west + lon_e) / 2, (south + lat_n) / 2
    map_x, map_y = Transformer.from_crs("EPSG:4326", SCENE_CRS, always_xy=True).transform(lon, lat)
    across = (map_x > LEFT + margin_m) & (map_x < right - margin_m)
    inside = across & (map_y > bottom + margin_m) & (map_y < TOP - margin_m)
    grid_x, grid_y = Transformer.from_crs("EPSG:4326", POSITION_CRS, always_xy=True).transform(
        lon, lat
    )
    table = {
        "lon": lon.round(6),
        "lat": lat.round(6),
        "easting": np.round(grid_x, 1),
        "northing": np.round(grid_y, 1),
        "x": (map_x - LEFT) / PIXEL_M,
        "y": (TOP - map_y) / PIXEL_M,
        "west": west,
        "south": south,
        "east": lon_e,
        "north": lat_n,
    }
    return pd.DataFrame(table)[inside].reset_index(drop=True)


def _box(west: float, south: float, east: float, north: float) -> str:
    """Return a rectangle as well-known text, written as GBIF does."""
    w, s, e, n = (f"{value:.5f}".rstrip("0") for value in (west, south, east, north))
    return f"POLYGON(({w} {s},{w} {n},{e} {n},{e} {s},{w} {s}))"


def climate_table(land: Landscape, places: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Return temperature, rain and elevation per site, measured with a little error."""
    x, y = places["x"].to_numpy(), places["y"].to_numpy()
    elevation = sample(land.elevation, y, x).astype(float)
    rain = 720 + 1.6 * elevation + rng.normal(0, 25, len(places))
    rain[rng.random(len(places)) < 0.02] = np.nan  # as in real tables, a few values are missing
    return pd.DataFrame(
        {
            "site_id": places["site_id"],
            "temperature_c": (
                10.3 + sample(land.warmth, y, x).astype(float) + rng.normal(0, 0.05, len(places))
            ).round(3),
            "rain_mm": rain.round(0),
            "elevation_m": elevation.round(1),
        }
    )


def walk(
    species: tuple[str, ...],
    places: pd.DataFrame,
    truth: np.ndarray,
    visits: np.ndarray,
    rng: np.random.Generator,
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """
    Walk all visits; return the record rows, decoys included, detections (sites, species) and
    recorded visits (sites,).
    """
    site = np.repeat(np.arange(len(places)), visits)
    day = np.concatenate([rng.choice(len(SEASON), n, replace=False) for n in visits])
    detected = rng.random((len(site), len(species))) < truth[site]  # (visits, species)
    return _written(_Walks(site, day, detected), places, species, rng)


@dataclass(frozen=True)
class Sites:
    """What is true of each site: ``effect`` (sites, species), ``present``, ``north`` (sites,)."""

    effect: np.ndarray
    present: np.ndarray
    north: np.ndarray


def look(
    detection: Detection,
    places: pd.DataFrame,
    chance: Sites,
    visits: np.ndarray,
    rng: np.random.Generator,
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """
    Look when and as people do; return what :func:`walk` does.

    A visit on which nothing was seen leaves a record of absence, so that every visit is known.
    """
    looking = detection.looking
    site = np.repeat(np.arange(len(places)), visits)
    day = looking.days(chance.north, visits, rng)
    minutes = np.full(len(site), USUAL_MINUTES)
    if looking.effort is not None:
        minutes = np.rint(np.clip(rng.lognormal(np.log(USUAL_MINUTES), 0.6, len(site)), 5, 480))
    p = detection.chance(chance.effect[site], chance.north[site], day, minutes)
    detected = (rng.random(p.shape) < p) & chance.present[site]
    told = None if looking.effort is None else minutes
    walks = _Walks(site, day, detected, told, empty=True)
    return _written(walks, places, detection.species, rng)


@dataclass(frozen=True)
class _Walks:
    """
    Visits: their site, day and (visits, species) detections; with durations, and with records of
    visits on which nothing was seen, where these are told.
    """

    site: np.ndarray
    day: np.ndarray
    detected: np.ndarray
    minutes: np.ndarray | None = None
    empty: bool = False


def _written(
    walks: _Walks, places: pd.DataFrame, species: tuple[str, ...], rng: np.random.Generator
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Write records of visits, decoys included; return them and the counts of :func:`walk`."""
    site, day, detected = walks.site, walks.day, walks.detected
    seen = np.zeros((len(places), len(species)), dtype=np.int64)
    np.add.at(seen, site, detected)
    left = detected.any(1) | walks.empty
    recorded = np.bincount(site, weights=left, minlength=len(places)).astype(np.int64)

    visit, kind = np.nonzero(detected)
    sections = 1 + rng.binomial(3, 0.15, len(visit))  # a transect lists a species once per section
    visit, kind = np.repeat(visit, sections), np.repeat(kind, sections)
    book = _Book(places, species, rng)
    present = book.rows(site[visit], kind, SEASON[day[visit]])
    number = max(4, len(present) // 60)
    if walks.minutes is not None:
        present["minutes"] = walks.minutes[visit]
    false = _on_visits(book, number, site, SEASON[day], detected)
    vague = _in_poor_places(book)
    more = [_blank(book, walks)] if walks.empty else []
    rows = pd.concat(
        [present, *_decoys(book, number, present, false), *vague, *more], ignore_index=True
    )
    return rows.iloc[rng.permutation(len(rows))].reset_index(drop=True), seen, recorded


@dataclass(frozen=True)
class _Book:
    """What a surveyor writes rows of records into."""

    places: pd.DataFrame
    species: tuple[str, ...]
    rng: np.random.Generator

    def rows(self, site: np.ndarray, kind: np.ndarray, date: pd.DatetimeIndex) -> pd.DataFrame:
        """Return records of species (by number) at places (by number) on dates."""
        timed = self.rng.random(len(site)) < 0.3
        table = self.places[["lon", "lat", "footprint_wkt"]].iloc[site].astype(str)
        name = np.array(self.species, dtype=object)[kind]
        return table.reset_index(drop=True).assign(
            species=name,
            genus=[text.split()[0] for text in name],
            rank="SPECIES",
            status="PRESENT",
            institution=INSTITUTION,
            count=1 + self.rng.poisson(1.5, len(site)),
            date=date,
            timed=timed,
            locality=[f"square {number:04d}" for number in site],
            key=1_900_000 + kind,
        )

    def anywhere(self, number: int, **change: object) -> pd.DataFrame:
        """Return records of any species at any place and day."""
        at = self.rng.integers(0, len(self.places), number)
        which = self.rng.integers(0, len(self.species), number)
        dates = SEASON[self.rng.integers(0, len(SEASON), number)]
        return self.rows(at, which, dates).assign(**change)


def _blank(book: _Book, walks: _Walks) -> pd.DataFrame:
    """Return a record of absence for every visit on which nothing was seen."""
    visit = np.flatnonzero(~walks.detected.any(1))
    kinds = book.rng.integers(0, len(book.species), len(visit))
    rows = book.rows(walks.site[visit], kinds, SEASON[walks.day[visit]])
    rows = rows.assign(status="ABSENT", count=0)
    return rows if walks.minutes is None else rows.assign(minutes=walks.minutes[visit])


def _on_visits(
    book: _Book, number: int, site: np.ndarray, date: pd.DatetimeIndex, detected: np.ndarray
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what no detection must come from, on visits that were walked: absences, a genus."""
    rng = book.rng
    during = rng.choice(np.flatnonzero(detected.any(1)), number)
    kinds = rng.integers(0, len(book.species), number)
    genus = book.rows(site[during], kinds, date[during]).assign(species="", rank="GENUS")
    missed_visit, missed = np.nonzero(~detected[during])
    pick = rng.choice(len(missed), min(number, len(missed)), replace=False)
    visit = during[missed_visit[pick]]
    absent = book.rows(site[visit], missed[pick], date[visit])
    return absent.assign(status="ABSENT", count=0), genus


def _in_poor_places(book: _Book) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return records of a place that is hardly visited, and of one that is too vague."""
    poor = {
        "lon": -2.3105,
        "lat": 51.1505,
        "footprint_wkt": _box(-2.3177, 51.1460, -2.3033, 51.1550),
    }
    vague = {"lon": -2.0, "lat": 51.2, "footprint_wkt": _box(-2.5, 50.9, -1.5, 51.5)}
    twice, often = np.zeros(2, int), np.zeros(40, int)
    rare = replace(book, places=pd.DataFrame([poor])).rows(twice, twice, SEASON[[40, 80]])
    kinds, dates = book.rng.integers(0, len(book.species), 40), SEASON[np.arange(40) * 4]
    return rare, replace(book, places=pd.DataFrame([vague])).rows(often, kinds, dates)


def _decoys(
    book: _Book, number: int, present: pd.DataFrame, false: tuple[pd.DataFrame, pd.DataFrame]
) -> list[pd.DataFrame]:
    """Return rows that a reader of records must leave out, those ``false`` ones among them."""
    rng = book.rng
    early, late = (
        SEASON[rng.integers(0, 183, number)] + pd.DateOffset(years=years) for years in (-2, 2)
    )
    sites = rng.integers(0, len(book.places), (2, number))
    kinds = rng.integers(0, len(book.species), (2, number))
    return [
        present.sample(n=number, random_state=int(rng.integers(2**31))),  # the same row twice
        *false,
        book.anywhere(number, institution="OTHER"),
        book.anywhere(number, lon="", lat="", footprint_wkt=""),
        book.rows(sites[0], kinds[0], early),
        book.rows(sites[1], kinds[1], late),
    ]


def write_archive(path: Path, rows: pd.DataFrame) -> None:
    """
    Write a Darwin Core Archive with the columns of a GBIF download; the bytes depend on the rows
    alone.
    """
    day = pd.to_datetime(rows["date"])
    number = (2_500_000_000 + np.arange(len(rows))).astype(str)
    genus_only = rows["rank"] == "GENUS"
    authority = np.where(genus_only, " Fabricius", " (Linnaeus, 1758)")
    columns = {
        "gbifID": number,
        "license": "CC0_1_0",
        "institutionCode": rows["institution"],
        "collectionCode": rows["institution"],
        "datasetName": _DATASET,
        "basisOfRecord": "HUMAN_OBSERVATION",
        "occurrenceID": rows["institution"] + ":" + number,
        "individualCount": rows["count"],
        "occurrenceStatus": rows["status"],
        "eventID": "",
        "eventDate": day.dt.strftime("%Y-%m-%d") + np.where(rows["timed"], "T00:00:00", ""),
        "year": day.dt.year,
        "month": day.dt.month,
        "day": day.dt.day,
        "countryCode": "GB",
        "locality": rows["locality"],
        "verbatimLocality": "",
        "decimalLatitude": rows["lat"],
        "decimalLongitude": rows["lon"],
        "coordinateUncertaintyInMeters": "707.1",
        "footprintWKT": rows["footprint_wkt"],
        "footprintSRS": "EPSG:4326",
        "scientificName": np.where(genus_only, rows["genus"], rows["species"])
        + authority.astype(object),
        "kingdom": "Animalia",
        "phylum": "Arthropoda",
        "class": "Insecta",
        "order": "Lepidoptera",
        "genus": rows["genus"],
        "species": rows["species"],
        "taxonRank": rows["rank"],
        "datasetKey": "00000000-0000-0000-0000-000000000000",
        "speciesKey": np.where(genus_only, "", rows["key"].astype(str)),
        "hasCoordinate": np.where(rows["lat"] == "", "false", "true"),
        "issue": "",
    }
    if "minutes" in rows.columns:
        text = rows["minutes"].map("{:.0f} min".format)
        columns["samplingEffort"] = text.where(rows["minutes"].notna(), "")
    table = pd.DataFrame(columns, index=rows.index)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, text in (
            ("meta.xml", _meta(list(columns))),
            ("metadata.xml", _METADATA),
            ("occurrence.txt", table.to_csv(sep="\t", index=False, lineterminator="\n", quoting=3)),
        ):
            entry = zipfile.ZipInfo(name, date_time=(2020, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, text)


_METADATA = (
    '<eml:eml xmlns:eml="eml://ecoinformatics.org/eml-2.1.1" packageId="butterfly-sdm-simulated" '
    'system="local">'
    f"<dataset><title>{_DATASET}</title></dataset></eml:eml>\n"
)
_GBIF_TERMS = {"species", "datasetKey", "speciesKey", "hasCoordinate", "issue"}


def _meta(columns: list[str]) -> str:
    def term(name: str) -> str:
        if name in _GBIF_TERMS:
            return f"http://rs.gbif.org/terms/1.0/{name}"
        return (
            f"http://purl.org/dc/terms/{name}"
            if name == "license"
            else f"http://rs.tdwg.org/dwc/terms/{name}"
        )

    fields = "".join(
        f'    <field index="{i}" term="{term(name)}"/>\n' for i, name in enumerate(columns) if i
    )
    return (
        '<archive xmlns="http://rs.tdwg.org/dwc/text/" metadata="metadata.xml">\n'
        '  <core encoding="utf-8" rowType="http://rs.tdwg.org/dwc/terms/Occurrence" '
        'fieldsTerminatedBy="\\t" '
        'linesTerminatedBy="\\n" fieldsEnclosedBy="" ignoreHeaderLines="1">\n'
        "    <files><location>occurrence.txt</location></files>\n"
        f'    <id index="0"/>\n{fields}  </core>\n</archive>\n'
    )
