"""Pictures of a community: which species come and go together."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from butterfly_sdm.errors import DataError
from butterfly_sdm.figures.picture import Picture

MOST_NAMED = 80  # with more, names would be smaller than can be read
LEAST = 0.05  # correlations nearer to 0 are not drawn
TOGETHER, APART = "#5e3c99", "#e66101"


def show_correlations(correlations: pd.DataFrame) -> Picture:
    """
    Show residual correlations of species, those alike beside each other.

    Parameters
    ----------
    correlations
        (species, species), as :meth:`butterfly_sdm.community.community.Community.correlations`.

    Returns
    -------
    Picture
        Shows itself at the end of a cell; ``save`` writes it.

    Raises
    ------
    DataError
        The table is not square.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if correlations.shape[0] != correlations.shape[1] or len(correlations) < 2:
        raise DataError(
            f"Correlations are a square table of at least 2 species; this has the shape "
            f"{correlations.shape}."
        )
    values = correlations.to_numpy(float)
    distance = np.clip(1 - (values + values.T) / 2, 0, 2)
    np.fill_diagonal(distance, 0)
    order = leaves_list(linkage(squareform(distance, checks=False), "average"))
    shown, count = values[np.ix_(order, order)], len(order)
    names = [str(correlations.index[i]) for i in order]
    down, across = np.tril_indices(count, -1)
    r = shown[down, across]
    told = np.abs(r) >= LEAST
    down, across, r = down[told], across[told], r[told]
    cell = float(np.clip(460 / count, 6.5, 30))  # points
    side = cell * count / 72
    longest = max(map(len, names)) if count <= MOST_NAMED else 0
    picture = Picture(side + 1.5 + 0.08 * longest, side + 0.9)  # names at 9 points, and the key
    axes = picture.subplots()
    picture.dots(
        axes,
        across,
        down,
        titles=[
            f"{names[i]} and {names[j]}: {one:+.2f}"
            for i, j, one in zip(down, across, r, strict=True)
        ],
        s=np.abs(r) * (0.95 * cell) ** 2,
        c=[TOGETHER if one > 0 else APART for one in r],
    )
    axes.set(xlim=(-0.7, count - 0.3), ylim=(count - 0.3, -0.7), aspect="equal")
    named = count <= MOST_NAMED
    axes.set_yticks(np.arange(count) if named else [], names if named else [])
    axes.set_xticks([])
    axes.tick_params(axis="y", labelsize=float(np.clip(0.85 * cell, 5, 9)), length=0)
    for label in axes.get_yticklabels():
        label.set_fontstyle("italic")
    for edge in axes.spines.values():
        edge.set_visible(False)
    axes.set_title("Seen together or apart more than expected", fontsize=9, loc="left")
    axes.set_xlabel("the same species, in the order of the rows", fontsize=8, loc="left")
    _key(picture, axes, count, cell)
    return picture


def _key(picture: Picture, axes: Axes, count: int, cell: float) -> None:
    """Draw what dots of some sizes and colours mean, in the empty corner above the diagonal."""
    step = max(1.0, 13 / cell)
    meant = [(0.8, "together, 0.8"), (0.4, "0.4"), (-0.4, "-0.4"), (-0.8, "apart, -0.8")]
    x = 0.62 * count
    lines = [step * (0.6 + number) for number in range(len(meant))]
    picture.dots(
        axes,
        np.full(len(meant), x),
        np.array(lines),
        s=np.abs([r for r, _ in meant]) * (0.95 * cell) ** 2,
        c=[TOGETHER if r > 0 else APART for r, _ in meant],
    )
    for line, (_, words) in zip(lines, meant, strict=True):
        axes.text(x + step, line, words, fontsize=8, va="center")
