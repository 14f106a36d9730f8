"""Blocks that were damaged after they were written are made again, with a warning."""

import numpy as np
import pytest

from butterfly_sdm.core.block_store import Store

ARRAYS = {"a": ((4, 4, 2), "float32"), "b": ((4, 4), "uint8")}


def fill(folder):
    store = Store(folder, ARRAYS)
    for row in range(4):
        values = np.full((1, 4, 2), row + 1, np.float32)
        where = (slice(row, row + 1), slice(0, 4))
        store.keep(f"r{row}", {"a": (where, values), "b": (where, values[..., 0].astype("uint8"))})
    return store


def test_whole_blocks_are_not_made_again(tmp_path, caplog):
    assert fill(tmp_path).done == {"r0", "r1", "r2", "r3"}
    again = Store(tmp_path, ARRAYS)
    assert again.done == {"r0", "r1", "r2", "r3"} and not caplog.records
    assert (again["a"][2] == 3).all()


@pytest.mark.parametrize(
    ("name", "byte", "row"), [("a", 33, "r1"), ("a", 0, "r0"), ("b", 13, "r3")]
)
def test_a_changed_byte_costs_its_block_alone(tmp_path, caplog, name, byte, row):
    fill(tmp_path)
    path = tmp_path / f"{name}.npy"
    content = bytearray(path.read_bytes())
    content[len(content) - np.zeros(ARRAYS[name][0], ARRAYS[name][1]).nbytes + byte] ^= 16
    path.write_bytes(content)
    assert Store(tmp_path, ARRAYS).done == {"r0", "r1", "r2", "r3"} - {row}
    assert "1 of 4 blocks" in caplog.text


def test_a_file_cut_short_or_of_another_shape_is_made_again(tmp_path, caplog):
    for number, change in enumerate((lambda b: b[: len(b) // 2], lambda b: b[:40], lambda b: b"")):
        folder = tmp_path / str(number)
        fill(folder)
        path = folder / "a.npy"
        path.write_bytes(change(path.read_bytes()))
        again = Store(folder, ARRAYS)
        assert again.done == set() and "made again" in caplog.text
        assert fill(folder).done == {"r0", "r1", "r2", "r3"}
        assert Store(folder, ARRAYS).done == {"r0", "r1", "r2", "r3"}
        caplog.clear()


def test_pages_that_never_reached_the_disk_are_made_again(tmp_path, caplog):
    """As after the loss of power: the journal is there, the block is still zeros."""
    store = fill(tmp_path)
    store["a"][2:] = 0
    assert Store(tmp_path, ARRAYS).done == {"r0", "r1"}
    assert "2 of 4 blocks" in caplog.text


def test_a_damaged_journal_costs_its_lines(tmp_path):
    fill(tmp_path)
    path = tmp_path / "done.txt"
    lines = path.read_bytes().splitlines()
    renamed = lines[1].replace(b"r1", b"r9")  # the checksum speaks of the key, too
    path.write_bytes(b"\n".join([b"\xff" + lines[0][1:], renamed, b"r2", lines[3]]) + b"\n")
    assert Store(tmp_path, ARRAYS).done == {"r3"}
