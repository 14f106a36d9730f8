"""A small scene on disk and predictors over it: what the tests of maps share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import torch
from affine import Affine
from torch import nn

from butterfly_sdm.core.files import write_json
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.data.predictor import FitContext, Predictor, Sees
from butterfly_sdm.imagery.scene import Scene
from butterfly_sdm.mapping import MapOptions, MapResult, write_map
from butterfly_sdm.mapping.layers import Layer
from butterfly_sdm.models.network_predictor import NetworkPredictor
from butterfly_sdm.models.presence_net import Architecture, PresenceNet
from butterfly_sdm.progress import Progress, silent

BANDS = ("red", "green", "blue", "nir")


def write_scene(
    path: Path,
    *,
    width: int = 640,
    height: int = 576,
    left: float = 400_000.0,
    top: float = 300_160.0,
    crs: str = "EPSG:27700",
    bands: Sequence[str] = BANDS,
    hole: tuple[slice, slice] | None = None,
    seed: int = 0,
) -> Path:
    """Write a scene of smooth noise at 10 m; nodata (0) in ``hole``."""
    generator = np.random.default_rng(seed)
    coarse = torch.from_numpy(
        generator.normal(size=(1, len(bands), height // 16 + 2, width // 16 + 2))
    )
    smooth = nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0].numpy()
    level = np.array([700, 800, 500, 3200])[: len(bands), None, None]
    counts = level * np.exp(0.4 * smooth + 0.1 * generator.normal(size=smooth.shape))
    values = np.clip(counts, 1, 20_000).astype(np.uint16)
    if hole is not None:
        values[:, hole[0], hole[1]] = 0
    transform = Affine(10.0, 0.0, left, 0.0, -10.0, top)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=len(bands),
        dtype="uint16",
        crs=crs,
        transform=transform,
        nodata=0,
        tiled=True,
        blockxsize=128,
        blockysize=128,
    ) as target:
        target.write(values)
        for number, band in enumerate(bands, start=1):
            target.set_band_description(number, band)
    return path


def tiny_trunk(bands: int, channels: int) -> nn.Sequential:
    """Return a trunk with the stride of a ResNet, a hundredth of its work and random weights."""
    layers: list[nn.Module] = []
    widths = [bands, 8, 8, 8, 8, channels]
    for before, after in pairwise(widths):
        layers += [
            nn.Conv2d(before, after, 3, stride=2, padding=1),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


class Windows(NetworkPredictor):
    """A small network with random weights: the plainest way from tiles to probabilities."""

    def __init__(
        self, *, window_px: int = 64, margin_px: int = 32, species: int = 3, seed: int = 0
    ):
        super().__init__(
            window_px=window_px, margin_px=margin_px, embedding=16, accelerator="cpu", seed=seed
        )
        torch.manual_seed(seed)
        self.species = tuple(f"Species {letter}" for letter in "abcdefghij"[:species])
        self.sees = Sees(BANDS, window_px, margin_px, 10.0, needs_tile=True)
        self.network = PresenceNet(
            Architecture(
                species=species, bands=BANDS, embedding=16, window_px=window_px, margin_px=margin_px
            )
        )
        assert self.network.trunk is not None
        self.network.trunk.body = tiny_trunk(len(BANDS), self.network.trunk.channels)
        self.network.mean.copy_(torch.tensor([0.07, 0.08, 0.05, 0.32]))
        self.network.std.copy_(torch.tensor([0.05, 0.05, 0.05, 0.1]))
        nn.init.normal_(self.network.classifier[-1].weight, std=1.5)
        with torch.no_grad():  # batch statistics of something like a scene
            self.network.train()
            for _ in range(20):
                self.network.features(torch.randn(4, 4, 128, 128))
        self.network.eval()


class Position:
    """Predicts one species from easting and northing alone, in a way that is easy to check."""

    species: tuple[str, ...] = ("East", "North")
    sees = Sees(position_crs="EPSG:27700")

    def fit(
        self, dataset: Dataset, sites: Sequence[str], *, context: FitContext | None = None
    ) -> Position:
        return self

    def predict(self, dataset: Dataset, sites: Sequence[str]) -> pd.DataFrame:
        table = dataset.sites.loc[list(sites)]
        east, north = (table["easting"] - 400_000) / 10_000, (table["northing"] - 290_000) / 20_000
        return pd.DataFrame({"East": east, "North": north}, index=table.index)

    def save(self, folder: Path) -> None:
        write_json(folder / "model.json", {"kind": type(self).__name__})

    @classmethod
    def load(cls, folder: Path) -> Position:
        return cls()


def map_of(
    predictor: Predictor,
    scene: Scene,
    out: Path,
    *,
    area: Path | gpd.GeoDataFrame | None = None,
    layers: Sequence[str | Layer] = (),
    overwrite: bool = True,
    seed: int = 0,
    progress: Progress = silent,
    **options: Any,
) -> MapResult:
    """
    Write a map alone, options given one by one; in place of another that a test wrote there.

    A picture beside it would take four times the map: ``beside`` asks for it.
    """
    options = {"beside": ()} | options
    named = tuple(layer for layer in layers if isinstance(layer, str))
    if isinstance(area, Path):
        options["area"] = area
    return write_map(
        predictor,
        scene,
        out,
        MapOptions(layers=named, **options),
        area=area if isinstance(area, gpd.GeoDataFrame) else None,
        layers=[layer for layer in layers if not isinstance(layer, str)],
        overwrite=overwrite,
        seed=seed,
        progress=progress,
    )


def read(result: MapResult) -> np.ndarray:
    """Return the bands of a map, NaN where there is no value."""
    with rasterio.open(result.path) as source:
        values = source.read(masked=True)
        return values.astype(float).filled(np.nan) * np.array(source.scales)[:, None, None]
