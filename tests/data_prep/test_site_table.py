"""Where sites lie, in which metres, and how far those are wrong."""

from dataclasses import replace

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from pyproj import Transformer

from butterfly_sdm.errors import ConfigError, DataError
from butterfly_sdm.imagery.grids import usual_crs
from data_prep.site_table import site_table, stretched, with_unrecorded
from tests.data_prep.surveys import grid_of_places, make_survey


@pytest.fixture
def survey():
    return make_survey(grid_of_places())


def test_sites_lie_in_metres_at_the_middle_of_their_footprints(survey):
    sites, detections, crs = site_table(survey)
    assert crs == "EPSG:27700"
    np.testing.assert_allclose(sites[["easting", "northing"]], grid_of_places(), atol=0.1)
    assert list(sites.index) == list(detections.index) == list(survey.detections.index)
    assert sites.visits.tolist() == survey.visits.tolist()


def test_a_crs_in_feet_gives_metres(survey):
    america = survey.sites.set_geometry(
        [shapely.box(lon, 40.7, lon + 0.01, 40.71) for lon in np.linspace(-74, -73.8, 12)], crs=4326
    )
    sites, _, crs = site_table(replace(survey, sites=america), position_crs="EPSG:2263")
    feet = Transformer.from_crs(4326, 2263, always_xy=True).transform(-73.995, 40.705)
    assert crs == "EPSG:2263"
    foot = 1200 / 3937  # of a survey of the United States, in metres
    np.testing.assert_allclose(
        sites.iloc[0][["easting", "northing"]].astype(float), np.array(feet) * foot
    )


@pytest.mark.parametrize(
    ("crs", "message"),
    [
        ("EPSG:4326", "is in degrees"),
        ("EPSG:999999", "Give a projected CRS such as EPSG:27700"),
    ],
)
def test_a_crs_that_is_no_metres_is_refused(survey, crs, message):
    with pytest.raises(ConfigError, match=message):
        site_table(survey, position_crs=crs)


def test_a_site_beyond_what_the_crs_can_tell_is_named(survey):
    sites = survey.sites.copy()
    sites.geometry = [*sites.geometry[:-1], shapely.Point(0, -80)]
    with pytest.raises(DataError, match="Site S011 has no position in ESRI:102035"):
        site_table(replace(survey, sites=sites), position_crs="ESRI:102035")  # half the globe


def test_a_survey_without_a_site_is_refused(survey):
    none = replace(
        survey,
        sites=survey.sites.iloc[:0],
        visits=survey.visits.iloc[:0],
        detections=survey.detections.iloc[:0],
    )
    with pytest.raises(DataError, match="No site is left"):
        site_table(none)


@pytest.mark.parametrize(
    ("lon", "lat", "crs"),
    [
        ((-3.0, -1.0), (51.0, 52.0), "EPSG:27700"),
        ((14.1, 16.2), (46.0, 46.9), "EPSG:32633"),
        ((149.0, 149.4), (-35.5, -35.0), "EPSG:32755"),
        ((179.5, 180.0), (10.0, 11.0), "EPSG:32660"),
    ],
)
def test_the_usual_crs_is_the_british_grid_or_the_zone_of_the_middle(lon, lat, crs):
    assert usual_crs(pd.Series(lon), pd.Series(lat)) == crs


def test_distances_are_wrong_as_the_formula_of_mercator_says():
    sites = pd.DataFrame({"lon": [10.0, 10.0], "lat": [0.0, 60.0]})
    # a sphere stretches by 1 / cos(60°) = 2; the ellipsoid by 2 % less or so, along the meridian
    assert stretched(sites, "EPSG:3857") == pytest.approx(1.0, abs=0.01)
    assert stretched(sites.iloc[:1], "EPSG:3857") < 0.01


def test_listed_sites_without_a_record_are_kept_with_no_visit(survey):
    listed = gpd.GeoDataFrame(
        geometry=[shapely.box(-2, 51, -1.99, 51.01), None, survey.sites.geometry.iloc[0]],
        index=["New", "Nowhere", "S000"],
        crs=4326,
    )
    kept = with_unrecorded(survey, listed)
    assert kept.visits["New"] == 0 and (kept.detections.loc["New"] == 0).all()
    assert "Nowhere" not in kept.visits.index and len(kept.visits) == len(survey.visits) + 1
    pd.testing.assert_frame_equal(
        kept.detections.loc[survey.detections.index], survey.detections, check_names=False
    )
    assert any(note.startswith("1 listed sites are left out") for note in kept.notes)
