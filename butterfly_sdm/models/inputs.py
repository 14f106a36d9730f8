"""What a network sees of sites: tiles by band name, covariates by name, positions; and what it learns from: k of n."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import DataError, ModelError

log = logging.getLogger("butterfly_sdm.models.inputs")


class TileReader:
    """
    Cut the image a network sees out of the packed tiles, bands by name.

    Parameters
    ----------
    dataset
        Has tiles.
    bands
        Names of the bands, in the order of the network.
    tile_px
        Side of the image; the middle of the tile is cut unless told otherwise.

    Raises
    ------
    ModelError
        The tiles lack a band or are too small.
    """

    def __init__(self, dataset: Dataset, bands: Sequence[str], tile_px: int) -> None:
        if dataset.tiles is None or dataset.card.tiles is None:
            raise DataError(f"The data set {dataset.card.name!r} has no tiles. Name scenes or a folder of tiles in build.")
        card = dataset.card.tiles
        absent = [band for band in bands if band not in card.bands]
        if absent:
            raise ModelError(f"The network needs the band {absent[0]}; the tiles have {', '.join(card.bands)}.")
        side = min(dataset.tiles.shape[-2:])
        if side < tile_px:
            raise ModelError(
                f"The tiles are {side} px wide; the network looks at {tile_px} px (window_px + 2 * margin_px). "
                "Build larger tiles (build.tiles.size_px), or choose a smaller window_px or margin_px."
            )
        self.card, self.tile_px = card, tile_px
        self.places = [card.bands.index(band) for band in bands]
        self.slack = (dataset.tiles.shape[-2] - tile_px, dataset.tiles.shape[-1] - tile_px)
        self.tiles: np.ndarray = dataset.tiles

    def read(self, rows: Tensor, corners: Tensor | None = None) -> Tensor:
        """
        Return counts (n, bands, tile_px, tile_px) as uint16.

        Parameters
        ----------
        rows
            (n,) rows of the packed tiles.
        corners
            (n, 2) top and left of the cut within the tile; None: the middle.
        """
        out = np.empty((len(rows), len(self.places), self.tile_px, self.tile_px), dtype=np.uint16)
        middle = (self.slack[0] // 2, self.slack[1] // 2)
        whole = self.places == list(range(self.tiles.shape[1]))
        for number, row in enumerate(rows.tolist()):
            top, left = middle if corners is None else corners[number].tolist()
            cut = self.tiles[row, :, top : top + self.tile_px, left : left + self.tile_px]
            np.copyto(out[number], cut if whole else cut[self.places], casting="same_kind")
        return torch.from_numpy(out)

    def reflectance(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Return float32 reflectance of counts, and where (n, 1, height, width) every band was measured."""
        values = counts.to(torch.float32)
        valid = (values != self.card.nodata).all(dim=1, keepdim=True)
        return (values - self.card.offset) * self.card.scale, valid

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if isinstance(self.tiles, np.memmap) and self.tiles.filename is not None:
            # A mapped file is opened again where the reader is unpickled instead of being copied there.
            state["tiles"] = Path(self.tiles.filename)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.tiles, Path):
            self.tiles = np.load(self.tiles, mmap_mode="r", allow_pickle=False)


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
    """

    sites: tuple[str, ...]
    tile_rows: Tensor | None
    covariates: Tensor | None
    position: Tensor | None
    detections: Tensor
    visits: Tensor

    def __len__(self) -> int:
        return len(self.sites)

    @property
    def rates(self) -> Tensor:
        """(n, species) k / n; 0 without a visit."""
        return self.detections.clamp(min=0) / self.visits.clamp(min=1)[:, None]


def site_inputs(
    dataset: Dataset,
    sites: Sequence[str],
    *,
    image: bool,
    covariates: Sequence[str] = (),
    position: bool = False,
    reader: TileReader | None = None,
) -> SiteInputs:
    """
    Return what a network sees of ``sites``; what the data set lacks is missing, as long as something is left.

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
            log.warning("The data set %r has no tiles: predicting without imagery.", dataset.card.name)
    if covariates:
        own = dataset.covariates
        absent = [name for name in covariates if own is None or name not in own.columns]
        if absent:
            log.warning("%d of %d covariates are missing, such as %s.", len(absent), len(covariates), absent[0])
        if own is not None and len(absent) < len(covariates):
            values = own.reindex(columns=list(covariates)).to_numpy(dtype=np.float32)[rows]
            table = torch.from_numpy(np.where(np.isfinite(values), values, np.nan))
    if position:
        place = torch.from_numpy(dataset.sites[["easting", "northing"]].to_numpy(dtype=np.float32)[rows])
    if not image and not position and table is None:
        raise DataError(f"The data set {dataset.card.name!r} has none of the covariates the network needs. Build it with them.")
    detections = torch.from_numpy(dataset.detections.to_numpy(dtype=np.float32)[rows])
    visits = torch.from_numpy(dataset.visits.to_numpy(dtype=np.float32)[rows])
    return SiteInputs(tuple(sites), tile_rows, table, place, detections, visits)


def band_statistics(reader: TileReader, rows: Tensor, *, most: int = 512) -> tuple[Tensor, Tensor]:
    """
    Return mean and standard deviation of the reflectance of each band over the measured pixels of tiles.

    Parameters
    ----------
    rows
        (n,) rows of the packed tiles of the training sites.
    most
        Tiles to look at, evenly chosen; 512 tiles hold tens of millions of pixels.
    """
    if len(rows) > most:
        rows = rows[torch.linspace(0, len(rows) - 1, most).round().long()]
    count = torch.zeros((), dtype=torch.float64)
    total, squares = torch.zeros(2, len(reader.places), dtype=torch.float64)
    for part in rows.split(32):
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
