"""Check a finished data set: every byte, and that its tables, tiles and split fit together."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from butterfly_sdm.core.cards import damage
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import ButterflySDMError


def check_dataset(folder: str | Path) -> list[str]:
    """
    Verify a data set: every byte against the card, and that the tables, tiles and split fit
    together.

    Returns
    -------
    list of str
        One sentence per problem; empty if all is well.
    """
    folder = Path(folder)
    problems = damage(folder / "dataset.json")
    if problems:
        return problems
    try:
        dataset = Dataset.open(folder)
    except ButterflySDMError as error:
        return [str(error)]
    listed = {"dataset.json", *dataset.card.files}
    problems += [
        f"{path} is not part of the data set."
        for path in sorted(folder.iterdir())
        if path.name not in listed
    ]
    if dataset.split is not None:
        known = set(dataset.site_ids)
        problems += [
            f"The split names site {site}, which is not there."
            for site in dataset.split.part_of()
            if site not in known
        ]
    card = dataset.card.tiles
    if card is not None and dataset.tiles is None:
        problems.append(f"{folder / 'tiles.npy'} is missing, but the card describes tiles.")
    if card is not None and dataset.tiles is not None:
        rows = dataset.sites["tile_row"].to_numpy()
        held = np.sort(rows[rows >= 0])
        if dataset.tiles.shape[1:] != (len(card.bands), card.size_px, card.size_px):
            problems.append(
                f"The tiles have the shape {dataset.tiles.shape[1:]}; the card says "
                f"{len(card.bands)} bands, {card.size_px} px."
            )
        elif not np.array_equal(held, np.arange(len(dataset.tiles))):
            problems.append(
                f"{len(dataset.tiles)} tiles are stored, but the sites point to {len(held)} of "
                "them, or to one twice."
            )
        else:
            for site, row, share in zip(
                dataset.site_ids, rows, dataset.sites["valid_fraction"], strict=True
            ):
                if row >= 0 and abs(float(card.measured(dataset.tiles[row]).mean()) - share) > 1e-9:
                    problems.append(
                        f"The share of valid pixels of site {site} is not the one that is stated, "
                        f"{share:.4f}."
                    )
    return problems
