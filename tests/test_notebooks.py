"""
Notebooks run in a fresh process each, on a small region they share, in the order a reader takes
them: the first and the one on own files every day, all in the slow suite. One begins in a kernel of
Jupyter, as all do when the documentation is built.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.lessons import run_cells

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
DAILY = ("01_first_map", "07_from_a_spreadsheet")
SMALL = "size_px, n_sites, epochs = 1024, 48, 2"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebooks")


def small(path: Path) -> nbformat.NotebookNode:
    """Return a notebook with the parameters of a small region."""
    notebook = nbformat.read(path, as_version=4)
    (parameters,) = (
        cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())
    )
    parameters.source = SMALL
    return notebook


def code(notebook: nbformat.NotebookNode) -> list[str]:
    """Return the cells of code."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=() if path.stem in DAILY else pytest.mark.slow)
        for path in NOTEBOOKS
    ],
    ids=lambda path: path.stem,
)
def test_a_notebook_runs(path: Path, folder: Path):
    failed = run_cells(code(small(path)), folder, ENVIRONMENT)
    assert not failed, failed


def in_a_kernel(notebook: nbformat.NotebookNode, at: Path) -> nbformat.NotebookNode:
    """Run a notebook as Jupyter does; whatever fails in it is raised."""
    place = {"metadata": {"path": str(at)}}
    NotebookClient(notebook, timeout=600, resources=place).execute()
    return notebook


def test_a_lesson_begins_in_a_kernel_of_jupyter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    sources = ["size_px, n_sites = 640, 8", code(small(NOTEBOOKS[0]))[1], "region"]
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    done = in_a_kernel(nbformat.v4.new_notebook(cells=cells), tmp_path)
    assert (tmp_path / "region" / "config.yaml").is_file()
    (shown,) = done.cells[-1].outputs
    assert "region" in shown["data"]["text/plain"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_first_lesson_runs_in_a_kernel_of_jupyter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    done = in_a_kernel(small(NOTEBOOKS[0]), tmp_path)
    assert (tmp_path / "map.tif").is_file() or list(tmp_path.rglob("*map*.tif"))
    assert any(cell.outputs for cell in done.cells if cell.cell_type == "code")


@pytest.mark.timeout(900)
def test_a_cell_that_fails_is_told_with_its_error(folder: Path):
    assert run_cells(["a = 1", "assert a == 1"], folder, {}) == ""
    told = run_cells(["a = 1", "a.nothing"], folder, {})
    assert "cell 2" in told and "AttributeError" in told
    assert "NameError" in run_cells(["print(a)"], folder, {})  # nothing is left of other processes


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs_and_begins_with_a_title(path: Path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_there_are_notebooks_for_the_whole_way():
    assert [path.stem[:2] for path in NOTEBOOKS] == [
        f"{number:02d}" for number in range(1, len(NOTEBOOKS) + 1)
    ]
