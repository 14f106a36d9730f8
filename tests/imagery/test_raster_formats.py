"""A scene leads to raster files alone: no network, no other files, no code."""

import ast
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from butterfly_sdm.errors import MissingFileError, RasterError
from butterfly_sdm.figures.map_pictures import read_bands
from butterfly_sdm.imagery.products import open_raster
from butterfly_sdm.mapping.map_file import check_map
from butterfly_sdm.mapping.map_reader import MapReader
from butterfly_sdm.mapping.surfaces.covariates import sample_raster

SOURCE = (
    '<SimpleSource><SourceFilename relativeToVRT="{relative}">{name}</SourceFilename>'
    "<SourceBand>1</SourceBand></SimpleSource>"
)
RAW = (
    '<SourceFilename relativeToVRT="{relative}">{name}</SourceFilename><ImageOffset>0</ImageOffset>'
    "<PixelOffset>1</PixelOffset><LineOffset>4</LineOffset>"
)


@pytest.fixture
def raster(tmp_path):
    path = tmp_path / "a.tif"
    profile = {"width": 4, "height": 4, "count": 1, "dtype": "uint8", "crs": "EPSG:32630"}
    with rasterio.open(path, "w", transform=from_origin(0, 40, 10, 10), **profile) as out:
        out.write(np.full((1, 4, 4), 7, np.uint8))
    return path


def vrt(path, inner, kind=""):
    path.write_text(
        f'<VRTDataset rasterXSize="4" rasterYSize="4"><VRTRasterBand dataType="Byte" band="1" '
        f"{kind}>{inner}</VRTRasterBand></VRTDataset>"
    )
    return path


def test_virtual_rasters_of_rasters_are_read(raster, tmp_path):
    inner = vrt(tmp_path / "b.vrt", SOURCE.format(relative=1, name="a.tif"))
    outer = vrt(tmp_path / "c.vrt", SOURCE.format(relative=0, name=inner))
    for path in (raster, inner, outer):
        with open_raster(str(path)) as source:
            assert (source.read(1) == 7).all()


@pytest.mark.parametrize(
    "name", ["/vsicurl/http://h.invalid/a.tif", "https://h.invalid/a.tif", "/vsizip/a.zip/b.tif"]
)
def test_a_virtual_raster_leads_to_no_other_address(tmp_path, name):
    inner = vrt(tmp_path / "b.vrt", SOURCE.format(relative=0, name=name))
    outer = vrt(tmp_path / "c.vrt", SOURCE.format(relative=1, name="b.vrt"))
    for path in (inner, outer):
        with pytest.raises(RasterError, match=r"b\.vrt leads to .*Name that address"):
            open_raster(str(path))


def test_a_virtual_raster_shows_no_other_file(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("user:secret:1:1:" * 4)
    for relative, name in ((0, secret), (1, "secret.txt")):
        raw = vrt(
            tmp_path / "b.vrt",
            RAW.format(relative=relative, name=name),
            'subClass="VRTRawRasterBand"',
        )
        with pytest.raises(RasterError, match="raw band, which shows the bytes of any file"):
            open_raster(str(raw))
        plain = vrt(tmp_path / "c.vrt", SOURCE.format(relative=relative, name=name))
        with pytest.raises(RasterError, match="none of the formats"):
            open_raster(str(plain))
    python = "<PixelFunctionLanguage>Python</PixelFunctionLanguage>"
    with pytest.raises(RasterError, match="holds Python code"):
        open_raster(str(vrt(tmp_path / "d.vrt", python, 'subClass="VRTDerivedRasterBand"')))


def test_a_virtual_raster_of_itself_ends(tmp_path):
    path = vrt(tmp_path / "b.vrt", SOURCE.format(relative=1, name="b.vrt"))
    with pytest.raises(RasterError, match="nested too deeply"):
        open_raster(str(path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_named_pipes_and_other_formats_are_refused(tmp_path, raster):
    os.mkfifo(tmp_path / "a.pipe")
    for path in (
        tmp_path / "a.pipe",
        vrt(tmp_path / "b.vrt", SOURCE.format(relative=1, name="a.pipe")),
    ):
        with pytest.raises(RasterError, match="a named pipe or device"):
            open_raster(str(path))
    wms = tmp_path / "a.tif.xml"
    wms.write_text(
        '<GDAL_WMS><Service name="TMS"><ServerUrl>http://h.invalid</ServerUrl></Service>'
    )
    for path in (str(wms), "NETCDF:a.nc:v", "WMS:http://h.invalid"):
        with pytest.raises(RasterError, match="cannot be opened as a raster"):
            open_raster(path)


@pytest.mark.parametrize("name", ["/vsicurl/http://h.invalid/a.tif", "../b.tif", "/etc/passwd"])
@pytest.mark.parametrize("where", ["inside", "beside"])
def test_overviews_lie_beside_their_raster_alone(raster, tmp_path, name, where):
    if where == "inside":
        with rasterio.open(raster, "r+") as out:
            out.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=name)
    else:
        (tmp_path / "a.tif.aux.xml").write_text(
            '<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">'
            f"{name}</MDI></Metadata></PAMDataset>"
        )
    outer = vrt(tmp_path / "c.vrt", SOURCE.format(relative=1, name="a.tif"))
    for path in (raster, outer):
        with pytest.raises(RasterError, match=r"a\.tif has its overviews in .*gdal_translate"):
            open_raster(path)


@pytest.mark.parametrize("ending", [".ovr", ".msk", ".OVR", ".MSK"])
def test_what_lies_beside_a_raster_is_a_raster(raster, tmp_path, ending):
    secret = tmp_path / "secret.txt"
    secret.write_text("user:secret:1:1:" * 4)
    beside = tmp_path / f"a.tif{ending}"
    vrt(beside, RAW.format(relative=0, name=secret), 'subClass="VRTRawRasterBand"')
    outer = vrt(tmp_path / "c.vrt", SOURCE.format(relative=1, name="a.tif"))
    for path in (raster, outer):
        with pytest.raises(RasterError, match="raw band, which shows the bytes of any file"):
            open_raster(path)
    beside.write_bytes(raster.read_bytes())
    with open_raster(raster) as source:
        assert (source.read(1) == 7).all()


def test_overviews_and_masks_of_rasters_are_used(raster):
    with (
        rasterio.Env(TIFF_USE_OVR=True, GDAL_TIFF_INTERNAL_MASK=False),
        rasterio.open(raster, "r+") as out,
    ):
        out.build_overviews([2])
        out.write_mask(np.eye(4, dtype=bool))
    assert {path.suffix for path in raster.parent.iterdir()} >= {".tif", ".msk"}
    with open_raster(raster) as source:
        assert source.overviews(1) == [2] and source.read_masks(1).sum() == 4 * 255


def test_rasters_that_say_no_place_are_opened_without_a_warning_by_threads_too(tmp_path):
    paths = []
    for number in range(24):
        paths.append(tmp_path / f"{number}.tif")
        options = {"driver": "GTiff", "count": 1, "height": 4, "width": 4, "dtype": "uint8"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rasterio.open(paths[-1], "w", **options).close()
        text = (
            "<VRTDataset rasterXSize='4' rasterYSize='4'><VRTRasterBand dataType='Byte' band='1'>"
        )
        text += f"<SimpleSource><SourceFilename>{paths[-1]}</SourceFilename></SimpleSource>"
        text += "</VRTRasterBand></VRTDataset>"
        (tmp_path / f"{number}.vrt").write_text(text)
    with warnings.catch_warnings(), ThreadPoolExecutor(8) as threads:
        warnings.simplefilter("error")
        for source in threads.map(open_raster, sorted(tmp_path.iterdir())):
            source.close()


def test_every_raster_is_read_through_the_one_door():
    root = Path(__file__).parents[2]
    doors = {"butterfly_sdm/imagery/products.py", "butterfly_sdm/imagery/raster_formats.py"}
    elsewhere = []
    for path in sorted([*root.glob("butterfly_sdm/**/*.py"), *root.glob("data_prep/**/*.py")]):
        name = path.relative_to(root).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "rasterio":
                assert "open" not in {alias.name for alias in node.names}, name
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "rasterio.open"):
                continue
            mode = node.args[1].value if len(node.args) > 1 else "r"
            if mode == "r" and name not in doors:
                elsewhere.append(f"{name}:{node.lineno}")
    assert not elsewhere, f"use open_raster: {elsewhere}"


def _sample(path):
    return sample_raster(path, np.zeros(1), np.zeros(1), crs="EPSG:32630")


@pytest.mark.parametrize("what", ["pipe", "vrt", "other format"])
def test_maps_come_through_the_same_door(raster, tmp_path, what):
    path = tmp_path / "map.tif"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "vrt":
        vrt(path, RAW.format(relative=0, name="/etc/passwd"), 'subClass="VRTRawRasterBand"')
    else:
        path.write_bytes(b"P5 2 2 255 abcd")
    for read in (MapReader, check_map, read_bands, _sample):
        with pytest.raises((RasterError, MissingFileError)):
            read(path)
