"""Pictures of how good predictions are: by species, by site, beside others, and calibrated."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.patches import Patch

from butterfly_sdm.figures.picture import INK, OTHER, Picture, scale_bar, without_ticks

MODEL = "#01665e"
WORSE = "#b5651d"
GRID = "#dde3e4"
WIDTH = 5.28  # inches: 380 points, a phone's width, so that letters keep their size there
# ColorBrewer BrBG without white, by the logarithm of how many times better
DIVERGING = ListedColormap(
    ["#8c510a", "#bf812d", "#dfc27d", "#c9c9c9", "#80cdc1", "#35978f", "#01665e"]
)
STEPS = BoundaryNorm(np.linspace(-7 / 3, 7 / 3, 8), DIVERGING.N, clip=True)
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 10, "handlelength": 1, "handleheight": 1}


def save_scores(
    folder: str | Path, species: pd.DataFrame, sites: pd.DataFrame, beside: pd.DataFrame | None
) -> list[Path]:
    """
    Write the standard pictures of one scoring into ``folder`` as PNG.

    ``species_rates.png`` predicted against observed mean rate; ``species_factor.png`` how much
    better than the reference each species is; ``site_factor.png`` the same on a map of sites;
    ``ladder.png`` if there are several predictors beside it.

    Parameters
    ----------
    species
        (species,) with ``rate``, ``predicted`` and ``factor``.
    sites
        (site,) with ``easting`` and ``northing`` in metres and ``factor``.
    beside
        (predictor,) with ``mse`` and ``noise_floor``.

    Returns
    -------
    list of Path
        Where they lie.
    """
    rates = {"xlabel": "mean detection rate", "ylabel": "mean prediction"}
    pictures = {
        "species_rates": (
            "Species: said and seen",
            show_agreement(species["rate"], species["predicted"], name_farthest=5, **rates),
        )
    }
    if species["factor"].notna().any():
        pictures["species_factor"] = (
            "Where the model beats the mean rate",
            _show_species_factor(species["factor"]),
        )
        pictures["site_factor"] = ("Sites: better than the mean rate?", show_site_factor(sites))
    if beside is not None and len(beside) > 1:
        floor = float(beside["noise_floor"].iloc[0])
        pictures["ladder"] = ("", show_ladder(beside, floor=floor))
    for title, picture in pictures.values():
        picture.axes[0].set_title(title)
    return [picture.save(Path(folder) / f"{name}.png") for name, (_, picture) in pictures.items()]


def show_agreement(
    seen: pd.Series,
    said: pd.Series,
    *,
    xlabel: str,
    ylabel: str,
    titles: Sequence[str] = (),
    name_farthest: int = 0,
) -> Picture:
    """
    Show what is said against what was seen, from 0 on, with the diagonal where both agree.

    Parameters
    ----------
    seen, said
        (n,) numbers by the name of what they are about.
    xlabel, ylabel
        What they are, and their unit.
    titles
        Of the dots, one per name.
    name_farthest
        How many of the dots farthest from the diagonal to name.

    Returns
    -------
    Picture
        Shows itself at the end of a cell; ``save`` writes it.
    """
    picture, axes, top = _square(float(np.nanmax([seen.max(), said.max(), 1e-3])), xlabel, ylabel)
    picture.dots(axes, seen, said, titles=titles, s=36, color=MODEL, alpha=0.75)
    far = (said - seen).abs().nlargest(name_farthest).index
    height = -np.inf
    for name in said.loc[far].sort_values().index:
        height = max(said[name] + 0.01 * top, height + 0.04 * top)  # no name over another
        right = seen[name] > 0.7 * top  # no room for a name to the right
        axes.text(
            seen[name] + (-0.012 if right else 0.012) * top,
            height,
            name,
            fontsize=8,
            style="italic",
            ha="right" if right else "left",
            color=INK,
            parse_math=False,
        )
    return picture


def show_reliability(
    curve: pd.DataFrame, *, title: str = "", titles: Sequence[str] = ()
) -> Picture:
    """
    Show what was observed against what was claimed: do claims of 0.3 come true on 3 visits in 10?

    Parameters
    ----------
    curve
        One row per bin with ``predicted`` and ``observed`` means per visit and the ``visits``
        behind them, such as :attr:`butterfly_sdm.evaluation.calibration.Reliability.curve`.
    title
        Written above.
    titles
        Of the dots, one per bin.

    Returns
    -------
    Picture
        Shows itself at the end of a cell; ``save`` writes it.
    """
    predicted, observed = curve["predicted"], curve["observed"]
    most = float(np.nanmax([predicted.max(), observed.max(), 0.05]))
    picture, axes, top = _square(most, "said: presence probability", "seen: share of visits")
    axes.text(0.04 * top, 0.95 * top, "claims too low", fontsize=9, color=INK, va="top")
    axes.text(0.96 * top, 0.05 * top, "claims too high", fontsize=9, color=INK, ha="right")
    axes.plot(predicted, observed, color=MODEL, linewidth=1.5)
    sizes = 12 + 60 * curve["visits"] / curve["visits"].max()
    picture.dots(axes, predicted, observed, titles=titles, s=sizes, color=MODEL)
    axes.set_title(title, fontsize=10)
    return picture


def show_sites(
    sites: pd.DataFrame,
    *,
    titles: Sequence[str] = (),
    behind: pd.DataFrame | None = None,
    legend: Mapping[str, Any] | None = None,
    **look: Any,
) -> Picture:
    """
    Show sites as dots where they lie.

    Parameters
    ----------
    sites
        (site,) with ``easting`` and ``northing`` in metres.
    titles
        Of the dots, one per site.
    behind
        (site,) likewise: other sites, in grey below these.
    legend
        Colours by what they mean.
    look
        Of the dots, as :meth:`matplotlib.axes.Axes.scatter` takes it.

    Returns
    -------
    Picture
        Shows itself at the end of a cell; ``save`` writes it.
    """
    everything = sites if behind is None else pd.concat([sites, behind])
    wide, high = (max(float(np.ptp(everything[axis])), 1000) for axis in ("easting", "northing"))
    picture = Picture(WIDTH, WIDTH * float(np.clip(high / wide, 0.3, 1.6)) + 0.4 * bool(legend))
    axes = picture.add_subplot()
    if behind is not None:
        picture.dots(axes, behind["easting"], behind["northing"], s=7, color="#c9d0d1")
    picture.dots(
        axes,
        sites["easting"],
        sites["northing"],
        titles=titles,
        **({"s": 46, "edgecolors": "#333333", "linewidths": 0.4} | look),
    )
    axes.set_aspect("equal")
    axes.set_ylim(axes.get_ylim()[0] - 0.1 * high, None)  # room for the bar
    scale_bar(axes, 1.0, fontsize=10)
    without_ticks(axes)
    if legend:
        _legend(picture, legend, columns=3)
    return picture


def show_site_factor(
    sites: pd.DataFrame, *, titles: Sequence[str] = (), behind: pd.DataFrame | None = None
) -> Picture:
    """
    Show by how many times each site is predicted better than by the mean rate.

    Parameters
    ----------
    sites
        (site,) with ``easting`` and ``northing`` in metres, and ``factor``: the error of the mean
        rate over that of the model.
    titles
        Of the dots, one per site.
    behind
        (site,) likewise: other sites, in grey below these.

    Returns
    -------
    Picture
        Shows itself at the end of a cell; ``save`` writes it.
    """
    words = {
        "4 times worse": -2,
        "twice worse": -1,
        "equal": 0,
        "twice better": 1,
        "4 times better": 2,
    }
    return show_sites(
        sites,
        titles=titles,
        behind=behind,
        legend={word: DIVERGING(STEPS(value)) for word, value in words.items()},
        c=np.log2(sites["factor"].fillna(1.0).clip(1 / 16, 16)),
        cmap=DIVERGING,
        norm=STEPS,
    )


def show_ladder(table: pd.DataFrame, *, floor: float | None = None) -> Picture:
    """
    Show the error of several predictors, on the held-out part and cross-validated.

    Parameters
    ----------
    table
        (predictor,) with ``mse`` and, if known, ``mse_low``, ``mse_high``, and the same of
        ``cv_mse``.
    floor
        An error no predictor can be below, drawn as a dotted line.

    Returns
    -------
    Picture
        Shows itself at the end of a cell; ``save`` writes it.
    """
    table = table[table["mse"].notna()]
    series = {
        "mse": ("held-out part", MODEL, -0.08),
        "cv_mse": ("spatial cross-validation", WORSE, 0.12),
    }
    drawn = {key: look for key, look in series.items() if key in table}
    names = [f"{_words(name)}: {mse:.5f}" for name, mse in table["mse"].items()]
    picture, axes = _rows(names, "mean squared error (left is better)")
    for key, (_, colour, shift) in drawn.items():
        ends = table[[f"{key}_low", f"{key}_high"]] if f"{key}_low" in table else None
        _intervals(picture, table[key], ends, [colour] * len(table), shift)
    if floor is not None:
        axes.axvline(floor, color=INK, linewidth=1, linestyle=":")
        axes.text(floor, -0.75, " noise floor", fontsize=8, color=INK)
    if len(drawn) > 1:
        _legend(picture, {word: colour for word, colour, _ in drawn.values()}, columns=2)
    return picture


def show_differences(table: pd.DataFrame, *, change: str) -> Picture:
    """
    Show differences of squared errors as dots with intervals around zero.

    Parameters
    ----------
    table
        (what was compared,) with ``difference``, ``low`` and ``high``.
    change
        Written above.

    Returns
    -------
    Picture
        Shows itself at the end of a cell; ``save`` writes it.
    """
    picture, axes = _rows(
        list(map(str, table.index)), "difference of squared errors, 95 % interval (left: it helps)"
    )
    colours = np.where(table["high"] < 0, MODEL, np.where(table["low"] > 0, WORSE, OTHER)).tolist()
    _intervals(picture, table["difference"], table[["low", "high"]], colours, 0.0)
    axes.axvline(0, color=INK, linewidth=1, linestyle=":")
    axes.set_title(change)
    return picture


def show_drivers(table: pd.DataFrame) -> Picture:
    """
    Show by which share the error grows when an input is shuffled, and its standard deviation.

    Parameters
    ----------
    table
        (input,) with ``share`` and ``deviation``.

    Returns
    -------
    Picture
        Shows itself at the end of a cell; ``save`` writes it.
    """
    picture, axes = _rows(list(map(_words, table.index)), "growth of the error")
    share = table["share"].to_numpy(float)
    axes.barh(np.arange(len(table)), share, height=0.28, color=MODEL)
    for place, (value, deviation) in enumerate(zip(share, table["deviation"], strict=True)):
        known = np.isfinite(deviation) and deviation >= 0.0005
        shown = (f"{value:+.1%}" if abs(value) >= 0.0005 else "0.0%") + (
            f" ± {deviation:.1%}" if known else ""
        )
        axes.text(max(value, 0), place, f" {shown}", fontsize=9, va="center", color=INK)
    low, high = min(0.0, *share), max(1e-3, *share)
    axes.set_xlim(low, high + 0.35 * (high - low))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    return picture


def _show_species_factor(factor: pd.Series) -> Picture:
    factor = factor.dropna().sort_values(ascending=False)
    picture = Picture(WIDTH + 1, max(3.0, 1.2 + 0.16 * len(factor)))
    axes = picture.add_subplot()
    better = np.log2(factor.clip(1 / 16, 16))
    places = np.arange(len(factor))
    axes.barh(places, better, color=np.where(better >= 0, MODEL, WORSE), height=0.75)
    axes.set_yticks(places, factor.index, fontsize=7, style="italic", parse_math=False)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xticks(range(-2, 3), [f"{2.0**tick:g}" for tick in range(-2, 3)])
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("MSE of the reference / MSE (right of 1: better)")
    return picture


def _square(most: float, xlabel: str, ylabel: str) -> tuple[Picture, Axes, float]:
    """Return a square from 0 on with its diagonal, and where it ends."""
    picture, top = Picture(WIDTH, WIDTH), 1.05 * most
    axes = picture.add_subplot()
    axes.plot([0, top], [0, top], color=OTHER, linewidth=1.2)
    axes.set(xlim=(0, top), ylim=(0, top), aspect="equal")
    axes.locator_params(nbins=5)
    _style(axes, "both")
    axes.set_xlabel(xlabel, fontsize=12)
    axes.set_ylabel(ylabel, fontsize=12)
    return picture, axes, top


def _rows(names: Sequence[str], xlabel: str) -> tuple[Picture, Axes]:
    """Return a picture of rows, the first on top, with their names above them."""
    picture = Picture(WIDTH, 0.9 + 0.5 * len(names))
    axes = picture.add_subplot()
    axes.set(ylim=(len(names) - 0.6, -0.9), yticks=[])
    axes.locator_params(axis="x", nbins=5)
    _style(axes, "x")
    axes.set_xlabel(xlabel, fontsize=12)
    for place, name in enumerate(names):
        axes.text(
            0.01,
            place - 0.28,
            name,
            transform=axes.get_yaxis_transform(),
            fontsize=11,
            weight="bold",
            color=INK,
            parse_math=False,
        )
    return picture, axes


def _intervals(
    picture: Picture,
    middle: pd.Series,
    ends: pd.DataFrame | None,
    colours: Sequence[str],
    shift: float,
) -> None:
    axes, places = picture.axes[0], np.arange(len(middle)) + shift
    if ends is not None:
        axes.hlines(places, ends.iloc[:, 0], ends.iloc[:, 1], colors=colours, linewidth=2)
    titles = [f"{value:.5f}" for value in middle]
    picture.dots(axes, middle, places, titles=titles, s=52, c=colours)


def _style(axes: Axes, grid: Any) -> None:
    axes.spines[:].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=GRID, linewidth=1)
    axes.tick_params(length=0, labelsize=11, labelcolor="#5b6a70")


def _legend(picture: Picture, colours: Mapping[str, Any], *, columns: int) -> None:
    handles = [Patch(color=colour, label=word) for word, colour in colours.items()]
    picture.legend(handles=handles, loc="outside upper left", ncols=columns, **LEGEND)


def _words(name: object) -> str:
    return str(name).replace("_", " ")
