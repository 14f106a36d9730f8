"""A share of a claim can be the mean of the training sites nearest in the embedding."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from butterfly_sdm.data.predictor import FitContext
from butterfly_sdm.models.ensemble import Ensemble
from butterfly_sdm.models.network_predictor import NetworkPredictor

TABLE = {
    "image": False,
    "covariates": True,
    "embedding": 16,
    "batch_size": 8,
    "epochs": 3,
    "accelerator": "cpu",
}


def test_a_blend_is_the_network_and_the_rates_around_as_written_out(make, tmp_path: Path) -> None:
    dataset = make(40, image=False)
    train, sites = dataset.split.train, dataset.split.validation
    watch = FitContext(validation=sites)
    alone = NetworkPredictor(**TABLE).fit(dataset, train, context=watch)
    blend = NetworkPredictor(**TABLE, neighbours=0.25).fit(dataset, train, context=watch)
    pd.testing.assert_frame_equal(  # it changes nothing in the fit
        alone.history.drop(columns=["seconds", "sites_per_second", "waiting"]),
        blend.history.drop(columns=["seconds", "sites_per_second", "waiting"]),
    )
    k, n = dataset.counts(train)
    mean = (k.sum(axis=0) / n.sum()).clip(1e-3, 1 - 1e-3)
    z, known = alone.embed(dataset, sites).to_numpy(), alone.embed(dataset, train).to_numpy()
    head = alone.predict(dataset, sites).to_numpy()
    expected = np.empty_like(head)
    for row in range(len(sites)):
        weight = np.exp([z[row] @ other / 0.05 for other in known])
        near = sum(w * (k[i] + 2 * mean) / (n[i] + 2) for i, w in enumerate(weight / weight.sum()))
        expected[row] = 0.75 * head[row] + 0.25 * near
    found = blend.predict(dataset, sites)
    np.testing.assert_allclose(found.to_numpy(), expected, atol=1e-5)
    assert np.abs(found.to_numpy() - head).max() > 1e-3
    blend.save(tmp_path)
    again = NetworkPredictor.load(tmp_path)
    assert again.network.architecture.remembered == len(train)
    pd.testing.assert_frame_equal(again.predict(dataset, sites), found)


def test_all_neighbours_is_a_mean_of_rates_and_an_ensemble_blends_every_member(make) -> None:
    dataset = make(40, image=False)
    train, sites = dataset.split.train, dataset.split.validation
    only = NetworkPredictor(**TABLE, neighbours=1.0).fit(dataset, train)
    rates = dataset.rates.loc[list(train)].to_numpy()
    claims = only.predict(dataset, sites).to_numpy()
    assert (claims >= rates.min(axis=0) - 1e-6).all()
    assert (claims <= rates.max(axis=0) + 1e-6).all()
    pair = Ensemble.of_networks(2, **TABLE, neighbours=0.5).fit(dataset, train)
    plain = Ensemble.of_networks(2, **TABLE).fit(dataset, train)
    for member, head in zip(pair.members, plain.members, strict=True):
        own, bare = (one.predict(dataset, sites).to_numpy() for one in (member, head))
        near = 2 * own - bare
        assert near.min() > 0
        assert near.max() < 1


def test_a_network_without_neighbours_is_stored_as_before(make) -> None:
    network = NetworkPredictor(**TABLE).fit(make(12, image=False), ["s004", "s005", "s006"])
    card = network.network.architecture.model_dump(mode="json")
    assert not {"neighbours", "remembered"} & set(card)
    assert "neighbours" not in network.settings()
    assert not [name for name in network.network.state_dict() if name.startswith("near")]


def test_maps_blend_as_predictions_do(make) -> None:
    dataset = make(24, tile_px=32)
    settings = {"backbone": "test_resnet", "window_px": 32, "margin_px": 0, "epochs": 1}
    settings |= {"embedding": 16, "batch_size": 8, "accelerator": "cpu", "neighbours": 0.5}
    network = NetworkPredictor(**settings).fit(dataset, dataset.split.train)
    sites = dataset.split.validation
    z = torch.tensor(network.embed(dataset, sites).to_numpy()).float()
    dense = torch.sigmoid(network.network.classify(z)).detach().numpy()  # as dense maps do
    np.testing.assert_allclose(dense, network.predict(dataset, sites).to_numpy(), atol=1e-6)
