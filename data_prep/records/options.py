"""What can be said about records."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

import pyproj
from pydantic import Field, field_validator, model_validator

from butterfly_sdm.core.settings import InputPath, Section, empty, unset
from butterfly_sdm.errors import did_you_mean

Protection = Literal["withhold", "1km", "2km", "10km"]
Month = Annotated[int, Field(ge=1, le=12)]

_UKBMS: dict[str, Any] = {
    "visit": "site_date",
    "absent": "effort",
    "zero_count": "absent",
    "higher_ranks": "drop",
    "aggregates": "effort",
    "complete_only": False,
    "min_list_length": 1,
}
SCHEMES = MappingProxyType(
    {
        "ukbms": _UKBMS,
        "complete": {**_UKBMS, "visit": "event", "complete_only": True},
        "list_length": {**_UKBMS, "min_list_length": 3, "absent": "drop"},
        "event": {**_UKBMS, "visit": "event", "higher_ranks": "effort"},
    }
)
"""
What the settings of :class:`RecordsOptions` are that a recording scheme decides: transect walks,
complete checklists, incidental records by list length, surveys with an event core.
"""


class GbifOptions(Section):
    """
    Records from GBIF: a download by its key, or a query (account in GBIF_USER, GBIF_PWD,
    GBIF_EMAIL).
    """

    key: str | None = Field(
        None,
        description="of a download that exists, such as 0001234-240101000000000; else a query:",
    )
    taxon_keys: tuple[int, ...] = Field(
        (), description="taxa of GBIF's backbone, with all below them; 797: Lepidoptera"
    )
    dataset_keys: tuple[str, ...] = Field((), description="data sets of GBIF, by their keys")
    countries: tuple[str, ...] = Field((), description="ISO codes of two letters")
    years: tuple[int, int] | None = Field(None, description="first and last year")
    geometry_wkt: str | None = Field(None, description="area in degrees, corners anticlockwise")
    api: str = Field("https://api.gbif.org/v1", description="address of GBIF")

    @model_validator(mode="after")
    def _key_or_query(self) -> Self:
        query = (
            self.taxon_keys
            or self.dataset_keys
            or self.countries
            or self.years
            or self.geometry_wkt
        )
        if (self.key is None) == (not query):
            raise ValueError(
                "state either the key of a download, or a query (taxon_keys, countries, years, ...)"
            )
        return self


class S2bmsOptions(Section):
    """Records from the published S2BMS release, by its DOI."""

    files: tuple[str, ...] = Field(
        min_length=1, description="names of the files with records, * for any text"
    )
    doi: str | None = Field(None, description="null: the published release")
    api: str = Field("https://zenodo.org/api", description="address of Zenodo")


class LimitOptions(Section):
    """Bounds beyond which a file of records is taken for damaged or hostile."""

    ratio: int = Field(
        200, ge=1, description="largest unpacked size of a file in an archive, in packed sizes"
    )
    row_mib: int = Field(16, ge=1, description="longest row, MiB")
    columns: int = Field(10_000, ge=1, description="most columns")
    description_mib: int = Field(16, ge=1, description="largest meta.xml, MiB")


class RecordsOptions(Section):
    """
    Which records count, and what a visit is.

    With incidental records a longer list shows more effort, hence ``min_list_length`` [1]_.

    References
    ----------
    .. [1] Szabo et al. (2010), Regional avian species declines estimated from volunteer-collected
           long-term data using list length analysis. Ecological Applications 20, 2157-2169.
    """

    path: InputPath | tuple[InputPath, ...] = Field(
        (), description="archive or table of records, or several"
    )
    gbif: GbifOptions | None = Field(
        None, description="fetch records from GBIF as well: {key: ...} or a query"
    )
    s2bms: S2bmsOptions | None = Field(
        None, description="fetch records of the published release as well: {files: [...]}"
    )
    downloads: InputPath | None = Field(
        None, description="folder of fetched records; null: downloads beside the data set"
    )
    format: str = Field(
        "auto",
        description="auto, dwca, gbif, nbn, ukbms, irecord, mapmate, inaturalist, ebird, "
        "birdtrack, table or a registered reader",
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="our name of a column: its name in the file"
    )
    tables: tuple[str, ...] = Field(
        (),
        description="names of the sheets or layers of workbooks and maps that hold records; empty: "
        "all that do",
        exclude_if=empty,
    )
    sites: InputPath | None = Field(
        None, description="table of site_id and footprint_wkt that names the sites"
    )
    unrecorded: Literal["drop", "keep"] = Field(
        "drop",
        description="listed sites without a counted record; keep: with 0 visits, to predict but "
        "not to learn from",
    )
    species: InputPath | tuple[str, ...] | None = Field(
        None, description="species to keep, in order; null: all"
    )
    institutions: tuple[str, ...] = Field(
        (), description="institution codes to keep, such as [UKBMS]; empty: all"
    )
    years: tuple[int, int] | None = Field(None, description="first and last year")
    min_records: int = Field(200, ge=0, description="fewest record rows of a site")
    min_visits: int = Field(1, ge=1, description="fewest visits of a site")
    max_footprint_deg2: float | None = Field(
        None, gt=0, description="largest footprint, square degrees"
    )
    day_first: bool | None = Field(
        None, description="whether 3/6/2018 is in June; null: as the other dates tell"
    )
    synonyms: Literal["s2bms"] | InputPath | dict[str, str] | None = Field(
        None,
        description="table of recorded and accepted names; s2bms: the one that comes with the "
        "package",
    )
    scheme: str = Field(
        "ukbms", description="what a visit is: ukbms, complete, list_length or event"
    )
    visit: Literal["site_date", "event"] | None = Field(
        None, description="null: as the scheme says"
    )
    absent: Literal["effort", "drop"] | None = Field(
        None, description="records of absence; null: as the scheme says"
    )
    zero_count: Literal["absent", "present", "drop"] | None = Field(
        None, description="null: as the scheme says"
    )
    aggregates: Literal["effort", "detect", "drop"] | None = Field(
        None, description="null: as the scheme says"
    )
    min_list_length: int | None = Field(
        None, ge=1, description="fewest species of a visit; null: as the scheme says"
    )
    higher_ranks: Literal["effort", "drop"] | None = Field(
        None,
        description="records of a genus or family; null: as the scheme says",
        exclude_if=unset,
    )
    complete_only: bool | None = Field(
        None,
        description="only lists that name every species seen; null: as the scheme says",
        exclude_if=unset,
    )
    months: tuple[Month, Month] | None = Field(
        None, description="first and last month of the season; null: all the year"
    )
    place: Literal["auto", "footprint", "grid_reference", "point"] = Field(
        "auto", description="what says where a record is"
    )
    grid_m: Literal[10_000, 5_000, 2_000, 1_000, 100, 10] | None = Field(
        None,
        description="sites are squares of the British or Irish grid of this size; null: places as "
        "they are recorded",
    )
    grid_crs: str | None = Field(
        None,
        description="projected CRS of the squares of grid_m, anywhere, such as EPSG:3035; null: "
        "the British or Irish grid",
        exclude_if=unset,
    )
    crs: str | None = Field(
        None,
        description="projected CRS of easting and northing where the records name none, such as "
        "EPSG:25832; null: the British grid",
        exclude_if=unset,
    )
    max_uncertainty_m: float | None = Field(
        None, gt=0, description="less certain records are left out"
    )
    out_of_range: Literal["refuse", "drop"] = Field(
        "refuse", description="when a coordinate is impossible"
    )
    double_recording: Literal["drop", "keep"] = Field(
        "drop", description="visits that a second scheme tells as well"
    )
    sensitive: dict[str, Protection] = Field(
        default_factory=dict,
        description="species: in no table, or only as sums over squares of that size",
    )
    limits: LimitOptions = LimitOptions()

    @model_validator(mode="after")
    def _some_records(self) -> Self:
        if self.path == () and self.gbif is None and self.s2bms is None:
            raise ValueError("there are no records: state path (archives or tables), gbif or s2bms")
        return self

    @field_validator("crs", "grid_crs")
    @classmethod
    def _projected(cls, name: str | None) -> str | None:
        if name is None:
            return None
        try:
            projected = pyproj.CRS.from_user_input(name).is_projected
        except pyproj.exceptions.CRSError:
            projected = False
        if not projected:
            raise ValueError(f"{name!r} is no projected CRS in metres; write one as EPSG:25832")
        return name

    @model_validator(mode="after")
    def _grid_of_squares(self) -> Self:
        if self.grid_crs is not None and self.grid_m is None:
            raise ValueError("grid_crs says where squares lie; grid_m says how large: state both")
        return self

    @field_validator("scheme")
    @classmethod
    def _known_scheme(cls, name: str) -> str:
        if name not in SCHEMES:
            raise ValueError(
                f"{name!r} is no recording scheme. Known are "
                f"{', '.join(SCHEMES)}.{did_you_mean(name, SCHEMES)}"
            )
        return name

    @property
    def paths(self) -> tuple[Path, ...]:
        """The archives and tables of records."""
        return self.path if isinstance(self.path, tuple) else (self.path,)

    def as_scheme_says(self) -> Self:
        """Return the same with every rule stated that was left to the scheme."""
        said = SCHEMES[self.scheme].items()
        return self.model_copy(
            update={rule: value for rule, value in said if getattr(self, rule) is None}
        )
