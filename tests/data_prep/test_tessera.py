"""Tiles of TESSERA from a server that has them as published, and the covariates they become."""

import numpy as np
import pandas as pd
import pytest
from pyproj import Transformer

from butterfly_sdm.errors import SourceError
from butterfly_sdm.imagery.embeddings.options import EmbeddingOptions
from data_prep.covariates import embedding_covariates
from data_prep.sources.tessera import fetch_tiles, tiles_around
from data_prep.sources.transfer import Service
from tests.data_prep.range_server import serving
from tests.imagery.embeddings.layouts import ZONE_31, stored_bytes, write_tessera


@pytest.fixture
def server(tmp_path):
    with serving(tmp_path / "there") as running:
        yield f"{running.url}/v1", running.answered


def test_tiles_are_named_by_their_middles_also_over_the_date_line_and_south():
    assert tiles_around(np.array([0.0]), np.array([52.05]), 10) == [(-0.05, 52.05), (0.05, 52.05)]
    assert tiles_around(np.array([179.9999]), np.array([-0.05]), 100) == [
        (-179.95, -0.05),
        (179.95, -0.05),
    ]
    # 2.5 km at 52 degrees north: 0.0225 degrees of latitude, 0.0365 of longitude
    assert tiles_around(np.array([0.13]), np.array([52.11]), 2500) == [
        (0.05, 52.05),
        (0.05, 52.15),
        (0.15, 52.05),
        (0.15, 52.15),
    ]


def test_tiles_around_sites_are_fetched_once_and_become_covariates(tmp_path, server):
    url, asked = server
    x, y = Transformer.from_crs("EPSG:4326", ZONE_31, always_xy=True).transform(0.12, 52.05)
    stored, scales = stored_bytes(128, 60, 60), np.full((60, 60), 0.02, np.float32)
    write_tessera(tmp_path / "there" / "v1", stored, scales, left=x - 300, top=y + 300)
    options = EmbeddingOptions(
        path=tmp_path / "here", preset="tessera", url=url, year=2024, side_m=(200.0,)
    )
    sites = pd.DataFrame({"easting": [x], "northing": [y]}, index=pd.Index(["a"], name="site_id"))
    table = embedding_covariates(options, sites, position_crs=ZONE_31)
    inside = stored[:, 20:40, 20:40].astype(np.float32) * np.float32(0.02)
    np.testing.assert_allclose(table.loc["a"][:128], inside.mean(axis=(1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(table.loc["a"][128:], inside.std(axis=(1, 2)), rtol=1e-4)
    assert table.columns[0] == "tessera_e000_200m"
    first = len(asked)
    assert first == 4  # is it there; numbers, scales and place
    again = embedding_covariates(options, sites, position_crs=ZONE_31)
    pd.testing.assert_frame_equal(again, table)
    assert len(asked) == first


def test_a_tile_that_the_source_lacks_is_told_and_none_at_all_is_an_error(tmp_path, server, caplog):
    url, _ = server
    write_tessera(tmp_path / "there" / "v1", stored_bytes(128, 8, 8), np.ones((8, 8), np.float32))
    lon, lat = np.array([0.12, 0.22]), np.array([52.05, 52.05])
    quick = Service(attempts=1)
    lacking = fetch_tiles(url, tmp_path, lon, lat, year=2024, reach_m=100, service=quick)
    assert lacking == ["grid_0.25_52.05"] and "1 of 2 tiles" in caplog.text
    with pytest.raises(SourceError, match="none of the 2 tiles"):
        fetch_tiles(url, tmp_path, lon, lat, year=2019, reach_m=100, service=quick)


def test_an_address_is_of_tessera_with_a_year(tmp_path):
    with pytest.raises(ValueError, match="of preset tessera"):
        EmbeddingOptions(path=tmp_path, preset="alphaearth", url="https://example.org", year=2024)
