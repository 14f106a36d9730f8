"""What lies around: a folder of our name on the path, a killed worker, texts that are formulas."""

import os
import signal
import subprocess
import sys

import pandas as pd
import polars as pl
import pytest

from butterfly_sdm.core.executor import open_executor, run_all
from butterfly_sdm.core.files import inert, write_table
from butterfly_sdm.core.work import resumable_folder
from butterfly_sdm.errors import WorkerError
from butterfly_sdm.evaluation.ladder import markdown_table
from data_prep.records.dropped import write_dropped


@pytest.mark.parametrize("inside", [None, "__init__.py", "options.py"])
def test_a_folder_called_data_prep_is_told(inside, tmp_path):
    (tmp_path / "data_prep").mkdir()
    if inside is not None:
        (tmp_path / "data_prep" / inside).write_text("")
    code = "import butterfly_sdm as bs; bs.build('x.yaml')"
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    if inside != "__init__.py":  # Python prefers a package to a folder of modules
        assert "There is no" in said.stderr or "does not exist" in said.stderr
    else:
        assert "Rename that folder" in said.stderr.splitlines()[-1]
        assert str(tmp_path / "data_prep") in said.stderr.splitlines()[-1]
    said = subprocess.run(
        [sys.executable, "-m", "butterfly_sdm", "build", "x.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 2 and "Traceback" not in said.stderr


def _die(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.skipif(os.name != "posix", reason="processes are killed by a signal")
def test_a_killed_worker_is_one_sentence():
    with pytest.raises(WorkerError, match=r"was killed.*same command again, with fewer workers"):
        list(run_all(_die, range(5), workers=2))


@pytest.mark.skipif(os.name != "posix", reason="processes are killed by a signal")
def test_the_work_of_others_is_kept_when_a_worker_is_killed(tmp_path):
    with (
        pytest.raises(WorkerError),
        resumable_folder(tmp_path / "made", "key") as partial,
        open_executor(2) as (executor, _),
    ):
        (partial / "done").write_text("one")
        executor.submit(_die, 3).result()
    assert (tmp_path / "made.partial" / "done").read_text() == "one"


FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1"]
HARMLESS = ["Pieris rapae", "-0.5", "+3", "1e-3", "-1.5e+4", "", "a=b", "x@y"]


@pytest.mark.parametrize("text", FORMULAS[:-1])  # pandas reads a bare line end as one
def test_no_cell_of_a_table_is_a_formula(text, tmp_path):
    table = pd.DataFrame({text: [text, "plain"], "n": [-1.5, 2.0]}, index=[text, "b"])
    write_table(tmp_path / "a.csv", table, lineterminator="\n")
    read = pd.read_csv(tmp_path / "a.csv", index_col=0)
    assert read.iloc[0, 0] == f"'{text}" and read.columns[0] == f"'{text}"
    assert read.index[0] == f"'{text}" and read["n"].tolist() == [-1.5, 2.0]
    write_table(tmp_path / "a.parquet", table)  # where a text is a text
    assert pd.read_parquet(tmp_path / "a.parquet").iloc[0, 0] == text


@pytest.mark.parametrize("text", HARMLESS)
def test_numbers_and_names_stay_as_they_are(text):
    assert inert(text) == text


def test_no_record_that_was_left_out_is_a_formula(tmp_path):
    rows = pl.DataFrame({"species": [*FORMULAS, *HARMLESS], "row": range(14)})
    write_dropped(tmp_path / "left_out.csv", rows)
    read = pd.read_csv(tmp_path / "left_out.csv", dtype=str, keep_default_na=False)
    assert read["species"].tolist() == [*(f"'{text}" for text in FORMULAS), *HARMLESS]


def test_names_cannot_write_markdown_of_their_own():
    table = pd.DataFrame({"a|b": ["<img src=x>", "[x](http://y)", "`code`", "two\nlines"]})
    lines = markdown_table(table.set_index("a|b").assign(n=1)).splitlines()
    assert lines[0] == r"| a\|b | n |"
    assert lines[2] == r"| \<img src=x\> | 1 |"
    assert lines[3] == r"| \[x\](http://y) | 1 |"
    assert lines[5] == "| two lines | 1 |"
