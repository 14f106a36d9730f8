"""Record files as recorders produce them: each is read, or refused in one clear sentence."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile

import polars as pl
import pytest

from butterfly_sdm.errors import MissingFileError, RecordsError
from data_prep.records.files.limits import within
from data_prep.records.occurrences import read_occurrences
from data_prep.records.options import LimitOptions
from data_prep.records.readers.registry import open_records
from tests.data_prep.records.making_records import (
    COLUMNS,
    DWC,
    LAX,
    archive,
    core,
    counted,
    counting,
    meta,
    row,
    square,
    text,
    zipped,
)

ROWS = [
    row(0, "2018-06-03", "Pieris napi", ident=1),
    row(0, "2018-06-03T00:00:00", "Aglais io", ident=2),
    row(0, "2018-06-10", "Pieris napi", ident=3),
    row(1, "2018-06-03", "Aglais io", ident=4),
]


def check(table, read=4):
    """The four rows: two sites with 2 and 1 visits."""
    assert table.rows["read"] == read
    assert sorted(table.visits) == [1, 2]
    k = table.detections.loc[table.visits.idxmax()]
    assert dict(k) == {"Aglais io": 1, "Pieris napi": 2}


def test_an_archive_is_read_by_its_meta_xml(tmp_path):
    check(counted(archive(tmp_path / "a.zip", ROWS), scratch=tmp_path))


def test_an_unpacked_archive_is_read_too(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/meta.xml").write_text(meta(core()))
    (tmp_path / "a/occurrence.txt").write_text(text(ROWS))
    check(counted(tmp_path / "a", scratch=tmp_path))


def test_an_archive_without_meta_xml_is_read_by_its_header(tmp_path):
    table = counted(zipped(tmp_path / "a.zip", {"occurrence.txt": text(ROWS)}), scratch=tmp_path)
    check(table)
    assert "no meta.xml" in " ".join(table.notes)


def test_a_first_row_that_is_no_header_is_not_lost_whatever_meta_xml_says(tmp_path):
    without = text(ROWS).split("\n", 1)[1]
    table = counted(
        zipped(tmp_path / "a.zip", {"meta.xml": meta(core()), "occurrence.txt": without}),
        scratch=tmp_path,
    )
    check(table)
    assert "names no column" in " ".join(table.notes)
    assert not any(
        "names no column" in note
        for note in counted(archive(tmp_path / "b.zip", ROWS), scratch=tmp_path).notes
    )


def test_an_archive_within_a_folder_of_the_zip_is_found(tmp_path):
    check(
        counted(
            zipped(
                tmp_path / "a.zip",
                {"data/meta.xml": meta(core()), "data/occurrence.txt": text(ROWS)},
            ),
            scratch=tmp_path,
        )
    )


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_byte_order_marks_and_foreign_line_ends_change_nothing(tmp_path, mark, end):
    content = (mark + text(ROWS, end=end)).encode()
    check(
        counted(
            zipped(tmp_path / "a.zip", {"meta.xml": meta(core()), "occurrence.txt": content}),
            scratch=tmp_path,
        )
    )
    (tmp_path / "b.tsv").write_bytes(content)
    check(counted(tmp_path / "b.tsv", scratch=tmp_path))


def test_latin_1_is_read_as_meta_xml_says(tmp_path):
    rows = [*ROWS[:3], row(1, species="Aglais io", ident=4, institutionCode="Société")]
    path = zipped(
        tmp_path / "a.zip",
        {
            "meta.xml": meta(core(encoding="ISO-8859-1")),
            "occurrence.txt": text(rows).encode("latin-1"),
        },
    )
    occurrences = read_occurrences([path], scratch=tmp_path)
    assert "Société" in occurrences.dictionaries["source"]["institutionCode"].to_list()


def test_latin_1_that_calls_itself_utf_8_is_read_with_a_note(tmp_path):
    rows = [*ROWS[:3], row(1, species="Aglais io", ident=4, institutionCode="Société")]
    path = zipped(
        tmp_path / "a.zip",
        {"meta.xml": meta(core()), "occurrence.txt": text(rows).encode("latin-1")},
    )
    occurrences = read_occurrences([path], scratch=tmp_path)
    assert "Société" in occurrences.dictionaries["source"]["institutionCode"].to_list()
    assert "not UTF-8" in " ".join(occurrences.notes)


def test_a_spreadsheets_unicode_text_is_read(tmp_path):
    (tmp_path / "a.txt").write_bytes(text(ROWS).encode("utf-16"))
    check(counted(tmp_path / "a.txt", scratch=tmp_path))


def test_quotes_inside_unquoted_fields_are_ordinary_characters(tmp_path):
    rows = [*ROWS[:3], row(1, species="Aglais io", ident=4, institutionCode='the "wild" 5" club')]
    occurrences = read_occurrences([archive(tmp_path / "a.zip", rows)], scratch=tmp_path)
    assert occurrences.read == 4
    assert 'the "wild" 5" club' in occurrences.dictionaries["source"]["institutionCode"].to_list()


def test_quoted_fields_may_hold_separators_line_ends_and_quotes(tmp_path):
    columns = [c for c in COLUMNS if c != "footprintWKT"]
    plain = [{**r, "scientificName": r["species"]} for r in ROWS]
    body = text(plain, columns, separator=",").rstrip("\n").split("\n")
    body[1] = body[1].replace("UKBMS", '"a, ""b""\nc"')
    path = zipped(
        tmp_path / "a.zip",
        {
            "meta.xml": meta(core(columns, separator=",", quote="&quot;")),
            "occurrence.txt": "\n".join(body),
        },
    )
    occurrences = read_occurrences([path], scratch=tmp_path)
    assert occurrences.read == 4 and occurrences.malformed == 0
    assert 'a, "b"\nc' in occurrences.dictionaries["source"]["institutionCode"].to_list()


def test_a_stray_quote_costs_no_row_but_its_own(tmp_path):
    columns = [c for c in COLUMNS if c != "footprintWKT"]
    many = [row(0, f"2018-06-{d:02d}", ident=d, scientificName="Pieris napi") for d in range(1, 29)]
    body = text(many, columns, separator=",").replace("UKBMS", '"UKBMS', 1)
    (tmp_path / "a.csv").write_text(body)
    occurrences = read_occurrences([tmp_path / "a.csv"], scratch=tmp_path)
    assert (occurrences.read, occurrences.malformed) == (28, 0)


@pytest.mark.parametrize("cells", [('"UKBMS', 'UKBMS"'), ('"UKBMS', '"UKBMS')])
def test_two_stray_quotes_do_not_swallow_the_rows_between_them(tmp_path, cells):
    columns = [c for c in COLUMNS if c != "footprintWKT"]
    many = [row(0, f"2018-06-{d:02d}", ident=d, scientificName="Pieris napi") for d in range(1, 29)]
    many[5]["institutionCode"], many[20]["institutionCode"] = cells
    (tmp_path / "a.csv").write_text(text(many, columns, separator=","))
    table = counted(tmp_path / "a.csv", scratch=tmp_path)
    assert table.rows == {"read": 28, "kept": 28}
    assert table.visits.to_list() == [28]


def test_rows_with_a_wrong_number_of_columns_are_counted_and_listed(tmp_path):
    lines = text(ROWS).rstrip("\n").split("\n")
    lines.insert(2, "too\tshort")
    lines.insert(4, lines[3] + "\tone\ttoo many")
    lines.insert(5, "")
    path = zipped(
        tmp_path / "a.zip", {"meta.xml": meta(core()), "occurrence.txt": "\n".join(lines)}
    )
    table = counted(path, scratch=tmp_path)
    check(table, read=6)
    assert table.rows["dropped: malformed row"] == 2
    bad = read_occurrences([path], scratch=tmp_path).malformed_rows()
    assert bad["row"].to_list() == [2, 4]
    assert bad["text"][0] == "too\tshort"


def test_a_row_that_lacks_its_last_columns_is_malformed_even_beside_one_with_a_separator_too_many(
    tmp_path,
):
    lines = text(ROWS).rstrip("\n").split("\n")
    lines[1] = "\t".join(lines[1].split("\t")[:-1])
    lines[2] += "\t"
    table = counted(
        zipped(tmp_path / "a.zip", {"meta.xml": meta(core()), "occurrence.txt": "\n".join(lines)}),
        scratch=tmp_path,
    )
    assert table.rows["dropped: malformed row"] == 1


def test_a_file_in_which_every_row_has_another_width_is_refused(tmp_path):
    path = zipped(
        tmp_path / "a.zip",
        {"meta.xml": meta(core()), "occurrence.txt": text(ROWS).replace("\t", ",")},
    )
    with pytest.raises(RecordsError, match=r"None of the first 4 rows .* has the 11 columns"):
        read_occurrences([path], scratch=tmp_path)


def test_several_core_files_are_one_core(tmp_path):
    path = zipped(
        tmp_path / "a.zip",
        {
            "meta.xml": meta(core(files=("one.txt", "two.txt"))),
            "one.txt": text(ROWS[:2]),
            "two.txt": text(ROWS[2:]),
        },
    )
    check(counted(path, scratch=tmp_path))


def test_columns_with_one_value_throughout_stand_in_meta_xml(tmp_path):
    columns = [c for c in COLUMNS if c != "occurrenceStatus"]
    constant = f'<field term="{DWC}occurrenceStatus" default="ABSENT"/>'
    path = zipped(
        tmp_path / "a.zip",
        {"meta.xml": meta(core(columns, extra=constant)), "occurrence.txt": text(ROWS, columns)},
    )
    with pytest.raises(RecordsError, match="No record of presence"):
        counted(path, scratch=tmp_path)


def test_a_zip_without_occurrences_says_what_it_holds(tmp_path):
    for name in ("notes.md", "readme.txt"):
        path = zipped(tmp_path / f"{name}.zip", {name: "hello, world"})
        for format in ("auto", "dwca"):
            with pytest.raises(RecordsError, match=rf"(holds|but) {name}.*") as caught:
                read_occurrences([path], scratch=tmp_path, format=format)
            assert "neither meta.xml nor occurrence.txt" in str(caught.value)


def test_a_core_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        RecordsError,
        match=r"has no occurrence.txt, which its meta.xml names; it holds meta.xml, other.txt",
    ):
        read_occurrences(
            [zipped(tmp_path / "a.zip", {"meta.xml": meta(core()), "other.txt": "x"})],
            scratch=tmp_path,
        )


@pytest.mark.parametrize("share", [0.5, 0.99, 0.02])
def test_a_truncated_zip_is_refused(tmp_path, share):
    path = archive(tmp_path / "a.zip", ROWS * 200)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(RecordsError, match="truncated or damaged"):
        read_occurrences([path], scratch=tmp_path)


def test_damage_in_the_middle_of_a_zip_is_noticed(tmp_path):
    many = [row(n % 7, f"2018-06-{n % 28 + 1:02d}", ident=n) for n in range(5000)]
    path = archive(tmp_path / "a.zip", many)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4] = bytes(b ^ 0xFF for b in data[middle : middle + 4])
    path.write_bytes(data)
    with pytest.raises(RecordsError, match="truncated or damaged"):
        read_occurrences([path], scratch=tmp_path)
    assert not [
        p
        for p in tmp_path.iterdir()
        if p.name.startswith("records-") and not p.name.endswith(".partial")
    ]


@pytest.mark.parametrize(
    "name", ["../evil.txt", "/etc/evil.txt", "a/../../evil.txt", "..\\evil.txt", "C:\\evil.txt"]
)
def test_an_entry_that_escapes_its_folder_is_refused(tmp_path, name):
    path = archive(tmp_path / "a.zip", ROWS)
    with zipfile.ZipFile(path, "a") as held:
        held.writestr(name, "x")
    with pytest.raises(RecordsError, match="would escape its folder"):
        read_occurrences([path], scratch=tmp_path)


def test_a_core_file_outside_of_an_unpacked_archive_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/meta.xml").write_text(meta(core(files=("../secret.txt",))))
    (tmp_path / "secret.txt").write_text(text(ROWS))
    with pytest.raises(RecordsError, match="would escape the archive"):
        read_occurrences([tmp_path / "a"], scratch=tmp_path)


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.records.files.containers.SMALL_BYTES", 1 << 16)
    path = zipped(
        tmp_path / "a.zip", {"meta.xml": meta(core()), "occurrence.txt": "\0" * (1 << 20)}
    )
    with pytest.raises(
        RecordsError, match=r"times as much.*raise build.records.limits.ratio \(now 200\)"
    ):
        read_occurrences([path], scratch=tmp_path)


def test_a_bomb_that_lies_about_its_size_is_stopped(tmp_path):
    path = zipped(
        tmp_path / "a.zip",
        {"meta.xml": meta(core()), "occurrence.txt": text(ROWS) + "\0" * (1 << 20)},
    )
    data = path.read_bytes()
    place = data.rindex(b"PK\x01\x02")  # the directory's entry of occurrence.txt
    path.write_bytes(data[: place + 24] + struct.pack("<I", 4000) + data[place + 28 :])
    with pytest.raises(RecordsError, match="truncated or damaged"):
        read_occurrences([path], scratch=tmp_path)


def test_one_endless_row_is_refused(tmp_path, monkeypatch):
    from data_prep.records.files.delimited import Layout, row_blocks

    endless = b"h\n" + b"a" * (2 << 20)
    with (
        pytest.raises(
            RecordsError,
            match=r"longer than 1 MiB: .* raise build.records.limits.row_mib \(now 1\)",
        ),
        within(LimitOptions(row_mib=1)),
    ):
        list(row_blocks("x.csv", lambda: io.BytesIO(endless), Layout(",", None, ("a",)), 1 << 14))


def test_a_table_of_too_many_columns_is_refused_and_the_limit_can_be_raised(tmp_path):
    described = meta(core()).replace('index="1"', 'index="20000"', 1)
    path = zipped(tmp_path / "a.zip", {"meta.xml": described, "occurrence.txt": text(ROWS)})
    with pytest.raises(
        RecordsError,
        match=r"names 20,001 columns.*raise build.records.limits.columns \(now 10,000\)",
    ):
        read_occurrences([path], scratch=tmp_path)
    with within(LimitOptions(columns=30_000)):
        open_records(path)  # whether its rows fit is found while they are read


def test_a_link_in_an_archive_is_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("meta.xml", meta(core()))
        link = zipfile.ZipInfo("occurrence.txt")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(RecordsError, match=r"'occurrence\.txt', which is a link"):
        read_occurrences([path], scratch=tmp_path)


def test_a_link_that_leads_out_of_an_unpacked_archive_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/meta.xml").write_text(meta(core()))
    (tmp_path / "secret.txt").write_text(text(ROWS))
    (tmp_path / "a/occurrence.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(RecordsError, match="is a link that leads out"):
        read_occurrences([tmp_path / "a"], scratch=tmp_path)


@pytest.mark.parametrize("encoding", ["hex", "idna", "utf-99", "undefined", "rot13"])
def test_an_encoding_that_is_none_of_text_is_refused(tmp_path, encoding):
    path = zipped(
        tmp_path / "a.zip",
        {"meta.xml": meta(core(encoding=encoding)), "occurrence.txt": text(ROWS)},
    )
    with pytest.raises(RecordsError, match=f"in the encoding '{encoding}', which is unknown"):
        read_occurrences([path], scratch=tmp_path)


def test_entities_in_meta_xml_are_refused(tmp_path):
    evil = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><archive>&x;</archive>'
    with pytest.raises(RecordsError, match="document type"):
        read_occurrences(
            [zipped(tmp_path / "a.zip", {"meta.xml": evil, "occurrence.txt": text(ROWS)})],
            scratch=tmp_path,
        )


def test_broken_xml_is_refused(tmp_path):
    with pytest.raises(RecordsError, match=r"meta.xml in a.zip is not XML"):
        read_occurrences(
            [zipped(tmp_path / "a.zip", {"meta.xml": "<archive>", "occurrence.txt": text(ROWS)})],
            scratch=tmp_path,
        )


def test_an_extension_without_a_core_is_refused(tmp_path):
    only = meta(core(tag="extension", ids="coreid"))
    with pytest.raises(RecordsError, match="an extension but no core"):
        read_occurrences(
            [zipped(tmp_path / "a.zip", {"meta.xml": only, "occurrence.txt": text(ROWS)})],
            scratch=tmp_path,
        )


def test_a_core_of_taxa_is_refused(tmp_path):
    with pytest.raises(RecordsError, match="core of type 'taxon'"):
        read_occurrences(
            [
                zipped(
                    tmp_path / "a.zip",
                    {"meta.xml": meta(core(kind="Taxon")), "occurrence.txt": text(ROWS)},
                )
            ],
            scratch=tmp_path,
        )


@pytest.mark.parametrize("content", ["", "\n"])
def test_an_empty_file_is_refused(tmp_path, content):
    with pytest.raises(RecordsError, match="is empty"):
        read_occurrences(
            [zipped(tmp_path / "a.zip", {"meta.xml": meta(core()), "occurrence.txt": content})],
            scratch=tmp_path,
        )
    (tmp_path / "b.csv").write_text(content)
    with pytest.raises(RecordsError, match=r"b.csv holds no records: it is empty"):
        read_occurrences([tmp_path / "b.csv"], scratch=tmp_path)


def test_a_header_alone_is_refused(tmp_path):
    with pytest.raises(RecordsError, match="a header but no records"):
        read_occurrences([archive(tmp_path / "a.zip", [])], scratch=tmp_path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"no records at .*nowhere.zip"):
        read_occurrences([tmp_path / "nowhere.zip"], scratch=tmp_path)
    with pytest.raises(RecordsError, match="names no file"):
        read_occurrences([], scratch=tmp_path)


def test_a_table_without_a_date_place_or_species_column_is_refused(tmp_path):
    for missing, message in (
        ("date", "no date column"),
        ("lat", "no place column"),
        ("species", "no species column"),
    ):
        columns = [c for c in ("date", "lat", "lon", "species") if c != missing]
        (tmp_path / "a.csv").write_text(
            ",".join(columns) + "\n" + ",".join("1" for _ in columns) + "\n"
        )
        with pytest.raises(RecordsError, match=message):
            read_occurrences([tmp_path / "a.csv"], scratch=tmp_path)


def test_a_table_with_its_own_headers_is_read_through_a_column_mapping(tmp_path):
    rows = "Wann,Wo,Was\n2018-06-03,SU1234,Pieris napi\n2018-06-10,SU1234,Aglais io\n"
    (tmp_path / "a.csv").write_text(rows)
    table = counted(
        tmp_path / "a.csv",
        scratch=tmp_path,
        columns={"eventDate": "Wann", "gridReference": "Wo", "species": "Was"},
    )
    assert dict(table.visits) == {"SU1234": 2}
    with pytest.raises(RecordsError, match=r"no column 'Wan', .*Did you mean 'Wann'"):
        read_occurrences([tmp_path / "a.csv"], scratch=tmp_path, columns={"eventDate": "Wan"})
    with pytest.raises(
        RecordsError, match=r"'evenDate', which is no column of records. Did you mean 'eventDate'"
    ):
        read_occurrences([tmp_path / "a.csv"], scratch=tmp_path, columns={"evenDate": "Wann"})


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".parquet", ".zip"])
def test_one_table_is_the_same_in_every_container(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    columns = ["eventDate", "gridReference", "species", "individualCount"]
    rows = [
        {
            "eventDate": f"2018-06-{d:02d}",
            "gridReference": "SU1234",
            "species": s,
            "individualCount": "2",
        }
        for d in (3, 10)
        for s in ("A b", "C d")
    ]
    content = text(rows, columns, separator="\t" if suffix == ".tsv" else ",")
    if suffix == ".parquet":
        pl.DataFrame(rows).with_columns(
            pl.col("eventDate").str.to_date(), pl.col("individualCount").cast(pl.Float64)
        ).write_parquet(path)
    elif suffix == ".zip":
        zipped(path, {"records.csv": content})
    elif suffix == ".csv.gz":
        path.write_bytes(gzip.compress(content.encode()))
    else:
        path.write_text(content)
    with pytest.raises(RecordsError, match=r"No site is left|no species"):
        counted(path, scratch=tmp_path)  # neither name is one


def test_gbifs_simple_download_is_known_by_its_header(tmp_path):
    columns = ("gbifID", "datasetKey", "occurrenceID", *COLUMNS[1:])
    rows = [{**r, "datasetKey": "k", "institutionCode": 'a "quoted code'} for r in ROWS]
    check(
        counted(
            zipped(tmp_path / "0001-download.zip", {"0001-download.csv": text(rows, columns)}),
            scratch=tmp_path,
        )
    )


def test_the_nbn_atlas_download_is_read_day_first(tmp_path):
    header = (
        '"NBN Atlas record ID","Occurrence status","Scientific name","Taxon Rank","Start '
        'date","OSGR",'
        '"Latitude (WGS84)","Longitude (WGS84)","Coordinate uncertainty (m)","Dataset name"'
    )
    lines = [
        '"u1","present","Pieris '
        'napi","species","03/06/2018","SU1234","51.1","-1.8","707.1","UKBMS"',
        '"u2","absent","Aglais io","species","04/06/2018","SU1234","51.1","-1.8","707.1","UKBMS"',
    ]
    (tmp_path / "nbn.csv").write_text("\n".join([header, *lines]) + "\n")
    table = counted(tmp_path / "nbn.csv", scratch=tmp_path)
    assert dict(table.visits) == {"SU1234": 2} and dict(table.detections.loc["SU1234"]) == {
        "Pieris napi": 1
    }


def test_ukbms_site_visit_tables_know_visits_that_saw_nothing(tmp_path):
    folder = tmp_path / "ukbms"
    folder.mkdir()
    (folder / "m_visit.csv").write_text(
        "SITE_ID,DATE\n1,2018-06-03\n1,2018-06-10\n1,2018-06-17\n2,2018-06-03\n"
    )
    (folder / "m_count.csv").write_text(
        "SITE_ID,DATE,SPECIES,COUNT\n1,2018-06-03,Pieris napi,2\n1,2018-06-03,Aglais "
        "io,1\n2,2018-06-03,Aglais io,1\n"
    )
    (folder / "m_site.csv").write_text("SITE_ID,GRIDREF\n1,SU1234\n2,SU5678\n")
    table = counted(folder, scratch=tmp_path)
    assert dict(table.visits) == {"SU1234": 3, "SU5678": 1}
    assert table.detections.loc["SU1234", "Pieris napi"] == 1
    assert table.rows["read"] == 3
    assert "2 on which nothing was seen" in " ".join(table.notes)


def test_degrees_with_a_decimal_comma_are_read(tmp_path):
    (tmp_path / "a.csv").write_text(
        "date;species;lat;lon\n2018-06-03;Pieris napi;51,31627;-2,28118\n"
    )
    table = counted(tmp_path / "a.csv", scratch=tmp_path)
    assert table.sites[["lat", "lon"]].to_numpy()[0] == pytest.approx([51.31627, -2.28118])


@pytest.mark.parametrize(
    ("rules", "table", "advice"),
    [
        (
            counting(min_records=200, institutions=("UKBMS",)),
            "date,species,gridref\n2018-06-03,Pieris napi,SU12\n",
            "do not name institutions",
        ),
        (
            LAX,
            "date,species,gridref\nearly June,Pieris napi,SU12\n",
            "read as 2018-06-03, 3/6/2018 or 3 June 2018",
        ),
        (
            LAX,
            "date,species,gridref\n,Pieris napi,SU12\n",
            "Are the dates in a column of another name",
        ),
        (
            LAX,
            "date,species,lat,lon\n2018-06-03,Pieris napi,51 18 59 N,2 16 52 W\n",
            "read as decimal degrees",
        ),
    ],
)
def test_a_table_of_which_no_row_fits_is_refused_with_advice(tmp_path, rules, table, advice):
    (tmp_path / "a.csv").write_text(table)
    with pytest.raises(RecordsError, match=f"No site is left: of 1 rows 1 for .*{advice}"):
        counted(tmp_path / "a.csv", scratch=tmp_path, rules=rules)


def test_a_damaged_workbook_is_refused_with_the_way_out(tmp_path):
    zipped(tmp_path / "a.xlsx", {"[Content_Types].xml": "", "xl/workbook.xml": ""})
    with pytest.raises(RecordsError, match=r"a\.xlsx .*workbook.*ave the sheet of records as CSV"):
        read_occurrences([tmp_path / "a.xlsx"], scratch=tmp_path)


def test_an_unknown_layout_names_the_known_ones(tmp_path):
    (tmp_path / "a.docx").write_bytes(b"\x00\x01")
    with pytest.raises(RecordsError, match=r"in no known layout of records .*dwca"):
        read_occurrences([tmp_path / "a.docx"], scratch=tmp_path)
    with pytest.raises(
        RecordsError, match=r"records.format = 'xls' is no known layout. Known are auto, dwca"
    ):
        read_occurrences([tmp_path / "a.docx"], scratch=tmp_path, format="xls")


def test_files_are_read_once_until_they_change(tmp_path, monkeypatch):
    path = archive(tmp_path / "a.zip", ROWS)
    check(counted(path, scratch=tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr("data_prep.records.occurrences.open_records", None)
        check(counted(path, scratch=tmp_path))
    archive(path, [*ROWS, row(2, ident=9)])
    assert len(counted(path, scratch=tmp_path).visits) == 3


def test_a_footprint_is_the_same_place_however_it_is_written(tmp_path):
    other = square().replace("POLYGON((", "POLYGON ((").replace(",", ", ")
    corners = "POLYGON((0.01 52.01,0.01 52.0,0 52,0 52.01,0.01 52.01))"
    rows = [
        row(0, f"2018-06-0{d}", ident=d, footprintWKT=wkt)
        for d, wkt in enumerate((square(), other, corners), 1)
    ]
    assert counted(archive(tmp_path / "a.zip", rows), scratch=tmp_path).visits.tolist() == [3]


@pytest.mark.parametrize("name", ["Butterflies [2018]", "what*", "one{a,b}"])
def test_a_folder_may_have_brackets_in_its_name(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "a.txt").write_text(text(ROWS))
    check(counted(folder / "a.txt", scratch=folder))
