"""Artefacts are whole or absent."""

import pickle
import threading

import numpy as np
import pytest

from butterfly_sdm.core.arrays import PackedArray, new_array, part_bytes
from butterfly_sdm.core.cards import damage, fingerprint, sealed
from butterfly_sdm.core.files import atomic_path, read_json, sha256, write_json
from butterfly_sdm.core.work import (
    Journal,
    exclusive,
    is_finished,
    resumable_folder,
    work_folder,
)
from butterfly_sdm.errors import ArtefactError, MissingFileError


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_file_that_is_no_json_says_so(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ArtefactError, match="is damaged: it is not JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(MissingFileError, match="was it finished"):
        read_json(tmp_path / "b.json")


def test_interrupted_work_is_continued_with_the_same_key_only(tmp_path):
    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), resumable_folder(folder, "one") as partial:
        (partial / "step").write_text("done")
        raise KeyboardInterrupt
    assert not folder.exists()
    with pytest.raises(KeyboardInterrupt), resumable_folder(folder, "one") as partial:
        assert (partial / "step").read_text() == "done"
        raise KeyboardInterrupt
    with resumable_folder(folder, "two") as partial:
        assert not (partial / "step").exists()
        (partial / "result").write_text("new")
    assert [path.name for path in folder.iterdir()] == ["result"]
    assert is_finished(folder, "two")
    assert not is_finished(folder, "one")


def test_a_finished_folder_stays_until_the_next_is_whole(tmp_path):
    folder = tmp_path / "out"
    for text in ("first", "second"):
        with resumable_folder(folder, text) as partial:
            (partial / "result").write_text(text)
            assert not folder.exists() or (folder / "result").read_text() == "first"
    assert (folder / "result").read_text() == "second"


def test_two_processes_do_not_fill_one_folder(tmp_path):
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with exclusive(tmp_path / "out"):
            entered.set()
            leave.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait(20)
    try:
        with (
            pytest.raises(ArtefactError, match="Another process is writing"),
            exclusive(tmp_path / "out"),
        ):
            pass
    finally:
        leave.set()
        holder.join()
    with exclusive(tmp_path / "out"):
        pass


def test_a_card_and_its_files_cannot_change_unnoticed(tmp_path):
    (tmp_path / "data").write_bytes(b"abc")
    card = tmp_path / "card.json"
    write_json(card, sealed({"files": {"data": sha256(tmp_path / "data")}, "name": "x"}))
    assert damage(card) == []
    (tmp_path / "data").write_bytes(b"abd")
    assert "data was changed" in damage(card)[0]
    (tmp_path / "data").unlink()
    assert "data is missing" in damage(card)[0]
    card.write_text(card.read_text().replace('"x"', '"y"'))
    assert any("does not fit its seal" in problem for problem in damage(card))


def test_fingerprints_follow_the_content_not_the_order():
    assert (
        fingerprint({"a": 1, "b": 2})
        == fingerprint({"b": 2, "a": 1})
        != fingerprint({"a": 1, "b": 3})
    )


def test_a_new_array_is_zero_and_has_its_space(tmp_path):
    array = new_array(tmp_path / "a.npy", (3, 1000, 100), np.uint16)
    assert not array.any()
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= 600_000


def test_a_packed_array_is_mapped_once_and_travels_as_its_path(tmp_path):
    new_array(tmp_path / "a.npy", (3, 4), np.uint16)
    packed = PackedArray(tmp_path / "a.npy")
    packed.open()[1] = 7
    assert packed.open() is packed.open()
    sent = pickle.loads(pickle.dumps(packed))
    assert len(pickle.dumps(packed)) < 500
    sent.open()[2] = 9
    sent.written()
    packed.close()
    assert np.load(tmp_path / "a.npy")[:, 0].tolist() == [0, 7, 9]


def test_a_journal_forgets_a_line_that_was_cut_short(tmp_path):
    journal = Journal(tmp_path / "done")
    journal.add("7")
    with (tmp_path / "done").open("a") as file:
        file.write("12")  # of 123
    again = Journal(tmp_path / "done")
    assert again.done == {"7"}
    again.add("8")
    assert Journal(tmp_path / "done").done == {"7", "8"}


def test_a_journal_writes_only_what_is_safe(tmp_path):
    flushed = []
    journal = Journal(tmp_path / "done", flush=lambda: flushed.append(True), every_s=60)
    journal.add("1")
    assert journal.done == {"1"}
    assert not (tmp_path / "done").exists()
    journal.save()
    assert flushed == [True]
    assert Journal(tmp_path / "done").done == {"1"}


def test_work_that_becomes_nothing_leaves_nothing_once_it_has_ended_well(tmp_path):
    with pytest.raises(KeyboardInterrupt), work_folder(tmp_path / "map.tif", "key") as work:
        (work / "block").write_text("done")
        raise KeyboardInterrupt
    with work_folder(tmp_path / "map.tif", "key") as work:
        assert (work / "block").read_text() == "done"
    assert list(tmp_path.iterdir()) == []


def test_of_an_array_only_the_parts_that_will_be_written_take_space(tmp_path):
    parts = [(slice(0, 40), slice(0, 30)), (slice(900, 1000), slice(1900, 2000))]
    array = new_array(tmp_path / "a.npy", (1000, 2000, 64), np.float32, parts)
    array[900:1000, 1900:2000] = 1
    array.flush()
    told = (tmp_path / "a.npy").stat()
    needed = sum(part_bytes(array.shape, np.float32, part) for part in parts)
    assert needed == (40 * 30 + 100 * 100) * 64 * 4
    assert needed <= told.st_blocks * 512 < 1.3 * needed + 2_000_000
    assert told.st_size == array.offset + array.nbytes
    assert array[:900].sum() == 0
    assert array.sum() == 100 * 100 * 64


def test_an_array_that_will_be_written_nearly_all_is_reserved_as_a_whole(tmp_path):
    parts = [(slice(0, 95), slice(0, 100))]
    new_array(tmp_path / "a.npy", (100, 100, 64), np.float32, parts)
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= 100 * 100 * 64 * 4
