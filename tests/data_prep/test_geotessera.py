"""What geotessera itself reads and writes: its tiles, GeoTIFF and Zarr are read alike."""

import geopandas as gpd
import numpy as np
import pytest
import shapely
from pyproj import Transformer
from rasterio.windows import Window

from butterfly_sdm.imagery.embeddings.collection import open_embeddings
from butterfly_sdm.imagery.embeddings.options import EmbeddingReading
from data_prep.sources.tessera import fetch_tiles
from tests.data_prep.range_server import serving
from tests.imagery.embeddings.layouts import ZONE_31, stored_bytes, write_tessera

geotessera = pytest.importorskip("geotessera", reason="geotessera is not there")
pytestmark = pytest.mark.slow
LON, LAT, YEAR = 0.15, 52.05, 2024


def test_tiles_that_are_fetched_here_are_those_of_geotessera_and_its_exports_are_read(tmp_path):
    x, y = Transformer.from_crs("EPSG:4326", ZONE_31, always_xy=True).transform(LON, LAT)
    stored = stored_bytes(128, 40, 30)
    scales = np.random.default_rng(0).uniform(0.01, 0.1, (40, 30)).astype(np.float32)
    write_tessera(tmp_path / "there/v1", stored, scales, left=x - 150, top=y + 200)
    here, known = tmp_path / "here", tmp_path / "register"
    with serving(tmp_path / "there") as server:
        at = np.array([LON]), np.array([LAT])
        fetch_tiles(f"{server.url}/v1", here, *at, year=YEAR, reach_m=100)
    known.mkdir()
    table = gpd.GeoDataFrame(
        {"lat": [LAT], "lon": [LON], "year": [YEAR], "hash": [""], "file_size": [1]},
        geometry=[shapely.Point(LON, LAT)],
        crs=4326,
    )
    table.to_parquet(known / "registry.parquet")
    table.drop(columns=["geometry", "year"]).to_parquet(known / "landmasks.parquet")
    library = geotessera.GeoTessera(registry_dir=known, embeddings_dir=here, verify_hashes=False)
    wanted, crs, transform = library.fetch_embedding(LON, LAT, YEAR)
    reading = EmbeddingReading(preset="tessera", year=YEAR)
    exports = tmp_path / "exports" / str(YEAR)
    exports.mkdir(parents=True)
    library.export_embedding_geotiff(LON, LAT, exports / "grid_0.15_52.05_2024.tiff", YEAR)
    pytest.importorskip("zarr", reason="the extra zarr is not there")
    zarr_path = exports / "zarr" / "grid_0.15_52.05_2024.zarr"
    library.export_embedding_zarr(LON, LAT, zarr_path, YEAR)
    for place in (here, exports / "grid_0.15_52.05_2024.tiff", zarr_path):
        (file,) = open_embeddings(place, reading).files
        assert (file.crs, file.year, len(file.bands)) == (crs, YEAR, 128)
        assert file.transform.almost_equals(transform)
        values, valid = file.read(Window(0, 0, 30, 40))
        assert valid.all()
        np.testing.assert_array_equal(values, np.moveaxis(wanted, -1, 0))
