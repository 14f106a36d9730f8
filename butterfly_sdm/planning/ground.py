"""Where a plan is made: the sites of a data set in metres, and places that join them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from pyproj import CRS
from pyproj.exceptions import CRSError

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.splits import Split
from butterfly_sdm.errors import DataError

ZONE_DEG = 6.0  # width of a zone of UTM


@dataclass(frozen=True)
class Ground:
    """
    Sites in metres of a projected CRS.

    Attributes
    ----------
    dataset
        Without tiles; easting and northing in metres from ``origin``, which keeps numbers of 32
        bits exact to millimetres.
    crs
        Projected.
    origin
        Easting and northing of the middle of the sites, metres.
    notes
        What had to be left out or moved, in sentences.
    """

    dataset: Dataset
    crs: CRS
    origin: tuple[float, float]
    notes: tuple[str, ...] = ()

    @property
    def unit_m(self) -> float:
        """Metres of one unit of the CRS: 0.3048 where it counts feet."""
        return float(self.crs.axis_info[0].unit_conversion_factor)

    def position(self, sites: Sequence[str]) -> np.ndarray:
        """Return (sites, 2) metres from the origin."""
        place = self.dataset.sites[["easting", "northing"]].to_numpy(float)
        return np.asarray(place[self.dataset.rows(sites)])

    def middles(self, shapes: gpd.GeoSeries) -> np.ndarray:
        """Return (shapes, 2) the middle of each shape of the CRS, in metres from the origin."""
        points = shapely.centroid(shapes.to_numpy())
        xy = np.column_stack([shapely.get_x(points), shapely.get_y(points)]) * self.unit_m
        return np.asarray(xy - self.origin)

    def coordinates(self, position: np.ndarray) -> np.ndarray:
        """Return (n, 2) coordinates in the CRS of positions (n, 2) in metres from the origin."""
        return np.asarray((position + self.origin) / self.unit_m)

    def with_places(
        self, ids: Sequence[str], position: np.ndarray, covariates: pd.DataFrame | None
    ) -> Ground:
        """
        Return the same with more sites, which have no visits.

        Parameters
        ----------
        ids
            Of the new sites.
        position
            (n, 2) metres from the origin.
        covariates
            (n, covariates) of the new sites; the data set keeps these covariates and no others.
            None: it keeps none.
        """
        data = self.dataset
        index = pd.Index([*data.sites.index, *ids], name="site_id")
        place = np.concatenate([self.position(data.site_ids), position])
        sites = gpd.GeoDataFrame(
            {
                "easting": place[:, 0],
                "northing": place[:, 1],
                "visits": np.concatenate([data.visits, np.zeros(len(ids), np.int64)]),
            },
            index=index,
            geometry=gpd.points_from_xy(np.zeros(len(index)), np.zeros(len(index))),
        )
        counts = np.concatenate(
            [data.detections.to_numpy(), np.zeros((len(ids), len(data.species)), np.int64)]
        )
        table = None
        if covariates is not None and data.covariates is not None and covariates.shape[1]:
            own = data.covariates[list(covariates.columns)].to_numpy(float)
            table = pd.DataFrame(
                np.concatenate([own, covariates.to_numpy(float)]),
                index=index,
                columns=list(covariates.columns),
            )
        detections = pd.DataFrame(counts, index=index, columns=list(data.species))
        return replace(self, dataset=Dataset(data.card, sites, detections, None, table, data.split))


def ground_of(dataset: Dataset) -> Ground:
    """
    Return the sites of a data set in metres.

    A data set in degrees is brought into the zone of UTM of its sites, or, where it is wider than a
    zone, into an equal-area projection about their middle.

    Raises
    ------
    DataError
        The data set does not say where its sites lie.
    """
    place = dataset.sites[["easting", "northing"]].to_numpy(float)
    there = np.isfinite(place).all(axis=1)
    if not there.any():
        raise DataError(
            f"The data set {dataset.card.name!r} does not say where its sites lie, and a plan says "
            "where to go: build it from records with places."
        )
    try:
        crs = CRS.from_user_input(dataset.card.position_crs)
    except CRSError as error:
        raise DataError(
            f"The data set {dataset.card.name!r} has its positions in {dataset.card.position_crs!r}"
            ", which is no CRS. Build it with position_crs, such as EPSG:27700."
        ) from error
    place, notes = place[there], list[str]()
    if not there.all():
        notes.append(f"{(~there).sum()} sites without a position are left out.")
    if not crs.is_projected:
        place, crs = _projected(place, crs)
        notes.append(f"Positions in degrees are planned with in metres of {crs.name}.")
    origin = np.round(place.mean(axis=0))
    sites = dataset.sites[there].copy()
    sites["easting"], sites["northing"] = (place - origin).T
    ids = set(sites.index)
    split = dataset.split
    if split is not None:
        train, validation, test = (
            tuple(site for site in part if site in ids)
            for part in (split.train, split.validation, split.test)
        )
        split = Split(train, validation, test)
    small = Dataset(
        dataset.card.model_copy(update={"tiles": None}),
        sites,
        dataset.detections[there],
        None,
        _numeric(dataset.covariates[there] if dataset.covariates is not None else None),
        split,
        coarse=dataset.coarse,
    )
    return Ground(small, crs, (float(origin[0]), float(origin[1])), tuple(notes))


def _numeric(covariates: pd.DataFrame | None) -> pd.DataFrame | None:
    if covariates is None or not covariates.shape[1]:
        return None
    return covariates.astype(float)


def _projected(place: np.ndarray, crs: CRS) -> tuple[np.ndarray, CRS]:
    """Return positions in degrees as metres, and the CRS chosen for them."""
    if np.abs(place).max() > 360:
        raise DataError(
            f"The positions of the data set are said to be degrees ({crs.name}), and one is "
            f"{np.abs(place).max():,.0f}. Build it with the position_crs they are in."
        )
    points = gpd.GeoSeries(gpd.points_from_xy(*place.T), crs=crs).to_crs(4326)
    if np.ptp(points.x) <= ZONE_DEG:
        target = CRS.from_user_input(points.estimate_utm_crs())
    else:
        target = CRS.from_proj4(
            f"+proj=laea +lat_0={points.y.mean():.1f} +lon_0={points.x.mean():.1f} +datum=WGS84"
            " +units=m"
        )
    moved = points.to_crs(target)
    return np.column_stack([moved.x, moved.y]), target
