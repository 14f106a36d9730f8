"""A simulated region on disk: inputs of the four verbs, and the truth behind them."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window

from butterfly_sdm.core.files import atomic_path, read_json, write_json, write_text
from butterfly_sdm.errors import DataError
from butterfly_sdm.progress import Progress, silent
from butterfly_sdm.simulate.landscape import (
    BANDS,
    HABITATS,
    LATTICE_PX,
    LEFT,
    PIXEL_M,
    SCENE_CRS,
    TOP,
    Landscape,
)
from butterfly_sdm.simulate.looking import SEASON, Detection, Looking
from butterfly_sdm.simulate.surveys import (
    INSTITUTION,
    Sites,
    choose_sites,
    climate_table,
    look,
    walk,
    write_archive,
)
from butterfly_sdm.simulate.truth import SPECIES, Probability

VERSION = 2  # changes with the bytes that a seed gives
STRIP_PX = 256


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
        Two overlapping GeoTIFFs: bands red, green, blue, nir; 10 m; reflectance x 10,000; 0 is
        nodata.
    records
        Darwin Core Archive, laid out as a GBIF download.
    sites
        CSV with ``site_id, lon, lat, footprint_wkt``.
    covariates
        CSV with ``site_id`` and climate.
    truth_map
        GeoTIFF with one band per species: the true detection probability per visit, float32, one
        pixel per 320 m.
    truth_table
        CSV per site: ``easting, northing`` (EPSG:27700), ``visits`` walked, ``recorded_visits``
        (those that left a record), then per species the true detection probability.
    truth_detections
        CSV per site and species: visits on which the species was detected.
    habitats
        GeoTIFF of the true habitat, one class number (position in ``HABITATS``) per 10 m pixel.
    species
        Names, in the order of the bands of ``truth_map``.
    truth_presence, truth_presence_probability, truth_rates
        Only of a region with :class:`~butterfly_sdm.simulate.looking.Looking`: CSV per site and
        species: whether it lives there (0 or 1), with which probability it was to, and its
        standardised rate: detections per usual visit over all days of the season, 0 where it does
        not live. ``truth_map`` and ``truth_table`` then hold the rate to be expected at a place.
    truth_curves
        CSV per date and species: what a usual visit to a usual site sees of it.
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
    truth_presence: Path | None = None
    truth_presence_probability: Path | None = None
    truth_rates: Path | None = None
    truth_curves: Path | None = None

    @classmethod
    def in_folder(
        cls, folder: str | Path, species: tuple[str, ...], *, looking: bool = False
    ) -> Region:
        """Name the files of a region in ``folder``; ``looking``: also those of :class:`Looking`."""
        at = Path(folder)
        more = ("presence", "presence_probability", "rates", "curves") if looking else ()
        return cls(
            **{f"truth_{name}": at / f"truth_{name}.csv" for name in more},
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
        named = vars(self) | {"folder": None}
        return (*self.scenes, *(path for path in named.values() if isinstance(path, Path)))


def simulate_region(
    folder: str | Path,
    *,
    seed: int = 0,
    size_px: int = 3072,
    n_sites: int = 300,
    n_species: int = 12,
    mean_visits: float = 30.0,
    window_px: int = 192,
    tile_px: int = 224,
    looking: Looking | None = None,
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
    looking
        Seasons, uneven visits, effort and absence; None: every visit is like any other.
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
    The probability that a visit at place x finds species s is ``logistic(logit(r_s) +
    sum_h b_sh (f_h(x) - m_h) + c_s t(x))``: r_s its typical rate, f_h(x) the share of habitat h
    (hedges among them) in the window around x, m_h a usual share, t the temperature in degrees
    above the usual. A visit on which no species is seen leaves no record, as in occurrence data:
    rates from records are slightly too high; ``truth_table`` has both counts.
    """
    recipe = Recipe(seed, size_px, n_sites, n_species, mean_visits, window_px, tile_px, looking)
    region = Region.in_folder(folder, SPECIES[:n_species], looking=looking is not None)
    told = {"version": VERSION, **asdict(recipe)}
    if looking is None:
        del told["looking"]
    mark = region.folder / "region.json"
    if mark.is_file() and all(path.is_file() for path in region.files) and read_json(mark) == told:
        return region
    mark.unlink(missing_ok=True)

    land = Landscape.draw(seed, size_px)
    places = choose_sites(land, np.random.default_rng([seed, 2]), n_sites, max(window_px, tile_px))
    region.folder.mkdir(parents=True, exist_ok=True)
    habitat = _write_scenes(region, land, progress)
    probability = Probability(habitat, land, region.species, window_px)
    detection = None
    if looking is not None:
        detection = Detection.draw(looking, region.species, probability.constant, seed)
    _write_truth_map(region, probability, size_px, detection)
    _write_survey(region, recipe, places, probability, detection)
    _write_csv(region.covariates, climate_table(land, places, np.random.default_rng([seed, 4])))
    write_text(region.config, _config_text(recipe))
    write_json(mark, told)
    return region


@dataclass(frozen=True)
class Recipe:
    """All that the bytes of a region follow from, as :func:`simulate_region` takes it."""

    seed: int
    size_px: int
    n_sites: int
    n_species: int
    mean_visits: float
    window_px: int
    tile_px: int
    looking: Looking | None = None

    def __post_init__(self) -> None:
        if self.size_px < 512 or self.size_px % LATTICE_PX:
            raise DataError(
                f"size_px is {self.size_px}; it has to be a multiple of {LATTICE_PX} and at least "
                "512."
            )
        if not 1 <= self.n_species <= len(SPECIES):
            raise DataError(
                f"n_species is {self.n_species}; the simulation knows {len(SPECIES)} species. Ask "
                f"for 1 to {len(SPECIES)}."
            )
        if not 3 <= self.mean_visits <= 100:
            raise DataError(
                f"mean_visits is {self.mean_visits}; visits per site lie between 3 and 100."
            )
        if self.window_px < 2 or self.window_px % 2:
            raise DataError(f"window_px is {self.window_px}; it has to be even and positive.")
        if self.tile_px < LATTICE_PX or self.tile_px % LATTICE_PX:
            raise DataError(f"tile_px is {self.tile_px}; it has to be a multiple of {LATTICE_PX}.")


@dataclass(frozen=True)
class Swath:
    """The columns of the landscape that one scene shows, and what hides parts of them."""

    start: int
    end: int
    overlap: int
    size: int
    clouds: np.ndarray  # (clouds, 3): y, x and radius in px

    @classmethod
    def pair(cls, seed: int, size: int) -> tuple[Swath, Swath]:
        """Return two overlapping swaths, the western first."""
        rng = np.random.default_rng([seed, 6])
        overlap = max(LATTICE_PX * 2, size // 8 // LATTICE_PX * LATTICE_PX)
        middle = size // 2 // LATTICE_PX * LATTICE_PX
        count = max(1, round(6 * (size / 3072) ** 2))

        def draw(start: int, end: int) -> Swath:
            y, x = rng.uniform(0, size, count), rng.uniform(start, end, count)
            clouds = np.stack([y, x, rng.uniform(20, 70, count)], axis=1)
            return cls(start, end, overlap, size, clouds)

        return draw(0, middle + overlap // 2), draw(middle - overlap // 2, size)

    def hidden(self, top: int, height: int) -> np.ndarray:
        """
        Return where (height, width) a scene has no measurement: clouds, and a slanting edge of the
        swath inside the overlap.
        """
        y, x = np.arange(top, top + height)[:, None], np.arange(self.start, self.end)[None, :]
        slant = self.overlap * 0.45 * y / self.size
        west = self.start == 0
        hidden = (x >= self.end - slant) if west else (x < self.start + 0.45 * self.overlap - slant)
        for cloud_y, cloud_x, radius in self.clouds:
            hidden = hidden | ((y - cloud_y) ** 2 + (x - cloud_x) ** 2 < radius**2)
        return hidden


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def _write_survey(
    region: Region,
    recipe: Recipe,
    places: pd.DataFrame,
    probability: Probability,
    detection: Detection | None,
) -> None:
    """Walk the visits; write records, sites and the truth about them."""
    rng = np.random.default_rng([recipe.seed, 3])
    truth = probability.at(places["x"].to_numpy(), places["y"].to_numpy())  # (sites, species)
    spread = 0.75
    drawn = rng.lognormal(np.log(recipe.mean_visits) - spread**2 / 2, spread, len(places))
    visits = np.clip(np.rint(drawn), 3, 100).astype(np.int64)
    if detection is None:
        records, seen, recorded = walk(region.species, places, truth, visits, rng)
    else:
        sites, truth = _write_truth_of_looking(region, recipe, places, truth, detection)
        visits = np.minimum(visits, detection.looking.window_days or len(SEASON))
        records, seen, recorded = look(detection, places, sites, visits, rng)
    write_archive(region.records, records)
    _write_csv(region.sites, places[["site_id", "lon", "lat", "footprint_wkt"]])
    table = [
        places[["site_id", "easting", "northing"]],
        pd.DataFrame({"visits": visits, "recorded_visits": recorded}),
        pd.DataFrame(truth, columns=region.species).round(6),
    ]
    _write_csv(region.truth_table, pd.concat(table, axis=1))
    detections = [places[["site_id"]], pd.DataFrame(seen, columns=region.species)]
    _write_csv(region.truth_detections, pd.concat(detections, axis=1))


def _write_truth_of_looking(
    region: Region,
    recipe: Recipe,
    places: pd.DataFrame,
    probability: np.ndarray,
    detection: Detection,
) -> tuple[Sites, np.ndarray]:
    """Write where species live and how they are seen; return that and the rates to be expected."""
    rng = np.random.default_rng([recipe.seed, 8])
    logit = np.log(probability / (1 - probability))
    chance = detection.presence_probability(logit)
    present = rng.random(chance.shape) < chance
    north = 1 - places["y"].to_numpy() / recipe.size_px
    effect = detection.site_effect(logit)
    rate = detection.standardised(effect, north)
    for path, values in (
        (region.truth_presence, present.astype(int)),
        (region.truth_presence_probability, chance.round(6)),
        (region.truth_rates, (present * rate).round(6)),
    ):
        assert path is not None
        table = pd.DataFrame(values, columns=list(region.species))
        _write_csv(path, pd.concat([places[["site_id"]], table], axis=1))
    assert region.truth_curves is not None
    _write_csv(region.truth_curves, detection.curves())
    return Sites(effect, present, north), chance * rate


def _write_scenes(region: Region, land: Landscape, progress: Progress) -> np.ndarray:
    """Write both scenes strip by strip; return the habitats (rows, columns)."""
    size = land.size_px
    swaths = Swath.pair(land.seed, size)
    habitat = np.empty((size, size), dtype=np.uint8)
    profile = {
        "driver": "GTiff",
        "height": size,
        "count": len(BANDS),
        "dtype": "uint16",
        "crs": SCENE_CRS,
        "nodata": 0,
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "compress": "deflate",
        "predictor": 2,
        "zlevel": 1,
    }
    with ExitStack() as stack:
        rasters = []
        for scene, swath in zip(region.scenes, swaths, strict=True):
            path, at = stack.enter_context(atomic_path(scene)), _transform(swath.start)
            raster = rasterio.open(
                path, "w", width=swath.end - swath.start, transform=at, **profile
            )
            rasters.append(stack.enter_context(raster))
            raster.descriptions = BANDS
            raster.update_tags(
                title="Simulated scene", scale="0.0001", source="butterfly_sdm.simulate"
            )
        for top in range(0, size, STRIP_PX):
            height = min(STRIP_PX, size - top)
            habitat[top : top + height], reflectance = land.strip(top, height)
            for raster, swath in zip(rasters, swaths, strict=True):
                pixels = reflectance[:, :, swath.start : swath.end].copy()
                pixels[:, swath.hidden(top, height)] = 0
                raster.write(pixels, window=Window(0, top, swath.end - swath.start, height))
            progress("simulate", min(top + STRIP_PX, size), size)
    options = {"driver": "GTiff", "width": size, "height": size, "count": 1, "dtype": "uint8"}
    options |= {"crs": SCENE_CRS, "nodata": 255, "transform": _transform(0), "tiled": True}
    with (
        atomic_path(region.habitats) as path,
        rasterio.open(path, "w", compress="deflate", **options) as raster,
    ):
        raster.write(habitat, 1)
        raster.update_tags(classes=json.dumps(dict(enumerate(HABITATS))))
    return habitat


def _transform(start_px: int) -> rasterio.Affine:
    return from_origin(LEFT + start_px * PIXEL_M, TOP, PIXEL_M, PIXEL_M)


def _write_truth_map(
    region: Region, probability: Probability, size_px: int, detection: Detection | None
) -> None:
    middles = np.arange(LATTICE_PX // 2, size_px, LATTICE_PX)
    y, x = np.meshgrid(middles, middles, indexing="ij")
    truth = probability.at(x, y)
    if detection is not None:
        logit = np.log(truth / (1 - truth)).reshape(-1, truth.shape[2])
        rate = detection.standardised(detection.site_effect(logit), 1 - y.ravel() / size_px, step=7)
        truth = (detection.presence_probability(logit) * rate).reshape(truth.shape)
    values = truth.transpose(2, 0, 1).astype(np.float32)
    cell_m = LATTICE_PX * PIXEL_M
    with (
        atomic_path(region.truth_map) as path,
        rasterio.open(
            path,
            "w",
            driver="GTiff",
            width=len(middles),
            height=len(middles),
            count=len(values),
            dtype="float32",
            crs=SCENE_CRS,
            nodata=float("nan"),
            transform=from_origin(LEFT, TOP, cell_m, cell_m),
            compress="deflate",
        ) as raster,
    ):
        raster.write(values)
        raster.descriptions = region.species
        raster.update_tags(
            title="True detection probability per visit", source="butterfly_sdm.simulate"
        )


def _config_text(recipe: Recipe) -> str:
    tile_px, size_px = recipe.tile_px, recipe.size_px
    # Blocks large enough to lose few sites to the buffer; in a small landscape a buffer would leave
    # too few.
    block_m = size_px * PIXEL_M * 7 // 30_000 * 1000
    buffer_m = tile_px * PIXEL_M * 6 // 5 if size_px >= 2048 else 0
    margin_px = LATTICE_PX if tile_px >= 4 * LATTICE_PX else 0
    return f"""\
# A simulated region: what is not said here has its default. butterfly-sdm build config.yaml
name: simulated
seed: {recipe.seed}

build:
  records:
    path: records.zip
    sites: sites.csv
    institutions: [{INSTITUTION}]
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
    distance_m: {block_m}
    buffer_m: {buffer_m}            # training sites nearer to another part are left out

train:
  model:
    backbone: resnet18
    width: 16                 # a quarter of the published channels suits some hundred sites
    window_px: {tile_px - 2 * margin_px}            # the species answer to {recipe.window_px} px
    margin_px: {margin_px}
    embedding: 64
  fit:
    epochs: 20
    batch_size: 16
    learning_rate: 3e-3
    keep: last                # validation sites decide nothing: they judge
    patience: null
    regulariser:
      weight: 0.1
      bottom: 8               # of a batch of 16
{_map_section(recipe)}"""


def _map_section(recipe: Recipe) -> str:
    """Return what the map is to hold; in a small landscape too few sites are held out to say it."""
    if recipe.size_px < 2048:
        return ""
    few = recipe.n_sites < 300
    level = "\n  interval: {level: 0.8}    # for more, too few sites are held out" if few else ""
    return f"""
map:
  layers: [richness, lower, upper, applicability]   # where not to trust it{level}
"""
