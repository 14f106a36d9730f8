"""New records say something of places around them, and nothing beyond their reach."""

import numpy as np
import pytest

from butterfly_sdm.community import scaled_linear
from butterfly_sdm.community.evidence import Evidence
from butterfly_sdm.community.neighbours import Moved, Records, choose_nearness, shared
from tests.community.worlds import community_world


def some_records(count=6, share=0.5, reach_m=10_000.0, seed=0, keep=None):
    rng = np.random.default_rng(seed)
    at = rng.uniform(0, 12_000, (count, 2))
    q = np.full((count, 3), [0.3, 0.2, 0.1])
    n = np.full((count, 3), 9.0)
    k = rng.binomial(9, 0.4, (count, 3)).astype(float)
    C = np.array([[0.05, 0.03, -0.01], [0.03, 0.04, 0.0], [-0.01, 0.0, 0.03]])
    keep = np.arange(count) if keep is None else keep
    seen = Evidence(k[keep], n[keep])
    return Records.of(at[keep], q[keep], seen, C, share=share, reach_m=reach_m), at, q, seen, C


def test_likeness_falls_to_nothing_at_the_reach():
    assert shared(np.array([0.0, 5e3, 10e3, 2e4]), 10e3).tolist() == [1.0, 0.1875, 0.0, 0.0]


def test_one_species_is_kriged_as_the_formula_says():
    at = np.array([[0.0, 0.0], [4000.0, 0.0]])
    q, n, k = np.full((2, 1), 0.3), np.full((2, 1), 8.0), np.array([[6.0], [1.0]])
    C = np.array([[0.06]])
    records = Records.of(at, q, Evidence(k, n), C, share=0.5, reach_m=10e3)
    here = np.array([[1000.0, 0.0]])
    d = scaled_linear.scale(q)[0, 0]
    between = 0.5 * float(shared(np.array(4000.0), 10e3))
    K = 0.06 * np.array([[1, between], [between, 1]]) + np.eye(2) * 0.21 / 8 / d**2
    along = 0.06 * 0.5 * shared(np.array([1000.0, 3000.0]), 10e3)
    expected = along @ np.linalg.solve(K, (k / n - q)[:, 0] / d)
    assert records.residual(here)[0, 0] == pytest.approx(expected)
    left = 1 - along @ np.linalg.solve(K, along) / 0.06
    assert records.left(here)[0, 0] == pytest.approx(left)


def test_a_record_left_out_is_told_as_if_it_had_never_been():
    records, at, *_ = some_records()
    without, *_ = some_records(keep=np.arange(1, 6))
    own = Moved.by(records, at[:1], np.array([0]))
    assert own.residual[0] == pytest.approx(without.residual(at[:1])[0])
    assert own.left[0] == pytest.approx(without.left(at[:1])[0])


def test_beyond_the_reach_nothing_changes_at_all():
    records, *_ = some_records()
    far = np.array([[40_000.0, 0.0], [0.0, 23_000.0]])
    assert not records.residual(far).any()
    assert (records.left(far) == 1).all()
    assert not records.near(far).any()


def test_the_order_of_records_does_not_matter():
    records, at, *_ = some_records()
    turned, *_ = some_records(keep=np.arange(6)[::-1])
    here = at[:3] + 500
    assert records.residual(here) == pytest.approx(turned.residual(here), abs=1e-12)


def test_how_far_neighbours_are_alike_is_learned_and_may_be_not_at_all():
    found = {}
    for near in (0.0, 0.9):
        dataset, predictions, _, fold_of = community_world(near=near, sites=400)
        k, n = dataset.counts(dataset.site_ids)
        q = predictions.to_numpy()
        C = scaled_linear.fit_covariance(q, k, n)
        at = dataset.sites[["easting", "northing"]].to_numpy()
        found[near] = choose_nearness(at, q, k, n, fold_of.to_numpy(), C)
    assert found[0.9][0] >= 0.3
    assert found[0.0][0] <= 0.15
