"""Pictures of the survey: where people walked, how often, and what they saw."""

from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.ticker import ScalarFormatter

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import DataError
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


def show_effort(dataset: Dataset) -> Picture:
    """
    Show where the sites lie, how often they were visited, and which part of the split each belongs
    to.

    Returns
    -------
    Picture
        Left: sites by visits. Middle: sites by part of the split. Right: how many sites have how
        many visits.
    """
    sites = dataset.sites
    picture = Picture(11, 3.9)
    effort, parts, histogram = picture.subplots(1, 3, width_ratios=(1.15, 1, 1))
    visits = sites["visits"].to_numpy()
    dots = effort.scatter(
        sites["easting"],
        sites["northing"],
        c=np.maximum(visits, 1),
        s=12,
        cmap=SEQUENTIAL,
        norm=LogNorm(),
        **EDGE,
    )
    bar = picture.colorbar(dots, ax=effort, shrink=0.8)
    bar.set_label("visits", fontsize=8)
    bar.ax.tick_params(which="both", labelsize=7)
    bar.formatter = ScalarFormatter()  # 100 visits, not 10 to the power of 2
    belongs = dataset.split.part_of() if dataset.split is not None else {}
    for part, colour in PALETTE.items():
        here = np.array([belongs.get(site) == part for site in sites.index])
        if here.any():
            place, label = sites.loc[here, ["easting", "northing"]], f"{part} ({here.sum()})"
            parts.scatter(*place.to_numpy().T, s=12, color=colour, linewidths=0, label=label)
    if belongs:
        parts.legend(
            fontsize=7,
            loc="upper center",
            bbox_to_anchor=(0.5, 0),
            ncols=3,
            frameon=False,
            handletextpad=0,
        )
    for axes, title in (
        (effort, f"{len(sites):,} sites by visits"),
        (parts, "by part of the split"),
    ):
        axes.set_aspect("equal")
        axes.set_title(title, fontsize=9)
        scale_bar(axes, 1.0)
        without_ticks(axes)
    histogram.hist(visits, bins=min(30, max(5, len(sites) // 8)), color=OTHER)
    histogram.axvline(np.median(visits), color=INK, linewidth=1)
    histogram.set_title(f"visits per site (median {np.median(visits):g})", fontsize=9)
    histogram.set_xlabel("visits")
    histogram.set_ylabel("sites")
    histogram.spines[["top", "right"]].set_visible(False)
    return picture


def show_rates(dataset: Dataset, species: str) -> Picture:
    """
    Show the detection rate of one species at every site; the size of a dot grows with the visits
    behind it.

    Returns
    -------
    Picture
        Shows itself at the end of a cell; ``save`` writes it.

    Raises
    ------
    DataError
        The data set has no such species.
    """
    if species not in dataset.species:
        raise DataError(
            f"The data set has no species {species!r}. It has {', '.join(dataset.species[:5])} ..."
        )
    sites = dataset.sites
    picture = Picture(5.2, 4.4)
    axes = picture.add_subplot()
    size = 6 + 60 * np.sqrt(sites["visits"] / max(1, sites["visits"].max()))
    look: dict[str, Any] = {"cmap": SEQUENTIAL, "vmin": 0, "vmax": 1, **EDGE}
    place = sites["easting"], sites["northing"]
    dots = axes.scatter(*place, c=dataset.rates[species], s=size, **look)
    picture.colorbar(dots, ax=axes, label="detection rate (visits with it / visits)", shrink=0.8)
    axes.set_aspect("equal")
    axes.set_title(species, fontsize=10, style="italic")
    scale_bar(axes, 1.0)
    without_ticks(axes)
    return picture
