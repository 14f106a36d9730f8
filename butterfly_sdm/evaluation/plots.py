"""Pictures of scores, as PNG files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from butterfly_sdm.core.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from butterfly_sdm.evaluation.scores import Scores

INK = "#1f2a30"
MODEL = "#0b6e4f"
OTHER = "#9aa5a8"
DIVERGING = "BrBG"


def save_plot(
    path: Path, draw: Callable[[Axes], None], *, size: tuple[float, float] = (6.4, 4.2)
) -> None:
    """
    Draw on a fresh figure and write it, whole or not at all, without touching matplotlib's global
    state.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format=path.suffix.removeprefix("."))


def plot_scores(scores: Scores, folder: Path) -> list[Path]:
    """
    Write the standard pictures of one scoring into ``folder``.

    ``species_rates.png`` predicted against observed mean rate; ``species_factor.png`` how much
    better than the reference each species is; ``site_factor.png`` the same on a map of sites;
    ``ladder.png`` if there are several predictors beside it.
    """
    folder = Path(folder)
    paths = [folder / "species_rates.png"]
    save_plot(paths[0], lambda axes: _species_rates(axes, scores.per_species))
    if scores.per_species["factor"].notna().any():
        paths += [folder / "species_factor.png", folder / "site_factor.png"]
        height = 1.2 + 0.16 * len(scores.per_species)
        save_plot(
            paths[1],
            lambda axes: _species_factor(axes, scores.per_species),
            size=(6.4, max(3.0, height)),
        )
        wide, high = (
            float(np.ptp(scores.per_site[axis])) + 1000 for axis in ("easting", "northing")
        )
        height = float(np.clip(4.2 * high / wide, 2.0, 7.0)) + 1.0
        save_plot(paths[2], lambda axes: _site_factor(axes, scores.per_site), size=(6.4, height))
    if scores.beside is not None and len(scores.beside) > 1:
        paths.append(folder / "ladder.png")
        save_plot(
            paths[-1],
            lambda axes: _ladder(axes, scores.beside),
            size=(6.4, 1.2 + 0.4 * len(scores.beside)),
        )
    return paths


def _species_rates(axes: Axes, table: pd.DataFrame) -> None:
    top = 1.05 * max(table["rate"].max(), table["predicted"].max(), 1e-3)
    axes.plot([0, top], [0, top], color=OTHER, lw=1)
    axes.scatter(table["rate"], table["predicted"], s=18, color=MODEL, alpha=0.8, lw=0)
    far = (table["predicted"] - table["rate"]).abs().nlargest(min(5, len(table))).index
    named = table.loc[far, ["rate", "predicted"]].sort_values("predicted")
    heights = named["predicted"].to_numpy(float) + 0.01 * top
    for row in range(1, len(heights)):  # one below the other would be unreadable
        heights[row] = max(heights[row], heights[row - 1] + 0.035 * top)
    for species, (rate, predicted), height in zip(
        named.index, named.to_numpy(float), heights, strict=True
    ):
        right = rate > 0.75 * top  # no room for a name to the right
        axes.annotate(
            species,
            (rate, predicted),
            xytext=(rate + (-0.012 if right else 0.012) * top, height),
            fontsize=7,
            style="italic",
            ha="right" if right else "left",
            va="bottom",
            color=INK,
        )
    axes.set(
        xlim=(0, top),
        ylim=(0, top),
        xlabel="mean detection rate",
        ylabel="mean prediction",
        title="Species: said and seen",
    )


def _species_factor(axes: Axes, table: pd.DataFrame) -> None:
    table = table.dropna(subset=["factor"]).sort_values("factor")
    better = np.log2(table["factor"].clip(1 / 16, 16).to_numpy())
    axes.barh(
        np.arange(len(table)), better, color=np.where(better >= 0, MODEL, "#b5651d"), height=0.75
    )
    axes.set_yticks(np.arange(len(table)), table.index, fontsize=7, style="italic")
    axes.margins(y=0.01)
    ticks = [-2, -1, 0, 1, 2]
    axes.set_xticks(ticks, [f"{2.0**tick:g}" for tick in ticks])
    axes.axvline(0, color=INK, lw=0.8)
    axes.set(
        xlabel="MSE of the reference / MSE (right of 1: better)",
        title="Where the model beats the mean rate",
    )


def _site_factor(axes: Axes, table: pd.DataFrame) -> None:
    colours = np.log2(table["factor"].clip(0.25, 4).to_numpy())
    dots = axes.scatter(
        table["easting"] / 1000,
        table["northing"] / 1000,
        c=colours,
        cmap=DIVERGING,
        vmin=-2,
        vmax=2,
        s=16,
        edgecolors=INK,
        linewidths=0.3,
    )
    bar = axes.figure.colorbar(dots, ax=axes, shrink=0.6, ticks=[-2, -1, 0, 1, 2])
    bar.ax.set_yticklabels(["1/4", "1/2", "1", "2", "4"])
    bar.set_label("MSE of the reference / MSE (above 1: better)")
    axes.set_aspect("equal")
    axes.set(
        xlabel="easting (km)", ylabel="northing (km)", title="Sites: better than the mean rate?"
    )


def _ladder(axes: Axes, table: pd.DataFrame | None) -> None:
    assert table is not None
    values = table["mse"].to_numpy()[::-1]
    names = list(table.index)[::-1]
    axes.barh(
        names,
        values,
        color=[MODEL if name == table.index[0] else OTHER for name in names],
        height=0.65,
    )
    for place, value in enumerate(values):
        axes.text(value, place, f" {value:.5f}", va="center", fontsize=8)
    floor = float(table["noise_floor"].iloc[0])
    axes.axvline(floor, color=INK, lw=1, ls=":")
    axes.text(floor, len(names) - 0.45, " noise floor", fontsize=7, color=INK)
    axes.set(xlabel="mean squared error (shorter is better)", xlim=(0, values.max() * 1.2))


def plot_ladder(table: pd.DataFrame, path: Path) -> None:
    """Draw the rows of a ladder as dots with intervals, on the split and cross-validated."""
    table = table[table["note"] == ""].iloc[::-1]
    series = [
        ("mse", "official split", MODEL, 0.13),
        ("cv_mse", "spatial cross-validation", "#b5651d", -0.13),
    ]

    def draw(axes: Axes) -> None:
        places = np.arange(len(table))
        for key, label, colour, shift in series:
            if key in table:
                middle = table[key].to_numpy(float) * 100
                ends = np.abs(table[[f"{key}_low", f"{key}_high"]].to_numpy(float).T * 100 - middle)
                axes.errorbar(
                    middle,
                    places + shift,
                    xerr=ends,
                    fmt="o",
                    ms=5,
                    lw=1.4,
                    color=colour,
                    label=label,
                )
        axes.set_yticks(places, table.index)
        axes.grid(axis="x", color="#e3e7e8", lw=0.6)
        axes.set_xlabel("mean squared error x 100, with 95 % interval (left is better)")
        axes.legend(
            frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=2
        )

    save_plot(path, draw, size=(6.8, 1.6 + 0.42 * len(table)))


def plot_differences(table: pd.DataFrame, path: Path, *, change: str) -> None:
    """
    Draw the differences (index: what was compared; columns difference, low, high) as dots with
    intervals around zero.
    """
    table = table.iloc[::-1] * 100

    def draw(axes: Axes) -> None:
        places = np.arange(len(table))
        middle = table["difference"].to_numpy()
        ends = np.abs(table[["low", "high"]].to_numpy().T - middle)
        colours = [
            MODEL if high < 0 else "#b5651d" if low > 0 else OTHER
            for low, high in zip(table["low"], table["high"], strict=True)
        ]
        for place in places:
            axes.errorbar(
                middle[place],
                place,
                xerr=ends[:, [place]],
                fmt="o",
                ms=5,
                lw=1.4,
                color=colours[place],
            )
        axes.axvline(0, color=INK, lw=1, ls=":")
        axes.set_yticks(places, table.index)
        axes.set_ylim(-0.6, len(table) - 0.4)
        axes.grid(axis="x", color="#e3e7e8", lw=0.6)
        axes.set(
            xlabel="difference of squared errors x 100, 95 % interval (left: it helps)",
            title=change,
        )

    save_plot(path, draw, size=(6.4, 1.5 + 0.35 * len(table)))
