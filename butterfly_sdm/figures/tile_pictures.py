"""Pictures of the tiles a network sees, in true or false colour."""

from collections.abc import Sequence

import numpy as np

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import DataError
from butterfly_sdm.figures.picture import Picture, scale_bar, without_ticks

TRUE_COLOUR = ("red", "green", "blue")
FALSE_COLOUR = ("nir", "red", "green")


def show_tiles(
    dataset: Dataset,
    sites: Sequence[str] | None = None,
    *,
    false_colour: bool = False,
    columns: int = 4,
    species: int = 2,
) -> Picture:
    """
    Show the tiles of some sites, with their visits and the species seen there most.

    Parameters
    ----------
    dataset
        A data set with tiles.
    sites
        Site ids; by default the first eight that have a tile.
    false_colour
        Show near infrared as red, which makes vegetation stand out, instead of true colour.
    columns
        Tiles in a row.
    species
        How many of the most recorded species to name under each tile.

    Returns
    -------
    Picture
        Shows itself at the end of a cell; ``save`` writes it.

    Raises
    ------
    DataError
        The tiles lack a band that is needed, or a site has no tile.

    Notes
    -----
    All tiles share one stretch (2nd to 98th percentile of all of them), so that bright
    ground looks bright. Pixels without a measurement are white.
    """
    wanted = FALSE_COLOUR if false_colour else TRUE_COLOUR
    card = dataset.card.tiles
    if card is None or dataset.tiles is None:
        raise DataError(f"The data set {dataset.card.name!r} has no tiles to show.")
    missing = [band for band in wanted if band not in card.bands]
    if missing:
        raise DataError(
            f"The tiles have {', '.join(card.bands)}; {missing[0]} is needed for these colours."
        )
    sites = list(sites) if sites is not None else list(dataset.sites_with_tiles[:8])
    order = [card.bands.index(band) for band in wanted]
    # (n, 3, px, px)
    values = np.stack([np.asarray(dataset.tiles[row])[order] for row in dataset.tile_rows(sites)])
    valid = card.measured(values)
    colours = values.astype(np.float32)
    low, high = np.percentile(colours.transpose(0, 2, 3, 1)[valid], [2, 98], axis=0)
    if not false_colour:  # one stretch for the three bands keeps grass green and soil brown
        low, high = np.full(3, low.min() / 2), np.full(3, high.max())
    colours = np.clip((colours - low[:, None, None]) / (high - low)[:, None, None], 0, 1) ** 0.7
    colours = np.where(valid[:, None], colours, 1.0).transpose(0, 2, 3, 1)

    rows = -(-len(sites) // columns)
    picture = Picture(2.3 * columns, (2.65 + 0.15 * species) * rows + 0.2)
    for number, site in enumerate(sites):
        axes = picture.add_subplot(rows, columns, number + 1)
        axes.imshow(colours[number])
        axes.set_title(f"{site} · {int(dataset.visits[site])} visits", fontsize=8)
        rates = (
            dataset.rates.loc[site]
            .dropna()
            .sort_values(ascending=False, kind="stable")
            .head(species)
        )
        axes.set_xlabel(
            "\n".join(f"{name} {rate:.0%}" for name, rate in rates.items()),
            fontsize=7,
            style="italic",
        )
        without_ticks(axes)
        if number == 0:
            scale_bar(axes, card.resolution_m)
    picture.suptitle("near infrared, red, green" if false_colour else "true colour", fontsize=9)
    return picture
