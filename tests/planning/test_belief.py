"""A belief is the posterior covariance that the textbook has, and gains are what it loses."""

import numpy as np
import pytest

from butterfly_sdm.planning.belief import FLOOR, gains_in_order
from butterfly_sdm.planning.ground import ground_of
from butterfly_sdm.planning.process import fit_process, process_settings
from tests.planning.making import world


@pytest.fixture(scope="module")
def made():
    """Return a belief, and the posterior covariance of all sites by plain matrices."""
    data = ground_of(world()).dataset
    ids = list(data.site_ids)
    surveyed, candidates, places = ids[:25], ids[25:45], ids[40:60]
    process = fit_process(data, surveyed)
    n = data.counts(surveyed)[1]
    weight = process.rate_weights(data, places, range(4))
    belief = process.belief(
        data,
        surveyed=surveyed,
        visits=n,
        candidates=candidates,
        noise=np.full(20, process.survey_noise(10)),
        places=places,
        weight=weight,
        n_species=4,
    )
    position, features = process.model.inputs(data, ids)
    every = process.model.kernel.covariance(position, features, position, features)
    nugget, sampling = np.exp(process.model.state["kernel_noise"])
    own = every[:25, :25] + np.diag(1.5 * (nugget + sampling / n) + FLOOR)
    posterior = every - every[:, :25] @ np.linalg.inv(own) @ every[:25]
    return process, belief, posterior, weight


def test_it_is_the_posterior_covariance(made):
    _, belief, posterior, weight = made
    assert belief.between == pytest.approx(posterior[40:60, 25:45], abs=2e-4)
    assert belief.variance == pytest.approx(posterior.diagonal()[25:45], abs=2e-4)
    assert belief.among([0, 3], [1, 2, 3]) == pytest.approx(
        posterior[np.ix_([25, 28], [26, 27, 28])], abs=2e-4
    )
    assert belief.total == pytest.approx(weight @ posterior.diagonal()[40:60], rel=1e-3)
    assert belief.error == pytest.approx(belief.total / (20 * 4))


def test_gains_are_what_the_places_lose_of_their_variance_one_by_one(made):
    process, belief, posterior, weight = made
    picks = [3, 11, 0, 7]
    left, noise, expected = posterior.copy(), float(process.survey_noise(10)), []
    for pick in picks:
        column = left[:, 25 + pick]
        after = left - np.outer(column, column) / (column[25 + pick] + noise)
        expected.append(weight @ (left - after).diagonal()[40:60])
        left = after
    assert gains_in_order(belief, picks) == pytest.approx(expected, rel=2e-3)
    assert gains_in_order(belief, picks[::-1]).sum() == pytest.approx(sum(expected), rel=2e-3)


def test_visits_to_a_surveyed_site_say_less_than_to_a_new_one(made):
    process = made[0]
    nugget, sampling = np.exp(process.model.state["kernel_noise"])
    new, again = process.survey_noise(10, np.array([0, 10]))
    assert new == pytest.approx(nugget + sampling / 10)
    # what is known after 20 visits is what 10 visits say and the revisit says, taken together
    assert 1 / (1 / (nugget + sampling / 10) + 1 / again) == pytest.approx(nugget + sampling / 20)
    assert again > new


def test_weights_are_the_slope_of_the_rate_at_the_expected_angle(made):
    process = made[0]
    data = ground_of(world()).dataset
    places = list(data.site_ids[:6])
    angle = process.model.angles(data, places)
    step = 1e-5
    slope = (np.sin(angle + step) ** 2 - np.sin(angle - step) ** 2) / (2 * step)
    expected = (slope**2 * process.scale)[:, [1, 3]].sum(axis=1)
    assert process.rate_weights(data, places, [1, 3]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {"groups": "bio_,clc_", "embedding": ""}),
        ({"groups": "bio_,gone_", "density_km": "3"}, {"groups": "bio_", "embedding": ""}),
        ({"embedding": "place_"}, {"groups": "", "embedding": ""}),
    ],
)
def test_groups_are_those_of_the_run_or_of_the_names(given, expected):
    names = ["bio_1", "bio_2", "bio_3", "clc_1", "clc_2", "clc_3", "roads"]
    assert process_settings(names, given) == expected


def test_many_columns_of_one_name_are_an_embedding():
    names = [*(f"geo_{i:03d}" for i in range(64)), "roads"]
    assert process_settings(names) == {"groups": "", "embedding": "geo_"}
