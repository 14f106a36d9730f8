"""Values of a raster in squares of ground."""

import numpy as np
import pytest
from pyproj import Transformer

from butterfly_sdm.errors import MissingFileError, RasterError
from butterfly_sdm.imagery.squares import square_means, square_shares
from tests.imagery.rasters import write_raster


@pytest.mark.parametrize(
    ("crs", "left", "top", "pixel"),
    [
        ("EPSG:27700", 400_000, 300_000, 50),
        ("EPSG:4326", -2.0, 52.55, 0.0007),
        ("EPSG:32630", 567_000, 5_828_500, 50),
    ],
)
@pytest.mark.parametrize("side", [20, 1010, 4030])
def test_means_are_those_of_the_pixels_whose_centre_lies_within(
    tmp_path, crs, left, top, pixel, side
):
    random = np.random.default_rng(0)
    values = random.normal(10, 3, (1, 300, 300)).astype(np.float32)
    values[0, :80, :80] = -9999
    values[0, 200, :] = np.nan
    path = write_raster(
        tmp_path / "a.tif",
        values,
        left=left,
        top=top,
        pixel=pixel,
        crs=crs,
        names=None,
        nodata=-9999,
    )
    easting, northing = random.uniform(398_000, 416_000, 60), random.uniform(284_000, 302_000, 60)
    found = square_means(path, easting, northing, "EPSG:27700", side_m=side)
    rows, columns = np.mgrid[0:300, 0:300]
    there = Transformer.from_crs(crs, "EPSG:27700", always_xy=True)
    # of every pixel, exactly
    x, y = there.transform(left + (columns + 0.5) * pixel, top - (rows + 0.5) * pixel)
    good = np.isfinite(values[0]) & (values[0] != -9999)
    expected = np.full(60, np.nan)
    for site in range(60):
        inside = (np.abs(x - easting[site]) <= side / 2) & (np.abs(y - northing[site]) <= side / 2)
        if not inside.any():
            here = there.transform(easting[site], northing[site], direction="INVERSE")
            column, row = (
                int(np.floor((here[0] - left) / pixel)),
                int(np.floor((top - here[1]) / pixel)),
            )
            if 0 <= row < 300 and 0 <= column < 300:
                inside[row, column] = True
        inside &= good
        if inside.any():
            expected[site] = values[0][inside].astype(float).mean()
    assert 0 < np.isnan(expected).sum() < 55
    # In another CRS one of 300 pixels may count or not, if its centre lies on the edge.
    np.testing.assert_allclose(found, expected, rtol=1e-6 if crs == "EPSG:27700" else 4e-3)


def test_shares_of_classes_leave_out_what_is_missing(tmp_path):
    classes = np.full((1, 40, 40), 1, np.uint8)
    classes[0, :, :10] = 2
    classes[0, :5] = 255
    path = write_raster(
        tmp_path / "cover.tif", classes, left=400_000, top=200_000, pixel=50, names=None, nodata=255
    )
    shares = square_shares(
        path,
        np.array([400_500, 401_500, 500_000]),
        np.array([199_500, 198_500, 0]),
        "EPSG:27700",
        side_m=1000,
    )
    assert shares.columns.tolist() == [1, 2]
    assert shares.iloc[0].tolist() == [0.5, 0.5]
    assert shares.iloc[1].fillna(0).tolist() == [1.0, 0.0]
    assert shares.iloc[2].isna().all()


def test_a_missing_file_or_band_is_an_error(tmp_path):
    place = np.zeros(1)
    with pytest.raises(MissingFileError, match="There is no raster"):
        square_means(tmp_path / "a.tif", place, place, "EPSG:27700", side_m=10)
    path = write_raster(tmp_path / "a.tif", np.ones((1, 9, 9), np.float32), names=None)
    with pytest.raises(RasterError, match="has 1 bands; band 2 is asked for"):
        square_means(path, place, place, "EPSG:27700", side_m=10, band=2)
