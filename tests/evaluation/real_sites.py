"""The published S2BMS sites as a data set in memory."""

from pathlib import Path

import geopandas as gpd
import pandas as pd
import shapely
from pyproj import Transformer

from butterfly_sdm.data.dataset import Dataset, DatasetCard
from butterfly_sdm.data.splits import Split


def s2bms(shared: Path) -> Dataset:
    """Return the 1,143 sites with labels, their covariates and the official split."""
    folder = shared / "data" / "s2bms"
    presence = pd.read_csv(folder / "presence.csv").set_index("site_id")
    table = pd.read_csv(folder / "sites.csv").set_index("site_id").loc[presence.index]
    n = presence["n_visits"].astype(int)
    species = tuple(name for name in presence.columns if name not in ("lon", "lat", "n_visits"))
    k = presence[list(species)].mul(n, axis=0).round().astype(int)
    covariates = pd.read_csv(folder / "covariates.csv").set_index("site_id").reindex(presence.index)
    east, north = Transformer.from_crs(4326, 27700, always_xy=True).transform(
        presence["lon"], presence["lat"]
    )
    sites = gpd.GeoDataFrame(
        {
            "easting": east,
            "northing": north,
            "lon": presence["lon"],
            "lat": presence["lat"],
            "visits": n,
        },
        geometry=shapely.from_wkt(table["footprint_wkt"].to_numpy()),
        crs=4326,
        index=presence.index,
    )
    split = Split(
        tuple(presence.index[table["split"] == "train"]),
        tuple(presence.index[table["split"] == "val"]),
    )
    return Dataset(
        DatasetCard(name="s2bms", species=species, position_crs="EPSG:27700"),
        sites,
        k,
        covariates=covariates,
        split=split,
    )
