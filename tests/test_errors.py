"""A message about an unknown name asks for the nearest known one, whatever the name is of."""

import importlib.metadata
import json

import pytest

from butterfly_sdm.baselines import make_baseline
from butterfly_sdm.config import load_config
from butterfly_sdm.errors import ButterflySDMError, did_you_mean, how_to_install
from butterfly_sdm.models.trunk import Trunk
from butterfly_sdm.plugins.plugin import run_plugin
from butterfly_sdm.predictors import PREDICTORS
from data_prep.records.readers.registry import reader


def test_names_are_near_without_regard_to_case_and_underscores():
    assert (
        did_you_mean("pieris_napi", ["Pieris rapae", "Pieris napi"])
        == " Did you mean 'Pieris napi'?"
    )
    assert did_you_mean("wombat", ["Pieris rapae"]) == ""


@pytest.mark.parametrize(
    ("mistake", "meant"),
    [
        (lambda: make_baseline("tree"), "trees"),
        (lambda: PREDICTORS.load("nearest_site"), "nearest_sites"),
        (lambda: load_config({"train": {"fit": {"epoch": 3}}}), "epochs"),
        (lambda: load_config({"train": {"fit": {"loss": "binomal"}}}), "binomial"),
        (
            lambda: load_config(
                {"build": {"records": {"path": "a.csv"}, "split": {"method": "block"}}}
            ),
            "blocks",
        ),
        (lambda: Trunk("resnet19", ("red",)), "resnet18"),
        (lambda: run_plugin("cmdm", "train", "x.yaml"), "cmmd"),
        (lambda: reader("gbiff"), "gbif"),
        (
            lambda: load_config({"build": {"records": {"path": "a.csv", "scheme": "complet"}}}),
            "complete",
        ),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(mistake, meant):
    with pytest.raises(ButterflySDMError, match=rf"[Dd]id you mean '{meant}'\?"):
        mistake()


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (
            {"url": "file:///home/ann/my%20clone", "dir_info": {"editable": True}},
            'pip install -e "/home/ann/my clone[search]"',
        ),
        (
            {"url": "file:///home/ann/clone", "dir_info": {}},
            'pip install "/home/ann/clone[search]"',
        ),
        (
            {"url": "https://example.org/a.whl", "archive_info": {}},
            'pip install "butterfly-sdm[search]"',
        ),
        (None, 'pip install "butterfly-sdm[search]"'),
    ],
    ids=["a clone that may be edited", "a clone", "a wheel from elsewhere", "an index"],
)
def test_an_extra_is_installed_from_where_the_package_came(monkeypatch, tmp_path, origin, command):
    if origin is not None:
        (tmp_path / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.setattr(
        importlib.metadata,
        "distribution",
        lambda name: importlib.metadata.PathDistribution(tmp_path),
    )
    assert how_to_install("search") == command


def test_an_extra_is_named_where_the_package_is_not_installed(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert how_to_install("search") == 'pip install "butterfly-sdm[search]"'
