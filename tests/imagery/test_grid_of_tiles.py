"""Scenes whose pixels are not what they are called, brought to the pixels of the tiles."""

import pytest

from butterfly_sdm.imagery.grids import on_grid
from butterfly_sdm.imagery.scene import open_scene
from tests.mapping.world import write_scene


@pytest.mark.parametrize(
    ("crs", "left", "top", "wanted_m", "size_m"),
    [
        ("EPSG:3857", -260_000, 6_680_000, 6.25, 6.25),  # 10 m are 6.2 at 51.4 N
        ("EPSG:3857", -260_000, 6_680_000, 3.0, 10.0),
        ("EPSG:32630", 540_000, 5_690_000, 9.5, 10.0),
    ],
)
def test_pixels_are_those_of_the_tiles_where_they_show_that_ground(
    tmp_path, crs, left, top, wanted_m, size_m
):
    path = write_scene(tmp_path / "s.tif", width=64, height=64, left=left, top=top, crs=crs)
    scene = on_grid(open_scene(path), "EPSG:27700", wanted_m=wanted_m)
    assert scene.resolution_m == scene.transform.a == size_m
