"""An ensemble is the mean of its members, keeps them all and says how far they disagree."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from butterfly_sdm.baselines.mean_rate import MeanRate
from butterfly_sdm.core.executor import open_executor
from butterfly_sdm.data.predictor import FitContext, Predictor
from butterfly_sdm.errors import ArtefactError, DataError, ModelError
from butterfly_sdm.models.ensemble import Ensemble
from tests.models.conftest import make_dataset

TABLE = {
    "image": False,
    "covariates": True,
    "embedding": 8,
    "epochs": 2,
    "batch_size": 8,
    "accelerator": "cpu",
}


@pytest.fixture(scope="module")
def data():
    from tests.models.conftest import make_dataset

    return make_dataset(24, image=False)


@pytest.fixture(scope="module")
def ensemble(data) -> Ensemble:
    return Ensemble.of_networks(3, seed=4, **TABLE).fit(data, data.split.train)


def test_it_is_a_predictor_whose_members_have_their_own_seeds(ensemble) -> None:
    assert isinstance(ensemble, Predictor)
    assert [member.seed for member in ensemble.members] == [4, 5, 6]
    assert len(ensemble.history) == 6


def test_its_claim_is_the_mean_and_its_spread_the_standard_deviation(data, ensemble) -> None:
    tables = np.stack(
        [member.predict(data, data.site_ids).to_numpy() for member in ensemble.members]
    )
    np.testing.assert_allclose(ensemble.predict(data, data.site_ids), tables.mean(axis=0))
    np.testing.assert_allclose(ensemble.spread(data, data.site_ids), tables.std(axis=0, ddof=1))
    assert ensemble.predict(data, data.site_ids).index.name == "site_id"


def test_a_loaded_ensemble_predicts_what_the_saved_one_did(data, ensemble, tmp_path: Path) -> None:
    ensemble.save(tmp_path)
    loaded = Ensemble.load(tmp_path)
    pd.testing.assert_frame_equal(
        loaded.predict(data, data.site_ids), ensemble.predict(data, data.site_ids)
    )
    runs = Ensemble.of_runs([tmp_path / "members" / "0", tmp_path / "members" / "2"])
    assert [member.seed for member in runs.members] == [4, 6]


def test_an_interrupted_ensemble_continues_with_the_member_it_was_at(data, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(task: str, done: int, total: int) -> None:
        if (done, total) == (3, 4):
            raise Stop

    with pytest.raises(Stop):
        Ensemble.of_networks(2, **TABLE).fit(
            data, data.split.train, context=FitContext(folder=tmp_path, progress=stop)
        )
    again = Ensemble.of_networks(2, **TABLE).fit(
        data, data.split.train, context=FitContext(folder=tmp_path)
    )
    whole = Ensemble.of_networks(2, **TABLE).fit(data, data.split.train)
    pd.testing.assert_frame_equal(
        again.predict(data, data.site_ids), whole.predict(data, data.site_ids)
    )
    assert (tmp_path / "history.csv").is_file()


@pytest.mark.slow
def test_members_fitted_in_other_processes_are_the_same(data, tmp_path: Path) -> None:
    here = Ensemble.of_networks(2, **TABLE).fit(data, data.split.train)
    told: list[tuple[int, int]] = []
    with open_executor(workers=2) as (executor, _):
        context = FitContext(
            folder=tmp_path,
            progress=lambda task, done, total: told.append((done, total)),
            executor=executor,
        )
        there = Ensemble.of_networks(2, **TABLE).fit(data, data.split.train, context=context)
    pd.testing.assert_frame_equal(
        there.predict(data, data.site_ids), here.predict(data, data.site_ids)
    )
    assert told == [(1, 2), (2, 2)]
    assert set(pd.read_csv(tmp_path / "history.csv")["member"]) == {0, 1}


def test_what_does_not_fit_is_said(data, ensemble, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="at least one member"):
        Ensemble([])
    with pytest.raises(ModelError, match="0 were asked for"):
        Ensemble.of_networks(0)
    with pytest.raises(ModelError, match="cannot disagree"):
        Ensemble(ensemble.members[:1]).spread(data, data.site_ids)
    ensemble.save(tmp_path)
    card = json.loads((tmp_path / "model.json").read_text())

    def with_card(**change) -> None:
        (tmp_path / "model.json").write_text(json.dumps(card | change))

    with_card(members=["../elsewhere"])
    with pytest.raises(ArtefactError, match="lies outside the run"):
        Ensemble.load(tmp_path)
    with_card(members=[])
    with pytest.raises(ArtefactError, match="does not list its members"):
        Ensemble.load(tmp_path)
    with_card(species=["Pieris napi"])
    with pytest.raises(ModelError, match=r"Member 0 .* does not predict the species"):
        Ensemble.load(tmp_path)
    with_card(kind="network")
    with pytest.raises(ArtefactError, match="of kind 'network', not 'ensemble'"):
        Ensemble.load(tmp_path)
    with_card(format_version=9)
    with pytest.raises(ArtefactError, match="format version 9; this release reads 1"):
        Ensemble.load(tmp_path)
    other = make_dataset(24, image=False)
    names = ("Vanessa atalanta", *other.species[1:])
    other = replace(
        other,
        card=other.card.model_copy(update={"species": names}),
        detections=other.detections.set_axis(list(names), axis=1),
    )
    MeanRate().fit(other, other.split.train).save(tmp_path / "other")
    with pytest.raises(DataError, match="no mean"):
        Ensemble.of_runs([tmp_path / "other", tmp_path / "members" / "0"])


def test_only_members_that_see_nothing_but_the_image_need_tiles():
    assert Ensemble.of_networks(2).sees.needs_tile
    assert not Ensemble.of_networks(2, covariates=True).sees.needs_tile
    assert not Ensemble.of_networks(2, image=False, position=True).sees.needs_tile
