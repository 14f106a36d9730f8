"""Pictures of what files hold before anything is built: where, when and how much."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from butterfly_sdm.figures.picture import EDGE, INK, OTHER, SEQUENTIAL, Picture, without_ticks

MOST_VISITS = 40


def show_records(sites: gpd.GeoDataFrame, visits: pd.Series, detections: pd.DataFrame) -> Picture:
    """
    Show where sites lie, how many visits they have, and which species were seen most.

    Parameters
    ----------
    sites
        Index ``site_id``; ``lon`` and ``lat`` in degrees.
    visits
        (site,) visits.
    detections
        (site, species) visits on which the species was seen.

    Returns
    -------
    Picture
        Left: sites by visits. Middle: how many sites have how many visits. Right: the species seen
        on most visits.
    """
    picture = Picture(11, 4)
    places, histogram, species = picture.subplots(1, 3, width_ratios=(1.2, 1, 1))
    n = visits.to_numpy()
    dots = places.scatter(
        sites["lon"],
        sites["lat"],
        c=np.maximum(n, 1),
        s=12,
        cmap=SEQUENTIAL,
        norm=LogNorm(vmin=1, vmax=max(2, int(n.max()))),
        **EDGE,
    )
    bar = picture.colorbar(dots, ax=places, shrink=0.8)
    bar.set_label("visits", fontsize=8)
    bar.ax.tick_params(which="both", labelsize=7)
    bar.formatter = bar.minorformatter = ScalarFormatter()
    middle = np.radians(float(sites["lat"].mean()))
    # Sites in a row, or one alone, get ground around them instead of a flat picture.
    places.set_aspect(1 / max(np.cos(middle), 0.05), adjustable="datalim")
    places.ticklabel_format(useOffset=False)
    places.set_title(f"{len(sites):,} sites by visits", fontsize=9)
    places.set_xlabel("longitude", fontsize=8)
    places.set_ylabel("latitude", fontsize=8)
    places.tick_params(labelsize=7)
    bins = np.arange(0.5, min(int(n.max()), MOST_VISITS) + 1.5)
    histogram.hist(np.minimum(n, MOST_VISITS), bins=bins, color=OTHER)
    histogram.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    beyond = f" ({MOST_VISITS}: or more)" if n.max() > MOST_VISITS else ""
    histogram.set_xlabel(f"visits{beyond}", fontsize=8)
    histogram.set_ylabel("sites", fontsize=8)
    histogram.set_title("sites by number of visits", fontsize=9)
    histogram.tick_params(labelsize=7)
    share = (detections.sum() / max(int(n.sum()), 1)).nlargest(15)[::-1]
    species.barh(np.arange(len(share)), share.to_numpy(), color=OTHER)
    species.set_yticks(np.arange(len(share)), list(share.index), fontsize=7, color=INK)
    species.set_xlabel("share of the visits on which it was seen", fontsize=8)
    species.set_title(f"{detections.shape[1]:,} species, most seen first", fontsize=9)
    species.tick_params(axis="x", labelsize=7)
    return picture


def show_preview(pixels: np.ndarray, title: str) -> Picture:
    """
    Show a window of a scene.

    Parameters
    ----------
    pixels
        (height, width, 3) red, green and blue, 0 to 1.
    title
        What stands above it.

    Returns
    -------
    Picture
        The window, nearest pixels, without axes.
    """
    picture = Picture(5, 5.2)
    axes = picture.subplots()
    axes.imshow(pixels, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    without_ticks(axes)
    return picture
