"""A picture of calibration: do claims of 0.3 come true on three visits in ten?"""

from __future__ import annotations

import pandas as pd

from butterfly_sdm.figures.picture import INK, OTHER, PALETTE, Picture


def show_reliability(curve: pd.DataFrame, *, title: str = "") -> Picture:
    """
    Show what was observed against what was claimed.

    Parameters
    ----------
    curve
        One row per bin with ``predicted`` and ``observed`` means per visit and the ``visits``
        behind them, such as :attr:`butterfly_sdm.evaluation.calibration.Reliability.curve`.
    title
        Written above.

    Returns
    -------
    Picture
        Shows itself at the end of a cell; ``save`` writes it.
    """
    picture = Picture(4.4, 4.2)
    axes = picture.add_subplot()
    top = 1.05 * float(curve[["predicted", "observed"]].to_numpy().max(initial=0.05))
    axes.plot([0, top], [0, top], color=OTHER, linestyle="--", linewidth=1)
    axes.annotate("claims too low", (0.04 * top, 0.95 * top), fontsize=7, color=INK, va="top")
    axes.annotate("claims too high", (0.96 * top, 0.05 * top), fontsize=7, color=INK, ha="right")
    axes.plot(curve["predicted"], curve["observed"], color=PALETTE["train"], linewidth=1)
    sizes = 12 + 60 * curve["visits"] / curve["visits"].max()
    axes.scatter(curve["predicted"], curve["observed"], s=sizes, color=PALETTE["train"])
    axes.set_aspect("equal")
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)
    axes.set_xlabel("claimed presence probability")
    axes.set_ylabel("detections per visit")
    axes.set_title(title, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return picture
