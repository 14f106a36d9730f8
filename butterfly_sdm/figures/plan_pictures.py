"""Pictures of plans: where to go, and how methods to choose would have served."""

from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
from matplotlib.collections import Collection, PolyCollection

from butterfly_sdm.figures.picture import (
    EDGE,
    INK,
    OTHER,
    PALETTE,
    SEQUENTIAL,
    Picture,
    scale_bar,
    without_ticks,
)

CHOSEN = PALETTE["validation"]
MOST_NUMBERED = 40
LABELS = {
    "gain": "a survey there alone lowers the expected error by … %",
    "finds": "expected finds of the named species",
}


def show_plan(
    layer: gpd.GeoDataFrame,
    sites: gpd.GeoDataFrame,
    surveyed: np.ndarray,
    *,
    metres_per_unit: float = 1.0,
    value: str = "gain",
) -> Picture:
    """
    Show where to go, on what a single survey of each candidate would be worth.

    Parameters
    ----------
    layer
        One row per candidate with the column ``value``; squares or points.
    sites
        One row per chosen site, with ``rank``; same CRS.
    surveyed
        (sites, 2) coordinates of the sites there are.
    metres_per_unit
        Of the CRS.
    value
        Column of the layer that is drawn.

    Returns
    -------
    Picture
        Shows itself at the end of a cell; ``save`` writes it.
    """
    picture = Picture(7.5, 7.0)
    axes = picture.add_subplot()
    numbers = layer[value].to_numpy(float)
    top = max(float(np.nanquantile(numbers, 0.995)), 1e-12)
    look: dict[str, Any] = {"cmap": SEQUENTIAL, "zorder": 1}
    flat = layer.geom_type.to_numpy() == "Polygon"
    middles = layer.geometry.centroid
    if flat.any():
        corners = [np.asarray(shape.exterior.coords) for shape in layer.geometry[flat]]
        drawn: Collection = PolyCollection(
            corners, edgecolors="face", linewidths=0.1, rasterized=True, **look
        )
        drawn.set_array(numbers[flat])
        axes.add_collection(drawn)
    if (~flat).any():
        place = middles[~flat]
        dots = axes.scatter(place.x, place.y, c=numbers[~flat], s=14, **EDGE, **look)
        dots.set_clim(0, top)
        drawn = drawn if flat.any() else dots
    drawn.set_clim(0, top)
    picture.colorbar(drawn, ax=axes, label=LABELS.get(value, value), shrink=0.7)
    x, y = surveyed.T
    axes.scatter(x, y, s=5, color=INK, linewidths=0, zorder=2, label="surveyed")
    chosen = sites.geometry.centroid
    axes.scatter(
        chosen.x,
        chosen.y,
        s=42,
        color=CHOSEN,
        edgecolors="white",
        linewidths=0.7,
        zorder=3,
        label=f"chosen ({len(sites)})",
    )
    for rank, x, y in list(zip(sites["rank"], chosen.x, chosen.y, strict=True))[:MOST_NUMBERED]:
        axes.annotate(str(rank), (x, y), ha="center", va="center", fontsize=5, color=INK, zorder=4)
    axes.set_aspect("equal")
    axes.autoscale_view()
    axes.margins(0.03)
    axes.set_title("Where to look next, numbered in order", fontsize=10)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, frameon=False)
    scale_bar(axes, metres_per_unit)
    without_ticks(axes)
    return picture


def show_replay(summary: pd.DataFrame, draws: pd.DataFrame) -> Picture:
    """
    Show how much better than random sites each method would have chosen, and how promises held.

    Parameters
    ----------
    summary
        One row per method: ``minus_random`` with its interval (``_low``, ``_high``).
    draws
        One row per draw and method: ``promised`` and ``fallen``.

    Returns
    -------
    Picture
        Left: error minus that of random sites, with 95 % intervals. Right: promised and found falls
        of the error, a dot per draw and method.
    """
    picture = Picture(9.5, 3.8)
    left, right = picture.subplots(1, 2, width_ratios=(1.2, 1))
    table = summary.drop(index="random", errors="ignore").sort_values("minus_random")
    rows = np.arange(len(table))[::-1]
    mean = 100 * table["minus_random"].to_numpy()
    reach = np.abs(100 * table[["minus_random_low", "minus_random_high"]].to_numpy().T - mean)
    sure = (table["minus_random_high"] < 0).to_numpy()
    for here, colour in ((sure, PALETTE["train"]), (~sure, OTHER)):
        if here.any():
            left.errorbar(
                mean[here], rows[here], xerr=reach[:, here], fmt="o", color=colour, capsize=3
            )
    left.axvline(0, color=INK, linewidth=1)
    left.set_yticks(rows, table.index)
    left.locator_params(axis="x", nbins=5)
    left.set_xlabel("mean squared error minus that of random sites (1e-2)")
    left.set_title("left of the line: better than random", fontsize=9)
    chance = draws["method"].str.startswith("random").to_numpy()
    for here, colour, label in ((chance, OTHER, "random"), (~chance, PALETTE["train"], "chosen")):
        told = 100 * draws.loc[here, ["promised", "fallen"]].to_numpy()
        right.scatter(*told.T, s=12, color=colour, alpha=0.6, linewidths=0, label=label)
    ends = [0, 100 * float(draws["promised"].max())]
    right.plot(ends, ends, color=INK, linewidth=1, label="as promised")
    right.set_xlabel("promised fall of the error (1e-2)")
    right.set_ylabel("found fall (1e-2)")
    right.set_title("how promises held", fontsize=9)
    right.legend(fontsize=7, frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return picture
