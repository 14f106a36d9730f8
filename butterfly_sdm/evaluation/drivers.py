"""
What drives a prediction: permutation importance, partial dependence, tile occlusion, and the sites
most alike.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import Predictor, Sees
from butterfly_sdm.errors import DataError
from butterfly_sdm.evaluation.scores import cell_scores, checked_predictions
from butterfly_sdm.progress import Progress, silent

POSITION = ("easting", "northing", "lon", "lat")
EMBEDDING = "embedding"
# Unnamed bands of embeddings as tiles (e00) and as covariates (alphaearth_e00_sd_100m)
_BAND = re.compile(r"e\d{2,}")
_BAND_COVARIATE = re.compile(r"(.+)_e\d{2,}(_sd)?_\d+m")


def input_groups(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    """
    Return the groups of inputs of a data set that are shuffled together.

    ``position``; every band as ``band NAME``, the unnamed ones of an embedding as ``embedding``;
    covariates whose names differ only by a number or code at the end (``bioclim_01``,
    ``bioclim_02``) and those of all bands of an embedding as one, since shuffling one of several
    that say the same changes nothing.
    """
    groups: dict[str, tuple[str, ...]] = {"position": ()}
    if dataset.covariates is not None:
        for name in map(str, dataset.covariates.columns):
            of_band = _BAND_COVARIATE.fullmatch(name)
            stem = of_band[1] if of_band else name.rstrip("0123456789").rstrip("_") or name
            groups[stem] = (*groups.get(stem, ()), name)
    if dataset.card.tiles is not None:
        bands = dataset.card.tiles.bands
        groups |= {EMBEDDING if _BAND.fullmatch(band) else f"band {band}": () for band in bands}
    return groups


def _bands_of(group: str, bands: Sequence[str]) -> tuple[str, ...]:
    """Return the bands of a group of :func:`input_groups` that names no covariates."""
    if group == EMBEDDING:
        return tuple(band for band in bands if _BAND.fullmatch(band))
    return tuple(band for band in bands if group == f"band {band}")


def used_groups(groups: Mapping[str, Sequence[str]], sees: Sees) -> dict[str, tuple[str, ...]]:
    """Return those of the groups of :func:`input_groups` of which a predictor takes something."""
    return {
        group: tuple(names)
        for group, names in groups.items()
        if (
            bool(set(names) & set(sees.covariates))
            if names
            else sees.position_crs is not None
            if group == "position"
            else bool(_bands_of(group, sees.bands))
        )
    }


def permutation_importance(
    predictor: Predictor,
    dataset: Dataset,
    sites: Sequence[str],
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    repeats: int = 5,
    score: str = "mse",
    seed: int = 0,
    progress: Progress = silent,
) -> pd.DataFrame:
    """
    Return how much worse predictions get when inputs are shuffled between sites [1]_.

    Parameters
    ----------
    predictor
        Fitted; better judged on ``sites`` it has not seen.
    groups
        Name of a group and its covariates; ``position``, ``embedding`` and ``band NAME`` stand for
        themselves.
        None: :func:`input_groups`.
    repeats
        Shufflings per group.

    Returns
    -------
    DataFrame
        Index ``input``, largest first: ``importance`` (score shuffled - score), ``sd`` over
        shufflings, ``share`` of the score.

    Raises
    ------
    DataError
        A group names an input the data set does not have.

    References
    ----------
    .. [1] A. Fisher, C. Rudin, F. Dominici (2019), All models are wrong, but many are useful. JMLR
           20, 1-81.
    """
    part = subset(dataset, sites)
    chosen = input_groups(dataset) if groups is None else groups
    k, n = part.detections.to_numpy(dtype=float), part.visits.to_numpy(dtype=float)

    def total(changed: Dataset) -> float:
        return float(
            cell_scores(k, n, checked_predictions(part, sites, predictor.predict(changed, sites)))[
                score
            ].mean()
        )

    base = total(part)
    random = np.random.default_rng(seed)
    rows = {}
    for done, (group, names) in enumerate(chosen.items(), start=1):
        losses = [
            total(shuffled(part, group, names, random.permutation(len(part.sites)))) - base
            for _ in range(repeats)
        ]
        rows[group] = {
            "importance": np.mean(losses),
            "sd": np.std(losses, ddof=1) if repeats > 1 else np.nan,
        }
        progress("importance", done, len(chosen))
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("input")
    return table.assign(share=table["importance"] / base).sort_values("importance", ascending=False)


def shuffled(dataset: Dataset, group: str, names: Sequence[str], order: np.ndarray) -> Dataset:
    """
    Return the data set with the inputs of one group taken from other sites.

    Raises
    ------
    DataError
        The data set does not have the input.
    """
    if group == "position" and not names:
        sites = dataset.sites.copy()
        for name in POSITION:
            if name in sites:
                sites[name] = sites[name].to_numpy()[order]
        return replace(dataset, sites=sites)
    if not names:
        bands = () if dataset.card.tiles is None else dataset.card.tiles.bands
        chosen = [bands.index(band) for band in _bands_of(group, bands)]
        if dataset.tiles is None or not chosen:
            raise DataError(
                f"The data set has no {group}; its groups are {', '.join(input_groups(dataset))}."
            )
        tiles = np.array(dataset.tiles)
        # sites without a tile have none to give
        from_sites = order[order < len(tiles)]
        for band in chosen:
            tiles[:, band] = tiles[from_sites, band]
        return replace(dataset, tiles=tiles)
    if dataset.covariates is None or not set(names) <= set(dataset.covariates.columns):
        raise DataError(
            f"The data set has not all covariates of the group {group!r}: {', '.join(names)}."
        )
    covariates = dataset.covariates.copy()
    covariates[list(names)] = covariates[list(names)].to_numpy()[order]
    return replace(dataset, covariates=covariates)


def partial_dependence(
    predictor: Predictor,
    dataset: Dataset,
    sites: Sequence[str],
    covariate: str,
    *,
    points: int = 15,
) -> pd.DataFrame:
    """
    Return the mean prediction when one covariate is set to the same value at all sites [1]_.

    Returns
    -------
    DataFrame of shape (points, species)
        Index: values of the covariate, from its 2nd to its 98th percentile over ``sites``.

    Raises
    ------
    DataError
        There is no such covariate, or it has no numbers.

    References
    ----------
    .. [1] J. H. Friedman (2001), Greedy function approximation: a gradient boosting machine. Annals
           of Statistics 29.
    """
    part = subset(dataset, sites)
    if part.covariates is None or covariate not in part.covariates.columns:
        known = (
            "none" if part.covariates is None else ", ".join(map(str, part.covariates.columns[:8]))
        )
        raise DataError(f"There is no covariate {covariate!r}; the data set has {known}.")
    seen = part.covariates[covariate].dropna()
    if seen.empty:
        raise DataError(f"The covariate {covariate!r} has no numbers at these sites.")
    low, high = (float(np.percentile(seen, share)) for share in (2, 98))
    values = np.unique(np.linspace(low, high, points))
    means = [
        predictor.predict(
            replace(part, covariates=part.covariates.assign(**{covariate: value})), sites
        ).mean()
        for value in values
    ]
    return pd.DataFrame(means, index=pd.Index(values, name=covariate))


def occlusion(
    predictor: Predictor,
    dataset: Dataset,
    site: str,
    *,
    side_px: int = 32,
    step_px: int | None = None,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """
    Return how predictions change when a square of a site's tile is painted over with the mean of
    the tile [1]_.

    Parameters
    ----------
    side_px, step_px
        Side of the square and distance between squares; ``step_px`` None: the side.

    Returns
    -------
    change
        (rows, columns, species) prediction without the square - prediction: negative where the
        square spoke for the species.
    species
        Names along the last axis.

    Raises
    ------
    DataError
        The site has no tile, or the square is larger than it.

    References
    ----------
    .. [1] M. D. Zeiler, R. Fergus (2014), Visualizing and understanding convolutional networks.
           ECCV.
    """
    row = int(dataset.tile_rows([site])[0])
    assert dataset.tiles is not None and dataset.card.tiles is not None
    tile = np.array(dataset.tiles[row])
    height, width = tile.shape[1:]
    step = step_px or side_px
    if not 1 <= side_px <= min(height, width) or step < 1:
        raise DataError(
            f"side_px = {side_px} and step_px = {step} must be at least 1 and fit into a tile of "
            f"{height} x {width} px."
        )
    valid = dataset.card.tiles.measured(tile)
    mean = (
        (tile[:, valid] if valid.any() else tile.reshape(len(tile), -1))
        .mean(axis=1)
        .astype(tile.dtype)
    )
    tops, lefts = (range(0, size - side_px + 1, step) for size in (height, width))
    tiles = np.tile(tile, (1 + len(tops) * len(lefts), 1, 1, 1))
    for i, (top, left) in enumerate((top, left) for top in tops for left in lefts):
        tiles[1 + i, :, top : top + side_px, left : left + side_px] = mean[:, None, None]
    part = _copies(dataset, site, tiles)
    predicted = predictor.predict(part, part.site_ids).to_numpy()
    return (predicted[1:] - predicted[0]).reshape(len(tops), len(lefts), -1), predictor.species


def most_alike(
    described: pd.DataFrame, site: str, *, among: Sequence[str] | None = None, count: int = 5
) -> pd.Series:
    """
    Return the sites most like one site, with their distance, nearest first.

    Parameters
    ----------
    described
        (site, numbers): embeddings, or covariates (each is scaled to unit variance; a missing
        number counts as the mean).
    among
        Candidates, such as the training sites; None: all others.

    Raises
    ------
    DataError
        The site is not in the table.
    """
    if site not in described.index:
        raise DataError(f"Site {site} is not in the table of {len(described)} described sites.")
    values = described.to_numpy(dtype=float)
    known = ~np.isnan(values)
    mean = np.where(known, values, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    values = np.where(known, values, mean) - mean
    deviation = values.std(axis=0)
    scaled = pd.DataFrame(values / np.where(deviation > 0, deviation, 1), index=described.index)
    others = [name for name in (described.index if among is None else among) if name != site]
    distance = np.sqrt(((scaled.loc[others] - scaled.loc[site]) ** 2).mean(axis=1))
    return distance.sort_values(kind="stable").head(count).rename("distance")


def subset(dataset: Dataset, sites: Sequence[str]) -> Dataset:
    """Return a data set of ``sites`` only, in their order, with their tiles copied into memory."""
    if dataset.tiles is None:
        return _taken(dataset, sites, sites)
    row = dataset.sites["tile_row"].to_numpy()[dataset.rows(sites)]
    tiles = np.array(dataset.tiles[row[row >= 0]])
    places = np.where(row >= 0, np.cumsum(row >= 0) - 1, -1)
    return _taken(dataset, sites, sites, tiles, tile_row=places)


def _copies(dataset: Dataset, site: str, tiles: np.ndarray) -> Dataset:
    """Return a data set of one site under many names, one per tile."""
    names = [f"{site}#{i}" for i in range(len(tiles))]
    return _taken(dataset, [site] * len(tiles), names, tiles, tile_row=np.arange(len(tiles)))


def _taken(
    dataset: Dataset,
    sites: Sequence[str],
    names: Sequence[str],
    tiles: np.ndarray | None = None,
    **changed: np.ndarray,
) -> Dataset:
    """Return a data set of ``sites``, which may repeat, under other names and with other tiles."""
    rows, index = dataset.rows(sites), pd.Index(list(names), name="site_id")
    covariates, visits = dataset.covariates, dataset.visit_table
    return replace(
        dataset,
        sites=dataset.sites.iloc[rows].set_axis(index).assign(**changed),
        detections=dataset.detections.iloc[rows].set_axis(index),
        tiles=tiles,
        covariates=None if covariates is None else covariates.iloc[rows].set_axis(index),
        split=None,
        folder=None,
        visit_table=None if visits is None else visits.taken(rows),
    )
