"""What files say about their pixels holds for the bands of which they say it."""

import json
import re

import numpy as np
import pytest
import rasterio
from pyproj import Transformer
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from butterfly_sdm.errors import MissingFileError, RasterError
from butterfly_sdm.imagery.discovery import assumed_offsets
from butterfly_sdm.imagery.options import CompositeOptions
from butterfly_sdm.imagery.products import SENTINEL2
from butterfly_sdm.imagery.scene import open_scene
from data_prep.imagery.composites import compose_lazily
from data_prep.imagery.cutting import cut_tiles
from data_prep.imagery.options import TileOptions
from data_prep.imagery.tile_grids import tile_grid
from tests.imagery.rasters import BANDS, counts, write_raster

ALL = Window(0, 0, 80, 60)


def vrt(path, files, missing):
    """Write a VRT with one band of each file, of one nodata value each."""
    bands = "".join(
        f'<VRTRasterBand dataType="UInt16" band="{n}"><Description>{name}</Description>'
        f"<NoDataValue>{value}</NoDataValue><SimpleSource>"
        f'<SourceFilename relativeToVRT="1">{file.name}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
        for n, (name, file, value) in enumerate(zip(BANDS, files, missing, strict=False), start=1)
    )
    path.write_text(
        '<VRTDataset rasterXSize="80" rasterYSize="60"><SRS>EPSG:27700</SRS>'
        f"<GeoTransform>400000,10,0,200000,0,-10</GeoTransform>{bands}</VRTDataset>"
    )
    return path


@pytest.mark.parametrize("missing", [(0, 65535, 0, 0), (9, 0, 0, 7), (65535, 0, 65535, 0)])
@pytest.mark.parametrize("as_folder", [False, True])
def test_every_band_has_its_own_nodata(tmp_path, missing, as_folder):
    values = counts() + 100
    files = []
    for n, value in enumerate(missing):
        values[n, n, :10] = value  # ten pixels of one row are missing in each band
        values[n, 10 + n, 0] = 1 if value == 0 else 0  # measured, whatever others call missing
        files.append(
            write_raster(tmp_path / f"{BANDS[n]}.tif", values[n : n + 1], names=None, nodata=value)
        )
    scene = open_scene(tmp_path if as_folder else vrt(tmp_path / "s.vrt", files, missing))
    read, valid = scene.select(BANDS).read(ALL)
    expected = np.ones((60, 80), bool)
    expected[:4, :10] = False
    np.testing.assert_array_equal(valid, expected)
    for n, value in enumerate(missing):
        assert (read[n, n, :10] == scene.nodata).all()
        assert read[n, 10 + n, 0] == 1 or value != 0
    assert (read[:, valid] != scene.nodata).all()


@pytest.mark.parametrize(
    ("scales", "offsets", "message"),
    [
        ((1e-4, 1e-4, 1e-4, 2e-4), (0, 0, 0, -0.1), "different scales .*nir: 0.0002, 500"),
        ((1e-4, 1e-4, 1e-4, 1e-4), (0, -0.1, 0, 0), "different offsets .*green: 0.0001, 1000"),
        ((1e-4, 1, 1e-4, 1e-4), (0, 5, 0, 0), "different scales"),
    ],
)
def test_bands_of_different_scales_are_refused_not_read_as_the_first(
    tmp_path, scales, offsets, message
):
    path = write_raster(tmp_path / "a.tif", counts())
    with rasterio.open(path, "r+") as out:
        out.scales, out.offsets = scales, offsets
    with pytest.raises(RasterError, match=message):
        open_scene(path)


def test_band_files_of_different_scales_are_refused_too(tmp_path):
    for n, name in enumerate(BANDS):
        path = write_raster(tmp_path / f"{name}.tif", counts()[n : n + 1], names=None)
        with rasterio.open(path, "r+") as out:
            out.scales = (1e-4 if n < 3 else 5e-5,)
    with pytest.raises(RasterError, match="different scales"):
        open_scene(tmp_path)


@pytest.mark.parametrize(
    ("asset", "band"),
    [
        ({"raster:scale": 1e-4, "raster:offset": -0.1, "nodata": 7}, {}),
        ({}, {"raster:scale": 1e-4, "raster:offset": -0.1, "nodata": 7}),
        ({"nodata": 7}, {"scale": 1e-4, "offset": -0.1}),
        ({"raster:bands": [{"scale": 1e-4, "offset": -0.1, "nodata": 7}]}, {}),
    ],
)
def test_an_item_states_numbers_of_an_asset_or_of_its_band(tmp_path, asset, band):
    values = counts(bands=1) + 1000
    values[0, 0, 0] = 7
    write_raster(tmp_path / "red.tif", values, names=None, nodata=None)
    item = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": "one",
        "properties": {"datetime": "2023-06-01T00:00:00Z"},
        "assets": {"red": {"href": "red.tif", "bands": [{"name": "red", **band}], **asset}},
    }
    (tmp_path / "one.json").write_text(json.dumps(item))
    scene = open_scene(tmp_path / "one.json")
    _, valid = scene.read(ALL)
    assert (scene.scale, round(scene.offset, 6), valid.sum()) == (1e-4, 1000, 60 * 80 - 1)


def alpha(path, names, **more):
    values = (counts() // 25 + 1).astype(np.uint8)
    values[3, 0, 0] = 0
    path = write_raster(path, values, names=names, nodata=None, **more)
    with rasterio.open(path, "r+") as out:
        out.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    return path, values


@pytest.mark.parametrize("named", [False, True])
def test_a_near_infrared_band_marked_as_alpha_is_a_band_and_masks_nothing(tmp_path, named):
    path, values = alpha(tmp_path / "a.tif", None if named else BANDS)
    scene = open_scene(path, bands=BANDS if named else None, scale=0.004)
    read, valid = scene.read(ALL)
    np.testing.assert_array_equal(read, np.maximum(values, 1))  # 0 means no measurement in tiles
    assert valid.all()


def test_alpha_stays_a_mask_where_three_bands_are_named(tmp_path):
    path, values = alpha(tmp_path / "a.tif", None)
    read, valid = open_scene(path, bands=BANDS[:3], scale=0.004).read(ALL)
    assert not valid[0, 0]
    assert valid.sum() == 60 * 80 - 1
    np.testing.assert_array_equal(read[:, valid], values[:3][:, valid])
    with pytest.raises(RasterError, match="Band 4 is marked as alpha"):
        open_scene(path)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32"])
@pytest.mark.parametrize("bands", [2, 4, 12])
def test_zero_in_one_of_several_untagged_bands_is_measured(tmp_path, dtype, bands):
    names = tuple(SENTINEL2.values())[:bands]
    values = np.random.default_rng(1).integers(1, 200, (bands, 60, 80)).astype(dtype)
    values[:, :, :30] = 0  # outside the swath
    values[1, 5:9, 50:54] = 0
    path = write_raster(tmp_path / "a.tif", values, names=names, nodata=None)
    read, valid = open_scene(path).read(ALL)
    assert not valid[:, :30].any()
    assert valid[:, 30:].all()
    assert (read[:, :, :30] == 0).all()
    np.testing.assert_array_equal(read[:, :, 30:], np.maximum(values[:, :, 30:], 1))
    # stated, or of one band: as it is stated, and as the archives fill their files
    assert not open_scene(path, nodata=0).read(ALL)[1][5:9, 50:54].any()
    one = write_raster(tmp_path / "B04.tif", values[1:2], names=("red",), nodata=None)
    assert not open_scene(one).read(ALL)[1][5:9, 50:54].any()


def test_zero_in_one_of_several_untagged_bands_is_measured_in_tiles_and_composites(tmp_path):
    values = np.full((4, 64, 64), 900, np.uint16)
    values[:, :, :16] = 0
    values[2, 16:48, 16:48] = 0
    days = [
        write_raster(tmp_path / f"S2_2023060{n}.tif", values, nodata=None, crs="EPSG:32630")
        for n in (1, 2, 3)
    ]
    options = CompositeOptions(method="median")
    composed, valid = compose_lazily(open_scene(days), options)[0].read(Window(0, 0, 64, 64))
    assert valid[:, 16:].all()
    assert not valid[:, :16].any()
    assert (composed[2, 16:48, 16:48] == 1).all()
    scene = open_scene(days[0])
    left, bottom, right, top = scene.bounds
    to = Transformer.from_crs(scene.crs, 4326, always_xy=True)
    place = [np.array([v]) for v in to.transform((left + right) / 2 + 80, (bottom + top) / 2)]
    for resolution, size in ((10, 40), (20, 20), (8, 48)):
        grid = tile_grid(*place, scene, TileOptions(size_px=size, resolution_m=resolution))
        out = tmp_path / f"tiles_{resolution}.npy"
        assert cut_tiles(scene, grid, out)[0] == 1, resolution
        tile = np.load(out)[0]
        assert (tile[2] == 1).mean() > 0.3, resolution
        assert (tile[[0, 1, 3]] == 900).all(), resolution


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_zero_in_every_band_of_untagged_fractions_is_outside_the_swath(tmp_path, dtype):
    values = (counts() * 1e-4 + 1e-4).astype(dtype)
    values[:, :, :30] = 0
    values[2, 5, 50] = 0  # measured: the other bands are not zero
    read, valid = open_scene(write_raster(tmp_path / "a.tif", values, nodata=None), scale=1.0).read(
        ALL
    )
    assert not valid[:, :30].any()
    assert valid[:, 30:].all()
    assert read[2, 5, 50] == 1
    assert (read[:, :, :30] == 0).all()


@pytest.mark.parametrize(
    ("value", "dtype", "scale"),
    [
        (-9999, "int16", None),
        (-9999, "float32", 1.0),
        (-0.7, "float32", 1.0),
        (70000, "int32", None),
        (9.9, "float32", 1.0),
    ],
)
def test_values_that_tiles_cannot_hold_are_refused_not_changed(tmp_path, value, dtype, scale):
    values = counts().astype(dtype) * (1 if scale is None else np.float32(1e-4))
    values[1, 7, 7] = value
    scene = open_scene(write_raster(tmp_path / "a.tif", values, nodata=None), scale=scale)
    with pytest.raises(RasterError, match=r"a\.tif holds a value that is no reflectance.*nodata"):
        scene.read(ALL)
    scene = open_scene(tmp_path / "a.tif", scale=scale, nodata=float(values[1, 7, 7]))
    assert scene.read(ALL)[1].sum() == 60 * 80 - 1


def test_the_noise_of_dark_water_and_a_missing_number_are_no_error(tmp_path):
    values = counts().astype(np.float32) * np.float32(1e-4)
    values[0, 1, 1], values[0, 2, 2] = -0.004, np.nan
    read, valid = open_scene(write_raster(tmp_path / "a.tif", values, nodata=None), scale=1.0).read(
        ALL
    )
    assert (read[0, 1, 1], valid[1, 1], valid[2, 2]) == (1, True, False)


def test_fractions_beside_counts_are_not_read_as_zero(tmp_path):
    write_raster(tmp_path / "a.tif", counts())
    fractions = (counts() * 1e-4).astype(np.float32)
    write_raster(tmp_path / "b.tif", fractions, left=410_000, nodata=None)
    with pytest.raises(RasterError, match=r"b\.tif holds fractions"):
        open_scene(tmp_path)


def band_files(folder, stem, codes, seed=0):
    values = counts(seed=seed, bands=len(codes))
    for n, code in enumerate(codes):
        write_raster(
            folder / f"{stem.format(code)}.tif", values[n : n + 1], names=None, nodata=None
        )
    return values


def test_names_of_the_copernicus_browser_are_understood(tmp_path):
    stem = "2023-06-14-00_00_2023-06-14-23_59_Sentinel-2_L2A_{}_(Raw)"
    values = band_files(tmp_path, stem, ["B04", "B03", "B02", "B08"])
    scene = open_scene(tmp_path)
    np.testing.assert_array_equal(scene.select(BANDS).read(ALL)[0], values)
    assert [piece.date for piece in scene.pieces] == ["2023-06-14"]


def test_two_dates_in_one_folder_are_two_products_and_a_thumbnail_is_none(tmp_path):
    first = band_files(tmp_path, "T30UXC_20210601T110621_{}_10m", ["B04", "B08"])
    band_files(tmp_path, "T30UXC_20210701T110621_{}_10m", ["B04", "B08"], seed=1)
    write_raster(tmp_path / "thumbnail.tif", counts(bands=3), names=None)
    scene = open_scene(tmp_path)
    assert [piece.date for piece in scene.pieces] == ["2021-06-01", "2021-07-01"]
    np.testing.assert_array_equal(scene.select(["red", "nir"]).read(ALL)[0], first)


def test_one_band_twice_in_a_product_is_an_error(tmp_path):
    band_files(tmp_path, "T30UXC_20210601T110621_{}_10m", ["B04"])
    band_files(tmp_path, "T30UXC_20210601T110621_{}_20m", ["B04"])
    with pytest.raises(RasterError, match="both the band red"):
        open_scene(tmp_path)


@pytest.mark.parametrize(
    ("mission", "codes"),
    [("LT05", "3214"), ("LE07", "3214"), ("LC08", "4325"), ("LC09", "4325")],
)
def test_bands_of_landsat_go_by_the_numbers_of_their_sensor(tmp_path, mission, codes):
    stem = mission + "_L2SP_203024_20100601_20200823_02_T1_SR_B{}"
    values = band_files(tmp_path, stem, list(codes)) + 0
    write_raster(tmp_path / f"{stem[:40]}_ST_B6.tif", counts(bands=1), names=None)
    scene = open_scene(tmp_path)
    np.testing.assert_array_equal(scene.select(BANDS).read(ALL)[0], values)
    # 0.0000275 * 10000 - 0.2
    assert (10_000 - scene.offset) * scene.scale == pytest.approx(0.075)
    assert not assumed_offsets(scene.pieces)


def test_landsat_without_a_word_of_its_scale_is_refused(tmp_path):
    band_files(tmp_path, "LC08_L1TP_203024_20200601_20200823_02_T1_B{}", list("432"))
    with pytest.raises(RasterError, match="nobody knows its scale"):
        open_scene(tmp_path)


@pytest.mark.parametrize(
    ("days", "said"),
    [
        (["20210601", "20230601"], "1 products .* 1 others are older"),
        (["20220125"], "1 products .*2022-01-25"),
        (["20200101", "20220124"], None),
    ],
)
def test_counts_that_may_be_higher_by_a_thousand_are_told(tmp_path, days, said):
    for day in days:
        band_files(tmp_path / day, f"T30UXC_{day}T110621_{{}}_10m", ["B04", "B03"])
    found = assumed_offsets(open_scene(tmp_path).pieces)
    assert (found == []) if said is None else re.search(said, found[0])
    assert not assumed_offsets(open_scene(tmp_path, offset=0).pieces)


@pytest.mark.parametrize(("sensor", "red", "nir"), [("S", "B04", "B08"), ("L", "B04", "B05")])
def test_files_of_hls_have_the_bands_of_their_sensor_and_the_day_of_the_year(
    tmp_path, sensor, red, nir
):
    values = {}
    for day in ("2023158", "2023174"):
        for name in (red, nir, "B02", "B10", "Fmask", "SZA"):
            pixels = counts(bands=1, seed=len(values)).astype(np.int16)
            values[day, name] = pixels[0]
            path = tmp_path / f"HLS.{sensor}30.T30UXC.{day}T110621.v2.0.{name}.tif"
            write_raster(path, pixels, names=None, nodata=-9999)
            with rasterio.open(path, "r+") as file:
                file.scales = (1e-4,)
    scene = open_scene(tmp_path)
    assert [piece.date for piece in scene.pieces] == ["2023-06-07", "2023-06-23"]
    assert {"red", "nir"} <= set(scene.bands)
    read, _ = scene.select(["red", "nir"]).read(ALL)
    np.testing.assert_array_equal(read[0], values["2023158", red])
    np.testing.assert_array_equal(read[1], values["2023158", nir])
    assert not assumed_offsets(scene.pieces)


@pytest.mark.parametrize(
    "wrong",
    [
        {"raster:bands": [[[0]]]},
        {"raster:bands": 7},
        {"bands": {"name": "red"}},
        {"raster:scale": "many"},
        {"raster:scale": 0},
        {"raster:scale": 1e-4, "raster:offset": float("inf")},
        {"href": {"a": 1}},
        {"proj:shape": "x", "proj:transform": [None] * 6, "proj:epsg": 27700},
    ],
)
def test_an_item_that_is_not_stac_is_one_sentence(tmp_path, wrong):
    write_raster(tmp_path / "red.tif", counts(bands=1), names=None, nodata=None)
    item = {
        "type": "Feature",
        "id": "one",
        "properties": {"datetime": "2023-06-01T00:00:00Z"},
        "assets": {"red": {"href": "red.tif", **wrong}},
    }
    (tmp_path / "one.json").write_text(json.dumps(item))
    try:  # what does not matter may be passed over
        open_scene(tmp_path / "one.json").read(ALL)
    except (RasterError, MissingFileError) as error:
        assert "one.json" in str(error) or "red.tif" in str(error)


def test_bands_of_several_types_are_read_as_layers_of_one_type_each(tmp_path):
    files = [write_raster(tmp_path / f"{n}.tif", counts(bands=1, seed=n)) for n in range(2)]
    path = vrt(tmp_path / "a.vrt", files, (0, 0))
    path.write_text(path.read_text().replace('"UInt16" band="2"', '"Int32" band="2"'))
    scene = open_scene(path)
    assert [layer.dtype for layer in scene.pieces[0].layers] == ["uint16", "int32"]
    read, _ = scene.read(ALL)
    np.testing.assert_array_equal(read, np.concatenate([counts(bands=1, seed=n) for n in (0, 1)]))
