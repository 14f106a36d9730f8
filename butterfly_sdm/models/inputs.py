"""
What a network sees of sites: tiles by band name, covariates by name, positions; and what it learns
from: k of n.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.tiles import TileReader
from butterfly_sdm.errors import DataError

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
