"""The two models of a community, against plain formulas and sums over grids."""

import numpy as np
import pytest
from scipy.special import expit

from butterfly_sdm.community import logit_normal, richness, scaled_linear
from butterfly_sdm.community.calibration import Calibration, draw_visits
from butterfly_sdm.community.evidence import MOST_VISITS, Evidence, Thinned, share_told
from butterfly_sdm.community.unvisited import GRID, Prior


def covariance(species=4, seed=0):
    root = np.random.default_rng(seed).normal(size=(species, species))
    return root @ root.T / species + 0.3 * np.eye(species)


def test_linear_conditioning_is_that_of_a_gaussian_with_known_cells_alone():
    C, q = covariance() * 0.05, np.array([[0.3, 0.1, 0.02, 0.6]])
    k, n = np.array([[2.0, 0, 0, 1]]), np.array([[3.0, 0, 4, 2]])
    got = scaled_linear.condition(q, C, Evidence(k, n))[0]
    known = np.flatnonzero(n[0])
    d = (q[0] * (1 - q[0]) + 0.01) ** 0.25
    S = np.outer(d, d) * C
    noise = np.maximum(q[0] * (1 - q[0]), 0.004)[known] / n[0, known]
    gain = S[:, known] @ np.linalg.inv(S[np.ix_(known, known)] + np.diag(noise))
    expected = q[0] + gain @ (k[0, known] / n[0, known] - q[0, known])
    assert got == pytest.approx(expected.clip(0, 1), abs=1e-12)


def test_the_covariance_of_residuals_leaves_out_the_noise_of_visits():
    rng = np.random.default_rng(1)
    truth = expit(rng.normal(size=(4000, 1)) * [1.0, 1.0, -1.0])
    q = np.full(truth.shape, 0.5)
    n = np.full(4000, 6.0)
    k = rng.binomial(6, truth).astype(float)
    C = scaled_linear.fit_covariance(q, k, n)
    d2 = 0.26**0.5
    true = np.cov((truth - 0.5).T) / d2
    assert np.diag(C) == pytest.approx(np.diag(true), rel=0.1)
    assert C[0, 1] == pytest.approx(0.95 * true[0, 1], rel=0.1)
    assert C[0, 2] < 0


def test_seen_at_least_once_moves_a_rate_as_its_density_says():
    q, C = np.array([[0.2]]), np.array([[0.02 / (0.17**0.5)]])
    effort = np.array([[5.0]])
    none = np.zeros((1, 1))
    got = scaled_linear.condition(q, C, Evidence(none, none, effort=effort))
    grid = np.linspace(0, 1, 20001)
    weight = np.exp(-((grid - 0.2) ** 2) / (2 * 0.02)) * (1 - (1 - grid) ** 5)
    assert got[0, 0] == pytest.approx((weight * grid).sum() / weight.sum(), abs=2e-3)


def test_the_offset_keeps_the_mean_rate():
    q, sd = np.array([0.001, 0.03, 0.4, 0.97]), np.array([2.0, 1.0, 1.5, 0.5])
    rng = np.random.default_rng(0).standard_normal(400_000)
    mean = [expit(m + s * rng).mean() for m, s in zip(logit_normal.offset(q, sd), sd, strict=True)]
    assert mean == pytest.approx(q, rel=0.02)


def on_a_grid(q, S, log_likelihood):
    """Return the expected rates of two species by a sum over a fine grid of z."""
    a = logit_normal.spread(q)
    mu = logit_normal.offset(q, a * np.sqrt(np.diag(S)))
    line = np.linspace(-9, 9, 361)
    z = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1)
    eta = mu + a * z
    log = -0.5 * np.einsum("xyi,ij,xyj->xy", z, np.linalg.inv(S), z) + log_likelihood(eta)
    weight = np.exp(log - log.max())
    return (weight[..., None] * expit(eta)).sum((0, 1)) / weight.sum()


def binomial(k, n):
    return lambda eta: (k * eta - n * np.logaddexp(0, eta)).sum(-1)


@pytest.mark.parametrize(
    ("k", "n"), [([1, 0], [1, 0]), ([0, 2], [3, 2]), ([7, 1], [30, 20]), ([0, 0], [0, 5])]
)
def test_expectation_propagation_agrees_with_a_sum_over_a_grid(k, n):
    q, S = np.array([0.25, 0.08]), np.array([[1.6, -0.9], [-0.9, 1.2]])
    k, n = np.array(k, float), np.array(n, float)
    got = logit_normal.condition(q[None], S, Evidence(k[None], n[None]), sweeps=6)
    assert got.rate[0] == pytest.approx(on_a_grid(q, S, binomial(k, n)), abs=4e-3)


def test_partial_lists_and_certain_presences_agree_with_a_sum_over_a_grid():
    q, S = np.array([0.25, 0.5]), np.array([[1.6, 0.9], [0.9, 1.2]])
    none = np.zeros((1, 2))
    listed, told = np.array([[False, True]]), np.array([0.6])

    def thinned(eta):
        return np.log1p(-0.6 * expit(eta[..., 0])) + np.log(expit(eta[..., 1]))

    got = logit_normal.condition(
        q[None], S, Evidence(none, none, [Thinned(listed, told)]), sweeps=6
    )
    assert got.rate[0] == pytest.approx(on_a_grid(q, S, thinned), abs=4e-3)
    effort = np.array([[4.0, 0.0]])
    got = logit_normal.condition(q[None], S, Evidence(none, none, effort=effort), sweeps=6)

    def once(eta):
        return np.log1p(-((1 - expit(eta[..., 0])) ** 4))

    assert got.rate[0] == pytest.approx(on_a_grid(q, S, once), abs=4e-3)


def test_the_covariance_of_logits_is_found_again():
    rng = np.random.default_rng(3)
    S = np.array([[1.5, 1.0, -0.8], [1.0, 1.5, -0.6], [-0.8, -0.6, 1.2]])
    q = np.full((700, 3), [0.3, 0.2, 0.4])
    a = logit_normal.spread(q)
    eta = logit_normal.offset(q, a * np.sqrt(np.diag(S)))
    eta = eta + a * rng.multivariate_normal(np.zeros(3), S, 700)
    n = rng.integers(8, 30, 700).astype(float)
    k = rng.binomial(n[:, None].astype(int), expit(eta)).astype(float)
    assert logit_normal.fit_covariance(q, k, n) == pytest.approx(S, abs=0.25)


def test_small_predictions_are_corrected_by_what_was_seen_of_them():
    q = np.full((50, 2), [0.004, 0.5])
    n = np.full(50, 100.0)
    k = np.column_stack([np.full(50, 0.2), np.full(50, 50.0)])
    ratios = logit_normal.calibrate_small(q, k, n)
    out = logit_normal.calibrated(q, ratios)
    assert out[0] == pytest.approx([0.002, 0.5])
    assert logit_normal.calibrate_small(q[:, 1:], k[:, 1:], n) == pytest.approx(1)


def test_the_number_of_species_has_the_moments_of_draws():
    rng = np.random.default_rng(5)
    S = 0.9 * np.ones((6, 6)) + 0.4 * np.eye(6)
    mean, visits = np.linspace(-4, 0, 6)[None], np.array([10.0])
    count, sd = richness.posterior_moments(mean, S[None], visits)
    eta = rng.multivariate_normal(mean[0], S, 200_000)
    number = (rng.binomial(10, expit(eta)) > 0).sum(axis=1)
    assert count[0] == pytest.approx(number.mean(), abs=0.02)
    assert sd[0] == pytest.approx(number.std(), rel=0.03)
    alone = (rng.binomial(10, expit(rng.permuted(eta, axis=0))) > 0).sum(axis=1).std()
    assert abs(sd[0] - alone) > 0.3  # as if independent is another number


def test_the_table_for_maps_agrees_with_the_integral():
    S = covariance(5, seed=4)
    q = np.random.default_rng(0).uniform(0.0002, 0.9, (40, 5))
    count, sd = Prior.of(S, logit_normal.spread(GRID), 12)(q)
    a = logit_normal.spread(q)
    mu = logit_normal.offset(q, a * np.sqrt(np.diag(S)))
    full = a[:, :, None] * a[:, None, :] * S
    exact, spread = richness.posterior_moments(mu, full, np.full(40, 12.0))
    assert count == pytest.approx(exact, abs=2e-3)
    assert sd == pytest.approx(spread, abs=2e-3)


def test_an_interval_of_richness_holds_nine_of_ten_of_those_it_was_made_of():
    off = np.random.default_rng(0).normal(0.7, 2.0, 500)
    made = Calibration.fit({0.0: off, 5.0: off * 0.5})
    mean, sd = np.full(500, 20.0), np.full(500, 3.0)
    found = np.round(mean + off * sd)
    expected, low, high = made.interval(mean, sd, 0.0)
    assert expected[0] == pytest.approx(20 + 3 * np.median(off))
    assert ((low <= found) & (found <= high)).mean() == pytest.approx(0.9, abs=0.02)
    assert made.interval(mean, sd, 2.0)[2][0] < high[0]  # narrower the more is known
    assert Calibration.from_dict(made.to_dict()) == made


def test_an_interval_between_two_whole_numbers_is_the_nearest():
    sharp = Calibration((0.0,), (0.0,), (0.1,))
    expected, low, high = sharp.interval(np.array([4.4]), np.array([1.0]), 0.0)
    assert (expected[0], low[0], high[0]) == (4.4, 4.0, 4.0)


def test_drawn_visits_are_some_of_those_there_were():
    k, n = np.array([[3.0, 0.0, 8.0]]), np.array([8.0])
    drawn = np.stack([draw_visits(k, n, 4, np.random.default_rng(i))[0] for i in range(300)])
    assert drawn.max(axis=0).tolist() == [3, 0, 4]
    assert drawn.mean(axis=0) == pytest.approx([1.5, 0, 4], abs=0.1)


def test_very_many_visits_count_as_many_at_the_same_rate():
    one = Evidence(np.array([[3000.0]]), np.array([[4000.0]])).limited()
    assert one.n[0, 0] == MOST_VISITS
    assert one.k[0, 0] / one.n[0, 0] == 0.75


def test_the_share_a_list_tells_is_its_length_over_what_was_expected():
    q = np.full((3, 10), 0.5)
    listed = np.zeros((3, 10), dtype=bool)
    listed[0, :2] = listed[1, :9] = True
    assert share_told(listed, q).tolist() == [0.4, 1.0, 0.0]
