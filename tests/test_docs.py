"""
The documentation builds without a warning, its links lead somewhere, its examples run, and nothing
public is undescribed.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import io
import pkgutil
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import butterfly_sdm
from butterfly_sdm.cli import app
from butterfly_sdm.config import load_config

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for path in DOCS.rglob("*.md")
    if not {"_build", "_made", "notebooks"} & set(path.relative_to(DOCS).parts)
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.timeout(900)
def test_the_site_builds_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All but what ``make docs`` adds: notebooks, the gallery, the frame of pages, source code."""
    from sphinx.application import Sphinx

    monkeypatch.setenv("BUTTERFLY_SDM_DOCS_RUN", "0")
    monkeypatch.setattr(sys, "path", list(sys.path))  # conf.py adds to it
    warnings, html = io.StringIO(), tmp_path / "html"
    sphinx = Sphinx(
        DOCS,
        DOCS,
        html,
        tmp_path / "doctrees",
        "html",
        confoverrides={"html_theme": "basic", "html_theme_options": {}},
        status=None,
        warning=warnings,
    )
    sphinx.build()
    assert warnings.getvalue() == "" and sphinx.statuscode == 0
    assert "quickstart.html" in (html / "index.html").read_text(encoding="utf-8")
    settings = (html / "verbs" / "train.html").read_text(encoding="utf-8")
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
            for name in re.findall(r"\bbs\.(\w+)\(", code):
                assert hasattr(butterfly_sdm, name), f"{page.name} calls bs.{name}"
            called = re.findall(r"(?<!from )(?<!import )\bbutterfly_sdm\.\w+\(", code)
            assert not called, f"{page.name} has another name than bs: {called}"
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


@pytest.mark.parametrize(
    "page",
    [*PAGES, ROOT / "README.md", *sorted((ROOT / "notebooks").glob("*.ipynb"))],
    ids=lambda path: path.name,
)
def test_the_package_is_called_bs_wherever_it_is_imported(page: Path):
    names = re.findall(r"import butterfly_sdm as (\w+)", page.read_text(encoding="utf-8"))
    assert set(names) <= {"bs"}


def test_lessons_draw_with_the_pictures_and_colours_of_the_package():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        text = path.read_text(encoding="utf-8")
        assert "pyplot" not in text and "cmap" not in text, path.name


def extension(name: str):
    spec = importlib.util.spec_from_file_location(name, DOCS / "_ext" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_cheat_sheet_is_one_sheet_and_names_every_command():
    page = DOCS / "cheatsheet.md"
    text = page.read_text(encoding="utf-8")
    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        assert re.search(rf"`(butterfly-sdm )?{name}\b", text), f"nothing is said of {name}"
    try:
        sheet = extension("cheatsheet").sheet(page)
    except (ImportError, OSError) as error:
        pytest.skip(f"WeasyPrint or a library it needs is missing: {error}")
    assert len(sheet.pages) == 1


def test_pictures_of_the_gallery_lead_to_pages(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(DOCS / "_ext")
    gallery = extension("gallery")
    for words, page in gallery.PICTURES.values():
        assert words and (DOCS / page).is_file(), page
    yielded = set(re.findall(r'yield "(\w+)"', (DOCS / "_ext" / "gallery.py").read_text()))
    assert yielded == set(gallery.PICTURES)
    assert "<!-- gallery -->" in (DOCS / "index.md").read_text(encoding="utf-8")


def test_the_changelog_keeps_its_form():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heads = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert heads[0] == "[Unreleased]"
    dates = []
    for head in heads[1:]:
        number, date = re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", head).groups()
        dates.append((tuple(map(int, number.split("."))), date))
    assert dates == sorted(dates, reverse=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert heads[1].startswith(f"[{project['version']}]")
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= kinds


def test_the_paper_cites_what_its_bibliography_holds():
    text = (ROOT / "paper" / "paper.md").read_text(encoding="utf-8")
    held = set(
        re.findall(r"^@\w+\{(\w+),", (ROOT / "paper" / "paper.bib").read_text(), re.MULTILINE)
    )
    cited = set(re.findall(r"@(\w+)", text))
    assert cited == held
    assert (ROOT / "paper" / "figure.png").is_file()


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
