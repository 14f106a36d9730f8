"""A full or read-only disk is one clear error, and leaves nothing half-written."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trust import faults
from tests.trust.test_kill import NEEDS


def _mount(at: Path, options: str) -> None:
    result = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(at)], capture_output=True, text=True
    )
    if result.returncode:
        pytest.skip(f"mounting a small file system is not allowed here: {result.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not shutil.which("mount"):
        pytest.skip("there is no mount command here")
    _mount(disk, "size=12m")
    yield disk
    subprocess.run(["umount", str(disk)], check=False)


@pytest.mark.parametrize("verb", ["build", "train", "map"])
def test_a_full_disk_is_told_and_leaves_no_half_artefact(finished, small_disk, tmp_path, verb):
    work = small_disk / "work"
    work.mkdir()
    for name in NEEDS[verb]:
        (work / name).symlink_to(finished.work / name)
    filler = small_disk / "filler"
    free = shutil.disk_usage(small_disk).free
    filler.write_bytes(b"\0" * max(0, free - 24 * 1024))
    code, message, _ = faults.run(verb, finished.config, work, tmp_path / "answer.txt")
    assert code in (2, 3), f"{verb} ended with {code}: {message}"
    assert "space" in message or "write" in message, message
    assert not (work / faults.RESULTS[verb]).exists()
    filler.unlink()
    if verb != "train":  # a run with its checkpoints does not fit on this disk
        code, message, _ = faults.run(verb, finished.config, work)
        assert code == 0, message
        assert faults.digest(work / faults.RESULTS[verb]) == faults.digest(
            finished.work / faults.RESULTS[verb]
        )


def test_a_read_only_folder_is_told(finished, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if not shutil.which("mount"):
        pytest.skip("there is no mount command here")
    _mount(disk, "ro,size=1m")
    try:
        code, message, _ = faults.run(
            "build", finished.config, disk / "work", tmp_path / "answer.txt"
        )
    finally:
        subprocess.run(["umount", str(disk)], check=False)
    assert code in (2, 3)
    assert "ead-only" in message or "denied" in message
