"""Small charts as SVG text: they need no file beside the page and stay sharp on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH = 380  # of a phone, so that 12 px letters stay 12 px there
DIVERGING = (
    "#8c510a",
    "#bf812d",
    "#dfc27d",
    "#c9c9c9",
    "#80cdc1",
    "#35978f",
    "#01665e",
)  # ColorBrewer BrBG, without white


@dataclass(frozen=True)
class Axis:
    """A scale from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        span = self.high - self.low or 1.0
        return round(self.start + (value - self.low) / span * (self.end - self.start), 1)


def text(x: float, y: float, content: str, *, anchor: str = "start", kind: str = "") -> str:
    """Return a piece of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(content)}</text>'


def figure(body: Sequence[str], height: float, label: str) -> str:
    """Return the whole picture; ``label`` says what it shows to those who cannot see it."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}" '
        'xmlns="http://www.w3.org/2000/svg">'
        f"{''.join(body)}</svg>"
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers between ``low`` and ``high``."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    magnitude = 10 ** np.floor(np.log10(raw))
    step = next(
        factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999
    )
    return [
        float(round(value / step) * step)
        for value in np.arange(np.ceil(low / step - 1e-9) * step, high + step * 1e-6, step)
    ]


def number(value: float) -> str:
    """Return a number for an axis, without noise of binary fractions."""
    return f"{value + 0.0:.6g}"  # + 0: no minus before zero


def intervals(
    rows: Sequence[tuple[str, Sequence[tuple[float, float, float, str]]]],
    *,
    floor: float | None,
    label: str,
) -> str:
    """
    Draw rows of dots with intervals.

    Parameters
    ----------
    rows
        Name of a row and its dots: value, low, high, CSS class.
    floor
        A value no row can be below, drawn as a dotted line.
    """
    values = [number for _, dots in rows for value in dots for number in value[:3]] + (
        [floor] if floor is not None else []
    )
    pad = 0.05 * (max(values) - min(values) or 1)
    height = 34 * len(rows) + 40
    axis = Axis(min(values) - pad, max(values) + pad, 8, WIDTH - 8)
    body = []
    for tick in ticks(axis.low, axis.high, 4):
        body.append(
            f'<line x1="{axis(tick)}" x2="{axis(tick)}" y1="6" y2="{height - 26}" class="grid"/>'
        )
        body.append(text(axis(tick), height - 12, number(tick), anchor="middle", kind="tick"))
    if floor is not None:
        body.append(
            f'<line x1="{axis(floor)}" x2="{axis(floor)}" y1="6" y2="{height - 26}" class="floor"/>'
        )
    for i, (name, dots) in enumerate(rows):
        top = 34 * i + 18
        body.append(text(8, top, name, kind="name"))
        for j, (value, low, high, kind) in enumerate(dots):
            y = top + 7 + 6 * j
            body.append(
                f'<line x1="{axis(low)}" x2="{axis(high)}" y1="{y}" y2="{y}" class="bar {kind}"/>'
            )
            body.append(
                f'<circle cx="{axis(value)}" cy="{y}" r="3.6" class="dot '
                f'{kind}"><title>{value:.5f}</title></circle>'
            )
    return figure(body, height, label)


def scatter(
    points: Sequence[tuple[float, float, float, str]],
    *,
    xlabel: str,
    ylabel: str,
    label: str,
    line: bool = False,
) -> str:
    """
    Draw points (x, y, radius, title) in a square from 0 to the largest value, with the diagonal
    where both agree.
    """
    top = max([max(x, y) for x, y, _, _ in points] or [1.0]) * 1.05 or 1.0
    size = WIDTH - 60
    across, up = Axis(0, top, 46, 46 + size), Axis(0, top, 8 + size, 8)
    body = []
    for tick in ticks(0, top, 4):
        body.append(
            f'<line x1="{across(tick)}" x2="{across(tick)}" y1="8" y2="{8 + size}" class="grid"/>'
        )
        body.append(
            f'<line x1="46" x2="{46 + size}" y1="{up(tick)}" y2="{up(tick)}" class="grid"/>'
        )
        body.append(text(across(tick), 8 + size + 16, number(tick), anchor="middle", kind="tick"))
        body.append(text(41, up(tick) + 4, number(tick), anchor="end", kind="tick"))
    body.append(
        f'<line x1="{across(0)}" y1="{up(0)}" x2="{across(top)}" y2="{up(top)}" class="diagonal"/>'
    )
    if line:
        path = " ".join(f"{across(x)},{up(y)}" for x, y, _, _ in points)
        body.append(f'<polyline points="{path}" class="curve"/>')
    for x, y, radius, title in points:
        shape = f'<circle cx="{across(x)}" cy="{up(y)}" r="{radius:.1f}" class="point">'
        body.append(f"{shape}<title>{escape(title)}</title></circle>")
    middle = 8 + size / 2
    body.append(text(46 + size / 2, 8 + size + 34, xlabel, anchor="middle", kind="axis"))
    body.append(
        '<g transform="rotate(-90 12 '
        f'{middle:.0f})">{text(12, middle, ylabel, anchor="middle", kind="axis")}</g>'
    )
    return figure(body, size + 50, label)


def bars(rows: Sequence[tuple[str, float, float]], *, label: str) -> str:
    """Draw rows of (name, value, deviation) as bars from 0, names above them."""
    low, high = (
        min([0.0, *(value for _, value, _ in rows)]),
        max([1e-12, *(value for _, value, _ in rows)]),
    )
    axis = Axis(low, high, 8 if low == 0 else 60, WIDTH - 112)
    body = []
    for i, (name, value, deviation) in enumerate(rows):
        top = 32 * i + 14
        start, end = sorted((axis(0), axis(value)))
        body.append(text(8, top, name, kind="name"))
        body.append(
            f'<rect x="{start}" y="{top + 4}" width="{max(end - start, 1):.1f}" height="9" '
            'class="bar-fill"/>'
        )
        shown = f"{value + 0.0:+.1%}" + (
            f" ± {deviation:.1%}" if np.isfinite(deviation) and deviation >= 0.0005 else ""
        )
        shown = shown.replace("-0.0%", "0.0%").replace("+0.0%", "0.0%")
        body.append(text(end + 4, top + 12, shown, kind="tick"))
    return figure(body, 32 * len(rows) + 6, label)


def site_map(
    east: np.ndarray,
    north: np.ndarray,
    colours: Sequence[str],
    titles: Sequence[str],
    *,
    behind: np.ndarray,
    label: str,
) -> str:
    """
    Draw sites as dots at their place over the places (n, 2) that lie ``behind`` in grey, with a
    scale bar.
    """
    everything = np.vstack([np.column_stack([east, north]), behind.reshape(-1, 2)])
    (west, south), (right, upper) = everything.min(axis=0), everything.max(axis=0)
    span = max(right - west, (upper - south) / 1.6, 1.0)
    size = WIDTH - 24
    height = min(1.6, max((upper - south) / span, 0.3)) * size
    middle = (west + right) / 2
    across = Axis(middle - span / 2, middle + span / 2, 12, 12 + size)
    up = Axis(south, south + height / size * span, 12 + height, 12)
    body = [f'<circle cx="{across(x)}" cy="{up(y)}" r="1.3" class="behind"/>' for x, y in behind]
    for x, y, colour, title in zip(east, north, colours, titles, strict=True):
        shape = f'<circle cx="{across(x)}" cy="{up(y)}" r="3.4" fill="{colour}" class="site">'
        body.append(f"{shape}<title>{escape(title)}</title></circle>")
    bar = max(
        tick
        for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
        if tick * 1000 <= max(span / 3, 1000)
    )
    length = bar * 1000 / span * size
    body.append(
        f'<line x1="12" x2="{12 + length:.1f}" y1="{height + 26:.1f}" y2="{height + 26:.1f}" '
        'class="scale"/>'
    )
    body.append(text(12, height + 41, f"{bar} km", kind="tick"))
    return figure(body, height + 46, label)


def diverging_colour(value: float, reach: float = 2.0) -> str:
    """Return the colour of a number between -reach and reach; grey is 0."""
    place = (min(max(value / reach, -1), 1) + 1) / 2 * (len(DIVERGING) - 1)
    return DIVERGING[round(place)]
