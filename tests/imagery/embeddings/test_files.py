"""Files of embeddings as they are published: what is read of them, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from rasterio.windows import Window

from butterfly_sdm.errors import MissingFileError, MissingPackageError, RasterError
from butterfly_sdm.imagery.embeddings.collection import open_embeddings, year_of
from butterfly_sdm.imagery.embeddings.options import EmbeddingReading
from tests.imagery.embeddings.layouts import (
    ZONE_31,
    alphaearth_value,
    stored_bytes,
    write_alphaearth,
    write_tessera,
)
from tests.imagery.rasters import write_raster

ALPHAEARTH = EmbeddingReading(preset="alphaearth")
TESSERA = EmbeddingReading(preset="tessera")


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("bottom_up", [True, False], ids=["from the south", "from the north"])
def test_every_value_of_alphaearth_in_both_orders_of_rows(tmp_path, bottom_up, interleave):
    stored = stored_bytes()
    stored[:, 5, 7] = -128
    write_alphaearth(tmp_path, stored, bottom_up=bottom_up, interleave=interleave)
    found = open_embeddings(tmp_path / "annual", ALPHAEARTH)
    (file,) = found.files
    assert found.bands[0] == "e00" and found.bands[-1] == "e63"
    assert (file.year, file.upside_down, file.decoding.nodata) == (2023, bottom_up, -128)
    assert file.transform * (0, 0) == (500_000, 5_700_000)
    expected = alphaearth_value(stored.astype(float)).astype(np.float32)
    expected[:, 5, 7] = np.nan
    values, valid = file.read(Window(0, 0, 64, 48))
    np.testing.assert_array_equal(values, expected)
    assert not valid[5, 7] and valid.sum() == valid.size - 1
    part, _ = file.read(Window(3, 20, 30, 17))
    np.testing.assert_array_equal(part, expected[:, 20:37, 3:33])


@pytest.mark.parametrize("shape", ["2", "3 of one", "3"])
def test_every_value_of_tessera_and_pixels_without_a_scale(tmp_path, shape):
    rng = np.random.default_rng(3)
    stored = stored_bytes(128, 30, 20)
    scales = rng.uniform(0.01, 0.1, (30, 20, 128) if shape == "3" else (30, 20))
    scales = scales.astype(np.float32)
    scales[4, 6] = np.nan
    write_tessera(tmp_path, stored, scales[..., None] if shape == "3 of one" else scales)
    (file,) = open_embeddings(tmp_path, TESSERA).files
    per_band = np.moveaxis(scales, -1, 0) if shape == "3" else scales[None]
    expected = stored.astype(np.float32) * per_band
    values, valid = file.read(Window(0, 0, 20, 30))
    np.testing.assert_array_equal(values, expected)
    assert file.crs.to_epsg() == 32631 and file.year == 2024
    assert file.transform * (0, 0) == (300_007.4, 5_770_003.1)
    assert not valid[4, 6] and valid.sum() == valid.size - 1
    part, _ = file.read(Window(2, 10, 5, 8))
    np.testing.assert_array_equal(part, expected[:, 10:18, 2:7])


def test_fractions_of_tessera_are_values_already(tmp_path):
    values = np.random.default_rng(0).normal(size=(128, 16, 16)).astype(np.float32)
    path = tmp_path / "2024" / "grid_0.15_52.05" / "grid_0.15_52.05_2024.tiff"
    write_raster(path, values, crs=ZONE_31, names=None, nodata=None)
    (file,) = open_embeddings(tmp_path, TESSERA).files
    np.testing.assert_array_equal(file.read(Window(0, 0, 16, 16))[0], values)


def test_scale_and_offset_of_the_file_hold(tmp_path):
    import rasterio

    stored = np.arange(-50, 50, dtype=np.int16).reshape(1, 10, 10).repeat(3, axis=0)
    path = write_raster(tmp_path / "any.tif", stored, names=None, nodata=-50)
    with rasterio.open(path, "r+") as source:
        source.scales, source.offsets = (0.5,) * 3, (-3.0,) * 3
    values, valid = open_embeddings(path).files[0].read(Window(0, 0, 10, 10))
    expected = stored * 0.5 - 3
    assert np.isnan(values[:, 0, 0]).all() and not valid[0, 0]
    np.testing.assert_array_equal(values[:, valid], expected[:, valid])


def test_zones_and_years_are_taken_from_files_and_folders(tmp_path):
    for year, seed in ((2022, 1), (2023, 2)):
        write_alphaearth(tmp_path, stored_bytes(seed=seed), year=year)
        write_alphaearth(tmp_path, stored_bytes(seed=seed), year=year, crs=ZONE_31, left=200_000)
    with pytest.raises(RasterError, match=r"2022, 2023.*embeddings\.year"):
        open_embeddings(tmp_path, ALPHAEARTH)
    found = open_embeddings(tmp_path, ALPHAEARTH.model_copy(update={"year": 2023}))
    assert [file.year for file in found.files] == [2023, 2023]
    assert found.told() == (
        "2 files of 64 bands; int8, the signed square of stored / 127.5; of 2023; in EPSG:32630, "
        "EPSG:32631; 2 stored from south to north"
    )
    with pytest.raises(MissingFileError, match="2022, 2023"):
        open_embeddings(tmp_path, ALPHAEARTH.model_copy(update={"year": 2020}))


def test_a_year_is_no_part_of_a_longer_number():
    assert year_of(Path("v1/x8q-0000020240-0000000000.tiff")) is None
    assert year_of(Path("2021/grid_-20.05_20.15.npy")) == 2021
    assert year_of(Path("aef_uk_2023-0000000000-0000008192.tif")) == 2023


def test_the_vrt_that_turns_a_raster_over_is_not_read_beside_it(tmp_path):
    path = write_alphaearth(tmp_path, stored_bytes())
    for name in (f"{path.stem}.vrt", f"{path.name}.vrt"):
        path.with_name(name).write_text("<VRTDataset/>")
    assert [file.path for file in open_embeddings(tmp_path, ALPHAEARTH).files] == [str(path)]


def test_what_does_not_fit_is_refused_in_a_sentence(tmp_path):
    few = write_alphaearth(tmp_path / "few", stored_bytes(16))
    with pytest.raises(RasterError, match="16 bands, and alphaearth has 64"):
        open_embeddings(few, ALPHAEARTH)
    stated = ALPHAEARTH.model_copy(update={"bands": 16})
    assert len(open_embeddings(few, stated).bands) == 16
    other = write_raster(tmp_path / "few" / "thumbnail.tif", np.ones((3, 16, 16), np.uint8))
    with pytest.raises(RasterError, match="not of the same kind"):
        open_embeddings(tmp_path / "few")
    with pytest.raises(MissingFileError, match="no embeddings"):
        open_embeddings(tmp_path / "nothing")
    (tmp_path / "store.zarr").mkdir()
    with pytest.raises((RasterError, MissingPackageError), match="Zarr"):
        open_embeddings(tmp_path / "store.zarr")
    with pytest.raises(RasterError, match="set rule: none"):
        open_embeddings(other, ALPHAEARTH)


def test_a_tile_of_tessera_without_its_place_or_scales_is_refused(tmp_path):
    tile = write_tessera(tmp_path, stored_bytes(128, 8, 8), np.ones((8, 8), np.float32))
    scales = tile.with_name(f"{tile.stem}_scales.npy")
    mask = tmp_path / "global_0.1_degree_tiff_all" / f"{tile.stem}.tiff"
    moved = scales.rename(tmp_path / "kept")
    with pytest.raises(RasterError, match="Fetch both"):
        open_embeddings(tmp_path, TESSERA)
    moved.rename(scales)
    np.save(scales, np.ones((4, 8), np.float32))
    with pytest.raises(RasterError, match="one scale per pixel"):
        open_embeddings(tmp_path, TESSERA)
    np.save(scales, np.ones((8, 8), np.float32))
    mask.rename(tmp_path / "elsewhere.tiff")
    with pytest.raises(RasterError, match="landmask"):
        open_embeddings(tile, TESSERA)
