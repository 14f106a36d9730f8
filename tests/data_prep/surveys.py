"""Small surveys and scenes for tests of the stage build."""

import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from pyproj import Transformer

from data_prep.options import BuildOptions
from data_prep.records.count import SurveyTable
from tests.imagery.rasters import BANDS, write_raster

LEFT, TOP = 400_000, 200_000


def make_survey(
    places: np.ndarray | list, species: int = 3, seed: int = 0, prefix: str = "S"
) -> SurveyTable:
    """Return a survey with a square kilometre around each (easting, northing)."""
    random = np.random.default_rng(seed)
    ids = pd.Index([f"{prefix}{number:03d}" for number in range(len(places))], name="site_id")
    visits = pd.Series(random.integers(5, 30, len(ids)), index=ids, name="visits")
    detections = pd.DataFrame(
        random.integers(0, visits.to_numpy()[:, None] + 1, (len(ids), species)),
        index=ids,
        columns=[f"Species {letter}" for letter in "abcdefgh"[:species]],
    )
    to_degrees = Transformer.from_crs(27700, 4326, always_xy=True)
    corners = ((-500, -500), (500, -500), (500, 500), (-500, 500))
    squares = [
        shapely.Polygon([to_degrees.transform(x + dx, y + dy) for dx, dy in corners])
        for x, y in places
    ]
    sites = gpd.GeoDataFrame({"visits": visits}, geometry=squares, index=ids, crs=4326)
    return SurveyTable(
        detections=detections,
        visits=visits,
        sites=sites,
        rows={"read": 100, "kept": 90},
        years=(2018, 2019),
    )


def land(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return reflectances of fields and woods: red, green, blue, nir."""
    random = np.random.default_rng(seed)
    green = (
        random.random((height // 10 + 1, width // 10 + 1))
        .repeat(10, 0)
        .repeat(10, 1)[:height, :width]
    )
    noise = random.normal(0, 20, (4, height, width))
    red, grn, blue = 1400 - 1100 * green, 1100 - 550 * green, 850 - 550 * green
    return (np.stack([red, grn, blue, 2300 + 1500 * green]) + noise).clip(1).astype(np.uint16)


def make_scene(
    path: Path, *, height: int = 300, width: int = 400, seed: int = 0, **options
) -> Path:
    """Write a scene of fields and woods."""
    return write_raster(path, land(height, width, seed), **({"left": LEFT, "top": TOP} | options))


def grid_of_places(rows: int = 3, columns: int = 4, apart: float = 900) -> np.ndarray:
    """Return places inside the scene of :func:`make_scene`."""
    return np.array(
        [
            (LEFT + 500 + apart * c, TOP - 500 - apart * r)
            for r in range(rows)
            for c in range(columns)
        ]
    )


def make_config(scene: Path | None = None, **sections) -> BuildOptions:
    """Return a section build for a survey given in memory."""
    value = {
        "records": {"path": "unused.zip"},
        "tiles": {"size_px": 32},
        "split": {"method": "random"},
    }
    if scene is not None:
        value["scenes"] = {"paths": [str(scene)]}
    for key, section in sections.items():
        value[key] = (
            {**value[key], **section}
            if isinstance(value.get(key), dict) and isinstance(section, dict)
            else section
        )
    return BuildOptions.model_validate_json(json.dumps(value, default=str))


__all__ = ["BANDS", "grid_of_places", "land", "make_config", "make_scene", "make_survey"]
