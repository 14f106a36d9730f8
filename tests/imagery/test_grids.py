"""Pixels are measured on the ground, not by what their CRS calls them."""

import numpy as np
import pytest
from pyproj import Transformer
from rasterio.crs import CRS

from butterfly_sdm.imagery.grids import crs_of_scene, grid_on_ground, on_ground, usual_crs
from butterfly_sdm.imagery.scene import open_scene
from tests.imagery.rasters import counts, write_raster


def at(crs, lon, lat, side_m=2560.0):
    crs = CRS.from_user_input(crs)
    to = Transformer.from_crs(4326, crs, always_xy=True)
    x, y = to.transform(np.atleast_1d(lon), np.atleast_1d(lat))
    return on_ground(crs, np.asarray(x), np.asarray(y), side_m)


@pytest.mark.parametrize("lat", [0.0, 41.4, 51.0, 64.0])
def test_web_mercator_is_wide_by_the_cosine_of_the_latitude(lat):
    ground = at(3857, 1.5, lat)
    # on the ellipsoid: a little more than the cosine along a parallel, other along a meridian
    assert ground.east[0] == pytest.approx(2560 * np.cos(np.radians(lat)), rel=0.004)
    assert ground.north[0] == pytest.approx(2560 * np.cos(np.radians(lat)), rel=0.007)
    assert ground.doubtful[0] == (lat > 0)
    assert abs(ground.turned[0]) < 0.1


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:4258", "OGC:CRS84"])
def test_a_degree_is_narrower_than_tall(crs):
    ground = at(crs, 2.0, 51.0, 320.0)
    assert ground.east[0] == pytest.approx(202, abs=1)
    assert ground.north[0] == pytest.approx(320, abs=1)
    assert ground.doubtful.all()
    assert "202 x 320 m" in ground.words()


def test_far_from_its_zone_a_grid_is_turned_and_its_squares_are_small():
    ground = at("EPSG:32633", np.array([15.0, 24.0, 33.0, 55.0]), np.full(4, 66.0))
    # convergence: the tangent is that of the longitude from the meridian times the sine of latitude
    turned = np.degrees(np.arctan(np.tan(np.radians([0, 9, 18, 40])) * np.sin(np.radians(66))))
    np.testing.assert_allclose(np.abs(ground.turned), turned, atol=0.2)
    assert list(ground.doubtful) == [False, True, True, True]
    assert ground.off[-1] > 0.03
    assert "turned by up to 37 degrees" in ground.words()


@pytest.mark.parametrize(
    ("crs", "lon", "lat"),
    [
        ("EPSG:27700", [-7.5, -3.0, 1.7], [57.5, 54.0, 52.5]),
        ("EPSG:32630", [-5.9, -3.0, -0.1], [60.0, 50.0, 36.0]),
        ("EPSG:25831", [0.2, 2.2, 3.3], [40.6, 41.4, 42.4]),
        ("EPSG:32756", [150.1, 153.0, 155.9], [-33.0, -40.0, -10.0]),
        ("EPSG:2154", [-4.0, 2.0, 8.0], [48.0, 45.0, 43.0]),
        ("EPSG:2056", [6.5, 8.2, 10.0], [46.2, 47.0, 46.7]),
    ],
)
def test_grids_within_their_area_raise_no_alarm(crs, lon, lat):
    assert not at(crs, lon, lat).doubtful.any()


def scene_in(tmp_path, crs, lon, lat, pixel):
    x, y = Transformer.from_crs(4326, crs, always_xy=True).transform(lon, lat)
    path = write_raster(tmp_path / "s.tif", counts(), left=x, top=y, pixel=pixel, crs=crs)
    return open_scene(path)


@pytest.mark.parametrize(
    ("crs", "pixel", "tiles", "expected"),
    [
        ("EPSG:4326", 9e-5, "EPSG:25831", "EPSG:25831"),  # that of the tiles
        ("EPSG:3857", 10, "EPSG:25831", "EPSG:25831"),
        ("EPSG:4326", 9e-5, None, "EPSG:32631"),  # nothing is known of the tiles
        ("EPSG:4326", 9e-5, "EPSG:32656", "EPSG:32631"),  # no grid for this ground
        ("EPSG:3857", 10, "EPSG:3857", None),  # as it was trained
        ("EPSG:3857", 10, None, None),
        ("EPSG:25831", 10, "EPSG:32656", None),  # pixels are what they are called
    ],
)
def test_a_scene_whose_pixels_are_no_metres_is_mapped_on_the_grid_of_the_tiles(
    tmp_path, crs, pixel, tiles, expected
):
    assert grid_on_ground(scene_in(tmp_path, crs, 2.1, 41.5, pixel), tiles) == expected


@pytest.mark.parametrize(
    ("lon", "lat", "crs"),
    [
        (2.1, 41.5, "EPSG:32631"),  # Catalonia
        (-1.5, 54.0, "EPSG:27700"),
        (151.0, -33.8, "EPSG:32756"),
        (-70.6, -33.4, "EPSG:32719"),
    ],
)
def test_the_grid_that_is_suggested_is_that_of_the_region(tmp_path, lon, lat, crs):
    assert crs_of_scene(scene_in(tmp_path, "EPSG:4326", lon, lat, 9e-5)) == crs
    assert usual_crs([lon], [lat]) == crs
