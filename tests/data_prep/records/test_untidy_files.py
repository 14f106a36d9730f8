"""Files that programs wrote with a habit of their own: each is read, or refused with the cure."""

from __future__ import annotations

import io
import tarfile
import zipfile

import polars as pl
import pytest

from butterfly_sdm.errors import RecordsError
from data_prep.records.files.delimited import Layout, _Cutter, cut_rows
from tests.data_prep.records.making_records import core, counted, meta, row, text, zipped

HEADER = ("date", "lat", "lon", "species")
ROWS = [
    ("2018-05-01", "52.1", "0.5", "Aglais io"),
    ("2018-05-02", "52.1", "0.5", "Aglais io"),
    ("2018-05-02", "52.1", "0.5", "Pieris napi"),
]


def joined(separator=",", header=HEADER, rows=ROWS, quote=""):
    """Return the three rows as text."""
    lines = [header, *rows]
    return "".join(separator.join(f"{quote}{c}{quote}" for c in line) + "\n" for line in lines)


def numbered(rows=ROWS):
    """Return rows with their number before them, as R does."""
    return [(str(place), *cells) for place, cells in enumerate(rows, 1)]


@pytest.mark.parametrize(
    "content",
    [
        joined("\t", quote='"'),
        "\t".join(HEADER) + "\n" + joined("\t", quote='"').split("\n", 1)[1],
        joined("\t", rows=[(*cells[:3], f'"{cells[3]}"') for cells in ROWS]),
        "sep=;\n" + joined(";"),
        '"sep=|"\r\n' + joined("|").replace("\n", "\r\n"),
        joined(",", header=('"Other\n(if any, say)"', *HEADER), rows=[("", *r) for r in ROWS]),
        joined(";", header=(*HEADER, '"a\r\nb\r\nc"'), rows=[(*r, "x") for r in ROWS]),
        joined(rows=numbered()),
        joined("\t", rows=[(str(int(n) * 7), *cells) for n, *cells in numbered()]),
        "Walks of 2018\n\nby the group, all of them\n" + joined(),
        "Butterflies;;;\n;;;\n" + joined(";"),
        joined("\t").encode("utf-16-le"),
        joined(",").encode("utf-16-be"),
        joined(",").encode("utf-16"),
        joined("\t", header=(*HEADER, "")),
        joined(",", header=(*HEADER, "", "")),
        joined(",", rows=[(*cells, "", "") for cells in ROWS]),
    ],
)
def test_a_table_in_a_programs_own_way_is_read(tmp_path, content):
    data = content.encode() if isinstance(content, str) else content
    (tmp_path / "a.csv").write_bytes(data)
    table = counted(tmp_path / "a.csv", scratch=tmp_path)
    assert table.rows["read"] == 3
    assert list(table.visits) == [2]
    assert dict(table.detections.iloc[0]) == {"Aglais io": 2, "Pieris napi": 1}


def test_what_was_passed_over_is_told(tmp_path):
    (tmp_path / "a.csv").write_text("Walks of 2018\n\n" + joined())
    (tmp_path / "b.csv").write_text(joined(rows=numbered()))
    assert "1 lines above its header" in " ".join(
        counted(tmp_path / "a.csv", scratch=tmp_path).notes
    )
    assert "names of rows" in " ".join(counted(tmp_path / "b.csv", scratch=tmp_path).notes)


def test_a_column_too_many_that_is_no_number_is_refused_with_the_cure(tmp_path):
    (tmp_path / "a.csv").write_text(joined(rows=[("walk", *cells) for cells in ROWS]))
    with pytest.raises(RecordsError, match=r"one cell more than the header.*row\.names = FALSE"):
        counted(tmp_path / "a.csv", scratch=tmp_path)


@pytest.mark.parametrize("separator", [" ", "&#9;", "\\t"])
@pytest.mark.parametrize("tabs", [0, 1])
def test_an_archives_tabs_are_found_as_they_are(tmp_path, separator, tabs):
    rows = [row(0, "2018-06-03", ident=1), row(0, "2018-06-04", ident=2)]
    held = text(rows).replace("\n", "\t" * tabs + "\n", 1)
    described = meta(core(separator=separator))
    path = zipped(tmp_path / "a.zip", {"meta.xml": described, "occurrence.txt": held})
    table = counted(path, scratch=tmp_path)
    assert list(table.visits) == [2]
    assert ("separated by tabs" in " ".join(table.notes)) == (separator == " ")


def test_rows_that_all_end_in_empty_cells_are_cut_at_once_and_alike():
    layout = Layout(",", '"', HEADER)
    wanted = {"species": "species", "date": "eventDate"}
    for data in (
        joined(rows=[(*cells, "", "") for cells in ROWS]).split("\n", 1)[1],
        joined(rows=[(*ROWS[0], "", ""), (*ROWS[1], "", "x"), ROWS[2]]).split("\n", 1)[1],
        joined(rows=[(*cells, "", "") for cells in ROWS], quote='"').split("\n", 1)[1],
    ):
        fast, _ = _Cutter(layout, wanted)([data.encode()])
        slow = cut_rows(data.encode(), layout, wanted)
        assert fast.rows.select(sorted(wanted.values())).equals(
            slow.rows.select(sorted(wanted.values()))
        )
        assert fast.numbers.to_list() == slow.numbers.to_list()
        assert fast.malformed["row"].to_list() == slow.malformed["row"].to_list()


@pytest.mark.parametrize("name", ["a.tgz", "a.tar.gz", "a.7z"])
def test_an_archive_of_another_kind_is_refused_with_the_cure(tmp_path, name):
    with tarfile.open(tmp_path / name, "w:gz") as archive:
        info = tarfile.TarInfo("a.csv")
        info.size = len(joined())
        archive.addfile(info, io.BytesIO(joined().encode()))
    with pytest.raises(RecordsError, match="Unpack it and name the table"):
        counted(tmp_path / name, scratch=tmp_path)


@pytest.mark.parametrize("method", [9, 93, 95])
def test_a_compression_that_cannot_be_read_is_named(tmp_path, method):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("records.csv", joined())
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[8], data[at + 10] = method, method
    path.write_bytes(data)
    with pytest.raises(RecordsError, match=r"records\.csv .* compression (Deflate64|method 9)"):
        counted(path, scratch=tmp_path)


@pytest.mark.parametrize("names", [("000000", "000001"), ("p/part-0.parquet", "p/part-1.parquet")])
def test_a_folder_of_parquet_files_is_one_table(tmp_path, names):
    frame = pl.DataFrame(ROWS, schema=list(HEADER), orient="row")
    folder = tmp_path / "a.parquet"
    (folder / "p").mkdir(parents=True)
    (folder / "empty").touch()
    (folder / "_SUCCESS").write_text("done")
    for name, part in zip(names, (frame[:1], frame[1:]), strict=True):
        part.write_parquet(folder / name)
    table = counted(folder, scratch=tmp_path)
    assert list(table.visits) == [2]
    assert dict(table.detections.iloc[0]) == {"Aglais io": 2, "Pieris napi": 1}


def test_parquet_files_that_do_not_make_one_table_are_refused(tmp_path):
    frame = pl.DataFrame(ROWS, schema=list(HEADER), orient="row")
    (tmp_path / "a" / "year=2018").mkdir(parents=True)
    frame.write_parquet(tmp_path / "a" / "year=2018" / "0")
    with pytest.raises(RecordsError, match="one Parquet file"):
        counted(tmp_path / "a", scratch=tmp_path)
    (tmp_path / "b").mkdir()
    frame.write_parquet(tmp_path / "b" / "0")
    frame.drop("lat").write_parquet(tmp_path / "b" / "1")
    with pytest.raises(RecordsError, match="no column 'lat'"):
        counted(tmp_path / "b", scratch=tmp_path)
