"""Imagery that a config names: what cannot be known of it is refused."""

import pytest

from butterfly_sdm.errors import RasterError
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
