"""What a killed writer left is cleared away; what a living one writes is not."""

import json
import os
import subprocess
import sys

import pytest

from butterfly_sdm.core.cards import damage, sealed
from butterfly_sdm.core.files import atomic_path, discard_unfinished, write_json
from butterfly_sdm.core.work import exclusive, is_finished, resumable_folder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="asks processes by their number")

KILLED = """
import os, signal, sys
from pathlib import Path
from butterfly_sdm.core.files import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def _hidden(folder):
    return [path.name for path in folder.rglob(".*") if path.is_file()]


def test_the_file_of_a_killed_writer_is_cleared_away_by_the_next(tmp_path):
    (tmp_path / "scores").mkdir()
    for target in (tmp_path / "map.tif", tmp_path / "scores/table.csv"):
        assert (
            subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False).returncode
            == -9
        )
    assert len(_hidden(tmp_path)) == 2
    with exclusive(tmp_path / "map.tif"):
        assert [name for name in _hidden(tmp_path) if name.startswith(".map.unfinished")] == []
    with exclusive(tmp_path / "scores"):
        pass
    assert _hidden(tmp_path) == []


def test_the_file_of_a_living_writer_and_of_other_machines_stays(tmp_path):
    other = tmp_path / ".table.unfinished-00000000-1-abcdefgh.csv"
    other.write_text("")
    with atomic_path(tmp_path / "table.csv") as temporary:
        temporary.write_text("whole")
        discard_unfinished(tmp_path)
    assert (tmp_path / "table.csv").read_text() == "whole"
    assert other.exists()


@pytest.mark.parametrize("mark", [b"", b"\xff\xfe\xba", b"another"])
def test_a_damaged_key_means_to_start_anew(tmp_path, mark):
    with pytest.raises(KeyboardInterrupt), resumable_folder(tmp_path / "a", "key") as partial:
        (partial / "done").write_text("half")
        raise KeyboardInterrupt
    (partial / ".key").write_bytes(mark)
    with resumable_folder(tmp_path / "a", "key") as partial:
        assert not (partial / "done").exists()
    (tmp_path / ".a.key").write_bytes(mark)
    assert not is_finished(tmp_path / "a", "key")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "\ud800", "../" * 400, ""])
def test_a_card_that_lists_impossible_names_is_damaged(tmp_path, name):
    write_json(tmp_path / "card.json", {})
    card = sealed({"files": {name: "0" * 64}, "note": name})
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert len(damage(tmp_path / "card.json")) == 1
