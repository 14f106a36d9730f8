"""A scene leads to raster files alone: no network, no other files, no code."""

import os

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from butterfly_sdm.errors import RasterError
from butterfly_sdm.imagery.products import open_raster

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
