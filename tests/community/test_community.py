"""What a community must hold to, whatever the model."""

import json
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from butterfly_sdm.community.calibration import draw_visits
from butterfly_sdm.community.community import Community
from butterfly_sdm.community.given import Given
from butterfly_sdm.core.cards import damage
from butterfly_sdm.errors import ArtefactError, DataError, MissingFileError, ModelError


def held_out(world):
    dataset, predictions, truth, community = world
    sites = list(dataset.split.validation)
    return community, predictions.loc[sites], truth.loc[sites], *dataset.counts(sites)


def table(values, like):
    return pd.DataFrame(values, index=like.index, columns=like.columns)


def error(claim, truth):
    return float(((claim - truth) ** 2).to_numpy().mean())


def test_nothing_given_is_the_prediction_to_the_last_bit(world):
    community, q, *_ = held_out(world)
    assert (community.condition(q).probability.to_numpy() == q.to_numpy()).all()
    one = Given.of_counts(table(1.0, q.iloc[:1]), 2)
    some = community.condition(q, one).probability
    assert (some.iloc[1:].to_numpy() == q.iloc[1:].to_numpy()).all()
    assert (some.iloc[0] != q.iloc[0]).all()


def test_everything_given_is_what_was_given_within_its_noise(world):
    community, q, truth, *_ = held_out(world)
    many = 300 * np.ones(len(q))
    counts = np.random.default_rng(0).binomial(300, truth.to_numpy()).astype(float)
    got = community.condition(q, Given.of_counts(table(counts, q), many)).probability
    rate = counts / 300
    noise = np.sqrt(np.maximum(rate * (1 - rate), 0.01) / 300)
    assert (np.abs(got - rate) / noise).to_numpy().max() < 3
    assert error(got, truth) < 1.2 * (rate * (1 - rate)).mean() / 300


def test_the_more_is_known_the_nearer_the_truth_and_other_species_help(world):
    community, q, truth, k, n = held_out(world)
    errors = [error(q, truth)]
    for visits in (1, 2, 5):
        of_draws = []
        for seed in range(5):
            seen = draw_visits(k, n, visits, np.random.default_rng(seed))
            given = Given.of_counts(table(seen, q), visits)
            of_draws.append(error(community.condition(q, given).probability, truth))
        errors.append(np.mean(of_draws))
    assert all(later < earlier for earlier, later in pairwise(errors)), errors
    assert errors[-1] < 0.4 * errors[0]
    half = np.arange(q.shape[1]) < 4
    known = Given.of_counts(table(k * half, q), table(n[:, None] * half, q))
    told = community.condition(q, known).probability
    assert error(told.loc[:, ~half], truth.loc[:, ~half]) < 0.6 * error(
        q.loc[:, ~half], truth.loc[:, ~half]
    )


def test_partial_lists_are_better_than_nothing_and_worse_than_the_whole_list(world):
    community, q, truth, k, n = held_out(world)
    rng, errors = np.random.default_rng(2), {"nothing": [], "partial": [], "whole": []}
    for _ in range(8):
        day = draw_visits(k, n, 1, rng)
        rank = np.argsort(np.argsort(-(day + rng.random(day.shape)), axis=1), axis=1)
        told = table(day * (rank < 2), q)
        empty = Given.of_counts(told * 0, 0)
        lists = told[told.any(axis=1)]
        partial = Given(empty.detections, empty.visits, empty.effort, lists)
        errors["nothing"].append(error(q, truth))
        errors["partial"].append(error(community.condition(q, partial).probability, truth))
        whole = Given.of_counts(table(day, q), 1)
        errors["whole"].append(error(community.condition(q, whole).probability, truth))
    mean = {name: np.mean(values) for name, values in errors.items()}
    assert mean["whole"] < mean["partial"] < mean["nothing"]


@pytest.mark.parametrize("visits", [0, 2])
def test_intervals_hold_at_sites_never_seen(world, visits):
    community, q, truth, k, n = held_out(world)
    seen = draw_visits(k, n, visits, np.random.default_rng(3))
    belief = community.condition(q, Given.of_counts(table(seen, q), visits), visits=n - visits)
    held = (belief.low <= truth) & (truth <= belief.high)
    assert 0.83 < held.to_numpy().mean() < 0.97
    number = ((k - seen) > 0).sum(axis=1)
    inside = (belief.richness["low"] <= number) & (number <= belief.richness["high"])
    assert 0.8 < inside.mean() <= 1
    assert ((belief.low <= belief.probability) & (belief.probability <= belief.high)).all(axis=None)


def test_the_order_of_places_does_not_matter(world):
    community, q, _, k, n = held_out(world)
    given = Given.of_counts(table(draw_visits(k, n, 1, np.random.default_rng(4)), q), 1)
    one = community.condition(q, given)
    other = community.condition(q.iloc[::-1], given)
    assert other.probability.loc[q.index].to_numpy() == pytest.approx(
        one.probability.to_numpy(), abs=1e-6
    )


def test_guilds_that_exclude_each_other_are_seen_in_the_correlations(world):
    *_, community = world
    r = community.correlations().to_numpy()
    same = (np.arange(8)[:, None] + np.arange(8)) % 2 == 0
    off = ~np.eye(8, dtype=bool)
    assert r[same & off].mean() > 0.4
    assert r[~same].mean() < -0.4


def test_sites_most_alike_are_those_with_such_rates(world):
    dataset, *_, community = world
    site = dataset.split.train[5]
    found = community.alike(community.known.loc[[site]], count=3)
    assert found["site_id"].iloc[0] == site
    assert found["similarity"].iloc[0] == pytest.approx(1)
    assert found["similarity"].is_monotonic_decreasing


def test_saved_and_read_it_is_the_same_and_damage_is_found(world, tmp_path):
    community, q, _, k, n = held_out(world)
    community.save(tmp_path, more={"key": "x"})
    again = Community.load(tmp_path)
    given = Given.of_counts(table(draw_visits(k, n, 1, np.random.default_rng(4)), q), 1)
    first, second = community.condition(q, given), again.condition(q, given)
    assert (first.probability.to_numpy() == second.probability.to_numpy()).all()
    assert first.richness.equals(second.richness)
    assert damage(tmp_path / "community.json") == []
    (tmp_path / "known.parquet").unlink()
    assert "known.parquet is missing" in damage(tmp_path / "community.json")[0]
    with pytest.raises(MissingFileError, match="incomplete"):
        Community.load(tmp_path)
    community.save(tmp_path)
    card = json.loads((tmp_path / "community.json").read_text())
    (tmp_path / "community.json").write_text(json.dumps(card | {"species": card["species"][:3]}))
    with pytest.raises(ArtefactError, match="is damaged"):
        Community.load(tmp_path)
    assert damage(tmp_path / "community.json")


def test_the_same_seed_gives_the_same_community(world):
    dataset, predictions, _, community = world
    train = list(dataset.split.train)
    fold_of = pd.Series(np.arange(len(predictions)) % 3, index=predictions.index).loc[train]
    again = Community.fit(dataset, predictions.loc[train], fold_of)
    assert (again.logit == community.logit).all()
    assert again.calibration == community.calibration


def test_few_sites_and_other_species_are_refused(world):
    dataset, predictions, _, community = world
    few = predictions.iloc[:20]
    with pytest.raises(DataError, match="20 training sites have visits"):
        Community.fit(dataset, few, pd.Series(0, index=few.index))
    with pytest.raises(ModelError, match="Fit the community again"):
        community.condition(predictions.rename(columns={"Species a": "Other"}))
    records = community.records(few, Given.nothing(community.species), np.zeros((20, 2)))
    if records is not None:
        with pytest.raises(DataError, match="positions are given"):
            community.condition(few, records=records)
