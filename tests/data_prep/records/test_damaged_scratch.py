"""Records that were damaged after they were read are read again, with a warning."""

import pytest

from data_prep.records.occurrences import read_occurrences

ROWS = "occurrenceID,scientificName,eventDate,decimalLatitude,decimalLongitude\n" + "".join(
    f"{n},Pieris napi,2018-06-{n:02d},51.5,-1.2\n" for n in range(1, 21)
)


def rows(occurrences):
    return sum(len(part) for part in occurrences.parts(["row"]))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:50] + bytes([content[50] ^ 1]) + content[51:],
        lambda content: b"",
    ],
)
@pytest.mark.parametrize("name", ["rows-*.parquet", "again.parquet"])
def test_damage_is_mended_by_reading_again(tmp_path, caplog, change, name):
    source = tmp_path / "a.csv"
    source.write_text(ROWS)
    assert rows(read_occurrences([source], scratch=tmp_path / "s")) == 20
    assert rows(read_occurrences([source], scratch=tmp_path / "s")) == 20 and not caplog.records
    (damaged,) = (tmp_path / "s").rglob(name)
    damaged.write_bytes(change(damaged.read_bytes()))
    assert rows(read_occurrences([source], scratch=tmp_path / "s")) == 20
    assert "is damaged; the records are read again" in caplog.text
