"""
A landscape with known truth: scenes, survey records and covariates on disk, and the presence probabilities behind them.

Woods, grassland, arable fields, heath, towns and water lie in parcels whose mixture changes over kilometres; hedges run between
fields. Each species answers to the mixture, to the hedges and to temperature within a window around a place, so that an image
says much, a climate table says the rest, and no model can know more than :attr:`Region.truth_map` says. Names of species are
real and recognisable, their preferences here are invented: nothing in a simulated region is a statement about Great Britain.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
from pyproj import Transformer
from rasterio.transform import from_origin
from rasterio.windows import Window
from scipy.ndimage import gaussian_filter, map_coordinates

from butterfly_sdm.data.artefact import atomic_path, read_json, write_json, write_text
from butterfly_sdm.errors import DataError
from butterfly_sdm.progress import Progress, silent

VERSION = 1
BANDS = ("red", "green", "blue", "nir")
HABITATS = ("woodland", "grassland", "arable", "heath", "urban", "water", "hedge")
LATTICE_PX = 32
SCENE_CRS = "EPSG:32630"
POSITION_CRS = "EPSG:27700"

_LEFT, _TOP, _PIXEL_M = 545_000, 5_690_000, 10  # Wiltshire and Dorset
_COARSE_PX = 16
_PARCEL_PX = 24
_STRIP_PX = 256
_TEXTURE_PX = 512
_DATASET = "Simulated butterfly survey (butterfly_sdm)"
_INSTITUTION = "SIMULATED"

# surface reflectance x 10,000 per habitat: red, green, blue, nir; then spread between parcels and speckle within them
_REFLECTANCE = np.array(
    [
        [260, 430, 210, 3100],
        [440, 720, 340, 4050],
        [760, 840, 520, 2900],
        [640, 690, 420, 2050],
        [1300, 1270, 1130, 2150],
        [210, 330, 300, 140],
        [330, 500, 250, 3450],
    ],
    dtype=np.float32,
)
_PARCEL_SPREAD = np.array([0.08, 0.12, 0.30, 0.12, 0.15, 0.10, 0.05], dtype=np.float32)
_SPECKLE = np.array([0.16, 0.05, 0.05, 0.12, 0.28, 0.05, 0.10], dtype=np.float32)
_USUAL_SHARE = np.array([0.20, 0.30, 0.28, 0.09, 0.08, 0.02, 0.03])

# typical detection rate; answer (log odds per unit share) to each habitat of HABITATS; log odds per degree of warmth
_SPECIES: dict[str, tuple[float, tuple[float, ...], float]] = {
    "Maniola jurtina": (0.42, (-1, 4, 0, 1, -3, -3, 6), 0.0),
    "Pararge aegeria": (0.35, (6, -1, -1, -1, 1, -2, 10), 0.0),
    "Pieris rapae": (0.45, (-2, 0, 2.5, -3, 4, -2, 0), 0.2),
    "Hipparchia semele": (0.06, (-2, 0, -3, 10, -3, -3, 0), 0.3),
    "Melanargia galathea": (0.18, (-2, 5, -1, 0, -4, -4, 0), 0.6),
    "Pyronia tithonus": (0.28, (1, 0, 0, 1, -2, -2, 32), 0.4),
    "Argynnis paphia": (0.10, (9, -1, -3, 0, -4, -3, 0), 0.3),
    "Celastrina argiolus": (0.14, (2, -1, -2, 0, 8, -1, 5), 0.2),
    "Polyommatus coridon": (0.08, (-4, 8, -3, 1, -4, -4, -8), 0.9),
    "Plebejus argus": (0.05, (-3, -1, -4, 11, -4, -2, 0), 0.0),
    "Pieris napi": (0.38, (3, 1, -1, 0, -1, 4, 14), -0.4),
    "Coenonympha pamphilus": (0.16, (-4, 5, -2, 5, -4, -3, -4), -0.3),
    "Gonepteryx rhamni": (0.24, (4, 0, -1, 1, 1, -1, 12), 0.3),
    "Aglais urticae": (0.32, (-1, 1, 2, 0, 2, -2, 0), -0.5),
    "Thymelicus lineola": (0.12, (-3, 3, 2, -1, -1, -2, 16), 0.6),
    "Callophrys rubi": (0.07, (2, 1, -4, 8, -4, -3, 4), -0.3),
    "Polygonia c-album": (0.20, (5, -1, 0, -1, 1, -1, 8), 0.2),
    "Lasiommata megera": (0.06, (-3, 3, 0, 3, 0, 2, -6), 0.5),
    "Limenitis camilla": (0.06, (11, -2, -3, -1, -4, -2, 0), 0.5),
    "Aphantopus hyperantus": (0.30, (3, 3, -1, -1, -3, 2, 14), -0.5),
    "Anthocharis cardamines": (0.22, (1, 2, -1, -2, 0, 5, 10), 0.0),
    "Favonius quercus": (0.08, (8, -1, -2, 0, 0, -2, 6), 0.2),
    "Polyommatus icarus": (0.26, (-3, 4, 0, 2, 0, -3, 0), 0.3),
    "Vanessa atalanta": (0.34, (0, 0, 1, -1, 3, 0, 4), 0.1),
}
SPECIES = tuple(_SPECIES)


@dataclass(frozen=True)
class Region:
    """
    What a simulated region consists of; every path lies inside ``folder``.

    Attributes
    ----------
    folder
        Where everything lies.
    config
        ``config.yaml`` for the four verbs.
    scenes
        Two overlapping GeoTIFFs: bands red, green, blue, nir; 10 m; reflectance x 10,000; 0 is nodata.
    records
        Darwin Core Archive, laid out as a GBIF download.
    sites, covariates
        CSV with ``site_id, lon, lat, footprint_wkt``; CSV with ``site_id`` and climate.
    truth_map
        GeoTIFF with one band per species: the true detection probability per visit, float32, one pixel per 320 m.
    truth_table
        CSV per site: ``easting, northing`` (EPSG:27700), ``visits`` walked, ``recorded_visits`` (those that left a record),
        then per species the true detection probability.
    truth_detections
        CSV per site and species: visits on which the species was detected.
    habitats
        GeoTIFF of the true habitat, one class number (position in ``HABITATS``) per 10 m pixel.
    species
        Names, in the order of the bands of ``truth_map``.
    """

    folder: Path
    config: Path
    scenes: tuple[Path, Path]
    records: Path
    sites: Path
    covariates: Path
    truth_map: Path
    truth_table: Path
    truth_detections: Path
    habitats: Path
    species: tuple[str, ...]

    @classmethod
    def in_folder(cls, folder: str | Path, species: tuple[str, ...]) -> Region:
        """Name the files of a region in ``folder``."""
        at = Path(folder)
        return cls(
            folder=at,
            config=at / "config.yaml",
            scenes=(at / "scenes" / "west.tif", at / "scenes" / "east.tif"),
            records=at / "records.zip",
            sites=at / "sites.csv",
            covariates=at / "covariates.csv",
            truth_map=at / "truth.tif",
            truth_table=at / "truth.csv",
            truth_detections=at / "truth_detections.csv",
            habitats=at / "habitats.tif",
            species=species,
        )

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the region."""
        return (
            *self.scenes, self.records, self.sites, self.covariates, self.truth_map, self.truth_table,
            self.truth_detections, self.habitats, self.config,
        )  # fmt: skip


def simulate_region(
    folder: str | Path,
    *,
    seed: int = 0,
    size_px: int = 3072,
    n_sites: int = 240,
    n_species: int = 12,
    mean_visits: float = 30.0,
    window_px: int = 192,
    tile_px: int = 128,
    progress: Progress = silent,
) -> Region:
    """
    Write a simulated region: the input of all four verbs, and the truth behind it.

    The same arguments give the same bytes. A folder that already holds the region is left as it is.

    Parameters
    ----------
    folder
        Where to write.
    seed
        Landscape, surveys and noise follow from it.
    size_px
        Side of the square landscape, pixels of 10 m; a multiple of 32 from 512 on.
    n_sites
        Squares of 1 km with a survey; clustered, as people walk near where they live.
    n_species
        How many species of :data:`SPECIES`, from the first on.
    mean_visits
        Mean number of visits per site; single sites have 3 to 100.
    window_px
        Side of the window of landscape a species answers to.
    tile_px
        Side of the tiles that the written config asks for.
    progress
        Told about the strips of landscape done.

    Returns
    -------
    Region
        The paths.

    Raises
    ------
    DataError
        A size is out of range, or the landscape has no room for so many sites.

    Notes
    -----
    The probability that a visit at place x finds species s is
    ``logistic(logit(r_s) + sum_h b_sh (f_h(x) - m_h) + c_s t(x))``: r_s its typical rate, f_h(x) the share of habitat h (hedges
    among them) in the window around x, m_h a usual share, t the temperature in degrees above the usual. A visit on which no
    species is seen leaves no record, as in occurrence data: rates from records are slightly too high, and ``truth_table`` has both
    counts.
    """
    if size_px < 512 or size_px % LATTICE_PX:
        raise DataError(f"size_px is {size_px}; it has to be a multiple of {LATTICE_PX} and at least 512.")
    if not 1 <= n_species <= len(SPECIES):
        raise DataError(f"n_species is {n_species}; the simulation knows {len(SPECIES)} species. Ask for 1 to {len(SPECIES)}.")
    if not 3 <= mean_visits <= 100:
        raise DataError(f"mean_visits is {mean_visits}; visits per site lie between 3 and 100.")
    if window_px < 2 or window_px % 2:
        raise DataError(f"window_px is {window_px}; it has to be even and positive.")
    if tile_px < LATTICE_PX or tile_px % LATTICE_PX:
        raise DataError(f"tile_px is {tile_px}; it has to be a multiple of {LATTICE_PX}.")
    region = Region.in_folder(folder, SPECIES[:n_species])
    recipe = {
        "version": VERSION, "seed": seed, "size_px": size_px, "n_sites": n_sites, "n_species": n_species,
        "mean_visits": mean_visits, "window_px": window_px, "tile_px": tile_px,
    }  # fmt: skip
    mark = region.folder / "region.json"
    if mark.is_file() and all(path.is_file() for path in region.files) and read_json(mark) == recipe:
        return region
    mark.unlink(missing_ok=True)

    land = _Landscape.draw(seed, size_px)
    places = _choose_sites(land, np.random.default_rng([seed, 2]), n_sites, max(window_px, tile_px))
    region.folder.mkdir(parents=True, exist_ok=True)
    habitat = _write_scenes(region, land, progress)
    probability = _Probability(habitat, land, region.species, window_px)
    _write_truth_map(region, probability, size_px)

    survey_rng = np.random.default_rng([seed, 3])
    truth = probability.at(places["x"].to_numpy(), places["y"].to_numpy())  # (sites, species)
    spread = 0.75
    drawn = survey_rng.lognormal(np.log(mean_visits) - spread**2 / 2, spread, len(places))
    visits = np.clip(np.rint(drawn), 3, 100).astype(np.int64)
    records, seen, recorded = _walk(region.species, places, truth, visits, survey_rng)
    _write_archive(region.records, records)

    _write_csv(region.sites, places[["site_id", "lon", "lat", "footprint_wkt"]])
    _write_csv(region.covariates, _climate_table(land, places, np.random.default_rng([seed, 4])))
    effort = pd.DataFrame({"visits": visits, "recorded_visits": recorded})
    table = [places[["site_id", "easting", "northing"]], effort, pd.DataFrame(truth, columns=region.species).round(6)]
    _write_csv(region.truth_table, pd.concat(table, axis=1))
    _write_csv(region.truth_detections, pd.concat([places[["site_id"]], pd.DataFrame(seen, columns=region.species)], axis=1))
    write_text(region.config, _config_text(seed, tile_px))
    write_json(mark, recipe)
    return region


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


# ---------------------------------------------------------------------------------------------------------------- landscape


@dataclass(frozen=True)
class _Landscape:
    """Smooth fields every 16 px and one row per parcel: small enough to keep, and all that the pixels follow from."""

    seed: int
    size_px: int
    habitat: np.ndarray  # (rows, columns) habitat of each parcel
    shade: np.ndarray  # (rows, columns, bands) brightness of each parcel, a factor
    hedged: np.ndarray  # (rows, columns) width of its hedge in px; 0 for none
    seeds: np.ndarray  # (rows, columns, 2) y and x of the middle of each parcel, px
    river: np.ndarray  # coarse field; a river runs where it is near 0
    warmth: np.ndarray  # coarse field, degrees above the usual
    elevation: np.ndarray  # coarse field, metres
    town: np.ndarray  # coarse field, where people live
    texture: np.ndarray  # (px, px) unit speckle that repeats seamlessly

    @classmethod
    def draw(cls, seed: int, size_px: int) -> _Landscape:
        rng = np.random.default_rng([seed, 1])
        field = _field_maker(rng, size_px)
        regional = [field(3500) * 0.9 + field(1100) * 0.75 for _ in range(5)]
        town, elevation, river = field(1800), field(4000), field(2500)
        count = size_px // _PARCEL_PX + 5  # two parcels beyond each edge
        jitter = rng.uniform(0.12, 0.88, (count, count, 2))
        seeds = (np.stack(np.mgrid[:count, :count], axis=-1) - 2 + jitter) * _PARCEL_PX
        preference = np.stack([_sample(f, seeds[..., 0], seeds[..., 1]) for f in regional], axis=-1)  # (rows, cols, 5)
        preference[..., 4] = 1.6 * _sample(town, seeds[..., 0], seeds[..., 1]) - 1.1
        preference[..., 3] -= 0.55
        preference[..., 1] += 0.25
        preference[..., 0] -= 0.1
        preference[..., 2] += 0.25
        habitat = (preference * 1.7 + rng.gumbel(0, 0.55, preference.shape)).argmax(-1).astype(np.uint8)
        spread = _PARCEL_SPREAD[habitat][..., None]
        bright = rng.standard_normal((*habitat.shape, 1)) * 0.8 + rng.standard_normal((*habitat.shape, 4)) * 0.35
        shade = np.exp(spread * bright).astype(np.float32)
        hedge_field = _sample(field(1500), seeds[..., 0], seeds[..., 1]) + rng.normal(0, 0.4, habitat.shape)
        farmed = (habitat == 1) | (habitat == 2)
        hedged = np.where(farmed, np.clip(hedge_field * 1.1 + 0.6, 0, 2.2), 0).astype(np.float32)
        north = np.linspace(0.9, -0.9, elevation.shape[0])[:, None]  # the first row is the northern edge
        metres = 120 + 55 * elevation
        warmth = -0.9 * north + 0.35 * field(5000) - 0.0065 * (metres - 120)
        noise = rng.standard_normal((_TEXTURE_PX, _TEXTURE_PX))
        texture = _unit(gaussian_filter(noise, 0.8, mode="wrap")) * 0.8 + _unit(gaussian_filter(noise, 3, mode="wrap")) * 0.6
        return cls(
            seed, size_px, habitat, shade, hedged, seeds.astype(np.float32), river, warmth, metres, town,
            texture.astype(np.float32),
        )  # fmt: skip

    def strip(self, top: int, height: int) -> tuple[np.ndarray, np.ndarray]:
        """Return habitat (height, width) and reflectance (bands, height, width) of some rows."""
        y = np.arange(top, top + height, dtype=np.float32)[:, None]
        x = np.arange(self.size_px, dtype=np.float32)[None, :]
        bend = 5 * np.sin(y / 37) + 4 * np.cos(y / 83), 5 * np.sin(x / 41) + 4 * np.cos(x / 71)  # edges of fields curve
        y, x = y + bend[1], x + bend[0]
        row, column = (y // _PARCEL_PX).astype(np.int32) + 2, (x // _PARCEL_PX).astype(np.int32) + 2
        count = self.habitat.shape[0]
        np.clip(row, 1, count - 2, out=row)
        np.clip(column, 1, count - 2, out=column)
        flat, seeds_y, seeds_x = row * count + column, self.seeds[..., 0].ravel(), self.seeds[..., 1].ravel()
        nearest = np.full(flat.shape, np.inf, dtype=np.float32)
        second = nearest.copy()
        parcel = flat.copy()
        for step in (-count - 1, -count, -count + 1, -1, 0, 1, count - 1, count, count + 1):
            other = flat + step
            distance = np.hypot(seeds_y[other] - y, seeds_x[other] - x)
            closer = distance < nearest
            second = np.where(closer, nearest, np.minimum(second, distance))
            nearest = np.where(closer, distance, nearest)
            parcel = np.where(closer, other, parcel)
        habitat = self.habitat.ravel()[parcel]
        is_hedge = second - nearest < self.hedged.ravel()[parcel]
        rows, columns = np.broadcast_arrays(y, x)
        is_river = np.abs(_sample(self.river, rows, columns)) < 0.018
        habitat = np.where(is_river, 5, np.where(is_hedge, 6, habitat)).astype(np.uint8)
        shade = np.where((habitat < 5)[None], self.shade.reshape(-1, 4)[parcel].transpose(2, 0, 1), 1)
        repeat = np.ix_(np.arange(top, top + height) % _TEXTURE_PX, np.arange(self.size_px) % _TEXTURE_PX)
        speckle = 1 + _SPECKLE[habitat] * self.texture[repeat]
        rng = np.random.default_rng([self.seed, 5, top])
        noise = 1 + 0.035 * rng.standard_normal((4, height, self.size_px), dtype=np.float32)
        reflectance = _REFLECTANCE[habitat].transpose(2, 0, 1) * shade * speckle * noise
        return habitat, np.clip(np.rint(reflectance), 1, 12_000).astype(np.uint16)

    def at(self, field: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        return _sample(field, y, x)


def _unit(field: np.ndarray) -> np.ndarray:
    return (field - field.mean()) / field.std()


def _field_maker(rng: np.random.Generator, size_px: int) -> Callable[[float], np.ndarray]:
    side = size_px // _COARSE_PX + 8
    margin = 3 * 5000 // (_COARSE_PX * _PIXEL_M) // 2  # so that opposite edges of the landscape are not neighbours

    def field(scale_m: float) -> np.ndarray:
        """Return a random field with unit variance that changes over ``scale_m``; its first node lies 4 nodes outside."""
        sigma = scale_m / 2 / (_COARSE_PX * _PIXEL_M)
        noise = rng.standard_normal((side + 2 * margin, side + 2 * margin))
        return _unit(gaussian_filter(noise, sigma, mode="wrap"))[margin : margin + side, margin : margin + side]

    return field


def _sample(field: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Interpolate a coarse field at pixel coordinates."""
    at = np.stack([np.asarray(y, dtype=np.float64), np.asarray(x, dtype=np.float64)]) / _COARSE_PX + 4
    return map_coordinates(field, at, order=1, mode="nearest", output=np.float32)


# ------------------------------------------------------------------------------------------------------------------- scenes


def _write_scenes(region: Region, land: _Landscape, progress: Progress) -> np.ndarray:
    """Write both scenes strip by strip; return the habitats (rows, columns)."""
    size = land.size_px
    overlap = max(LATTICE_PX * 2, size // 8 // LATTICE_PX * LATTICE_PX)
    middle = size // 2 // LATTICE_PX * LATTICE_PX
    starts, ends = (0, middle - overlap // 2), (middle + overlap // 2, size)
    rng = np.random.default_rng([land.seed, 6])
    clouds = [_clouds(rng, size, start, end) for start, end in zip(starts, ends, strict=True)]
    habitat = np.empty((size, size), dtype=np.uint8)
    with atomic_path(region.scenes[0]) as west, atomic_path(region.scenes[1]) as east:
        profile = {
            "driver": "GTiff", "height": size, "count": len(BANDS), "dtype": "uint16", "crs": SCENE_CRS, "nodata": 0, "tiled": True,
            "blockxsize": 256, "blockysize": 256, "compress": "deflate", "predictor": 2, "zlevel": 1,
        }  # fmt: skip
        rasters = [
            rasterio.open(path, "w", width=end - start, transform=_transform(start), **profile)
            for path, start, end in zip((west, east), starts, ends, strict=True)
        ]
        try:
            for raster in rasters:
                raster.descriptions = BANDS
                raster.update_tags(title="Simulated scene", scale="0.0001", source="butterfly_sdm.simulate")
            for top in range(0, size, _STRIP_PX):
                height = min(_STRIP_PX, size - top)
                habitat[top : top + height], reflectance = land.strip(top, height)
                for side, (raster, start, end) in enumerate(zip(rasters, starts, ends, strict=True)):
                    pixels = reflectance[:, :, start:end].copy()
                    pixels[:, _hidden(clouds[side], side, top, height, start, end, size, overlap)] = 0
                    raster.write(pixels, window=Window(0, top, end - start, height))
                progress("simulate", min(top + _STRIP_PX, size), size)
        finally:
            for raster in rasters:
                raster.close()
    with atomic_path(region.habitats) as path, rasterio.open(
        path, "w", driver="GTiff", width=size, height=size, count=1, dtype="uint8", crs=SCENE_CRS, nodata=255,
        transform=_transform(0), tiled=True, compress="deflate",
    ) as raster:  # fmt: skip
        raster.write(habitat, 1)
        raster.update_tags(classes=json.dumps(dict(enumerate(HABITATS))))
    return habitat


def _transform(start_px: int) -> rasterio.Affine:
    return from_origin(_LEFT + start_px * _PIXEL_M, _TOP, _PIXEL_M, _PIXEL_M)


def _clouds(rng: np.random.Generator, size: int, start: int, end: int) -> np.ndarray:
    """Return (clouds, 3): y, x and radius in px of masked clouds."""
    count = max(1, round(6 * (size / 3072) ** 2))
    y, x = rng.uniform(0, size, count), rng.uniform(start, end, count)
    return np.stack([y, x, rng.uniform(20, 70, count)], axis=1)


def _hidden(clouds: np.ndarray, side: int, top: int, height: int, start: int, end: int, size: int, overlap: int) -> np.ndarray:
    """Return where (height, width) a scene has no measurement: clouds, and a slanting edge of the swath inside the overlap."""
    y, x = np.arange(top, top + height)[:, None], np.arange(start, end)[None, :]
    slant = overlap * 0.45 * y / size
    hidden = (x >= end - slant) if side == 0 else (x < start + 0.45 * overlap - slant)
    for cloud_y, cloud_x, radius in clouds:
        hidden = hidden | ((y - cloud_y) ** 2 + (x - cloud_x) ** 2 < radius**2)
    return hidden


# -------------------------------------------------------------------------------------------------------------------- truth


class _Probability:
    """The true probability that one visit at a place detects a species."""

    def __init__(self, habitat: np.ndarray, land: _Landscape, species: tuple[str, ...], window_px: int) -> None:
        self.land, self.half = land, window_px // 2
        self.sums = []  # integral images, one per habitat
        for number in range(len(HABITATS)):
            total = np.zeros((habitat.shape[0] + 1, habitat.shape[1] + 1), dtype=np.int32)
            np.cumsum(np.cumsum(habitat == number, axis=0, dtype=np.int32), axis=1, out=total[1:, 1:])
            self.sums.append(total)
        typical, weights, warm = zip(*(_SPECIES[name] for name in species), strict=True)
        rate = np.array(typical)
        self.constant, self.weights, self.warm = np.log(rate / (1 - rate)), np.array(weights, dtype=float), np.array(warm)

    def shares(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the share of each habitat (..., habitats) in the window around pixel corners x, y; clipped at the edge."""
        size = self.land.size_px
        x, y = np.rint(x).astype(int), np.rint(y).astype(int)
        left, right = np.clip(x - self.half, 0, size), np.clip(x + self.half, 0, size)
        top, bottom = np.clip(y - self.half, 0, size), np.clip(y + self.half, 0, size)
        area = (right - left) * (bottom - top)
        counts = [s[bottom, right] - s[top, right] - s[bottom, left] + s[top, left] for s in self.sums]
        return np.stack(counts, axis=-1) / area[..., None]

    def at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the probability (..., species) at pixel coordinates x, y."""
        warmth = _sample(self.land.warmth, y, x).astype(float)
        logit = self.constant + (self.shares(x, y) - _USUAL_SHARE) @ self.weights.T + warmth[..., None] * self.warm
        return 1 / (1 + np.exp(-logit))


def _write_truth_map(region: Region, probability: _Probability, size_px: int) -> None:
    middles = np.arange(LATTICE_PX // 2, size_px, LATTICE_PX)
    y, x = np.meshgrid(middles, middles, indexing="ij")
    values = probability.at(x, y).transpose(2, 0, 1).astype(np.float32)
    cell_m = LATTICE_PX * _PIXEL_M
    with atomic_path(region.truth_map) as path, rasterio.open(
        path, "w", driver="GTiff", width=len(middles), height=len(middles), count=len(values), dtype="float32", crs=SCENE_CRS,
        nodata=float("nan"), transform=from_origin(_LEFT, _TOP, cell_m, cell_m), compress="deflate",
    ) as raster:  # fmt: skip
        raster.write(values)
        raster.descriptions = region.species
        raster.update_tags(title="True detection probability per visit", source="butterfly_sdm.simulate")


# ------------------------------------------------------------------------------------------------------------------ surveys


def _choose_sites(land: _Landscape, rng: np.random.Generator, n_sites: int, window_px: int) -> pd.DataFrame:
    """Choose squares of the national grid, more of them near towns and near each other."""
    size = land.size_px
    margin_m = (window_px // 2 + 2) * _PIXEL_M
    right, bottom = _LEFT + size * _PIXEL_M, _TOP - size * _PIXEL_M
    to_grid = Transformer.from_crs(SCENE_CRS, POSITION_CRS, always_xy=True)
    to_degrees = Transformer.from_crs(POSITION_CRS, "EPSG:4326", always_xy=True)
    corners = np.array(to_grid.transform([_LEFT, right, _LEFT, right], [_TOP, _TOP, bottom, bottom]))
    low, high = np.floor(corners.min(1) / 1000).astype(int), np.ceil(corners.max(1) / 1000).astype(int)
    east, north = (a.ravel() * 1000 for a in np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1])))
    sides = [to_degrees.transform(east + dx, north + dy) for dx, dy in ((0, 0), (1000, 0), (0, 1000), (1000, 1000))]
    lons, lats = np.array([s[0] for s in sides]), np.array([s[1] for s in sides])
    west, south, lon_e, lat_n = (np.round(a, 5) for a in (lons.min(0), lats.min(0), lons.max(0), lats.max(0)))
    lon, lat = (west + lon_e) / 2, (south + lat_n) / 2
    map_x, map_y = Transformer.from_crs("EPSG:4326", SCENE_CRS, always_xy=True).transform(lon, lat)
    inside = (map_x > _LEFT + margin_m) & (map_x < right - margin_m) & (map_y > bottom + margin_m) & (map_y < _TOP - margin_m)
    if inside.sum() < n_sites or n_sites < 1:
        raise DataError(
            f"{n_sites} sites were asked for; a landscape of {size} px has room for {int(inside.sum())} squares of 1 km. "
            "Ask for fewer sites, or a larger size_px."
        )
    grid_x, grid_y = Transformer.from_crs("EPSG:4326", POSITION_CRS, always_xy=True).transform(lon, lat)
    squares = pd.DataFrame(
        {
            "lon": lon.round(6), "lat": lat.round(6), "easting": np.round(grid_x, 1), "northing": np.round(grid_y, 1),
            "x": (map_x - _LEFT) / _PIXEL_M, "y": (_TOP - map_y) / _PIXEL_M,
            "west": west, "south": south, "east": lon_e, "north": lat_n,
        }
    )[inside].reset_index(drop=True)  # fmt: skip
    homes = squares.iloc[rng.choice(len(squares), max(1, n_sites // 8), replace=False)]
    steps = squares[["x", "y"]].to_numpy()[:, None] - homes[["x", "y"]].to_numpy()[None]
    near = np.exp(-((np.hypot(steps[..., 0], steps[..., 1]).min(1) / 250) ** 2))
    town = _sample(land.town, squares["y"].to_numpy(), squares["x"].to_numpy())
    weight = (near + 0.12) * np.exp(0.35 * town)
    chosen = np.sort(rng.choice(len(squares), n_sites, replace=False, p=weight / weight.sum()))
    places = squares.iloc[chosen].reset_index(drop=True)
    places.insert(0, "site_id", [f"SIM-{number:04d}" for number in range(n_sites)])
    places["footprint_wkt"] = [_box(*row) for row in places[["west", "south", "east", "north"]].itertuples(index=False)]
    return places


def _box(west: float, south: float, east: float, north: float) -> str:
    """Return a rectangle as well-known text, written as GBIF does."""
    w, s, e, n = (f"{value:.5f}".rstrip("0") for value in (west, south, east, north))
    return f"POLYGON(({w} {s},{w} {n},{e} {n},{e} {s},{w} {s}))"


def _climate_table(land: _Landscape, places: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    x, y = places["x"].to_numpy(), places["y"].to_numpy()
    elevation = _sample(land.elevation, y, x).astype(float)
    rain = 720 + 1.6 * elevation + rng.normal(0, 25, len(places))
    rain[rng.random(len(places)) < 0.02] = np.nan  # as in real tables, a few values are missing
    return pd.DataFrame(
        {
            "site_id": places["site_id"],
            "temperature_c": (10.3 + _sample(land.warmth, y, x).astype(float) + rng.normal(0, 0.05, len(places))).round(3),
            "rain_mm": rain.round(0),
            "elevation_m": elevation.round(1),
        }
    )


def _walk(
    species: tuple[str, ...], places: pd.DataFrame, truth: np.ndarray, visits: np.ndarray, rng: np.random.Generator
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Walk all visits; return the record rows, decoys included, detections (sites, species) and recorded visits (sites,)."""
    season = pd.date_range("2018-04-01", "2018-09-30").append(pd.date_range("2019-04-01", "2019-09-30"))
    site = np.repeat(np.arange(len(places)), visits)
    day = np.concatenate([rng.choice(len(season), n, replace=False) for n in visits])
    detected = rng.random((len(site), len(species))) < truth[site]  # (visits, species)
    seen = np.zeros(truth.shape, dtype=np.int64)
    np.add.at(seen, site, detected)
    recorded = np.bincount(site, weights=detected.any(1), minlength=len(places)).astype(np.int64)

    visit, kind = np.nonzero(detected)
    sections = 1 + rng.binomial(3, 0.15, len(visit))  # a transect lists a species once per section
    visit, kind = np.repeat(visit, sections), np.repeat(kind, sections)
    present = _rows(places, species, site[visit], kind, season[day[visit]], rng)
    number = max(4, len(present) // 60)

    def some(**change: object) -> pd.DataFrame:
        at, which = rng.integers(0, len(places), number), rng.integers(0, len(species), number)
        return _rows(places, species, at, which, season[rng.integers(0, len(season), number)], rng).assign(**change)

    walked = np.flatnonzero(detected.any(1))
    during = rng.choice(walked, number)
    on_visits = _rows(places, species, site[during], rng.integers(0, len(species), number), season[day[during]], rng)
    missed_visit, missed = np.nonzero(~detected[during])
    pick = rng.choice(len(missed), min(number, len(missed)), replace=False)
    absent_visit = during[missed_visit[pick]]
    absent = _rows(places, species, site[absent_visit], missed[pick], season[day[absent_visit]], rng)
    poor_places = pd.DataFrame(
        {"lon": [-2.3105], "lat": [51.1505], "footprint_wkt": [_box(-2.3177, 51.1460, -2.3033, 51.1550)]}
    )
    wrong_place = pd.DataFrame({"lon": [-2.0], "lat": [51.2], "footprint_wkt": [_box(-2.5, 50.9, -1.5, 51.5)]})
    poor = _rows(poor_places, species, np.zeros(2, int), np.zeros(2, int), season[[40, 80]], rng)
    wrong = _rows(wrong_place, species, np.zeros(40, int), rng.integers(0, len(species), 40), season[np.arange(40) * 4], rng)
    before, after = (season[rng.integers(0, 183, number)] + pd.DateOffset(years=years) for years in (-2, 2))
    anywhere = rng.integers(0, len(places), (2, number)), rng.integers(0, len(species), (2, number))
    nowhere = {"lon": "", "lat": "", "footprint_wkt": ""}
    rows = pd.concat(
        [
            present,
            present.sample(n=number, random_state=int(rng.integers(2**31))),  # the same row twice
            absent.assign(status="ABSENT", count=0),
            on_visits.assign(species="", rank="GENUS"),
            some(institution="OTHER"),
            some(**nowhere),
            _rows(places, species, anywhere[0][0], anywhere[1][0], before, rng),
            _rows(places, species, anywhere[0][1], anywhere[1][1], after, rng),
            poor,
            wrong,
        ],
        ignore_index=True,
    )
    return rows.iloc[rng.permutation(len(rows))].reset_index(drop=True), seen, recorded


def _rows(
    places: pd.DataFrame,
    species: tuple[str, ...],
    site: np.ndarray,
    kind: np.ndarray,
    date: pd.DatetimeIndex,
    rng: np.random.Generator,
) -> pd.DataFrame:
    timed = rng.random(len(site)) < 0.3
    table = places[["lon", "lat", "footprint_wkt"]].iloc[site].astype(str).reset_index(drop=True)
    name = np.array(species, dtype=object)[kind]
    return table.assign(
        species=name, genus=[text.split()[0] for text in name], rank="SPECIES", status="PRESENT", institution=_INSTITUTION,
        count=1 + rng.poisson(1.5, len(site)), date=date, timed=timed, locality=[f"square {number:04d}" for number in site],
        key=1_900_000 + kind,
    )  # fmt: skip


def _write_archive(path: Path, rows: pd.DataFrame) -> None:
    """Write a Darwin Core Archive with the columns of a GBIF download; the bytes depend on the rows alone."""
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
        "scientificName": np.where(genus_only, rows["genus"], rows["species"]) + authority.astype(object),
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
    '<eml:eml xmlns:eml="eml://ecoinformatics.org/eml-2.1.1" packageId="butterfly-sdm-simulated" system="local">'
    f"<dataset><title>{_DATASET}</title></dataset></eml:eml>\n"
)
_GBIF_TERMS = {"species": "species", "datasetKey": "datasetKey", "speciesKey": "speciesKey"} | {
    "hasCoordinate": "hasCoordinate",
    "issue": "issue",
}


def _meta(columns: list[str]) -> str:
    def term(name: str) -> str:
        if name in _GBIF_TERMS:
            return f"http://rs.gbif.org/terms/1.0/{name}"
        return f"http://purl.org/dc/terms/{name}" if name == "license" else f"http://rs.tdwg.org/dwc/terms/{name}"

    fields = _indented(f'<field index="{i}" term="{term(name)}"/>' for i, name in enumerate(columns) if i)
    return (
        '<archive xmlns="http://rs.tdwg.org/dwc/text/" metadata="metadata.xml">\n'
        '  <core encoding="utf-8" rowType="http://rs.tdwg.org/dwc/terms/Occurrence" fieldsTerminatedBy="\\t" '
        'linesTerminatedBy="\\n" fieldsEnclosedBy="" ignoreHeaderLines="1">\n'
        "    <files><location>occurrence.txt</location></files>\n"
        f'    <id index="0"/>\n{fields}  </core>\n</archive>\n'
    )


def _indented(lines: Iterator[str]) -> str:
    return "".join(f"    {line}\n" for line in lines)


# ------------------------------------------------------------------------------------------------------------------- config


def _config_text(seed: int, tile_px: int) -> str:
    margin_px = LATTICE_PX if tile_px >= 4 * LATTICE_PX else 0
    return f"""\
# A simulated region: what is not said here has its default. butterfly-sdm build config.yaml
name: simulated
seed: {seed}

build:
  records:
    path: records.zip
    sites: sites.csv
    institutions: [{_INSTITUTION}]
    years: [2018, 2019]
    min_records: 0            # the default, 200, suits two years of a national scheme
    min_visits: 3
    max_footprint_deg2: 0.0002
  scenes:
    paths: [scenes/west.tif, scenes/east.tif]
  tiles:
    size_px: {tile_px}              # the default, 256, suits days of training
  covariates:
    table: covariates.csv
    units: {{temperature_c: degC, rain_mm: mm, elevation_m: m}}
  split:
    method: blocks            # the region is too full of sites for clusters 4 km apart
    distance_m: 4000

train:
  model:
    backbone: resnet18
    window_px: {tile_px - 2 * margin_px}
    margin_px: {margin_px}
    embedding: 64
  fit:
    epochs: 20
    batch_size: 32
    regulariser:
      bottom: 16              # of a batch of 32
"""
