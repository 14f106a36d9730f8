"""
The power goes: what was written and not yet synchronised is lost, whatever the verb said before.

The layer below notes when a file was synchronised, and by its end takes back every file that was
changed since, as a disk that never got it would.
"""

import os
from pathlib import Path

import pytest

from butterfly_sdm import pipeline
from butterfly_sdm.core.files import write_text
from butterfly_sdm.core.work import resumable_folder
from butterfly_sdm.simulate import simulate_region

from .faults import RESULTS, VERBS


class Disk:
    """What reached the disk: contents by inode, names by folder."""

    def __init__(self, monkeypatch):
        self.contents: dict[int, int] = {}
        self.names: dict[int, set[str]] = {}
        real = os.fsync

        def fsync(number):
            real(number)
            status = os.fstat(number)
            place = Path(f"/proc/self/fd/{number}").readlink()
            if place.is_dir():  # by its number: folders are renamed when they are finished
                self.names[status.st_ino] = {path.name for path in place.iterdir()}
            else:
                self.contents[status.st_ino] = status.st_mtime_ns

        monkeypatch.setattr(os, "fsync", fsync)

    def cut_power(self, root: Path) -> list[Path]:
        """Empty what was not synchronised since it was changed; remove names that were not."""
        lost = []
        files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
        for path in files:
            status = path.stat()
            if self.contents.get(status.st_ino) != status.st_mtime_ns:
                lost.append(path)
                path.write_bytes(b"")
            elif path.name not in self.names.get(path.parent.stat().st_ino, set()):
                lost.append(path)
                path.unlink()
        return lost


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/fd").is_dir(), reason="names of open files are read from /proc"
)


@needs_proc
def test_the_layer_takes_back_what_was_only_written(monkeypatch, tmp_path):
    disk = Disk(monkeypatch)
    (tmp_path / "only_written.txt").write_text("gone")
    write_text(tmp_path / "kept.txt", "kept")
    assert disk.cut_power(tmp_path) == [tmp_path / "only_written.txt"]
    assert (tmp_path / "kept.txt").read_text() == "kept"


@needs_proc
def test_a_finished_folder_is_on_the_disk_before_it_is_called_finished(monkeypatch, tmp_path):
    disk = Disk(monkeypatch)
    with resumable_folder(tmp_path / "done", "key") as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "plain.txt").write_text("of a library that does not synchronise")
    assert disk.cut_power(tmp_path / "done" / "deep") == []
    assert "done" in disk.names[tmp_path.stat().st_ino]


@needs_proc
@pytest.mark.timeout(900)
def test_no_artefact_loses_anything_to_a_power_cut(monkeypatch, tmp_path):
    region = simulate_region(tmp_path / "region", size_px=768, n_sites=24, n_species=3, tile_px=128)
    for verb, run in VERBS.items():
        disk = Disk(monkeypatch)
        run(region.config, tmp_path)
        made = tmp_path / RESULTS[verb]
        assert disk.cut_power(made) == [], verb
        if verb != "evaluate":
            assert pipeline.check(made) == []
        monkeypatch.undo()
