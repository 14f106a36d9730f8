"""Maps of a rate over a season, of a rate in a week, of presence, and of the ends of intervals."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import rasterio

from butterfly_sdm.baselines import make_baseline
from butterfly_sdm.data.quantities import Quantity, ask
from butterfly_sdm.errors import DataError, ModelError
from butterfly_sdm.imagery.scene import open_scene
from butterfly_sdm.mapping.map_reader import MapReader
from butterfly_sdm.models.network_predictor import NetworkPredictor
from tests.mapping.test_matrix import QUICK_NETWORK, as_in_a_map, scene_in, sites_in
from tests.mapping.world import map_of
from tests.season.worlds import day_of, visit_table

CRS = "EPSG:32755"
SEASON = {"shift_by": None, "link": "logit"}
RATES = {
    "standardised": {"quantity": "standardised_rate"},
    "week": {"quantity": "rate_in_week", "week": 20},
    "dates": {"quantity": "raw_rate", "dates": ("2020-05-14", "2020-06-01")},
    "upper": {"quantity": "standardised_rate", "bound": "upper"},
}
PRESENCE = {"presence": {"quantity": "presence"}}


def dated(held):
    """Return the sites of a map with visits in weeks 16 to 27."""
    dataset, rng = sites_in(CRS, held), np.random.default_rng(2)
    sites = len(dataset.sites)
    site = np.repeat(np.arange(sites), 10)
    week = rng.integers(16, 28, len(site))
    level = np.linspace(-1, 1, sites)[site, None]
    p = 1 / (1 + np.exp(-(level + np.array([0.0, 0.5]) - 0.1 * (week[:, None] - 20.0) ** 2)))
    table = visit_table(site, day_of(week), rng.random(p.shape) < p)
    k, n = table.sums(sites, 2)
    detections = pd.DataFrame(k, dataset.detections.index, dataset.detections.columns)
    return replace(
        dataset,
        sites=dataset.sites.assign(visits=n, lat=-38.0, lon=145.0),
        detections=detections,
        visit_table=table,
    )


@pytest.fixture(scope="module")
def models():
    dataset = dated(frozenset(["tiles"]))
    sites = dataset.site_ids
    return dataset, {
        "seasonal": make_baseline(
            "seasonal", predictor="nearest_sites", season=SEASON, folds=3
        ).fit(dataset, sites),
        "occupancy": make_baseline("occupancy", covariates=False, position=True, season=SEASON).fit(
            dataset, sites
        ),
        "network": NetworkPredictor(
            **QUICK_NETWORK, covariates=False, loss="season", season=SEASON
        ).fit(dataset, sites),
    }


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("seasonal", name) for name in RATES),
        *(("occupancy", name) for name in (*RATES, *PRESENCE)),
        *(("network", name) for name in ("standardised", "week")),
    ],
)
def test_a_map_tells_the_quantity_that_is_asked_for(kind, name, models, tmp_path):
    dataset, fitted = models
    options = (RATES | PRESENCE)[name]
    out = tmp_path / "map.tif"
    result = map_of(fitted[kind], scene_in(CRS), out, beside=(), min_valid_fraction=0.0, **options)
    given = {"week": options.get("week"), "dates": options.get("dates", ())}
    quantity = Quantity(options["quantity"], bound=options.get("bound", "mean"), **given)
    expected = as_in_a_map(ask(fitted[kind], quantity).predict(dataset, dataset.site_ids))
    with rasterio.open(out) as source:
        values, units = source.read(), source.units
    tolerance = 0.03 if result.mode == "dense" else 1e-5
    np.testing.assert_allclose(values, expected, atol=tolerance)
    assert set(units) == {quantity.unit}
    assert MapReader(out).species == dataset.species


def test_what_cannot_be_mapped_is_said_before_any_work(models, tmp_path):
    _, fitted = models
    scene = open_scene(scene_in(CRS).paths[0])
    for kind, options, error, words in (
        ("seasonal", {"quantity": "presence"}, ModelError, "does not tell presence"),
        ("seasonal", {"quantity": "raw_rate"}, DataError, r"map\.dates"),
        ("seasonal", {"quantity": "rate_in_week"}, DataError, "needs the week"),
        ("seasonal", {"week": 3}, DataError, "outside the weeks with visits"),
        ("network", {"quantity": "presence"}, ModelError, "does not tell presence"),
    ):
        with pytest.raises(error, match=words):
            map_of(fitted[kind], scene, tmp_path / "map.tif", **options)
    assert not list(tmp_path.iterdir())
    plain = make_baseline("mean_rate").fit(dated(frozenset()), ["s00", "s01"])
    with pytest.raises(ModelError, match=r"train\.season: on"):
        map_of(plain, scene, tmp_path / "map.tif", quantity="standardised_rate")
