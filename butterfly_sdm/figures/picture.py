"""A figure that shows itself in Jupyter, saves or embeds itself, and touches no global state."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure

from butterfly_sdm.core.files import atomic_path
from butterfly_sdm.figures.palette import RAMP

SEQUENTIAL = LinearSegmentedColormap.from_list("butterfly_sdm", RAMP)
INK = "#1f2a30"
PALETTE = {"train": "#0072b2", "validation": "#e69f00", "test": "#cc79a7"}  # Okabe and Ito (2008)
OTHER = "#9aa5a8"
EDGE: dict[str, Any] = {"edgecolors": OTHER, "linewidths": 0.4}  # shows pale dots on paper
_POINTS = 72  # an inch of SVG


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
        self._told: dict[PathCollection, Sequence[str]] = {}

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

    def dots(
        self, axes: Axes, x: Any, y: Any, *, titles: Sequence[str] = (), **look: Any
    ) -> PathCollection:
        """
        Scatter dots that each tell their title under the pointer once they are in a page.

        Parameters
        ----------
        axes
            Where.
        x, y
            (n,) places.
        titles
            One per dot; empty: none.
        look
            As :meth:`matplotlib.axes.Axes.scatter` takes it.

        Returns
        -------
        PathCollection
            The dots.
        """
        drawn = axes.scatter(x, y, **({"linewidths": 0} | look))
        self._told[drawn] = titles
        return drawn

    def embed(self, label: str) -> str:
        """
        Return the picture as SVG to stand in a page.

        It takes the letters of the page and holds no id, link or date: the same picture gives the
        same text. It must consist of lines, plain shapes, text and :meth:`dots`.

        Parameters
        ----------
        label
            What it shows, for those who cannot see it.

        Returns
        -------
        str
            One ``svg`` element.
        """
        told = {f"dots{number}": dots for number, dots in enumerate(self._told)}
        for name, dots in told.items():
            dots.set_gid(name)
        buffer = io.StringIO()
        with rc_context({"svg.fonttype": "none"}):
            self.savefig(buffer, format="svg", transparent=True)
        drawn = ElementTree.fromstring(buffer.getvalue())
        page = ElementTree.Element("svg", role="img", viewBox=drawn.attrib["viewBox"])
        page.set("aria-label", label)
        for group in [part for part in drawn.iter() if part.get("id") in told]:
            group[:] = [self._circles(told[group.attrib["id"]])]
        for part in drawn.iter():
            if (kind := part.tag.split("}")[-1]) == "circles":
                page.append(part[0])
            elif kind in ("path", "text") and part.get("style") != "fill: none":
                page.append(_plain(kind, part))
        return ElementTree.tostring(page, encoding="unicode")

    def _circles(self, dots: PathCollection) -> ElementTree.Element:
        """Return the dots of a drawn picture as circles, which are a tenth of matplotlib's text."""
        assert dots.axes is not None
        inches = dots.axes.transData.transform(np.asarray(dots.get_offsets())) / self.dpi
        x, y = inches[:, 0] * _POINTS, (self.get_figheight() - inches[:, 1]) * _POINTS
        radius = np.resize(np.sqrt(dots.get_sizes()) / 2, len(x))
        faces = [to_hex(face) for face in np.atleast_2d(dots.get_facecolor())]
        look = {} if dots.get_alpha() is None else {"fill-opacity": f"{dots.get_alpha():g}"}
        if width := float(np.max(dots.get_linewidth())):
            look |= {
                "stroke": to_hex(np.atleast_2d(dots.get_edgecolor())[0]),
                "stroke-width": f"{width:g}",
            }
        if len(faces) == 1:
            look["fill"] = faces[0]
        around = ElementTree.Element("circles")
        group = ElementTree.SubElement(around, "g", look)
        for number in range(len(x)):
            place = {"cx": x[number], "cy": y[number], "r": radius[number]}
            circle = ElementTree.SubElement(
                group, "circle", {key: f"{value:.1f}" for key, value in place.items()}
            )
            if len(faces) > 1:
                circle.set("fill", faces[number])
            if len(self._told[dots]):
                ElementTree.SubElement(circle, "title").text = self._told[dots][number]
        return around


def _plain(kind: str, part: ElementTree.Element) -> ElementTree.Element:
    """Return a shape or text without ids, clipping, fonts and digits that nobody sees."""
    kept = {
        key: re.sub(r"-?\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}", value)
        for key, value in part.attrib.items()
        if key in ("d", "x", "y", "style") or (key == "transform" and "rotate(-0" not in value)
    }
    if "d" in kept:
        kept["d"] = re.sub(r"\s*([A-Za-z])\s*", r"\1", kept["d"]).strip()
    kept["style"] = re.sub(r"font-family:[^;]*;?|\s+(?=[^\s:;]+:)|(?<=:)\s+", "", kept["style"])
    result = ElementTree.Element(kind, kept)
    result.text = part.text if kind == "text" else None
    return result


def scale_bar(axes: Axes, metres_per_unit: float, *, fontsize: float = 7) -> None:
    """
    Draw a bar of a round length, about a quarter of the width, into the lower left corner of a
    picture of ground.
    """
    left, right = sorted(axes.get_xlim())
    span_m = (right - left) * metres_per_unit
    rounds = [step * 10**power for power in range(1, 7) for step in (1, 2, 5)]
    length_m = max((length for length in rounds if length <= span_m / 3), default=span_m / 3)
    share = length_m / span_m
    text = f"{length_m / 1000:g} km" if length_m >= 1000 else f"{length_m:g} m"
    for colour, width in (("white", 4.5), (INK, 2.5)):
        axes.plot(
            [0.04, 0.04 + share],
            [0.05, 0.05],
            color=colour,
            linewidth=width,
            transform=axes.transAxes,
            solid_capstyle="butt",
        )
    axes.text(
        0.04 + share / 2,
        0.075,
        text,
        transform=axes.transAxes,
        ha="center",
        va="bottom",
        fontsize=fontsize,
        color=INK,
        bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.0},
    )


def without_ticks(axes: Axes) -> None:
    """Take ticks and frame away: for pictures of ground, which have a scale bar instead."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
