"""Embeddings of Zarr stores in the layouts that are published: the same numbers as from rasters."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from pyproj import CRS
from rasterio.windows import Window

from butterfly_sdm.core.files import files_below, sha256
from butterfly_sdm.errors import RasterError
from butterfly_sdm.imagery.embeddings.collection import open_embeddings
from butterfly_sdm.imagery.embeddings.options import EmbeddingReading
from butterfly_sdm.imagery.embeddings.scene import open_embedding_scene
from butterfly_sdm.imagery.embeddings.squares import square_statistics
from butterfly_sdm.mapping.map import scene_key
from tests.imagery.embeddings.layouts import (
    ZONE_30,
    ZONE_31,
    alphaearth_value,
    stored_bytes,
    write_alphaearth,
)

zarr = pytest.importorskip("zarr", reason="the extra zarr is not there")
READING = EmbeddingReading(preset="alphaearth", bands=4)
PLACE = Affine(10, 0, 500_000, 0, -10, 5_700_000)


def array(group, name: str, values, dimensions: tuple[str, ...], attributes=None, **options):
    """Write an array with names of its dimensions, as version 3 has it."""
    values = np.asarray(values)
    sizes = zip(values.shape, dimensions, strict=True)
    chunks = tuple(1 if name == "time" else min(16, size) for size, name in sizes)
    made = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=chunks or "auto",
        dimension_names=dimensions,
        **options,
    )
    made[...] = values
    made.attrs.update(attributes or {})
    return made


def mosaic(
    path: Path, stored: np.ndarray, *, crs: str = ZONE_30, transform: Affine = PLACE
) -> Path:
    """Write (years, bands, height, width) as a GeoZarr mosaic of several years, in shards."""
    group = zarr.open_group(path, mode="w", zarr_format=3)
    group.attrs.update({"proj:code": crs, "spatial:transform": list(transform[:6])})
    shards = (1, stored.shape[1], 48, 48)
    names = ("time", "band", "y", "x")
    array(group, "embeddings", stored, names, fill_value=-128, shards=shards)
    days = [18_993 + 366 * year for year in range(len(stored))]  # 2022-01-01, 2023-01-02
    array(group, "time", days, ("time",), {"units": "days since 1970-01-01"})
    return path


def test_years_of_a_sharded_mosaic_are_the_rasters_of_these_years(tmp_path):
    stored = np.stack([stored_bytes(4, 60, 70, seed=year) for year in range(2)])
    stored[:, :, 3, 4:9] = -128
    found = open_embeddings(
        mosaic(tmp_path / "aef.zarr", stored), READING.model_copy(update={"year": 2023})
    )
    (file,) = found.files
    assert (file.year, file.block, file.decoding.nodata) == (2023, (16, 16), -128)
    write_alphaearth(tmp_path / "cogs", stored[1])
    plain = open_embeddings(tmp_path / "cogs", READING)
    window = Window(3, 2, 50, 41)
    for mine, theirs in zip(file.read(window), plain.files[0].read(window), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    x, y = np.array([500_300.0, 500_500.0]), np.array([5_699_700.0, 5_699_650.0])
    for mine, theirs in zip(
        square_statistics(found, x, y, ZONE_30, sides_m=[100.0, 3000.0]),
        square_statistics(plain, x, y, ZONE_30, sides_m=[100.0, 3000.0]),
        strict=True,
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)  # windows are added in another order
    with pytest.raises(RasterError, match=r"of 2022, 2023.*State which year"):
        open_embeddings(tmp_path / "aef.zarr", READING)


def test_a_scene_of_a_store_keeps_its_bytes_and_meets_the_rasters_of_another_zone(tmp_path):
    west, east = (stored_bytes(4, 60, 70, seed=number) for number in range(2))
    west[:, 3, 4:9] = -128
    mosaic(tmp_path / "both/a.zarr", west[None])
    write_alphaearth(tmp_path / "cogs", west, name="a", year=2022)
    for folder in ("both", "cogs"):
        other = {"crs": ZONE_31, "left": 90_500, "top": 5_711_000, "year": 2022, "name": "b"}
        write_alphaearth(tmp_path / folder, east, **other)
    reading = READING.model_copy(update={"year": 2022})
    found = open_embedding_scene(tmp_path / "both/a.zarr", reading)
    assert (found.dtype, found.nodata, found.signed_square) == ("int8", -128, 127.5)
    values, valid = found.read(Window(0, 0, 70, 60))
    np.testing.assert_array_equal(values, west)
    np.testing.assert_array_equal(valid, west[0] != -128)
    before = scene_key(found)
    chunk = files_below(tmp_path / "both/a.zarr/embeddings/c")[0]
    os.utime(chunk, ns=(1, chunk.stat().st_mtime_ns + 10**9))
    assert scene_key(found) != before  # a map of other pixels is another one
    part, _ = found.select(["e03", "e01"]).read(Window(5, 6, 20, 30))
    np.testing.assert_array_equal(part, west[[3, 1], 6:36, 5:25])
    mixed = open_embedding_scene(tmp_path / "both", reading)
    plain = open_embedding_scene(tmp_path / "cogs", reading)
    assert {piece.layers[0].crs.to_epsg() for piece in mixed.pieces} == {32630, 32631}
    whole = Window(0, 0, plain.width, plain.height)
    for mine, theirs in zip(mixed.read(whole), plain.read(whole), strict=True):
        assert (theirs != 0).any()
        np.testing.assert_array_equal(mine, theirs)


def test_pixels_with_a_scale_each_in_a_group_per_zone_rows_from_the_south(tmp_path):
    root = zarr.open_group(tmp_path / "tessera_2024.zarr", mode="w", zarr_format=3)
    expected = []
    for number, zone in enumerate((ZONE_30, ZONE_31)):
        stored = stored_bytes(6, 20, 30, seed=number)
        scales = np.random.default_rng(number).uniform(0.01, 0.1, (20, 30)).astype(np.float32)
        scales[4, 5] = np.nan
        expected.append(np.where(np.isfinite(scales), stored * scales, np.nan))
        group = root.create_group(f"utm{30 + number}")
        group.attrs.update(
            {
                "proj:wkt2": CRS.from_user_input(zone).to_wkt(),
                "spatial:dimensions": ["northing", "easting"],
                "spatial:transform": [10, 0, 300_000, 0, 10, 5_699_800],
            }
        )
        turned = stored.transpose(1, 2, 0)[::-1]
        array(group, "embeddings", turned, ("northing", "easting", "band"))
        array(group, "scales", scales[::-1], ("northing", "easting"), fill_value=np.nan)
    found = open_embeddings(tmp_path / "tessera_2024.zarr")
    assert found.years == (2024,) and found.files[0].decoding.rule == "pixel_scale"
    for file, wanted, zone in zip(found.files, expected, (32630, 32631), strict=True):
        assert (file.crs.to_epsg(), file.upside_down) == (zone, True)
        assert file.transform * (0, 0) == (300_000, 5_700_000)
        values, valid = file.read(Window(0, 0, 30, 20))
        np.testing.assert_array_equal(values, wanted.astype(np.float32))
        assert not valid[4, 5] and valid.sum() == valid.size - 1
    scene = open_embedding_scene(tmp_path / "tessera_2024.zarr")
    here = scene.alone(scene.pieces[0])
    np.testing.assert_array_equal(
        here.read(Window(0, 0, 30, 20))[0], expected[0].astype(np.float32)
    )


@pytest.mark.parametrize("version", [2, 3])
def test_a_store_as_xarray_writes_it_is_placed_by_its_coordinates_or_grid_mapping(
    tmp_path, version
):
    xarray = pytest.importorskip("xarray", reason="the extra xarray is not there")
    values = np.random.default_rng(1).normal(size=(20, 30, 5)).astype(np.float32)
    values[2, 3] = np.nan
    path = tmp_path / "2024" / "grid_0.05_51.35_2024.zarr"
    path.parent.mkdir()
    coordinates = {"y": 5_700_000 - 10 * np.arange(20) - 5, "x": 500_005 + 10 * np.arange(30)}
    data = xarray.Dataset({"embedding": (("y", "x", "band"), values)}, coords=coordinates)
    data = data.assign_coords(spatial_ref=((), 0))
    data.spatial_ref.attrs["crs_wkt"] = CRS.from_epsg(32630).to_wkt()
    data.to_zarr(path, zarr_format=version)
    (file,) = open_embeddings(tmp_path, EmbeddingReading(preset="tessera", bands=5)).files
    assert (file.year, file.crs.to_epsg(), file.transform) == (2024, 32630, PLACE)
    found, valid = file.read(Window(0, 0, 30, 20))
    np.testing.assert_array_equal(found, values.transpose(2, 0, 1))
    assert not valid[2, 3] and valid.sum() == valid.size - 1


def test_only_the_finest_resolution_is_read_and_an_array_may_be_named(tmp_path):
    path = tmp_path / "many.zarr"
    root = zarr.open_group(path, mode="w", zarr_format=3)
    layout = [{"asset": "0"}, {"asset": "1", "derived_from": "0"}]
    root.attrs.update({"proj:code": ZONE_30, "multiscales": {"layout": layout}})
    for name, step in (("0", 10), ("1", 20)):
        group = root.create_group(name)
        group.attrs["spatial:transform"] = [step, 0, 500_000, 0, -step, 5_700_000]
        for kind in ("mean", "median"):
            array(group, kind, stored_bytes(3, 20, 20), ("band", "y", "x"))
    with pytest.raises(RasterError, match=r"several arrays.*0/mean, 0/median.*embeddings.layer"):
        open_embeddings(path)
    (file,) = open_embeddings(path, EmbeddingReading(layer="median")).files
    assert file.array.numbers.name == "0/median" and file.resolution_m == 10
    with pytest.raises(RasterError, match="has no array total"):
        open_embeddings(path, EmbeddingReading(layer="total"))


def test_a_store_that_says_too_little_or_is_damaged_is_refused_in_a_sentence(tmp_path):
    def store(name: str, **attributes) -> Path:
        group = zarr.open_group(tmp_path / name, mode="w", zarr_format=3)
        group.attrs.update(attributes)
        array(group, "e", stored_bytes(3, 20, 20), ("band", "y", "x"))
        return tmp_path / name

    with pytest.raises(RasterError, match="does not state its CRS"):
        open_embeddings(store("a.zarr"))
    with pytest.raises(RasterError, match="nothing says where e lies"):
        open_embeddings(store("b.zarr", **{"proj:code": ZONE_30}))
    with pytest.raises(RasterError, match="no six numbers"):
        open_embeddings(store("c.zarr", **{"proj:code": ZONE_30, "spatial:transform": [1, 2]}))
    with pytest.raises(RasterError, match="which is unknown"):
        open_embeddings(store("d.zarr", **{"proj:code": "EPSG:0"}))
    placed = {"proj:code": ZONE_30, "spatial:transform": list(PLACE[:6])}
    path = store("e.zarr", **placed)
    (file,) = open_embeddings(path).files
    before = sha256(path)
    chunk = next(path.rglob("c/0/0/0"))
    chunk.write_bytes(b"not zstd." + chunk.read_bytes()[9:])
    assert sha256(path) != before
    with pytest.raises(RasterError, match="The store is damaged"):
        file.read(Window(0, 0, 20, 20))
    (path / "zarr.json").write_text("{")
    with pytest.raises(RasterError, match="cannot be opened as a Zarr store"):
        open_embeddings(path)


class Runs:
    """Makes a file where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_code_in_a_store_is_not_run(tmp_path):
    path, trace = tmp_path / "evil.zarr", tmp_path / "ran"
    path.mkdir()
    array = {"zarr_format": 2, "shape": [3, 20, 20], "chunks": [3, 20, 20], "order": "C"}
    where = {"proj:code": ZONE_30, "spatial:transform": list(PLACE[:6])}
    names = {"_ARRAY_DIMENSIONS": ["band", "y", "x"]}
    (path / ".zattrs").write_text(json.dumps(where | names))
    (path / "0.0.0").write_bytes(pickle.dumps([Runs(trace), "|O", (3, 20, 20)]))
    for dtype, filters, compressor in (
        ("|O", [{"id": "pickle"}], None),
        ("|i1", None, {"id": "pickle"}),
        ("|i1", None, {"id": "base64"}),
    ):
        told = {"dtype": dtype, "fill_value": 0, "filters": filters, "compressor": compressor}
        (path / ".zarray").write_text(json.dumps(array | told))
        with pytest.raises(RasterError) as caught:
            open_embeddings(path)
    assert "'base64', which is not read" in str(caught.value)
    assert not trace.exists()


def test_values_of_alphaearth_in_degrees(tmp_path):
    stored = stored_bytes(4, 40, 50)
    degrees = Affine(9e-5, 0, -3.0, 0, -9e-5, 51.5)
    path = mosaic(tmp_path / "d.zarr", stored[None], crs="EPSG:4326", transform=degrees)
    (file,) = open_embeddings(path, READING).files
    values, _ = file.read(Window(0, 0, 50, 40))
    np.testing.assert_array_equal(values, alphaearth_value(stored.astype(float)).astype(np.float32))
    assert file.resolution_m == pytest.approx(10, rel=0.01)
