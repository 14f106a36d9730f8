"""Where people could go: a grid, a file of shapes, sites that nobody has visited yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import DataError, MissingFileError, did_you_mean
from butterfly_sdm.mapping.options import CovariateRaster
from butterfly_sdm.mapping.surfaces.covariates import covariates_at
from butterfly_sdm.planning.ground import Ground
from butterfly_sdm.planning.options import PlanOptions
from butterfly_sdm.planning.places import SquareOf, overlapping, read_shapes

USUAL_GRID_M = 1000.0
USUAL_MOST = 50_000
MOST = 100_000
REACH = 2.0  # how far a grid goes beyond sites, in distances between neighbours
SAME_PLACE_M = 100.0  # a point nearer to a surveyed site is that site
SITE = "_site"  # column: the site of the data set that a shape is; empty: none
ENOUGH = 0.5  # a covariate that more candidates lack is not used


@dataclass(frozen=True)
class Candidates:
    """
    Places where people could go.

    Attributes
    ----------
    table
        Index: the names; ``geometry`` in the CRS of the plan, ``before`` (visits there were), and
        the columns of the file.
    side_m
        Side of the squares of a grid; None: they are no grid.
    notes
        What was left out and why, in sentences.
    """

    table: gpd.GeoDataFrame
    side_m: float | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.table)

    def only(self, kept: np.ndarray, reason: str) -> Candidates:
        """
        Return those of ``kept`` (candidates,), and say how many were left out.

        Raises
        ------
        DataError
            None is left.
        """
        lost = int((~kept).sum())
        if not lost:
            return self
        if not kept.any():
            raise DataError(
                f"No candidate is left: all {lost:,} {reason}. Name others: plan.candidates, "
                "plan.area."
            )
        note = f"{lost:,} of {len(kept):,} candidates {reason} and are left out."
        return replace(self, table=self.table[kept], notes=(*self.notes, note))


def species_numbers(dataset: Dataset, names: Sequence[str]) -> tuple[int, ...]:
    """
    Return the places of species in a data set; of all where none is named.

    Raises
    ------
    DataError
        It has no such species.
    """
    for name in names:
        if name not in dataset.species:
            raise DataError(
                f"The data set {dataset.card.name!r} has no species {name!r}."
                f"{did_you_mean(name, dataset.species)} It has {', '.join(dataset.species[:3])} ..."
            )
    return tuple(dataset.species.index(name) for name in names or dataset.species)


def find_candidates(
    ground: Ground,
    options: PlanOptions,
    given: gpd.GeoDataFrame | None = None,
    *,
    square_of: SquareOf | None = None,
) -> Candidates:
    """
    Return where people could go, without what was surveyed already.

    Parameters
    ----------
    options
        Say which file, which grid and which area.
    given
        One row per candidate, with a CRS, in place of a file.
    square_of
        Reads grid references.

    Raises
    ------
    MissingFileError, DataError
        A file is absent or holds no shapes, a grid has too many squares, or no candidate is left.
    """
    area = None
    if options.area is not None:
        area = read_shapes(options.area, ground, "area", square_of=square_of).geometry
    if given is not None or isinstance(options.candidates, Path):
        source = given if given is not None else options.candidates
        assert isinstance(source, Path | gpd.GeoDataFrame)
        table = read_shapes(source, ground, "candidates", square_of=square_of)
        if len(table) > MOST:
            raise DataError(f"{len(table):,} candidates are too many; {MOST:,} are the most.")
        found = Candidates(table.assign(**{SITE: ""}))
    elif options.candidates == "unvisited":
        found = Candidates(_unvisited(ground))
    else:
        found = _grid(ground, options.grid_m, area)
    if area is not None and found.side_m is None:
        middles = gpd.GeoSeries(found.table.geometry.centroid, crs=ground.crs)
        found = found.only(overlapping(middles, area), "lie outside the area")
    return _with_surveyed(ground, found, again=options.revisit)


def _unvisited(ground: Ground) -> gpd.GeoDataFrame:
    data = ground.dataset
    ids = [site for site, n in data.visits.items() if n == 0]
    if not ids:
        raise DataError(
            f"Every site of the data set {data.card.name!r} has a visit, so plan.candidates: "
            "unvisited has none. Name a file of candidates or a grid, or build with "
            "records.unrecorded: keep."
        )
    points = gpd.points_from_xy(*ground.coordinates(ground.position(ids)).T)
    index = pd.Index(ids, name="name")
    return gpd.GeoDataFrame({SITE: ids}, index=index, geometry=points, crs=ground.crs)


def _grid(ground: Ground, side_m: float | None, area: gpd.GeoSeries | None) -> Candidates:
    """Return the squares whose middle lies in the area, on whole multiples of their side."""
    notes: tuple[str, ...] = ()
    if area is None:
        notes = (
            "The grid lies around the sites and knows neither sea nor fences: give plan.area, the "
            "ground where people may go.",
        )
        around = _around_sites(ground, side_m or USUAL_GRID_M)
    else:
        around = shapely.union_all(area.to_numpy())
    if not shapely.area(around) > 0:
        raise DataError("The area of the plan holds no polygon. Give polygons: plan.area.")
    left, bottom, right, top = np.array(shapely.bounds(around)) * ground.unit_m
    size_m2 = shapely.area(around) * ground.unit_m**2
    if side_m is None:
        side_m = USUAL_GRID_M * max(1, int(np.ceil((size_m2 / USUAL_MOST) ** 0.5 / USUAL_GRID_M)))
    if size_m2 / side_m**2 > MOST:
        raise DataError(
            f"A grid of {side_m:g} m has about {size_m2 / side_m**2:,.0f} squares; {MOST:,} are "
            "the most. Widen plan.grid_m or narrow plan.area."
        )
    columns = np.arange(np.floor(left / side_m), np.ceil(right / side_m))
    rows = np.arange(np.floor(bottom / side_m), np.ceil(top / side_m))
    x, y = (value.ravel() * side_m for value in np.meshgrid(columns, rows))
    shapely.prepare(around)
    middle = (np.stack([x, y]) + side_m / 2) / ground.unit_m
    inside = shapely.contains_xy(around, *middle)
    x, y = x[inside], y[inside]
    if not len(x):
        raise DataError(f"No square of {side_m:g} m has its middle in the area. Lower plan.grid_m.")
    squares = shapely.box(*(np.stack([x, y, x + side_m, y + side_m]) / ground.unit_m))
    names = [f"E{a / 1000:g} N{b / 1000:g}" for a, b in zip(x, y, strict=True)]
    index = pd.Index(names, name="name")
    table = gpd.GeoDataFrame({SITE: ""}, index=index, geometry=squares, crs=ground.crs)
    return Candidates(table, side_m, notes)


def without(found: Candidates, points: gpd.GeoSeries, reason: str) -> Candidates:
    """Return the candidates that hold none of some points; a point holds what lies nearby."""
    shapes = found.table.geometry
    unit_m = float(shapes.crs.axis_info[0].unit_conversion_factor)
    near = shapes.where(shapes.geom_type.isin(["Polygon", "MultiPolygon"]), None)
    near = near.fillna(shapes.centroid.buffer(SAME_PLACE_M / unit_m))
    return found.only(~overlapping(near, points), reason)


def _around_sites(ground: Ground, side_m: float) -> shapely.Geometry:
    """Return the ground within reach of a site: several times as far as sites lie apart."""
    from scipy.spatial import KDTree

    place = ground.position(ground.dataset.site_ids)
    apart = KDTree(place).query(place, k=2)[0][:, 1]
    apart = apart[np.isfinite(apart)]
    reach_m = max(side_m, REACH * float(np.quantile(apart, 0.9)) if len(apart) else 0.0)
    points = shapely.points(ground.coordinates(place))
    return shapely.union_all(shapely.buffer(points, reach_m / ground.unit_m))


def _with_surveyed(ground: Ground, found: Candidates, *, again: bool) -> Candidates:
    """Take candidates out where a site was surveyed, and, to go there again, add these sites."""
    data = ground.dataset
    visited = [site for site, n in data.visits.items() if n > 0]
    place = ground.coordinates(ground.position(visited))
    points = gpd.GeoSeries(gpd.points_from_xy(*place.T), crs=ground.crs)
    found = without(found, points, "hold a surveyed site")
    table = found.table.assign(before=0)
    if again:
        old = gpd.GeoDataFrame(
            {"before": data.visits[visited].to_numpy(), SITE: visited},
            index=pd.Index([f"again {site}" for site in visited], name="name"),
            geometry=points.to_numpy(),
            crs=ground.crs,
        )
        table = gpd.GeoDataFrame(pd.concat([table, old]), geometry="geometry", crs=ground.crs)
    return replace(found, table=table)


def covariates_of(
    ground: Ground,
    table: gpd.GeoDataFrame,
    options: PlanOptions,
    rasters: Mapping[str, CovariateRaster],
) -> pd.DataFrame:
    """
    Return what is known of the covariates of the data set at shapes: (shapes, covariates), NaN
    where nothing is.

    A site of the data set has its own; others have those of a column of their file, of the table
    ``plan.covariates``, or of the rasters that the data set was built from, in this order.
    """
    data = ground.dataset
    if data.covariates is None:
        return pd.DataFrame(index=table.index)
    names = [str(name) for name in data.covariates.columns]
    values = pd.DataFrame(np.nan, index=table.index, columns=names)
    read = {name: raster for name, raster in rasters.items() if name in names}
    if read:
        x, y = ground.coordinates(ground.middles(table.geometry)).T
        sampled = covariates_at(read, x, y, ground.crs.to_wkt())
        values[list(read)] = sampled[list(read)].to_numpy(float)
    for other in (_listed(options.covariates, table.index), pd.DataFrame(table)):
        for name in [name for name in names if name in other.columns]:
            own = pd.to_numeric(other[name], errors="coerce").to_numpy(float)
            values[name] = np.where(np.isfinite(own), own, values[name])
    # by the mark, not by the name: a candidate of a file may be called like a site elsewhere
    at_site = (table[SITE] != "").to_numpy() if SITE in table else np.zeros(len(table), bool)
    if at_site.any():
        sites = table[SITE].to_numpy()[at_site]
        values[at_site] = data.covariates.loc[list(sites), names].to_numpy(float)
    return values


def _listed(path: Path | None, names: pd.Index) -> pd.DataFrame:
    if path is None:
        return pd.DataFrame(index=names)
    if not path.is_file():
        raise MissingFileError(f"There is no table of covariates {path}. Check plan.covariates.")
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (ValueError, OSError) as error:
        raise DataError(
            f"{path} cannot be read as a table: {error}. Give CSV or Parquet."
        ) from error
    if "site_id" not in table.columns:
        raise DataError(f"{path} has no column site_id, the name of the candidate. Add it.")
    table = table.set_index(table["site_id"].astype(str))
    if not table.index.is_unique:
        raise DataError(f"{path} names a candidate twice. Keep one row for each.")
    return table.reindex(names.astype(str))
