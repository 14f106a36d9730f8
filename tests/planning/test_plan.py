"""A plan is the same twice, fits every data set, and says what it cannot do."""

from dataclasses import replace

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from pydantic import ValidationError
from scipy.spatial.distance import cdist

from butterfly_sdm.errors import DataError, MissingFileError
from butterfly_sdm.planning import PlanOptions, Sources, make_plan
from tests.planning.making import points, world


def options(**asked) -> PlanOptions:
    return PlanOptions(**{"sites": 5, "grid_m": 5000.0} | asked)


def test_the_same_seed_gives_the_same_plan():
    data = world(covariates=False)
    one, two = (make_plan(data, options(most_places=40), seed=3) for _ in range(2))
    assert list(one.sites.index) == list(two.sites.index)
    assert one.sites["gain"].tolist() == two.sites["gain"].tolist()
    other = make_plan(data, options(most_places=40), seed=4)  # draws other places
    assert one.sites["gain"].tolist() != other.sites["gain"].tolist()


@pytest.mark.parametrize("crs", ["EPSG:27700", "EPSG:32618", "EPSG:2263", "EPSG:4326"])
@pytest.mark.parametrize("covariates", [True, False])
def test_a_plan_lies_where_the_sites_do_in_every_crs(crs, covariates):
    data = world(crs=crs, covariates=covariates)
    given = points(data, 40)
    if crs == "EPSG:2263":  # positions are metres, coordinates feet
        given.geometry = shapely.transform(given.geometry.to_numpy(), lambda xy: xy / 0.3048006096)
    plan = make_plan(data, options(), candidates=given)
    assert len(plan.sites) == 5
    where = given.set_index("name").to_crs(4326).geometry[plan.sites.index]
    assert plan.sites["lon"].to_numpy() == pytest.approx(where.x.to_numpy(), abs=1e-5)
    assert plan.sites["lat"].to_numpy() == pytest.approx(where.y.to_numpy(), abs=1e-5)
    assert 0 < plan.promise["gain_random"] < plan.promise["gain"] < 100
    assert plan.sites["share"].sum() == pytest.approx(100)
    assert plan.about["covariates"] == (2 if covariates else 0)


def test_a_grid_is_made_of_whole_squares_without_surveyed_ones():
    data = world(covariates=False)
    plan = make_plan(data, options(grid_m=4000.0))
    bounds = plan.layer.geometry.bounds
    assert ((bounds / 4000) % 1 == 0).all(axis=None)
    assert (bounds.maxx - bounds.minx == 4000).all()
    site = gpd.points_from_xy(data.sites["easting"], data.sites["northing"])
    assert (
        not shapely.union_all(plan.layer.geometry.to_numpy())
        .intersection(shapely.multipoints(site))
        .difference(shapely.union_all(plan.layer.geometry.to_numpy()).boundary)
    )
    assert any("hold a surveyed site" in note for note in plan.notes)
    assert any("knows neither sea nor fences" in note for note in plan.notes)


def test_an_area_bounds_the_grid_and_points(tmp_path):
    data = world()
    ground = shapely.box(400_000, 200_000, 420_000, 220_000)
    gpd.GeoDataFrame(geometry=[ground], crs="EPSG:27700").to_file(tmp_path / "area.gpkg")
    asked = options(area=tmp_path / "area.gpkg")
    assert ground.buffer(3000).covers(
        shapely.union_all(make_plan(world(covariates=False), asked).layer.geometry.to_numpy())
    )
    plan = make_plan(data, asked, candidates=points(data, 60))
    assert ground.covers(shapely.union_all(plan.layer.geometry.to_numpy()))


def test_covariates_that_candidates_lack_are_told_and_never_taken_from_neighbours():
    data = world()
    bare = make_plan(data, options(), candidates=points(data, 30, covariates=False))
    assert bare.about["covariates"] == 0
    assert any("none of the 2 covariates" in note for note in bare.notes)
    some = points(data, 30)
    some.loc[:4, "habitat"] = np.nan
    plan = make_plan(data, options(), candidates=some)
    assert any("5 of 30 candidates lack a covariate" in note for note in plan.notes)
    assert not {f"c{i}" for i in range(5)} & set(plan.layer.index)


def test_a_candidate_called_like_a_site_elsewhere_is_not_taken_for_it():
    data = world()
    given = points(data, 30)
    plan = make_plan(data, options(), candidates=given)
    called = given.assign(name=list(data.site_ids[:30]))
    same = make_plan(data, options(), candidates=called)
    where = dict(zip(called["name"], given["name"], strict=True))
    assert [where[name] for name in same.sites.index] == list(plan.sites.index)
    named_by_index = given.set_index("name")
    assert list(make_plan(data, options(), candidates=named_by_index).sites.index) == list(
        plan.sites.index
    )


def test_covariates_come_from_a_table_and_from_rasters(tmp_path):
    from butterfly_sdm.mapping.options import CovariateRaster
    from tests.mapping.world import write_scene

    data = world()
    given = points(data, 30)
    table = pd.DataFrame(given[["habitat", "noise"]]).assign(site_id=given["name"])
    table.to_csv(tmp_path / "numbers.csv", index=False)
    asked = options(covariates=tmp_path / "numbers.csv")
    from_table = make_plan(data, asked, candidates=given[["name", "geometry"]])
    assert list(from_table.sites.index) == list(
        make_plan(data, options(), candidates=given).sites.index
    )
    write_scene(tmp_path / "h.tif", left=400_000.0, top=206_000.0)  # 6 km in the corner
    rasters = {"habitat": CovariateRaster(path=tmp_path / "h.tif")}
    inside = gpd.GeoDataFrame(
        geometry=gpd.points_from_xy([401_000, 404_000, 402_500], [203_000, 204_000, 202_000]),
        crs="EPSG:27700",
    )
    plan = make_plan(data, options(sites=2), candidates=inside, sources=Sources(rasters=rasters))
    assert plan.about["covariates"] == 1
    assert any("1 of 2 covariates are not known" in note for note in plan.notes)


def test_informed_of_the_places_it_goes_near_them():
    data = world(covariates=False)
    given = points(data, 80)
    corner = gpd.GeoDataFrame(
        geometry=gpd.points_from_xy(*np.random.default_rng(0).uniform(440_000, 448_000, (2, 30))),
        crs="EPSG:27700",
    ).translate(0, -200_000)
    corner = gpd.GeoDataFrame(geometry=corner, crs="EPSG:27700")
    informed = make_plan(data, options(), candidates=given, places=corner)
    blind = make_plan(data, options(), candidates=given)

    def away(plan):
        return np.hypot(plan.sites["easting"] - 444_000, plan.sites["northing"] - 244_000).mean()

    assert away(informed) < 0.7 * away(blind)
    assert "the 30 places given" in informed.words and "nobody said" in blind.words
    with pytest.raises(DataError, match="weights of the places"):
        make_plan(data, options(), candidates=given, places=corner.assign(weight=-1.0))


def test_planned_places_are_not_planned_again(tmp_path):
    data = world(covariates=False)
    given = points(data, 60)
    first = make_plan(data, options(sites=1), candidates=given).sites
    first.to_crs(4326)[["geometry"]].to_file(tmp_path / "planned.geojson")
    then = make_plan(data, options(planned=tmp_path / "planned.geojson"), candidates=given)
    alone = make_plan(data, options(), candidates=given)
    assert alone.sites.index[0] == first.index[0]
    assert first.index[0] not in then.layer.index
    there = first.geometry.iloc[0]
    assert then.sites.distance(there).min() > alone.sites.iloc[1:].distance(there).min() * 0.5
    assert any("1 of 60 candidates hold a place that is planned" in n for n in then.notes)
    assert then.about["planned"] == 1


def test_surveyed_sites_may_be_visited_again():
    data = world()
    plan = make_plan(data, options(sites=90, revisit=True), candidates=points(data, 30))
    again = plan.sites.index.str.startswith("again ")
    assert again.sum() == 60
    assert plan.sites["rank"][~again].mean() < plan.sites["rank"][again].mean()  # new ones say more


def test_unvisited_sites_are_candidates_with_their_own_covariates():
    data = world()
    table = data.sites.copy()
    table.loc[table.index[:12], "visits"] = 0
    counts = data.detections.copy()
    counts.iloc[:12] = 0
    split = replace(data.split, train=data.split.train)
    plan = make_plan(
        replace(data, sites=table, detections=counts, split=split), options(candidates="unvisited")
    )
    assert set(plan.sites.index) <= set(table.index[:12])
    assert plan.about["covariates"] == 2
    with pytest.raises(DataError, match="Every site of the data set 'world' has a visit"):
        make_plan(data, options(candidates="unvisited"))


def test_costs_and_homes_decide_with_the_gain(tmp_path):
    data = world(covariates=False)
    given = points(data, 50).assign(hours=1.0)
    free = make_plan(data, options(), candidates=given)
    given.loc[given["name"] == free.sites.index[0], "hours"] = 1000.0
    asked = options(cost="hours", candidates=tmp_path / "c.gpkg", budget=3.5)
    priced = make_plan(data, asked, candidates=given)
    assert free.sites.index[0] not in priced.sites.index
    assert len(priced.sites) == 3 and priced.promise["cost"] == 3
    home = gpd.GeoDataFrame(
        {"name": ["Ann"]}, geometry=gpd.points_from_xy([402_000], [202_000]), crs=27700
    )
    home.to_file(tmp_path / "homes.gpkg")
    near = make_plan(data, options(homes=tmp_path / "homes.gpkg"), candidates=given)
    assert "cost" not in near.sites  # distances would tell where Ann lives

    def away(plan):
        return cdist(plan.sites[["easting", "northing"]], [[402_000, 202_000]]).mean()

    assert away(near) < 0.7 * away(free)
    with pytest.raises(DataError, match="no column 'euros' of costs"):
        make_plan(data, options(cost="euros", candidates=tmp_path / "c.gpkg"), candidates=given)
    with pytest.raises(DataError, match=r"more than the budget of 0\.5"):
        make_plan(data, options(budget=0.5), candidates=given)


def test_to_find_goes_where_the_species_is_likely():
    data = world(sites=120)
    given = points(data, 60)
    plan = make_plan(data, options(aim="find", species=("Species 1",)), candidates=given)
    assert plan.sites["gain"].is_monotonic_decreasing
    assert plan.sites["gain"].iloc[0] == pytest.approx(plan.layer["finds"].max())
    assert "to find, not to map" in plan.words and "Species 1" in plan.words
    with pytest.raises(ValidationError, match="aim find needs species"):
        options(aim="find")


@pytest.mark.parametrize("method", ["space", "random"])
def test_other_methods_promise_less(method):
    data = world(covariates=False)
    best = make_plan(data, options(), candidates=points(data, 60))
    other = make_plan(data, options(method=method), candidates=points(data, 60))
    assert other.promise["gain"] < best.promise["gain"]
    assert other.promise["error"] == pytest.approx(best.promise["error"])


def test_the_layer_is_what_a_plan_of_one_site_promises():
    data = world(covariates=False)
    given = points(data, 30)
    plan = make_plan(data, options(sites=3), candidates=given)
    alone = make_plan(data, options(sites=1), candidates=given)
    assert plan.layer["gain"].max() == pytest.approx(alone.promise["gain"], rel=1e-4)
    four = make_plan(data, options(sites=4), candidates=given)
    left = plan.layer["gain_left"]
    assert left.idxmax() == four.sites.index[3]
    assert left.max() == pytest.approx(four.sites["gain"].iloc[3], rel=1e-2)
    assert (left[plan.sites.index] == 0).all()


def _nowhere(data):
    table = data.sites.copy()
    table[["easting", "northing"]] = np.nan
    return replace(data, sites=table)


@pytest.mark.parametrize(
    ("change", "asked", "message"),
    [
        (_nowhere, {}, "does not say where its sites lie, and a plan says where to go"),
        (
            lambda d: d,
            {"species": ("Specie 1",)},
            "no species 'Specie 1'. Did you mean 'Species 1'",
        ),
        (lambda d: d, {"grid_m": 20.0}, "100,000 are the most"),
        (
            lambda d: replace(d, card=d.card.model_copy(update={"position_crs": "EPSG:4326"})),
            {},
            "said to be degrees",
        ),
        (
            lambda d: replace(d, card=d.card.model_copy(update={"position_crs": "the moon"})),
            {},
            "'the moon', which is no CRS",
        ),
        (lambda d: replace(d, split=None), {"places": "validation"}, "has no split"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(change, asked, message):
    with pytest.raises(DataError, match=message):
        make_plan(change(world(covariates=False)), options(**asked))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "name,x,y\na,1,2\n", "does not say where they lie"),
        ("b.csv", "name,lon,lat\na,0,50\na,1,51\n", "name 'a' twice"),
        ("c.csv", "name,lon,lat\na,,50\n", "Row 1 of .* has no lon and lat"),
        ("d.gpkg", "no package", "cannot be read"),
    ],
)
def test_a_file_that_is_not_understood_is_one_sentence(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        make_plan(world(), options(candidates=tmp_path / name))
    with pytest.raises(MissingFileError, match="no file of candidates"):
        make_plan(world(), options(candidates=tmp_path / "gone.gpkg"))


def test_too_few_sites_are_too_few():
    data = world(sites=9)
    with pytest.raises(DataError, match="too few to plan from"):
        make_plan(data, options(), candidates=points(data, 9))
