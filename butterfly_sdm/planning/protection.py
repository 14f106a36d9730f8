"""Where nobody is sent: the squares of protected species."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from butterfly_sdm.errors import DataError, did_you_mean
from butterfly_sdm.planning.ground import Ground
from butterfly_sdm.planning.options import PlanOptions
from butterfly_sdm.planning.places import SquareOf, read_shapes


@dataclass(frozen=True)
class Protection:
    """
    What a plan keeps from.

    Attributes
    ----------
    species
        Not named, and not planned for.
    squares
        Ground to which nobody is sent, in the CRS of the plan.
    """

    species: frozenset[str]
    squares: gpd.GeoSeries


def find_protection(
    ground: Ground,
    options: PlanOptions,
    policy: Mapping[str, float | None],
    square_of: SquareOf | None = None,
) -> Protection:
    """
    Return which species and which ground a plan keeps from.

    Protected are the species of ``options.protected`` and those of the policy of the data set and
    of its maps; the squares around every site where one was found, the squares by which the data
    set tells coarsened species, and ``options.protected_areas``.

    Parameters
    ----------
    policy
        Side in metres of the squares of each sensitive species; None: as ``options.protect_m``.
    square_of
        Reads grid references.

    Raises
    ------
    DataError
        A species to protect is unknown, or one that is protected is asked for by name.
    """
    data = ground.dataset
    none = gpd.GeoSeries([], crs=ground.crs)
    if options.allow_protected:
        return Protection(frozenset(), none)
    told = set(data.coarse["species"]) if data.coarse is not None else set()
    known = {*data.species, *told, *policy}
    for name in options.protected:
        if name not in known:
            raise DataError(
                f"The species {name!r}, to be protected, is not in the data set, which then does "
                f"not say where it lives.{did_you_mean(name, data.species)} Name its ground: "
                "plan.protected_areas."
            )
    species = frozenset({*options.protected, *policy, *told})
    asked = sorted(species & set(options.species))
    if asked:
        raise DataError(
            f"{asked[0]} is protected, and a plan names no protected species. Leave it out of "
            "plan.species, or, if you may know its places, set plan.allow_protected."
        )
    parts = [none]
    for name in sorted(species & set(data.species)):
        side = policy.get(name) or options.protect_m
        found = data.detections.index[data.detections[name] > 0]
        parts.append(_around(ground, ground.position(list(found)), side))
    if data.coarse is not None and square_of is not None:
        told_at = data.coarse.loc[data.coarse["detections"] > 0, "square"].unique()
        shapes = gpd.GeoSeries([square_of(str(one)) for one in told_at], crs="EPSG:4326")
        parts.append(shapes.to_crs(ground.crs))
    if options.protected_areas is not None:
        parts.append(_areas(ground, options, square_of))
    squares = gpd.GeoSeries(pd.concat(parts, ignore_index=True), crs=ground.crs)
    return Protection(species, squares)


def _around(ground: Ground, position: np.ndarray, side_m: float) -> gpd.GeoSeries:
    """Return the squares on whole multiples of their side that hold places (n, 2)."""
    if not len(position):
        return gpd.GeoSeries([], crs=ground.crs)
    metres = position + ground.origin
    corner = np.unique(np.floor(metres / side_m), axis=0) * side_m
    edges = np.column_stack([corner, corner + side_m]) / ground.unit_m
    return gpd.GeoSeries(shapely.box(*edges.T), crs=ground.crs)


def _areas(ground: Ground, options: PlanOptions, square_of: SquareOf | None) -> gpd.GeoSeries:
    """Return polygons as they are, and the square around whatever is none."""
    assert options.protected_areas is not None
    shapes = read_shapes(
        options.protected_areas, ground, "protected_areas", square_of=square_of
    ).geometry
    flat = shapes.geom_type.isin(["Polygon", "MultiPolygon"])
    around = _around(ground, ground.middles(shapes[~flat]), options.protect_m)
    return gpd.GeoSeries(pd.concat([shapes[flat], around], ignore_index=True), crs=ground.crs)
