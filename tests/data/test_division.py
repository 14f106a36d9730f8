"""Splits keep neighbours together, come near to the shares, and report what they give away."""

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from pyproj import Transformer

from butterfly_sdm.data.division import (
    leave_out_near,
    make_split,
    read_regions,
    read_split,
    spatial_folds,
    split_by_region,
)
from butterfly_sdm.data.leakage import report_leakage
from butterfly_sdm.data.options import SplitOptions
from butterfly_sdm.data.splits import Split
from butterfly_sdm.errors import ArtefactError, DataError, MissingFileError

GRID = {"position_crs": "EPSG:27700"}


@pytest.fixture
def sites() -> pd.DataFrame:
    random = np.random.default_rng(0)
    towns = random.uniform(0, 100_000, (60, 2)).repeat(4, axis=0) + random.normal(0, 800, (240, 2))
    index = pd.Index([f"S{number:03d}" for number in range(240)], name="site_id")
    return pd.DataFrame(towns, columns=["easting", "northing"], index=index)


def nearest(sites: pd.DataFrame, one: tuple[str, ...], two: tuple[str, ...]) -> float:
    a, b = (sites.loc[list(ids), ["easting", "northing"]].to_numpy() for ids in (one, two))
    return float(np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1)).min())


@pytest.mark.parametrize("method", ["clusters", "blocks", "random"])
def test_every_site_is_in_one_part_and_the_shares_are_met(sites, method):
    split, block = make_split(sites, SplitOptions(method=method, fractions=(0.6, 0.2, 0.2)), seed=1)
    parts = [split.train, split.validation, split.test]
    assert sorted(site for part in parts for site in part) == sorted(sites.index)
    assert [len(part) / 240 for part in parts] == pytest.approx([0.6, 0.2, 0.2], abs=0.05)
    part_of = split.part_of()
    together = pd.DataFrame({"block": block, "part": [part_of[site] for site in sites.index]})
    assert (together.groupby("block")["part"].nunique() == 1).all()


def test_parts_of_clusters_are_as_far_apart_as_asked(sites):
    split, _ = make_split(sites, SplitOptions(method="clusters", distance_m=4000.0))
    assert nearest(sites, split.train, split.validation) >= 4000
    assert nearest(sites, split.train, split.test) >= 4000


def test_the_seed_decides_and_repeats(sites):
    first, again, other = (make_split(sites, SplitOptions(), seed=seed)[0] for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_folds_share_out_all_sites_once(sites):
    folds = spatial_folds(sites, n_folds=4)
    held = [site for fold in folds for site in fold.validation]
    assert sorted(held) == sorted(sites.index)
    assert all(40 < len(fold.validation) < 80 for fold in folds)


def test_the_fold_of_a_data_set_is_one_of_the_folds_of_cross_validation(sites):
    for distance_m in (4000.0, 40_000.0):  # dense enough for clusters; only for squares
        split, block = make_split(sites, SplitOptions(distance_m=distance_m, folds=4, fold=3))
        assert split == spatial_folds(sites, distance_m=distance_m, n_folds=4)[2]
        part = block.index.map(split.part_of()).to_series(block.index)
        assert (part.groupby(block).nunique() == 1).all()
    assert "squares of 40000 m" in split.method


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "file"}, "does not say which file"),
        ({"method": "regions"}, "state regions"),
        ({"folds": 3, "fold": 4}, "there are 3 folds, counted from 1"),
    ],
)
def test_options_that_make_no_split_are_refused_before_anything_is_read(wrong, message):
    with pytest.raises(ValueError, match=message):
        SplitOptions(**wrong)


def test_too_few_groups_are_an_error_with_the_way_out(sites):
    with pytest.raises(DataError, match=r"form 1 groups .* lower split\.distance_m"):
        make_split(sites, SplitOptions(distance_m=1e6))
    with pytest.raises(DataError, match=r"fewer than the 5 folds"):
        spatial_folds(sites, distance_m=1e6)
    with pytest.raises(ValueError, match=r"sum to 0\.9"):
        SplitOptions(fractions=(0.7, 0.1, 0.1))


def test_a_buffer_leaves_near_training_sites_out(sites):
    split = leave_out_near(
        make_split(sites, SplitOptions(method="random"))[0], sites, buffer_m=3000
    )
    assert split.train
    assert nearest(sites, split.train, split.test) >= 3000
    assert nearest(sites, split.train, split.validation) >= 3000
    assert nearest(sites, split.validation, split.test) >= 3000


def test_regions_are_held_out_whole(sites, tmp_path):
    west = shapely.box(-10, 40, -2.0, 60)
    east = shapely.box(-2.0, 40, 10, 60)
    gpd.GeoDataFrame({"name": ["west", "east"]}, geometry=[west, east], crs=4326).to_file(
        tmp_path / "regions.gpkg"
    )
    placed = sites.assign(lon=np.where(np.arange(240) % 3, -3.0, -1.0), lat=52.0)
    regions = read_regions(tmp_path / "regions.gpkg", placed)
    split = split_by_region(regions, validation=["east"])
    assert split.validation == tuple(placed.index[placed["lon"] == -1.0])
    with pytest.raises(
        DataError, match="No site lies in the region 'north'; the regions are east, west"
    ):
        split_by_region(regions, validation=["north"])


def test_a_split_is_read_from_json_and_from_a_table(tmp_path):
    split = Split(("a", "b"), ("c",), ("d",))
    split.to_json(tmp_path / "split.json")
    read, ignored = read_split(tmp_path / "split.json", ("b", "a", "d"))
    assert (read.train, read.validation, read.test, ignored) == (("b", "a"), (), ("d",), 1)
    (tmp_path / "split.csv").write_text("site_id,split\na,train\nb,VAL\nc,holdout\n")
    with pytest.raises(DataError, match="names the part 'holdout'"):
        read_split(tmp_path / "split.csv", ("a", "b"))
    (tmp_path / "split.csv").write_text("site_id,part\na,train\n")
    with pytest.raises(DataError, match="has no column split"):
        read_split(tmp_path / "split.csv", ("a", "b"))
    with pytest.raises(DataError, match="names none of the 1 sites"):
        read_split(tmp_path / "split.json", ("z",))
    with pytest.raises(MissingFileError):
        read_split(tmp_path / "absent.csv", ("a",))
    (tmp_path / "wrong.json").write_text('{"train": "a"}')
    with pytest.raises(ArtefactError, match="is not a split"):
        read_split(tmp_path / "wrong.json", ("a",))


def test_a_site_in_two_parts_is_refused():
    with pytest.raises(DataError, match="Site a is in train and in test"):
        Split(("a",), (), ("a",))


def test_overlapping_tiles_of_two_parts_are_found_with_the_share_they_have_in_common():
    sites = pd.DataFrame(
        {"easting": [0, 1000, 2000, 9000], "northing": [0, 500, 2000, 0]}, index=list("abcd")
    )
    report = report_leakage(sites, Split(("a",), ("b", "d"), ("c",)), **GRID, tile_m=2000)
    found = {(row.site, row.other): row.shared for row in report.overlaps.itertuples()}
    assert found == pytest.approx({("b", "a"): 0.5 * 0.75, ("c", "b"): 0.5 * 0.25})
    assert report.leaking_sites == ("a", "b", "c")
    assert report.distances.set_index("site")["distance_m"].to_dict() == pytest.approx(
        {"b": np.hypot(1000, 500), "d": 9000, "c": np.hypot(2000, 2000)}
    )
    assert "2 of 3 held-out sites (67%)" in report.warnings()[0]


def test_the_ground_of_the_tiles_themselves_counts_in_whatever_crs_they_are():
    at = {
        name: np.array(
            Transformer.from_crs(27700, name, always_xy=True).transform(400_000, 300_000)
        )
        for name in (32630, 32631)
    }
    sites = pd.DataFrame(
        {
            "easting": 400_000.0,
            "northing": 300_000.0,
            "tile_row": [0, 1, 2, -1],
            "tile_crs": ["EPSG:27700", "EPSG:32630", "EPSG:32631", "EPSG:27700"],
            "tile_left": [399_000, at[32630][0] - 1000, at[32631][0] + 4000, 399_000],
            "tile_top": [301_000, at[32630][1] + 1000, at[32631][1] + 1000, 301_000],
        },
        index=list("abcd"),
    )
    report = report_leakage(sites, Split(("a",), ("b", "c"), ("d",)), **GRID, tile_m=2000)
    (only,) = report.overlaps.itertuples()
    assert (only.site, only.other) == ("b", "a")  # c lies 4 km away, and d has no tile
    angle = np.deg2rad(0.79)  # between the grids at 2 degrees west: a square turned in a square
    assert only.shared == pytest.approx(1 - np.tan(angle) / 2, abs=0.01)


def test_held_out_sites_that_are_nearer_than_the_area_to_be_mapped_are_a_warning():
    sites = pd.DataFrame({"easting": [0, 5000], "northing": [0, 0]}, index=list("ab"))
    area = pd.DataFrame({"easting": [50_000, 80_000], "northing": [0, 0]})
    report = report_leakage(sites, Split(("a",), ("b",)), **GRID, tile_m=2000, area=area)
    assert "the map extrapolates" in report.warnings()[0]


def test_the_published_split_leaks_by_one_pair_and_a_random_one_by_half_of_the_sites(shared):
    table = pd.read_csv(shared / "data" / "s2bms" / "sites.csv").set_index("site_id")
    place = gpd.GeoSeries(gpd.points_from_xy(table["lon"], table["lat"]), crs=4326).to_crs(27700)
    sites = table.assign(easting=place.x.to_numpy(), northing=place.y.to_numpy())
    split, _ = read_split(shared / "data" / "s2bms" / "sites.csv", tuple(sites.index))
    assert [len(part) for part in (split.train, split.validation, split.test)] == [947, 196, 186]
    assert (
        report_leakage(sites, Split(split.train, split.validation), **GRID, tile_m=2560).warnings()
        == []
    )
    # One test site lies 2.8 km from a training site, so that the corners of their tiles overlap:
    # the only pair of 1,329 sites.
    overlaps = report_leakage(sites, split, **GRID, tile_m=2560).overlaps
    assert overlaps[["site", "other"]].to_numpy().tolist() == [["UKBMS_loc-1432", "UKBMS_loc-0977"]]
    assert overlaps["shared"].item() == pytest.approx(0.048, abs=0.001)
    x, y = sites[["easting", "northing"]].to_numpy().T
    near = (np.abs(x[:, None] - x) < 2560) & (np.abs(y[:, None] - y) < 2560)
    for seed in range(3):
        random, _ = make_split(sites, SplitOptions(method="random"), seed=seed)
        report = report_leakage(sites, random, **GRID, tile_m=2560)
        part = sites.index.map(random.part_of())
        held = part != "train"
        expected = held & (near & (part.to_numpy()[:, None] != part.to_numpy())).any(axis=1)
        assert set(report.leaking_sites) & set(sites.index[held]) == set(sites.index[expected])
        assert 0.4 < expected.sum() / held.sum() < 0.6
