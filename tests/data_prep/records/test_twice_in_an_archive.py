"""An archive with two files for one place is refused: half of the rows would be dropped unseen."""

import zipfile

import pytest

from butterfly_sdm.errors import RecordsError
from data_prep.records.files.containers import open_container
from data_prep.records.readers.archive import _root

ROWS = "occurrenceID\tscientificName\n1\tPieris napi\n"


def archive(tmp_path, *names):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as out:
        for name in names:
            out.writestr(name, ROWS)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["occurrence.txt", "meta.xml", "a/b.csv"])
def test_one_name_twice(tmp_path, name):
    with pytest.raises(RecordsError, match=f"has the entry '{name}' more than once"):
        open_container(archive(tmp_path, name, "c.txt", name))


@pytest.mark.parametrize("name", ["occurrence.txt", "meta.xml"])
def test_two_archives_in_one(tmp_path, name):
    container = open_container(archive(tmp_path, f"2018/{name}", f"2019/{name}"))
    with pytest.raises(RecordsError, match=f"holds 2 archives, each with a {name}: 2018/{name}"):
        _root(container)
    (tmp_path / "one").mkdir()
    one = open_container(archive(tmp_path / "one", f"2018/{name}", "2019/other.txt"))
    assert _root(one) == "2018/"


def test_two_unpacked_archives_in_one_folder(tmp_path):
    for year in ("2018", "2019"):
        (tmp_path / year).mkdir()
        (tmp_path / year / "occurrence.txt").write_text(ROWS)
    with pytest.raises(RecordsError, match="holds 2 archives"):
        _root(open_container(tmp_path))
