"""A message about an unknown name asks for the nearest known one, whatever the name is of."""

import pytest

from butterfly_sdm.baselines import make_baseline
from butterfly_sdm.config import load_config
from butterfly_sdm.errors import ButterflySDMError, did_you_mean
from butterfly_sdm.models.backbone import Trunk
from butterfly_sdm.plugins.plugin import run_plugin
from butterfly_sdm.predictors import predictor_class
from data_prep.readers.registry import reader
from data_prep.schemes import recording_scheme


def test_names_are_near_without_regard_to_case_and_underscores():
    assert did_you_mean("pieris_napi", ["Pieris rapae", "Pieris napi"]) == " Did you mean 'Pieris napi'?"
    assert did_you_mean("wombat", ["Pieris rapae"]) == ""


@pytest.mark.parametrize(
    ("mistake", "meant"),
    [
        (lambda: make_baseline("tree"), "trees"),
        (lambda: predictor_class("nearest_site"), "nearest_sites"),
        (lambda: load_config({"train": {"fit": {"epoch": 3}}}), "epochs"),
        (lambda: load_config({"train": {"fit": {"loss": "binomal"}}}), "binomial"),
        (lambda: load_config({"build": {"records": {"path": "a.csv"}, "split": {"method": "block"}}}), "blocks"),
        (lambda: Trunk("resnet19", ("red",)), "resnet18"),
        (lambda: run_plugin("cmdm", "train", "x.yaml"), "cmmd"),
        (lambda: reader("gbiff"), "gbif"),
        (lambda: recording_scheme("complet"), "complete"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(mistake, meant):
    with pytest.raises(ButterflySDMError, match=rf"[Dd]id you mean '{meant}'\?"):
        mistake()
