"""The tables of sites and detections of a data set, with the position of every site."""

from __future__ import annotations

from dataclasses import replace

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from pyproj import Proj
from pyproj.exceptions import ProjError

from butterfly_sdm.errors import ConfigError, DataError
from butterfly_sdm.imagery.grids import usual_crs
from data_prep.records.count import SurveyTable


def with_unrecorded(survey: SurveyTable, listed: gpd.GeoDataFrame) -> SurveyTable:
    """
    Add the listed sites that no counted record names, with 0 visits: a rate of 0 of 0 is unknown,
    not 0.

    Parameters
    ----------
    listed
        See :func:`data_prep.records.places.sites.read_sites`; those without a footprint cannot be
        added.

    """
    new = listed[~listed.geometry.isna() & ~listed.geometry.is_empty]
    new = new[~new.index.isin(survey.sites.index)].to_crs(survey.sites.crs or 4326)
    lost = int((listed.geometry.isna() | listed.geometry.is_empty).sum())
    notes = [f"{len(new)} listed sites without a counted record are kept with 0 visits."]
    if lost:
        notes.append(
            f"{lost} listed sites are left out because the table of sites does not say where they "
            "lie."
        )
    species = survey.detections.columns
    detections = pd.concat(
        [survey.detections, pd.DataFrame(0, index=new.index, columns=species)]
    ).sort_index()
    centres = shapely.centroid(new.geometry.to_numpy())
    columns = {"lon": shapely.get_x(centres), "lat": shapely.get_y(centres), "records": 0}
    added = gpd.GeoDataFrame(columns, index=new.index, geometry=new.geometry)
    sites = pd.concat([survey.sites, added])
    visits = pd.concat([survey.visits, pd.Series(0, index=new.index, name=survey.visits.name)])
    table, old = survey.visit_table, survey.detections.index.get_indexer(detections.index)
    return replace(
        survey,
        visit_table=None if table is None else table.taken(old),
        detections=detections,
        visits=visits.loc[detections.index],
        sites=gpd.GeoDataFrame(
            sites.loc[detections.index], geometry="geometry", crs=survey.sites.crs
        ),
        notes=(*survey.notes, *notes),
    )


def stretched(sites: pd.DataFrame, position_crs: str) -> float:
    """
    Return by how much distances are wrong in a projected CRS, at the worst of the sites.

    Parameters
    ----------
    sites
        Columns ``lon``, ``lat`` (degrees).

    Returns
    -------
    float
        A share: 0.1 where 1000 m on the ground are 1100 m or 900 m in the CRS; 0 where PROJ cannot
        tell.
    """
    try:
        factors = Proj(position_crs).get_factors(sites["lon"].to_numpy(), sites["lat"].to_numpy())
    except ProjError:
        return 0.0
    scales = np.concatenate([factors.meridional_scale, factors.parallel_scale])
    return float(np.nanmax(np.abs(scales[np.isfinite(scales)] - 1), initial=0))


def site_table(
    survey: SurveyTable, *, position_crs: str | None = None
) -> tuple[gpd.GeoDataFrame, pd.DataFrame, str]:
    """
    Return the sites of a survey with positions, and their detections, both in the order of the
    survey's detections.

    Parameters
    ----------
    position_crs
        Projected CRS of easting and northing; None for :func:`usual_crs`.

    Returns
    -------
    sites : GeoDataFrame
        Index ``site_id``; ``easting`` and ``northing`` in metres, ``lon`` and ``lat`` in degrees,
        ``visits``, ``geometry``.
    detections : DataFrame of int, shape (sites, species)
    position_crs : str
        The CRS of the positions.

    Raises
    ------
    ConfigError, DataError
        There is no site, the CRS is unknown or in degrees, or a site has no place in it.
    """
    if not len(survey.sites):
        raise DataError("No site is left. Lower records.min_records or widen the years.")
    detections = survey.detections.astype("int64")
    detections.index = detections.index.astype(str).rename("site_id")
    detections.columns = detections.columns.astype(str).rename(None)
    sites = survey.sites.set_axis(survey.sites.index.astype(str).rename("site_id"))
    sites = sites.loc[detections.index].set_crs(survey.sites.crs or 4326)
    # in degrees: right to centimetres for a square of a kilometre
    centre = shapely.centroid(sites.geometry.to_crs(4326).to_numpy())
    for axis, values in (("lon", shapely.get_x(centre)), ("lat", shapely.get_y(centre))):
        if axis not in sites.columns:
            sites[axis] = values
    position_crs = position_crs or usual_crs(sites["lon"], sites["lat"])
    sites["easting"], sites["northing"] = _positions(sites, position_crs)
    visits = survey.visits.set_axis(survey.visits.index.astype(str))
    sites["visits"] = visits.loc[detections.index].astype("int64")
    order = ["easting", "northing", "lon", "lat", "visits", "geometry"]
    return sites[order], detections, position_crs


def _positions(sites: pd.DataFrame, position_crs: str) -> tuple[np.ndarray, np.ndarray]:
    """Return easting and northing of sites in metres of a projected CRS."""
    points = gpd.GeoSeries(gpd.points_from_xy(sites["lon"], sites["lat"]), crs=4326)
    try:
        position = points.to_crs(position_crs)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"build.position_crs = {position_crs!r}: {error}. Give a projected CRS such as "
            f"{usual_crs(sites['lon'], sites['lat'])}, or leave it out."
        ) from error
    if not position.crs.is_projected:
        raise ConfigError(
            f"build.position_crs = {position_crs!r} is in degrees. Give a projected CRS such as "
            f"{usual_crs(sites['lon'], sites['lat'])}, or leave it out."
        )
    factor = position.crs.axis_info[0].unit_conversion_factor
    easting, northing = position.x.to_numpy() * factor, position.y.to_numpy() * factor
    outside = ~(np.isfinite(easting) & np.isfinite(northing))
    if outside.any():
        raise DataError(
            f"Site {sites.index[outside][0]} has no position in {position_crs}. Choose another "
            "build.position_crs."
        )
    return easting, northing
