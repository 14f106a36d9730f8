"""Pictures of embeddings: which sites a network holds to be alike."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from butterfly_sdm.errors import DataError
from butterfly_sdm.figures.picture import EDGE, SEQUENTIAL, Picture, without_ticks


def principal_plane(embedding: np.ndarray) -> tuple[np.ndarray, float]:
    """
    Project (n, d) points onto the plane in which they vary most; return (n, 2) and the share of
    variance it keeps.

    Raises
    ------
    DataError
        Fewer than three points, or a shape that is not (n, d).
    """
    embedding = np.asarray(embedding, dtype=np.float64)
    if embedding.ndim != 2 or len(embedding) < 3:
        raise DataError(
            "An embedding map needs (n, d) points with n of at least 3; these have shape "
            f"{embedding.shape}."
        )
    centred = embedding - embedding.mean(axis=0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    total = float((singular**2).sum())
    plane = centred @ axes[:2].T
    if plane.shape[1] < 2:
        plane = np.column_stack([plane, np.zeros(len(plane))])
    return plane, float((singular[:2] ** 2).sum()) / total if total else 0.0


def show_embedding(
    embeddings: Mapping[str, np.ndarray] | np.ndarray, values: np.ndarray, label: str
) -> Picture:
    """
    Show embeddings in their principal plane, coloured by a number per site.

    Parameters
    ----------
    embeddings
        (n, d) embedding of the sites, or several by title, to compare: each gets its own panel and
        plane.
    values
        (n,) number per site, such as the detection rate of a species.
    label
        What the number is.

    Returns
    -------
    Picture
        Shows itself at the end of a cell; ``save`` writes it.

    Raises
    ------
    DataError
        The numbers do not belong to the points.
    """
    panels = embeddings if isinstance(embeddings, Mapping) else {"": embeddings}
    picture = Picture(4.2 * len(panels) + 0.8, 4.0)
    values = np.asarray(values, dtype=float)
    low, high = np.nanquantile(values, [0.02, 0.98])
    dots, drawn = None, list[Axes]()
    for number, (title, embedding) in enumerate(panels.items()):
        if len(embedding) != len(values):
            raise DataError(
                f"There are {len(embedding)} points and {len(values)} numbers to colour them by; "
                "give one for each."
            )
        plane, kept = principal_plane(embedding)
        axes = picture.add_subplot(1, len(panels), number + 1)
        dots = axes.scatter(
            plane[:, 0],
            plane[:, 1],
            c=values,
            s=14,
            cmap=SEQUENTIAL,
            vmin=low,
            vmax=high,
            **EDGE,
        )
        axes.set_title(f"{title}\n{kept:.0%} of the variance".strip(), fontsize=9)
        axes.set_aspect("equal", adjustable="datalim")
        without_ticks(axes)
        drawn.append(axes)
    if dots is not None:
        picture.colorbar(dots, ax=drawn, label=label, shrink=0.8)
    return picture
