"""Imagery that a config names: what cannot be known of it is refused."""

import numpy as np
import pytest
from rasterio.windows import Window

from butterfly_sdm.errors import ConfigError, RasterError
from butterfly_sdm.imagery.options import CompositeOptions, SceneOptions
from data_prep.imagery.scenes import scene_of
from tests.imagery.rasters import counts, write_raster


@pytest.mark.parametrize("classified", [0, 1, 2])
def test_the_least_cloudy_date_needs_the_clouds_of_every_date(tmp_path, classified):
    for number, day in enumerate(("20230601", "20230701")):
        folder = tmp_path / day
        values = counts(seed=number)[:1]
        write_raster(folder / f"T30UXC_{day}_B04.tif", values, names=None)
        if number < classified:
            write_raster(
                folder / f"T30UXC_{day}_SCL.tif", values.astype("uint8") * 0 + 4, names=None
            )
    paths = (tmp_path / "20230601", tmp_path / "20230701")

    def make(method):
        options = SceneOptions(paths=paths, composite=CompositeOptions(method=method))
        return scene_of(options, scratch=tmp_path / method)[0]

    (tmp_path / "median").mkdir()
    (tmp_path / "least_cloudy").mkdir()
    assert make("median").bands == ("red",)
    if classified == 2:
        assert make("least_cloudy").bands == ("red",)
    else:
        with pytest.raises(RasterError, match=f"{2 - classified} of 2 scenes.*least cloudy"):
            make("least_cloudy")


def dates(folder, *days):
    for number, day in enumerate(days):
        values = counts(seed=number)[:1]
        write_raster(folder / day / f"T30UXC_{day}_B04.tif", values, names=None)
    return tuple(folder / day for day in days)


def test_a_section_that_names_nothing_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"names no imagery. Give scenes\.paths, or scenes\.stac"):
        scene_of(SceneOptions(), scratch=tmp_path)


def test_a_search_needs_to_know_where(tmp_path):
    stac = {"url": "https://nowhere.invalid", "start": "2023-06-01", "end": "2023-06-30"}
    with pytest.raises(ConfigError, match=r"scenes\.stac\.bbox is missing"):
        scene_of(SceneOptions(stac=stac), scratch=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_composite_without_clouds_known_says_so(tmp_path, caplog):
    paths = dates(tmp_path, "20230601", "20230701")
    scene_of(SceneOptions(paths=paths, composite=CompositeOptions()), scratch=tmp_path)
    assert "the composite cannot leave out clouds" in caplog.text


def test_a_written_mosaic_is_the_lazy_one_and_names_its_files(tmp_path):
    paths = dates(tmp_path, "20230601", "20230701", "20230801")
    options = [CompositeOptions(mosaic=mosaic) for mosaic in (False, True)]
    (lazy, seen), (written, told) = (
        scene_of(SceneOptions(paths=paths, composite=one), scratch=tmp_path) for one in options
    )
    window = Window(0, 0, lazy.width, lazy.height)
    for one, other in zip(lazy.read(window), written.read(window), strict=True):
        np.testing.assert_array_equal(one, other)
    assert seen.files.keys() == told.files.keys() and len(told.files) == 3


def test_what_is_of_no_use_is_refused_before_dates_are_composed(tmp_path):
    paths = dates(tmp_path, "20230601", "20230701")

    def refuse(scene):
        raise RasterError(f"{len(scene.pieces)} pieces")

    options = SceneOptions(paths=paths, composite=CompositeOptions(mosaic=True))
    with pytest.raises(RasterError, match="2 pieces"):
        scene_of(options, scratch=tmp_path, check=refuse)
    assert not (tmp_path / "composite.tif").exists()
