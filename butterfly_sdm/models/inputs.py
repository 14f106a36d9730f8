"""
What a network sees of sites: tiles by band name, covariates by name, positions; and what it learns
from: k of n.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.groups import chosen_covariates
from butterfly_sdm.data.tiles import TileReader
from butterfly_sdm.errors import DataError, ModelError

log = logging.getLogger("butterfly_sdm.models.inputs")


@dataclass(frozen=True)
class SiteInputs:
    """
    Sites as tensors.

    Attributes
    ----------
    tile_rows
        (n,) rows of the packed tiles, -1 for none; None without imagery.
    covariates
        (n, covariates) in their own units, NaN where missing; None without.
    position
        (n, 2) easting and northing in metres; None without.
    detections, visits
        (n, species) k and (n,) n.
    evidence
        (n, species, nodes) what dated visits say, see
        :meth:`butterfly_sdm.models.detection.Detection.evidence`; None unless the loss asks for it.
    """

    sites: tuple[str, ...]
    tile_rows: Tensor | None
    covariates: Tensor | None
    position: Tensor | None
    detections: Tensor
    visits: Tensor
    evidence: Tensor | None = None

    def __len__(self) -> int:
        return len(self.sites)

    @property
    def rates(self) -> Tensor:
        """(n, species) k / n; 0 without a visit."""
        return self.detections.clamp(min=0) / self.visits.clamp(min=1)[:, None]


def site_tensors(
    dataset: Dataset,
    sites: Sequence[str],
    *,
    image: bool,
    covariates: Sequence[str] = (),
    position: bool = False,
    reader: TileReader | None = None,
) -> SiteInputs:
    """
    Return what a network sees of ``sites``; what the data set lacks is missing, as long as
    something is left.

    Parameters
    ----------
    image
        Whether the network sees tiles.
    covariates
        Names, in the order of the network.

    Raises
    ------
    DataError
        A site is unknown, or nothing the network knows is there for it.
    """
    rows = dataset.rows(sites)
    tile_rows = table = place = None
    if image:
        alone = not covariates and not position
        if alone:
            tile_rows = torch.from_numpy(np.asarray(dataset.tile_rows(sites), dtype=np.int64))
        elif dataset.tiles is not None and reader is not None:
            tile_rows = torch.from_numpy(dataset.sites["tile_row"].to_numpy(dtype=np.int64)[rows])
        if tile_rows is None:
            log.warning(
                "The data set %r has no tiles: predicting without imagery.", dataset.card.name
            )
    if covariates:
        own = dataset.covariates
        absent = [name for name in covariates if own is None or name not in own.columns]
        if absent:
            log.warning(
                "%d of %d covariates are missing, such as %s.",
                len(absent),
                len(covariates),
                absent[0],
            )
        if own is not None and len(absent) < len(covariates):
            values = own.reindex(columns=list(covariates)).to_numpy(dtype=np.float32)[rows]
            table = torch.from_numpy(np.where(np.isfinite(values), values, np.nan))
    if position:
        place = torch.from_numpy(
            dataset.sites[["easting", "northing"]].to_numpy(dtype=np.float32)[rows]
        )
    if not image and not position and table is None:
        raise DataError(
            f"The data set {dataset.card.name!r} has none of the covariates the network needs. "
            "Build it with them."
        )
    detections, visits = (
        torch.from_numpy(part.astype(np.float32)) for part in dataset.counts(sites)
    )
    return SiteInputs(tuple(sites), tile_rows, table, place, detections, visits)


def mean_and_spread(reader: TileReader, rows: Tensor, *, most: int = 512) -> tuple[Tensor, Tensor]:
    """
    Return mean and standard deviation of the values of each band over the measured pixels of
    tiles.

    Parameters
    ----------
    rows
        (n,) rows of the packed tiles of the training sites.
    most
        Tiles to look at, evenly chosen; 512 tiles hold tens of millions of pixels.

    Raises
    ------
    DataError
        No tile has a valid pixel.
    """
    if len(rows) > most:
        rows = rows[torch.linspace(0, len(rows) - 1, most).round().long()]
    count = torch.zeros((), dtype=torch.float64)
    total, squares = torch.zeros(2, len(reader.places), dtype=torch.float64)
    for part in torch.split(rows, reader.at_once):
        values, valid = reader.reflectance(reader.read(part))
        values = values.masked_fill(~valid, 0.0)
        count += valid.sum()
        total += values.sum(dim=(0, 2, 3), dtype=torch.float64)
        squares += (values.double() ** 2).sum(dim=(0, 2, 3))
    if not count:
        raise DataError("No pixel of the training tiles was measured: every one is nodata.")
    mean = total / count
    spread = (squares / count - mean**2).clamp(min=0).sqrt()
    return mean.float(), spread.clamp(min=1e-4).float()


def count_mixed(names: Sequence[str], components: Mapping[str, int]) -> int:
    """
    Return how many numbers are left of covariates once components take the place of groups; 0 where
    none do.

    Raises
    ------
    DataError, ModelError
        A group has no covariate, fewer than components of it are asked for, or shares some with
        another.

    Examples
    --------
    >>> count_mixed(["aef_e00", "aef_e01", "aef_e02", "rain"], {"aef": 2})
    3
    """
    groups = {group: chosen_covariates(names, group) for group in components}
    for group, count in components.items():
        if count > len(groups[group]):
            raise ModelError(
                f"train.model.components asks for {count} of {group!r}, which has "
                f"{len(groups[group])} covariates. Ask for fewer."
            )
    held = [name for group in groups.values() for name in group]
    twice = next((name for name in held if held.count(name) > 1), None)
    if twice is not None:
        raise ModelError(f"train.model.components: {twice!r} is in two groups. Name it in one.")
    return len(names) - len(held) + sum(components.values()) if components else 0


def mixing_axes(
    values: np.ndarray, names: Sequence[str], components: Mapping[str, int], *, spread: np.ndarray
) -> np.ndarray:
    """
    Return what makes components, and the covariates of no group, of standardised covariates by one
    product.

    Parameters
    ----------
    values
        (sites, covariates) of the training sites, standardised; 0 where missing.
    names
        Of the covariates.
    components
        Groups, and how many of their components are kept.
    spread
        (covariates,) by which the values were divided: components are those of the covariates in
        their own unit, divided by the spread of the first of their group, since the leading ones
        of an embedding say most.

    Returns
    -------
    ndarray of float, shape (covariates, numbers)
        First the covariates of no group, in their order, then the components of each group.

    Raises
    ------
    ModelError
        There are fewer training sites than components.
    """
    place = {name: at for at, name in enumerate(names)}
    groups = {group: chosen_covariates(names, group) for group in components}
    held = {name for group in groups.values() for name in group}
    parts = [np.eye(len(names))[:, [at for name, at in place.items() if name not in held]]]
    for group, count in components.items():
        if count > len(values):
            raise ModelError(
                f"train.model.components asks for {count} of {group!r}; there are {len(values)} "
                "training sites, which have no more components than that. Ask for fewer."
            )
        at = [place[name] for name in groups[group]]
        own = values[:, at] * spread[at]
        _, _, axes = np.linalg.svd(own, full_matrices=False)
        axes = axes[:count].T
        # the sign of an axis is arbitrary: its largest entry is above 0
        axes *= np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(count)])
        part = np.zeros((len(names), count))
        part[at] = spread[at, None] * axes / max(float((own @ axes[:, 0]).std()), 1e-9)
        parts.append(part)
    return np.concatenate(parts, axis=1)
