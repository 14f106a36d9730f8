"""Plugins are found through their entry points, broken ones named, without heavy imports."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from butterfly_sdm.cli import app
from butterfly_sdm.core import registry
from butterfly_sdm.core.settings import load_settings
from butterfly_sdm.errors import ConfigError, MissingFileError, MissingPackageError, PluginError
from butterfly_sdm.plugins import plugin as plugins
from butterfly_sdm.plugins.plugin import (
    PluginCard,
    check_plugin,
    get_plugin,
    list_plugins,
    run_plugin,
)

EXAMPLE = Path(__file__).parent / "example_plugin"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install the example plugin from its folder, as a user would, into a folder of its own."""
    target = tmp_path / "site"
    _install(EXAMPLE, target)
    monkeypatch.syspath_prepend(str(target))
    yield target
    for name in [name for name in sys.modules if name.startswith("example_plugin")]:
        del sys.modules[name]


def _install(source: Path, target: Path) -> None:
    """Lay out the wheel of a pure package with the build backend itself: no network, no pip."""
    import zipfile

    build = (
        "import sys, hatchling.build as b, os; os.chdir(sys.argv[1]); "
        "print(b.build_wheel(sys.argv[2]))"
    )
    wheels = target.with_name("wheels")
    wheels.mkdir(parents=True)
    made = subprocess.run(
        [sys.executable, "-c", build, str(source), str(wheels)],
        capture_output=True,
        text=True,
        check=True,
    )
    with zipfile.ZipFile(wheels / made.stdout.strip().splitlines()[-1]) as wheel:
        wheel.extractall(target)


def _points(monkeypatch, *points):
    monkeypatch.setattr(registry, "entry_points", lambda group: points)


def test_the_five_built_in_plugins_are_listed_as_usable():
    found = {info.name: info for info in list_plugins()}
    assert {"cmmd", "dfcon", "implihate", "modan", "refine"} <= set(found)
    assert all(
        found[name].error is None and found[name].summary
        for name in ("cmmd", "dfcon", "implihate", "modan", "refine")
    )


def test_listing_imports_no_deep_learning_library():
    code = (
        "import sys; from butterfly_sdm.plugins.plugin import list_plugins; assert "
        "len(list_plugins()) >= 5;"
        "print(sorted({'torch', 'lightning', 'timm', 'sklearn', 'pandas'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_third_party_plugin_is_listed_checked_and_run(installed, tmp_path):
    info = next(info for info in list_plugins() if info.name == "example")
    assert (info.distribution, info.version, info.error) == (
        "butterfly-sdm-example-plugin",
        "1.2.3",
        None,
    )

    rng = np.random.default_rng(0)
    label = rng.integers(2, size=64)
    table = pd.DataFrame(
        rng.normal(0, 0.3, (64, 2)) + label[:, None] * 2 - 1, columns=["x", "y"]
    ).assign(label=label)
    table.to_csv(tmp_path / "points.csv", index=False)
    plugin = get_plugin("example")
    config, _ = load_settings(
        plugin.config,
        {
            "table": str(tmp_path / "points.csv"),
            "inputs": str(tmp_path / "points.csv"),
            "epochs": 2,
        },
    )
    check_plugin(plugin, config, tmp_path / "check")

    yaml = tmp_path / "example.yaml"
    yaml.write_text(
        "table: points.csv\ninputs: points.csv\nepochs: 2\naccelerator: cpu\n", encoding="utf-8"
    )
    told = []
    run = run_plugin(
        "example",
        "train",
        yaml,
        overrides=["epochs=4", "name=trial"],
        progress=lambda *call: told.append(call),
    )
    assert run == tmp_path / "runs" / "trial"
    assert told[-1] == ("model: classify", 4, 4)
    assert run_plugin("example", "evaluate", yaml, run, ["epochs=4"]) == run
    assert (run / "metrics.json").is_file()
    predictions = pd.read_csv(run_plugin("example", "predict", yaml, run))
    assert (predictions["predicted"] == label).mean() > 0.9


def test_a_broken_plugin_is_listed_with_its_error_and_breaks_nothing(tmp_path, monkeypatch):
    (tmp_path / "broken_one.py").write_text("raise RuntimeError('half written')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    good = EntryPoint("cmmd", "butterfly_sdm.plugins.cmmd:card", plugins.PLUGINS.group)
    _points(monkeypatch, EntryPoint("broken", "broken_one:card", plugins.PLUGINS.group), good)

    broken, fine = list_plugins()

    assert fine.error is None
    assert "(broken_one:card) cannot be loaded: RuntimeError: half written" in broken.error
    with pytest.raises(PluginError, match=r"cannot be used: .*broken_one:card.* cannot be loaded"):
        get_plugin("broken")
    shown = CliRunner().invoke(app, ["plugins"])
    assert shown.exit_code == 0
    assert (
        "cannot be used" in shown.output
        and "half written" in shown.output
        and "cmmd" in shown.output
    )


def test_a_broken_implementation_is_named_when_it_is_used(tmp_path, monkeypatch):
    (tmp_path / "half.py").write_text(
        "from butterfly_sdm.plugins.plugin import PluginCard\ncard = PluginCard('half', 'a', "
        "'half_method:Method')",
        encoding="utf-8",
    )
    (tmp_path / "half_method.py").write_text("import no_such_module", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    _points(monkeypatch, EntryPoint("half", "half:card", plugins.PLUGINS.group))
    assert list_plugins()[0].error is None  # listing does not import it
    with pytest.raises(
        PluginError, match="cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"
    ):
        get_plugin("half")


@pytest.mark.parametrize("place", ["json:loads", "butterfly_sdm.plugins.contract:Plugin"])
def test_an_implementation_that_is_no_complete_plugin_is_refused(place, monkeypatch):
    module = type(sys)("given_module")
    module.card = PluginCard("given", "", place)
    monkeypatch.setitem(sys.modules, "given_module", module)
    _points(monkeypatch, EntryPoint("given", "given_module:card", plugins.PLUGINS.group))
    with pytest.raises(PluginError, match=f"{place} of .* is no complete subclass of"):
        get_plugin("given")


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (
            PluginCard("other", "", "json:loads"),
            "its card calls it 'other', its entry point 'given'",
        ),
        (PluginCard("given", "", "no_such_package:Thing"), "does not exist"),
        (
            PluginCard("given", "", "json:loads", ("no_such_package",), "thing[extra]"),
            r"needs no_such_package: pip install thing\[extra\]",
        ),
        ("a word", "the entry point must name a PluginCard"),
    ],
)
def test_a_wrong_card_is_explained(card, message, tmp_path, monkeypatch):
    module = type(sys)("given_module")
    module.card = card
    monkeypatch.setitem(sys.modules, "given_module", module)
    _points(monkeypatch, EntryPoint("given", "given_module:card", plugins.PLUGINS.group))
    import re

    assert re.search(message, str(list_plugins()[0].error))
    with pytest.raises((PluginError, MissingPackageError), match=message):
        get_plugin("given")


def test_two_plugins_of_one_name_are_an_error_that_names_both(installed, tmp_path, monkeypatch):
    second = tmp_path / "second" / "rival-2.0.dist-info"
    second.mkdir(parents=True)
    (second / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: rival\nVersion: 2.0\n", encoding="utf-8"
    )
    (second / "entry_points.txt").write_text(
        "[butterfly_sdm.plugins]\nexample = rival:card\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "second"))
    with pytest.raises(
        PluginError, match=r"Two packages offer a plugin 'example': .*rival.*Remove one"
    ) as caught:
        list_plugins()
    assert "butterfly-sdm-example-plugin" in str(caught.value)


def test_an_unknown_plugin_or_verb_or_file_is_explained(tmp_path):
    with pytest.raises(
        PluginError, match=r"There is no plugin 'cmdm'\. Known: .*Did you mean 'cmmd'"
    ):
        run_plugin("cmdm", "train", tmp_path / "a.yaml")
    with pytest.raises(MissingFileError, match=r"no config file .*butterfly-sdm plugin cmmd init"):
        run_plugin("cmmd", "train", tmp_path / "a.yaml")
    with pytest.raises(PluginError, match="extract, train, evaluate, predict; 'fly' is none"):
        run_plugin("cmmd", "fly", tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("sources: [{path: t.csv}]\nepoch: 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="epoch is an unknown key; did you mean 'epochs'"):
        run_plugin("cmmd", "train", tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("features:\nlabels: l.csv\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="features is empty: input should be"):
        run_plugin("implihate", "train", tmp_path / "a.yaml")


def test_predicting_without_a_run_or_without_files_is_explained(tmp_path):
    (tmp_path / "a.yaml").write_text("sources: [{path: t.csv}]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="predict reads the files that the key inputs names"):
        run_plugin("cmmd", "predict", tmp_path / "a.yaml")
    with pytest.raises(MissingFileError, match=r"nothing to predict at .*new.*folder of the YAML"):
        run_plugin("cmmd", "predict", tmp_path / "a.yaml", overrides=["inputs=new"])
    with pytest.raises(
        MissingFileError, match=r"no trained run at .*Train with: butterfly-sdm plugin cmmd train"
    ):
        run_plugin("cmmd", "evaluate", tmp_path / "a.yaml")


def test_nothing_outside_imports_a_plugin_by_name():
    root = Path(plugins.__file__).parents[1]
    outside = [path for path in root.rglob("*.py") if "plugins" not in path.relative_to(root).parts]
    named = [
        path
        for path in outside
        for name in ("cmmd", "dfcon", "implihate", "modan", "refine")
        if f"plugins.{name}" in path.read_text()
    ]
    assert named == []
