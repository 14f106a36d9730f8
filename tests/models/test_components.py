"""Principal components of groups of covariates, as a network sees them."""

import numpy as np
import pandas as pd
import pytest
import torch

from butterfly_sdm.baselines.inputs.components import fit_components, with_components
from butterfly_sdm.data.dataset import Dataset
from butterfly_sdm.errors import DataError, ModelError
from butterfly_sdm.models.inputs import mixing_axes
from butterfly_sdm.models.network_predictor import NetworkPredictor

COLUMNS = [f"aef_e{number:02d}" for number in range(8)]
QUICK = {"image": False, "covariates": True, "embedding": 8, "head_width": 8, "epochs": 2}


@pytest.fixture
def world(make) -> Dataset:
    """A data set whose covariates are a mix of three numbers, and rain; some are missing."""
    data = make(sites=60)
    random = np.random.default_rng(3)
    hidden = random.normal(size=(len(data.sites), 3)) * [3.0, 1.0, 0.3]
    table = pd.DataFrame(hidden @ random.normal(size=(3, 8)), data.sites.index, COLUMNS)
    table.insert(3, "rain", random.normal(900, 100, len(table)))
    table.iloc[5, 2] = np.nan
    return Dataset(data.card, data.sites, data.detections, data.tiles, table, data.split)


def fitted(world: Dataset, **options) -> NetworkPredictor:
    known = {"accelerator": "cpu", "augment": False, "components": {"aef": 3}}
    return NetworkPredictor(**QUICK | known | options).fit(world, world.split.train)


def test_components_are_those_of_the_table_models_and_the_rest_stays(world):
    table = world.covariates.loc[list(world.split.train)]
    mean, spread = table.mean(), table.std(ddof=0)
    standard = ((table - mean) / spread).fillna(0.0).to_numpy()
    axes = mixing_axes(standard, list(table.columns), {"aef": 3}, spread=spread.to_numpy())
    found = standard @ axes
    np.testing.assert_allclose(found[:, 0], standard[:, 3])
    wanted = with_components(table, "aef", fit_components(table, "aef", 3))
    assert list(wanted.columns) == ["rain", "aef_pc1", "aef_pc2", "aef_pc3"]
    np.testing.assert_allclose(found[:, 1:], wanted.iloc[:, 1:], atol=1e-9)


def test_a_network_keeps_the_components_of_its_training_sites(world, tmp_path):
    network = fitted(world)
    net = network.network
    assert net.covariate_axes.shape == (9, 4) and network.sees.covariates == (
        *COLUMNS[:3],
        "rain",
        *COLUMNS[3:],
    )
    network.save(tmp_path / "model")
    again = NetworkPredictor.load(tmp_path / "model")
    sites = world.split.validation
    pd.testing.assert_frame_equal(again.predict(world, sites), network.predict(world, sites))
    other = world.covariates.copy()
    other.loc[list(sites)] *= 5  # of sites it does not learn from
    moved = Dataset(world.card, world.sites, world.detections, world.tiles, other, world.split)
    torch.testing.assert_close(fitted(moved, epochs=1).network.covariate_axes, net.covariate_axes)
    assert "covariate_axes" not in fitted(world, components={}, epochs=1).network.state_dict()


def test_groups_that_are_not_there_or_too_small_are_refused(world):
    with pytest.raises(DataError, match="no covariate is called 'tessera'"):
        fitted(world, components={"tessera": 3})
    with pytest.raises(ModelError, match="asks for 9 of 'aef', which has 8"):
        fitted(world, components={"aef": 9})
    with pytest.raises(ModelError, match="'aef_e00' is in two groups"):
        fitted(world, components={"aef": 2, "aef_e00": 1})
    with pytest.raises(ModelError, match=r"there are \d training sites"):
        NetworkPredictor(**QUICK, components={"aef": 8}).fit(world, world.split.train[:5])
