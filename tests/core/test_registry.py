from importlib.metadata import EntryPoint

import pytest

from butterfly_sdm.core import registry
from butterfly_sdm.core.registry import Registry
from butterfly_sdm.errors import ModelError, PluginError

KINDS = Registry("tests.kinds", "kind", {"path": "pathlib:Path", "broken": "pathlib:Nothing"})


def offer(monkeypatch, *points: tuple[str, str]) -> None:
    found = [EntryPoint(name, value, KINDS.group) for name, value in points]
    monkeypatch.setattr(registry, "entry_points", lambda group: found)


def test_a_built_in_kind_is_imported_when_asked_for():
    from pathlib import Path

    assert KINDS.load("path") is Path


def test_another_package_adds_a_kind(monkeypatch):
    offer(monkeypatch, ("extra", "collections:OrderedDict"))
    assert list(KINDS.offers()) == ["path", "broken", "extra"]
    assert KINDS.load("extra").__name__ == "OrderedDict"


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ModelError, match=r"no kind 'pat'.*Did you mean 'path'"):
        KINDS.load("pat")


def test_an_offer_is_not_imported():
    assert KINDS.offer("broken").value == "pathlib:Nothing"


def test_a_broken_kind_says_whose_it_is():
    with pytest.raises(PluginError, match=r"'broken' of butterfly-sdm \(pathlib:Nothing\)"):
        KINDS.load("broken")


def test_two_packages_cannot_offer_one_name(monkeypatch):
    offer(monkeypatch, ("path", "os:PathLike"))
    with pytest.raises(PluginError, match="Two packages offer a kind 'path'"):
        KINDS.offers()


def test_a_built_in_kind_may_be_declared_as_well(monkeypatch):
    offer(monkeypatch, ("path", "pathlib:Path"))
    assert len(KINDS.offers()) == 2


def test_a_kind_that_lacks_what_it_needs_says_so_before_any_work(monkeypatch):
    offer(monkeypatch, ("extra", "collections:OrderedDict"))
    kinds = Registry(KINDS.group, "kind", needs=("keys", "save", "load"))
    with pytest.raises(PluginError, match=r"has no save and no load; .* has keys, save, load"):
        kinds.load("extra")
