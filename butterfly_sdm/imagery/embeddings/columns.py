"""Embeddings as numbers of places: one column per band, square and statistic."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
import pandas as pd

from butterfly_sdm.imagery.embeddings.collection import Embeddings, open_embeddings
from butterfly_sdm.imagery.embeddings.options import EmbeddingOptions
from butterfly_sdm.imagery.embeddings.squares import square_statistics


def open_stated(options: EmbeddingOptions) -> Embeddings:
    """
    Describe the files that options name.

    Raises
    ------
    MissingFileError, RasterError
        As :func:`~butterfly_sdm.imagery.embeddings.collection.open_embeddings`.
    """
    return open_embeddings(options.paths, options)


class Described:
    """Files of embeddings as they were described, once each: looking at all of them takes long."""

    def __init__(self) -> None:
        self._held: dict[EmbeddingOptions, Embeddings] = {}

    def __call__(self, options: EmbeddingOptions) -> Embeddings:
        """Return the files that options name; raises as :func:`open_stated`."""
        if options not in self._held:
            self._held[options] = open_stated(options)
        return self._held[options]


def column_names(options: EmbeddingOptions, bands: Sequence[str], side_m: float) -> list[str]:
    """
    Return the names of the columns of one square: the means of all bands, then their spreads.

    >>> from pathlib import Path
    >>> column_names(EmbeddingOptions(path=Path("a"), name="aef"), ("e00", "e01"), 100)
    ['aef_e00_100m', 'aef_e01_100m', 'aef_e00_sd_100m', 'aef_e01_sd_100m']
    """
    kinds = ("", "_sd") if options.spread else ("",)
    return [f"{options.group}_{band}{kind}_{side_m:g}m" for kind in kinds for band in bands]


def side_of(options: EmbeddingOptions, column: str) -> float | None:
    """
    Return the side of the square that a column of these embeddings speaks of; None: it is none.
    """
    found = re.fullmatch(rf"{re.escape(options.group)}_e\d+(_sd)?_(\S+)m", column)
    if found is None or (found[1] and not options.spread):
        return None
    return next((side for side in options.side_m if f"{side:g}" == found[2]), None)


def embedding_table(
    options: EmbeddingOptions,
    easting: np.ndarray,
    northing: np.ndarray,
    crs: str,
    *,
    columns: Sequence[str] | None = None,
    embeddings: Embeddings | None = None,
    executor: Executor | None = None,
) -> pd.DataFrame:
    """
    Return mean and spread of every band of embeddings in squares around places.

    Parameters
    ----------
    easting, northing
        (n,) middles of the squares in metres of ``crs``.
    columns
        Only these, in this order; squares of which none is asked for are not summed.
    embeddings
        The files that the options name; None: they are described now.
    executor
        Reads blocks beside one another.

    Returns
    -------
    DataFrame of float, shape (n, columns)
        NaN where no pixel of the square has a value.

    Raises
    ------
    MissingFileError, RasterError
        A file is absent, damaged or of another kind than stated.
    """
    embeddings = open_stated(options) if embeddings is None else embeddings
    asked = None if columns is None else {side_of(options, name) for name in columns}
    sides = [side for side in options.side_m if asked is None or side in asked]
    mean, spread = square_statistics(
        embeddings, easting, northing, crs, sides_m=sides, executor=executor
    )
    parts = [mean, spread] if options.spread else [mean]
    values = np.stack(parts, axis=2).reshape(len(mean), -1)  # place, side, statistic, band
    names = [name for side in sides for name in column_names(options, embeddings.bands, side)]
    table = pd.DataFrame(values.astype(np.float64), columns=names)
    return table if columns is None else table.reindex(columns=list(columns))
