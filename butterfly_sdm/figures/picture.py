"""A figure that shows itself in Jupyter, saves itself, and touches no global state."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from butterfly_sdm.core.files import atomic_path

SEQUENTIAL = "viridis"
INK = "#1f2a30"
PALETTE = {"train": "#0072b2", "validation": "#e69f00", "test": "#cc79a7"}  # Okabe and Ito (2008)
OTHER = "#9aa5a8"


class Picture(Figure):
    """
    A matplotlib figure without pyplot: the last line of a notebook cell shows it.

    Parameters
    ----------
    width, height
        Inches.
    options
        Of :class:`matplotlib.figure.Figure`.
    """

    def __init__(self, width: float, height: float, **options: Any) -> None:
        super().__init__(figsize=(width, height), layout="constrained", **options)
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()

    def save(self, path: str | Path, *, dpi: int = 150) -> Path:
        """
        Write the picture as PNG, SVG or PDF, by the ending of ``path``.

        Returns
        -------
        Path
            Where it lies.
        """
        path = Path(path)
        with atomic_path(path) as temporary:
            self.savefig(temporary, dpi=dpi, format=path.suffix.removeprefix(".") or "png")
        return path


def scale_bar(axes: Axes, metres_per_unit: float) -> None:
    """
    Draw a bar of a round length, about a quarter of the width, into the lower left corner of a
    picture of ground.
    """
    left, right = sorted(axes.get_xlim())
    span_m = (right - left) * metres_per_unit
    length_m = max(
        (
            step * 10**power
            for power in range(1, 7)
            for step in (1, 2, 5)
            if step * 10**power <= span_m / 3
        ),
        default=span_m / 3,
    )
    share = length_m / span_m
    text = f"{length_m / 1000:g} km" if length_m >= 1000 else f"{length_m:g} m"
    at = axes.transAxes
    axes.plot(
        [0.04, 0.04 + share],
        [0.05, 0.05],
        color="white",
        linewidth=4.5,
        transform=at,
        solid_capstyle="butt",
    )
    axes.plot(
        [0.04, 0.04 + share],
        [0.05, 0.05],
        color=INK,
        linewidth=2.5,
        transform=at,
        solid_capstyle="butt",
    )
    axes.text(
        0.04 + share / 2,
        0.075,
        text,
        transform=at,
        ha="center",
        va="bottom",
        fontsize=7,
        color=INK,
        bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.0},
    )


def without_ticks(axes: Axes) -> None:
    """Take ticks and frame away: for pictures of ground, which have a scale bar instead."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
