"""Data sets to plan from, and what a plan says in any of its files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from butterfly_sdm.data.dataset import Dataset
from tests.evaluation.worlds import small_world


def world(
    *, sites: int = 60, species: int = 4, seed: int = 0, crs: str = "EPSG:27700", covariates=True
) -> Dataset:
    """Return a small world about the middle of what its CRS serves."""
    dataset, _ = small_world(sites=sites, species=species, seed=seed, side_m=50_000)
    table = dataset.sites.copy()
    if crs == "EPSG:27700":
        table[["easting", "northing"]] += [400_000, 200_000]
    elif crs == "EPSG:32618":
        table[["easting", "northing"]] += [450_000, 4_200_000]
    elif crs == "EPSG:4326":
        table["easting"] = -72 + table["easting"] / 88_000
        table["northing"] = 38 + table["northing"] / 111_000
    elif crs == "EPSG:2263":  # feet, kept in metres as data_prep does
        table[["easting", "northing"]] += [280_000, 40_000]
    table.geometry = shapely.points(np.zeros((len(table), 2)))
    return replace(
        dataset,
        card=dataset.card.model_copy(
            update={"position_crs": crs} | ({} if covariates else {"covariates": {}})
        ),
        sites=table,
        covariates=dataset.covariates if covariates else None,
    )


def points(dataset: Dataset, count: int, *, seed: int = 1, covariates: bool = True):
    """Return candidates that lie among the sites, with covariates as columns."""
    random = np.random.default_rng(seed)
    place = dataset.sites[["easting", "northing"]].to_numpy(float)
    low, high = place.min(axis=0), place.max(axis=0)
    xy = random.uniform(low, high, (count, 2))
    columns = {"name": [f"c{i}" for i in range(count)]}
    if covariates and dataset.covariates is not None:
        columns |= {name: random.normal(size=count) for name in dataset.covariates.columns}
    return gpd.GeoDataFrame(
        columns, geometry=gpd.points_from_xy(*xy.T), crs=dataset.card.position_crs
    )


def all_text(folder: Path) -> str:
    """Return what the files of a folder say: their bytes, and what is packed in them."""
    said = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        said.append(path.name + path.read_bytes().decode("latin-1"))
        if path.suffix == ".gpkg":
            said += [gpd.read_file(path, layer=layer).to_csv() for layer in ("plan", "gain")]
    return "\n".join(said)


def ranked(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "plan.csv", index_col="name")
