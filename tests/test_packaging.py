"""What is built from this tree works far from it: wheel, source archive, command and lessons."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return the wheel and the source archive."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(out)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def elsewhere(built, tmp_path_factory):
    """
    Return a function that runs a command of a fresh environment in an empty folder.

    The wheel is installed there; only what it depends on is that of this environment.
    """
    place = tmp_path_factory.mktemp("elsewhere")
    environment = place / "env"
    venv.create(environment, with_pip=False, symlinks=True)
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    command = [sys.executable, "-m", "pip", "--python", str(scripts / "python"), "install"]
    command += ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check", str(built[0])]
    subprocess.run(command, check=True, capture_output=True)
    own = subprocess.run(
        [scripts / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    Path(own, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    work = place / "work"
    work.mkdir()
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "BUTTERFLY"))}

    def run(*words):
        done = subprocess.run(
            [scripts / words[0], *words[1:]],
            cwd=work,
            env=clean | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    run.work = work
    return run


def test_the_wheel_holds_the_package_and_nothing_else(built):
    names = zipfile.ZipFile(built[0]).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"butterfly_sdm", "data_prep"}
    tracked = subprocess.run(
        ["git", "ls-files", "butterfly_sdm", "data_prep"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert {name for name in tracked if Path(ROOT, name).exists()} <= set(names)


def test_the_source_archive_can_be_tested_and_says_its_licence(built):
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = "LICENSE README.md CHANGELOG.md pyproject.toml tests/test_flow.py configs notebooks"
    for name in wanted.split():
        assert any(held == name or held.startswith(f"{name}/") for held in names), name


def test_the_wheel_walks_the_whole_way_far_from_the_clone(elsewhere):
    where = elsewhere("python", "-c", "import butterfly_sdm; print(butterfly_sdm.__file__)")
    assert str(ROOT) not in where
    assert elsewhere("butterfly-sdm", "--version").startswith("butterfly-sdm ")
    elsewhere("butterfly-sdm", "init", "mine.yaml")
    elsewhere(
        "butterfly-sdm", "demo", "--small", "--set", "train.model.kind=mean_rate", "--out", "demo"
    )
    demo = elsewhere.work / "demo"
    said = elsewhere("butterfly-sdm", "check", "demo/dataset", "demo/run", "demo/map.tif", "--json")
    assert not any(json.loads(said).values())
    elsewhere("butterfly-sdm", "view", "demo/map.tif", "--export", "page.html")
    assert (demo / "map.tif").stat().st_size > 10_000
    plugins = elsewhere("butterfly-sdm", "plugins", "--json")
    assert {"cmmd", "dfcon", "implihate", "modan", "refine"} <= set(json.loads(plugins))


CONDA_NAMES = {"matplotlib": "matplotlib-base", "torch": "pytorch"}
# conda-forge builds PyTorch later than PyPI has it; these are the oldest that work
OLDER_ON_CONDA = {"torch", "torchvision"}


def conda_dependencies(name):
    value = yaml.safe_load(Path(ROOT, name).read_text())
    given = value["dependencies"] if name == "environment.yml" else value["requirements"]["run"]
    return {text.replace(" ", "") for text in given if isinstance(text, str)}


@pytest.mark.parametrize("name", ["environment.yml", ".ci/conda/recipe.yaml"])
def test_conda_asks_for_what_the_package_asks_for(name):
    project = tomllib.loads(Path(ROOT, "pyproject.toml").read_text())["project"]
    held = conda_dependencies(name)
    for text in project["dependencies"]:
        wanted = re.match(r"[\w-]+", text).group()
        called = CONDA_NAMES.get(wanted, wanted)
        if wanted in OLDER_ON_CONDA:
            assert any(h.startswith(f"{called}>=") for h in held), called
        else:
            assert text.replace(wanted, called, 1) in held, text
    names = {CONDA_NAMES.get(n, n) for n in map(_name, project["dependencies"])}
    extra = {_name(text) for text in held} - names - {"python", "pip"}
    if name != "environment.yml":
        assert not extra
        recipe = yaml.safe_load(Path(ROOT, name).read_text())
        assert recipe["context"]["version"] == project["version"]


def _name(text):
    return re.match(r"[\w-]+", text).group()


def test_versions_are_told_alike_everywhere():
    project = tomllib.loads(Path(ROOT, "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load(Path(ROOT, "CITATION.cff").read_text())
    assert citation["version"] == project["version"]
    changelog = Path(ROOT, "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## [{project['version']}] - {citation['date-released']}\n" in changelog
