"""Covariates from tables and rasters: the right numbers, missing where there are none."""

import json

import numpy as np
import pandas as pd
import pytest
import rasterio

from butterfly_sdm.errors import DataError, MissingFileError, RasterError
from data_prep.covariates import raster_covariates, read_covariates, site_covariates
from data_prep.options import CovariateOptions, CovariateRasterOptions
from tests.imagery.rasters import write_raster

LEFT, TOP = 400_000, 200_000


@pytest.fixture
def sites() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "easting": [LEFT + 500.0, LEFT + 1500, LEFT + 50_000],
            "northing": [TOP - 500.0, TOP - 1500, TOP],
        },
        index=pd.Index(["a", "b", "c"], name="site_id"),
    )


def test_the_mean_in_a_square_is_that_of_its_pixels(tmp_path, sites):
    values = np.random.default_rng(0).normal(10, 3, (1, 40, 40)).astype(np.float32)
    path = write_raster(tmp_path / "climate.tif", values, pixel=50, names=None, nodata=-9999)
    table = raster_covariates(
        CovariateRasterOptions(path=path, name="rain", side_m=(400, 1000)),
        sites,
        position_crs="EPSG:27700",
    )
    assert list(table.columns) == ["rain_400m", "rain_1000m"]
    assert table.loc["a", "rain_400m"] == pytest.approx(values[0, 6:14, 6:14].mean(), rel=1e-5)
    assert table.loc["b", "rain_1000m"] == pytest.approx(values[0, 20:40, 20:40].mean(), rel=1e-5)
    assert table.loc["c"].isna().all()


@pytest.mark.parametrize(
    ("stored", "scale", "offset", "value"),
    [(2881, 0.1, -273.15, 14.95), (50, 0.5, 0.0, 25.0), (7, 1.0, 100.0, 107.0)],
)
def test_the_mean_is_in_the_unit_that_the_raster_states(
    tmp_path, sites, stored, scale, offset, value
):
    values = np.full((1, 40, 40), stored, np.uint16)
    path = write_raster(tmp_path / "tas.tif", values, pixel=50, names=None, nodata=65535)
    with rasterio.open(path, "r+") as out:
        out.scales, out.offsets = (scale,), (offset,)
    options = CovariateRasterOptions(path=path, name="tas", side_m=(400,))
    table = raster_covariates(options, sites, position_crs="EPSG:27700")
    assert table.loc["a", "tas_400m"] == pytest.approx(value)
    assert np.isnan(table.loc["c", "tas_400m"])


def test_fractions_of_classes_sum_to_one_and_skip_missing_pixels(tmp_path, sites):
    classes = np.full((1, 40, 40), 1, np.uint8)
    classes[0, :, :10] = 2
    classes[0, :5] = 255
    path = write_raster(tmp_path / "cover.tif", classes, pixel=50, names=None, nodata=255)
    table = raster_covariates(
        CovariateRasterOptions(
            path=path,
            name="cover",
            kind="fractions",
            side_m=(1000,),
            classes={1: "wood", 2: "field", 7: "sea"},
        ),
        sites,
        position_crs="EPSG:27700",
    )
    assert table.loc["a"].tolist() == [0.5, 0.5, 0.0]
    assert table.loc["b"].tolist() == [1.0, 0.0, 0.0]
    assert table.loc["c"].isna().all()
    assert raster_covariates(
        CovariateRasterOptions(path=path, name="c", kind="fractions"),
        sites,
        position_crs="EPSG:27700",
    ).columns.tolist() == [
        "c_1_1000m",
        "c_2_1000m",
    ]


def test_a_class_that_none_of_some_sites_has_is_known_to_be_absent(tmp_path, sites):
    ones = np.ones((1, 40, 40), np.uint8)
    path = write_raster(tmp_path / "cover.tif", ones, pixel=50, names=None, nodata=255)
    raster = CovariateRasterOptions(path=path, name="c", kind="fractions", side_m=(1000,))
    known = ("c_3_1000m", "c_1_1000m", "c_3_2000m", "other_4_1000m")
    table = raster_covariates(raster, sites, position_crs="EPSG:27700", known=known)
    assert table.columns.tolist() == ["c_1_1000m", "c_3_1000m"]
    assert table.loc[["a", "b"]].to_numpy().tolist() == [[1.0, 0.0], [1.0, 0.0]]
    assert table.loc["c"].isna().all()


def test_pixels_larger_than_the_square_and_degrees_are_understood(tmp_path, sites):
    values = np.arange(800, dtype=np.float32).reshape(1, 20, 40)
    path = write_raster(
        tmp_path / "coarse.tif",
        values,
        left=-2.5,
        top=52,
        pixel=0.05,
        crs="EPSG:4326",
        names=None,
        nodata=None,
    )
    table = raster_covariates(
        CovariateRasterOptions(path=path, name="t", side_m=(100,)), sites, position_crs="EPSG:27700"
    )
    from pyproj import Transformer

    lon, lat = Transformer.from_crs(27700, 4326, always_xy=True).transform(
        sites["easting"], sites["northing"]
    )
    rows, columns = (
        ((52 - np.array(lat)) / 0.05).astype(int),
        ((np.array(lon) + 2.5) / 0.05).astype(int),
    )
    assert table["t_100m"].tolist() == values[0, rows, columns].tolist()


def test_a_raster_elsewhere_and_a_band_that_is_not_there_are_errors(tmp_path, sites):
    path = write_raster(tmp_path / "a.tif", np.ones((1, 9, 9), np.float32), left=0, names=None)
    with pytest.raises(RasterError, match="has no value at any of the 3 sites"):
        raster_covariates(
            CovariateRasterOptions(path=path, name="a"), sites, position_crs="EPSG:27700"
        )
    with pytest.raises(RasterError, match=r"has 1 bands, and covariates\.rasters asks for band 4"):
        raster_covariates(
            CovariateRasterOptions(path=path, name="a", band=4), sites, position_crs="EPSG:27700"
        )
    with pytest.raises(MissingFileError):
        raster_covariates(
            CovariateRasterOptions(path=tmp_path / "b.tif", name="a"),
            sites,
            position_crs="EPSG:27700",
        )


def test_a_table_keeps_what_is_missing_missing(tmp_path, sites):
    (tmp_path / "t.csv").write_text("site_id,rain,temperature\nb,3,\na,1,9.5\nz,0,0\n")
    values = read_covariates(tmp_path / "t.csv", sites.index)
    assert values.loc["a"].tolist() == [1, 9.5]
    assert values.loc["c"].isna().all()
    assert np.isnan(values.loc["b", "temperature"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,rain\na,1\n", "has no column site_id"),
        ("site_id,rain\na,1\na,2\n", "has site a twice"),
        ("site_id,rain\na,wet\n", "Covariate rain of .* holds 'wet', which is no number"),
        ("site_id,rain\nq,1\n", "has none of the 3 sites"),
    ],
)
def test_a_table_that_does_not_fit_says_why(tmp_path, sites, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_covariates(tmp_path / "t.csv", sites.index)


def named(**sections) -> CovariateOptions:
    return CovariateOptions.model_validate_json(json.dumps(sections, default=str))


def test_several_tables_and_an_embedding_lie_side_by_side(tmp_path, sites):
    (tmp_path / "t.csv").write_text("site_id,rain\nb,3\na,1\n")
    embedding = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.savez(
        tmp_path / "place.npz",
        site_id=np.array(["q", "c", "b", "a"]),
        embedding=embedding,
        height=np.array([0, 1, 2, 3]),
    )
    config = named(
        table=[tmp_path / "t.csv", tmp_path / "place.npz"], units={"rain": "mm", "height": "m"}
    )
    table, units, notes = site_covariates(config, sites, position_crs="EPSG:27700")
    assert table.columns.tolist() == ["rain", "place_000", "place_001", "place_002", "height"]
    assert table.loc["a"].tolist() == [1, 9, 10, 11, 3]
    assert table.loc["c", ["place_000", "height"]].tolist() == [3, 1]
    assert np.isnan(table.loc["c", "rain"])
    assert units == {"rain": "mm", "place_000": "", "place_001": "", "place_002": "", "height": "m"}
    assert notes == ["1 site has no covariates of t.csv: the table does not name them."]


def test_two_embeddings_of_one_file_go_by_their_own_names(tmp_path, sites):
    np.savez(
        tmp_path / "both.npz",
        site_id=sites.index.to_numpy(str),
        near=np.ones((3, 1)),
        far=np.zeros((3, 2)),
    )
    assert read_covariates(tmp_path / "both.npz", sites.index).columns.tolist() == [
        "near_000",
        "far_000",
        "far_001",
    ]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"embedding": np.ones((3, 2))}, "has no array site_id; it has embedding"),
        (
            {"site_id": np.array(["a", "b"]), "embedding": np.ones((3, 2))},
            r"embedding has the shape \(3, 2\); it needs one row",
        ),
        ({"site_id": np.array(["a"]), "embedding": np.array([{}])}, "cannot be read as a table"),
        ({"site_id": np.array(["a", "a"]), "embedding": np.ones((2, 2))}, "has site a twice"),
    ],
)
def test_arrays_that_do_not_fit_say_why(tmp_path, sites, arrays, message):
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_covariates(tmp_path / "t.npz", sites.index)


def test_a_damaged_npz_and_a_unit_of_nothing_say_why(tmp_path, sites):
    (tmp_path / "t.npz").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(DataError, match="cannot be read as a table"):
        read_covariates(tmp_path / "t.npz", sites.index)
    (tmp_path / "t.csv").write_text("site_id,rain\na,1\n")
    with pytest.raises(DataError, match=r"covariates\.units names 'rian', which no table"):
        site_covariates(
            named(table=tmp_path / "t.csv", units={"rian": "mm"}),
            sites,
            position_crs="EPSG:27700",
        )
    with pytest.raises(DataError, match="The covariate rain comes from two sources"):
        site_covariates(
            named(table=[tmp_path / "t.csv", tmp_path / "t.csv"]),
            sites,
            position_crs="EPSG:27700",
        )
