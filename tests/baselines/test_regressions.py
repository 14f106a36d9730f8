"""Linear, boosted, presence-only and image baselines: what each computes."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from butterfly_sdm.baselines import make_baseline
from butterfly_sdm.baselines.inputs.numbers import site_numbers, tile_statistics
from butterfly_sdm.baselines.linear import fit_logistic
from butterfly_sdm.data.dataset import TileCard
from butterfly_sdm.data.predictor import Sees
from butterfly_sdm.errors import DataError, MissingFileError, ModelError
from tests.evaluation.worlds import small_world


@pytest.fixture(scope="module")
def world():
    """A world whose tiles show the habitat: vegetation is greener where it is good."""
    dataset, _ = small_world()
    random = np.random.default_rng(0)
    habitat = dataset.covariates["habitat"].to_numpy()
    tiles = np.empty((len(habitat), 4, 16, 16), dtype=np.uint16)
    for band, (base, slope) in enumerate([(600, -60), (700, 0), (500, 0), (3000, 400)]):
        level = base + slope * habitat
        tiles[:, band] = random.normal(level[:, None, None], 40, (len(habitat), 16, 16)).clip(1)
    sites = dataset.sites.copy()
    sites["tile_row"] = np.arange(len(sites))
    card = dataset.card.model_copy(
        update={
            "tiles": TileCard(bands=("red", "green", "blue", "nir"), size_px=16, resolution_m=10)
        }
    )
    return replace(dataset, card=card, sites=sites, tiles=tiles)


def error(model, world):
    validation = list(world.split.validation)
    predicted = model.fit(world, world.split.train).predict(world, validation)
    return ((predicted - world.rates.loc[validation]) ** 2).to_numpy().mean()


@pytest.mark.parametrize(
    "kind, options",
    [
        ("linear", {}),
        ("boosting", {"rounds": 15}),
        ("maxent", {}),
        ("random_features", {"filters": 16}),
        ("trees", {"covariates": False, "position": False, "bands": True, "trees": 30}),
        ("linear", {"covariates": False, "position": False, "bands": True}),
    ],
)
def test_it_learns_beats_the_mean_rate_and_comes_back_equal(kind, options, world, tmp_path):
    model = make_baseline(kind, **options)
    assert error(model, world) < 0.9 * error(make_baseline("mean_rate"), world)
    model.save(tmp_path)
    sites = world.split.validation
    pd.testing.assert_frame_equal(
        type(model).load(tmp_path).predict(world, sites), model.predict(world, sites)
    )
    assert model.sees.needs_tile == (kind == "random_features" or "bands" in options)


def test_the_logistic_regression_agrees_with_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(0)
    design, n = random.normal(size=(150, 3)), random.integers(2, 40, 150)
    k = random.binomial(n, 1 / (1 + np.exp(-design @ [1.0, -0.5, 0.0] + 0.4)))
    slopes, intercept = fit_logistic(design, (k / n)[:, None], n.astype(float), 0.02)
    weights = np.r_[k, n - k] / n.sum()
    other = LogisticRegression(C=1 / 0.02, tol=1e-9, max_iter=2000).fit(
        np.vstack([design, design]), np.repeat([1, 0], 150), sample_weight=weights
    )
    np.testing.assert_allclose(slopes[:, 0], other.coef_[0], atol=2e-4)
    np.testing.assert_allclose(intercept, other.intercept_, atol=2e-4)


def test_boosting_predicts_what_scikit_learn_predicts(world):
    from scipy.special import expit
    from sklearn.ensemble import HistGradientBoostingClassifier

    train, validation = list(world.split.train), list(world.split.validation)
    one = replace(
        world,
        card=world.card.model_copy(update={"species": world.species[:1]}),
        detections=world.detections.iloc[:, :1],
        covariates=world.covariates.mask(
            np.random.default_rng(0).uniform(size=world.covariates.shape) < 0.2
        ),
    )
    model = make_baseline("boosting", rounds=10).fit(one, train)
    x = site_numbers(one, train, model.sees).to_numpy()
    n = one.visits[train].to_numpy(dtype=float)
    rate = one.rates.loc[train].to_numpy()[:, 0]
    weights = np.r_[rate * n**0.5, (1 - rate) * n**0.5]
    other = HistGradientBoostingClassifier(
        max_iter=10,
        learning_rate=0.12,
        max_depth=3,
        min_samples_leaf=20,
        l2_regularization=5.0,
        max_features=0.5,
        max_bins=32,
        early_stopping=False,
        random_state=0,
    ).fit(np.vstack([x, x]), np.repeat([1, 0], len(x)), sample_weight=weights / weights.mean())
    expected = expit(other.decision_function(site_numbers(one, validation, model.sees).to_numpy()))
    np.testing.assert_allclose(model.predict(one, validation).to_numpy()[:, 0], expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "boosting", "maxent"])
def test_a_species_never_recorded_is_predicted_near_zero(kind, world):
    detections = world.detections.copy()
    detections.iloc[:, 0] = 0
    options = {"rounds": 5} if kind == "boosting" else {}
    model = make_baseline(kind, **options).fit(
        replace(world, detections=detections), world.split.train
    )
    assert model.predict(world, world.split.validation).iloc[:, 0].max() < 1e-3


def test_maxent_agrees_with_elapid(world):
    import elapid

    train, validation = list(world.split.train), list(world.split.validation)
    species = world.species[1]
    model = make_baseline("maxent", scaled=False).fit(world, train)
    x = site_numbers(world, train, model.sees).to_numpy()
    present = world.detections.loc[train, species].to_numpy() > 0
    other = elapid.MaxentModel(
        feature_types=["linear", "quadratic"], use_sklearn=True, random_state=0
    )
    other.fit(np.vstack([x[present], x]), np.r_[np.ones(present.sum()), np.zeros(len(x))])
    expected = other.predict(site_numbers(world, validation, model.sees).to_numpy())
    np.testing.assert_allclose(model.predict(world, validation)[species], expected, atol=1e-6)


def test_scaled_suitability_has_the_mean_rate_of_the_training_sites(world):
    train = list(world.split.train)
    predicted = make_baseline("maxent").fit(world, train).predict(world, train)
    np.testing.assert_allclose(predicted.mean(), world.rates.loc[train].mean(), rtol=0.05)


def test_tile_statistics_are_of_valid_pixels_in_reflectance(world):
    tiles = world.tiles.copy()
    tiles[0, :, :8] = 0  # half of the first tile was not seen
    table = tile_statistics(
        replace(world, tiles=tiles), world.site_ids[:2], Sees.of(world, image=True)
    )
    nir, red = (tiles[0, band, 8:].astype(float) * 1e-4 for band in (3, 0))
    assert table.loc["s0000", "nir_mean"] == pytest.approx(nir.mean())
    assert table.loc["s0000", "red_p90"] == pytest.approx(np.percentile(red, 90))
    assert table.loc["s0000", "ndvi_mean"] == pytest.approx(((nir - red) / (nir + red)).mean())
    tiles[0] = 0
    assert (
        tile_statistics(replace(world, tiles=tiles), world.site_ids[:1], Sees.of(world, image=True))
        .isna()
        .all()
        .all()
    )


def test_random_filters_find_their_bands_by_name_and_refuse_none_and_no_tiles(world):
    model = make_baseline("random_features", filters=4).fit(world, world.split.train)
    known = model.predict(world, world.split.validation)

    def with_bands(order):
        names = tuple(world.card.tiles.bands[place] for place in order)
        tiles = world.card.tiles.model_copy(update={"bands": names})
        card = world.card.model_copy(update={"tiles": tiles})
        return replace(world, card=card, tiles=world.tiles[:, order])

    told = model.predict(with_bands([3, 1, 0, 2]), world.split.validation)
    pd.testing.assert_frame_equal(told, known)
    with pytest.raises(ModelError, match="needs the band red; the tiles have green, blue, nir"):
        model.predict(with_bands([1, 2, 3]), world.split.validation)
    with pytest.raises(DataError, match="has no tiles"):
        model.fit(replace(world, tiles=None), world.split.train)
    with pytest.raises(DataError, match=r"smaller than patch_px = 20"):
        make_baseline("random_features", patch_px=20).fit(world, world.split.train)
    with pytest.raises(DataError, match="must be at least 1"):
        make_baseline("random_features", filters=0)


def test_random_filters_take_no_pixel_for_dark_that_was_not_measured(world):
    """As whole numbers with 0 for missing, or fractions with NaN: the ground is the same."""
    whole = world.tiles.copy()
    whole[::2, :, :, 10:] = 0
    fractions = np.where(whole == 0, np.nan, whole).astype(np.float32)
    tiles = world.card.tiles.model_copy(update={"dtype": "float32", "nodata": None})
    card = world.card.model_copy(update={"tiles": tiles})
    told = [
        make_baseline("random_features", filters=4)
        .fit(data, data.split.train)
        .predict(data, data.split.validation)
        for data in (replace(world, tiles=whole), replace(world, card=card, tiles=fractions))
    ]
    pd.testing.assert_frame_equal(*told, rtol=1e-5)


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet"])
def test_a_probe_reads_embeddings_and_learns_from_them(world, tmp_path, suffix):
    path = tmp_path / f"embeddings{suffix}"
    random = np.random.default_rng(0)
    values = np.column_stack(
        [world.covariates["habitat"], random.normal(size=(len(world.sites), 5))]
    ) @ random.normal(size=(6, 10))
    table = pd.DataFrame(values, index=world.sites.index, columns=[f"d{i}" for i in range(10)])
    if suffix == ".npz":
        np.savez(path, site_id=np.array(table.index, dtype=str), embedding=values)
    else:
        table.reset_index().to_csv(
            path, index=False
        ) if suffix == ".csv" else table.reset_index().to_parquet(path)
    model = make_baseline("probe", embeddings=str(path))
    assert error(model, world) < 0.9 * error(make_baseline("mean_rate"), world)
    model.save(tmp_path / "model")
    sites = world.split.validation
    pd.testing.assert_frame_equal(
        type(model).load(tmp_path / "model").predict(world, sites), model.predict(world, sites)
    )


def test_a_probe_reads_its_table_once_until_the_file_changes(world, tmp_path, monkeypatch):
    from butterfly_sdm.baselines import probe

    seen, read = [], probe.read_embeddings
    monkeypatch.setattr(probe, "read_embeddings", lambda path: seen.append(path) or read(path))
    path = tmp_path / "e.npz"
    ids = np.array(world.sites.index, dtype=str)
    values = np.random.default_rng(0).normal(size=(len(ids), 6))
    np.savez(path, site_id=ids, embedding=values)
    model = make_baseline("probe", embeddings=str(path)).fit(world, world.split.train)
    first = model.predict(world, world.split.validation)
    model.predict(world, world.split.train)
    assert len(seen) == 1
    np.savez(path, site_id=ids, embedding=np.round(values[:, ::-1], 1), more=ids)
    assert not np.allclose(model.predict(world, world.split.validation), first)
    assert len(seen) == 2


def test_a_probe_says_what_is_wrong_with_its_file(world, tmp_path):
    with pytest.raises(MissingFileError, match="no embeddings at"):
        make_baseline("probe", embeddings=str(tmp_path / "none.npz")).fit(world, world.split.train)
    (tmp_path / "bad.npz").write_bytes(b"bad")
    with pytest.raises(DataError, match="not a table of embeddings"):
        make_baseline("probe", embeddings=str(tmp_path / "bad.npz")).fit(world, world.split.train)
    pd.DataFrame({"site_id": ["s0000"], "d": [1.0]}).to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(DataError, match="no embedding of site s0001 and"):
        make_baseline("probe", embeddings=str(tmp_path / "few.csv")).fit(world, world.split.train)


def test_a_penalty_of_zero_is_refused():
    with pytest.raises(DataError, match="must be above 0"):
        make_baseline("linear", penalty=0.0)
