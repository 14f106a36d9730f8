"""
Leakage between the parts of a split: ground shown by tiles of two parts, distances, and prevalence.

A model that saw the ground of a test site while it was trained is scored too well. Tiles overlap when their centres are less
than a tile apart along both axes, whatever the split was made by.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.splits import PARTS, Split
from butterfly_sdm.errors import DataError

PUBLISHED_TILE_M = 2560.0


@dataclass(frozen=True)
class LeakageReport:
    """
    What one part of a split gives away of another.

    Attributes
    ----------
    tile_m
        Side of the ground a tile shows.
    overlaps
        One row per pair of sites of different parts whose tiles overlap: ``site``, ``part``, ``other``, ``other_part`` and
        ``shared``, the share of the tile of ``site`` that ``other`` shows too.
    distances
        Metres from each held-out site to the nearest training site: ``site``, ``part``, ``distance_m``.
    area_distances_m
        Metres from places of the prediction area to the nearest training site; empty if no area was given.
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
        """Say in plain words what is wrong, naming sites."""
        found = []
        leaking = self.leaking_sites
        if leaking:
            held = set(self.distances["site"])
            touched = [site for site in leaking if site in held]
            first = self.overlaps.iloc[0]
            named = ", ".join(touched[:8]) + (", ..." if len(touched) > 8 else "")
            found.append(
                f"The split leaks: the tiles of {len(touched)} of {len(held)} held-out sites ({len(touched) / len(held):.0%}) "
                f"overlap tiles of another part, such as {first['site']} ({first['part']}) and {first['other']} "
                f"({first['other_part']}), which share {first['shared']:.0%} of their ground. Sites: {named}. "
                "Split by clusters (split.method), or leave sites out near others (split.buffer_m)."
            )
        if len(self.area_distances_m) and len(self.distances):
            near, far = float(self.distances["distance_m"].median()), float(np.median(self.area_distances_m))
            if near < 0.5 * far:
                found.append(
                    f"Held-out sites lie {near / 1000:.1f} km from the nearest training site (median), places of the "
                    f"prediction area {far / 1000:.1f} km: the scores are those of interpolation, and the map extrapolates."
                )
        return found

    def summary(self) -> pd.DataFrame:
        """Return one row per held-out part: sites, sites that overlap another part, and quantiles of the distance in metres."""
        rows = {}
        for part, group in self.distances.groupby("part"):
            quantiles = group["distance_m"].quantile([0, 0.1, 0.5, 0.9]).to_numpy()
            touching = {*self.overlaps.loc[self.overlaps["part"] == part, "site"],
                        *self.overlaps.loc[self.overlaps["other_part"] == part, "other"]}  # fmt: skip
            rows[part] = [len(group), len(touching), *quantiles]
        columns = ["sites", "overlapping", "nearest_m", "distance_10_m", "distance_50_m", "distance_90_m"]
        return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def leakage_report(
    dataset: Dataset, split: Split | None = None, *, tile_m: float | None = None, area: pd.DataFrame | None = None
) -> LeakageReport:
    """
    Look for leakage between the parts of a split.

    Parameters
    ----------
    split
        By default that of the data set.
    tile_m
        Side of the ground a tile shows; by default that of the tiles of the data set, or of the published ones (2,560 m).
    area
        Places of the area that shall be mapped: columns ``easting`` and ``northing`` in metres.

    Raises
    ------
    DataError
        There is no split, or it has no training sites in the data set.
    """
    split = split or dataset.split
    if split is None:
        raise DataError("There is no split to report on. Give one, or build the data set with split.")
    card = dataset.card.tiles
    side = tile_m or (card.size_px * card.resolution_m if card is not None else PUBLISHED_TILE_M)
    return report_leakage(dataset.sites, split, tile_m=side, rates=dataset.rates, area=area)


def report_leakage(
    sites: pd.DataFrame, split: Split, *, tile_m: float, rates: pd.DataFrame | None = None, area: pd.DataFrame | None = None
) -> LeakageReport:
    """
    Look for leakage between the parts of a split of sites; see :func:`leakage_report`.

    Parameters
    ----------
    sites
        Index ``site_id``; columns ``easting`` and ``northing`` in metres. Training sites with 0 ``visits`` do not count.
    rates
        (site, species) detection rates.
    """
    from scipy.spatial import KDTree

    known = set(sites.index)
    parts = {part: [site for site in getattr(split, part) if site in known] for part in PARTS}
    if "visits" in sites.columns:  # a site without a visit teaches nothing, so it gives nothing away
        parts["train"] = [site for site, n in zip(parts["train"], sites.loc[parts["train"], "visits"], strict=True) if n > 0]
    if not parts["train"]:
        raise DataError("The split has no training site with a visit in the data set.")
    place = {part: sites.loc[ids, ["easting", "northing"]].to_numpy(float).reshape(-1, 2) for part, ids in parts.items()}
    trees = {part: KDTree(points) for part, points in place.items() if len(points)}
    rows = []
    for one, two in combinations(trees, 2):
        # The largest distance along either axis: tiles are squares.
        for number, near in enumerate(trees[one].query_ball_tree(trees[two], tile_m, p=np.inf)):
            for other in near:
                apart = np.abs(place[one][number] - place[two][other])
                shared = float(np.prod(np.maximum(tile_m - apart, 0)) / tile_m**2)
                if shared > 0:
                    rows.append((parts[two][other], two, parts[one][number], one, shared))
    overlaps = pd.DataFrame(rows, columns=["site", "part", "other", "other_part", "shared"])
    overlaps = overlaps.sort_values(["shared", "site", "other"], ascending=[False, True, True], ignore_index=True)
    distances = pd.concat(
        [
            pd.DataFrame({"site": parts[part], "part": part, "distance_m": trees["train"].query(place[part])[0]})
            for part in PARTS[1:]
            if parts[part]
        ]
        or [pd.DataFrame({"site": [], "part": [], "distance_m": []})],
        ignore_index=True,
    )
    area_m = np.zeros(0) if area is None else trees["train"].query(area[["easting", "northing"]].to_numpy(float))[0]
    prevalence = pd.DataFrame()
    if rates is not None:
        prevalence = pd.DataFrame({part: rates.loc[ids].mean() for part, ids in parts.items() if ids})
    return LeakageReport(tile_m, overlaps, distances, area_m, prevalence)
