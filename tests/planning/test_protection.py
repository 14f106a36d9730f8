"""A plan never names a protected species, and never sends anybody to its squares."""

import tempfile
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from butterfly_sdm.errors import DataError
from butterfly_sdm.pipeline import square_of_reference
from butterfly_sdm.planning import PlanOptions, Sources, make_plan, write_plan
from tests.planning.making import all_text, points, world


def squares_of(data, species, side_m):
    """Return the squares around finds, in plain Python."""
    out = set()
    for name in species:
        for site in data.detections.index[data.detections[name] > 0]:
            x, y = data.sites.loc[site, ["easting", "northing"]]
            out.add((int(x // side_m) * side_m, int(y // side_m) * side_m, side_m))
    return [shapely.box(x, y, x + s, y + s) for x, y, s in out]


def sparse(seed: int):
    """Return a world in which two species were found at few sites."""
    data = world(seed=seed, covariates=False)
    counts = data.detections.copy()
    random = np.random.default_rng(seed)
    for name in ("Species 0", "Species 2"):
        counts.loc[random.permutation(counts.index)[4:], name] = 0
    return replace(data, detections=counts)


@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 1000),
    side=st.sampled_from([1000.0, 3000.0, 10_000.0]),
    kind=st.sampled_from(["grid", "points", "again"]),
    how=st.sampled_from(["named", "policy", "policy with a side"]),
    aim=st.sampled_from(["map", "find"]),
    method=st.sampled_from(["gain", "space", "random"]),
)
def test_a_plan_never_names_nor_visits_a_protected_square(
    figures, seed, side, kind, how, aim, method
):
    data = sparse(seed)
    secret = ("Species 0", "Species 2")
    asked = {"aim": aim, "method": method, "species": ("Species 1",) if aim == "find" else ()}
    policy = {}
    if how == "named":
        asked |= {"protected": secret, "protect_m": side}
    elif how == "policy":
        asked |= {"protect_m": side}
        policy = dict.fromkeys(secret)
    else:
        policy = dict.fromkeys(secret, side)
    asked |= {"grid_m": 4000.0, "sites": 12, "revisit": kind == "again"}
    candidates = None if kind == "grid" else points(data, 60, seed=seed)
    plan = make_plan(
        data,
        PlanOptions(**asked),
        candidates=candidates,
        sources=Sources(policy=policy),
        seed=seed,
    )
    for square in squares_of(data, secret, side):
        for table in (plan.sites, plan.layer):
            shapes = table.geometry.to_numpy()
            assert not shapely.intersects(shapely.centroid(shapes), square).any()
            assert (shapely.area(shapely.intersection(shapes, square)) < 1e-6).all()
    with tempfile.TemporaryDirectory() as folder:
        written = write_plan(plan, Path(folder) / "plan")
        text = all_text(written.folder)
        assert not [name for name in secret if name in text]
    figures.tried("plans that keep from protected squares", kind)


def test_the_squares_by_which_a_data_set_tells_coarsened_species_are_kept_from():
    data = world(covariates=False)
    coarse = pd.DataFrame(
        {
            "species": ["Maculinea arion", "Maculinea arion"],
            "square": ["SP00", "SP11"],
            "size_m": [10_000, 10_000],
            "detections": [3, 0],
            "visits": [30, 30],
        }
    )
    data = replace(data, coarse=coarse)
    asked = PlanOptions(sites=5, grid_m=5000.0)
    plan = make_plan(data, asked, sources=Sources(square_of=square_of_reference))
    inside = shapely.box(400_100, 200_100, 409_900, 209_900)
    assert not shapely.intersects(plan.layer.geometry.to_numpy(), inside).any()
    other = shapely.box(410_100, 210_100, 419_900, 219_900)  # nothing was found there
    assert shapely.intersects(plan.layer.geometry.to_numpy(), other).any()
    with pytest.raises(DataError, match="plan names no protected species"):
        make_plan(data, asked.model_copy(update={"species": ("Maculinea arion",)}))


def test_areas_are_kept_from_whatever_shape_they_have(tmp_path):
    data = world(covariates=False)
    shapes = [shapely.box(400_000, 200_000, 425_000, 225_000), shapely.Point(442_100, 242_100)]
    gpd.GeoDataFrame(geometry=shapes, crs=27700).to_file(tmp_path / "keep.gpkg")
    asked = PlanOptions(sites=5, grid_m=5000.0, protected_areas=tmp_path / "keep.gpkg")
    plan = make_plan(data, asked)
    for box in (shapes[0], shapely.box(440_000, 240_000, 450_000, 250_000)):
        shared = shapely.intersection(plan.layer.geometry.to_numpy(), box)
        assert (shapely.area(shared) == 0).all()


def test_who_may_know_can_allow_it_and_a_misspelled_species_is_no_protection():
    data = sparse(1)
    asked = PlanOptions(sites=5, grid_m=5000.0, protected=("Species 0",), species=("Species 0",))
    with pytest.raises(DataError, match="Species 0 is protected"):
        make_plan(data, asked)
    plan = make_plan(data, asked.model_copy(update={"allow_protected": True}))
    assert "Species 0" in plan.words
    with pytest.raises(DataError, match=r"'Species O', to be protected, is not .*Did you mean"):
        make_plan(data, PlanOptions(protected=("Species O",)))
    with pytest.raises(DataError, match="Every species of the data set is protected"):
        make_plan(data, PlanOptions(protected=data.species, protect_m=1.0, grid_m=5000.0))
    with pytest.raises(DataError, match="lie in protected squares"):
        make_plan(data, PlanOptions(protected=("Species 1",), protect_m=1e6, grid_m=5000.0))
