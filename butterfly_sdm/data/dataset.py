"""
The data set: sites, visits, detections, tiles and covariates, read from its folder or made in
memory.

Only ``data_prep`` writes a data set; everything else reads it through :class:`Dataset`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from mmap import mmap
from pathlib import Path
from typing import Any, Literal, Self

import geopandas as gpd
import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from butterfly_sdm.core.cards import check_version, fingerprint
from butterfly_sdm.core.files import read_json
from butterfly_sdm.core.html import facts_html
from butterfly_sdm.core.settings import empty, unset
from butterfly_sdm.data.splits import Split
from butterfly_sdm.data.visits import VisitTable
from butterfly_sdm.errors import ArtefactError, DataError, MissingFileError
from butterfly_sdm.imagery.embeddings.meaning import values_of
from butterfly_sdm.imagery.pixels import PixelType, fits, measured
from butterfly_sdm.imagery.scene import Scene

FORMAT_VERSION = 2  # 2: visits.parquet and sightings.parquet, where visits are known
TYPED_VERSION = 3  # tiles of another type than uint16
READABLE = (1, 2, 3)


class Source(BaseModel):
    """A file or service the data set was made from."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    role: Literal["records", "scene", "covariates", "sites", "split", "names"]
    name: str
    sha256: str | None = None
    bytes: int | None = None
    licence: str | None = None
    citation: str | None = None


class TileCard(BaseModel):
    """
    What every tile of the data set has in common.

    ``reflectance = (value - offset) * scale`` for the stored numbers, of the type ``dtype``;
    ``nodata`` marks pixels without a measurement, None stands for NaN. Where ``signed_square`` is
    given the value is ``(stored / signed_square)**2`` with the sign of ``stored`` instead.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    bands: tuple[str, ...] = Field(min_length=1)
    size_px: int = Field(gt=0)
    resolution_m: float = Field(gt=0)
    scale: float = 1e-4
    offset: float = 0.0
    nodata: int | None = 0
    dtype: PixelType = Field("uint16", exclude_if=lambda dtype: dtype == "uint16")
    signed_square: float | None = Field(None, gt=0, exclude_if=unset)

    @classmethod
    def of_scene(cls, scene: Scene, *, size_px: int, resolution_m: float | None = None) -> Self:
        """Return the card of tiles of a scene, by default of its own resolution."""
        return cls(
            bands=scene.bands,
            size_px=size_px,
            resolution_m=resolution_m or scene.resolution_m,
            scale=scene.scale,
            offset=scene.offset,
            nodata=None if scene.dtype == "float32" else int(scene.nodata),
            dtype=scene.dtype,
            signed_square=scene.signed_square,
        )

    @property
    def missing(self) -> float:
        """The stored number of pixels without a measurement: ``nodata``, or NaN."""
        return float("nan") if self.nodata is None else self.nodata

    def measured(self, stored: np.ndarray) -> np.ndarray:
        """Return where pixels (..., bands, height, width) are measured in every band."""
        there: np.ndarray = measured(stored, self.missing).all(axis=-3)
        return there

    def values(self, stored: np.ndarray) -> np.ndarray:
        """Return what stored numbers mean, in their order and shape, as float64: reflectance."""
        return values_of(stored, self)

    @model_validator(mode="after")
    def _types(self) -> Self:
        if not fits(self.missing, self.dtype):
            raise ValueError(f"nodata {self.nodata} is no number of the type {self.dtype}")
        return self


class DatasetCard(BaseModel):
    """The card ``dataset.json``: what the data set is, where it came from and what was left out."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal["butterfly_sdm dataset"] = "butterfly_sdm dataset"
    format_version: int = FORMAT_VERSION
    name: str
    species: tuple[str, ...] = Field(min_length=1)
    years: tuple[int, ...] = ()
    position_crs: str
    tiles: TileCard | None = None
    covariates: dict[str, str] = Field(default_factory=dict, description="unit of each covariate")
    embeddings: dict[str, str] = Field(
        default_factory=dict,
        description="groups of covariates that are embeddings, named as these begin, and how their "
        "files were understood",
        exclude_if=empty,
    )
    rows: dict[str, int] = Field(
        default_factory=dict, description="record rows read, dropped per reason, kept"
    )
    sources: tuple[Source, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    names: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="texts of the records that were counted as each species",
        exclude_if=empty,
    )
    dates_share: float | None = Field(
        None,
        description="variance between sites that dates alone give raw rates, over that of the "
        "rates of sites; above 0.25 raw rates mislead",
        exclude_if=unset,
    )
    software: dict[str, str] = Field(default_factory=dict)
    files: dict[str, str] = Field(
        default_factory=dict, description="SHA-256 of every other file of the folder"
    )
    seal: str | None = Field(None, description="SHA-256 of the card itself, see core.cards.sealed")


@dataclass(frozen=True)
class Dataset:
    """
    Sites with their visits, detections, tiles and covariates.

    Attributes
    ----------
    card
        Where the data come from and what they mean.
    sites
        Index ``site_id``. Columns ``easting``, ``northing`` (metres in ``card.position_crs``),
        ``lon``, ``lat`` (degrees), ``visits`` (whole number n; 0 for a site of which nothing is
        known, there to be predicted), ``geometry`` (footprint, EPSG:4326); with tiles also
        ``tile_row`` (row in ``tiles``, -1 for none), ``valid_fraction`` (share of pixels that are
        not nodata), ``tile_crs``, ``tile_left``, ``tile_top`` (corner of the tile in its own CRS).
        Optional: ``block`` (group of neighbours that the split keeps together, -1 for none).
    detections
        (site, species) visits on which the species was recorded: whole numbers k, 0 <= k <= n. Same
        index as ``sites``.
    tiles
        (rows, bands, height, width) of the type in the card, possibly memory-mapped; bands as
        ``card.tiles.bands``.
    covariates
        (site, covariate) numbers, NaN where missing. Same index as ``sites``.
    split
        The parts the data set was divided into.
    folder
        Where it was read from; None if made in memory.
    coarse
        ``species``, ``square`` (grid reference), ``size_m``, ``detections``, ``visits``: sensitive
        species, told only as sums over squares that hold several sites. They are no columns of
        ``detections``.
    visit_table
        One row per visit with its date, and what was seen on it: visits n and detections k are sums
        of these. None where only the sums are known (data sets of format 1).
    """

    card: DatasetCard
    sites: gpd.GeoDataFrame
    detections: pd.DataFrame
    tiles: np.ndarray | None = None
    covariates: pd.DataFrame | None = None
    split: Split | None = None
    folder: Path | None = field(default=None, compare=False)
    coarse: pd.DataFrame | None = None
    visit_table: VisitTable | None = None

    def __post_init__(self) -> None:
        missing = {"easting", "northing", "visits"} - set(self.sites.columns)
        if missing:
            raise DataError(
                f"The sites lack the column {sorted(missing)[0]!r}; sites need easting, northing "
                "and visits."
            )
        if not self.sites.index.is_unique:
            raise DataError(
                f"Site {self.sites.index[self.sites.index.duplicated()][0]} occurs twice among the "
                "sites."
            )
        if not self.detections.index.equals(self.sites.index):
            raise DataError(
                "The detections and the sites do not list the same sites in the same order."
            )
        if tuple(self.detections.columns) != self.card.species:
            raise DataError(
                f"The detections have {self.detections.shape[1]} species, the card "
                f"{len(self.card.species)}, or another order."
            )
        k = self.detections.to_numpy()
        if k.dtype.kind not in "iu":
            raise DataError(f"Detections are counts of visits, whole numbers; these are {k.dtype}.")
        wrong = (k < 0) | (k > self.sites["visits"].to_numpy()[:, None])
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise DataError(
                f"{self.card.species[column]} was detected on {k[row, column]} visits of site "
                f"{self.sites.index[row]}, which has {self.sites['visits'].iloc[row]}. Detections "
                "lie between 0 and the visits."
            )
        if self.tiles is not None and self.card.tiles is None:
            raise DataError(
                "There are tiles, but the card says nothing about their bands. Add card.tiles."
            )
        if (
            self.tiles is not None
            and self.card.tiles is not None
            and self.tiles.shape[1] != len(self.card.tiles.bands)
        ):
            raise DataError(
                f"The tiles have {self.tiles.shape[1]} bands, the card names "
                f"{', '.join(self.card.tiles.bands)}."
            )
        if self.covariates is not None and not self.covariates.index.equals(self.sites.index):
            raise DataError(
                "The covariates and the sites do not list the same sites in the same order."
            )
        if self.coarse is not None:
            _check_coarse(self.coarse, self.species)
        if self.visit_table is not None:
            self.visit_table.check_sums(k, self.sites["visits"].to_numpy())

    def __getstate__(self) -> dict[str, Any]:
        """Tiles on disk travel to other processes as the path of their file."""
        state = {key: value for key, value in vars(self).items() if key != "rates"}
        tiles = self.tiles
        if isinstance(tiles, np.memmap) and isinstance(tiles.base, mmap):  # a whole file
            state["tiles"] = Path(str(tiles.filename))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(tiles := state["tiles"], Path):
            state["tiles"] = np.load(tiles, mmap_mode="r", allow_pickle=False)
        vars(self).update(state)

    @property
    def species(self) -> tuple[str, ...]:
        """Species names, in the order of the columns of ``detections``."""
        return self.card.species

    @property
    def site_ids(self) -> tuple[str, ...]:
        """All site ids, in stored order."""
        return tuple(self.sites.index)

    @property
    def visits(self) -> pd.Series:
        """(site,) number of visits n."""
        return self.sites["visits"]

    @cached_property
    def rates(self) -> pd.DataFrame:
        """(site, species) detection rate k / n; NaN where a site has no visit."""
        n = self.visits.to_numpy(dtype=float)
        return self.detections.div(
            pd.Series(np.where(n > 0, n, np.nan), index=self.sites.index), axis=0
        )

    @cached_property
    def fingerprint(self) -> str:
        """
        16 hexadecimal digits that change with the labels, the bands or the files of the data set.
        """
        table = self.visit_table
        return fingerprint(
            ({} if table is None else {"visit_table": table.fingerprint})
            | {
                "card": self.card.model_dump(
                    mode="json",
                    exclude={"software", "sources", "warnings", "notes", "names", "seal"},
                ),
                "labels": pd.util.hash_pandas_object(self.detections, index=True)
                .to_numpy()
                .tolist(),
                "visits": self.visits.tolist(),
            }
        )

    def rows(self, sites: Sequence[str]) -> np.ndarray:
        """
        Return the row numbers of ``sites`` in the tables.

        Raises
        ------
        DataError
            A site is not in the data set.
        """
        rows: np.ndarray = self.sites.index.get_indexer(
            pd.Index(list(sites), dtype=self.sites.index.dtype)
        )
        if (rows < 0).any():
            raise DataError(
                f"Site {list(sites)[int(np.argmin(rows))]} is not in the data set "
                f"{self.card.name!r}."
            )
        return rows

    def tile_rows(self, sites: Sequence[str]) -> np.ndarray:
        """
        Return the rows of ``tiles`` that show ``sites``.

        Raises
        ------
        DataError
            The data set has no tiles, or one of the sites has none.
        """
        if self.tiles is None:
            raise DataError(
                f"The data set {self.card.name!r} has no tiles. Name scenes or a folder of tiles "
                "in build."
            )
        rows: np.ndarray = self.sites["tile_row"].to_numpy()[self.rows(sites)]
        if (rows < 0).any():
            raise DataError(
                f"Site {list(sites)[int(np.argmin(rows))]} has no tile: no scene covers it well "
                "enough."
            )
        return rows

    def needed_split(self) -> Split:
        """
        Return the split.

        Raises
        ------
        DataError
            There is none.
        """
        if self.split is None:
            raise DataError(
                f"The data set {self.card.name!r} has no split. Add build.split and build it again."
            )
        return self.split

    def counts(self, sites: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return detections k (sites, species) and visits n (sites,) as floats."""
        rows = self.rows(sites)
        k, n = self.detections.to_numpy(dtype=float), self.visits.to_numpy(dtype=float)
        return k[rows], n[rows]

    @property
    def sites_with_tiles(self) -> tuple[str, ...]:
        """Ids of the sites that have a tile."""
        if self.tiles is None:
            return ()
        return tuple(self.sites.index[self.sites["tile_row"] >= 0])

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """
        Open a data set folder; tiles stay on disk until they are used.

        Raises
        ------
        MissingFileError
            The folder or a file of it does not exist.
        ArtefactError
            A file is damaged or of a format version this release does not read.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise MissingFileError(
                f"There is no data set at {folder}. Make one with: butterfly-sdm build CONFIG "
                "--out DIR"
            )
        card = read_card(folder)
        for name in card.files:
            if not (folder / name).is_file():
                raise MissingFileError(f"The data set {folder} lacks {name}. Build it again.")
        try:
            sites = gpd.read_parquet(folder / "sites.parquet").set_index("site_id")
            detections = pd.read_parquet(folder / "detections.parquet").set_index("site_id")
            covariates = None
            if (folder / "covariates.parquet").is_file():
                covariates = pd.read_parquet(folder / "covariates.parquet").set_index("site_id")
            coarse = (
                pd.read_parquet(folder / "coarse.parquet")
                if (folder / "coarse.parquet").is_file()
                else None
            )
            visit_table = VisitTable.read(folder)
            tiles = None
            if (folder / "tiles.npy").is_file():
                tiles = np.load(folder / "tiles.npy", mmap_mode="r", allow_pickle=False)
                if card.tiles is not None and tiles.dtype != card.tiles.dtype:
                    raise ValueError(
                        f"its tiles are {tiles.dtype}, its card says {card.tiles.dtype}"
                    )
        except FileNotFoundError as error:
            raise MissingFileError(
                f"The data set {folder} is incomplete: {error}. Build it again."
            ) from error
        except (OSError, ValueError, KeyError) as error:
            raise ArtefactError(
                f"The data set {folder} is damaged: {error}. Build it again."
            ) from error
        split = (
            Split.from_json(folder / "split.json") if (folder / "split.json").is_file() else None
        )
        return cls(card, sites, detections, tiles, covariates, split, folder, coarse, visit_table)

    @property
    def tiles_in_words(self) -> str:
        """At how many sites there are tiles, their pixels and bands; empty without tiles."""
        tiles = self.card.tiles
        if tiles is None:
            return ""
        return (
            f"at {len(self.sites_with_tiles):,} of {len(self.sites):,} sites, {tiles.size_px} x "
            f"{tiles.size_px} pixels of {tiles.resolution_m:g} m: {_few(tiles.bands)}"
        )

    def __repr__(self) -> str:
        card = self.card
        tiles = f", tiles {self.tiles_in_words}" if self.tiles is not None else ""
        return (
            f"<Dataset {card.name!r}: {len(self.sites):,} sites, {len(self.species)} species, "
            f"{int(self.visits.sum()):,} visits{tiles}>"
        )

    def _repr_html_(self) -> str:
        card = self.card
        names = ", ".join(self.species[:6]) + (", ..." if len(self.species) > 6 else "")
        facts: dict[str, object] = {
            "sites": f"{len(self.sites):,}",
            "species": f"{len(self.species)}: {names}",
            "visits": f"{int(self.visits.sum()):,}",
            "years": ", ".join(map(str, card.years)) or "all",
            "records": ", ".join(
                f"{count:,} {reason}"
                for reason, count in card.rows.items()
                if reason in ("read", "kept")
            ),
            "tiles": self.tiles_in_words or "none",
            "covariates": "none"
            if self.covariates is None
            else ", ".join(map(str, self.covariates.columns[:6])),
        }
        if self.covariates is not None and self.covariates.shape[1] > 6:
            facts["covariates"] = f"{facts['covariates']}, ... ({self.covariates.shape[1]})"
        if self.split is not None:
            facts["split"] = self.split.in_words
        return facts_html(f"Data set {card.name}", facts, warnings=card.warnings)


def _few(bands: Sequence[str], most: int = 16) -> str:
    if len(bands) <= most:
        return ", ".join(bands)
    return f"{', '.join(bands[:3])} ... {bands[-1]} ({len(bands)})"


def _check_coarse(coarse: pd.DataFrame, species: Sequence[str]) -> None:
    wanted = ["species", "square", "size_m", "detections", "visits"]
    if list(coarse.columns) != wanted:
        raise DataError(
            f"The table of coarsened species has the columns {list(coarse.columns)}; it needs "
            f"{wanted}."
        )
    told = sorted(set(coarse["species"]) & set(species))
    if told:
        raise DataError(
            f"{told[0]} is told only as sums over squares, and per site as well. It may be only "
            "one of them."
        )
    if ((coarse["detections"] < 0) | (coarse["detections"] > coarse["visits"])).any():
        raise DataError(
            "A coarsened species was detected on more visits of a square than there were, or on "
            "fewer than none."
        )


def read_card(folder: Path) -> DatasetCard:
    """
    Read the card of a data set folder.

    Raises
    ------
    ArtefactError
        The card is damaged or of another version.
    """
    value = read_json(Path(folder) / "dataset.json")
    if not isinstance(value, dict) or value.get("format") != "butterfly_sdm dataset":
        raise ArtefactError(
            f"{folder} is not a butterfly_sdm data set: its dataset.json does not say so."
        )
    version = value.get("format_version")
    check_version(
        FORMAT_VERSION if version in READABLE and type(version) is int else version,
        FORMAT_VERSION,
        f"The data set {folder}",
        f"butterfly-sdm build CONFIG --out {folder}",
    )
    # Release 0.1.0 meant the British grid where a card says nothing.
    value = {"position_crs": "EPSG:27700", **value}
    try:
        return DatasetCard.model_validate(value)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise ArtefactError(
            f"The card of {folder} is damaged at {where}: {problem['msg']}. Build it again."
        ) from error
