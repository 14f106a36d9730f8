"""
The documentation builds without a warning, its links lead somewhere, its examples run, and nothing
public is undescribed.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import butterfly_sdm
from butterfly_sdm.config import load_config

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for path in DOCS.rglob("*.md")
    if not {"_build", "notebooks"} & set(path.relative_to(DOCS).parts)
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.timeout(900)
def test_the_site_builds_without_a_warning(tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        str(DOCS),
        str(tmp_path / "html"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    index = (tmp_path / "html" / "index.html").read_text(encoding="utf-8")
    assert "quickstart.html" in index
    settings = (tmp_path / "html" / "verbs" / "train.html").read_text(encoding="utf-8")
    assert "margin_px" in settings


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "README.md"], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_links_inside_the_project_lead_to_a_file(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in LINK.findall(text):
        if target.startswith(("http://", "https://", "mailto:", "#")):
            continue
        path = (page.parent / target.split("#")[0]).resolve()
        assert path.exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "README.md"], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_examples_on_pages_are_valid(page: Path):
    """Python parses, and YAML that begins with a section of the config is accepted by it."""
    for language, code in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            ast.parse(code)
            for name in re.findall(r"\b(?:bsdm|butterfly_sdm)\.(\w+)\(", code):
                assert hasattr(butterfly_sdm, name), f"{page.name} calls butterfly_sdm.{name}"
        elif language == "yaml":
            value = yaml.safe_load(code)
            if isinstance(value, dict) and set(value) <= {
                "name",
                "seed",
                "out",
                "build",
                "train",
                "evaluate",
                "map",
            }:
                build = value.get("build")
                if isinstance(build, dict):
                    build.setdefault("records", {}).setdefault("path", "records.zip")
                load_config(value)


def modules() -> list[str]:
    found = [
        module.name
        for package in ("butterfly_sdm", "data_prep")
        for module in pkgutil.walk_packages(
            importlib.import_module(package).__path__, f"{package}."
        )
    ]
    return [name for name in found if not name.endswith("__main__")]


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} needs something optional: {error}")
    failures, _ = doctest.testmod(
        module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert failures == 0


def test_every_page_is_in_the_table_of_contents():
    listed = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            for line in block.splitlines():
                if line and not line.startswith(":"):
                    entry = re.sub(r".*<(.*)>", r"\1", line.strip())
                    base = (page.parent / entry).resolve()
                    listed |= {base.with_suffix(".md"), base} | set(page.parent.glob(entry + ".md"))
    rooms = {*DOCS.glob("plugins/*.md"), *DOCS.glob("*.md")}  # listed by docs/conf.py
    missing = [
        page.name
        for page in PAGES
        if page.resolve() not in {Path(p).resolve() for p in listed} | rooms
        and page.stem != "index"
    ]
    assert not missing
