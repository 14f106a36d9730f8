"""
Leakage between the parts of a split: ground shown by tiles of two parts, distances, and prevalence.

A model that saw the ground of a test site while it was trained is scored too well. What counts is
the ground that tiles show: two tiles 2.8 km apart share a corner when their centres are 2 km apart
along both axes, whatever the split was made by.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import shapely
from pyproj import CRS, Transformer

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.splits import PARTS, Split
from butterfly_sdm.errors import DataError

PUBLISHED_TILE_M = 2560.0
WORTH_A_WARNING = 0.05  # of the ground of a tile: corners that touch give nothing away


@dataclass(frozen=True)
class LeakageReport:
    """
    What one part of a split gives away of another.

    Attributes
    ----------
    tile_m
        Side of the ground a tile shows.
    overlaps
        One row per pair of sites of different parts whose tiles overlap: ``site``, ``part``,
        ``other``, ``other_part`` and ``shared``, the share of the tile of ``site`` that ``other``
        shows too.
    distances
        Metres from each held-out site to the nearest training site: ``site``, ``part``,
        ``distance_m``.
    area_distances_m
        Metres from places of the prediction area to the nearest training site; empty if no area was
        given.
    prevalence
        (species, part) mean detection rate.
    """

    tile_m: float
    overlaps: pd.DataFrame
    distances: pd.DataFrame
    area_distances_m: np.ndarray
    prevalence: pd.DataFrame

    @property
    def leaking_sites(self) -> tuple[str, ...]:
        """Sites of any part whose tile overlaps one of another part."""
        return tuple(sorted({*self.overlaps["site"], *self.overlaps["other"]}))

    def warnings(self) -> list[str]:
        """
        Say in plain words what is wrong, naming sites; overlaps of all pairs below 5 % of the
        ground are no warning.
        """
        found = []
        leaking = self.leaking_sites
        if leaking and self.overlaps["shared"].max() >= WORTH_A_WARNING:
            held = set(self.distances["site"])
            touched = [site for site in leaking if site in held]
            first = self.overlaps.iloc[0]
            share = (
                f"{len(touched) / len(held):.0%}"
                if len(touched) >= 0.01 * len(held)
                else "less than 1%"
            )
            named = ", ".join(touched[:8]) + (", ..." if len(touched) > 8 else "")
            found.append(
                f"The split leaks: the tiles of {len(touched)} of {len(held)} held-out sites "
                f"({share}) overlap tiles of another part, such as {first['site']} "
                f"({first['part']}) and {first['other']} ({first['other_part']}), which share "
                f"{first['shared']:.0%} of their ground. Sites: {named}. Split by clusters "
                "(split.method), or leave sites out near others (split.buffer_m)."
            )
        if len(self.area_distances_m) and len(self.distances):
            near, far = (
                float(self.distances["distance_m"].median()),
                float(np.median(self.area_distances_m)),
            )
            if near < 0.5 * far:
                found.append(
                    f"Held-out sites lie {near / 1000:.1f} km from the nearest training site "
                    f"(median), places of the prediction area {far / 1000:.1f} km: the scores are "
                    "those of interpolation, and the map extrapolates."
                )
        return found

    def summary(self) -> pd.DataFrame:
        """
        Return one row per held-out part: sites, sites that overlap another part, and quantiles of
        the distance in metres.
        """
        rows = {}
        for part, group in self.distances.groupby("part"):
            quantiles = group["distance_m"].quantile([0, 0.1, 0.5, 0.9]).to_numpy()
            touching = {
                *self.overlaps.loc[self.overlaps["part"] == part, "site"],
                *self.overlaps.loc[self.overlaps["other_part"] == part, "other"],
            }
            rows[part] = [len(group), len(touching), *quantiles]
        columns = [
            "sites",
            "overlapping",
            "nearest_m",
            "distance_10_m",
            "distance_50_m",
            "distance_90_m",
        ]
        return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def leakage_report(
    dataset: Dataset,
    split: Split | None = None,
    *,
    tile_m: float | None = None,
    area: pd.DataFrame | None = None,
) -> LeakageReport:
    """
    Look for leakage between the parts of a split.

    Parameters
    ----------
    split
        By default that of the data set.
    tile_m
        Side of the ground around each site that counts, such as that of the window a model sees; by
        default the ground of the tiles of the data set, or of the published ones (2,560 m).
    area
        Places of the area that shall be mapped: columns ``easting`` and ``northing`` in metres.

    Returns
    -------
    LeakageReport
        Pairs of sites that share ground, distances of held-out sites in metres, prevalence.

    Raises
    ------
    DataError
        There is no split, or it has no training sites in the data set.
    """
    split = split or dataset.needed_split()
    card = dataset.card.tiles
    side = tile_m or (card.size_px * card.resolution_m if card is not None else PUBLISHED_TILE_M)
    sites = (
        dataset.sites if tile_m is None else dataset.sites.drop(columns="tile_row", errors="ignore")
    )
    return report_leakage(
        sites,
        split,
        tile_m=side,
        position_crs=dataset.card.position_crs,
        rates=dataset.rates,
        area=area,
    )


def report_leakage(
    sites: pd.DataFrame,
    split: Split,
    *,
    tile_m: float,
    position_crs: str,
    rates: pd.DataFrame | None = None,
    area: pd.DataFrame | None = None,
) -> LeakageReport:
    """
    Look for leakage between the parts of a split of sites; see :func:`leakage_report`.

    Parameters
    ----------
    sites
        Index ``site_id``; columns ``easting`` and ``northing`` in metres. Training sites with 0
        ``visits`` do not count. Where it has the columns of tiles (``tile_row``, ``tile_crs``,
        ``tile_left``, ``tile_top``), the ground of those tiles counts, and sites without a tile
        show none; else the squares of side ``tile_m`` around the sites.
    position_crs
        CRS of ``easting`` and ``northing``.
    rates
        (site, species) detection rates.

    Raises
    ------
    DataError
        The split has no training site with a visit.
    """
    from scipy.spatial import KDTree

    parts = {part: [site for site in getattr(split, part) if site in sites.index] for part in PARTS}
    if "visits" in sites.columns:
        # A site without a visit teaches nothing, so it gives nothing away.
        seen = set(sites.index[sites["visits"] > 0])
        parts["train"] = [site for site in parts["train"] if site in seen]
    if not parts["train"]:
        raise DataError("The split has no training site with a visit in the data set.")

    def nearest_m(places: pd.DataFrame) -> np.ndarray:
        return np.asarray(trained.query(_positions(places))[0])

    trained = KDTree(_positions(sites.loc[parts["train"]]))
    distances = [
        pd.DataFrame({"site": ids, "part": part, "distance_m": nearest_m(sites.loc[ids])})
        for part in PARTS[1:]
        if (ids := parts[part])
    ]
    nothing = pd.DataFrame({"site": [], "part": [], "distance_m": []})
    squares = _squares(sites, tile_m=tile_m, position_crs=position_crs)
    return LeakageReport(
        tile_m,
        _overlaps({part: squares.reindex(ids).dropna() for part, ids in parts.items()}),
        pd.concat(distances or [nothing], ignore_index=True),
        np.zeros(0) if area is None else nearest_m(area),
        pd.DataFrame()
        if rates is None
        else pd.DataFrame({part: rates.loc[ids].mean() for part, ids in parts.items() if ids}),
    )


def _positions(places: pd.DataFrame) -> np.ndarray:
    return np.asarray(places[["easting", "northing"]].to_numpy(float))


def _overlaps(ground: dict[str, pd.Series]) -> pd.DataFrame:
    """Return the pairs of sites of two parts whose tiles share ground, largest share first."""
    found = [pd.DataFrame(columns=["site", "part", "other", "other_part", "shared"])]
    for one, two in combinations(PARTS, 2):
        first, second = ground[one].to_numpy(), ground[two].to_numpy()
        theirs, ours = shapely.STRtree(first).query(second)[::-1]
        shared = shapely.area(shapely.intersection(first[theirs], second[ours]))
        shared = shared / shapely.area(second[ours])
        site, other = ground[two].index[ours], ground[one].index[theirs]
        row = {"site": site, "part": two, "other": other, "other_part": one, "shared": shared}
        found.append(pd.DataFrame(row)[shared > 1e-9])
    table = pd.concat([pairs for pairs in found if len(pairs)] or found, ignore_index=True)
    return table.sort_values(
        ["shared", "site", "other"], ascending=[False, True, True], ignore_index=True
    )


def _squares(sites: pd.DataFrame, *, tile_m: float, position_crs: str) -> pd.Series:
    """Return the ground of each tile as a polygon in metres of the CRS of positions."""
    corners = np.array([(0, 0), (1, 0), (1, -1), (0, -1)], float)
    if not {"tile_row", "tile_crs", "tile_left", "tile_top"} <= set(sites.columns):
        middle = sites[["easting", "northing"]].to_numpy(float)
        return pd.Series(
            shapely.polygons(middle[:, None] + tile_m * (corners + np.array([-0.5, 0.5]))),
            sites.index,
            dtype=object,
        )
    found = []
    for crs, group in sites[sites["tile_row"] >= 0].groupby("tile_crs"):
        own, theirs = CRS.from_user_input(crs), CRS.from_user_input(position_crs)
        side = tile_m / own.axis_info[0].unit_conversion_factor
        x, y = (
            group[["tile_left", "tile_top"]].to_numpy(float)[:, None] + side * corners
        ).transpose(2, 0, 1)
        if own != theirs:
            x, y = Transformer.from_crs(own, theirs, always_xy=True).transform(x, y)
        metres = np.stack([x, y], axis=-1) * theirs.axis_info[0].unit_conversion_factor
        found.append(pd.Series(shapely.polygons(metres), group.index, dtype=object))
    return pd.concat(found) if found else pd.Series(dtype=object)
