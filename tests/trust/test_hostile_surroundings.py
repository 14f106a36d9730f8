"""What lies around: a folder of our name on the path, a killed worker, texts that are formulas."""

import os
import subprocess
import sys

import pandas as pd
import polars as pl
import pytest

from butterfly_sdm.core.executor import run_all
from butterfly_sdm.core.files import inert, write_table
from butterfly_sdm.core.work import resumable_folder
from butterfly_sdm.errors import WorkerError
from butterfly_sdm.evaluation.ladder import markdown_table
from data_prep.records.dropped import write_dropped
from tests.trust.dying import die_at_three


@pytest.mark.parametrize(
    "inside",
    ["__init__.py", *(pytest.param(name, marks=pytest.mark.slow) for name in ("options.py", None))],
)
def test_a_folder_called_data_prep_is_told(inside, tmp_path):
    (tmp_path / "data_prep").mkdir()
    if inside is not None:
        (tmp_path / "data_prep" / inside).write_text("")
    taken = inside == "__init__.py"  # Python prefers a package to a folder of modules
    in_python = ["-c", "import butterfly_sdm as bs; bs.build('x.yaml')"]
    typed = ["-m", "butterfly_sdm", "build", "x.yaml"]
    for words in [typed, in_python] if taken else [typed]:
        said = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True
        )
        if words is typed:
            assert said.returncode == 2 and "Traceback" not in said.stderr
        if taken:
            told = said.stderr.replace("\n", "") if words is typed else said.stderr.splitlines()[-1]
            assert "Rename that folder" in told and str(tmp_path / "data_prep") in told
        else:
            assert "There is no" in said.stderr


@pytest.mark.skipif(os.name != "posix", reason="processes are killed by a signal")
def test_a_killed_worker_is_one_sentence_and_the_work_of_others_is_kept(tmp_path):
    with (
        pytest.raises(WorkerError, match=r"was killed.*same command again, with fewer workers"),
        resumable_folder(tmp_path / "made", "key") as partial,
    ):
        (partial / "done").write_text("one")
        list(run_all(die_at_three, range(5), workers=2))
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
