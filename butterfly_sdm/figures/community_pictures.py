"""Pictures of a community: which species come and go together."""

import numpy as np
import pandas as pd

from butterfly_sdm.errors import DataError
from butterfly_sdm.figures.picture import Picture

MOST_NAMED = 80  # with more, names would be smaller than can be read


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
    shown = values[np.ix_(order, order)].copy()
    np.fill_diagonal(shown, np.nan)
    count = len(order)
    named = count <= MOST_NAMED
    side = np.clip(2.4 + 0.13 * count, 4.2, 11)
    picture = Picture(side + 1.2, side)
    axes = picture.subplots()
    image = axes.imshow(shown, cmap="PuOr", vmin=-1, vmax=1, interpolation="nearest")
    axes.set_facecolor("#eeeeee")
    names = [str(correlations.index[i]) for i in order]
    size = float(np.clip(420 / count, 4.5, 9))
    axes.set_yticks(np.arange(count) if named else [], names if named else [])
    axes.set_xticks([])
    axes.tick_params(axis="y", labelsize=size, length=0)
    for label in axes.get_yticklabels():
        label.set_fontstyle("italic")
    for edge in axes.spines.values():
        edge.set_visible(False)
    bar = picture.colorbar(image, ax=axes, shrink=0.6, pad=0.02)
    bar.set_label("residual correlation")
    axes.set_title(
        "Seen together (1) or apart (-1) more than the model expects", fontsize=10, loc="left"
    )
    axes.set_xlabel("the same species, in the same order", fontsize=8)
    return picture
